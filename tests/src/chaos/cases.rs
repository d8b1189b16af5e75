//! Every case, by what goes wrong.

mod clock;
mod disk;
mod events;
mod hosts;
mod kafka;
mod network;
mod redis;
mod sinks;

use super::Case;

/// Every case, in the order of the table.
pub fn all() -> Vec<Case> {
    [hosts::CASES, redis::CASES, kafka::CASES, network::CASES, disk::CASES, clock::CASES, events::CASES, sinks::CASES]
        .concat()
}
