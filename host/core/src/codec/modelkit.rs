//! The events of the platform as its own services encode them, and the schemas behind them as far as that takes.
//!
//! **fields**: every field of the event is a field of the entry, among them `event`. The type is `event`, the source
//! `source`, the time `timestamp`. Data is the JSON object of all fields: what the schema says is a number or a boolean
//! becomes one, the JSON text of an object or an array becomes that (without line breaks between its tokens), everything
//! else is a string; bytes that are no UTF-8 become `{"base64": "…"}`. A field named `dlq_…`, which some tool added to
//! a dead letter, becomes an extension attribute instead.
//!
//! **envelope**: `event_type`, `sender`, `recipient`, `priority`, `payload`, `timestamp`, `ttl_sec`. Type, source,
//! subject, extension `priority` (`normal` if absent), data as it is, time, extension `ttlsec`. Its `id` or `event_id`
//! is the event's id. An envelope expires `ttl_sec` seconds after `timestamp`; 0 is no time to live. A timestamp that
//! cannot be read makes it undecodable.
//!
//! **payload**: a JSON object in the one field `payload`, or in `event_data` of a dead letter. It may be a structured
//! CloudEvent. If it has `event`, it is read as fields are; else its type is the topic's name. Data is the text as it is.
//!
//! In all three an absent source is the topic's name, and an absent time that of the entry's id. `event_id` is the
//! event's id, `correlation_id` the extension `correlationid`; `traceparent` and `tracestate` are the extensions of these
//! names. In fields and payloads these stay in data, too, and a timestamp that cannot be read stays only there. Fields
//! that have no place in an envelope or beside a payload become extension attributes.
//!
//! Writing **fields**: the members of data, each a field, in their order: strings as they are, everything else as JSON
//! text. `event`, `timestamp`, `source`, `correlation_id`, `traceparent`, `tracestate` come from the attributes, and
//! `event_id` from the id, except an id that was made from an entry's place. What comes back is a type, a source, a
//! time, these extensions and an id of its own; of data, the members that the schema knows, and those of others that
//! are objects, arrays or strings that do not look like such (numbers and booleans that no schema knows come back as
//! strings). Subject, partition key, other extensions and the content type are lost. Data that is no JSON object of
//! distinct members goes into one field `payload` as it is, and comes back as that member of data.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::cloudevents::{self, Structured, Text};
use super::redis::{self, Decoded, Fields};
use super::{DecodeError, Extensions, Media, Origin, clip, required, text};
use crate::batch::{Batch, Row};
use crate::event::EventRef;
use crate::time::Timestamp;
use crate::topic::Offset;

/// The type of a field in its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text.
    String,
    /// Any number.
    Number,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A JSON object.
    Object,
}

/// What the schema of an event type says of a field; `None` if it does not know either. Holds for the current schemas
/// and for their older variant, which agree wherever both know a field.
pub fn field_type(event: &str, field: &str) -> Option<FieldType> {
    use FieldType::{Boolean, Integer, Number, Object, String};

    if matches!(field, "event" | "timestamp" | "source" | "correlation_id" | "model_id") {
        return is_known(event).then_some(String);
    }
    match (event, field) {
        ("model-ready", "accuracy" | "size_mb") => Some(Number),
        ("model-ready", "model_name" | "version" | "registry_path" | "model_type") => Some(String),
        ("model-loaded", "load_time_ms") => Some(Number),
        ("model-loaded", "model_name" | "version" | "cache_location") => Some(String),
        ("inference-complete" | "inference", "latency_ms" | "cost" | "confidence") => Some(Number),
        ("inference-complete" | "inference", "tokens_used") => Some(Integer),
        ("inference-complete" | "inference", "success") => Some(Boolean),
        ("inference-complete" | "inference", "input" | "output") => Some(Object),
        ("inference-complete" | "inference", "model_name" | "version" | "user_id" | "request_id") => Some(String),
        ("user-interaction" | "task-created" | "task-completed", "data") => Some(Object),
        (
            "user-interaction" | "task-created" | "task-completed",
            "service" | "action" | "user_id" | "organization_id",
        ) => Some(String),
        ("agi-decision" | "agi-action", "action" | "decision") => Some(Object),
        ("agi-decision" | "agi-action", "confidence") => Some(Number),
        ("agi-decision" | "agi-action", "decision_type" | "target_service" | "reasoning") => Some(String),
        ("training-started" | "training-complete" | "training-failed", "progress" | "loss") => Some(Number),
        ("training-started" | "training-complete" | "training-failed", "epoch") => Some(Integer),
        ("training-started" | "training-complete" | "training-failed", "metrics") => Some(Object),
        (
            "training-started" | "training-complete" | "training-failed",
            "experiment_id" | "model_name" | "status" | "training_run_request_id" | "error" | "dataset",
        ) => Some(String),
        ("error" | "model-failed" | "inference-failed", "error_type" | "message" | "traceback") => Some(String),
        ("pressure.event", "page") => Some(Integer),
        ("artifact.invalidation", "cascade") => Some(Boolean),
        ("pressure.event" | "artifact.invalidation" | "splice.event", "data") => Some(Object),
        ("pressure.event", "document_id" | "section_id" | "pressure_event_type" | "artifact_id") => Some(String),
        ("artifact.invalidation", "document_id" | "reason" | "artifact_id") => Some(String),
        ("splice.event", "document_id" | "splice_id") => Some(String),
        (_, "metadata") if is_known(event) => Some(Object),
        _ => None,
    }
}

