//! Publishing: one event, a batch, or NDJSON without end.
//!
//! Nothing is acknowledged before the broker has made it durable. One event or a batch is taken whole or not at all, as
//! far as the broker can. NDJSON is published as it comes, in order, with bounded memory; a line that is no event ends
//! it, and the answer says what is durable all the same.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde::Deserialize;
use synapse_core::codec::{DecodeError, cloudevents, headers};
use synapse_core::spec::Encoding;
use synapse_core::topic::{Position, TopicPath};
use synapse_core::{Batch, Broker, Output};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::problem::{Kind, Problem};
use super::{BODY_UNIT, Host, Name, Params, history, view};

/// How much of NDJSON is published at once.
const BATCH_EVENTS: usize = 512;
const BATCH_BYTES: usize = 64 << 10;

/// What is read and forgotten of a body that was refused, so that the client gets to read the answer.
const DISCARD_BYTES: usize = 16 << 20;
const DISCARD_WAIT: Duration = Duration::from_secs(2);

/// Which broker is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Where {
    broker: Option<String>,
}

/// `POST /v1/topics/{topic}/events`.
pub(super) async fn publish(
    State(host): State<Host>,
    Name(name): Name,
    Params(wanted): Params<Where>,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Response, Problem> {
    let answered = answer(&host, &name, wanted.broker.as_deref(), &headers, &mut body).await;
    if answered.is_err() {
        discard(&mut body).await;
    }
    answered
}

async fn answer(
    host: &Host,
    name: &str,
    broker: Option<&str>,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Response, Problem> {
    let (path, broker) = host.topic(name, broker)?;
    let form = Form::of(headers)?;
    ensure(host, &path, broker.as_ref()).await?;
    let target = Target { host, path, broker: broker.as_ref() };
    if form == Form::Lines {
        return target.lines(body).await.map(|accepted| (StatusCode::ACCEPTED, Json(accepted)).into_response());
    }
    let (bytes, _room) = whole(host, headers, body).await?;
    let mut batch = Batch::default();
    form.decode(headers, &bytes, &mut batch).map_err(|error| Problem::new(Kind::NotAnEvent, error.to_string()))?;
    drop(bytes);
    let positions = target.publish(batch).await?;
    Ok((StatusCode::ACCEPTED, Json(view::Published { positions })).into_response())
}

/// How events lie in a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One event in headers and body.
    Binary,
    /// One event as JSON.
    Structured,
    /// A JSON array of events.
    Batched,
    /// One event as JSON on each line.
    Lines,
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let wrong = |detail: String| Err(Problem::new(Kind::WrongMediaType, detail));
        if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return wrong(format!("`content-encoding` is {encoding:?}: send the body as it is"));
        }
        let content_type = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
        let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media.as_str() {
            "application/cloudevents+json" => Ok(Self::Structured),
            "application/cloudevents-batch+json" => Ok(Self::Batched),
            _ if media.starts_with("application/cloudevents") => {
                wrong(format!("`{media}` is not read here; use application/cloudevents+json"))
            }
            _ if headers.keys().any(|name| name.as_str().starts_with("ce-")) => Ok(Self::Binary),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Self::Lines),
            _ => wrong(
                "send application/cloudevents+json (one event), application/cloudevents-batch+json (an array), \
                 application/x-ndjson (one event a line), or any type with the event's attributes as ce-* headers"
                    .to_owned(),
            ),
        }
    }

    fn decode(self, headers: &HeaderMap, body: &[u8], into: &mut Batch) -> Result<(), DecodeError> {
        match self {
            Self::Binary => {
                let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
                headers::decode(headers::HTTP, pairs, None, body, None, into)
            }
            Self::Structured | Self::Lines => cloudevents::decode(body, into),
            Self::Batched => cloudevents::decode_batch(body, into).map(drop),
        }
    }
}

/// A configured topic is made as it is configured, not as publishing would make it.
async fn ensure(host: &Host, path: &TopicPath, broker: &dyn Broker) -> Result<(), Problem> {
    let Some(spec) = host.api.0.topics.borrow().get(path).cloned() else { return Ok(()) };
    let ensured = || host.api.0.ensured.lock().expect("nobody panics while holding the lock");
    if ensured().get(path) != Some(&spec) {
        broker.ensure_topic(&path.topic, &spec).await?;
        ensured().insert(path.clone(), spec);
    }
    Ok(())
}

/// The whole of a body that is small enough, and the room that it takes.
async fn whole<'h>(
    host: &'h Host,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<(Bytes, SemaphorePermit<'h>), Problem> {
    let limits = host.limits();
    let too_large = || {
        let max = limits.body_bytes_max;
        let detail = format!("a body that is not NDJSON holds at most {max} bytes; send application/x-ndjson");
        Problem::new(Kind::TooLarge, detail)
    };
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let bytes_max = announced.unwrap_or(limits.body_bytes_max);
    if bytes_max > limits.body_bytes_max {
        return Err(too_large());
    }
    let all = async {
        let units = bytes_max.div_ceil(BODY_UNIT).min(limits.bodies_bytes_max.div_ceil(BODY_UNIT));
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = host.api.0.bodies.acquire_many(units).await.expect("the semaphore is never closed");
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            let data = frame.into_data().unwrap_or_default();
            if bytes.len() + data.len() > limits.body_bytes_max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.freeze(), room))
    };
    timeout(limits.body_wait_max, all).await.unwrap_or_else(|_| {
        let seconds = limits.body_wait_max.as_secs();
        Err(Problem::new(Kind::TooSlow, format!("the body did not arrive within {seconds} s")))
    })
}

