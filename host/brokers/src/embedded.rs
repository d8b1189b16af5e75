//! The embedded log: topics in one directory of one process, durable before anyone is told.
//!
//! Every batch is one value in fjall, an LSM store, keyed by topic, partition and base offset; outputs, cursor and
//! boundary of a commit are one atomic write in it. One thread writes: it gathers whatever waits into one write and
//! syncs once for all (group commit). Offsets are dense from 0 in each partition. Readers that keep up are served from
//! memory.
//!
//! **What is promised.** An answer means that the data was synced (`fdatasync`). After a crash everything that was
//! acknowledged is there; a write that was cut short is dropped whole. Values carry a checksum over their place and
//! their content: damage is reported with its place, never handed out, and reading stops there; the message names the
//! offset at which reading can go on ([`ReadFrom::At`]). If acknowledged writes are missing altogether when the log is
//! opened, for example because the journal was cut, opening fails with [`Error::Lost`] unless
//! [`Options::accept_loss`] is set. After an error of the disk nothing is known of the last write: the log then refuses
//! everything until it is opened again.
//!
//! **What is stored.** `store/` is fjall's; `lock` names the process that has the log open; `acknowledged` holds the
//! number of the last acknowledged write. The format of keys and values has version 1, kept under `meta/format`, and a
//! version byte in each value. A host refuses versions that it does not know.
//!
//! **Retention** lets whole values go, oldest first: never more events than asked for are dropped, and the newest value
//! stays whatever its size. It is enforced after each write and once a second. Space on the disk follows when the store
//! compacts, some 256 MiB behind.
//!
//! This module must not know pipelines, plugins or other brokers.

mod files;
mod format;
mod queue;
mod source;
mod store;
mod tail;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use synapse_core::broker::{Boundary, BrokerErrorKind, LaneKey, LaneSpec, OpenLane, Output, Reading, TopicInfo};
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::{ReadFrom, TopicSpec};
use synapse_core::{Broker, BrokerError, BrokerName, Committer, Effects, Offset, Source, TopicName};

use crate::alone::{self, Alone};
use crate::clock::{Clock, system_clock};
use files::{Lock, LockError, Witness};
use format::{FORMAT, FORMAT_KEY, GROUP_KEY, LaneName, LaneRecord, Place};
use queue::Queue;
use source::LogSource;
use store::{ReadError, Store};
use tail::{Catalog, Partition, Topic};
use writer::{Answer, Commit, Request, Writer};

/// How many requests wait for the writer; more make their callers wait.
const REQUESTS_MAX: usize = 1024;

/// One event takes at most this many bytes.
const EVENT_BYTES_MAX: usize = 64 << 20;

/// How the log is run.
#[derive(Clone)]
pub struct Options {
    /// The broker's name.
    pub name: BrokerName,
    /// Tells when events are appended, and what is too old.
    pub clock: Clock,
    /// With less than this many bytes free on the disk nothing is written.
    pub disk_free_bytes_min: u64,
    /// With less than this part of the disk free (0 to 1) nothing is written.
    pub disk_free_ratio_min: f64,
    /// Tells how much of the disk at a path is free.
    pub disk_space: DiskProbe,
    /// Newest batches kept in memory for readers that keep up, in bytes, shared by all partitions; each keeps at least
    /// its newest batch.
    pub tail_bytes_max: usize,
    /// The store's cache, in bytes.
    pub cache_bytes_max: u64,
    /// Open the log although acknowledged writes are missing. The offsets of the missing events are then given again.
    pub accept_loss: bool,
}

/// Tells how much of the disk at a path is free.
pub type DiskProbe = Arc<dyn Fn(&Path) -> io::Result<DiskSpace> + Send + Sync>;

/// The disk that holds the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

impl Default for Options {
    /// Broker `local` on the system's clock, 256 MiB of the disk kept free, 64 MiB of newest batches, 32 MiB of cache.
    fn default() -> Self {
        Self {
            name: "local".parse().expect("`local` is a name"),
            clock: system_clock(),
            disk_free_bytes_min: 256 << 20,
            disk_free_ratio_min: 0.0,
            disk_space: Arc::new(|path| {
                let disk = rustix::fs::statvfs(path)?;
                let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
                Ok(DiskSpace { free_bytes: bytes(disk.f_bavail), total_bytes: bytes(disk.f_blocks) })
            }),
            tail_bytes_max: 64 << 20,
            cache_bytes_max: 32 << 20,
            accept_loss: false,
        }
    }
}

