//! Disks that are full, and damage to what lies on them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use synapse_test_servers::kafka::Kafka;

use crate::PATIENCE;
use crate::bus::{Endpoint, Topic};
use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::host::Host;
use crate::machine::Disk;
use crate::random::Random;
use crate::redis::{RedisServer, RedisSettings};

const EMBEDDED: &str = "embedded → embedded";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "disk-full-embedded",
        route: EMBEDDED,
        what: "the disk is full for seconds; meanwhile nothing is acknowledged",
        promise: Promise::EXACTLY_ONCE,
        scene: fill_under_the_log,
    },
    Case {
        name: "disk-full-redis-everysec",
        route: "redis → same redis, by cursor",
        what: "the disk of Redis is full for seconds, with `appendfsync everysec`",
        promise: Promise::EXACTLY_ONCE,
        scene: || fill_under_redis("everysec"),
    },
    Case {
        name: "disk-full-redis-always",
        route: "redis → same redis, by cursor",
        what: "the disk of Redis is full, with `appendfsync always`: Redis ends, and is started again",
        promise: Promise::EXACTLY_ONCE,
        scene: || fill_under_redis("always"),
    },
    Case {
        name: "disk-full-kafka",
        route: "kafka → same kafka",
        what: "the disk of Kafka is full, and it gives up: it is started again once there is room",
        promise: Promise::EXACTLY_ONCE,
        scene: fill_under_kafka,
    },
    Case {
        name: "bit-flipped",
        route: EMBEDDED,
        what: "a bit of the log's files is flipped: a host either tells of damage or reads everything as it was",
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(Scene::embedded().fault(|world| damage_copies(world, flip_a_bit))),
    },
    Case {
        name: "torn-tail",
        route: EMBEDDED,
        what: "the end of the log's journal is cut off: a host tells of the loss; or has half a write behind it: a host \
               reads everything as it was",
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(Scene::embedded().fault(|world| damage_copies(world, tear_the_tail))),
    },
];

fn fill_under_the_log() -> Result<Scene> {
    // The log keeps 256 MiB free.
    let disk = Disk::new(640)?;
    let scene = Scene::embedded().server(&format!("data = {:?}", disk.path().join("data")));
    Ok(scene.fault(move |world| {
        disk.fill(200)?;
        world.wait(300..500);
        let before = world.acknowledged();
        world.wait(1500..2500);
        let meanwhile = world.acknowledged() - before;
        ensure!(meanwhile == 0, "{meanwhile} events were acknowledged while the disk was full");
        disk.free()?;
        world.mended();
        world.wait_for_output()
    }))
}

fn fill_under_redis(appendfsync: &'static str) -> Result<Scene> {
    // Room for long loads; the image takes only what is written.
    let disk = Disk::new(1024)?;
    let settings = RedisSettings { appendfsync, within: disk.path(), ..RedisSettings::default() };
    let mut server = RedisServer::start_with(settings)?;
    let scene = Scene::redis(&server)?;
    Ok(scene.fault(move |world| {
        disk.fill(0)?;
        world.wait(1500..2500);
        disk.free()?;
        if !server.is_running()? {
            server.resume()?;
        }
        world.mended();
        world.wait_for_output()
    }))
}

fn fill_under_kafka() -> Result<Scene> {
    let disk = Disk::new(1024)?;
    let mut server = Kafka::start_with(1, &format!("log.dirs={}", disk.path().join("kafka").display()))?;
    let scene = Scene::kafka(&server).lease("2s");
    Ok(scene.fault(move |world| {
        disk.fill(0)?;
        let begun = Instant::now();
        while !server.log(0).contains("No space left on device") {
            ensure!(begun.elapsed() < PATIENCE, "Kafka does not notice that its disk is full");
            world.wait(50..100);
        }
        world.wait(500..1500);
        // If it has not ended by itself.
        server.kill(0)?;
        disk.free()?;
        server.resume(0)?;
        world.mended();
        world.wait_for_output()
    }))
}

