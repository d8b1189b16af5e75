//! Shared readers: pipelines that read the same partition from the same place share one source and its batches.
//!
//! There is no reading task: whichever lane wants more first takes the source, polls it and puts the batch where the
//! others find it. So nothing is read that nobody waits for. A lane that falls behind what is kept leaves, reads alone,
//! and joins again once it has caught up. Lanes keep their own cursors; nothing here knows them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use synapse_core::broker::{BatchLimit, Broker, BrokerError, Source, SourceBatch};
use synapse_core::spec::ReadFrom;
use synapse_core::topic::{Offset, TopicPartition};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Batches that a shared reader keeps for lanes that are a little behind.
const KEPT_BATCHES_MAX: usize = 16;

/// The shared readers of a host.
#[derive(Clone, Default)]
pub(crate) struct Readers {
    by_partition: Arc<Mutex<HashMap<TopicPartition, Weak<Shared>>>>,
}

/// Where a lane's batches come from.
pub(crate) enum Feed {
    /// A source of its own that no one may share (a consumer group's).
    Own(Box<dyn Source>),
    /// A place in a partition that others may read, too.
    Shared(SharedFeed),
}

impl Feed {
    /// The next batch; an empty one once `wait` has passed. Not cancel-safe: a dropped call ends the feed.
    pub(crate) async fn next(&mut self, limit: BatchLimit, wait: Duration) -> Result<Arc<SourceBatch>, BrokerError> {
        match self {
            Self::Own(source) => source.poll(limit, wait).await.map(Arc::new),
            Self::Shared(feed) => feed.next(limit, wait).await,
        }
    }
}

impl Readers {
    /// A feed of a partition from a place on.
    pub(crate) fn feed(&self, broker: Arc<dyn Broker>, partition: TopicPartition, from: ReadFrom) -> Feed {
        let from = joinable(from);
        let shared = {
            let mut readers = self.by_partition.lock().expect("no reader panics while it holds the lock");
            readers.retain(|_, reader| reader.strong_count() > 0);
            let existing = readers.get(&partition).and_then(Weak::upgrade);
            existing.unwrap_or_else(|| {
                let shared = Arc::new(Shared::new(from));
                readers.insert(partition.clone(), Arc::downgrade(&shared));
                shared
            })
        };
        let place = shared.lock().join(from).map_or(Place::Alone(None), Place::Joined);
        Feed::Shared(SharedFeed { broker, partition, shared, place, position: from })
    }
}

/// The same place, told as the place behind what was read last where that is possible: so two lanes see that they are
/// at one place.
fn joinable(from: ReadFrom) -> ReadFrom {
    match from {
        ReadFrom::At(Offset::Number(next)) if next > 0 => ReadFrom::After(Offset::Number(next - 1)),
        other => other,
    }
}

/// One partition's source and its latest batches.
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// The source, unless someone polls it or it has to be opened again.
    source: Option<Box<dyn Source>>,
    polling: bool,
    kept: VecDeque<Kept>,
    /// The number of the next batch.
    next: u64,
    /// Where the next batch begins.
    tail: ReadFrom,
}

struct Kept {
    number: u64,
    batch: Arc<SourceBatch>,
}

/// How to go on at a place in a shared reader.
struct Joined {
    /// The next batch to take.
    next: u64,
    /// What is left of a batch in whose midst the place lies.
    rest: Option<Arc<SourceBatch>>,
}

impl Shared {
    fn new(from: ReadFrom) -> Self {
        let state = State { source: None, polling: false, kept: VecDeque::new(), next: 0, tail: from };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no reader panics while it holds the lock")
    }
}

impl State {
    /// The way on from `from`, if it lies at the tail or within what is kept.
    fn join(&self, from: ReadFrom) -> Option<Joined> {
        if from == self.tail {
            return Some(Joined { next: self.next, rest: None });
        }
        let ReadFrom::After(offset) = from else { return None };
        // The place of `from` must lie inside a kept batch: behind its first entry, before or at its last.
        let inside = |batch: &SourceBatch| {
            batch.covered().min().is_some_and(|first| first <= offset)
                && batch.last().is_some_and(|last| offset <= last)
        };
        let kept = self.kept.iter().find(|kept| inside(&kept.batch))?;
        let rest = Some(kept.batch.after(offset)).filter(|rest| !rest.is_empty()).map(Arc::new);
        Some(Joined { next: kept.number + 1, rest })
    }

