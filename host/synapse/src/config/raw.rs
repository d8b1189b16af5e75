//! The file's keys as they are written: one struct a table, one type a kind of value. The reader and the JSON Schema
//! both come from these.
//!
//! Invariant: a value here is right for itself (its kind, its unit, its range, its spelling). Whether it fits the rest
//! of the file is judged in `check`; nothing outside the configuration sees these types.

use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use synapse_core::spec::{Encoding, InstanceMode, OnError, ReadMode, Start};
use synapse_core::topic::{Label, NameError};
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::read::{
    At, Key, List, Map, OneOrMany, Place, Read, Reader, TABLE, Table, TableReader, Text, joined, nearest,
    not_available, quoted, read_table,
};
use super::units;

/// Declares the tables of the file. Of a `later` key only the reason is given why it is refused.
macro_rules! tables {
    ($(
        $(#[$about:meta])*
        $table:ident $(in $heading:literal)? {
            $( needed { $( $(#[$needed_doc:meta])* $needed:ident: $needed_type:ty, )* } )?
            optional { $( $(#[$optional_doc:meta])* $optional:ident: $optional_type:ty, )* }
            $( later { $( $later:ident: $reason:literal, )* } )?
        }
    )*) => {
        $(
            $(#[$about])*
            #[derive(Debug, Default, JsonSchema)]
            #[schemars(rename_all = "kebab-case", deny_unknown_fields)]
            pub(super) struct $table {
                $( $( $(#[$needed_doc])* pub(super) $needed: Key<$needed_type>, )* )?
                $( $(#[$optional_doc])* #[schemars(default)] pub(super) $optional: Key<$optional_type>, )*
            }

            impl Table for $table {
                const KEYS: &'static [&'static str] = &[
                    $( $( stringify!($needed), )* )?
                    $( stringify!($optional), )*
                ];

                fn take(table: &mut TableReader<'_, '_, '_>) -> Self {
                    let read = Self {
                        $( $( $needed: table.needed(stringify!($needed)), )* )?
                        $( $optional: table.optional(stringify!($optional)), )*
                    };
                    $( $( table.later(stringify!($later), $reason); )* )?
                    read
                }
            }

            impl Read for $table {
                const WHAT: &'static str = TABLE;

                fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
                    let DeValue::Table(table) = value.get_ref() else {
                        reader.wrong_kind(value, key, Self::WHAT);
                        return None;
                    };
                    Some(read_table(table, Place::of(value), key, reader, elsewhere))
                }
            }
        )*

        /// The table that knows the key `name`, as its heading is written.
        fn elsewhere(name: &str) -> Option<&'static str> {
            let tables: &[(&str, &[&str])] = &[ $( $( ($heading, $table::KEYS), )? )* ];
            let knows = |keys: &[&str]| keys.iter().any(|key| key.replace('_', "-") == name);
            tables.iter().find(|(_, keys)| knows(keys)).map(|(heading, _)| *heading)
        }
    };
}

tables! {
    /// The configuration of a Synapse host: `synapse.toml`.
    Root {
        optional {
            /// The host itself.
            server: Server,
            /// Where topics are held, by name. "local" is the embedded broker and always exists.
            brokers: Map<Broker>,
            /// How topics are kept, by `broker/topic`, or `topic` on the default broker. Optional: a topic that is not
            /// named here has one partition and keeps everything.
            topics: Map<Topic>,
            /// What is read, through which plugins it goes, and where it goes then.
            pipelines: List<Pipeline>,
        }
        later {
            tenants: "limits by tenant are",
            schemas: "checking events against schemas is",
            history: "keeping history of topics beyond their broker is",
        }
    }

    /// The host itself. A change of anything but `grace` needs a restart.
    Server in "[server]" {
        optional {
            /// Address and port of the HTTP API. Default "127.0.0.1:8080". Without API keys only a loopback address.
            listen: Text,
            /// The directory of the embedded log, the plugin store and compiled code. Default "data".
            data: Text,
            /// The broker of topics that are written without one. Default "local".
            default_broker: Text,
            /// The topic that the hosts of a fleet share their state through; kept free, not used yet. Default
            /// "local/_synapse".
            control: Text,
            /// How long lanes may take to end their work when the host is stopped. Default "10s".
            grace: Parsed<Span>,
        }
    }

    /// Where topics are held.
    Broker in "[brokers.<name>]" {
        needed {
            /// Which software holds the topics.
            kind: Choice<BrokerKind>,
        }
        optional {
            /// Redis only: one server; redis://, or redis+unix:// for a socket.
            url: Text,
            /// Redis only: some nodes of a cluster, instead of "url"; redis://host:port, which tell of the others.
            nodes: List<Text>,
            /// Kafka only, and needed there: some of its servers, "host:port" each, with commas between them.
            bootstrap: Text,
            /// Kafka only: what is promised of outputs to the same cluster. Default "exactly-once".
            delivery: Choice<Delivery>,
            /// Kafka only: properties of its client library, librdkafka, such as "security.protocol".
            client: Properties,
            /// Redis and Kafka: for how long a host that is not heard of keeps its partitions. Default "15s".
            lease: Parsed<Span>,
        }
    }

    /// How a topic is kept.
    Topic in "[topics.\"broker/topic\"]" {
        optional {
            /// How many shards; events of one partition key stay in one. Default 1.
            partitions: Count<1, 10_000>,
            /// When old events go. Without it they stay.
            retention: Retention,
        }
        later {
            schemas: "checking events against schemas is",
            history: "keeping history of topics beyond their broker is",
        }
    }

    /// When old events go: at whichever bound is met first.
    Retention in "retention" {
        optional {
            /// Events older than this may go.
            age: Parsed<Span>,
            /// Bytes kept in each partition.
            size: Parsed<Size>,
            /// Events kept in each partition.
            events: Count<1, { i64::MAX as u64 }>,
        }
    }

    /// Source, stages, sinks.
    Pipeline in "[[pipelines]]" {
        needed {
            /// Unique on the host; also the name of the consumer group on brokers that have groups.
            name: Parsed<Label>,
            /// The topic that is read, or a list of topics.
            from: OneOrMany<Text>,
        }
        optional {
            /// Who owns the pipeline. Default "default".
            tenant: Parsed<Label>,
            /// Where events go that no router sent elsewhere; or a list. Without it they end here.
            to: OneOrMany<Sink>,
            /// Where events go that could not be processed. Default "<first from>.dead-letters".
            dead_letters: Text,
            /// Redis only: "cursor" (default) reads in order and exactly once, "group" shares the work with others.
            read: Choice<ReadMode>,
            /// Workers by partition key for each partition. Default 1.
            parallel: Count<1, 1_024>,
            /// Where a pipeline without a position begins: "earliest" (default), "latest" or a time.
            start: Begin,
            /// The plugins that events go through, in order. Without any, events are copied.
            stages: List<Stage>,
        }
    }

    /// A topic that is written to, and how.
    SinkTable in "to" {
        needed {
            /// The topic.
            topic: Text,
        }
        optional {
            /// Redis only: "cloudevents" (default), or "fields" for consumers that expect every field of the event as
            /// a field of the entry.
            encoding: Choice<Encoding>,
        }
    }

    /// One use of a plugin.
    Stage in "[[pipelines.stages]]" {
        needed {
            /// The plugin: the path of a component, watched while the host runs.
            plugin: Text,
        }
        optional {
            /// Unique in the pipeline. Default: the plugin's name, as its file is called.
            name: Parsed<Label>,
            /// Handed to the plugin as JSON when it starts.
            config: JsonTable,
            /// What the plugin may use of the host beyond logging.
            grants: List<Choice<Grant>>,
            /// Routers only: patterns of the topics the plugin may send to, such as "platform-*" or "bus/alerts".
            routes: List<Text>,
            /// The bounds of the plugin's sandbox.
            limits: Limits,
            /// What happens to an event that the plugin rejects or fails on. Default "dead-letter".
            on_error: Choice<OnError>,
            /// How long an instance lives: "lane" (default), or "batch" for a fresh one each time.
            instance: Choice<InstanceMode>,
        }
    }

    /// The bounds of a plugin's sandbox.
    Limits in "limits" {
        optional {
            /// Linear memory of an instance, at most "1 GiB". Default "64 MiB".
            memory: Parsed<Size>,
            /// Processor time of one call with one batch. Default "100ms".
            cpu: Parsed<Span>,
            /// Size of what one call may answer. Default "16 MiB".
            output: Parsed<Size>,
            /// Log lines a second; more are counted, not written. Default 100.
            log_lines: Count<1, 1_000_000>,
        }
    }
}

impl Root {
    /// Reads the whole document.
    pub(super) fn read_document(document: &DeTable<'_>, reader: &mut Reader<'_>) -> Self {
        read_table(document, Place::START, "", reader, elsewhere)
    }
}

/// One place that events go to.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum Sink {
    /// A topic, written as CloudEvents.
    Topic(Text),
    /// A topic and how it is written.
    Table(SinkTable),
}

impl Read for Sink {
    const WHAT: &'static str = "a topic, a list of topics, or a table such as { topic = \"bus/events\" }";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(_) => Text::read(value, key, reader).map(Self::Topic),
            DeValue::Table(table) => {
                if let Some((webhook, _)) = table.get_key_value("webhook") {
                    reader.problem(Place::of(webhook), key, not_available("webhook sinks are"));
                    return None;
                }
                SinkTable::read(value, key, reader).map(Self::Table)
            }
            _ => {
                reader.wrong_kind(value, key, Self::WHAT);
                None
            }
        }
    }
}

/// A value that is written as a string with a form of its own.
pub(super) trait FromText: Sized {
    /// How it is written with its unit, if a plain number is a likely mistake.
    const WITH_UNIT: Option<&'static str> = None;

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong, to be said after the value.
    fn from_text(text: &str) -> Result<Self, String>;

    /// The JSON Schema of the string.
    fn schema() -> Schema;
}

/// What a string looks like that the environment has a part in: its form is known only when it is read.
const FROM_ENV: &str = "\\$\\{";

fn string_schema(pattern: &str) -> Schema {
    json_schema!({ "type": "string", "pattern": format!("{pattern}|{FROM_ENV}") })
}

/// A string in the form of `T`, and the string.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    pub(super) value: T,
    pub(super) text: Text,
}

impl<T: FromText> Read for Parsed<T> {
    const WHAT: &'static str = "a string";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if let (DeValue::Integer(_) | DeValue::Float(_), Some(example)) = (value.get_ref(), T::WITH_UNIT) {
            let message = format!("a number alone has no unit; write a unit, for example \"{example}\"");
            reader.problem(Place::of(value), key, message);
            return None;
        }
        let text = Text::read(value, key, reader)?;
        match T::from_text(&text.value) {
            Ok(value) => Some(Self { value, text }),
            Err(wrong) => {
                reader.problem(Place::of(value), key, format!("{} {wrong}", text.shown()));
                None
            }
        }
    }
}

impl<T: FromText> JsonSchema for Parsed<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Parsed".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

/// What is wrong with a name, to be said after it.
pub(super) fn not_a_name(error: &NameError) -> String {
    format!("is not {}", error.expected())
}

impl FromText for Label {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| not_a_name(&error))
    }

    fn schema() -> Schema {
        string_schema("^[A-Za-z0-9._-]{1,64}$")
    }
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::duration_text(self.0))
    }
}

impl FromText for Span {
    const WITH_UNIT: Option<&'static str> = Some("100ms");

    fn from_text(text: &str) -> Result<Self, String> {
        units::duration(text).map(Self)
    }

    fn schema() -> Schema {
        string_schema("^ *[0-9]+ *(us|ms|s|m|h|d) *$")
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::size_text(self.0))
    }
}

