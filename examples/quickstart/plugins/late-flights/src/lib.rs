//! A filter: keeps flights that left late by at least `min-minutes`. A cancelled flight never left.

use synapse_plugin::{Event, Filter, Verdict};

struct LateFlights {
    min_minutes: f64,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Config {
    min_minutes: f64,
}

impl Filter for LateFlights {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if config.min_minutes < 0.0 {
            return Err("`min-minutes` must not be negative".to_owned());
        }
        Ok(Self { min_minutes: config.min_minutes })
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        let delay = event.json_at("/dep_delay").and_then(|delay| delay.as_f64());
        Verdict::keep_if(delay.is_some_and(|minutes| minutes >= self.min_minutes))
    }
}

synapse_plugin::export_filter!(LateFlights);

#[cfg(test)]
mod tests {
    use synapse_plugin::testing::{check_cases, filter};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), filter::<LateFlights>);
    }
}
