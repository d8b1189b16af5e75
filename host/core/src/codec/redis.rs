//! Entries of Redis streams. Each is recognised on its own:
//!
//! | encoding | recognised by | event |
//! |---|---|---|
//! | CloudEvents | `ce_specversion`, `ce_id`, `ce_source` or `ce_type` | attributes in `ce_*`, `content-type`, `data` |
//! | structured | `content-type` `application/cloudevents+json` | the JSON in `data` |
//! | the platform's | `event`, `event_type`, `payload` or `event_data` | see [`modelkit`] |
//!
//! In the first two, fields that are none of the event's become extension attributes, so nothing is lost: `dlq_reason`
//! is read as `dlqreason`. The first is the hot path: nothing is allocated for an event of ordinary size. Nothing here
//! knows the Redis protocol.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::cloudevents::{self, Structured};
use super::{DecodeError, Decoded, Extensions, Origin, is_extension_name, modelkit, required, text, time, time_text};
use crate::batch::{Batch, Row};
use crate::event::EventRef;
use crate::spec::Encoding;
use crate::time::Timestamp;

/// The fields of an entry, names and values, in order.
pub type Fields<'f> = [(&'f [u8], &'f [u8])];

/// Appends the event of one entry, whichever encoding it is in.
///
/// # Errors
/// Fields that are no event; the sentence names the field at fault or the fields found.
pub fn decode(
    fields: &Fields<'_>,
    origin: &Origin<'_>,
    now: Timestamp,
    into: &mut Batch,
) -> Result<Decoded, DecodeError> {
    if fields.iter().any(|(name, _)| is_marker(name)) {
        decode_binary(fields, origin, into)?;
        return Ok(Decoded::Event);
    }
    if fields.iter().any(|(name, value)| *name == b"content-type" && is_structured(value)) {
        decode_structured(fields, into)?;
        return Ok(Decoded::Event);
    }
    modelkit::decode_entry(fields, origin, now, into)
}

/// Hands out the fields of an event, names and values, in order. Absent attributes and empty data are left out, and so
/// are attributes whose names CloudEvents cannot carry, see [`super::check`]. What [`Encoding::Fields`] writes, and
/// loses, is told in [`modelkit`].
pub fn encode(event: EventRef<'_>, encoding: Encoding, emit: impl FnMut(&[u8], &[u8])) {
    match encoding {
        Encoding::CloudEvents => encode_binary(event, emit),
        Encoding::Fields => modelkit::encode_fields(event, emit),
    }
}

/// The bytes kept in a dead letter: a JSON object of field → text, in the entry's order. Bytes that are no UTF-8 become
/// `{"base64": "…"}`; a name that is none is written as base64 behind `base64:`.
pub fn raw_entry(fields: &Fields<'_>) -> Vec<u8> {
    let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    let mut json = Vec::with_capacity(size + 2);
    json.push(b'{');
    for (at, (name, value)) in fields.iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        match std::str::from_utf8(name) {
            Ok(name) => cloudevents::string(name, &mut json),
            Err(_) => {
                let from = json.len();
                cloudevents::base64_string(name, &mut json);
                json.splice(from + 1..from + 1, *b"base64:");
            }
        }
        json.push(b':');
        text_or_base64(value, &mut json);
    }
    json.push(b'}');
    json
}

/// Appends a JSON string, or `{"base64": "…"}` for bytes that are no UTF-8.
pub(super) fn text_or_base64(value: &[u8], json: &mut Vec<u8>) {
    match std::str::from_utf8(value) {
        Ok(value) => cloudevents::string(value, json),
        Err(_) => {
            json.extend_from_slice(b"{\"base64\":");
            cloudevents::base64_string(value, json);
            json.push(b'}');
        }
    }
}

/// Whether a field of this name makes an entry an event in `ce_*` fields. Other names that begin so do not: `ce_loss`
/// may be a metric.
pub(super) fn is_marker(name: &[u8]) -> bool {
    matches!(name, b"ce_specversion" | b"ce_id" | b"ce_source" | b"ce_type")
}

fn is_structured(content_type: &[u8]) -> bool {
    const STRUCTURED: &[u8] = b"application/cloudevents+json";
    content_type.get(..STRUCTURED.len()).is_some_and(|start| start.eq_ignore_ascii_case(STRUCTURED))
}

