//! Who owns a lane: takeovers, expiry, and zombies that must not write.

use std::time::{Duration, Instant};

use synapse_brokers::redis::RedisBroker;
use synapse_core::broker::BrokerErrorKind;
use synapse_core::spec::ReadMode;
use synapse_core::{Broker, Effects};

use crate::support::{RedisServer, all_ids, assert_kind, covering, ids, lane, next, open, output, publish};

const LEASE: Duration = Duration::from_millis(500);
const LEASE_KEY: &str = "synapse:lease:{in}:pipe/in/0";

async fn with_lease(server: &RedisServer, host: &str) -> RedisBroker {
    let broker = server.try_broker(|options| {
        options.host_id = host.to_owned();
        options.lease = LEASE;
    });
    broker.await.unwrap()
}

#[tokio::test]
async fn another_hosts_lane_is_left_alone_until_it_is_given_back() {
    let server = RedisServer::start(&[]);
    let (one, two) = (server.broker().await, server.peer("two").await);
    let offsets = publish(&one, "in", 0..3).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, source) = open(&one, &spec).await;
    assert_kind(two.open_lane(&spec).await, BrokerErrorKind::Fenced, "host `one` holds it for another 1");
    committer.commit(&covering(&offsets[..1], Vec::new())).await.unwrap();
    drop((committer, source));
    one.close().await;
    let (_committer, mut source) = open(&two, &spec).await;
    assert_eq!(next(&mut *source, 2).await.0, ids(1..3));
}

#[tokio::test]
async fn an_idle_lane_keeps_its_lease() {
    let server = RedisServer::start(&[]);
    let (one, two) = (with_lease(&server, "one").await, with_lease(&server, "two").await);
    let offsets = publish(&one, "in", 0..1).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, _source) = open(&one, &spec).await;
    let started = Instant::now();
    while started.elapsed() < 4 * LEASE {
        assert_kind(two.open_lane(&spec).await, BrokerErrorKind::Fenced, "host `one`");
        tokio::task::yield_now().await;
    }
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
}

/// The host is suspended for longer than its lease lasts, wakes up and commits.
#[tokio::test]
async fn a_lease_that_ran_out_fences_its_owner() {
    let server = RedisServer::start(&[]);
    let one = with_lease(&server, "one").await;
    let offsets = publish(&one, "in", 0..2).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, _source) = open(&one, &spec).await;
    // Blocks the only thread of this runtime, so that nothing renews.
    while server.cli(&["EXISTS", LEASE_KEY]) != "0" {}
    let effects = covering(&offsets, vec![output("out", 0..2)]);
    assert_kind(committer.commit(&effects).await, BrokerErrorKind::Fenced, "its lease was taken over or ran out");
    assert_eq!(server.cli(&["EXISTS", "out"]), "0");
    let (mut committer, mut source) = open(&one, &spec).await;
    assert_eq!(next(&mut *source, 2).await.0, ids(0..2));
    committer.commit(&effects).await.unwrap();
    assert_eq!(all_ids(&one, "out").await, ids(0..2));
}

/// As above, but meanwhile another host took over, did the work and went away again: the lease is free, and still not
/// the zombie's.
#[tokio::test]
async fn a_zombie_writes_nothing_after_a_takeover() {
    let server = RedisServer::start(&[]);
    let (one, two) = (with_lease(&server, "one").await, server.peer("two").await);
    let offsets = publish(&one, "in", 0..2).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut zombie, _source) = open(&one, &spec).await;
    while server.cli(&["EXISTS", LEASE_KEY]) != "0" {}
    let effects = covering(&offsets, vec![output("out", 0..2)]);
    let (mut committer, source) = open(&two, &spec).await;
    committer.commit(&effects).await.unwrap();
    drop((committer, source));
    two.close().await;
    assert_eq!(server.cli(&["EXISTS", LEASE_KEY]), "0");
    assert_kind(zombie.commit(&effects).await, BrokerErrorKind::Fenced, "");
    assert_kind(zombie.commit(&Effects::default()).await, BrokerErrorKind::Fenced, "");
    assert_eq!(all_ids(&one, "out").await, ids(0..2));
}

#[tokio::test]
async fn a_closed_lane_does_not_give_its_successors_lease_back() {
    let server = RedisServer::start(&[]);
    let (one, again) = (server.broker().await, server.broker().await);
    let offsets = publish(&one, "in", 0..1).await;
    let spec = lane("in", ReadMode::Cursor);
    let first = open(&one, &spec).await;
    let (mut second, _source) = open(&again, &spec).await;
    drop(first);
    one.close().await;
    assert_eq!(server.cli(&["EXISTS", LEASE_KEY]), "1");
    second.commit(&covering(&offsets, Vec::new())).await.unwrap();
}
