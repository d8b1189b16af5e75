//! Sharing a stream with others in a consumer group.

use std::time::{Duration, Instant};

use synapse_brokers::redis::RedisBroker;
use synapse_core::broker::{BrokerErrorKind, Ending};
use synapse_core::spec::{ReadMode, TopicSpec};
use synapse_core::{Broker, Source};

use crate::support::{
    GLANCE, LIMIT, PATIENCE, RedisServer, all_ids, assert_kind, covering, ids, lane, next, open, output, poll, publish,
};

const LEASE: Duration = Duration::from_secs(1);

async fn with_lease(server: &RedisServer, host: &str) -> RedisBroker {
    let broker = server.try_broker(|options| {
        options.host_id = host.to_owned();
        options.lease = LEASE;
    });
    broker.await.unwrap()
}

fn consumer(host: &str) -> String {
    format!("{host}:pipe/in/0")
}

/// Everything that comes until `count` events were seen, by whatever polls it takes.
async fn until(source: &mut dyn Source, count: usize) -> (Vec<String>, u64) {
    let (started, mut all, mut lost) = (Instant::now(), Vec::new(), 0);
    while all.len() < count {
        assert!(started.elapsed() < PATIENCE, "{all:?} came, {lost} were lost");
        let (ids, _, more) = poll(source, GLANCE).await;
        all.extend(ids);
        lost += more;
    }
    (all, lost)
}

#[tokio::test]
async fn what_is_committed_is_acknowledged_and_the_rest_comes_first_again() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..5).await;
    let spec = lane("in", ReadMode::Group);
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (read, offsets, _) = next(&mut *source, 5).await;
    assert_eq!(read, ids(0..5));
    committer.commit(&covering(&offsets[1..3], vec![output("out", 1..3)])).await.unwrap();
    assert!(server.cli(&["XPENDING", "in", "pipe"]).starts_with("3\n"));
    drop((committer, source));
    publish(&broker, "in", 5..6).await;
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (read, offsets, _) = next(&mut *source, 4).await;
    assert_eq!(read, ["0", "3", "4", "5"]);
    committer.commit(&covering(&offsets, vec![output("out", 3..6)])).await.unwrap();
    assert!(server.cli(&["XPENDING", "in", "pipe"]).starts_with('0'));
    assert_eq!(all_ids(&broker, "out").await, ids(1..6));
}

#[tokio::test]
async fn pending_entries_that_were_trimmed_are_counted_and_forgotten() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..10).await;
    let spec = lane("in", ReadMode::Group);
    let (committer, mut source) = open(&broker, &spec).await;
    next(&mut *source, 10).await;
    drop((committer, source));
    server.cli(&["XTRIM", "in", "MAXLEN", "3"]);
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (read, offsets, lost) = next(&mut *source, 3).await;
    assert_eq!((read, lost), (ids(7..10), 7));
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    assert!(server.cli(&["XPENDING", "in", "pipe"]).starts_with('0'));
}

/// All that is pending was trimmed: the count comes without an event.
#[tokio::test]
async fn a_count_of_lost_entries_needs_no_event() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..4).await;
    let spec = lane("in", ReadMode::Group);
    let (committer, mut source) = open(&broker, &spec).await;
    next(&mut *source, 4).await;
    drop((committer, source));
    server.cli(&["XTRIM", "in", "MAXLEN", "0"]);
    let (_committer, mut source) = open(&broker, &spec).await;
    let (read, _, lost) = poll(&mut *source, GLANCE).await;
    assert_eq!((read.len(), lost), (0, 4));
}

