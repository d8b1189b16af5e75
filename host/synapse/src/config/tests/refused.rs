//! What is said of a wrong file: one sentence for each fault, at its line.

use insta::assert_snapshot;

use super::refused;

#[test]
fn text_that_is_not_toml() {
    let file = r#"
[server
listen = "127.0.0.1:1"
"#;
    assert_snapshot!(refused(file), @"synapse.toml:1: not TOML: unclosed table, expected `]`");

    let file = r#"
[server]
listen = 
"#;
    assert_snapshot!(refused(file), @"synapse.toml:2: not TOML: string values must be quoted, expected literal string");

    let file = r#"
[server]
listen = 127.0.0.1:8080
"#;
    assert_snapshot!(refused(file), @"synapse.toml:2: not TOML: invalid float; a text stands between quotes");

    let file = r#"
[server]
data = "a"
data = "b"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: not TOML: the key "data" is there twice"#);

    let file = r#"
[topics.bus/x]
partitions = 1
"#;
    assert_snapshot!(refused(file), @"synapse.toml:1: not TOML: invalid unquoted key, expected letters, numbers, `-`, `_`; any other key stands between quotes");

    let file = r#"
[server]
data = "a
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: not TOML: invalid basic string, expected `"`"#);

    let file = r#"
[[pipelines]]
from = ["a", "b"
name = "p"
"#;
    assert_snapshot!(refused(file), @"synapse.toml:3: not TOML: missing comma between array elements, expected `,`");

    let file = r#"
[server]
[server]
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: not TOML: the key "server" is there twice"#);
}

#[test]
fn unknown_keys() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"

[[pipelines.stages]]
plugin = "f.wasm"
on_error = "drop"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:7: pipelines.stages: unknown key "on_error"; did you mean "on-error"?"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
dead_letters = "x"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines: unknown key "dead_letters"; did you mean "dead-letters"?"#);

    let file = r#"
[[pipeline]]
name = "p"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:1: unknown key "pipeline"; did you mean "pipelines"?"#);

    let file = r#"
[server]
listen-on = 1
port = 8080
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: server: unknown key "listen-on"; did you mean "listen"?
    synapse.toml:3: server: unknown key "port"; the keys here are listen, data, default-broker, control, grace
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
parallel = 4
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:6: pipelines.stages: unknown key "parallel"; it is a key of [[pipelines]]"#);

    let file = r#"
[topics.a]
retention = { ages = "7d" }
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: topics.a.retention: unknown key "ages"; did you mean "age"?"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
limits = { cpus = "1s" }
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:6: pipelines.stages.limits: unknown key "cpus"; did you mean "cpu"?"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = { topic = "b", encode = "fields" }
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.to: unknown key "encode"; the keys here are topic, encoding"#);
}

#[test]
fn missing_keys() {
    let file = r#"
[[pipelines]]
tenant = "t"

[[pipelines]]
name = "p"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:1: pipelines: the key "name" is missing
    synapse.toml:1: pipelines: the key "from" is missing
    synapse.toml:4: pipelines: the key "from" is missing
    "#);

    let file = r#"
[brokers.bus]
url = "redis://h"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:1: brokers.bus: the key "kind" is missing"#);

    let file = r#"
[brokers.bus]
kind = "redis"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:1: brokers.bus: a Redis broker needs the key "url", for example "redis://127.0.0.1:6379", or "nodes" for a cluster"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
name = "s"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.stages: the key "plugin" is missing"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = { encoding = "fields" }
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.to: the key "topic" is missing"#);
}

#[test]
fn wrong_kinds_of_value() {
    let file = r#"
server = 1
brokers = true
topics = []
pipelines = "p"
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:1: server: must be a table, not an integer
    synapse.toml:2: brokers: must be a table, not a boolean
    synapse.toml:3: topics: must be a table, not a list
    synapse.toml:4: pipelines: must be a list, not a string
    ");

    let file = r#"
[pipelines]
name = "p"
"#;
    assert_snapshot!(refused(file), @"synapse.toml:1: pipelines: must be a list of tables; write [[pipelines]]");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[pipelines.stages]
plugin = "f.wasm"
"#;
    assert_snapshot!(refused(file), @"synapse.toml:4: pipelines.stages: must be a list of tables; write [[pipelines.stages]]");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
parallel = "4"
read = true
tenant = 1.5
start = 7
to = 3
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:4: pipelines.parallel: must be a whole number, not a string
    synapse.toml:5: pipelines.read: must be a string, not a boolean
    synapse.toml:6: pipelines.tenant: must be a string, not a float
    synapse.toml:7: pipelines.start: must be "earliest", "latest" or a time with its offset, such as "2026-01-31T12:00:00Z", not an integer
    synapse.toml:8: pipelines.to: must be a topic, a list of topics, or a table such as { topic = "bus/events" }, not an integer
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = ["a", 1, { topic = "b" }]
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:3: pipelines.from: must be a string, not an integer
    synapse.toml:3: pipelines.from: must be a string, not a table
    ");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
config = "x"
grants = "state"
limits = []
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:6: pipelines.stages.config: must be a table, not a string
    synapse.toml:7: pipelines.stages.grants: must be a list, not a string
    synapse.toml:8: pipelines.stages.limits: must be a table, not a list
    ");
}

#[test]
fn sizes_and_times() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
limits = { memory = 64, cpu = 100, output = 0.5 }
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.stages.limits.memory: a number alone has no unit; write a unit, for example "64 MiB"
    synapse.toml:6: pipelines.stages.limits.cpu: a number alone has no unit; write a unit, for example "100ms"
    synapse.toml:6: pipelines.stages.limits.output: a number alone has no unit; write a unit, for example "64 MiB"
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
limits = { memory = "64", cpu = "100" }
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.stages.limits.memory: "64" has no unit; write a unit, for example "64 MiB"
    synapse.toml:6: pipelines.stages.limits.cpu: "100" has no unit; write a unit, for example "100ms"
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
limits = { memory = "64 mib", cpu = "3 weeks" }
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.stages.limits.memory: "64 mib" has an unknown unit; did you mean "MiB"?
    synapse.toml:6: pipelines.stages.limits.cpu: "3 weeks" has an unknown unit; the units of a time are us, ms, s, m, h, d
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
limits = { memory = "8 GiB", cpu = "0s", output = "1 B", log-lines = 0 }
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.stages.limits.memory: must be from "64 KiB" to "1 GiB", not "8 GiB"
    synapse.toml:6: pipelines.stages.limits.cpu: must be from "1ms" to "10m", not "0s"
    synapse.toml:6: pipelines.stages.limits.output: must be from "1 KiB" to "1 GiB", not "1 B"
    synapse.toml:6: pipelines.stages.limits.log-lines: must be a whole number from 1 to 1000000, not 0
    "#);

    let file = r#"
[topics.a]
retention = { age = "soon", size = "0 B", events = 0 }
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: topics.a.retention.age: "soon" is not a time; write a whole number and a unit, for example "100ms"
    synapse.toml:2: topics.a.retention.size: must be from "1 B" to "8388608 TiB", not "0 B"
    synapse.toml:2: topics.a.retention.events: must be a whole number at least 1, not 0
    "#);

    let file = r#"
[server]
grace = "2d"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.grace: must be from "0s" to "1h", not "2d""#);

    let file = r#"
[server]
grace = "${SECRET}"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.grace: "${SECRET}" is not a time; write a whole number and a unit, for example "100ms""#);
}