impl FromText for Size {
    const WITH_UNIT: Option<&'static str> = Some("64 MiB");

    fn from_text(text: &str) -> Result<Self, String> {
        units::size(text).map(Self)
    }

    fn schema() -> Schema {
        string_schema("^ *[0-9]+ *(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB) *$")
    }
}

/// A whole number of a range, both ends included.
#[derive(Debug)]
pub(super) struct Count<const MIN: u64, const MAX: u64>(pub(super) u64);

fn integer(integer: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

impl<const MIN: u64, const MAX: u64> Read for Count<MIN, MAX> {
    const WHAT: &'static str = "a whole number";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let DeValue::Integer(written) = value.get_ref() else {
            reader.wrong_kind(value, key, Self::WHAT);
            return None;
        };
        let number = integer(written).and_then(|number| u64::try_from(number).ok());
        if let Some(number) = number.filter(|number| (MIN..=MAX).contains(number)) {
            return Some(Self(number));
        }
        let range = if MAX == i64::MAX as u64 { format!("at least {MIN}") } else { format!("from {MIN} to {MAX}") };
        reader.problem(Place::of(value), key, format!("must be a whole number {range}, not {written}"));
        None
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Count<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Count_{MIN}_{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// One of a few words.
pub(super) trait Word: Copy + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];
    /// Words of the format that this version cannot honour, and the reason.
    const LATER: &'static [(&'static str, &'static str)] = &[];
}

