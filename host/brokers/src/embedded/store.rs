//! The store under the log: fjall's keyspaces, written in atomic batches and read by range.
//!
//! Values of `log` are kept apart from their keys (in blob files), so that compaction moves a few dozen bytes for each
//! batch and not the batch. Nothing is compressed; that is a choice for simplicity, not for measured speed: in
//! alternating runs with JSON events lz4 made no difference that stood out of the noise. A written batch becomes
//! visible once it is synced, never before. This is the only module that names fjall; it does not know lanes, requests
//! or readers.

use std::path::Path;
use std::sync::Arc;

use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{
    CompressionType, Database, Guard, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch,
    PersistMode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use synapse_core::Timestamp;

use super::format::{self, Entry, Shard};
use super::tail::Value;

/// A memtable of the log is written out at this size; with it the time that replaying the journal takes is bounded.
const LOG_MEMTABLE_BYTES: u64 = 32 << 20;

/// Small keyspaces are written out early, too, so that they do not keep journals alive.
const SMALL_MEMTABLE_BYTES: u64 = 4 << 20;

/// Journals on disk, all together.
const JOURNAL_BYTES_MAX: u64 = 192 << 20;

/// Values below this size stay with their keys.
const SEPARATION_BYTES: u32 = 1 << 10;

/// One reading from the store ends at this size.
const READ_BYTES_MAX: usize = 512 << 10;

pub(super) struct Store {
    database: Database,
    log: Keyspace,
    index: Keyspace,
    meta: Keyspace,
}

/// What cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The store itself failed or found damage.
    Store(fjall::Error),
    /// The value at `base` is not what was written.
    Damaged { base: u64, problem: String },
}

impl From<fjall::Error> for ReadError {
    fn from(error: fjall::Error) -> Self {
        Self::Store(error)
    }
}

impl Store {
    pub(super) fn open(path: &Path, cache_bytes_max: u64) -> fjall::Result<Self> {
        let database = Database::builder(path)
            .cache_size(cache_bytes_max)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .journal_compression(CompressionType::None)
            .worker_threads(2)
            .open()?;
        let plain = || KeyspaceCreateOptions::default().data_block_compression_policy(CompressionPolicy::disabled());
        let separation = KvSeparationOptions::default()
            .compression(CompressionType::None)
            .separation_threshold(SEPARATION_BYTES)
            .file_target_size(LOG_MEMTABLE_BYTES);
        let log = database
            .keyspace("log", || plain().max_memtable_size(LOG_MEMTABLE_BYTES).with_kv_separation(Some(separation)))?;
        let small =
            || plain().max_memtable_size(SMALL_MEMTABLE_BYTES).data_block_size_policy(BlockSizePolicy::all(4 << 10));
        let index = database.keyspace("index", small)?;
        let meta = database.keyspace("meta", small)?;
        Ok(Self { database, log, index, meta })
    }

