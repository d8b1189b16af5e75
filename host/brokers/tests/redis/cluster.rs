//! A cluster: outputs in and out of the lane's slot, slots that move under a lane, masters that fail.

use std::time::{Duration, Instant};

use synapse_brokers::redis::{RedisBroker, RedisOptions, Servers};
use synapse_core::broker::{BatchLimit, BrokerErrorKind, Ending, LaneSpec, Output, Reading};
use synapse_core::spec::{ReadFrom, ReadMode, TopicSpec};
use synapse_core::{Broker, BrokerError, Event};

use crate::cluster_support::RedisCluster;
use crate::sharing::{Fleet, share};
use crate::support::{
    GLANCE, LIMIT, PATIENCE, RedisServer, all_ids, assert_kind, covering, ids, lane, next, open, output, publish,
};

/// A key that goes to the first of two partitions.
const FIRST_OF_TWO: &str = "N14228";
const EVENTS: usize = 3_000;

async fn topic_of(broker: &RedisBroker, topic: &str, partitions: u32) {
    let spec = TopicSpec { partitions: partitions.try_into().unwrap(), ..TopicSpec::default() };
    broker.ensure_topic(&topic.parse().unwrap(), &spec).await.unwrap();
}

/// Events for the first of two partitions.
fn keyed(topic: &str, ids: std::ops::Range<usize>) -> Output {
    let plain = output(topic, ids);
    let events =
        plain.events.events().map(|event| Event { partition_key: Some(FIRST_OF_TWO.to_owned()), ..event.to_event() });
    let events: Vec<Event> = events.collect();
    Output { events: std::sync::Arc::new(events.iter().collect()), ..plain }
}

async fn length(broker: &RedisBroker, topic: &str) -> usize {
    let info = broker.topic(&topic.parse().unwrap()).await.unwrap().unwrap();
    info.partitions.iter().map(|partition| partition.events as usize).sum()
}

/// Copies `in` to `out` and to `elsewhere`, which lies in another slot, as the engine does: opens the lane again whenever that may help.
async fn copy(broker: &RedisBroker, spec: &LaneSpec, count: usize) -> usize {
    let (mut done, mut opened) = (0, 0);
    let started = Instant::now();
    while done < count {
        assert!(started.elapsed() < 3 * PATIENCE, "the lane is stuck at {done} of {count}");
        match copy_until_it_fails(broker, spec, &mut done, count).await {
            Ok(()) => break,
            Err(error) => assert_ne!(error.kind.ending(), Ending::Stop, "{error}"),
        }
        opened += 1;
        tokio::time::sleep(GLANCE).await;
    }
    opened
}

async fn copy_until_it_fails(
    broker: &RedisBroker,
    spec: &LaneSpec,
    done: &mut usize,
    count: usize,
) -> Result<(), BrokerError> {
    let mut lane = broker.open_lane(spec).await?;
    let Reading::From(from) = lane.reading else { panic!("a lane by cursor has no reader of its own") };
    let mut source = broker.read(&spec.key.partition.topic.topic, spec.key.partition.partition, from).await?;
    let few = BatchLimit { events_max: 20, ..LIMIT };
    while *done < count {
        let batch = source.poll(few, GLANCE).await?;
        let Some(last) = batch.events.events().last() else { continue };
        let last: usize = last.id().parse().unwrap();
        let first = last + 1 - batch.events.len();
        let outputs = vec![keyed("out", first..last + 1), output("elsewhere", first..last + 1)];
        lane.committer.commit(&covering(&batch.offsets, outputs)).await?;
        *done = last + 1;
    }
    Ok(())
}

/// In the lane's slot each event is there once; in another one some are there again, in order from where the lane began
/// again.
async fn assert_copied(broker: &RedisBroker, count: usize) {
    let mut source = broker.read(&"out".parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next(&mut *source, count).await.0, ids(0..count));
    let mut expected = 0;
    for id in all_ids(broker, "elsewhere").await {
        let id: usize = id.parse().unwrap();
        assert!(id <= expected, "{id} came when {expected} was missing");
        expected = id + 1;
    }
    assert_eq!(expected, count);
}

