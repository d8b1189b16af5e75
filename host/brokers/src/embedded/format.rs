//! How the log lies in the store: keys, values and records, all versioned.
//!
//! Three keyspaces:
//!
//! ```text
//! log    topic u32 · partition u32 · base offset u64   (big-endian) → one value: a batch, see below
//! index  topic u32 · partition u32 · append time · base offset      → count u32 · size u32 · bytes before u64 (LE)
//! meta   "format" | "group" | "topic/…" | "earliest/…" | "lane/…" | "boundary/…" → a number (LE) or a JSON record
//! ```
//!
//! A value of the log, little-endian:
//!
//! ```text
//!  0  magic "SYNB"      4  version u8, stride u8, 2 bytes zero
//!  8  crc32 of the key and of everything from byte 12 on
//! 12  events u32       16  append time i64, µs since the Unix epoch       24  bytes of the arena u32
//! 28  ends: stride × events u32, then the arena
//! ```
//!
//! Invariant: what decodes is what was encoded under that key; anything else is reported as damage. Later versions of
//! Synapse read version 1; a version that is not known is refused by name. Nothing here does I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use synapse_core::batch::STRIDE;
use synapse_core::broker::LaneKey;
use synapse_core::spec::Retention;
use synapse_core::{Batch, Timestamp};

/// Version of the whole directory, kept under `meta/format`.
pub(super) const FORMAT: u64 = 1;

const MAGIC: [u8; 4] = *b"SYNB";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 28;

/// A shard as it is named in keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Shard {
    pub(super) topic: u32,
    pub(super) partition: u32,
}

impl Shard {
    pub(super) fn prefix(self) -> [u8; 8] {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&self.topic.to_be_bytes());
        key[4..].copy_from_slice(&self.partition.to_be_bytes());
        key
    }

    pub(super) fn log_key(self, base: u64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.prefix());
        key[8..].copy_from_slice(&base.to_be_bytes());
        key
    }

    pub(super) fn index_key(self, appended: Timestamp, base: u64) -> [u8; 24] {
        let mut key = [0; 24];
        key[..8].copy_from_slice(&self.prefix());
        key[8..16].copy_from_slice(&sortable(appended).to_be_bytes());
        key[16..].copy_from_slice(&base.to_be_bytes());
        key
    }

    pub(super) fn earliest_key(self) -> Vec<u8> {
        [b"earliest/".as_slice(), &self.prefix()].concat()
    }
}

/// Negative times sort before positive ones.
fn sortable(time: Timestamp) -> u64 {
    (time.as_micros() as u64) ^ (1 << 63)
}

/// The base offset at the end of a key of `log`.
pub(super) fn base_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(8..16)?.try_into().ok()?))
}

/// What the index knows of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The offset of its first event.
    pub(super) base: u64,
    /// How many events.
    pub(super) count: u32,
    /// How many bytes the value takes.
    pub(super) size: u32,
    /// How many bytes the values before it took, also those that are gone.
    pub(super) before: u64,
    /// When it was appended; ascends with `base`.
    pub(super) appended: Timestamp,
}

impl Entry {
    /// The offset behind its last event.
    pub(super) fn next(&self) -> u64 {
        self.base + u64::from(self.count)
    }

