//! What the engine asks of brokers: hand out batches, and make the effects of a batch durable at once.
//!
//! A [`Source`] hands out batches, a [`Committer`] takes effects. Nothing here knows Redis, Kafka or files. The
//! promises behind these traits are written down as shared tests beside the implementations.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::share::{LanePlace, Membership, Share};
use crate::spec::{Encoding, ReadFrom, ReadMode, Start, TopicSpec};
use crate::topic::{BrokerName, Label, Offset, TopicName, TopicPartition, TopicPath, partition_of};

/// A backend that holds topics.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &BrokerName;

    /// Why [`Committer::commit`] does not make outputs on this same broker and the cursor durable in one step, for
    /// operators; `None` if it does.
    fn commits_apart(&self) -> Option<&'static str>;

    /// How many batches of a lane one commit takes at most: more where a commit costs much whatever its size.
    fn batches_per_commit_max(&self) -> usize {
        8
    }

    /// Makes sure a topic exists with at least these partitions and this retention; changes nothing else. Partitions
    /// are never taken away.
    async fn ensure_topic(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError>;

    /// All topics, by name.
    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError>;

    /// One topic; `None` if it does not exist.
    async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError>;

    /// The partition that events with this key go to, of `partitions`. Stable for ever: stored data depends on it. An
    /// event without a key goes to the partition of its id.
    fn partition_of(&self, key: &[u8], partitions: u32) -> u32 {
        partition_of(key, partitions)
    }

    /// Appends events, each to the partition of its key ([`Broker::partition_of`]), creating the topic if need be.
    /// Returns once durable, with the position of each row in order.
    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError>;

    /// Reads a partition without a cursor: for shared readers, `tail` and history.
    async fn read(&self, topic: &TopicName, partition: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError>;

    /// Joins the hosts that share a pipeline's work on topics of this broker.
    async fn join(&self, share: &Share) -> Result<Box<dyn Membership>, BrokerError>;

    /// Where the lanes of a pipeline are, as the broker knows it, whichever hosts work on them: one for each partition
    /// of its topics, in order.
    async fn places(&self, share: &Share) -> Result<Vec<LanePlace>, BrokerError>;

    /// Takes ownership of a lane: fences older owners off and finds its place, storing the starting place of a lane
    /// that has none yet, so that a crash before the first commit does not move it.
    async fn open_lane(&self, lane: &LaneSpec) -> Result<OpenLane, BrokerError>;

    /// Every boundary that was committed for a lane, oldest first.
    async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError>;

    /// Why it cannot be reached, without its name, as far as that is known without asking it.
    fn away(&self) -> Option<String> {
        None
    }

    /// Why a pipeline has no share of the work just now, without the broker's name, as far as that is known without asking:
    /// hosts may be about to share it out anew.
    fn unshared(&self, _pipeline: &Label) -> Option<String> {
        None
    }

    /// Whether it can be reached and would take writes now.
    async fn health(&self) -> Result<(), BrokerError> {
        Ok(())
    }

    /// Ends what it does in the background and gives back what it holds for this host. Called once, after the last
    /// lane has ended.
    async fn close(&self) {}
}

/// The brokers of a host, by name. Cheap to clone; all clones see a broker that is added.
#[derive(Clone, Default)]
pub struct Brokers(Arc<RwLock<BTreeMap<BrokerName, Arc<dyn Broker>>>>);

impl Brokers {
    /// Adds a broker under its own name.
    pub fn insert(&self, broker: Arc<dyn Broker>) {
        let name = broker.name().clone();
        self.0.write().expect("nobody panics while holding the lock").insert(name, broker);
    }

    /// The broker of that name.
    ///
    /// # Errors
    /// [`BrokerErrorKind::Invalid`] if there is none.
    pub fn get(&self, name: &BrokerName) -> Result<Arc<dyn Broker>, BrokerError> {
        let brokers = self.0.read().expect("nobody panics while holding the lock");
        brokers.get(name).cloned().ok_or_else(|| BrokerError {
            broker: name.clone(),
            kind: BrokerErrorKind::Invalid,
            message: "there is no broker of this name in the configuration".to_owned(),
        })
    }

    /// Every broker, by name.
    pub fn all(&self) -> Vec<Arc<dyn Broker>> {
        self.0.read().expect("nobody panics while holding the lock").values().cloned().collect()
    }
}

impl FromIterator<Arc<dyn Broker>> for Brokers {
    fn from_iter<I: IntoIterator<Item = Arc<dyn Broker>>>(brokers: I) -> Self {
        let all = Self::default();
        brokers.into_iter().for_each(|broker| all.insert(broker));
        all
    }
}

/// Which lane: one partition of one pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// The pipeline.
    pub pipeline: Label,
    /// The partition that it reads.
    pub partition: TopicPartition,
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.pipeline, self.partition)
    }
}

