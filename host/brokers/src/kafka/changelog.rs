//! What lanes keep besides their offsets: which plugins handled what, in a compacted topic of ours.
//!
//! A boundary is written in the transaction of the first batch that it speaks of, so it is there exactly if that is. The
//! topic is read to its end when someone asks, and what was read is kept: it is small, and every host folds the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use synapse_core::broker::{Boundary, LaneKey};
use synapse_core::spec::ReadFrom;
use synapse_core::{BrokerError, Offset, TopicName};
use tokio::sync::{Mutex, OnceCell};

use super::reader::{PartitionSource, Readers};
use super::topics::{PREFIX, Topics};

/// The boundaries of all lanes on a cluster.
pub(super) struct Changelog {
    topics: Arc<Topics>,
    readers: Arc<Readers>,
    topic: TopicName,
    made: OnceCell<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    source: Option<PartitionSource>,
    /// By lane, then by the first entry.
    boundaries: HashMap<String, BTreeMap<Offset, Boundary>>,
}

impl Changelog {
    pub(super) fn new(topics: &Arc<Topics>, readers: &Arc<Readers>) -> Self {
        let topic = format!("{PREFIX}boundaries").parse().expect("it is a topic's name");
        let (topics, readers) = (Arc::clone(topics), Arc::clone(readers));
        Self { topics, readers, topic, made: OnceCell::new(), state: Mutex::default() }
    }

    /// Makes sure that the topic is there.
    pub(super) async fn make(&self) -> Result<(), BrokerError> {
        self.made.get_or_try_init(|| self.topics.make_compacted(&self.topic)).await.copied()
    }

    /// Where a lane's boundary is written: topic, key and value of the record. Its partition is the first.
    pub(super) fn record(&self, lane: &LaneKey, boundary: &Boundary) -> (TopicName, Vec<u8>, Vec<u8>) {
        let key = format!("{}/{}", name(lane), boundary.from).into_bytes();
        (self.topic.clone(), key, serde_json::to_vec(boundary).expect("texts are JSON"))
    }

    /// Notes a boundary that this host has committed: readers see it a moment later, once the transaction's marks are
    /// written everywhere.
    pub(super) async fn committed(&self, lane: &LaneKey, boundary: &Boundary) {
        let mut state = self.state.lock().await;
        state.boundaries.entry(name(lane)).or_default().insert(boundary.from, boundary.clone());
    }

    /// Every boundary of a lane that is known to be committed, oldest first. One that another host has just committed is
    /// there once the marks of its transaction are, and those of transactions that began before.
    pub(super) async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        self.make().await?;
        let mut state = self.state.lock().await;
        let State { source, boundaries } = &mut *state;
        let mut reading = match source.take() {
            Some(source) => source,
            // What is known already comes again, which changes nothing.
            None => self.readers.open_unchecked(&self.topic, 0, ReadFrom::Earliest).await?,
        };
        let keep = |key: &[u8], value: &[u8]| match read(key, value) {
            Ok((lane, boundary)) => drop(boundaries.entry(lane).or_default().insert(boundary.from, boundary)),
            Err(what) => {
                tracing::warn!(topic = %self.topic, "passing over a record that Synapse does not write: {what}");
            }
        };
        reading.catch_up(3 * self.topics.cluster.timeout, keep).await?;
        *source = Some(reading);
        Ok(boundaries.get(&name(lane)).map(|found| found.values().cloned().collect()).unwrap_or_default())
    }
}

fn name(lane: &LaneKey) -> String {
    format!("{}/{}/{}", lane.pipeline, lane.partition.topic.topic, lane.partition.partition)
}

fn read(key: &[u8], value: &[u8]) -> Result<(String, Boundary), String> {
    let key = std::str::from_utf8(key).map_err(|_| "a key that is no text".to_owned())?;
    let (lane, _) = key.rsplit_once('/').ok_or_else(|| format!("the key `{key}`"))?;
    let boundary = serde_json::from_slice(value).map_err(|error| format!("no boundary at `{key}` ({error})"))?;
    Ok((lane.to_owned(), boundary))
}
