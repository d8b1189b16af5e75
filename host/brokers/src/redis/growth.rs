//! A topic of one partition gets more: its stream takes another name, and the keys of its lanes move along.
//!
//! That is one transaction on one node. It takes the leases along, too, so that whoever works on a lane is fenced off and
//! opens it again under the new name; nobody else gets it meanwhile. In a cluster the two names lie in different slots,
//! so there only a stream to which nothing was ever added is left behind.

use synapse_core::spec::ReadMode;
use synapse_core::{BrokerError, TopicName};

use super::command::command;
use super::control::Control;
use super::group::host_of;
use super::lane::LaneKeys;
use super::resp::Reply;
use super::topics::StreamInfo;
use super::wire::Wire;

/// What is renamed with the stream of a topic: old and new names of keys that exist. The stream is watched, so lanes that
/// are opened meanwhile make the transaction fail.
pub(super) async fn renames(
    wire: &mut Wire,
    topic: &TopicName,
    first: &str,
    doing: &str,
) -> Result<Vec<(String, String)>, BrokerError> {
    let stream = topic.as_str();
    let mut renames = Vec::new();
    let groups = wire.ask(doing, &[b"XINFO", b"GROUPS", stream.as_bytes()]).await?;
    for group in groups.elements().iter().filter_map(|group| group.field("name")?.text()) {
        let (old, new) = (LaneKeys::new(&group, topic, 0, stream), LaneKeys::new(&group, topic, 0, first));
        let lease = |read, host: &str| (old.lease(read, host), new.lease(read, host));
        let mut keys = vec![
            (old.state.clone(), new.state.clone()),
            (old.boundaries.clone(), new.boundaries.clone()),
            lease(ReadMode::Cursor, ""),
        ];
        let consumers = wire.ask(doing, &[b"XINFO", b"CONSUMERS", stream.as_bytes(), group.as_bytes()]).await?;
        let names = consumers.elements().iter().filter_map(|consumer| consumer.field("name")?.text());
        keys.extend(names.filter_map(|name| Some(lease(ReadMode::Group, host_of(&name, &old)?))));
        for (old, new) in keys {
            command(&mut wire.outbox, &[b"WATCH", old.as_bytes()]);
            command(&mut wire.outbox, &[b"EXISTS", old.as_bytes()]);
            if wire.exchange(doing, 2).await?[1].count() == Some(1) {
                renames.push((old, new));
            }
        }
    }
    renames.push((stream.to_owned(), first.to_owned()));
    Ok(renames)
}

/// Refuses to leave events behind.
pub(super) async fn check_empty(control: &Control, topic: &TopicName, doing: &str) -> Result<(), BrokerError> {
    let info = control.ask_all(doing, &[vec![b"XINFO", b"STREAM", topic.as_str().as_bytes()]]).await?;
    let info =
        StreamInfo::read(info.first().unwrap_or(&Reply::Null)).map_err(|line| control.node.refused(doing, line))?;
    if info.is_none_or(|info| info.length == 0 && info.added.unwrap_or_default() == 0) {
        return Ok(());
    }
    Err(control.node.invalid(format_args!(
        "could not {doing}: the stream `{topic}` has events, and in a cluster it cannot be renamed to `{topic}:{{0}}`, \
         which lies in another slot; keep one partition, or send the events to a new topic with more"
    )))
}