/// What was found when the log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// How many topics.
    pub topics: usize,
    /// How many partitions they have.
    pub partitions: usize,
    /// How many events they hold.
    pub events: u64,
    /// How many bytes these take.
    pub bytes: u64,
    /// Acknowledged writes that are missing; 0 unless [`Options::accept_loss`] was set.
    pub lost_writes: u64,
    /// How long opening took, replaying the journal included.
    pub took: Duration,
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it open.
    #[error("the log in `{}` is in use by {holder}: stop it, or give this host another directory", path.display())]
    Locked {
        /// The log's directory.
        path: PathBuf,
        /// Who has it, by its own word.
        holder: String,
    },
    /// The directory or a file beside the store cannot be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The store cannot be opened or read.
    #[error("the log in `{}` cannot be read: {problem}; if the disk is healthy, restore it from a copy", path.display())]
    Store {
        /// The log's directory.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// Written by another version of Synapse.
    #[error("the log in `{}` has format {found}, but this host knows format {FORMAT}", path.display())]
    Format {
        /// The log's directory.
        path: PathBuf,
        /// The format found.
        found: u64,
    },
    /// Acknowledged writes are missing.
    #[error(
        "the log in `{}` ends at write {found}, but writes up to {acknowledged} were acknowledged: \
         part of its journal is lost; restore it from a copy",
        path.display()
    )]
    Lost {
        /// The log's directory.
        path: PathBuf,
        /// The last write that is there.
        found: u64,
        /// The last write that was acknowledged.
        acknowledged: u64,
    },
}

/// A handle to an open log. The log is closed when the last clone, reader and lane are gone.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Owner>);

/// Ends the writer with the last handle.
struct Owner {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What handles, readers and the writer share.
struct Shared {
    options: Options,
    path: PathBuf,
    store: Store,
    queue: Queue<Request>,
    catalog: RwLock<Arc<Catalog>>,
    /// Why nothing is written any more.
    failure: OnceLock<String>,
    witness: Witness,
    _lock: Lock,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.queue.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!(path = %self.shared.path.display(), "the writer of the log panicked");
        }
    }
}

/// The file that names who has the log open.
const LOCK: &str = "lock";

impl EmbeddedLog {
    /// The process that has the log in a directory open, in words, if one has.
    pub fn holder(path: impl AsRef<Path>) -> Option<String> {
        Lock::holder(&path.as_ref().join(LOCK))
    }

    /// Opens the log in a directory, creating it if need be. Blocks while the journal is replayed: at most some 200 MiB
    /// are read.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<(Self, Opened), Error> {
        let started = Instant::now();
        let path = path.as_ref();
        let io = |action| move |source| Error::Io { action, path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(io("make the directory"))?;
        let holder = format!("process {} since {}", std::process::id(), (options.clock)());
        let lock = Lock::take(&path.join(LOCK), &holder).map_err(|error| match error {
            LockError::Held(holder) => Error::Locked { path: path.to_owned(), holder },
            LockError::Io(source) => io("lock the directory")(source),
        })?;
        let (witness, acknowledged) =
            Witness::open(&path.join("acknowledged")).map_err(io("read the file `acknowledged` in"))?;
        let read = || Self::load(path, options, lock, witness, acknowledged);
        // The store may panic over damaged files; that is an error like any other.
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
        let (shared, writer, found, lost_writes) = loaded.unwrap_or_else(|_| {
            let problem = "its files are damaged in a way that the store does not expect".to_owned();
            Err(Error::Store { path: path.to_owned(), problem })
        })?;
        shared.witness.write(found).map_err(io("write the file `acknowledged` in"))?;
        let thread = std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(io("start a thread to write to"))?;
        let log = Self(Arc::new(Owner { shared, writer: Mutex::new(Some(thread)) }));
        let opened = log.opened(lost_writes, started.elapsed());
        Ok((log, opened))
    }

