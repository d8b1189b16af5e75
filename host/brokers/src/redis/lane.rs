//! One lane: its lease, its cursor and its commits.
//!
//! # The fence
//! The lease is a key with a time to live that holds a token of its owner. The owner's connection keeps a `WATCH` on it,
//! armed and checked right behind the last `EXEC` in the same pipeline, so that it costs no round trip: a takeover, an
//! expiry or a `FLUSHALL` each make the next `EXEC` answer nil, and nothing of that commit happens. Any write to the key
//! trips the watch, also our own; so the lease is renewed inside the transactions, or in an empty one while the lane is
//! idle. An owner on the same host is replaced at once; a foreign one that still renews is left alone.
//!
//! # All or nothing
//! `EXEC` rolls nothing back. What the server refuses (no memory, no disk, no permission, a replica) it refuses when the
//! commands are queued, and then executes none. What is left are errors while executing:
//! - an output key that holds no stream: looked up before, so it takes someone who replaces the stream within a second.
//!   The other effects then stay, and the commit says so and ends the pipeline.
//! - the group was destroyed, so that its cursor cannot be moved: the cursor is written into a hash of ours in the same
//!   transaction, too, and the group is made again from it, now or, after a crash, when the lane is opened.
//! - the stream itself is gone: the lane has to be opened again, at the cursor in that hash. When a topic gets partitions
//!   its streams and leases take other names together, so that the fence stops whoever works under the old ones.
//!
//! # In a cluster
//! The keys of a lane lie in the slot of its stream, with those of all partitions of the same number. Outputs in other
//! slots are written first, after a look at the lease: whoever lost it between that look and the transaction has written
//! outputs that come again. A slot that moves, and a master that fails, end the connection or refuse the transaction;
//! then the lane is opened again, where the slot is by then. A failover may lose what the replica had not got yet, the
//! lease and the cursor among it: then entries are read again, by one host or, until the older one tries to commit, two.
//!
//! The cursor is the group's `last-delivered-id` while the group exists, so that other tools see and can move it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{Boundary, BrokerErrorKind, LaneKey, LaneSpec, OpenLane, Reading};
use synapse_core::spec::{ReadFrom, ReadMode, Start};
use synapse_core::topic::partition_of;
use synapse_core::{BrokerError, Committer, Effects, Output, TopicName};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::command::{command, command_with_ids, xadd};
use super::group::GroupSource;
use super::nodes;
use super::places::owner_of;
use super::publish::encode;
use super::resp::{EntryId, Reply, Scanner};
use super::stream::{added_upto, entry_id};
use super::topics::{Layout, PREFIX, StreamInfo, offset};
use super::wire::{SEND_BYTES, Wire};
use crate::rows::key_of;

/// How often taking a lease or making a group is tried while others come between.
const TRIES_MAX: usize = 8;
/// How often a commit also asks how many entries were ever added, to keep the group's count of them right.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How long a lane that is closed tries to give its lease back.
const RELEASE_WITHIN: Duration = Duration::from_secs(1);

/// The keys of a lane. What is in their braces keeps them in the slot of the lane's stream.
pub(super) struct LaneKeys {
    /// `pipeline/topic/partition`.
    pub(super) name: String,
    /// `{stream}:pipeline/topic/partition`, where of the stream's name only its own braces count, if it has any.
    placed: String,
    /// A hash: `cursor`, `boundary`, and what readers of a group note down.
    pub(super) state: String,
    pub(super) boundaries: String,
}

impl LaneKeys {
    /// The keys of a pipeline's lane on a partition whose stream this is.
    pub(super) fn new(pipeline: &str, topic: &TopicName, partition: u32, stream: &str) -> Self {
        let name = format!("{pipeline}/{topic}/{partition}");
        let placed = format!("{{{}}}:{name}", nodes::tag(stream));
        Self {
            state: format!("{PREFIX}lane:{placed}"),
            boundaries: format!("{PREFIX}boundaries:{placed}"),
            name,
            placed,
        }
    }

    pub(super) fn of(lane: &LaneKey, stream: &str) -> Self {
        Self::new(lane.pipeline.as_str(), &lane.partition.topic.topic, lane.partition.partition, stream)
    }

