//! One condition: which value of an event, and what it is compared with.
//!
//! Invariant: a [`Condition`] names one value and one comparison; what serde sees is checked before. Comparing
//! allocates nothing unless a JSON string has escapes.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use synapse_plugin::json::{Pointer, Value};
use synapse_plugin::{Event, Needle, Pattern};

use crate::OneOrMany;

/// A condition that was checked.
#[derive(Debug)]
pub(crate) struct Condition {
    of: Of,
    comparison: Comparison,
}

/// A condition as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ConditionConfig {
    attribute: Option<String>,
    pointer: Option<Pointer>,
    exists: Option<bool>,
    /// `null` is a value to compare with, not an absent key.
    #[serde(deserialize_with = "present")]
    equals: Option<serde_json::Value>,
    one_of: Option<Vec<serde_json::Value>>,
    above: Option<f64>,
    at_least: Option<f64>,
    below: Option<f64>,
    at_most: Option<f64>,
    matches: Option<OneOrMany>,
    contains: Option<String>,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(value).map(Some)
}

/// Which value.
#[derive(Debug)]
enum Of {
    /// An attribute of the event, the ones that CloudEvents itself names included.
    Attribute(String),
    /// A place in the JSON data.
    Pointer(Pointer),
}

#[derive(Debug)]
enum Comparison {
    Exists(bool),
    OneOf(Vec<Scalar>),
    Above(f64),
    AtLeast(f64),
    Below(f64),
    AtMost(f64),
    Matches(Vec<Pattern>),
    Contains(Needle),
}

#[derive(Debug)]
enum Scalar {
    Null,
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
}

/// A value found in an event.
enum Found<'a> {
    Text(&'a str),
    Json(Value<'a>),
}

impl Condition {
    pub(crate) fn new(config: ConditionConfig) -> Result<Self, String> {
        let of = match (config.attribute, config.pointer) {
            (Some(attribute), None) => Of::Attribute(attribute),
            (None, Some(pointer)) => Of::Pointer(pointer),
            _ => return Err("give either `attribute` or `pointer`".to_owned()),
        };
        let one_of = match (config.one_of, config.equals) {
            (Some(values), _) if values.is_empty() => return Err("`one-of` is empty, so it never holds".to_owned()),
            (Some(values), None) => Some(values),
            (None, Some(value)) => Some(vec![value]),
            (Some(_), Some(_)) => return Err(ONE_COMPARISON.to_owned()),
            (None, None) => None,
        };
        let one_of = one_of.map(|values| values.into_iter().map(Scalar::new).collect()).transpose()?;
        let mut comparisons = [
            config.exists.map(Comparison::Exists),
            one_of.map(Comparison::OneOf),
            config.above.map(Comparison::Above),
            config.at_least.map(Comparison::AtLeast),
            config.below.map(Comparison::Below),
            config.at_most.map(Comparison::AtMost),
            config.matches.map(|patterns| Comparison::Matches(patterns.into_vec())),
            config.contains.map(|text| Comparison::Contains(Needle::new(text))),
        ]
        .into_iter()
        .flatten();
        match (comparisons.next(), comparisons.next()) {
            (Some(comparison), None) => Ok(Self { of, comparison }),
            _ => Err(ONE_COMPARISON.to_owned()),
        }
    }

    pub(crate) fn holds(&self, event: &Event<'_>) -> bool {
        let found = match &self.of {
            Of::Attribute(name) => attribute(event, name).map(Found::Text),
            Of::Pointer(pointer) => event.json_at_pointer(pointer).map(Found::Json),
        };
        let Some(found) = found else {
            return matches!(self.comparison, Comparison::Exists(false));
        };
        match &self.comparison {
            Comparison::Exists(expected) => *expected,
            Comparison::OneOf(scalars) => scalars.iter().any(|scalar| scalar.equals(&found)),
            Comparison::Above(bound) => found.number().is_some_and(|number| number > *bound),
            Comparison::AtLeast(bound) => found.number().is_some_and(|number| number >= *bound),
            Comparison::Below(bound) => found.number().is_some_and(|number| number < *bound),
            Comparison::AtMost(bound) => found.number().is_some_and(|number| number <= *bound),
            Comparison::Matches(patterns) => {
                found.text().is_some_and(|text| patterns.iter().any(|pattern| pattern.matches(&text)))
            }
            Comparison::Contains(needle) => found.text().is_some_and(|text| needle.is_in(text.as_bytes())),
        }
    }
}

const ONE_COMPARISON: &str = "give exactly one of `exists`, `equals`, `one-of`, `above`, `at-least`, `below`, `at-most`, \
                              `matches` and `contains`";

fn attribute<'a>(event: &Event<'a>, name: &str) -> Option<&'a str> {
    match name {
        "id" => Some(event.id()),
        "source" => Some(event.source()),
        "type" => Some(event.kind()),
        "subject" => event.subject(),
        "datacontenttype" => event.content_type(),
        name => event.attribute(name),
    }
}

impl<'a> Found<'a> {
    fn text(&self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Json(value) => value.as_text(),
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Json(value) => value.as_f64(),
        }
    }
}

impl Scalar {
    fn new(value: serde_json::Value) -> Result<Self, String> {
        match value {
            serde_json::Value::Null => Ok(Self::Null),
            serde_json::Value::Bool(value) => Ok(Self::Bool(value)),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Ok(Self::Integer(integer)),
                (None, Some(number)) => Ok(Self::Number(number)),
                (None, None) => Err(format!("{number} is too large to compare with")),
            },
            serde_json::Value::String(text) => Ok(Self::Text(text)),
            other => Err(format!("{other} cannot be compared with: give a text, a number, true, false or null")),
        }
    }

    fn equals(&self, found: &Found<'_>) -> bool {
        match (self, found) {
            (Self::Text(expected), Found::Text(text)) => expected == text,
            (Self::Text(expected), Found::Json(value)) => value.as_str().is_some_and(|text| text == *expected),
            (Self::Bool(expected), Found::Json(value)) => value.as_bool() == Some(*expected),
            (Self::Bool(expected), Found::Text(text)) => text.parse() == Ok(*expected),
            (Self::Null, Found::Json(value)) => value.is_null(),
            (Self::Null, Found::Text(_)) => false,
            // Integers beyond 2^53 are told apart only as integers.
            (Self::Integer(expected), Found::Json(value)) => {
                value.as_i64().map_or_else(|| value.as_f64() == Some(*expected as f64), |number| number == *expected)
            }
            (Self::Integer(expected), Found::Text(text)) => {
                text.parse().map_or_else(|_| text.parse() == Ok(*expected as f64), |number: i64| number == *expected)
            }
            (Self::Number(expected), found) => found.number() == Some(*expected),
        }
    }
}
