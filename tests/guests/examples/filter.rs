//! A typed filter.

wit_bindgen::generate!({ path: "../../wit", world: "filter-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::filter::Verdict;
use synapse::plugin::types::Event;

impl exports::synapse::plugin::filter::Guest for Guest {
    fn judge(events: Vec<Event>) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = events.iter().map(judge).collect();
        if synapse_test_guests::mode() == "one-too-few" {
            verdicts.pop();
        }
        verdicts
    }
}

fn judge(event: &Event) -> Verdict {
    synapse_test_guests::misbehave(&event.id, log);
    match event.id.as_str() {
        "drop" => Verdict::Drop,
        "reject" => Verdict::Reject(format!("{} has subject {:?}, time {:?}", event.id, event.subject, event.time)),
        _ => Verdict::Keep,
    }
}
