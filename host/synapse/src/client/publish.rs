//! `synapse publish`: NDJSON from a file or standard input into a topic.
//!
//! A thread reads lines and makes whole events of them; what is ready goes to the host in one request, so that each
//! answer says what is durable. Order is kept, memory is bounded, and nothing waits for more input than there is. A
//! request that fails is not sent again: the host may have taken it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use synapse_core::codec::{Decoded, redis};
use synapse_core::codec::{Origin, cloudevents};
use synapse_core::topic::{Offset, Position};
use synapse_core::{Batch, Event, Timestamp};
use tokio::sync::mpsc;

use super::output::{escaped, grouped};
use super::{Client, DEFAULT_URL, Error, Output, TopicArg};
use crate::http::view::Accepted;

/// Size in bytes of one line; the host takes no longer ones.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Bytes that the reader hands over at once, and bytes at which a request is full.
const PIECE_BYTES: usize = 256 << 10;
const REQUEST_BYTES: usize = 4 << 20;

/// Pieces that wait for the host.
const PIECES_WAITING: usize = 4;

/// The type of events made of lines of data, if none is given.
const RAW_TYPE: &str = "synapse.raw";

/// Publishes events, one a line.
///
/// A line with `specversion` is an event: id, source, type, time and partitionkey are filled in where it lacks them.
/// A line with the fields of an entry on Redis (`event`, `event_type`, `payload` or `ce_*`) is read as Synapse reads
/// such entries. Another line is an event without `specversion`; but with --type it is the data of a new event. Blank
/// lines are passed over. Files may be compressed with gzip.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// `broker/topic`, or `topic` on the default broker.
    pub topic: TopicArg,
    /// The file to read; `-` is standard input.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// The type of events that have none of their own.
    #[arg(long = "type", value_name = "T")]
    pub kind: Option<String>,
    /// The source of events that have none of their own.
    #[arg(long, value_name = "S", default_value = "synapse-cli")]
    pub source: String,
    /// The partition key of events that have none of their own.
    #[arg(long, value_name = "K")]
    pub key: Option<String>,
    /// Every line is an event's data, whatever it looks like.
    #[arg(long)]
    pub raw: bool,
    /// The host's address.
    #[arg(long, value_name = "URL", env = "SYNAPSE_URL", default_value = DEFAULT_URL)]
    pub url: String,
    /// The key to show to the host, if it wants one. (`--key` is the partition key here.)
    #[arg(long, value_name = "KEY", env = "SYNAPSE_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

impl Args {
    /// A client for the host that is meant.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn client(&self) -> Result<Client, Error> {
        Client::new(&self.url, self.api_key.clone())
    }
}

/// Runs the command until the input ends.
///
/// # Errors
/// Input that cannot be read, a line that is no event, or as the host says; the sentence says what is durable.
pub async fn run(args: Args, client: &Client, out: &mut Output) -> anyhow::Result<()> {
    let input: Box<dyn Read + Send> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&args.file).with_context(|| format!("cannot open `{}`", args.file.display()))?)
    };
    run_on(input, args, client, out).await
}

/// As [`run`], reading from `input`.
///
/// # Errors
/// As [`run`].
pub async fn run_on(input: Box<dyn Read + Send>, args: Args, client: &Client, out: &mut Output) -> anyhow::Result<()> {
    let started = Instant::now();
    let route = args.topic.route("/events", &[]);
    let topic = args.topic.to_string();
    let maker = Maker { kind: args.kind, source: args.source, key: args.key, raw: args.raw };
    let (sender, mut pieces) = mpsc::channel(PIECES_WAITING);
    // A thread of its own, not one of the runtime's: a read of standard input may never return, and must not hold up
    // the end of the process. It ends with the input, or when nobody takes its pieces any more.
    std::thread::Builder::new().name("input".to_owned()).spawn(move || read_all(input, &maker, &sender))?;
    let mut done = Accepted::default();
    while let Some(piece) = pieces.recv().await {
        let mut request = piece.map_err(|error| unread(&error, done.accepted))?;
        let mut failed = None;
        while request.body.len() < REQUEST_BYTES && failed.is_none() {
            match pieces.try_recv() {
                Ok(Ok(piece)) => request.append(&piece),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => break,
            }
        }
        send(client, &route, request, &mut done).await?;
        if let Some(error) = failed {
            return Err(unread(&error, done.accepted));
        }
        out.progress(format_args!("{} events published", grouped(done.accepted)))?;
    }
    report(&topic, done, started, out)?;
    out.flush()?;
    Ok(())
}

