//! The connections for control, topology and rare commands: the redis crate's, which connect again by themselves.
//!
//! Nothing blocking is ever sent over them, and nothing that may not happen twice: what fails with its connection is sent
//! again over a new one. In a cluster each command goes to the node of its key and follows where that one sends it. The
//! crate's values become [`Reply`]s, so that one set of readers serves both kinds of connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ErrorKind, Pipeline, RedisError, Value};
use synapse_core::BrokerError;
use synapse_core::broker::BrokerErrorKind;
use tokio::time::sleep;

use super::node::Node;
use super::nodes::{Nodes, Redirect};
use super::resp::Reply;

/// How often a command is sent on to another node, or again.
const HOPS_MAX: usize = 8;
/// How long a command waits whose keys are on their way to another node.
const HOP_WAIT: Duration = Duration::from_millis(50);

/// A cheap handle of the shared connections.
#[derive(Clone)]
pub(super) struct Control {
    /// For errors that are no node's own.
    pub(super) node: Arc<Node>,
    pub(super) nodes: Arc<Nodes>,
    /// By the address of the node.
    lines: Arc<Mutex<HashMap<String, ConnectionManager>>>,
}

impl Control {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// `Invalid`: an address that is none.
    pub(super) fn new(nodes: &Arc<Nodes>) -> Result<Self, BrokerError> {
        let control = Self { node: Arc::clone(nodes.any()), nodes: Arc::clone(nodes), lines: Arc::default() };
        control.line(nodes.any())?;
        Ok(control)
    }

    fn line(&self, node: &Node) -> Result<ConnectionManager, BrokerError> {
        let mut lines = self.lines.lock().expect("nothing panics while it holds this lock");
        if let Some(line) = lines.get(&node.address) {
            return Ok(line.clone());
        }
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(node.timeout))
            .set_response_timeout(Some(node.timeout));
        let failed = |error| failure(node, "connect", &error);
        let client = Client::open(node.info.clone()).map_err(failed)?;
        let line = ConnectionManager::new_lazy_with_config(client, config).map_err(failed)?;
        lines.insert(node.address.clone(), line.clone());
        Ok(line)
    }

    /// Runs one command; an error reply is an error.
    pub(super) async fn ask(&self, doing: &str, arguments: &[&[u8]]) -> Result<Reply, BrokerError> {
        let reply = self.run(doing, arguments).await?;
        self.node.checked(doing, reply)
    }

    /// Runs commands, those of one node in one pipeline; error replies are among the replies.
    pub(super) async fn ask_all(&self, doing: &str, commands: &[Vec<&[u8]>]) -> Result<Vec<Reply>, BrokerError> {
        if !self.nodes.is_cluster() {
            let commands: Vec<&[&[u8]]> = commands.iter().map(Vec::as_slice).collect();
            return self.pipeline(&self.node, doing, &commands).await;
        }
        let mut by_node: HashMap<String, (Arc<Node>, Vec<usize>)> = HashMap::new();
        for (index, arguments) in commands.iter().enumerate() {
            let node = self.owner(arguments).await?;
            by_node.entry(node.address.clone()).or_insert_with(|| (node, Vec::new())).1.push(index);
        }
        let mut replies = vec![Reply::Null; commands.len()];
        for (node, indices) in by_node.into_values() {
            let these: Vec<&[&[u8]]> = indices.iter().map(|&index| commands[index].as_slice()).collect();
            let answers = match self.pipeline(&node, doing, &these).await {
                Ok(answers) => answers.into_iter().map(Some).collect(),
                Err(error) if error.kind == BrokerErrorKind::Unavailable => vec![None; indices.len()],
                Err(error) => return Err(error),
            };
            for (index, answer) in indices.into_iter().zip(answers) {
                let astray =
                    |reply: &Reply| matches!(reply, Reply::Error(line) if self.nodes.redirect(&node, line).is_some());
                replies[index] = match answer.filter(|reply| !astray(reply)) {
                    Some(reply) => reply,
                    None => self.run(doing, &commands[index]).await?,
                };
            }
        }
        Ok(replies)
    }

    /// Runs one command at one node; an error reply is an error.
    pub(super) async fn ask_at(&self, node: &Node, doing: &str, arguments: &[&[u8]]) -> Result<Reply, BrokerError> {
        let mut replies = self.pipeline(node, doing, &[arguments]).await?;
        node.checked(doing, replies.pop().unwrap_or(Reply::Null))
    }

    /// Runs one command where its key is, wherever that goes meanwhile.
    async fn run(&self, doing: &str, arguments: &[&[u8]]) -> Result<Reply, BrokerError> {
        const ASKING: &[&[u8]] = &[b"ASKING"];
        let mut hop = None;
        let mut last = Reply::Null;
        for tries in 1..=HOPS_MAX {
            let (node, asking) = match hop.take() {
                Some(hop) => hop,
                None => (self.owner(arguments).await?, false),
            };
            let commands: &[&[&[u8]]] = if asking { &[ASKING, arguments] } else { &[arguments] };
            last = match self.pipeline(&node, doing, commands).await {
                Ok(mut replies) => replies.pop().unwrap_or(Reply::Null),
                // Another node may have its slots by now; if none has, waiting is up to the caller.
                Err(_) if self.nodes.is_cluster() && tries == 1 => {
                    self.nodes.distrust();
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Reply::Error(line) = &last else { return Ok(last) };
            match self.nodes.redirect(&node, line) {
                None => return Ok(last),
                Some(Redirect::Moved(next)) => hop = Some((next, false)),
                Some(Redirect::Ask(next)) => hop = Some((next, true)),
                Some(Redirect::Later) => sleep(HOP_WAIT).await,
            }
        }
        Ok(last)
    }

    /// The node of a command's key; without a key any node will do.
    async fn owner(&self, arguments: &[&[u8]]) -> Result<Arc<Node>, BrokerError> {
        match key(arguments) {
            Some(key) => self.nodes.owner(&String::from_utf8_lossy(key)).await,
            None => Ok(self.nodes.masters().await?.first().map_or_else(|| Arc::clone(&self.node), Arc::clone)),
        }
    }

    /// Runs commands at one node; error replies are among the replies.
    async fn pipeline(&self, node: &Node, doing: &str, commands: &[&[&[u8]]]) -> Result<Vec<Reply>, BrokerError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len());
        pipeline.ignore_errors();
        for arguments in commands {
            pipeline.add_command(cmd(arguments));
        }
        let mut line = self.line(node)?;
        let values = match line.send_packed_commands(&pipeline, 0, commands.len()).await {
            // The first to use a broken connection is told so, and it is made again; see the module's page.
            Err(error) if error.is_io_error() => line.send_packed_commands(&pipeline, 0, commands.len()).await,
            other => other,
        };
        let values = values.map_err(|error| failure(node, doing, &error))?;
        Ok(values.into_iter().map(reply).collect())
    }
}

