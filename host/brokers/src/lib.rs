//! The brokers: memory, the embedded log, Redis Streams; and the contract that each of them keeps.
//!
//! This crate must not know the engine, plugins or wasm.

mod alone;
pub mod clock;
#[doc(hidden)]
pub mod contract;
pub mod embedded;
mod fill;
pub mod kafka;
pub mod memory;
pub mod redis;
mod rows;