#[tokio::test]
async fn a_topics_partitions_lie_on_all_nodes() {
    let cluster = RedisCluster::start(0);
    let broker = cluster.broker("one").await;
    topic_of(&broker, "in", 48).await;
    let places = broker.publish(&output("in", 0..500)).await.unwrap();
    assert_eq!((places.len(), length(&broker, "in").await), (500, 500));
    for node in &cluster.nodes {
        assert_ne!(node.cli(&["DBSIZE"]), "0");
    }
    let all = broker.topics().await.unwrap();
    assert_eq!(all.iter().map(|topic| topic.partitions.len()).collect::<Vec<_>>(), [48]);
    // Each partition has a lane, wherever it lies.
    let mut lanes = Vec::new();
    for partition in 0..48 {
        let mut spec = lane("in", ReadMode::Cursor);
        spec.key.partition.partition = partition;
        let mut lane = broker.open_lane(&spec).await.unwrap();
        let here: Vec<_> = places.iter().filter(|(at, _)| *at == partition).map(|(_, offset)| *offset).collect();
        lane.committer.commit(&covering(&here, Vec::new())).await.unwrap();
        lanes.push(lane);
    }
    let seen = broker.places(&share(&["in"], ReadMode::Cursor)).await.unwrap();
    assert_eq!(seen.len(), 48);
    for place in seen {
        assert_eq!((place.owner.as_deref(), place.lag), (Some("one"), Some(0)), "{}", place.partition);
    }
    broker.health().await.unwrap();
}

/// What lies in the lane's slot is in its transaction; what does not is written before it, by the owner only.
#[tokio::test]
async fn outputs_in_other_slots_are_written_by_the_owner_only() {
    let cluster = RedisCluster::start(0);
    let (one, again) = (cluster.broker("one").await, cluster.broker("one").await);
    assert!(one.commits_apart().is_some());
    let offsets = publish(&one, "in", 0..2).await;
    topic_of(&one, "out", 5).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, _source) = open(&one, &spec).await;
    let effects = |ids: std::ops::Range<usize>| covering(&offsets[ids.clone()], vec![output("out", 0..50)]);
    committer.commit(&effects(0..1)).await.unwrap();
    assert_eq!(length(&one, "out").await, 50);
    let (mut new, mut source) = open(&again, &spec).await;
    assert_kind(committer.commit(&effects(1..2)).await, BrokerErrorKind::Fenced, "");
    assert_eq!(length(&one, "out").await, 50, "a fenced owner writes nothing anywhere");
    assert_eq!(next(&mut *source, 1).await.0, ids(1..2));
    new.commit(&effects(1..2)).await.unwrap();
    assert_eq!(length(&one, "out").await, 100);
}

#[tokio::test]
async fn consumer_groups_work_on_a_cluster() {
    let cluster = RedisCluster::start(0);
    let broker = cluster.broker("one").await;
    publish(&broker, "in", 0..5).await;
    let spec = lane("in", ReadMode::Group);
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (read, offsets, _) = next(&mut *source, 5).await;
    committer.commit(&covering(&offsets[..3], vec![output("out", 0..3)])).await.unwrap();
    drop((committer, source));
    let (_committer, mut source) = open(&broker, &spec).await;
    assert_eq!((read, next(&mut *source, 2).await.0), (ids(0..5), ids(3..5)));
    assert_eq!(all_ids(&broker, "out").await, ids(0..3));
}

