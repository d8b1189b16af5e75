//! The Redis broker keeps the contract, over TCP, over a Unix socket, on a cluster, and over a crash of the server.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use synapse_brokers::contract::{DurableHarness, Harness, SharedHarness};
use synapse_brokers::redis::{RedisBroker, RedisOptions};
use synapse_core::Broker;

use crate::cluster_support::RedisCluster;
use crate::support::RedisServer;

struct Redis {
    server: Mutex<RedisServer>,
    url: String,
}

impl Redis {
    fn tcp() -> Self {
        let server = RedisServer::start_on_tcp(&[]);
        Self { url: server.tcp_url(), server: Mutex::new(server) }
    }

    fn unix() -> Self {
        let server = RedisServer::start(&[]);
        Self { url: server.unix_url(), server: Mutex::new(server) }
    }

    /// Everything acknowledged is on disk.
    fn durable() -> Self {
        let server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
        Self { url: server.unix_url(), server: Mutex::new(server) }
    }
}

#[async_trait]
impl Harness for Redis {
    async fn broker(&self) -> Arc<dyn Broker> {
        self.host("one").await
    }

    /// A process that replaces one on the same host.
    async fn peer(&self, _of: &Arc<dyn Broker>) -> Arc<dyn Broker> {
        self.broker().await
    }
}

#[async_trait]
impl SharedHarness for Redis {
    async fn host(&self, name: &str) -> Arc<dyn Broker> {
        let options = RedisOptions { host_id: name.to_owned(), ..RedisOptions::new(self.url.as_str()) };
        Arc::new(RedisBroker::connect("bus".parse().unwrap(), options).await.unwrap())
    }
}

#[async_trait]
impl DurableHarness for Redis {
    /// Worse than the process ending: the server is killed, too.
    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        drop(broker);
        {
            let mut server = self.server.lock().unwrap();
            server.kill();
            server.start_again();
        }
        self.broker().await
    }
}

/// Three masters, which promises that run side by side share.
struct Cluster(Arc<RedisCluster>);

impl Cluster {
    async fn shared() -> Self {
        static RUNNING: Mutex<Weak<RedisCluster>> = Mutex::new(Weak::new());
        let start = || {
            // Whoever comes while it starts waits for it.
            let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
            running.upgrade().unwrap_or_else(|| {
                let started = Arc::new(RedisCluster::start(0));
                *running = Arc::downgrade(&started);
                started
            })
        };
        Self(tokio::task::spawn_blocking(start).await.unwrap())
    }
}

#[async_trait]
impl Harness for Cluster {
    async fn broker(&self) -> Arc<dyn Broker> {
        self.host("one").await
    }

    /// A process that replaces one on the same host.
    async fn peer(&self, _of: &Arc<dyn Broker>) -> Arc<dyn Broker> {
        self.broker().await
    }
}

#[async_trait]
impl SharedHarness for Cluster {
    async fn host(&self, name: &str) -> Arc<dyn Broker> {
        Arc::new(self.0.broker(name).await)
    }
}

mod cluster {
    synapse_brokers::keeps_contract!(super::Cluster::shared().await);
    synapse_brokers::shares_work!(super::Cluster::shared().await);
}

mod tcp {
    synapse_brokers::keeps_contract!(super::Redis::tcp());
}

mod unix {
    synapse_brokers::keeps_contract!(super::Redis::unix());
}

mod shared {
    synapse_brokers::shares_work!(super::Redis::unix());
}

mod restarted {
    synapse_brokers::survives_restart!(super::Redis::durable());
}
