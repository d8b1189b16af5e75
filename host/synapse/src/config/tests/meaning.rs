//! What a right file means, and how two differ.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use synapse_core::spec::{Encoding, InstanceMode, OnError, PluginRef, ReadMode, Retention, SinkSpec, Start};

use super::super::{BrokerSpec, Change, Error, load, schema};
use super::{accepted, parse};

/// Every key there is, with a value other than its default.
const FULL: &str = r#"
[server]
listen = "127.0.0.1:9090"
data = "state"
default-broker = "bus"
control = "bus/_control"
grace = "30s"

[brokers.bus]
kind = "redis"
url = "redis://:${SECRET}@${HOST}:${PORT:-6379}"
lease = "5s"

[brokers.scratch]
kind = "memory"

[topics."bus/model-events"]
partitions = 4
retention = { age = "7d", size = "10 GiB", events = 1_000_000 }

[topics.alerts]
partitions = 2

[[pipelines]]
name = "ready-models"
tenant = "helox"
from = ["${TOPIC}", "local/backfill"]
to = ["platform-events", { topic = "scratch/copy", encoding = "fields" }]
dead-letters = "bus/dead"
parallel = 4
start = "2026-01-31T12:00:00Z"

[[pipelines.stages]]
name = "ready"
plugin = "plugins/ready_only.wasm"
config = { min-accuracy = 0.9, name = "${EMPTY:-m}", literal = "$${HOST}", on = 2026-01-31, deep = { list = [1, true] } }
grants = []
routes = ["platform-*", "local/**"]
limits = { memory = "16 MiB", cpu = "20ms", output = "1 MiB", log-lines = 10 }
on-error = "drop"
instance = "batch"

[[pipelines.stages]]
plugin = "/opt/other_one.wasm"

[[pipelines]]
name = "shared"
from = "jobs"
to = { topic = "done" }
read = "group"
start = 2026-01-31T13:00:00+01:00
"#;