fn unread(error: &anyhow::Error, accepted: u64) -> anyhow::Error {
    anyhow!("{error:#}; {}", durable(accepted))
}

fn durable(events: u64) -> String {
    match events {
        1 => "1 event before that is durable".to_owned(),
        _ => format!("{} events before that are durable", grouped(events)),
    }
}

async fn send(client: &Client, route: &str, request: Piece, done: &mut Accepted) -> anyhow::Result<()> {
    let Piece { body, lines } = request;
    if lines.is_empty() {
        return Ok(());
    }
    let sent: Result<Accepted, Error> = client.post(route, "application/x-ndjson", Bytes::from(body)).await;
    match sent {
        Ok(answer) => {
            done.accepted += answer.accepted;
            done.first = done.first.take().or(answer.first);
            done.last = answer.last.or(done.last.take());
            Ok(())
        }
        Err(Error::Refused(problem)) => {
            let reason = escaped(problem.reason.as_deref().unwrap_or(&problem.detail));
            let durable = durable(done.accepted + problem.accepted.unwrap_or(0));
            let line = problem.line.and_then(|line| lines.get(usize::try_from(line).ok()?.checked_sub(1)?));
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            bail!("{place}{reason}; {durable}")
        }
        Err(error @ Error::Nobody { .. }) if done.accepted == 0 => Err(error.into()),
        Err(error) => {
            let (first, last) = (lines[0], lines[lines.len() - 1]);
            bail!("{error}; whether lines {first} to {last} are durable is not known; {}", durable(done.accepted))
        }
    }
}

/// What was done, for machines.
#[derive(Serialize)]
struct Report<'a> {
    topic: &'a str,
    accepted: u64,
    first: Option<Position>,
    last: Option<Position>,
    seconds: f64,
}

fn report(topic: &str, done: Accepted, started: Instant, out: &mut Output) -> io::Result<()> {
    let seconds = started.elapsed().as_secs_f64();
    let Accepted { accepted, first, last } = done;
    if out.is_json() {
        return out.object(&Report { topic, accepted, first, last, seconds });
    }
    let events = if accepted == 1 { "event" } else { "events" };
    let rate = grouped((accepted as f64 / seconds.max(1e-6)) as u64);
    out.line(format_args!("{} {events} published to {topic} in {seconds:.2} s ({rate}/s)", grouped(accepted)))
}

/// Whole events, and the line of the input that each came from.
#[derive(Default)]
struct Piece {
    /// NDJSON.
    body: Vec<u8>,
    lines: Vec<u64>,
}

impl Piece {
    fn append(&mut self, other: &Self) {
        self.body.extend_from_slice(&other.body);
        self.lines.extend_from_slice(&other.lines);
    }
}

type Pieces = mpsc::Sender<anyhow::Result<Piece>>;

/// Reads the input to its end, or to the first line that is no event; what comes before that is handed over first.
fn read_all(input: Box<dyn Read + Send>, maker: &Maker, pieces: &Pieces) {
    let mut piece = Piece::default();
    let read = read_lines(input, maker, &mut piece, pieces);
    // Whoever wanted the pieces may be gone: then there is nobody to tell.
    if !piece.lines.is_empty() && pieces.blocking_send(Ok(piece)).is_err() {
        return;
    }
    if let Err(error) = read {
        let _ = pieces.blocking_send(Err(error));
    }
}

