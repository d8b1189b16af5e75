//! The Synapse host: configuration, wiring, HTTP and command line.

pub mod client;
pub mod http;
pub mod plugin;
