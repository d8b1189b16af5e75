//! Running a plugin natively, in `cargo test`.
//!
//! Invariant: events go through the same columns and the same loop as in a guest; only the bindings are left out. What
//! the sandbox adds (limits, traps, grants) is not tested here: a panic is a panic of the test.
//!
//! ```
//! # use synapse_plugin::{Event, Filter, NoConfig, Verdict};
//! # struct ReadyOnly;
//! # impl Filter for ReadyOnly {
//! #     type Config = NoConfig;
//! #     fn new(_: NoConfig) -> Result<Self, String> { Ok(Self) }
//! #     fn judge(&mut self, event: &Event<'_>) -> Verdict { (event.kind() == "model-ready").into() }
//! # }
//! use synapse_plugin::cases::Outcome;
//! use synapse_plugin::testing::{check_cases, event, filter};
//!
//! let mut bench = filter::<ReadyOnly>(&serde_json::json!({})).unwrap();
//! assert_eq!(bench.run(&[event("model-ready"), event("other")]), [Outcome::Keep, Outcome::Drop]);
//! // A file's text: include_str!("../cases.ndjson")
//! check_cases(r#"{"given": {"type": "other"}, "expect": "drop"}"#, filter::<ReadyOnly>);
//! ```

use std::cell::RefCell;

use serde_json::{Map, Value};

use crate::cases::{self, Outcome};
use crate::columns::{Batch, PASS, Rejection, STRIDE, View, Writer};
use crate::event::{Event, encode_attributes};
use crate::filter::{self, Filter};
use crate::log::Level;
use crate::parse_config;
use crate::router::{self, Router};
use crate::transform::{self, Transform};

/// An event with this type, the id `1`, the source `/test` and no data.
pub fn event(kind: &str) -> TestEvent {
    TestEvent { id: "1".to_owned(), source: "/test".to_owned(), kind: kind.to_owned(), ..TestEvent::default() }
}

/// An event to hand to a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestEvent {
    /// CloudEvents `id`.
    pub id: String,
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `type`.
    pub kind: String,
    /// Empty: none.
    pub subject: String,
    /// Microseconds since the Unix epoch.
    pub time_us: Option<i64>,
    /// Empty: none.
    pub partition_key: String,
    /// Empty: none.
    pub content_type: String,
    /// Names and values of the other extension attributes.
    pub attributes: Vec<(String, String)>,
    /// The payload.
    pub data: Vec<u8>,
}

