//! Reading one stream without a cursor on the server: `XREAD` on a connection of its own.
//!
//! The next request is sent as soon as a reply was taken, so that a poll usually finds its entries in the socket. A
//! request blocks on the server for a bounded time and may outlive the poll that sent it; a later poll takes its reply.
//!
//! What a trim removed before it was read is counted exactly on servers that tell how many entries were ever added
//! (7.0): at a place behind which nothing was read yet and before which nothing is kept, or at the end of the stream,
//! that number says how many entries lie before the place; what we did not read of them is lost. That is asked together
//! with a request, at most once a second. Entries that someone deleted by hand before they were read count as well.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{BatchLimit, BrokerErrorKind};
use synapse_core::spec::ReadFrom;
use synapse_core::{BrokerError, Offset, Source, SourceBatch, TopicName};
use tokio::time::Instant;

use super::Shared;
use super::command::command;
use super::control::Control;
use super::page::{Entries, Pace, Page, Took};
use super::resp::{EntryId, Reply, Scan, Scanner};
use super::topics::StreamInfo;
use super::wire::Wire;

/// How long a request waits on the server for entries, in milliseconds.
const BLOCK_MS: u64 = 5_000;
/// How often the stream is asked whether something was lost, at most.
const LOSS_CHECK_EVERY: Duration = Duration::from_secs(1);

/// Reads a stream; see the module's page.
pub(super) struct StreamSource {
    wire: Wire,
    shared: Arc<Shared>,
    topic: TopicName,
    partition: u32,
    key: String,
    doing: String,
    phase: Phase,
    entries: Entries,
    /// When the outstanding request was sent.
    asked: Instant,
    pace: Pace,
    losses: Losses,
}

/// Which reply comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// None: nothing was asked.
    Idle,
    /// That of `XINFO STREAM`, then that of `XREAD`.
    Info,
    /// The beginning of that of `XREAD`.
    Header,
    /// Entries.
    Entries,
}

impl StreamSource {
    /// Finds the place and connects.
    pub(super) async fn open(
        shared: &Arc<Shared>,
        topic: &TopicName,
        partition: u32,
        key: &str,
        from: ReadFrom,
    ) -> Result<Self, BrokerError> {
        let control = &shared.control;
        let doing = format!("read the stream `{key}`");
        let mut losses = Losses::default();
        let place = match from {
            ReadFrom::Earliest => EntryId::ZERO,
            ReadFrom::Latest => {
                let info = control.ask_all(&doing, &[vec![b"XINFO", b"STREAM", key.as_bytes()]]).await?;
                let info = info.first().map(StreamInfo::read).transpose();
                let info = info.map_err(|line| control.node.refused(&doing, line))?.flatten();
                info.map(|info| info.last_generated).unwrap_or_default()
            }
            ReadFrom::Time(time) => {
                let ms = u64::try_from(time.as_millis()).unwrap_or_default();
                EntryId { ms, seq: 0 }.previous()
            }
            ReadFrom::At(offset) => entry_id(control, offset)?.previous(),
            ReadFrom::After(offset) => {
                let place = entry_id(control, offset)?;
                losses.read = read_by_group_at(control, key, place, &doing).await?;
                place
            }
        };
        let wire = Wire::open(&shared.nodes.owner_now(key).await?).await?;
        Ok(Self {
            wire,
            shared: Arc::clone(shared),
            topic: topic.clone(),
            partition,
            key: key.to_owned(),
            doing,
            phase: Phase::Idle,
            entries: Entries { left: 0, place },
            asked: Instant::now(),
            pace: Pace::new(),
            losses,
        })
    }

    async fn request(&mut self, limit: BatchLimit) -> Result<(), BrokerError> {
        let key = self.key.as_bytes();
        let checks = self.losses.due();
        if checks {
            command(&mut self.wire.outbox, &[b"XINFO", b"STREAM", key]);
        }
        let count = self.pace.count(limit).to_string();
        let block = BLOCK_MS.to_string();
        let place = self.entries.place.to_string();
        let arguments: &[&[u8]] =
            &[b"XREAD", b"COUNT", count.as_bytes(), b"BLOCK", block.as_bytes(), b"STREAMS", key, place.as_bytes()];
        command(&mut self.wire.outbox, arguments);
        self.phase = if checks { Phase::Info } else { Phase::Header };
        self.asked = Instant::now();
        self.wire.send(&self.doing).await
    }

