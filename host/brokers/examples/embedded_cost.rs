//! What the embedded log costs, beside what the disk and fjall alone can do in the same run.
//!
//! `cargo run --release -p synapse-brokers --example embedded_cost [directory] [seconds for each line]`; the directory
//! should be on the disk in question. The last column is the ratio to one publisher; compare lines of one run only.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use synapse_brokers::embedded::{EmbeddedLog, Options};
use synapse_core::broker::{BatchLimit, Effects, LaneKey, LaneSpec};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, Start};
use synapse_core::{Batch, Broker, Event, Offset, Output, TopicPartition, TopicPath};
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: u32 = 3;
const EVENTS: usize = 256;
const PAYLOAD_BYTES: usize = 100;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let root = args.next().unwrap_or_else(|| std::env::temp_dir().display().to_string());
    let seconds: u64 = args.next().map_or(Ok(6), |text| text.parse())?;
    let dir = tempfile::tempdir_in(root)?;
    let run = Run { dir: dir.path(), time: Duration::from_secs(seconds) / ROUNDS };
    println!("{seconds} s a line in {ROUNDS} alternating rounds; {PAYLOAD_BYTES} bytes of random payload an event\n");
    let batches = [
        Arm::new("fdatasync of one batch of 256 events", Work::Fdatasync),
        Arm::new("fjall, one value a batch, each synced", Work::Fjall),
        Arm::new("log, 1 publisher", Work::Publish(1)),
        Arm::new("log, 1 publisher again (control)", Work::Publish(1)),
        Arm::new("log, 4 publishers", Work::Publish(4)),
        Arm::new("log, 16 publishers", Work::Publish(16)),
        Arm::new("log, 4 lanes that read, write and commit", Work::Commit(4)),
        Arm::new("log, reading back from the store", Work::Read),
    ];
    run.compare(EVENTS, batches, 2).await?;
    let singles = [
        Arm::new("fdatasync of one event", Work::Fdatasync),
        Arm::new("fjall, one event a value, each synced", Work::Fjall),
        Arm::new("log, 1 publisher", Work::Publish(1)),
        Arm::new("log, 1 publisher again (control)", Work::Publish(1)),
        Arm::new("log, 64 publishers", Work::Publish(64)),
    ];
    run.compare(1, singles, 2).await
}

/// One line of the table.
struct Arm {
    name: &'static str,
    work: Work,
    events: f64,
    time: Duration,
}

#[derive(Clone, Copy)]
enum Work {
    Fdatasync,
    Fjall,
    Publish(usize),
    Commit(usize),
    Read,
}

impl Arm {
    fn new(name: &'static str, work: Work) -> Self {
        Self { name, work, events: 0.0, time: Duration::ZERO }
    }

    fn rate(&self) -> f64 {
        self.events / self.time.as_secs_f64()
    }
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
    /// Runs the arms in turn, round after round, so that each sees the same noise; then prints them beside the arm
    /// with index `base`.
    async fn compare<const N: usize>(&self, events: usize, mut arms: [Arm; N], base: usize) -> Result<()> {
        for _ in 0..ROUNDS {
            for arm in &mut arms {
                let (done, time) = self.work(arm.work, events).await?;
                arm.events += done as f64;
                arm.time += time;
            }
        }
        for arm in &arms {
            println!("{:<42} {:>12.0} events/s {:>8.2}", arm.name, arm.rate(), arm.rate() / arms[base].rate());
        }
        println!();
        Ok(std::io::stdout().flush()?)
    }

    async fn work(&self, work: Work, events: usize) -> Result<(u64, Duration)> {
        let dir = tempfile::tempdir_in(self.dir)?;
        match work {
            Work::Fdatasync => self.fdatasync(events),
            Work::Fjall => self.fjall(dir.path(), events),
            Work::Publish(publishers) => {
                let (log, _) = EmbeddedLog::open(dir.path(), Options::default())?;
                publish_for(&log, self.time, publishers, events).await
            }
            Work::Commit(lanes) => self.commits(dir.path(), lanes, events).await,
            Work::Read => self.read_back(dir.path(), events).await,
        }
    }

    fn repeat(&self, events: usize, mut step: impl FnMut() -> Result<()>) -> Result<(u64, Duration)> {
        let (started, mut done) = (Instant::now(), 0);
        while started.elapsed() < self.time {
            step()?;
            done += events as u64;
        }
        Ok((done, started.elapsed()))
    }

