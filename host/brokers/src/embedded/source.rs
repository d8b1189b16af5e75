//! Reading a partition: from the newest batches in memory if they reach back far enough, else from the store.
//!
//! The store is read off the async threads, several values at a time, since a cold page may take milliseconds. What
//! was trimmed before it was read is skipped and counted. Damage ends the reading with its place. Nothing here writes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{BatchLimit, BrokerErrorKind};
use synapse_core::{BrokerError, Source, SourceBatch, Timestamp, TopicName};
use tokio::sync::watch;
use tokio::time::Instant;

use super::EmbeddedLog;
use super::format::Place;
use super::store::ReadError;
use super::tail::{Partition, Value, fill};

pub(super) struct LogSource {
    log: EmbeddedLog,
    topic: TopicName,
    partition: Arc<Partition>,
    place: Place,
    end: watch::Receiver<u64>,
    /// Read from the store and not yet handed out.
    ahead: VecDeque<Value>,
}

impl LogSource {
    pub(super) fn new(log: EmbeddedLog, topic: TopicName, partition: Arc<Partition>, place: Place) -> Self {
        let end = partition.watch();
        Self { log, topic, partition, place, end, ahead: VecDeque::new() }
    }

    /// What is there, if anything.
    async fn take(&mut self, limit: BatchLimit) -> Result<Option<SourceBatch>, BrokerError> {
        let wanted = match self.place {
            Place::Next(next) => next,
            Place::Time(time) => match self.offset_at(time).await? {
                Some(offset) => offset,
                None => return Ok(None),
            },
        };
        loop {
            let span = self.partition.span();
            let from = wanted.max(span.earliest);
            while self.ahead.front().is_some_and(|value| value.next() <= from) {
                self.ahead.pop_front();
            }
            if from >= span.end {
                return Ok(None);
            }
            let lost = from - wanted;
            let page = fill(self.ahead.iter(), from, limit, lost).or_else(|| self.partition.page(from, limit, lost));
            if let Some(page) = page {
                self.place = Place::Next(from + page.offsets.len() as u64);
                return Ok(Some(page));
            }
            self.ahead = self.fetch(from).await?.into();
            let found = self.ahead.front().is_some_and(|first| first.base <= from);
            if !found && self.partition.span().earliest <= from {
                return Err(self.damage(from, "nothing is stored there"));
            }
        }
    }

    /// Values from the one that holds `from` on.
    async fn fetch(&self, from: u64) -> Result<Vec<Value>, BrokerError> {
        let (shared, shard) = (Arc::clone(self.log.shared()), self.partition.shard);
        let read = tokio::task::spawn_blocking(move || shared.store.values(shard, from)).await;
        match read {
            Ok(Ok(values)) => Ok(values),
            // What the store answers while a value is being trimmed is no damage.
            Ok(Err(_)) if self.partition.span().earliest > from => Ok(Vec::new()),
            Ok(Err(ReadError::Damaged { base, problem })) => Err(self.damage(base, &problem)),
            Ok(Err(ReadError::Store(error))) => Err(self.damage(from, &error.to_string())),
            Err(panic) => Err(self.damage(from, &format!("reading it ended the reader: {panic}"))),
        }
    }

    /// The first offset that was appended at or after `time`.
    async fn offset_at(&self, time: Timestamp) -> Result<Option<u64>, BrokerError> {
        let span = self.partition.span();
        if span.appended.is_none_or(|last| last < time) {
            return Ok(None);
        }
        let (shared, shard) = (Arc::clone(self.log.shared()), self.partition.shard);
        let earliest = span.earliest;
        let read = tokio::task::spawn_blocking(move || shared.store.entries(shard, time, 0).next().transpose()).await;
        match read {
            Ok(Ok(entry)) => Ok(entry.map(|entry| entry.base.max(earliest))),
            Ok(Err(error)) => Err(self.log.shared().unreadable("the time index", error)),
            Err(panic) => Err(self.damage(earliest, &format!("searching the time index ended the reader: {panic}"))),
        }
    }

    /// Says where reading can go on.
    fn damage(&self, offset: u64, problem: &str) -> BrokerError {
        let shared = self.log.shared();
        let behind = shared.store.base_behind(self.partition.shard, offset).ok().flatten();
        let remedy = match behind {
            Some(next) => format!("reading can go on at offset {next}"),
            None => "nothing is stored behind it".to_owned(),
        };
        let (name, topic, partition) = (&shared.options.name, &self.topic, self.partition.shard.partition);
        let message = format!("the events at {name}/{topic}/{partition}/{offset} cannot be read: {problem}; {remedy}");
        shared.error(BrokerErrorKind::Corrupt, message)
    }
}

#[async_trait]
impl Source for LogSource {
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        let deadline = Instant::now() + wait;
        loop {
            // Marked as seen before looking, so that what comes after the look wakes.
            self.end.mark_unchanged();
            if let Some(batch) = self.take(limit).await? {
                return Ok(batch);
            }
            match tokio::time::timeout_at(deadline, self.end.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(SourceBatch::default()),
            }
        }
    }
}