    pub(super) fn value(&self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..4].copy_from_slice(&self.count.to_le_bytes());
        value[4..8].copy_from_slice(&self.size.to_le_bytes());
        value[8..].copy_from_slice(&self.before.to_le_bytes());
        value
    }

    pub(super) fn read(key: &[u8], value: &[u8]) -> Option<Self> {
        let time = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?) ^ (1 << 63);
        Some(Self {
            base: u64::from_be_bytes(key.get(16..24)?.try_into().ok()?),
            count: u32_at(value, 0)?,
            size: u32_at(value, 4)?,
            before: u64::from_le_bytes(value.get(8..16)?.try_into().ok()?),
            appended: Timestamp::from_micros(time as i64),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The value that holds `events`, to be stored under `key`.
pub(super) fn encode(key: &[u8; 16], appended: Timestamp, events: &Batch) -> Vec<u8> {
    let (ends, bytes) = (events.ends(), events.bytes());
    let mut value = vec![0; HEADER_BYTES + ends.len() * 4];
    value.reserve_exact(bytes.len());
    value[..4].copy_from_slice(&MAGIC);
    value[4] = VERSION;
    value[5] = u8::try_from(STRIDE).expect("an event has a handful of columns");
    let number = |number: usize| u32::try_from(number).expect("a batch holds less than 4 GiB").to_le_bytes();
    value[12..16].copy_from_slice(&number(events.len()));
    value[16..24].copy_from_slice(&appended.as_micros().to_le_bytes());
    value[24..28].copy_from_slice(&number(bytes.len()));
    for (to, end) in value[HEADER_BYTES..].chunks_exact_mut(4).zip(ends) {
        to.copy_from_slice(&end.to_le_bytes());
    }
    value.extend_from_slice(bytes);
    let crc = checksum(key, &value[12..]);
    value[8..12].copy_from_slice(&crc.to_le_bytes());
    value
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// Reads a value back.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<(Timestamp, Batch), String> {
    let header = value.get(..HEADER_BYTES).ok_or("the value is shorter than its header")?;
    if header[..4] != MAGIC {
        return Err("the value does not begin as a batch".to_owned());
    }
    if header[4] != VERSION {
        return Err(format!("the value has format version {}, but this host reads {VERSION}", header[4]));
    }
    if u32_at(value, 8) != Some(checksum(key, &value[12..])) {
        return Err("the checksum does not match".to_owned());
    }
    let stride = usize::from(header[5]);
    let field = |at| u32_at(header, at).map_or(0, |number| number as usize);
    let (count, bytes) = (field(12), field(24));
    let ends_bytes = count.checked_mul(stride * 4).ok_or("the number of events is out of bounds")?;
    let (ends, arena) = value[HEADER_BYTES..].split_at_checked(ends_bytes).ok_or("the value is cut short")?;
    if arena.len() != bytes {
        return Err(format!("the value holds {} bytes instead of {bytes}", arena.len()));
    }
    let ends = ends.chunks_exact(4).map(|end| u32::from_le_bytes([end[0], end[1], end[2], end[3]])).collect();
    let batch = Batch::from_columns(stride, ends, arena.to_vec()).map_err(|error| error.to_string())?;
    let appended = i64::from_le_bytes(header[16..24].try_into().expect("8 bytes are 8 bytes"));
    Ok((Timestamp::from_micros(appended), batch))
}

pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const GROUP_KEY: &[u8] = b"group";
pub(super) const TOPIC_PREFIX: &[u8] = b"topic/";

/// A topic, under `topic/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TopicRecord {
    pub(super) id: u32,
    pub(super) partitions: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) age_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) events: Option<u64>,
}

impl TopicRecord {
    pub(super) fn new(id: u32, partitions: u32, retention: &Retention) -> Self {
        let age_us = retention.age.map(|age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        Self { id, partitions, age_us, bytes: retention.bytes, events: retention.events }
    }

    pub(super) fn retention(&self) -> Retention {
        Retention { age: self.age_us.map(Duration::from_micros), bytes: self.bytes, events: self.events }
    }
}

pub(super) fn topic_key(name: &str) -> Vec<u8> {
    [TOPIC_PREFIX, name.as_bytes()].concat()
}

/// The oldest value of a shard once older ones have gone, under `earliest/<shard>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EarliestRecord {
    pub(super) base: u64,
    pub(super) appended: Timestamp,
}

/// Where a lane goes on. A starting time stays one until the first commit: nothing may have come after it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    /// This offset.
    Next(u64),
    /// What is appended at or after this time.
    Time(Timestamp),
}

