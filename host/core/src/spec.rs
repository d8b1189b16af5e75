//! What a pipeline is, checked: the narrow types that the engine sees.
//!
//! Whoever builds these (the configuration, later the API) has checked names, ranges and references; nothing behind
//! this module validates again. Two specs are equal exactly if a running pipeline need not be touched.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use crate::pattern::Pattern;
use crate::share::Share;
use crate::time::Timestamp;
use crate::topic::{BrokerName, Label, Offset, TopicPath};

/// Source → stages → sinks, owned by a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineSpec {
    /// Unique on the host; also the consumer group's name on brokers that have groups.
    pub name: Label,
    /// Who owns it.
    pub tenant: Label,
    /// The topics it reads, at least one.
    pub from: Vec<TopicPath>,
    /// Where events go that no router sent elsewhere; empty: they end here.
    pub to: Vec<SinkSpec>,
    /// Where events go that could not be processed.
    pub dead_letters: TopicPath,
    /// How Redis is read.
    pub read: ReadMode,
    /// Workers by partition key for each lane.
    pub parallel: NonZeroUsize,
    /// Where a lane without a position begins.
    pub start: Start,
    /// In order; may be empty (a plain copy).
    pub stages: Vec<StageSpec>,
}

/// One place that outputs go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSpec {
    /// The topic.
    pub topic: TopicPath,
    /// How events are written there.
    pub encoding: Encoding,
}

/// How events are written to a broker that has a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// CloudEvents in the broker's own way: `ce_*` fields or headers.
    #[default]
    CloudEvents,
    /// Every field of the event a field of the entry, for older consumers.
    Fields,
}

/// How a lane reads Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// One owner a partition, in order, exactly-once.
    #[default]
    Cursor,
    /// A consumer group shared with others: no order across hosts.
    Group,
}

/// Where a lane without a position begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// The oldest event that is kept.
    #[default]
    Earliest,
    /// The next event to come.
    Latest,
    /// The first event at or after this time.
    Time(Timestamp),
}

/// One use of a plugin in a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSpec {
    /// Unique within the pipeline.
    pub name: Label,
    /// Which plugin.
    pub plugin: PluginRef,
    /// Handed to the plugin's `configure`: a JSON object.
    pub config: serde_json::Value,
    /// Host interfaces the plugin may import beyond `log`.
    pub grants: Vec<String>,
    /// Routers only: topics it may send to. A pattern without a broker is on the default broker.
    pub routes: Vec<RoutePattern>,
    /// The sandbox's bounds.
    pub limits: StageLimits,
    /// What happens to an event that the plugin rejects or fails on.
    pub on_error: OnError,
    /// How long an instance lives.
    pub instance: InstanceMode,
}

/// Where a stage's component comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PluginRef {
    /// A file, watched; absolute.
    File(PathBuf),
}

/// Topics that a router may send to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePattern {
    /// The broker.
    pub broker: BrokerName,
    /// The topics on it.
    pub topic: Pattern,
}

impl RoutePattern {
    /// Whether `path` may be sent to.
    pub fn allows(&self, path: &TopicPath) -> bool {
        self.broker == path.broker && self.topic.matches(path.topic.as_str())
    }
}

/// The sandbox's bounds for one instance of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageLimits {
    /// Linear memory of an instance, in bytes.
    pub memory_bytes_max: usize,
    /// CPU time of one call with one batch.
    pub cpu_max: Duration,
    /// Size of what one call may answer, in bytes.
    pub output_bytes_max: usize,
    /// Log lines a second; more are counted, not written.
    pub log_lines_per_second_max: NonZeroU32,
}

impl Default for StageLimits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 << 20,
            cpu_max: Duration::from_millis(100),
            output_bytes_max: 16 << 20,
            log_lines_per_second_max: NonZeroU32::new(100).expect("100 is not 0"),
        }
    }
}

/// What happens to an event that a plugin rejects or fails on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Kept with the reason in the pipeline's dead-letter topic.
    #[default]
    DeadLetter,
    /// Counted and forgotten.
    Drop,
    /// Goes on to the next stage as it came in.
    Pass,
    /// The pipeline stops before the event.
    Stop,
}

/// How long an instance lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InstanceMode {
    /// As long as the lane; recycled after many batches or at a memory high-water mark.
    #[default]
    Lane,
    /// Fresh for each batch: nothing can leak from one to the next.
    Batch,
}

/// How a topic is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// How many shards.
    pub partitions: NonZeroU32,
    /// When old events go.
    pub retention: Retention,
}

impl Default for TopicSpec {
    fn default() -> Self {
        Self { partitions: NonZeroU32::MIN, retention: Retention::default() }
    }
}

/// When old events of a topic go; whichever bound is met first. Without bounds they stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Events older than this may go.
    pub age: Option<Duration>,
    /// Bytes kept in each partition.
    pub bytes: Option<u64>,
    /// Events kept in each partition.
    pub events: Option<u64>,
}

/// From where a topic is read outside of pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// The oldest event that is kept.
    Earliest,
    /// The next event to come.
    Latest,
    /// The first event at or after this time.
    Time(Timestamp),
    /// The first event at or after this offset.
    At(Offset),
    /// The first event after this offset.
    After(Offset),
}

impl From<Start> for ReadFrom {
    fn from(start: Start) -> Self {
        match start {
            Start::Earliest => Self::Earliest,
            Start::Latest => Self::Latest,
            Start::Time(time) => Self::Time(time),
        }
    }
}

/// What a pipeline promises about effects under crashes of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarantee {
    /// Whether each event's effects happen exactly once, or at least once.
    pub exactly_once: bool,
    /// One sentence for operators.
    pub why: String,
}

impl PipelineSpec {
    /// The work on each broker that is read, as hosts share it.
    pub fn shares(&self) -> BTreeMap<BrokerName, Share> {
        let mut shares = BTreeMap::new();
        for path in &self.from {
            let empty = || Share { pipeline: self.name.clone(), topics: Vec::new(), read: self.read };
            shares.entry(path.broker.clone()).or_insert_with(empty).topics.push(path.topic.clone());
        }
        shares
    }

    /// The promise and the reason for it. `commits_apart` tells why a broker does not make outputs and cursor durable at
    /// once, if it does not.
    pub fn guarantee(&self, commits_apart: impl Fn(&BrokerName) -> Option<&'static str>) -> Guarantee {
        let at_least = |why: String| Guarantee { exactly_once: false, why };
        let home = &self.from[0].broker;
        if let Some(other) = self.from.iter().find(|topic| topic.broker != *home) {
            return at_least(format!("it reads from two brokers, `{home}` and `{}`", other.broker));
        }
        if let Some(why) = commits_apart(home) {
            return at_least(format!("outputs are written to broker `{home}` first, then the position: {why}"));
        }
        let sinks = self.to.iter().map(|sink| (&sink.topic.broker, "sink"));
        let routes = self.stages.iter().flat_map(|stage| &stage.routes).map(|route| (&route.broker, "route"));
        let dead = [(&self.dead_letters.broker, "dead-letter topic")];
        match sinks.chain(routes).chain(dead).find(|(broker, _)| *broker != home) {
            Some((broker, what)) => at_least(format!(
                "a {what} is on broker `{broker}`, the source on `{home}`: outputs are written first, then the position"
            )),
            None => Guarantee {
                exactly_once: true,
                why: format!("source, outputs and dead letters are on broker `{home}`: one atomic commit a batch"),
            },
        }
    }
}
