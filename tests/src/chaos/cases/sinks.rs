//! A sink that answers with errors for a while.

use anyhow::Result;

use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::redis::RedisServer;

const ROUTE: &str = "redis → another redis";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "sink-read-only",
        route: ROUTE,
        what: "the sink is made a replica and takes no writes for seconds (`READONLY`)",
        promise: Promise::AT_LEAST_ONCE,
        scene: || refused_for_a_while(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], |_| Ok(())),
    },
    Case {
        name: "sink-out-of-memory",
        route: ROUTE,
        what: "the sink is out of memory for seconds (`OOM`)",
        promise: Promise::AT_LEAST_ONCE,
        scene: || {
            refused_for_a_while(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], |_| Ok(()))
        },
    },
    Case {
        name: "sink-denied",
        route: ROUTE,
        what: "the sink denies writes (`NOPERM`), which stops the pipeline; permitted again, the host is restarted",
        promise: Promise::AT_LEAST_ONCE,
        scene: || {
            refused_for_a_while(
                &["ACL", "SETUSER", "default", "-xadd"],
                &["ACL", "SETUSER", "default", "+xadd"],
                restart,
            )
        },
    },
];

fn refused_for_a_while(
    begin: &'static [&str],
    end: &'static [&str],
    then: fn(&mut World) -> Result<()>,
) -> Result<Scene> {
    let (source, sink) = (RedisServer::start()?, RedisServer::start()?);
    let scene = Scene::redis(&source)?.to_redis(&sink)?;
    Ok(scene.keep(source).fault(move |world| {
        sink.ask::<()>(begin)?;
        world.wait(1000..2500);
        sink.ask::<()>(end)?;
        world.mended();
        then(world)?;
        world.wait_for_output()
    }))
}

fn restart(world: &mut World) -> Result<()> {
    world.host()?.terminate()?;
    world.host()?.resume()
}
