//! The one thread that writes: it takes every request that waits, puts them into one atomic write, syncs once, and
//! answers all.
//!
//! Because it alone assigns offsets and opens lanes, nothing here needs a lock: requests take effect in the order in
//! which they were queued. Invariant: nobody is answered, and no reader sees anything, before it is on the disk. After
//! a write that failed nothing is known of the disk, so the log refuses everything until it is opened anew.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use synapse_core::broker::{Boundary, BrokerErrorKind, Output};
use synapse_core::spec::{Retention, Start, TopicSpec};
use synapse_core::{Batch, BrokerError, Offset, Timestamp, TopicName};
use tokio::sync::oneshot;

use super::Shared;
use super::format::{self, EarliestRecord, Entry, LaneName, LaneRecord, Place, Shard, TopicRecord};
use super::queue::Linger;
use super::store::{ReadError, StoreBatch};
use super::tail::{Partition, Span, Topic, Value};
use crate::rows::{Gathered, rows_within, spread};

/// A group takes requests up to this many bytes of events.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Neighbours in a group are joined into one value up to this size.
const JOINED_BYTES_MAX: usize = 64 << 10;

/// What is published at once is cut into values of this size.
const CUT_BYTES_MAX: usize = 256 << 10;

/// Callers who were just answered are waited for at most this part of what the last write took.
const LINGER_PART: u32 = 16;

/// How often retention is enforced where nothing is written.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many values of a partition go in one write.
const TRIMMED_VALUES_MAX: usize = 1024;

/// After so many deleted bytes the store is asked to look for free space.
const RECLAIM_BYTES: u64 = 64 << 20;

pub(super) type Answer<T> = oneshot::Sender<Result<T, BrokerError>>;

pub(super) enum Request {
    Publish { output: Output, answer: Answer<Vec<(u32, Offset)>> },
    Commit { commit: Commit, answer: Answer<()> },
    Ensure { topic: TopicName, spec: TopicSpec, answer: Answer<()> },
    Open { lane: LaneName, topic: TopicName, partition: u32, start: Start, answer: Answer<Granted> },
    Trim { answer: Answer<()> },
}

/// The effects of a batch, checked as far as that needs no order.
pub(super) struct Commit {
    pub(super) lane: LaneName,
    pub(super) generation: u64,
    /// The cursor, if it moves.
    pub(super) next: Option<u64>,
    pub(super) outputs: Vec<Output>,
    pub(super) boundary: Option<Boundary>,
}

/// A lane that was opened.
pub(super) struct Granted {
    pub(super) generation: u64,
    pub(super) place: Place,
    pub(super) boundary: Option<Boundary>,
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Publish { output, .. } => output.events.bytes().len(),
            Self::Commit { commit, .. } => commit.outputs.iter().map(|output| output.events.bytes().len()).sum(),
            Self::Ensure { .. } | Self::Open { .. } | Self::Trim { .. } => 0,
        }
    }

    fn refuse(self, error: BrokerError) {
        // Nobody is told if the caller has gone.
        match self {
            Self::Publish { answer, .. } => drop(answer.send(Err(error))),
            Self::Commit { answer, .. } | Self::Ensure { answer, .. } | Self::Trim { answer } => {
                drop(answer.send(Err(error)));
            }
            Self::Open { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    topics: BTreeMap<TopicName, TopicState>,
    lanes: HashMap<LaneName, Lane>,
    topic_id_next: u32,
    group: u64,
    swept: Instant,
    trimmed_bytes: u64,
    /// Each partition's part of the newest batches in memory.
    tail_bytes_max: usize,
}

struct TopicState {
    id: u32,
    retention: Retention,
    partitions: Vec<PartitionState>,
}

struct PartitionState {
    /// The first value that is kept.
    front: Option<Entry>,
    /// The offset behind the last value.
    written: u64,
    /// The next offset to give away; runs ahead of `written` while a group is put together.
    next: u64,
    /// Bytes of all values so far, also those that are gone.
    total: u64,
    appended: Option<Timestamp>,
    shared: Arc<Partition>,
}

struct Lane {
    record: LaneRecord,
    boundary: Option<Boundary>,
}

/// What becomes durable together.
struct Group<'s> {
    batch: StoreBatch<'s>,
    appends: BTreeMap<Shard, Append>,
    topics_changed: bool,
    done: Vec<Done>,
}

struct Append {
    topic: TopicName,
    first: u64,
    pieces: Vec<Arc<Batch>>,
}

/// An answer that waits for the disk.
enum Done {
    Published(Answer<Vec<(u32, Offset)>>, Vec<(u32, Offset)>),
    Opened(Answer<Granted>, Granted),
    Written(Answer<()>),
}

impl Done {
    fn tell(self, failure: Option<BrokerError>) {
        // Nobody is told if the caller has gone.
        match self {
            Self::Published(answer, positions) => drop(answer.send(failure.map_or(Ok(positions), Err))),
            Self::Opened(answer, granted) => drop(answer.send(failure.map_or(Ok(granted), Err))),
            Self::Written(answer) => drop(answer.send(failure.map_or(Ok(()), Err))),
        }
    }
}

/// Whoever waits in the queue is not left waiting, even if the thread panics.
struct Abandon<'a>(&'a Shared);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}

