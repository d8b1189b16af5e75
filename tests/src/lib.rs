//! What the integration tests stand on: the real binary, a real redis-server, components built from source, and one
//! checker for everything that promises to lose and repeat nothing.

pub mod bus;
pub mod chaos;
pub mod checker;
pub mod forward;
pub mod host;
pub mod load;
pub mod machine;
pub mod plugins;
pub mod random;
pub mod redis;

/// How long a test waits for what must come.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
