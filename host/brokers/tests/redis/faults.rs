//! What goes wrong at the server: refusals, crashes, no memory, keys that vanish.

use std::time::Instant;

use synapse_brokers::redis::Servers;
use synapse_core::broker::BrokerErrorKind;
use synapse_core::spec::{ReadFrom, ReadMode, Start};
use synapse_core::{Broker, BrokerError, Source};

use crate::support::{
    GLANCE, LIMIT, PATIENCE, RedisServer, all_ids, assert_kind, covering, ids, lane, next, open, output, poll, publish,
};

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let refused = server.try_broker(|_| {}).await;
    assert_kind(refused, BrokerErrorKind::Unavailable, "check that Redis runs there and can be reached");
}

#[tokio::test]
async fn credentials_are_used_and_wrong_ones_refused() {
    let server = RedisServer::start_on_tcp(&["--requirepass", "secret"]);
    let with = |url: String| server.try_broker(move |options| options.servers = Servers::One(url));
    let tcp = server.tcp_url();
    for url in [tcp.clone(), tcp.replace("//", "//:wrong@"), format!("{}?pass=wrong", server.unix_url())] {
        assert_kind(with(url).await, BrokerErrorKind::Refused, "check user, password and ACL rules");
    }
    let acl = ["-a", "secret", "ACL", "SETUSER", "reader", "on", ">pass", "~*", "+info", "+ping", "+select"];
    server.cli(&acl);
    for url in [tcp.replace("//", "//:secret@"), tcp.replace("//", "//default:secret@") + "/3"] {
        let broker = with(url).await.unwrap();
        let offsets = publish(&broker, "in", 0..1).await;
        let (mut committer, mut source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
        next(&mut *source, 1).await;
        committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    }
    assert_eq!(server.cli(&["-a", "secret", "-n", "3", "XLEN", "in"]), "1");
    let reader = with(tcp.replace("//", "//reader:pass@")).await.unwrap();
    assert_kind(reader.publish(&output("in", 0..1)).await, BrokerErrorKind::Refused, "NOPERM");
}

#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    let server = RedisServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let refused = server.try_broker(|_| {}).await;
    assert_kind(refused, BrokerErrorKind::Refused, "its maxmemory-policy is `allkeys-lru`");
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.broker().await;
}

#[tokio::test]
async fn options_that_cannot_be_are_refused() {
    let server = RedisServer::start(&[]);
    let host = server.try_broker(|options| options.host_id = "two words".to_owned()).await;
    assert_kind(host, BrokerErrorKind::Invalid, "`two words`");
    let lease = server.try_broker(|options| options.lease = std::time::Duration::ZERO).await;
    assert_kind(lease, BrokerErrorKind::Invalid, "is too short");
}

/// With memory for nothing more, publishes and commits are refused as a whole, and go on once there is some.
#[tokio::test]
async fn a_full_server_refuses_whole_commits_and_recovers() {
    let server = RedisServer::start(&["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..3).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, mut source) = open(&broker, &spec).await;
    next(&mut *source, 3).await;
    let mut acknowledged = 0;
    let full = loop {
        match broker.publish(&output("filler", 0..500)).await {
            Ok(places) => acknowledged += places.len(),
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000_000, "3 MB should not hold that much");
    };
    assert_kind::<()>(Err(full), BrokerErrorKind::Full, "raise maxmemory");
    assert_eq!(server.cli(&["XLEN", "filler"]), acknowledged.to_string());

    // Now there is not even enough for a little.
    server.cli(&["CONFIG", "SET", "maxmemory", "1000000"]);
    let effects = covering(&offsets, vec![output("out", 0..3)]);
    assert_kind(committer.commit(&effects).await, BrokerErrorKind::Full, "OOM");
    assert_kind(broker.open_lane(&spec).await, BrokerErrorKind::Full, "OOM");
    assert_eq!(server.cli(&["EXISTS", "out"]), "0");
    let groups = server.cli(&["XINFO", "GROUPS", "in"]);
    assert!(groups.contains("last-delivered-id\n0-0"), "{groups}");
    drop(committer);

    server.cli(&["CONFIG", "SET", "maxmemory", "30mb"]);
    let (mut committer, mut source) = open(&broker, &spec).await;
    assert_eq!(next(&mut *source, 3).await.0, ids(0..3));
    committer.commit(&effects).await.unwrap();
    assert_eq!(all_ids(&broker, "out").await, ids(0..3));
}

#[tokio::test]
async fn an_output_that_is_no_stream_is_refused_before_anything_is_written() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..1).await;
    server.cli(&["SET", "out", "x"]);
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, _source) = open(&broker, &spec).await;
    let effects = covering(&offsets, vec![output("fine", 0..1), output("out", 0..1)]);
    assert_kind(committer.commit(&effects).await, BrokerErrorKind::Invalid, "the key `out` holds a string");
    assert_eq!(server.cli(&["EXISTS", "fine"]), "0");
    let (_committer, mut source) = open(&broker, &spec).await;
    assert_eq!(next(&mut *source, 1).await.0, ids(0..1));
}

