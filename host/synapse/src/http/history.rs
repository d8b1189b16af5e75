//! Reading what a topic holds: pages of JSON, or NDJSON as long as it takes.
//!
//! A range ends at what was there when the request came, so it always ends. Partitions are read side by side and merged
//! by the events' own times as far as the order within each partition allows; an event without a time comes at once.
//! Memory is bounded by one poll of each partition and, for a page, by the page.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::try_unfold;
use serde::Deserialize;
use synapse_core::broker::{BatchLimit, PartitionInfo, TopicInfo};
use synapse_core::codec::cloudevents;
use synapse_core::event::EventRef;
use synapse_core::spec::ReadFrom;
use synapse_core::topic::{Position, TopicPartition, TopicPath};
use synapse_core::{Broker, BrokerError, Offset, Pattern, Source, SourceBatch, Timestamp};

use super::cursor::{Bound, Cursor};
use super::problem::{Kind, Problem};
use super::{Host, Name, Params, live, view};

/// Events of a page, if the client does not say; and at most.
const PAGE_EVENTS: usize = 1000;
const PAGE_EVENTS_MAX: usize = 10_000;

/// Bytes of a page at which it ends early; and of one piece of NDJSON.
const PAGE_BYTES: usize = 16 << 20;
const PIECE_BYTES: usize = 64 << 10;

/// Bytes in memory for all partitions of one request, as far as single events do not take more.
const READ_BYTES: usize = 4 << 20;

/// Entries that are no events at which a page ends early.
const PAGE_UNDECODABLE: usize = 1_000;

/// How long a broker may take to hand out what it says it has.
const POLL_WAIT: Duration = Duration::from_secs(2);

/// How long to look for an event at or after a time; none may ever come.
const TIME_WAIT: Duration = Duration::from_millis(500);

/// Which events are wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    broker: Option<String>,
}

impl Wanted {
    /// Where to begin, if the client says so.
    pub(super) fn from(&self) -> Result<Option<Cursor>, Problem> {
        self.from.as_deref().map(|text| cursor("from", text)).transpose()
    }

    pub(super) fn to(&self) -> Result<Option<Bound>, Problem> {
        let parse = |text: &str| text.parse().map_err(|_| no_place("to", text, ""));
        self.to.as_deref().map(parse).transpose()
    }

    pub(super) fn limit(&self) -> Result<Option<usize>, Problem> {
        let Some(text) = &self.limit else { return Ok(None) };
        let limit = text.parse().ok().filter(|limit| *limit > 0);
        limit.map(Some).ok_or_else(|| {
            let text: String = text.chars().take(100).collect();
            let detail = format!("`limit` is `{}`, not a number of events, which is 1 or more", text.escape_debug());
            Problem::new(Kind::BadRequest, detail)
        })
    }

    /// The types that are wanted.
    pub(super) fn kind(&self) -> Result<Option<Pattern>, Problem> {
        let parsed = self.kind.as_deref().map(str::parse).transpose();
        parsed.map_err(|error: synapse_core::pattern::PatternError| {
            Problem::new(Kind::BadRequest, format!("`type`: {error}"))
        })
    }
}

/// Reads the place that a client gives.
pub(super) fn cursor(name: &str, text: &str) -> Result<Cursor, Problem> {
    text.parse().map_err(|_| no_place(name, text, ", or `next` of an earlier answer"))
}

fn no_place(name: &str, text: &str, more: &str) -> Problem {
    let text: String = text.chars().take(100).collect();
    let detail = format!(
        "`{name}` is `{}`, not a place: earliest, latest, a time such as 2026-01-31T12:00:00Z, or an offset such as 17{more}",
        text.escape_debug()
    );
    Problem::new(Kind::BadRequest, detail)
}