fn is_known(event: &str) -> bool {
    matches!(
        event,
        "model-ready"
            | "model-loaded"
            | "inference-complete"
            | "inference"
            | "user-interaction"
            | "task-created"
            | "task-completed"
            | "agi-decision"
            | "agi-action"
            | "training-started"
            | "training-complete"
            | "training-failed"
            | "error"
            | "model-failed"
            | "inference-failed"
            | "pressure.event"
            | "artifact.invalidation"
            | "splice.event"
    )
}

/// Appends the event of an entry in one of the three encodings.
pub(super) fn decode_entry(
    fields: &Fields<'_>,
    origin: &Origin<'_>,
    now: Timestamp,
    into: &mut Batch,
) -> Result<Decoded, DecodeError> {
    let mut names = HashSet::with_capacity(fields.len());
    if let Some((name, _)) = fields.iter().find(|(name, _)| !names.insert(*name)) {
        return Err(DecodeError::twice(&String::from_utf8_lossy(name)));
    }
    let has = |name: &[u8]| names.contains(name);
    if has(b"event") {
        decode_fields(fields, origin, into)?;
    } else if has(b"event_type") {
        return decode_envelope(fields, origin, now, into);
    } else if let Some(body) = ["payload", "event_data"].into_iter().find(|name| has(name.as_bytes())) {
        decode_payload(fields, body, origin, into)?;
    } else {
        return Err(unknown(fields));
    }
    Ok(Decoded::Event)
}

fn unknown(fields: &Fields<'_>) -> DecodeError {
    const NAMED: usize = 8;
    if fields.is_empty() {
        return DecodeError::new("the entry has no fields");
    }
    let named: Vec<_> =
        fields.iter().take(NAMED).map(|(name, _)| format!("`{}`", clip(&String::from_utf8_lossy(name)))).collect();
    let more = fields.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    DecodeError::new(format!("no encoding of events has the fields {}{more}", named.join(", ")))
}

/// Appends the event in a body that came without any attributes beside it.
pub(super) fn decode_body(
    json: &[u8],
    key: Option<Cow<'_, str>>,
    origin: &Origin<'_>,
    into: &mut Batch,
) -> Result<(), DecodeError> {
    let body = Body::parse("the body", json)?;
    if !body.is_structured && body.event.is_none() {
        return Err(DecodeError::new("neither the headers nor the body name an event's type"));
    }
    body.push(json, key, Extensions::default(), origin, into)
}

/// What fields and payloads tell of the event around them.
#[derive(Default)]
struct Lifted<'a> {
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    time: Option<Timestamp>,
    extensions: Extensions<'a>,
}