/// The first key of a command, if it has one.
fn key<'a>(arguments: &[&'a [u8]]) -> Option<&'a [u8]> {
    let at = match *arguments.first()? {
        b"INFO" | b"PING" | b"TIME" | b"SCAN" => return None,
        b"XINFO" | b"XGROUP" | b"MEMORY" => 2,
        b"EVAL" => 3,
        _ => 1,
    };
    arguments.get(at).copied()
}

fn cmd(arguments: &[&[u8]]) -> Cmd {
    let mut cmd = Cmd::new();
    for argument in arguments {
        cmd.arg(*argument);
    }
    cmd
}

fn failure(node: &Node, doing: &str, error: &RedisError) -> BrokerError {
    if let Some(code) = error.code() {
        return node.refused(doing, format!("{code} {}", error.detail().unwrap_or_default()).as_bytes());
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            let line = format!("WRONGPASS {}", error.detail().unwrap_or("the login was refused"));
            node.refused(doing, line.as_bytes())
        }
        ErrorKind::InvalidClientConfig => node.error(BrokerErrorKind::Invalid, error),
        _ => node.lost(doing, error),
    }
}

fn reply(value: Value) -> Reply {
    match value {
        Value::Int(number) => Reply::Integer(number),
        Value::BulkString(bytes) => Reply::Bulk(bytes),
        Value::Array(values) | Value::Set(values) => Reply::Array(values.into_iter().map(reply).collect()),
        Value::SimpleString(text) => Reply::Status(text.into_bytes()),
        Value::Okay => Reply::Status(b"OK".to_vec()),
        Value::Map(pairs) => {
            Reply::Array(pairs.into_iter().flat_map(|(name, value)| [reply(name), reply(value)]).collect())
        }
        Value::ServerError(error) => {
            Reply::Error(format!("{} {}", error.code(), error.details().unwrap_or_default()).into_bytes())
        }
        // The rest is RESP3, which this connection does not speak.
        _ => Reply::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_go_where_their_keys_are() {
        let at = |text: &str| {
            let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            key(&words).map(|key| String::from_utf8_lossy(key).into_owned())
        };
        for command in ["TYPE k", "HGET k f", "XINFO STREAM k", "XGROUP CREATE k g 0", "MEMORY USAGE k", "EVAL s 1 k a"]
        {
            assert_eq!(at(command).as_deref(), Some("k"), "{command}");
        }
        for command in ["PING", "TIME", "INFO memory", "SCAN 0 COUNT 10"] {
            assert_eq!(at(command), None, "{command}");
        }
    }
}