    /// Where an owner of the lane holds its lease: one owner reads by cursor, one of each host by group.
    pub(super) fn lease(&self, read: ReadMode, host: &str) -> String {
        match read {
            ReadMode::Cursor => format!("{PREFIX}lease:{}", self.placed),
            ReadMode::Group => format!("{PREFIX}lease:{}:{host}", self.placed),
        }
    }
}

/// Takes the lane over and finds its place.
///
/// # Errors
/// `Fenced`: another host holds its lease. `Invalid`: the partition does not exist, or the group is read by others.
pub(super) async fn open(shared: &Arc<Shared>, spec: &LaneSpec) -> Result<OpenLane, BrokerError> {
    let at = &spec.key.partition;
    shared.check_own(&at.topic)?;
    // Under a name that it had a moment ago the stream would be made anew.
    let layout = shared.topics.layout_now(&at.topic.topic).await?;
    // A stream that vanished under a lane is made again; one that never was is a mistake.
    if !layout.exists && !shared.kept().contains_key(&spec.key) {
        return Err(shared.no_topic(&at.topic.topic));
    }
    let stream = shared.stream_of(&at.topic.topic, &layout, at.partition)?;
    let keys = LaneKeys::of(&spec.key, stream);
    let lease = keys.lease(spec.read, &shared.host);
    let mut wire = Wire::open(&shared.nodes.owner_now(stream).await?).await?;
    let token = format!("{} {}", shared.host, shared.token());
    take_lease(&mut wire, shared, &spec.key, &lease, &token).await?;
    let place = find_place(&mut wire, shared, spec, &keys, stream).await?;
    let alive = Arc::new(AtomicBool::new(true));
    let mut lane = Lane {
        shared: Arc::clone(shared),
        wire,
        doing: format!("commit lane `{}`", spec.key),
        key: spec.key.clone(),
        keys,
        stream: stream.to_owned(),
        read: spec.read,
        lease,
        token,
        cursor: place.cursor,
        entries_read: place.entries_read,
        counted: Instant::now(),
        renewed: Instant::now(),
        written_down: false,
        health: Health::Fine,
        alive: Arc::clone(&alive),
    };
    lane.arm().await?;
    lane.commit(&Effects::default()).await?;
    lane.keep_cursor();
    let reading = match spec.read {
        ReadMode::Cursor if place.cursor == EntryId::ZERO => Reading::From(ReadFrom::Earliest),
        ReadMode::Cursor => Reading::From(ReadFrom::After(offset(place.cursor))),
        ReadMode::Group => Reading::Own(Box::new(GroupSource::open(shared, spec, stream, alive).await?)),
    };
    Ok(OpenLane { committer: Box::new(LaneCommitter::new(shared, lane)), reading, boundary: place.boundary })
}

/// Writes our token into the lease, unless another host's is there.
async fn take_lease(
    wire: &mut Wire,
    shared: &Shared,
    lane: &LaneKey,
    lease: &str,
    token: &str,
) -> Result<(), BrokerError> {
    let doing = format!("take over lane `{lane}`");
    let key = lease.as_bytes();
    for _ in 0..TRIES_MAX {
        command(&mut wire.outbox, &[b"WATCH", key]);
        command(&mut wire.outbox, &[b"GET", key]);
        command(&mut wire.outbox, &[b"PTTL", key]);
        let mut replies = Vec::new();
        for reply in wire.exchange(&doing, 3).await? {
            replies.push(shared.node.checked(&doing, reply)?);
        }
        if let Some(owner) = replies[1].text() {
            let host = owner_of(&owner);
            if host != shared.host {
                let left = Duration::from_millis(replies[2].count().unwrap_or_default());
                return Err(shared.node.error(
                    BrokerErrorKind::Fenced,
                    format_args!(
                        "could not {doing}: host `{host}` holds it for another {left:?}; \
                         stop the pipeline there, or wait until its lease ends"
                    ),
                ));
            }
        }
        command(&mut wire.outbox, &[b"MULTI"]);
        command(&mut wire.outbox, &[b"SET", key, token.as_bytes(), b"PX", shared.lease_ms().as_bytes()]);
        command(&mut wire.outbox, &[b"EXEC"]);
        let mut done = Reply::Null;
        for reply in wire.exchange(&doing, 3).await? {
            done = shared.node.checked(&doing, reply)?;
        }
        if done != Reply::Null {
            return Ok(());
        }
    }
    Err(shared.node.error(
        BrokerErrorKind::Fenced,
        format_args!(
            "could not {doing}: others took it {TRIES_MAX} times meanwhile; check which hosts run the pipeline"
        ),
    ))
}

