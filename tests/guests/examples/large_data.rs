//! A filter with 100 MB of data in its component.

wit_bindgen::generate!({ path: "../../wit", world: "filter-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::filter::Verdict;
use synapse::plugin::types::Event;

static DATA: [u8; 100_000_000] = [7; 100_000_000];

impl exports::synapse::plugin::filter::Guest for Guest {
    fn judge(events: Vec<Event>) -> Vec<Verdict> {
        log(false, "judging");
        let keep = |event: &Event| DATA[std::hint::black_box(event.data.len())] == 7;
        events.iter().map(|event| if keep(event) { Verdict::Keep } else { Verdict::Drop }).collect()
    }
}
