//! What the embedded log costs, beside what the disk and fjall alone can do in the same run.
//!
//! `cargo run --release -p synapse-brokers --example embedded_cost [directory] [seconds for each line]`; the directory
//! should be on the disk in question. Rates are events a second; ratios compare lines of one run, nothing else.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use synapse_brokers::embedded::{EmbeddedLog, Options};
use synapse_core::broker::{BatchLimit, Effects, LaneKey, LaneSpec};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, Start};
use synapse_core::{Batch, Broker, Event, Offset, Output, TopicPartition};
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const EVENTS: usize = 256;
const PAYLOAD_BYTES: usize = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().unwrap_or_else(|| std::env::temp_dir().display().to_string());
    let seconds: u64 = args.next().map_or(Ok(3), |text| text.parse())?;
    let dir = tempfile::tempdir_in(root)?;
    let run = Run { dir: dir.path(), time: Duration::from_secs(seconds) };

    println!("each line {seconds} s; batches of {EVENTS} events with {PAYLOAD_BYTES} bytes of random payload\n");
    let value = batch(EVENTS);
    let bytes = value.bytes().len() + value.ends().len() * 4;
    let disk = run.fdatasync(bytes)? * EVENTS as f64;
    line("fdatasync of one batch", disk, None);
    let fjall = run.fjall(bytes)? * EVENTS as f64;
    line("fjall, one value a batch, each synced", fjall, Some(("of fdatasync", disk)));
    let one = run.publish(1, EVENTS).await?;
    line("log, 1 publisher", one, Some(("of fjall", fjall)));
    let again = run.publish(1, EVENTS).await?;
    line("log, 1 publisher again (control)", again, Some(("of the line above", one)));
    let four = run.publish(4, EVENTS).await?;
    line("log, 4 publishers", four, Some(("of 1 publisher", one)));
    let commits = run.commits().await?;
    line("log, 4 lanes read and commit", commits, Some(("of 1 publisher", one)));
    let back = run.read_back(four).await?;
    line("reading back from the store", back, Some(("of 4 publishers", four)));

    println!("\nsingle events");
    let disk = run.fdatasync(200)?;
    line("fdatasync of one event", disk, None);
    let fjall = run.fjall(200)?;
    line("fjall, one event a value, each synced", fjall, Some(("of fdatasync", disk)));
    let one = run.publish(1, 1).await?;
    line("log, 1 publisher", one, Some(("of fjall", fjall)));
    let many = run.publish(64, 1).await?;
    line("log, 64 publishers", many, Some(("of 1 publisher", one)));
    Ok(())
}

fn line(what: &str, rate: f64, ratio: Option<(&str, f64)>) {
    let ratio = ratio.map(|(of, base)| format!("{:>7.2} {of}", rate / base)).unwrap_or_default();
    println!("{what:<40} {rate:>12.0}/s  {ratio}");
    // A pipe would hold the line back until the end.
    std::io::stdout().flush().ok();
}

/// Payloads that no compression makes smaller.
fn batch(events: usize) -> Batch {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 56) as u8
    };
    let events: Vec<Event> = (0..events)
        .map(|id| Event {
            id: format!("{id:08}"),
            source: "/cost".to_owned(),
            kind: "cost.event".to_owned(),
            data: (0..PAYLOAD_BYTES).map(|_| byte()).collect(),
            ..Event::default()
        })
        .collect();
    events.iter().collect()
}

fn output(events: usize) -> Result<Output> {
    Ok(Output { topic: "local/cost".parse()?, encoding: Encoding::CloudEvents, events: Arc::new(batch(events)) })
}

struct Run<'a> {
    dir: &'a Path,
    time: Duration,
}

