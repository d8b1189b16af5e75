//! Records and requests from outside: an event that is read can be written and reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use synapse_core::codec::{Origin, check, headers};
use synapse_core::{Batch, Event, Offset};

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    let prefix = if choice & 1 == 0 { headers::KAFKA } else { headers::HTTP };
    // Headers are lines `name=value`; behind an empty line comes the body.
    let mut rest = input;
    let mut pairs = Vec::new();
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let cut = line.iter().position(|&byte| byte == b'=').unwrap_or(line.len());
        let Ok(name) = std::str::from_utf8(&line[..cut]) else { return };
        pairs.push((name, line.get(cut + 1..).unwrap_or_default()));
    }
    let key = (choice & 2 != 0).then_some(&rest[..rest.len().min(3)]);
    let Some(event) = read(prefix, &pairs, key, rest) else { return };
    let batch: Batch = [&event].into_iter().collect();
    let mut written: Vec<(String, Vec<u8>)> = Vec::new();
    headers::encode(prefix, batch.event(0), |name, value| written.push((name.to_owned(), value.to_vec())));
    let written: Vec<_> = written.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    assert_eq!(read(prefix, &written, None, &event.data).as_ref(), Some(&event));
});

fn read(prefix: &str, pairs: &[(&str, &[u8])], key: Option<&[u8]>, body: &[u8]) -> Option<Event> {
    let topic = "flights".parse().expect("a name");
    let origin = Origin { topic: &topic, partition: 1, offset: Offset::Number(7) };
    let mut batch = Batch::default();
    match headers::decode(prefix, pairs.iter().copied(), key, body, Some(&origin), &mut batch) {
        Ok(()) => {
            assert_eq!(check(batch.event(0)), Ok(()));
            Some(batch.event(0).to_event())
        }
        Err(_) => {
            assert!(batch.is_empty());
            None
        }
    }
}
