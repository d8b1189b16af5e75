//! What the API answers, as JSON: written by the host, read back by the command line.
//!
//! Fields may be added in later versions, so readers pass over what they do not know. Names of more than one word are
//! written with hyphens, as in the configuration.

use serde::{Deserialize, Serialize};
use synapse_core::topic::{BrokerName, Offset, Position, TopicName, TopicPath};

/// What went wrong, as RFC 9457 has it (`application/problem+json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Names the kind of problem: `urn:synapse:problem:…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This problem: one sentence, with a remedy where there is one.
    pub detail: String,
    /// Of NDJSON: what is wrong, without the place and the count that `detail` names, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of NDJSON: the line at fault, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Of NDJSON: how many events are durable all the same; they came before the line at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
}

/// What became of one event, or of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Where each event lies, in order.
    pub positions: Vec<Position>,
}

/// What became of a stream of NDJSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// How many events are durable.
    pub accepted: u64,
    /// Where the first one lies.
    pub first: Option<Position>,
    /// Where the last one lies.
    pub last: Option<Position>,
}

/// All topics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topics {
    /// By broker, then by name.
    pub topics: Vec<Topic>,
    /// Brokers that could not be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Unavailable>,
}

/// A broker that could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    /// Which one.
    pub broker: BrokerName,
    /// Why.
    pub reason: String,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// `broker/topic`.
    pub path: TopicPath,
    /// Where it lies.
    pub broker: BrokerName,
    /// Its name there.
    pub name: TopicName,
    /// Events that are kept, in all partitions.
    pub events: u64,
    /// Whether there may be fewer than are counted, here and in each partition: Kafka also counts what marks the ends of
    /// transactions.
    #[serde(default, rename = "at-most", skip_serializing_if = "std::ops::Not::not")]
    pub at_most: bool,
    /// Bytes that they take, if the broker tells.
    pub bytes: Option<u64>,
    /// As configured; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Each partition, from 0.
    pub partitions: Vec<Partition>,
}

/// When old events go; absent bounds are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Retention {
    /// Seconds.
    pub age_seconds: Option<u64>,
    /// Bytes in each partition.
    pub bytes: Option<u64>,
    /// Events in each partition.
    pub events: Option<u64>,
}

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Which, from 0.
    pub partition: u32,
    /// The oldest event that is kept.
    pub earliest: Option<Offset>,
    /// The newest event.
    pub latest: Option<Offset>,
    /// How many are kept.
    pub events: u64,
    /// Bytes that they take, if the broker tells.
    pub bytes: Option<u64>,
}

/// A page of history is `{"events": […], "next": …}` with events as CloudEvents; this is the rest of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageEnd {
    /// What to give as `from` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Entries in the range that are no events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecodable: Vec<Undecodable>,
}

/// An entry that is no event; of live streams the data of an SSE event `undecodable`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undecodable {
    /// Its place.
    pub position: Position,
    /// Why.
    pub reason: String,
}

/// Of live streams the data of an SSE event `lost`: entries that were trimmed before they could be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Where: `broker/topic/partition`.
    pub partition: String,
    /// How many.
    pub events: u64,
}

/// All pipelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipelines {
    /// By name.
    pub pipelines: Vec<Pipeline>,
}

/// One pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// Who owns it.
    pub tenant: String,
    /// The host that tells this, as it is called where lanes have owners.
    #[serde(default)]
    pub host: String,
    /// `starting`, `running`, `waiting` (for a Kafka that cannot be reached, or for a share there), `stopped` or `ended`.
    pub state: String,
    /// Why it stopped or waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why the last new version or configuration is not used, or why it has not started yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Why owners, lags and lanes of other hosts are not told, where they cannot be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
    /// What it promises.
    pub guarantee: Guarantee,
    /// The topics it reads.
    pub from: Vec<TopicPath>,
    /// Where events go that no router sent elsewhere.
    pub to: Vec<TopicPath>,
    /// Where events go that could not be processed.
    pub dead_letters: TopicPath,
    /// In order.
    pub stages: Vec<Stage>,
    /// Of each partition that is read; in lists only of those that this host works on.
    pub lanes: Vec<Lane>,
}

/// What a pipeline promises about effects under crashes of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantee {
    /// `exactly-once` or `at-least-once`.
    pub delivery: String,
    /// The reason, one sentence.
    pub why: String,
}

/// One use of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name in the pipeline.
    pub name: String,
    /// What is known of its plugin; absent until it was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Plugin>,
}

/// A plugin in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// By its own manifest.
    pub name: String,
    /// By its own manifest.
    pub version: String,
    /// `filter`, `transform` or `router`.
    pub kind: String,
    /// sha256 of the component: 64 hexadecimal digits.
    pub digest: String,
}

/// The processing of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Which partition: `broker/topic/partition`.
    pub partition: String,
    /// `opening`, `running`, `retrying`, `drained` or `stopped`; `elsewhere` if another host works on it or none does.
    pub health: String,
    /// The host that works on it, as the broker calls it; absent if the broker does not tell. Only of a single pipeline,
    /// not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Why it is retrying or stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The offset of the last event that is done with: all before it are, too, and their effects are durable. In
    /// lists: since the lane was opened by this host.
    pub committed: Option<Offset>,
    /// How many entries lie behind it, if that is known. Only of a single pipeline, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
}

/// Which plugins handled which part of what a pipeline has read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The pipeline.
    pub pipeline: String,
    /// By partition.
    pub lanes: Vec<LaneHistory>,
}

/// The changes of plugins in one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneHistory {
    /// Which partition: `broker/topic/partition`.
    pub partition: String,
    /// Oldest first.
    pub boundaries: Vec<Boundary>,
}

/// From which entry on a lane was handled by which plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    /// The first entry that these plugins handled.
    pub from: Offset,
    /// In order.
    pub stages: Vec<StageDigest>,
}

/// The plugin of one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageDigest {
    /// The stage's name.
    pub name: String,
    /// sha256 of the plugin: 64 hexadecimal digits.
    pub digest: String,
}

/// Whether the host can be relied on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether it can.
    pub ready: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// Pipelines that need an operator; they do not make the host unready.
    pub stopped: Vec<String>,
    /// Lanes that failed and will try again; nor do they: another host may own them.
    pub retrying: Vec<String>,
}