impl Writer {
    /// Reads topics and the ends of their partitions from the store, and shows them to readers.
    pub(super) fn load(shared: Arc<Shared>, group: u64) -> Result<Self, ReadError> {
        let mut writer = Self {
            topics: BTreeMap::new(),
            lanes: HashMap::new(),
            topic_id_next: 0,
            group,
            swept: Instant::now(),
            trimmed_bytes: 0,
            tail_bytes_max: 0,
            shared,
        };
        for (name, record) in writer.shared.store.records::<TopicRecord>(format::TOPIC_PREFIX)? {
            let parsed = std::str::from_utf8(&name).ok().and_then(|name| name.parse::<TopicName>().ok());
            let Some(parsed) = parsed else {
                let problem = format!("`{}` is no name of a topic", name.escape_ascii());
                return Err(ReadError::Damaged { base: 0, problem });
            };
            let partitions = (0..record.partitions)
                .map(|partition| writer.load_partition(Shard { topic: record.id, partition }))
                .collect::<Result<_, _>>()?;
            writer.topic_id_next = writer.topic_id_next.max(record.id + 1);
            let topic = TopicState { id: record.id, retention: record.retention(), partitions };
            writer.topics.insert(parsed, topic);
        }
        writer.show_topics();
        Ok(writer)
    }

    fn load_partition(&self, shard: Shard) -> Result<PartitionState, ReadError> {
        let store = &self.shared.store;
        let trimmed: Option<EarliestRecord> = store.record(&shard.earliest_key())?;
        let from = trimmed.map_or(Timestamp::from_micros(i64::MIN), |trimmed| trimmed.appended);
        let mut entries = store.entries(shard, from, trimmed.map_or(0, |trimmed| trimmed.base));
        let front = entries.next().transpose()?;
        let last = entries.next_back().transpose()?.or(front);
        let end = last.map_or(trimmed.map_or(0, |trimmed| trimmed.base), |last| last.next());
        let mut state = PartitionState {
            front,
            written: end,
            next: end,
            total: last.map_or(0, |last| last.before + u64::from(last.size)),
            appended: last.map(|last| last.appended).or(trimmed.map(|trimmed| trimmed.appended)),
            shared: Arc::new(Partition::new(shard, Span::default())),
        };
        state.shared = Arc::new(Partition::new(shard, state.span()));
        Ok(state)
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _abandon = Abandon(&shared);
        let mut linger = Linger::default();
        while let Some(requests) = shared.queue.take(SWEEP_INTERVAL, linger, Request::bytes, GROUP_BYTES_MAX) {
            let (started, returning) = (Instant::now(), requests.len());
            if !requests.is_empty() {
                self.write_group(&shared, requests);
            }
            linger = Linger { returning, time_max: started.elapsed() / LINGER_PART };
            if self.swept.elapsed() >= SWEEP_INTERVAL {
                self.sweep(&shared);
            }
        }
    }

