//! What the tests say to Kafka.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use synapse_brokers::kafka::{KafkaBroker, KafkaOptions};
use synapse_core::broker::{BatchLimit, LaneKey, LaneSpec, Reading};
use synapse_core::share::{Membership, Share};
use synapse_core::spec::{Encoding, ReadMode, Start, TopicSpec};
use synapse_core::{
    Broker, Committer, Effects, Event, Offset, Output, Source, SourceBatch, TopicName, TopicPartition, TopicPath,
};
use synapse_test_servers::kafka::Kafka;
use tokio::sync::watch;

/// Long enough for anything that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A broker `kafka` of a host, on the Kafka that all tests share.
pub(crate) fn broker(host: &str) -> KafkaBroker {
    broker_with(host, |_| {})
}

pub(crate) fn broker_with(host: &str, change: impl FnOnce(&mut KafkaOptions)) -> KafkaBroker {
    let mut options = KafkaOptions {
        host_id: host.to_owned(),
        lease: Duration::from_secs(6),
        ..KafkaOptions::new(Kafka::shared().bootstrap())
    };
    change(&mut options);
    KafkaBroker::new("kafka".parse().unwrap(), options).unwrap()
}

/// A name that nobody used before.
pub(crate) fn fresh(what: &str) -> String {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{what}-{:x}", since_epoch.as_nanos())
}

pub(crate) async fn topic(broker: &KafkaBroker, partitions: u32) -> TopicName {
    let name: TopicName = fresh("t").parse().unwrap();
    let spec = TopicSpec { partitions: partitions.try_into().unwrap(), ..TopicSpec::default() };
    broker.ensure_topic(&name, &spec).await.unwrap();
    name
}

pub(crate) fn path(topic: &TopicName) -> TopicPath {
    format!("kafka/{topic}").parse().unwrap()
}

pub(crate) fn at(topic: &TopicName, partition: u32) -> TopicPartition {
    TopicPartition { topic: path(topic), partition }
}

pub(crate) fn share(pipeline: &str, topic: &TopicName) -> Share {
    Share { pipeline: pipeline.parse().unwrap(), topics: vec![topic.clone()], read: ReadMode::Cursor }
}

/// A host among those that share a pipeline, whose lanes end as soon as they should.
pub(crate) struct Host {
    share: watch::Receiver<Option<Vec<u32>>>,
    following: tokio::task::JoinHandle<()>,
}

impl Host {
    pub(crate) async fn join(broker: &KafkaBroker, pipeline: &str, topic: &TopicName) -> Self {
        let mut member = broker.join(&share(pipeline, topic)).await.unwrap();
        let (tell, told) = watch::channel(None);
        let following = tokio::spawn(async move {
            loop {
                let share = member.changed().await.unwrap();
                tell.send_replace(Some(share.into_iter().map(|at| at.partition).collect()));
            }
        });
        Self { share: told, following }
    }

    /// Its partitions, once it has this many.
    pub(crate) async fn has(&mut self, count: usize) -> Vec<u32> {
        let there = |share: &Option<Vec<u32>>| share.as_ref().is_some_and(|share| share.len() == count);
        let share = tokio::time::timeout(PATIENCE, self.share.wait_for(there)).await;
        share.unwrap_or_else(|_| panic!("no share of {count} in {PATIENCE:?}")).unwrap().clone().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// What a member is told next.
pub(crate) async fn told(member: &mut Box<dyn Membership>) -> Vec<u32> {
    let told = tokio::time::timeout(PATIENCE, member.changed()).await.expect("the share changes").unwrap();
    told.into_iter().map(|at| at.partition).collect()
}

pub(crate) fn lane(pipeline: &str, topic: &TopicName, partition: u32) -> LaneSpec {
    let key = LaneKey { pipeline: pipeline.parse().unwrap(), partition: at(topic, partition) };
    LaneSpec { key, start: Start::Earliest, read: ReadMode::Cursor }
}

/// Opens a lane and the source that it reads from.
pub(crate) async fn open(broker: &KafkaBroker, spec: &LaneSpec) -> (Box<dyn Committer>, Box<dyn Source>) {
    let lane = broker.open_lane(spec).await.unwrap();
    let Reading::From(from) = lane.reading else { panic!("readers are shared") };
    let at = &spec.key.partition;
    (lane.committer, broker.read(&at.topic.topic, at.partition, from).await.unwrap())
}

pub(crate) fn event(id: usize) -> Event {
    Event {
        id: id.to_string(),
        source: "/test".to_owned(),
        kind: "test".to_owned(),
        partition_key: Some(id.to_string()),
        data: b"x".to_vec(),
        ..Event::default()
    }
}

pub(crate) fn output(topic: &TopicName, ids: std::ops::Range<usize>) -> Output {
    let events: Vec<Event> = ids.map(event).collect();
    Output { topic: path(topic), encoding: Encoding::default(), events: std::sync::Arc::new(events.iter().collect()) }
}

pub(crate) fn covering(offsets: &[Offset]) -> Effects {
    Effects { covered: offsets.to_vec(), ..Effects::default() }
}

pub(crate) async fn poll(source: &mut dyn Source) -> SourceBatch {
    source.poll(BatchLimit { events_max: 10_000, bytes_max: 64 << 20 }, PATIENCE).await.unwrap()
}

/// The ids of the next `count` events.
pub(crate) async fn next_ids(source: &mut dyn Source, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let batch = poll(source).await;
        assert!(!batch.is_empty(), "only {} of {count} events came", ids.len());
        ids.extend(batch.events.events().map(|event| event.id().to_owned()));
    }
    ids
}

/// Produces a record as any other tool would.
pub(crate) fn produce(topic: &TopicName, key: Option<&str>, value: &[u8], headers: &[(&str, &[u8])]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", Kafka::shared().bootstrap()).create().unwrap();
    let mut all = OwnedHeaders::new();
    for (name, value) in headers {
        all = all.insert(Header { key: name, value: Some(*value) });
    }
    let mut record = BaseRecord::to(topic.as_str()).partition(0).payload(value).headers(all);
    record.key = key;
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}