fn decode_binary(fields: &Fields<'_>, origin: &Origin<'_>, into: &mut Batch) -> Result<(), DecodeError> {
    let (mut version, mut id, mut source, mut kind, mut subject) = (None, None, None, None, None);
    let (mut at, mut partition_key, mut content_type, mut data) = (None, None, None, None);
    let mut extensions = Extensions::default();
    for &(name, value) in fields {
        let place = match name {
            b"ce_specversion" => &mut version,
            b"ce_id" => &mut id,
            b"ce_source" => &mut source,
            b"ce_type" => &mut kind,
            b"ce_subject" => &mut subject,
            b"ce_time" => &mut at,
            b"ce_partitionkey" => &mut partition_key,
            b"content-type" | b"ce_datacontenttype" => &mut content_type,
            b"data" => &mut data,
            _ => {
                extension(name, value, &mut extensions)?;
                continue;
            }
        };
        if place.replace(value).is_some() {
            return Err(DecodeError::twice(&String::from_utf8_lossy(name)));
        }
    }
    let attribute = |name, value: Option<_>| value.map(|value| text(name, value)).transpose();
    if let Some(version) = attribute("ce_specversion", version)?
        && version != "1.0"
    {
        return Err(DecodeError::new(format!("`ce_specversion` is `{}`, not `1.0`", super::clip(version))));
    }
    let default_id;
    let id = match attribute("ce_id", id)? {
        Some(id) => id,
        None => {
            default_id = origin.default_id();
            default_id.as_str()
        }
    };
    let row = Row {
        id: required("ce_id", Some(id))?,
        source: required("ce_source", attribute("ce_source", source)?)?,
        kind: required("ce_type", attribute("ce_type", kind)?)?,
        subject: attribute("ce_subject", subject)?.unwrap_or_default(),
        time: time("ce_time", attribute("ce_time", at)?)?,
        partition_key: attribute("ce_partitionkey", partition_key)?.unwrap_or_default(),
        content_type: attribute("content-type", content_type)?.unwrap_or_default(),
        data: data.unwrap_or_default(),
    };
    extensions.push(&row, into)
}

/// Takes a field in that is none of an event's own.
fn extension<'f>(name: &'f [u8], value: &'f [u8], extensions: &mut Extensions<'f>) -> Result<(), DecodeError> {
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(DecodeError::not_text(&String::from_utf8_lossy(name)));
    };
    match name.strip_prefix("ce_") {
        Some("synapseposition") => Ok(()),
        Some(attribute) => extensions.add(Cow::Borrowed(attribute), Cow::Borrowed(text(name, value)?)),
        None => extensions.add_foreign(name, value),
    }
}

fn decode_structured(fields: &Fields<'_>, into: &mut Batch) -> Result<(), DecodeError> {
    let field = |wanted: &[u8]| fields.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let json = field(b"data").ok_or_else(|| DecodeError::missing("data"))?;
    let mut event = Structured::parse(json)?;
    let mut own = (0, 0);
    for &(name, value) in fields {
        match name {
            b"data" => own.0 += 1,
            b"content-type" => own.1 += 1,
            _ => extension(name, value, event.extensions())?,
        }
    }
    if own != (1, 1) {
        return Err(DecodeError::twice(if own.0 > 1 { "data" } else { "content-type" }));
    }
    event.push(into)
}