/// One of the words of `T`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<T>(pub(super) T);

impl<T: Word> Read for Choice<T> {
    const WHAT: &'static str = "a string";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let text = Text::read(value, key, reader)?;
        if let Some((_, meaning)) = T::WORDS.iter().find(|(word, _)| *word == text.value) {
            return Some(Self(*meaning));
        }
        if let Some((_, reason)) = T::LATER.iter().find(|(word, _)| *word == text.value) {
            reader.problem(Place::of(value), key, not_available(reason));
            return None;
        }
        let words = || T::WORDS.iter().map(|(word, _)| *word);
        let hint = match nearest(&text.value, words()) {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => format!("it must be one of {}", words().map(quoted).collect::<Vec<_>>().join(", ")),
        };
        reader.problem(Place::of(value), key, format!("unknown word {}; {hint}", text.shown()));
        None
    }
}

impl<T: Word> JsonSchema for Choice<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Choice".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        json_schema!({ "anyOf": [{ "type": "string", "enum": words }, { "type": "string", "pattern": FROM_ENV }] })
    }
}

/// The kinds of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BrokerKind {
    Embedded,
    Redis,
    Kafka,
    Memory,
}

impl Word for BrokerKind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("embedded", Self::Embedded), ("redis", Self::Redis), ("kafka", Self::Kafka), ("memory", Self::Memory)];
}