/// Where a lane goes on.
struct Place {
    cursor: EntryId,
    entries_read: Option<u64>,
    boundary: Option<Boundary>,
}

/// The group's place; makes the group if it is not there.
async fn find_place(
    wire: &mut Wire,
    shared: &Shared,
    spec: &LaneSpec,
    keys: &LaneKeys,
    stream: &str,
) -> Result<Place, BrokerError> {
    let node = &shared.node;
    let (doing, group) = (format!("find the place of lane `{}`", spec.key), spec.key.pipeline.as_str());
    for _ in 0..TRIES_MAX {
        command(&mut wire.outbox, &[b"HGETALL", keys.state.as_bytes()]);
        command(&mut wire.outbox, &[b"XINFO", b"GROUPS", stream.as_bytes()]);
        command(&mut wire.outbox, &[b"XINFO", b"STREAM", stream.as_bytes()]);
        let replies = wire.exchange(&doing, 3).await?;
        let state = node.checked(&doing, replies[0].clone())?;
        let info = StreamInfo::read(&replies[2]).map_err(|line| node.refused(&doing, line))?;
        let mut groups = replies[1].elements().iter();
        if let Some(found) = groups.find(|found| found.field("name").and_then(Reply::bytes) == Some(group.as_bytes())) {
            check_pending(shared, spec, stream, found)?;
            let cursor = found.field("last-delivered-id").and_then(Reply::id).unwrap_or_default();
            let counted = found.field("entries-read").and_then(Reply::count);
            let entries_read = counted.or_else(|| info.as_ref().and_then(|info| added_upto(info, cursor)));
            return Ok(Place { cursor, entries_read, boundary: boundary(shared, &doing, &state)? });
        }
        let kept = shared.kept().get(&spec.key).copied();
        let kept = kept.max(state.field("cursor").and_then(Reply::id));
        let begin = match kept {
            // A stream that never came as far as we were is another one: all in it is new.
            Some(kept) if info.is_some_and(|info| info.last_generated >= kept) => kept.to_string(),
            Some(_) => EntryId::ZERO.to_string(),
            None => start(spec.start),
        };
        let (key, group) = (stream.as_bytes(), group.as_bytes());
        let create: &[&[u8]] = &[b"XGROUP", b"CREATE", key, group, begin.as_bytes(), b"MKSTREAM"];
        let reply = wire.exchange_one(&doing, create).await?;
        if !reply.is_error("BUSYGROUP") {
            node.checked(&doing, reply)?;
        }
    }
    Err(node.error(
        BrokerErrorKind::Unavailable,
        format_args!("could not {doing}: the group `{group}` was destroyed {TRIES_MAX} times meanwhile"),
    ))
}

/// Entries that the group handed out and that nobody acknowledged would be passed over by reading on from its cursor.
fn check_pending(shared: &Shared, spec: &LaneSpec, stream: &str, group: &Reply) -> Result<(), BrokerError> {
    let pending = group.field("pending").and_then(Reply::count).unwrap_or_default();
    if spec.read == ReadMode::Group || pending == 0 {
        return Ok(());
    }
    let name = &spec.key.pipeline;
    Err(shared.node.invalid(format_args!(
        "could not read the stream `{stream}` by cursor: {pending} entries of the group `{name}` were handed out and not \
         acknowledged; set read = \"group\" until they are, or acknowledge them with XACK"
    )))
}

fn boundary(shared: &Shared, doing: &str, state: &Reply) -> Result<Option<Boundary>, BrokerError> {
    let Some(json) = state.field("boundary").and_then(Reply::bytes) else { return Ok(None) };
    serde_json::from_slice(json).map(Some).map_err(|error| {
        let message = format!("could not {doing}: its last boundary is not what Synapse writes ({error})");
        shared.node.error(BrokerErrorKind::Corrupt, message)
    })
}

/// The id after which a new lane reads.
fn start(start: Start) -> String {
    match start {
        Start::Earliest => EntryId::ZERO.to_string(),
        Start::Latest => "$".to_owned(),
        Start::Time(time) => {
            let ms = u64::try_from(time.as_millis()).unwrap_or_default();
            EntryId { ms, seq: 0 }.previous().to_string()
        }
    }
}

