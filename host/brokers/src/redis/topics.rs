//! Which streams make up a topic, and how it is kept.
//!
//! A topic `t` of one partition is the stream `t`, so that what other tools add is seen; of n partitions it is the
//! streams `t:{0}` to `t:{n-1}`. Partitions and retention are written in one hash, `synapse:topics`, as JSON for each
//! topic; a stream that is not written there is a topic of one partition without bounds.
//!
//! When a topic of one partition gets more, its stream is renamed to `t:{0}` with its groups. What other hosts add to `t`
//! until they know is moved; what is added to it by hand from then on is not read. In a cluster the partitions lie all over the nodes, those of one number in all
//! topics together, and a topic with events cannot be renamed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use synapse_core::broker::{BrokerErrorKind, PartitionInfo, TopicInfo};
use synapse_core::spec::{Retention, TopicSpec};
use synapse_core::{BrokerError, Offset, TopicName};
use tokio::time::{Instant, sleep};

use super::command::command;
use super::control::Control;
use super::growth;
use super::node::Node;
use super::resp::{EntryId, Reply};
use super::wire::Wire;

/// Everything of ours that is no stream of events begins with this.
pub(super) const PREFIX: &str = "synapse:";
const TOPICS_KEY: &str = "synapse:topics";
/// What is known of a topic is asked again after this.
const FRESH: Duration = Duration::from_secs(1);
/// How often a change is tried while others change topics, too.
const CHANGES_MAX: usize = 16;
/// Most topics that may have been asked for and are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// What is written of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    partitions: NonZeroU32,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
}

/// A topic's streams.
#[derive(Debug)]
pub(super) struct Layout {
    /// The stream of each partition.
    pub(super) keys: Vec<String>,
    pub(super) retention: Retention,
    /// Whether the topic is written down or its stream is there.
    pub(super) exists: bool,
    written_down: bool,
}

impl Layout {
    fn new(topic: &TopicName, written: Option<Stored>, exists: bool) -> Arc<Self> {
        let stored = written.unwrap_or(Stored::NATIVE);
        let retention =
            Retention { age: stored.age_ms.map(Duration::from_millis), bytes: stored.bytes, events: stored.events };
        Arc::new(Self { keys: keys(topic, stored.partitions), retention, exists, written_down: written.is_some() })
    }

    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.keys.len()).expect("partitions are counted by a NonZeroU32")
    }
}

/// The first partition of a topic that has several.
fn first(topic: &TopicName) -> String {
    format!("{topic}:{{0}}")
}

fn keys(topic: &TopicName, partitions: NonZeroU32) -> Vec<String> {
    match partitions.get() {
        1 => vec![topic.to_string()],
        many => (0..many).map(|index| format!("{topic}:{{{index}}}")).collect(),
    }
}

/// What writing a topic down did.
struct Written {
    /// Whether its stream has another name now.
    renamed: bool,
    /// Whether nothing belongs under its own name.
    is_apart: bool,
}

impl Stored {
    const NATIVE: Self = Self { partitions: NonZeroU32::MIN, age_ms: None, bytes: None, events: None };

    fn new(partitions: NonZeroU32, retention: &Retention) -> Self {
        let age_ms = retention.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Self { partitions, age_ms, bytes: retention.bytes, events: retention.events }
    }
}

/// All topics; what was asked lately is remembered, unless there was nothing.
pub(super) struct Topics {
    control: Control,
    remembered: Mutex<HashMap<TopicName, (Instant, Arc<Layout>)>>,
    /// What this process made sure of: should the server forget it, it is written down again.
    ensured: Mutex<HashMap<TopicName, TopicSpec>>,
}

impl Topics {
    pub(super) fn new(control: Control) -> Self {
        Self { control, remembered: Mutex::default(), ensured: Mutex::default() }
    }

