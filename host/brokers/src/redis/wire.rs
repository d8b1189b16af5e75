//! Our own connection for stream data: bytes out of one buffer, bytes into another.
//!
//! Logs in, selects the database, then moves bytes; replies are scanned in the read buffer. It never connects again:
//! after an error it is thrown away. This module does not know what the commands mean.

use std::sync::Arc;
use std::time::Duration;

use redis::ConnectionAddr;
use synapse_core::BrokerError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::command::command;
use super::node::Node;
use super::resp::{Reply, Scan, Scanner, Stop};

/// The read buffer begins with this and grows while reads fill it, in bytes.
const READ_BYTES_MIN: usize = 16 << 10;
/// Most bytes that one read asks for.
const READ_BYTES_MAX: usize = 256 << 10;
/// Commands are sent once this much is written, so that the server works while the rest is encoded, in bytes.
pub(super) const SEND_BYTES: usize = 64 << 10;

/// What both kinds of sockets do.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// One connection, logged in.
pub(super) struct Wire {
    pub(super) node: Arc<Node>,
    socket: Box<dyn Duplex>,
    inbox: Inbox,
    /// Commands that were not sent yet.
    pub(super) outbox: Vec<u8>,
}

impl Wire {
    /// Connects and logs in.
    ///
    /// # Errors
    /// `Unavailable`: nobody answers there. `Refused`: wrong credentials.
    pub(super) async fn open(node: &Arc<Node>) -> Result<Self, BrokerError> {
        let socket = match timeout(node.timeout, connect(node.info.addr())).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(node.lost("connect", &error)),
            Err(_) => return Err(node.late("connect")),
        };
        let mut wire = Self { node: Arc::clone(node), socket, inbox: Inbox::default(), outbox: Vec::new() };
        wire.log_in().await?;
        Ok(wire)
    }

    async fn log_in(&mut self) -> Result<(), BrokerError> {
        let node = Arc::clone(&self.node);
        let login = node.info.redis_settings();
        let mut replies = 0;
        if let Some(password) = login.password() {
            let user = login.username().unwrap_or("default");
            // Servers before ACLs know a password only.
            let named: &[&[u8]] = &[b"AUTH", user.as_bytes(), password.as_bytes()];
            let plain: &[&[u8]] = &[b"AUTH", password.as_bytes()];
            command(&mut self.outbox, if login.username().is_some() { named } else { plain });
            replies += 1;
        }
        if login.db() != 0 {
            command(&mut self.outbox, &[b"SELECT", login.db().to_string().as_bytes()]);
            replies += 1;
        }
        command(&mut self.outbox, &[b"PING"]);
        for reply in self.exchange("log in", replies + 1).await? {
            node.checked("log in", reply)?;
        }
        Ok(())
    }

    /// Sends one rare command and reads its reply; an error reply is an error.
    pub(super) async fn ask(&mut self, doing: &str, arguments: &[&[u8]]) -> Result<Reply, BrokerError> {
        let reply = self.exchange_one(doing, arguments).await?;
        self.node.checked(doing, reply)
    }

    /// Sends one rare command and reads its reply, which may be an error.
    pub(super) async fn exchange_one(&mut self, doing: &str, arguments: &[&[u8]]) -> Result<Reply, BrokerError> {
        command(&mut self.outbox, arguments);
        self.send(doing).await?;
        self.reply(doing).await
    }

    /// Sends what is written and reads that many replies; error replies are among them.
    pub(super) async fn exchange(&mut self, doing: &str, replies: usize) -> Result<Vec<Reply>, BrokerError> {
        self.send(doing).await?;
        let mut answers = Vec::with_capacity(replies);
        for _ in 0..replies {
            answers.push(self.reply(doing).await?);
        }
        Ok(answers)
    }

    /// The next reply, owned.
    pub(super) async fn reply(&mut self, doing: &str) -> Result<Reply, BrokerError> {
        self.scan(doing, |scanner| scanner.reply()).await
    }

    /// Steps over what `scan` reads as soon as it is there.
    pub(super) async fn scan<T>(
        &mut self,
        doing: &str,
        mut scan: impl FnMut(&mut Scanner<'_>) -> Scan<T>,
    ) -> Result<T, BrokerError> {
        loop {
            let mut scanner = Scanner::new(self.unread());
            match scan(&mut scanner) {
                Ok(read) => {
                    let at = scanner.at();
                    self.consume(at);
                    return Ok(read);
                }
                Err(Stop::Malformed(what)) => return Err(self.node.garbled(doing, what)),
                Err(Stop::More) => self.fill(doing, self.node.timeout).await?,
            }
        }
    }

    /// Sends what is written.
    pub(super) async fn send(&mut self, doing: &str) -> Result<(), BrokerError> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        match timeout(self.node.timeout, self.socket.write_all(&self.outbox)).await {
            Ok(Ok(())) => {
                self.outbox.clear();
                Ok(())
            }
            Ok(Err(error)) => Err(self.node.lost(doing, &error)),
            Err(_) => Err(self.node.late(doing)),
        }
    }

    /// What came and was not consumed.
    pub(super) fn unread(&self) -> &[u8] {
        &self.inbox.bytes[self.inbox.read..]
    }

    /// Marks bytes of [`Self::unread`] as read.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.inbox.read += bytes;
    }

    /// Waits for more bytes.
    pub(super) async fn fill(&mut self, doing: &str, wait: Duration) -> Result<(), BrokerError> {
        if self.fill_within(doing, wait).await? { Ok(()) } else { Err(self.node.late(doing)) }
    }

    /// Waits for more bytes; tells whether any came in time.
    pub(super) async fn fill_within(&mut self, doing: &str, wait: Duration) -> Result<bool, BrokerError> {
        self.inbox.make_room();
        let room = self.inbox.room;
        match timeout(wait, (&mut self.socket).take(room as u64).read_buf(&mut self.inbox.bytes)).await {
            Ok(Ok(0)) => Err(self.node.lost(doing, &"the connection was closed")),
            Ok(Ok(count)) => {
                self.inbox.came(count);
                Ok(true)
            }
            Ok(Err(error)) => Err(self.node.lost(doing, &error)),
            Err(_) => Ok(false),
        }
    }

    /// Gives memory back while nothing happens.
    pub(super) fn rest(&mut self) {
        if self.unread().is_empty() {
            self.inbox = Inbox::default();
        }
        self.outbox.shrink_to(SEND_BYTES);
    }
}

async fn connect(address: &ConnectionAddr) -> std::io::Result<Box<dyn Duplex>> {
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let socket = TcpStream::connect((host.as_str(), *port)).await?;
            socket.set_nodelay(true)?;
            Ok(Box::new(socket))
        }
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        other => Err(std::io::Error::other(format!("{other} is not supported"))),
    }
}

/// Bytes that came: read ones, then unread ones.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    read: usize,
    /// How much the next read asks for, in bytes.
    room: usize,
}

impl Inbox {
    fn make_room(&mut self) {
        if self.read == self.bytes.len() {
            self.bytes.clear();
            self.read = 0;
        } else if self.read >= self.bytes.len() - self.read {
            // The rest is smaller than what was read, so moving it costs less than reading it did.
            self.bytes.drain(..self.read);
            self.read = 0;
        }
        self.room = self.room.max(READ_BYTES_MIN);
        self.bytes.reserve(self.room);
    }

    fn came(&mut self, count: usize) {
        if count == self.room {
            self.room = (self.room * 2).min(READ_BYTES_MAX);
        }
    }
}