/// Whether the connection is where we think it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Fine,
    /// The lease is not ours any more.
    Fenced,
    /// A commit did not come to its end.
    Broken,
}

/// A lane that is held: its connection and what is known of its place.
struct Lane {
    shared: Arc<Shared>,
    wire: Wire,
    doing: String,
    key: LaneKey,
    keys: LaneKeys,
    stream: String,
    read: ReadMode,
    lease: String,
    token: String,
    cursor: EntryId,
    /// How many entries were ever added up to the cursor, if we know.
    entries_read: Option<u64>,
    counted: Instant,
    renewed: Instant,
    /// Whether the cursor is in our hash.
    written_down: bool,
    health: Health,
    /// Told to the lane's own source, which must not read on for a lane that was lost.
    alive: Arc<AtomicBool>,
}

/// A transaction that was sent.
#[derive(Default)]
struct Sent {
    /// How many commands were queued.
    queued: usize,
    /// Up to which command each output reaches.
    outputs: Vec<(usize, String)>,
    /// The command that moves the group's cursor.
    moves: Option<usize>,
    /// Whether the stream is asked how many entries were added.
    counts: bool,
}

/// What became of the group's cursor in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// It moved, or it did not have to.
    Yes,
    /// The group was destroyed.
    NoGroup,
    /// The stream is not there under its name.
    NoStream,
}

impl Moved {
    fn refused(line: &[u8]) -> Self {
        // Servers say so in the same words since streams exist.
        let no_key = b"requires the key to exist";
        if line.windows(no_key.len()).any(|part| part == no_key) { Self::NoStream } else { Self::NoGroup }
    }
}

impl Lane {
    fn fenced(&self) -> BrokerError {
        let (lane, doing) = (&self.key, &self.doing);
        self.shared.node.error(
            BrokerErrorKind::Fenced,
            format_args!("could not {doing}: its lease was taken over or ran out; lane `{lane}` is opened again"),
        )
    }

    /// Watches the lease and checks that it is still ours.
    async fn arm(&mut self) -> Result<(), BrokerError> {
        self.queue_arm();
        self.wire.send(&self.doing).await?;
        self.check_arm().await
    }

    fn queue_arm(&mut self) {
        command(&mut self.wire.outbox, &[b"WATCH", self.lease.as_bytes()]);
        command(&mut self.wire.outbox, &[b"GET", self.lease.as_bytes()]);
    }

    async fn check_arm(&mut self) -> Result<(), BrokerError> {
        let watched = self.wire.reply(&self.doing).await?;
        self.shared.node.checked(&self.doing, watched)?;
        let found = self.wire.reply(&self.doing).await?;
        let found = self.shared.node.checked(&self.doing, found)?;
        if found.bytes() == Some(self.token.as_bytes()) {
            self.renewed = Instant::now();
            Ok(())
        } else {
            self.lose(Health::Fenced);
            Ok(())
        }
    }

    fn lose(&mut self, health: Health) {
        self.health = health;
        self.alive.store(false, Ordering::Release);
    }

    fn keep_cursor(&self) {
        self.shared.kept().insert(self.key.clone(), self.cursor);
    }

    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError> {
        match self.health {
            Health::Fine => {}
            Health::Fenced => return Err(self.fenced()),
            Health::Broken => return Err(self.shared.node.lost(&self.doing, &"an earlier commit did not end")),
        }
        if !effects.covered.is_empty() {
            self.check_stream().await?;
        }
        let covered = effects.covered.iter().map(|&at| entry_id(&self.shared.control, at));
        let covered = covered.collect::<Result<Vec<_>, _>>()?;
        let mut layouts = Vec::with_capacity(effects.outputs.len());
        for output in &effects.outputs {
            self.shared.check_own(&output.topic)?;
            layouts.push(self.shared.topics.layout(&output.topic.topic).await?);
        }
        // Until it is told otherwise: a commit that is dropped half way leaves replies behind.
        self.health = Health::Broken;
        let done = match self.write_elsewhere(effects, &layouts).await {
            Ok(()) => self.transact(effects, &covered, &layouts).await,
            Err(error) => Err(error),
        };
        match &done {
            // Being armed again may have told that the lease is gone; then this commit was the last.
            Ok(()) if self.health == Health::Broken => self.health = Health::Fine,
            Ok(()) => {}
            Err(error) if error.kind == BrokerErrorKind::Fenced => self.lose(Health::Fenced),
            Err(_) => self.lose(Health::Broken),
        }
        done
    }

