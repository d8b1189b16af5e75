//! Sends events to a topic for each severity.

use synapse_plugin::{Event, Reject, Router, Routes};

struct {{Type}} {
    config: Config,
}

/// What the stage's `config` may say.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Topics are this and the severity.
    prefix: String,
}

impl Router for {{Type}} {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.prefix.is_empty() {
            return Err("`prefix` is empty".to_owned());
        }
        Ok(Self { config })
    }

    fn route(&mut self, event: &Event<'_>, to: &mut Routes<'_>) -> Result<(), Reject> {
        match event
            .json_at("/severity")
            .and_then(|value| value.as_str())
            .as_deref()
        {
            // The stage's `routes` has to allow these topics: routes = ["alerts-*"].
            Some(severity @ ("low" | "high")) => {
                to.topic(&format!("{}{severity}", self.config.prefix))
            }
            Some("none") => to.nowhere(),
            Some(other) => return Err(Reject(format!("the severity `{other}` is unknown"))),
            None => to.pass(),
        }
        Ok(())
    }
}

synapse_plugin::export_router!({{Type}});

#[cfg(test)]
mod tests {
    use serde_json::json;
    use synapse_plugin::cases::Outcome;
    use synapse_plugin::testing::{check_cases, event, router};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), router::<{{Type}}>);
    }

    #[test]
    fn a_batch() {
        let mut plugin = router::<{{Type}}>(&json!({ "prefix": "alerts-" })).unwrap();
        let high = event("error").json(&json!({ "severity": "high" }));
        assert_eq!(
            plugin.run(&[high, event("other")]),
            [Outcome::To(vec!["alerts-high".to_owned()]), Outcome::Pass]
        );
    }
}
