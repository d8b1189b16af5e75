//! Writing records: events become records, and what becomes of those that were sent together is told at once.
//!
//! This module does not know transactions, nor what follows when a delivery fails.

use std::collections::HashMap;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use synapse_core::TopicName;
use synapse_core::codec::headers;
use synapse_core::event::EventRef;
use tokio::sync::Notify;

use super::client::Context;
use super::native::{Destination, NewHeaders};

/// How long a producer's queue is given to make room.
pub(super) const ROOM_WAIT: Duration = Duration::from_millis(5);

/// Where records lie, by partition.
pub(super) type Offsets = HashMap<i32, Vec<i64>>;

/// What becomes of records that were sent together, to one topic if their places are wanted.
#[derive(Default)]
pub(super) struct Deliveries {
    /// How many were told of less than were sent; below zero while the sender has not said yet how many there are.
    open: AtomicIsize,
    done: Notify,
    wants_offsets: bool,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// By partition, in the order in which they were sent.
    offsets: Offsets,
    error: Option<KafkaError>,
}

impl Deliveries {
    /// Notes down where records lie, too.
    pub(super) fn placed() -> Self {
        Self { wants_offsets: true, ..Self::default() }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One was told of.
    fn close(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// So many were sent: waits until each was told of. The offsets by partition, in the order in which they were sent.
    ///
    /// # Errors
    /// What became of the first that failed; others may be durable.
    pub(super) async fn finish(&self, sent: usize) -> Result<Offsets, KafkaError> {
        // No machine holds more of them.
        let sent = isize::try_from(sent).unwrap_or(isize::MAX);
        if self.open.fetch_add(sent, Ordering::AcqRel) + sent > 0 {
            self.done.notified().await;
        }
        let mut told = self.told();
        match told.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut told.offsets)),
        }
    }
}

/// The context of a producer that many use: each record has those with it who are told of its delivery.
#[derive(Clone)]
pub(super) struct ProducerSide(pub(super) Context);

impl ClientContext for ProducerSide {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for ProducerSide {
    type DeliveryOpaque = Arc<Deliveries>;

    fn delivery(&self, result: &DeliveryResult<'_>, deliveries: Arc<Deliveries>) {
        match result {
            Ok(record) if deliveries.wants_offsets => {
                deliveries.told().offsets.entry(record.partition()).or_default().push(record.offset());
            }
            Ok(_) => {}
            Err((error, _)) => {
                deliveries.told().error.get_or_insert_with(|| error.clone());
            }
        }
        deliveries.close();
    }
}

/// The context of a producer that one lane has for itself: it is told of failures only.
pub(super) struct LaneSide {
    context: Context,
    failed: Mutex<Option<KafkaError>>,
}

impl LaneSide {
    pub(super) fn new(context: Context) -> Self {
        Self { context, failed: Mutex::default() }
    }

    /// What the first record that failed since this was asked last failed with.
    pub(super) fn failed(&self) -> Option<KafkaError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for LaneSide {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ProducerContext for LaneSide {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        // Records are purged once their transaction is lost: why it is, another record or the transaction tells.
        let purged = [RDKafkaErrorCode::PurgeQueue, RDKafkaErrorCode::PurgeInflight].map(Some);
        if let Err((error, _)) = result
            && !purged.contains(&error.rdkafka_error_code())
        {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| error.clone());
        }
    }
}

/// Whether a producer took a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// Its queue is full: it is to be tried again soon.
    Full,
    /// The topic has got partitions that the producer has not heard of: it has to ask.
    Unknown,
}

/// Has a producer ask for a topic's partitions; who needs them sees whether it knows them then.
pub(super) fn ask_partitions<C: ProducerContext>(producer: &BaseProducer<C>, topic: &str, timeout: Duration) {
    let _ = producer.client().fetch_metadata(Some(topic), timeout);
}

/// One record to send.
#[derive(Clone, Copy)]
pub(super) enum Outgoing<'e> {
    /// In CloudEvents' binary mode (Kafka protocol binding 1.0.2): attributes are headers, the record's key is the
    /// event's partition key.
    Event(EventRef<'e>),
    /// Something of ours.
    Plain {
        /// The record's key.
        key: &'e [u8],
        /// The record's value.
        value: &'e [u8],
    },
}

impl Outgoing<'_> {
    /// Hands it to the producer; what becomes of it is told to the producer's context with `opaque`.
    pub(super) fn send<C: ProducerContext + 'static>(
        self,
        to: &Destination<'_, C>,
        partition: u32,
        opaque: C::DeliveryOpaque,
    ) -> Result<Sent, KafkaError> {
        let (key, value, headers) = match self {
            Self::Event(event) => (event.partition_key().map(str::as_bytes), event.data(), headers_of(event)),
            Self::Plain { key, value } => (Some(key), value, NewHeaders::new(0)),
        };
        match to.send(native(partition), key, value, headers, opaque) {
            Ok(()) => Ok(Sent::Yes),
            Err(RDKafkaErrorCode::QueueFull) => Ok(Sent::Full),
            Err(RDKafkaErrorCode::UnknownPartition) => Ok(Sent::Unknown),
            Err(error) => Err(KafkaError::MessageProduction(error)),
        }
    }
}

fn headers_of(event: EventRef<'_>) -> NewHeaders {
    // Four attributes that every event has, and a few more.
    let mut all = NewHeaders::new(8);
    headers::encode(headers::KAFKA, event, |name, value| all.add(name, value));
    all
}

/// A topic to send to.
pub(super) fn destination<'p, C: ProducerContext + 'static>(
    producer: &'p BaseProducer<C>,
    topic: &TopicName,
) -> Result<Destination<'p, C>, KafkaError> {
    Destination::open(producer, topic.as_str()).map_err(KafkaError::MessageProduction)
}

/// Kafka counts partitions in an `i32`.
pub(super) fn native(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// The partition that Kafka's own clients in Java send a key to, so that events of one key meet whoever wrote them:
/// murmur2 with seed 0x9747b28c of the key, without its sign, modulo (`BuiltInPartitioner` of Kafka 4).
pub(super) fn murmur2_partition(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ (data.len() as u32);
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        hash = (hash ^ word).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_sent_waits_for_every_delivery_whenever_it_is_told() {
        let nothing = Deliveries::default();
        assert!(nothing.finish(0).await.is_ok());
        let early = Deliveries::default();
        (0..2).for_each(|_| early.close());
        assert!(early.finish(2).await.is_ok());
        let late = Deliveries::default();
        late.close();
        let mut finish = std::pin::pin!(late.finish(3));
        for _ in 0..2 {
            assert!(finish.as_mut().now_or_never().is_none());
            late.close();
        }
        assert!(finish.await.is_ok());
    }

    #[test]
    fn keys_go_where_javas_clients_send_them() {
        // From the tests of Kafka's own `Utils.murmur2`.
        let known = [("21", -973_932_308), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536)];
        for (key, hash) in known {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
        // The sign is cut off, not turned round: -973932308 is 1173551340 then.
        assert_eq!([1, 2, 7, 1000].map(|n| murmur2_partition(b"21", n)), [0, 0, 1173551340 % 7, 340]);
    }
}