impl<'a> Lifted<'a> {
    /// Looks at one field; empty ones tell nothing.
    fn see(&mut self, name: &str, value: Cow<'a, str>) -> Result<(), DecodeError> {
        if value.is_empty() {
            return Ok(());
        }
        match name {
            "event_id" => self.id = Some(value),
            "source" => self.source = Some(value),
            "timestamp" => self.time = timestamp(&value),
            _ => {
                let attribute = ATTRIBUTES.into_iter().find(|(field, _)| *field == name);
                if let Some((_, attribute)) = attribute
                    && !self.extensions.contains(attribute)
                {
                    self.extensions.add(Cow::Borrowed(attribute), value)?;
                }
            }
        }
        Ok(())
    }

    fn push(
        &self,
        kind: &str,
        key: Option<&str>,
        data: &[u8],
        origin: &Origin<'_>,
        into: &mut Batch,
    ) -> Result<(), DecodeError> {
        let default_id = origin.default_id();
        let row = Row {
            id: self.id.as_deref().unwrap_or(default_id.as_str()),
            source: self.source.as_deref().unwrap_or(origin.topic.as_str()),
            kind,
            time: self.time.or_else(|| origin.time()),
            partition_key: key.unwrap_or_default(),
            content_type: JSON,
            data,
            ..Row::default()
        };
        self.extensions.push(&row, into)
    }
}

const JSON: &str = "application/json";

/// Fields that are extension attributes, too: their names in both worlds.
const ATTRIBUTES: [(&str, &str); 3] =
    [("correlation_id", "correlationid"), ("traceparent", "traceparent"), ("tracestate", "tracestate")];

/// ISO 8601. Without an offset it is UTC, as Python's `isoformat` of a naive time is meant.
fn timestamp(text: &str) -> Option<Timestamp> {
    let naive = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        let time = jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()?;
        Some(Timestamp::from_micros(time.as_microsecond()))
    };
    let time = text.parse().ok().or_else(naive)?;
    super::in_range("timestamp", time).ok()
}

fn decode_fields(fields: &Fields<'_>, origin: &Origin<'_>, into: &mut Batch) -> Result<(), DecodeError> {
    let event = fields.iter().find(|(name, _)| *name == b"event").map(|(_, value)| text("event", value));
    let event = required("event", event.transpose()?)?;
    let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    let mut data = Vec::with_capacity(size + 1);
    let mut lifted = Lifted::default();
    for &(name, value) in fields {
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::not_text(&String::from_utf8_lossy(name)))?;
        if name.starts_with("dlq_") {
            lifted.extensions.add_foreign(name, value)?;
            continue;
        }
        if let Ok(value) = std::str::from_utf8(value) {
            lifted.see(name, Cow::Borrowed(value))?;
        }
        data.push(if data.is_empty() { b'{' } else { b',' });
        cloudevents::string(name, &mut data);
        data.push(b':');
        field_value(field_type(event, name), value, &mut data);
    }
    data.push(b'}');
    lifted.push(event, None, &data, origin, into)
}

/// Appends a field's value as JSON. What is not as the schema says stays text: judging it is not a decoder's business.
fn field_value(known: Option<FieldType>, value: &[u8], json: &mut Vec<u8>) {
    let literal: Option<&[u8]> = match (known, value) {
        (None | Some(FieldType::String), _) => None,
        (Some(_), b"null") => Some(b"null"),
        (Some(FieldType::Boolean), b"true" | b"True" | b"1") => Some(b"true"),
        (Some(FieldType::Boolean), b"false" | b"False" | b"0") => Some(b"false"),
        (Some(FieldType::Number | FieldType::Integer), _) => is_number(value).then_some(value),
        (Some(FieldType::Boolean | FieldType::Object), _) => None,
    };
    let nested = match known {
        None | Some(FieldType::Object) => nested_json(value),
        Some(_) => None,
    };
    match (literal, nested) {
        (Some(literal), _) => json.extend_from_slice(literal),
        (None, Some(nested)) => json.extend_from_slice(&cloudevents::without_line_breaks(nested)),
        (None, None) => redis::text_or_base64(value, json),
    }
}

fn is_number(value: &[u8]) -> bool {
    let digits = value.first().is_some_and(|&byte| byte == b'-' || byte.is_ascii_digit());
    digits && raw(value).is_some_and(|raw| raw.len() == value.len())
}

/// The text of a JSON object or array.
fn nested_json(value: &[u8]) -> Option<&str> {
    raw(value).filter(|raw| raw.starts_with(['{', '[']))
}