/// What a Kafka broker promises of outputs to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    ExactlyOnce,
    AtLeastOnce,
}

impl Word for Delivery {
    const WORDS: &'static [(&'static str, Self)] =
        &[("exactly-once", Self::ExactlyOnce), ("at-least-once", Self::AtLeastOnce)];
}

impl Word for ReadMode {
    const WORDS: &'static [(&'static str, Self)] = &[("cursor", Self::Cursor), ("group", Self::Group)];
}

impl Word for Encoding {
    const WORDS: &'static [(&'static str, Self)] = &[("cloudevents", Self::CloudEvents), ("fields", Self::Fields)];
}

impl Word for OnError {
    const WORDS: &'static [(&'static str, Self)] =
        &[("dead-letter", Self::DeadLetter), ("drop", Self::Drop), ("pass", Self::Pass), ("stop", Self::Stop)];
}

impl Word for InstanceMode {
    const WORDS: &'static [(&'static str, Self)] = &[("lane", Self::Lane), ("batch", Self::Batch)];
}

/// A host interface that a stage may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant(pub(super) &'static str);

impl Word for Grant {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("state", Self("state")),
        ("services", Self("services")),
        ("history", Self("history")),
        ("metrics", Self("metrics")),
        ("secrets", Self("secrets")),
        ("clock", Self("clock")),
    ];
}

/// Where a pipeline without a position begins.
#[derive(Debug)]
pub(super) struct Begin(pub(super) Start);

impl Read for Begin {
    const WHAT: &'static str = "\"earliest\", \"latest\" or a time with its offset, such as \"2026-01-31T12:00:00Z\"";

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let text = match value.get_ref() {
            DeValue::Datetime(time) => Text::from_file(time.to_string()),
            DeValue::String(_) => Text::read(value, key, reader)?,
            _ => {
                reader.wrong_kind(value, key, Self::WHAT);
                return None;
            }
        };
        match text.value.as_str() {
            "earliest" => Some(Self(Start::Earliest)),
            "latest" => Some(Self(Start::Latest)),
            time => match time.parse() {
                Ok(time) => Some(Self(Start::Time(time))),
                Err(_) => {
                    reader.problem(Place::of(value), key, format!("must be {}, not {}", Self::WHAT, text.shown()));
                    None
                }
            },
        }
    }
}

