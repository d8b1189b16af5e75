//! The JSON format of CloudEvents 1.0.2: one object an event, attributes and extensions at its top level.
//!
//! Data is held so that its bytes survive. It is written as JSON if its content type is JSON (or not given) and its
//! bytes are one JSON value without line breaks or space around it; as a string if its content type is text and its
//! bytes are UTF-8; else as `data_base64`. So an event is always one line. Reading is the mirror of that: `data` of a
//! JSON content type keeps its text as written, except for line breaks between tokens and the indentation behind them,
//! which mean nothing. A string of another content type gives the bytes of its characters. An absent content type stays
//! absent: readers take it for `application/json`.
//!
//! Extension attributes are texts; booleans and whole numbers are read as their text. `null` means absent, but as
//! `data` it is the JSON value null. An empty optional attribute counts as absent.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{DecodeError, Extensions, Media, clip, required, time, time_text};
use crate::batch::{Batch, Row};
use crate::event::{Event, EventRef};
use crate::topic::Position;

/// Appends one structured event, for example a line of NDJSON. An attribute `synapseposition` is left out.
///
/// # Errors
/// Bytes that are no JSON object, or an object that is no event.
pub fn decode(json: &[u8], into: &mut Batch) -> Result<(), DecodeError> {
    Structured::parse(json)?.push(into)
}

/// Appends the events of a JSON array, all or none, and tells how many there were.
///
/// # Errors
/// As [`decode`]; the sentence names the index of the event at fault, from 0.
pub fn decode_batch(json: &[u8], into: &mut Batch) -> Result<usize, DecodeError> {
    let before = into.len();
    let mut count = 0;
    let mut json = serde_json::Deserializer::from_slice(json);
    let read = json.deserialize_seq(Events { into, count: &mut count });
    match read.and_then(|()| json.end()) {
        Ok(()) => Ok(count),
        Err(error) => {
            into.truncate(before);
            let what = if error.is_data() { "" } else { "not JSON: " };
            Err(DecodeError::new(format!("event {count}: {what}{error}")))
        }
    }
}

/// Reads one structured event into an owned value.
///
/// # Errors
/// As [`decode`].
pub fn to_event(json: &[u8]) -> Result<Event, DecodeError> {
    let mut batch = Batch::default();
    decode(json, &mut batch)?;
    Ok(batch.event(0).to_event())
}

/// Appends one structured event as a JSON object on one line, without a line feed at its end. With a position it also
/// carries `synapseposition`. Attributes whose names CloudEvents cannot carry are left out, see [`super::check`].
pub fn encode(event: EventRef<'_>, position: Option<&Position>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"specversion\":\"1.0\"");
    for (name, value) in [("id", event.id()), ("source", event.source()), ("type", event.kind())] {
        member(name, value, out);
    }
    if let Some(subject) = event.subject() {
        member("subject", subject, out);
    }
    if let Some(time) = event.time() {
        member("time", time_text(time).as_str(), out);
    }
    if let Some(key) = event.partition_key() {
        member("partitionkey", key, out);
    }
    if let Some(content_type) = event.content_type() {
        member("datacontenttype", content_type, out);
    }
    for (name, value) in event.attributes().filter(|(name, _)| super::is_extension_name(name)) {
        member(name, value, out);
    }
    if let Some(position) = position {
        member("synapseposition", super::StackText::<384>::of(position).as_str(), out);
    }
    encode_data(event.content_type().unwrap_or_default(), event.data(), out);
    out.push(b'}');
}

/// Appends a member; its name needs no escapes.
fn member(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    string(value, out);
}

/// Appends a JSON string.
pub(super) fn string(value: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("writing text to memory does not fail");
}

fn encode_data(content_type: &str, data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    match Media::of(content_type) {
        Media::Json if is_one_line(data) => {
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(data);
        }
        Media::Text if let Ok(text) = std::str::from_utf8(data) => member("data", text, out),
        Media::Json | Media::Text | Media::Binary => {
            out.extend_from_slice(b",\"data_base64\":");
            base64_string(data, out);
        }
    }
}

