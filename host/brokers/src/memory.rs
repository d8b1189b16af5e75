//! A broker in memory, for tests and measurements: everything the contract promises but surviving the process.
//!
//! Batches are kept as they were published and handed out without copying where a poll may have them whole. One lock
//! guards all state and is held only while memory is touched, so a commit is atomic. Nothing here knows disks or
//! sockets.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{
    BatchLimit, Boundary, BrokerErrorKind, LaneKey, LaneSpec, OpenLane, PartitionInfo, Reading, TopicInfo,
};
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::{ReadFrom, Retention, Start, TopicSpec};
use synapse_core::{
    Batch, Broker, BrokerError, BrokerName, Committer, Effects, Offset, Output, Source, SourceBatch, Timestamp,
    TopicName,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::alone::{self, Alone};
use crate::clock::{Clock, system_clock};
use crate::rows::{Page, spread};

/// A handle; its clones share one set of topics.
#[derive(Clone)]
pub struct MemoryBroker(Arc<Shared>);

struct Shared {
    name: BrokerName,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<TopicName, Topic>,
    lanes: BTreeMap<LaneKey, Lane>,
}

struct Topic {
    retention: Retention,
    partitions: Vec<Partition>,
}

struct Partition {
    stored: VecDeque<Stored>,
    /// The first offset that is kept; it may lie within the first stored batch.
    earliest: u64,
    /// Bytes of all stored batches.
    bytes: u64,
    /// The offset of the next event, told to those who wait.
    end: watch::Sender<u64>,
}

#[derive(Clone)]
struct Stored {
    base: u64,
    appended: Timestamp,
    events: Arc<Batch>,
}

struct Lane {
    generation: u64,
    place: Place,
    boundaries: Vec<Boundary>,
}

/// Where a lane goes on. A starting time stays one until the first commit: nothing may have come after it yet.
#[derive(Clone, Copy)]
enum Place {
    Next(u64),
    Time(Timestamp),
}

impl MemoryBroker {
    /// A broker without topics, on the system's clock.
    pub fn new(name: BrokerName) -> Self {
        Self::with_clock(name, system_clock())
    }

    /// A broker without topics; `clock` tells when events are appended.
    pub fn with_clock(name: BrokerName, clock: Clock) -> Self {
        Self(Arc::new(Shared { name, clock, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics while it holds this lock")
    }

    fn invalid(&self, message: impl fmt::Display) -> BrokerError {
        self.error(BrokerErrorKind::Invalid, message)
    }

    fn error(&self, kind: BrokerErrorKind, message: impl fmt::Display) -> BrokerError {
        BrokerError { broker: self.0.name.clone(), kind, message: message.to_string() }
    }

    fn check_own(&self, output: &Output) -> Result<(), BrokerError> {
        if output.topic.broker == self.0.name {
            return Ok(());
        }
        Err(self.invalid(format_args!("topic `{}` is on another broker", output.topic)))
    }

    fn partition<'s>(&self, state: &'s State, topic: &TopicName, partition: u32) -> Result<&'s Partition, BrokerError> {
        let found = state.topics.get(topic).ok_or_else(|| self.invalid(format_args!("no topic `{topic}`")))?;
        found.partitions.get(partition as usize).ok_or_else(|| {
            let count = found.partitions.len();
            self.invalid(format_args!("topic `{topic}` has {count} partitions, so there is no partition {partition}"))
        })
    }
}

impl State {
    fn topic(&mut self, name: &TopicName) -> &mut Topic {
        self.topics.entry(name.clone()).or_insert_with(|| {
            let mut topic = Topic { retention: Retention::default(), partitions: Vec::new() };
            topic.grow(1);
            topic
        })
    }

    /// Appends and trims; the position of each row in order.
    fn append(&mut self, output: &Output, now: Timestamp) -> Vec<(u32, Offset)> {
        let topic = self.topic(&output.topic.topic);
        let count = u32::try_from(topic.partitions.len()).expect("partitions are counted by a u32");
        let mut positions = vec![(0, Offset::Number(0)); output.events.len()];
        for (index, rows) in spread(&output.events, count) {
            let whole = rows.len() == output.events.len();
            let events = if whole { Arc::clone(&output.events) } else { Arc::new(output.events.select(&rows)) };
            let partition = &mut topic.partitions[index as usize];
            let base = partition.append(events, now);
            for (offset, &row) in (base..).zip(&rows) {
                positions[row as usize] = (index, Offset::Number(offset));
            }
            partition.trim(&topic.retention, now);
        }
        positions
    }
}

impl Topic {
    fn grow(&mut self, partitions: usize) {
        while self.partitions.len() < partitions {
            self.partitions.push(Partition {
                stored: VecDeque::new(),
                earliest: 0,
                bytes: 0,
                end: watch::Sender::new(0),
            });
        }
    }

    fn info(&self, name: &TopicName) -> TopicInfo {
        TopicInfo {
            name: name.clone(),
            partitions: self.partitions.iter().map(Partition::info).collect(),
            at_most: false,
        }
    }
}

impl Partition {
    fn end(&self) -> u64 {
        *self.end.borrow()
    }

    fn append(&mut self, events: Arc<Batch>, now: Timestamp) -> u64 {
        let base = self.end();
        let next = base + events.len() as u64;
        // Append times ascend even if the clock does not, so that they can be searched.
        let appended = self.stored.back().map_or(now, |last| last.appended.max(now));
        self.bytes += events.bytes().len() as u64;
        self.stored.push_back(Stored { base, appended, events });
        self.end.send_replace(next);
        base
    }

    fn trim(&mut self, retention: &Retention, now: Timestamp) {
        if let Some(events) = retention.events {
            self.earliest = self.earliest.max(self.end().saturating_sub(events));
        }
        while let Some(first) = self.stored.front() {
            let too_many = first.next() <= self.earliest;
            let too_old = retention.age.is_some_and(|age| first.appended < now.saturating_sub(age));
            let too_large = self.stored.len() > 1 && retention.bytes.is_some_and(|max| self.bytes > max);
            if !(too_many || too_old || too_large) {
                break;
            }
            self.earliest = self.earliest.max(first.next());
            self.bytes -= first.events.bytes().len() as u64;
            self.stored.pop_front();
        }
    }

    /// Which stored batch holds `offset`, or the first one behind it.
    fn index_of(&self, offset: u64) -> usize {
        self.stored.partition_point(|stored| stored.next() <= offset)
    }

    /// The first offset that was appended at or after `time`.
    fn offset_at(&self, time: Timestamp) -> Option<u64> {
        let index = self.stored.partition_point(|stored| stored.appended < time);
        self.stored.get(index).map(|stored| stored.base.max(self.earliest))
    }

    fn info(&self) -> PartitionInfo {
        let kept = self.end() - self.earliest;
        PartitionInfo {
            earliest: (kept > 0).then_some(Offset::Number(self.earliest)),
            latest: (kept > 0).then(|| Offset::Number(self.end() - 1)),
            events: kept,
            bytes: Some(self.bytes),
        }
    }
}

impl Stored {
    fn next(&self) -> u64 {
        self.base + self.events.len() as u64
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn name(&self) -> &BrokerName {
        &self.0.name
    }

    fn commits_apart(&self) -> Option<&'static str> {
        None
    }

    async fn ensure_topic(&self, name: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        let now = (self.0.clock)();
        let mut state = self.state();
        let topic = state.topic(name);
        topic.grow(spec.partitions.get() as usize);
        topic.retention = spec.retention;
        for partition in &mut topic.partitions {
            partition.trim(&spec.retention, now);
        }
        Ok(topic.info(name))
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        Ok(self.state().topics.iter().map(|(name, topic)| topic.info(name)).collect())
    }

    async fn topic(&self, name: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        Ok(self.state().topics.get(name).map(|topic| topic.info(name)))
    }

    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        self.check_own(output)?;
        let now = (self.0.clock)();
        Ok(self.state().append(output, now))
    }

    async fn read(&self, topic: &TopicName, partition: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError> {
        let state = self.state();
        let found = self.partition(&state, topic, partition)?;
        let number = |offset| match offset {
            Offset::Number(number) => Ok(number),
            Offset::Entry { .. } => Err(self.invalid(format_args!("`{offset}` is not an offset of this broker"))),
        };
        let place = match from {
            ReadFrom::Earliest => Place::Next(found.earliest),
            ReadFrom::Latest => Place::Next(found.end()),
            ReadFrom::Time(time) => Place::Time(time),
            ReadFrom::At(offset) => Place::Next(number(offset)?),
            ReadFrom::After(offset) => Place::Next(number(offset)?.saturating_add(1)),
        };
        let end = found.end.subscribe();
        Ok(Box::new(MemorySource { broker: self.clone(), topic: topic.clone(), partition, place, end }))
    }

    async fn join(&self, share: &Share) -> Result<Box<dyn Membership>, BrokerError> {
        Ok(Box::new(Alone::new(self.clone(), share)))
    }

    async fn places(&self, share: &Share) -> Result<Vec<LanePlace>, BrokerError> {
        let lanes = alone::lanes(self, share).await?;
        let state = self.state();
        let place = |lane: LaneKey| {
            let at = &lane.partition;
            let partition = self.partition(&state, &at.topic.topic, at.partition)?;
            let next = state.lanes.get(&lane).map(|stored| match stored.place {
                Place::Next(next) => next,
                Place::Time(_) => partition.earliest,
            });
            Ok(alone::place(lane.partition, next, partition.earliest, partition.end()))
        };
        lanes.into_iter().map(place).collect()
    }

    async fn open_lane(&self, lane: &LaneSpec) -> Result<OpenLane, BrokerError> {
        let at = &lane.key.partition;
        if at.topic.broker != self.0.name {
            return Err(self.invalid(format_args!("topic `{}` is on another broker", at.topic)));
        }
        let mut state = self.state();
        let partition = self.partition(&state, &at.topic.topic, at.partition)?;
        let start = match lane.start {
            Start::Earliest => Place::Next(partition.earliest),
            Start::Latest => Place::Next(partition.end()),
            Start::Time(time) => Place::Time(time),
        };
        let stored = state.lanes.entry(lane.key.clone()).or_insert_with(|| Lane {
            generation: 0,
            place: start,
            boundaries: Vec::new(),
        });
        stored.generation += 1;
        let committer = MemoryCommitter { broker: self.clone(), key: lane.key.clone(), generation: stored.generation };
        let from = match stored.place {
            Place::Next(next) => ReadFrom::At(Offset::Number(next)),
            Place::Time(time) => ReadFrom::Time(time),
        };
        Ok(OpenLane {
            committer: Box::new(committer),
            reading: Reading::From(from),
            boundary: stored.boundaries.last().cloned(),
        })
    }

    async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        Ok(self.state().lanes.get(lane).map(|lane| lane.boundaries.clone()).unwrap_or_default())
    }
}

struct MemorySource {
    broker: MemoryBroker,
    topic: TopicName,
    partition: u32,
    place: Place,
    end: watch::Receiver<u64>,
}

impl MemorySource {
    /// What is there, if anything.
    fn take(&mut self, limit: BatchLimit) -> Result<Option<SourceBatch>, BrokerError> {
        let state = self.broker.state();
        let partition = self.broker.partition(&state, &self.topic, self.partition)?;
        let wanted = match self.place {
            Place::Next(next) => next,
            Place::Time(time) => match partition.offset_at(time) {
                Some(offset) => offset,
                None => return Ok(None),
            },
        };
        let next = wanted.max(partition.earliest);
        let mut page = Page::new(limit);
        for stored in partition.stored.range(partition.index_of(next)..) {
            let row = usize::try_from(next.saturating_sub(stored.base)).expect("a row of a batch in memory");
            if !page.take(&stored.events, stored.base, row) {
                break;
            }
        }
        if page.is_empty() {
            return Ok(None);
        }
        let batch = page.finish(next - wanted);
        self.place = Place::Next(next + batch.offsets.len() as u64);
        Ok(Some(batch))
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        let deadline = Instant::now() + wait;
        loop {
            // Marked as seen before looking, so that what comes after the look wakes.
            self.end.mark_unchanged();
            if let Some(batch) = self.take(limit)? {
                return Ok(batch);
            }
            match tokio::time::timeout_at(deadline, self.end.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(SourceBatch::default()),
            }
        }
    }
}

struct MemoryCommitter {
    broker: MemoryBroker,
    key: LaneKey,
    generation: u64,
}

impl MemoryCommitter {
    /// The cursor after `effects`; everything that can be refused is refused here, before anything is written.
    fn check(&self, state: &State, effects: &Effects) -> Result<Option<u64>, BrokerError> {
        let broker = &self.broker;
        let lane = state.lanes.get(&self.key).expect("a lane that was opened is never taken away");
        if lane.generation != self.generation {
            let message = format!("lane `{}` has a new owner (generation {})", self.key, lane.generation);
            return Err(broker.error(BrokerErrorKind::Fenced, message));
        }
        effects.outputs.iter().try_for_each(|output| broker.check_own(output))?;
        let Some(last) = effects.covered.iter().max() else { return Ok(None) };
        let at = &self.key.partition;
        let end = broker.partition(state, &at.topic.topic, at.partition)?.end();
        match *last {
            Offset::Number(number) if number < end => Ok(Some(number + 1)),
            other => Err(broker.invalid(format_args!("covers offset {other} of `{at}`, which ends before {end}"))),
        }
    }
}

#[async_trait]
impl Committer for MemoryCommitter {
    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError> {
        let now = (self.broker.0.clock)();
        let mut state = self.broker.state();
        let next = self.check(&state, effects)?;
        for output in &effects.outputs {
            state.append(output, now);
        }
        let lane = state.lanes.get_mut(&self.key).expect("a lane that was opened is never taken away");
        lane.place = match (lane.place, next) {
            (Place::Next(before), Some(next)) => Place::Next(before.max(next)),
            (Place::Time(_), Some(next)) => Place::Next(next),
            (place, None) => place,
        };
        lane.boundaries.extend(effects.boundary.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::contract::Harness;
    use synapse_core::Event;
    use synapse_core::spec::Encoding;

    struct Memory;

    #[async_trait]
    impl Harness for Memory {
        async fn broker(&self) -> Arc<dyn Broker> {
            Arc::new(MemoryBroker::new("memory".parse().unwrap()))
        }
    }

    crate::keeps_contract!(Memory);

    /// A broker whose clock stands still, the clock, and a topic on it.
    async fn turned_by_hand(retention: Retention) -> (MemoryBroker, Arc<AtomicI64>, TopicName) {
        let time = Arc::new(AtomicI64::new(0));
        let shared = Arc::clone(&time);
        let clock: Clock = Arc::new(move || Timestamp::from_micros(shared.load(Ordering::Relaxed)));
        let broker = MemoryBroker::with_clock("memory".parse().unwrap(), clock);
        let topic: TopicName = "t".parse().unwrap();
        broker.ensure_topic(&topic, &TopicSpec { retention, ..TopicSpec::default() }).await.unwrap();
        (broker, time, topic)
    }

    /// One event of 10 bytes in all.
    async fn publish(broker: &MemoryBroker, topic: &TopicName) {
        let event = Event { id: "0".to_owned(), data: vec![0; 9], ..Event::default() };
        let path = format!("memory/{topic}").parse().unwrap();
        let events = Arc::new([&event].into_iter().collect());
        broker.publish(&Output { topic: path, encoding: Encoding::CloudEvents, events }).await.unwrap();
    }

    async fn kept(broker: &MemoryBroker, topic: &TopicName) -> (Option<Offset>, u64) {
        let partition = broker.topic(topic).await.unwrap().unwrap().partitions[0];
        (partition.earliest, partition.events)
    }

    #[tokio::test]
    async fn a_reader_is_told_how_much_was_trimmed_before_it() {
        let (broker, _, topic) = turned_by_hand(Retention { events: Some(3), ..Retention::default() }).await;
        let mut source = broker.read(&topic, 0, ReadFrom::Earliest).await.unwrap();
        for _ in 0..8 {
            publish(&broker, &topic).await;
        }
        let batch = source.poll(BatchLimit::default(), Duration::ZERO).await.unwrap();
        assert_eq!((batch.lost_to_trim, batch.offsets), (5, (5..8).map(Offset::Number).collect()));
    }

    #[tokio::test]
    async fn old_events_go() {
        let age = Some(Duration::from_micros(10));
        let (broker, time, topic) = turned_by_hand(Retention { age, ..Retention::default() }).await;
        for now in [0, 5, 11] {
            time.store(now, Ordering::Relaxed);
            publish(&broker, &topic).await;
        }
        assert_eq!(kept(&broker, &topic).await, (Some(Offset::Number(1)), 2));
    }

    #[tokio::test]
    async fn events_beyond_the_bound_in_bytes_go_but_the_newest_stays() {
        let (broker, _, topic) = turned_by_hand(Retention { bytes: Some(25), ..Retention::default() }).await;
        for _ in 0..4 {
            publish(&broker, &topic).await;
        }
        assert_eq!(kept(&broker, &topic).await, (Some(Offset::Number(2)), 2));
        let retention = Retention { bytes: Some(1), ..Retention::default() };
        broker.ensure_topic(&topic, &TopicSpec { retention, ..TopicSpec::default() }).await.unwrap();
        assert_eq!(kept(&broker, &topic).await, (Some(Offset::Number(3)), 1));
    }

    #[tokio::test]
    async fn the_future_cannot_be_covered() {
        let (broker, _, topic) = turned_by_hand(Retention::default()).await;
        publish(&broker, &topic).await;
        let partition =
            synapse_core::TopicPartition { topic: format!("memory/{topic}").parse().unwrap(), partition: 0 };
        let key = LaneKey { pipeline: "p".parse().unwrap(), partition };
        let spec = LaneSpec { key, start: Start::Earliest, read: synapse_core::spec::ReadMode::Cursor };
        let mut lane = broker.open_lane(&spec).await.unwrap();
        for offset in [Offset::Number(1), Offset::Entry { ms: 0, seq: 0 }] {
            let effects = Effects { covered: vec![offset], ..Effects::default() };
            let error = lane.committer.commit(&effects).await.unwrap_err();
            assert_eq!(error.kind, BrokerErrorKind::Invalid, "{error}");
        }
    }
}
