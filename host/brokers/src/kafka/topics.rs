//! Topics on a Kafka cluster: what there is, and how it is kept.
//!
//! Metadata and offsets are asked through one client without a group. Bounds by age and size are the topic's own
//! `retention.ms` and `retention.bytes`; Kafka has none by number of events, so that one is kept by deleting records
//! (KIP-107) as they are added. A topic that others made is changed only where `topics` in the configuration says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset as NativeOffset, TopicPartitionList};
use synapse_core::broker::{BrokerErrorKind, PartitionInfo, TopicInfo};
use synapse_core::spec::{Retention, TopicSpec};
use synapse_core::{BrokerError, Offset, Timestamp, TopicName};

use super::client::{Cluster, Context};
use super::publish::native;

/// Names of our own topics begin with this.
pub(super) const PREFIX: &str = "synapse.";
/// What is known of a topic's partitions is asked again after this.
const FRESH: Duration = Duration::from_secs(5);
/// Most topics that may have been asked for and are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// What asking for nothing is.
const SEE: &str = "see whether it is there";
/// How long a topic that was made may take until every server knows it.
const APPEARS_WITHIN: Duration = Duration::from_secs(15);
const APPEARS_LOOK: Duration = Duration::from_millis(50);
/// Largest batch of records of a topic that Synapse makes, in bytes; the server's own default is a mebibyte.
const BATCH_BYTES_MAX: usize = super::client::RECORD_BYTES_MAX + (64 << 10);
/// Records are deleted once at least this many were added.
const EXCESS_MIN: u64 = 100;

/// All topics of a cluster.
pub(super) struct Topics {
    pub(super) cluster: Arc<Cluster>,
    consumer: Arc<BaseConsumer<Context>>,
    /// `None` only while it is being dropped.
    admin: Option<AdminClient<Context>>,
    remembered: Mutex<HashMap<TopicName, (Instant, u32)>>,
    /// Bounds by number, of topics that this host knows to have one.
    bounds: Mutex<HashMap<TopicName, Bound>>,
}

/// A bound by number of events, and how many were added since it was last looked after.
#[derive(Clone, Copy)]
struct Bound {
    events_max: u64,
    added: u64,
}

/// The first and the next offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) low: i64,
    pub(super) high: i64,
}

impl Topics {
    pub(super) fn new(cluster: &Arc<Cluster>) -> Result<Self, BrokerError> {
        let made = |error| cluster.failed("make a client", &error);
        Ok(Self {
            consumer: Arc::new(cluster.reader().create_with_context(cluster.context()).map_err(made)?),
            admin: Some(cluster.reader().create_with_context(cluster.context()).map_err(made)?),
            cluster: Arc::clone(cluster),
            remembered: Mutex::default(),
            bounds: Mutex::default(),
        })
    }

    fn admin(&self) -> &AdminClient<Context> {
        self.admin.as_ref().expect("it goes only when this is dropped")
    }

    /// Serves what librdkafka wants to tell.
    pub(super) fn serve(&self) {
        while self.consumer.poll(Duration::ZERO).is_some() {}
    }

    /// Asks the cluster something, off the reactor.
    async fn ask<T: Send + 'static>(
        &self,
        doing: &str,
        question: impl FnOnce(&BaseConsumer<Context>, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let answer = self.ask_for(doing, self.cluster.patience(), question).await;
        if answer.as_ref().is_err_and(|error| error.kind == BrokerErrorKind::Unavailable) {
            // A cluster that hangs says nothing of itself.
            self.cluster.reach.suspect();
        }
        answer
    }

    /// As [`Topics::ask`], with so much time, and without a doubt if there is no answer.
    async fn ask_for<T: Send + 'static>(
        &self,
        doing: &str,
        timeout: Duration,
        question: impl FnOnce(&BaseConsumer<Context>, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (consumer, asked) = (Arc::clone(&self.consumer), tokio::time::Instant::now());
        let answer = tokio::task::spawn_blocking(move || question(&consumer, timeout)).await;
        let answer = answer.map_err(|panic| self.cluster.error(BrokerErrorKind::Unavailable, panic))?;
        answer.inspect(|_| self.cluster.reach.has_answered(asked)).map_err(|error| self.cluster.failed(doing, &error))
    }

    /// Whether the cluster answers.
    pub(super) async fn health(&self) -> Result<(), BrokerError> {
        self.ask(SEE, is_there).await
    }

    /// Whether a cluster that is in doubt answers within so much time.
    pub(super) async fn health_within(&self, time: Duration) -> Result<(), BrokerError> {
        self.ask_for(SEE, time, is_there).await
    }