/// A lane to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpec {
    /// Which lane.
    pub key: LaneKey,
    /// Where it begins if it has no cursor yet.
    pub start: Start,
    /// How it reads, where the broker has a choice.
    pub read: ReadMode,
}

/// A lane that was opened.
pub struct OpenLane {
    /// Takes its effects.
    pub committer: Box<dyn Committer>,
    /// Where its batches come from.
    pub reading: Reading,
    /// The boundary committed last.
    pub boundary: Option<Boundary>,
}

/// Where a lane's batches come from.
pub enum Reading {
    /// Anyone may read for it, from this place on: the engine shares readers.
    From(ReadFrom),
    /// Only this source, which belongs to the lane's consumer group.
    Own(Box<dyn Source>),
}

/// How much [`Source::poll`] may hand out at once. Whatever is there is taken; a batch never waits to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimit {
    /// Events at most.
    pub events_max: usize,
    /// Bytes at most, but one event always fits.
    pub bytes_max: usize,
}

impl Default for BatchLimit {
    fn default() -> Self {
        Self { events_max: 512, bytes_max: 64 << 10 }
    }
}

/// The reading side of one partition.
#[async_trait]
pub trait Source: Send {
    /// What is there, at most `limit`; an empty batch once `wait` has passed. Awaited to its end by every caller, so
    /// it need not be cancel-safe. After an error the source is thrown away.
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError>;
}

/// Events of one partition, in order, with their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceBatch {
    /// The events; shared, since many pipelines may work on one batch.
    pub events: Arc<Batch>,
    /// The place of each event; ascending, except that entries a group hands out again come before newer ones.
    pub offsets: Vec<Offset>,
    /// Entries that were no events, with their bytes.
    pub undecodable: Vec<Undecodable>,
    /// Entries whose own time to live had passed.
    pub expired: Vec<Offset>,
    /// Entries that the broker trimmed before they were read.
    pub lost_to_trim: u64,
}

impl SourceBatch {
    /// Whether it covers nothing at all.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty() && self.undecodable.is_empty() && self.expired.is_empty() && self.lost_to_trim == 0
    }

    /// Every entry that this batch covers.
    pub fn covered(&self) -> impl Iterator<Item = Offset> {
        let undecodable = self.undecodable.iter().map(|entry| entry.offset);
        self.offsets.iter().copied().chain(undecodable).chain(self.expired.iter().copied())
    }

    /// What of this batch lies behind `offset`.
    #[must_use]
    pub fn after(&self, offset: Offset) -> Self {
        let row = self.offsets.partition_point(|at| *at <= offset);
        let mut events = Batch::default();
        events.extend_from(&self.events, row..self.events.len()).expect("a part of a batch fits into one");
        Self {
            events: Arc::new(events),
            offsets: self.offsets[row..].to_vec(),
            undecodable: self.undecodable.iter().filter(|entry| entry.offset > offset).cloned().collect(),
            expired: self.expired.iter().copied().filter(|at| *at > offset).collect(),
            lost_to_trim: 0,
        }
    }

    /// The highest entry covered.
    pub fn last(&self) -> Option<Offset> {
        self.covered().max()
    }
}

