//! Promises about hosts that share a pipeline's work: memberships, and where the lanes are.
//!
//! Waits are generous, since some brokers take seconds until a group of hosts has settled. The promises of
//! [`SharedHarness`] are for brokers that several hosts may use at once.

use std::collections::BTreeSet;

use synapse_core::share::{Membership, Share};
use tokio::time::{Instant, timeout};

use super::*;

/// How long hosts may take until each knows its share.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

fn share(topic: &TopicName, pipeline: &str) -> Share {
    Share { pipeline: pipeline.parse().unwrap(), topics: vec![topic.clone()], read: ReadMode::Cursor }
}

fn partitions(broker: &dyn Broker, topic: &TopicName, count: u32) -> BTreeSet<TopicPartition> {
    (0..count).map(|partition| TopicPartition { topic: path(broker, topic), partition }).collect()
}

/// A membership and what it was told last.
struct Host {
    member: Box<dyn Membership>,
    share: BTreeSet<TopicPartition>,
}

impl Host {
    async fn join(broker: &dyn Broker, share: &Share) -> Self {
        Self { member: broker.join(share).await.unwrap(), share: BTreeSet::new() }
    }
}

/// Follows all hosts until `settled` says that their shares are as they should be.
async fn follow(hosts: &mut [Host], settled: impl Fn(&[&BTreeSet<TopicPartition>]) -> bool) {
    let started = Instant::now();
    loop {
        for host in &mut *hosts {
            // Dropped half way again and again: waiting for a change may be cancelled.
            if let Ok(told) = timeout(GLANCE, host.member.changed()).await {
                host.share = told.unwrap();
            }
        }
        let shares: Vec<_> = hosts.iter().map(|host| &host.share).collect();
        if settled(&shares) {
            return;
        }
        assert!(started.elapsed() < SETTLED_WITHIN, "the shares are still {shares:?}");
    }
}

/// Whether `all` is shared out without a gap or an overlap, and nobody has two more than another.
fn is_even(shares: &[&BTreeSet<TopicPartition>], all: &BTreeSet<TopicPartition>) -> bool {
    let loads = || shares.iter().map(|share| share.len());
    let union: BTreeSet<_> = shares.iter().copied().flatten().cloned().collect();
    union == *all && loads().sum::<usize>() == all.len() && loads().max() <= loads().min().map(|least| least + 1)
}

/// Who is alone has everything to do.
pub async fn a_host_alone_works_on_every_partition(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 3).await;
    let mut hosts = [Host::join(&*broker, &share(&name, &fresh("shared"))).await];
    let all = partitions(&*broker, &name, 3);
    follow(&mut hosts, |shares| *shares[0] == all).await;
}

/// A topic that grows gives its hosts more to do.
pub async fn new_partitions_are_told(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 2).await;
    let mut hosts = [Host::join(&*broker, &share(&name, &fresh("shared"))).await];
    let before = partitions(&*broker, &name, 2);
    follow(&mut hosts, |shares| *shares[0] == before).await;
    broker.ensure_topic(&name, &spec(4)).await.unwrap();
    let after = partitions(&*broker, &name, 4);
    follow(&mut hosts, |shares| *shares[0] == after).await;
}

/// For each partition in order: the last entry that was committed, and how many are left. A broker that keeps marks of
/// its own between events may count them, too ([`Harness::lag_is_exact`]), or tell no number at all.
pub async fn places_tell_what_is_committed_and_what_is_left(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 2).await;
    let (here, there) = match broker.partition_of(b"N14228", 2) {
        0 => (0, 1),
        _ => (1, 0),
    };
    let events: Vec<Event> = (0..5).map(|id| event(id, "N14228")).collect();
    let offsets: Vec<Offset> = publish(&*broker, &name, &events).await.into_iter().map(|(_, at)| at).collect();
    let mut lane = lane_spec(&*broker, &name, &fresh("shared"), Start::Earliest);
    lane.key.partition.partition = here as u32;
    let share = share(&name, lane.key.pipeline.as_str());
    let before = broker.places(&share).await.unwrap();
    let told: Vec<_> = before.iter().map(|place| (place.partition.partition, place.committed)).collect();
    assert_eq!(told, [(0, None), (1, None)]);

    let (mut open, mut source) = open(&*broker, &lane).await;
    next(&mut *source, 5).await;
    for (done, left) in [(2, 3), (5, 0)] {
        open.committer.commit(&covering(&offsets[..done])).await.unwrap();
        let places = broker.places(&share).await.unwrap();
        assert_eq!((places.len(), places[here].committed), (2, Some(offsets[done - 1])), "{places:?}");
        assert_eq!(places[there].committed, None, "nothing was done there");
        let enough = match places[here].lag {
            Some(lag) if harness.lag_is_exact() => lag == left,
            Some(lag) => lag >= left,
            None => true,
        };
        assert!(enough, "{left} are left: {places:?}");
    }
    // Another pipeline was nowhere.
    let other = Share { pipeline: fresh("shared").parse().unwrap(), ..share };
    assert!(broker.places(&other).await.unwrap().iter().all(|place| place.committed.is_none()));
}

/// Hosts that join get as much as any other.
pub async fn hosts_share_the_partitions_evenly(harness: &dyn SharedHarness) {
    let broker = harness.broker().await;
    let (second, third) = (harness.host("second").await, harness.host("third").await);
    let name = topic(&*broker, 6).await;
    let (share, all) = (share(&name, &fresh("shared")), partitions(&*broker, &name, 6));
    let mut hosts = vec![Host::join(&*broker, &share).await];
    for joining in [&second, &third] {
        hosts.push(Host::join(&**joining, &share).await);
        follow(&mut hosts, |shares| is_even(shares, &all)).await;
    }
}

/// What a host had goes to the others once it has left, and they go on behind what it committed.
pub async fn others_go_on_where_a_leaver_stopped(harness: &dyn SharedHarness) {
    let broker = harness.broker().await;
    let other = harness.host("other").await;
    let name = topic(&*broker, 4).await;
    let positions = publish(&*broker, &name, &events(0..40)).await;
    let pipeline = fresh("shared");
    let (share, all) = (share(&name, &pipeline), partitions(&*broker, &name, 4));
    let mut hosts = vec![Host::join(&*broker, &share).await, Host::join(&*other, &share).await];
    follow(&mut hosts, |shares| is_even(shares, &all)).await;

    let theirs = hosts[1].share.first().unwrap().clone();
    let here: Vec<Offset> =
        positions.iter().filter(|(partition, _)| *partition == theirs.partition).map(|(_, at)| *at).collect();
    let mut lane = lane_spec(&*broker, &name, &pipeline, Start::Earliest);
    lane.key.partition = theirs;
    {
        let (mut open, mut source) = open(&*other, &lane).await;
        next(&mut *source, here.len()).await;
        open.committer.commit(&covering(&here[..2])).await.unwrap();
    }
    hosts.truncate(1);
    follow(&mut hosts, |shares| *shares[0] == all).await;
    let started = Instant::now();
    while let Err(error) = broker.open_lane(&lane).await {
        // The other host gives it back in its own time.
        assert_eq!(error.kind, BrokerErrorKind::Fenced, "{error}");
        assert!(started.elapsed() < SETTLED_WITHIN, "{error}");
        tokio::time::sleep(GLANCE).await;
    }
    let (_open, mut source) = open(&*broker, &lane).await;
    let read: Vec<Offset> = next(&mut *source, here.len() - 2).await.into_iter().map(|(at, _)| at).collect();
    assert_eq!(read, here[2..]);
}
