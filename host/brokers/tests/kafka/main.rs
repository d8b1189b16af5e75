//! The Kafka broker against a real Kafka.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod contract;
mod coordinators;
mod groups;
mod records;
mod security;
mod support;
