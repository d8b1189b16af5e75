//! Entries from outside: an event that is read can be written in both encodings and reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use synapse_core::codec::{Decoded, Origin, check, redis};
use synapse_core::spec::Encoding;
use synapse_core::{Batch, Event, Offset, Timestamp};

fuzz_target!(|input: &[u8]| {
    // Fields are lines `name=value`; a backslash stands for a line feed.
    let text: Vec<u8> = input.iter().map(|&byte| if byte == b'\\' { b'\n' } else { byte }).collect();
    let fields: Vec<(&[u8], &[u8])> = input
        .split(|&byte| byte == b'\n')
        .scan(0, |at, line| {
            let line = &text[*at..*at + line.len()];
            *at += line.len() + 1;
            let cut = line.iter().position(|&byte| byte == b'=').unwrap_or(line.len());
            Some((&line[..cut], line.get(cut + 1..).unwrap_or_default()))
        })
        .collect();
    redis::raw_entry(&fields);
    let Some(event) = read(&fields) else { return };
    assert_eq!(rewritten(&event, Encoding::CloudEvents), event);
    let once = rewritten(&event, Encoding::Fields);
    assert_eq!((&once.kind, &once.source), (&event.kind, &event.source));
    // An id that looks like a place is not written.
    assert!(once.id == event.id || event.id.contains('/'));
});

fn read(fields: &[(&[u8], &[u8])]) -> Option<Event> {
    let topic = "flights".parse().expect("a name");
    let origin = Origin { topic: &topic, partition: 0, offset: Offset::Entry { ms: 7, seq: 1 } };
    let mut batch = Batch::default();
    match redis::decode(fields, &origin, Timestamp::from_micros(0), &mut batch) {
        Ok(Decoded::Event) => {
            assert_eq!(check(batch.event(0)), Ok(()));
            Some(batch.event(0).to_event())
        }
        Ok(Decoded::Expired) | Err(_) => {
            assert!(batch.is_empty());
            None
        }
    }
}

fn rewritten(event: &Event, encoding: Encoding) -> Event {
    let batch: Batch = [event].into_iter().collect();
    let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    redis::encode(batch.event(0), encoding, |name, value| fields.push((name.to_vec(), value.to_vec())));
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    read(&fields).expect("what an encoder writes is an event")
}
