//! Events that plugins fail on, while the host is killed, too.

use anyhow::Result;
use synapse_test_servers::kafka::Kafka;

use crate::chaos::{Case, Scene, World};
use crate::checker::{Kind, Promise, Receipt};
use crate::plugins::component;
use crate::redis::RedisServer;

const WHAT: &str = "1 % of the events are rejected, trap, never end or are dropped, and the host is killed";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "poison-embedded",
        route: "embedded → embedded",
        what: WHAT,
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(poisoned(Scene::embedded()).fault(kill_twice)),
    },
    Case {
        name: "poison-redis",
        route: "redis → same redis, by cursor",
        what: WHAT,
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            Ok(poisoned(Scene::redis(&server)?).keep(server).fault(kill_twice))
        },
    },
    Case {
        name: "poison-kafka",
        route: "kafka → same kafka",
        what: WHAT,
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(poisoned(Scene::kafka(Kafka::shared()).lease("1s")).fault(kill_twice)),
    },
];

fn poisoned(scene: Scene) -> Scene {
    let plugin = component("tests/plugins/picky");
    scene.stage(format!("plugin = {plugin:?}\nlimits = {{ cpu = \"20ms\" }}\n"), kind)
}

fn kind(receipt: &Receipt) -> Kind {
    match receipt.number % 400 {
        7 => Kind::Reject,
        107 => Kind::Trap,
        207 => Kind::Loop,
        307 => Kind::Drop,
        _ => Kind::Plain,
    }
}

fn kill_twice(world: &mut World) -> Result<()> {
    for _ in 0..2 {
        world.let_pass(400)?;
        world.wait(0..100);
        world.host()?.kill()?;
        world.mended();
        world.host()?.resume()?;
    }
    Ok(())
}
