//! Lines in the host's log. The host adds pipeline, stage and the plugin's digest, and limits rate and length.
//!
//! Natively, lines are kept for the test at hand: see [`testing::take_log`](crate::testing::take_log).

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Single steps, for the author of the plugin.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an operator may want to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// What failed.
    Error,
}

/// Writes a line at [`Level::Trace`].
pub fn trace(message: impl AsRef<str>) {
    write(Level::Trace, message.as_ref());
}

/// Writes a line at [`Level::Debug`].
pub fn debug(message: impl AsRef<str>) {
    write(Level::Debug, message.as_ref());
}

/// Writes a line at [`Level::Info`].
pub fn info(message: impl AsRef<str>) {
    write(Level::Info, message.as_ref());
}

/// Writes a line at [`Level::Warn`].
pub fn warn(message: impl AsRef<str>) {
    write(Level::Warn, message.as_ref());
}

/// Writes a line at [`Level::Error`].
pub fn error(message: impl AsRef<str>) {
    write(Level::Error, message.as_ref());
}

/// Writes a line.
pub fn write(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::guest::write_log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::keep_log(level, message);
}
