//! The HTTP API and the commands that speak to it, over real connections to a host on the memory broker.

#![expect(clippy::unwrap_used, reason = "a test that fails says where by itself")]

#[path = "http/support.rs"]
mod support;

#[path = "http/commands.rs"]
mod commands;
#[path = "http/health.rs"]
mod health;
#[path = "http/live.rs"]
mod live;
#[path = "http/problems.rs"]
mod problems;
#[path = "http/publish.rs"]
mod publish;
#[path = "http/reading.rs"]
mod reading;