/// The lane reads and commits while its keys go to another node one by one, and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_takes_its_lane_along() {
    let cluster = RedisCluster::start(0);
    let (broker, publisher) = (cluster.broker("one").await, cluster.broker("two").await);
    topic_of(&broker, "in", 2).await;
    topic_of(&broker, "out", 2).await;
    broker.publish(&keyed("in", 0..10)).await.unwrap();
    let spec = lane("in", ReadMode::Cursor);
    let copying = tokio::spawn({
        let (broker, spec) = (broker.clone(), spec.clone());
        async move { copy(&broker, &spec, EVENTS).await }
    });
    let publishing = tokio::spawn(async move {
        // No publish fails: each is sent to where the slot is.
        for id in (10..EVENTS).step_by(10) {
            publisher.publish(&keyed("in", id..id + 10)).await.unwrap();
            publisher.publish(&keyed("in-single", id..id + 1)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let slot = cluster.slot_of("in:{0}");
    let home = cluster.owner_of("in:{0}");
    let away = (home + 1) % 3;
    tokio::task::block_in_place(|| {
        move_slot(&cluster, &slot, home, away);
        move_slot(&cluster, &slot, away, home);
        move_slot(&cluster, &slot, home, away);
    });
    assert!(!publishing.is_finished(), "the slot should have moved while events came");
    publishing.await.unwrap();
    let opened = copying.await.unwrap();
    assert!(opened > 0, "the lane should have noticed");
    assert_copied(&broker, EVENTS).await;
}

/// As redis-cli does, but slowly.
fn move_slot(cluster: &RedisCluster, slot: &str, from: usize, to: usize) {
    let pause = || std::thread::sleep(Duration::from_millis(60));
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    target.cli(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &cluster.id_of(from)]);
    source.cli(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &cluster.id_of(to)]);
    let port = target.port().to_string();
    loop {
        let key = source.cli(&["CLUSTER", "GETKEYSINSLOT", slot, "1"]);
        if key.is_empty() {
            break;
        }
        let moved = source.cli(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
        assert!(moved == "OK" || moved == "NOKEY", "{moved}");
        pause();
    }
    for node in [target, source] {
        assert_eq!(node.cli(&["CLUSTER", "SETSLOT", slot, "NODE", &cluster.id_of(to)]), "OK");
    }
    pause();
}

/// A master is killed while a lane commits to it: the lane goes on at the replica. Outputs and cursor lie together, so
/// what the replica had not got of them is missing of both, and each event's output is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_goes_on_at_the_promoted_replica() {
    let mut cluster = RedisCluster::start(1);
    let broker = cluster.broker_with(|options| options.timeout = Duration::from_secs(3)).await;
    topic_of(&broker, "in", 2).await;
    topic_of(&broker, "out", 2).await;
    for id in (0..EVENTS).step_by(100) {
        broker.publish(&keyed("in", id..id + 100)).await.unwrap();
    }
    let home = cluster.owner_of("in:{0}");
    assert_eq!(cluster.nodes[home].cli(&["WAIT", "1", "10000"]), "1");
    let spec = lane("in", ReadMode::Cursor);
    let copying = tokio::spawn({
        let (broker, spec) = (broker.clone(), spec.clone());
        async move { copy(&broker, &spec, EVENTS).await }
    });
    let started = Instant::now();
    while length(&broker, "out").await < EVENTS / 10 {
        assert!(started.elapsed() < PATIENCE);
    }
    cluster.nodes[home].kill();
    let opened = copying.await.unwrap();
    assert!(opened > 0, "the lane should have noticed");
    assert_copied(&broker, EVENTS).await;
    // Publishing and looking topics up work again, too.
    let more = keyed("in", EVENTS..EVENTS + 1);
    let started = Instant::now();
    while let Err(error) = broker.publish(&more).await {
        assert!(error.kind == BrokerErrorKind::Unavailable && started.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(GLANCE).await;
    }
    assert_eq!(length(&broker, "in").await, EVENTS + 1);
}

/// The node that holds the hosts' entries is killed: the hosts enter again where they are kept then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_share_on_when_a_master_fails() {
    let mut cluster = RedisCluster::start(1);
    let host = |name: &'static str| move |options: &mut RedisOptions| options.host_id = name.to_owned();
    let (one, two) = (cluster.broker_with(host("one")).await, cluster.broker_with(host("two")).await);
    topic_of(&one, "in", 6).await;
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one, &two], &share).await;
    fleet.settles(&[3, 3]).await;
    let home = cluster.owner_of("synapse:members:pipe/in");
    cluster.nodes[home].kill();
    let three = cluster.unconnected(host("three"));
    let mut joined = Fleet::join(&[&three], &share).await;
    joined.settles(&[2]).await;
    fleet.settles(&[2, 2]).await;
}

#[tokio::test]
async fn one_node_and_a_cluster_are_not_mistaken_for_each_other() {
    let cluster = RedisCluster::start(0);
    let one = RedisServer::start_on_tcp(&[]);
    let name = || "bus".parse().unwrap();
    let alone = RedisBroker::new(name(), RedisOptions::new(cluster.nodes[0].tcp_url())).unwrap();
    let refused = async {
        for topic in ["a", "b", "c", "d", "e", "f"] {
            alone.publish(&output(topic, 0..1)).await?;
        }
        Ok(())
    };
    assert_kind(refused.await, BrokerErrorKind::Invalid, "write nodes = [...] instead of its url");
    let options = RedisOptions::at(Servers::Cluster(vec![one.tcp_url()]));
    let refused = RedisBroker::connect(name(), options).await;
    assert_kind(refused, BrokerErrorKind::Invalid, "write its url instead of nodes");
    for url in ["unix:///run/redis.sock", "redis://h/3"] {
        let options = RedisOptions::at(Servers::Cluster(vec![url.to_owned()]));
        assert_kind(RedisBroker::new(name(), options), BrokerErrorKind::Invalid, "is no address of a cluster's node");
    }
    let none = RedisBroker::new(name(), RedisOptions::at(Servers::Cluster(Vec::new())));
    assert_kind(none, BrokerErrorKind::Invalid, "at least one of its nodes");
}

/// An empty topic may get partitions; one with events would have to be renamed across slots.
#[tokio::test]
async fn a_topic_with_events_does_not_grow_from_one_partition() {
    let cluster = RedisCluster::start(0);
    let broker = cluster.broker("one").await;
    topic_of(&broker, "empty", 1).await;
    let _lane = broker.open_lane(&lane("empty", ReadMode::Cursor)).await.unwrap();
    topic_of(&broker, "empty", 3).await;
    publish(&broker, "full", 0..1).await;
    let three = TopicSpec { partitions: 3.try_into().unwrap(), ..TopicSpec::default() };
    let refused = broker.ensure_topic(&"full".parse().unwrap(), &three).await;
    assert_kind(refused, BrokerErrorKind::Invalid, "keep one partition, or send the events to a new topic with more");
    assert_eq!(all_ids(&broker, "full").await, ids(0..1));
}
