//! The plugin runtime with real components: what loads, what well-behaved guests answer, and what the host does about
//! hostile ones.

#![expect(clippy::unwrap_used, reason = "a test that fails says where by itself")]

mod support;

mod hostile;
mod kinds;
mod lies;
mod loading;
mod log;
