//! A batch router: an event goes to the topics named in its payload, separated by commas. It can lie about every part of
//! its answer.

wit_bindgen::generate!({ path: "../../wit", world: "batch-router-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::batch_router::{Batch, Rejection, Routes};
use synapse_test_guests::columns::Columns;

impl exports::synapse::plugin::batch_router::Guest for Guest {
    fn route(batch: Batch) -> Routes {
        let batch = Columns { stride: batch.stride, ends: &batch.ends, bytes: &batch.bytes };
        let mut routes = Routes { topics: vec![], choice: vec![], choices: vec![], rejected: vec![] };
        for row in 0..batch.rows() {
            let id = batch.id(row);
            synapse_test_guests::misbehave(id, log);
            if id == "pass" || id == "reject" {
                routes.choice.push(u32::MAX);
                if id == "reject" {
                    routes.rejected.push(Rejection { row: row as u32, reason: "no".to_owned() });
                }
                continue;
            }
            let names = String::from_utf8_lossy(batch.data(row));
            let names = names.split(',').filter(|_| id != "drop");
            let set = names.map(|name| topic(&mut routes.topics, name)).collect();
            routes.choice.push(routes.choices.len() as u32);
            routes.choices.push(set);
        }
        lie(&mut routes);
        routes
    }
}

fn topic(topics: &mut Vec<String>, name: &str) -> u32 {
    let at = topics.iter().position(|known| known == name).unwrap_or_else(|| {
        topics.push(name.to_owned());
        topics.len() - 1
    });
    at as u32
}

fn lie(routes: &mut Routes) {
    match synapse_test_guests::mode().as_str() {
        "one-too-few" => drop(routes.choice.pop()),
        "choice-beyond" => routes.choice[0] = routes.choices.len() as u32,
        "topic-beyond" => routes.choices.push(vec![routes.topics.len() as u32]),
        _ => {}
    }
}