    /// A batch whose commit returns once it is on the disk.
    pub(super) fn synced(&self) -> StoreBatch<'_> {
        StoreBatch { store: self, batch: self.database.batch().durability(Some(PersistMode::SyncData)) }
    }

    /// A batch that the next synced one takes to the disk.
    pub(super) fn unsynced(&self) -> StoreBatch<'_> {
        StoreBatch { store: self, batch: self.database.batch().durability(Some(PersistMode::Buffer)) }
    }

    pub(super) fn number(&self, key: &[u8]) -> Result<Option<u64>, ReadError> {
        let Some(value) = self.meta.get(key)? else { return Ok(None) };
        let bytes = value.as_ref().try_into().map_err(|_| damaged_record(key, "is no number"))?;
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    pub(super) fn record<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, ReadError> {
        let Some(value) = self.meta.get(key)? else { return Ok(None) };
        serde_json::from_slice(&value).map(Some).map_err(|error| damaged_record(key, error))
    }

    /// Every record whose key begins with `prefix`, with the rest of its key, by key.
    pub(super) fn records<T: DeserializeOwned>(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, T)>, ReadError> {
        let mut records = Vec::new();
        for guard in self.meta.prefix(prefix) {
            let (key, value) = guard.into_inner()?;
            let record = serde_json::from_slice(&value).map_err(|error| damaged_record(&key, error))?;
            records.push((key[prefix.len()..].to_vec(), record));
        }
        Ok(records)
    }

    /// The index of a shard from a place on.
    pub(super) fn entries(
        &self,
        shard: Shard,
        from: Timestamp,
        base: u64,
    ) -> impl DoubleEndedIterator<Item = Result<Entry, ReadError>> {
        let end = shard.index_key(Timestamp::from_micros(i64::MAX), u64::MAX);
        self.index.range(shard.index_key(from, base)..=end).map(|guard| {
            let (key, value) = guard.into_inner()?;
            Entry::read(&key, &value).ok_or_else(|| damaged_record(&key, "is no entry of the index"))
        })
    }

    /// Values from the one that holds `from` on, at least one if it is there. Damage is an error only if it comes first;
    /// what lies before it is handed out.
    pub(super) fn values(&self, shard: Shard, from: u64) -> Result<Vec<Value>, ReadError> {
        let mut values: Vec<Value> = Vec::new();
        let (mut bytes, mut expected) = (0, from);
        let Some(first) = self.floor(shard, from)? else {
            return Ok(values);
        };
        for guard in self.log.range(shard.log_key(first)..=shard.log_key(u64::MAX)) {
            let value = match read_value(guard, expected) {
                Ok(value) => value,
                Err(problem) if values.is_empty() => return Err(ReadError::Damaged { base: expected, problem }),
                Err(_) => break,
            };
            expected = value.next();
            bytes += value.events.bytes().len();
            values.push(value);
            if bytes >= READ_BYTES_MAX {
                break;
            }
        }
        Ok(values)
    }

    /// The base of the last value that begins at or before `offset`.
    fn floor(&self, shard: Shard, offset: u64) -> Result<Option<u64>, ReadError> {
        // A reader in sequence asks for the beginning of a value.
        if self.log.contains_key(shard.log_key(offset))? {
            return Ok(Some(offset));
        }
        match self.log.range(shard.log_key(0)..=shard.log_key(offset)).next_back() {
            Some(guard) => Ok(format::base_of(&guard.key()?)),
            None => Ok(None),
        }
    }

    /// The base of the first value behind `offset`: where reading can go on behind a damaged one.
    pub(super) fn base_behind(&self, shard: Shard, offset: u64) -> Result<Option<u64>, ReadError> {
        let mut keys = self.log.range(shard.log_key(offset.saturating_add(1))..=shard.log_key(u64::MAX));
        keys.next().map_or(Ok(None), |guard| Ok(format::base_of(&guard.key()?)))
    }

    pub(super) fn disk_bytes(&self) -> fjall::Result<u64> {
        self.database.disk_space()
    }

    /// Writes everything out of the journal into tables and blob files.
    #[cfg(test)]
    pub(super) fn flush(&self) {
        for keyspace in [&self.log, &self.index, &self.meta] {
            keyspace.rotate_memtable_and_wait().expect("tables can be written");
        }
    }

    /// Lets space that deleted values took be found: their marks are otherwise written out only with new values.
    pub(super) fn reclaim(&self) -> fjall::Result<()> {
        self.log.rotate_memtable()?;
        Ok(())
    }
}

/// The value that holds offset `expected`, or what is wrong with it.
fn read_value(guard: Guard, expected: u64) -> Result<Value, String> {
    let (key, value) = guard.into_inner().map_err(|error| error.to_string())?;
    let base = format::base_of(&key).ok_or("its key is no key of the log")?;
    let (_, events) = format::decode(&key, &value)?;
    let value = Value { base, events: Arc::new(events) };
    if base > expected || value.next() <= expected {
        return Err(format!("the value at {base} ends at {}", value.next()));
    }
    Ok(value)
}

fn damaged_record(key: &[u8], problem: impl std::fmt::Display) -> ReadError {
    ReadError::Damaged { base: 0, problem: format!("the record `{}` {problem}", key.escape_ascii()) }
}

/// Changes that become visible all at once or not at all.
pub(super) struct StoreBatch<'s> {
    store: &'s Store,
    batch: OwnedWriteBatch,
}

impl StoreBatch<'_> {
    pub(super) fn append(&mut self, shard: Shard, entry: &Entry, key: [u8; 16], value: Vec<u8>) {
        self.batch.insert(&self.store.log, key, value);
        self.batch.insert(&self.store.index, shard.index_key(entry.appended, entry.base), entry.value());
    }

    pub(super) fn remove(&mut self, shard: Shard, entry: &Entry) {
        self.batch.remove(&self.store.log, shard.log_key(entry.base));
        self.batch.remove(&self.store.index, shard.index_key(entry.appended, entry.base));
    }

    pub(super) fn put_number(&mut self, key: &[u8], number: u64) {
        self.batch.insert(&self.store.meta, key, number.to_le_bytes());
    }

    pub(super) fn put_record(&mut self, key: Vec<u8>, record: &impl Serialize) {
        let value = serde_json::to_vec(record).expect("records are plain structs with text keys");
        self.batch.insert(&self.store.meta, key, value);
    }

    pub(super) fn commit(self) -> fjall::Result<()> {
        self.batch.commit()
    }
}