#[test]
fn numbers_out_of_range() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"
parallel = 0
"#;
    assert_snapshot!(refused(file), @"synapse.toml:4: pipelines.parallel: must be a whole number from 1 to 1024, not 0");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
parallel = -1
"#;
    assert_snapshot!(refused(file), @"synapse.toml:4: pipelines.parallel: must be a whole number from 1 to 1024, not -1");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
parallel = 2000
"#;
    assert_snapshot!(refused(file), @"synapse.toml:4: pipelines.parallel: must be a whole number from 1 to 1024, not 2000");

    let file = r#"
[topics.a]
partitions = 0
[topics.b]
partitions = 0x7fffffffffffffff
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:2: topics.a.partitions: must be a whole number from 1 to 10000, not 0
    synapse.toml:4: topics.b.partitions: must be a whole number from 1 to 10000, not 0x7fffffffffffffff
    ");
}

#[test]
fn names() {
    let file = r#"
[[pipelines]]
name = "two words"
tenant = ""
from = "a"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: pipelines.name: "two words" is not a name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)
    synapse.toml:3: pipelines.tenant: "" is not a name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = ["a b", "a/b/c", "/x"]
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:3: pipelines.from: "a b" is not a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)
    synapse.toml:3: pipelines.from: there is no broker "a"; known brokers: "local"
    synapse.toml:3: pipelines.from: "b/c" is not a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)
    synapse.toml:3: pipelines.from: "" is not a broker name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)
    "#);

    let file = r#"