    fn fdatasync(&self, events: usize) -> Result<(u64, Duration)> {
        let mut file = tempfile::tempfile_in(self.dir)?;
        // As fjall does with its journal.
        file.set_len(64 << 20)?;
        let value = batch(events).bytes().to_vec();
        self.repeat(events, || {
            file.write_all(&value)?;
            Ok(file.sync_data()?)
        })
    }

    fn fjall(&self, dir: &Path, events: usize) -> Result<(u64, Duration)> {
        let database = fjall::Database::builder(dir).journal_compression(fjall::CompressionType::None).open()?;
        let separation = fjall::KvSeparationOptions::default().compression(fjall::CompressionType::None);
        let options = || fjall::KeyspaceCreateOptions::default().with_kv_separation(Some(separation));
        let keyspace = database.keyspace("log", options)?;
        let value = batch(events).bytes().to_vec();
        let mut key = 0u64;
        self.repeat(events, || {
            let mut batch = database.batch().durability(Some(fjall::PersistMode::SyncData));
            batch.insert(&keyspace, key.to_be_bytes(), value.as_slice());
            key += 1;
            Ok(batch.commit()?)
        })
    }

    /// Lanes that read a batch, put it into another topic and move their cursor, one commit after the other.
    async fn commits(&self, dir: &Path, lanes: usize, events: usize) -> Result<(u64, Duration)> {
        let (log, _) = EmbeddedLog::open(dir, Options::default())?;
        publish_for(&log, self.time, 16, events).await?;
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for lane in 0..lanes {
            let (log, time) = (log.clone(), self.time);
            tasks.spawn(async move { commit_for(&log, lane, time).await });
        }
        let mut done = 0;
        while let Some(ended) = tasks.join_next().await {
            done += ended??;
        }
        Ok((done, started.elapsed()))
    }

    async fn read_back(&self, dir: &Path, events: usize) -> Result<(u64, Duration)> {
        let options = || Options { tail_bytes_max: 0, ..Options::default() };
        let (log, _) = EmbeddedLog::open(dir, options())?;
        publish_for(&log, self.time, 16, events).await?;
        drop(log);
        let (log, opened) = EmbeddedLog::open(dir, options())?;
        let mut source = log.read(&"cost".parse()?, 0, ReadFrom::Earliest).await?;
        let (started, mut read) = (Instant::now(), 0);
        while read < opened.events {
            read += source.poll(BatchLimit::default(), Duration::from_secs(1)).await?.offsets.len() as u64;
        }
        Ok((read, started.elapsed()))
    }
}

async fn publish_for(log: &EmbeddedLog, time: Duration, publishers: usize, events: usize) -> Result<(u64, Duration)> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..publishers {
        let (log, output) = (log.clone(), output(events)?);
        tasks.spawn(async move {
            let mut published = 0;
            while started.elapsed() < time {
                published += log.publish(&output).await?.len() as u64;
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(published)
        });
    }
    let mut published = 0;
    while let Some(ended) = tasks.join_next().await {
        published += ended??;
    }
    Ok((published, started.elapsed()))
}

async fn commit_for(log: &EmbeddedLog, lane: usize, time: Duration) -> Result<u64> {
    let topic = "local/cost".parse()?;
    let key = LaneKey { pipeline: format!("lane-{lane}").parse()?, partition: TopicPartition { topic, partition: 0 } };
    let mut open = log.open_lane(&LaneSpec { key, start: Start::Earliest, read: ReadMode::Cursor }).await?;
    let mut source = log.read(&"cost".parse()?, 0, ReadFrom::At(Offset::Number(0))).await?;
    let to: TopicPath = format!("local/out-{lane}").parse()?;
    let (started, mut done) = (Instant::now(), 0);
    while started.elapsed() < time {
        let batch = source.poll(BatchLimit::default(), Duration::ZERO).await?;
        if batch.is_empty() {
            break;
        }
        done += batch.events.len() as u64;
        let output = Output { topic: to.clone(), encoding: Encoding::CloudEvents, events: batch.events };
        let effects = Effects { outputs: vec![output], covered: batch.offsets, boundary: None };
        open.committer.commit(&effects).await?;
    }
    Ok(done)
}
