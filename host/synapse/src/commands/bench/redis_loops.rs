//! Redis without Synapse: the same copy by a loop over raw bytes and by a loop written with the redis crate.
//!
//! Both send the commands that a lane sends for each batch (outputs, cursor, state and lease in one transaction, fenced
//! by a watch) and read ahead on a second connection; so they are told apart from a pipeline only by who moves the bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// Entries in each transaction.
const BATCH: usize = 512;
/// Batches that may wait between reading and committing.
const AHEAD: usize = 2;

/// Events a second of the loop over raw bytes, from the stream `in` to a new stream that is deleted afterwards.
pub(super) async fn raw_loop(server: &Server, events: usize, to: &str) -> Result<f64> {
    let (socket, name) = (server.socket(), to.to_owned());
    let start = Instant::now();
    tokio::task::spawn_blocking(move || bare::copy(&socket, events, &name)).await??;
    server.end_copy(start, events, to)
}

/// The same of the loop written with the redis crate.
pub(super) async fn crate_loop(server: &Server, events: usize, to: &str) -> Result<f64> {
    let client = redis::Client::open(server.url())?;
    let start = Instant::now();
    with_crate::copy(&client, events, to).await?;
    server.end_copy(start, events, to)
}

/// The loop over raw bytes, on two threads with blocking sockets.
mod bare {
    use std::fmt::Write as _;
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    /// A reply, and where in it each entry's fields lie: how many strings, from, to.
    struct Reply {
        bytes: Vec<u8>,
        fields: Vec<(usize, usize, usize)>,
        last: String,
    }

    pub(super) fn copy(socket: &Path, events: usize, to: &str) -> Result<()> {
        let (ahead, replies) = sync_channel(AHEAD);
        let reader = socket.to_owned();
        let reading = std::thread::spawn(move || {
            let mut socket = UnixStream::connect(reader)?;
            let (mut read, mut rest) = (0, Vec::new());
            ask(&mut socket, "0-0")?;
            while read < events {
                let reply = next(&mut socket, &mut rest)?;
                read += reply.fields.len();
                if read < events {
                    ask(&mut socket, &reply.last)?;
                }
                ahead.send(reply)?;
            }
            anyhow::Ok(())
        });
        commit_all(socket, to, &replies)?;
        reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
    }

    fn ask(socket: &mut UnixStream, after: &str) -> Result<()> {
        let count = BATCH.to_string();
        let mut out = Vec::new();
        command(&mut out, &["XREAD", "COUNT", &count, "BLOCK", "5000", "STREAMS", "in", after]);
        Ok(socket.write_all(&out)?)
    }

    fn command(out: &mut Vec<u8>, arguments: &[&str]) {
        let mut text = format!("*{}\r\n", arguments.len());
        for argument in arguments {
            write!(text, "${}\r\n{argument}\r\n", argument.len()).expect("a String takes all that is written");
        }
        out.extend_from_slice(text.as_bytes());
    }

    fn commit_all(socket: &Path, to: &str, replies: &Receiver<Reply>) -> Result<()> {
        let mut socket = UnixStream::connect(socket)?;
        let (lease, state, token) = (format!("lease:{to}"), format!("state:{to}"), "0123456789abcdef".repeat(2));
        let mut out = Vec::new();
        command(&mut out, &["SET", &lease, &token, "PX", "15000"]);
        command(&mut out, &["XGROUP", "CREATE", "in", to, "0"]);
        command(&mut out, &["WATCH", &lease]);
        socket.write_all(&out)?;
        let mut inbox = vec![0; 256 << 10];
        lines(&mut socket, &mut inbox, 3)?;
        let target = format!("$4\r\nXADD\r\n${}\r\n{to}\r\n$1\r\n*\r\n", to.len());
        let mut read = 0;
        for reply in replies {
            read += reply.fields.len();
            out.clear();
            command(&mut out, &["MULTI"]);
            for &(strings, from, upto) in &reply.fields {
                out.push(b'*');
                out.extend_from_slice((strings + 3).to_string().as_bytes());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(target.as_bytes());
                out.extend_from_slice(&reply.bytes[from..upto]);
                if out.len() >= 64 << 10 {
                    socket.write_all(&out)?;
                    out.clear();
                }
            }
            command(&mut out, &["XGROUP", "SETID", "in", to, &reply.last, "ENTRIESREAD", &read.to_string()]);
            command(&mut out, &["HSET", &state, "cursor", &reply.last]);
            command(&mut out, &["PEXPIRE", &lease, "15000"]);
            command(&mut out, &["EXEC"]);
            command(&mut out, &["WATCH", &lease]);
            command(&mut out, &["GET", &lease]);
            socket.write_all(&out)?;
            // MULTI, a line for each that is queued, the array's head, two lines for each id, three results, and the
            // watch armed again.
            let entries = reply.fields.len();
            lines(&mut socket, &mut inbox, 1 + (entries + 3) + 1 + 2 * entries + 3 + 3)?;
        }
        Ok(())
    }