    /// The streams of a topic, whether it exists or not. One that this process made sure of and that the server forgot,
    /// as after a `FLUSHALL`, is written down again: it has lanes and publishers that count on its partitions.
    ///
    /// # Errors
    /// `Invalid`: a key of that name holds something else than a stream. `Corrupt`: what is written of it is no JSON.
    pub(super) async fn layout(&self, topic: &TopicName) -> Result<Arc<Layout>, BrokerError> {
        let remembered = self.remembered().get(topic).cloned();
        match remembered {
            Some((asked, layout)) if asked.elapsed() < FRESH => Ok(layout),
            _ => self.layout_now(topic).await,
        }
    }

    /// As [`Topics::layout`], as it is now.
    pub(super) async fn layout_now(&self, topic: &TopicName) -> Result<Arc<Layout>, BrokerError> {
        let layout = self.ask(topic).await?;
        let ensured = self.ensured().get(topic).cloned();
        let Some(spec) = ensured.filter(|_| !layout.written_down) else { return Ok(layout) };
        tracing::warn!(%topic, partitions = spec.partitions, "the server forgot the topic, which is written down again");
        self.write_down(topic, &spec).await?;
        self.ask(topic).await
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<TopicName, (Instant, Arc<Layout>)>> {
        self.remembered.lock().expect("nothing panics while it holds this lock")
    }

    fn ensured(&self) -> MutexGuard<'_, HashMap<TopicName, TopicSpec>> {
        self.ensured.lock().expect("nothing panics while it holds this lock")
    }

    async fn ask(&self, topic: &TopicName) -> Result<Arc<Layout>, BrokerError> {
        let doing = format!("look topic `{topic}` up");
        if topic.as_str().starts_with(PREFIX) {
            return Err(self.control.node.invalid(format_args!(
                "could not {doing}: names that begin with `{PREFIX}` are kept for Synapse itself; choose another name"
            )));
        }
        let stored = self.control.ask(&doing, &[b"HGET", TOPICS_KEY.as_bytes(), topic.as_str().as_bytes()]).await?;
        let stored = self.parse(topic, &stored)?;
        let shape = stored.unwrap_or(Stored::NATIVE);
        let keys = keys(topic, shape.partitions);
        let mut exists = stored.is_some();
        let commands: Vec<Vec<&[u8]>> = keys.iter().map(|key| vec![&b"TYPE"[..], key.as_bytes()]).collect();
        for (key, reply) in keys.iter().zip(self.control.ask_all(&doing, &commands).await?) {
            exists |= self.is_stream(&doing, key, reply)?;
        }
        let layout = Layout::new(topic, stored, exists);
        if !exists {
            // It may be made at any moment.
            return Ok(layout);
        }
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(topic.clone(), (Instant::now(), Arc::clone(&layout)));
        Ok(layout)
    }

    fn is_stream(&self, doing: &str, key: &str, kind: Reply) -> Result<bool, BrokerError> {
        let node = &self.control.node;
        match node.checked(doing, kind)?.bytes() {
            Some(b"stream") => Ok(true),
            Some(b"none") => Ok(false),
            kind => {
                let kind = String::from_utf8_lossy(kind.unwrap_or_default()).into_owned();
                Err(node.invalid(format_args!(
                    "could not {doing}: the key `{key}` holds a {kind}, not a stream; rename the key or the topic"
                )))
            }
        }
    }

    fn parse(&self, topic: &TopicName, stored: &Reply) -> Result<Option<Stored>, BrokerError> {
        let Some(json) = stored.bytes() else { return Ok(None) };
        serde_json::from_slice(json).map(Some).map_err(|error| {
            self.control.node.error(
                BrokerErrorKind::Corrupt,
                format_args!("the field `{topic}` of the hash `{TOPICS_KEY}` is not what Synapse writes there ({error}); delete the field"),
            )
        })
    }

    /// Writes a topic down, with at least these partitions.
    pub(super) async fn ensure(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        // Checks the name and the types of its keys.
        self.ask(topic).await?;
        self.write_down(topic, spec).await?;
        self.ensured().insert(topic.clone(), spec.clone());
        let layout = self.ask(topic).await?;
        self.info(topic, &layout).await
    }

