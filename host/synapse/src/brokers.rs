//! From the configuration's brokers to connected ones.
//!
//! The one place that knows which kinds there are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use synapse_brokers::embedded::{self, EmbeddedLog};
use synapse_brokers::kafka::{KafkaBroker, KafkaOptions};
use synapse_brokers::memory::MemoryBroker;
use synapse_brokers::redis::{RedisBroker, RedisOptions, Servers};
use synapse_core::Broker;
use synapse_core::topic::BrokerName;

use crate::config::{BrokerSpec, KafkaSpec};

/// Opens or connects to a broker; other hosts know this one as `host_id`. One that is away is no error: it is connected
/// to once it is there.
///
/// # Errors
/// What waiting cannot mend: an address that is none, a log that is damaged or in use by another process.
pub async fn open(name: &BrokerName, spec: &BrokerSpec, data: &Path, host_id: &str) -> anyhow::Result<Arc<dyn Broker>> {
    Ok(match spec {
        BrokerSpec::Memory => Arc::new(MemoryBroker::new(name.clone())),
        BrokerSpec::Embedded => {
            let dir = embedded_log(data);
            let options = embedded::Options { name: name.clone(), ..embedded::Options::default() };
            let (log, found) = tokio::task::spawn_blocking(move || EmbeddedLog::open(dir, options)).await??;
            tracing::info!(broker = %name, topics = found.topics, events = found.events, took = ?found.took, "opened the embedded log");
            Arc::new(log)
        }
        BrokerSpec::Redis { url, lease } => {
            let options =
                RedisOptions { lease: *lease, host_id: host_id.to_owned(), ..RedisOptions::new(url.expose()) };
            Arc::new(RedisBroker::new(name.clone(), options)?)
        }
        BrokerSpec::RedisCluster { nodes, lease } => {
            let servers = Servers::Cluster(nodes.iter().map(|node| node.expose().to_owned()).collect());
            let options = RedisOptions { lease: *lease, host_id: host_id.to_owned(), ..RedisOptions::at(servers) };
            Arc::new(RedisBroker::new(name.clone(), options)?)
        }
        BrokerSpec::Kafka(spec) => Arc::new(KafkaBroker::new(name.clone(), kafka_options(spec, host_id))?),
    })
}

fn kafka_options(spec: &KafkaSpec, host_id: &str) -> KafkaOptions {
    KafkaOptions {
        host_id: host_id.to_owned(),
        lease: spec.lease,
        exactly_once: spec.exactly_once,
        client: spec.client.expose().clone(),
        ..KafkaOptions::new(&spec.bootstrap)
    }
}

/// Where the embedded log lies.
pub fn embedded_log(data: &Path) -> PathBuf {
    data.join("log")
}

/// Names this host to others that share its brokers; made once for a data directory and kept in it.
///
/// # Errors
/// A directory that cannot be written.
pub fn host_id(data: &Path) -> anyhow::Result<String> {
    let file = data.join("host-id");
    if let Ok(id) = std::fs::read_to_string(&file)
        && !id.trim().is_empty()
    {
        return Ok(id.trim().to_owned());
    }
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).context("the system gives no random bytes")?;
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&file, &id).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(id)
}