/// One JSON value without the space around it.
fn raw(value: &[u8]) -> Option<&str> {
    let raw: &RawValue = serde_json::from_slice(value).ok()?;
    Some(raw.get())
}

fn decode_envelope(
    fields: &Fields<'_>,
    origin: &Origin<'_>,
    now: Timestamp,
    into: &mut Batch,
) -> Result<Decoded, DecodeError> {
    let (mut kind, mut sender, mut recipient, mut time, mut data) = (None, None, None, None, None);
    let (mut priority, mut ttl, mut id) = (None, None, None);
    let mut extensions = Extensions::default();
    for &(name, value) in fields {
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::not_text(&String::from_utf8_lossy(name)))?;
        if name == "payload" {
            data = Some(value);
            continue;
        }
        let place = match name {
            "event_type" => &mut kind,
            "sender" => &mut sender,
            "recipient" => &mut recipient,
            "priority" => &mut priority,
            "timestamp" => &mut time,
            "ttl_sec" => &mut ttl,
            "id" | "event_id" if id.is_none() => &mut id,
            _ => {
                extensions.add_foreign(name, value)?;
                continue;
            }
        };
        *place = Some(text(name, value)?).filter(|value| !value.is_empty());
    }
    let unreadable = || DecodeError::new("`timestamp` is not an ISO 8601 time");
    let time = time.map(|time| timestamp(time).ok_or_else(unreadable)).transpose()?.or_else(|| origin.time());
    let seconds = ttl.map(str::parse::<u64>).transpose();
    let seconds = seconds.map_err(|_| DecodeError::new("`ttl_sec` is not a whole number of seconds"))?;
    if let (Some(time), Some(seconds @ 1..)) = (time, seconds)
        && time.saturating_add(Duration::from_secs(seconds)) < now
    {
        return Ok(Decoded::Expired);
    }
    extensions.add(Cow::Borrowed("priority"), Cow::Borrowed(priority.unwrap_or("normal")))?;
    if let Some(ttl) = ttl {
        extensions.add(Cow::Borrowed("ttlsec"), Cow::Borrowed(ttl))?;
    }
    let data = data.unwrap_or_default();
    let default_id = origin.default_id();
    let row = Row {
        id: id.unwrap_or(default_id.as_str()),
        source: sender.unwrap_or(origin.topic.as_str()),
        kind: required("event_type", Some(kind.unwrap_or_default()))?,
        subject: recipient.unwrap_or_default(),
        time,
        content_type: if raw(data).is_some() { JSON } else { "" },
        data,
        ..Row::default()
    };
    extensions.push(&row, into).map(|()| Decoded::Event)
}

fn decode_payload(
    fields: &Fields<'_>,
    body_name: &str,
    origin: &Origin<'_>,
    into: &mut Batch,
) -> Result<(), DecodeError> {
    let mut extensions = Extensions::default();
    let mut json: &[u8] = &[];
    for &(name, value) in fields {
        let name = std::str::from_utf8(name).map_err(|_| DecodeError::not_text(&String::from_utf8_lossy(name)))?;
        if name == body_name {
            json = value;
        } else {
            extensions.add_foreign(name, value)?;
        }
    }
    Body::parse(body_name, json)?.push(json, None, extensions, origin, into)
}

