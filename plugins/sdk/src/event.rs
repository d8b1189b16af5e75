//! One event, seen in the batch it came in.
//!
//! Invariant: a view copies nothing and allocates nothing. It is made from a checked batch only, so its columns lie
//! within the arena. Text is checked when it is read: the host promises UTF-8, and a plugin reads few of the columns.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::Reject;
use crate::columns::{Column, STRIDE};
use crate::json::{self, Pointer, Value};
use crate::transform::Draft;

/// A CloudEvents 1.0 event. Copying it copies three words.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// Where the row starts in `bytes`.
    start: u32,
    /// The row's end offsets, [`STRIDE`] or more.
    ends: &'a [u32],
    bytes: &'a [u8],
}

impl<'a> Event<'a> {
    pub(crate) fn new(start: u32, ends: &'a [u32], bytes: &'a [u8]) -> Self {
        Self { start, ends, bytes }
    }

    pub(crate) fn column(&self, column: Column) -> &'a [u8] {
        let index = column as usize;
        let start = if index == 0 { self.start } else { self.ends[index - 1] };
        &self.bytes[start as usize..self.ends[index] as usize]
    }

    fn text(&self, column: Column) -> &'a str {
        std::str::from_utf8(self.column(column)).expect("the host hands over text columns as UTF-8")
    }

    fn optional_text(&self, column: Column) -> Option<&'a str> {
        let text = self.text(column);
        (!text.is_empty()).then_some(text)
    }

    /// All columns this version knows, one behind the other.
    pub(crate) fn row_bytes(&self) -> &'a [u8] {
        &self.bytes[self.start as usize..self.ends[STRIDE - 1] as usize]
    }

    /// Where the columns end within [`Self::row_bytes`].
    pub(crate) fn row_ends(&self) -> impl Iterator<Item = usize> {
        let start = self.start;
        self.ends[..STRIDE].iter().map(move |&end| (end - start) as usize)
    }

    /// The CloudEvents `id`: unique within `source`.
    pub fn id(&self) -> &'a str {
        self.text(Column::Id)
    }

    /// The CloudEvents `source`, a URI reference.
    pub fn source(&self) -> &'a str {
        self.text(Column::Source)
    }

    /// The CloudEvents `type`, for example `model-ready`.
    pub fn kind(&self) -> &'a str {
        self.text(Column::Kind)
    }

    /// What the event is about, within its source.
    pub fn subject(&self) -> Option<&'a str> {
        self.optional_text(Column::Subject)
    }

    /// When it happened, in microseconds since the Unix epoch.
    pub fn time_us(&self) -> Option<i64> {
        self.column(Column::Time).try_into().ok().map(i64::from_le_bytes)
    }

    /// The extension `partitionkey`: what the event is ordered by.
    pub fn partition_key(&self) -> Option<&'a str> {
        self.optional_text(Column::PartitionKey)
    }

    /// The media type of [`Self::data`].
    pub fn content_type(&self) -> Option<&'a str> {
        self.optional_text(Column::ContentType)
    }

    /// The extension attributes other than `partitionkey`, in the order they came.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.column(Column::Attributes))
    }

    /// The value of an extension attribute.
    pub fn attribute(&self, name: &str) -> Option<&'a str> {
        if name == "partitionkey" {
            return self.partition_key();
        }
        self.attributes().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The payload as it came.
    pub fn data(&self) -> &'a [u8] {
        self.column(Column::Data)
    }

    /// The payload as a value of `T`, from JSON.
    ///
    /// # Errors
    /// When the payload is not JSON or does not fit `T`; `?` in a transform or router makes it a dead letter.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Reject> {
        serde_json::from_slice(self.data())
            .map_err(|error| Reject(format!("the data is not the JSON that is expected: {error}")))
    }

    /// One value of a JSON payload, found without reading the rest; see [`json::find`] for what that means.
    pub fn json_at(&self, pointer: &str) -> Option<Value<'a>> {
        json::find(self.data(), pointer)
    }

    /// As [`Self::json_at`], with a pointer that was checked before.
    pub fn json_at_pointer(&self, pointer: &Pointer) -> Option<Value<'a>> {
        json::find(self.data(), pointer.as_str())
    }

    /// A copy to change and emit from a transform. It borrows what stays as it is.
    pub fn draft(&self) -> Draft<'a> {
        Draft::of(self)
    }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id())
            .field("source", &self.source())
            .field("kind", &self.kind())
            .field("subject", &self.subject())
            .field("time_us", &self.time_us())
            .field("partition_key", &self.partition_key())
            .field("content_type", &self.content_type())
            .field("attributes", &self.attributes().collect::<Vec<_>>())
            .field("data", &String::from_utf8_lossy(self.data()))
            .finish()
    }
}

/// Names and values of an event's extension attributes.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(column: &'a [u8]) -> Self {
        match column.split_first_chunk() {
            Some((count, rest)) => Self { left: u16::from_le_bytes(*count), rest },
            None => Self { left: 0, rest: &[] },
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (name_len, rest) = self.rest.split_first_chunk()?;
        let (value_len, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*name_len).into())?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        self.rest = rest;
        let text = |bytes| std::str::from_utf8(bytes).expect("the host hands over attributes as UTF-8");
        Some((text(name), text(value)))
    }
}

/// Appends the attributes column for `pairs` to `out`: nothing when there are none.
///
/// # Panics
/// With more than 65,535 attributes or a name longer than that.
pub(crate) fn encode_attributes<'p>(pairs: impl ExactSizeIterator<Item = (&'p str, &'p str)>, out: &mut Vec<u8>) {
    if pairs.len() == 0 {
        return;
    }
    let length =
        |length: usize| u16::try_from(length).expect("an event has at most 65,535 attributes, names are short");
    out.extend_from_slice(&length(pairs.len()).to_le_bytes());
    for (name, value) in pairs {
        out.extend_from_slice(&length(name.len()).to_le_bytes());
        let value_len = u32::try_from(value.len()).expect("a plugin's memory is smaller than 4 GiB");
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_the_layout_of_the_contract() {
        let mut column = Vec::new();
        encode_attributes([("tenant", "a")].into_iter(), &mut column);
        assert_eq!(column, b"\x01\0\x06\0\x01\0\0\0tenanta");
        assert_eq!(Attributes::new(&column).collect::<Vec<_>>(), [("tenant", "a")]);
        encode_attributes([].into_iter(), &mut Vec::new());
        assert_eq!(Attributes::new(b"").count(), 0);
    }

    #[test]
    fn cut_attributes_end_early() {
        let mut column = Vec::new();
        encode_attributes([("a", "1"), ("b", "22")].into_iter(), &mut column);
        for length in 0..column.len() {
            assert!(Attributes::new(&column[..length]).count() < 2);
        }
    }
}