#[test]
fn every_key_says_what_it_says() {
    let spec = accepted(FULL);
    assert_eq!(spec.listen, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(spec.data, Path::new("/etc/synapse/state"));
    assert_eq!(spec.default_broker.as_str(), "bus");
    assert_eq!(spec.control.to_string(), "bus/_control");
    assert_eq!(spec.grace, Duration::from_secs(30));

    let BrokerSpec::Redis { url, lease } = &spec.brokers[&"bus".parse().unwrap()] else { panic!("it is Redis") };
    assert_eq!(url.expose(), "redis://:hunter2!@redis.example:6379");
    assert_eq!(*lease, Duration::from_secs(5));
    assert_eq!(spec.brokers[&"scratch".parse().unwrap()], BrokerSpec::Memory);
    assert_eq!(spec.brokers[&"local".parse().unwrap()], BrokerSpec::Embedded);

    let kept = spec.topic(&"bus/model-events".parse().unwrap());
    assert_eq!(kept.partitions.get(), 4);
    let week = Some(Duration::from_secs(7 * 86_400));
    assert_eq!(kept.retention, Retention { age: week, bytes: Some(10 << 30), events: Some(1_000_000) });
    assert_eq!(spec.topic(&"bus/alerts".parse().unwrap()).partitions.get(), 2);
    assert_eq!(spec.topic(&"bus/unnamed".parse().unwrap()), Default::default());
}

#[test]
fn every_key_of_a_pipeline_says_what_it_says() {
    let spec = accepted(FULL);
    let [ready, shared] = spec.pipelines.as_slice() else { panic!("there are two") };
    assert_eq!((ready.name.as_str(), ready.tenant.as_str()), ("ready-models", "helox"));
    assert_eq!(ready.from, ["bus/model-events", "local/backfill"].map(|topic| topic.parse().unwrap()));
    let sink = |topic: &str, encoding| SinkSpec { topic: topic.parse().unwrap(), encoding };
    let sinks = [sink("bus/platform-events", Encoding::CloudEvents), sink("scratch/copy", Encoding::Fields)];
    assert_eq!(ready.to, sinks);
    assert_eq!(ready.dead_letters.to_string(), "bus/dead");
    assert_eq!((ready.read, ready.parallel.get()), (ReadMode::Cursor, 4));
    assert_eq!(ready.start, Start::Time("2026-01-31T12:00:00Z".parse().unwrap()));
    assert_eq!((shared.read, shared.start), (ReadMode::Group, ready.start));
    assert_eq!(shared.to, [sink("bus/done", Encoding::CloudEvents)]);
    assert_eq!(shared.dead_letters.to_string(), "bus/jobs.dead-letters");

    let stage = &ready.stages[0];
    assert_eq!(stage.name.as_str(), "ready");
    assert_eq!(stage.plugin, PluginRef::File(PathBuf::from("/etc/synapse/plugins/ready_only.wasm")));
    let config = json!({
        "min-accuracy": 0.9, "name": "m", "literal": "${HOST}", "on": "2026-01-31", "deep": { "list": [1, true] },
    });
    assert_eq!(stage.config, config);
    assert_eq!(stage.grants, [""; 0]);
    let allows = |topic: &str| stage.routes.iter().any(|route| route.allows(&topic.parse().unwrap()));
    assert!(allows("bus/platform-events") && allows("local/any.thing"));
    assert!(!allows("local2/platform-events") && !allows("bus/alerts"));
    assert_eq!(stage.limits.memory_bytes_max, 16 << 20);
    assert_eq!(stage.limits.cpu_max, Duration::from_millis(20));
    assert_eq!(stage.limits.output_bytes_max, 1 << 20);
    assert_eq!(stage.limits.log_lines_per_second_max.get(), 10);
    assert_eq!((stage.on_error, stage.instance), (OnError::Drop, InstanceMode::Batch));
}

#[test]
fn what_is_left_out_has_a_default() {
    let spec = accepted("");
    assert_eq!(spec.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(spec.data, Path::new("/etc/synapse/data"));
    assert_eq!((spec.default_broker.as_str(), spec.control.to_string().as_str()), ("local", "local/_synapse"));
    assert_eq!(spec.grace, Duration::from_secs(10));
    assert_eq!(spec.brokers.len(), 1);

    let spec = accepted("[[pipelines]]\nname = \"p\"\nfrom = \"a\"\n[[pipelines.stages]]\nplugin = \"my_plugin.wasm\"");
    let pipeline = &spec.pipelines[0];
    assert_eq!(pipeline.tenant.as_str(), "default");
    assert_eq!(pipeline.to, []);
    assert_eq!(pipeline.dead_letters.to_string(), "local/a.dead-letters");
    assert_eq!((pipeline.read, pipeline.parallel.get(), pipeline.start), (ReadMode::Cursor, 1, Start::Earliest));
    let stage = &pipeline.stages[0];
    assert_eq!((stage.name.as_str(), &stage.config), ("my-plugin", &json!({})));
    assert_eq!((stage.limits, stage.on_error), (Default::default(), OnError::DeadLetter));

    let redis = accepted("[brokers.bus]\nkind = \"redis\"\nurl = \"redis+unix:///run/redis.sock\"");
    let BrokerSpec::Redis { lease, .. } = &redis.brokers[&"bus".parse().unwrap()] else { panic!("it is Redis") };
    assert_eq!(*lease, Duration::from_secs(15));

    let file =
        "[brokers.bus]\nkind = \"redis\"\nnodes = [\"redis://:s@h1:7000\", \"redis://:s@h2:7000\"]\nlease = \"2s\"";
    let cluster = accepted(file);
    let BrokerSpec::RedisCluster { nodes, lease } = &cluster.brokers[&"bus".parse().unwrap()] else {
        panic!("it is a cluster")
    };
    let urls: Vec<_> = nodes.iter().map(|node| node.expose()).collect();
    assert_eq!((urls, *lease), (vec!["redis://:s@h1:7000", "redis://:s@h2:7000"], Duration::from_secs(2)));
}

#[test]
fn a_kafka_broker_has_properties_whose_values_are_not_printed() {
    let spec = accepted(
        "[brokers.k]\nkind = \"kafka\"\nbootstrap = \"h:9092, g:9092\"\n[brokers.k.client]\nlinger.ms = 5\n\
         \"enable.ssl.certificate.verification\" = false\nsasl.password = \"${SECRET}\"\n\
         ssl.ca.location = \"/etc/passwd\"",
    );
    let BrokerSpec::Kafka(super::super::KafkaSpec { bootstrap, lease, exactly_once, client }) =
        &spec.brokers[&"k".parse().unwrap()]
    else {
        panic!("it is Kafka")
    };
    assert_eq!((bootstrap.as_str(), *lease, *exactly_once), ("h:9092,g:9092", Duration::from_secs(15), true));
    let properties: Vec<_> = client.expose().iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("enable.ssl.certificate.verification", "false"),
        ("linger.ms", "5"),
        ("sasl.password", "hunter2!"),
        ("ssl.ca.location", "/etc/passwd"),
    ];
    assert_eq!(properties, expected);
    assert!(!format!("{spec:?}").contains("hunter2"));
}

#[test]
fn files_of_other_systems_are_read() {
    assert_eq!(accepted("\u{feff}[server]\r\ndata = \"x\"\r\n"), accepted("[server]\ndata = \"x\""));
}

#[test]
fn the_local_broker_may_be_written_down() {
    assert_eq!(accepted("[brokers.local]\nkind = \"embedded\""), accepted(""));
}

#[test]
fn loopback_has_several_names() {
    for listen in ["127.0.0.1:0", "127.8.8.8:80", "[::1]:8080", "localhost:8080", "[::ffff:127.0.0.1]:1"] {
        accepted(&format!("[server]\nlisten = \"{listen}\""));
    }
}

#[test]
fn an_address_is_printed_without_its_password() {
    let spec = accepted(FULL);
    assert!(!format!("{:?}", spec.brokers).contains("hunter2"));
    let shown = |url: &str| super::super::BrokerUrl(url.to_owned()).to_string();
    assert_eq!(shown("redis://user:p@ss/w@host:6379/1?x=y"), "redis://***@host:6379/1");
    assert_eq!(shown("redis+unix:///run/redis.sock?pass=hunter2"), "redis+unix:///run/redis.sock");
    assert_eq!(shown("redis://host"), "redis://host");
}

#[test]
fn a_file_is_read_beside_its_plugins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synapse.toml");
    std::fs::write(&path, "[[pipelines]]\nname = \"p\"\nfrom = \"a\"\nstages = [{ plugin = \"x.wasm\" }]\n").unwrap();
    let spec = load(&path).unwrap();
    assert_eq!(spec.pipelines[0].stages[0].plugin, PluginRef::File(folder.path().join("x.wasm")));

    std::fs::write(&path, b"[server]\ndata = \"\xff\"\n").unwrap();
    let error = load(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("{}:2: not TOML: a byte that is not UTF-8", path.display()));

    let missing = folder.path().join("none.toml");
    let error = load(&missing).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }));
    let expected = "the configuration could not be read: No such file or directory (os error 2)";
    assert_eq!(error.to_string(), format!("{}: {expected}", missing.display()));
}

