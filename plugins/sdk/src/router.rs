//! Routers: topics by name, chosen for each event.
//!
//! Invariant: an answer lists each topic and each set of topics once. Neighbours that go the same way cost no
//! allocation.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::Reject;
use crate::columns::{Batch, PASS, Rejection, Routing, View};
use crate::event::Event;

/// Names the topics an event goes to. Export it with [`export_router!`](crate::export_router).
pub trait Router: Sized + 'static {
    /// What the stage's `config` is read into; [`NoConfig`](crate::NoConfig) for none. Put
    /// `#[serde(deny_unknown_fields)]` on it, so that a typing error is an error.
    type Config: DeserializeOwned;

    /// JSON Schema of the configuration, shown by `synapse plugin show` and checked by the host; empty: not described.
    const CONFIG_SCHEMA: &'static str = "";

    /// Sets the plugin up. Called once on each instance, before the first event.
    ///
    /// # Errors
    /// One sentence for the operator on what is wrong with the configuration; the plugin is then not used.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Says where the event goes. Saying nothing drops it.
    ///
    /// # Errors
    /// A reason why the event can never be routed: it becomes a dead letter.
    fn route(&mut self, event: &Event<'_>, to: &mut Routes<'_>) -> Result<(), Reject>;
}

/// Takes the topics for one event.
pub struct Routes<'a> {
    topics: &'a mut Interner,
    chosen: &'a mut Vec<u32>,
    pass: bool,
}

impl Routes<'_> {
    /// Sends the event to a topic, written `topic` (on the default broker) or `broker/topic`. A topic named twice gets
    /// it once; one outside the stage's `routes` makes the event a dead letter.
    pub fn topic(&mut self, name: &str) {
        self.pass = false;
        let topic = self.topics.number(name);
        if !self.chosen.contains(&topic) {
            self.chosen.push(topic);
        }
    }

    /// Lets the event go on to the next stage, or to the pipeline's own `to`. Of this and [`Self::topic`] the later
    /// call counts.
    pub fn pass(&mut self) {
        self.chosen.clear();
        self.pass = true;
    }

    /// Drops the event: forgets what was said before.
    pub fn nowhere(&mut self) {
        self.chosen.clear();
        self.pass = false;
    }
}

/// Gives names numbers, from 0.
#[derive(Default)]
struct Interner {
    numbers: BTreeMap<Box<str>, u32>,
    names: Vec<String>,
}

impl Interner {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = self.names.len() as u32;
        self.numbers.insert(name.into(), number);
        self.names.push(name.to_owned());
        number
    }
}

/// Routes a batch: what the exported function does.
pub(crate) fn route<R: Router>(router: &mut R, batch: &Batch) -> Routing {
    let view = View::of(batch);
    let mut topics = Interner::default();
    let mut choices: Vec<Vec<u32>> = Vec::new();
    let mut numbers: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
    let mut choice = Vec::with_capacity(view.rows());
    let mut rejected = Vec::new();
    let mut chosen = Vec::new();
    for (row, event) in view.events() {
        chosen.clear();
        let mut routes = Routes { topics: &mut topics, chosen: &mut chosen, pass: false };
        let routed = router.route(&event, &mut routes);
        let pass = routes.pass;
        if let Err(Reject(reason)) = routed {
            rejected.push(Rejection { row, reason });
            choice.push(PASS);
        } else if pass {
            choice.push(PASS);
        } else if let Some(&number) = numbers.get(&chosen) {
            choice.push(number);
        } else {
            let number = choices.len() as u32;
            choices.push(chosen.clone());
            numbers.insert(chosen.clone(), number);
            choice.push(number);
        }
    }
    Routing { topics: topics.names, choice, choices, rejected }
}
