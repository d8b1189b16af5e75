//! One Redis node: its address, and what its errors mean.
//!
//! Passwords never appear in messages. This module does not know streams or lanes.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use synapse_core::broker::BrokerErrorKind;
use synapse_core::{BrokerError, BrokerName};

use super::resp::Reply;

/// Longest path of a Unix socket that every system takes, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// Where a node is and how to log in.
pub(super) struct Node {
    pub(super) broker: BrokerName,
    pub(super) info: ConnectionInfo,
    /// For messages: without credentials.
    pub(super) address: String,
    /// How long a connection or an answer may take.
    pub(super) timeout: Duration,
    /// Whether others share the keys with it.
    clustered: bool,
}

impl Node {
    /// # Errors
    /// `Invalid`: a URL that is none, or that asks for TLS.
    pub(super) fn new(broker: BrokerName, url: &str, timeout: Duration) -> Result<Self, BrokerError> {
        let invalid = |message: String| BrokerError { broker: broker.clone(), kind: BrokerErrorKind::Invalid, message };
        if url.starts_with("rediss:") || url.starts_with("valkeys:") {
            return Err(invalid(
                "TLS to Redis (rediss://) is not built in yet: use redis:// in a trusted network, or a TLS tunnel"
                    .into(),
            ));
        }
        let info = url.into_connection_info().map_err(|error| {
            let why = error.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            invalid(format!(
                "the url is not of the form redis://[user:password@]host:port/db or unix:///path.sock?db=0{why}"
            ))
        })?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
            ConnectionAddr::Unix(path) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
                return Err(invalid(format!(
                    "the socket path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes: choose a shorter one",
                    path.display()
                )));
            }
            ConnectionAddr::Unix(path) => path.display().to_string(),
            other => return Err(invalid(format!("the address {other} is of a kind that is not supported"))),
        };
        Ok(Self { broker, info, address, timeout, clustered: false })
    }

    /// One of a cluster's nodes.
    ///
    /// # Errors
    /// As [`Node::new`]; a cluster has no sockets and one database.
    pub(super) fn of_cluster(broker: BrokerName, url: &str, timeout: Duration) -> Result<Self, BrokerError> {
        let node = Self::new(broker, url, timeout)?;
        if !matches!(node.info.addr(), ConnectionAddr::Tcp(..)) || node.info.redis_settings().db() != 0 {
            let address = &node.address;
            return Err(node.invalid(format_args!(
                "{address} is no address of a cluster's node: write redis://[user:password@]host:port without a database"
            )));
        }
        Ok(Self { clustered: true, ..node })
    }

    /// Another node of the same cluster, with the same login.
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        Self {
            broker: self.broker.clone(),
            info: self.info.clone().set_addr(ConnectionAddr::Tcp(host.to_owned(), port)),
            address: format!("{host}:{port}"),
            timeout: self.timeout,
            clustered: self.clustered,
        }
    }

    pub(super) fn error(&self, kind: BrokerErrorKind, message: impl fmt::Display) -> BrokerError {
        BrokerError { broker: self.broker.clone(), kind, message: message.to_string() }
    }

    pub(super) fn invalid(&self, message: impl fmt::Display) -> BrokerError {
        self.error(BrokerErrorKind::Invalid, message)
    }

    /// The connection failed while doing something.
    pub(super) fn lost(&self, doing: &str, error: &dyn fmt::Display) -> BrokerError {
        let address = &self.address;
        self.error(
            BrokerErrorKind::Unavailable,
            format_args!("could not {doing} at {address}: {error}; check that Redis runs there and can be reached"),
        )
    }

    /// No answer came in time.
    pub(super) fn late(&self, doing: &str) -> BrokerError {
        let (address, timeout) = (&self.address, self.timeout);
        self.error(
            BrokerErrorKind::Unavailable,
            format_args!(
                "could not {doing}: {address} did not answer within {timeout:?}; check its load and the network"
            ),
        )
    }

    /// What came back is not what the protocol says.
    pub(super) fn garbled(&self, doing: &str, what: &str) -> BrokerError {
        let address = &self.address;
        self.error(
            BrokerErrorKind::Unavailable,
            format_args!(
                "could not {doing}: {address} answered what Redis would not ({what}); check what listens there"
            ),
        )
    }

    /// The server answered with an error.
    pub(super) fn refused(&self, doing: &str, line: &[u8]) -> BrokerError {
        let line = String::from_utf8_lossy(&line[..line.len().min(500)]);
        let (kind, remedy) = meaning(&line, self.clustered);
        self.error(kind, format_args!("could not {doing}: Redis answered `{line}`; {remedy}"))
    }

    /// The reply, unless it is an error.
    pub(super) fn checked(&self, doing: &str, reply: Reply) -> Result<Reply, BrokerError> {
        match reply {
            Reply::Error(line) => Err(self.refused(doing, &line)),
            other => Ok(other),
        }
    }
}