/// What matters of a JSON object that holds an event.
#[derive(Default)]
struct Body<'a> {
    is_structured: bool,
    event: Option<Cow<'a, str>>,
    seen: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Body<'a> {
    fn parse(name: &str, json: &'a [u8]) -> Result<Self, DecodeError> {
        let Members(members) = serde_json::from_slice(json)
            .map_err(|error| DecodeError::new(format!("`{name}` is not a JSON object: {error}")))?;
        let mut body = Self::default();
        for (name, value) in members {
            match &*name {
                "specversion" => body.is_structured = true,
                "event" => body.event = scalar_text(value).filter(|event| !event.is_empty()),
                "event_id" | "source" | "timestamp" | "correlation_id" | "traceparent" | "tracestate" => {
                    if body.seen.iter().any(|(known, _)| *known == name) {
                        return Err(DecodeError::twice(&name));
                    }
                    body.seen.extend(scalar_text(value).map(|value| (name, value)));
                }
                _ => {}
            }
        }
        Ok(body)
    }

    /// Appends the event. `extensions` are those that stand beside the object.
    fn push(
        self,
        json: &[u8],
        key: Option<Cow<'_, str>>,
        extensions: Extensions<'a>,
        origin: &Origin<'_>,
        into: &mut Batch,
    ) -> Result<(), DecodeError> {
        if self.is_structured {
            let mut event = Structured::parse(json)?;
            for (name, value) in &extensions.pairs {
                event.extensions().add(Cow::Borrowed(name), Cow::Borrowed(value))?;
            }
            if let Some(key) = &key {
                event.default_partition_key(Cow::Borrowed(key));
            }
            return event.push(into);
        }
        let mut lifted = Lifted { extensions, ..Lifted::default() };
        if self.event.is_some() {
            for (name, value) in self.seen {
                lifted.see(&name, value)?;
            }
        }
        let kind = self.event.as_deref().unwrap_or(origin.topic.as_str());
        lifted.push(kind, key.as_deref(), json, origin, into)
    }
}

/// The text of a JSON string, or of a number as written.
fn scalar_text(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(value.get()).ok().map(|Text(text)| text),
        Some(b'-' | b'0'..=b'9') => Some(Cow::Borrowed(value.get())),
        _ => None,
    }
}

/// The members of a JSON object, in order.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::new();
                while let Some(Text(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Each)
    }
}

/// Hands out the fields of an event for consumers that know nothing of CloudEvents.
pub(super) fn encode_fields(event: EventRef<'_>, mut emit: impl FnMut(&[u8], &[u8])) {
    let members = members_as_fields(event);
    let member = |name: &str| members.iter().flatten().find(|(known, _)| known == name).map(|(_, value)| *value);
    let own = own_fields(event, member("timestamp"));
    for (name, value) in own.iter().filter(|(name, _)| member(name).is_none()) {
        emit(name.as_bytes(), value.as_bytes());
    }
    let Some(members) = &members else {
        if !event.data().is_empty() {
            emit(b"payload", event.data());
        }
        return;
    };
    for (name, value) in members {
        let value = match own.iter().find(|(known, _)| known == name) {
            Some((_, own)) => Cow::Borrowed(own.as_ref()),
            None => match serde_json::from_str(value.get()) {
                Ok(Text(text)) => text,
                Err(_) => Cow::Borrowed(value.get()),
            },
        };
        emit(name.as_bytes(), value.as_bytes());
    }
}

type MemberList<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// The members of data, if each can be a field of its own.
fn members_as_fields(event: EventRef<'_>) -> Option<MemberList<'_>> {
    if Media::of(event.content_type().unwrap_or_default()) != Media::Json {
        return None;
    }
    let Members(members) = serde_json::from_slice(event.data()).ok()?;
    let mut names = HashSet::with_capacity(members.len());
    let distinct = members.iter().all(|(name, _)| names.insert(name.as_ref()) && !redis::is_marker(name.as_bytes()));
    distinct.then_some(members)
}

/// The fields that come from attributes. `written` is the time as data has it.
fn own_fields<'e>(event: EventRef<'e>, written: Option<&'e RawValue>) -> Vec<(&'static str, Cow<'e, str>)> {
    let mut own = vec![("event", Cow::Borrowed(event.kind()))];
    let written = written.and_then(scalar_text);
    let same = written.as_deref().is_some_and(|text| timestamp(text).is_none_or(|time| Some(time) == event.time()));
    if let (Some(time), false) = (event.time(), same) {
        own.push(("timestamp", Cow::Owned(time.to_string())));
    }
    own.push(("source", Cow::Borrowed(event.source())));
    for (field, attribute) in ATTRIBUTES {
        own.extend(event.attribute(attribute).map(|value| (field, Cow::Borrowed(value))));
    }
    if !is_made_from_place(event.id()) {
        own.push(("event_id", Cow::Borrowed(event.id())));
    }
    own
}

/// Whether an id is one that [`Origin::default_id`] gives to entries of Redis.
fn is_made_from_place(id: &str) -> bool {
    id.rsplit_once('/').is_some_and(|(_, offset)| matches!(offset.parse(), Ok(Offset::Entry { .. })))
}
