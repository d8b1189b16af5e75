//! What the Redis broker costs, beside a loop over raw bytes and a loop written with the redis crate in the same run.
//!
//! `cargo run --release -p synapse-brokers --example redis_cost [events] [rounds]` starts a redis-server of its own on a
//! Unix socket, reads and writes alone, and then (unless there are 0 rounds) copies a stream of events with 100 bytes of payload from one stream to another, exactly once:
//! outputs, cursor, lane state and lease in one transaction a batch. All arms send the same commands for each batch,
//! read ahead on a second connection, and are told apart by nothing but who moves the bytes. They alternate; the
//! control beside each ratio is the same arm against itself. Rates are counted at the sink.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use synapse_brokers::redis::{RedisBroker, RedisOptions};
use synapse_core::broker::{BatchLimit, Effects, LaneKey, LaneSpec, Reading};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, Start};
use synapse_core::{Broker, Event, Offset, Output, TopicPartition, TopicPath};

type Failure = Box<dyn Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

const PAYLOAD_BYTES: usize = 100;
/// Entries in each transaction.
const BATCH: usize = 512;
const LIMIT: BatchLimit = BatchLimit { events_max: BATCH, bytes_max: 1 << 20 };
/// Batches that may wait between reading and committing.
const AHEAD: usize = 2;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let events: usize = args.next().map_or(Ok(400_000), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(5), |text| text.parse())?;
    let server = Server::start()?;
    let broker = RedisBroker::connect("bus".parse()?, RedisOptions::new(server.url())).await?;
    fill(&broker, events).await?;
    println!("{events} events of {PAYLOAD_BYTES} bytes, {BATCH} a batch, {rounds} rounds; medians\n");

    let run = Run { server: &server, broker: &broker, events };
    let read = run.read_only().await?;
    line("read only", &read);
    let write = run.write_only().await?;
    line("write only", &write);

    if rounds == 0 {
        return Ok(());
    }
    let mut arms: [Vec<Cost>; 5] = Default::default();
    for round in 0..rounds {
        arms[0].push(run.synapse(&format!("a{round}")).await?);
        arms[1].push(run.bare(&format!("b{round}")).await?);
        arms[2].push(run.crate_loop(&format!("c{round}")).await?);
        arms[3].push(run.bare(&format!("d{round}")).await?);
        arms[4].push(run.synapse(&format!("e{round}")).await?);
    }
    let [synapse, bare, with_crate, bare_again, synapse_again] = arms.map(median);
    line("copy: broker", &synapse);
    line("copy: raw bytes", &bare);
    line("copy: redis crate", &with_crate);
    println!();
    ratio("broker of raw bytes (wanted: 0.80)", synapse.rate / bare.rate);
    ratio("broker of redis crate (wanted: 1.80)", synapse.rate / with_crate.rate);
    ratio("control: raw bytes of raw bytes", bare_again.rate / bare.rate);
    ratio("control: broker of broker", synapse_again.rate / synapse.rate);
    broker.close().await;
    Ok(())
}

/// What a run took.
#[derive(Clone, Copy)]
struct Cost {
    /// Events a second.
    rate: f64,
    /// CPU of this process, µs an event.
    client_us: f64,
    /// CPU of the server, µs an event.
    server_us: f64,
}

fn line(what: &str, cost: &Cost) {
    let Cost { rate, client_us, server_us } = cost;
    println!("{what:<24} {rate:>10.0}/s   client {client_us:>5.2} µs   server {server_us:>5.2} µs");
    std::io::stdout().flush().ok();
}

fn ratio(what: &str, ratio: f64) {
    println!("{what:<40} {ratio:>6.2}");
}

fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|one, two| one.rate.total_cmp(&two.rate));
    costs[costs.len() / 2]
}

fn topic(name: &str) -> Result<TopicPath> {
    Ok(TopicPath { broker: "bus".parse()?, topic: name.parse()? })
}

async fn fill(broker: &RedisBroker, events: usize) -> Result<()> {
    for first in (0..events).step_by(1000) {
        let batch: Vec<Event> = (first..events.min(first + 1000))
            .map(|id| Event {
                id: format!("{id:020}"),
                source: "/flights".to_owned(),
                kind: "flight.departed".to_owned(),
                time: Some(synapse_core::Timestamp::from_micros(1_357_013_700_000_000 + id as i64)),
                data: format!("{id:0PAYLOAD_BYTES$}").into_bytes(),
                ..Event::default()
            })
            .collect();
        let events = Arc::new(batch.iter().collect());
        broker.publish(&Output { topic: topic("in")?, encoding: Encoding::CloudEvents, events }).await?;
    }
    Ok(())
}

struct Run<'r> {
    server: &'r Server,
    broker: &'r RedisBroker,
    events: usize,
}

/// Clocks at the beginning of a run.
struct Clocks {
    started: Instant,
    client: Duration,
    server: f64,
}

