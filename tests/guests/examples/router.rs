//! A typed router: an event goes to the topics named in its payload, separated by commas.

wit_bindgen::generate!({ path: "../../wit", world: "router-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::router::Routing;
use synapse::plugin::types::Event;

impl exports::synapse::plugin::router::Guest for Guest {
    fn route(events: Vec<Event>) -> Vec<Routing> {
        events.iter().map(route).collect()
    }
}

fn route(event: &Event) -> Routing {
    synapse_test_guests::misbehave(&event.id, log);
    match event.id.as_str() {
        "drop" => Routing::To(vec![]),
        "reject" => Routing::Reject("no".to_owned()),
        "pass" => Routing::Pass,
        _ => Routing::To(String::from_utf8_lossy(&event.data).split(',').map(str::to_owned).collect()),
    }
}
