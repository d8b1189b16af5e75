//! A real cluster for one test: masters with or without a replica each, ready once every node knows it.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use synapse_brokers::redis::{RedisBroker, RedisOptions, Servers};
use synapse_core::Broker;

use crate::support::{CLI, RedisServer};

const MASTERS: usize = 3;
/// How long the nodes may take to know each other.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A node's second port is this much above the first.
const BUS_PORT: u16 = 10_000;
/// How often ports are chosen that someone else takes first.
const PORTS_MAX: usize = 50;

/// Running nodes: the masters first.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Three masters with `replicas` each.
    pub(crate) fn start(replicas: usize) -> Self {
        let nodes: Vec<_> = (0..MASTERS * (1 + replicas)).map(|_| start_node()).collect();
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let replicas = replicas.to_string();
        let created = Command::new(CLI)
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", &replicas, "--cluster-yes"])
            .output()
            .unwrap();
        assert!(created.status.success(), "redis-cli --cluster create: {created:?}");
        let cluster = Self { nodes };
        let started = Instant::now();
        while !cluster.nodes.iter().all(|node| cluster.is_ready(node)) {
            assert!(started.elapsed() < READY_WITHIN, "the nodes should know each other by now");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }

    fn is_ready(&self, node: &RedisServer) -> bool {
        let info = node.cli(&["CLUSTER", "INFO"]);
        let known = format!("cluster_known_nodes:{}", self.nodes.len());
        let linked = !node.cli(&["INFO", "replication"]).contains("master_link_status:down");
        info.contains("cluster_state:ok") && info.contains(&known) && linked
    }

    /// A broker `bus` of a host, which knows two of the nodes.
    pub(crate) async fn broker(&self, host: &str) -> RedisBroker {
        self.broker_with(|options| options.host_id = host.to_owned()).await
    }

    pub(crate) async fn broker_with(&self, change: impl FnOnce(&mut RedisOptions)) -> RedisBroker {
        let broker = self.unconnected(change);
        broker.health().await.unwrap();
        broker
    }

    /// A broker that connects when it is first used.
    pub(crate) fn unconnected(&self, change: impl FnOnce(&mut RedisOptions)) -> RedisBroker {
        let urls = self.nodes[..2].iter().map(RedisServer::tcp_url).collect();
        let mut options = RedisOptions { host_id: "one".to_owned(), ..RedisOptions::at(Servers::Cluster(urls)) };
        change(&mut options);
        RedisBroker::new("bus".parse().unwrap(), options).unwrap()
    }

    /// Which of the nodes has the slot of a key.
    pub(crate) fn owner_of(&self, key: &str) -> usize {
        let slot = self.slot_of(key);
        let count = |node: &RedisServer| node.cli(&["CLUSTER", "COUNTKEYSINSLOT", &slot]);
        // Who does not own the slot has no keys in it, and a replica says that it is none.
        let owners: Vec<usize> = (0..self.nodes.len()).filter(|&node| self.is_master(node)).collect();
        let owner = owners.into_iter().find(|&node| count(&self.nodes[node]) != "0");
        owner.unwrap_or_else(|| panic!("nobody has `{key}`"))
    }

    pub(crate) fn slot_of(&self, key: &str) -> String {
        self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key])
    }

    fn is_master(&self, node: usize) -> bool {
        self.nodes[node].cli(&["ROLE"]).starts_with("master")
    }

    pub(crate) fn id_of(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"])
    }
}

fn start_node() -> RedisServer {
    for _ in 0..PORTS_MAX {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The second port must be one, and not among those that systems hand out by themselves.
        let port = port % 20_000 + 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_err() || TcpListener::bind(("127.0.0.1", port + BUS_PORT)).is_err()
        {
            continue;
        }
        let arguments =
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"];
        if let Some(node) = RedisServer::start_on(port, &arguments) {
            return node;
        }
    }
    panic!("no free pair of ports was found in {PORTS_MAX} tries");
}
