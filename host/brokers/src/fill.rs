//! A poll's answer while it fills with entries that are decoded one by one.
//!
//! The limit holds for what the events take in the batch, not for what they took on the wire. Nothing here knows where
//! entries come from.

use std::sync::Arc;

use synapse_core::broker::{BatchLimit, Undecodable};
use synapse_core::codec::{DecodeError, Decoded, Origin};
use synapse_core::{Batch, Offset, SourceBatch, TopicName};

/// The answer so far.
pub(crate) struct Fill<'t> {
    topic: &'t TopicName,
    partition: u32,
    limit: BatchLimit,
    events: Batch,
    /// Near the limit an event is tried here first.
    tried: Batch,
    offsets: Vec<Offset>,
    undecodable: Vec<Undecodable>,
    kept_bytes: usize,
    expired: Vec<Offset>,
}

impl<'t> Fill<'t> {
    pub(crate) fn new(topic: &'t TopicName, partition: u32, limit: BatchLimit) -> Self {
        Self {
            topic,
            partition,
            limit,
            events: Batch::default(),
            tried: Batch::default(),
            offsets: Vec::new(),
            undecodable: Vec::new(),
            kept_bytes: 0,
            expired: Vec::new(),
        }
    }

    /// Makes room for about this many entries and bytes, unless there are some already.
    pub(crate) fn reserve(&mut self, entries: usize, bytes: usize) {
        if self.events.is_empty() {
            let entries = entries.min(self.limit.events_max);
            self.events = Batch::with_capacity(entries, bytes.min(self.limit.bytes_max));
            self.offsets.reserve(entries);
        }
    }

    /// How many entries it covers.
    pub(crate) fn entries(&self) -> usize {
        self.offsets.len() + self.undecodable.len() + self.expired.len()
    }

    /// How many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.events.bytes().len() + self.kept_bytes
    }

    /// Whether it takes no more entries.
    pub(crate) fn is_full(&self) -> bool {
        self.entries() > 0 && self.entries() >= self.limit.events_max
    }

    /// Decodes one entry; tells whether it fitted. `frame_bytes`, what it took on the wire, bounds what it takes here
    /// unless its text grows by being written as JSON. `raw` gives its bytes should it be no event.
    pub(crate) fn append(
        &mut self,
        offset: Offset,
        frame_bytes: usize,
        decode: impl FnOnce(&Origin<'_>, &mut Batch) -> Result<Decoded, DecodeError>,
        raw: impl FnOnce() -> Vec<u8>,
    ) -> bool {
        let origin = Origin { topic: self.topic, partition: self.partition, offset };
        let near = self.entries() > 0 && self.bytes() + 2 * frame_bytes > self.limit.bytes_max;
        let into = if near { &mut self.tried } else { &mut self.events };
        match decode(&origin, into) {
            Ok(Decoded::Event) if near => {
                let fits = self.bytes() + self.tried.bytes().len() <= self.limit.bytes_max
                    && self.events.extend_from(&self.tried, 0..self.tried.len()).is_ok();
                self.tried = Batch::default();
                if fits {
                    self.offsets.push(offset);
                }
                fits
            }
            Ok(Decoded::Event) => {
                self.offsets.push(offset);
                true
            }
            Ok(Decoded::Expired) => {
                self.expired.push(offset);
                true
            }
            Err(error) => {
                let bytes = raw();
                if near && self.bytes() + bytes.len() > self.limit.bytes_max {
                    return false;
                }
                self.kept_bytes += bytes.len();
                self.undecodable.push(Undecodable { offset, reason: error.to_string(), bytes });
                true
            }
        }
    }

    /// The answer; `lost` entries before it were trimmed.
    pub(crate) fn finish(self, lost: u64) -> SourceBatch {
        SourceBatch {
            events: Arc::new(self.events),
            offsets: self.offsets,
            undecodable: self.undecodable,
            expired: self.expired,
            lost_to_trim: lost,
        }
    }
}
