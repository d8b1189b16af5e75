//! The network between host and broker. Producers and readers go around it, by a Unix socket.

use anyhow::{Result, ensure};

use crate::chaos::{Case, Scene, World};
use crate::checker::Promise;
use crate::machine::{Network, Packets};
use crate::redis::{RedisServer, RedisSettings};

const ROUTE: &str = "redis → same redis, by cursor";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "network-reset",
        route: ROUTE,
        what: "connections between host and Redis are reset again and again",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            in_a_network(|world, network| {
                for _ in 0..world.rounds().min(8) {
                    world.let_pass(60)?;
                    network.disturb(Packets::Reset)?;
                    world.wait(20..200);
                    network.mend()?;
                    world.mended();
                }
                ensure!(world.retries()? > 0, "the host did not notice any reset");
                Ok(())
            })
        },
    },
    Case {
        name: "network-black-hole",
        route: ROUTE,
        what: "packets between host and Redis vanish for seconds",
        promise: Promise::EXACTLY_ONCE,
        scene: || in_a_network(|world, network| disturb_for_seconds(world, network, Packets::Vanish)),
    },
    Case {
        name: "network-one-way",
        route: ROUTE,
        what: "Redis hears the host, but its answers vanish for seconds",
        promise: Promise::EXACTLY_ONCE,
        scene: || in_a_network(|world, network| disturb_for_seconds(world, network, Packets::AnswersVanish)),
    },
    Case {
        name: "network-slow",
        route: ROUTE,
        what: "the link between host and Redis is too slow for the load for seconds",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            in_a_network(|world, network| {
                network.slow_down(512)?;
                world.wait(3000..4000);
                network.mend()?;
                Ok(())
            })
        },
    },
];

fn in_a_network(fault: fn(&mut World, &Network) -> Result<()>) -> Result<Scene> {
    let network = Network::new()?;
    let settings =
        RedisSettings { address: network.address().into(), through: network.through(), ..RedisSettings::default() };
    let server = RedisServer::start_with(settings)?;
    let scene = Scene::redis(&server)?.broker("lease = \"2s\"");
    Ok(scene.fault(move |world| {
        let _ = &server;
        fault(world, &network)
    }))
}

fn disturb_for_seconds(world: &mut World, network: &Network, packets: Packets) -> Result<()> {
    for _ in 0..2 {
        network.disturb(packets)?;
        world.wait(500..2_000);
        network.mend()?;
        world.mended();
        world.let_pass(100)?;
        world.wait_for_output()?;
    }
    if world.plan.is_long() {
        network.disturb(packets)?;
        // Longer than the host waits for an answer.
        world.wait(11_000..12_000);
        network.mend()?;
        world.mended();
    }
    Ok(())
}
