//! The binary mode of CloudEvents 1.0.2 for Kafka and HTTP: attributes are headers, data is the body.
//!
//! Both have the same shape and differ in the prefix of the names, and in that HTTP percent-encodes values. A content
//! type that begins with `application/cloudevents` means structured mode: the body is the whole event as JSON. An event
//! whose data is of such a type itself is told apart by a header `…datacontenttype` in place of `content-type`.
//!
//! Headers without the prefix are not part of the event, except `traceparent` and `tracestate`, which count as the
//! attributes of these names if the event brings none.

use std::borrow::Cow;

use base64::Engine;
use smallvec::SmallVec;

use super::cloudevents::Structured;
use super::{DecodeError, Extensions, Origin, is_extension_name, modelkit, required, text, time, time_text};
use crate::batch::{Batch, Row};
use crate::event::EventRef;

/// What attributes are prefixed with on Kafka.
pub const KAFKA: &str = "ce_";
/// What attributes are prefixed with on HTTP; their values are percent-encoded there.
pub const HTTP: &str = "ce-";

/// Appends the event of a Kafka record or an HTTP request.
///
/// With an `origin` reading is tolerant: an event without an id is named after its place, and a body without any
/// attributes in its headers may be an event of the platform or a structured event by itself ([`modelkit`]). Without
/// one, as for a request, the event has to be whole. A record's key becomes the partition key, unless a header gives
/// one; a key that is no text does so as base64.
///
/// # Errors
/// Headers or a body that are no event.
pub fn decode<'a>(
    prefix: &str,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    key: Option<&[u8]>,
    value: &[u8],
    origin: Option<&Origin<'_>>,
    into: &mut Batch,
) -> Result<(), DecodeError> {
    let head = Head::read(prefix, headers)?;
    let key = key.filter(|key| !key.is_empty()).map(key_text);
    if is_cloudevents(head.content_type) {
        if !is_structured(head.content_type) {
            let known = "only application/cloudevents+json is read here";
            return Err(DecodeError::new(format!("`content-type` is `{}`: {known}", super::clip(head.content_type))));
        }
        return structured(value, key, into);
    }
    match origin {
        Some(origin) if head.is_foreign() => modelkit::decode_body(value, key, origin, into),
        _ => head.push(prefix, key, value, origin, into),
    }
}

/// Hands out every header of an event, `content-type` among them. Data is the body; on Kafka the key is the event's
/// partition key, which is a header, too. Attributes whose names CloudEvents cannot carry are left out, see
/// [`super::check`].
pub fn encode(prefix: &str, event: EventRef<'_>, mut emit: impl FnMut(&str, &[u8])) {
    let mut attribute = |name: &str, value: &str| {
        let mut full = SmallVec::<[u8; 64]>::from_slice(prefix.as_bytes());
        full.extend_from_slice(name.as_bytes());
        let full = std::str::from_utf8(&full).expect("two texts in a row are a text");
        if prefix == HTTP { emit(full, &percent_encoded(value)) } else { emit(full, value.as_bytes()) }
    };
    attribute("specversion", "1.0");
    attribute("id", event.id());
    attribute("source", event.source());
    attribute("type", event.kind());
    if let Some(subject) = event.subject() {
        attribute("subject", subject);
    }
    if let Some(time) = event.time() {
        attribute("time", time_text(time).as_str());
    }
    if let Some(key) = event.partition_key() {
        attribute("partitionkey", key);
    }
    for (name, value) in event.attributes().filter(|(name, _)| is_extension_name(name)) {
        attribute(name, value);
    }
    match event.content_type() {
        Some(content_type) if is_cloudevents(content_type) => attribute("datacontenttype", content_type),
        Some(content_type) => emit("content-type", content_type.as_bytes()),
        None => {}
    }
}

/// Whether a content type says that the body is more than data.
fn is_cloudevents(content_type: &str) -> bool {
    const PREFIX: &str = "application/cloudevents";
    content_type.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

fn is_structured(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    media.eq_ignore_ascii_case("application/cloudevents+json")
}

fn structured(json: &[u8], key: Option<Cow<'_, str>>, into: &mut Batch) -> Result<(), DecodeError> {
    let mut event = Structured::parse(json)?;
    if let Some(key) = &key {
        event.default_partition_key(Cow::Borrowed(key));
    }
    event.push(into)
}

fn key_text(key: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(key) {
        Ok(key) => Cow::Borrowed(key),
        Err(_) => Cow::Owned(base64::engine::general_purpose::STANDARD.encode(key)),
    }
}

/// The attributes found in headers.
#[derive(Default)]
struct Head<'a> {
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    partition_key: Option<Cow<'a, str>>,
    data_content_type: Option<Cow<'a, str>>,
    content_type: &'a str,
    extensions: Extensions<'a>,
}