#[tokio::test]
async fn hosts_share_the_work() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    publish(&one, "in", 0..1).await;
    let spec = lane("in", ReadMode::Group);
    let (mut first, mut from_one) = open(&one, &spec).await;
    let (_, offsets, _) = next(&mut *from_one, 1).await;
    first.commit(&covering(&offsets, Vec::new())).await.unwrap();
    let (mut second, mut from_two) = open(&two, &spec).await;
    let mut seen = vec!["0".to_owned()];
    for id in 1..30 {
        publish(&one, "in", id..id + 1).await;
        let (mine, mine_at, _) = poll(&mut *from_one, GLANCE / 10).await;
        let (theirs, theirs_at, _) = poll(&mut *from_two, GLANCE / 10).await;
        first.commit(&covering(&mine_at, Vec::new())).await.unwrap();
        second.commit(&covering(&theirs_at, Vec::new())).await.unwrap();
        seen.extend(mine.into_iter().chain(theirs));
    }
    let started = Instant::now();
    while seen.len() < 30 {
        assert!(started.elapsed() < PATIENCE, "{seen:?}");
        seen.extend(poll(&mut *from_one, GLANCE).await.0);
        seen.extend(poll(&mut *from_two, GLANCE).await.0);
    }
    seen.sort_by_key(|id| id.parse::<usize>().unwrap());
    assert_eq!(seen, ids(0..30));
}

/// The dead host's entries come to the living one, its consumer goes once it has none; a slow host keeps its own.
#[tokio::test]
async fn the_dead_are_inherited_and_the_slow_are_not_robbed() {
    let server = RedisServer::start(&[]);
    let (dead, slow) = (server.peer("dead").await, with_lease(&server, "slow").await);
    publish(&dead, "in", 0..6).await;
    let spec = lane("in", ReadMode::Group);
    let few = synapse_core::broker::BatchLimit { events_max: 2, ..LIMIT };
    let (_dead_committer, mut dead_source) = open(&dead, &spec).await;
    assert_eq!(dead_source.poll(few, PATIENCE).await.unwrap().events.len(), 2);
    drop(dead_source);
    let (mut slow_committer, mut slow_source) = open(&slow, &spec).await;
    let held = slow_source.poll(few, PATIENCE).await.unwrap().offsets.clone();

    let living = with_lease(&server, "living").await;
    let (mut committer, mut source) = open(&living, &spec).await;
    let started = Instant::now();
    let mut read = Vec::new();
    while started.elapsed() < 3 * LEASE {
        read.extend(poll(&mut *source, GLANCE).await.0);
    }
    // What the slow host read ahead is its own, too.
    assert!(read.len() <= 2, "nobody was dead: {read:?}");
    dead.close().await;
    slow_committer.commit(&covering(&held, Vec::new())).await.unwrap();

    let consumers = || server.cli(&["XINFO", "CONSUMERS", "in", "pipe"]);
    let (started, mut offsets) = (Instant::now(), Vec::new());
    while consumers().contains(&consumer("dead")) {
        assert!(started.elapsed() < PATIENCE, "{}", consumers());
        let (ids, places, _) = poll(&mut *source, GLANCE).await;
        read.extend(ids);
        committer.commit(&covering(&places, Vec::new())).await.unwrap();
        offsets.extend(places);
    }
    assert!(offsets.len() >= 2, "the dead held at least two entries");
    assert!(consumers().contains(&consumer("slow")));
    let unique: std::collections::BTreeSet<_> = read.iter().collect();
    assert_eq!(unique.len(), read.len(), "{read:?}");
}

