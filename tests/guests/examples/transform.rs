//! A typed transform: each event stays and is followed by a copy of it.

wit_bindgen::generate!({ path: "../../wit", world: "transform-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::transform::Outcome;
use synapse::plugin::types::{Attribute, Event};

impl exports::synapse::plugin::transform::Guest for Guest {
    fn apply(events: Vec<Event>) -> Vec<Outcome> {
        events.into_iter().map(apply).collect()
    }
}

fn apply(event: Event) -> Outcome {
    synapse_test_guests::misbehave(&event.id, log);
    match (event.id.as_str(), synapse_test_guests::mode().as_str()) {
        ("drop", _) => return Outcome::Emit(vec![]),
        ("reject", _) => return Outcome::Reject("no".to_owned()),
        (_, "nameless") => {
            let nameless = Attribute { name: String::new(), value: String::new() };
            return Outcome::Emit(vec![Event { attributes: vec![nameless], ..event }]);
        }
        _ => {}
    }
    let mut copy = event.clone();
    copy.id.push_str("-copy");
    copy.attributes.push(Attribute { name: "copied".to_owned(), value: "yes".to_owned() });
    Outcome::Emit(vec![event, copy])
}