impl Run<'_> {
    fn begin(&self) -> Result<Clocks> {
        let server = self.server.cpu_seconds()?;
        Ok(Clocks { client: process_cpu(), server, started: Instant::now() })
    }

    fn end(&self, clocks: &Clocks) -> Result<Cost> {
        let (took, client) = (clocks.started.elapsed(), process_cpu() - clocks.client);
        let server = self.server.cpu_seconds()? - clocks.server;
        let events = self.events as f64;
        Ok(Cost {
            rate: events / took.as_secs_f64(),
            client_us: client.as_secs_f64() * 1e6 / events,
            server_us: server * 1e6 / events,
        })
    }

    /// Checks that a copy is whole, and makes room for the next.
    fn end_copy(&self, clocks: &Clocks, to: &str) -> Result<Cost> {
        let cost = self.end(clocks)?;
        let copied: usize = self.server.cli(&["XLEN", to])?.parse()?;
        if copied != self.events {
            return Err(format!("{copied} of {} events arrived in {to}", self.events).into());
        }
        self.server.cli(&["DEL", to])?;
        Ok(cost)
    }

    async fn read_only(&self) -> Result<Cost> {
        let clocks = self.begin()?;
        let mut source = self.broker.read(&"in".parse()?, 0, ReadFrom::Earliest).await?;
        let mut read = 0;
        while read < self.events {
            read += source.poll(LIMIT, Duration::from_secs(1)).await?.offsets.len();
        }
        self.end(&clocks)
    }

    async fn write_only(&self) -> Result<Cost> {
        let mut source = self.broker.read(&"in".parse()?, 0, ReadFrom::Earliest).await?;
        let batch = source.poll(LIMIT, Duration::from_secs(1)).await?;
        drop(source);
        let mut lane = self.broker.open_lane(&self.lane("w")?).await?;
        let to = topic("written")?;
        let clocks = self.begin()?;
        let mut written = 0;
        while written < self.events {
            let rows = batch.events.len().min(self.events - written);
            let events = if rows == batch.events.len() {
                Arc::clone(&batch.events)
            } else {
                let rows: Vec<u32> = (0..u32::try_from(rows)?).collect();
                Arc::new(batch.events.select(&rows))
            };
            let output = Output { topic: to.clone(), encoding: Encoding::CloudEvents, events };
            lane.committer.commit(&effects(output, &batch.offsets)).await?;
            written += rows;
        }
        self.end_copy(&clocks, "written")
    }

    fn lane(&self, pipeline: &str) -> Result<LaneSpec> {
        let partition = TopicPartition { topic: topic("in")?, partition: 0 };
        let key = LaneKey { pipeline: pipeline.parse()?, partition };
        Ok(LaneSpec { key, start: Start::Earliest, read: ReadMode::Cursor })
    }

    /// Source → committer, one batch being read while another is committed.
    async fn synapse(&self, name: &str) -> Result<Cost> {
        let clocks = self.begin()?;
        let mut lane = self.broker.open_lane(&self.lane(name)?).await?;
        let Reading::From(from) = lane.reading else { return Err("a lane by cursor has no source".into()) };
        let mut source = self.broker.read(&"in".parse()?, 0, from).await?;
        let (ahead, mut batches) = tokio::sync::mpsc::channel(AHEAD);
        let events = self.events;
        let reading = tokio::spawn(async move {
            let mut read = 0;
            while read < events {
                let batch = source.poll(LIMIT, Duration::from_secs(1)).await?;
                read += batch.offsets.len();
                ahead.send(batch).await?;
            }
            Ok::<_, Failure>(())
        });
        let to = topic(name)?;
        while let Some(batch) = batches.recv().await {
            let output = Output { topic: to.clone(), encoding: Encoding::CloudEvents, events: batch.events };
            lane.committer.commit(&effects(output, &batch.offsets)).await?;
        }
        reading.await??;
        self.end_copy(&clocks, name)
    }

    /// The least that a client can do: frames of fields go out as they came in.
    async fn bare(&self, name: &str) -> Result<Cost> {
        let clocks = self.begin()?;
        let (socket, events, to) = (self.server.socket(), self.events, name.to_owned());
        tokio::task::spawn_blocking(move || bare::copy(&socket, events, &to)).await??;
        self.end_copy(&clocks, name)
    }

    /// What one would write by hand with the redis crate.
    async fn crate_loop(&self, name: &str) -> Result<Cost> {
        let clocks = self.begin()?;
        let client = redis::Client::open(self.server.url())?;
        with_crate::copy(&client, self.events, name).await?;
        self.end_copy(&clocks, name)
    }
}

fn effects(output: Output, covered: &[Offset]) -> Effects {
    Effects { outputs: vec![output], covered: covered.to_vec(), boundary: None }
}

fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
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
            Ok::<_, Failure>(())
        });
        commit_all(socket, to, &replies)?;
        reading.join().map_err(|_| "the reader panicked")?
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
                return Err("the server closed the connection".into());
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
                return Err("the server closed the connection".into());
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
            Ok::<_, Failure>(())
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
        let last = &entries.last().ok_or("an empty batch")?.0;
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
        done.ok_or("the lease was lost")?;
        let mut armed = redis::pipe();
        armed.cmd("WATCH").arg(lease).cmd("GET").arg(lease);
        armed.query_async::<Vec<redis::Value>>(writer).await?;
        Ok(())
    }
}

/// A redis-server of our own.
struct Server {
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("syn").tempdir()?;
        let mut child = Command::new("redis-server")
            .current_dir(dir.path())
            .args(["--port", "0", "--unixsocket", "r.sock", "--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("redis-server is needed and could not be started: {error}"))?;
        let mut log = BufReader::new(child.stdout.take().ok_or("redis-server has no output")?).lines();
        let ready = log.by_ref().map_while(std::result::Result::ok).any(|line| line.contains("ready to accept"));
        // Goes on reading, so that the server never waits for us.
        std::thread::spawn(move || log.for_each(drop));
        let server = Self { dir, child };
        if ready { Ok(server) } else { Err("redis-server ended before it was ready".into()) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("r.sock")
    }

    fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn cli(&self, arguments: &[&str]) -> Result<String> {
        let out = Command::new("redis-cli").arg("-s").arg(self.socket()).args(arguments).output()?;
        Ok(String::from_utf8(out.stdout)?.trim_end().to_owned())
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let info = self.cli(&["INFO", "cpu"])?;
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.ok_or("INFO cpu is not complete")?.trim().parse::<f64>().map_err(Failure::from)
        };
        Ok(value("used_cpu_sys")? + value("used_cpu_user")?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