    /// A topic that gets partitions takes its stream along under another name: then nothing is to be had here any more.
    async fn check_stream(&mut self) -> Result<(), BrokerError> {
        let at = &self.key.partition;
        let layout = self.shared.topics.layout(&at.topic.topic).await?;
        if !layout.exists || layout.keys.get(at.partition as usize) == Some(&self.stream) {
            return Ok(());
        }
        self.lose(Health::Broken);
        Err(self.stream_is_gone())
    }

    fn stream_is_gone(&self) -> BrokerError {
        let (lane, doing, stream) = (&self.key, &self.doing, &self.stream);
        self.shared.node.error(
            BrokerErrorKind::Unavailable,
            format_args!(
                "could not {doing}: its stream `{stream}` was renamed or deleted; lane `{lane}` is opened again"
            ),
        )
    }

    /// Outputs that lie in other slots of a cluster cannot be in the transaction, so they are written before it: what it
    /// says is done with has its outputs. An owner that was fenced off writes none.
    async fn write_elsewhere(&mut self, effects: &Effects, layouts: &[Arc<Layout>]) -> Result<(), BrokerError> {
        if !self.shared.nodes.is_cluster() {
            return Ok(());
        }
        let elsewhere = |stream: &str| !self.shared.nodes.together(stream, &self.stream);
        let outputs = effects.outputs.iter().zip(layouts);
        let parts: Vec<_> = outputs.flat_map(|(output, layout)| encode(output, layout, true, elsewhere)).collect();
        if parts.is_empty() {
            return Ok(());
        }
        let holder = self.wire.ask(&self.doing, &[b"GET", self.lease.as_bytes()]).await?;
        if holder.bytes() != Some(self.token.as_bytes()) {
            return Err(self.fenced());
        }
        self.shared.publisher.write(&self.shared, &parts).await.map(drop)
    }

    async fn transact(
        &mut self,
        effects: &Effects,
        covered: &[EntryId],
        layouts: &[Arc<Layout>],
    ) -> Result<(), BrokerError> {
        let cursor = covered.iter().copied().max().unwrap_or_default().max(self.cursor);
        let new = covered.iter().filter(|id| **id > self.cursor).count();
        let entries_read = self.entries_read.map(|read| read + new as u64);
        let mut sent = Sent { counts: self.counted.elapsed() >= COUNT_EVERY, ..Sent::default() };
        command(&mut self.wire.outbox, &[b"MULTI"]);
        for (output, layout) in effects.outputs.iter().zip(layouts) {
            self.queue_output(&mut sent, output, layout).await?;
        }
        self.queue_cursor(&mut sent, covered, cursor, entries_read);
        self.queue_state(&mut sent, effects, cursor);
        command(&mut self.wire.outbox, &[b"EXEC"]);
        self.queue_arm();
        if sent.counts {
            command(&mut self.wire.outbox, &[b"XINFO", b"STREAM", self.stream.as_bytes()]);
        }
        self.wire.send(&self.doing).await?;

        let moved = self.executed(&sent).await?;
        self.cursor = cursor;
        self.entries_read = entries_read;
        self.keep_cursor();
        self.check_arm().await?;
        if sent.counts {
            self.count().await?;
        }
        match moved {
            Moved::Yes => {}
            Moved::NoGroup => self.make_group().await?,
            Moved::NoStream => return Err(self.stream_is_gone()),
        }
        for (output, layout) in effects.outputs.iter().zip(layouts) {
            if self.shared.retention.added(&output.topic.topic, layout, output.events.len()) {
                self.shared.retention.wake();
            }
        }
        Ok(())
    }

    /// Writes the `XADD`s of the transaction; what is written is sent while the rest is encoded.
    async fn queue_output(&mut self, sent: &mut Sent, output: &Output, layout: &Layout) -> Result<(), BrokerError> {
        for event in output.events.events() {
            let key = &layout.keys[match layout.partitions() {
                1 => 0,
                many => partition_of(key_of(event).as_bytes(), many) as usize,
            }];
            if !self.shared.nodes.together(key, &self.stream) {
                continue;
            }
            sent.queued += 1;
            xadd(&mut self.wire.outbox, key, event, output.encoding);
            if self.wire.outbox.len() >= SEND_BYTES {
                self.wire.send(&self.doing).await?;
            }
        }
        sent.outputs.push((sent.queued, output.topic.to_string()));
        Ok(())
    }

