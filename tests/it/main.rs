//! The real binary with real brokers and real components.

#![expect(clippy::unwrap_used, reason = "a test that fails says where by itself")]

mod chaos;
mod commands;
mod faults;
mod swap;