/// Whether bytes are one JSON value without line breaks or space around it, so that it reads back byte for byte.
fn is_one_line(data: &[u8]) -> bool {
    let value: Result<&RawValue, _> = serde_json::from_slice(data);
    value.is_ok_and(|value| value.get().len() == data.len()) && !has_line_break(data)
}

fn has_line_break(json: &[u8]) -> bool {
    json.contains(&b'\n') || json.contains(&b'\r')
}

/// Appends bytes as a JSON string of base64.
pub(super) fn base64_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let from = out.len();
    let room = base64::encoded_len(bytes.len(), true).expect("bytes in memory are far below the limit");
    out.resize(from + room, 0);
    STANDARD.encode_slice(bytes, &mut out[from..]).expect("the room was measured");
    out.push(b'"');
}

/// JSON without line breaks between tokens and the indentation behind them. Strings cannot hold raw line breaks, so
/// every one of them lies between tokens.
pub(super) fn without_line_breaks(json: &str) -> Cow<'_, [u8]> {
    if !has_line_break(json.as_bytes()) {
        return Cow::Borrowed(json.as_bytes());
    }
    let lines = json.split(['\n', '\r']).enumerate();
    let kept = lines.map(|(at, line)| if at == 0 { line } else { line.trim_start_matches([' ', '\t']) });
    Cow::Owned(kept.collect::<String>().into_bytes())
}

/// Base64 whose padding may be missing.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// The members of one object, borrowed from its text wherever they need no escapes.
#[derive(Default)]
pub(super) struct Structured<'a> {
    specversion: Member<'a>,
    id: Member<'a>,
    source: Member<'a>,
    kind: Member<'a>,
    subject: Member<'a>,
    time: Member<'a>,
    partition_key: Member<'a>,
    content_type: Member<'a>,
    data: Option<&'a RawValue>,
    data_base64: Member<'a>,
    position_seen: bool,
    nulls: Vec<Cow<'a, str>>,
    extensions: Extensions<'a>,
}

/// A member of the object: not seen, or its value.
type Member<'a> = Option<Value<'a>>;

/// What an attribute can be in JSON.
enum Value<'a> {
    Null,
    Text(Cow<'a, str>),
    /// A boolean or a whole number, as its text.
    Other(String),
}

impl<'a> Structured<'a> {
    pub(super) fn parse(json: &'a [u8]) -> Result<Self, DecodeError> {
        serde_json::from_slice(json).map_err(|error| {
            let what = if error.is_data() { "" } else { "not JSON: " };
            DecodeError::new(format!("{what}{error}"))
        })
    }

    /// Gives the event a partition key, if it has none of its own.
    pub(super) fn default_partition_key(&mut self, key: Cow<'a, str>) {
        if matches!(self.partition_key, None | Some(Value::Null)) {
            self.partition_key = Some(Value::Text(key));
        }
    }

