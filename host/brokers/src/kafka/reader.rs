//! Reading partitions without a group: each source has a partition of a shared consumer to itself.
//!
//! A consumer of librdkafka reads a partition at one place only. So there is a pool of them: a source takes the first
//! consumer that does not read its partition yet, and all lanes of a host usually share one, with its connections.
//! What is fetched ahead waits in librdkafka's queue of the partition, which is bounded, and is decoded from there
//! straight into the columns.
//!
//! A place that retention has left behind is noticed by the server's answer; the source goes on at the first record that
//! is there and tells how many it passed. A place behind the end means that the topic is not the one that was read
//! before: that is an error, since going on anywhere would skip or repeat records silently.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset as NativeOffset, TopicPartitionList};
use synapse_core::broker::{BatchLimit, BrokerErrorKind};
use synapse_core::codec::Decoded;
use synapse_core::codec::headers;
use synapse_core::spec::ReadFrom;
use synapse_core::{BrokerError, Offset, Source, SourceBatch, Timestamp, TopicName};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::client::Context;
use super::native::{Fetched, PartitionQueue, Record};
use super::publish::native;
use super::topics::Topics;
use crate::fill::Fill;

/// Most consumers at once, which is how often a partition can be read at the same time: each has threads and connections
/// of its own.
const READERS_MAX: usize = 64;

/// The consumers that read for this host.
pub(super) struct Readers {
    topics: Arc<Topics>,
    pool: Mutex<Vec<Arc<Reader>>>,
}

/// One consumer, and what it reads.
struct Reader {
    consumer: Arc<BaseConsumer<Context>>,
    reads: Mutex<HashSet<(TopicName, u32)>>,
}

impl Reader {
    fn reads(&self) -> MutexGuard<'_, HashSet<(TopicName, u32)>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readers {
    pub(super) fn new(topics: Arc<Topics>) -> Self {
        Self { topics, pool: Mutex::default() }
    }

    fn pool(&self) -> MutexGuard<'_, Vec<Arc<Reader>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what librdkafka wants to tell, and lets consumers go that nobody reads with.
    pub(super) fn serve(&self) {
        let pool = self.pool().clone();
        for reader in &pool {
            while reader.consumer.poll(Duration::ZERO).is_some() {}
        }
        drop(pool);
        let mut idle: Vec<Arc<Reader>> = Vec::new();
        {
            let mut pool = self.pool();
            // One stays, so that the next source finds its connections made.
            while pool.len() > 1
                && let Some(at) = pool.iter().rposition(|reader| reader.reads().is_empty())
            {
                idle.push(pool.remove(at));
            }
        }
        if !idle.is_empty() {
            // To close a consumer takes a while.
            tokio::task::spawn_blocking(move || drop(idle));
        }
    }

    /// A consumer that does not read this partition, and now does.
    fn claim(&self, topic: &TopicName, partition: u32) -> Result<Arc<Reader>, BrokerError> {
        let place = (topic.clone(), partition);
        let mut pool = self.pool();
        if let Some(free) = pool.iter().find(|reader| reader.reads().insert(place.clone())) {
            return Ok(Arc::clone(free));
        }
        let cluster = &self.topics.cluster;
        if pool.len() >= READERS_MAX {
            return Err(cluster.error(
                BrokerErrorKind::Unavailable,
                format_args!("`{topic}/{partition}` is read {READERS_MAX} times at once already; try again later"),
            ));
        }
        let consumer = cluster.reader().create_with_context(cluster.context());
        let consumer = Arc::new(consumer.map_err(|error| cluster.failed("make a consumer", &error))?);
        let reader = Arc::new(Reader { consumer, reads: Mutex::new(HashSet::from([place])) });
        pool.push(Arc::clone(&reader));
        Ok(reader)
    }

    /// A source of one partition from a place on.
    pub(super) async fn open(
        &self,
        topic: &TopicName,
        partition: u32,
        from: ReadFrom,
    ) -> Result<PartitionSource, BrokerError> {
        self.topics.check_partition(topic, partition).await?;
        self.open_unchecked(topic, partition, from).await
    }