/// Redis rolls nothing back: should someone replace a stream right before a commit, the operator is told what is missing.
#[tokio::test]
async fn an_output_that_stops_being_a_stream_is_told() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..2).await;
    let (mut committer, _source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
    let outputs = |id: usize| vec![output("fine", id..id + 1), output("out", id..id + 1)];
    committer.commit(&covering(&offsets[..1], outputs(0))).await.unwrap();
    // Asked for after the commit, so that both are known for the next second.
    broker.topic(&"out".parse().unwrap()).await.unwrap();
    server.cli(&["SET", "out", "x"]);
    let told = committer.commit(&covering(&offsets[1..], outputs(1))).await;
    assert_kind(
        told,
        BrokerErrorKind::Invalid,
        "answered `WRONGTYPE Operation against a key holding the wrong kind of value` for bus/out",
    );
    assert_eq!(all_ids(&broker, "fine").await, ids(0..2));
}

#[tokio::test]
async fn a_destroyed_group_is_made_again_at_the_cursor() {
    let server = RedisServer::start(&[]);
    let (broker, again) = (server.broker().await, server.broker().await);
    let offsets = publish(&broker, "in", 0..4).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, mut source) = open(&broker, &spec).await;
    next(&mut *source, 4).await;
    server.cli(&["XGROUP", "DESTROY", "in", "pipe"]);
    committer.commit(&covering(&offsets[..2], vec![output("out", 0..2)])).await.unwrap();
    let groups = server.cli(&["XINFO", "GROUPS", "in"]);
    assert!(groups.contains(&format!("last-delivered-id\n{}", offsets[1])), "{groups}");
    // And when the process ends before it can be made again.
    server.cli(&["XGROUP", "DESTROY", "in", "pipe"]);
    let (_committer, mut source) = open(&again, &spec).await;
    assert_eq!(next(&mut *source, 2).await.0, ids(2..4));
    assert_eq!(all_ids(&broker, "out").await, ids(0..2));
}

/// Nothing that came after the flush is passed over, even by a lane that started at the latest event.
#[tokio::test]
async fn a_flush_fences_the_lane_and_what_comes_after_it_is_read() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let before = publish(&broker, "in", 0..2).await;
    let spec = synapse_core::broker::LaneSpec { start: Start::Latest, ..lane("in", ReadMode::Cursor) };
    let (mut committer, mut source) = open(&broker, &spec).await;
    assert!(poll(&mut *source, GLANCE).await.0.is_empty());
    server.cli(&["FLUSHALL"]);
    publish(&broker, "in", 2..4).await;
    let stale = covering(&before, vec![output("out", 0..2)]);
    assert_kind(committer.commit(&stale).await, BrokerErrorKind::Fenced, "");
    assert_eq!(server.cli(&["EXISTS", "out"]), "0");
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (read, offsets, _) = next(&mut *source, 2).await;
    assert_eq!(read, ids(2..4));
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    // A lane whose whole stream vanished can be opened before anyone adds to it.
    server.cli(&["FLUSHALL"]);
    let (_committer, mut source) = open(&broker, &spec).await;
    publish(&broker, "in", 4..5).await;
    assert_eq!(next(&mut *source, 1).await.0, ids(4..5));
}

