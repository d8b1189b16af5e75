//! The pure heart of Synapse: what an event is, how batches are laid out, how places in topics are named, and the
//! interfaces that brokers, plugin runtimes and the engine meet at.
//!
//! Invariant: nothing here does I/O, reads a clock or draws randomness. This crate must not know Redis, Kafka, fjall,
//! wasmtime or tokio.

pub mod batch;
pub mod broker;
pub mod codec;
pub mod event;
pub mod pattern;
pub mod share;
pub mod spec;
pub mod stage;
pub mod time;
pub mod topic;

pub use batch::{Batch, BatchError, Column};
pub use broker::{Broker, BrokerError, Committer, Effects, Output, Source, SourceBatch};
pub use event::{Attributes, Event, EventRef};
pub use pattern::Pattern;
pub use time::Timestamp;
pub use topic::{BrokerName, Offset, Position, TopicName, TopicPartition, TopicPath};