[brokers."b s"]
kind = "memory"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:1: brokers: "b s" is not a broker name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)"#);

    let file = r#"
[topics."a b"]
partitions = 1
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:1: topics."a b": "a b" is not a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: pipelines.from: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…" is not a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: pipelines.from: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…" is too long to add ".dead-letters" to it; write the key "dead-letters""#);
}

#[test]
fn words() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"
read = "curser"
start = "beginning"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:4: pipelines.read: unknown word "curser"; did you mean "cursor"?
    synapse.toml:5: pipelines.start: must be "earliest", "latest" or a time with its offset, such as "2026-01-31T12:00:00Z", not "beginning"
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
read = "exactly-once"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.read: unknown word "exactly-once"; it must be one of "cursor", "group""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
on-error = "dead_letter"
instance = "lanes"
grants = ["stat", "network", "state", "state"]
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.stages.on-error: unknown word "dead_letter"; did you mean "dead-letter"?
    synapse.toml:7: pipelines.stages.instance: unknown word "lanes"; did you mean "lane"?
    synapse.toml:8: pipelines.stages.grants: unknown word "stat"; did you mean "state"?
    synapse.toml:8: pipelines.stages.grants: unknown word "network"; it must be one of "state", "services", "history", "metrics", "secrets", "clock"
    synapse.toml:8: pipelines.stages.grants: the grant "state" is not available in this version
    synapse.toml:8: pipelines.stages.grants: the grant "state" is not available in this version
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = { topic = "b", encoding = "json" }
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.to.encoding: unknown word "json"; it must be one of "cloudevents", "fields""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
start = 2026-01-31T12:00:00
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.start: must be "earliest", "latest" or a time with its offset, such as "2026-01-31T12:00:00Z", not "2026-01-31T12:00:00""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
start = "yesterday"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.start: must be "earliest", "latest" or a time with its offset, such as "2026-01-31T12:00:00Z", not "yesterday""#);
}

#[test]
fn names_given_twice() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"

[[pipelines]]
name = "p"
from = "b"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:6: pipelines.name: the pipeline "p" is already on line 2"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
[[pipelines.stages]]
plugin = "f.wasm"
[[pipelines.stages]]
name = "f"
plugin = "g.wasm"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:7: pipelines.stages.plugin: the stage "f" is already on line 5
    synapse.toml:9: pipelines.stages.name: the stage "f" is already on line 5
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = ["a", "local/a"]
to = ["b", "b"]
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:3: pipelines.from: the topic "local/a" is named twice
    synapse.toml:4: pipelines.to: the topic "b" is named twice
    "#);

    let file = r#"
[topics.a]
partitions = 1
[topics."local/a"]
partitions = 2
"#;
    assert_snapshot!(refused(file), @"synapse.toml:3: topics: the topic local/a is already on line 1");
}

#[test]
fn brokers() {
    let file = r#"
[brokers.bus]
kind = "redis"
url = "redis://127.0.0.1"
[[pipelines]]
name = "p"
from = "bsu/a"
to = "kafka/b"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.from: there is no broker "bsu"; did you mean "bus"?
    synapse.toml:7: pipelines.to: there is no broker "kafka"; known brokers: "bus", "local"
    "#);

    let file = r#"
[server]
default-broker = "bus"
control = "buss/c"

[[pipelines]]
name = "p"
from = "a"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: server.default-broker: there is no broker "bus"; known brokers: "local"
    synapse.toml:3: server.control: there is no broker "buss"; known brokers: "local"
    "#);

    let file = r#"
[topics."bus/a"]
partitions = 1
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:1: topics."bus/a": there is no broker "bus"; known brokers: "local""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
routes = ["bus/alerts", "b s/*", "a b"]
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:6: pipelines.stages.routes: there is no broker "bus"; known brokers: "local"
    synapse.toml:6: pipelines.stages.routes: "b s" is not a broker name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)
    synapse.toml:6: pipelines.stages.routes: "a b" is not a pattern of topics (a-z, A-Z, 0-9, `-`, `_`, `.`, `:`, with `*` for any run but `.` and `**` for any run)
    "#);

    let file = r#"
