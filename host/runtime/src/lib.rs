//! Runs Synapse plugins: the only crate that names wasmtime.
//!
//! [`Runtime`] is a [`synapse_core::stage::PluginLoader`]: it reads a component, says in one sentence why it is not a
//! plugin, or compiles it; a [`synapse_core::stage::Plugin`] makes stages; a [`synapse_core::stage::Stage`] runs
//! batches and, when the guest faults, finds the events at fault. Invariants: a guest gets only what it was granted; it
//! never holds a thread longer than one epoch tick; an instance that faulted is never used again; whatever a guest
//! answers is checked before anybody else sees it. This crate knows neither brokers, nor pipelines, nor WASI.

mod runtime;

mod cache;
mod contract;
mod engine;
mod inspect;

mod host;
mod plugin;
mod sandbox;
mod stage;

mod answer;
mod merge;
mod text;

pub use runtime::{Error, Runtime, RuntimeOptions};
