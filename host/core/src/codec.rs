//! Encodings of events outside: CloudEvents JSON, headers of Kafka and HTTP, fields of a Redis stream entry.
//!
//! Every decoder appends to a batch, or fails and leaves the batch exactly as it was; no input makes one panic. Every
//! encoder writes what its decoder reads back as the same event, as long as [`check`] says that the event is one; the
//! only exception is [`crate::spec::Encoding::Fields`], whose page says what it loses ([`modelkit`]). Nothing here knows
//! sockets, clients or clocks.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use crate::batch::{Batch, Row};
use crate::event::EventRef;
use crate::time::Timestamp;
use crate::topic::{Offset, TopicName};

pub mod cloudevents;
pub mod headers;
pub mod modelkit;
pub mod redis;

/// How many extension attributes an event may have besides `partitionkey`.
pub const EXTENSIONS_MAX: usize = 256;

/// Why bytes are no event: one sentence that names the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct DecodeError {
    sentence: Cow<'static, str>,
}

/// What an entry was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// An event, which was appended.
    Event,
    /// An envelope whose time to live has passed; nothing was appended.
    Expired,
}

/// Where an entry was found. An event without an id of its own is called `{topic}/{offset}` after it, or
/// `{topic}/{partition}/{offset}` in other partitions than the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The topic on its broker.
    pub topic: &'a TopicName,
    /// The topic's shard, from 0: offsets of two shards may be the same.
    pub partition: u32,
    /// The entry's place.
    pub offset: Offset,
}

/// Whether an event can be written in every encoding and read back: `id`, `source` and `type` are not empty, the time
/// lies in the years 0 to 9999, there are at most [`EXTENSIONS_MAX`] extension attributes, and each has a name of its
/// own made of `a`–`z` and `0`–`9` that CloudEvents does not use for something else.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(event: EventRef<'_>) -> Result<(), DecodeError> {
    for (name, value) in [("id", event.id()), ("source", event.source()), ("type", event.kind())] {
        required(name, Some(value))?;
    }
    if let Some(time) = event.time() {
        in_range("time", time)?;
    }
    let mut extensions = Extensions::default();
    for (name, value) in event.attributes() {
        extensions.add(Cow::Borrowed(name), Cow::Borrowed(value))?;
    }
    Ok(())
}

/// Times that RFC 3339 can write, as far as the calendar that writes them goes.
const RFC_3339_MICROS: std::ops::RangeInclusive<i64> = -62_167_219_200_000_000..=253_402_207_200_999_999;

impl DecodeError {
    fn new(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { sentence: sentence.into() }
    }

    fn missing(name: impl fmt::Display) -> Self {
        Self::new(format!("`{name}` is missing"))
    }

    fn twice(name: &str) -> Self {
        Self::new(format!("`{}` is there twice", clip(name)))
    }

    fn not_text(name: &str) -> Self {
        Self::new(format!("`{}` is not UTF-8", clip(name)))
    }
}

/// The beginning of a name from outside, short enough for a sentence.
fn clip(name: &str) -> &str {
    let end = name.char_indices().nth(64).map_or(name.len(), |(at, _)| at);
    &name[..end]
}

/// An attribute that must be there and must not be empty.
fn required(name: impl fmt::Display, value: Option<&str>) -> Result<&str, DecodeError> {
    match value {
        None => Err(DecodeError::missing(name)),
        Some("") => Err(DecodeError::new(format!("`{name}` is empty"))),
        Some(value) => Ok(value),
    }
}

/// A time attribute; empty is absent.
fn time(name: impl fmt::Display, text: Option<&str>) -> Result<Option<Timestamp>, DecodeError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let time = text.parse().map_err(|error| DecodeError::new(format!("`{name}`: {error}")))?;
    in_range(name, time).map(Some)
}

fn in_range(name: impl fmt::Display, time: Timestamp) -> Result<Timestamp, DecodeError> {
    if RFC_3339_MICROS.contains(&time.as_micros()) {
        Ok(time)
    } else {
        Err(DecodeError::new(format!("`{name}` is outside the years 0 to 9999")))
    }
}

/// Whether an extension attribute may have this name. `partitionkey` and `synapseposition` have places of their own.
fn is_extension_name(name: &str) -> bool {
    let letters = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    letters && !is_reserved(name)
}

fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "specversion"
            | "id"
            | "source"
            | "type"
            | "subject"
            | "time"
            | "datacontenttype"
            | "partitionkey"
            | "data"
            | "synapseposition"
    )
}

