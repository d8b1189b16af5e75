//! Commands that work on this machine's files, without a running host.

pub mod bench;
pub mod check;
pub mod doctor;
pub mod plugin;
