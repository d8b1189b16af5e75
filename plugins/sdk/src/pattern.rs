//! Patterns over names of topics, types and the like: `*` is any run of characters but `.`, `**` is any run.
//!
//! Matching needs no memory, and time in proportion to the text for each star: the pattern comes from configuration,
//! the text from anywhere.

use std::fmt;

use serde::Deserialize;

/// A pattern such as `model-*`, `pipeline.*` or `**`.
///
/// ```
/// use synapse_plugin::Pattern;
///
/// assert!(Pattern::new("model-*").matches("model-ready"));
/// assert!(!Pattern::new("pipeline.*").matches("pipeline.helox.raw"));
/// assert!(Pattern::new("pipeline.**").matches("pipeline.helox.raw"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Pattern {
    text: String,
    /// Whether there is a star at all.
    literal: bool,
}

impl Pattern {
    /// Every text is a pattern; without a star it matches itself only.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { literal: !text.contains('*'), text }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `text` fits.
    pub fn matches(&self, text: &str) -> bool {
        if self.literal { self.text == text } else { matches(self.text.as_bytes(), text.as_bytes()) }
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A star that was met: what comes behind it in the pattern, and where in the text that is tried next.
#[derive(Clone, Copy)]
struct Star {
    behind: usize,
    at: usize,
}

/// Goes along greedily; where it cannot go on, the last star takes one character more. A `*` cannot take a dot; then the
/// last `**` does. Stars before a `**` need not be tried again, for it can take whatever they could.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let (mut one, mut two) = (None::<Star>, None::<Star>);
    loop {
        let rest = &pattern[p..];
        if rest.starts_with(b"**") {
            p += 2;
            (one, two) = (None, Some(Star { behind: p, at: t }));
        } else if rest.first() == Some(&b'*') {
            p += 1;
            one = Some(Star { behind: p, at: t });
        } else if !rest.is_empty() && rest.first() == text.get(t) {
            (p, t) = (p + 1, t + 1);
        } else if rest.is_empty() && t == text.len() {
            return true;
        } else if let Some(star) = one.as_mut().filter(|star| text.get(star.at).is_some_and(|&byte| byte != b'.')) {
            star.at += 1;
            (p, t) = (star.behind, star.at);
        } else if let Some(star) = two.as_mut().filter(|star| star.at < text.len()) {
            star.at += 1;
            (p, t) = (star.behind, star.at);
            one = None;
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Every text of up to `length` characters of `alphabet`.
    fn texts(alphabet: &str, length: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut newest = all.clone();
        for _ in 0..length {
            newest =
                newest.iter().flat_map(|text| alphabet.chars().map(move |letter| format!("{text}{letter}"))).collect();
            all.extend_from_slice(&newest);
        }
        all
    }

    #[test]
    fn every_short_pattern_agrees_with_the_definition() {
        let texts_to_try = texts("ab.", 5);
        for pattern in texts("a.*", 6) {
            for text in &texts_to_try {
                let expected = by_definition(pattern.as_bytes(), text.as_bytes());
                assert_eq!(Pattern::new(&*pattern).matches(text), expected, "`{pattern}` on `{text}`");
            }
        }
    }
}
