//! Real servers for tests: each in a directory of its own on free ports of 127.0.0.1, ready by its own word, ended by
//! its own process id.
//!
//! A crate of its own, since the tests of the broker crate need it as well as the integration tests, which stand on all
//! crates. It must not know anything of Synapse.

pub mod kafka;

/// How long a server may take until it is ready.
const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

/// A TCP port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// If there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
