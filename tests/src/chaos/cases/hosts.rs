//! Hosts that die, freeze, and take over from each other.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use synapse_test_servers::kafka::Kafka;

use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::redis::RedisServer;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "host-killed-embedded",
        route: "embedded → embedded",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(Scene::embedded().fault(kill_again_and_again)),
    },
    Case {
        name: "host-killed-redis",
        route: "redis → same redis, by cursor",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            Ok(Scene::redis(&server)?.keep(server).fault(kill_again_and_again))
        },
    },
    Case {
        name: "host-killed-redis-group",
        route: "redis → same redis, as a group",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            let url = format!("unix://{}", server.socket().display());
            let scene = Scene::redis_at(&url, server.client()?).pipeline("read = \"group\"");
            Ok(scene.keep(server).fault(kill_again_and_again))
        },
    },
    Case {
        name: "host-killed-redis-to-embedded",
        route: "redis → embedded",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::AT_LEAST_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            Ok(Scene::redis(&server)?.to_embedded().keep(server).fault(kill_again_and_again))
        },
    },
    Case {
        name: "host-killed-kafka",
        route: "kafka → same kafka",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(Scene::kafka(Kafka::shared()).lease("1s").fault(kill_again_and_again)),
    },
    Case {
        name: "host-killed-kafka-at-least-once",
        route: "kafka → same kafka, `delivery = \"at-least-once\"`",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::AT_LEAST_ONCE,
        scene: || {
            let scene = Scene::kafka(Kafka::shared()).lease("1s").broker("delivery = \"at-least-once\"");
            Ok(scene.fault(kill_again_and_again))
        },
    },
    Case {
        name: "host-killed-kafka-to-redis",
        route: "kafka → redis",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::AT_LEAST_ONCE,
        scene: || {
            let sink = RedisServer::start()?;
            let scene = Scene::kafka(Kafka::shared()).lease("1s").to_redis(&sink)?;
            Ok(scene.keep(sink).fault(kill_again_and_again))
        },
    },
    Case {
        name: "host-killed-redis-to-kafka",
        route: "redis → kafka",
        what: "the host is killed (kill -9) again and again",
        promise: Promise::AT_LEAST_ONCE,
        scene: || {
            let source = RedisServer::start()?;
            let scene = Scene::redis(&source)?.to_kafka(Kafka::shared());
            Ok(scene.keep(source).fault(kill_again_and_again))
        },
    },
    Case {
        name: "host-frozen-redis",
        route: "redis → same redis, by cursor, two hosts",
        what: "the host at work is frozen (SIGSTOP) for longer than its lease, another takes over, then it wakes up; times run from the freezing",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            let scene = Scene::redis(&server)?.lease("1s").hosts(2);
            Ok(scene.keep(server).fault(freeze_one_after_the_other))
        },
    },
    Case {
        name: "host-frozen-kafka",
        route: "kafka → same kafka, two hosts",
        what: "a host is frozen (SIGSTOP) for longer than its session, the other takes over, then it wakes up; times run from the freezing",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let scene = Scene::kafka(Kafka::shared()).lease("1s").hosts(2);
            Ok(scene.fault(freeze_one_after_the_other))
        },
    },
    Case {
        name: "host-dies-redis",
        route: "redis → same redis, by cursor, two hosts",
        what: "one of the hosts is killed (kill -9) and not started again until the other has its partitions; times run from the kill",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            let scene = Scene::redis(&server)?.lease("1s").partitions(4).hosts(2);
            Ok(scene.keep(server).fault(one_dies_after_the_other))
        },
    },
    Case {
        name: "host-dies-kafka",
        route: "kafka → same kafka, two hosts",
        what: "one of the hosts is killed (kill -9) and not started again until the other has its partitions; times run from the kill",
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(Scene::kafka(Kafka::shared()).lease("1s").hosts(2).fault(one_dies_after_the_other)),
    },
    Case {
        name: "hosts-come-and-go-redis",
        route: "redis → same redis, by cursor, up to three hosts",
        what: "hosts join and leave every two seconds, some without a word (kill -9)",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            let server = RedisServer::start()?;
            let scene = Scene::redis(&server)?.lease("1s").partitions(4).hosts(3);
            Ok(scene.keep(server).fault(join_and_leave))
        },
    },
    Case {
        name: "hosts-come-and-go-redis-group",
        route: "redis → same redis, as a group, up to three hosts",
        what: "hosts join and leave every two seconds, some without a word (kill -9)",
        promise: Promise::EXACTLY_ONCE_UNORDERED,
        scene: || {
            let server = RedisServer::start()?;
            let scene = Scene::redis(&server)?.lease("1s").pipeline("read = \"group\"").hosts(3);
            Ok(scene.keep(server).fault(join_and_leave))
        },
    },
    Case {
        name: "hosts-come-and-go-kafka",
        route: "kafka → same kafka, up to three hosts",
        what: "hosts join and leave every two seconds, some without a word (kill -9): a rebalance storm",
        promise: Promise::EXACTLY_ONCE,
        scene: || Ok(Scene::kafka(Kafka::shared()).lease("1s").hosts(3).fault(join_and_leave)),
    },
];

fn kill_again_and_again(world: &mut World) -> Result<()> {
    for _ in 0..world.rounds() {
        world.let_pass(50)?;
        world.wait(0..100);
        world.host()?.kill()?;
        world.mended();
        world.host()?.resume()?;
    }
    Ok(())
}

fn freeze_one_after_the_other(world: &mut World) -> Result<()> {
    for round in 0..world.rounds().min(6) {
        let frozen = round % 2;
        world.hosts[frozen].signal(Signal::STOP)?;
        // What it had sent just before may still be carried out.
        std::thread::sleep(Duration::from_millis(100));
        world.mended();
        std::thread::sleep(Duration::from_millis(1100));
        // So whatever comes now was written by the other one.
        world.wait_for_output()?;
        world.hosts[frozen].signal(Signal::CONT)?;
        world.wait(200..600);
        world.wait_for_output()?;
    }
    Ok(())
}

fn one_dies_after_the_other(world: &mut World) -> Result<()> {
    let rounds = if world.plan.is_long() { 6 } else { 2 };
    for round in 0..rounds {
        let (dead, back) = (round % 2, (round + 1) % 2);
        if !world.hosts[back].is_running() {
            world.hosts[back].resume()?;
            // The work is shared again before the next one dies.
            world.let_pass(200)?;
            std::thread::sleep(Duration::from_secs(2));
        }
        world.hosts[dead].kill()?;
        world.mended();
        std::thread::sleep(Duration::from_secs(3));
    }
    Ok(())
}

fn join_and_leave(world: &mut World) -> Result<()> {
    for round in 0..world.rounds().min(12) {
        let leaving = world.random.within(0..3) as usize;
        let host = &mut world.hosts[leaving];
        if round % 2 == 0 {
            host.terminate()?;
        } else {
            host.kill()?;
        }
        std::thread::sleep(Duration::from_secs(1));
        world.hosts[leaving].resume()?;
        world.mended();
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
