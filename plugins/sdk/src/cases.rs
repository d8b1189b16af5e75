//! Case files: one event, one configuration and what should come of it, line by line.
//!
//! ```text
//! {"name": "drops the rest", "given": {"type": "model-ready"}, "config": {"type": "other"}, "expect": "drop"}
//! ```
//!
//! `given` is a CloudEvent in JSON; `specversion`, `id`, `source` and `type` may be left out. `config` may be left out, too.
//! `expect` is one of
//!
//! | `expect` | holds when the plugin |
//! |---|---|
//! | `"keep"` | keeps the event; as a transform: emits it unchanged, once |
//! | `"drop"` | drops it; as a transform: emits nothing |
//! | `[event, …]` | emits these, in order |
//! | `{"to": ["topic", …]}` | routes it to these topics, in any order |
//! | `"pass"` | lets it pass to the next stage |
//! | `{"reject": "text"}` | rejects it with a reason that contains the text |
//! | `{"config-error": "text"}` | refuses the configuration with a message that contains the text |
//!
//! Of an expected event the fields that are written have to be equal, and one that is `null` has to be absent; the others
//! may be anything. The same file is run natively by [`testing::check_cases`](crate::testing::check_cases) and against the
//! built component by `synapse plugin test`. Nothing here runs a plugin.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

/// One line of a case file.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Counted from 1.
    pub line: usize,
    /// What the author calls it; may be empty.
    pub name: String,
    /// A CloudEvent in JSON, with every attribute that CloudEvents requires.
    pub given: Map<String, Value>,
    /// What the plugin is configured with.
    pub config: Value,
    /// What should come of it.
    pub expect: Expect,
}

/// What should come of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Expect {
    /// Kept, or emitted unchanged.
    Keep,
    /// Dropped, or nothing emitted.
    Drop,
    /// On to the next stage.
    Pass,
    /// Rejected with a reason that contains this.
    Reject(String),
    /// The configuration refused with a message that contains this.
    ConfigError(String),
    /// These emitted, in order.
    Emit(Vec<Map<String, Value>>),
    /// Routed to these topics.
    To(Vec<String>),
}

/// What came of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A filter kept it.
    Keep,
    /// A filter dropped it.
    Drop,
    /// A router let it pass.
    Pass,
    /// It was rejected, or could not be processed, with this reason.
    Reject(String),
    /// The plugin refused its configuration.
    ConfigError(String),
    /// A transform emitted these, CloudEvents in JSON.
    Emit(Vec<Map<String, Value>>),
    /// A router sent it to these topics.
    To(Vec<String>),
}

/// A case file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is no case: {problem}")]
pub struct ParseError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it, and how it should be.
    pub problem: String,
}

