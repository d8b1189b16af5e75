//! One value out of JSON text, without reading the rest into a tree.
//!
//! [`find`] walks the text once, skips what the pointer does not name, and stops at the value. What lies behind the
//! value is not looked at, so damaged text may still give a value; text that is damaged on the way gives none. Where a
//! name occurs twice in an object the first counts. Nothing here allocates, but for texts with escapes.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;

/// The value that a JSON pointer (RFC 6901) names: `/metrics/0/name`; the empty pointer names the whole text.
///
/// `None` when there is no such value, when the text is not JSON on the way there, and when `pointer` is not empty and
/// does not start with `/`.
pub fn find<'a>(text: &'a [u8], pointer: &str) -> Option<Value<'a>> {
    let mut scanner = Scanner { text, at: 0 };
    scanner.skip_space();
    if !pointer.is_empty() {
        for token in pointer.strip_prefix('/')?.split('/') {
            match scanner.peek()? {
                b'{' => scanner.enter_member(token)?,
                b'[' => scanner.enter_element(token)?,
                _ => return None,
            }
        }
    }
    scanner.value()
}

/// A pointer that was checked: what a configuration holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pointer(String);

impl Pointer {
    /// Checks a pointer.
    ///
    /// # Errors
    /// When it is not empty and does not start with `/`, or has a `~` that is not `~0` or `~1`.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        if !text.is_empty() && !text.starts_with('/') {
            return Err(format!("`{text}` is not a JSON pointer: write `/{text}`"));
        }
        let escapes_fit = text.split('~').skip(1).all(|behind| behind.starts_with(['0', '1']));
        if !escapes_fit {
            return Err(format!("`{text}` is not a JSON pointer: write `~` as `~0`, and `/` within a name as `~1`"));
        }
        Ok(Self(text))
    }

    /// The pointer as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names and indices it consists of, without escapes.
    pub fn tokens(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.0.split('/').skip(1).map(unescape_token)
    }

    /// The value it names; see [`find`].
    pub fn find<'a>(&self, text: &'a [u8]) -> Option<Value<'a>> {
        find(text, &self.0)
    }
}

impl TryFrom<String> for Pointer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(text)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A JSON value as it stands in the text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    /// Not empty, without space around it.
    raw: &'a [u8],
}

impl<'a> Value<'a> {
    /// The value's text, quotes and escapes included.
    pub fn raw(self) -> &'a [u8] {
        self.raw
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.raw == b"null"
    }

    /// `true` or `false`.
    pub fn as_bool(self) -> Option<bool> {
        match self.raw {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }

    /// A number, rounded to the nearest that `f64` has.
    pub fn as_f64(self) -> Option<f64> {
        self.number()?.parse().ok()
    }

    /// A number without fraction or exponent that `i64` has.
    pub fn as_i64(self) -> Option<i64> {
        self.number()?.parse().ok()
    }

    fn number(self) -> Option<&'a str> {
        matches!(self.raw[0], b'-' | b'0'..=b'9').then(|| std::str::from_utf8(self.raw).ok())?
    }

    /// A string's content. Only one with escapes is copied.
    pub fn as_str(self) -> Option<Cow<'a, str>> {
        let inner = self.raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        if memchr::memchr(b'\\', inner).is_none() {
            return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
        }
        serde_json::from_slice::<String>(self.raw).ok().map(Cow::Owned)
    }

    /// Text for comparing and for names: a string's content, and numbers, `true`, `false` as they stand. `None` for
    /// `null`, arrays and objects.
    pub fn as_text(self) -> Option<Cow<'a, str>> {
        match self.raw[0] {
            b'"' => self.as_str(),
            b'{' | b'[' => None,
            _ if self.is_null() => None,
            _ => std::str::from_utf8(self.raw).ok().map(Cow::Borrowed),
        }
    }

    /// A value below this one.
    pub fn at(self, pointer: &str) -> Option<Value<'a>> {
        find(self.raw, pointer)
    }

    /// The elements of an array, lazily: of damaged text those before the damage. `None` if it is no array.
    pub fn elements(self) -> Option<impl Iterator<Item = Value<'a>>> {
        let mut scanner = Scanner { text: self.raw, at: 0 };
        if scanner.peek() != Some(b'[') {
            return None;
        }
        let mut open = scanner.enter_container(b']');
        Some(std::iter::from_fn(move || {
            open?;
            let value = scanner.value()?;
            open = scanner.next_or_close(b']');
            Some(value)
        }))
    }

    /// The value as `T`, which may borrow from it.
    ///
    /// # Errors
    /// When it does not fit `T` or is damaged inside.
    pub fn parse<T: Deserialize<'a>>(self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.raw)
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.raw))
    }
}

