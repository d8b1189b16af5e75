//! The connection for control, topology and rare commands: the redis crate's, which connects again by itself.
//!
//! Nothing blocking is ever sent over it, and nothing that may not happen twice: what fails with its connection is sent
//! again over a new one. Its values become [`Reply`]s, so that one set of readers serves both kinds of
//! connections.

use std::sync::Arc;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ErrorKind, Pipeline, RedisError, Value};
use synapse_core::BrokerError;
use synapse_core::broker::BrokerErrorKind;

use super::node::Node;
use super::resp::Reply;

/// A cheap handle of the shared connection.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) node: Arc<Node>,
    manager: ConnectionManager,
}

impl Control {
    /// Connects.
    ///
    /// # Errors
    /// `Unavailable`: nobody answers there. `Refused`: wrong credentials.
    pub(super) async fn connect(node: &Arc<Node>) -> Result<Self, BrokerError> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(node.timeout))
            .set_response_timeout(Some(node.timeout));
        let failed = |error| failure(node, "connect", &error);
        let client = Client::open(node.info.clone()).map_err(failed)?;
        let manager = ConnectionManager::new_with_config(client, config).await.map_err(failed)?;
        Ok(Self { node: Arc::clone(node), manager })
    }

    /// Runs one command; an error reply is an error.
    pub(super) async fn ask(&self, doing: &str, arguments: &[&[u8]]) -> Result<Reply, BrokerError> {
        let command = cmd(arguments);
        let mut manager = self.manager.clone();
        let value = match manager.send_packed_command(&command).await {
            // The first to use a broken connection is told so, and it is made again; see the module's page.
            Err(error) if error.is_io_error() => manager.send_packed_command(&command).await,
            other => other,
        };
        let reply = value.map(reply).map_err(|error| failure(&self.node, doing, &error))?;
        self.node.checked(doing, reply)
    }

    /// Runs commands in one pipeline; error replies are among the replies.
    pub(super) async fn ask_all(&self, doing: &str, commands: &[Vec<&[u8]>]) -> Result<Vec<Reply>, BrokerError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len());
        pipeline.ignore_errors();
        for arguments in commands {
            pipeline.add_command(cmd(arguments));
        }
        let mut manager = self.manager.clone();
        let values = match manager.send_packed_commands(&pipeline, 0, commands.len()).await {
            Err(error) if error.is_io_error() => manager.send_packed_commands(&pipeline, 0, commands.len()).await,
            other => other,
        };
        let values = values.map_err(|error| failure(&self.node, doing, &error))?;
        Ok(values.into_iter().map(reply).collect())
    }
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
