//! Reading a stream as one of a consumer group's consumers: `XREADGROUP` on a connection of its own.
//!
//! A consumer is one host's reader of one lane. What it was handed and did not acknowledge comes first after every
//! (re)connect, then what dead consumers left, then new entries. The committer acknowledges.
//!
//! Two readers of one consumer would strand entries: what the older one is handed after the newer one looked through the
//! pending ones belongs to nobody. So a new reader ends the connection of the one before it, whose id it finds noted
//! down, before it looks.
//!
//! A consumer of ours is dead when its lease is gone; one script looks and claims, so neither a slow owner is robbed nor
//! another host that inherits from the same one. Other tools' consumers have no lease; they are dead when they were idle
//! for longer than one lasts. Consumers are deleted only if they are ours, dead and hold no entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{BatchLimit, BrokerErrorKind, LaneKey, LaneSpec};
use synapse_core::spec::ReadMode;
use synapse_core::{BrokerError, Source, SourceBatch};
use tokio::time::Instant;

use super::Shared;
use super::command::{command, command_with_ids};
use super::lane::LaneKeys;
use super::page::{Entries, Pace, Page, Took};
use super::resp::{Reply, Scan, Scanner, Stop};
use super::stream::stream_header;
use super::wire::Wire;

/// How long a request waits on the server for entries, at most.
const BLOCK_MAX: Duration = Duration::from_secs(5);
/// Most entries that are claimed at once: a script holds up the server, and its calls take a few thousand arguments.
const CLAIM_MAX: usize = 1_000;

