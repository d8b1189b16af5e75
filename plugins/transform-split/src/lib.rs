//! Makes an event of each element of a JSON array.
//!
//! Elements are copied as they are written. An event's id is `{parent}/{k}` with the element's place, or the parent's
//! own when there is one element; every other attribute is the parent's unless configured otherwise.

use serde_json::value::RawValue;
use synapse_plugin::json::Pointer;
use synapse_plugin::{Emitter, Event, Reject, Transform};

/// The transform.
pub struct Split {
    pointer: Pointer,
    kind: Option<String>,
    key: Option<Pointer>,
    otherwise: Otherwise,
    elements_max: usize,
}

/// The configuration.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    #[serde(default = "whole_data")]
    pointer: Pointer,
    #[serde(rename = "type")]
    kind: Option<String>,
    key: Option<Pointer>,
    #[serde(default)]
    otherwise: Otherwise,
    #[serde(default = "default_elements_max")]
    elements_max: usize,
}

/// What becomes of an event without an array at the place.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Otherwise {
    /// A dead letter.
    #[default]
    Reject,
    Keep,
    Drop,
}

fn whole_data() -> Pointer {
    Pointer::new("").expect("the empty pointer is one")
}

fn default_elements_max() -> usize {
    10_000
}

impl Transform for Split {
    type Config = Config;

    const CONFIG_SCHEMA: &'static str = r#"{
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "pointer": { "type": "string", "default": "", "description": "JSON pointer to the array; empty: the data is one." },
            "type": { "type": "string", "minLength": 1, "description": "Type of the events that come out." },
            "key": { "type": "string", "description": "JSON pointer within an element to its partition key." },
            "otherwise": { "enum": ["reject", "keep", "drop"], "default": "reject", "description": "What becomes of an event without such an array." },
            "elements-max": { "type": "integer", "minimum": 1, "default": 10000, "description": "An event with more is rejected." }
        }
    }"#;

    fn new(config: Config) -> Result<Self, String> {
        let Config { pointer, kind, key, otherwise, elements_max } = config;
        if kind.as_deref() == Some("") {
            return Err("`type` is empty: leave it out to keep the event's own".to_owned());
        }
        if elements_max == 0 {
            return Err("`elements-max` is 0: every event would be rejected".to_owned());
        }
        Ok(Self { pointer, kind, key, otherwise, elements_max })
    }

    fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject> {
        let array = event.json_at_pointer(&self.pointer).filter(|value| value.raw().first() == Some(&b'['));
        let Some(array) = array else {
            return match self.otherwise {
                Otherwise::Reject => Err(Reject(format!("the data has no array at `{}`", self.pointer))),
                Otherwise::Keep => {
                    out.unchanged();
                    Ok(())
                }
                Otherwise::Drop => Ok(()),
            };
        };
        let elements: Vec<&RawValue> =
            array.parse().map_err(|error| Reject(format!("the array at `{}` is damaged: {error}", self.pointer)))?;
        if elements.len() > self.elements_max {
            return Err(Reject(format!("the array has {} elements, more than {}", elements.len(), self.elements_max)));
        }
        for element in elements {
            let data = element.get().as_bytes();
            let mut draft = event.draft().data(data);
            if let Some(kind) = &self.kind {
                draft = draft.kind(kind);
            }
            if let Some(key) = self.key.as_ref().and_then(|pointer| pointer.find(data)?.as_text()) {
                draft = draft.partition_key(key);
            }
            out.emit(draft);
        }
        Ok(())
    }
}

synapse_plugin::export_transform!(Split);

#[cfg(test)]
mod tests {
    use synapse_plugin::testing::{check_cases, transform};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), transform::<Split>);
    }

    #[test]
    fn the_schema_is_json() {
        serde_json::from_str::<serde_json::Value>(Split::CONFIG_SCHEMA).unwrap();
    }
}