/// Several hosts find the same dead one at once: each of its entries comes to one of them.
#[tokio::test(flavor = "multi_thread")]
async fn heirs_do_not_rob_each_other() {
    const EVENTS: usize = 600;
    let server = RedisServer::start(&[]);
    let dead = server.peer("dead").await;
    publish(&dead, "in", 0..EVENTS).await;
    let spec = lane("in", ReadMode::Group);
    let (dead_committer, mut source) = open(&dead, &spec).await;
    next(&mut *source, EVENTS).await;
    let mut heirs = Vec::new();
    for host in ["one", "two", "three", "four"] {
        let broker = server.peer(host).await;
        let (committer, source) = open(&broker, &spec).await;
        heirs.push((broker, committer, source));
    }
    drop((dead_committer, source));
    dead.close().await;
    let few = synapse_core::broker::BatchLimit { events_max: 7, ..LIMIT };
    let mut inherit = tokio::task::JoinSet::new();
    for (broker, mut committer, mut source) in heirs {
        inherit.spawn(async move {
            let (mut read, mut waited) = (Vec::new(), 0);
            // A claim is looked for again after half a lease.
            while waited < 2 {
                let page = source.poll(few, 2 * LEASE).await.unwrap();
                waited = if page.offsets.is_empty() { waited + 1 } else { 0 };
                read.extend(page.events.events().map(|event| event.id().to_owned()));
                committer.commit(&covering(&page.offsets, Vec::new())).await.unwrap();
            }
            drop(broker);
            read
        });
    }
    let mut read: Vec<_> = inherit.join_all().await.into_iter().flatten().collect();
    read.sort_by_key(|id| id.parse::<usize>().unwrap());
    assert_eq!(read, ids(0..EVENTS));
    assert!(server.cli(&["XPENDING", "in", "pipe"]).starts_with('0'));
}

/// What the dead left and a trim removed is counted by who inherits.
#[tokio::test]
async fn trimmed_entries_of_the_dead_are_counted() {
    let server = RedisServer::start(&[]);
    let (dead, living) = (server.peer("dead").await, with_lease(&server, "living").await);
    publish(&dead, "in", 0..10).await;
    let spec = lane("in", ReadMode::Group);
    let (committer, mut source) = open(&dead, &spec).await;
    next(&mut *source, 10).await;
    drop((committer, source));
    dead.close().await;
    server.cli(&["XTRIM", "in", "MAXLEN", "4"]);
    let (mut committer, mut source) = open(&living, &spec).await;
    let (read, offsets, lost) = next(&mut *source, 4).await;
    assert_eq!((read, lost), (ids(6..10), 6));
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    assert!(server.cli(&["XPENDING", "in", "pipe"]).starts_with('0'));
}

/// Another tool's consumer has no lease: it is dead once it was idle for longer than one lasts, and never deleted.
#[tokio::test]
async fn idle_consumers_of_other_tools_are_inherited_from() {
    let server = RedisServer::start(&[]);
    let broker = with_lease(&server, "one").await;
    publish(&broker, "in", 0..2).await;
    let spec = lane("in", ReadMode::Group);
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (_, offsets, _) = next(&mut *source, 2).await;
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    drop((committer, source));
    publish(&broker, "in", 2..5).await;
    server.cli(&["XREADGROUP", "GROUP", "pipe", "theirs", "COUNT", "2", "STREAMS", "in", ">"]);
    let (_committer, mut source) = open(&broker, &spec).await;
    let (mut read, _) = until(&mut *source, 3).await;
    read.sort();
    assert_eq!(read, ids(2..5));
    let consumers = server.cli(&["XINFO", "CONSUMERS", "in", "pipe"]);
    assert!(consumers.contains("theirs"), "{consumers}");
}

/// The group vanishes under a waiting reader: it fails, and opened again the lane goes on behind its last commit.
#[tokio::test]
async fn a_destroyed_group_is_made_again_behind_the_last_commit() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..4).await;
    let spec = lane("in", ReadMode::Group);
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (_, offsets, _) = next(&mut *source, 4).await;
    committer.commit(&covering(&offsets[..2], vec![output("out", 0..2)])).await.unwrap();
    for command in [&["XGROUP", "DESTROY", "in", "pipe"][..], &["DEL", "in"]] {
        server.cli(command);
        publish(&broker, "in", 4..6).await;
        let started = Instant::now();
        let error = loop {
            match source.poll(LIMIT, GLANCE).await {
                Ok(batch) => assert!(batch.is_empty() && started.elapsed() < PATIENCE, "{batch:?}"),
                Err(error) => break error,
            }
        };
        assert_kind::<()>(Err(error), BrokerErrorKind::Unavailable, "made again at the cursor that was kept");
        let stale = covering(&offsets[2..], vec![output("out", 2..4)]);
        (committer, source) = open(&broker, &spec).await;
        let old = server.cli(&["XLEN", "in"]) == "6";
        let count = if old { 4 } else { 2 };
        let (read, places, _) = next(&mut *source, count).await;
        assert_eq!(read, ids(6 - count..6));
        if old {
            committer.commit(&stale).await.unwrap();
            committer.commit(&covering(&places[2..], vec![output("out", 4..6)])).await.unwrap();
        }
    }
    assert_eq!(all_ids(&broker, "out").await, ids(0..6));
}

