//! Keeps events of a type whose payload contains a text. The payload is not parsed, so it may be anything.

use synapse_plugin::{Event, Filter, Needle, Verdict};

/// The filter.
pub struct Contains {
    /// Empty: any type.
    kind: String,
    text: Needle,
}

/// The configuration.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(rename = "type", default)]
    kind: String,
    text: String,
}

impl Filter for Contains {
    type Config = Config;

    const CONFIG_SCHEMA: &'static str = r#"{"type":"object","properties":{"type":{"type":"string","description":"Only events of exactly this type."},"text":{"type":"string","minLength":1,"description":"What the payload has to contain, byte for byte."}},"required":["text"],"additionalProperties":false}"#;

    fn new(config: Config) -> Result<Self, String> {
        if config.text.is_empty() {
            return Err("`text` is empty, so every payload would contain it".to_owned());
        }
        Ok(Self { kind: config.kind, text: Needle::new(config.text) })
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        let fits = self.kind.is_empty() || event.kind() == self.kind;
        Verdict::keep_if(fits && self.text.is_in(event.data()))
    }
}

synapse_plugin::export_filter!(Contains);

#[cfg(test)]
mod tests {
    use synapse_plugin::testing::{check_cases, filter};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), filter::<Contains>);
    }

    #[test]
    fn the_schema_is_json() {
        serde_json::from_str::<serde_json::Value>(Contains::CONFIG_SCHEMA).unwrap();
    }
}
