//! A Kafka whose servers die or freeze, or that removes records.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;
use synapse_test_servers::kafka::Kafka;

use crate::bus::Topic;
use crate::chaos::{Case, Scene, World};
use crate::checker::{Kind, Promise, Receipt};
use crate::plugins::component;

const ROUTE: &str = "kafka → same kafka";

pub(super) const CASES: &[Case] = &[
    Case {
        name: "kafka-broker-killed",
        route: ROUTE,
        what: "one of three brokers after another is killed (kill -9) and started again",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            one_after_the_other(|cluster, broker| {
                cluster.kill(broker)?;
                std::thread::sleep(Duration::from_secs(1));
                cluster.resume(broker)
            })
        },
    },
    Case {
        name: "kafka-broker-restarted",
        route: ROUTE,
        what: "one of three brokers after another is shut down and started again",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            one_after_the_other(|cluster, broker| {
                cluster.stop(broker)?;
                cluster.resume(broker)
            })
        },
    },
    Case {
        name: "kafka-broker-frozen",
        route: ROUTE,
        what: "one of three brokers after another hears and says nothing for seconds (SIGSTOP)",
        promise: Promise::EXACTLY_ONCE,
        scene: || {
            one_after_the_other(|cluster, broker| {
                cluster.signal(broker, Signal::STOP)?;
                std::thread::sleep(Duration::from_secs(3));
                cluster.signal(broker, Signal::CONT)
            })
        },
    },
    Case {
        name: "kafka-slow-plugin",
        route: "kafka → same kafka, two hosts",
        what: "a plugin works for longer than `max.poll.interval.ms`, again and again",
        promise: Promise::EXACTLY_ONCE,
        scene: work_slowly,
    },
    Case {
        name: "kafka-trimmed",
        route: ROUTE,
        what: "`DeleteRecords` removes what a host that lags has not read",
        promise: Promise::ALL_BUT_TRIMMED,
        scene: || Ok(Scene::kafka(Kafka::shared()).fault(delete_under_lag)),
    },
];

/// How long a broker that is not heard of keeps its place; much shorter than by default.
const QUICK: &str = "broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500";

/// Three brokers that cases use one after the other: starting them takes longer than most cases.
fn three_brokers() -> MutexGuard<'static, Kafka> {
    static CLUSTER: OnceLock<Mutex<Kafka>> = OnceLock::new();
    let start = || Mutex::new(Kafka::start_with(3, QUICK).expect("Kafka starts"));
    CLUSTER.get_or_init(start).lock().unwrap_or_else(PoisonError::into_inner)
}

fn one_after_the_other(fault: fn(&mut Kafka, usize) -> Result<()>) -> Result<Scene> {
    let mut cluster = three_brokers();
    let scene = Scene::kafka(&cluster).lease("2s");
    Ok(scene.fault(move |world| {
        let first = world.random.within(0..3) as usize;
        let faults = if world.plan.is_long() { 6 } else { 1 };
        for broker in first..first + faults {
            fault(&mut cluster, broker % 3)?;
            world.mended();
            world.let_pass(100)?;
            world.wait_for_output()?;
        }
        Ok(())
    }))
}

fn work_slowly() -> Result<Scene> {
    let plugin = component("tests/plugins/picky");
    // A few of each producer: each takes seconds.
    let kind = |receipt: &Receipt| match receipt.number {
        300 | 1300 | 2300 | 3300 => Kind::Loop,
        _ => Kind::Plain,
    };
    let scene =
        Scene::kafka(Kafka::shared()).hosts(2).lease("1s").broker("client = { \"max.poll.interval.ms\" = \"1000\" }");
    Ok(scene.stage(format!("plugin = {plugin:?}\nlimits = {{ cpu = \"1500ms\" }}\n"), kind))
}

fn delete_under_lag(world: &mut World) -> Result<()> {
    world.host()?.signal(Signal::STOP)?;
    world.let_pass(400)?;
    let removed = delete_all_but_the_newest(&Kafka::shared().bootstrap(), world.source())?;
    ensure!(removed, "nothing was removed");
    world.host()?.signal(Signal::CONT)?;
    world.mended();
    world.wait_for_output()
}

/// Keeps 20 records of each partition; tells whether there were more.
fn delete_all_but_the_newest(bootstrap: &str, topic: &Topic) -> Result<bool> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    let consumer: BaseConsumer = config.create()?;
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let mut upto = TopicPartitionList::new();
    let mut removed = false;
    for partition in 0..i32::try_from(topic.partitions)? {
        let (low, high) = consumer.fetch_watermarks(&topic.name, partition, Duration::from_secs(5))?;
        let keep = (high - 20).max(low);
        removed |= keep > low;
        upto.add_partition_offset(&topic.name, partition, Offset::Offset(keep))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(admin.delete_records(&upto, &AdminOptions::new())).context("delete records")?;
    Ok(removed)
}
