//! Walking a parsed TOML document: each value is read for itself, and whatever is wrong is noted at its line.
//!
//! Invariant: a value that could not be read has left a problem behind, so a walk without problems has read everything.
//! A value from the environment is never repeated in a problem. This module must not know what the keys mean.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// Where the document came from, and what was found wrong in it.
pub(super) struct Reader<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    env: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

/// A place in the document: a byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(usize);

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What stands behind a key.
#[derive(Debug, Default)]
pub(super) enum Key<T> {
    /// The key is not there.
    #[default]
    Absent,
    /// It is there and could not be read; that is noted.
    Bad,
    /// A value of the right kind.
    Here(At<T>),
}

impl<T> Key<T> {
    /// Where a value of the right kind stands.
    pub(super) fn place(&self) -> Option<Place> {
        match self {
            Self::Here(at) => Some(at.place),
            Self::Absent | Self::Bad => None,
        }
    }
}

/// What can be read from a TOML value.
pub(super) trait Read: Sized {
    /// For "must be {}, not an integer".
    const WHAT: &'static str;

    /// Reads `value`, which stands behind `key`; without a result the reason is noted.
    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self>;
}

/// A struct whose fields are the keys of a table.
pub(super) trait Table: Sized {
    /// Every key, in Rust's writing (`dead_letters`).
    const KEYS: &'static [&'static str];

    /// Takes every key out of the table.
    fn take(table: &mut TableReader<'_, '_, '_>) -> Self;
}

/// A list of one kind of value.
#[derive(Debug)]
pub(super) struct List<T> {
    /// The values that could be read.
    pub(super) items: Vec<At<T>>,
    /// Whether nothing was written between the brackets.
    pub(super) empty: bool,
}

/// A list, or one value in its place.
#[derive(Debug)]
pub(super) struct OneOrMany<T>(pub(super) List<T>);

/// A table whose keys are names.
#[derive(Debug)]
pub(super) struct Map<T>(pub(super) Vec<(At<String>, Key<T>)>);

/// A string with the environment's values filled in.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// The string itself.
    pub(super) value: String,
    /// As it stands in the file, where the environment had a part in it: the value may be a secret.
    written: Option<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, line_starts: std::iter::once(0).chain(after_breaks).collect(), env, problems: Vec::new() }
    }

    /// Parses the document; a text that is not TOML is noted at its first fault.
    pub(super) fn document(&mut self) -> Option<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        let first = errors.iter().min_by_key(|error| error.span().map_or(usize::MAX, |span| span.start));
        let Some(first) = first else { return Some(table.into_inner()) };
        let span = first.span().unwrap_or(self.text.len()..self.text.len());
        let about = self.text.get(span.clone()).unwrap_or_default();
        self.problem(Place(span.start), "", format!("not TOML: {}", syntax_message(first.message(), about)));
        None
    }

    /// Notes a problem.
    pub(super) fn problem(&mut self, place: Place, key: &str, message: impl Into<String>) {
        let line = self.line_index(place);
        let before = self.text.get(self.line_starts[line]..place.0).unwrap_or_default();
        self.problems.push(Problem {
            line: line + 1,
            column: before.chars().count() + 1,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    /// The line, from 1.
    pub(super) fn line(&self, place: Place) -> usize {
        self.line_index(place) + 1
    }

    /// What was noted, from the first line to the last.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.problems.dedup();
        self.problems
    }

    fn line_index(&self, place: Place) -> usize {
        self.line_starts.partition_point(|start| *start <= place.0).saturating_sub(1)
    }

    /// Notes that `value` is of another kind than `what`.
    pub(super) fn wrong_kind(&mut self, value: &Spanned<DeValue<'_>>, key: &str, what: &str) {
        let is = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(Place::of(value), key, format!("must be {what}, not {is}"));
    }

    /// Fills `${VAR}` and `${VAR:-default}` in; `$${` stands for `${`.
    pub(super) fn expand(&mut self, written: &str, place: Place, key: &str) -> Option<Text> {
        let (mut value, mut rest, mut from_env) = (String::new(), written, false);
        while let Some(at) = rest.find("${") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                value.push_str(before);
                value.push_str("${");
                rest = after;
                continue;
            }
            let Some((inside, after)) = after.split_once('}') else {
                self.problem(place, key, "\"${\" has no closing \"}\"; write \"$${\" for the characters themselves");
                return None;
            };
            value.push_str(before);
            value.push_str(&self.variable(inside, place, key)?);
            (rest, from_env) = (after, true);
        }
        value.push_str(rest);
        Some(Text { value, written: from_env.then(|| written.to_owned()) })
    }

    /// The value of `NAME` or `NAME:-default`. As in a shell, a default also stands for an empty variable.
    fn variable(&mut self, inside: &str, place: Place, key: &str) -> Option<String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if !starts_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            let name = quoted(name);
            self.problem(
                place,
                key,
                format!("{name} is not the name of an environment variable; write ${{NAME}} or ${{NAME:-default}}"),
            );
            return None;
        }
        let found = (self.env)(name);
        match default {
            Some(default) => Some(found.filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())),
            None if found.is_some() => found,
            None => {
                self.problem(
                    place,
                    key,
                    format!(
                        "the environment variable {name} is not set; set it, or write a default: ${{{name}:-default}}"
                    ),
                );
                None
            }
        }
    }
}

