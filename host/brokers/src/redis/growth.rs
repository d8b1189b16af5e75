//! A topic of one partition gets more: its stream takes another name, and the keys of its lanes move along.
//!
//! That is one step on one node. It takes the leases along, too, so that whoever works on a lane is fenced off and
//! opens it again under the new name; nobody else gets it meanwhile. Hosts that did not know yet go on adding under the old
//! name for as long as they remember it; what they added goes after the rest. In a cluster the two names lie in different
//! slots, so there only a stream to which nothing was ever added is left behind.

use synapse_core::{BrokerError, TopicName};

use super::command::command;
use super::control::Control;
use super::resp::Reply;
use super::topics::StreamInfo;
use super::wire::Wire;

/// How many entries are moved at once.
const SWEEP_EVENTS_MAX: usize = 500;
/// How often, before whoever adds them is taken for another tool.
const SWEEPS_MAX: usize = 200;

/// Renames a stream, if it is there, and the keys of the lanes of its groups, as `LaneKeys` names them. A script, since a
/// transaction that watches a stream fails as long as events come.
pub(super) const RENAME: &[u8] = b"
local old, new = KEYS[1], KEYS[2]
if redis.call('EXISTS', old) == 0 then
    return 0
end
local function move(kind, name)
    local key = 'synapse:' .. kind .. ':{' .. old .. '}:' .. name
    if redis.call('EXISTS', key) == 1 then
        redis.call('RENAMENX', key, 'synapse:' .. kind .. ':{0}:' .. name)
    end
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', old)) do
    local lane = group[2] .. '/' .. old .. '/0'
    move('lane', lane)
    move('boundaries', lane)
    move('lease', lane)
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', old, group[2])) do
        if consumer[2]:sub(-#lane - 1) == ':' .. lane then
            move('lease', lane .. ':' .. consumer[2]:sub(1, -#lane - 2))
        end
    end
end
return redis.call('RENAMENX', old, new)
";

/// Moves what was added under the old name since to the first partition, until nothing is.
pub(super) async fn sweep(wire: &mut Wire, topic: &TopicName, first: &str, doing: &str) -> Result<(), BrokerError> {
    let (old, count) = (topic.as_str().as_bytes(), SWEEP_EVENTS_MAX.to_string());
    for _ in 0..SWEEPS_MAX {
        wire.ask(doing, &[b"WATCH", old]).await?;
        let found = wire.ask(doing, &[b"XRANGE", old, b"-", b"+", b"COUNT", count.as_bytes()]).await?;
        let entries = found.elements();
        command(&mut wire.outbox, &[b"MULTI"]);
        for entry in entries {
            let [id, fields] = entry.elements() else {
                return Err(wire.node.garbled(doing, "an entry of another shape"));
            };
            let mut add: Vec<&[u8]> = vec![b"XADD", first.as_bytes(), b"*"];
            add.extend(fields.elements().iter().filter_map(Reply::bytes));
            command(&mut wire.outbox, &add);
            command(&mut wire.outbox, &[b"XDEL", old, id.bytes().unwrap_or_default()]);
        }
        if entries.is_empty() {
            command(&mut wire.outbox, &[b"DEL", old]);
        }
        command(&mut wire.outbox, &[b"EXEC"]);
        let commands = if entries.is_empty() { 1 } else { 2 * entries.len() };
        let replies = wire.exchange(doing, commands + 2).await?;
        let done = wire.node.checked(doing, replies.into_iter().last().unwrap_or(Reply::Null))?;
        if entries.is_empty() && done != Reply::Null {
            return Ok(());
        }
    }
    tracing::warn!(%topic, "someone goes on adding to the stream `{topic}`, which is not read since the topic has partitions");
    Ok(())
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
