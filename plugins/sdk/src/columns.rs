//! Batches as they cross between host and plugin: end offsets and an arena.
//!
//! Invariant: a [`View`] was checked once, so reading a column afterwards is slicing; a [`Writer`] only holds whole
//! rows. The layout is that of the contract in `wit/README.md`. This module knows nothing of bindings.

use crate::event::Event;

/// Columns of an event in this version of the contract.
pub const STRIDE: usize = 9;

/// The columns in the order in which they lie in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Column {
    Id,
    Source,
    Kind,
    Subject,
    Time,
    PartitionKey,
    ContentType,
    Attributes,
    Data,
}

/// Events in the columnar shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Columns of each row, at least [`STRIDE`].
    pub stride: u32,
    /// End offsets into `bytes`, `stride` for each row.
    pub ends: Vec<u32>,
    /// The columns' bytes.
    pub bytes: Vec<u8>,
}

/// A row that cannot be processed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its index.
    pub row: u32,
    /// Why.
    pub reason: String,
}

/// A filter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// 1 keep, 0 drop, for each row.
    pub kept: Vec<u8>,
    /// Ascending.
    pub rejected: Vec<Rejection>,
}

/// A transform's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The new events.
    pub batch: Batch,
    /// The row each came from.
    pub parents: Vec<u32>,
    /// Ascending.
    pub rejected: Vec<Rejection>,
}

/// A router's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Every topic named, once.
    pub topics: Vec<String>,
    /// For each row an index into `choices`, or [`PASS`].
    pub choice: Vec<u32>,
    /// Sets of indices into `topics`.
    pub choices: Vec<Vec<u32>>,
    /// Ascending.
    pub rejected: Vec<Rejection>,
}

/// The choice of a row that goes on to the next stage.
pub const PASS: u32 = u32::MAX;

/// A checked batch.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    stride: usize,
    ends: &'a [u32],
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// # Panics
    /// When the batch breaks the layout. Only a defect of the host does that, and none of its events can be trusted.
    pub(crate) fn of(batch: &'a Batch) -> Self {
        let stride = batch.stride as usize;
        assert!(stride >= STRIDE, "the host handed over a batch with stride {stride}, less than {STRIDE}");
        assert!(batch.ends.len().is_multiple_of(stride), "the host handed over a batch with a broken row");
        let ascending = batch.ends.windows(2).all(|pair| pair[0] <= pair[1]);
        let within = batch.ends.last().is_none_or(|&end| end as usize <= batch.bytes.len());
        assert!(ascending && within, "the host handed over a batch with ends out of place");
        Self { stride, ends: &batch.ends, bytes: &batch.bytes }
    }

    pub(crate) fn rows(&self) -> usize {
        self.ends.len() / self.stride
    }

    /// Every row with its index.
    pub(crate) fn events(self) -> impl Iterator<Item = (u32, Event<'a>)> {
        let mut start = 0;
        (0..).zip(self.ends.chunks_exact(self.stride)).map(move |(row, ends)| {
            let event = Event::new(start, ends, self.bytes);
            start = ends[ends.len() - 1];
            (row, event)
        })
    }
}

/// Builds a batch row by row.
#[derive(Default)]
pub(crate) struct Writer {
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self { ends: Vec::with_capacity(rows * STRIDE), bytes: Vec::with_capacity(bytes) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.ends.len() / STRIDE
    }

    /// Forgets the rows from `rows` on.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows * STRIDE);
        self.bytes.truncate(self.ends.last().map_or(0, |&end| end as usize));
    }

    /// Adds bytes to the column at hand.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends the column at hand. Nine of these make a row.
    pub(crate) fn end_column(&mut self) {
        self.ends.push(end(self.bytes.len()));
    }

    /// Appends one column.
    pub(crate) fn column(&mut self, bytes: &[u8]) {
        self.append(bytes);
        self.end_column();
    }

    /// Appends an event as it is: one copy.
    pub(crate) fn copy(&mut self, event: &Event<'_>) {
        let base = self.bytes.len();
        let row = event.row_bytes();
        self.bytes.extend_from_slice(row);
        self.ends.extend(event.row_ends().map(|offset| end(base + offset)));
    }

    /// Appends to the id of the last row.
    pub(crate) fn lengthen_last_id(&mut self, suffix: &[u8]) {
        let first = self.ends.len() - STRIDE;
        let at = self.ends[first] as usize;
        self.bytes.splice(at..at, suffix.iter().copied());
        for end_offset in &mut self.ends[first..] {
            *end_offset += end(suffix.len());
        }
    }

    pub(crate) fn finish(self) -> Batch {
        Batch { stride: STRIDE as u32, ends: self.ends, bytes: self.bytes }
    }
}

fn end(length: usize) -> u32 {
    u32::try_from(length).expect("a plugin's memory is smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(batch: &Batch, why: &str) {
        let refused = std::panic::catch_unwind(|| View::of(batch).rows()).unwrap_err();
        let message = refused
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| (*refused.downcast_ref::<&str>().expect("a panic carries its message")).to_owned());
        assert!(message.contains(why), "{message}");
    }

    #[test]
    fn malformed_batches_are_refused() {
        check_refused(&Batch { stride: 8, ends: vec![0; 8], bytes: vec![] }, "stride 8");
        check_refused(&Batch { stride: 0, ends: vec![], bytes: vec![] }, "stride 0");
        check_refused(&Batch { stride: 9, ends: vec![0; 10], bytes: vec![] }, "broken row");
        check_refused(&Batch { stride: 9, ends: vec![1; 9], bytes: vec![] }, "out of place");
        let descending = vec![1, 0, 1, 1, 1, 1, 1, 1, 1];
        check_refused(&Batch { stride: 9, ends: descending, bytes: vec![b'x'] }, "out of place");
    }

    #[test]
    fn columns_of_a_later_version_are_left_alone() {
        let ends = vec![1, 2, 3, 3, 3, 3, 3, 3, 4, 9, 10, 11, 12, 12, 12, 12, 12, 12, 13, 18];
        let batch = Batch { stride: 10, ends, bytes: b"abcdEXTRAefghEXTRA".to_vec() };
        let seen: Vec<_> = View::of(&batch)
            .events()
            .map(|(row, event)| (row, event.id().to_owned(), event.kind().to_owned(), event.data().to_vec()))
            .collect();
        let row = |row, id: &str, kind: &str, data: &[u8]| (row, id.to_owned(), kind.to_owned(), data.to_vec());
        assert_eq!(seen, [row(0, "a", "c", b"d"), row(1, "e", "g", b"h")]);
        let mut writer = Writer::default();
        View::of(&batch).events().for_each(|(_, event)| writer.copy(&event));
        let copied = writer.finish();
        assert_eq!((copied.stride, copied.bytes.as_slice()), (9, b"abcdefgh".as_slice()));
        assert_eq!(copied.ends, [1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 8]);
    }

    #[test]
    fn the_last_id_can_grow() {
        let mut writer = Writer::default();
        for id in ["a", "b"] {
            [id, "s", "k", "", "", "", "", "", "data"].iter().for_each(|column| writer.column(column.as_bytes()));
        }
        writer.lengthen_last_id(b"/0");
        let batch = writer.finish();
        let ids: Vec<_> = View::of(&batch).events().map(|(_, event)| (event.id(), event.data())).collect();
        assert_eq!(ids, [("a", b"data".as_slice()), ("b/0", b"data".as_slice())]);
    }
}