    fn write_group(&mut self, shared: &Shared, requests: Vec<Request>) {
        if let Err(refusal) = shared.check_failure().and_then(|()| shared.check_disk()) {
            // Trimming makes room, so it goes on when the disk is full.
            for request in requests {
                match request {
                    Request::Trim { answer } if refusal.kind == BrokerErrorKind::Full => {
                        self.sweep(shared);
                        drop(answer.send(shared.check_failure()));
                    }
                    other => other.refuse(shared.error(refusal.kind, &refusal.message)),
                }
            }
            return;
        }
        let batch = shared.store.synced();
        let mut group = Group { batch, appends: BTreeMap::new(), topics_changed: false, done: Vec::new() };
        let mut trims = Vec::new();
        for request in requests {
            match request {
                Request::Trim { answer } => trims.push(answer),
                other => self.stage(shared, &mut group, other),
            }
        }
        let touched = self.write(shared, group);
        if trims.is_empty() {
            for (topic, shard) in touched {
                self.trim(shared, &topic, shard.partition as usize);
            }
        } else {
            self.sweep(shared);
            trims.into_iter().for_each(|answer| drop(answer.send(shared.check_failure())));
        }
    }

    /// Adds a request to the group, or refuses it without a trace.
    fn stage(&mut self, shared: &Shared, group: &mut Group<'_>, request: Request) {
        match request {
            Request::Publish { output, answer } => {
                let positions = self.append(group, &output);
                group.done.push(Done::Published(answer, positions));
            }
            Request::Commit { commit, answer } => match self.stage_commit(shared, group, commit) {
                Ok(()) => group.done.push(Done::Written(answer)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Request::Ensure { topic, spec, answer } => {
                self.ensure(group, &topic, &spec);
                group.done.push(Done::Written(answer));
            }
            Request::Open { lane, topic, partition, start, answer } => {
                match self.stage_open(shared, group, lane, &topic, partition, start) {
                    Ok(granted) => group.done.push(Done::Opened(answer, granted)),
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
            // The caller has taken these out.
            Request::Trim { answer } => drop(answer),
        }
    }

    fn append(&mut self, group: &mut Group<'_>, output: &Output) -> Vec<(u32, Offset)> {
        let name = &output.topic.topic;
        if !self.topics.contains_key(name) {
            self.ensure(group, name, &TopicSpec::default());
        }
        let topic = self.topics.get_mut(name).expect("it was just made");
        let count = u32::try_from(topic.partitions.len()).expect("partitions are counted by a u32");
        let events = &output.events;
        if events.is_empty() {
            return Vec::new();
        }
        let mut positions = vec![(0, Offset::Number(0)); events.len()];
        let mut add = |index: u32, piece: Arc<Batch>| {
            let partition = &mut topic.partitions[index as usize];
            let base = partition.next;
            partition.next += piece.len() as u64;
            let shard = Shard { topic: topic.id, partition: index };
            let fresh = || Append { topic: name.clone(), first: base, pieces: Vec::new() };
            group.appends.entry(shard).or_insert_with(fresh).pieces.push(piece);
            base
        };
        if count == 1 {
            let base = add(0, Arc::clone(events));
            for (offset, position) in (base..).zip(&mut positions) {
                *position = (0, Offset::Number(offset));
            }
            return positions;
        }
        for (index, rows) in spread(events, count) {
            let whole = rows.len() == events.len();
            let base = add(index, if whole { Arc::clone(events) } else { Arc::new(events.select(&rows)) });
            for (offset, row) in (base..).zip(rows) {
                positions[row as usize] = (index, Offset::Number(offset));
            }
        }
        positions
    }

    fn stage_commit(&mut self, shared: &Shared, group: &mut Group<'_>, commit: Commit) -> Result<(), BrokerError> {
        let lane = self.lanes.get_mut(&commit.lane).filter(|lane| lane.record.generation == commit.generation);
        let Some(lane) = lane else {
            return Err(shared.error(BrokerErrorKind::Fenced, "the lane was opened by someone else"));
        };
        if let Some(next) = commit.next {
            lane.record.place = match lane.record.place {
                Place::Next(before) => Place::Next(before.max(next)),
                Place::Time(_) => Place::Next(next),
            };
        }
        if let Some(boundary) = commit.boundary {
            group.batch.put_record(commit.lane.boundary_key(lane.record.boundaries), &boundary);
            lane.record.boundaries += 1;
            lane.boundary = Some(boundary);
        }
        group.batch.put_record(commit.lane.key(), &lane.record);
        for output in &commit.outputs {
            self.append(group, output);
        }
        Ok(())
    }

    fn ensure(&mut self, group: &mut Group<'_>, name: &TopicName, spec: &TopicSpec) {
        let topic = self.topics.entry(name.clone()).or_insert_with(|| {
            let id = self.topic_id_next;
            self.topic_id_next += 1;
            TopicState { id, retention: Retention::default(), partitions: Vec::new() }
        });
        let count = u32::try_from(topic.partitions.len()).expect("partitions are counted by a u32");
        for partition in count..spec.partitions.get() {
            let shard = Shard { topic: topic.id, partition };
            let shared = Arc::new(Partition::new(shard, Span::default()));
            topic.partitions.push(PartitionState {
                front: None,
                written: 0,
                next: 0,
                total: 0,
                appended: None,
                shared,
            });
        }
        topic.retention = spec.retention;
        let record = TopicRecord::new(topic.id, count.max(spec.partitions.get()), &topic.retention);
        group.batch.put_record(format::topic_key(name.as_str()), &record);
        group.topics_changed = true;
    }

    fn stage_open(
        &mut self,
        shared: &Shared,
        group: &mut Group<'_>,
        name: LaneName,
        topic: &TopicName,
        partition: u32,
        start: Start,
    ) -> Result<Granted, BrokerError> {
        let found = self.topics.get(topic).map(|topic| topic.partitions.get(partition as usize));
        let state = match found {
            Some(Some(state)) => state,
            Some(None) => return Err(shared.no_partition(topic, partition)),
            None => return Err(shared.no_topic(topic)),
        };
        let stored = match self.lanes.remove(&name) {
            Some(lane) => Some(lane),
            None => Lane::load(shared, &name)?,
        };
        let mut lane = stored.unwrap_or_else(|| {
            let place = match start {
                Start::Earliest => Place::Next(state.earliest()),
                Start::Latest => Place::Next(state.next),
                Start::Time(time) => Place::Time(time),
            };
            Lane { record: LaneRecord { generation: 0, place, boundaries: 0 }, boundary: None }
        });
        lane.record.generation += 1;
        group.batch.put_record(name.key(), &lane.record);
        let Lane { record, boundary } = &lane;
        let granted = Granted { generation: record.generation, place: record.place, boundary: boundary.clone() };
        self.lanes.insert(name, lane);
        Ok(granted)
    }

    /// Writes, syncs, shows and answers. Tells which partitions got events.
    fn write(&mut self, shared: &Shared, group: Group<'_>) -> Vec<(TopicName, Shard)> {
        let Group { mut batch, appends, topics_changed, done } = group;
        if done.is_empty() {
            return Vec::new();
        }
        let now = (shared.options.clock)();
        let mut written = Vec::with_capacity(appends.len());
        for (shard, append) in appends {
            let topic = self.topics.get_mut(&append.topic).expect("topics are never taken away");
            let state = &mut topic.partitions[shard.partition as usize];
            let values = state.put(&mut batch, shard, &append, now);
            written.push((append.topic, shard, values));
        }
        self.group += 1;
        batch.put_number(format::GROUP_KEY, self.group);
        if let Err(error) = batch.commit() {
            shared.fail(&error);
            let failure = || shared.check_failure().err();
            done.into_iter().for_each(|done| done.tell(failure()));
            return Vec::new();
        }
        if let Err(error) = shared.witness.write(self.group) {
            tracing::warn!(%error, "cannot note which writes were acknowledged; a later loss may go unnoticed");
        }
        if topics_changed {
            self.show_topics();
        }
        let mut touched = Vec::with_capacity(written.len());
        for (topic, shard, values) in written {
            let state = &self.topics[&topic].partitions[shard.partition as usize];
            state.shared.append(values, state.span(), self.tail_bytes_max);
            touched.push((topic, shard));
        }
        done.into_iter().for_each(|done| done.tell(None));
        touched
    }

    fn show_topics(&mut self) {
        let partitions: usize = self.topics.values().map(|topic| topic.partitions.len()).sum();
        self.tail_bytes_max = self.shared.options.tail_bytes_max / partitions.max(1);
        let topics = self.topics.iter().map(|(name, topic)| {
            let partitions = topic.partitions.iter().map(|partition| Arc::clone(&partition.shared)).collect();
            (name.clone(), Arc::new(Topic { name: name.clone(), partitions }))
        });
        let catalog = Arc::new(topics.collect());
        *self.shared.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
    }

    /// Enforces retention everywhere.
    fn sweep(&mut self, shared: &Shared) {
        self.swept = Instant::now();
        let bounded = self.topics.iter().filter(|(_, topic)| topic.retention != Retention::default());
        let all: Vec<_> = bounded.map(|(name, topic)| (name.clone(), topic.partitions.len())).collect();
        for (name, partitions) in all {
            (0..partitions).for_each(|partition| self.trim(shared, &name, partition));
        }
    }

    /// Lets values go that retention no longer keeps. What was trimmed may come back after a power loss; it is then
    /// trimmed again.
    fn trim(&mut self, shared: &Shared, topic: &TopicName, partition: usize) {
        let topic = self.topics.get_mut(topic).expect("topics are never taken away");
        if topic.retention == Retention::default() || shared.check_failure().is_err() {
            return;
        }
        let now = (shared.options.clock)();
        let state = &mut topic.partitions[partition];
        let gone = match state.outdated(shared, &topic.retention, now) {
            Ok(gone) => gone,
            Err(error) => {
                tracing::error!(?error, "cannot read the index to enforce retention");
                return;
            }
        };
        if gone.is_empty() {
            return;
        }
        let shard = state.shared.shard;
        let mut batch = shared.store.unsynced();
        for entry in &gone {
            batch.remove(shard, entry);
            self.trimmed_bytes += u64::from(entry.size);
        }
        let appended = state.front.map(|front| front.appended).or(state.appended).unwrap_or(now);
        batch.put_record(shard.earliest_key(), &EarliestRecord { base: state.earliest(), appended });
        // Readers learn first that these are gone, then they go.
        state.shared.trim(state.span());
        let mut freed = batch.commit();
        if freed.is_ok() && self.trimmed_bytes >= RECLAIM_BYTES {
            self.trimmed_bytes = 0;
            freed = shared.store.reclaim();
        }
        if let Err(error) = freed {
            shared.fail(&error);
        }
    }
}

impl PartitionState {
    fn earliest(&self) -> u64 {
        self.front.map_or(self.written, |front| front.base)
    }

    fn span(&self) -> Span {
        Span {
            earliest: self.earliest(),
            end: self.written,
            bytes: self.total - self.front.map_or(self.total, |front| front.before),
            appended: self.appended,
        }
    }

    /// Cuts what was published into values and adds them to the write.
    fn put(&mut self, batch: &mut StoreBatch<'_>, shard: Shard, append: &Append, now: Timestamp) -> Vec<Value> {
        // Append times ascend even if the clock does not, so that they can be searched.
        let appended = self.appended.map_or(now, |last| last.max(now));
        self.appended = Some(appended);
        let mut base = append.first;
        let mut values = Vec::new();
        for events in cut(&append.pieces) {
            let key = shard.log_key(base);
            let stored = format::encode(&key, appended, &events);
            let count = u32::try_from(events.len()).expect("an event takes 36 bytes of a value below 4 GiB");
            let size = u32::try_from(stored.len()).expect("events are refused that make a value of 4 GiB");
            let entry = Entry { base, count, size, before: self.total, appended };
            batch.append(shard, &entry, key, stored);
            self.total += u64::from(size);
            self.front.get_or_insert(entry);
            values.push(Value { base, events });
            base = entry.next();
        }
        self.written = base;
        values
    }

    /// Takes values off the front that retention does not keep.
    fn outdated(&mut self, shared: &Shared, retention: &Retention, now: Timestamp) -> Result<Vec<Entry>, ReadError> {
        let mut gone = Vec::new();
        let Some(mut front) = self.front.filter(|front| self.is_outdated(front, retention, now)) else {
            return Ok(gone);
        };
        let mut entries = shared.store.entries(self.shared.shard, front.appended, front.base).skip(1);
        while gone.len() < TRIMMED_VALUES_MAX && self.is_outdated(&front, retention, now) {
            gone.push(front);
            self.front = entries.next().transpose()?;
            match self.front {
                Some(next) => front = next,
                None => break,
            }
        }
        Ok(gone)
    }

    fn is_outdated(&self, front: &Entry, retention: &Retention, now: Timestamp) -> bool {
        let too_many = retention.events.is_some_and(|events| self.written - front.next() >= events);
        let is_last = front.next() == self.written;
        let too_large = !is_last && retention.bytes.is_some_and(|bytes| self.total - front.before > bytes);
        let too_old = retention.age.is_some_and(|age| front.appended < now.saturating_sub(age));
        too_many || too_large || too_old
    }
}

impl Lane {
    fn load(shared: &Shared, name: &LaneName) -> Result<Option<Self>, BrokerError> {
        let unreadable = |error| shared.unreadable("the record of a lane", error);
        let Some(record) = shared.store.record::<LaneRecord>(&name.key()).map_err(unreadable)? else {
            return Ok(None);
        };
        let boundary = match record.boundaries.checked_sub(1) {
            Some(last) => shared.store.record(&name.boundary_key(last)).map_err(unreadable)?,
            None => None,
        };
        Ok(Some(Self { record, boundary }))
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request to the log")
    }
}

/// Joins small neighbours and cuts what is large, so that a value is a good piece to read. A batch of a common size
/// passes without being copied.
fn cut(pieces: &[Arc<Batch>]) -> Vec<Arc<Batch>> {
    let mut values = Vec::new();
    let mut open = Gathered::default();
    for piece in pieces {
        if !open.events().is_empty() && open.events().bytes().len() + piece.bytes().len() > JOINED_BYTES_MAX {
            values.push(std::mem::take(&mut open).finish());
        }
        let mut row = 0;
        while row < piece.len() {
            let upto = rows_within(piece, row, piece.len(), CUT_BYTES_MAX).max(row + 1);
            if !open.push(piece, row..upto) {
                values.push(std::mem::take(&mut open).finish());
                continue;
            }
            row = upto;
            if row < piece.len() {
                values.push(std::mem::take(&mut open).finish());
            }
        }
    }
    if !open.events().is_empty() {
        values.push(open.finish());
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use synapse_core::Event;

    fn piece(ids: std::ops::Range<usize>, size: usize) -> Arc<Batch> {
        let events: Vec<Event> =
            ids.map(|id| Event { id: format!("{id:04}"), data: vec![0; size - 4], ..Event::default() }).collect();
        Arc::new(events.iter().collect())
    }

    fn check(pieces: &[Arc<Batch>], expected: &[usize]) -> Vec<Arc<Batch>> {
        let values = cut(pieces);
        assert_eq!(values.iter().map(|value| value.len()).collect::<Vec<_>>(), expected);
        let ids = |batches: &[Arc<Batch>]| {
            batches.iter().flat_map(|batch| batch.events().map(|event| event.id().to_owned())).collect::<Vec<_>>()
        };
        assert!(ids(&values) == ids(pieces), "events must stay as they are");
        values
    }

    #[test]
    fn small_neighbours_are_joined() {
        let singles: Vec<_> = (0..64).map(|id| piece(id..id + 1, 100)).collect();
        check(&singles, &[64]);
        check(&[piece(0..5, 10_000), piece(5..6, 10_000), piece(6..7, 10_000)], &[6, 1]);
        check(&[], &[]);
    }

    #[test]
    fn a_batch_of_a_common_size_is_not_copied() {
        let pieces = [piece(0..256, 150), piece(256..512, 150), piece(512..600, 1000)];
        let values = check(&pieces, &[256, 256, 88]);
        assert!(values.iter().zip(&pieces).all(|(value, piece)| Arc::ptr_eq(value, piece)));
    }

    #[test]
    fn what_is_large_is_cut() {
        check(&[piece(0..1, 100), piece(1..2, 600_000), piece(2..3, 100)], &[1, 1, 1]);
        check(&[piece(0..10, 100_000)], &[2, 2, 2, 2, 2]);
        check(&[piece(0..3, 100_000), piece(3..4, 100)], &[2, 1, 1]);
    }
}
