//! Puts the JSON data of events into an envelope, and says so in an attribute.

use serde::{Deserialize, Serialize};
use synapse_plugin::{Emitter, Event, Reject, Transform};

struct {{Type}} {
    config: Config,
}

/// What the stage's `config` may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The type of the events that come out.
    #[serde(rename = "type")]
    kind: String,
}

/// The part of the data that is looked at.
#[derive(Deserialize)]
struct Data {
    name: String,
}

#[derive(Serialize)]
struct Envelope<'a> {
    name: &'a str,
    from: &'a str,
}

impl Transform for {{Type}} {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.kind.is_empty() {
            return Err("`type` is empty".to_owned());
        }
        Ok(Self { config })
    }

    fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject> {
        // Data that does not fit makes the event a dead letter; to drop it, return Ok without emitting.
        let data: Data = event.json()?;
        let envelope = Envelope {
            name: &data.name,
            from: event.source(),
        };
        // Emit once, several times (ids are then `{id}/0`, `{id}/1`, …), or `out.unchanged()`.
        out.emit(
            event
                .draft()
                .kind(&self.config.kind)
                .attribute("enveloped", "true")
                .json(&envelope)?,
        );
        Ok(())
    }
}

synapse_plugin::export_transform!({{Type}});

#[cfg(test)]
mod tests {
    use serde_json::json;
    use synapse_plugin::cases::Outcome;
    use synapse_plugin::testing::{check_cases, event, transform};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), transform::<{{Type}}>);
    }

    #[test]
    fn one_event_comes_out() {
        let mut plugin = transform::<{{Type}}>(&json!({ "type": "named" })).unwrap();
        let Outcome::Emit(events) = plugin.run_one(&event("t").json(&json!({ "name": "a" })))
        else {
            panic!("nothing was emitted")
        };
        assert_eq!(events.len(), 1);
    }
}