/// `GET /v1/topics/{topic}/events`: history, or a live stream, as `accept` asks for.
pub(super) async fn events(
    State(host): State<Host>,
    Name(name): Name,
    Params(wanted): Params<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (path, broker, info) = host.existing(&name, wanted.broker.as_deref()).await?;
    if accepts(&headers, &["text/event-stream"]) {
        return live::stream(&host, path, broker, &info, &wanted, &headers).await;
    }
    let lines = accepts(&headers, &["application/x-ndjson", "application/ndjson", "application/jsonl"]);
    let from = wanted.from()?.unwrap_or_else(|| Cursor::new(Bound::Earliest));
    let to = wanted.to()?.unwrap_or(Bound::Latest);
    let limit = match wanted.limit()? {
        Some(limit) if !lines && limit > PAGE_EVENTS_MAX => {
            let detail = format!(
                "a page has at most {PAGE_EVENTS_MAX} events; follow `next`, or ask for application/x-ndjson, which has no bound"
            );
            return Err(Problem::new(Kind::BadRequest, detail));
        }
        Some(limit) => limit,
        None if lines => usize::MAX,
        None => PAGE_EVENTS,
    };
    let range = Range { path, kind: wanted.kind()?, from, to };
    let undecodable_max = (!lines).then_some(PAGE_UNDECODABLE);
    let reading = Reading::open(broker.as_ref(), &info, range, undecodable_max).await?;
    if lines { Ok(as_lines(host, reading, limit)) } else { as_page(&host, reading, limit).await }
}

/// Whether one of these media types is asked for.
fn accepts(headers: &HeaderMap, media: &[&str]) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut asked = values.flat_map(|value| value.split(','));
    asked.any(|part| {
        let name = part.split(';').next().unwrap_or_default().trim();
        media.iter().any(|media| name.eq_ignore_ascii_case(media))
    })
}

async fn as_page(host: &Host, mut reading: Reading, limit: usize) -> Result<Response, Problem> {
    let mut json = br#"{"events":["#.to_vec();
    let mut count = 0;
    let all = async {
        while count < limit && json.len() < PAGE_BYTES {
            let comma = if count == 0 { "" } else { "," };
            if !reading.next(comma, &mut json).await? {
                break;
            }
            count += 1;
        }
        reading.has_more().await
    };
    let more = host.ending.run_until_cancelled(all).await.ok_or_else(ending)?;
    let more = more.map_err(Problem::from)?;
    json.push(b']');
    let end = serde_json::to_vec(&reading.page_end(more)).expect("texts become JSON");
    // The rest of the page is an object of its own: its members follow `events`.
    if end.len() > 2 {
        json.push(b',');
    }
    json.extend_from_slice(&end[1..]);
    Ok(([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], json).into_response())
}

