//! A host that shares its work with nobody: every partition is its own. And what others have in common with it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{Ending, LaneKey};
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::{Broker, BrokerError, Offset, TopicPartition, TopicPath};
use tokio::time::Instant;

/// How often topics are asked for new partitions.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Tells every partition of the topics, and new ones as they come.
pub(crate) struct Alone<B> {
    broker: B,
    share: Share,
    told: Option<BTreeSet<TopicPartition>>,
    look_at: Instant,
}

impl<B: Broker> Alone<B> {
    pub(crate) fn new(broker: B, share: &Share) -> Self {
        Self { broker, share: share.clone(), told: None, look_at: Instant::now() }
    }
}

#[async_trait]
impl<B: Broker> Membership for Alone<B> {
    async fn changed(&mut self) -> Result<BTreeSet<TopicPartition>, BrokerError> {
        loop {
            tokio::time::sleep_until(self.look_at).await;
            let found = partitions(&self.broker, &self.share).await;
            self.look_at = Instant::now() + LOOK_EVERY;
            match found {
                Ok(found) if self.told.as_ref() != Some(&found) => {
                    self.told = Some(found.clone());
                    return Ok(found);
                }
                Err(error) if error.kind.ending() == Ending::Stop => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// Every partition of the topics that a share names.
pub(crate) async fn partitions(broker: &dyn Broker, share: &Share) -> Result<BTreeSet<TopicPartition>, BrokerError> {
    let mut all = BTreeSet::new();
    for topic in &share.topics {
        let count = broker.topic(topic).await?.map_or(0, |info| info.partitions.len() as u32);
        all.extend(TopicPath { broker: broker.name().clone(), topic: topic.clone() }.partitions(count));
    }
    Ok(all)
}

/// The lanes of a share, in order.
pub(crate) async fn lanes(broker: &dyn Broker, share: &Share) -> Result<Vec<LaneKey>, BrokerError> {
    let all = partitions(broker, share).await?;
    Ok(all.into_iter().map(|partition| LaneKey { pipeline: share.pipeline.clone(), partition }).collect())
}

/// The place of a lane where offsets are counts: `next` is the next to read, `None` if it has none yet; what is kept
/// lies from `earliest` on, before `end`.
pub(crate) fn place(partition: TopicPartition, next: Option<u64>, earliest: u64, end: u64) -> LanePlace {
    LanePlace {
        partition,
        owner: None,
        committed: next.and_then(|next| next.checked_sub(1)).map(Offset::Number),
        lag: next.map(|next| end.saturating_sub(next.max(earliest))),
    }
}