    /// Reads that many lines.
    fn lines(socket: &mut UnixStream, inbox: &mut [u8], count: usize) -> Result<()> {
        let mut seen = 0;
        while seen < count {
            let read = socket.read(inbox)?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            seen += inbox[..read].iter().filter(|&&byte| byte == b'\n').count();
        }
        Ok(())
    }

    /// Reads one reply of XREAD; `rest` is what came behind the one before.
    fn next(socket: &mut UnixStream, rest: &mut Vec<u8>) -> Result<Reply> {
        let mut bytes = std::mem::take(rest);
        bytes.reserve(256 << 10);
        let mut chunk = vec![0; 256 << 10];
        let mut at = None;
        let (mut left, mut fields, mut last) = (0, Vec::with_capacity(BATCH), (0, 0));
        loop {
            let mut place = at.unwrap_or(0);
            if at.is_none()
                && let Some((count, behind)) = head(&bytes)
            {
                (left, place) = (count, behind);
                at = Some(place);
            }
            while left > 0 {
                let Some(found) = entry(&bytes, place) else { break };
                last = found.id;
                fields.push((found.strings, found.from, found.upto));
                place = found.upto;
                at = Some(place);
                left -= 1;
            }
            if at.is_some() && left == 0 {
                let last = String::from_utf8(bytes[last.0..last.1].to_vec())?;
                rest.extend_from_slice(&bytes[place..]);
                return Ok(Reply { bytes, fields, last });
            }
            let read = socket.read(&mut chunk)?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            bytes.extend_from_slice(&chunk[..read]);
        }
    }

    /// How many entries follow, and where.
    fn head(bytes: &[u8]) -> Option<(usize, usize)> {
        let (_, at) = number(bytes, 0)?;
        let (_, at) = number(bytes, at)?;
        let (_, at) = string(bytes, at)?;
        number(bytes, at)
    }

    struct Found {
        id: (usize, usize),
        strings: usize,
        from: usize,
        upto: usize,
    }

    fn entry(bytes: &[u8], at: usize) -> Option<Found> {
        let (_, at) = number(bytes, at)?;
        let (id, at) = string(bytes, at)?;
        let (strings, from) = number(bytes, at)?;
        let mut upto = from;
        for _ in 0..strings {
            upto = string(bytes, upto)?.1;
        }
        Some(Found { id, strings, from, upto })
    }

    /// The number of a head such as `$12\r\n`, and what is behind it.
    fn number(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
        let (mut number, mut at) = (0, at + 1);
        loop {
            match *bytes.get(at)? {
                b'\r' => break,
                digit => number = number * 10 + usize::from(digit - b'0'),
            }
            at += 1;
        }
        (at + 2 <= bytes.len()).then_some((number, at + 2))
    }

    fn string(bytes: &[u8], at: usize) -> Option<((usize, usize), usize)> {
        let (length, from) = number(bytes, at)?;
        (from + length + 2 <= bytes.len()).then_some(((from, from + length), from + length + 2))
    }
}

/// The loop written with the redis crate, with the same commands and the same reading ahead.
mod with_crate {
    use redis::aio::MultiplexedConnection;

    use super::*;

    type Entries = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

