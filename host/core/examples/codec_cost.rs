//! What the codecs cost: nanoseconds an event, and as a ratio to copying the same bytes once.
//!
//! `cargo run --release -p synapse-core --example codec_cost`. Each figure is the best of many rounds over a batch of 256
//! events, so that other work on the machine shows as little as possible; the memcpy is measured in between.
#![expect(clippy::print_stdout, reason = "printing is what this program is for")]

use std::hint::black_box;
use std::time::Instant;

use synapse_core::codec::{Origin, cloudevents, headers, redis};
use synapse_core::spec::Encoding;
use synapse_core::{Batch, Event, Offset, Timestamp, TopicName};

const EVENTS: usize = 256;
const ROUNDS: usize = 400;

fn main() {
    let topic: TopicName = "flights".parse().expect("a name");
    let plain = Event {
        id: "UA1545-EWR-20130101-0515".into(),
        source: "/airports/EWR".into(),
        kind: "flight.departed".into(),
        time: Some(Timestamp::from_micros(1_357_017_300_000_000)),
        partition_key: Some("N14228".into()),
        content_type: Some("application/json".into()),
        data:
            r#"{"dep_delay":2,"arr_delay":11,"air_time":227,"distance":1400,"flight":1545,"origin":"EWR","dest":"IAH"}"#
                .into(),
        ..Event::default()
    };
    let trace = ("traceparent".into(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    let traced = Event { attributes: vec![trace], ..plain.clone() };
    for (name, event) in [("an event with 100 bytes of JSON", plain), ("the same with a traceparent", traced)] {
        println!("{name}");
        measure(&event, &topic);
    }
}

fn measure(event: &Event, topic: &TopicName) {
    let batch: Batch = std::iter::repeat_n(event, EVENTS).collect();
    let row = batch.event(0);
    let bytes = batch.bytes().to_vec();
    let mut copy = Vec::with_capacity(bytes.len());
    let mut baseline = || {
        copy.clear();
        copy.extend_from_slice(black_box(&bytes));
    };
    let mut out = Batch::with_capacity(EVENTS, bytes.len() * 2);
    let mut text = Vec::with_capacity(bytes.len() * 4);
    let origin = Origin { topic, partition: 0, offset: Offset::Entry { ms: 1_357_017_300_000, seq: 0 } };

    for (name, encoding) in [("cloudevents", Encoding::CloudEvents), ("fields", Encoding::Fields)] {
        let mut owned: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        redis::encode(row, encoding, |name, value| owned.push((name.to_vec(), value.to_vec())));
        let fields: Vec<_> = owned.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        report(&format!("redis {name} decode"), &mut baseline, || {
            out.truncate(0);
            for _ in 0..EVENTS {
                let now = Timestamp::from_micros(0);
                redis::decode(black_box(&fields), &origin, now, &mut out).expect("it was encoded just now");
            }
        });
        report(&format!("redis {name} encode"), &mut baseline, || {
            text.clear();
            for event in batch.events() {
                redis::encode(event, encoding, |name, value| {
                    text.extend_from_slice(name);
                    text.extend_from_slice(value);
                });
            }
        });
    }

    let mut owned: Vec<(String, Vec<u8>)> = Vec::new();
    headers::encode(headers::KAFKA, row, |name, value| owned.push((name.to_owned(), value.to_vec())));
    report("kafka headers decode", &mut baseline, || {
        out.truncate(0);
        for _ in 0..EVENTS {
            let pairs = owned.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            headers::decode(headers::KAFKA, pairs, Some(b"N14228"), &event.data, Some(&origin), &mut out)
                .expect("it was encoded just now");
        }
    });
    report("kafka headers encode", &mut baseline, || {
        text.clear();
        for event in batch.events() {
            headers::encode(headers::KAFKA, event, |name, value| {
                text.extend_from_slice(name.as_bytes());
                text.extend_from_slice(value);
            });
        }
    });

    let mut json = Vec::new();
    cloudevents::encode(row, None, &mut json);
    report("json decode", &mut baseline, || {
        out.truncate(0);
        for _ in 0..EVENTS {
            cloudevents::decode(black_box(&json), &mut out).expect("it was encoded just now");
        }
    });
    report("json encode", &mut baseline, || {
        text.clear();
        for event in batch.events() {
            cloudevents::encode(event, None, &mut text);
        }
    });
}

/// Runs both in turns and prints the best of each, for one event.
fn report(name: &str, baseline: &mut impl FnMut(), mut work: impl FnMut()) {
    let nanos = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_nanos() as f64 / EVENTS as f64
    };
    let (mut copy, mut best) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        copy = copy.min(nanos(baseline));
        best = best.min(nanos(&mut work));
    }
    println!("  {name:<26} {best:>7.0} ns  {:>5.0} × memcpy ({copy:.0} ns)", best / copy);
}