/// A lane, under `lane/<lane>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneRecord {
    /// Goes up by one each time the lane is opened.
    pub(super) generation: u64,
    pub(super) place: Place,
    /// How many boundaries are stored.
    pub(super) boundaries: u64,
}

/// A lane as it is named in keys; pipelines and topics have no zero bytes in their names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneName(Vec<u8>);

impl LaneName {
    pub(super) fn new(lane: &LaneKey) -> Self {
        let (pipeline, at) = (lane.pipeline.as_str(), &lane.partition);
        let texts = [pipeline.as_bytes(), b"\0", at.topic.topic.as_str().as_bytes(), b"\0"].concat();
        Self([texts.as_slice(), &at.partition.to_be_bytes()].concat())
    }

    pub(super) fn key(&self) -> Vec<u8> {
        [b"lane/", self.0.as_slice()].concat()
    }

    pub(super) fn boundary_prefix(&self) -> Vec<u8> {
        [b"boundary/", self.0.as_slice()].concat()
    }

    pub(super) fn boundary_key(&self, number: u64) -> Vec<u8> {
        [self.boundary_prefix().as_slice(), &number.to_be_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use synapse_core::Event;

    const KEY: [u8; 16] = [7; 16];

    fn value() -> (Batch, Vec<u8>) {
        let events = ["one", "two"].map(|id| Event { id: id.to_owned(), data: vec![1, 2, 3], ..Event::default() });
        let batch: Batch = events.iter().collect();
        let value = encode(&KEY, Timestamp::from_micros(-5), &batch);
        (batch, value)
    }

    /// Stored data of version 1 looks like this for ever.
    #[test]
    fn version_1_is_pinned() {
        let events = [Event { id: "a".to_owned(), data: b"xyz".to_vec(), ..Event::default() }];
        let value = encode(&KEY, Timestamp::from_micros(1), &events.iter().collect());
        let mut expected = b"SYNB\x01\x09\0\0".to_vec();
        expected.extend_from_slice(&[0x26, 0xb6, 0x56, 0x6c]);
        expected.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        expected.extend_from_slice(&[1, 0, 0, 0].repeat(8));
        expected.extend_from_slice(b"\x04\0\0\0axyz");
        assert_eq!(value, expected);
    }

    #[test]
    fn values_read_back() {
        let (batch, value) = value();
        assert_eq!(decode(&KEY, &value), Ok((Timestamp::from_micros(-5), batch)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (batch, value) = value();
        for bit in 0..value.len() * 8 {
            let mut bent = value.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            match decode(&KEY, &bent) {
                Err(problem) => assert!(!problem.is_empty()),
                // Two bytes of the header mean nothing yet.
                Ok((_, read)) => assert!(matches!(bit / 8, 6 | 7) && read == batch, "bit {bit}"),
            }
        }
    }

    #[test]
    fn a_value_under_another_key_or_cut_short_is_damage() {
        let (_, value) = value();
        assert_eq!(decode(&[8; 16], &value).unwrap_err(), "the checksum does not match");
        for end in 0..value.len() {
            assert!(decode(&KEY, &value[..end]).is_err(), "cut at {end}");
        }
        let mut later = value;
        later[4] = 2;
        assert_eq!(decode(&KEY, &later).unwrap_err(), "the value has format version 2, but this host reads 1");
    }

    #[test]
    fn entries_read_back_and_sort_by_time() {
        let shard = Shard { topic: 1, partition: 2 };
        let entry =
            |micros, base| Entry { base, count: 3, size: 4, before: 5, appended: Timestamp::from_micros(micros) };
        let key = |entry: Entry| shard.index_key(entry.appended, entry.base);
        for entry in [entry(-7, 0), entry(0, 1), entry(i64::MAX, u64::MAX)] {
            assert_eq!(Entry::read(&key(entry), &entry.value()), Some(entry));
        }
        assert!(key(entry(-1, 9)) < key(entry(0, 8)));
        assert_eq!(Entry::read(b"short", &[0; 16]), None);
    }
}
