//! Routes events by an attribute or a JSON value, looked up in a table of patterns.
//!
//! Lines of the table are tried from the top, and the first that fits says where the event goes. A topic may contain
//! the value itself as `{}`; then the value has to look like part of a topic's name, for it comes from outside.

use std::borrow::Cow;
use std::collections::BTreeMap;

use synapse_plugin::json::Pointer;
use synapse_plugin::{Event, Pattern, Reject, Router, Routes};

/// The router.
pub struct Table {
    by: By,
    /// Lines without a star: which comes first for this value.
    exact: BTreeMap<String, usize>,
    /// Lines with one, in order.
    patterns: Vec<(usize, Pattern)>,
    targets: Vec<Vec<String>>,
    otherwise: Otherwise,
}

/// The configuration.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    by: By,
    table: Vec<Line>,
    #[serde(default)]
    otherwise: Otherwise,
}

/// What is looked up.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum By {
    #[default]
    Type,
    Source,
    Subject,
    Key,
    Attribute(String),
    Pointer(Pointer),
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    when: OneOrMany,
    to: OneOrMany,
}

#[derive(Debug, serde::Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// What becomes of an event that no line fits.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Otherwise {
    #[default]
    Pass,
    Drop,
    Reject,
    To(OneOrMany),
}

impl Router for Table {
    type Config = Config;

    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Config) -> Result<Self, String> {
        let mut table = Self {
            by: config.by,
            exact: BTreeMap::new(),
            patterns: Vec::new(),
            targets: Vec::new(),
            otherwise: config.otherwise,
        };
        if config.table.is_empty() {
            return Err("`table` is empty: give lines as { when = \"model-*\", to = \"models\" }".to_owned());
        }
        for (index, Line { when, to }) in config.table.into_iter().enumerate() {
            let (when, to) = (when.into_vec(), to.into_vec());
            if when.is_empty() {
                return Err(format!("line {} of the table has no `when`, so it never fits", index + 1));
            }
            if let Some(pattern) = when.iter().find(|when| table.exact.contains_key(*when)) {
                return Err(format!("line {} of the table never fits: `{pattern}` stands in one above", index + 1));
            }
            for pattern in when {
                if pattern.contains('*') {
                    table.patterns.push((index, Pattern::new(pattern)));
                } else {
                    table.exact.insert(pattern, index);
                }
            }
            table.targets.push(to);
        }
        Ok(table)
    }

    fn route(&mut self, event: &Event<'_>, to: &mut Routes<'_>) -> Result<(), Reject> {
        let value = self.by.value(event);
        let line = value.as_deref().and_then(|value| self.line(value));
        let targets = match (line, &self.otherwise) {
            (Some(line), _) => &self.targets[line],
            (None, Otherwise::To(OneOrMany::One(topic))) => std::slice::from_ref(topic),
            (None, Otherwise::To(OneOrMany::Many(topics))) => topics.as_slice(),
            (None, Otherwise::Pass) => {
                to.pass();
                return Ok(());
            }
            (None, Otherwise::Drop) => return Ok(()),
            (None, Otherwise::Reject) => {
                return Err(match value {
                    Some(value) => Reject(format!("no line of the table fits `{value}`")),
                    None => Reject(format!("the event has no {}", self.by.name())),
                });
            }
        };
        for target in targets {
            to.topic(&filled(target, value.as_deref())?);
        }
        Ok(())
    }
}

impl Table {
    fn line(&self, value: &str) -> Option<usize> {
        let exact = self.exact.get(value).copied();
        let above = |line: usize| exact.is_none_or(|exact| line < exact);
        let by_pattern = self.patterns.iter().take_while(|(line, _)| above(*line));
        by_pattern.into_iter().find(|(_, pattern)| pattern.matches(value)).map(|(line, _)| *line).or(exact)
    }
}

impl By {
    fn value<'a>(&self, event: &Event<'a>) -> Option<Cow<'a, str>> {
        match self {
            Self::Type => Some(event.kind().into()),
            Self::Source => Some(event.source().into()),
            Self::Subject => event.subject().map(Into::into),
            Self::Key => event.partition_key().map(Into::into),
            Self::Attribute(name) => event.attribute(name).map(Into::into),
            Self::Pointer(pointer) => event.json_at_pointer(pointer)?.as_text(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Type => "type".to_owned(),
            Self::Source => "source".to_owned(),
            Self::Subject => "subject".to_owned(),
            Self::Key => "partition key".to_owned(),
            Self::Attribute(name) => format!("attribute `{name}`"),
            Self::Pointer(pointer) => format!("text or number at `{pointer}` in its data"),
        }
    }
}

/// The topic with the value in the place of `{}`.
fn filled<'a>(target: &'a str, value: Option<&str>) -> Result<Cow<'a, str>, Reject> {
    if !target.contains("{}") {
        return Ok(target.into());
    }
    let value = value.unwrap_or_default();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(fits) {
        return Err(Reject(format!(
            "`{value}` cannot be part of a topic's name: letters, digits, `-`, `_` and `.` can"
        )));
    }
    Ok(target.replace("{}", value).into())
}

synapse_plugin::export_router!(Table);

#[cfg(test)]
mod tests {
    use synapse_plugin::testing::{check_cases, router};

    use super::*;

    #[test]
    fn cases() {
        check_cases(include_str!("../cases.ndjson"), router::<Table>);
    }

    #[test]
    fn the_schema_is_json() {
        serde_json::from_str::<serde_json::Value>(Table::CONFIG_SCHEMA).unwrap();
    }
}