    /// Moves the cursor, or acknowledges what a group handed out.
    fn queue_cursor(&mut self, sent: &mut Sent, covered: &[EntryId], cursor: EntryId, entries_read: Option<u64>) {
        if covered.is_empty() {
            return;
        }
        let (key, group) = (self.stream.as_bytes(), self.key.pipeline.as_str().as_bytes());
        let out = &mut self.wire.outbox;
        match self.read {
            ReadMode::Cursor => {
                let id = cursor.to_string();
                let plain: [&[u8]; 5] = [b"XGROUP", b"SETID", key, group, id.as_bytes()];
                match entries_read {
                    Some(read) => {
                        command(out, &[&plain[..], &[b"ENTRIESREAD", read.to_string().as_bytes()]].concat());
                    }
                    None => command(out, &plain),
                }
                sent.moves = Some(sent.queued);
            }
            ReadMode::Group => command_with_ids(out, &[b"XACK", key, group], covered),
        }
        sent.queued += 1;
    }

    /// Writes down cursor and boundary, and renews the lease; the latter is all that an idle lane does.
    fn queue_state(&mut self, sent: &mut Sent, effects: &Effects, cursor: EntryId) {
        let (out, cursor) = (&mut self.wire.outbox, cursor.to_string());
        let state = self.keys.state.as_bytes();
        if !effects.covered.is_empty() || !self.written_down {
            command(out, &[b"HSET", state, b"cursor", cursor.as_bytes()]);
            sent.queued += 1;
            self.written_down = true;
        }
        if let Some(boundary) = &effects.boundary {
            let json = serde_json::to_vec(boundary).expect("texts are JSON");
            command(out, &[b"HSET", state, b"boundary", &json]);
            command(out, &[b"XADD", self.keys.boundaries.as_bytes(), b"*", b"boundary", &json]);
            sent.queued += 2;
        }
        command(out, &[b"PEXPIRE", self.lease.as_bytes(), self.shared.lease_ms().as_bytes()]);
        sent.queued += 1;
    }

    /// Reads the replies up to that of `EXEC`; tells whether the group's cursor moved.
    async fn executed(&mut self, sent: &Sent) -> Result<Moved, BrokerError> {
        let mut refused = None;
        for _ in 0..=sent.queued {
            let line = self.wire.scan(&self.doing, |scanner| Ok(scanner.outcome()?.map(<[u8]>::to_vec))).await?;
            refused = refused.or(line);
        }
        let exec = |scanner: &mut Scanner<'_>| match scanner.error()? {
            Some(line) => Ok(Err(line.to_vec())),
            None => scanner.array().map(Ok),
        };
        match self.wire.scan(&self.doing, exec).await? {
            Ok(Some(count)) if count == sent.queued => {}
            Ok(None) => return Err(self.fenced()),
            Ok(Some(_)) => return Err(self.shared.node.garbled(&self.doing, "EXEC with too few replies")),
            // Nothing was executed; the reason is with the command that was refused.
            Err(line) => return Err(self.shared.node.refused(&self.doing, &refused.unwrap_or(line))),
        }
        let mut moved = Moved::Yes;
        let mut failed = None;
        for index in 0..sent.queued {
            let line = self.wire.scan(&self.doing, |scanner| Ok(scanner.outcome()?.map(<[u8]>::to_vec))).await?;
            match line {
                None => {}
                Some(line) if sent.moves == Some(index) => moved = Moved::refused(&line),
                Some(line) => failed = failed.or(Some((index, line))),
            }
        }
        match failed {
            None => Ok(moved),
            Some((index, line)) => Err(self.half_done(sent, index, &line)),
        }
    }

    /// A command failed while the others were executed; see the module's page.
    fn half_done(&self, sent: &Sent, index: usize, line: &[u8]) -> BrokerError {
        let what = sent.outputs.iter().find(|(upto, _)| index < *upto).map_or("Synapse's own keys", |(_, topic)| topic);
        let line = String::from_utf8_lossy(line);
        self.shared.node.invalid(format_args!(
            "could not {} as a whole: Redis answered `{line}` for {what}, while the other effects of the batch are \
             durable and its entries are done with; mend the key, then redeliver what is missing",
            self.doing
        ))
    }

    /// Reads how many entries were ever added; with nothing behind the cursor that is how many we read.
    async fn count(&mut self) -> Result<(), BrokerError> {
        self.counted = Instant::now();
        let reply = self.wire.reply(&self.doing).await?;
        let info = StreamInfo::read(&reply).map_err(|line| self.shared.node.refused(&self.doing, line))?;
        if let Some(info) = info.filter(|info| self.cursor >= info.last_generated) {
            self.entries_read = info.added;
        }
        Ok(())
    }

    /// The group was destroyed: makes it again at the cursor.
    async fn make_group(&mut self) -> Result<(), BrokerError> {
        let (key, group, cursor) =
            (self.stream.as_bytes(), self.key.pipeline.as_str().as_bytes(), self.cursor.to_string());
        let arguments: &[&[u8]] = &[b"XGROUP", b"CREATE", key, group, cursor.as_bytes(), b"MKSTREAM"];
        let reply = self.wire.exchange_one(&self.doing, arguments).await?;
        if !reply.is_error("BUSYGROUP") {
            self.shared.node.checked(&self.doing, reply)?;
        }
        tracing::warn!(lane = %self.key, %cursor, "the consumer group was destroyed and is made again at the cursor");
        Ok(())
    }

    /// Gives the lease back if it is still ours.
    async fn release(&mut self) -> Result<(), BrokerError> {
        if self.health != Health::Fine {
            return Ok(());
        }
        self.lose(Health::Broken);
        command(&mut self.wire.outbox, &[b"MULTI"]);
        command(&mut self.wire.outbox, &[b"DEL", self.lease.as_bytes()]);
        command(&mut self.wire.outbox, &[b"EXEC"]);
        self.wire.exchange(&self.doing, 3).await.map(drop)
    }
}

