//! What readers share in memory: where each partition begins and ends, and its newest batches.
//!
//! The writer alone changes it, always after the store: what is seen here is durable. A reader that keeps up never
//! touches the store. Nothing here knows files.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use synapse_core::broker::{BatchLimit, PartitionInfo, TopicInfo};
use synapse_core::{Batch, Offset, SourceBatch, Timestamp, TopicName};
use tokio::sync::watch;

use super::format::Shard;
use crate::rows::Page;

/// All topics. Replaced as a whole when one is added or grows.
pub(super) type Catalog = BTreeMap<TopicName, Arc<Topic>>;

pub(super) struct Topic {
    pub(super) name: TopicName,
    pub(super) partitions: Vec<Arc<Partition>>,
}

impl Topic {
    pub(super) fn info(&self) -> TopicInfo {
        let partitions = self.partitions.iter().map(|partition| partition.info()).collect();
        TopicInfo { name: self.name.clone(), partitions, at_most: false }
    }
}

pub(super) struct Partition {
    pub(super) shard: Shard,
    /// The offset of the next event, told to those who wait.
    end: watch::Sender<u64>,
    kept: Mutex<Kept>,
}

/// A stored batch.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) base: u64,
    pub(super) events: Arc<Batch>,
}

impl Value {
    pub(super) fn next(&self) -> u64 {
        self.base + self.events.len() as u64
    }
}

/// What a partition holds, and from which to which offset.
#[derive(Default)]
struct Kept {
    span: Span,
    /// The newest batches, without a gap up to the end.
    tail: VecDeque<Value>,
    tail_bytes: usize,
}

/// What the store knows of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// The first offset that is kept.
    pub(super) earliest: u64,
    /// The offset behind the last event.
    pub(super) end: u64,
    /// How many bytes are kept.
    pub(super) bytes: u64,
    /// When the last batch was appended.
    pub(super) appended: Option<Timestamp>,
}

impl Partition {
    pub(super) fn new(shard: Shard, span: Span) -> Self {
        let kept = Kept { span, ..Kept::default() };
        Self { shard, end: watch::Sender::new(span.end), kept: Mutex::new(kept) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("nothing panics while it holds this lock")
    }

    pub(super) fn span(&self) -> Span {
        self.kept().span
    }

    /// Wakes when events are appended.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// Adds durable batches; keeps at most `tail_bytes_max` bytes of them at hand, but always the last one.
    pub(super) fn append(&self, values: Vec<Value>, span: Span, tail_bytes_max: usize) {
        let mut kept = self.kept();
        kept.span = span;
        for value in values {
            kept.tail_bytes += value.events.bytes().len();
            kept.tail.push_back(value);
        }
        while kept.tail_bytes > tail_bytes_max && kept.tail.len() > 1 {
            kept.drop_first();
        }
        drop(kept);
        self.end.send_replace(span.end);
    }

    /// Events before `span.earliest` are gone.
    pub(super) fn trim(&self, span: Span) {
        let mut kept = self.kept();
        kept.span = span;
        while kept.tail.front().is_some_and(|first| first.next() <= span.earliest) {
            kept.drop_first();
        }
    }

    /// Events from `from` on, if the newest batches reach back that far.
    pub(super) fn page(&self, from: u64, limit: BatchLimit, lost: u64) -> Option<SourceBatch> {
        let kept = self.kept();
        let first = kept.tail.front().filter(|first| first.base <= from)?;
        // Batches are of many sizes, but offsets ascend.
        let index = if first.next() > from { 0 } else { kept.tail.partition_point(|value| value.next() <= from) };
        fill(kept.tail.range(index..), from, limit, lost)
    }

    fn info(&self) -> PartitionInfo {
        let span = self.span();
        let events = span.end - span.earliest;
        PartitionInfo {
            earliest: (events > 0).then_some(Offset::Number(span.earliest)),
            latest: (events > 0).then(|| Offset::Number(span.end - 1)),
            events,
            bytes: Some(span.bytes),
        }
    }
}

impl Kept {
    fn drop_first(&mut self) {
        if let Some(first) = self.tail.pop_front() {
            self.tail_bytes -= first.events.bytes().len();
        }
    }
}

/// A page of consecutive values, the first of which holds `from`; `None` if it does not.
pub(super) fn fill<'v>(
    values: impl Iterator<Item = &'v Value>,
    from: u64,
    limit: BatchLimit,
    lost: u64,
) -> Option<SourceBatch> {
    let mut page = Page::new(limit);
    for value in values {
        let row = from.saturating_sub(value.base);
        if row >= value.events.len() as u64 {
            break;
        }
        let row = usize::try_from(row).expect("a row of a batch in memory");
        if !page.take(&value.events, value.base, row) {
            break;
        }
    }
    (!page.is_empty()).then(|| page.finish(lost))
}
