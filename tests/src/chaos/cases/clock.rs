//! Wall clocks that are moved, as by an administrator or by a time server that was away.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use synapse_test_servers::kafka::Kafka;

use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::machine::Clock;
use crate::redis::{RedisServer, RedisSettings};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "clock-host-embedded",
        route: "embedded → embedded",
        what: "the host's clock is moved by an hour, forwards and back",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let clock = Clock::new()?;
            Ok(under(Scene::embedded(), &clock).fault(move |world| move_about(world, &clock)))
        },
    },
    Case {
        name: "clock-host-redis",
        route: "redis → same redis, by cursor",
        what: "the host's clock is moved by an hour, forwards and back",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let clock = Clock::new()?;
            let server = RedisServer::start()?;
            let scene = under(Scene::redis(&server)?, &clock);
            Ok(scene.keep(server).fault(move |world| move_about(world, &clock)))
        },
    },
    Case {
        name: "clock-host-kafka",
        route: "kafka → same kafka",
        what: "the host's clock is moved by an hour, forwards and back",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let clock = Clock::new()?;
            let scene = under(Scene::kafka(Kafka::shared()), &clock);
            Ok(scene.fault(move |world| move_about(world, &clock)))
        },
    },
    Case {
        name: "clock-redis",
        route: "redis → same redis, by cursor",
        what: "the clock of Redis is moved by an hour, forwards and back",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let clock = Clock::new()?;
            let settings = RedisSettings { environment: clock.environment(), ..RedisSettings::default() };
            let server = RedisServer::start_with(settings)?;
            let scene = Scene::redis(&server)?;
            Ok(scene.fault(move |world| {
                clock.set("+1h")?;
                let seconds: (u64, u64) = server.ask(&["TIME"])?;
                let ahead =
                    Duration::from_secs(seconds.0).saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH)?);
                ensure!(ahead > Duration::from_secs(3500), "the clock of Redis cannot be moved");
                move_about(world, &clock)
            }))
        },
    },
];

fn under(scene: Scene, clock: &Clock) -> Scene {
    clock.environment().into_iter().fold(scene, |scene, (name, value)| scene.variable(&name, value))
}

fn move_about(world: &mut World, clock: &Clock) -> Result<()> {
    for offset in ["+1h", "-1h", "+0"] {
        clock.set(offset)?;
        world.mended();
        world.wait_for_output()?;
        world.let_pass(300)?;
    }
    Ok(())
}