    async fn write_down(&self, topic: &TopicName, spec: &TopicSpec) -> Result<(), BrokerError> {
        let doing = format!("write topic `{topic}` down");
        let mut wire = Wire::open(&self.control.nodes.owner_now(TOPICS_KEY).await?).await?;
        for _ in 0..CHANGES_MAX {
            let Some(written) = self.try_ensure(&mut wire, topic, spec, &doing).await? else { continue };
            self.remembered().remove(topic);
            // Also what a host left behind that died on the way.
            let kind = [&b"TYPE"[..], topic.as_str().as_bytes()];
            if written.renamed || written.is_apart && wire.ask(&doing, &kind).await?.bytes() == Some(b"stream") {
                sleep(2 * FRESH).await;
                growth::sweep(&mut wire, topic, &first(topic), &doing).await?;
            }
            return Ok(());
        }
        Err(self.control.node.error(
            BrokerErrorKind::Unavailable,
            format_args!("could not {doing}: others changed topics {CHANGES_MAX} times meanwhile"),
        ))
    }

    /// `None` if someone came between.
    async fn try_ensure(
        &self,
        wire: &mut Wire,
        topic: &TopicName,
        spec: &TopicSpec,
        doing: &str,
    ) -> Result<Option<Written>, BrokerError> {
        let name = topic.as_str().as_bytes();
        command(&mut wire.outbox, &[b"WATCH", TOPICS_KEY.as_bytes()]);
        command(&mut wire.outbox, &[b"HGET", TOPICS_KEY.as_bytes(), name]);
        let replies = wire.exchange(doing, 2).await?;
        self.control.node.checked(doing, replies[0].clone())?;
        let known = self.parse(topic, &self.control.node.checked(doing, replies[1].clone())?)?;
        let partitions = known.map_or(spec.partitions, |known| known.partitions.max(spec.partitions));
        let stored = Stored::new(partitions, &spec.retention);
        let is_apart = partitions.get() > 1 && !self.control.nodes.is_cluster();
        if known == Some(stored) {
            wire.ask(doing, &[b"UNWATCH"]).await?;
            return Ok(Some(Written { renamed: false, is_apart }));
        }
        let grows = known.is_none_or(|known| known.partitions.get() == 1) && partitions.get() > 1;
        if grows && self.control.nodes.is_cluster() {
            growth::check_empty(&self.control, topic, doing).await?;
        }
        let renames = grows && !self.control.nodes.is_cluster();
        let json = serde_json::to_vec(&stored).expect("numbers are JSON");
        command(&mut wire.outbox, &[b"MULTI"]);
        command(&mut wire.outbox, &[b"HSET", TOPICS_KEY.as_bytes(), name, &json]);
        if renames {
            command(&mut wire.outbox, &[b"EVAL", growth::RENAME, b"2", name, first(topic).as_bytes()]);
        }
        command(&mut wire.outbox, &[b"EXEC"]);
        let mut done = Reply::Null;
        for reply in wire.exchange(doing, 3 + usize::from(renames)).await? {
            done = self.control.node.checked(doing, reply)?;
        }
        for reply in done.elements() {
            self.control.node.checked(doing, reply.clone())?;
        }
        let renamed = renames && done.elements().last().and_then(Reply::count) == Some(1);
        Ok((done != Reply::Null).then_some(Written { renamed, is_apart }))
    }

