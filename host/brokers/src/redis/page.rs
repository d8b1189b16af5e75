//! A poll's answer while it fills: entries go from the read buffer into the columns.

use synapse_core::broker::BatchLimit;
use synapse_core::codec::Origin;
use synapse_core::codec::redis::{decode, raw_entry};
use synapse_core::{Batch, SourceBatch, Timestamp, TopicName};

use super::resp::{EntryBody, EntryId, Fields, Scanner, Stop};
use super::topics::offset;
use crate::fill::Fill;

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
    fill: Fill<'t>,
    now: Timestamp,
    /// Entries that a group handed out and that are gone.
    pub(super) removed: Vec<EntryId>,
    pub(super) lost: u64,
}

impl<'t> Page<'t> {
    pub(super) fn new(topic: &'t TopicName, partition: u32, limit: BatchLimit, now: Timestamp) -> Self {
        Self { fill: Fill::new(topic, partition, limit), now, removed: Vec::new(), lost: 0 }
    }

    /// How many entries it covers.
    pub(super) fn entries(&self) -> usize {
        self.fill.entries()
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.fill.bytes()
    }

    /// Takes entries from unread bytes; tells why it stopped and how many bytes were read.
    ///
    /// # Errors
    /// Bytes that are no entries.
    pub(super) fn take(&mut self, bytes: &[u8], entries: &mut Entries) -> Result<(Took, usize), &'static str> {
        let mut scanner = Scanner::new(bytes);
        let mut fields = Vec::with_capacity(16);
        // Columns take less than the frames they come in.
        self.fill.reserve(entries.left, bytes.len());
        while entries.left > 0 {
            if self.fill.is_full() {
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

    fn append(&mut self, id: EntryId, fields: &Fields<'_>, frame_bytes: usize) -> bool {
        let decode = |origin: &Origin<'_>, into: &mut Batch| decode(fields, origin, self.now, into);
        self.fill.append(offset(id), frame_bytes, decode, || raw_entry(fields))
    }

    pub(super) fn finish(self) -> SourceBatch {
        self.fill.finish(self.lost)
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
