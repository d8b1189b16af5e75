//! The Synapse host: configuration, wiring, HTTP and command line.

pub mod brokers;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod host;
pub mod http;
pub mod plugin;
pub mod watch;
