//! Live streams: events as they come, as server-sent events.
//!
//! The id of every event is a cursor over all partitions, so a client that comes back with `Last-Event-ID` misses
//! nothing and sees nothing twice, whatever it saw last. Nothing is read ahead of a client but one poll of each
//! partition: who reads slowly falls behind in the topic, not in our memory. A poll that is under way when the client
//! leaves is dropped together with its source.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, unfold};
use serde::Serialize;
use synapse_core::broker::{BatchLimit, TopicInfo};
use synapse_core::topic::{TopicPartition, TopicPath};
use synapse_core::{Broker, BrokerError, Pattern, Source, SourceBatch};
use tokio_util::sync::CancellationToken;

use super::cursor::{Bound, Cursor};
use super::history::{self, Wanted};
use super::problem::{Kind, Problem};
use super::{Counted, Host, view};

/// How long a browser should wait before it comes back, in milliseconds.
const RETRY_MS: u32 = 1000;

/// Answers with a stream that has no end of its own, unless `limit` gives it one.
pub(super) async fn stream(
    host: &Host,
    path: TopicPath,
    broker: Arc<dyn Broker>,
    info: &TopicInfo,
    wanted: &Wanted,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    if wanted.to()?.is_some() {
        return Err(Problem::new(Kind::BadRequest, "a live stream has no end: leave `to` out, or ask for history"));
    }
    let mut cursor = match last_event_id(headers)? {
        Some(cursor) => cursor,
        None => wanted.from()?.unwrap_or_else(|| Cursor::new(Bound::Latest)),
    };
    cursor.pin(info);
    let mut live = Live {
        path,
        broker,
        kind: wanted.kind()?,
        left: wanted.limit()?.unwrap_or(usize::MAX),
        out: format!("retry: {RETRY_MS}\nid: {cursor}\n\n").into_bytes(),
        cursor,
        partitions: 0,
        polls: FuturesUnordered::new(),
        heartbeat: host.limits().heartbeat,
        told: Instant::now(),
        ending: host.ending.clone(),
        over: false,
        _counted: Counted::new(&host.api.0.metrics.streams),
    };
    live.open_up_to(info.partitions.len()).await?;
    let pieces = unfold(live, |mut live| async move {
        let piece = live.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), live))
    });
    // The last header asks reverse proxies not to hold the stream back.
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-store"),
        ("x-accel-buffering", "no"),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Cursor>, Problem> {
    let Some(id) = headers.get("last-event-id").filter(|id| !id.is_empty()) else { return Ok(None) };
    history::cursor("last-event-id", id.to_str().unwrap_or("(not text)")).map(Some)
}

struct Live {
    path: TopicPath,
    broker: Arc<dyn Broker>,
    kind: Option<Pattern>,
    /// How many more events are wanted.
    left: usize,
    /// What goes to the client next.
    out: Vec<u8>,
    /// Behind everything in `out`.
    cursor: Cursor,
    /// How many partitions are read.
    partitions: u32,
    polls: FuturesUnordered<BoxFuture<'static, Polled>>,
    heartbeat: Duration,
    /// When something was last handed to the client.
    told: Instant,
    ending: CancellationToken,
    over: bool,
    _counted: Counted,
}

/// What came of a poll; the source comes back with it.
struct Polled {
    partition: u32,
    source: Box<dyn Source>,
    result: Result<SourceBatch, BrokerError>,
}

impl Live {
    /// What to send next; `None` once the stream is over.
    async fn next(&mut self) -> Option<Bytes> {
        while self.out.is_empty() {
            if self.over || self.left == 0 {
                return None;
            }
            let polled = tokio::select! {
                polled = self.polls.next() => polled,
                () = self.ending.cancelled() => return None,
            };
            // A topic has at least one partition; without any there is nothing to wait for.
            let Polled { partition, source, result } = polled?;
            match result {
                Ok(batch) => {
                    self.write(partition, &batch);
                    self.polls.push(self.poll(partition, source));
                    self.show_alive().await;
                }
                Err(error) => self.fail(error),
            }
        }
        self.told = Instant::now();
        Some(Bytes::from(std::mem::take(&mut self.out)))
    }

    fn poll(&self, partition: u32, mut source: Box<dyn Source>) -> BoxFuture<'static, Polled> {
        let wait = self.heartbeat;
        Box::pin(async move {
            let result = source.poll(BatchLimit::default(), wait).await;
            Polled { partition, source, result }
        })
    }

    /// Reads partitions that are not read yet.
    async fn open_up_to(&mut self, count: usize) -> Result<(), BrokerError> {
        while (self.partitions as usize) < count {
            let partition = self.partitions;
            let source = self.broker.read(&self.path.topic, partition, self.cursor.start(partition)).await?;
            self.polls.push(self.poll(partition, source));
            self.partitions += 1;
        }
        Ok(())
    }

    fn write(&mut self, partition: u32, batch: &SourceBatch) {
        if batch.lost_to_trim > 0 {
            let at = TopicPartition { topic: self.path.clone(), partition };
            self.named("lost", &view::Lost { partition: at.to_string(), events: batch.lost_to_trim });
        }
        for entry in &batch.undecodable {
            let position = history::position(&self.path, partition, entry.offset);
            self.named("undecodable", &view::Undecodable { position, reason: entry.reason.clone() });
        }
        for (event, offset) in batch.events.events().zip(&batch.offsets) {
            if self.left == 0 {
                return;
            }
            self.cursor.advance(partition, *offset);
            if self.kind.as_ref().is_none_or(|kind| kind.matches(event.kind())) {
                self.out.extend_from_slice(format!("id: {}\ndata: ", self.cursor).as_bytes());
                history::write(event, &self.path, partition, *offset, &mut self.out);
                self.out.extend_from_slice(b"\n\n");
                self.left -= 1;
            }
        }
        if let Some(last) = batch.last() {
            self.cursor.advance(partition, last);
        }
    }

    /// An event beside the topic's own, with a name, which readers that do not know it pass over.
    fn named(&mut self, name: &str, data: &impl Serialize) {
        self.out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
        serde_json::to_writer(&mut self.out, data).expect("writing texts to memory does not fail");
        self.out.extend_from_slice(b"\n\n");
    }

    /// Without events: says where we are, so that a client that comes back need not start over, and looks for new
    /// partitions.
    async fn show_alive(&mut self) {
        if !self.out.is_empty() || self.told.elapsed() < self.heartbeat {
            return;
        }
        self.out.extend_from_slice(format!(": alive\nid: {}\n\n", self.cursor).as_bytes());
        let found = match self.broker.topic(&self.path.topic).await {
            Ok(Some(info)) => self.open_up_to(info.partitions.len()).await,
            // A topic that is gone fails the polls, too.
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = found {
            self.fail(error);
        }
    }

    /// Tells the client why, and ends; it comes back by itself.
    fn fail(&mut self, error: BrokerError) {
        tracing::warn!(%error, topic = %self.path, "a live stream ends");
        self.named("problem", &Problem::from(error).view());
        self.over = true;
    }
}
