//! Records of other producers, and topics that others change.

use std::sync::Arc;

use synapse_brokers::kafka::{KafkaBroker, KafkaOptions};
use synapse_core::broker::BrokerErrorKind;
use synapse_core::spec::{ReadFrom, Retention, TopicSpec};
use synapse_core::{Broker, Effects, Event, Output, TopicName};
use synapse_test_servers::kafka::Kafka;

use crate::support::*;

#[tokio::test]
async fn every_encoding_is_read_and_what_is_none_keeps_its_bytes() {
    let broker = broker("one");
    let topic = topic(&broker, 1).await;
    let binary: &[(&str, &[u8])] = &[
        ("ce_specversion", b"1.0"),
        ("ce_id", b"b"),
        ("ce_source", b"/s"),
        ("ce_type", b"binary"),
        ("ce_time", b"2026-01-01T00:00:00Z"),
        ("ce_tenant", b"helox"),
        ("content-type", b"application/json"),
        ("unrelated", b"\xff"),
    ];
    produce(&topic, Some("key"), b"{}", binary);
    let structured = br#"{"specversion":"1.0","id":"s","source":"/s","type":"structured","data":{"n":1}}"#;
    produce(&topic, None, structured, &[("content-type", b"application/cloudevents+json; charset=utf-8")]);
    produce(&topic, None, br#"{"event":"model-ready","source":"helox","model_name":"m"}"#, &[]);
    produce(&topic, None, b"\xffgarbage", &[]);
    let mut source = broker.read(&topic, 0, ReadFrom::Earliest).await.unwrap();
    let (mut events, mut undecodable) = (Vec::new(), Vec::new());
    while events.len() + undecodable.len() < 4 {
        let batch = poll(&mut *source).await;
        events.extend(batch.events.events().map(|event| event.to_event()));
        undecodable.extend(batch.undecodable);
    }
    let kinds: Vec<_> = events.iter().map(|event| (event.id.clone(), event.kind.as_str())).collect();
    let foreign = format!("{topic}/2");
    assert_eq!(kinds, [("b".to_owned(), "binary"), ("s".to_owned(), "structured"), (foreign, "model-ready")]);
    assert_eq!(events[0].partition_key.as_deref(), Some("key"));
    assert_eq!(events[0].attributes, [("tenant".to_owned(), "helox".to_owned())]);
    assert_eq!(undecodable[0].bytes, b"\xffgarbage");
}

#[tokio::test]
async fn what_was_deleted_before_it_was_read_is_counted() {
    let broker = broker("one");
    let topic = topic(&broker, 1).await;
    broker.publish(&output(&topic, 0..300)).await.unwrap();
    let mut behind = broker.read(&topic, 0, ReadFrom::At(synapse_core::Offset::Number(10))).await.unwrap();
    let kept = TopicSpec { retention: Retention { events: Some(100), ..Retention::default() }, ..TopicSpec::default() };
    broker.ensure_topic(&topic, &kept).await.unwrap();
    // The bound is looked after a moment after events were added.
    broker.publish(&output(&topic, 300..500)).await.unwrap();
    let earliest = async || broker.topic(&topic).await.unwrap().unwrap().partitions[0].earliest;
    let begun = std::time::Instant::now();
    while earliest().await != Some(synapse_core::Offset::Number(400)) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", earliest().await);
    }
    let mut late = broker.read(&topic, 0, ReadFrom::At(synapse_core::Offset::Number(10))).await.unwrap();
    let batch = poll(&mut *late).await;
    assert_eq!(batch.lost_to_trim, 390);
    // What was fetched before it was deleted is still handed out; nothing comes twice.
    let mut seen = Vec::new();
    let mut lost = 0;
    while seen.last() != Some(&499) {
        let batch = poll(&mut *behind).await;
        lost += batch.lost_to_trim;
        seen.extend(batch.events.events().map(|event| event.id().parse::<usize>().unwrap()));
    }
    assert!(seen.is_sorted_by(|one, two| one < two), "{seen:?}");
    assert_eq!(seen.len() as u64 + lost, 490);
}

#[tokio::test]
async fn a_place_behind_the_end_is_an_error_that_says_what_to_do() {
    let broker = broker("one");
    let topic = topic(&broker, 1).await;
    broker.publish(&output(&topic, 0..3)).await.unwrap();
    let mut source = broker.read(&topic, 0, ReadFrom::At(synapse_core::Offset::Number(50))).await.unwrap();
    let error = source.poll(Default::default(), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Corrupt);
    assert!(error.message.contains("offset 50 lies behind its end, 3"), "{error}");
}

/// Runs Kafka's own tool for the settings of a topic.
fn settings(topic: &TopicName, arguments: &[&str]) -> String {
    let bootstrap = Kafka::shared().bootstrap();
    let which = ["--bootstrap-server", &bootstrap, "--entity-type", "topics", "--entity-name", topic.as_str()];
    Kafka::shared().tool("kafka.admin.ConfigCommand", &[&which[..], arguments].concat()).unwrap()
}

