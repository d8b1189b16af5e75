//! Keeps events by type, attributes and values in their JSON data.
//!
//! An event is kept if its type fits, every condition under `all` holds, one under `any` does, and none under `none`.
//! A value that is not there fits no comparison, data that is not JSON has no values; neither is an error.

mod condition;

use synapse_plugin::{Event, Filter, Pattern, Verdict};

use condition::{Condition, ConditionConfig};

/// The filter.
pub struct Match {
    /// Empty: any type.
    types: Vec<Pattern>,
    all: Vec<Condition>,
    /// Empty: not asked for.
    any: Vec<Condition>,
    none: Vec<Condition>,
}

/// The configuration.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(rename = "type", default)]
    types: Option<OneOrMany>,
    #[serde(default)]
    all: Vec<ConditionConfig>,
    #[serde(default)]
    any: Vec<ConditionConfig>,
    #[serde(default)]
    none: Vec<ConditionConfig>,
}

/// Patterns, written as one or as a list.
#[derive(Debug, serde::Deserialize)]
#[serde(untagged, expecting = "a pattern or a list of patterns")]
enum OneOrMany {
    One(Pattern),
    Many(Vec<Pattern>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<Pattern> {
        match self {
            Self::One(pattern) => vec![pattern],
            Self::Many(patterns) => patterns,
        }
    }
}

impl Filter for Match {
    type Config = Config;

    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Config) -> Result<Self, String> {
        let conditions = |name: &str, configs: Vec<ConditionConfig>| -> Result<Vec<Condition>, String> {
            let numbered = (1..).zip(configs);
            numbered
                .map(|(number, config)| {
                    Condition::new(config).map_err(|problem| format!("condition {number} under `{name}`: {problem}"))
                })
                .collect()
        };
        let filter = Self {
            types: config.types.map(OneOrMany::into_vec).unwrap_or_default(),
            all: conditions("all", config.all)?,
            any: conditions("any", config.any)?,
            none: conditions("none", config.none)?,
        };
        if filter.types.is_empty() && filter.all.is_empty() && filter.any.is_empty() && filter.none.is_empty() {
            return Err("the config has no condition: give `type`, `all`, `any` or `none`".to_owned());
        }
        Ok(filter)
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        let holds = |condition: &Condition| condition.holds(event);
        Verdict::keep_if(
            (self.types.is_empty() || self.types.iter().any(|pattern| pattern.matches(event.kind())))
                && self.all.iter().all(holds)
                && (self.any.is_empty() || self.any.iter().any(holds))
                && !self.none.iter().any(holds),
        )
    }
}

synapse_plugin::export_filter!(Match);

#[cfg(test)]
mod tests {
    use synapse_plugin::testing::{check_cases, filter};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), filter::<Match>);
    }

    #[test]
    fn the_schema_is_json() {
        serde_json::from_str::<serde_json::Value>(Match::CONFIG_SCHEMA).unwrap();
    }
}
