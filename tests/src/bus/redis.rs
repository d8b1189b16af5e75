//! Redis, one server or a cluster.

use anyhow::{Context, Result};
use redis::cluster::{ClusterClient, ClusterConnection, cluster_pipe};
use redis::streams::StreamRangeReply;
use redis::{Client, Cmd, Connection, ConnectionLike, RedisResult};

use super::{ANSWER_WITHIN, PAGE, Reader, Topic, receipt};
use crate::checker::{Kind, Receipt};
use crate::load::Send;

/// What a client connects to.
pub(super) trait Server: Clone + std::marker::Send + 'static {
    type Connection: ConnectionLike + std::marker::Send;

    fn connect(&self) -> RedisResult<Self::Connection>;

    /// All at once; succeeds if all do.
    fn send(connection: &mut Self::Connection, commands: Vec<Cmd>) -> RedisResult<()>;
}

impl Server for Client {
    type Connection = Connection;

    fn connect(&self) -> RedisResult<Connection> {
        let connection = self.get_connection_with_timeout(ANSWER_WITHIN)?;
        connection.set_read_timeout(Some(ANSWER_WITHIN))?;
        connection.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(connection)
    }

    fn send(connection: &mut Connection, commands: Vec<Cmd>) -> RedisResult<()> {
        let mut pipe = redis::pipe();
        for command in commands {
            pipe.add_command(command).ignore();
        }
        pipe.query(connection)
    }
}

impl Server for ClusterClient {
    type Connection = ClusterConnection;

    fn connect(&self) -> RedisResult<ClusterConnection> {
        self.get_connection()
    }

    fn send(connection: &mut ClusterConnection, commands: Vec<Cmd>) -> RedisResult<()> {
        let mut pipe = cluster_pipe();
        for command in commands {
            pipe.add_command(command).ignore();
        }
        pipe.query(connection)
    }
}

pub(super) fn sender<S: Server>(server: &S, topic: &Topic, kind: fn(&Receipt) -> Kind) -> Send {
    let (server, topic, mut connection) = (server.clone(), topic.clone(), None);
    Box::new(move |receipts| {
        let commands = receipts.iter().map(|receipt| xadd(&topic, receipt, kind)).collect();
        let sent = connected(&server, &mut connection).and_then(|connection| S::send(connection, commands));
        if sent.is_err() {
            connection = None;
        }
        sent.is_ok()
    })
}

fn connected<'c, S: Server>(server: &S, kept: &'c mut Option<S::Connection>) -> RedisResult<&'c mut S::Connection> {
    match kept {
        Some(connection) => Ok(connection),
        None => Ok(kept.insert(server.connect()?)),
    }
}

fn xadd(topic: &Topic, receipt: &Receipt, kind: fn(&Receipt) -> Kind) -> Cmd {
    let Receipt { key, number } = receipt;
    let stream = topic.stream(synapse_core::topic::partition_of(key.as_bytes(), topic.partitions));
    let mut command = redis::cmd("XADD");
    command
        .arg(&[&stream, "*", "ce_specversion", "1.0", "ce_source", "/load", "ce_type", kind(receipt).name()])
        .arg(&["ce_id", &format!("{key}/{number}"), "ce_partitionkey", key])
        .arg(&["content-type", "application/json", "data", &format!("{{\"n\":{number}}}")]);
    command
}

pub(super) struct StreamReader<S: Server> {
    server: S,
    connection: Option<S::Connection>,
    /// Each stream, and where reading it goes on, as `XRANGE` has it.
    streams: Vec<(String, String)>,
}

impl<S: Server> StreamReader<S> {
    pub(super) fn new(server: &S, topic: &Topic) -> Self {
        let streams = (0..topic.partitions).map(|partition| (topic.stream(partition), "-".to_owned())).collect();
        Self { server: server.clone(), connection: None, streams }
    }

    fn read_streams(&mut self) -> Result<Vec<Receipt>> {
        let connection = connected(&self.server, &mut self.connection)?;
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

impl<S: Server> Reader for StreamReader<S> {
    fn read(&mut self) -> Result<Vec<Receipt>> {
        let places = self.streams.clone();
        let read = self.read_streams();
        if read.is_err() {
            (self.connection, self.streams) = (None, places);
        }
        read
    }
}
