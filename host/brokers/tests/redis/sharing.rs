//! Hosts that share a pipeline's work: evenly, without gaps when one leaves or dies, through a flush, and told to others.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use synapse_brokers::redis::RedisBroker;
use synapse_core::broker::{BrokerErrorKind, LaneSpec};
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::{ReadMode, TopicSpec};
use synapse_core::{Broker, TopicPartition};
use tokio::time::timeout;

use crate::support::{
    GLANCE, PATIENCE, RedisServer, all_ids, assert_kind, covering, ids, lane, next, open, output, path, poll, publish,
};

const LEASE: Duration = Duration::from_millis(1500);
/// The bound that the registry's page states: the lease, a look, and what the engine waits before it tries again.
const TAKEN_OVER_WITHIN: Duration = Duration::from_millis(1500 + 300 + 400);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);

async fn host(server: &RedisServer, name: &str) -> RedisBroker {
    let broker = server.try_broker(|options| {
        options.host_id = name.to_owned();
        options.lease = LEASE;
    });
    broker.await.unwrap()
}

pub(crate) fn share(topics: &[&str], read: ReadMode) -> Share {
    let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
    Share { pipeline: "pipe".parse().unwrap(), topics, read }
}

async fn topic_of(broker: &RedisBroker, partitions: u32) {
    let spec = TopicSpec { partitions: partitions.try_into().unwrap(), ..TopicSpec::default() };
    broker.ensure_topic(&"in".parse().unwrap(), &spec).await.unwrap();
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition { topic: path("in"), partition }
}

fn lane_at(partition: u32, read: ReadMode) -> LaneSpec {
    let mut spec = lane("in", read);
    spec.key.partition.partition = partition;
    spec
}

/// Memberships and what each was told last.
pub(crate) struct Fleet(Vec<(Box<dyn Membership>, BTreeSet<TopicPartition>)>);

impl Fleet {
    pub(crate) async fn join(brokers: &[&RedisBroker], share: &Share) -> Self {
        let mut fleet = Self(Vec::new());
        for broker in brokers {
            fleet.add(broker, share).await;
        }
        fleet
    }

    async fn add(&mut self, broker: &RedisBroker, share: &Share) {
        self.0.push((broker.join(share).await.unwrap(), BTreeSet::new()));
    }

    /// Waits until everyone has as many as `loads` says, in any order, and everything belongs to exactly one.
    pub(crate) async fn settles(&mut self, loads: &[usize]) {
        let started = Instant::now();
        loop {
            for (member, told) in &mut self.0 {
                if let Ok(changed) = timeout(GLANCE, member.changed()).await {
                    *told = changed.unwrap();
                }
            }
            let shares: Vec<_> = self.0.iter().map(|(_, told)| told).collect();
            let mut found: Vec<usize> = shares.iter().map(|share| share.len()).collect();
            found.sort_unstable();
            let all: BTreeSet<_> = shares.iter().copied().flatten().collect();
            if found == loads && all.len() == loads.iter().sum::<usize>() {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{shares:?}");
        }
    }
}

#[tokio::test]
async fn two_and_three_hosts_have_even_shares() {
    let server = RedisServer::start(&[]);
    let (one, two, three) = (host(&server, "one").await, host(&server, "two").await, host(&server, "three").await);
    topic_of(&one, 6).await;
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one], &share).await;
    fleet.settles(&[6]).await;
    fleet.add(&two, &share).await;
    fleet.settles(&[3, 3]).await;
    fleet.add(&three, &share).await;
    fleet.settles(&[2, 2, 2]).await;
    // Another pipeline is shared by those who run it.
    let other = Share { pipeline: "other".parse().unwrap(), ..share };
    Fleet::join(&[&one], &other).await.settles(&[6]).await;
}

