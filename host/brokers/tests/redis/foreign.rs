//! What other tools write, and what they find: native streams, every encoding in use, garbage.

use std::time::Instant;

use synapse_core::broker::{Boundary, BrokerErrorKind, Ending};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, TopicSpec};
use synapse_core::{Broker, Effects, Offset, Output};

use crate::support::{
    GLANCE, LIMIT, PATIENCE, RedisServer, all_ids, assert_kind, covering, ids, lane, next, open, output, path, poll,
    publish,
};

#[tokio::test]
async fn entries_of_every_encoding_are_events_and_garbage_is_kept() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let add = |fields: &[&str]| server.cli(&[&["XADD", "model-events", "*"], fields].concat());
    let fields = add(&["event", "model-ready", "source", "helox", "model_name", "m", "accuracy", "0.93"]);
    add(&["ce_specversion", "1.0", "ce_id", "7", "ce_source", "/s", "ce_type", "t", "data", "x"]);
    add(&["event_type", "task-created", "sender", "a", "recipient", "b", "payload", "{}"]);
    add(&["payload", r#"{"event":"training-started","source":"helox"}"#]);
    let past = "2020-01-01T00:00:00.000000000Z";
    let expired = add(&["event_type", "t", "sender", "a", "payload", "{}", "timestamp", past, "ttl_sec", "5"]);
    let garbage = add(&["colour", "blue"]);
    let mut source = broker.read(&"model-events".parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
    let batch = source.poll(LIMIT, PATIENCE).await.unwrap();
    let kinds: Vec<_> = batch.events.events().map(|event| event.kind()).collect();
    assert_eq!(kinds, ["model-ready", "t", "task-created", "training-started"]);
    assert_eq!(batch.events.event(1).id(), "7");
    assert_eq!(batch.events.event(0).source(), "helox");
    assert_eq!(batch.offsets[0], fields.parse::<Offset>().unwrap());
    assert_eq!(batch.expired, [expired.parse::<Offset>().unwrap()]);
    assert_eq!(batch.undecodable.len(), 1);
    assert_eq!(batch.undecodable[0].offset, garbage.parse::<Offset>().unwrap());
    assert_eq!(batch.undecodable[0].bytes, br#"{"colour":"blue"}"#);
    assert!(batch.undecodable[0].reason.contains("`colour`"), "{}", batch.undecodable[0].reason);
    assert_eq!((batch.covered().count(), batch.last()), (6, Some(garbage.parse().unwrap())));
}

#[tokio::test]
async fn sinks_for_older_consumers_are_written_as_fields() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..1).await;
    let (mut committer, _source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
    let old = Output { encoding: Encoding::Fields, ..output("old", 0..1) };
    committer.commit(&covering(&offsets, vec![old.clone(), output("new", 0..1)])).await.unwrap();
    broker.publish(&old).await.unwrap();
    let old = server.cli(&["XRANGE", "old", "-", "+"]);
    assert!(old.contains("event\ntest") && !old.contains("ce_"), "{old}");
    assert_eq!(server.cli(&["XLEN", "old"]), "2");
    assert!(server.cli(&["XRANGE", "new", "-", "+"]).contains("ce_type\ntest"));
}

#[tokio::test]
async fn native_streams_are_topics_and_other_keys_are_not() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    server.cli(&["XADD", "native", "*", "event", "e", "source", "s"]);
    server.cli(&["XADD", "not a topic", "*", "a", "b"]);
    server.cli(&["SET", "text", "x"]);
    let offsets = publish(&broker, "ours", 0..1).await;
    let (mut committer, _source) = open(&broker, &lane("ours", ReadMode::Cursor)).await;
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    let names: Vec<String> = broker.topics().await.unwrap().into_iter().map(|topic| topic.name.to_string()).collect();
    assert_eq!(names, ["native", "ours"]);
    let native = broker.topic(&"native".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((native.partitions.len(), native.partitions[0].events), (1, 1));
    assert!(native.partitions[0].bytes.unwrap() > 0);
    let wrong = broker.topic(&"text".parse().unwrap()).await;
    assert_kind(wrong, BrokerErrorKind::Invalid, "the key `text` holds a string, not a stream");
    let own = broker.publish(&output("synapse:mine", 0..1)).await;
    assert_kind(own, BrokerErrorKind::Invalid, "kept for Synapse itself");
}

/// The stream that a topic had before it got partitions keeps its entries and its groups' cursors.
#[tokio::test]
async fn a_topic_that_grows_takes_its_stream_along() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..3).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, source) = open(&broker, &spec).await;
    committer.commit(&covering(&offsets[..1], Vec::new())).await.unwrap();
    drop((committer, source));
    let two = TopicSpec { partitions: 2.try_into().unwrap(), ..TopicSpec::default() };
    let info = broker.ensure_topic(&"in".parse().unwrap(), &two).await.unwrap();
    assert_eq!(info.partitions.iter().map(|partition| partition.events).collect::<Vec<_>>(), [3, 0]);
    assert_eq!(server.cli(&["EXISTS", "in", "in:{0}"]), "1");
    let (_committer, mut source) = open(&broker, &spec).await;
    assert_eq!(next(&mut *source, 2).await.0, ids(1..3));
    let names: Vec<_> = broker.topics().await.unwrap().into_iter().map(|topic| topic.name.to_string()).collect();
    assert_eq!(names, ["in"]);
}