impl TestEvent {
    /// With this id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// With this source.
    #[must_use]
    pub fn source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }

    /// With this subject.
    #[must_use]
    pub fn subject(mut self, subject: &str) -> Self {
        subject.clone_into(&mut self.subject);
        self
    }

    /// At this time, in microseconds since the Unix epoch.
    #[must_use]
    pub fn time_us(mut self, time_us: i64) -> Self {
        self.time_us = Some(time_us);
        self
    }

    /// Ordered by this key.
    #[must_use]
    pub fn partition_key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.partition_key);
        self
    }

    /// With this extension attribute.
    #[must_use]
    pub fn attribute(mut self, name: &str, value: &str) -> Self {
        self.attributes.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this payload.
    #[must_use]
    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    /// With this payload as JSON.
    #[must_use]
    pub fn json(mut self, data: &Value) -> Self {
        "application/json".clone_into(&mut self.content_type);
        self.data(data.to_string())
    }

    /// From the JSON format of CloudEvents.
    ///
    /// # Errors
    /// What is not as the format has it.
    pub fn from_cloudevent(event: &Map<String, Value>) -> Result<Self, String> {
        let mut read = Self::default();
        for (name, value) in event.iter().filter(|(_, value)| !value.is_null()) {
            let text = || match value {
                Value::String(text) => Ok(text.clone()),
                Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
                _ => Err(format!("the attribute `{name}` is {value}, and has to be a string")),
            };
            match name.as_str() {
                "specversion" | "data" | "data_base64" => {}
                "id" => read.id = text()?,
                "source" => read.source = text()?,
                "type" => read.kind = text()?,
                "subject" => read.subject = text()?,
                "time" => {
                    let time: jiff::Timestamp = text()?.parse().map_err(|error| format!("`time`: {error}"))?;
                    read.time_us = Some(time.as_microsecond());
                }
                "partitionkey" => read.partition_key = text()?,
                "datacontenttype" => read.content_type = text()?,
                _ => read.attributes.push((name.clone(), text()?)),
            }
        }
        read.data = match (event.get("data"), event.get("data_base64")) {
            (Some(Value::String(text)), _) if !is_json(&read.content_type) => text.clone().into_bytes(),
            (Some(data), _) => data.to_string().into_bytes(),
            (None, Some(Value::String(text))) => base64_decode(text).ok_or("`data_base64` is not base64")?,
            (None, Some(other)) => return Err(format!("`data_base64` is {other}, and has to be a string")),
            (None, None) => Vec::new(),
        };
        Ok(read)
    }

    /// In the JSON format of CloudEvents.
    pub fn to_cloudevent(&self) -> Map<String, Value> {
        let mut event = Map::new();
        let mut put = |name: &str, value: &str| {
            if !value.is_empty() {
                event.insert(name.to_owned(), value.into());
            }
        };
        put("specversion", "1.0");
        put("id", &self.id);
        put("source", &self.source);
        put("type", &self.kind);
        put("subject", &self.subject);
        if let Some(time) = self.time_us.and_then(|time| jiff::Timestamp::from_microsecond(time).ok()) {
            put("time", &time.to_string());
        }
        put("partitionkey", &self.partition_key);
        put("datacontenttype", &self.content_type);
        self.attributes.iter().for_each(|(name, value)| put(name, value));
        let json = is_json(&self.content_type).then(|| serde_json::from_slice(&self.data).ok()).flatten();
        match (json, std::str::from_utf8(&self.data)) {
            _ if self.data.is_empty() => None,
            (Some(json), _) => event.insert("data".to_owned(), json),
            (None, Ok(text)) if self.content_type.starts_with("text/") => event.insert("data".to_owned(), text.into()),
            (None, _) => event.insert("data_base64".to_owned(), base64_encode(&self.data).into()),
        };
        event
    }

    fn write(&self, writer: &mut Writer) {
        for text in [&self.id, &self.source, &self.kind, &self.subject] {
            writer.column(text.as_bytes());
        }
        writer.column(&self.time_us.map_or_else(Vec::new, |time| time.to_le_bytes().to_vec()));
        for text in [&self.partition_key, &self.content_type] {
            writer.column(text.as_bytes());
        }
        let mut attributes = Vec::new();
        encode_attributes(self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())), &mut attributes);
        writer.column(&attributes);
        writer.column(&self.data);
    }

    fn read(event: &Event<'_>) -> Self {
        Self {
            id: event.id().to_owned(),
            source: event.source().to_owned(),
            kind: event.kind().to_owned(),
            subject: event.subject().unwrap_or_default().to_owned(),
            time_us: event.time_us(),
            partition_key: event.partition_key().unwrap_or_default().to_owned(),
            content_type: event.content_type().unwrap_or_default().to_owned(),
            attributes: event.attributes().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            data: event.data().to_vec(),
        }
    }
}

/// CloudEvents takes data without a media type for JSON.
fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.is_empty() || media_type.ends_with("/json") || media_type.ends_with("+json")
}

/// A configured plugin.
pub struct Bench {
    run: Box<RunBatch>,
}

type RunBatch = dyn FnMut(&Batch) -> Vec<Outcome>;

impl Bench {
    /// Runs events through it as one batch; what became of each, in order.
    pub fn run(&mut self, events: &[TestEvent]) -> Vec<Outcome> {
        (self.run)(&batch_of(events))
    }

    /// Runs one event through it.
    pub fn run_one(&mut self, event: &TestEvent) -> Outcome {
        self.run(std::slice::from_ref(event)).remove(0)
    }
}

/// Configures a filter.
///
/// # Errors
/// What the plugin says of the configuration.
pub fn filter<F: Filter>(config: &Value) -> Result<Bench, String> {
    let mut plugin = F::new(parse_config(&config.to_string())?)?;
    let run = move |batch: &Batch| {
        let selection = filter::judge(&mut plugin, batch);
        let outcomes = selection.kept.iter().map(|kept| if *kept == 1 { Outcome::Keep } else { Outcome::Drop });
        with_rejections(outcomes.collect(), selection.rejected)
    };
    Ok(Bench { run: Box::new(run) })
}