    pub(super) async fn copy(client: &redis::Client, events: usize, to: &str) -> Result<()> {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut reader = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut writer = client.get_multiplexed_async_connection_with_config(&config).await?;
        let lease = format!("lease:{to}");
        redis::cmd("SET").arg(&lease).arg("token").arg("PX").arg(15_000).query_async::<()>(&mut writer).await?;
        redis::cmd("XGROUP").arg("CREATE").arg("in").arg(to).arg("0").query_async::<()>(&mut writer).await?;
        redis::cmd("WATCH").arg(&lease).query_async::<()>(&mut writer).await?;
        let (ahead, mut batches) = tokio::sync::mpsc::channel::<Entries>(AHEAD);
        let reading = tokio::spawn(async move {
            let (mut read, mut place) = (0, "0-0".to_owned());
            while read < events {
                let entries = next(&mut reader, &place).await?;
                let Some((last, _)) = entries.last() else { continue };
                place.clone_from(last);
                read += entries.len();
                ahead.send(entries).await?;
            }
            anyhow::Ok(())
        });
        let mut read = 0;
        while let Some(entries) = batches.recv().await {
            read += entries.len();
            commit(&mut writer, &entries, to, &lease, read).await?;
        }
        reading.await?
    }

    async fn next(reader: &mut MultiplexedConnection, place: &str) -> Result<Entries> {
        let mut ask = redis::cmd("XREAD");
        ask.arg("COUNT").arg(BATCH).arg("BLOCK").arg(5000).arg("STREAMS").arg("in").arg(place);
        let reply: Option<Vec<(String, Entries)>> = ask.query_async(reader).await?;
        Ok(reply.into_iter().flatten().next().map(|(_, entries)| entries).unwrap_or_default())
    }

    async fn commit(
        writer: &mut MultiplexedConnection,
        entries: &Entries,
        to: &str,
        lease: &str,
        read: usize,
    ) -> Result<()> {
        let last = &entries.last().context("an empty batch")?.0;
        let mut transaction = redis::pipe();
        transaction.atomic();
        for (_, fields) in entries {
            let add = transaction.cmd("XADD").arg(to).arg("*");
            for (name, value) in fields {
                add.arg(name).arg(value);
            }
        }
        transaction.cmd("XGROUP").arg("SETID").arg("in").arg(to).arg(last).arg("ENTRIESREAD").arg(read);
        transaction.cmd("HSET").arg(format!("state:{to}")).arg("cursor").arg(last);
        transaction.cmd("PEXPIRE").arg(lease).arg(15_000);
        let done: Option<Vec<redis::Value>> = transaction.query_async(writer).await?;
        done.context("the lease was lost")?;
        let mut armed = redis::pipe();
        armed.cmd("WATCH").arg(lease).cmd("GET").arg(lease);
        armed.query_async::<Vec<redis::Value>>(writer).await?;
        Ok(())
    }
}

/// A redis-server of our own.
pub(super) struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    pub(super) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("syn").tempdir()?;
        let mut child = Command::new("redis-server")
            .current_dir(dir.path())
            .args(["--port", "0", "--unixsocket", "r.sock", "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("redis-server is needed and could not be started")?;
        let mut log = BufReader::new(child.stdout.take().context("redis-server has no output")?).lines();
        let ready = log.by_ref().map_while(std::result::Result::ok).any(|line| line.contains("ready to accept"));
        // Goes on reading, so that the server never waits for us.
        std::thread::spawn(move || log.for_each(drop));
        let server = Self { dir, child };
        ensure!(ready, "redis-server ended before it was ready");
        Ok(server)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("r.sock")
    }

    pub(super) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn cli(&self, arguments: &[&str]) -> Result<String> {
        let out = Command::new("redis-cli").arg("-s").arg(self.socket()).args(arguments).output()?;
        Ok(String::from_utf8(out.stdout)?.trim_end().to_owned())
    }

    /// Checks that a copy is whole, and makes room for the next.
    fn end_copy(&self, start: Instant, events: usize, to: &str) -> Result<f64> {
        let rate = events as f64 / start.elapsed().as_secs_f64();
        let copied: usize = self.cli(&["XLEN", to])?.parse()?;
        ensure!(copied == events, "{copied} of {events} events arrived in {to}");
        self.cli(&["DEL", to])?;
        Ok(rate)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