    fn load(
        path: &Path,
        options: Options,
        lock: Lock,
        witness: Witness,
        acknowledged: u64,
    ) -> Result<(Arc<Shared>, Writer, u64, u64), Error> {
        let unreadable = |problem| Error::Store { path: path.to_owned(), problem };
        let accept_loss = options.accept_loss;
        let store = Store::open(&path.join("store"), options.cache_bytes_max);
        let store = store.map_err(|error| unreadable(error.to_string()))?;
        let (found, lost_writes) = check_store(&store, path, acknowledged, accept_loss)?;
        let shared = Arc::new(Shared {
            options,
            path: path.to_owned(),
            store,
            queue: Queue::new(REQUESTS_MAX),
            catalog: RwLock::default(),
            failure: OnceLock::new(),
            witness,
            _lock: lock,
        });
        let writer = Writer::load(Arc::clone(&shared), found).map_err(|error| unreadable(error.to_string()))?;
        Ok((shared, writer, found, lost_writes))
    }

    fn opened(&self, lost_writes: u64, took: Duration) -> Opened {
        let catalog = self.shared().catalog();
        let partitions = || catalog.values().flat_map(|topic| &topic.partitions).map(|partition| partition.span());
        Opened {
            topics: catalog.len(),
            partitions: partitions().count(),
            events: partitions().map(|span| span.end - span.earliest).sum(),
            bytes: partitions().map(|span| span.bytes).sum(),
            lost_writes,
            took,
        }
    }

    /// Why nothing is written any more, if the disk failed.
    pub fn failure(&self) -> Option<String> {
        self.shared().failure.get().cloned()
    }

    /// Enforces retention now rather than within the next second.
    ///
    /// # Errors
    /// The log has failed.
    pub async fn trim(&self) -> Result<(), BrokerError> {
        self.request(|answer| Request::Trim { answer }).await
    }

    /// How many bytes the store takes on the disk, journals included.
    ///
    /// # Errors
    /// The files cannot be measured.
    pub fn disk_bytes(&self) -> Result<u64, BrokerError> {
        let shared = self.shared();
        shared.store.disk_bytes().map_err(|error| shared.unreadable("the size of the store", error))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    async fn request<T>(&self, make: impl FnOnce(Answer<T>) -> Request) -> Result<T, BrokerError> {
        let closed = || self.shared().error(BrokerErrorKind::Unavailable, "the log's writer has ended");
        let (answer, told) = tokio::sync::oneshot::channel();
        self.shared().queue.send(make(answer)).await.map_err(|_| closed())?;
        told.await.unwrap_or_else(|_| Err(closed()))
    }

    fn partition(&self, topic: &TopicName, partition: u32) -> Result<Arc<Partition>, BrokerError> {
        let shared = self.shared();
        let found = shared.topic(topic).ok_or_else(|| shared.no_topic(topic))?;
        let partition =
            found.partitions.get(partition as usize).ok_or_else(|| shared.no_partition(topic, partition))?;
        Ok(Arc::clone(partition))
    }

    fn number(&self, offset: Offset) -> Result<u64, BrokerError> {
        match offset {
            Offset::Number(number) => Ok(number),
            Offset::Entry { .. } => {
                let message = format!("`{offset}` is no offset of this broker: its offsets are numbers");
                Err(self.shared().error(BrokerErrorKind::Invalid, message))
            }
        }
    }
}

/// The last write in the store, and how many acknowledged ones are missing behind it.
fn check_store(store: &Store, path: &Path, acknowledged: u64, accept_loss: bool) -> Result<(u64, u64), Error> {
    let number =
        |key| store.number(key).map_err(|error| Error::Store { path: path.to_owned(), problem: error.to_string() });
    match number(FORMAT_KEY)? {
        Some(FORMAT) => {}
        Some(found) => return Err(Error::Format { path: path.to_owned(), found }),
        None => {
            let mut batch = store.synced();
            batch.put_number(FORMAT_KEY, FORMAT);
            batch.commit().map_err(|error| Error::Store { path: path.to_owned(), problem: error.to_string() })?;
        }
    }
    let found = number(GROUP_KEY)?.unwrap_or(0);
    let lost = acknowledged.saturating_sub(found);
    if lost > 0 && !accept_loss {
        return Err(Error::Lost { path: path.to_owned(), found, acknowledged });
    }
    Ok((found, lost))
}

impl Shared {
    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn topic(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.catalog().get(name).map(Arc::clone)
    }

