//! Patterns over topic names and event types: `*` is any run of characters but `.`, `**` is any run.
//!
//! Matching is linear in the text for each `*` and needs no memory; a pattern comes from configuration, the text from
//! the network.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A pattern such as `model-*`, `pipeline.*` or `**`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: Arc<str>,
}

/// A text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a pattern: 1 to 200 characters without spaces, where `*` is any run but `.` and `**` any run")]
pub struct PatternError(String);

impl Pattern {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `text` fits.
    pub fn matches(&self, text: &str) -> bool {
        matches(self.text.as_bytes(), text.as_bytes())
    }
}

/// Greedy with two places to fall back to: the last `*` (which may not cross a `.`) and the last `**` (which may). A
/// later `**` makes both earlier places needless; a later `*` only the earlier `*`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut single: Option<(usize, usize)> = None;
    let mut double: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            double = Some((p, t));
            single = None;
        } else if pattern.get(p) == Some(&b'*') {
            p += 1;
            single = Some((p, t));
        } else if p < pattern.len() && pattern.get(p) == text.get(t) {
            (p, t) = (p + 1, t + 1);
        } else if p == pattern.len() && t == text.len() {
            return true;
        } else if let Some((after, at)) = single.filter(|&(_, at)| at < text.len() && text[at] != b'.') {
            single = Some((after, at + 1));
            (p, t) = (after, at + 1);
        } else if let Some((after, at)) = double.filter(|&(_, at)| at < text.len()) {
            double = Some((after, at + 1));
            single = None;
            (p, t) = (after, at + 1);
        } else {
            return false;
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let valid = (1..=200).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if valid { Ok(Self { text: text.into() }) } else { Err(PatternError(text.chars().take(200).collect())) }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text.as_ref().to_owned()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stop_at_dots_and_double_stars_do_not() {
        let fits = |pattern: &str, text: &str| pattern.parse::<Pattern>().unwrap().matches(text);
        assert!(fits("model-*", "model-events"));
        assert!(fits("model-*", "model-"));
        assert!(!fits("model-*", "model-events.v2"));
        assert!(fits("pipeline.*", "pipeline.metrics"));
        assert!(!fits("pipeline.*", "pipeline.helox-training.raw"));
        assert!(fits("pipeline.**", "pipeline.helox-training.raw"));
        assert!(fits("**", ""));
        assert!(fits("**.raw", "a.b.raw"));
        assert!(fits("a*.b*.c", "axx.byy.c"));
        assert!(fits("**a*b", "a.ab"));
        assert!(!fits("abc", "ab"));
        assert!(!fits("ab", "abc"));
    }

    /// The definition, as plainly as it can be written.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        if let Some(rest) = pattern.strip_prefix(b"**") {
            return (0..=text.len()).any(|taken| by_definition(rest, &text[taken..]));
        }
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => {
                let run = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
                (0..=run).any(|taken| by_definition(rest, &text[taken..]))
            }
            Some((byte, rest)) => text.first() == Some(byte) && by_definition(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab.*]{1,8}", text in "[ab.]{0,10}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), by_definition(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