    /// One topic, if it exists.
    pub(super) async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        let layout = self.ask(topic).await?;
        if layout.exists { self.info(topic, &layout).await.map(Some) } else { Ok(None) }
    }

    async fn info(&self, topic: &TopicName, layout: &Layout) -> Result<TopicInfo, BrokerError> {
        let doing = format!("look topic `{topic}` up");
        let mut commands: Vec<Vec<&[u8]>> = Vec::with_capacity(layout.keys.len() * 2);
        for key in &layout.keys {
            commands.push(vec![b"XINFO", b"STREAM", key.as_bytes()]);
            commands.push(vec![b"MEMORY", b"USAGE", key.as_bytes()]);
        }
        let replies = self.control.ask_all(&doing, &commands).await?;
        let partitions = replies.chunks_exact(2).map(|pair| self.partition(&doing, pair)).collect::<Result<_, _>>()?;
        Ok(TopicInfo { name: topic.clone(), partitions, at_most: false })
    }

    fn partition(&self, doing: &str, replies: &[Reply]) -> Result<PartitionInfo, BrokerError> {
        let Some(info) = StreamInfo::read(&replies[0]).map_err(|line| self.control.node.refused(doing, line))? else {
            return Ok(PartitionInfo { bytes: Some(0), ..PartitionInfo::default() });
        };
        let bytes = replies[1].count();
        Ok(PartitionInfo {
            earliest: info.first.map(offset),
            latest: info.last.map(offset),
            events: info.length,
            bytes,
        })
    }

    /// All topics, by name: those written down and all streams that can be topics.
    pub(super) async fn all(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        let doing = "list the topics";
        let mut shapes = BTreeMap::new();
        let written = self.control.ask(doing, &[b"HGETALL", TOPICS_KEY.as_bytes()]).await?;
        for pair in written.elements().chunks_exact(2) {
            let Some(Ok(name)) = pair[0].text().map(|text| text.parse::<TopicName>()) else { continue };
            let Some(stored) = self.parse(&name, &pair[1])? else { continue };
            shapes.insert(name, Some(stored));
        }
        for key in self.streams().await? {
            // The partitions of larger topics have braces in their names, which no topic has.
            if let Ok(name) = key.parse::<TopicName>() {
                shapes.entry(name).or_insert(None);
            }
        }
        let mut infos = Vec::with_capacity(shapes.len());
        for (name, stored) in shapes {
            infos.push(self.info(&name, &Layout::new(&name, stored, true)).await?);
        }
        Ok(infos)
    }

    /// The keys of all streams that are not ours.
    async fn streams(&self) -> Result<BTreeSet<String>, BrokerError> {
        let doing = "list the streams";
        let mut keys = BTreeSet::new();
        for node in self.control.nodes.masters().await? {
            self.streams_at(&node, doing, &mut keys).await?;
        }
        Ok(keys)
    }

    async fn streams_at(&self, node: &Node, doing: &str, keys: &mut BTreeSet<String>) -> Result<(), BrokerError> {
        let mut cursor = b"0".to_vec();
        loop {
            let scan: &[&[u8]] = &[b"SCAN", &cursor, b"COUNT", b"1000", b"TYPE", b"stream"];
            let page = self.control.ask_at(node, doing, scan).await?;
            let [next, found] = page.elements() else { return Err(node.garbled(doing, "SCAN without a cursor")) };
            let found = found.elements().iter().filter_map(|key| String::from_utf8(key.bytes()?.to_vec()).ok());
            keys.extend(found.filter(|key| !key.starts_with(PREFIX)));
            cursor = next.bytes().unwrap_or(b"0").to_vec();
            if cursor == b"0" {
                return Ok(());
            }
        }
    }
}

/// An entry's place, as the rest of Synapse writes it.
pub(super) fn offset(id: EntryId) -> Offset {
    Offset::Entry { ms: id.ms, seq: id.seq }
}

/// What `XINFO STREAM` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamInfo {
    pub(super) length: u64,
    pub(super) first: Option<EntryId>,
    pub(super) last: Option<EntryId>,
    pub(super) last_generated: EntryId,
    /// How many entries were ever added; servers before 7.0 do not tell.
    pub(super) added: Option<u64>,
}

impl StreamInfo {
    /// `None` if there is no such stream; the error line if that is not why there is no answer.
    pub(super) fn read(reply: &Reply) -> Result<Option<Self>, &[u8]> {
        if let Reply::Error(line) = reply {
            return if reply.is_error("ERR no such key") { Ok(None) } else { Err(line) };
        }
        let id = |name: &str| reply.field(name)?.elements().first()?.id();
        Ok(Some(Self {
            length: reply.field("length").and_then(Reply::count).unwrap_or_default(),
            first: id("first-entry"),
            last: id("last-entry"),
            last_generated: reply.field("last-generated-id").and_then(Reply::id).unwrap_or_default(),
            added: reply.field("entries-added").and_then(Reply::count),
        }))
    }
}