/// An entry that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// Its place.
    pub offset: Offset,
    /// Why, in one sentence.
    pub reason: String,
    /// What was there: the value, or the fields as a JSON object of texts (bytes that are no text as base64).
    pub bytes: Vec<u8>,
}

/// Events for one topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Where to.
    pub topic: TopicPath,
    /// How they are written, where the broker has a choice.
    pub encoding: Encoding,
    /// The events, in order.
    pub events: Arc<Batch>,
}

/// Everything that becomes durable with a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Outputs and dead letters on the lane's own broker.
    pub outputs: Vec<Output>,
    /// The entries that are done with, in the order they were read. The highest becomes the cursor.
    pub covered: Vec<Offset>,
    /// The plugins that handled these entries, if others than before did.
    pub boundary: Option<Boundary>,
}

/// From which place on a lane was handled by which plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    /// The first entry that these plugins handled.
    pub from: Offset,
    /// Stage name and plugin digest (64 hexadecimal digits), in order.
    pub stages: Vec<(String, String)>,
}

/// The writing side of one lane.
#[async_trait]
pub trait Committer: Send {
    /// Makes all effects durable at once, or none. Returns once they are.
    ///
    /// # Errors
    /// After any error the committer is thrown away and the lane opened again; what became durable, the place found
    /// then tells.
    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError>;
}

/// What is known of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: TopicName,
    /// Each partition, from 0.
    pub partitions: Vec<PartitionInfo>,
    /// Whether there may be fewer events than are counted, since the broker also counts what is none.
    pub at_most: bool,
}

/// What is known of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The oldest entry that is kept.
    pub earliest: Option<Offset>,
    /// The newest entry.
    pub latest: Option<Offset>,
    /// How many entries are kept.
    pub events: u64,
    /// How many bytes they take, if the broker tells.
    pub bytes: Option<u64>,
}

/// What went wrong at a broker, and where.
#[derive(Debug, thiserror::Error)]
#[error("broker `{broker}`: {message}")]
pub struct BrokerError {
    /// Which broker.
    pub broker: BrokerName,
    /// What it means.
    pub kind: BrokerErrorKind,
    /// One sentence: what was being done, what happened, what to do.
    pub message: String,
}

impl BrokerError {
    /// The same, of a first step that failed: nothing was begun.
    #[must_use]
    pub fn before_anything(self) -> Self {
        match self.kind {
            BrokerErrorKind::Unavailable => Self { kind: BrokerErrorKind::Unreachable, ..self },
            _ => self,
        }
    }
}

/// What an error of a broker means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerErrorKind {
    /// It cannot be reached, or did not answer; what was asked for may or may not have happened.
    Unavailable,
    /// It cannot be reached, and nothing of what was asked for was begun.
    Unreachable,
    /// It takes no writes for now: disk or memory is full.
    Full,
    /// Someone else owns the lane now.
    Fenced,
    /// It refuses us: credentials, permissions or configuration.
    Refused,
    /// What was asked for does not exist or does not fit.
    Invalid,
    /// What is stored cannot be read.
    Corrupt,
}

/// How a failure ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Open the lane again after a while, which grows while it goes on failing.
    Retry,
    /// Someone else has the lane, for a moment as a rule: try again at short intervals.
    RetrySoon,
    /// Stop the pipeline with the reason.
    Stop,
}

impl BrokerErrorKind {
    /// What happens next.
    pub fn ending(self) -> Ending {
        match self {
            Self::Unavailable | Self::Unreachable | Self::Full => Ending::Retry,
            Self::Fenced => Ending::RetrySoon,
            Self::Refused | Self::Invalid | Self::Corrupt => Ending::Stop,
        }
    }
}
