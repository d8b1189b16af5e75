//! A Redis that dies, is emptied, trims, fails over, moves slots, or whose group is shared with others.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use redis::streams::{StreamReadOptions, StreamReadReply};
use rustix::process::Signal;

use crate::PATIENCE;
use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::forward::Forwarder;
use crate::redis::{RedisCluster, RedisServer, RedisSettings};

const BY_CURSOR: &str = "redis → same redis, by cursor";
const AS_A_GROUP: &str = "redis → same redis, as a group";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "redis-killed-always",
        route: BY_CURSOR,
        what: "Redis is killed (kill -9) again and again, with `appendfsync always`",
        promise: Promise::EXACTLY_ONCE,
        scene: || kill("always"),
    },
    Case {
        name: "redis-killed-everysec",
        route: BY_CURSOR,
        what: "Redis is killed (kill -9) again and again, with `appendfsync everysec`",
        promise: Promise::WHAT_THE_BROKER_KEPT,
        scene: || kill("everysec"),
    },
    Case {
        name: "redis-power-loss-everysec",
        route: BY_CURSOR,
        what: "the power fails, with `appendfsync everysec`: Redis is killed, and its file is cut within its last second",
        promise: Promise::WHAT_THE_BROKER_KEPT,
        scene: lose_power,
    },
    Case {
        name: "redis-flushall",
        route: BY_CURSOR,
        what: "`FLUSHALL` while the host waits for entries",
        promise: Promise::WHAT_THE_BROKER_KEPT,
        scene: || repeat("", |server| server.ask::<()>(&["FLUSHALL"])),
    },
    Case {
        name: "redis-flushall-group",
        route: AS_A_GROUP,
        what: "`FLUSHALL` while the host waits for entries",
        promise: Promise::WHAT_THE_BROKER_KEPT,
        scene: || repeat("read = \"group\"", |server| server.ask::<()>(&["FLUSHALL"])),
    },
    Case {
        name: "redis-group-destroyed",
        route: BY_CURSOR,
        what: "`XGROUP DESTROY` while the host waits for entries",
        promise: Promise::EXACTLY_ONCE,
        scene: || repeat("", |server| server.ask::<()>(&["XGROUP", "DESTROY", "in", "p"])),
    },
    Case {
        name: "redis-consumer-dies",
        route: AS_A_GROUP,
        what: "foreign consumers of the group read entries and die without acknowledging them",
        promise: Promise::EXACTLY_ONCE_UNORDERED,
        scene: strand_entries,
    },
    Case {
        name: "redis-trimmed",
        route: BY_CURSOR,
        what: "`XTRIM` removes what a host that lags has not read",
        promise: Promise::ALL_BUT_TRIMMED,
        scene: || trim_under_lag(""),
    },
    Case {
        name: "redis-trimmed-group",
        route: AS_A_GROUP,
        what: "`XTRIM` removes what a host that lags has not read; a group does not count what nobody had read",
        promise: Promise::WHAT_THE_BROKER_KEPT,
        scene: || trim_under_lag("read = \"group\""),
    },
    Case {
        name: "redis-failover",
        route: BY_CURSOR,
        what: "the master is killed while its replica lags, and the replica is promoted",
        promise: Promise::WHAT_THE_BROKER_KEPT,
        scene: fail_over,
    },
    Case {
        name: "redis-cluster-resharded",
        route: "redis cluster → same cluster",
        what: "slots of partitions move to other nodes, with what is in them",
        promise: Promise::AT_LEAST_ONCE,
        scene: reshard,
    },
];

fn kill(appendfsync: &'static str) -> Result<Scene> {
    let mut server = RedisServer::start_with(RedisSettings { appendfsync, ..RedisSettings::default() })?;
    let scene = Scene::redis(&server)?;
    Ok(scene.fault(move |world| {
        for _ in 0..world.rounds().min(8) {
            world.let_pass(60)?;
            world.wait(0..100);
            server.kill()?;
            world.wait(0..300);
            server.resume()?;
            world.mended();
        }
        Ok(())
    }))
}

fn lose_power() -> Result<Scene> {
    let settings = RedisSettings { appendfsync: "everysec", ..RedisSettings::default() };
    let mut server = RedisServer::start_with(settings)?;
    let scene = Scene::redis(&server)?;
    Ok(scene.fault(move |world| {
        // What is older than a second is on the disk; of what came then, any part may be.
        let file = append_only_file(&server)?;
        let synced = file.metadata()?.len();
        std::thread::sleep(Duration::from_secs(1));
        server.kill()?;
        let cut = world.random.within(synced..file.metadata()?.len());
        file.set_len(cut)?;
        server.resume()?;
        world.mended();
        Ok(())
    }))
}

