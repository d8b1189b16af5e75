//! What every broker does with rows: spread a publish over partitions by key, and cut what a poll may hand out from
//! stored batches.
//!
//! Nothing here knows where batches are stored.

use std::ops::Range;
use std::sync::Arc;

use synapse_core::broker::BatchLimit;
use synapse_core::event::EventRef;
use synapse_core::topic::partition_of;
use synapse_core::{Batch, Offset, SourceBatch};

/// The key that decides an event's partition: its `partitionkey`, or its id.
pub(crate) fn key_of(event: EventRef<'_>) -> &str {
    event.partition_key().unwrap_or_else(|| event.id())
}

/// The rows that go to each of `partitions`, in order; partitions without rows are left out.
pub(crate) fn spread(events: &Batch, partitions: u32) -> Vec<(u32, Vec<u32>)> {
    let mut rows = vec![Vec::new(); partitions.max(1) as usize];
    for (row, event) in (0..).zip(events.events()) {
        rows[partition_of(key_of(event).as_bytes(), partitions) as usize].push(row);
    }
    (0..).zip(rows).filter(|(_, rows)| !rows.is_empty()).collect()
}

/// Consecutive rows of one partition, gathered from stored or published batches. A batch that comes first and whole is
/// shared, not copied.
pub(crate) enum Gathered {
    Whole(Arc<Batch>),
    Copied(Batch),
}

impl Default for Gathered {
    fn default() -> Self {
        Self::Copied(Batch::default())
    }
}

impl Gathered {
    pub(crate) fn events(&self) -> &Batch {
        match self {
            Self::Whole(batch) => batch,
            Self::Copied(batch) => batch,
        }
    }

    /// Tells whether the rows fitted into one batch; if not, nothing was added.
    pub(crate) fn push(&mut self, batch: &Arc<Batch>, rows: Range<usize>) -> bool {
        if self.events().is_empty() && rows == (0..batch.len()) {
            *self = Self::Whole(Arc::clone(batch));
            return true;
        }
        if let Self::Whole(first) = self {
            *self = Self::Copied(Batch::clone(first));
        }
        match self {
            Self::Copied(copied) => copied.extend_from(batch, rows).is_ok(),
            Self::Whole(_) => false,
        }
    }

    pub(crate) fn finish(self) -> Arc<Batch> {
        match self {
            Self::Whole(batch) => batch,
            Self::Copied(batch) => Arc::new(batch),
        }
    }
}

/// The row behind the last one that fits into `bytes_max` together with all from `row` on; at most `end`.
pub(crate) fn rows_within(batch: &Batch, row: usize, end: usize, bytes_max: usize) -> usize {
    prefix(row, end, |upto| batch.row_bytes(row..upto) <= bytes_max)
}

/// A poll's answer while it is filled from stored batches with dense offsets.
///
/// A stored batch that fills a good part of a page on its own is handed out as it is: not copying beats filling up.
pub(crate) struct Page {
    limit: BatchLimit,
    gathered: Gathered,
    offsets: Vec<Offset>,
}

impl Page {
    pub(crate) fn new(limit: BatchLimit) -> Self {
        Self { limit, gathered: Gathered::default(), offsets: Vec::new() }
    }

    /// Appends rows of `batch`, whose first row has offset `base`, from `row` on until the limit; the first row of a
    /// page always fits. Tells whether there is room for more.
    pub(crate) fn take(&mut self, batch: &Arc<Batch>, base: u64, row: usize) -> bool {
        let end = row + self.limit.events_max.saturating_sub(self.offsets.len()).min(batch.len() - row);
        let bytes_left = self.limit.bytes_max.saturating_sub(self.gathered.events().bytes().len());
        let mut fitting = rows_within(batch, row, end, bytes_left);
        if fitting == row && self.offsets.is_empty() && row < batch.len() {
            fitting = row + 1;
        }
        if !self.gathered.push(batch, row..fitting) {
            return false;
        }
        self.offsets.extend((row..fitting).map(|row| Offset::Number(base + row as u64)));
        fitting == batch.len() && self.has_room()
    }

