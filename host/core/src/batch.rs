//! The columnar batch: events of one partition, in order, in one arena.
//!
//! ```text
//! bytes: arena of all columns, event after event, column after column
//! ends:  stride × n  u32 end offsets into bytes
//! ```
//!
//! Adapters decode into it, stages select from it and rewrite it, guests receive the same bytes. Its invariant: ends
//! ascend and lie within the arena, text columns are UTF-8, `time` is empty or 8 bytes, attributes are well formed. So
//! views need no checks of their own. This module does not know where batches come from.

use crate::event::{Attributes, Event, EventRef};
use crate::time::Timestamp;

/// The columns of a row, in the order in which they lie in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Column {
    /// CloudEvents `id`.
    Id,
    /// CloudEvents `source`.
    Source,
    /// CloudEvents `type`.
    Kind,
    /// CloudEvents `subject`; empty if absent.
    Subject,
    /// 8 bytes, little-endian microseconds since the Unix epoch; empty if absent.
    Time,
    /// Extension `partitionkey`; empty if absent.
    PartitionKey,
    /// CloudEvents `datacontenttype`; empty if absent.
    ContentType,
    /// Other extension attributes, see [`Attributes`]; empty if there are none.
    Attributes,
    /// The payload.
    Data,
}

impl Column {
    /// All columns in order.
    pub const ALL: [Self; 9] = [
        Self::Id,
        Self::Source,
        Self::Kind,
        Self::Subject,
        Self::Time,
        Self::PartitionKey,
        Self::ContentType,
        Self::Attributes,
        Self::Data,
    ];
}

/// How many columns this version writes for each row.
pub const STRIDE: usize = Column::ALL.len();

/// Events in the columnar shape; see the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

/// Why columns are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer columns a row than this version knows.
    #[error("stride {stride} is less than the {STRIDE} columns of an event")]
    Stride {
        /// The stride given.
        stride: usize,
    },
    /// The number of ends is not a whole number of rows.
    #[error("{ends} ends are not a multiple of stride {stride}")]
    Ragged {
        /// How many ends were given.
        ends: usize,
        /// The stride given.
        stride: usize,
    },
    /// An end lies before its predecessor or behind the arena.
    #[error("row {row}: end offsets must ascend within the {bytes} bytes of the arena")]
    Ends {
        /// The row at fault.
        row: usize,
        /// The arena's size in bytes.
        bytes: usize,
    },
    /// A column that does not hold what it should.
    #[error("row {row}: column {column:?} {problem}")]
    Content {
        /// The row at fault.
        row: usize,
        /// The column at fault.
        column: Column,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// More than 4 GiB of column bytes.
    #[error("a batch holds at most 4 GiB")]
    TooLarge,
}

/// The columns of one row before it is appended to a batch. Absent optional columns are empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row<'a> {
    /// CloudEvents `id`.
    pub id: &'a str,
    /// CloudEvents `source`.
    pub source: &'a str,
    /// CloudEvents `type`.
    pub kind: &'a str,
    /// CloudEvents `subject`.
    pub subject: &'a str,
    /// CloudEvents `time`.
    pub time: Option<Timestamp>,
    /// Extension `partitionkey`.
    pub partition_key: &'a str,
    /// CloudEvents `datacontenttype`.
    pub content_type: &'a str,
    /// The payload.
    pub data: &'a [u8],
}