/// Configures a transform.
///
/// # Errors
/// What the plugin says of the configuration.
pub fn transform<T: Transform>(config: &Value) -> Result<Bench, String> {
    let mut plugin = T::new(parse_config(&config.to_string())?)?;
    let run = move |batch: &Batch| {
        let rewrite = transform::apply(&mut plugin, batch);
        let mut emitted = vec![Vec::new(); rows(batch)];
        for ((_, event), parent) in View::of(&rewrite.batch).events().zip(rewrite.parents) {
            emitted[parent as usize].push(TestEvent::read(&event).to_cloudevent());
        }
        with_rejections(emitted.into_iter().map(Outcome::Emit).collect(), rewrite.rejected)
    };
    Ok(Bench { run: Box::new(run) })
}

/// Configures a router.
///
/// # Errors
/// What the plugin says of the configuration.
pub fn router<R: Router>(config: &Value) -> Result<Bench, String> {
    let mut plugin = R::new(parse_config(&config.to_string())?)?;
    let run = move |batch: &Batch| {
        let routing = router::route(&mut plugin, batch);
        let name = |topic: &u32| routing.topics[*topic as usize].clone();
        let outcomes = routing.choice.iter().map(|choice| match *choice {
            PASS => Outcome::Pass,
            choice => Outcome::To(routing.choices[choice as usize].iter().map(name).collect()),
        });
        with_rejections(outcomes.collect(), routing.rejected.clone())
    };
    Ok(Bench { run: Box::new(run) })
}

/// Runs a case file (see [`cases`]); `bench` is [`filter`], [`transform`] or [`router`] of the plugin.
///
/// # Panics
/// When the file cannot be read or a case fails: with every failure, to be read in the test's output.
pub fn check_cases(file: &str, bench: impl Fn(&Value) -> Result<Bench, String>) {
    let cases = cases::parse(file).unwrap_or_else(|error| panic!("{error}"));
    assert!(!cases.is_empty(), "the file holds no cases");
    let failures = cases::run(&cases, |case| match bench(&case.config) {
        Ok(mut bench) => {
            let event = TestEvent::from_cloudevent(&case.given)
                .unwrap_or_else(|error| panic!("line {}: `given` is no event: {error}", case.line));
            bench.run_one(&event)
        }
        Err(message) => Outcome::ConfigError(message),
    });
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{} of {} cases failed\n{}", failures.len(), cases.len(), failures.join("\n"));
}

thread_local! {
    static LOG: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn keep_log(level: Level, message: &str) {
    LOG.with_borrow_mut(|log| log.push((level, message.to_owned())));
}

/// What this test's thread has logged since the last call.
pub fn take_log() -> Vec<(Level, String)> {
    LOG.take()
}

fn batch_of(events: &[TestEvent]) -> Batch {
    let mut writer = Writer::default();
    events.iter().for_each(|event| event.write(&mut writer));
    writer.finish()
}

fn rows(batch: &Batch) -> usize {
    batch.ends.len() / STRIDE
}

fn with_rejections(mut outcomes: Vec<Outcome>, rejected: Vec<Rejection>) -> Vec<Outcome> {
    for Rejection { row, reason } in rejected {
        outcomes[row as usize] = Outcome::Reject(reason);
    }
    outcomes
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, index| group << 8 | u32::from(chunk.get(index).copied().unwrap_or(0)));
        for index in 0..4 {
            let digit = (group >> (18 - 6 * index)) as usize & 63;
            text.push(if index <= chunk.len() { char::from(BASE64[digit]) } else { '=' });
        }
    }
    text
}

fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut group, mut bits) = (0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = BASE64.iter().position(|known| *known == digit)?;
        group = (group << 6 | value as u32) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Draft, Emitter, NoConfig, Reject, Routes, Verdict};

    /// Keeps `keep`, rejects `reject`, logs what it sees.
    struct Sorter;

    impl Filter for Sorter {
        type Config = NoConfig;

        fn new(_: NoConfig) -> Result<Self, String> {
            Ok(Self)
        }

        fn judge(&mut self, event: &Event<'_>) -> Verdict {
            crate::log::info(event.id());
            match event.kind() {
                "reject" => Verdict::reject(format!("{:?}", event.subject())),
                kind => Verdict::keep_if(kind == "keep"),
            }
        }
    }

    #[test]
    fn filters_answer_for_each_event() {
        let mut bench = filter::<Sorter>(&json!({})).unwrap();
        let events =
            [event("keep"), event("drop").id("2"), event("reject").id("3").subject("s"), event("keep").id("4")];
        let reject = Outcome::Reject("Some(\"s\")".to_owned());
        assert_eq!(bench.run(&events), [Outcome::Keep, Outcome::Drop, reject, Outcome::Keep]);
        let ids: Vec<_> = take_log().into_iter().map(|(_, line)| line).collect();
        assert_eq!(ids, ["1", "2", "3", "4"]);
        assert_eq!(bench.run(&[]), []);
    }

    #[test]
    fn configs_that_do_not_fit_are_refused() {
        let error = filter::<Sorter>(&json!({ "a": 1 })).err().unwrap();
        assert!(error.starts_with("the config does not fit this plugin: unknown field `a`"), "{error}");
    }

    /// Emits as its data says: one draft for each element.
    struct Emitting;

    impl Transform for Emitting {
        type Config = NoConfig;

        fn new(_: NoConfig) -> Result<Self, String> {
            Ok(Self)
        }

        fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject> {
            for step in event.json::<Vec<String>>()? {
                match step.as_str() {
                    "unchanged" => out.unchanged(),
                    "reject" => return Err("on request".into()),
                    "id" => out.emit(event.draft().id("own")),
                    step => out.data(step.as_bytes()),
                }
            }
            Ok(())
        }
    }

    fn ids(steps: &[&str]) -> Vec<String> {
        let event = event("t").id("p").attribute("tenant", "a").time_us(5).json(&json!(steps));
        match transform::<Emitting>(&json!({})).unwrap().run_one(&event) {
            Outcome::Emit(events) => events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn emitted_ids_follow_from_the_parent() {
        assert_eq!(ids(&[]), [""; 0]);
        assert_eq!(ids(&["unchanged"]), ["p"]);
        assert_eq!(ids(&["x"]), ["p"]);
        assert_eq!(ids(&["x", "y", "z"]), ["p/0", "p/1", "p/2"]);
        assert_eq!(ids(&["unchanged", "x"]), ["p/0", "p/1"]);
        assert_eq!(ids(&["x", "unchanged"]), ["p/0", "p/1"]);
        assert_eq!(ids(&["id", "x"]), ["own", "p/1"]);
        assert_eq!(ids(&["x", "id", "x"]), ["p/0", "own", "p/2"]);
    }

    #[test]
    fn a_rejection_takes_back_what_was_emitted() {
        let steps = [json!(["a", "b"]), json!(["c", "d", "reject"]), json!("no list"), json!(["e"])];
        let events: Vec<_> = steps.iter().map(|steps| event("t").json(steps)).collect();
        let outcomes = transform::<Emitting>(&json!({})).unwrap().run(&events);
        let data = |outcome: &Outcome| match outcome {
            Outcome::Emit(events) => {
                events.iter().map(|event| event["data_base64"].as_str().unwrap().to_owned()).collect()
            }
            Outcome::Reject(reason) => vec![reason.clone()],
            other => panic!("{other}"),
        };
        assert_eq!(data(&outcomes[0]), ["YQ==", "Yg=="]);
        assert_eq!(data(&outcomes[1]), ["on request"]);
        assert!(data(&outcomes[2])[0].contains("expected a sequence"));
        assert_eq!(data(&outcomes[3]), ["ZQ=="]);
    }

    #[test]
    fn unchanged_events_and_drafts_keep_every_column() {
        let given = event("t")
            .id("p")
            .subject("s")
            .time_us(-5)
            .partition_key("k")
            .attribute("a", "1")
            .json(&json!(["unchanged"]));
        let mut bench = transform::<Emitting>(&json!({})).unwrap();
        assert_eq!(bench.run_one(&given), Outcome::Emit(vec![given.to_cloudevent()]));
        let batch = batch_of(std::slice::from_ref(&given));
        let (_, parent) = View::of(&batch).events().next().unwrap();
        let as_emitted = |draft: Draft<'_>| {
            let mut writer = Writer::default();
            writer.column(b"p");
            draft.write_behind_id(&mut writer);
            let batch = writer.finish();
            let (_, event) = View::of(&batch).events().next().unwrap();
            TestEvent::read(&event)
        };
        assert_eq!(as_emitted(parent.draft()), given);
        let changed = as_emitted(
            parent
                .draft()
                .subject("")
                .time_us(None)
                .kind("u")
                .attribute("a", "2")
                .attribute("b", "3")
                .without_attribute("a")
                .attribute("partitionkey", "l")
                .json(&json!({}))
                .unwrap(),
        );
        let expected = TestEvent {
            kind: "u".to_owned(),
            subject: String::new(),
            time_us: None,
            partition_key: "l".to_owned(),
            attributes: vec![("b".to_owned(), "3".to_owned())],
            data: b"{}".to_vec(),
            ..given
        };
        assert_eq!(changed, expected);
    }

    /// Routes as its data says.
    struct Following;

    impl Router for Following {
        type Config = NoConfig;

        fn new(_: NoConfig) -> Result<Self, String> {
            Ok(Self)
        }

        fn route(&mut self, event: &Event<'_>, to: &mut Routes<'_>) -> Result<(), Reject> {
            for step in event.json::<Vec<String>>()? {
                match step.as_str() {
                    "pass" => to.pass(),
                    "drop" => to.nowhere(),
                    "reject" => return Err("on request".into()),
                    topic => to.topic(topic),
                }
            }
            Ok(())
        }
    }

    #[test]
    fn routers_answer_for_each_event() {
        let steps = [
            json!(["a"]),
            json!(["b", "a", "b"]),
            json!([]),
            json!(["a", "pass"]),
            json!(["pass", "c"]),
            json!(["a", "drop"]),
            json!(["a", "reject"]),
            json!(["a"]),
        ];
        let events: Vec<_> = steps.iter().map(|steps| event("t").json(steps)).collect();
        let to = |topics: &[&str]| Outcome::To(topics.iter().map(|topic| (*topic).to_owned()).collect());
        let expected = [
            to(&["a"]),
            to(&["b", "a"]),
            to(&[]),
            Outcome::Pass,
            to(&["c"]),
            to(&[]),
            Outcome::Reject("on request".to_owned()),
            to(&["a"]),
        ];
        assert_eq!(router::<Following>(&json!({})).unwrap().run(&events), expected);
        let answer = router::route(&mut Following, &batch_of(&events));
        assert_eq!(answer.topics, ["a", "b", "c"]);
        assert_eq!(answer.choices, [vec![0], vec![1, 0], vec![], vec![2]]);
        assert_eq!(answer.choice, [0, 1, 2, PASS, 3, 2, PASS, 0]);
    }

    #[test]
    fn cloudevents_come_back_as_they_went() {
        for data in [json!({ "a": [1] }), json!("text"), json!(null)] {
            let mut given =
                event("t").subject("s").time_us(1_000_000).attribute("tenant", "a").json(&data).to_cloudevent();
            assert_eq!(TestEvent::from_cloudevent(&given).unwrap().to_cloudevent(), given);
            given.remove("data");
            assert!(TestEvent::from_cloudevent(&given).unwrap().data.is_empty());
        }
        for length in 0..8u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte * 37).collect();
            assert_eq!(base64_decode(&base64_encode(&bytes)), Some(bytes));
        }
        assert_eq!(base64_encode(b"foob"), "Zm9vYg==");
    }

    #[test]
    #[should_panic = "1 of 1 cases failed\nline 1\n    expected keep\n    but it was dropped"]
    fn failing_cases_fail_the_test() {
        check_cases(r#"{"given": {"type": "other"}, "expect": "keep"}"#, filter::<Sorter>);
    }
}