#[test]
fn a_problem_knows_its_line_and_column() {
    let problems = parse("# ä\r\n[server]\r\n\"ö\" = { listen = 1 }\r\n").unwrap_err();
    assert_eq!((problems[0].line, problems[0].column), (3, 1));
    let problems = parse("[server]\ngrace = \"ä\"").unwrap_err();
    assert_eq!((problems[0].line, problems[0].column), (2, 9));
}

#[test]
fn only_what_differs_is_touched() {
    let old = accepted(FULL);
    assert_eq!(old.diff(&old.clone()), Change::default());

    let comment = accepted(&format!("# a comment\n{}", FULL.replace("16 MiB", "16384 KiB")));
    assert_eq!(old.diff(&comment), Change::default());

    let new = accepted(
        &FULL
            .replace("name = \"shared\"", "name = \"third\"")
            .replace("parallel = 4", "parallel = 2")
            .replace("age = \"7d\"", "age = \"8d\"")
            .replace("[brokers.scratch]", "[brokers.more]\nkind = \"memory\"\n[brokers.scratch]")
            .replace("grace = \"30s\"", "grace = \"5s\""),
    );
    let change = Change {
        added: vec!["third".parse().unwrap()],
        removed: vec!["shared".parse().unwrap()],
        changed: vec!["ready-models".parse().unwrap()],
        brokers_added: vec!["more".parse().unwrap()],
        topics: vec!["bus/model-events".parse().unwrap()],
        needs_restart: Vec::new(),
    };
    assert_eq!(old.diff(&new), change);
    let used = old.while_running(new.clone());
    assert_eq!(used.grace, Duration::from_secs(5));
    assert_eq!(old.diff(&used), change);
}