fn read_lines(input: Box<dyn Read + Send>, maker: &Maker, piece: &mut Piece, pieces: &Pieces) -> anyhow::Result<()> {
    let mut plain = BufReader::with_capacity(PIECE_BYTES, input);
    let gzip = plain.fill_buf().context("cannot read the input")?.starts_with(&[0x1f, 0x8b]);
    let input: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(plain)) } else { Box::new(plain) };
    let mut reader = BufReader::with_capacity(PIECE_BYTES, input);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let room = LINE_BYTES_MAX as u64 + 2;
        let read = reader.by_ref().take(room).read_until(b'\n', &mut line);
        if read.with_context(|| format!("line {number}: cannot read the input"))? == 0 {
            break;
        }
        let bytes = trimmed(&line, number == 1);
        if bytes.len() > LINE_BYTES_MAX {
            bail!("line {number}: is longer than {LINE_BYTES_MAX} bytes");
        }
        if !bytes.trim_ascii().is_empty() {
            let made = maker.event(bytes, &mut piece.body);
            made.map_err(|reason| anyhow!("line {number}: {}", escaped(&reason)))?;
            piece.body.push(b'\n');
            piece.lines.push(number);
        }
        // Without another line at hand the next read may wait: what there is goes out first.
        let full = piece.body.len() >= PIECE_BYTES || !reader.buffer().contains(&b'\n');
        if full && !piece.lines.is_empty() && pieces.blocking_send(Ok(std::mem::take(piece))).is_err() {
            break;
        }
    }
    Ok(())
}

/// A line without its end, and without a byte order mark.
fn trimmed(line: &[u8], first: bool) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line }
}

/// Makes whole events of lines.
struct Maker {
    kind: Option<String>,
    source: String,
    key: Option<String>,
    raw: bool,
}

impl Maker {
    /// Appends an event as one line of JSON; nothing after an error.
    fn event(&self, line: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        if self.raw {
            self.around(line, out);
            return Ok(());
        }
        let no_json = |error: serde_json::Error| {
            // It counts lines within this one.
            format!("not JSON: {error}").replace(" at line 1 column ", " at column ")
        };
        let json: &RawValue = serde_json::from_slice(line).map_err(no_json)?;
        let members = json.get().starts_with('{').then(|| serde_json::from_str::<Members>(json.get()));
        let members = members.transpose().map_err(no_json)?;
        match members {
            Some(members) if members.is_entry() && self.kind.is_none() => self.entry(json.get(), out)?,
            Some(members) if members.specversion || self.kind.is_none() => {
                if !members.kind && self.kind.is_none() {
                    return Err("`type` is missing: give it in the event, or with --type".to_owned());
                }
                self.complete(json.get(), &members, out);
            }
            Some(_) | None if self.kind.is_some() => self.around(json.get().as_bytes(), out),
            Some(_) | None => {
                return Err("is no event, which is a JSON object; to send it as an event's data give --type".to_owned());
            }
        }
        Ok(())
    }

    /// Puts what an event lacks in front of its own members.
    fn complete(&self, json: &str, members: &Members, out: &mut Vec<u8>) {
        let mut before = b"{".to_vec();
        let mut member = |name: &str, value: &str| {
            let name = if before.len() > 1 { format!(",\"{name}\":") } else { format!("\"{name}\":") };
            before.extend_from_slice(name.as_bytes());
            serde_json::to_writer(&mut before, value).expect("writing text to memory does not fail");
        };
        if !members.specversion {
            member("specversion", "1.0");
        }
        if !members.id {
            member("id", &random_id());
        }
        if !members.source {
            member("source", &self.source);
        }
        if let Some(kind) = self.kind.as_deref().filter(|_| !members.kind) {
            member("type", kind);
        }
        if !members.time {
            member("time", &now().to_string());
        }
        if let Some(key) = self.key.as_deref().filter(|_| !members.partition_key) {
            member("partitionkey", key);
        }
        let own = json[1..].trim_start();
        if before.len() > 1 && own != "}" {
            before.push(b',');
        }
        out.extend_from_slice(&before);
        out.extend_from_slice(own.as_bytes());
    }