    /// Takes what came; tells what is missing. `All` leaves the source idle.
    fn take(&mut self, page: &mut Page<'_>) -> Result<Took, BrokerError> {
        loop {
            let mut scanner = Scanner::new(self.wire.unread());
            let scanned = match self.phase {
                Phase::Idle => return Ok(Took::All),
                Phase::Info => scanner.reply().map(Next::Info),
                Phase::Header => stream_header(&mut scanner).map(Next::Entries),
                Phase::Entries => {
                    let before = self.entries.left;
                    let taken = page.take(self.wire.unread(), &mut self.entries);
                    let (took, read) = taken.map_err(|what| self.wire.node.garbled(&self.doing, what))?;
                    self.wire.consume(read);
                    self.losses.advance(before - self.entries.left);
                    if took == Took::All {
                        self.phase = Phase::Idle;
                    }
                    return Ok(took);
                }
            };
            let read = scanner.at();
            match scanned {
                Err(super::resp::Stop::More) => return Ok(Took::More),
                Err(super::resp::Stop::Malformed(what)) => return Err(self.wire.node.garbled(&self.doing, what)),
                Ok(Next::Info(reply)) => {
                    let info = StreamInfo::read(&reply).map_err(|line| self.wire.node.refused(&self.doing, line))?;
                    page.lost += self.losses.check(info, self.entries.place);
                    self.phase = Phase::Header;
                }
                Ok(Next::Entries(Err(line))) => return Err(self.wire.node.refused(&self.doing, &line)),
                Ok(Next::Entries(Ok(left))) => {
                    self.entries.left = left;
                    self.phase = Phase::Entries;
                }
            }
            self.wire.consume(read);
        }
    }

    /// A topic that gets partitions takes its stream along under another name, and nothing comes under this one any more.
    async fn check_name(&mut self) -> Result<(), BrokerError> {
        let layout = self.shared.topics.layout(&self.topic).await?;
        if !layout.exists || layout.keys.get(self.partition as usize) == Some(&self.key) {
            return Ok(());
        }
        Err(self.shared.node.error(
            BrokerErrorKind::Unavailable,
            format_args!("could not {}: it has another name since its topic got partitions; read it anew", self.doing),
        ))
    }