impl<'a> Head<'a> {
    fn read(prefix: &str, headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, DecodeError> {
        let mut head = Self::default();
        let mut trace: SmallVec<[(&str, &[u8]); 2]> = SmallVec::new();
        for (name, value) in headers {
            let (start, rest) = name.split_at_checked(prefix.len()).unwrap_or(("", ""));
            if start.eq_ignore_ascii_case(prefix) {
                head.attribute(prefix, rest, text(name, value)?)?;
            } else if name.eq_ignore_ascii_case("content-type") {
                head.content_type = text(name, value)?;
            } else if name.eq_ignore_ascii_case("traceparent") || name.eq_ignore_ascii_case("tracestate") {
                trace.push((name, value));
            }
        }
        for (name, value) in trace {
            let name = name.to_ascii_lowercase();
            // A trace is for diagnosis: a broken one must not cost the event.
            if let Ok(value) = std::str::from_utf8(value)
                && !head.extensions.contains(&name)
            {
                head.extensions.add(Cow::Owned(name), Cow::Borrowed(value))?;
            }
        }
        Ok(head)
    }

    fn attribute(&mut self, prefix: &str, name: &'a str, value: &'a str) -> Result<(), DecodeError> {
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        };
        let value = if prefix == HTTP { percent_decoded(&name, value)? } else { Cow::Borrowed(value) };
        let place = match &*name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "partitionkey" => &mut self.partition_key,
            "datacontenttype" => &mut self.data_content_type,
            "synapseposition" => return Ok(()),
            _ => return self.extensions.add(name, value),
        };
        if place.is_some() {
            return Err(DecodeError::twice(&name));
        }
        *place = Some(value);
        Ok(())
    }

    /// Whether none of the attributes is there that every event has.
    fn is_foreign(&self) -> bool {
        [&self.specversion, &self.id, &self.source, &self.kind].into_iter().all(Option::is_none)
    }

    fn push(
        &self,
        prefix: &str,
        key: Option<Cow<'_, str>>,
        value: &[u8],
        origin: Option<&Origin<'_>>,
        into: &mut Batch,
    ) -> Result<(), DecodeError> {
        if let Some(version) = self.specversion.as_deref()
            && version != "1.0"
        {
            let version = super::clip(version);
            return Err(DecodeError::new(format!("`{prefix}specversion` is `{version}`, not `1.0`")));
        }
        let default_id = origin.map(Origin::default_id);
        let id = self.id.as_deref().or(default_id.as_ref().map(|id| id.as_str()));
        let row = Row {
            id: required(format_args!("{prefix}id"), id)?,
            source: required(format_args!("{prefix}source"), self.source.as_deref())?,
            kind: required(format_args!("{prefix}type"), self.kind.as_deref())?,
            subject: self.subject.as_deref().unwrap_or_default(),
            time: time(format_args!("{prefix}time"), self.time.as_deref())?,
            partition_key: self.partition_key.as_deref().or(key.as_deref()).unwrap_or_default(),
            content_type: self.data_content_type.as_deref().unwrap_or(self.content_type),
            data: value,
        };
        self.extensions.push(&row, into)
    }
}

/// A value as an HTTP header holds it (CloudEvents HTTP binding 1.0.2, 3.1.3.2): space, `"`, `%` and everything
/// outside printable ASCII is written `%XY`.
fn percent_encoded(value: &str) -> Cow<'_, [u8]> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%');
    if value.bytes().all(plain) {
        return Cow::Borrowed(value.as_bytes());
    }
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = Vec::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(byte);
        } else {
            encoded.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
    Cow::Owned(encoded)
}

/// The mirror of [`percent_encoded`]; also takes quoted strings, as older versions of the binding wrote them.
fn percent_decoded<'a>(name: &str, value: &'a str) -> Result<Cow<'a, str>, DecodeError> {
    let quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
    if !quoted && !value.contains('%') {
        return Ok(Cow::Borrowed(value));
    }
    let inner = if quoted { &value[1..value.len() - 1] } else { value };
    let mut unquoted = Vec::with_capacity(inner.len());
    let mut bytes = inner.bytes();
    while let Some(byte) = bytes.next() {
        unquoted.push(if quoted && byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    let mut decoded = Vec::with_capacity(unquoted.len());
    let mut rest = unquoted.as_slice();
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) if let (Some(high), Some(low)) = (digit(*high), digit(*low)) => {
                decoded.push(high << 4 | low);
                rest = tail;
            }
            _ => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| DecodeError::not_text(name))
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