/// The lane's committer; a task of the broker renews the lease while it is idle and gives it back once this is dropped.
struct LaneCommitter {
    lane: Arc<Mutex<Lane>>,
    _closing: DropGuard,
}

impl LaneCommitter {
    fn new(shared: &Arc<Shared>, lane: Lane) -> Self {
        let lane = Arc::new(Mutex::new(lane));
        let closing = shared.stop.child_token();
        shared.tasks.spawn(keep(Arc::clone(&lane), closing.clone(), shared.lease / 3));
        Self { lane, _closing: closing.drop_guard() }
    }
}

#[async_trait]
impl Committer for LaneCommitter {
    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError> {
        self.lane.lock().await.commit(effects).await
    }
}

/// Renews an idle lane's lease until it is closed or lost.
async fn keep(lane: Arc<Mutex<Lane>>, closing: CancellationToken, every: Duration) {
    loop {
        let due = lane.lock().await.renewed + every;
        tokio::select! {
            () = closing.cancelled() => break,
            () = sleep_until(due) => {}
        }
        let mut lane = lane.lock().await;
        if lane.health == Health::Fine && lane.renewed.elapsed() >= every {
            let renewed = lane.commit(&Effects::default()).await;
            if let Err(error) = renewed {
                tracing::warn!(lane = %lane.key, %error, "the lease of an idle lane could not be renewed");
            }
            lane.wire.rest();
        }
        if lane.health != Health::Fine {
            return;
        }
    }
    let mut lane = lane.lock().await;
    if !matches!(timeout(RELEASE_WITHIN, lane.release()).await, Ok(Ok(()))) {
        tracing::debug!(lane = %lane.key, "the lease was not given back and runs out by itself");
    }
}

/// Every boundary of a lane, oldest first.
pub(super) async fn boundaries(shared: &Shared, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
    let doing = format!("read the boundaries of lane `{lane}`");
    let at = &lane.partition;
    let layout = shared.topics.layout(&at.topic.topic).await?;
    let Some(stream) = layout.keys.get(at.partition as usize) else { return Ok(Vec::new()) };
    let keys = LaneKeys::of(lane, stream);
    let reply = shared.control.ask(&doing, &[b"XRANGE", keys.boundaries.as_bytes(), b"-", b"+"]).await?;
    let stored = reply.elements().iter().filter_map(|entry| entry.elements().get(1)?.field("boundary")?.bytes());
    stored
        .map(|json| {
            serde_json::from_slice(json).map_err(|error| {
                let message = format!("could not {doing}: one is not what Synapse writes ({error})");
                shared.node.error(BrokerErrorKind::Corrupt, message)
            })
        })
        .collect()
}
