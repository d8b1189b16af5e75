//! Producers and readers of each broker, with clients of their own: what they say does not depend on Synapse, except on
//! the embedded log, which only its host can read.
//!
//! Events have ids `key/number`, the key as partition key and `{"n":number}` as data.

mod embedded;
mod kafka;
mod redis;

use std::time::Duration;

use ::redis::Client;
use ::redis::cluster::ClusterClient;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::checker::{Kind, Receipt};
use crate::load::Send;

/// How long a client waits for a broker.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How many events a reader asks for at once.
const PAGE: usize = 5_000;

/// Where clients reach a broker.
#[derive(Clone)]
pub enum Endpoint {
    /// The embedded log, through the HTTP API of its host at this address.
    Embedded(String),
    /// A Redis.
    Redis(Client),
    /// A cluster of Redis.
    RedisCluster(ClusterClient),
    /// A Kafka cluster with these servers.
    Kafka(String),
}

/// A topic as clients see it.
#[derive(Clone)]
pub struct Topic {
    /// Where it is.
    pub at: Endpoint,
    /// Its name there.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u32,
}

/// Reads a topic from its beginning.
pub trait Reader: std::marker::Send {
    /// What came since the last call.
    ///
    /// # Errors
    /// If the broker is away, or holds an event that nobody sent like this. May be called again.
    fn read(&mut self) -> Result<Vec<Receipt>>;
}

impl Topic {
    /// A producer's way to publish.
    pub fn sender(&self, kind: fn(&Receipt) -> Kind) -> Send {
        match &self.at {
            Endpoint::Embedded(url) => embedded::sender(url, self, kind),
            Endpoint::Redis(client) => redis::sender(client, self, kind),
            Endpoint::RedisCluster(client) => redis::sender(client, self, kind),
            Endpoint::Kafka(bootstrap) => kafka::sender(bootstrap, self, kind),
        }
    }

    /// A reader of its own.
    pub fn reader(&self) -> Box<dyn Reader> {
        match &self.at {
            Endpoint::Embedded(url) => Box::new(embedded::HistoryReader::new(url, self)),
            Endpoint::Redis(client) => Box::new(redis::StreamReader::new(client, self)),
            Endpoint::RedisCluster(client) => Box::new(redis::StreamReader::new(client, self)),
            Endpoint::Kafka(bootstrap) => Box::new(kafka::RecordReader::new(bootstrap, self)),
        }
    }

    /// Everything that it holds now.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_all(&self) -> Result<Vec<Receipt>> {
        self.reader().read().with_context(|| format!("read the topic `{}`", self.name))
    }

    /// The stream of a partition on Redis.
    pub fn stream(&self, partition: u32) -> String {
        if self.partitions == 1 { self.name.clone() } else { format!("{}:{{{partition}}}", self.name) }
    }
}

/// Events as lines of CloudEvents JSON.
pub fn ndjson(receipts: &[Receipt], kind: fn(&Receipt) -> Kind) -> String {
    let line = |receipt: &Receipt| {
        format!(
            r#"{{"specversion":"1.0","id":"{key}/{n}","source":"/load","type":"{kind}","partitionkey":"{key}","data":{{"n":{n}}}}}"#,
            key = receipt.key,
            n = receipt.number,
            kind = kind(receipt).name(),
        ) + "\n"
    };
    receipts.iter().map(line).collect()
}

/// The receipt of an event, if it is whole.
fn receipt(id: &str, data: &Value) -> Result<Receipt> {
    let receipt = Receipt::from_id(id);
    ensure!(data["n"] == receipt.number, "the event {id} holds {data}, which nobody sent");
    Ok(receipt)
}