    fn error(&self, kind: BrokerErrorKind, message: impl fmt::Display) -> BrokerError {
        BrokerError { broker: self.options.name.clone(), kind, message: message.to_string() }
    }

    fn no_topic(&self, topic: &TopicName) -> BrokerError {
        self.error(BrokerErrorKind::Invalid, format_args!("there is no topic `{topic}`"))
    }

    fn no_partition(&self, topic: &TopicName, partition: u32) -> BrokerError {
        self.error(BrokerErrorKind::Invalid, format_args!("topic `{topic}` has no partition {partition}"))
    }

    fn unreadable(&self, what: &str, error: impl fmt::Display) -> BrokerError {
        let path = self.path.display();
        self.error(BrokerErrorKind::Corrupt, format_args!("{what} cannot be read from `{path}`: {error}"))
    }

    /// Nothing is written any more.
    fn fail(&self, error: impl fmt::Display) {
        let path = self.path.display();
        let message = format!(
            "writing to `{path}` failed: {error}; nothing more is written: see to the disk, then start Synapse again"
        );
        tracing::error!("{message}");
        // The first failure tells most.
        let _ = self.failure.set(message);
    }

    fn check_failure(&self) -> Result<(), BrokerError> {
        match self.failure.get() {
            Some(failure) => Err(self.error(BrokerErrorKind::Unavailable, failure)),
            None => Ok(()),
        }
    }

    fn check_disk(&self) -> Result<(), BrokerError> {
        let path = self.path.display();
        let space = (self.options.disk_space)(&self.path).map_err(|error| {
            let message = format!("cannot tell how much of the disk at `{path}` is free: {error}");
            self.error(BrokerErrorKind::Unavailable, message)
        })?;
        let part = (space.total_bytes as f64 * self.options.disk_free_ratio_min) as u64;
        let kept = self.options.disk_free_bytes_min.max(part);
        if space.free_bytes >= kept {
            return Ok(());
        }
        let mib = |bytes: u64| bytes >> 20;
        let (free, kept) = (mib(space.free_bytes), mib(kept));
        let message = format!(
            "the disk at `{path}` is full: {free} MiB are free, and {kept} MiB are kept free; writing goes on by \
             itself once there is room"
        );
        Err(self.error(BrokerErrorKind::Full, message))
    }

    fn check_own(&self, output: &Output) -> Result<(), BrokerError> {
        let invalid = |message: String| Err(self.error(BrokerErrorKind::Invalid, message));
        if output.topic.broker != self.options.name {
            return invalid(format!("topic `{}` is on another broker", output.topic));
        }
        let events = &output.events;
        let is_large = |row| events.row_bytes(row..row + 1) > EVENT_BYTES_MAX;
        if events.bytes().len() > EVENT_BYTES_MAX && (0..events.len()).any(is_large) {
            return invalid(format!("an event for `{}` is larger than {} MiB", output.topic, EVENT_BYTES_MAX >> 20));
        }
        Ok(())
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Damaged { problem, .. } => f.write_str(problem),
        }
    }
}

#[async_trait]
impl Broker for EmbeddedLog {
    fn name(&self) -> &BrokerName {
        &self.shared().options.name
    }