#[tokio::test]
async fn a_topic_of_others_keeps_its_own_settings() {
    let broker = broker("one");
    let topic = topic(&broker, 1).await;
    settings(&topic, &["--alter", "--add-config", "segment.ms=123456789"]);
    let kept = TopicSpec {
        retention: Retention { age: Some(std::time::Duration::from_secs(3600)), bytes: Some(1 << 30), events: None },
        ..TopicSpec::default()
    };
    broker.ensure_topic(&topic, &kept).await.unwrap();
    broker.ensure_topic(&topic, &TopicSpec::default()).await.unwrap();
    let described = settings(&topic, &["--describe"]);
    for setting in ["segment.ms=123456789", "retention.ms=3600000", "retention.bytes=1073741824"] {
        assert!(described.contains(setting), "{setting} in {described}");
    }
}

#[tokio::test]
async fn an_event_too_large_for_its_topic_is_told_and_holds_no_reader_up() {
    let broker = broker("one");
    let (from, to) = (topic(&broker, 2).await, topic(&broker, 4).await);
    settings(&to, &["--alter", "--add-config", "max.message.bytes=2000000"]);
    let pipeline = fresh("p");
    let (mut one, _source) = open(&broker, &lane(&pipeline, &from, 0)).await;
    let (mut other, _source) = open(&broker, &lane(&pipeline, &from, 1)).await;
    let large = Event { data: vec![b'x'; 3_000_000], ..event(0) };
    // What comes before it is written by then; of what follows, much is still under way when the transaction is lost.
    let mut events: Vec<Event> = (1..80_000).map(event).collect();
    events.insert(40_000, large.clone());
    let output_of = |events: Vec<Event>| Output { events: Arc::new(events.iter().collect()), ..output(&to, 0..0) };
    let lost = Effects { outputs: vec![output_of(events)], ..Effects::default() };
    let error = one.commit(&lost).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Invalid, "{error}");
    assert!(error.message.contains("larger than the topic takes"), "{error}");
    // Nobody opens the first lane again, and still its transaction is given up.
    let kept = Effects { outputs: vec![output_of(vec![Event { data: b"x".to_vec(), ..large }])], ..Effects::default() };
    other.commit(&kept).await.unwrap();
    let partition = broker.partition_of(b"0", 4);
    let mut source = broker.read(&to, partition, ReadFrom::Earliest).await.unwrap();
    let seen = tokio::time::timeout(PATIENCE / 3, next_ids(&mut *source, 1)).await;
    assert_eq!(seen.expect("readers are not held up"), ["0"]);
}

#[tokio::test]
async fn names_and_properties_that_cannot_be_say_why() {
    let broker = broker("one");
    for (name, why) in [("a:b", "no `:`"), ("synapse.x", "kept for Synapse itself"), ("..", "no topic of this name")] {
        let error = broker.ensure_topic(&name.parse().unwrap(), &TopicSpec::default()).await.unwrap_err();
        assert_eq!(error.kind, BrokerErrorKind::Invalid);
        assert!(error.message.contains(why), "{error}");
    }
    let refused = |name: &str, value: &str| {
        let mut options = KafkaOptions::new("127.0.0.1:1");
        options.client.insert(name.to_owned(), value.to_owned());
        let error = KafkaBroker::new("kafka".parse().unwrap(), options).err().unwrap();
        assert_eq!(error.kind, BrokerErrorKind::Invalid);
        error.message
    };
    assert!(refused("delivery.report.only.error", "true").contains("those reports that it needs"));
    assert!(refused("group.id", "x").contains("a pipeline's group has the pipeline's name"));
    assert!(refused("no.such.property", "s3cret").contains("no.such.property"));
    assert!(!refused("no.such.property", "s3cret").contains("s3cret"));
}

#[tokio::test]
async fn a_cluster_that_is_away_is_told_as_away() {
    let options = KafkaOptions { timeout: std::time::Duration::from_secs(2), ..KafkaOptions::new("127.0.0.1:1") };
    let broker = KafkaBroker::new("kafka".parse().unwrap(), options).unwrap();
    let error = broker.health().await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Unavailable);
    assert!(error.message.contains("127.0.0.1:1"), "{error}");
    let begun = std::time::Instant::now();
    let away = loop {
        if let Some(away) = broker.away() {
            break away;
        }
        assert!(begun.elapsed() < PATIENCE, "it is not noticed");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(away.starts_with("no server at 127.0.0.1:1 could be reached for") && away.contains("refused"), "{away}");
    let error = broker.publish(&output(&"t".parse().unwrap(), 0..1)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Unreachable, "nothing was sent");
}
