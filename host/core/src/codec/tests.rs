//! Properties that every encoding has to keep, tried with arbitrary events and arbitrary bytes.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::event::Event;
use crate::spec::Encoding;
use crate::topic::Position;

pub(super) type OwnedFields = Vec<(Vec<u8>, Vec<u8>)>;

pub(super) fn borrowed(fields: &OwnedFields) -> Vec<(&[u8], &[u8])> {
    fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect()
}

pub(super) fn fields_of(event: EventRef<'_>, encoding: Encoding) -> OwnedFields {
    let mut fields = Vec::new();
    redis::encode(event, encoding, |name, value| fields.push((name.to_vec(), value.to_vec())));
    fields
}

/// Decodes one entry of `flights` at 7-1, at the Unix epoch.
pub(super) fn entry(fields: &OwnedFields) -> Result<Option<Event>, DecodeError> {
    let topic = "flights".parse().unwrap();
    let origin = Origin { topic: &topic, partition: 0, offset: Offset::Entry { ms: 7, seq: 1 } };
    let mut batch = Batch::default();
    match redis::decode(&borrowed(fields), &origin, Timestamp::from_micros(0), &mut batch)? {
        Decoded::Event => Ok(Some(batch.event(0).to_event())),
        Decoded::Expired => Ok(None),
    }
}

type OwnedHeaders = Vec<(String, Vec<u8>)>;

fn headers_of(prefix: &str, event: EventRef<'_>) -> OwnedHeaders {
    let mut headers = Vec::new();
    headers::encode(prefix, event, |name, value| headers.push((name.to_owned(), value.to_vec())));
    headers
}

fn message(
    prefix: &str,
    headers: &OwnedHeaders,
    key: Option<&[u8]>,
    value: &[u8],
    into: &mut Batch,
) -> Result<(), DecodeError> {
    let topic = "flights".parse().unwrap();
    let origin = Origin { topic: &topic, partition: 3, offset: Offset::Number(9) };
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    headers::decode(prefix, headers, key, value, Some(&origin), into)
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[ -~]{1,12}", 1 => vec(any::<char>(), 1..8).prop_map(String::from_iter)]
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any_text().prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Into::into),
            btree_map("[a-z_]{0,8}", inner, 0..4).prop_map(|members| serde_json::json!(members)),
        ]
    })
}

fn any_content_type() -> impl Strategy<Value = String> {
    let known = [
        "application/json",
        "application/vnd.x+json; charset=utf-8",
        "text/plain",
        "application/xml",
        "application/octet-stream",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "Text/JSON",
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => any_text()]
}

fn any_data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..24),
        any_json().prop_map(|json| json.to_string().into_bytes()),
        any_json().prop_map(|json| serde_json::to_vec_pretty(&json).unwrap()),
        any_json().prop_map(|json| format!(" {json}").into_bytes()),
        any_text().prop_map(String::into_bytes),
        prop::sample::select(vec!["null", "\"\\ud800\"", "1e999", "-0", "[1,\t2]", "{\"a\":1,\"a\":2}", "\"a\"\r"])
            .prop_map(|json| json.as_bytes().to_vec()),
    ]
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        RFC_3339_MICROS,
        (0..4_000_000_000_i64).prop_map(|seconds| seconds * 1_000_000),
        Just(*RFC_3339_MICROS.start()),
        Just(*RFC_3339_MICROS.end()),
    ]
    .prop_map(Timestamp::from_micros)
}

/// Any event that [`check`] takes.
fn any_event() -> impl Strategy<Value = Event> {
    let name = prop_oneof![9 => "[a-z0-9]{1,12}", 1 => Just("traceparent".to_owned())];
    let attributes = btree_map(name, prop_oneof![any_text(), Just(String::new())], 0..10);
    let texts =
        (any_text(), any_text(), any_text(), proptest::option::of(any_text()), proptest::option::of(any_text()));
    (texts, proptest::option::of(any_time()), proptest::option::of(any_content_type()), attributes, any_data())
        .prop_map(|((id, source, kind, subject, partition_key), time, content_type, attributes, data)| Event {
            id,
            source,
            kind,
            subject,
            time,
            partition_key,
            content_type,
            attributes: attributes.into_iter().filter(|(name, _)| !is_reserved(name)).collect(),
            data,
        })
}