    fn keep(&mut self, batch: Arc<SourceBatch>) {
        if let Some(last) = batch.last() {
            self.tail = ReadFrom::After(last);
        }
        if self.kept.len() == KEPT_BATCHES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept { number: self.next, batch });
        self.next += 1;
    }
}

/// A lane's place in a partition.
pub(crate) struct SharedFeed {
    broker: Arc<dyn Broker>,
    partition: TopicPartition,
    shared: Arc<Shared>,
    place: Place,
    position: ReadFrom,
}

enum Place {
    Joined(Joined),
    /// Behind the shared reader, with a source of its own once it is open.
    Alone(Option<Box<dyn Source>>),
}

/// What to do next, decided under the lock.
enum Turn {
    Take(Arc<SourceBatch>),
    Lead(Option<Box<dyn Source>>, ReadFrom),
    Leave,
    Await,
}

impl SharedFeed {
    async fn next(&mut self, limit: BatchLimit, wait: Duration) -> Result<Arc<SourceBatch>, BrokerError> {
        let batch = loop {
            match &mut self.place {
                Place::Alone(source) => {
                    let mut own = match source.take() {
                        Some(own) => own,
                        None => {
                            self.broker
                                .read(&self.partition.topic.topic, self.partition.partition, self.position)
                                .await?
                        }
                    };
                    let batch = Arc::new(own.poll(limit, wait).await?);
                    self.place = Place::Alone(Some(own));
                    break batch;
                }
                Place::Joined(_) => match self.joined(limit, wait).await? {
                    Some(batch) => break batch,
                    None => self.place = Place::Alone(None),
                },
            }
        };
        if let Some(last) = batch.last() {
            self.position = ReadFrom::After(last);
        }
        if let Place::Alone(_) = self.place
            && let Some(joined) = self.shared.lock().join(self.position)
        {
            self.place = Place::Joined(joined);
        }
        Ok(batch)
    }

    /// The next batch from the shared reader; `None` if it is no longer kept.
    async fn joined(&mut self, limit: BatchLimit, wait: Duration) -> Result<Option<Arc<SourceBatch>>, BrokerError> {
        let deadline = Instant::now() + wait;
        loop {
            let shared = Arc::clone(&self.shared);
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change in between is missed.
            changed.as_mut().enable();
            match self.turn() {
                Turn::Take(batch) => return Ok(Some(batch)),
                Turn::Leave => return Ok(None),
                Turn::Await => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return Ok(Some(Arc::default()));
                    }
                }
                Turn::Lead(source, tail) => return self.lead(source, tail, limit, wait).await.map(Some),
            }
        }
    }

    fn turn(&mut self) -> Turn {
        let Place::Joined(joined) = &mut self.place else { return Turn::Leave };
        if let Some(rest) = joined.rest.take() {
            return Turn::Take(rest);
        }
        let mut state = self.shared.lock();
        if joined.next < state.next {
            let first = state.kept.front().map_or(state.next, |kept| kept.number);
            let Some(index) = joined.next.checked_sub(first) else { return Turn::Leave };
            joined.next += 1;
            return Turn::Take(Arc::clone(&state.kept[index as usize].batch));
        }
        if state.polling {
            return Turn::Await;
        }
        state.polling = true;
        Turn::Lead(state.source.take(), state.tail)
    }

    /// Polls for everyone.
    async fn lead(
        &mut self,
        source: Option<Box<dyn Source>>,
        tail: ReadFrom,
        limit: BatchLimit,
        wait: Duration,
    ) -> Result<Arc<SourceBatch>, BrokerError> {
        // However this call ends, someone else may lead after it.
        let _abdication = Abdication(&self.shared);
        let mut source = match source {
            Some(source) => source,
            None => self.broker.read(&self.partition.topic.topic, self.partition.partition, tail).await?,
        };
        let batch = Arc::new(source.poll(limit, wait).await?);
        let mut state = self.shared.lock();
        state.source = Some(source);
        if !batch.is_empty() {
            state.keep(Arc::clone(&batch));
            if let Place::Joined(joined) = &mut self.place {
                joined.next = state.next;
            }
        }
        Ok(batch)
    }
}

/// Ends the lead when dropped, also when the leading call itself is dropped halfway: then the source is gone and the
/// next leader opens another at the tail.
struct Abdication<'a>(&'a Shared);

impl Drop for Abdication<'_> {
    fn drop(&mut self) {
        self.0.lock().polling = false;
        self.0.changed.notify_waiters();
    }
}