#[test]
fn what_needs_a_restart_is_named() {
    let old = accepted(FULL);
    let new = accepted(
        &FULL
            .replace("9090", "9091")
            .replace("data = \"state\"", "data = \"elsewhere\"")
            .replace("default-broker = \"bus\"", "default-broker = \"local\"")
            .replace("control = \"bus/_control\"", "")
            .replace("lease = \"5s\"", "lease = \"6s\"")
            .replace("partitions = 4", "partitions = 8")
            .replace("read = \"group\"", ""),
    );
    let expected = [
        "server.listen",
        "server.data",
        "server.default-broker",
        "server.control",
        "brokers.bus",
        "topics.\"bus/alerts\".partitions",
        "topics.\"bus/model-events\".partitions",
        "topics.\"local/alerts\".partitions",
    ];
    assert_eq!(old.diff(&new).needs_restart, expected);
    let used = old.while_running(new.clone());
    assert_eq!(old.diff(&used).needs_restart, [""; 0]);
    assert_eq!(used.pipelines, new.pipelines);
}

/// Run with `UPDATE_SCHEMA=1` to write the file anew.
#[test]
fn the_schema_on_file_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/synapse.schema.json");
    let made = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap() == made,
        "docs/synapse.schema.json is old; run with UPDATE_SCHEMA=1"
    );
}

#[test]
fn every_example_of_the_documentation_is_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let examples: Vec<_> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 4, "{}", examples.len());
    for example in examples {
        accepted(example);
    }
}

/// A key that the documentation does not name is a key that nobody finds.
#[test]
fn every_key_is_documented() {
    fn keys(schema: &serde_json::Value, found: &mut Vec<String>) {
        if let Some(properties) = schema.get("properties").and_then(|properties| properties.as_object()) {
            found.extend(properties.keys().cloned());
        }
        match schema {
            serde_json::Value::Object(members) => members.values().for_each(|member| keys(member, found)),
            serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
            _ => {}
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    keys(&schema(), &mut found);
    assert!(found.len() > 30, "{found:?}");
    for key in found {
        assert!(text.contains(&format!("`{key}`")), "docs/configuration.md does not name `{key}`");
    }
}

#[test]
fn deep_nesting_is_refused_not_survived_by_luck() {
    let deep = ["[", "{ a = ", "a."].map(|piece| format!("x = {}", piece.repeat(200_000)));
    let keys = [format!("{} = 1", vec!["a"; 200_000].join(".")), format!("[{}]", vec!["a"; 200_000].join("."))];
    for text in deep.iter().chain(&keys) {
        parse(text).unwrap_err();
    }
}

/// Something that looks like a configuration: lines and pieces of the full one, with damage.
fn damaged() -> impl Strategy<Value = String> {
    let pieces: Vec<&str> = FULL.split_inclusive(['\n', ' ', '"', '=', ',']).collect();
    let piece = prop_oneof![
        8 => prop::sample::select(pieces),
        1 => prop::sample::select(vec!["[", "]", "[[", "{", "}", "\"", "${", "$${", "}", "1", "nan", "\u{feff}", "\r\n", ".", "'''"]),
        1 => Just("\n"),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_damaged_file_panics(text in damaged()) {
        let lines = text.lines().count().max(1);
        for problem in parse(&text).err().into_iter().flatten() {
            prop_assert!((1..=lines + 1).contains(&problem.line), "{problem}");
            prop_assert!(!problem.message.contains('\n'), "{problem}");
        }
    }

    #[test]
    fn one_wrong_byte_panics_nothing(at in 0..FULL.len(), byte in "[\\x20-\\x7e\n]") {
        let mut text = FULL.to_owned();
        text.replace_range(at..=at, &byte);
        let _ = parse(&text);
    }
}
