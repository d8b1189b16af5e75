//! Retention: old entries of topics with bounds go, but never one that a pipeline of ours has still to read.
//!
//! A topic is trimmed after this host added as many entries as are kept, at most [`ADDS_MAX`]: by who published the
//! last of them, or by a task of the broker if that was a commit. The task also trims each topic that was added to, or
//! that has a bound by age, every [`EVERY`]. Before each trim our groups are asked for their places; ours are those
//! whose lane is written down. The slowest cursor, or the oldest entry that was handed out and not acknowledged, is as
//! far as it goes. Groups of other tools are not waited for.
//!
//! Trims are approximate (`~`): Redis frees whole blocks of about a hundred entries, so somewhat more is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use synapse_core::spec::Retention;
use synapse_core::{BrokerError, TopicName};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::control::Control;
use super::lane::LaneKeys;
use super::resp::{EntryId, Reply};
use super::topics::{Layout, StreamInfo};

/// How many entries may be added before a topic is trimmed.
const ADDS_MAX: u64 = 10_000;
/// Trimming after fewer entries frees no block.
const ADDS_MIN: u64 = 100;
/// How often topics are trimmed that were added to.
const EVERY: Duration = Duration::from_secs(10);

/// Which topics have something to trim.
#[derive(Default)]
pub(super) struct Retainer {
    topics: Mutex<HashMap<TopicName, Added>>,
    wake: Notify,
}

struct Added {
    layout: Arc<Layout>,
    events: u64,
}

impl Added {
    fn is_full(&self) -> bool {
        self.events >= self.layout.retention.events.unwrap_or(ADDS_MAX).clamp(ADDS_MIN, ADDS_MAX)
    }
}

impl Retainer {
    /// Notes that entries were added to a topic; tells whether it should be trimmed.
    pub(super) fn added(&self, topic: &TopicName, layout: &Arc<Layout>, events: usize) -> bool {
        if layout.retention == Retention::default() {
            return false;
        }
        let mut topics = self.topics();
        let added = topics.entry(topic.clone()).or_insert_with(|| Added { layout: Arc::clone(layout), events: 0 });
        added.layout = Arc::clone(layout);
        added.events += events as u64;
        added.is_full()
    }

    /// Has the task trim what is full.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<TopicName, Added>> {
        self.topics.lock().expect("nothing panics while it holds this lock")
    }

    /// The topics to trim now.
    fn due(&self, full: bool) -> Vec<(TopicName, Arc<Layout>)> {
        let mut topics = self.topics();
        let due = topics.iter_mut().filter(|(_, added)| match full {
            true => added.is_full(),
            false => added.events > 0 || added.layout.retention.age.is_some(),
        });
        due.map(|(topic, added)| {
            added.events = 0;
            (topic.clone(), Arc::clone(&added.layout))
        })
        .collect()
    }

    /// Trims until the broker stops.
    pub(super) async fn run(&self, control: &Control, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let full = tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => true,
                _ = ticks.tick() => false,
            };
            self.trim(control, full).await;
        }
    }

    /// Trims what should not wait for the task.
    pub(super) async fn trim_full(&self, control: &Control) {
        self.trim(control, true).await;
    }

    async fn trim(&self, control: &Control, full: bool) {
        for (topic, layout) in self.due(full) {
            for (partition, key) in (0..).zip(&layout.keys) {
                if let Err(error) = trim(control, &topic, partition, key, &layout.retention).await {
                    tracing::warn!(%topic, partition, %error, "old entries could not be trimmed");
                }
            }
        }
    }
}

/// Trims one stream as far as its retention and our groups let it.
async fn trim(
    control: &Control,
    topic: &TopicName,
    partition: u32,
    stream: &str,
    retention: &Retention,
) -> Result<(), BrokerError> {
    let doing = format!("trim the stream `{stream}`");
    let key = stream.as_bytes();
    let asked = [
        vec![&b"XINFO"[..], b"STREAM", key],
        vec![&b"XINFO"[..], b"GROUPS", key],
        vec![&b"TIME"[..]],
        vec![&b"MEMORY"[..], b"USAGE", key],
    ];
    let replies = control.ask_all(&doing, &asked).await?;
    let info = StreamInfo::read(&replies[0]).map_err(|line| control.node.refused(&doing, line))?;
    let Some(info) = info.filter(|info| info.length > 0) else { return Ok(()) };
    let floor = floor(control, &doing, topic, partition, stream, &info, replies[1].elements()).await?;
    let now_ms = replies[2].elements().first().and_then(Reply::count).unwrap_or_default().saturating_mul(1000);

    if let Some(age) = retention.age {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let oldest = EntryId { ms: now_ms.saturating_sub(age_ms), seq: 0 }.min(floor).to_string();
        control.ask(&doing, &[b"XTRIM", key, b"MINID", b"~", oldest.as_bytes()]).await?;
    }
    let excess = excess(&info, replies[3].count(), retention);
    if excess > 0 {
        let (floor, limit) = (floor.to_string(), excess.to_string());
        let arguments: &[&[u8]] = &[b"XTRIM", key, b"MINID", b"~", floor.as_bytes(), b"LIMIT", limit.as_bytes()];
        control.ask(&doing, arguments).await?;
    }
    Ok(())
}

/// How many entries are beyond the bounds by number and by size.
fn excess(info: &StreamInfo, bytes: Option<u64>, retention: &Retention) -> u64 {
    let by_events = retention.events.map_or(0, |max| info.length.saturating_sub(max));
    let by_bytes = match (retention.bytes, bytes) {
        // Entries are taken to be of one size.
        (Some(max), Some(bytes)) if bytes > max => {
            let share = u128::from(info.length) * u128::from(bytes - max) / u128::from(bytes);
            u64::try_from(share).unwrap_or(info.length)
        }
        _ => 0,
    };
    by_events.max(by_bytes)
}

/// The first entry that one of our groups still needs.
async fn floor(
    control: &Control,
    doing: &str,
    topic: &TopicName,
    partition: u32,
    key: &str,
    info: &StreamInfo,
    groups: &[Reply],
) -> Result<EntryId, BrokerError> {
    let mut floor = info.last_generated.next();
    for group in groups {
        let Some(name) = group.field("name").and_then(Reply::text) else { continue };
        let keys = LaneKeys::new(&name, topic, partition, key);
        let asked =
            [vec![&b"EXISTS"[..], keys.state.as_bytes()], vec![&b"XPENDING"[..], key.as_bytes(), name.as_bytes()]];
        let replies = control.ask_all(doing, &asked).await?;
        if replies[0].count() == Some(0) {
            continue;
        }
        let cursor = group.field("last-delivered-id").and_then(Reply::id).unwrap_or_default();
        // Of `XPENDING`: how many, the oldest, the newest, by consumer.
        let pending = replies[1].elements().get(1).and_then(Reply::id);
        floor = floor.min(cursor.next()).min(pending.unwrap_or(EntryId::MAX));
    }
    Ok(floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excess_is_what_the_tighter_bound_says() {
        let info = StreamInfo { length: 100, first: None, last: None, last_generated: EntryId::ZERO, added: None };
        let with = |events, bytes| Retention { age: None, events, bytes };
        assert_eq!(excess(&info, Some(1000), &with(None, None)), 0);
        assert_eq!(excess(&info, Some(1000), &with(Some(70), None)), 30);
        assert_eq!(excess(&info, Some(1000), &with(Some(70), Some(500))), 50);
        assert_eq!(excess(&info, Some(1000), &with(Some(200), Some(2000))), 0);
        assert_eq!(excess(&info, None, &with(None, Some(1))), 0);
    }
}