#[tokio::test]
async fn who_leaves_hands_over_at_once() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    topic_of(&one, 6).await;
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one, &two], &share).await;
    fleet.settles(&[3, 3]).await;
    let (_, theirs) = fleet.0.pop().unwrap();
    let started = Instant::now();
    fleet.settles(&[6]).await;
    assert!(started.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", started.elapsed());
    // It may come back, and a closed broker leaves everything.
    fleet.add(&two, &share).await;
    fleet.settles(&[3, 3]).await;
    assert_eq!(fleet.0[1].1, theirs, "a host gets what it had before");
    two.close().await;
    let started = Instant::now();
    let (member, _) = &mut fleet.0[0];
    assert_eq!(timeout(PATIENCE, member.changed()).await.unwrap().unwrap().len(), 6);
    assert!(started.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", started.elapsed());
    assert!(timeout(GLANCE, fleet.0[1].0.changed()).await.is_err(), "who left is told nothing more");
}

/// The host is gone with all its tasks: nothing says goodbye.
#[tokio::test]
async fn a_dead_hosts_partitions_are_taken_over_within_the_bound() {
    let server = RedisServer::start(&[]);
    let one = host(&server, "one").await;
    topic_of(&one, 6).await;
    publish(&one, "in", 0..60).await;
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one], &share).await;
    fleet.settles(&[6]).await;

    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (url, theirs) = (server.unix_url(), share.clone());
    let (two, _member, _lanes) = dying
        .spawn(async move {
            let mut options = synapse_brokers::redis::RedisOptions::new(url);
            (options.host_id, options.lease) = ("two".to_owned(), LEASE);
            let two = RedisBroker::connect("bus".parse().unwrap(), options).await.unwrap();
            let mut member = two.join(&theirs).await.unwrap();
            let mut lanes = Vec::new();
            for partition in member.changed().await.unwrap() {
                lanes.push(two.open_lane(&lane_at(partition.partition, ReadMode::Cursor)).await.unwrap());
            }
            (two, member, lanes)
        })
        .await
        .unwrap();
    let (member, told) = &mut fleet.0[0];
    *told = timeout(PATIENCE, member.changed()).await.unwrap().unwrap();
    assert_eq!(told.len(), 3);
    assert!(two.name().as_str() == "bus");
    dying.shutdown_background();

    let died = Instant::now();
    let told = timeout(PATIENCE, member.changed()).await.unwrap().unwrap();
    assert_eq!(told.len(), 6);
    for partition in 0..6 {
        // As the engine does.
        while let Err(error) = one.open_lane(&lane_at(partition, ReadMode::Cursor)).await {
            assert_kind::<()>(Err(error), BrokerErrorKind::Fenced, "host `two` holds it");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
    let took = died.elapsed();
    assert!(took < TAKEN_OVER_WITHIN + SLACK, "it took {took:?}");
}

/// A host that comes back under its name does not wait for the entry it left when it was killed.
#[tokio::test]
async fn a_restarted_host_does_not_wait_for_itself() {
    let server = RedisServer::start(&[]);
    let one = server.broker().await;
    topic_of(&one, 4).await;
    let share = share(&["in"], ReadMode::Cursor);
    Fleet::join(&[&one], &share).await.settles(&[4]).await;
    let key = "synapse:members:pipe/in";
    let until = (i64::MAX / 1_000_000).to_string();
    server.cli(&["ZADD", key, &until, "one 0123456789abcdef"]);
    let again = server.broker().await;
    let mut fleet = Fleet::join(&[&again], &share).await;
    let started = Instant::now();
    fleet.settles(&[4]).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_new_partition_is_told() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    for read in [ReadMode::Cursor, ReadMode::Group] {
        let partitions = one.topic(&"in".parse().unwrap()).await.unwrap().map_or(0, |info| info.partitions.len());
        topic_of(&one, partitions as u32 + 1).await;
        let share = share(&["in"], read);
        let mut member = one.join(&share).await.unwrap();
        assert_eq!(timeout(PATIENCE, member.changed()).await.unwrap().unwrap().len(), partitions + 1);
        topic_of(&two, partitions as u32 + 2).await;
        let told = timeout(PATIENCE, member.changed()).await.unwrap().unwrap();
        assert!(told.contains(&at(partitions as u32 + 1)), "{told:?}");
    }
}

/// The group shares the entries out, so every host reads every partition.
#[tokio::test]
async fn readers_of_a_group_work_on_every_partition() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    topic_of(&one, 3).await;
    let share = share(&["in"], ReadMode::Group);
    for broker in [&one, &two] {
        let mut member = broker.join(&share).await.unwrap();
        assert_eq!(timeout(PATIENCE, member.changed()).await.unwrap().unwrap().len(), 3);
    }
}