impl JsonSchema for Begin {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Start".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "enum": ["earliest", "latest"] },
            { "type": "string", "format": "date-time" },
            { "type": "string", "pattern": FROM_ENV },
        ] })
    }
}

/// A table as JSON.
#[derive(Debug)]
pub(super) struct JsonTable(pub(super) serde_json::Value);

impl Read for JsonTable {
    const WHAT: &'static str = TABLE;

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if !value.get_ref().is_table() {
            reader.wrong_kind(value, key, Self::WHAT);
            return None;
        }
        json(value, key, reader).map(Self)
    }
}

impl JsonSchema for JsonTable {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "JsonTable".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object" })
    }
}

/// Properties of a client library: names with dots may stand in quotes, or as TOML's dotted keys.
#[derive(Debug)]
pub(super) struct Properties(pub(super) Vec<(At<String>, Text)>);

impl Read for Properties {
    const WHAT: &'static str = TABLE;

    fn read(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<Self> {
        if !value.get_ref().is_table() {
            reader.wrong_kind(value, key, Self::WHAT);
            return None;
        }
        let mut all = Vec::new();
        properties(value, "", key, reader, &mut all);
        Some(Self(all))
    }
}

/// Reads every property below `prefix`; what cannot be read is noted and left out.
fn properties(
    value: &Spanned<DeValue<'_>>,
    prefix: &str,
    key: &str,
    reader: &mut Reader<'_>,
    all: &mut Vec<(At<String>, Text)>,
) {
    let text = match value.get_ref() {
        DeValue::Table(table) => {
            for (name, value) in table {
                let name: &str = name.get_ref().as_ref();
                let full = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
                properties(value, &full, key, reader, all);
            }
            None
        }
        DeValue::String(_) => Text::read(value, key, reader),
        DeValue::Integer(number) => Some(Text::from_file(number.to_string())),
        DeValue::Boolean(boolean) => Some(Text::from_file(boolean.to_string())),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) => {
            reader.wrong_kind(value, &joined(key, prefix), "a string, an integer or a boolean");
            None
        }
    };
    all.extend(text.map(|text| (At { value: prefix.to_owned(), place: Place::of(value) }, text)));
}

impl JsonSchema for Properties {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Properties".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": { "type": ["string", "integer", "boolean", "object"] } })
    }
}

/// Dates become strings, for JSON has none; what JSON cannot say otherwise is noted. Every fault is found.
fn json(value: &Spanned<DeValue<'_>>, key: &str, reader: &mut Reader<'_>) -> Option<serde_json::Value> {
    let read = match value.get_ref() {
        DeValue::String(_) => return Text::read(value, key, reader).map(|text| text.value.into()),
        DeValue::Integer(number) => integer(number).map(Into::into),
        DeValue::Float(number) => {
            number.as_str().parse().ok().and_then(serde_json::Number::from_f64).map(serde_json::Value::Number)
        }
        DeValue::Boolean(boolean) => Some((*boolean).into()),
        DeValue::Datetime(time) => Some(time.to_string().into()),
        DeValue::Array(array) => {
            let items: Vec<_> = array.iter().map(|item| json(item, key, reader)).collect();
            return items.into_iter().collect::<Option<Vec<_>>>().map(Into::into);
        }
        DeValue::Table(table) => {
            let entry = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, _)| {
                let name = name.get_ref().as_ref();
                Some((name.to_owned(), json(value, &joined(key, name), reader)?))
            };
            let entries: Vec<_> = table.iter().map(entry).collect();
            return entries.into_iter().collect::<Option<serde_json::Map<_, _>>>().map(Into::into);
        }
    };
    if read.is_none() {
        reader.problem(Place::of(value), key, "is a number that JSON cannot hold");
    }
    read
}
