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
    let mut json = serde_json::Deserializer::from_str(utf8(json)?);
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

/// Checked once for the whole text: that is faster than string by string.
fn utf8(json: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(json).map_err(|_| DecodeError::new("not JSON: it is not UTF-8"))
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
        serde_json::from_str(utf8(json)?).map_err(|error| {
            let what = if error.is_data() { "" } else { "not JSON: " };
            DecodeError::new(format!("{what}{error}"))
        })
    }

    /// Gives the event a partition key, if it has none of its own.
    pub(super) fn default_partition_key(&mut self, key: &'a str) {
        if matches!(self.partition_key, None | Some(Value::Null)) {
            self.partition_key = Some(Value::Text(Cow::Borrowed(key)));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The first lines of a day of departures from the airports of New York.
    const FLIGHTS: &str = concat!(
        r#"{"specversion":"1.0","id":"UA1545-EWR-20130101-0515","source":"/airports/EWR","type":"flight.departed","subject":"UA1545","time":"2013-01-01T05:15:00Z","partitionkey":"N14228","datacontenttype":"application/json","data":{"dep_delay":2,"arr_delay":11,"air_time":227,"distance":1400,"flight":1545,"sched_dep_time":515,"sched_arr_time":819,"dep_time":517,"arr_time":830,"carrier":"UA","tailnum":"N14228","origin":"EWR","dest":"IAH"}}"#,
        "\n",
        r#"{"specversion":"1.0","id":"UA1714-LGA-20130101-0529","source":"/airports/LGA","type":"flight.departed","subject":"UA1714","time":"2013-01-01T05:29:00Z","partitionkey":"N24211","datacontenttype":"application/json","data":{"dep_delay":4,"arr_delay":20,"air_time":227,"distance":1416,"flight":1714,"sched_dep_time":529,"sched_arr_time":830,"dep_time":533,"arr_time":850,"carrier":"UA","tailnum":"N24211","origin":"LGA","dest":"IAH"}}"#,
        "\n",
        r#"{"specversion":"1.0","id":"AA1141-JFK-20130101-0540","source":"/airports/JFK","type":"flight.departed","subject":"AA1141","time":"2013-01-01T05:40:00Z","partitionkey":"N619AA","datacontenttype":"application/json","data":{"dep_delay":2,"arr_delay":33,"air_time":160,"distance":1089,"flight":1141,"sched_dep_time":540,"sched_arr_time":850,"dep_time":542,"arr_time":923,"carrier":"AA","tailnum":"N619AA","origin":"JFK","dest":"MIA"}}"#,
    );

    fn event(members: &str) -> Result<Event, DecodeError> {
        to_event(format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{members}}}"#).as_bytes())
    }

    fn encoded(event: &Event) -> String {
        let batch: Batch = [event].into_iter().collect();
        let mut json = Vec::new();
        encode(batch.event(0), None, &mut json);
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn flights_go_through_byte_for_byte() {
        let mut batch = Batch::default();
        for line in FLIGHTS.lines() {
            decode(line.as_bytes(), &mut batch).unwrap();
        }
        let first = batch.event(0).to_event();
        assert_eq!(first.id, "UA1545-EWR-20130101-0515");
        assert_eq!(first.partition_key.as_deref(), Some("N14228"));
        assert_eq!(first.time.unwrap().as_micros(), 1_357_017_300_000_000);
        assert!(first.data.starts_with(br#"{"dep_delay":2,"arr_delay":11"#));
        let lines: Vec<_> = batch.events().map(|event| encoded(&event.to_event())).collect();
        assert_eq!(lines.join("\n"), FLIGHTS);
    }

    #[test]
    fn attributes_become_texts() {
        let event = event(
            r#","subject":null,"a":"x","b":true,"c":-7,"d":18446744073709551615,"e":null,"f":"\n",
              "partitionkey":5,"synapseposition":"local/t/0/1","data":"\u0061""#,
        )
        .unwrap();
        let attributes = [("a", "x"), ("b", "true"), ("c", "-7"), ("d", "18446744073709551615"), ("f", "\n")];
        assert_eq!(event.attributes, attributes.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(event.partition_key.as_deref(), Some("5"));
        assert_eq!((event.subject, event.content_type), (None, None));
        assert_eq!(event.data, br#""\u0061""#);
    }

    #[test]
    fn data_keeps_its_bytes() {
        let data = |members| event(members).unwrap().data;
        assert_eq!(data(r#","data":{"b": 1.50,"a":[ ]}"#), br#"{"b": 1.50,"a":[ ]}"#);
        assert_eq!(data(",\"data\": {\n  \"a\":\r\n\t[1,\n 2],\"b\":\" x\"\n}"), br#"{"a":[1,2],"b":" x"}"#);
        assert_eq!(data(r#","data":null"#), b"null");
        assert_eq!(data(r#","datacontenttype":"text/plain","data":"a\"\u00e9""#), "a\"é".as_bytes());
        assert_eq!(data(r#","datacontenttype":"text/plain","data":[1]"#), b"[1]");
        assert_eq!(data(r#","datacontenttype":"application/x+json","data":"a""#), br#""a""#);
        assert_eq!(data(r#","data_base64":"AP8=""#), [0, 255]);
        assert_eq!(data(r#","data_base64":"AP8""#), [0, 255]);
        assert_eq!(data(r#","data_base64":null"#), b"");
    }

    #[test]
    fn data_is_written_so_that_it_reads_back() {
        let start = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t""#;
        let written = |content_type: &str, data: &[u8]| {
            let content_type = Some(content_type.to_owned()).filter(|text| !text.is_empty());
            let event = Event { content_type, data: data.to_vec(), ..event("").unwrap() };
            encoded(&event).strip_prefix(start).unwrap().to_owned()
        };
        assert_eq!(written("", b""), "}");
        assert_eq!(written("", b"[1, 2]"), r#","data":[1, 2]}"#);
        assert_eq!(written("", b"[1,\n2]"), r#","data_base64":"WzEsCjJd"}"#);
        assert_eq!(written("", b"a"), r#","data_base64":"YQ=="}"#);
        assert_eq!(written("text/plain", b"\"a\"\n"), r#","datacontenttype":"text/plain","data":"\"a\"\n"}"#);
        assert_eq!(written("a/xml", b"<a/>"), r#","datacontenttype":"a/xml","data":"<a/>"}"#);
        assert_eq!(written("image/png", b"a"), r#","datacontenttype":"image/png","data_base64":"YQ=="}"#);
        assert_eq!(written("text/plain", b"\xff"), r#","datacontenttype":"text/plain","data_base64":"/w=="}"#);
    }

    #[test]
    fn a_position_stands_beside_the_attributes() {
        let batch: Batch = [&event(r#","x":"1""#).unwrap()].into_iter().collect();
        let mut json = b"> ".to_vec();
        encode(batch.event(0), Some(&"bus/flights/0/5-1".parse().unwrap()), &mut json);
        let expected = r#"> {"specversion":"1.0","id":"1","source":"/s","type":"t","x":"1","synapseposition":"bus/flights/0/5-1"}"#;
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }

    #[test]
    fn errors_name_the_attribute() {
        let whole = |json: &str| to_event(json.as_bytes()).unwrap_err().to_string();
        let with = |members| event(members).unwrap_err().to_string();
        assert_eq!(whole("[]"), "invalid type: sequence, expected an event as a JSON object at line 1 column 0");
        assert_eq!(whole("{"), "not JSON: EOF while parsing an object at line 1 column 1");
        assert_eq!(whole("{} x"), "not JSON: trailing characters at line 1 column 4");
        assert_eq!(whole("{}"), "`specversion` is missing");
        assert_eq!(whole(r#"{"specversion":"0.3"}"#), "`specversion` is `0.3`, not `1.0`");
        assert_eq!(whole(r#"{"specversion":"1.0","id":null}"#), "`id` is missing");
        assert_eq!(whole(r#"{"specversion":"1.0","id":""}"#), "`id` is empty");
        assert_eq!(whole(r#"{"specversion":"1.0","id":7}"#), "`id` is not a string");
        assert_eq!(with(r#","id":"2""#), "`id` is there twice at line 1 column 59");
        assert_eq!(with(r#","x":"2","x":null"#), "`x` is there twice at line 1 column 72");
        assert_eq!(with(r#","x":null,"x":1"#), "`x` is there twice at line 1 column 70");
        assert_eq!(with(r#","time":"noon""#), "`time`: `noon` is not an RFC 3339 time such as 2026-01-31T12:00:00Z");
        assert_eq!(with(r#","data":1,"data_base64":"""#), "`data` and `data_base64` exclude each other");
        assert!(with(r#","data_base64":"?""#).starts_with("`data_base64` is no base64: "));
        let object = "a string, a boolean or a whole number for `x` at line 1 column 61";
        assert_eq!(with(r#","x":{}"#), format!("invalid type: map, expected {object}"));
        assert!(with(r#","x":1.5"#).contains("expected a string, a boolean or a whole number for `x`"));
        assert!(with(r#","X":"1""#).starts_with("`X` is no name of an extension attribute"));
    }

    #[test]
    fn a_batch_is_all_or_nothing_and_names_the_index() {
        let good = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
        let mut batch = Batch::default();
        assert_eq!(decode_batch(b"[]", &mut batch), Ok(0));
        assert_eq!(decode_batch(format!("[{good},\n{good}]").as_bytes(), &mut batch), Ok(2));
        let before = batch.clone();
        let mut refuse = |json: String| decode_batch(json.as_bytes(), &mut batch).unwrap_err().to_string();
        assert_eq!(
            refuse(format!("[{good},{{\"specversion\":\"1.0\"}}]")),
            "event 1: `id` is missing at line 1 column 79"
        );
        assert_eq!(refuse(format!("[{good}")), "event 1: not JSON: EOF while parsing a list at line 1 column 56");
        assert!(refuse(good.to_owned()).contains("expected a JSON array of events"));
        assert_eq!(batch, before);
    }
}
