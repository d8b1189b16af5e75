//! Where a pipeline's lanes are, whichever hosts work on them.
//!
//! Only asks: nothing here takes a lease or makes a group.

use std::collections::BTreeSet;

use synapse_core::broker::LaneKey;
use synapse_core::share::{LanePlace, Share};
use synapse_core::spec::ReadMode;
use synapse_core::{BrokerError, TopicName, TopicPath};

use super::Shared;
use super::group::host_of;
use super::lane::LaneKeys;
use super::resp::{EntryId, Reply};
use super::topics::offset;

/// The place of each lane of a pipeline, in order.
pub(super) async fn places(shared: &Shared, share: &Share) -> Result<Vec<LanePlace>, BrokerError> {
    let topics: BTreeSet<&TopicName> = share.topics.iter().collect();
    let mut places = Vec::new();
    for topic in topics {
        let layout = shared.topics.layout(topic).await?;
        if !layout.exists {
            continue;
        }
        let path = TopicPath { broker: shared.node.broker.clone(), topic: topic.clone() };
        let lanes = path
            .partitions(layout.partitions())
            .zip(&layout.keys)
            .map(|(partition, stream)| Lane::new(LaneKey { pipeline: share.pipeline.clone(), partition }, stream));
        places.extend(ask(shared, share, lanes.collect()).await?);
    }
    Ok(places)
}

/// A lane to ask for.
struct Lane<'l> {
    key: LaneKey,
    keys: LaneKeys,
    lease: String,
    stream: &'l str,
}

impl<'l> Lane<'l> {
    fn new(key: LaneKey, stream: &'l str) -> Self {
        let keys = LaneKeys::of(&key, stream);
        Self { lease: keys.lease(ReadMode::Cursor, ""), keys, key, stream }
    }
}

/// The places of the lanes on one topic.
async fn ask(shared: &Shared, share: &Share, lanes: Vec<Lane<'_>>) -> Result<Vec<LanePlace>, BrokerError> {
    let doing = format!("look up where pipeline `{}` is", share.pipeline);
    let group = share.pipeline.as_str().as_bytes();
    let mut commands: Vec<Vec<&[u8]>> = Vec::with_capacity(3 * lanes.len());
    for lane in &lanes {
        let stream = lane.stream.as_bytes();
        commands.push(vec![b"XINFO", b"GROUPS", stream]);
        commands.push(vec![b"HGET", lane.keys.state.as_bytes(), b"cursor"]);
        commands.push(match share.read {
            ReadMode::Cursor => vec![b"GET", lane.lease.as_bytes()],
            ReadMode::Group => vec![b"XINFO", b"CONSUMERS", stream, group],
        });
    }
    let replies = shared.control.ask_all(&doing, &commands).await?;
    let mut places = Vec::with_capacity(lanes.len());
    for (lane, replies) in lanes.into_iter().zip(replies.chunks_exact(3)) {
        let owner = match share.read {
            ReadMode::Cursor => replies[2].text().map(|token| owner_of(&token).to_owned()),
            ReadMode::Group => readers(shared, &doing, &lane, &replies[2]).await?,
        };
        places.push(place(lane.key, owner, group, replies));
    }
    Ok(places)
}

/// From the groups of a stream and what is written down of a lane. A stream or a group that is not there is a lane that
/// did nothing yet.
fn place(lane: LaneKey, owner: Option<String>, group: &[u8], replies: &[Reply]) -> LanePlace {
    let mut groups = replies[0].elements().iter();
    let group = groups.find(|found| found.field("name").and_then(Reply::bytes) == Some(group));
    let delivered = group.and_then(|group| group.field("last-delivered-id")?.id());
    let behind = group.and_then(|group| group.field("lag")?.count());
    // Entries that were handed out and not acknowledged lie before the group's place and are not done with.
    let pending = group.and_then(|group| group.field("pending")?.count()).unwrap_or_default();
    let committed = delivered.or_else(|| replies[1].id()).filter(|id| *id != EntryId::ZERO);
    LanePlace {
        partition: lane.partition,
        owner,
        committed: committed.map(offset),
        lag: behind.map(|behind| behind + pending),
    }
}

/// The host that a lease's token names.
pub(super) fn owner_of(token: &str) -> &str {
    token.split(' ').next().unwrap_or_default()
}

/// The hosts that hold a lease to read as consumers, and other tools' consumers by their names.
async fn readers(
    shared: &Shared,
    doing: &str,
    lane: &Lane<'_>,
    consumers: &Reply,
) -> Result<Option<String>, BrokerError> {
    let names = consumers.elements().iter().filter_map(|consumer| consumer.field("name")?.text());
    let (ours, mut readers): (Vec<String>, Vec<String>) = names.partition(|name| host_of(name, &lane.keys).is_some());
    let hosts: Vec<&str> = ours.iter().filter_map(|name| host_of(name, &lane.keys)).collect();
    let leases: Vec<String> = hosts.iter().map(|host| lane.keys.lease(ReadMode::Group, host)).collect();
    let commands: Vec<Vec<&[u8]>> = leases.iter().map(|lease| vec![&b"EXISTS"[..], lease.as_bytes()]).collect();
    let held = shared.control.ask_all(doing, &commands).await?;
    readers
        .extend(hosts.iter().zip(held).filter(|(_, held)| held.count() == Some(1)).map(|(host, _)| (*host).to_owned()));
    readers.sort();
    Ok((!readers.is_empty()).then(|| readers.join(", ")))
}
