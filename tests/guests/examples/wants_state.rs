//! A filter that wants a grant: it keeps a count of its events.

wit_bindgen::generate!({
    inline: "
        package test:guests;
        world wants-state {
            include synapse:plugin/filter-plugin@0.1.0;
            import synapse:plugin/state@0.1.0;
        }
    ",
    path: "../../wit",
    generate_all,
});
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::filter::Verdict;
use synapse::plugin::types::Event;

impl exports::synapse::plugin::filter::Guest for Guest {
    fn judge(events: Vec<Event>) -> Vec<Verdict> {
        log(false, "counting");
        let counted = synapse::plugin::state::increment("events", events.len() as i64, None);
        events.iter().map(|_| if counted.is_ok() { Verdict::Keep } else { Verdict::Drop }).collect()
    }
}