impl Run<'_> {
    fn rate(&self, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
        let (started, mut steps) = (Instant::now(), 0u64);
        while started.elapsed() < self.time {
            step()?;
            steps += 1;
        }
        Ok(steps as f64 / started.elapsed().as_secs_f64())
    }

    fn fdatasync(&self, bytes: usize) -> Result<f64> {
        let mut file = tempfile::tempfile_in(self.dir)?;
        // As fjall does with its journal.
        file.set_len(64 << 20)?;
        let value = vec![7; bytes];
        self.rate(|| {
            file.write_all(&value)?;
            Ok(file.sync_data()?)
        })
    }

    fn fjall(&self, bytes: usize) -> Result<f64> {
        let dir = tempfile::tempdir_in(self.dir)?;
        let database = fjall::Database::builder(dir.path()).journal_compression(fjall::CompressionType::None).open()?;
        let keyspace = database.keyspace("log", || {
            fjall::KeyspaceCreateOptions::default().with_kv_separation(Some(
                fjall::KvSeparationOptions::default().compression(fjall::CompressionType::None),
            ))
        })?;
        let value: Vec<u8> = batch(bytes / 100).bytes().iter().copied().cycle().take(bytes).collect();
        let mut key = 0u64;
        self.rate(|| {
            let mut batch = database.batch().durability(Some(fjall::PersistMode::SyncData));
            batch.insert(&keyspace, key.to_be_bytes(), value.as_slice());
            key += 1;
            Ok(batch.commit()?)
        })
    }

    async fn publish(&self, publishers: usize, events: usize) -> Result<f64> {
        let dir = tempfile::tempdir_in(self.dir)?;
        let (log, _) = EmbeddedLog::open(dir.path(), Options::default())?;
        publish_for(&log, self.time, publishers, events).await
    }

    /// Lanes that read a batch, put it into another topic and move their cursor, one commit after the other.
    async fn commits(&self) -> Result<f64> {
        let dir = tempfile::tempdir_in(self.dir)?;
        let (log, _) = EmbeddedLog::open(dir.path(), Options::default())?;
        publish_for(&log, self.time, 4, EVENTS).await?;
        let started = Instant::now();
        let mut lanes = JoinSet::new();
        for lane in 0..4 {
            let (log, time) = (log.clone(), self.time);
            lanes.spawn(async move { commit_for(&log, lane, time).await });
        }
        let mut events = 0;
        while let Some(done) = lanes.join_next().await {
            events += done??;
        }
        Ok(events as f64 / started.elapsed().as_secs_f64())
    }

    async fn read_back(&self, rate: f64) -> Result<f64> {
        let dir = tempfile::tempdir_in(self.dir)?;
        let options = || Options { tail_bytes_max: 0, ..Options::default() };
        let (log, _) = EmbeddedLog::open(dir.path(), options())?;
        publish_for(&log, self.time, 4, EVENTS).await?;
        drop(log);
        let (log, opened) = EmbeddedLog::open(dir.path(), options())?;
        println!("  opened {} events in {:?} (wrote {rate:.0}/s)", opened.events, opened.took);
        let mut source = log.read(&"cost".parse()?, 0, ReadFrom::Earliest).await?;
        let (started, mut read) = (Instant::now(), 0);
        while read < opened.events {
            let batch = source.poll(BatchLimit::default(), Duration::from_secs(1)).await?;
            read += batch.offsets.len() as u64;
        }
        Ok(read as f64 / started.elapsed().as_secs_f64())
    }
}

async fn publish_for(log: &EmbeddedLog, time: Duration, publishers: usize, events: usize) -> Result<f64> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..publishers {
        let (log, output) = (log.clone(), output(events)?);
        tasks.spawn(async move {
            let mut published = 0;
            while started.elapsed() < time {
                published += log.publish(&output).await?.len();
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(published)
        });
    }
    let mut published = 0;
    while let Some(done) = tasks.join_next().await {
        published += done??;
    }
    Ok(published as f64 / started.elapsed().as_secs_f64())
}

async fn commit_for(log: &EmbeddedLog, lane: usize, time: Duration) -> Result<usize> {
    let topic = "local/cost".parse()?;
    let key = LaneKey { pipeline: format!("lane-{lane}").parse()?, partition: TopicPartition { topic, partition: 0 } };
    let mut open = log.open_lane(&LaneSpec { key, start: Start::Earliest, read: ReadMode::Cursor }).await?;
    let mut source = log.read(&"cost".parse()?, 0, ReadFrom::At(Offset::Number(0))).await?;
    let to = format!("local/out-{lane}").parse::<synapse_core::TopicPath>()?;
    let (started, mut events) = (Instant::now(), 0);
    while started.elapsed() < time {
        let batch = source.poll(BatchLimit::default(), Duration::ZERO).await?;
        if batch.is_empty() {
            break;
        }
        events += batch.events.len();
        let output = Output { topic: to.clone(), encoding: Encoding::CloudEvents, events: batch.events };
        let effects = Effects { outputs: vec![output], covered: batch.offsets, boundary: None };
        open.committer.commit(&effects).await?;
    }
    Ok(events)
}