/// A case that did not come out as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Of the case, counted from 1.
    pub line: usize,
    /// Of the case; may be empty.
    pub name: String,
    /// What was expected and what came instead, several lines.
    pub difference: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if !self.name.is_empty() {
            write!(f, " ({})", self.name)?;
        }
        for line in self.difference.lines() {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

/// Reads a case file. Empty lines are skipped.
///
/// # Errors
/// The first line that is no case.
pub fn parse(text: &str) -> Result<Vec<Case>, ParseError> {
    let lines = (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty());
    lines.map(|(line, text)| parse_line(line, text).map_err(|problem| ParseError { line, problem })).collect()
}

/// Runs every case and returns those that failed. `run` configures the plugin and hands it the one event.
pub fn run(cases: &[Case], mut run: impl FnMut(&Case) -> Outcome) -> Vec<Failure> {
    let failure = |case: &Case, difference| Failure { line: case.line, name: case.name.clone(), difference };
    cases.iter().filter_map(|case| case.difference(&run(case)).map(|difference| failure(case, difference))).collect()
}

impl Case {
    /// How an outcome differs from what is expected, in words; `None` if it does not.
    pub fn difference(&self, outcome: &Outcome) -> Option<String> {
        let fits = match (&self.expect, outcome) {
            (Expect::Keep, Outcome::Keep) | (Expect::Drop, Outcome::Drop) | (Expect::Pass, Outcome::Pass) => true,
            (Expect::Keep, Outcome::Emit(events)) if events.len() == 1 => {
                return event_differences(std::slice::from_ref(&self.given), events);
            }
            (Expect::Drop, Outcome::Emit(events)) => events.is_empty(),
            (Expect::Drop, Outcome::To(topics)) => topics.is_empty(),
            (Expect::Reject(text), Outcome::Reject(reason))
            | (Expect::ConfigError(text), Outcome::ConfigError(reason)) => reason.contains(text),
            (Expect::Emit(expected), Outcome::Emit(events)) if expected.len() == events.len() => {
                return event_differences(expected, events);
            }
            (Expect::To(expected), Outcome::To(topics)) => sorted(expected) == sorted(topics),
            _ => false,
        };
        (!fits).then(|| format!("expected {}\nbut it {outcome}", self.expect))
    }
}

fn sorted(texts: &[String]) -> Vec<&String> {
    let mut sorted: Vec<_> = texts.iter().collect();
    sorted.sort();
    sorted
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    name: String,
    given: Map<String, Value>,
    #[serde(default = "no_config")]
    config: Value,
    expect: Value,
}

fn no_config() -> Value {
    Value::Object(Map::new())
}

fn parse_line(line: usize, text: &str) -> Result<Case, String> {
    let Line { name, mut given, config, expect } = serde_json::from_str(text)
        .map_err(|error| format!("{error}; a case is {{\"given\": event, \"config\": {{…}}, \"expect\": …}}"))?;
    for (attribute, default) in [("specversion", "1.0"), ("id", "1"), ("source", "/cases"), ("type", "case")] {
        given.entry(attribute).or_insert_with(|| default.into());
    }
    Ok(Case { line, name, given, config, expect: parse_expect(&expect)? })
}

fn parse_expect(expect: &Value) -> Result<Expect, String> {
    let wrong = || {
        format!(
            "`expect` is {expect}, and has to be \"keep\", \"drop\", \"pass\", {{\"reject\": \"text\"}}, \
             {{\"config-error\": \"text\"}}, {{\"to\": [\"topic\"]}} or a list of events"
        )
    };
    match expect {
        Value::String(word) => match word.as_str() {
            "keep" => Ok(Expect::Keep),
            "drop" => Ok(Expect::Drop),
            "pass" => Ok(Expect::Pass),
            _ => Err(wrong()),
        },
        Value::Array(events) => {
            let events: Option<_> = events.iter().map(|event| event.as_object().cloned()).collect();
            events.map(Expect::Emit).ok_or_else(wrong)
        }
        Value::Object(object) if object.len() == 1 => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
            match object.iter().next() {
                Some((key, value)) if key == "reject" => text(value).map(Expect::Reject),
                Some((key, value)) if key == "config-error" => text(value).map(Expect::ConfigError),
                Some((key, Value::Array(topics))) if key == "to" => {
                    topics.iter().map(text).collect::<Result<_, _>>().map(Expect::To)
                }
                _ => Err(wrong()),
            }
        }
        _ => Err(wrong()),
    }
}

/// Differences of as many events as expected, one a line.
fn event_differences(expected: &[Map<String, Value>], found: &[Map<String, Value>]) -> Option<String> {
    let mut lines = Vec::new();
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        for (field, expected) in expected {
            let place = format!("event {index}: {field}");
            match (expected, found.get(field)) {
                (Value::Null, None) => {}
                (Value::String(expected), Some(Value::String(found)))
                    if field == "time" && same_time(expected, found) => {}
                (expected, Some(found)) => value_differences(&place, expected, found, &mut lines),
                (expected, None) => lines.push(format!("{place}: expected {expected}, but it is absent")),
            }
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The same time may be written with more or fewer digits.
fn same_time(one: &str, other: &str) -> bool {
    let parse = |text: &str| text.parse::<jiff::Timestamp>().ok();
    one == other || (parse(one).is_some() && parse(one) == parse(other))
}

fn value_differences(place: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, expected) in expected {
                match found.get(key) {
                    Some(found) => value_differences(&format!("{place}/{key}"), expected, found, lines),
                    None => lines.push(format!("{place}/{key}: expected {expected}, but it is absent")),
                }
            }
            for (key, found) in found.iter().filter(|(key, _)| !expected.contains_key(*key)) {
                lines.push(format!("{place}/{key}: not expected, but it is {found}"));
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                value_differences(&format!("{place}/{index}"), expected, found, lines);
            }
        }
        _ if expected == found => {}
        _ => lines.push(format!("{place}: expected {expected}, but it is {found}")),
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Drop => f.write_str("drop"),
            Self::Pass => f.write_str("pass"),
            Self::Reject(text) => write!(f, "a rejection with `{text}`"),
            Self::ConfigError(text) => write!(f, "the configuration to be refused with `{text}`"),
            Self::Emit(events) => write!(f, "{}", events_in_words(events)),
            Self::To(topics) => write!(f, "the topics {}", topics.join(", ")),
        }
    }
}