/// The leases take other names with the stream, so nobody takes the one whose lane was not opened again for dead.
#[tokio::test]
async fn a_topic_that_grows_robs_no_reader() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    publish(&one, "in", 0..3).await;
    let spec = lane("in", ReadMode::Group);
    let (mut fenced, mut stale) = open(&one, &spec).await;
    let (_, offsets, _) = next(&mut *stale, 3).await;
    let more = TopicSpec { partitions: 2.try_into().unwrap(), ..TopicSpec::default() };
    let topic = "in".parse().unwrap();
    let meanwhile = async {
        while server.cli(&["EXISTS", "in"]) == "1" {
            tokio::task::yield_now().await;
        }
        let (_theirs, mut reader) = open(&two, &spec).await;
        assert!(poll(&mut *reader, GLANCE).await.0.is_empty());
        fenced.commit(&covering(&offsets, Vec::new())).await
    };
    let (grown, told) = tokio::join!(two.ensure_topic(&topic, &more), meanwhile);
    assert_eq!(grown.unwrap().partitions.len(), 2);
    assert_ne!(told.unwrap_err().kind.ending(), Ending::Stop);
    let (mut committer, mut source) = open(&one, &spec).await;
    assert_eq!(
        server.cli(&["EXISTS", "in", "synapse:lane:{in}:pipe/in/0"]),
        "0",
        "nothing is made under the old names"
    );
    let (read, offsets, _) = next(&mut *source, 3).await;
    assert_eq!(read, ids(0..3));
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
}

/// Two readers of one consumer would strand entries: the older one is cut off.
#[tokio::test]
async fn a_second_reader_of_the_host_ends_the_first() {
    let server = RedisServer::start(&[]);
    let (broker, again) = (server.broker().await, server.broker().await);
    publish(&broker, "in", 0..2).await;
    let spec = lane("in", ReadMode::Group);
    let (mut zombie, mut old) = open(&broker, &spec).await;
    let (_, offsets, _) = next(&mut *old, 2).await;
    // It waits for more when the second one comes.
    assert!(poll(&mut *old, GLANCE).await.0.is_empty());
    let (mut committer, mut new) = open(&again, &spec).await;
    publish(&broker, "in", 2..4).await;
    let (read, places, _) = next(&mut *new, 4).await;
    assert_eq!(read, ids(0..4));
    assert!(old.poll(LIMIT, PATIENCE).await.is_err());
    assert_kind(zombie.commit(&covering(&offsets, Vec::new())).await, BrokerErrorKind::Fenced, "");
    committer.commit(&covering(&places, Vec::new())).await.unwrap();
    assert!(server.cli(&["XPENDING", "in", "pipe"]).starts_with('0'));
}

#[tokio::test]
async fn pending_entries_are_not_passed_over_by_reading_by_cursor() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..2).await;
    let (mut committer, mut source) = open(&broker, &lane("in", ReadMode::Group)).await;
    let (_, offsets, _) = next(&mut *source, 2).await;
    let refused = broker.open_lane(&lane("in", ReadMode::Cursor)).await;
    assert_kind(
        refused,
        BrokerErrorKind::Invalid,
        "2 entries of the group `pipe` were handed out and not acknowledged",
    );
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    let (_committer, mut source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
    assert!(poll(&mut *source, GLANCE).await.0.is_empty());
}