fn as_lines(host: Host, reading: Reading, limit: usize) -> Response {
    let pieces = try_unfold((host, reading, limit), |(host, mut reading, mut left)| async move {
        let mut lines = Vec::with_capacity(PIECE_BYTES);
        let fill = async {
            while left > 0 && lines.len() < PIECE_BYTES && reading.next("", &mut lines).await? {
                lines.push(b'\n');
                left -= 1;
            }
            Ok(())
        };
        // After an error the answer breaks off, so that nobody takes it for the whole.
        let filled: Result<(), BrokerError> = match host.ending.run_until_cancelled(fill).await {
            Some(filled) => filled,
            None => return Err("the host is ending".into()),
        };
        if let Err(error) = filled {
            tracing::warn!(%error, topic = %reading.range.path, "a read of history breaks off");
            return Err(axum::BoxError::from(error));
        }
        Ok((!lines.is_empty()).then(|| (Bytes::from(lines), (host, reading, left))))
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(pieces)).into_response()
}

fn ending() -> Problem {
    Problem::new(Kind::Ending, "the host is ending; ask again once it is back")
}

/// Which part of a topic is read.
struct Range {
    path: TopicPath,
    kind: Option<Pattern>,
    from: Cursor,
    to: Bound,
}

/// A read of a range under way. Its cursor is behind everything that was handed out.
struct Reading {
    range: Range,
    heads: Vec<Head>,
    limit: BatchLimit,
    undecodable: Vec<(u32, Offset, String)>,
    /// With so many of them nothing more is polled; without a number they are passed over.
    undecodable_max: Option<usize>,
}

/// One partition of it.
struct Head {
    partition: u32,
    source: Box<dyn Source>,
    wait: Duration,
    /// The last entry of the range.
    last: Offset,
    /// The first entry behind the range, if the client named one.
    end: Option<Offset>,
    batch: SourceBatch,
    /// The next row of `batch`, and the first one that does not belong to the range.
    row: usize,
    rows: usize,
    /// Everything up to here is done with once `row` has come to `rows`.
    covered: Option<Offset>,
    finished: bool,
}

impl Reading {
    async fn open(
        broker: &dyn Broker,
        info: &TopicInfo,
        range: Range,
        undecodable_max: Option<usize>,
    ) -> Result<Self, BrokerError> {
        let heads = (0..).zip(&info.partitions).map(|(partition, info)| head(broker, &range, partition, info));
        let heads: Vec<Head> = try_join_all(heads).await?.into_iter().flatten().collect();
        let bytes_max = (READ_BYTES / heads.len().max(1)).clamp(4 << 10, PIECE_BYTES);
        let limit = BatchLimit { bytes_max, ..BatchLimit::default() };
        Ok(Self { range, heads, limit, undecodable: Vec::new(), undecodable_max })
    }

    /// Appends `before` and the next event that is wanted, and tells whether there was one that could be had.
    async fn next(&mut self, before: &str, out: &mut Vec<u8>) -> Result<bool, BrokerError> {
        loop {
            self.fill().await?;
            if self.heads.iter().any(|head| head.row == head.rows) {
                // Too many entries that are no events: what this partition has next is not known.
                return Ok(false);
            }
            let first = self.heads.iter_mut().filter(|head| head.row < head.rows).min_by_key(|head| head.time());
            let Some(head) = first else { return Ok(false) };
            let (partition, offset) = (head.partition, head.batch.offsets[head.row]);
            let event = head.batch.events.event(head.row);
            let wanted = self.range.kind.as_ref().is_none_or(|kind| kind.matches(event.kind()));
            if wanted {
                out.extend_from_slice(before.as_bytes());
                write(event, &self.range.path, partition, offset, out);
            }
            head.row += 1;
            self.range.from.advance(partition, offset);
            head.pass(&mut self.range.from);
            if wanted {
                return Ok(true);
            }
        }
    }

    /// Whether anything is left, of whatever type.
    async fn has_more(&mut self) -> Result<bool, BrokerError> {
        self.fill().await?;
        Ok(!self.heads.is_empty())
    }

    /// Makes sure that every partition which has something left has a row ready, unless too many entries are no events.
    async fn fill(&mut self) -> Result<(), BrokerError> {
        let (limit, undecodable_max) = (self.limit, self.undecodable_max);
        if undecodable_max.is_some_and(|max| self.undecodable.len() >= max) {
            self.heads.retain(|head| head.row < head.rows || !head.finished);
            return Ok(());
        }
        let empty = self.heads.iter_mut().filter(|head| head.row == head.rows && !head.finished);
        let polled = try_join_all(empty.map(|head| head.fill(limit, undecodable_max))).await?;
        self.undecodable.extend(polled.into_iter().flatten());
        for head in &self.heads {
            head.pass(&mut self.range.from);
        }
        self.heads.retain(|head| head.row < head.rows || !head.finished);
        Ok(())
    }

    fn page_end(self, more: bool) -> view::PageEnd {
        let done = |(partition, offset, _): &(u32, Offset, String)| self.range.from.covers(*partition, *offset);
        let undecodable = self.undecodable.iter().filter(|entry| done(entry)).map(|(partition, offset, reason)| {
            view::Undecodable { position: position(&self.range.path, *partition, *offset), reason: reason.clone() }
        });
        view::PageEnd { undecodable: undecodable.collect(), next: more.then(|| self.range.from.to_string()) }
    }
}

/// Opens one partition, if the range holds anything of it.
async fn head(
    broker: &dyn Broker,
    range: &Range,
    partition: u32,
    info: &PartitionInfo,
) -> Result<Option<Head>, BrokerError> {
    let Some(last) = info.latest else { return Ok(None) };
    let topic = &range.path.topic;
    let start = range.from.start(partition);
    // Whether nothing is left; offsets of the wrong kind are for the broker to refuse.
    let same_kind = |offset: &Offset| std::mem::discriminant(offset) == std::mem::discriminant(&last);
    let past = match &start {
        ReadFrom::Latest => true,
        ReadFrom::After(offset) => same_kind(offset) && *offset >= last,
        ReadFrom::At(offset) => same_kind(offset) && *offset > last,
        ReadFrom::Earliest | ReadFrom::Time(_) => false,
    };
    if past || range.to == Bound::Earliest {
        return Ok(None);
    }
    let end = match range.to {
        Bound::Earliest | Bound::Latest => None,
        Bound::Offset(offset) => Some(offset),
        Bound::Time(time) => {
            let mut source = broker.read(topic, partition, ReadFrom::Time(time)).await?;
            let first = source.poll(BatchLimit { events_max: 1, bytes_max: 1 }, TIME_WAIT).await?;
            first.covered().min()
        }
    };
    let wait = if matches!(start, ReadFrom::Time(_)) { TIME_WAIT } else { POLL_WAIT };
    let source = broker.read(topic, partition, start).await?;
    let batch = SourceBatch::default();
    Ok(Some(Head { partition, source, wait, last, end, batch, row: 0, rows: 0, covered: None, finished: false }))
}

impl Head {
    fn time(&self) -> Option<Timestamp> {
        self.batch.events.event(self.row).time()
    }

    fn within(&self, offset: Offset) -> bool {
        offset <= self.last && self.end.is_none_or(|end| offset < end)
    }

    /// Polls until a row is there, the range is at its end, or too many entries were no events. Hands these out, if
    /// there is a bound on them.
    async fn fill(
        &mut self,
        limit: BatchLimit,
        undecodable_max: Option<usize>,
    ) -> Result<Vec<(u32, Offset, String)>, BrokerError> {
        let mut undecodable = Vec::new();
        let is_full = |undecodable: &Vec<_>| undecodable_max.is_some_and(|max| undecodable.len() >= max);
        while self.row == self.rows && !self.finished && !is_full(&undecodable) {
            let batch = self.source.poll(limit, self.wait).await?;
            (self.row, self.rows) = (0, batch.offsets.iter().take_while(|offset| self.within(**offset)).count());
            let found = batch.undecodable.iter().filter(|entry| self.within(entry.offset));
            if undecodable_max.is_some() {
                undecodable.extend(found.map(|entry| (self.partition, entry.offset, entry.reason.clone())));
            }
            self.covered = batch.covered().filter(|offset| self.within(*offset)).max();
            // An empty batch: what was there when the request came has been trimmed since.
            self.finished =
                batch.is_empty() || batch.last().is_some_and(|last| last >= self.last || !self.within(last));
            self.batch = batch;
        }
        Ok(undecodable)
    }

    /// Moves the cursor over entries behind the last row that were no events.
    fn pass(&self, cursor: &mut Cursor) {
        if self.row == self.rows
            && let Some(covered) = self.covered
        {
            cursor.advance(self.partition, covered);
        }
    }
}

/// Writes an event with its place.
pub(super) fn write(event: EventRef<'_>, path: &TopicPath, partition: u32, offset: Offset, out: &mut Vec<u8>) {
    cloudevents::encode(event, Some(&position(path, partition, offset)), out);
}

/// A place in a topic.
pub(super) fn position(path: &TopicPath, partition: u32, offset: Offset) -> Position {
    Position { at: TopicPartition { topic: path.clone(), partition }, offset }
}