    /// Room for attributes that stand beside the object.
    pub(super) fn extensions(&mut self) -> &mut Extensions<'a> {
        &mut self.extensions
    }

    pub(super) fn push(&self, into: &mut Batch) -> Result<(), DecodeError> {
        let version = required("specversion", text("specversion", &self.specversion)?)?;
        if version != "1.0" {
            return Err(DecodeError::new(format!("`specversion` is `{}`, not `1.0`", clip(version))));
        }
        let content_type = text("datacontenttype", &self.content_type)?.unwrap_or_default();
        let partition_key = match &self.partition_key {
            None | Some(Value::Null) => "",
            Some(Value::Text(key)) => key,
            Some(Value::Other(key)) => key,
        };
        let row = Row {
            id: required("id", text("id", &self.id)?)?,
            source: required("source", text("source", &self.source)?)?,
            kind: required("type", text("type", &self.kind)?)?,
            subject: text("subject", &self.subject)?.unwrap_or_default(),
            time: time("time", text("time", &self.time)?)?,
            partition_key,
            content_type,
            data: &self.data(content_type)?,
        };
        self.extensions.push(&row, into)
    }

    fn data(&self, content_type: &str) -> Result<Cow<'a, [u8]>, DecodeError> {
        match (self.data, text("data_base64", &self.data_base64)?) {
            (None, None) => Ok(Cow::Borrowed(&[])),
            (Some(_), Some(_)) => Err(DecodeError::new("`data` and `data_base64` exclude each other")),
            (None, Some(base64)) => {
                let bytes = LENIENT.decode(base64);
                bytes.map(Cow::Owned).map_err(|error| DecodeError::new(format!("`data_base64` is no base64: {error}")))
            }
            (Some(json), None) if json.get().starts_with('"') && Media::of(content_type) != Media::Json => {
                let Text(text) = serde_json::from_str(json.get())
                    .map_err(|error| DecodeError::new(format!("`data` is no string of characters: {error}")))?;
                Ok(match text {
                    Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                    Cow::Owned(text) => Cow::Owned(text.into_bytes()),
                })
            }
            (Some(json), None) => Ok(without_line_breaks(json.get())),
        }
    }

    /// Takes one member in.
    fn member<M: MapAccess<'a>>(&mut self, name: Cow<'a, str>, map: &mut M) -> Result<(), M::Error> {
        let twice = |name: &str| Err(de::Error::custom(DecodeError::twice(name)));
        let place = match &*name {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "partitionkey" => &mut self.partition_key,
            "datacontenttype" => &mut self.content_type,
            "data_base64" => &mut self.data_base64,
            "data" if self.data.is_some() => return twice(&name),
            "data" => {
                self.data = Some(map.next_value()?);
                return Ok(());
            }
            "synapseposition" if self.position_seen => return twice(&name),
            "synapseposition" => {
                self.position_seen = true;
                return map.next_value::<de::IgnoredAny>().map(drop);
            }
            _ => return self.extension(name, map),
        };
        if place.is_some() {
            return twice(&name);
        }
        *place = Some(map.next_value_seed(ValueOf(&name))?);
        Ok(())
    }

    fn extension<M: MapAccess<'a>>(&mut self, name: Cow<'a, str>, map: &mut M) -> Result<(), M::Error> {
        let value = match map.next_value_seed(ValueOf(&name))? {
            Value::Null if self.extensions.contains(&name) || self.nulls.contains(&name) => {
                return Err(de::Error::custom(DecodeError::twice(&name)));
            }
            Value::Null if self.nulls.len() == super::EXTENSIONS_MAX => {
                return Err(de::Error::custom(format!("more than {} attributes are null", super::EXTENSIONS_MAX)));
            }
            Value::Null => {
                self.nulls.push(name);
                return Ok(());
            }
            Value::Text(text) => text,
            Value::Other(text) => Cow::Owned(text),
        };
        if self.nulls.contains(&name) {
            return Err(de::Error::custom(DecodeError::twice(&name)));
        }
        self.extensions.add(name, value).map_err(de::Error::custom)
    }
}

/// A member that is text or absent.
fn text<'m>(name: &str, member: &'m Member<'_>) -> Result<Option<&'m str>, DecodeError> {
    match member {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(Value::Other(_)) => Err(DecodeError::new(format!("`{name}` is not a string"))),
    }
}

impl<'de> Deserialize<'de> for Structured<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Structured<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event as a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Structured<'de>, M::Error> {
                let mut members = Structured::default();
                while let Some(Text(name)) = map.next_key()? {
                    members.member(name, &mut map)?;
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// Text that is borrowed from the JSON if it has no escapes.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Characters;

        impl<'de> Visitor<'de> for Characters {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Characters)
    }
}

/// Reads the value of the attribute with this name.
struct ValueOf<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for ValueOf<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueOf<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string, a boolean or a whole number for `{}`", clip(self.0))
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Other(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Other(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(Value::Other(value.to_string()))
    }
}

/// Appends each element of an array to a batch.
struct Events<'b> {
    into: &'b mut Batch,
    count: &'b mut usize,
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array of events")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut events: S) -> Result<(), S::Error> {
        while let Some(event) = events.next_element::<Structured<'_>>()? {
            event.push(self.into).map_err(de::Error::custom)?;
            *self.count += 1;
        }
        Ok(())
    }
}
