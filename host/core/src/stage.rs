//! What the engine asks of plugins: load a component, make an instance of it, run a batch through it.
//!
//! The engine knows only these traits; how a component runs, is limited and is narrowed down to the event at fault is
//! hidden behind them. Nothing here knows wasm.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::batch::Batch;
use crate::broker::Ending;
use crate::spec::{PluginRef, StageSpec};
use crate::topic::Label;

/// sha256 of a component's bytes: which code handled an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not a digest of 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

/// What a plugin does with events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginKind {
    /// A verdict each.
    Filter,
    /// Each becomes zero, one or many.
    Transform,
    /// Each goes to zero, one or many topics.
    Router,
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Transform => "transform",
            Self::Router => "router",
        })
    }
}

/// What is known of a loaded plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginInfo {
    /// By its own manifest.
    pub name: String,
    /// By its own manifest; semantic version.
    pub version: String,
    /// By its own manifest; one line.
    pub summary: String,
    /// JSON Schema of its configuration; empty: takes none.
    pub config_schema: String,
    /// sha256 of the component.
    pub digest: Digest,
    /// Filter, transform or router.
    pub kind: PluginKind,
    /// Whether it speaks the columnar world (true) or the typed one.
    pub columnar: bool,
    /// The grants its imports ask for, for example `state`; without `log`.
    pub wants: Vec<String>,
    /// Size of the component in bytes.
    pub size_bytes: usize,
}

/// Loads components. One for each host.
#[async_trait]
pub trait PluginLoader: Send + Sync {
    /// Reads and compiles off the hot path; the same bytes are compiled once.
    async fn load(&self, plugin: &PluginRef) -> Result<Arc<dyn Plugin>, PluginError>;
}

/// A compiled component from which stages are made.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// What is known of it.
    fn info(&self) -> &PluginInfo;

    /// Instantiates it, checks grants and kind, and calls `configure`. A stage serves one lane.
    async fn stage(&self, pipeline: &Label, spec: &StageSpec) -> Result<Box<dyn Stage>, PluginError>;
}

/// One configured instance in one lane. It is told of nothing but batches; a trap inside is its own affair.
#[async_trait]
pub trait Stage: Send {
    /// What is known of its plugin.
    fn info(&self) -> &PluginInfo;

    /// Runs a batch through the plugin. After a trap, a timeout or memory exhaustion only the event at fault is in
    /// `failures`; the others were run again in order on a fresh instance. The future yields while the guest runs and
    /// may be polled on any thread; dropping it ends the guest.
    ///
    /// # Errors
    /// Only what is the host's fault; then nothing is known of any event of the batch.
    async fn run(&mut self, batch: &Batch) -> Result<StageRun, PluginError>;
}

/// What a plugin said of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct StageRun {
    /// Its answer; says nothing of the rows in `failures`.
    pub answer: Answer,
    /// Rows that are rejected or at fault; ascending, each row once.
    pub failures: Vec<Failure>,
    /// What it cost.
    pub usage: Usage,
}

/// A plugin's answer, by kind. The host has checked it: lengths, ranges and text are right.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Filter: one flag for each row of the batch.
    Keep(Vec<bool>),
    /// Transform: the new events and for each the row it came from, ascending.
    Rewrite {
        /// The new events.
        batch: Batch,
        /// For each event of `batch` its parent's row.
        parents: Vec<u32>,
    },
    /// Router: where each row goes.
    Route {
        /// Every topic named, as the plugin wrote it: `topic` or `broker/topic`.
        topics: Vec<String>,
        /// For each row an index into `choices`; `None`: on to the next stage or the pipeline's own sinks.
        choice: Vec<Option<u32>>,
        /// Sets of indices into `topics`; an empty set drops the event.
        choices: Vec<Vec<u32>>,
    },
}

/// Why an event could not be processed by a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The row in the batch that was given.
    pub row: u32,
    /// What happened.
    pub kind: FailureKind,
    /// For operators: the plugin's reason, or the trap.
    pub reason: String,
}

/// What happened to the event at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The plugin said so.
    Rejected,
    /// The guest trapped: a panic, an overflow of its stack, an access out of bounds.
    Trap,
    /// The guest used more CPU time than the stage allows.
    Deadline,
    /// The guest wanted more memory than the stage allows.
    Memory,
    /// The answer was larger than the stage allows.
    OutputTooLarge,
    /// The answer broke the contract.
    BadAnswer,
    /// A router named a topic that it may not send to.
    Route,
    /// The bytes on the broker were no event.
    Undecodable,
}

impl FailureKind {
    /// As written in dead letters and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::OutputTooLarge => "output-too-large",
            Self::BadAnswer => "bad-answer",
            Self::Route => "route",
            Self::Undecodable => "undecodable",
        }
    }
}

/// What a run of a stage cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time spent inside the guest.
    pub cpu: Duration,
    /// Linear memory after the run, in bytes.
    pub memory_bytes: usize,
    /// Traps, timeouts and memory exhaustions, also those while narrowing down to the event at fault.
    pub faults: u32,
    /// Fresh instances that were needed.
    pub instances: u32,
}

/// A plugin that cannot be used, or a host that cannot run it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    /// What it means for the pipeline.
    pub kind: PluginErrorKind,
    /// One sentence with place and remedy, for operators.
    pub message: String,
}

impl PluginError {
    /// With a kind and a sentence.
    pub fn new(kind: PluginErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl PluginErrorKind {
    /// What happens next.
    pub fn ending(self) -> Ending {
        match self {
            Self::Exhausted => Ending::Retry,
            // A file that cannot be read is watched: once it can be, the pipeline goes on.
            Self::Unreadable | Self::Unusable | Self::Misconfigured | Self::Internal => Ending::Stop,
        }
    }
}

/// What an error of a plugin means for the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginErrorKind {
    /// The file cannot be read just now.
    Unreadable,
    /// The bytes are no component of our worlds, or it wants what it was not granted: this version is never usable.
    Unusable,
    /// `configure` refused the configuration.
    Misconfigured,
    /// The host is short of something: trying again later may help.
    Exhausted,
    /// A defect of the host.
    Internal,
}
