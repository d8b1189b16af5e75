//! Producers and readers of each broker, with clients of their own: what they say does not depend on Synapse, except on
//! the embedded log, which only its host can read.
//!
//! Events have ids `key/number`, the key as partition key and `{"n":number}` as data.

mod kafka;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redis::streams::StreamRangeReply;
use serde_json::Value;

use crate::checker::{Kind, Receipt};
use crate::host;
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
    Redis(redis::Client),
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
        let topic = self.clone();
        match &self.at {
            Endpoint::Embedded(url) => {
                let url = url.clone();
                Box::new(move |receipts| {
                    matches!(host::publish(&url, &topic.name, &ndjson(receipts, kind)), Ok((202, _)))
                })
            }
            Endpoint::Redis(client) => {
                let (client, mut connection) = (client.clone(), None);
                Box::new(move |receipts| {
                    let sent = connect(&client, &mut connection)
                        .and_then(|connection| xadd(connection, &topic, receipts, kind));
                    if sent.is_err() {
                        connection = None;
                    }
                    sent.is_ok()
                })
            }
            Endpoint::Kafka(bootstrap) => kafka::sender(bootstrap, self, kind),
        }
    }

    /// A reader of its own.
    pub fn reader(&self) -> Box<dyn Reader> {
        match &self.at {
            Endpoint::Embedded(url) => {
                Box::new(HistoryReader { url: url.clone(), topic: self.name.clone(), read_upto: BTreeMap::new() })
            }
            Endpoint::Redis(client) => {
                let streams = (0..self.partitions).map(|partition| (self.stream(partition), "-".to_owned())).collect();
                Box::new(StreamReader { client: client.clone(), connection: None, streams })
            }
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

fn connect<'c>(
    client: &redis::Client,
    kept: &'c mut Option<redis::Connection>,
) -> redis::RedisResult<&'c mut redis::Connection> {
    if let Some(connection) = kept {
        return Ok(connection);
    }
    let connection = client.get_connection_with_timeout(ANSWER_WITHIN)?;
    connection.set_read_timeout(Some(ANSWER_WITHIN))?;
    connection.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(kept.insert(connection))
}

fn xadd(
    connection: &mut redis::Connection,
    topic: &Topic,
    receipts: &[Receipt],
    kind: fn(&Receipt) -> Kind,
) -> redis::RedisResult<()> {
    let mut pipe = redis::pipe();
    for receipt @ Receipt { key, number } in receipts {
        let stream = topic.stream(synapse_core::topic::partition_of(key.as_bytes(), topic.partitions));
        pipe.cmd("XADD")
            .arg(&[&stream, "*", "ce_specversion", "1.0", "ce_source", "/load", "ce_type", kind(receipt).name()])
            .arg(&["ce_id", &format!("{key}/{number}"), "ce_partitionkey", key])
            .arg(&["content-type", "application/json", "data", &format!("{{\"n\":{number}}}")])
            .ignore();
    }
    pipe.query(connection)
}

/// The receipt of an event, if it is whole.
fn receipt(id: &str, data: &Value) -> Result<Receipt> {
    let receipt = Receipt::from_id(id);
    ensure!(data["n"] == receipt.number, "the event {id} holds {data}, which nobody sent");
    Ok(receipt)
}

struct StreamReader {
    client: redis::Client,
    connection: Option<redis::Connection>,
    /// Each stream, and where reading it goes on, as `XRANGE` has it.
    streams: Vec<(String, String)>,
}

impl StreamReader {
    fn read_streams(&mut self) -> Result<Vec<Receipt>> {
        let connection = connect(&self.client, &mut self.connection)?;
        let mut receipts = Vec::new();
        for (stream, from) in &mut self.streams {
            loop {
                let count = PAGE.to_string();
                let page: StreamRangeReply =
                    redis::cmd("XRANGE").arg(&[stream, from.as_str(), "+", "COUNT", &count]).query(connection)?;
                for entry in &page.ids {
                    let field = |name| entry.get::<String>(name).with_context(|| format!("{} has no {name}", entry.id));
                    receipts.push(receipt(&field("ce_id")?, &serde_json::from_str(&field("data")?)?)?);
                }
                if let Some(last) = page.ids.last() {
                    *from = format!("({}", last.id);
                }
                if page.ids.len() < PAGE {
                    break;
                }
            }
        }
        Ok(receipts)
    }
}

impl Reader for StreamReader {
    fn read(&mut self) -> Result<Vec<Receipt>> {
        let places = self.streams.clone();
        let read = self.read_streams();
        if read.is_err() {
            (self.connection, self.streams) = (None, places);
        }
        read
    }
}

struct HistoryReader {
    url: String,
    topic: String,
    /// The last offset that was read of each partition.
    read_upto: BTreeMap<u64, u64>,
}

impl Reader for HistoryReader {
    fn read(&mut self) -> Result<Vec<Receipt>> {
        let (mut receipts, mut read_upto) = (Vec::new(), self.read_upto.clone());
        loop {
            let places: Vec<String> = read_upto.iter().map(|(part, offset)| format!("{part}@{offset}")).collect();
            let from = if places.is_empty() { "earliest".to_owned() } else { places.join(",") };
            let path = format!("/v1/topics/{}/events?from={from}&limit={PAGE}", self.topic);
            let (status, body) = host::get(&self.url, &path)?;
            if status == 404 {
                return Ok(receipts);
            }
            ensure!(status == 200, "GET {path}: {status}: {body}");
            let page: Value = serde_json::from_str(&body)?;
            for event in page["events"].as_array().context("no events in the answer")? {
                let text = |name: &str| event[name].as_str().with_context(|| format!("no {name} in {event}"));
                receipts.push(receipt(text("id")?, &event["data"])?);
                let mut place = text("synapseposition")?.rsplit('/');
                let mut number = || place.next()?.parse().ok();
                let (offset, partition) = number().zip(number()).context("a position ends in two numbers")?;
                read_upto.insert(partition, offset);
            }
            if page["next"].is_null() {
                self.read_upto = read_upto;
                return Ok(receipts);
            }
        }
    }
}