fn broken(error: &axum::Error) -> Problem {
    Problem::new(Kind::BadRequest, format!("the body broke off: {error}"))
}

async fn discard(body: &mut Body) {
    let some = async {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(size) else { return };
            left = rest;
        }
    };
    // Whoever sends slower than this has to do without an answer.
    let _ = timeout(DISCARD_WAIT, some).await;
}

/// Where events go.
struct Target<'h> {
    host: &'h Host,
    path: TopicPath,
    broker: &'h dyn Broker,
}

impl Target<'_> {
    /// Makes events durable and tells where they lie.
    async fn publish(&self, events: Batch) -> Result<Vec<Position>, Problem> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let output = Output { topic: self.path.clone(), encoding: Encoding::CloudEvents, events: Arc::new(events) };
        let places = self.broker.publish(&output).await?;
        let published = self.host.api.0.metrics.published.with_label_values(&[self.path.broker.as_str()]);
        published.inc_by(places.len() as u64);
        Ok(places.into_iter().map(|(partition, offset)| history::position(&self.path, partition, offset)).collect())
    }

    /// Publishes line by line until the body ends. What has arrived is not held back for more to come.
    async fn lines(&self, body: &mut Body) -> Result<view::Accepted, Problem> {
        let mut upload = Upload {
            target: self,
            batch: Batch::default(),
            begun: Vec::new(),
            line: 0,
            done: view::Accepted::default(),
        };
        loop {
            let frame = match body.frame().now_or_never() {
                Some(frame) => frame,
                None => {
                    upload.flush().await?;
                    match self.host.ending.run_until_cancelled(body.frame()).await {
                        Some(frame) => frame,
                        None => return Err(upload.problem(Kind::Ending, None, "the host is ending")),
                    }
                }
            };
            match frame {
                None => break,
                Some(Ok(frame)) => upload.take(&frame.into_data().unwrap_or_default()).await?,
                Some(Err(error)) => {
                    upload.flush().await?;
                    let (kind, reason) = broken(&error).into_parts();
                    return Err(upload.problem(kind, None, &reason));
                }
            }
        }
        // The last line may lack its line feed.
        if !upload.begun.is_empty() {
            upload.take(b"\n").await?;
        }
        upload.flush().await?;
        Ok(upload.done)
    }
}

/// NDJSON under way.
struct Upload<'t> {
    target: &'t Target<'t>,
    /// Events that are not published yet.
    batch: Batch,
    /// The line that has begun.
    begun: Vec<u8>,
    /// How many lines are complete.
    line: u64,
    done: view::Accepted,
}

impl Upload<'_> {
    async fn take(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let (line, complete, rest) = match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&bytes[..at], true, &bytes[at + 1..]),
                None => (bytes, false, &bytes[bytes.len()..]),
            };
            bytes = rest;
            if self.begun.len() + line.len() > self.target.host.limits().line_bytes_max {
                let max = self.target.host.limits().line_bytes_max;
                self.flush().await?;
                let detail = format!("is longer than {max} bytes");
                return Err(self.problem(Kind::TooLarge, Some(self.line + 1), &detail));
            }
            if !complete {
                self.begun.extend_from_slice(line);
            } else if self.begun.is_empty() {
                self.event(line).await?;
            } else {
                self.begun.extend_from_slice(line);
                let whole = std::mem::take(&mut self.begun);
                self.event(&whole).await?;
            }
        }
        Ok(())
    }

    /// Takes a complete line. Blank ones are passed over.
    async fn event(&mut self, line: &[u8]) -> Result<(), Problem> {
        self.line += 1;
        let line = if self.line == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        if let Err(error) = cloudevents::decode(line, &mut self.batch) {
            self.flush().await?;
            // The reader of JSON counts lines within this one.
            let reason = error.to_string().replace(" at line 1 column ", " at column ");
            return Err(self.problem(Kind::NotAnEvent, Some(self.line), &reason));
        }
        if self.batch.len() >= BATCH_EVENTS || self.batch.bytes().len() >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Problem> {
        let events = std::mem::take(&mut self.batch);
        let published = self.target.publish(events).await.map_err(|problem| {
            let (kind, reason) = problem.into_parts();
            if kind == Kind::BrokerUnreachable {
                return self.problem(kind, None, &reason);
            }
            let line = self.line;
            self.problem(
                kind,
                None,
                &format!("{reason}; whether the events up to line {line} are durable is not known"),
            )
        })?;
        self.done.accepted += published.len() as u64;
        let mut published = published.into_iter();
        if self.done.first.is_none() {
            self.done.first = published.next();
            self.done.last.clone_from(&self.done.first);
        }
        if let Some(last) = published.next_back() {
            self.done.last = Some(last);
        }
        Ok(())
    }

    fn problem(&self, kind: Kind, line: Option<u64>, reason: &str) -> Problem {
        Problem::lines(kind, line, reason, self.done.accepted)
    }
}