[brokers.local]
kind = "memory"
[brokers.archive]
kind = "embedded"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: brokers.local.kind: "local" is always the embedded broker; give this one another name
    synapse.toml:4: brokers.archive.kind: there is one embedded broker, and its name is "local"
    "#);

    let file = r#"
[brokers.bus]
kind = "redis"
url = "rediss://:${SECRET}@redis.internal"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: brokers.bus.url: TLS to a Redis server ("rediss://") is not available in this version"#);

    let file = r#"
[brokers.bus]
kind = "redis"
url = "http://user:hunter2@h"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: brokers.bus.url: is not the address of a Redis server, such as "redis://127.0.0.1:6379" or "redis+unix:///run/redis.sock""#);

    let file = r#"
[brokers.bus]
kind = "redis"
url = "redis://h"
lease = "1ms"
[brokers.m]
kind = "memory"
url = "redis://h"
lease = "1s"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:4: brokers.bus.lease: must be from "100ms" to "10m", not "1ms"
    synapse.toml:7: brokers.m.url: is for Redis brokers only
    synapse.toml:8: brokers.m.lease: is for Redis and Kafka brokers only
    "#);

    let file = r#"
[brokers.both]
kind = "redis"
url = "redis://h"
nodes = ["redis://h"]
[brokers.none]
kind = "redis"
nodes = []
[brokers.bus]
kind = "redis"
nodes = ["redis://h:7000", "h:7001", "redis://:hunter2@h:7002/3", "redis+unix:///run/redis.sock"]
[brokers.m]
kind = "memory"
nodes = ["redis://h"]
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:4: brokers.both.nodes: a Redis broker has "url" (one server) or "nodes" (a cluster), not both
    synapse.toml:7: brokers.none.nodes: must name at least one node of the cluster
    synapse.toml:10: brokers.bus.nodes: is not the address of a Redis server, such as "redis://127.0.0.1:6379" or "redis+unix:///run/redis.sock"
    synapse.toml:10: brokers.bus.nodes: a node of a cluster is written "redis://[user:password@]host:port", without a database
    synapse.toml:10: brokers.bus.nodes: a node of a cluster is written "redis://[user:password@]host:port", without a database
    synapse.toml:13: brokers.m.nodes: is for Redis brokers only
    "#);

    let file = r#"
[brokers.bus]
kind = "rabbit"
[brokers.b]
kind = "rediss"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: brokers.bus.kind: unknown word "rabbit"; it must be one of "embedded", "redis", "kafka", "memory"
    synapse.toml:4: brokers.b.kind: unknown word "rediss"; did you mean "redis"?
    "#);
}

#[test]
fn pipelines_that_cannot_be() {
    let file = r#"
[[pipelines]]
name = "p"
from = []
"#;
    assert_snapshot!(refused(file), @"synapse.toml:3: pipelines.from: must name at least one topic");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = ["b", "a"]
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.to: "a" is also read by this pipeline, so its events would go round for ever"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
dead-letters = "local/a"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.dead-letters: "local/a" is also read by this pipeline, so its dead letters would go round for ever"#);

    let file = r#"
[[pipelines]]
name = "p"
from = ["a", "a.dead-letters"]
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: pipelines.from: "a.dead-letters" is where this pipeline's dead letters go, so they would go round for ever; write the key "dead-letters""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
read = "group"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:4: pipelines.read: "group" is for Redis only, and this pipeline reads from a broker of another kind; write "cursor" or leave the key out"#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = "_synapse"
dead-letters = "_synapse"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:4: pipelines.to: "_synapse" is the control topic, which only the host writes
    synapse.toml:5: pipelines.dead-letters: "_synapse" is the control topic, which only the host writes
    "#);
}