    fn has_room(&self) -> bool {
        let enough = match &self.gathered {
            Gathered::Whole(_) => 4,
            Gathered::Copied(_) => 1,
        };
        let bytes = self.gathered.events().bytes().len();
        self.offsets.len() < self.limit.events_max / enough && bytes < self.limit.bytes_max / enough
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The answer; `lost` entries before it were trimmed.
    pub(crate) fn finish(self, lost: u64) -> SourceBatch {
        SourceBatch {
            events: self.gathered.finish(),
            offsets: self.offsets,
            lost_to_trim: lost,
            ..SourceBatch::default()
        }
    }
}

/// The largest `upto` in `from..=to` for which `fits` holds, given that it holds for a prefix; `from` if for none.
fn prefix(from: usize, to: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use synapse_core::Event;

    fn batch(ids: &[&str], size: usize) -> Arc<Batch> {
        let events: Vec<Event> =
            ids.iter().map(|id| Event { id: (*id).to_owned(), data: vec![7; size], ..Event::default() }).collect();
        Arc::new(events.iter().collect())
    }

    fn page(limit: (usize, usize), batch: &Arc<Batch>, row: usize) -> (Vec<String>, bool) {
        let mut page = Page::new(BatchLimit { events_max: limit.0, bytes_max: limit.1 });
        let room = page.take(batch, 10, row);
        let filled = page.finish(0);
        let offsets: Vec<Offset> =
            (row..row + filled.events.len()).map(|row| Offset::Number(10 + row as u64)).collect();
        assert_eq!(filled.offsets, offsets);
        (filled.events.events().map(|event| event.id().to_owned()).collect(), room)
    }

    #[test]
    fn a_page_ends_at_events_or_bytes_but_one_event_always_fits() {
        let stored = batch(&["a", "b", "c"], 9);
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(page((99, 1000), &stored, 0), (ids(&["a", "b", "c"]), true));
        assert_eq!(page((3, 1000), &stored, 0), (ids(&["a", "b", "c"]), false));
        assert_eq!(page((2, 1000), &stored, 1), (ids(&["b", "c"]), false));
        assert_eq!(page((9, 20), &stored, 0), (ids(&["a", "b"]), false));
        assert_eq!(page((9, 19), &stored, 0), (ids(&["a"]), false));
        assert_eq!(page((9, 1), &stored, 2), (ids(&["c"]), false));
        assert_eq!(page((0, 0), &stored, 0), (ids(&["a"]), false));
    }

    #[test]
    fn small_batches_are_joined_and_large_ones_are_shared() {
        let (one, two) = (batch(&["a", "b"], 1), batch(&["c"], 1));
        let mut page = Page::new(BatchLimit::default());
        assert!(page.take(&one, 0, 0));
        assert!(page.take(&two, 2, 0));
        let joined = page.finish(0);
        let ids: Vec<_> = joined.events.events().map(|event| event.id().to_owned()).collect();
        assert_eq!((ids.join(""), joined.offsets), ("abc".to_owned(), (0..3).map(Offset::Number).collect()));

        let mut page = Page::new(BatchLimit { events_max: 8, ..BatchLimit::default() });
        assert!(!page.take(&one, 0, 0));
        assert!(Arc::ptr_eq(&page.finish(0).events, &one));
    }

    #[test]
    fn rows_keep_their_order_within_a_partition() {
        let stored = batch(&["a", "b", "c", "d", "e", "f", "g", "h"], 1);
        let spread = spread(&stored, 3);
        let mut all: Vec<u32> = spread.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
        assert!(spread.iter().all(|(_, rows)| rows.is_sorted()));
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<u32>>());
        for (partition, rows) in spread {
            assert!(
                rows.iter().all(|&row| { partition_of(stored.event(row as usize).id().as_bytes(), 3) == partition })
            );
        }
    }
}