    /// Fills the page until it is full, the reply ends or `deadline` passes without an entry.
    async fn fill(&mut self, page: &mut Page<'_>, limit: BatchLimit, deadline: Instant) -> Result<(), BrokerError> {
        loop {
            if self.phase == Phase::Idle {
                self.request(limit).await?;
            }
            let took = self.take(page)?;
            if took == Took::Full || (took == Took::All && page.entries() > 0) {
                return Ok(());
            }
            if took == Took::All {
                if Instant::now() >= deadline {
                    return Ok(());
                }
                continue;
            }
            // A reply that began comes to its end; for its beginning we wait no longer than we were asked to.
            let begun = self.phase == Phase::Entries;
            let wait = if begun { self.wire.node.timeout } else { deadline.saturating_duration_since(Instant::now()) };
            if !self.wire.fill_within(&self.doing, wait).await? {
                if begun || self.asked.elapsed() > Duration::from_millis(BLOCK_MS) + self.wire.node.timeout {
                    return Err(self.wire.node.late(&self.doing));
                }
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Source for StreamSource {
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        let deadline = Instant::now() + wait;
        let topic = self.topic.clone();
        let mut page = Page::new(&topic, self.partition, limit, (self.shared.clock)());
        self.fill(&mut page, limit, deadline).await?;
        self.pace.saw(&page);
        if page.entries() == 0 {
            self.wire.rest();
            self.check_name().await?;
        } else if self.phase == Phase::Idle {
            self.request(limit).await?;
        }
        Ok(page.finish())
    }
}

enum Next {
    Info(Reply),
    Entries(Result<usize, Vec<u8>>),
}

/// The beginning of a reply about one stream: how many entries follow, or the server's error.
pub(super) fn stream_header(scanner: &mut Scanner<'_>) -> Scan<Result<usize, Vec<u8>>> {
    use super::resp::Stop::Malformed;
    if let Some(line) = scanner.error()? {
        return Ok(Err(line.to_vec()));
    }
    match scanner.array()? {
        None | Some(0) => return Ok(Ok(0)),
        Some(1) => {}
        Some(_) => return Err(Malformed("a reply about one stream tells of several")),
    }
    if scanner.array()? != Some(2) {
        return Err(Malformed("a stream is not a name and its entries"));
    }
    scanner.bulk()?;
    Ok(Ok(scanner.array()?.unwrap_or_default()))
}

/// The entry id that an offset is.
pub(super) fn entry_id(control: &Control, offset: Offset) -> Result<EntryId, BrokerError> {
    match offset {
        Offset::Entry { ms, seq } => Ok(EntryId { ms, seq }),
        Offset::Number(number) => Err(control.node.invalid(format_args!(
            "{number} is not an offset of a Redis stream, which is written like 1526919030474-55"
        ))),
    }
}

/// How many entries were added up to `place`, if a group stands there that knows.
async fn read_by_group_at(
    control: &Control,
    key: &str,
    place: EntryId,
    doing: &str,
) -> Result<Option<u64>, BrokerError> {
    let replies = control.ask_all(doing, &[vec![b"XINFO", b"GROUPS", key.as_bytes()]]).await?;
    let groups = replies.first().map(Reply::elements).unwrap_or_default();
    let there = groups.iter().filter(|group| group.field("last-delivered-id").and_then(Reply::id) == Some(place));
    Ok(there.filter_map(|group| group.field("entries-read")?.count()).max())
}

/// Counts what is removed before it is read; see the module's page.
#[derive(Default)]
struct Losses {
    /// How many entries were ever added up to our place, if we know.
    read: Option<u64>,
    checked: Option<Instant>,
}

impl Losses {
    fn due(&mut self) -> bool {
        let due = self.checked.is_none_or(|checked| checked.elapsed() >= LOSS_CHECK_EVERY);
        if due {
            self.checked = Some(Instant::now());
        }
        due
    }

    fn advance(&mut self, entries: usize) {
        self.read = self.read.map(|read| read + entries as u64);
    }

    /// How many entries up to `place` were removed unread since the last check.
    fn check(&mut self, info: Option<StreamInfo>, place: EntryId) -> u64 {
        let Some(info) = info else {
            // The stream was deleted: a new one counts from 0.
            self.read = None;
            return 0;
        };
        let Some(upto) = added_upto(&info, place) else { return 0 };
        let lost = self.read.map_or(0, |read| upto.saturating_sub(read));
        self.read = Some(upto);
        lost
    }
}

/// How many entries were ever added up to `place`, as far as the stream tells.
pub(super) fn added_upto(info: &StreamInfo, place: EntryId) -> Option<u64> {
    let added = info.added?;
    if place >= info.last_generated {
        Some(added)
    } else if info.first.is_none_or(|first| first > place) {
        added.checked_sub(info.length)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(first: u64, last: u64, length: u64) -> Option<StreamInfo> {
        let id = |ms| EntryId { ms, seq: 0 };
        Some(StreamInfo {
            length,
            first: (length > 0).then_some(id(first)),
            last: (length > 0).then_some(id(last)),
            last_generated: id(last),
            added: Some(last),
        })
    }

    #[test]
    fn what_was_trimmed_unread_is_counted_once() {
        let id = |ms| EntryId { ms, seq: 0 };
        let mut losses = Losses::default();
        assert_eq!(losses.check(info(1, 10, 10), EntryId::ZERO), 0);
        losses.advance(4);
        assert_eq!(losses.check(info(3, 12, 10), id(4)), 0, "trimmed behind us");
        assert_eq!(losses.check(info(8, 12, 5), id(4)), 3, "5, 6 and 7");
        assert_eq!(losses.check(info(8, 12, 5), id(4)), 0, "counted already");
        losses.advance(5);
        assert_eq!(losses.check(info(30, 40, 11), id(12)), 17);
        losses.advance(2);
        assert_eq!(losses.check(info(40, 40, 0), id(40)), 9, "removed while we read: told at the end of the stream");
        assert_eq!(losses.check(None, id(40)), 0);
        assert_eq!(losses.check(info(1, 2, 2), id(40)), 0, "a new stream");
    }

    #[test]
    fn headers_of_replies_about_one_stream() {
        let read = |bytes: &str| stream_header(&mut Scanner::new(bytes.as_bytes()));
        assert_eq!(read("*-1\r\n"), Ok(Ok(0)));
        assert_eq!(read("*1\r\n*2\r\n$1\r\ns\r\n*7\r\n"), Ok(Ok(7)));
        assert_eq!(read("-NOGROUP none\r\n"), Ok(Err(b"NOGROUP none".to_vec())));
        assert_eq!(read("*1\r\n*2\r\n$1\r\n"), Err(super::super::resp::Stop::More));
        assert!(matches!(read("*2\r\n"), Err(super::super::resp::Stop::Malformed(_))));
    }
}