#[test]
fn plugins() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "ready-only@1.2.0"
[[pipelines.stages]]
plugin = "ready-only@^1"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:5: pipelines.stages.plugin: "ready-only@1.2.0" is in the registry; plugins from the registry are not available in this version; write the path of a .wasm file
    synapse.toml:7: pipelines.stages.plugin: "ready-only@^1" is in the registry; plugins from the registry are not available in this version; write the path of a .wasm file
    "#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "ready-only"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:5: pipelines.stages.plugin: "ready-only" is not the path of a plugin, such as "plugins/ready_only.wasm""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "plugins/"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:5: pipelines.stages.plugin: "plugins/" is not the path of a plugin, such as "plugins/ready_only.wasm""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "my plugin.wasm"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:5: pipelines.stages.plugin: a stage cannot be called after this file; write the key "name""#);

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
[[pipelines.stages]]
plugin = "f.wasm"
config = { far = inf, deep = { list = [nan] } }
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:6: pipelines.stages.config.far: is a number that JSON cannot hold
    synapse.toml:6: pipelines.stages.config.deep.list: is a number that JSON cannot hold
    ");
}

#[test]
fn listening() {
    let file = r#"
[server]
listen = "0.0.0.0:8080"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.listen: "0.0.0.0:8080" can be reached from outside, but without API keys the host only binds to loopback; write "127.0.0.1:8080""#);

    let file = r#"
[server]
listen = "[::]:9000"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.listen: "[::]:9000" can be reached from outside, but without API keys the host only binds to loopback; write "127.0.0.1:9000""#);

    let file = r#"
[server]
listen = "8080"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.listen: "8080" is not an address and a port, such as "127.0.0.1:8080""#);

    let file = r#"
[server]
data = ""
"#;
    assert_snapshot!(refused(file), @"synapse.toml:2: server.data: must name a directory");
}

#[test]
fn environment() {
    let file = r#"
[server]
data = "a/${NOWHERE}"
"#;
    assert_snapshot!(refused(file), @"synapse.toml:2: server.data: the environment variable NOWHERE is not set; set it, or write a default: ${NOWHERE:-default}");

    let file = r#"
[server]
data = "${no such}"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.data: "no such" is not the name of an environment variable; write ${NAME} or ${NAME:-default}"#);

    let file = r#"
[server]
data = "${HOST"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:2: server.data: "${" has no closing "}"; write "$${" for the characters themselves"#);

    let file = r#"
[server]
listen = "${SECRET}"
default-broker = "${SECRET_NAME}"
control = "${SECRET_TOPIC}"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: server.listen: "${SECRET}" is not an address and a port, such as "127.0.0.1:8080"
    synapse.toml:3: server.default-broker: there is no broker "${SECRET_NAME}"; known brokers: "local"
    synapse.toml:4: server.control: there is no broker "${SECRET_TOPIC}"; known brokers: "local"
    "#);

    let file = r#"
[brokers.bus]
kind = "redis"
url = "redis//:${SECRET}@h"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:3: brokers.bus.url: is not the address of a Redis server, such as "redis://127.0.0.1:6379" or "redis+unix:///run/redis.sock""#);

    let file = r#"
[[pipelines]]
name = "${SECRET}"
from = ["${SECRET_TOPIC}", "${SECRET}"]
read = "${SECRET}"
start = "${SECRET}"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: pipelines.name: "${SECRET}" is not a name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)
    synapse.toml:3: pipelines.from: there is no broker "${SECRET_TOPIC}"; known brokers: "local"
    synapse.toml:3: pipelines.from: "${SECRET}" is not a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)
    synapse.toml:4: pipelines.read: unknown word "${SECRET}"; it must be one of "cursor", "group"
    synapse.toml:5: pipelines.start: must be "earliest", "latest" or a time with its offset, such as "2026-01-31T12:00:00Z", not "${SECRET}"
    "#);

    let file = r#"