    /// How many partitions a topic has; `None` if there is no such topic.
    pub(super) async fn partitions(&self, topic: &TopicName) -> Result<Option<u32>, BrokerError> {
        self.check_name(topic)?;
        let remembered = self.remembered().get(topic).copied();
        match remembered {
            Some((asked, partitions)) if asked.elapsed() < FRESH => Ok(Some(partitions)),
            _ => self.look(topic).await,
        }
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<TopicName, (Instant, u32)>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Topics::partitions`], as it is now.
    async fn look(&self, topic: &TopicName) -> Result<Option<u32>, BrokerError> {
        let (doing, name) = (format!("look topic `{topic}` up"), topic.to_string());
        let found = self.ask(&doing, move |consumer, timeout| {
            let metadata = consumer.fetch_metadata(Some(&name), timeout)?;
            let found = metadata.topics().iter().find(|topic| topic.name() == name);
            Ok(found.map_or(Ok(None), |topic| usable(topic).map(|()| count(topic))))
        });
        let found = found.await?.map_err(|code| self.cluster.refused(&doing, code, &code.to_string()))?;
        let mut remembered = self.remembered();
        match found {
            Some(partitions) => {
                if remembered.len() >= REMEMBERED_MAX {
                    remembered.clear();
                }
                remembered.insert(topic.clone(), (Instant::now(), partitions));
            }
            None => drop(remembered.remove(topic)),
        }
        Ok(found)
    }

    fn check_name(&self, topic: &TopicName) -> Result<(), BrokerError> {
        let Some(why) = refuses_topic(topic) else { return Ok(()) };
        Err(self.cluster.invalid(format_args!("`{topic}` cannot be a topic here: {why}; choose another name")))
    }

    /// The number of partitions of a topic that has to exist.
    pub(super) async fn existing(&self, topic: &TopicName) -> Result<u32, BrokerError> {
        self.partitions(topic).await?.ok_or_else(|| {
            self.cluster.invalid(format_args!(
                "there is no topic `{topic}`: publish to it first, or write it down in the configuration"
            ))
        })
    }

    /// Checks that a partition exists.
    pub(super) async fn check_partition(&self, topic: &TopicName, partition: u32) -> Result<(), BrokerError> {
        let count = self.existing(topic).await?;
        if partition < count {
            return Ok(());
        }
        Err(self
            .cluster
            .invalid(format_args!("the topic `{topic}` has {count} partitions, so there is no partition {partition}")))
    }

    /// The number of partitions of a topic, which is made if it is not there.
    pub(super) async fn made(&self, topic: &TopicName) -> Result<u32, BrokerError> {
        match self.partitions(topic).await? {
            Some(partitions) => Ok(partitions),
            None => self.make(topic, &TopicSpec::default(), &[]).await,
        }
    }

    /// See [`synapse_core::Broker::ensure_topic`].
    pub(super) async fn ensure(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        self.check_name(topic)?;
        let wanted = spec.partitions.get();
        match self.look(topic).await? {
            None => drop(self.make(topic, spec, &[]).await?),
            Some(found) => {
                if found < wanted {
                    self.grow(topic, wanted).await?;
                }
                if spec.retention != Retention::default() {
                    self.keep(topic, &spec.retention).await?;
                }
            }
        }
        self.bind(topic, spec.retention.events);
        // Another server may be asked now than the one that knew it, and not know it yet.
        let begun = Instant::now();
        loop {
            match self.info(topic).await? {
                Some(info) => return Ok(info),
                None if begun.elapsed() > APPEARS_WITHIN => {
                    let why = "it was made just now, and not every server knows it yet";
                    let doing = format!("look topic `{topic}` up");
                    return Err(self.cluster.refused(&doing, RDKafkaErrorCode::LeaderNotAvailable, why));
                }
                None => tokio::time::sleep(APPEARS_LOOK).await,
            }
        }
    }

    /// Notes how many events a topic is to keep.
    fn bind(&self, topic: &TopicName, events_max: Option<u64>) {
        let mut bounds = self.bounds();
        match events_max {
            Some(events_max) => {
                bounds.entry(topic.clone()).or_insert(Bound { events_max, added: 0 }).events_max = events_max;
            }
            None => drop(bounds.remove(topic)),
        }
    }

    fn bounds(&self) -> MutexGuard<'_, HashMap<TopicName, Bound>> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a topic of our own if it is not there: compacted, one partition.
    pub(super) async fn make_compacted(&self, topic: &TopicName) -> Result<(), BrokerError> {
        if self.look(topic).await?.is_none() {
            self.make(topic, &TopicSpec::default(), &[("cleanup.policy", "compact")]).await?;
        }
        Ok(())
    }

    /// Makes a topic and waits until it is known; someone else may come first.
    async fn make(&self, topic: &TopicName, spec: &TopicSpec, config: &[(&str, &str)]) -> Result<u32, BrokerError> {
        let doing = format!("make topic `{topic}`");
        let properties = properties(&spec.retention);
        // -1: as many replicas as the server makes by default (KIP-464).
        let mut new = NewTopic::new(topic.as_str(), native(spec.partitions.get()), TopicReplication::Fixed(-1));
        let batch_bytes_max = BATCH_BYTES_MAX.to_string();
        new = new.set("max.message.bytes", &batch_bytes_max);
        for (name, value) in
            properties.iter().map(|(name, value)| (*name, value.as_str())).chain(config.iter().copied())
        {
            new = new.set(name, value);
        }
        let made = self.admin().create_topics([&new], &self.options()).await;
        self.check_each(&doing, made, &[RDKafkaErrorCode::TopicAlreadyExists])?;
        self.wait_for(topic, |partitions| partitions.is_some()).await
    }

    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<(), BrokerError> {
        let doing = format!("give topic `{topic}` {partitions} partitions");
        let new = NewPartitions::new(topic.as_str(), partitions as usize);
        let grown = self.admin().create_partitions([&new], &self.options()).await;
        // Someone else may have come first; what is there now is looked at next.
        self.check_each(&doing, grown, &[RDKafkaErrorCode::InvalidPartitions])?;
        self.wait_for(topic, |found| found.is_some_and(|found| found >= partitions)).await.map(drop)
    }

    fn check_each(
        &self,
        doing: &str,
        done: KafkaResult<Vec<Result<String, (String, RDKafkaErrorCode)>>>,
        fine: &[RDKafkaErrorCode],
    ) -> Result<(), BrokerError> {
        let done = done.map_err(|error| self.cluster.failed(doing, &error))?;
        match done.into_iter().find_map(Result::err) {
            Some((_, code)) if !fine.contains(&code) => Err(self.cluster.refused(doing, code, &code.to_string())),
            _ => Ok(()),
        }
    }

    /// Waits until the servers know of a change.
    async fn wait_for(&self, topic: &TopicName, is_there: impl Fn(Option<u32>) -> bool) -> Result<u32, BrokerError> {
        let begun = Instant::now();
        loop {
            let found = self.look(topic).await?;
            if let Some(partitions) = found.filter(|_| is_there(found)) {
                return Ok(partitions);
            }
            if begun.elapsed() > APPEARS_WITHIN {
                return Err(self.cluster.error(
                    BrokerErrorKind::Unavailable,
                    format_args!("the topic `{topic}` was made or changed, but the servers do not show it yet"),
                ));
            }
            tokio::time::sleep(APPEARS_LOOK).await;
        }
    }

    /// Sets the topic's own bounds by age and size where they differ.
    async fn keep(&self, topic: &TopicName, retention: &Retention) -> Result<(), BrokerError> {
        let doing = format!("set how topic `{topic}` is kept");
        let failed = |error| self.cluster.failed(&doing, &error);
        let resource = ResourceSpecifier::Topic(topic.as_str());
        let described = self.admin().describe_configs([&resource], &self.options()).await.map_err(failed)?;
        let described = described.into_iter().next().and_then(Result::ok).ok_or_else(|| {
            self.cluster.refused(&doing, RDKafkaErrorCode::TopicAuthorizationFailed, "its configuration is not shown")
        })?;
        let wanted = properties(retention);
        let is = |name: &str| described.get(name).and_then(|entry| entry.value.as_deref());
        if wanted.iter().all(|(name, value)| is(name) == Some(value)) {
            return Ok(());
        }
        // This call replaces all that was set on the topic, so what was is said again.
        let own = described.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let others = own.filter(|entry| wanted.iter().all(|(name, _)| *name != entry.name));
        let mut change = AlterConfig::new(resource);
        for (name, value) in others.filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?))) {
            change = change.set(name, value);
        }
        for (name, value) in &wanted {
            change = change.set(name, value);
        }
        let changed = self.admin().alter_configs([&change], &self.options()).await.map_err(failed)?;
        match changed.into_iter().find_map(Result::err) {
            Some((_, code)) => Err(self.cluster.refused(&doing, code, &code.to_string())),
            None => Ok(()),
        }
    }

    fn options(&self) -> AdminOptions {
        let timeout = Some(self.cluster.timeout);
        AdminOptions::new().request_timeout(timeout).operation_timeout(timeout)
    }

    /// One topic; `None` if there is none of this name.
    pub(super) async fn info(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        self.check_name(topic)?;
        let Some(partitions) = self.look(topic).await? else { return Ok(None) };
        let places: Vec<(TopicName, u32)> = (0..partitions).map(|partition| (topic.clone(), partition)).collect();
        let spans = self.spans(&places).await?;
        Ok(Some(topic_info(topic.clone(), spans.into_iter())))
    }

    /// Every topic but Kafka's and ours, by name.
    pub(super) async fn all(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        let topics = self.ask("list the topics", |consumer, timeout| {
            let metadata = consumer.fetch_metadata(None, timeout)?;
            let usable = metadata.topics().iter().filter(|topic| usable(topic).is_ok());
            Ok(usable.filter_map(|topic| Some((topic.name().to_owned(), count(topic)?))).collect::<Vec<_>>())
        });
        let named = |(name, count): (String, u32)| Some((name.parse::<TopicName>().ok()?, count));
        let internal = |name: &str| name.starts_with("__") || name.starts_with(PREFIX);
        let mut topics: Vec<_> =
            topics.await?.into_iter().filter(|(name, _)| !internal(name)).filter_map(named).collect();
        topics.sort();
        let places = topics.iter().flat_map(|(name, count)| (0..*count).map(|partition| (name.clone(), partition)));
        let mut spans = self.spans(&places.collect::<Vec<_>>()).await?.into_iter();
        let with_spans = topics.into_iter().map(|(name, count)| topic_info(name, spans.by_ref().take(count as usize)));
        Ok(with_spans.collect())
    }

    /// The first and next offsets of partitions, in the order asked for. The next one is where readers of committed
    /// transactions get to.
    pub(super) async fn spans(&self, places: &[(TopicName, u32)]) -> Result<Vec<Span>, BrokerError> {
        let low = self.offsets(places, NativeOffset::Beginning).await?;
        let high = self.offsets(places, NativeOffset::End).await?;
        Ok(low.into_iter().zip(high).map(|(low, high)| Span { low, high }).collect())
    }

    pub(super) async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, BrokerError> {
        let spans = self.spans(&[(topic.clone(), partition)]).await?;
        Ok(spans.first().copied().unwrap_or(Span { low: 0, high: 0 }))
    }

    /// The first offset at or after a time; `None` if there is none yet.
    pub(super) async fn offset_at(
        &self,
        topic: &TopicName,
        partition: u32,
        time: Timestamp,
    ) -> Result<Option<i64>, BrokerError> {
        // Kafka counts whole milliseconds.
        let ms = time.as_micros().max(0).saturating_add(999) / 1000;
        let found = self.offsets(&[(topic.clone(), partition)], NativeOffset::Offset(ms)).await?;
        Ok(found.first().copied().filter(|&offset| offset >= 0))
    }

    /// `ListOffsets` for all these partitions: at a time, or at an end. -1: there is none.
    async fn offsets(&self, places: &[(TopicName, u32)], at: NativeOffset) -> Result<Vec<i64>, BrokerError> {
        let places: Vec<(String, i32)> =
            places.iter().map(|(topic, partition)| (topic.to_string(), native(*partition))).collect();
        let doing = match places.first() {
            None => return Ok(Vec::new()),
            Some((topic, partition)) => format!("ask for offsets of `{topic}/{partition}`"),
        };
        let found = self.ask(&doing, move |consumer, timeout| {
            let begun = Instant::now();
            loop {
                match offsets(consumer, &places, at, timeout) {
                    // A topic that was just made, or whose leader has just gone.
                    Err(error) if is_passing(&error) && begun.elapsed() < timeout => std::thread::sleep(APPEARS_LOOK),
                    other => return other,
                }
            }
        });
        found.await
    }

    /// Notes that events were added.
    pub(super) fn added(&self, topic: &TopicName, events: usize) {
        if let Some(bound) = self.bounds().get_mut(topic) {
            bound.added += events as u64;
        }
    }

    /// Deletes what is more than should be kept, of topics that were added to.
    pub(super) async fn trim_due(&self) {
        let due: Vec<(TopicName, u64)> = {
            let mut bounds = self.bounds();
            let due = bounds.iter_mut().filter(|(_, bound)| bound.added >= EXCESS_MIN);
            due.map(|(topic, bound)| {
                bound.added = 0;
                (topic.clone(), bound.events_max)
            })
            .collect()
        };
        for (topic, events_max) in due {
            if let Err(error) = self.trim(&topic, events_max).await {
                tracing::warn!(%topic, %error, "old events could not be deleted");
            }
        }
    }

    async fn trim(&self, topic: &TopicName, events_max: u64) -> Result<(), BrokerError> {
        let partitions = self.existing(topic).await?;
        let places: Vec<(TopicName, u32)> = (0..partitions).map(|partition| (topic.clone(), partition)).collect();
        let mut list = TopicPartitionList::new();
        let doing = format!("delete old events of topic `{topic}`");
        for (span, (_, partition)) in self.spans(&places).await?.into_iter().zip(&places) {
            let keep_from = span.high - i64::try_from(events_max).unwrap_or(i64::MAX);
            if keep_from > span.low {
                let added =
                    list.add_partition_offset(topic.as_str(), native(*partition), NativeOffset::Offset(keep_from));
                added.map_err(|error| self.cluster.failed(&doing, &error))?;
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        let deleted = self.admin().delete_records(&list, &self.options()).await;
        let deleted = deleted.map_err(|error| self.cluster.failed(&doing, &error))?;
        match deleted.elements().iter().find_map(|element| element.error().err()) {
            Some(error) => Err(self.cluster.failed(&doing, &error)),
            None => Ok(()),
        }
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        // It waits for a thread of its own, whose waiting goes by the system's clock: long, if that was put back.
        super::drop_elsewhere(self.admin.take());
    }
}

/// Why a topic cannot have this name on Kafka, if it cannot: Kafka has no colons in names, and ours begin in a way of
/// their own.
pub fn refuses_topic(topic: &TopicName) -> Option<&'static str> {
    let name = topic.as_str();
    if name.contains(':') {
        Some("names on Kafka have no `:`")
    } else if matches!(name, "." | "..") {
        Some("Kafka has no topic of this name")
    } else if name.starts_with(PREFIX) {
        Some("names that begin with `synapse.` are kept for Synapse itself")
    } else {
        None
    }
}

/// Of a topic that is not there only the servers are told, which is all that is wanted.
fn is_there(consumer: &BaseConsumer<Context>, within: Duration) -> KafkaResult<()> {
    consumer.fetch_metadata(Some("synapse.health"), within).map(drop)
}

fn offsets(
    consumer: &BaseConsumer<Context>,
    places: &[(String, i32)],
    at: NativeOffset,
    timeout: Duration,
) -> KafkaResult<Vec<i64>> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition_offset(topic, *partition, at)?;
    }
    let found = consumer.offsets_for_times(list, timeout)?;
    let offset = |(topic, partition): &(String, i32)| {
        let Some(element) = found.find_partition(topic, *partition) else { return Ok(-1) };
        element.error()?;
        Ok(element.offset().to_raw().filter(|&offset| offset >= 0).unwrap_or(-1))
    };
    places.iter().map(offset).collect()
}

/// Whether leaders are only being sorted out.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::FencedLeaderEpoch
                | RDKafkaErrorCode::UnknownLeaderEpoch
        )
    )
}

/// Kafka's own names of bounds. Without one a topic keeps everything, whatever the server's default.
fn properties(retention: &Retention) -> [(&'static str, String); 2] {
    let age = retention.age.map_or(-1, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let bytes = retention.bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    [("retention.ms", age.to_string()), ("retention.bytes", bytes.to_string())]
}

/// Whether a topic is there and may be seen; one that is not there is fine, it has no partitions then.
fn usable(topic: &MetadataTopic) -> Result<(), RDKafkaErrorCode> {
    match topic.error() {
        None
        | Some(
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            // Its partitions have no leader for a moment.
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        ) => Ok(()),
        Some(error) => Err(error.into()),
    }
}

fn count(topic: &MetadataTopic) -> Option<u32> {
    u32::try_from(topic.partitions().len()).ok().filter(|&count| count > 0)
}

/// Marks of transactions and records of those that were given up count as entries, too: Kafka does not tell them apart.
fn topic_info(name: TopicName, spans: impl Iterator<Item = Span>) -> TopicInfo {
    TopicInfo { name, partitions: spans.map(info).collect(), at_most: true }
}

fn info(span: Span) -> PartitionInfo {
    let kept = u64::try_from(span.high - span.low).unwrap_or_default();
    let offset = |at: i64| (kept > 0).then(|| Offset::Number(u64::try_from(at).unwrap_or_default()));
    PartitionInfo { earliest: offset(span.low), latest: offset(span.high - 1), events: kept, bytes: None }
}
