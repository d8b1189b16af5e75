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
    let key = key.as_deref();
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

fn structured(json: &[u8], key: Option<&str>, into: &mut Batch) -> Result<(), DecodeError> {
    let mut event = Structured::parse(json)?;
    if let Some(key) = key {
        event.default_partition_key(key);
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
        key: Option<&str>,
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
            partition_key: self.partition_key.as_deref().or(key).unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::topic::Offset;

    type Headers<'h> = &'h [(&'h str, &'h str)];

    fn record(headers: Headers<'_>, key: Option<&[u8]>, value: &[u8]) -> Result<Event, DecodeError> {
        let topic = "flights".parse().unwrap();
        let origin = Origin { topic: &topic, partition: 3, offset: Offset::Number(17) };
        let mut batch = Batch::default();
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        decode(KAFKA, headers, key, value, Some(&origin), &mut batch)?;
        Ok(batch.event(0).to_event())
    }

    fn request(headers: Headers<'_>, value: &[u8]) -> Result<Event, DecodeError> {
        let mut batch = Batch::default();
        let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
        decode(HTTP, headers, None, value, None, &mut batch)?;
        Ok(batch.event(0).to_event())
    }

    const WHOLE: [(&str, &str); 4] =
        [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "/airports/EWR"), ("ce_type", "flight.departed")];

    #[test]
    fn a_record_is_an_event() {
        let rest = [
            ("ce_time", "2013-01-01T05:15:00Z"),
            ("ce_gate", "C 70"),
            ("content-type", "application/json"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("host", "x"),
        ];
        let event = record(&[&WHOLE[..], &rest].concat(), Some(b"N14228"), b"{}").unwrap();
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let expected = Event {
            id: "1".into(),
            source: "/airports/EWR".into(),
            kind: "flight.departed".into(),
            time: Some("2013-01-01T05:15:00Z".parse().unwrap()),
            partition_key: Some("N14228".into()),
            content_type: Some("application/json".into()),
            attributes: vec![("gate".into(), "C 70".into()), ("traceparent".into(), trace.into())],
            data: b"{}".to_vec(),
            ..Event::default()
        };
        assert_eq!(event, expected);
    }

    #[test]
    fn what_a_record_lacks_comes_from_its_place_and_key() {
        let event = record(&WHOLE[2..], Some(&[0xff, 0]), b"").unwrap();
        assert_eq!((event.id.as_str(), event.partition_key.as_deref()), ("flights/3/17", Some("/wA=")));
        let keyed = [&WHOLE[..], &[("ce_partitionkey", "own")]].concat();
        assert_eq!(record(&keyed, Some(b"other"), b"").unwrap().partition_key.as_deref(), Some("own"));
    }

    #[test]
    fn structured_mode_is_told_by_the_content_type() {
        let json = br#"{"specversion":"1.0","id":"2","source":"/s","type":"t","data":1}"#;
        let headers = [("content-type", "application/cloudevents+json; charset=utf-8")];
        let event = record(&headers, Some(b"k"), json).unwrap();
        assert_eq!((event.id.as_str(), event.partition_key.as_deref()), ("2", Some("k")));
        assert_eq!(request(&headers, json).unwrap().id, "2");
        assert_eq!(record(&[], None, json).unwrap().id, "2");
        let refused = record(&[("content-type", "application/cloudevents+avro")], None, json).unwrap_err();
        let sentence =
            "`content-type` is `application/cloudevents+avro`: only application/cloudevents+json is read here";
        assert_eq!(refused.to_string(), sentence);
    }

    #[test]
    fn an_event_that_holds_an_event_stays_in_binary_mode() {
        let event = Event {
            id: "1".into(),
            source: "/s".into(),
            kind: "t".into(),
            content_type: Some("application/cloudevents+json".into()),
            ..Event::default()
        };
        let batch: Batch = [&event].into_iter().collect();
        let mut names = Vec::new();
        encode(KAFKA, batch.event(0), |name, _| names.push(name.to_owned()));
        assert_eq!(names, ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_datacontenttype"]);
    }

    #[test]
    fn http_percent_encodes_values() {
        let event =
            Event { id: "Euro € 😀".into(), source: "/s".into(), kind: "100%\"".into(), ..Event::default() };
        let batch: Batch = [&event].into_iter().collect();
        let mut headers = Vec::new();
        encode(HTTP, batch.event(0), |name, value| {
            headers.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
        });
        let own = |pairs: [(&str, &str); 4]| pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let id = "Euro%20%E2%82%AC%20%F0%9F%98%80";
        let expected = own([("ce-specversion", "1.0"), ("ce-id", id), ("ce-source", "/s"), ("ce-type", "100%25%22")]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn http_values_may_be_quoted_or_half_encoded() {
        let decoded = |value| percent_decoded("x", value).map(Cow::into_owned);
        assert_eq!(decoded(r#""a \"b\" \\ %20""#).unwrap(), "a \"b\" \\  ");
        assert_eq!(decoded("100% %4a %e2%82%ac").unwrap(), "100% J €");
        assert_eq!(decoded("%C0%A0").unwrap_err().to_string(), "`x` is not UTF-8");
        let upper = [("CE-SpecVersion", "1.0"), ("Ce-Id", "1"), ("ce-source", "/"), ("ce-TYPE", "t")];
        assert_eq!(request(&upper, b"").unwrap().kind, "t");
    }

    #[test]
    fn errors_name_the_header() {
        let refused =
            |headers: Headers<'_>, value: &str| record(headers, None, value.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused(&WHOLE[..3], "{}"), "`ce_type` is missing");
        assert_eq!(refused(&[&WHOLE[..], &WHOLE[1..2]].concat(), ""), "`id` is there twice");
        assert_eq!(
            refused(&[&WHOLE[1..], &[("ce_specversion", "2")]].concat(), ""),
            "`ce_specversion` is `2`, not `1.0`"
        );
        assert!(refused(&[&WHOLE[..], &[("ce_a-b", "")]].concat(), "").starts_with("`a-b` is no name"));
        assert!(refused(&[], "hello").starts_with("`the body` is not a JSON object: "));
        assert_eq!(refused(&[], "{}"), "neither the headers nor the body name an event's type");
        assert_eq!(request(&[], b"{}").unwrap_err().to_string(), "`ce-id` is missing");
    }

    #[test]
    fn a_body_may_be_an_event_of_the_platform() {
        let event = record(&[], Some(b"m"), br#"{"event":"model-ready","source":"helox","model_name":"m"}"#).unwrap();
        assert_eq!(
            (event.id.as_str(), event.kind.as_str(), event.source.as_str()),
            ("flights/3/17", "model-ready", "helox")
        );
        assert_eq!(event.partition_key.as_deref(), Some("m"));
    }
}