impl fmt::Display for Outcome {
    /// Continues `but it …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("was kept"),
            Self::Drop => f.write_str("was dropped"),
            Self::Pass => f.write_str("passed"),
            Self::Reject(reason) => write!(f, "was rejected: {reason}"),
            Self::ConfigError(message) => write!(f, "was not run, the configuration was refused: {message}"),
            Self::Emit(events) => write!(f, "became {}", events_in_words(events)),
            Self::To(topics) if topics.is_empty() => f.write_str("was routed nowhere"),
            Self::To(topics) => write!(f, "was routed to {}", topics.join(", ")),
        }
    }
}

fn events_in_words(events: &[Map<String, Value>]) -> String {
    let mut text = match events.len() {
        0 => return "no event".to_owned(),
        1 => "1 event".to_owned(),
        count => format!("{count} events"),
    };
    for event in events {
        text.push_str("\n  ");
        text.push_str(&Value::Object(event.clone()).to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn case(expect: &Value) -> Case {
        let line = json!({ "given": { "type": "a", "data": { "x": 1 } }, "expect": expect });
        parse(&line.to_string()).unwrap().remove(0)
    }

    fn check(expect: &Value, outcome: &Outcome, difference: Option<&str>) {
        assert_eq!(case(expect).difference(outcome).as_deref(), difference);
    }

    fn emitted(events: Value) -> Outcome {
        Outcome::Emit(serde_json::from_value(events).unwrap())
    }

    #[test]
    fn outcomes_that_fit() {
        check(&json!("keep"), &Outcome::Keep, None);
        check(&json!("drop"), &Outcome::Drop, None);
        check(&json!("drop"), &Outcome::Emit(vec![]), None);
        check(&json!("drop"), &Outcome::To(vec![]), None);
        check(&json!("pass"), &Outcome::Pass, None);
        check(&json!({ "reject": "bad" }), &Outcome::Reject("a bad one".into()), None);
        check(&json!({ "config-error": "typ" }), &Outcome::ConfigError("unknown field `typ`".into()), None);
        check(&json!({ "to": ["b", "a"] }), &Outcome::To(vec!["a".into(), "b".into()]), None);
        check(&json!([{ "id": "2", "subject": null }]), &emitted(json!([{ "id": "2", "type": "b" }])), None);
        let unchanged =
            &emitted(json!([{ "specversion": "1.0", "id": "1", "source": "/cases", "type": "a", "data": { "x": 1 } }]));
        check(&json!("keep"), unchanged, None);
        let time = |time: &str| json!([{ "time": time }]);
        check(&time("2026-01-01T00:00:00Z"), &emitted(time("2026-01-01T01:00:00.000+01:00")), None);
    }

    #[test]
    fn differences_are_told() {
        check(&json!("keep"), &Outcome::Drop, Some("expected keep\nbut it was dropped"));
        check(
            &json!({ "to": ["a"] }),
            &Outcome::To(vec!["b".into()]),
            Some("expected the topics a\nbut it was routed to b"),
        );
        check(
            &json!([{ "id": "1", "subject": null, "data": { "x": 1, "y": [1, 2] } }]),
            &emitted(json!([{ "id": "1", "subject": "s", "data": { "y": [1, 3], "z": true } }])),
            Some(
                "event 0: data/x: expected 1, but it is absent\nevent 0: data/y/1: expected 2, but it is 3\n\
                 event 0: data/z: not expected, but it is true\nevent 0: subject: expected null, but it is \"s\"",
            ),
        );
        check(
            &json!([{ "id": "1" }]),
            &Outcome::Emit(vec![]),
            Some("expected 1 event\n  {\"id\":\"1\"}\nbut it became no event"),
        );
    }

    fn check_unreadable(text: &str, problem: &str) {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }

    #[test]
    fn unreadable_lines_are_named() {
        check_unreadable("\n{}", "line 2 is no case: missing field `given`");
        check_unreadable(r#"{"given": {}, "expect": "maybe"}"#, "`expect` is \"maybe\", and has to be");
        check_unreadable(r#"{"given": {}, "expect": {"to": "a"}}"#, "has to be");
        check_unreadable(r#"{"given": {}, "expect": "keep", "configs": 1}"#, "unknown field `configs`");
    }

    #[test]
    fn failures_name_their_line() {
        let cases =
            parse("{\"given\":{},\"expect\":\"keep\"}\n\n{\"name\":\"n\",\"given\":{},\"expect\":\"drop\"}").unwrap();
        let failures = run(&cases, |_| Outcome::Keep);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].to_string(), "line 3 (n)\n    expected drop\n    but it was kept");
    }
}
