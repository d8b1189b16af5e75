//! The Redis broker against a real redis-server.
#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod cluster;
mod cluster_support;
mod contract;
mod faults;
mod foreign;
mod groups;
mod leases;
mod losses;
mod sharing;
mod support;
