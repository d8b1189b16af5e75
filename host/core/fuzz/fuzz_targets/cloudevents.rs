//! JSON from outside: an event that is read can be written on one line and reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use synapse_core::Batch;
use synapse_core::codec::{check, cloudevents};

fuzz_target!(|json: &[u8]| {
    let mut batch = Batch::default();
    if cloudevents::decode_batch(json, &mut batch).is_err() {
        assert!(batch.is_empty());
    }
    if cloudevents::decode(json, &mut batch).is_err() {
        return;
    }
    for event in batch.events() {
        assert_eq!(check(event), Ok(()));
        let mut line = Vec::new();
        cloudevents::encode(event, None, &mut line);
        assert!(!line.contains(&b'\n'));
        assert_eq!(cloudevents::to_event(&line).as_ref(), Ok(&event.to_event()));
    }
});