/// The lane notices, whether it knows of the new names already or not, and its effects happen once.
#[tokio::test]
async fn a_topic_that_grows_under_a_lane_has_it_opened_again() {
    let server = RedisServer::start(&[]);
    for (name, grows_here) in [("known", true), ("unknown", false)] {
        let (broker, other) = (server.broker().await, server.peer("other").await);
        let topic = name.parse().unwrap();
        let offsets = publish(&broker, name, 0..3).await;
        let spec = lane(name, ReadMode::Cursor);
        let (mut committer, mut source) = open(&broker, &spec).await;
        next(&mut *source, 3).await;
        let out = format!("{name}-out");
        let boundary = Some(Boundary { from: offsets[0], stages: Vec::new() });
        let effects = covering(&offsets[..1], vec![output(&out, 0..1)]);
        committer.commit(&Effects { boundary, ..effects }).await.unwrap();
        let two = TopicSpec { partitions: 2.try_into().unwrap(), ..TopicSpec::default() };
        let grow = if grows_here { &broker } else { &other }.ensure_topic(&topic, &two);
        let commit = async {
            while server.cli(&["EXISTS", name]) == "1" {
                tokio::task::yield_now().await;
            }
            committer.commit(&covering(&offsets[1..2], vec![output(&out, 1..2)])).await
        };
        let (grown, told) = tokio::join!(grow, commit);
        assert_eq!(grown.unwrap().partitions.len(), 2);
        assert_ne!(told.unwrap_err().kind.ending(), Ending::Stop);
        // Whoever waits for events is told, too.
        let started = Instant::now();
        let waited = loop {
            match source.poll(LIMIT, GLANCE).await {
                Ok(batch) => assert!(batch.is_empty() && started.elapsed() < PATIENCE, "{batch:?}"),
                told => break told,
            }
        };
        assert_kind(waited, BrokerErrorKind::Unavailable, "has another name");
        drop((committer, source));
        assert_eq!(server.cli(&["EXISTS", name]), "0");
        assert_eq!(broker.boundaries(&spec.key).await.unwrap().len(), 1, "what is known of the lane moves along");

        let (mut committer, mut source) = open(&broker, &spec).await;
        let done = all_ids(&broker, &out).await.len();
        let (read, offsets, _) = next(&mut *source, 3 - done).await;
        assert_eq!(read, ids(done..3));
        committer.commit(&covering(&offsets, vec![output(&out, done..3)])).await.unwrap();
        assert_eq!(all_ids(&broker, &out).await, ids(0..3));
    }
}