/// What the TOML parser says, with a hint where it alone does not help. `about` is the text at fault.
fn syntax_message(said: &str, about: &str) -> String {
    let said = said.trim_end_matches(", expected nothing").replace('\n', " ");
    let unquoted_value = ["invalid float", "invalid integer", "invalid datetime"];
    if unquoted_value.iter().any(|start| said.starts_with(start)) {
        format!("{said}; a text stands between quotes")
    } else if said.starts_with("invalid unquoted key") {
        format!("{said}; any other key stands between quotes")
    } else if said == "duplicate key" {
        format!("the key {} is there twice", quoted(about))
    } else {
        said
    }
}

impl Place {
    pub(super) fn of<T>(spanned: &Spanned<T>) -> Self {
        Self(spanned.span().start)
    }

    /// The beginning of the document.
    pub(super) const START: Self = Self(0);
}

impl<T> Key<T> {
    pub(super) fn here(self) -> Option<At<T>> {
        match self {
            Self::Here(at) => Some(at),
            Self::Absent | Self::Bad => None,
        }
    }
}

impl Text {
    /// A value that the environment has no part in.
    pub(super) fn from_file(value: String) -> Self {
        Self { value, written: None }
    }

    /// Whether the environment has a part in it.
    pub(super) fn is_from_env(&self) -> bool {
        self.written.is_some()
    }

    /// For a problem's sentence: quoted, cut to a bearable length, and never a value of the environment.
    pub(super) fn shown(&self) -> String {
        quoted(self.written.as_deref().unwrap_or(&self.value))
    }

    /// As [`Text::shown`], for a part of the value.
    pub(super) fn shown_part(&self, part: &str) -> String {
        if self.written.is_some() { self.shown() } else { quoted(part) }
    }
}

/// The text between quotes, with nothing in it that could disturb a terminal, cut to 100 characters.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((cut, _)) => format!("{:?}", format!("{}…", &text[..cut])),
        None => format!("{text:?}"),
    }
}

/// One table whose keys are being taken.
pub(super) struct TableReader<'t, 'r, 'a> {
    entries: &'t DeTable<'t>,
    place: Place,
    key: &'t str,
    reader: &'r mut Reader<'a>,
    known: Vec<String>,
}

impl TableReader<'_, '_, '_> {
    /// A key that may be missing.
    pub(super) fn optional<T: Read>(&mut self, field: &str) -> Key<T> {
        let name = field.replace('_', "-");
        let key = joined(self.key, &name);
        let found = match self.entries.get(name.as_str()) {
            None => Key::Absent,
            Some(value) => match T::read(value, &key, self.reader) {
                Some(read) => Key::Here(At { value: read, place: Place::of(value) }),
                None => Key::Bad,
            },
        };
        self.known.push(name);
        found
    }

    /// A key that must be there; that it is not is noted at the table.
    pub(super) fn needed<T: Read>(&mut self, field: &str) -> Key<T> {
        let found = self.optional(field);
        if matches!(found, Key::Absent) {
            let message = format!("the key \"{}\" is missing", field.replace('_', "-"));
            self.reader.problem(self.place, self.key, message);
        }
        found
    }

    /// A key of the format that this version cannot honour: noted where it is used, once a table for the same reason.
    pub(super) fn later(&mut self, field: &str, what: &str) {
        let name = field.replace('_', "-");
        let message = not_available(what);
        let first_line = self.reader.line(self.place);
        let said = self.reader.problems.iter().any(|problem| {
            let below = problem.key.strip_prefix(self.key).is_some_and(|key| key.starts_with('.'));
            problem.message == message && below && problem.line >= first_line
        });
        if let Some((written, _)) = self.entries.get_key_value(name.as_str())
            && !said
        {
            self.reader.problem(Place::of(written), &joined(self.key, &name), message);
        }
        self.known.push(name);
    }

    fn finish(self, elsewhere: impl Fn(&str) -> Option<&'static str>) {
        for (name, _) in self.entries {
            let text = name.get_ref().as_ref();
            if self.known.iter().any(|known| known == text) {
                continue;
            }
            let hint = match (nearest(text, self.known.iter().map(String::as_str)), elsewhere(text)) {
                (Some(near), _) => format!("did you mean {}?", quoted(near)),
                (None, Some(table)) => format!("it is a key of {table}"),
                (None, None) => format!("the keys here are {}", self.known.join(", ")),
            };
            self.reader.problem(Place::of(name), self.key, format!("unknown key {}; {hint}", quoted(text)));
        }
    }
}