fn append_only_file(server: &RedisServer) -> Result<std::fs::File> {
    let parts = std::fs::read_dir(server.dir().join("appendonlydir"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let incremental = |path: &PathBuf| path.to_string_lossy().ends_with(".incr.aof");
    let path = parts.into_iter().find(incremental).context("Redis has no append-only file")?;
    Ok(OpenOptions::new().write(true).open(path)?)
}

fn repeat(pipeline: &str, fault: fn(&RedisServer) -> Result<()>) -> Result<Scene> {
    let server = RedisServer::start()?;
    let scene = Scene::redis(&server)?.pipeline(pipeline);
    Ok(scene.fault(move |world| {
        for _ in 0..world.rounds().min(8) {
            world.let_pass(60)?;
            world.wait(0..100);
            fault(&server)?;
            world.mended();
            world.wait_for_output()?;
        }
        Ok(())
    }))
}

fn strand_entries() -> Result<Scene> {
    let server = RedisServer::start()?;
    let scene = Scene::redis(&server)?.lease("1s").pipeline("read = \"group\"");
    Ok(scene.fault(move |world| {
        for round in 0..world.rounds().min(4) {
            world.let_pass(60)?;
            let mut stranded = 0;
            // The host is quick, so there is not always something for others.
            while stranded < 20 {
                let options = StreamReadOptions::default().group("p", format!("stranger-{round}")).count(10).block(500);
                let mut connection = server.client()?.get_connection()?;
                let reply: Option<StreamReadReply> =
                    redis::Commands::xread_options(&mut connection, &["in"], &[">"], &options)?;
                stranded += reply.map_or(0, |reply| reply.keys.iter().map(|key| key.ids.len()).sum());
            }
        }
        Ok(())
    }))
}

fn trim_under_lag(pipeline: &str) -> Result<Scene> {
    let server = RedisServer::start()?;
    let scene = Scene::redis(&server)?.pipeline(pipeline);
    Ok(scene.fault(move |world| {
        for _ in 0..2 {
            world.host()?.signal(Signal::STOP)?;
            world.let_pass(300)?;
            let kept = world.random.within(20..150).to_string();
            let removed: usize = server.ask(&["XTRIM", "in", "MAXLEN", &kept])?;
            ensure!(removed > 0, "nothing was trimmed");
            world.host()?.signal(Signal::CONT)?;
            world.mended();
            world.wait_for_output()?;
            world.let_pass(100)?;
        }
        Ok(())
    }))
}

fn fail_over() -> Result<Scene> {
    let options = |options: &[&str]| RedisSettings {
        options: options.iter().map(ToString::to_string).collect(),
        ..RedisSettings::default()
    };
    let mut master = RedisServer::start_with(options(&["--repl-diskless-sync-delay", "0"]))?;
    let link = Forwarder::to(master.port())?;
    let replica = RedisServer::start_with(options(&["--replicaof", "127.0.0.1", &link.port().to_string()]))?;
    let begun = Instant::now();
    while !replica.ask::<String>(&["INFO", "replication"])?.contains("master_link_status:up") {
        ensure!(begun.elapsed() < PATIENCE, "the replica does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let front = Forwarder::to(master.port())?;
    let url = format!("redis://127.0.0.1:{}", front.port());
    let scene = Scene::redis_at(&url, redis::Client::open(url.clone())?);
    Ok(scene.fault(move |world: &mut World| {
        link.hold(true);
        world.wait(200..600);
        master.kill()?;
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"])?;
        link.cut();
        front.point_at(replica.port());
        world.mended();
        Ok(())
    }))
}

fn reshard() -> Result<Scene> {
    let cluster = RedisCluster::start(3)?;
    let scene = Scene::redis_cluster(&cluster)?.lease("2s");
    Ok(scene.fault(move |world| {
        for _ in 0..world.rounds().min(8) {
            world.let_pass(100)?;
            let partition = u32::try_from(world.random.within(0..4))?;
            cluster.move_slot_of(&world.source().stream(partition))?;
            world.mended();
            world.wait_for_output()?;
        }
        Ok(())
    }))
}