/// Another host goes on publishing and does not know for a moment: nothing that was acknowledged is passed over.
#[tokio::test]
async fn what_is_published_while_a_topic_grows_is_read() {
    let server = RedisServer::start(&[]);
    let (broker, other) = (server.broker().await, server.peer("other").await);
    publish(&broker, "in", 0..1).await;
    let topic = "in".parse().unwrap();
    let three = TopicSpec { partitions: 3.try_into().unwrap(), ..TopicSpec::default() };
    let mut published = 1;
    let growing = async {
        let grown = other.ensure_topic(&topic, &three).await.unwrap();
        assert_eq!(grown.partitions.len(), 3);
    };
    tokio::pin!(growing);
    let mut grown = false;
    while !grown || published % 100 > 0 {
        tokio::select! {
            () = &mut growing, if !grown => grown = true,
            _ = publish(&broker, "in", published..published + 1) => published += 1,
        }
    }
    let mut read = Vec::new();
    for partition in 0..3 {
        let kept = broker.topic(&topic).await.unwrap().unwrap().partitions[partition as usize].events;
        let mut source = broker.read(&topic, partition, ReadFrom::Earliest).await.unwrap();
        read.extend(next(&mut *source, kept as usize).await.0);
    }
    read.sort_by_key(|id| id.parse::<usize>().unwrap());
    read.dedup();
    assert_eq!(read, ids(0..published));
    assert_eq!(server.cli(&["EXISTS", "in"]), "0");
}

/// The host that made a topic grow died before it swept: whoever makes sure of the topic next does.
#[tokio::test]
async fn what_was_left_under_the_old_name_is_swept_later() {
    let server = RedisServer::start(&[]);
    let (broker, other) = (server.broker().await, server.peer("other").await);
    let (topic, late) = ("in".parse().unwrap(), "late".parse().unwrap());
    let three = TopicSpec { partitions: 3.try_into().unwrap(), ..TopicSpec::default() };
    broker.ensure_topic(&topic, &three).await.unwrap();
    publish(&broker, "late", 0..2).await;
    server.cli(&["RENAME", "late", "in"]);
    other.ensure_topic(&topic, &three).await.unwrap();
    assert_eq!(server.cli(&["EXISTS", "in"]), "0");
    assert_eq!(all_ids(&broker, "in").await, ids(0..2));
    assert!(broker.topic(&late).await.unwrap().is_none());
}

/// The cursor is the group's: who moves it moves the lane.
#[tokio::test]
async fn an_operator_may_move_the_cursor() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..5).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, source) = open(&broker, &spec).await;
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    drop((committer, source));
    server.cli(&["XGROUP", "SETID", "in", "pipe", &offsets[1].to_string()]);
    let (_committer, mut source) = open(&broker, &spec).await;
    assert_eq!(next(&mut *source, 3).await.0, ids(2..5));
}

#[tokio::test]
async fn large_and_small_events_share_a_reply() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let event = |id: usize, size: usize| synapse_core::Event {
        id: id.to_string(),
        source: "/s".to_owned(),
        kind: "k".to_owned(),
        data: vec![b'x'; size],
        ..Default::default()
    };
    let sizes = [1, 3 << 20, 10, 0, 300_000, 300_000, 5];
    let all: Vec<_> = sizes.iter().enumerate().map(|(id, &size)| event(id, size)).collect();
    let all = Output {
        topic: path("in"),
        encoding: Encoding::CloudEvents,
        events: std::sync::Arc::new(all.iter().collect()),
    };
    broker.publish(&all).await.unwrap();
    let mut source = broker.read(&"in".parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < sizes.len() {
        let batch = source.poll(synapse_core::broker::BatchLimit::default(), PATIENCE).await.unwrap();
        assert!(batch.events.bytes().len() <= 64 << 10 || batch.events.len() == 1);
        seen.extend(batch.events.events().map(|event| event.data().len()));
    }
    assert_eq!(seen, sizes);
    assert!(poll(&mut *source, std::time::Duration::ZERO).await.0.is_empty());
}