/// What was done to a log.
#[derive(PartialEq, Eq)]
enum Damage {
    /// Something that happens in every crash.
    Usual,
    /// Something that may cost events, which must be told.
    Real,
}

/// Damages copies of the log, so that the world goes on with the original.
fn damage_copies(world: &mut World, damage: fn(&mut Random, &Path) -> Result<Damage>) -> Result<()> {
    let rounds = world.rounds().min(12);
    let mut times_told = 0;
    for _ in 0..rounds {
        world.let_pass(80)?;
        let known = world.source().read_all()?;
        let copy = Host::prepare("")?;
        world.host()?.kill()?;
        copy_all(&world.host()?.path("data/log"), &copy.path("data/log"))?;
        world.host()?.resume()?;
        world.mended();
        let damage = damage(&mut world.random, &copy.path("data/log/store"))?;
        let told = open_damaged(copy, world, &known)?;
        times_told += usize::from(told);
        ensure!(damage == Damage::Real || !told, "half a write at the end was taken for damage");
    }
    world.notes.push(format!("told in {times_told} of {rounds} copies"));
    Ok(())
}

/// Starts a host on a damaged log; tells whether it told of the damage. What it reads must be right.
fn open_damaged(mut copy: Host, world: &World, known: &[crate::checker::Receipt]) -> Result<bool> {
    if copy.resume().is_err() {
        let log = copy.log();
        let told = ["damage", "cannot be read", "is lost", "checksum"].iter().any(|word| log.contains(word));
        ensure!(told, "the host does not start and does not say why: {}", copy.log_tail());
        return Ok(true);
    }
    let topic = Topic { at: Endpoint::Embedded(copy.url()), ..world.source().clone() };
    match topic.read_all() {
        Ok(read) => {
            let read: std::collections::HashSet<_> = read.into_iter().collect();
            let missing = known.iter().filter(|receipt| !read.contains(receipt)).count();
            ensure!(missing == 0, "{missing} events are missing from a damaged log, and nobody says so");
            Ok(false)
        }
        Err(error) => {
            let told = format!("{error:#}");
            ensure!(!told.contains("which nobody sent"), "a damaged event was handed out: {told}");
            Ok(true)
        }
    }
}

fn flip_a_bit(random: &mut Random, store: &Path) -> Result<Damage> {
    let mut files = files(store)?;
    files.retain(|path| used_bytes(path).is_ok_and(|bytes| bytes > 0));
    let path = &files[random.within(0..files.len() as u64) as usize];
    let at = random.within(0..used_bytes(path)?);
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << random.within(0..8);
    file.write_all_at(&byte, at)?;
    Ok(Damage::Real)
}

fn tear_the_tail(random: &mut Random, store: &Path) -> Result<Damage> {
    let journals = files(store)?.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "jnl"));
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let path = journals.max_by_key(number).context("the log has no journal")?;
    let end = used_bytes(&path)?;
    if end < 2 {
        // It was begun just now, so there is nothing to tear.
        return Ok(Damage::Real);
    }
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    if random.within(0..2) == 0 {
        file.set_len(end - random.within(1..end.min(64 << 10)))?;
        return Ok(Damage::Real);
    }
    // What a write looks like of which only the first part came to the disk.
    let mut half = vec![0; random.within(1..end.min(300)) as usize];
    file.read_exact_at(&mut half, 0)?;
    file.set_len(end)?;
    file.write_all_at(&half, end)?;
    Ok(Damage::Usual)
}

/// Up to the last byte that is not zero: the store makes its files larger than it needs.
fn used_bytes(path: &Path) -> Result<u64> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    // The same seed finds the same file.
    found.sort();
    Ok(found)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_all(&path, &to)?;
        } else {
            std::fs::copy(&path, &to)?;
        }
    }
    Ok(())
}
