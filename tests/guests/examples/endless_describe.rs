//! A filter that never says what it is.

wit_bindgen::generate!({ path: "../../wit", world: "filter-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::filter::Verdict;
use synapse::plugin::types::Event;

impl exports::synapse::plugin::filter::Guest for Guest {
    fn judge(events: Vec<Event>) -> Vec<Verdict> {
        log(false, "judging");
        events.iter().map(|_| Verdict::Keep).collect()
    }
}