#[tokio::test]
async fn a_flush_under_a_waiting_reader_does_not_end_it() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..1).await;
    let mut source = broker.read(&"in".parse().unwrap(), 0, ReadFrom::Latest).await.unwrap();
    let flushed = async {
        while !server.cli(&["CLIENT", "LIST"]).contains("cmd=xread") {
            tokio::task::yield_now().await;
        }
        server.cli(&["FLUSHALL"]);
        publish(&broker, "in", 1..2).await;
    };
    let (read, ()) = tokio::join!(next(&mut *source, 1), flushed);
    assert_eq!(read.0, ids(1..2));
}

async fn poll_fails(source: &mut dyn Source) -> BrokerError {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Err(error) = source.poll(LIMIT, GLANCE).await {
            return error;
        }
    }
    panic!("the source should have failed within {PATIENCE:?}");
}

/// The server is killed between commits and comes back with what was acknowledged; every event's output is there once.
#[tokio::test]
async fn a_killed_server_loses_nothing_acknowledged() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let broker = server.broker().await;
    let spec = lane("in", ReadMode::Cursor);
    publish(&broker, "in", 0..50).await;
    for round in 0..3 {
        let (mut committer, mut source) = open(&broker, &spec).await;
        let (read, offsets, _) = next(&mut *source, 50 - round * 10).await;
        assert_eq!(read, ids(round * 10..50));
        let (first, last) = (round * 10, round * 10 + 10);
        committer.commit(&covering(&offsets[..10], vec![output("out", first..last)])).await.unwrap();
        server.kill();
        let lost = committer.commit(&covering(&offsets[10..20], vec![output("out", last..last + 10)])).await;
        assert_kind(lost, BrokerErrorKind::Unavailable, "");
        assert_kind::<()>(Err(poll_fails(&mut *source).await), BrokerErrorKind::Unavailable, "the connection");
        assert_kind(broker.publish(&output("in", 0..1)).await, BrokerErrorKind::Unavailable, "");
        assert_kind(broker.topics().await, BrokerErrorKind::Unavailable, "");
        server.start_again();
    }
    assert_eq!(all_ids(&broker, "out").await, ids(0..30));
    publish(&broker, "in", 50..51).await;
    let (_committer, mut source) = open(&broker, &spec).await;
    assert_eq!(next(&mut *source, 21).await.0, ids(30..51));
}

/// More than are copied until the last crash.
const EVENTS: usize = 50_000;

/// The server is killed while commits run; whatever a commit's answer was, no output is missing and none is there twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_a_crash_cuts_off_happened_whole_or_not_at_all() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..EVENTS).await;
    let spec = lane("in", ReadMode::Cursor);
    for round in 0..4 {
        let (mut committer, mut source) = open(&broker, &spec).await;
        let copied = tokio::spawn(async move {
            let limit = synapse_core::broker::BatchLimit { events_max: 20, ..LIMIT };
            loop {
                let Ok(batch) = source.poll(limit, GLANCE).await else { return };
                let ids: Vec<usize> = batch.events.events().map(|event| event.id().parse().unwrap()).collect();
                let outputs = ids.iter().map(|&id| output("out", id..id + 1)).collect();
                if committer.commit(&covering(&batch.offsets, outputs)).await.is_err() {
                    return;
                }
            }
        });
        let length = || server.cli(&["XLEN", "out"]).parse::<usize>().unwrap();
        let (before, started) = (length(), Instant::now());
        while length() < before + 100 * (round + 1) {
            assert!(started.elapsed() < PATIENCE, "{} of {EVENTS} were copied", length());
        }
        server.kill();
        copied.await.unwrap();
        server.start_again();
    }
    let (mut committer, mut source) = open(&broker, &spec).await;
    let done = all_ids(&broker, "out").await.len();
    assert!((1000..EVENTS).contains(&done), "{done}");
    let (rest, offsets, _) = next(&mut *source, EVENTS - done).await;
    assert_eq!(rest, ids(done..EVENTS));
    committer.commit(&covering(&offsets, vec![output("out", done..EVENTS)])).await.unwrap();
    assert_eq!(all_ids(&broker, "out").await, ids(0..EVENTS));
}
