//! Columns from an untrusted place: whatever is taken can be read, copied, cut and appended to.
#![no_main]

use libfuzzer_sys::fuzz_target;
use synapse_core::batch::{Batch, STRIDE};
use synapse_core::{Event, EventRef};

fuzz_target!(|input: &[u8]| {
    let [extra, count, rest @ ..] = input else { return };
    let stride = STRIDE + usize::from(extra % 4);
    let (ends, bytes) = rest.split_at(rest.len().min(usize::from(*count)));
    // Ends as steps of one byte, so that most of them ascend; a step of 255 goes backwards.
    let mut end = 0_u32;
    let ends = ends.iter().map(|&step| {
        end = if step == 255 { end.wrapping_sub(1) } else { end.wrapping_add(u32::from(step % 16)) };
        end
    });
    let Ok(mut batch) = Batch::from_columns(stride, ends.collect(), bytes.to_vec()) else { return };
    let events: Vec<Event> = batch.events().map(EventRef::to_event).collect();
    let rows: Vec<u32> = (0..batch.len() as u32).rev().collect();
    let reversed: Vec<Event> = batch.select(&rows).events().map(EventRef::to_event).collect();
    assert!(events.iter().eq(reversed.iter().rev()));
    let more = Event { id: "more".into(), source: "/".into(), kind: "more".into(), ..Event::default() };
    batch.push_event(&more).expect("one more row fits");
    assert_eq!(batch.event(events.len()).to_event(), more);
    batch.truncate(events.len());
    assert!(batch.events().map(EventRef::to_event).eq(events));
});
