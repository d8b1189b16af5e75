//! Keeps a share of the events, the same ones in every run.
//!
//! Whether an event is kept follows from a hash of its id (or its key, attribute or a value in its data) alone: a replay
//! keeps the same events, several hosts agree, and a larger share keeps everything that a smaller one keeps.

use synapse_plugin::json::Pointer;
use synapse_plugin::{Event, Filter, Verdict};

/// The sampler.
pub struct Sample {
    /// An event is kept if its hash is below this, of 2^64.
    bound: u128,
    seed: u64,
    by: By,
}

/// The configuration.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    share: f64,
    #[serde(default)]
    by: By,
    #[serde(default)]
    seed: u64,
}

/// What decides: events that have it in common are kept or dropped together.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The event's id.
    #[default]
    Id,
    /// The partition key; events without one go by their id.
    Key,
    /// An extension attribute; events without it go by their id.
    Attribute(String),
    /// A value in the JSON data; events without it go by their id.
    Pointer(Pointer),
}

impl Filter for Sample {
    type Config = Config;

    const CONFIG_SCHEMA: &'static str = r#"{
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "required": ["share"],
        "properties": {
            "share": { "type": "number", "minimum": 0, "maximum": 1, "description": "The share of events to keep." },
            "by": {
                "description": "What decides; events that have it in common are kept or dropped together.",
                "default": "id",
                "oneOf": [
                    { "enum": ["id", "key"] },
                    {
                        "type": "object",
                        "additionalProperties": false,
                        "minProperties": 1,
                        "maxProperties": 1,
                        "properties": { "attribute": { "type": "string" }, "pointer": { "type": "string" } }
                    }
                ]
            },
            "seed": { "type": "integer", "minimum": 0, "default": 0, "description": "Another seed keeps others." }
        }
    }"#;

    fn new(config: Config) -> Result<Self, String> {
        let Config { share, by, seed } = config;
        if !(0.0..=1.0).contains(&share) {
            return Err(format!("`share` is {share}, and has to be between 0 and 1"));
        }
        Ok(Self { bound: (share * TWO_TO_64) as u128, seed, by })
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        let hash = match &self.by {
            By::Id => None,
            By::Key => event.partition_key().map(|key| self.hash(key)),
            By::Attribute(name) => event.attribute(name).map(|value| self.hash(value)),
            By::Pointer(pointer) => {
                event.json_at_pointer(pointer).and_then(|value| value.as_text().map(|text| self.hash(&text)))
            }
        };
        let hash = hash.unwrap_or_else(|| self.hash(event.id()));
        Verdict::keep_if(u128::from(hash) < self.bound)
    }
}

const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

impl Sample {
    /// FNV-1a, then the finisher of MurmurHash3: FNV's upper bits alone are too alike for short texts that differ in
    /// their last byte only. Neither may change, or a replay would keep others.
    fn hash(&self, text: &str) -> u64 {
        let start = 0xcbf2_9ce4_8422_2325 ^ self.seed;
        let fnv = text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mixed = (fnv ^ fnv >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    }
}

synapse_plugin::export_filter!(Sample);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use synapse_plugin::cases::Outcome;
    use synapse_plugin::testing::{Bench, check_cases, event, filter};

    use super::*;

    fn kept(config: &serde_json::Value) -> Vec<usize> {
        let mut bench: Bench = filter::<Sample>(config).unwrap();
        let events: Vec<_> = (0..10_000).map(|number| event("t").id(&number.to_string())).collect();
        let outcomes = bench.run(&events);
        (0..outcomes.len()).filter(|&index| outcomes[index] == Outcome::Keep).collect()
    }

    #[test]
    fn the_share_is_about_what_was_asked_for() {
        for share in [0.01, 0.1, 0.5, 0.99] {
            let found = kept(&json!({ "share": share })).len() as f64 / 10_000.0;
            assert!((found - share).abs() < 0.015, "{share}: {found}");
        }
        assert_eq!(kept(&json!({ "share": 0 })).len(), 0);
        assert_eq!(kept(&json!({ "share": 1 })).len(), 10_000);
    }

    #[test]
    fn larger_shares_keep_what_smaller_ones_keep() {
        let small = kept(&json!({ "share": 0.2 }));
        let large = kept(&json!({ "share": 0.3 }));
        assert!(small.iter().all(|index| large.contains(index)));
        assert_ne!(small, kept(&json!({ "share": 0.2, "seed": 1 })));
    }

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), filter::<Sample>);
    }
}