    /// Makes an event of what a client would have written to Redis, each member a field of the entry.
    fn entry(&self, json: &str, out: &mut Vec<u8>) -> Result<(), String> {
        let members: Map<String, Value> = serde_json::from_str(json).map_err(|error| format!("not JSON: {error}"))?;
        let texts: Vec<(String, String)> = members
            .into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })
            .collect();
        let fields: Vec<_> = texts.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        let topic = "synapse-cli".parse().expect("a constant name is valid");
        let origin = Origin { topic: &topic, partition: 0, offset: Offset::Number(0) };
        let mut batch = Batch::default();
        match redis::decode(&fields, &origin, now(), &mut batch).map_err(|error| error.to_string())? {
            Decoded::Event => {}
            Decoded::Expired => return Err("its time to live has passed".to_owned()),
        }
        let mut event = batch.event(0).to_event();
        if event.id == "synapse-cli/0" {
            event.id = random_id();
        }
        event.time = event.time.or_else(|| Some(now()));
        event.partition_key = event.partition_key.or_else(|| self.key.clone());
        let whole: Batch = [&event].into_iter().collect();
        cloudevents::encode(whole.event(0), None, out);
        Ok(())
    }

    /// Makes an event of its data.
    fn around(&self, data: &[u8], out: &mut Vec<u8>) {
        let content_type = match std::str::from_utf8(data) {
            Ok(text) if serde_json::from_str::<&RawValue>(text).is_ok() => "application/json",
            Ok(_) => "text/plain",
            Err(_) => "application/octet-stream",
        };
        let event = Event {
            id: random_id(),
            source: self.source.clone(),
            kind: self.kind.clone().unwrap_or_else(|| RAW_TYPE.to_owned()),
            time: Some(now()),
            partition_key: self.key.clone(),
            content_type: Some(content_type.to_owned()),
            data: data.to_vec(),
            ..Event::default()
        };
        let batch: Batch = [&event].into_iter().collect();
        cloudevents::encode(batch.event(0), None, out);
    }
}

/// Which members a JSON object has, of those that may be filled in.
#[derive(Default)]
struct Members {
    specversion: bool,
    id: bool,
    source: bool,
    kind: bool,
    time: bool,
    partition_key: bool,
    /// One of those by which an entry on Redis is recognised.
    entry: bool,
}

impl Members {
    /// Whether this is no event, but what a client writes to Redis.
    fn is_entry(&self) -> bool {
        self.entry && !self.specversion && !self.kind
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an event as a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members, M::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "specversion" => members.specversion = true,
                        "id" => members.id = true,
                        "source" => members.source = true,
                        "type" => members.kind = true,
                        "time" => members.time = true,
                        "partitionkey" => members.partition_key = true,
                        "event" | "event_type" | "payload" => members.entry = true,
                        name if name.starts_with("ce_") => members.entry = true,
                        _ => {}
                    }
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Names)
    }
}

