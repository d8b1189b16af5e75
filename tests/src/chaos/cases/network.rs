//! The network between host and broker. On Redis producers and readers go around it, by a Unix socket; on Kafka they suffer
//! with the host.

use anyhow::{Result, ensure};
use synapse_test_servers::kafka::Kafka;

use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::machine::{Network, Packets};
use crate::redis::{RedisServer, RedisSettings};

const REDIS: &str = "redis → same redis, by cursor";
const KAFKA: &str = "kafka → same kafka";
const RESET: &str = "connections to the broker are reset again and again";
const VANISH: &str = "packets between host and broker vanish for seconds";
const ONE_WAY: &str = "the broker hears the host, but its answers vanish for seconds";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "network-reset-redis",
        route: REDIS,
        what: RESET,
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            redis(|world, link| {
                reset_again_and_again(world, link)?;
                ensure!(world.retries()? > 0, "the host did not notice any reset");
                Ok(())
            })
        },
    },
    Case {
        name: "network-reset-kafka",
        route: KAFKA,
        what: RESET,
        promise: Promise::EXACTLY_ONCE,
        scene: || kafka(reset_again_and_again),
    },
    Case {
        name: "network-black-hole-redis",
        route: REDIS,
        what: VANISH,
        promise: Promise::EXACTLY_ONCE,
        scene: || redis(|world, link| disturb_for_seconds(world, link, Packets::Vanish)),
    },
    Case {
        name: "network-black-hole-kafka",
        route: KAFKA,
        what: VANISH,
        promise: Promise::EXACTLY_ONCE,
        scene: || kafka(|world, link| disturb_for_seconds(world, link, Packets::Vanish)),
    },
    Case {
        name: "network-one-way-redis",
        route: REDIS,
        what: ONE_WAY,
        promise: Promise::EXACTLY_ONCE,
        scene: || redis(|world, link| disturb_for_seconds(world, link, Packets::AnswersVanish)),
    },
    Case {
        name: "network-one-way-kafka",
        route: KAFKA,
        what: ONE_WAY,
        promise: Promise::EXACTLY_ONCE,
        scene: || kafka(|world, link| disturb_for_seconds(world, link, Packets::AnswersVanish)),
    },
    Case {
        name: "network-slow-redis",
        route: REDIS,
        what: "the link between host and Redis is too slow for the load for seconds",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            redis(|world, link| {
                link.network.limit(Some(512))?;
                world.wait(3000..4000);
                link.network.limit(None)
            })
        },
    },
    Case {
        name: "network-slow-kafka",
        route: KAFKA,
        what: "all links to Kafka, also those of producers and readers, are too slow for the load for seconds",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            kafka(|world, link| {
                link.network.limit_inside(Some(512))?;
                world.wait(3000..4000);
                link.network.limit_inside(None)
            })
        },
    },
];

/// What lies between host and broker.
struct Link {
    network: Network,
    /// The broker's.
    port: u16,
}

type Fault = fn(&mut World, &Link) -> Result<()>;

/// Redis in a network of its own.
fn redis(fault: Fault) -> Result<Scene> {
    let network = Network::new()?;
    let settings =
        RedisSettings { address: network.address().into(), through: network.through(), ..RedisSettings::default() };
    let server = RedisServer::start_with(settings)?;
    let scene = Scene::redis(&server)?.lease("2s");
    let link = Link { network, port: server.port() };
    Ok(scene.keep(server).fault(move |world| fault(world, &link)))
}

/// Everything in one network, since Kafka tells its clients an address of its own.
fn kafka(fault: Fault) -> Result<Scene> {
    let network = Network::new()?;
    network.enter()?;
    let cluster = Kafka::start()?;
    let link = Link { network, port: cluster.port(0) };
    let scene = Scene::kafka(&cluster).lease("2s");
    Ok(scene.keep(cluster).fault(move |world| fault(world, &link)))
}

fn reset_again_and_again(world: &mut World, link: &Link) -> Result<()> {
    for _ in 0..world.rounds().min(8) {
        world.let_pass(60)?;
        link.network.disturb(link.port, Packets::Reset)?;
        world.wait(20..200);
        link.network.mend()?;
        world.mended();
    }
    Ok(())
}

fn disturb_for_seconds(world: &mut World, link: &Link, packets: Packets) -> Result<()> {
    for _ in 0..2 {
        link.network.disturb(link.port, packets)?;
        world.wait(500..2_000);
        link.network.mend()?;
        world.mended();
        world.let_pass(100)?;
        world.wait_for_output()?;
    }
    if world.plan.is_long() {
        link.network.disturb(link.port, packets)?;
        // Longer than the host waits for an answer.
        world.wait(11_000..12_000);
        link.network.mend()?;
        world.mended();
    }
    Ok(())
}
