//! A poll's answer while it fills: entries go from the read buffer into the columns.

use std::sync::Arc;

use synapse_core::broker::{BatchLimit, Undecodable};
use synapse_core::codec::Origin;
use synapse_core::codec::redis::{Decoded, decode, raw_entry};
use synapse_core::{Batch, Offset, SourceBatch, Timestamp, TopicName};

use super::resp::{EntryBody, EntryId, Fields, Scanner, Stop};
use super::topics::offset;

/// Where in a reply a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    /// How many entries of the reply were not taken yet.
    pub(super) left: usize,
    /// The entry that was taken last, or the place that the request named.
    pub(super) place: EntryId,
}

/// Why a page took no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// All entries of the reply.
    All,
    /// As many as fit; the rest stays in the read buffer.
    Full,
    /// All that came; the rest of the reply is on its way.
    More,
}

/// The answer, and what was seen while it filled.
pub(super) struct Page<'t> {
    topic: &'t TopicName,
    partition: u32,
    limit: BatchLimit,
    now: Timestamp,
    events: Batch,
    /// Near the limit an event is tried here first.
    tried: Batch,
    offsets: Vec<Offset>,
    undecodable: Vec<Undecodable>,
    kept_bytes: usize,
    expired: Vec<Offset>,
    /// Entries that a group handed out and that are gone.
    pub(super) removed: Vec<EntryId>,
    pub(super) lost: u64,
}

impl<'t> Page<'t> {
    pub(super) fn new(topic: &'t TopicName, partition: u32, limit: BatchLimit, now: Timestamp) -> Self {
        Self {
            topic,
            partition,
            limit,
            now,
            events: Batch::default(),
            tried: Batch::default(),
            offsets: Vec::new(),
            undecodable: Vec::new(),
            kept_bytes: 0,
            expired: Vec::new(),
            removed: Vec::new(),
            lost: 0,
        }
    }

    /// How many entries it covers.
    pub(super) fn entries(&self) -> usize {
        self.offsets.len() + self.undecodable.len() + self.expired.len()
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.events.bytes().len() + self.kept_bytes
    }

    /// Takes entries from unread bytes; tells why it stopped and how many bytes were read.
    ///
    /// # Errors
    /// Bytes that are no entries.
    pub(super) fn take(&mut self, bytes: &[u8], entries: &mut Entries) -> Result<(Took, usize), &'static str> {
        let mut scanner = Scanner::new(bytes);
        let mut fields = Vec::with_capacity(16);
        if self.events.is_empty() {
            // Columns take less than the frames they come in.
            let bytes = bytes.len().min(self.limit.bytes_max);
            self.events = Batch::with_capacity(entries.left.min(self.limit.events_max), bytes);
            self.offsets.reserve(entries.left.min(self.limit.events_max));
        }
        while entries.left > 0 {
            if self.entries() > 0 && self.entries() >= self.limit.events_max {
                return Ok((Took::Full, scanner.at()));
            }
            let before = scanner.at();
            let (id, body) = match scanner.entry(&mut fields) {
                Ok(entry) => entry,
                Err(Stop::More) => return Ok((Took::More, before)),
                Err(Stop::Malformed(what)) => return Err(what),
            };
            match body {
                EntryBody::Removed => self.removed.push(id),
                EntryBody::Kept => {
                    if !self.append(id, &fields, scanner.at() - before) {
                        return Ok((Took::Full, before));
                    }
                }
            }
            entries.left -= 1;
            entries.place = id;
        }
        Ok((Took::All, scanner.at()))
    }

    /// Decodes one entry; tells whether it fitted. `frame_bytes` bounds what it takes unless its text grows by being
    /// written as JSON.
    fn append(&mut self, id: EntryId, fields: &Fields<'_>, frame_bytes: usize) -> bool {
        let offset = offset(id);
        let origin = Origin { topic: self.topic, partition: self.partition, offset };
        let near = self.entries() > 0 && self.bytes() + 2 * frame_bytes > self.limit.bytes_max;
        let into = if near { &mut self.tried } else { &mut self.events };
        let decoded = decode(fields, &origin, self.now, into);
        match decoded {
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
                let bytes = raw_entry(fields);
                if near && self.bytes() + bytes.len() > self.limit.bytes_max {
                    return false;
                }
                self.kept_bytes += bytes.len();
                self.undecodable.push(Undecodable { offset, reason: error.to_string(), bytes });
                true
            }
        }
    }

    pub(super) fn finish(self) -> SourceBatch {
        SourceBatch {
            events: Arc::new(self.events),
            offsets: self.offsets,
            undecodable: self.undecodable,
            expired: self.expired,
            lost_to_trim: self.lost,
        }
    }
}

/// How many entries to ask for so that a page fills, from what entries took lately.
pub(super) struct Pace {
    entry_bytes: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { entry_bytes: 128 }
    }

    /// Learns from a page.
    pub(super) fn saw(&mut self, page: &Page<'_>) {
        if let Some(mean) = page.bytes().checked_div(page.entries()) {
            self.entry_bytes = (3 * self.entry_bytes + mean).div_ceil(4);
        }
    }

    /// Somewhat fewer than should fit: what does not fit would be a small page of its own.
    pub(super) fn count(&self, limit: BatchLimit) -> usize {
        (limit.bytes_max / 8 * 7 / self.entry_bytes.max(1)).clamp(1, limit.events_max.max(1))
    }
}