impl Batch {
    /// An empty batch with room for `rows` rows and `bytes` bytes.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        Self { ends: Vec::with_capacity(rows * STRIDE), bytes: Vec::with_capacity(bytes) }
    }

    /// Takes columns from an untrusted place (a guest, a disk). Columns beyond those known here are cut out.
    ///
    /// # Errors
    /// Whatever breaks the invariant of the module's page, with the row at fault.
    pub fn from_columns(stride: usize, ends: Vec<u32>, bytes: Vec<u8>) -> Result<Self, BatchError> {
        if stride < STRIDE {
            return Err(BatchError::Stride { stride });
        }
        if !ends.len().is_multiple_of(stride) {
            return Err(BatchError::Ragged { ends: ends.len(), stride });
        }
        let mut batch = if stride == STRIDE { Self { ends, bytes } } else { Self::narrowed(stride, &ends, &bytes)? };
        batch.check()?;
        // Bytes behind the last row would become part of the next row that is appended.
        batch.bytes.truncate(batch.row_start(batch.len()));
        Ok(batch)
    }

    /// Cuts unknown columns out, so that everything behind this point has one stride.
    fn narrowed(stride: usize, ends: &[u32], bytes: &[u8]) -> Result<Self, BatchError> {
        let mut batch = Self::with_capacity(ends.len() / stride, bytes.len());
        let mut start = 0;
        for (row, ends) in ends.chunks_exact(stride).enumerate() {
            for (index, &end) in ends.iter().enumerate() {
                let column = bytes.get(start..end as usize).ok_or(BatchError::Ends { row, bytes: bytes.len() })?;
                start = end as usize;
                if index < STRIDE {
                    batch.bytes.extend_from_slice(column);
                    batch.end_column()?;
                }
            }
        }
        Ok(batch)
    }

    fn check(&self) -> Result<(), BatchError> {
        let mut start = 0;
        for (row, ends) in self.ends.chunks_exact(STRIDE).enumerate() {
            for (column, &end) in Column::ALL.into_iter().zip(ends) {
                let bytes =
                    self.bytes.get(start..end as usize).ok_or(BatchError::Ends { row, bytes: self.bytes.len() })?;
                start = end as usize;
                if let Some(problem) = column_problem(column, bytes) {
                    return Err(BatchError::Content { row, column, problem });
                }
            }
        }
        Ok(())
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.ends.len() / STRIDE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The arena.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The end offsets, [`STRIDE`] a row.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The event in `row`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn event(&self, row: usize) -> EventRef<'_> {
        assert!(row < self.len(), "row {row} of a batch of {}", self.len());
        EventRef::new(self, row)
    }

    /// All events in order.
    pub fn events(&self) -> impl ExactSizeIterator<Item = EventRef<'_>> {
        (0..self.len()).map(|row| EventRef::new(self, row))
    }

    /// The bytes of one column of one row.
    pub(crate) fn column(&self, row: usize, column: Column) -> &[u8] {
        let index = row * STRIDE + column as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.bytes[start..self.ends[index] as usize]
    }

    /// Where the bytes of `row` start; for `row == len()`, where the last row ends.
    fn row_start(&self, row: usize) -> usize {
        if row == 0 { 0 } else { self.ends[row * STRIDE - 1] as usize }
    }

    /// Size in bytes of the arena that rows `rows` take.
    pub fn row_bytes(&self, rows: std::ops::Range<usize>) -> usize {
        self.row_start(rows.end) - self.row_start(rows.start)
    }

    /// Appends a row. Attributes are given as pairs.
    ///
    /// # Errors
    /// A batch beyond 4 GiB or attributes beyond their length fields; the batch is then as it was.
    pub fn push<'p>(
        &mut self,
        row: &Row<'_>,
        attributes: impl ExactSizeIterator<Item = (&'p str, &'p str)>,
    ) -> Result<(), BatchError> {
        let before = (self.ends.len(), self.bytes.len());
        let pushed = self.push_columns(row, attributes);
        if pushed.is_err() {
            self.ends.truncate(before.0);
            self.bytes.truncate(before.1);
        }
        pushed
    }

    fn push_columns<'p>(
        &mut self,
        row: &Row<'_>,
        attributes: impl ExactSizeIterator<Item = (&'p str, &'p str)>,
    ) -> Result<(), BatchError> {
        for text in [row.id, row.source, row.kind, row.subject] {
            self.bytes.extend_from_slice(text.as_bytes());
            self.end_column()?;
        }
        if let Some(time) = row.time {
            self.bytes.extend_from_slice(&time.as_micros().to_le_bytes());
        }
        self.end_column()?;
        for text in [row.partition_key, row.content_type] {
            self.bytes.extend_from_slice(text.as_bytes());
            self.end_column()?;
        }
        let at = self.len();
        Attributes::encode(attributes, &mut self.bytes).map_err(|_| BatchError::Content {
            row: at,
            column: Column::Attributes,
            problem: "holds too many or too long attributes",
        })?;
        self.end_column()?;
        self.bytes.extend_from_slice(row.data);
        self.end_column()
    }

    fn end_column(&mut self) -> Result<(), BatchError> {
        self.ends.push(u32::try_from(self.bytes.len()).map_err(|_| BatchError::TooLarge)?);
        Ok(())
    }

    /// Appends an owned event.
    ///
    /// # Errors
    /// As [`Batch::push`].
    pub fn push_event(&mut self, event: &Event) -> Result<(), BatchError> {
        let row = Row {
            id: &event.id,
            source: &event.source,
            kind: &event.kind,
            subject: event.subject.as_deref().unwrap_or_default(),
            time: event.time,
            partition_key: event.partition_key.as_deref().unwrap_or_default(),
            content_type: event.content_type.as_deref().unwrap_or_default(),
            data: &event.data,
        };
        self.push(&row, event.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// Drops all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        if rows < self.len() {
            self.bytes.truncate(self.row_start(rows));
            self.ends.truncate(rows * STRIDE);
        }
    }

    /// Appends a range of rows of another batch: one copy of their bytes.
    ///
    /// # Errors
    /// A batch beyond 4 GiB; this one is then as it was.
    pub fn extend_from(&mut self, other: &Self, rows: std::ops::Range<usize>) -> Result<(), BatchError> {
        let (from, to) = (other.row_start(rows.start), other.row_start(rows.end));
        let base = self.bytes.len();
        if u32::try_from(base + (to - from)).is_err() {
            return Err(BatchError::TooLarge);
        }
        self.bytes.extend_from_slice(&other.bytes[from..to]);
        let ends = &other.ends[rows.start * STRIDE..rows.end * STRIDE];
        self.ends.extend(ends.iter().map(|&end| (end as usize - from + base) as u32));
        Ok(())
    }

    /// A batch of the given rows, in the given order. Runs of neighbours are copied at once.
    ///
    /// # Panics
    /// If a row does not exist.
    #[must_use]
    pub fn select(&self, rows: &[u32]) -> Self {
        let mut selected = Self::with_capacity(rows.len(), self.bytes.len() * rows.len() / self.len().max(1));
        let mut rest = rows;
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|(row, expected)| **row == *expected).count();
            let first = first as usize;
            selected
                .extend_from(self, first..first + run)
                .expect("rows of one batch fit into one batch unless they repeat past 4 GiB");
            rest = &rest[run..];
        }
        selected
    }
}

