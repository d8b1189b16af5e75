//! Keeps events whose JSON data has a number that is high enough.

use synapse_plugin::json::Pointer;
use synapse_plugin::{Event, Filter, Verdict};

struct {{Type}} {
    config: Config,
}

/// What the stage's `config` may say.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Where the number is.
    pointer: Pointer,
    /// The lowest that is kept.
    min: f64,
}

impl Filter for {{Type}} {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.min.is_nan() {
            return Err("`min` has to be a number".to_owned());
        }
        Ok(Self { config })
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        let number = event
            .json_at_pointer(&self.config.pointer)
            .and_then(|value| value.as_f64());
        Verdict::keep_if(number.is_some_and(|number| number >= self.config.min))
    }
}

synapse_plugin::export_filter!({{Type}});

#[cfg(test)]
mod tests {
    use serde_json::json;
    use synapse_plugin::cases::Outcome;
    use synapse_plugin::testing::{check_cases, event, filter};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), filter::<{{Type}}>);
    }

    #[test]
    fn a_batch() {
        let mut plugin =
            filter::<{{Type}}>(&json!({ "pointer": "/accuracy", "min": 0.9 })).unwrap();
        let high = event("model-ready").json(&json!({ "accuracy": 0.95 }));
        let low = event("model-ready").json(&json!({ "accuracy": 0.5 }));
        assert_eq!(plugin.run(&[high, low]), [Outcome::Keep, Outcome::Drop]);
    }
}