    /// As [`Readers::open`], for topics of ours, too.
    pub(super) async fn open_unchecked(
        &self,
        topic: &TopicName,
        partition: u32,
        from: ReadFrom,
    ) -> Result<PartitionSource, BrokerError> {
        let topics = &self.topics;
        let mut not_before = None;
        let next = match from {
            ReadFrom::Earliest => topics.span(topic, partition).await?.low,
            ReadFrom::Latest => topics.span(topic, partition).await?.high,
            ReadFrom::Time(time) => match topics.offset_at(topic, partition, time).await? {
                Some(offset) => offset,
                None => {
                    not_before = Some(time);
                    topics.span(topic, partition).await?.high
                }
            },
            ReadFrom::At(offset) => number(topics, offset)?,
            ReadFrom::After(offset) => number(topics, offset)?.saturating_add(1),
        };
        let reader = self.claim(topic, partition)?;
        let place = Place { topics: Arc::clone(topics), topic: topic.clone(), partition, reader };
        let wake = Arc::new(Notify::new());
        let queue = PartitionQueue::open(&place.reader.consumer, topic.as_str(), native(partition), Arc::clone(&wake));
        let queue =
            queue.ok_or_else(|| topics.cluster.invalid(format_args!("librdkafka has no `{topic}/{partition}`")))?;
        let mut source = PartitionSource { queue, wake, next, not_before, end: None, lost: 0, place };
        source.assign()?;
        Ok(source)
    }
}

/// A Kafka offset of ours.
pub(super) fn number(topics: &Topics, offset: Offset) -> Result<i64, BrokerError> {
    let number = match offset {
        Offset::Number(number) => i64::try_from(number).ok(),
        Offset::Entry { .. } => None,
    };
    number.ok_or_else(|| topics.cluster.invalid(format_args!("`{offset}` is not an offset of this broker")))
}

/// A partition of a consumer; given back when dropped.
struct Place {
    topics: Arc<Topics>,
    topic: TopicName,
    partition: u32,
    reader: Arc<Reader>,
}

impl Place {
    fn list(&self, next: i64) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(1);
        // An offset of at least 0 is always taken.
        let _ = list.add_partition_offset(self.topic.as_str(), native(self.partition), NativeOffset::Offset(next));
        list
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.reader.consumer.incremental_unassign(&self.list(0)) {
            tracing::debug!(topic = %self.topic, partition = self.partition, %error, "the partition was not given back");
        }
        self.reader.reads().remove(&(self.topic.clone(), self.partition));
    }
}

/// Reads one partition.
pub(super) struct PartitionSource {
    /// Before `place`: what was fetched goes before the partition is given back.
    queue: PartitionQueue,
    wake: Arc<Notify>,
    /// Where the next record lies, or one behind it.
    next: i64,
    /// Records of an earlier time are passed over.
    not_before: Option<Timestamp>,
    /// The offset behind everything that there was lately.
    end: Option<i64>,
    /// Trimmed before they were read, and not told yet.
    lost: u64,
    place: Place,
}

impl PartitionSource {
    fn doing(&self) -> String {
        format!("read `{}/{}`", self.place.topic, self.place.partition)
    }

    fn assign(&mut self) -> Result<(), BrokerError> {
        let assigned = self.place.reader.consumer.incremental_assign(&self.place.list(self.next));
        assigned.map_err(|error| self.place.topics.cluster.failed(&self.doing(), &error))
    }

    /// The server has no record at `next`: goes on at the first one there is, or tells why it cannot.
    async fn find_place(&mut self) -> Result<(), BrokerError> {
        let (topic, partition) = (&self.place.topic, self.place.partition);
        let span = self.place.topics.span(topic, partition).await?;
        if self.next > span.high {
            return Err(self.place.topics.cluster.error(
                BrokerErrorKind::Corrupt,
                format_args!(
                    "could not {}: offset {} lies behind its end, {}; the topic was made anew or lost records. Move the \
                     group's offset with kafka-consumer-groups --reset-offsets to where reading is to go on",
                    self.doing(),
                    self.next,
                    span.high
                ),
            ));
        }
        if span.low > self.next {
            self.lost += u64::try_from(span.low - self.next).unwrap_or_default();
            self.next = span.low;
        }
        let consumer = &self.place.reader.consumer;
        let released = consumer.incremental_unassign(&self.place.list(self.next));
        released.map_err(|error| self.place.topics.cluster.failed(&self.doing(), &error))?;
        self.assign()
    }

