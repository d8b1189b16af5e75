//! One CloudEvents 1.0 event: as a view into a batch ([`EventRef`]) and as an owned value ([`Event`]).
//!
//! Hot paths use the view, which copies nothing; the owned value is for command lines, control paths and tests.
//! Nothing here knows how events are encoded outside (see [`crate::codec`]).

use crate::batch::{Batch, Column};
use crate::time::Timestamp;

/// One CloudEvents 1.0 event, owned. Attribute names and meaning are those of the CloudEvents 1.0.2 specification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Unique within `source`; never empty once published.
    pub id: String,
    /// Where the event comes from, a URI reference.
    pub source: String,
    /// The CloudEvents `type`.
    pub kind: String,
    /// What the event is about, within its source.
    pub subject: Option<String>,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// The extension `partitionkey`: what the event is ordered by.
    pub partition_key: Option<String>,
    /// The media type of `data`.
    pub content_type: Option<String>,
    /// Extension attributes other than `partitionkey`, in the order they came.
    pub attributes: Vec<(String, String)>,
    /// The payload.
    pub data: Vec<u8>,
}

impl Event {
    /// The value of an extension attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A view of one row of a [`Batch`]. Copying it copies a pointer and a number.
#[derive(Clone, Copy)]
pub struct EventRef<'a> {
    batch: &'a Batch,
    row: usize,
}

impl<'a> EventRef<'a> {
    /// The caller has checked that `row` lies within `batch`.
    pub(crate) fn new(batch: &'a Batch, row: usize) -> Self {
        Self { batch, row }
    }

    /// The bytes of a column as they lie in the batch; an absent optional column is empty.
    pub fn column(self, column: Column) -> &'a [u8] {
        self.batch.column(self.row, column)
    }

    fn text(self, column: Column) -> &'a str {
        std::str::from_utf8(self.column(column)).expect("a batch checks its text columns when it is built")
    }

    fn optional_text(self, column: Column) -> Option<&'a str> {
        let text = self.text(column);
        (!text.is_empty()).then_some(text)
    }

    /// The CloudEvents `id`.
    pub fn id(self) -> &'a str {
        self.text(Column::Id)
    }

    /// The CloudEvents `source`.
    pub fn source(self) -> &'a str {
        self.text(Column::Source)
    }

    /// The CloudEvents `type`.
    pub fn kind(self) -> &'a str {
        self.text(Column::Kind)
    }

    /// The CloudEvents `subject`.
    pub fn subject(self) -> Option<&'a str> {
        self.optional_text(Column::Subject)
    }

    /// The CloudEvents `time`.
    pub fn time(self) -> Option<Timestamp> {
        let bytes = self.column(Column::Time).try_into().ok()?;
        Some(Timestamp::from_micros(i64::from_le_bytes(bytes)))
    }

    /// The extension `partitionkey`: what the event is ordered by.
    pub fn partition_key(self) -> Option<&'a str> {
        self.optional_text(Column::PartitionKey)
    }

    /// The CloudEvents `datacontenttype`.
    pub fn content_type(self) -> Option<&'a str> {
        self.optional_text(Column::ContentType)
    }

    /// Extension attributes other than `partitionkey`.
    pub fn attributes(self) -> Attributes<'a> {
        Attributes::new(self.column(Column::Attributes))
    }

    /// The value of an extension attribute.
    pub fn attribute(self, name: &str) -> Option<&'a str> {
        self.attributes().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The payload.
    pub fn data(self) -> &'a [u8] {
        self.column(Column::Data)
    }

    /// A copy that stands on its own.
    pub fn to_event(self) -> Event {
        Event {
            id: self.id().to_owned(),
            source: self.source().to_owned(),
            kind: self.kind().to_owned(),
            subject: self.subject().map(str::to_owned),
            time: self.time(),
            partition_key: self.partition_key().map(str::to_owned),
            content_type: self.content_type().map(str::to_owned),
            attributes: self.attributes().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            data: self.data().to_vec(),
        }
    }
}

impl std::fmt::Debug for EventRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_event().fmt(f)
    }
}

/// The attributes column, read pair by pair.
///
/// Layout: `u16` LE count, then for each attribute `u16` LE name length, `u32` LE value length, name, value. An event
/// without attributes has an empty column.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    fn new(column: &'a [u8]) -> Self {
        Self { rest: column.get(2..).unwrap_or_default() }
    }

    /// Appends the encoding of `pairs` to `out`; nothing if there are none.
    ///
    /// # Errors
    /// More than 65,535 attributes, or a name or value too long for its length field.
    pub fn encode<'p>(
        pairs: impl ExactSizeIterator<Item = (&'p str, &'p str)>,
        out: &mut Vec<u8>,
    ) -> Result<(), AttributesError> {
        if pairs.len() == 0 {
            return Ok(());
        }
        let count = u16::try_from(pairs.len()).map_err(|_| AttributesError::TooLarge)?;
        out.extend_from_slice(&count.to_le_bytes());
        for (name, value) in pairs {
            let name_len = u16::try_from(name.len()).map_err(|_| AttributesError::TooLarge)?;
            let value_len = u32::try_from(value.len()).map_err(|_| AttributesError::TooLarge)?;
            out.extend_from_slice(&name_len.to_le_bytes());
            out.extend_from_slice(&value_len.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        Ok(())
    }

    /// Whether `column` is a well-formed attributes column.
    ///
    /// # Errors
    /// Lengths that do not add up, a text that is not UTF-8, or an empty name.
    pub fn check(column: &[u8]) -> Result<(), AttributesError> {
        if column.is_empty() {
            return Ok(());
        }
        let count = column.get(..2).ok_or(AttributesError::Malformed)?;
        let count = u16::from_le_bytes([count[0], count[1]]);
        let mut rest = &column[2..];
        for _ in 0..count {
            let ((name, value), tail) = split_pair(rest).ok_or(AttributesError::Malformed)?;
            if name.is_empty() || std::str::from_utf8(name).is_err() || std::str::from_utf8(value).is_err() {
                return Err(AttributesError::Malformed);
            }
            rest = tail;
        }
        if rest.is_empty() { Ok(()) } else { Err(AttributesError::Malformed) }
    }
}

/// An attributes column that cannot be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributesError {
    /// More attributes, or longer ones, than the column's length fields hold.
    #[error("too many or too long attributes")]
    TooLarge,
    /// Lengths that do not add up, an empty name, or text that is not UTF-8.
    #[error("malformed attributes")]
    Malformed,
}

type Pair<'a> = (&'a [u8], &'a [u8]);

fn split_pair(bytes: &[u8]) -> Option<(Pair<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(6)?;
    let name_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
    let (name, rest) = rest.split_at_checked(name_len)?;
    let (value, rest) = rest.split_at_checked(value_len)?;
    Some(((name, value), rest))
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let ((name, value), rest) = split_pair(self.rest)?;
        self.rest = rest;
        let text = |bytes| std::str::from_utf8(bytes).expect("a batch checks its text columns when it is built");
        Some((text(name), text(value)))
    }
}
