//! Masks, removes, projects and renames fields of JSON data, in this order.
//!
//! Places are JSON pointers into the data as it came; `*` as a part stands for every element or member. What is not
//! there is left out in silence. Everything that is not touched stays as it was written: order, numbers, repeated names.

mod node;

use std::collections::BTreeMap;

use synapse_plugin::json::Pointer;
use synapse_plugin::{Emitter, Event, Reject, Transform};

use node::{Node, Part};

/// The transform.
pub struct Fields {
    mask: Vec<(Vec<Part>, Mask)>,
    remove: Vec<Vec<Part>>,
    /// Empty: everything stays.
    keep: Vec<Vec<Part>>,
    rename: Vec<(Vec<Part>, Vec<String>)>,
}

/// The configuration.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    mask: Vec<MaskConfig>,
    #[serde(default)]
    remove: Vec<Pointer>,
    #[serde(default)]
    keep: Vec<Pointer>,
    #[serde(default)]
    rename: BTreeMap<String, Pointer>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MaskConfig {
    pointer: Pointer,
    with: Option<String>,
    show_last: Option<usize>,
}

/// What a masked value becomes.
enum Mask {
    /// This text.
    With(String),
    /// `***` and as many of its last characters.
    ShowLast(usize),
}

const MASKED: &str = "***";

impl Transform for Fields {
    type Config = Config;

    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Config) -> Result<Self, String> {
        let Config { mask, remove, keep, rename } = config;
        if mask.is_empty() && remove.is_empty() && keep.is_empty() && rename.is_empty() {
            return Err("the config changes nothing: give `mask`, `remove`, `keep` or `rename`".to_owned());
        }
        if let Some(whole) = remove.iter().chain(rename.values()).find(|pointer| pointer.as_str().is_empty()) {
            return Err(format!("`{whole}` names the whole data: `remove` and `rename` take places within it"));
        }
        Ok(Self {
            mask: mask.into_iter().map(checked_mask).collect::<Result<_, _>>()?,
            remove: remove.iter().map(node::parts).collect(),
            keep: keep.iter().map(node::parts).collect(),
            rename: rename.into_iter().map(|(from, to)| checked_rename(from, &to)).collect::<Result<_, _>>()?,
        })
    }

    fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject> {
        let mut data = Node::parse(event.data())?;
        for (place, mask) in &self.mask {
            data.for_each(place, &mut |node| mask.apply(node));
        }
        for place in &self.remove {
            data.remove(place);
        }
        if !self.keep.is_empty() {
            let places: Vec<&[Part]> = self.keep.iter().map(Vec::as_slice).collect();
            data.project(&places);
        }
        // All are taken before any is put, so that two fields can change places.
        let taken: Vec<_> = self.rename.iter().map(|(from, to)| (data.remove(from), to)).collect();
        for (mut nodes, to) in taken {
            if let Some(node) = nodes.pop() {
                data.put(to, node)?;
            }
        }
        out.emit(event.draft().data(data.to_json()?));
        Ok(())
    }
}

fn checked_mask(config: MaskConfig) -> Result<(Vec<Part>, Mask), String> {
    let mask = match (config.with, config.show_last) {
        (with, None) => Mask::With(with.unwrap_or_else(|| MASKED.to_owned())),
        (None, Some(count)) => Mask::ShowLast(count),
        (Some(_), Some(_)) => return Err(format!("mask `{}`: give `with` or `show-last`, not both", config.pointer)),
    };
    Ok((node::parts(&config.pointer), mask))
}

fn checked_rename(from: String, to: &Pointer) -> Result<(Vec<Part>, Vec<String>), String> {
    let from = Pointer::new(from)?;
    for pointer in [&from, to] {
        if pointer.as_str().is_empty() || pointer.tokens().any(|token| token == "*") {
            return Err(format!("rename `{from}` to `{to}`: each has to name one field, without `*`"));
        }
    }
    Ok((node::parts(&from), to.tokens().map(String::from).collect()))
}

impl Mask {
    fn apply(&self, node: &mut Node<'_>) {
        let text = match self {
            Self::With(text) => text.clone(),
            Self::ShowLast(count) => {
                let shown = node.text().and_then(|text| {
                    let hidden = text.chars().count().checked_sub(*count).filter(|hidden| *hidden > 0)?;
                    Some(text.chars().skip(hidden).collect::<String>())
                });
                format!("{MASKED}{}", shown.unwrap_or_default())
            }
        };
        *node = Node::Text(text);
    }
}

synapse_plugin::export_transform!(Fields);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use synapse_plugin::cases::Outcome;
    use synapse_plugin::testing::{TestEvent, check_cases, event, transform};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), transform::<Fields>);
    }

    #[test]
    fn the_schema_is_json() {
        serde_json::from_str::<serde_json::Value>(Fields::CONFIG_SCHEMA).unwrap();
    }

    /// Case files compare values; this compares bytes.
    #[test]
    fn what_is_not_touched_stays_as_it_was_written() {
        let data = r#"{"z":1.50,"big":123456789012345678901234567890,"a":{"x" : [1, 2]},"gone":1,"\u0061":"é","z":2}"#;
        let mut bench = transform::<Fields>(&json!({ "remove": ["/gone", "/a/y"] })).unwrap();
        // As text, the bench shows the data as it is.
        let given = TestEvent { content_type: "text/plain".to_owned(), ..event("t").data(data) };
        let Outcome::Emit(events) = bench.run_one(&given) else { panic!("not emitted") };
        let expected = r#"{"z":1.50,"big":123456789012345678901234567890,"a":{"x":[1, 2]},"a":"é","z":2}"#;
        assert_eq!(events[0]["data"], expected);
    }
}