/// What an error line of the server means, and what to do.
fn meaning(line: &str, clustered: bool) -> (BrokerErrorKind, &'static str) {
    use BrokerErrorKind::{Full, Invalid, Refused, Unavailable};
    match line.split(' ').next().unwrap_or_default() {
        "LOADING" => (Unavailable, "it is still reading its files, and is tried again"),
        "MASTERDOWN" | "READONLY" | "NOREPLICAS" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" => {
            (Unavailable, "it takes no commands for now, and is tried again; check its replication and its scripts")
        }
        "UNBLOCKED" | "NOGROUP" => (Unavailable, "the group is made again at the cursor that was kept"),
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => (Refused, "check user, password and ACL rules in its url"),
        "OOM" => (Full, "raise maxmemory, or keep less by retention"),
        "MISCONF" => (Full, "it cannot write its files: check its disk"),
        "WRONGTYPE" => (Invalid, "a key of that name holds something else than a stream: rename one of them"),
        "MOVED" | "ASK" if clustered => (Unavailable, "the slot moves to another node, where it is tried again"),
        "MOVED" | "ASK" | "CROSSSLOT" => (Invalid, "it is a node of a cluster: write nodes = [...] instead of its url"),
        "ERR" if clustered && line.contains("cluster support disabled") => {
            (Invalid, "it is no node of a cluster: write its url instead of nodes")
        }
        "ERR" if line.contains("max number of clients") => (Unavailable, "raise its maxclients"),
        "ERR" if line.contains("AUTH") || line.contains("invalid password") => {
            (Refused, "check user and password in its url")
        }
        _ => (Invalid, "check the server's version (7.0 or newer is tested) and its configuration"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(url: &str) -> Result<Node, BrokerError> {
        Node::new("bus".parse().unwrap(), url, Duration::from_secs(1))
    }

    #[test]
    fn addresses_are_shown_without_credentials() {
        let shown = |url: &str| node(url).unwrap().address;
        assert_eq!(shown("redis://user:secret@example.org:6380/3"), "example.org:6380");
        assert_eq!(shown("redis://127.0.0.1"), "127.0.0.1:6379");
        assert_eq!(shown("unix:///run/redis.sock?db=2&pass=secret"), "/run/redis.sock");
        assert_eq!(shown("redis+unix:///run/redis.sock"), "/run/redis.sock");
        let info = node("redis://user:se%20cret@example.org/3").unwrap().info;
        let login = info.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("user"), Some("se cret"), 3));
    }

    #[test]
    fn urls_that_cannot_be_used_say_why() {
        let refused = |url: &str| {
            let error = node(url).err().unwrap();
            assert_eq!(error.kind, BrokerErrorKind::Invalid);
            error.message
        };
        assert!(refused("rediss://example.org").starts_with("TLS to Redis (rediss://) is not built in yet"));
        assert!(refused("http://example.org").contains("redis://[user:password@]host:port/db"));
        assert!(refused(&format!("unix:///{}", "x".repeat(120))).contains("longer than 100 bytes"));
        assert!(!refused("redis://u:secret@host:99999/0").contains("secret"));
    }

    #[test]
    fn error_lines_have_a_meaning() {
        let kind = |line: &str| node("redis://h").unwrap().refused("write", line.as_bytes()).kind;
        assert_eq!(kind("LOADING Redis is loading the dataset in memory"), BrokerErrorKind::Unavailable);
        assert_eq!(kind("WRONGPASS invalid username-password pair"), BrokerErrorKind::Refused);
        assert_eq!(kind("ERR AUTH <password> called without any password configured"), BrokerErrorKind::Refused);
        assert_eq!(kind("OOM command not allowed when used memory > 'maxmemory'."), BrokerErrorKind::Full);
        assert_eq!(kind("MISCONF Errors writing to the AOF file: No space left on device"), BrokerErrorKind::Full);
        assert_eq!(kind("WRONGTYPE Operation against a key"), BrokerErrorKind::Invalid);
        assert_eq!(kind("ERR max number of clients reached"), BrokerErrorKind::Unavailable);
        assert_eq!(kind("ERR unknown command"), BrokerErrorKind::Invalid);
    }
}
