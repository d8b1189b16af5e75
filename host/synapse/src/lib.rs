//! The Synapse host: configuration, wiring, HTTP and command line.

pub mod client;
pub mod config;
pub mod http;
pub mod plugin;
pub mod watch;