[[pipelines]]
name = "${SECRET_NAME}"
from = "a"
[[pipelines]]
name = "${SECRET_NAME}"
from = "${SECRET_NAME}"
to = "${SECRET_NAME}"
[[pipelines.stages]]
plugin = "${SECRET_NAME}"
routes = ["${SECRET_NAME}/x", "a ${SECRET}"]
limits = { cpu = "${SECRET}" }
config = { key = "${NOWHERE}" }
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:5: pipelines.name: the pipeline "${SECRET_NAME}" is already on line 2
    synapse.toml:7: pipelines.to: "${SECRET_NAME}" is also read by this pipeline, so its events would go round for ever
    synapse.toml:9: pipelines.stages.plugin: "${SECRET_NAME}" is not the path of a plugin, such as "plugins/ready_only.wasm"
    synapse.toml:10: pipelines.stages.routes: there is no broker "${SECRET_NAME}/x"; known brokers: "local"
    synapse.toml:10: pipelines.stages.routes: "a ${SECRET}" is not a pattern of topics (a-z, A-Z, 0-9, `-`, `_`, `.`, `:`, with `*` for any run but `.` and `**` for any run)
    synapse.toml:11: pipelines.stages.limits.cpu: "${SECRET}" is not a time; write a whole number and a unit, for example "100ms"
    synapse.toml:12: pipelines.stages.config.key: the environment variable NOWHERE is not set; set it, or write a default: ${NOWHERE:-default}
    "#);
}