/// The registry, the topic and its lanes are gone: the hosts enter again, keep their shares and go on.
#[tokio::test]
async fn hosts_go_on_after_a_flush() {
    let server = RedisServer::start(&[]);
    let (one, two) = (host(&server, "one").await, host(&server, "two").await);
    topic_of(&one, 6).await;
    topic_of(&two, 6).await;
    let three = TopicSpec { partitions: 3.try_into().unwrap(), ..TopicSpec::default() };
    one.ensure_topic(&"kept".parse().unwrap(), &three).await.unwrap();
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one, &two], &share).await;
    fleet.settles(&[3, 3]).await;
    let told: Vec<_> = fleet.0.iter().map(|(_, told)| told.clone()).collect();
    let mine = told[0].first().unwrap().partition;
    let held = open_at(&one, mine).await;

    server.cli(&["FLUSHALL"]);
    let entries = || server.cli(&["ZCARD", "synapse:members:pipe/in"]);
    let started = Instant::now();
    while entries() != "2" || server.cli(&["HLEN", "synapse:topics"]) != "1" {
        assert!(started.elapsed() < PATIENCE, "{} entries", entries());
        tokio::time::sleep(GLANCE).await;
    }
    publish(&one, "in", 0..60).await;
    // What the hosts made sure of and only write to is there again with the first event.
    publish(&one, "kept", 0..60).await;
    let kept = one.topic(&"kept".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(kept.partitions.len(), 3);
    drop(held);
    let (mut committer, mut source) = open_at(&one, mine).await;
    let kept = one.topic(&"in".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(kept.partitions.len(), 6);
    let count = kept.partitions[mine as usize].events as usize;
    let (read, offsets, _) = next(&mut *source, count).await;
    committer.commit(&covering(&offsets, vec![output("out", 0..1)])).await.unwrap();
    assert_eq!(read.len(), count);
    for (member, told) in &mut fleet.0 {
        let changed = timeout(2 * LEASE, member.changed()).await;
        assert!(changed.is_err(), "shares should stay as they were: {told:?} became {changed:?}");
    }
}

async fn open_at(
    broker: &RedisBroker,
    partition: u32,
) -> (Box<dyn synapse_core::Committer>, Box<dyn synapse_core::Source>) {
    let spec = lane_at(partition, ReadMode::Cursor);
    let lane = broker.open_lane(&spec).await.unwrap();
    let synapse_core::broker::Reading::From(from) = lane.reading else { panic!("a lane by cursor has no reader") };
    (lane.committer, broker.read(&"in".parse().unwrap(), partition, from).await.unwrap())
}

/// While the server is away the share stays as it was; what the hosts had before they have again when it is back.
#[tokio::test]
async fn an_outage_changes_no_share() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (one, two) = (host(&server, "one").await, host(&server, "two").await);
    topic_of(&one, 6).await;
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one, &two], &share).await;
    fleet.settles(&[3, 3]).await;
    server.kill();
    let changed = timeout(2 * LEASE, fleet.0[0].0.changed()).await;
    assert!(changed.is_err(), "nobody knows better: {changed:?}");
    server.start_again();
    fleet.settles(&[3, 3]).await;
}