/// Names that decoders look for, and others.
fn any_name() -> impl Strategy<Value = String> {
    let known = [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_subject",
        "ce_partitionkey",
        "ce_traceparent",
        "content-type",
        "data",
        "event",
        "event_type",
        "payload",
        "event_data",
        "timestamp",
        "source",
        "sender",
        "ttl_sec",
        "event_id",
        "correlation_id",
        "dlq_reason",
        "accuracy",
        "success",
        "metadata",
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => any_text()]
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let known = ["1.0", "model-ready", "inference-complete", "2026-01-01T00:00:00Z", "60", "0.5", "True", ""];
    let object = btree_map(any_name(), any_json(), 0..6);
    prop_oneof![
        prop::sample::select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        object.prop_map(|members| serde_json::to_vec(&members).unwrap()),
        any_data(),
    ]
}

fn any_fields() -> impl Strategy<Value = OwnedFields> {
    let name = prop_oneof![9 => any_name().prop_map(String::into_bytes), 1 => vec(any::<u8>(), 0..4)];
    vec((name, any_value()), 0..12)
}

/// JSON that is nearly a structured event: some members right, some not, cut off here and there.
fn any_nearly_event() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "data",
        "data_base64",
        "partitionkey",
        "datacontenttype",
        "synapseposition",
        "x",
        "Bad",
    ];
    let value = prop_oneof![
        any_json().prop_map(|json| json.to_string()),
        prop::sample::select(vec!["\"1.0\"", "null", "5", "true", "\"2026-01-01T00:00:00Z\"", "\"AAA\"", "1e3"])
            .prop_map(str::to_owned),
    ];
    let rest = vec((prop::sample::select(names.to_vec()), value), 0..8);
    (any::<bool>(), rest, 0..200_usize, any::<bool>()).prop_map(|(good, members, cut, whole)| {
        let mut json = String::from("{");
        if good {
            json.push_str(r#""specversion":"1.0","id":"1","source":"/s","type":"t","#);
        }
        let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        json.push_str(&members.join(","));
        let mut json = json.trim_end_matches(',').to_owned().into_bytes();
        json.push(b'}');
        if !whole {
            json.truncate(cut);
        }
        json
    })
}

fn batch_of(event: &Event) -> Batch {
    let batch: Batch = [event].into_iter().collect();
    check(batch.event(0)).expect("the strategy makes events");
    batch
}