#[test]
fn what_a_later_version_will_have() {
    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = { webhook = "https://example.com" }
"#;
    assert_snapshot!(refused(file), @"synapse.toml:4: pipelines.to: webhook sinks are not available in this version");

    let file = r#"
[[pipelines]]
name = "p"
from = "a"
to = ["b", { webhook = "https://example.com" }]
"#;
    assert_snapshot!(refused(file), @"synapse.toml:4: pipelines.to: webhook sinks are not available in this version");

    let file = r#"
[brokers.k]
kind = "kafka"
bootstrap = "h:9092"
[brokers.k.client]
"linger.ms" = 5

[[pipelines]]
name = "p"
from = "k/a"
read = "group"
"#;
    assert_snapshot!(refused(file), @r#"synapse.toml:10: pipelines.read: "group" is for Redis only, and this pipeline reads from a broker of another kind; write "cursor" or leave the key out"#);

    let file = r#"
[brokers.k]
kind = "kafka"
bootstrap = "h, g:port"
lease = "1ms"
delivery = "twice"
url = "redis://h"
[brokers.k.client]
group.id = "mine"
"isolation.level" = "read_uncommitted"
"topic.auto.offset.reset" = "latest"
"linger.ms" = 1.5
sasl.password = "${SECRET}"
compresion.type = "lz4"
compression.type = "${SECRET}"
session.timeout.ms = 6000
[brokers.j]
kind = "kafka"
[brokers.r]
kind = "redis"
url = "redis://h"
bootstrap = "h:9092"
client = {}
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:3: brokers.k.bootstrap: must be servers such as "127.0.0.1:9092", not "h, g:port"
    synapse.toml:4: brokers.k.lease: must be from "1s" to "10m", not "1ms"
    synapse.toml:5: brokers.k.delivery: unknown word "twice"; it must be one of "exactly-once", "at-least-once"
    synapse.toml:6: brokers.k.url: is for Redis brokers only
    synapse.toml:8: brokers.k.client."group.id": is set by Synapse itself: a pipeline's group has the pipeline's name
    synapse.toml:9: brokers.k.client."isolation.level": is set by Synapse itself: events of transactions that were given up must not be read
    synapse.toml:10: brokers.k.client."topic.auto.offset.reset": is set by Synapse itself: it is `start` of the pipeline; nothing is skipped silently
    synapse.toml:11: brokers.k.client."linger.ms": must be a string, an integer or a boolean, not a float
    synapse.toml:13: brokers.k.client."compresion.type": is no property of librdkafka; see https://docs.confluent.io/platform/current/clients/librdkafka/html/md_CONFIGURATION.html
    synapse.toml:14: brokers.k.client."compression.type": cannot have this value, says librdkafka; see https://docs.confluent.io/platform/current/clients/librdkafka/html/md_CONFIGURATION.html
    synapse.toml:15: brokers.k.client."session.timeout.ms": is set by Synapse itself: it is `lease` of the broker
    synapse.toml:16: brokers.j: a Kafka broker needs the key "bootstrap", for example "127.0.0.1:9092"
    synapse.toml:21: brokers.r.bootstrap: is for Kafka brokers only
    synapse.toml:22: brokers.r.client: is for Kafka brokers only
    "#);

    let file = r#"
[brokers.k]
kind = "kafka"
bootstrap = "h:9092"
lease = "10s"
client."max.poll.interval.ms" = 5000
[brokers.j]
kind = "kafka"
bootstrap = "h:9092"
[brokers.j.client]
"linger.ms" = 5
"queue.buffering.max.ms" = 6
"message.send.max.retries" = 7
"retries" = 8
"ssl.ca.location" = "no-such.pem"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:5: brokers.k.client: `max.poll.interval.ms` must not be shorter than `lease`, which is 10s
    synapse.toml:11: brokers.j.client."queue.buffering.max.ms": is the same property as "linger.ms", which is set, too
    synapse.toml:13: brokers.j.client.retries: is the same property as "message.send.max.retries", which is set, too
    synapse.toml:14: brokers.j.client."ssl.ca.location": there is no file /etc/synapse/no-such.pem
    "#);

    let file = r#"
[server]
default-broker = "k"
[brokers.k]
kind = "kafka"
bootstrap = "h:9092"
[topics."local/a:b"]
[topics."k/a:b"]
[[pipelines]]
name = "p"
from = "k/synapse.in"
to = "a:c"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:7: topics."k/a:b": "a:b" cannot be a topic on Kafka: names on Kafka have no `:`
    synapse.toml:10: pipelines.from: "synapse.in" cannot be a topic on Kafka: names that begin with `synapse.` are kept for Synapse itself
    synapse.toml:11: pipelines.to: "a:c" cannot be a topic on Kafka: names on Kafka have no `:`
    "#);

    let file = r#"
[topics.a]
schemas = ["modelkit"]
history = true
[topics.b]
schemas = ["modelkit"]
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:2: topics.a.schemas: checking events against schemas is not available in this version
    synapse.toml:3: topics.a.history: keeping history of topics beyond their broker is not available in this version
    synapse.toml:5: topics.b.schemas: checking events against schemas is not available in this version
    ");

    let file = r#"
history = true
[tenants.helox]
limits = { memory = "1 MiB" }
"#;
    assert_snapshot!(refused(file), @r"
    synapse.toml:1: history: keeping history of topics beyond their broker is not available in this version
    synapse.toml:2: tenants: limits by tenant are not available in this version
    ");
}

#[test]
fn everything_at_once() {
    let file = r#"
[server]
lisen = "127.0.0.1:8080"
grace = 10

[brokers.bus]
kind = "redis"
url = "redis://${NOWHERE}"

[[pipelines]]
name = "one"
from = "bus/a"
to = "buss/b"
parallel = 0

[[pipelines]]
name = "one"
from = ["a", "x y"]
to = "a"

[[pipelines.stages]]
plugin = "f.wasm"
limits = { memory = 16 }
on-error = "ignore"
"#;
    assert_snapshot!(refused(file), @r#"
    synapse.toml:2: server: unknown key "lisen"; did you mean "listen"?
    synapse.toml:3: server.grace: a number alone has no unit; write a unit, for example "100ms"
    synapse.toml:7: brokers.bus.url: the environment variable NOWHERE is not set; set it, or write a default: ${NOWHERE:-default}
    synapse.toml:12: pipelines.to: there is no broker "buss"; did you mean "bus"?
    synapse.toml:13: pipelines.parallel: must be a whole number from 1 to 1024, not 0
    synapse.toml:16: pipelines.name: the pipeline "one" is already on line 10
    synapse.toml:17: pipelines.from: "x y" is not a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)
    synapse.toml:22: pipelines.stages.limits.memory: a number alone has no unit; write a unit, for example "64 MiB"
    synapse.toml:23: pipelines.stages.on-error: unknown word "ignore"; it must be one of "dead-letter", "drop", "pass", "stop"
    "#);
}