/// A random UUID (version 4).
fn random_id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random numbers once it has started");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_write_to_redis_is_read_as_from_there() {
        let maker = Maker { kind: None, source: "synapse-cli".to_owned(), key: None, raw: false };
        let fields =
            made(&maker, r#"{"event":"model-ready","source":"helox","accuracy":"0.93","metadata":"{\"a\":1}"}"#);
        let fields = fields.unwrap();
        assert_eq!((fields.kind.as_str(), fields.source.as_str()), ("model-ready", "helox"));
        let data: Value = serde_json::from_slice(&fields.data).unwrap();
        assert_eq!((&data["accuracy"], &data["metadata"]["a"]), (&0.93.into(), &1.into()));
        let envelope =
            made(&maker, r#"{"event_type":"t","sender":"s","payload":{"n":1},"timestamp":"2026-01-01T00:00:00Z"}"#);
        assert_eq!(envelope.unwrap().data, br#"{"n":1}"#);
        let payload = made(&maker, r#"{"payload":{"event":"t","n":1}}"#).unwrap();
        assert_eq!(payload.kind, "t");
        let ours = made(&maker, r#"{"ce_id":"1","ce_source":"/s","ce_type":"t","data":"{}"}"#).unwrap();
        assert_eq!(ours.id, "1");
        assert!(made(&maker, r#"{"ce_id":"1"}"#).is_err());
    }

    fn made(maker: &Maker, line: &str) -> Result<Event, String> {
        let mut json = Vec::new();
        maker.event(line.as_bytes(), &mut json)?;
        cloudevents::to_event(&json).map_err(|error| format!("refused by the host: {error}"))
    }

    fn maker(kind: Option<&str>, raw: bool) -> Maker {
        Maker { kind: kind.map(str::to_owned), source: "s".to_owned(), key: Some("k".to_owned()), raw }
    }

    #[test]
    fn what_an_event_lacks_is_filled_in() {
        let bare = made(&maker(Some("t"), false), r#"{"specversion":"1.0"}"#).unwrap();
        assert_eq!((bare.source.as_str(), bare.kind.as_str(), bare.partition_key.as_deref()), ("s", "t", Some("k")));
        assert!(bare.id.len() == 36 && bare.time.is_some());
        let line = r#" {  "specversion":"1.0","id":"1","source":"own","type":"mine","time":"2013-01-01T05:15:00Z","partitionkey":"p","data":{ "a" : 1.50 }} "#;
        let whole = made(&maker(Some("t"), false), line).unwrap();
        assert_eq!(whole, cloudevents::to_event(line.as_bytes()).unwrap());
        assert_eq!(whole.data, br#"{ "a" : 1.50 }"#);
    }

    #[test]
    fn without_specversion_type_decides_what_a_line_is() {
        let line = r#"{"type":"order","data":{"n":1}}"#;
        let event = made(&maker(None, false), line).unwrap();
        assert_eq!((event.kind.as_str(), event.data.as_slice()), ("order", &br#"{"n":1}"#[..]));
        let data = made(&maker(Some("t"), false), line).unwrap();
        assert_eq!((data.kind.as_str(), data.data.as_slice()), ("t", line.as_bytes()));
        assert_eq!(made(&maker(Some("t"), false), "[1, 2]").unwrap().data, b"[1, 2]");
        insta::assert_snapshot!(made(&maker(None, false), r#"{"n":1}"#).unwrap_err(), @"`type` is missing: give it in the event, or with --type");
        insta::assert_snapshot!(made(&maker(None, false), "[1]").unwrap_err(), @"is no event, which is a JSON object; to send it as an event's data give --type");
        insta::assert_snapshot!(made(&maker(None, false), "{} {}").unwrap_err(), @"not JSON: trailing characters at column 4");
    }

    #[test]
    fn raw_lines_are_data_whatever_they_look_like() {
        let event = |line: &str| {
            let event = made(&maker(None, true), line).unwrap();
            assert_eq!(event.kind, RAW_TYPE);
            (event.content_type.unwrap(), String::from_utf8(event.data).unwrap())
        };
        assert_eq!(event(r#"{"specversion":"1.0"}"#), ("application/json".into(), r#"{"specversion":"1.0"}"#.into()));
        assert_eq!(event("a \"b\""), ("text/plain".into(), "a \"b\"".into()));
        let mut json = Vec::new();
        maker(None, true).event(b"\xff", &mut json).unwrap();
        assert_eq!(cloudevents::to_event(&json).unwrap().data, b"\xff");
    }

    #[test]
    fn random_ids_are_uuids() {
        let (one, two) = (random_id(), random_id());
        assert_ne!(one, two);
        assert_eq!(
            (one.as_bytes()[14], one.split('-').map(str::len).collect::<Vec<_>>()),
            (b'4', vec![8, 4, 4, 4, 12])
        );
    }
}