/// A place in JSON text. Steps return `None` where the text is no JSON.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Steps over `byte` and the space behind it.
    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then_some(())?;
        self.at += 1;
        self.skip_space();
        Some(())
    }

    /// Steps into an array or object; `None` when it is empty.
    fn enter_container(&mut self, close: u8) -> Option<()> {
        self.at += 1;
        self.skip_space();
        (self.peek()? != close).then_some(())
    }

    /// Steps over a comma; `None` when the container ends.
    fn next_or_close(&mut self, close: u8) -> Option<()> {
        self.skip_space();
        if self.peek()? == close {
            return None;
        }
        self.expect(b',')
    }

    /// From an object to the value of the member that `token` names.
    fn enter_member(&mut self, token: &str) -> Option<()> {
        self.enter_container(b'}')?;
        loop {
            let name = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            if is_named(name, token) {
                return Some(());
            }
            self.skip_value()?;
            self.next_or_close(b'}')?;
        }
    }

    /// From an array to the element that `token` counts to.
    fn enter_element(&mut self, token: &str) -> Option<()> {
        let plain = token == "0" || token.starts_with(|first: char| matches!(first, '1'..='9'));
        let index: usize = plain.then(|| token.parse().ok())??;
        self.enter_container(b']')?;
        for _ in 0..index {
            self.skip_value()?;
            self.next_or_close(b']')?;
        }
        Some(())
    }

    fn value(&mut self) -> Option<Value<'a>> {
        let start = self.at;
        self.skip_value()?;
        Some(Value { raw: &self.text[start..self.at] })
    }

    fn skip_value(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(|_| ()),
            b'{' => self.skip_container(b'{', b'}'),
            b'[' => self.skip_container(b'[', b']'),
            b'-' | b'0'..=b'9' => {
                let rest = &self.text[self.at..];
                let inside = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                self.at += rest.iter().position(|byte| !inside(byte)).unwrap_or(rest.len());
                Some(())
            }
            _ => {
                let rest = &self.text[self.at..];
                let word = ["true", "false", "null"].into_iter().find(|word| rest.starts_with(word.as_bytes()))?;
                self.at += word.len();
                Some(())
            }
        }
    }

    /// To behind the bracket that closes this one. Brackets of the other kind need not be counted: in JSON they pair up
    /// between these.
    fn skip_container(&mut self, open: u8, close: u8) -> Option<()> {
        let mut depth = 0usize;
        loop {
            self.at += memchr::memchr3(b'"', open, close, &self.text[self.at..])?;
            match self.text[self.at] {
                b'"' => {
                    self.string()?;
                    continue;
                }
                byte if byte == open => depth += 1,
                _ => depth -= 1,
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// A string's raw content; steps behind its closing quote.
    fn string(&mut self) -> Option<&'a [u8]> {
        (self.peek()? == b'"').then_some(())?;
        let start = self.at + 1;
        let mut end = start;
        loop {
            end += memchr::memchr2(b'"', b'\\', self.text.get(end..)?)?;
            if self.text[end] == b'"' {
                self.at = end + 1;
                return Some(&self.text[start..end]);
            }
            end += 2;
        }
    }
}

/// Whether a member's raw name is the one that a pointer's token names.
fn is_named(name: &[u8], token: &str) -> bool {
    if name == token.as_bytes() {
        // With an escape on either side, equal texts are different names.
        return !name.iter().any(|byte| matches!(byte, b'\\' | b'~'));
    }
    if !token.contains('~') && memchr::memchr(b'\\', name).is_none() {
        return false;
    }
    let quoted = [b"\"", name, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).is_ok_and(|name| name == unescape_token(token))
}

fn unescape_token(token: &str) -> Cow<'_, str> {
    if token.contains('~') { Cow::Owned(token.replace("~1", "/").replace("~0", "~")) } else { Cow::Borrowed(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#" { "a" : 1, "b": {"c": [10, {"d": "x\"}]"}, [], -2.5e3 ]}, "": "empty", "e/f~g": true,
        "h\u0069": null, "k": "\ud83d\ude00", "a": 2, "~1": "tilde" } "#;

    fn check(pointer: &str, expected: Option<&str>) {
        let found = find(TEXT.as_bytes(), pointer).map(|value| String::from_utf8(value.raw().to_vec()).unwrap());
        assert_eq!(found.as_deref(), expected, "{pointer}");
    }

    #[test]
    fn pointers_name_values() {
        check("/a", Some("1"));
        check("/b/c/0", Some("10"));
        check("/b/c/1", Some(r#"{"d": "x\"}]"}"#));
        check("/b/c/1/d", Some(r#""x\"}]""#));
        check("/b/c/2", Some("[]"));
        check("/b/c/3", Some("-2.5e3"));
        check("/", Some(r#""empty""#));
        check("/e~1f~0g", Some("true"));
        check("/hi", Some("null"));
        check("/~01", Some(r#""tilde""#));
        check("", Some(TEXT.trim()));
    }

    #[test]
    fn what_is_not_there_is_none() {
        for pointer in ["/z", "/b/c/4", "/b/c/01", "/b/c/-", "/b/c/+1", "/b/c/2/0", "/a/0", "a", "/b/c/d", "/~1"] {
            check(pointer, None);
        }
        assert_eq!(find(b"", ""), None);
        assert_eq!(find(b"{}", "/a"), None);
    }

    /// Whatever the whole-text parser finds is found here, too.
    #[test]
    fn agrees_with_a_whole_parse() {
        let tree: serde_json::Value =
            serde_json::from_str(r#"{"a":[{"b":[1,2,{"c":"d\\\"e"}]},null,true],"f":{"g":{}}}"#).unwrap();
        let text = serde_json::to_vec_pretty(&tree).unwrap();
        for pointer in ["", "/a", "/a/0", "/a/0/b/2/c", "/a/1", "/a/2", "/a/3", "/f/g", "/f/g/h", "/a/0/b/1"] {
            let found = find(&text, pointer).map(|value| value.parse::<serde_json::Value>().unwrap());
            assert_eq!(found.as_ref(), tree.pointer(pointer), "{pointer}");
        }
    }

    #[test]
    fn damaged_text_never_panics() {
        let text = TEXT.as_bytes();
        for end in 0..text.len() {
            for pointer in ["/b/c/1/d", "/k", "/zz", "/b/c/9"] {
                let _ = find(&text[..end], pointer);
                let mut bent = text.to_vec();
                for with in [b'"', b'\\', b'{', b']', 0] {
                    bent[end] = with;
                    if let Some(value) = find(&bent, pointer) {
                        assert!(!value.raw().is_empty());
                        value.elements().map(Iterator::count);
                    }
                }
            }
        }
    }

    #[test]
    fn values_are_read_as_what_they_are() {
        let at = |text: &'static str| find(text.as_bytes(), "").unwrap();
        assert_eq!(at("-12").as_i64(), Some(-12));
        assert_eq!(at("1e3").as_i64(), None);
        assert_eq!(at("1e3").as_f64(), Some(1000.0));
        assert_eq!(at(r#""1""#).as_f64(), None);
        assert_eq!(at("true").as_bool(), Some(true));
        assert!(at("null").is_null());
        assert_eq!(at(r#""a\nb""#).as_str().as_deref(), Some("a\nb"));
        assert!(matches!(at(r#""ab""#).as_str(), Some(Cow::Borrowed("ab"))));
        assert_eq!(at("3").as_str(), None);
        assert_eq!(at("3.50").as_text().as_deref(), Some("3.50"));
        assert_eq!(at("null").as_text(), None);
        assert_eq!(at("[1]").as_text(), None);
        assert_eq!(find(b"nan", ""), None);
    }

    #[test]
    fn elements_are_walked() {
        let array = find(b"[ 1 , [2,3], {\"a\":\"]\"} ]", "").unwrap();
        let elements: Vec<_> = array.elements().unwrap().map(|value| value.raw().to_vec()).collect();
        assert_eq!(elements, [b"1".to_vec(), b"[2,3]".to_vec(), b"{\"a\":\"]\"}".to_vec()]);
        assert_eq!(find(b"[]", "").unwrap().elements().unwrap().count(), 0);
        assert!(find(b"{}", "").unwrap().elements().is_none());
    }

    #[test]
    fn pointers_are_checked() {
        assert!(Pointer::new("").is_ok() && Pointer::new("/a~0b~1c").is_ok());
        assert!(Pointer::new("a/b").unwrap_err().contains("write `/a/b`"));
        assert!(Pointer::new("/a~b").unwrap_err().contains("`~0`"));
        assert_eq!(Pointer::new("/a~1b/c").unwrap().tokens().collect::<Vec<_>>(), ["a/b", "c"]);
    }
}