fn encode_binary(event: EventRef<'_>, mut emit: impl FnMut(&[u8], &[u8])) {
    use crate::batch::Column;

    emit(b"ce_specversion", b"1.0");
    emit(b"ce_id", event.column(Column::Id));
    emit(b"ce_source", event.column(Column::Source));
    emit(b"ce_type", event.column(Column::Kind));
    if let Some(time) = event.time() {
        emit(b"ce_time", time_text(time).as_str().as_bytes());
    }
    let optional: [(&[u8], Column); 3] = [
        (b"ce_subject", Column::Subject),
        (b"ce_partitionkey", Column::PartitionKey),
        (b"content-type", Column::ContentType),
    ];
    for (name, column) in optional {
        let value = event.column(column);
        if !value.is_empty() {
            emit(name, value);
        }
    }
    for (attribute, value) in event.attributes().filter(|(name, _)| is_extension_name(name)) {
        let mut name = SmallVec::<[u8; 64]>::from_slice(b"ce_");
        name.extend_from_slice(attribute.as_bytes());
        emit(&name, value.as_bytes());
    }
    let data = event.data();
    if !data.is_empty() {
        emit(b"data", data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::topic::{Offset, TopicName};

    fn read(topic: &TopicName, fields: &[(&str, &str)]) -> Result<Event, DecodeError> {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        let origin = Origin { topic, partition: 0, offset: Offset::Entry { ms: 1_526_919_030_474, seq: 55 } };
        let mut batch = Batch::default();
        decode(&fields, &origin, Timestamp::from_micros(0), &mut batch)?;
        Ok(batch.event(0).to_event())
    }

    fn entry(fields: &[(&str, &str)]) -> Result<Event, DecodeError> {
        read(&"model-events".parse().unwrap(), fields)
    }

    const WHOLE: [(&str, &str); 4] =
        [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "helox"), ("ce_type", "model-ready")];

    #[test]
    fn fields_of_an_event_in_order() {
        let event = Event {
            id: "1".into(),
            source: "helox".into(),
            kind: "model-ready".into(),
            subject: Some("m".into()),
            time: Some("2026-01-01T00:00:00.000001Z".parse().unwrap()),
            partition_key: Some("k".into()),
            content_type: Some("application/json".into()),
            attributes: vec![("traceparent".into(), "00-1".into()), ("Not A Name".into(), "x".into())],
            data: b"{}".to_vec(),
        };
        let batch: Batch = [&event].into_iter().collect();
        let mut fields = String::new();
        encode(batch.event(0), Encoding::CloudEvents, |name, value| {
            fields += &format!("{}={} ", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        });
        let expected = "ce_specversion=1.0 ce_id=1 ce_source=helox ce_type=model-ready \
                        ce_time=2026-01-01T00:00:00.000001Z ce_subject=m ce_partitionkey=k \
                        content-type=application/json ce_traceparent=00-1 data={} ";
        assert_eq!(fields, expected);
    }

    #[test]
    fn an_entry_without_an_id_is_named_after_its_place() {
        let event = entry(&WHOLE[2..]).unwrap();
        assert_eq!(event.id, "model-events/1526919030474-55");
        assert_eq!((event.time, event.content_type, event.data.len()), (None, None, 0));
    }

    #[test]
    fn fields_that_others_added_become_attributes() {
        let added = [("dlq_reason", "timeout"), ("dlq_retry_count", "3"), ("Source", "x"), ("ce_x", "")];
        let event = entry(&[&WHOLE[..], &added].concat()).unwrap();
        let expected = [("dlqreason", "timeout"), ("dlqretrycount", "3"), ("xsource", "x"), ("x", "")];
        assert_eq!(event.attributes, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_structured_event_may_lie_in_data() {
        let json = r#"{"specversion":"1.0","id":"2","source":"/s","type":"t","x":"1"}"#;
        let content_type = ("content-type", "application/cloudevents+json");
        let event = entry(&[content_type, ("data", json), ("dlq_reason", "timeout")]).unwrap();
        assert_eq!((event.id.as_str(), event.attribute("dlqreason")), ("2", Some("timeout")));
        let refused = |fields: &[(&str, &str)]| entry(fields).unwrap_err().to_string();
        assert_eq!(refused(&[content_type]), "`data` is missing");
        assert_eq!(refused(&[content_type, ("data", json), ("data", json)]), "`data` is there twice");
        assert_eq!(refused(&[content_type, ("data", json), ("x", "2")]), "`x` is there twice");
    }

    #[test]
    fn errors_name_the_field() {
        let refused = |fields: &[(&str, &str)]| entry(fields).unwrap_err().to_string();
        let with = |field| refused(&[&WHOLE[..], &[field]].concat());
        assert_eq!(refused(&WHOLE[..2]), "`ce_source` is missing");
        assert_eq!(refused(&WHOLE[..3]), "`ce_type` is missing");
        assert_eq!(refused(&[("ce_type", ""), ("ce_source", "s")]), "`ce_type` is empty");
        assert_eq!(with(("ce_id", "2")), "`ce_id` is there twice");
        assert_eq!(with(("ce_time", "noon")), "`ce_time`: `noon` is not an RFC 3339 time such as 2026-01-31T12:00:00Z");
        assert!(with(("ce_UP", "")).starts_with("`UP` is no name of an extension attribute"));
        assert_eq!(with(("__", "")), "`__` has no letter that an attribute's name could keep");
        assert_eq!(refused(&[("ce_specversion", "0.3")]), "`ce_specversion` is `0.3`, not `1.0`");
        assert_eq!(refused(&[]), "the entry has no fields");
        assert_eq!(refused(&[("a", "1"), ("ce_loss", "2")]), "no encoding of events has the fields `a`, `ce_loss`");
        let many: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|name| (name, "")).to_vec();
        assert!(refused(&many).ends_with("`g`, `h` and 1 more"));
    }

    #[test]
    fn raw_entries_keep_everything() {
        let fields: &Fields<'_> = &[(b"b", b"\"1\""), (b"a", b"\xff"), (b"\xff", b""), (b"a", b"{}")];
        let expected = r#"{"b":"\"1\"","a":{"base64":"/w=="},"base64:/w==":"","a":"{}"}"#;
        assert_eq!(String::from_utf8(raw_entry(fields)).unwrap(), expected);
        assert_eq!(raw_entry(&[]), b"{}");
    }
}