/// Runs a decoder behind a first event: afterwards there is one event more that [`check`] takes, or nothing changed.
fn keeps_its_word<T>(decode: impl FnOnce(&mut Batch) -> Result<T, DecodeError>) -> Result<(), TestCaseError> {
    let first = Event { id: "1".into(), source: "/".into(), kind: "first".into(), ..Event::default() };
    let before = batch_of(&first);
    let mut batch = before.clone();
    let decoded = decode(&mut batch);
    if decoded.is_err() || batch.len() == 1 {
        prop_assert_eq!(batch, before);
    } else {
        prop_assert_eq!(batch.event(0).to_event(), first);
        for event in batch.events() {
            prop_assert_eq!(check(event), Ok(()));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn events_survive_json(event in any_event(), with_position in any::<bool>()) {
        let batch = batch_of(&event);
        let position: Position = "local/flights/0/17".parse().unwrap();
        let mut json = Vec::new();
        cloudevents::encode(batch.event(0), with_position.then_some(&position), &mut json);
        prop_assert!(!json.contains(&b'\n') && !json.contains(&b'\r'));
        prop_assert_eq!(&cloudevents::to_event(&json).unwrap(), &event);

        let array = [b"[", json.as_slice(), b",", &json, b"]"].concat();
        let mut both = Batch::default();
        prop_assert_eq!(cloudevents::decode_batch(&array, &mut both), Ok(2));
        prop_assert_eq!(both.event(1).to_event(), event);
    }

    #[test]
    fn events_survive_headers(event in any_event(), http in any::<bool>(), key in proptest::option::of(any_text())) {
        let prefix = if http { headers::HTTP } else { headers::KAFKA };
        let event = Event { partition_key: event.partition_key.or(key.clone()), ..event };
        let batch = batch_of(&event);
        let headers = headers_of(prefix, batch.event(0));
        let mut back = Batch::default();
        let key = key.as_ref().map(String::as_bytes);
        message(prefix, &headers, key, &event.data, &mut back).unwrap();
        prop_assert_eq!(back.event(0).to_event(), event);
        if http {
            let attributes = headers.iter().filter(|(name, _)| name.starts_with(prefix));
            prop_assert!(attributes.into_iter().all(|(_, value)| value.iter().all(u8::is_ascii_graphic)));
        }
    }

    #[test]
    fn events_survive_redis(event in any_event()) {
        let batch = batch_of(&event);
        let fields = fields_of(batch.event(0), Encoding::CloudEvents);
        prop_assert_eq!(entry(&fields).unwrap().unwrap(), event);
    }

    #[test]
    fn fields_keep_what_they_can(event in any_event()) {
        let batch = batch_of(&event);
        let fields = fields_of(batch.event(0), Encoding::Fields);
        let back = entry(&fields).unwrap().unwrap();
        prop_assert_eq!(&back.id, &event.id);
        prop_assert_eq!(&back.source, &event.source);
        prop_assert_eq!(&back.kind, &event.kind);
        prop_assert_eq!(back.time, event.time.or(Some(Timestamp::from_micros(7000))));
        prop_assert_eq!(back.attribute("traceparent"), event.attribute("traceparent").filter(|trace| !trace.is_empty()));
    }

    #[test]
    fn json_decoders_keep_their_word(json in prop_oneof![vec(any::<u8>(), 0..64), any_nearly_event(), any_value()]) {
        keeps_its_word(|into| cloudevents::decode(&json, into))?;
        keeps_its_word(|into| cloudevents::decode_batch(&json, into))?;
        let array = [b"[{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"t\"},", &json[..], b"]"].concat();
        keeps_its_word(|into| cloudevents::decode_batch(&array, into))?;
    }

    #[test]
    fn the_redis_decoder_keeps_its_word(fields in any_fields()) {
        let topic = "flights".parse().unwrap();
        let origin = Origin { topic: &topic, partition: 0, offset: Offset::Entry { ms: u64::MAX, seq: u64::MAX } };
        let fields = borrowed(&fields);
        keeps_its_word(|into| redis::decode(&fields, &origin, Timestamp::from_micros(i64::MAX), into))?;
        let raw: serde_json::Value = serde_json::from_slice(&redis::raw_entry(&fields)).unwrap();
        prop_assert!(raw.is_object());
    }

    #[test]
    fn the_headers_decoder_keeps_its_word(
        headers in vec((any_name(), any_value()), 0..12),
        http in any::<bool>(),
        key in proptest::option::of(vec(any::<u8>(), 0..8)),
        value in any_value(),
    ) {
        let prefix = if http { headers::HTTP } else { headers::KAFKA };
        let dashed = |(name, value): &(String, Vec<u8>)| (name.replacen("ce_", prefix, 1), value.clone());
        let headers: OwnedHeaders = headers.iter().map(dashed).collect();
        keeps_its_word(|into| message(prefix, &headers, key.as_deref(), &value, into))?;
    }

    #[test]
    fn what_the_platform_sends_goes_out_as_it_came(
        event in prop::sample::select(vec!["model-ready", "agi-decision", "something-new"]),
        texts in btree_map("text_[a-z]{1,8}", "[ -Z^-z]{0,8}", 0..4),
        objects in btree_map("object_[a-z]{1,8}", btree_map("[a-z]{1,4}", any::<i32>(), 0..3), 0..3),
    ) {
        let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let mut fields = vec![field("timestamp", "2026-01-01T00:00:00.000Z"), field("event", event)];
        fields.extend(texts.iter().map(|(name, value)| field(name, value)));
        fields.push(field("source", "helox"));
        fields.extend(objects.iter().map(|(name, value)| field(name, &serde_json::to_string(value).unwrap())));
        let batch = batch_of(&entry(&fields).unwrap().unwrap());
        prop_assert_eq!(fields_of(batch.event(0), Encoding::Fields), fields);
    }
}

#[test]
fn check_names_the_rule_that_is_broken() {
    let good = Event { id: "1".into(), source: "/".into(), kind: "t".into(), ..Event::default() };
    let reason = |event: Event| check([&event].into_iter().collect::<Batch>().event(0)).unwrap_err().to_string();
    let attributes = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), String::new())).collect();
    assert_eq!(reason(Event { id: String::new(), ..good.clone() }), "`id` is empty");
    assert_eq!(reason(Event { attributes: attributes(&["a", "a"]), ..good.clone() }), "`a` is there twice");
    let name = "`data` is no name of an extension attribute: a-z and 0-9, and none that CloudEvents uses itself";
    assert_eq!(reason(Event { attributes: attributes(&["data"]), ..good.clone() }), name);
    let late = Some(Timestamp::from_micros(i64::MAX));
    assert_eq!(reason(Event { time: late, ..good }), "`time` is outside the years 0 to 9999");
}
