//! A Redis Cluster of masters, and slots that move among them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use redis::cluster::ClusterClient;

use super::{RedisServer, RedisSettings};
use crate::PATIENCE;
use crate::host::free_address;

/// How many slots a cluster has.
const SLOTS: usize = 16_384;
/// How many keys move at once.
const KEYS: &str = "10";

/// A cluster; its servers are killed when it is dropped.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts so many masters, with append-only persistence, fsynced for every write.
    ///
    /// # Errors
    /// As [`RedisServer::start`], or if they do not get to know each other.
    pub fn start(masters: usize) -> Result<Self> {
        let mut nodes = Vec::new();
        let mut bus_ports = Vec::new();
        for _ in 0..masters {
            let bus_port = port(&free_address()?)?;
            let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus_port];
            let options = options.map(str::to_owned).to_vec();
            nodes.push(RedisServer::start_with(RedisSettings { options, ..RedisSettings::default() })?);
            bus_ports.push(bus_port);
        }
        for (index, node) in nodes.iter().enumerate() {
            let [first, last] = [index, index + 1].map(|part| part * SLOTS / masters);
            node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(last - 1).to_string()])?;
            node.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()])?;
        }
        for (node, bus_port) in nodes.iter().zip(&bus_ports).skip(1) {
            nodes[0].ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), bus_port])?;
        }
        let cluster = Self { nodes };
        let begun = Instant::now();
        while !cluster.is_ready()? {
            ensure!(begun.elapsed() < PATIENCE, "the nodes of the cluster do not get to know each other");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(cluster)
    }

    fn is_ready(&self) -> Result<bool> {
        let known = format!("cluster_known_nodes:{}", self.nodes.len());
        let told = self.nodes.iter().map(|node| node.ask::<String>(&["CLUSTER", "INFO"]));
        let told: Vec<String> = told.collect::<Result<_>>()?;
        Ok(told.iter().all(|info| info.contains("cluster_state:ok") && info.contains(&known)))
    }

    /// Where its nodes are.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// A client of the redis crate, apart from the host's.
    ///
    /// # Errors
    /// Never for these addresses.
    pub fn client(&self) -> Result<ClusterClient> {
        Ok(ClusterClient::new(self.urls())?)
    }

    /// Moves the slot of a key, with all that is in it, to the next node.
    ///
    /// # Errors
    /// If a node refuses it.
    pub fn move_slot_of(&self, key: &str) -> Result<()> {
        let slot = self.nodes[0].ask::<u64>(&["CLUSTER", "KEYSLOT", key])?.to_string();
        let from = self.owner(&slot)?;
        let (from, to) = (&self.nodes[from], &self.nodes[(from + 1) % self.nodes.len()]);
        let [from_id, to_id] = [from.ask::<String>(&["CLUSTER", "MYID"])?, to.ask(&["CLUSTER", "MYID"])?];
        to.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])?;
        from.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])?;
        loop {
            let keys: Vec<String> = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, KEYS])?;
            if keys.is_empty() {
                break;
            }
            let port = to.port().to_string();
            let fixed = ["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            let words: Vec<&str> = fixed.into_iter().chain(keys.iter().map(String::as_str)).collect();
            from.ask::<()>(&words)?;
        }
        // The new owner first, so that there is always one.
        let others = self.nodes.iter().filter(|node| node.port() != to.port());
        for node in [to].into_iter().chain(others) {
            node.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id])?;
        }
        Ok(())
    }

    /// Which node has a slot, by its own word.
    fn owner(&self, slot: &str) -> Result<usize> {
        let slot: usize = slot.parse()?;
        for (index, node) in self.nodes.iter().enumerate() {
            let nodes: String = node.ask(&["CLUSTER", "NODES"])?;
            let own = nodes.lines().find(|line| line.contains("myself")).context("a node knows itself")?;
            let mut ranges = own.split(' ').skip(8).filter_map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
            });
            if ranges.any(|range| range.contains(&slot)) {
                return Ok(index);
            }
        }
        anyhow::bail!("no node has the slot {slot}")
    }
}

fn port(address: &str) -> Result<String> {
    Ok(address.rsplit(':').next().context("no port")?.to_owned())
}