/// Reads a whole table; `elsewhere` names the table that knows a key which this one does not.
pub(super) fn read_table<T: Table>(
    entries: &DeTable<'_>,
    place: Place,
    key: &str,
    reader: &mut Reader<'_>,
    elsewhere: impl Fn(&str) -> Option<&'static str>,
) -> T {
    let mut table = TableReader { entries, place, key, reader, known: Vec::new() };
    let read = T::take(&mut table);
    table.finish(elsewhere);
    read
}

/// The sentence for what the format knows and this version does not.
pub(super) fn not_available(what: &str) -> String {
    format!("{what} not available in this version")
}

/// `pipelines` and `name` make `pipelines.name`; a name that TOML would quote is quoted.
pub(super) fn joined(key: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let name = if bare { name.to_owned() } else { quoted(name) };
    if key.is_empty() { name } else { format!("{key}.{name}") }
}

/// The one of `known` that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    const LENGTH_MAX: usize = 64;
    let plain = |text: &str| -> Vec<char> {
        text.chars().map(|letter| if letter == '_' { '-' } else { letter.to_ascii_lowercase() }).collect()
    };
    let word = plain(word);
    if word.len() > LENGTH_MAX {
        return None;
    }
    let allowed = (word.len() / 3).max(1);
    let steps = |name: &str| {
        let name = plain(name);
        let begins = word.len().min(name.len()) >= 3 && (name.starts_with(&word) || word.starts_with(&name));
        if begins { 1 } else { distance(&word, &name) }
    };
    let (steps, name) = known.map(|name| (steps(name), name)).min_by_key(|(steps, _)| *steps)?;
    (steps <= allowed && steps < word.len()).then_some(name)
}

/// How many letters must be put in, left out, changed or swapped with their neighbour.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

impl Read for Text {
    const WHAT: &'static str = "a string";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => reader.expand(text, Place::of(value), key),
            _ => {
                reader.wrong_kind(value, key, Self::WHAT);
                None
            }
        }
    }
}

impl<T: Read> Read for List<T> {
    const WHAT: &'static str = "a list";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::Array(array) => {
                let read = |item| T::read(item, key, reader).map(|value| At { value, place: Place::of(item) });
                Some(Self { items: array.iter().filter_map(read).collect(), empty: array.is_empty() })
            }
            DeValue::Table(_) if T::WHAT == TABLE => {
                reader.problem(Place::of(value), key, format!("must be a list of tables; write [[{key}]]"));
                None
            }
            _ => {
                reader.wrong_kind(value, key, Self::WHAT);
                None
            }
        }
    }
}

impl<T: Read> Read for OneOrMany<T> {
    const WHAT: &'static str = T::WHAT;

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if value.get_ref().is_array() {
            return List::read(value, key, reader).map(Self);
        }
        let one = At { value: T::read(value, key, reader)?, place: Place::of(value) };
        Some(Self(List { items: vec![one], empty: false }))
    }
}

impl<T: Read> Read for Map<T> {
    const WHAT: &'static str = TABLE;

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            reader.wrong_kind(value, key, Self::WHAT);
            return None;
        };
        let read = |(name, value): (&Spanned<_>, _)| {
            let text: &str = AsRef::<str>::as_ref(name.get_ref());
            let read = match T::read(value, &joined(key, text), reader) {
                Some(read) => Key::Here(At { value: read, place: Place::of(value) }),
                None => Key::Bad,
            };
            (At { value: text.to_owned(), place: Place::of(name) }, read)
        };
        Some(Self(table.iter().map(read).collect()))
    }
}

/// [`Read::WHAT`] of everything that is a table.
pub(super) const TABLE: &str = "a table";

/// A schema that is another type's: what a wrapper adds is not seen from outside.
macro_rules! schema_of {
    ($wrapper:ident, $generator:ident, $name:expr, $schema:expr) => {
        impl<T: JsonSchema> JsonSchema for $wrapper<T> {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                format!($name, T::schema_name()).into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

schema_of!(Key, generator, "{}", generator.subschema_for::<T>());
schema_of!(List, generator, "List_of_{}", {
    let item = generator.subschema_for::<T>();
    json_schema!({ "type": "array", "items": item })
});
schema_of!(OneOrMany, generator, "One_or_many_{}", {
    let (one, many) = (generator.subschema_for::<T>(), generator.subschema_for::<List<T>>());
    json_schema!({ "anyOf": [one, many] })
});
schema_of!(Map, generator, "Map_of_{}", {
    let value = generator.subschema_for::<T>();
    json_schema!({ "type": "object", "additionalProperties": value })
});

impl JsonSchema for Text {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}