    /// Hands what was fetched to `sink` until it takes no more; a record that it does not take stays the next.
    ///
    /// # Errors
    /// What keeps librdkafka from fetching; a place that is not there any more is mended instead.
    async fn take(&mut self, mut sink: impl FnMut(Record<'_>) -> bool) -> Result<Took, BrokerError> {
        loop {
            match self.queue.peek() {
                None => return Ok(Took::All),
                Some(Fetched::End(offset)) => self.end = Some(offset),
                Some(Fetched::Failed(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)) => {
                    self.queue.next();
                    self.find_place().await?;
                    continue;
                }
                Some(Fetched::Failed(code)) => {
                    return Err(self.place.topics.cluster.refused(&self.doing(), code, &code.to_string()));
                }
                Some(Fetched::Record(record)) => {
                    let offset = record.offset();
                    let passed = offset < self.next || self.not_before.is_some_and(|from| is_before(record, from));
                    if !passed {
                        if !sink(record) {
                            return Ok(Took::Full);
                        }
                        self.not_before = None;
                    }
                    self.next = self.next.max(offset + 1);
                }
            }
            self.queue.next();
        }
    }

    /// Waits until something was fetched; tells whether it was before `deadline`.
    async fn wait(&mut self, deadline: Instant) -> bool {
        timeout_at(deadline, self.wake.notified()).await.is_ok()
    }

    /// Fills a page until it is full, nothing more is there, or `deadline` passes without an entry.
    async fn fill(&mut self, page: &mut Fill<'_>, deadline: Instant) -> Result<(), BrokerError> {
        loop {
            let took = self.take(|record| !page.is_full() && append(page, record)).await?;
            if took == Took::Full || page.entries() > 0 || self.lost > 0 || !self.wait(deadline).await {
                return Ok(());
            }
        }
    }

    /// Hands every record up to the end to `each`, and waits for no more.
    pub(super) async fn catch_up(
        &mut self,
        patience: Duration,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), BrokerError> {
        let deadline = Instant::now() + patience;
        let target = self.place.topics.span(&self.place.topic, self.place.partition).await?.high;
        loop {
            let sink = |record: Record<'_>| {
                each(record.key().unwrap_or_default(), record.value());
                true
            };
            self.take(sink).await?;
            if self.next.max(self.end.unwrap_or_default()) >= target {
                return Ok(());
            }
            if !self.wait(deadline).await {
                let (code, what) = (RDKafkaErrorCode::OperationTimedOut, "its end did not come in time");
                return Err(self.place.topics.cluster.refused(&self.doing(), code, what));
            }
        }
    }
}

/// Why a page took no more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Took {
    /// All that was fetched.
    All,
    /// As much as fits.
    Full,
}

fn is_before(record: Record<'_>, time: Timestamp) -> bool {
    record.time_ms().is_some_and(|ms| ms.saturating_mul(1000) < time.as_micros())
}

/// Decodes a record; tells whether it fitted.
fn append(page: &mut Fill<'_>, record: Record<'_>) -> bool {
    // What headers take is not known before they are parsed; half a kilobyte is more than most.
    let bytes = record.value().len() + record.key().map_or(0, <[u8]>::len) + 512;
    let offset = Offset::Number(u64::try_from(record.offset()).unwrap_or_default());
    page.append(
        offset,
        bytes,
        |origin, into| {
            headers::decode(headers::KAFKA, record.headers(), record.key(), record.value(), Some(origin), into)
                .map(|()| Decoded::Event)
        },
        || record.value().to_vec(),
    )
}

#[async_trait]
impl Source for PartitionSource {
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        let deadline = Instant::now() + wait;
        let topic = self.place.topic.clone();
        let mut page = Fill::new(&topic, self.place.partition, limit);
        self.fill(&mut page, deadline).await?;
        Ok(page.finish(std::mem::take(&mut self.lost)))
    }
}
