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
use super::redis::{self, Fields};
use super::{DecodeError, Decoded, Extensions, Media, Origin, clip, required, text};
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
    if let Some(name) = first_repeated(fields.iter().map(|(name, _)| *name)) {
        return Err(DecodeError::twice(&String::from_utf8_lossy(name)));
    }
    let has = |name: &[u8]| fields.iter().any(|(known, _)| *known == name);
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

/// The first name that was there before. Few names are compared with each other, many are hashed.
fn first_repeated<'n, N: Iterator<Item = &'n [u8]> + ExactSizeIterator + Clone>(mut names: N) -> Option<&'n [u8]> {
    const FEW: usize = 24;
    if names.len() <= FEW {
        let all = names.clone();
        return names
            .enumerate()
            .find(|(at, name)| all.clone().take(*at).any(|earlier| earlier == *name))
            .map(|(_, name)| name);
    }
    let mut seen = HashSet::with_capacity(names.len());
    names.find(|name| !seen.insert(*name))
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
    key: Option<&str>,
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
    let first = value.iter().find(|byte| !byte.is_ascii_whitespace());
    if matches!(first, Some(b'{' | b'[')) { raw(value) } else { None }
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
        key: Option<&str>,
        extensions: Extensions<'a>,
        origin: &Origin<'_>,
        into: &mut Batch,
    ) -> Result<(), DecodeError> {
        if self.is_structured {
            let mut event = Structured::parse(json)?;
            for (name, value) in &extensions.pairs {
                event.extensions().add(Cow::Borrowed(name), Cow::Borrowed(value))?;
            }
            if let Some(key) = key {
                event.default_partition_key(key);
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
        lifted.push(kind, key, json, origin, into)
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
            None => scalar_text(value).unwrap_or(Cow::Borrowed(value.get())),
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
    let names = members.iter().map(|(name, _)| name.as_bytes());
    let fit = first_repeated(names.clone()).is_none() && !names.clone().any(redis::is_marker);
    fit.then_some(members)
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

#[cfg(test)]
mod tests {
    use super::super::tests::{OwnedFields, borrowed, fields_of};
    use super::*;
    use crate::event::Event;
    use crate::spec::Encoding;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn owned(fields: &[(&str, &str)]) -> OwnedFields {
        fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    }

    /// Decodes an entry of `training-jobs`, added half a minute before now.
    fn decoded(fields: &[(&str, &str)]) -> Result<Option<Event>, DecodeError> {
        let topic = "training-jobs".parse().unwrap();
        let origin = Origin { topic: &topic, partition: 0, offset: Offset::Entry { ms: 1_767_225_630_000, seq: 0 } };
        let mut batch = Batch::default();
        match redis::decode(&borrowed(&owned(fields)), &origin, NOW.parse().unwrap(), &mut batch)? {
            Decoded::Event => Ok(Some(batch.event(0).to_event())),
            Decoded::Expired => Ok(None),
        }
    }

    fn event(fields: &[(&str, &str)]) -> Event {
        decoded(fields).unwrap().unwrap()
    }

    fn refused(fields: &[(&str, &str)]) -> String {
        decoded(fields).unwrap_err().to_string()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const READY: [(&str, &str); 8] = [
        ("event", "model-ready"),
        ("timestamp", "2026-01-01T00:00:00Z"),
        ("source", "helox"),
        ("model_name", "m"),
        ("version", "1.2.0"),
        ("registry_path", "s3://models/m"),
        ("metadata", r#"{"framework":"torch"}"#),
        ("accuracy", "0.93"),
    ];

    const READY_DATA: &str = concat!(
        r#"{"event":"model-ready","timestamp":"2026-01-01T00:00:00Z","source":"helox","model_name":"m","#,
        r#""version":"1.2.0","registry_path":"s3://models/m","metadata":{"framework":"torch"},"accuracy":0.93}"#
    );

    fn ready() -> Event {
        Event {
            id: "training-jobs/1767225630000-0".into(),
            source: "helox".into(),
            kind: "model-ready".into(),
            time: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            content_type: Some("application/json".into()),
            data: READY_DATA.into(),
            ..Event::default()
        }
    }

    #[test]
    fn flat_fields_are_an_event() {
        assert_eq!(event(&READY), ready());
        let correlated = event(&[&READY[..], &[("correlation_id", "c-1"), ("event_id", "e-1")]].concat());
        assert_eq!(correlated.id, "e-1");
        assert_eq!(correlated.attributes, pairs(&[("correlationid", "c-1")]));
        assert!(correlated.data.ends_with(br#","correlation_id":"c-1","event_id":"e-1"}"#));
    }

    #[test]
    fn flat_fields_go_out_as_they_came() {
        let batch: Batch = [&ready()].into_iter().collect();
        assert_eq!(fields_of(batch.event(0), Encoding::Fields), owned(&READY));
    }

    #[test]
    fn fields_have_the_types_of_their_schema() {
        let data = |fields: &[(&str, &str)]| String::from_utf8(event(fields).data).unwrap();
        let inference =
            [("event", "inference-complete"), ("version", "2"), ("latency_ms", "1e-05"), ("success", "True")];
        assert_eq!(
            data(&inference),
            r#"{"event":"inference-complete","version":"2","latency_ms":1e-05,"success":true}"#
        );
        let odd = [("event", "inference-complete"), ("cost", "NaN"), ("tokens_used", "null"), ("user_id", "null")];
        assert_eq!(data(&odd), r#"{"event":"inference-complete","cost":"NaN","tokens_used":null,"user_id":"null"}"#);
        let decision = [("event", "agi-decision"), ("action", "{\n \"a\": 1\n}"), ("reasoning", "[1]")];
        assert_eq!(data(&decision), r#"{"event":"agi-decision","action":{"a": 1},"reasoning":"[1]"}"#);
        let platform = [("event", "task-created"), ("action", "{}"), ("data", "not an object"), ("extra", "[1]")];
        assert_eq!(data(&platform), r#"{"event":"task-created","action":"{}","data":"not an object","extra":[1]}"#);
        assert_eq!(data(&[("event", "new"), ("n", "1"), ("o", "{oops")]), r#"{"event":"new","n":"1","o":"{oops"}"#);
    }

    #[test]
    fn the_older_variant_has_no_source() {
        let legacy = event(&[("event", "inference"), ("timestamp", "2026-01-01T00:00:00.25"), ("latency_ms", "7")]);
        assert_eq!((legacy.source.as_str(), legacy.kind.as_str()), ("training-jobs", "inference"));
        assert_eq!(legacy.time, Some("2026-01-01T00:00:00.25Z".parse().unwrap()));
        assert!(legacy.data.ends_with(br#""latency_ms":7}"#));
        let undated = event(&[("event", "training-started"), ("timestamp", "soon")]);
        assert_eq!(undated.time, Some("2026-01-01T00:00:30Z".parse().unwrap()));
        assert!(undated.data.ends_with(br#""timestamp":"soon"}"#));
    }

    const ENVELOPE: [(&str, &str); 6] = [
        ("event_type", "document.vectorize"),
        ("sender", "sidecar"),
        ("recipient", "cyrex"),
        ("payload", r#"{"doc": 1}"#),
        ("timestamp", "2026-01-01T00:00:00.123456789Z"),
        ("ttl_sec", "60"),
    ];

    #[test]
    fn an_envelope_is_an_event() {
        let expected = Event {
            id: "training-jobs/1767225630000-0".into(),
            source: "sidecar".into(),
            kind: "document.vectorize".into(),
            subject: Some("cyrex".into()),
            time: Some("2026-01-01T00:00:00.123456Z".parse().unwrap()),
            content_type: Some("application/json".into()),
            attributes: pairs(&[("priority", "normal"), ("ttlsec", "60")]),
            data: br#"{"doc": 1}"#.to_vec(),
            ..Event::default()
        };
        assert_eq!(event(&ENVELOPE), expected);
        let more =
            event(&[&ENVELOPE[..], &[("priority", "high"), ("id", "e-1"), ("Trace_ID", "t"), ("data", "d")]].concat());
        assert_eq!(more.id, "e-1");
        assert_eq!(more.attributes, pairs(&[("traceid", "t"), ("xdata", "d"), ("priority", "high"), ("ttlsec", "60")]));
    }

    #[test]
    fn an_envelope_expires() {
        let with = |timestamp, ttl| {
            let fields: Vec<_> =
                ENVELOPE[..4].iter().copied().chain([("timestamp", timestamp), ("ttl_sec", ttl)]).collect();
            decoded(&fields).map(|event| event.is_some())
        };
        assert_eq!(with("2026-01-01T00:00:00Z", "60"), Ok(true));
        assert_eq!(with("2025-12-31T23:59:59.999999Z", "60"), Ok(false));
        assert_eq!(with("", "29"), Ok(false));
        assert_eq!(with("", "30"), Ok(true));
        assert_eq!(with("2020-01-01T00:00:00Z", "0"), Ok(true));
        assert_eq!(with("2020-01-01T00:00:00Z", "18446744073709551615"), Ok(true));
        assert_eq!(with("noon", "1").unwrap_err().to_string(), "`timestamp` is not an ISO 8601 time");
        assert_eq!(with("", "soon").unwrap_err().to_string(), "`ttl_sec` is not a whole number of seconds");
    }

    #[test]
    fn a_payload_is_an_event() {
        let event_of = |payload| event(&[("payload", payload)]);
        let in_payload = event_of(READY_DATA);
        assert_eq!(in_payload, ready());
        let job = event_of(r#"{"source":"s3","epochs":3}"#);
        assert_eq!((job.kind.as_str(), job.source.as_str()), ("training-jobs", "training-jobs"));
        assert_eq!(job.time, Some("2026-01-01T00:00:30Z".parse().unwrap()));
        assert_eq!(job.data, br#"{"source":"s3","epochs":3}"#);
        let structured = event_of(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{}}"#);
        assert_eq!((structured.id.as_str(), structured.data.as_slice()), ("1", &b"{}"[..]));
        assert!(refused(&[("payload", "[]")]).starts_with("`payload` is not a JSON object: "));
        assert_eq!(refused(&[("payload", r#"{"event":"a","source":"b","source":"c"}"#)]), "`source` is there twice");
    }

    #[test]
    fn dead_letters_of_other_tools_are_read() {
        let beside = [("dlq_original_stream", "model-events"), ("dlq_retry_count", "3")];
        let attributes = pairs(&[("dlqoriginalstream", "model-events"), ("dlqretrycount", "3")]);
        let expected = Event { attributes, ..ready() };
        assert_eq!(event(&[&READY[..], &beside].concat()), expected);
        assert_eq!(event(&[&beside[..], &[("payload", READY_DATA)]].concat()), expected);

        let wrapped = event(&[
            ("original_stream", "model-events"),
            ("event_data", READY_DATA),
            ("error_message", "out of memory"),
            ("can_retry", "true"),
        ]);
        let attributes = [("originalstream", "model-events"), ("errormessage", "out of memory"), ("canretry", "true")];
        assert_eq!(wrapped, Event { attributes: pairs(&attributes), ..ready() });
    }

    #[test]
    fn any_event_goes_out_in_fields() {
        let fields = |event: &Event| {
            let batch: Batch = [event].into_iter().collect();
            fields_of(batch.event(0), Encoding::Fields)
        };
        let flight = Event {
            id: "UA1545".into(),
            source: "/airports/EWR".into(),
            kind: "flight.departed".into(),
            time: Some("2013-01-01T05:15:00Z".parse().unwrap()),
            attributes: pairs(&[("correlationid", "c"), ("gate", "C70")]),
            data: br#"{"delay":2,"origin":"E\u0057R","event":"lost","via":[1, null]}"#.to_vec(),
            ..Event::default()
        };
        let own = [
            ("timestamp", "2013-01-01T05:15:00Z"),
            ("source", "/airports/EWR"),
            ("correlation_id", "c"),
            ("event_id", "UA1545"),
        ];
        let members = [("delay", "2"), ("origin", "EWR"), ("event", "flight.departed"), ("via", "[1, null]")];
        assert_eq!(fields(&flight), owned(&[&own[..], &members].concat()));
        let payload = |content_type: Option<&str>, data: &str| {
            let flight = Event { content_type: content_type.map(str::to_owned), data: data.into(), ..flight.clone() };
            let expected = [&[("event", "flight.departed")], &own[..], &[("payload", data)]].concat();
            assert_eq!(fields(&flight), owned(&expected));
        };
        payload(None, "[1]");
        payload(None, r#"{"a":1,"a":2}"#);
        payload(None, r#"{"ce_id":"1"}"#);
        payload(Some("text/plain"), "{}");
    }

    #[test]
    fn fields_that_are_no_event_are_refused() {
        assert_eq!(refused(&[("event", "")]), "`event` is empty");
        assert_eq!(refused(&[("event_type", "")]), "`event_type` is empty");
        assert_eq!(refused(&[("event", "a"), ("x", "1"), ("x", "2")]), "`x` is there twice");
    }

    #[test]
    fn schemas_know_their_fields() {
        assert_eq!(field_type("model-ready", "accuracy"), Some(FieldType::Number));
        assert_eq!(field_type("pressure.event", "page"), Some(FieldType::Integer));
        assert_eq!(field_type("artifact.invalidation", "cascade"), Some(FieldType::Boolean));
        assert_eq!(field_type("task-created", "action"), Some(FieldType::String));
        assert_eq!(field_type("agi-action", "action"), Some(FieldType::Object));
        assert_eq!(field_type("error", "source"), Some(FieldType::String));
        assert_eq!(field_type("error", "accuracy"), None);
        assert_eq!(field_type("unheard-of", "source"), None);
    }
}
