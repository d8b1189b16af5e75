//! The Kafka broker against a real Kafka.

mod contract;
mod groups;
mod records;
mod security;
mod support;