#[tokio::test]
async fn a_pipelines_places_are_seen_from_a_third_host() {
    let server = RedisServer::start(&[]);
    let (one, two, third) = (server.broker().await, server.peer("two").await, server.peer("third").await);
    topic_of(&one, 2).await;
    let share = share(&["in"], ReadMode::Cursor);
    let place = |partition| LanePlace { partition: at(partition), owner: None, committed: None, lag: None };
    assert_eq!(third.places(&share).await.unwrap(), [place(0), place(1)]);
    let places = one.publish(&output("in", 0..20)).await.unwrap();
    let first: Vec<_> = places.iter().filter(|(partition, _)| *partition == 0).map(|(_, offset)| *offset).collect();
    let (mut committer, _source) = open_at(&one, 0).await;
    let held = open_at(&two, 1).await;
    committer.commit(&covering(&first[..2], vec![output("out", 0..1)])).await.unwrap();
    let seen = third.places(&share).await.unwrap();
    let owner = |name: &str| Some(name.to_owned());
    let left = first.len() as u64 - 2;
    assert_eq!(seen[0], LanePlace { owner: owner("one"), committed: Some(first[1]), lag: Some(left), ..place(0) });
    let all = 20 - first.len() as u64;
    assert_eq!(seen[1], LanePlace { owner: owner("two"), lag: Some(all), ..place(1) });
    // What is written down is told when the group is gone.
    drop(held);
    two.close().await;
    server.cli(&["XGROUP", "DESTROY", "in:{0}", "pipe"]);
    let seen = third.places(&share).await.unwrap();
    assert_eq!(seen[0], LanePlace { owner: owner("one"), committed: Some(first[1]), ..place(0) });
    assert_eq!(seen[1].owner, None);
}

#[tokio::test]
async fn the_readers_of_a_group_are_told() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    publish(&one, "in", 0..5).await;
    let spec = lane("in", ReadMode::Group);
    let (mut committer, mut source) = open(&one, &spec).await;
    let (_, offsets, _) = next(&mut *source, 5).await;
    committer.commit(&covering(&offsets[..2], Vec::new())).await.unwrap();
    let (second, mut reader) = open(&two, &spec).await;
    assert!(poll(&mut *reader, GLANCE).await.0.is_empty());
    server.cli(&["XGROUP", "CREATECONSUMER", "in", "pipe", "theirs"]);
    let share = share(&["in"], ReadMode::Group);
    let seen = one.places(&share).await.unwrap().remove(0);
    assert_eq!(seen.owner.as_deref(), Some("one, theirs, two"));
    assert_eq!((seen.committed, seen.lag), (Some(offsets[4]), Some(3)), "three were handed out and are not done with");
    drop((second, reader));
    two.close().await;
    let owner = one.places(&share).await.unwrap().remove(0).owner.unwrap();
    assert_eq!(owner, "one, theirs");
}

/// Taken over while it slept, a host that wakes up writes nothing, whatever it believes of its share.
#[tokio::test]
async fn a_host_that_wakes_up_late_cannot_commit() {
    let server = RedisServer::start(&[]);
    let (one, two) = (host(&server, "one").await, host(&server, "two").await);
    topic_of(&one, 2).await;
    let offsets = publish(&one, "in", 0..1).await;
    let partition = u32::from(one.topic(&"in".parse().unwrap()).await.unwrap().unwrap().partitions[0].events == 0);
    let share = share(&["in"], ReadMode::Cursor);
    let mut fleet = Fleet::join(&[&one], &share).await;
    fleet.settles(&[2]).await;
    let (mut zombie, _source) = open_at(&one, partition).await;
    // Blocks the only thread of this runtime, so that nothing is renewed and nobody looks.
    while server.cli(&["EXISTS", "synapse:members:pipe/in"]) != "0" {}
    while !server.cli(&["KEYS", "synapse:lease:*"]).is_empty() {}
    let (mut committer, mut source) = open_at(&two, partition).await;
    assert_eq!(next(&mut *source, 1).await.0, ids(0..1));
    committer.commit(&covering(&offsets, vec![output("out", 0..1)])).await.unwrap();
    let stale = covering(&offsets, vec![output("out", 0..1)]);
    assert_kind(zombie.commit(&stale).await, BrokerErrorKind::Fenced, "");
    assert_eq!(all_ids(&one, "out").await, ids(0..1));
}