    fn commits_apart(&self) -> Option<&'static str> {
        None
    }

    async fn ensure_topic(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        self.request(|answer| Request::Ensure { topic: topic.clone(), spec: spec.clone(), answer }).await?;
        let shared = self.shared();
        Ok(shared.topic(topic).ok_or_else(|| shared.no_topic(topic))?.info())
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        Ok(self.shared().catalog().values().map(|topic| topic.info()).collect())
    }

    async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        Ok(self.shared().topic(topic).map(|topic| topic.info()))
    }

    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        self.shared().check_own(output)?;
        self.request(|answer| Request::Publish { output: output.clone(), answer }).await
    }

    async fn read(&self, topic: &TopicName, partition: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError> {
        let found = self.partition(topic, partition)?;
        let span = found.span();
        let place = match from {
            ReadFrom::Earliest => Place::Next(span.earliest),
            ReadFrom::Latest => Place::Next(span.end),
            ReadFrom::Time(time) => Place::Time(time),
            ReadFrom::At(offset) => Place::Next(self.number(offset)?),
            ReadFrom::After(offset) => Place::Next(self.number(offset)?.saturating_add(1)),
        };
        Ok(Box::new(LogSource::new(self.clone(), topic.clone(), found, place)))
    }

    async fn join(&self, share: &Share) -> Result<Box<dyn Membership>, BrokerError> {
        Ok(Box::new(Alone::new(self.clone(), share)))
    }

    async fn places(&self, share: &Share) -> Result<Vec<LanePlace>, BrokerError> {
        let mut places = Vec::new();
        for lane in alone::lanes(self, share).await? {
            let span = self.partition(&lane.partition.topic.topic, lane.partition.partition)?.span();
            let stored = self.shared().store.record::<LaneRecord>(&LaneName::new(&lane).key());
            let stored = stored.map_err(|error| self.shared().unreadable("the place of a lane", error))?;
            let next = stored.map(|record| match record.place {
                Place::Next(next) => next,
                Place::Time(_) => span.earliest,
            });
            places.push(alone::place(lane.partition, next, span.earliest, span.end));
        }
        Ok(places)
    }

    async fn open_lane(&self, lane: &LaneSpec) -> Result<OpenLane, BrokerError> {
        let at = &lane.key.partition;
        if at.topic.broker != *self.name() {
            let message = format!("topic `{}` is on another broker", at.topic);
            return Err(self.shared().error(BrokerErrorKind::Invalid, message));
        }
        let partition = self.partition(&at.topic.topic, at.partition)?;
        let name = LaneName::new(&lane.key);
        let granted = self
            .request(|answer| Request::Open {
                lane: name.clone(),
                topic: at.topic.topic.clone(),
                partition: at.partition,
                start: lane.start,
                answer,
            })
            .await?;
        let from = match granted.place {
            Place::Next(next) => ReadFrom::At(Offset::Number(next)),
            Place::Time(time) => ReadFrom::Time(time),
        };
        let log = self.clone();
        let generation = granted.generation;
        let committer = LogCommitter { log, key: lane.key.clone(), name, partition, generation };
        Ok(OpenLane { committer: Box::new(committer), reading: Reading::From(from), boundary: granted.boundary })
    }

    async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        let (shared, prefix) = (Arc::clone(self.shared()), LaneName::new(lane).boundary_prefix());
        let read = tokio::task::spawn_blocking(move || shared.store.records(&prefix)).await;
        let shared = self.shared();
        let records = match read {
            Ok(read) => read.map_err(|error| shared.unreadable("a list of boundaries", error))?,
            Err(panic) => return Err(shared.unreadable("a list of boundaries", panic)),
        };
        Ok(records.into_iter().map(|(_, boundary)| boundary).collect())
    }

    async fn health(&self) -> Result<(), BrokerError> {
        self.shared().check_failure()?;
        self.shared().check_disk()
    }
}

struct LogCommitter {
    log: EmbeddedLog,
    key: LaneKey,
    name: LaneName,
    partition: Arc<Partition>,
    generation: u64,
}

impl LogCommitter {
    /// The cursor behind what is covered, if anything is.
    fn next(&self, effects: &Effects) -> Result<Option<u64>, BrokerError> {
        let Some(last) = effects.covered.iter().max() else { return Ok(None) };
        let (next, end) = (self.log.number(*last)?.saturating_add(1), self.partition.span().end);
        if next > end {
            let message = format!("lane `{}` covers offset {last}, but its partition ends before {end}", self.key);
            return Err(self.log.shared().error(BrokerErrorKind::Invalid, message));
        }
        Ok(Some(next))
    }
}

#[async_trait]
impl Committer for LogCommitter {
    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError> {
        effects.outputs.iter().try_for_each(|output| self.log.shared().check_own(output))?;
        let commit = Commit {
            lane: self.name.clone(),
            generation: self.generation,
            next: self.next(effects)?,
            outputs: effects.outputs.clone(),
            boundary: effects.boundary.clone(),
        };
        self.log.request(|answer| Request::Commit { commit, answer }).await
    }
}

#[cfg(test)]
mod tests;