/// Extension attributes while an event is put together: few, so they are kept on the stack and searched one by one.
#[derive(Default)]
struct Extensions<'a> {
    pairs: SmallVec<[(Cow<'a, str>, Cow<'a, str>); 6]>,
}

impl<'a> Extensions<'a> {
    fn contains(&self, name: &str) -> bool {
        self.pairs.iter().any(|(known, _)| known == name)
    }

    fn add(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) -> Result<(), DecodeError> {
        if !is_extension_name(&name) {
            return Err(DecodeError::new(format!(
                "`{}` is no name of an extension attribute: a-z and 0-9, and none that CloudEvents uses itself",
                clip(&name)
            )));
        }
        if self.pairs.len() == EXTENSIONS_MAX {
            return Err(DecodeError::new(format!("`{}` is one attribute more than {EXTENSIONS_MAX}", clip(&name))));
        }
        if self.contains(&name) {
            return Err(DecodeError::twice(&name));
        }
        self.pairs.push((name, value));
        Ok(())
    }

    /// Takes a field that has no home in the event along. Its name loses what attribute names cannot hold and gets an
    /// `x` in front if CloudEvents uses it itself: `dlq_reason` becomes `dlqreason`, `source` becomes `xsource`.
    fn add_foreign(&mut self, name: &str, value: &'a [u8]) -> Result<(), DecodeError> {
        let mut plain: String =
            name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
        if plain.is_empty() {
            return Err(DecodeError::new(format!(
                "`{}` has no letter that an attribute's name could keep",
                clip(name)
            )));
        }
        if is_reserved(&plain) {
            plain.insert(0, 'x');
        }
        self.add(Cow::Owned(plain), Cow::Borrowed(text(name, value)?))
    }

    fn push(&self, row: &Row<'_>, into: &mut Batch) -> Result<(), DecodeError> {
        into.push(row, self.pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref())))
            .map_err(|error| DecodeError::new(error.to_string()))
    }
}

/// The bytes of a field as text.
fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::not_text(name))
}

/// Text of bounded length on the stack: times and default ids are written without an allocation.
struct StackText<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> StackText<N> {
    fn of(value: impl fmt::Display) -> Self {
        let mut text = Self { bytes: [0; N], len: 0 };
        fmt::write(&mut text, format_args!("{value}")).expect("the caller knows how long its text can be");
        text
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("it was written as text")
    }
}

impl<const N: usize> fmt::Write for StackText<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// The longest time is `-009999-01-02T01:59:59.999999Z`.
fn time_text(time: Timestamp) -> StackText<40> {
    StackText::of(time)
}

impl fmt::Display for Origin<'_> {
    /// As an event without an id of its own is called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            0 => write!(f, "{}/{}", self.topic, self.offset),
            partition => write!(f, "{}/{partition}/{}", self.topic, self.offset),
        }
    }
}

impl Origin<'_> {
    /// The id of an event that has none: a topic's name of at most 200 bytes and three numbers.
    fn default_id(&self) -> StackText<256> {
        StackText::of(self)
    }

    /// When the entry was added, if its id tells.
    fn time(&self) -> Option<Timestamp> {
        match self.offset {
            Offset::Number(_) => None,
            Offset::Entry { ms, .. } => {
                let micros = i64::try_from(ms).ok()?.checked_mul(1000)?;
                RFC_3339_MICROS.contains(&micros).then_some(Timestamp::from_micros(micros))
            }
        }
    }
}

/// How a payload of some content type is held in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Media {
    Json,
    Text,
    Binary,
}

impl Media {
    /// By the media type without its parameters. JSON is `*/json`, `*/*+json` and a type that is not given (CloudEvents
    /// JSON format 1.0.2, 3.1.1); text is `text/*`, `*/xml` and `*/*+xml`.
    fn of(content_type: &str) -> Self {
        if matches!(content_type, "" | "application/json") {
            return Self::Json;
        }
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let Some((top, sub)) = media.split_once('/') else { return Self::Binary };
        let suffix = sub.rsplit('+').next().unwrap_or_default();
        if suffix.eq_ignore_ascii_case("json") {
            Self::Json
        } else if top.eq_ignore_ascii_case("text") || suffix.eq_ignore_ascii_case("xml") {
            Self::Text
        } else {
            Self::Binary
        }
    }
}

#[cfg(test)]
mod tests;
