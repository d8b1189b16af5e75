//! A producer that waits for all replicas, and a reader of committed transactions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::{ANSWER_WITHIN, Reader, Topic, receipt};
use crate::checker::{Kind, Receipt};
use crate::load::Send;

/// How long a producer waits for all replicas before it gives a batch up.
const DELIVERED_WITHIN: Duration = Duration::from_secs(10);
/// How long one look for records takes.
const POLL: Duration = Duration::from_millis(100);
/// How long one look for deliveries takes, whatever comes meanwhile.
const DELIVERIES: Duration = Duration::from_millis(1);

/// Counts what was delivered, and what was not.
#[derive(Clone, Default)]
struct Deliveries {
    made: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
}

impl Deliveries {
    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    fn all(&self) -> usize {
        self.made() + self.failed.load(Ordering::Relaxed)
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        let counter = if delivered.is_ok() { &self.made } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) fn sender(bootstrap: &str, topic: &Topic, kind: fn(&Receipt) -> Kind) -> Send {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.name.clone());
    let (mut producer, deliveries) = (None, Deliveries::default());
    Box::new(move |receipts| {
        if producer.is_none() {
            producer = make(&bootstrap, &deliveries).ok();
        }
        let Some(producer) = &producer else { return false };
        let (made, all) = (deliveries.made(), deliveries.all());
        let taken = receipts.iter().filter(|receipt| produce(producer, &topic, receipt, kind)).count();
        // Whatever is not delivered in time is given up and told, so nothing of it comes later.
        while deliveries.all() < all + taken {
            producer.poll(DELIVERIES);
        }
        deliveries.made() == made + receipts.len()
    })
}

fn make(bootstrap: &str, deliveries: &Deliveries) -> Result<BaseProducer<Deliveries>> {
    let producer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "0")
        .set("message.timeout.ms", DELIVERED_WITHIN.as_millis().to_string())
        .create_with_context(deliveries.clone())?;
    Ok(producer)
}

fn produce(producer: &BaseProducer<Deliveries>, topic: &str, receipt: &Receipt, kind: fn(&Receipt) -> Kind) -> bool {
    let Receipt { key, number } = receipt;
    let (id, data) = (format!("{key}/{number}"), format!("{{\"n\":{number}}}"));
    let header = |headers: OwnedHeaders, (key, value)| headers.insert(Header { key, value: Some(value) });
    let attributes = [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "/load"),
        ("ce_type", kind(receipt).name()),
        ("content-type", "application/json"),
    ];
    let headers = attributes.into_iter().fold(OwnedHeaders::new(), header);
    producer.send(BaseRecord::to(topic).key(key).payload(&data).headers(headers)).is_ok()
}

/// Reads every partition, as far as transactions on it have ended.
pub(super) struct RecordReader {
    consumer: Option<BaseConsumer>,
    bootstrap: String,
    topic: Topic,
    /// Partitions that had nothing more at the last look.
    at_end: BTreeSet<i32>,
    /// What was read when reading failed.
    kept: Vec<Receipt>,
}

impl RecordReader {
    pub(super) fn new(bootstrap: &str, topic: &Topic) -> Self {
        Self {
            consumer: None,
            bootstrap: bootstrap.to_owned(),
            topic: topic.clone(),
            at_end: BTreeSet::new(),
            kept: Vec::new(),
        }
    }

    fn open(&self) -> Result<BaseConsumer> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            // Named because it must be; the group is never joined.
            .set("group.id", "receipts")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            // An end is told once the server has answered, so it should not wait for more.
            .set("fetch.wait.max.ms", "10")
            .set("auto.offset.reset", "earliest")
            .create()?;
        let mut places = TopicPartitionList::new();
        for partition in 0..self.topic.partitions {
            places.add_partition_offset(&self.topic.name, i32::try_from(partition)?, Offset::Beginning)?;
        }
        consumer.assign(&places)?;
        Ok(consumer)
    }

    /// Until every partition has said that there is no more.
    fn read_records(&mut self) -> Result<()> {
        if self.consumer.is_none() {
            self.consumer = Some(self.open()?);
        }
        let consumer = self.consumer.as_ref().context("it was made just now")?;
        let begun = Instant::now();
        loop {
            let ended = self.at_end.len() == self.topic.partitions as usize;
            match consumer.poll(if ended { Duration::ZERO } else { POLL }) {
                Some(Ok(record)) => {
                    self.at_end.remove(&record.partition());
                    let headers = record.headers().context("a record without headers")?;
                    let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
                    let id = std::str::from_utf8(id.context("a record without an id")?)?;
                    self.kept.push(receipt(id, &serde_json::from_slice(record.payload().unwrap_or_default())?)?);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.at_end.insert(partition);
                }
                // Servers come and go; librdkafka finds them again.
                Some(Err(_)) => {}
                None if ended => return Ok(()),
                None => {}
            }
            ensure!(ended || begun.elapsed() < ANSWER_WITHIN, "the topic `{}` has no end", self.topic.name);
        }
    }
}

impl Reader for RecordReader {
    fn read(&mut self) -> Result<Vec<Receipt>> {
        self.read_records()?;
        Ok(std::mem::take(&mut self.kept))
    }
}
