//! The Synapse host: configuration, wiring, HTTP and command line.

pub mod config;
pub mod plugin;
pub mod watch;