/// Claims entries of one consumer for another; with the key of a lease only if nobody holds it. Answers how many of them
/// a trim had removed, and the others. Without any the consumer is deleted, if there is the key of its lease.
const CLAIM: &[u8] = b"
local stream, lease = KEYS[1], KEYS[2]
local group, from, to, idle, count = unpack(ARGV)
local ids, there, entries, gone = {}, {}, {}, 0
if lease and redis.call('EXISTS', lease) == 1 then return {gone, entries} end
for _, pending in ipairs(redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', count, from)) do
    ids[#ids + 1] = pending[1]
end
if #ids == 0 then
    if lease then redis.call('XGROUP', 'DELCONSUMER', stream, group, from) end
    return {gone, entries}
end
for _, entry in ipairs(redis.call('XCLAIM', stream, group, to, idle, unpack(ids))) do
    if entry then
        entries[#entries + 1] = entry
        there[entry[1]] = true
    end
end
for _, id in ipairs(ids) do
    if not there[id] then
        redis.call('XACK', stream, group, id)
        gone = gone + 1
    end
end
return {gone, entries}
";

/// Reads as a consumer; see the module's page.
pub(super) struct GroupSource {
    shared: Arc<Shared>,
    wire: Wire,
    lane: LaneKey,
    keys: LaneKeys,
    stream: String,
    consumer: String,
    doing: String,
    stage: Stage,
    phase: Phase,
    entries: Entries,
    asked: Instant,
    block: Duration,
    /// When dead consumers are looked for again.
    claim_at: Instant,
    pace: Pace,
    alive: Arc<AtomicBool>,
}

/// What is read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Our own pending entries behind the place of the last reply.
    Own,
    /// What nobody was handed yet.
    New,
}

/// Which reply comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// The beginning of that of `XREADGROUP`.
    Header,
    /// That of [`CLAIM`].
    Claimed,
    Entries,
}

impl GroupSource {
    pub(super) async fn open(
        shared: &Arc<Shared>,
        lane: &LaneSpec,
        stream: &str,
        alive: Arc<AtomicBool>,
    ) -> Result<Self, BrokerError> {
        let keys = LaneKeys::of(&lane.key, stream);
        let consumer = consumer(&shared.host, &keys);
        let mut source = Self {
            wire: Wire::open(&shared.nodes.owner_now(stream).await?).await?,
            shared: Arc::clone(shared),
            lane: lane.key.clone(),
            doing: format!("read the stream `{stream}` as `{consumer}`"),
            stream: stream.to_owned(),
            keys,
            consumer,
            stage: Stage::Own,
            phase: Phase::Idle,
            entries: Entries::default(),
            asked: Instant::now(),
            block: BLOCK_MAX.min(shared.lease / 2),
            claim_at: Instant::now(),
            pace: Pace::new(),
            alive,
        };
        source.replace_reader().await?;
        Ok(source)
    }

    /// Ends the connection of the reader before us and notes ours down.
    async fn replace_reader(&mut self) -> Result<(), BrokerError> {
        let doing = self.doing.clone();
        let field = format!("reader:{}", self.shared.host);
        // Ids begin again when the server starts; a name tells whose connection it is.
        let name = self.consumer.clone();
        let before = self.wire.ask(&doing, &[b"HGET", self.keys.state.as_bytes(), field.as_bytes()]).await?;
        if let Some(id) = before.text() {
            let listed = self.wire.ask(&doing, &[b"CLIENT", b"LIST", b"ID", id.as_bytes()]).await?;
            let listed = listed.text().unwrap_or_default();
            if listed.split_whitespace().any(|word| word.strip_prefix("name=") == Some(name.as_str())) {
                let killed = self.wire.exchange_one(&doing, &[b"CLIENT", b"KILL", b"ID", id.as_bytes()]).await?;
                // It may have ended by itself.
                if !killed.is_error("ERR No such client") {
                    self.shared.node.checked(&doing, killed)?;
                }
            }
        }
        self.wire.ask(&doing, &[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
        let id = self.wire.ask(&doing, &[b"CLIENT", b"ID"]).await?.number().unwrap_or_default().to_string();
        self.wire.ask(&doing, &[b"HSET", self.keys.state.as_bytes(), field.as_bytes(), id.as_bytes()]).await?;
        Ok(())
    }

    /// Asks for what comes next.
    async fn request(&mut self, limit: BatchLimit) -> Result<(), BrokerError> {
        if self.stage == Stage::New && Instant::now() >= self.claim_at && self.claim(limit).await? {
            self.phase = Phase::Claimed;
            return Ok(());
        }
        let count = self.pace.count(limit).to_string();
        let (block, place) = (self.block.as_millis().to_string(), self.entries.place.to_string());
        let mut arguments: Vec<&[u8]> = vec![b"XREADGROUP", b"GROUP", self.lane.pipeline.as_str().as_bytes()];
        arguments.extend([self.consumer.as_bytes(), b"COUNT", count.as_bytes()]);
        match self.stage {
            Stage::Own => arguments.extend([b"STREAMS", self.stream.as_bytes(), place.as_bytes()]),
            Stage::New => {
                arguments.extend([b"BLOCK", block.as_bytes(), b"STREAMS", self.stream.as_bytes(), b">"]);
            }
        }
        command(&mut self.wire.outbox, &arguments);
        self.phase = Phase::Header;
        self.asked = Instant::now();
        self.wire.send(&self.doing).await
    }

    /// Takes what came; tells what is missing. `All` leaves the source idle.
    async fn take(&mut self, page: &mut Page<'_>) -> Result<Took, BrokerError> {
        if self.phase == Phase::Header || self.phase == Phase::Claimed {
            let mut scanner = Scanner::new(self.wire.unread());
            let scanned = match self.phase {
                Phase::Claimed => claim_header(&mut scanner),
                _ => stream_header(&mut scanner).map(|header| header.map(|left| (0, left))),
            };
            let read = scanner.at();
            let (gone, left) = match scanned {
                Err(Stop::More) => return Ok(Took::More),
                Err(Stop::Malformed(what)) => return Err(self.shared.node.garbled(&self.doing, what)),
                Ok(Err(line)) => return Err(self.shared.node.refused(&self.doing, &line)),
                Ok(Ok(header)) => header,
            };
            if self.stage == Stage::Own && left == 0 {
                self.stage = Stage::New;
            }
            if self.phase == Phase::Claimed && gone == 0 && left == 0 {
                self.claim_at = self.asked + self.shared.lease / 2;
            }
            self.entries.left = left;
            page.lost += gone;
            self.wire.consume(read);
            self.phase = Phase::Entries;
        }
        if self.phase == Phase::Idle {
            return Ok(Took::All);
        }
        let taken = page.take(self.wire.unread(), &mut self.entries);
        let (took, read) = taken.map_err(|what| self.shared.node.garbled(&self.doing, what))?;
        self.wire.consume(read);
        if took == Took::All {
            self.phase = Phase::Idle;
            self.forget_removed(page).await?;
        }
        Ok(took)
    }

    /// Entries of ours that a trim removed: counted, and acknowledged since nobody else would.
    async fn forget_removed(&mut self, page: &mut Page<'_>) -> Result<(), BrokerError> {
        if page.removed.is_empty() {
            return Ok(());
        }
        let arguments: [&[u8]; 3] = [b"XACK", self.stream.as_bytes(), self.lane.pipeline.as_str().as_bytes()];
        command_with_ids(&mut self.wire.outbox, &arguments, &page.removed);
        self.wire.send(&self.doing).await?;
        let reply = self.wire.reply(&self.doing).await?;
        self.shared.node.checked(&self.doing, reply)?;
        page.lost += page.removed.len() as u64;
        page.removed.clear();
        Ok(())
    }

    /// Fills the page until it is full, a reply ends or `deadline` passes without an entry.
    async fn fill(&mut self, page: &mut Page<'_>, limit: BatchLimit, deadline: Instant) -> Result<(), BrokerError> {
        loop {
            if self.phase == Phase::Idle {
                self.request(limit).await?;
            }
            let took = self.take(page).await?;
            if took == Took::Full || (took == Took::All && page.entries() > 0) {
                return Ok(());
            }
            if took == Took::All {
                if Instant::now() >= deadline {
                    return Ok(());
                }
                continue;
            }
            // Only a request for new entries may stay without an answer for long.
            let begun = self.phase != Phase::Header || self.stage == Stage::Own;
            let wait =
                if begun { self.shared.node.timeout } else { deadline.saturating_duration_since(Instant::now()) };
            if !self.wire.fill_within(&self.doing, wait).await? {
                if begun || self.asked.elapsed() > self.block + self.shared.node.timeout {
                    return Err(self.shared.node.late(&self.doing));
                }
                return Ok(());
            }
        }
    }

    /// Claims what one dead consumer left; tells whether the reply of [`CLAIM`] is on its way.
    async fn claim(&mut self, limit: BatchLimit) -> Result<bool, BrokerError> {
        let doing = format!("look for entries that dead consumers of `{}` left", self.lane.pipeline);
        let arguments: &[&[u8]] =
            &[b"XINFO", b"CONSUMERS", self.stream.as_bytes(), self.lane.pipeline.as_str().as_bytes()];
        let consumers = self.wire.ask(&doing, arguments).await?;
        let pending = |found: &Reply| found.field("pending").and_then(Reply::count).unwrap_or_default();
        // What has none to give is only tidied up.
        let (givers, empty): (Vec<_>, Vec<_>) = consumers.elements().iter().partition(|found| pending(found) > 0);
        for found in givers.into_iter().chain(empty) {
            let name = found.field("name").and_then(Reply::text).unwrap_or_default();
            let idle = Duration::from_millis(found.field("idle").and_then(Reply::count).unwrap_or_default());
            if name == self.consumer {
                continue;
            }
            let lease = host_of(&name, &self.keys).map(|host| self.keys.lease(ReadMode::Group, host));
            let dead = match &lease {
                None => pending(found) > 0 && idle >= self.shared.lease,
                Some(lease) => self.wire.ask(&doing, &[b"EXISTS", lease.as_bytes()]).await? == Reply::Integer(0),
            };
            if dead {
                self.send_claim(&doing, &name, lease.as_deref(), limit).await?;
                return Ok(true);
            }
        }
        self.claim_at = Instant::now() + self.shared.lease / 2;
        Ok(false)
    }

    async fn send_claim(
        &mut self,
        doing: &str,
        name: &str,
        lease: Option<&str>,
        limit: BatchLimit,
    ) -> Result<(), BrokerError> {
        let count = self.pace.count(limit).min(CLAIM_MAX).to_string();
        // A lease that is gone is proof enough; a foreign consumer proves itself dead by being idle.
        let idle = if lease.is_some() { "0".to_owned() } else { self.shared.lease_ms() };
        let mut arguments: Vec<&[u8]> = vec![b"EVAL", CLAIM];
        match lease {
            Some(lease) => arguments.extend([b"2", self.stream.as_bytes(), lease.as_bytes()]),
            None => arguments.extend([&b"1"[..], self.stream.as_bytes()]),
        }
        arguments.extend([self.lane.pipeline.as_str().as_bytes(), name.as_bytes(), self.consumer.as_bytes()]);
        arguments.extend([idle.as_bytes(), count.as_bytes()]);
        command(&mut self.wire.outbox, &arguments);
        self.asked = Instant::now();
        self.wire.send(doing).await
    }
}

#[async_trait]
impl Source for GroupSource {
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        let deadline = Instant::now() + wait;
        if !self.alive.load(Ordering::Acquire) {
            return Err(self.shared.node.error(
                BrokerErrorKind::Fenced,
                format_args!("could not {}: its lease was lost; the lane is opened again", self.doing),
            ));
        }
        let topic = self.lane.partition.topic.topic.clone();
        let mut page = Page::new(&topic, self.lane.partition.partition, limit, (self.shared.clock)());
        self.fill(&mut page, limit, deadline).await?;
        self.pace.saw(&page);
        if page.entries() == 0 {
            self.wire.rest();
        } else if self.phase == Phase::Idle {
            self.request(limit).await?;
        }
        Ok(page.finish())
    }
}

/// The name of a host's consumer: `host:pipeline/topic/partition`.
fn consumer(host: &str, keys: &LaneKeys) -> String {
    format!("{host}:{}", keys.name)
}

/// The host of a consumer of ours.
pub(super) fn host_of<'n>(consumer: &'n str, keys: &LaneKeys) -> Option<&'n str> {
    consumer.strip_suffix(keys.name.as_str())?.strip_suffix(':')
}

/// The beginning of the reply of [`CLAIM`]: how many entries were removed, and how many follow; or the server's error.
fn claim_header(scanner: &mut Scanner<'_>) -> Scan<Result<(u64, usize), Vec<u8>>> {
    if let Some(line) = scanner.error()? {
        return Ok(Err(line.to_vec()));
    }
    if scanner.array()? != Some(2) {
        return Err(Stop::Malformed("a claim is not a count and entries"));
    }
    let gone = scanner.integer()?.try_into().unwrap_or_default();
    Ok(Ok((gone, scanner.array()?.unwrap_or_default())))
}