fn column_problem(column: Column, bytes: &[u8]) -> Option<&'static str> {
    match column {
        Column::Data => None,
        Column::Time => (!matches!(bytes.len(), 0 | 8)).then_some("is neither empty nor 8 bytes"),
        Column::Attributes => Attributes::check(bytes).is_err().then_some("is malformed"),
        Column::Id | Column::Source | Column::Kind | Column::Subject | Column::PartitionKey | Column::ContentType => {
            std::str::from_utf8(bytes).is_err().then_some("is not UTF-8")
        }
    }
}

impl<'e> FromIterator<&'e Event> for Batch {
    /// # Panics
    /// If the events take more than 4 GiB.
    fn from_iter<I: IntoIterator<Item = &'e Event>>(events: I) -> Self {
        let mut batch = Self::default();
        for event in events {
            batch.push_event(event).expect("owned events in memory fit into a batch");
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> Event {
        Event {
            id: id.to_owned(),
            source: "/tests".to_owned(),
            kind: "test".to_owned(),
            time: Some(Timestamp::from_micros(-1)),
            partition_key: Some("k".to_owned()),
            attributes: vec![("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())],
            data: id.repeat(3).into_bytes(),
            ..Event::default()
        }
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let events = ["one", "two", "three"].map(event);
        let batch: Batch = events.iter().collect();
        let back: Vec<Event> = batch.events().map(EventRef::to_event).collect();
        assert_eq!(back, events);
    }

    #[test]
    fn select_keeps_order_and_content() {
        let events = ["a", "b", "c", "d", "e"].map(event);
        let batch: Batch = events.iter().collect();
        let ids = |rows: &[u32]| batch.select(rows).events().map(|e| e.id().to_owned()).collect::<Vec<_>>();
        assert_eq!(ids(&[1, 2, 4]), ["b", "c", "e"]);
        assert_eq!(ids(&[4, 0]), ["e", "a"]);
        assert!(ids(&[]).is_empty());
    }

    #[test]
    fn unknown_columns_of_a_later_version_are_cut_out() {
        let one: Batch = [event("one"), event("two")].iter().collect();
        let (mut ends, mut bytes) = (Vec::new(), Vec::new());
        for row in one.events() {
            for column in Column::ALL {
                bytes.extend_from_slice(row.column(column));
                ends.push(bytes.len() as u32);
            }
            bytes.extend_from_slice(b"future");
            ends.push(bytes.len() as u32);
        }
        assert_eq!(Batch::from_columns(STRIDE + 1, ends, bytes).unwrap(), one);
    }

    #[test]
    fn bytes_behind_the_last_row_do_not_reach_the_next() {
        let one: Batch = [event("one")].iter().collect();
        let mut bytes = one.bytes().to_vec();
        bytes.extend_from_slice(b"\xffbehind");
        let mut taken = Batch::from_columns(STRIDE, one.ends().to_vec(), bytes).unwrap();
        taken.push_event(&event("two")).unwrap();
        assert_eq!(taken, [event("one"), event("two")].iter().collect());
        taken.truncate(1);
        assert_eq!(taken, one);
    }

    #[test]
    fn what_breaks_the_shape_is_refused_with_its_row() {
        let refuse = |stride, ends: &[u32], bytes: &[u8]| {
            Batch::from_columns(stride, ends.to_vec(), bytes.to_vec()).unwrap_err().to_string()
        };
        assert_eq!(refuse(8, &[], b""), "stride 8 is less than the 9 columns of an event");
        assert_eq!(refuse(9, &[0, 0], b""), "2 ends are not a multiple of stride 9");
        let past = "row 0: end offsets must ascend within the 2 bytes of the arena";
        assert_eq!(refuse(9, &[0, 0, 0, 0, 0, 0, 0, 0, 3], b"ab"), past);
        assert_eq!(refuse(9, &[2, 1, 2, 2, 2, 2, 2, 2, 2], b"ab"), past);
        assert_eq!(refuse(9, &[1, 1, 1, 1, 1, 1, 1, 1, 1], b"\xff"), "row 0: column Id is not UTF-8");
        assert_eq!(refuse(9, &[0, 0, 0, 0, 1, 1, 1, 1, 1], b"t"), "row 0: column Time is neither empty nor 8 bytes");
        assert_eq!(refuse(9, &[0, 0, 0, 0, 0, 0, 0, 1, 1], b"t"), "row 0: column Attributes is malformed");
    }
}
