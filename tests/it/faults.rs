//! What goes wrong with one event, one file or one line of configuration costs just that.

use std::collections::BTreeMap;

use serde_json::Value;
use synapse_test_servers::kafka::Kafka;
use synapse_tests::host::Host;
use synapse_tests::plugins::component;
use synapse_tests::redis::RedisServer;

fn event(id: usize, kind: &str) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/t","type":"{kind}","partitionkey":"k","data":{{"n":{id}}}}}"#
    ) + "\n"
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn count(host: &Host, topic: &str) -> anyhow::Result<u64> {
    let (status, body) = host.get(&format!("/v1/topics/{topic}"))?;
    if status == 404 {
        return Ok(0);
    }
    Ok(serde_json::from_str::<Value>(&body)?["events"].as_u64().unwrap_or_default())
}

#[test]
fn an_event_that_a_plugin_fails_on_costs_one_event() {
    let plugin = component("tests/plugins/picky");
    let host = Host::start(&format!(
        r#"
        [[pipelines]]
        name = "p"
        from = "in"
        to = "out"
        [[pipelines.stages]]
        name = "picky"
        plugin = {plugin:?}
        limits = {{ cpu = "20ms", memory = "8 MiB" }}
        "#
    ))
    .unwrap();
    let odd = BTreeMap::from([(17, "panic"), (40, "loop"), (41, "reject"), (77, "bomb"), (90, "panic"), (120, "drop")]);
    let lines: String = (0..200).map(|id| event(id, odd.get(&id).copied().unwrap_or("fine"))).collect();
    assert_eq!(host.publish("in", &lines).unwrap().0, 202);
    host.wait_for("all events", |host| {
        Ok((count(host, "out")? == 194 && count(host, "in.dead-letters")? == 5).then_some(()))
    })
    .unwrap();
    let out = ids(&host.history("out").unwrap());
    let expected: Vec<String> = (0..200).filter(|id| !odd.contains_key(id)).map(|id| id.to_string()).collect();
    assert_eq!(out, expected, "the others go on, in order");
    let dead = host.history("in.dead-letters").unwrap();
    let told: Vec<(&str, &str)> =
        dead.iter().map(|event| (event["id"].as_str().unwrap(), event["dlkind"].as_str().unwrap())).collect();
    assert_eq!(told, [("17", "trap"), ("40", "deadline"), ("41", "rejected"), ("77", "memory"), ("90", "trap")]);
    assert!(dead[0]["dlreason"].as_str().unwrap().contains("it was told to"), "{}", dead[0]);
    assert_eq!(dead[0]["data"]["n"], 17, "the payload is kept");
    assert_eq!(dead[0]["dlposition"], "local/in/0/17");
    assert_eq!(host.metric("synapse_stage_failures_total", "kind=\"deadline\"").unwrap(), 1.0);
}

#[test]
fn every_encoding_on_redis_is_read_and_what_is_none_becomes_a_dead_letter() {
    let server = RedisServer::start().unwrap();
    let url = server.url();
    let mut connection = server.client().unwrap().get_connection().unwrap();
    let mut add = |fields: &[&str]| {
        redis::cmd("XADD").arg("model-events").arg("*").arg(fields).query::<String>(&mut connection).unwrap()
    };
    add(&[
        "event",
        "model-ready",
        "timestamp",
        "2026-01-01T00:00:00Z",
        "source",
        "helox",
        "model_name",
        "m",
        "version",
        "1.2.0",
        "registry_path",
        "s3://m",
        "metadata",
        r#"{"framework":"torch"}"#,
        "accuracy",
        "0.93",
    ]);
    add(&[
        "event_type",
        "model-ready",
        "sender",
        "sidecar",
        "recipient",
        "cyrex",
        "payload",
        r#"{"model_name":"m"}"#,
        "timestamp",
        "2026-01-01T00:00:00.123456789Z",
    ]);
    add(&["payload", r#"{"event":"model-ready","source":"helox","model_name":"m"}"#]);
    add(&["ce_specversion", "1.0", "ce_id", "own", "ce_source", "/helox", "ce_type", "model-ready", "data", "{}"]);
    let garbage = add(&["what", "is this?"]);
    let host = Host::start(&format!(
        r#"
        [brokers.bus]
        kind = "redis"
        url = {url:?}
        [[pipelines]]
        name = "copy"
        from = "bus/model-events"
        to = "local/models"
        dead-letters = "local/dead"
        "#
    ))
    .unwrap();
    host.wait_for("the events", |host| Ok((count(host, "models")? == 4 && count(host, "dead")? == 1).then_some(())))
        .unwrap();
    let models = host.history("models").unwrap();
    assert!(models.iter().all(|event| event["type"] == "model-ready"), "{models:?}");
    assert_eq!(models[0]["source"], "helox");
    assert_eq!(models[0]["data"]["accuracy"], 0.93, "a number where the schema says number");
    assert_eq!(models[0]["data"]["metadata"]["framework"], "torch");
    assert_eq!((&models[1]["source"], &models[1]["subject"]), (&"sidecar".into(), &"cyrex".into()));
    assert_eq!(models[3]["id"], "own");
    let dead = &host.history("dead").unwrap()[0];
    assert_eq!((&dead["type"], &dead["dlkind"]), (&"synapse.undecodable".into(), &"undecodable".into()));
    assert_eq!(dead["dlposition"], format!("bus/model-events/0/{garbage}"));
    // The codec's own text of the entry, as bytes.
    let kept = dead["data_base64"].as_str().map(str::to_owned).unwrap_or_else(|| dead["data"].to_string());
    assert_eq!(kept, "eyJ3aGF0IjoiaXMgdGhpcz8ifQ==", "its bytes are kept: {dead}");
}

#[test]
fn a_changed_configuration_is_taken_over_and_a_wrong_one_is_not() {
    let copy = |name: &str, to: &str| format!("[[pipelines]]\nname = {name:?}\nfrom = \"in\"\nto = {to:?}\n");
    let host = Host::start(&copy("first", "a")).unwrap();
    host.publish("in", &event(1, "fine")).unwrap();
    host.wait_for("the first pipeline", |host| Ok((count(host, "a")? == 1).then_some(()))).unwrap();

    host.configure("[[pipelines]]\nname = \"first\"\nfrm = \"in\"\n").unwrap();
    host.wait_for("the refusal", |host| Ok(host.log().contains("unknown key \"frm\"").then_some(()))).unwrap();
    host.publish("in", &event(2, "fine")).unwrap();
    host.wait_for("the first pipeline, still at work", |host| Ok((count(host, "a")? == 2).then_some(()))).unwrap();

    host.configure(&(copy("first", "a") + &copy("second", "b"))).unwrap();
    host.wait_for("the second pipeline", |host| Ok((count(host, "b")? == 2).then_some(()))).unwrap();
    host.publish("in", &event(3, "fine")).unwrap();
    host.wait_for("both", |host| Ok((count(host, "a")? == 3 && count(host, "b")? == 3).then_some(()))).unwrap();
    assert_eq!(ids(&host.history("a").unwrap()), ["1", "2", "3"]);
}

#[test]
fn a_plugin_file_that_is_no_component_leaves_the_old_version_at_work() {
    let host = Host::prepare(
        "[[pipelines]]\nname = \"p\"\nfrom = \"in\"\nto = \"out\"\n[[pipelines.stages]]\nplugin = \"p.wasm\"\n",
    );
    let mut host = host.unwrap();
    std::fs::copy(component("tests/plugins/picky"), host.path("p.wasm")).unwrap();
    host.resume().unwrap();
    host.publish("in", &event(1, "fine")).unwrap();
    host.wait_for("the event", |host| Ok((count(host, "out")? == 1).then_some(()))).unwrap();
    std::fs::write(host.path("p.wasm"), "not WebAssembly at all").unwrap();
    let refused = host
        .wait_for("the refusal", |host| Ok(host.get_json("/v1/pipelines/p")?["refused"].as_str().map(str::to_owned)))
        .unwrap();
    assert!(refused.contains("p.wasm"), "{refused}");
    host.publish("in", &event(2, "fine")).unwrap();
    host.wait_for("the next event", |host| Ok((count(host, "out")? == 2).then_some(()))).unwrap();
}

/// Waits until both pipelines of a host are in a state, and one more thing holds of them.
fn wait_for_state(host: &Host, state: &str, holds: impl Fn(&Value) -> bool) {
    let states = |host: &Host| {
        let all = host.get_json("/v1/pipelines")?;
        let all = all["pipelines"].as_array().unwrap();
        Ok(all.iter().all(|pipeline| pipeline["state"] == state && holds(pipeline)).then_some(()))
    };
    host.wait_for(&format!("both pipelines to be {state}"), states).unwrap();
}

#[test]
fn a_kafka_that_is_away_is_waited_for() {
    let mut kafka = Kafka::start_with(1, "").unwrap();
    let bootstrap = kafka.bootstrap();
    kafka.kill(0).unwrap();
    let host = Host::start_unready(&format!(
        "[brokers.bus]\nkind = \"kafka\"\nbootstrap = {bootstrap:?}\nlease = \"1s\"\n\
         [[pipelines]]\nname = \"there\"\nfrom = \"local/in\"\nto = \"bus/mid\"\n\
         [[pipelines]]\nname = \"back\"\nfrom = \"bus/mid\"\nto = \"local/out\"\n"
    ))
    .unwrap();
    let why = format!("broker `bus`: no server at {bootstrap} could be reached for");
    let waits = |pipeline: &Value| {
        pipeline["reason"].as_str().is_some_and(|reason| reason.starts_with(&why) && reason.ends_with("refused)"))
    };
    let told = |what: &str| host.log().matches(what).count();
    for number in 1..=2 {
        // The second time while it runs, until Kafka may have given its partitions to others.
        wait_for_state(&host, "waiting", waits);
        host.wait_for("the lane on Kafka to end", |host| {
            Ok((host.get_json("/v1/pipelines/back")?["lanes"] == serde_json::json!([])).then_some(()))
        })
        .unwrap();
        host.publish("in", &event(number, "fine")).unwrap();
        kafka.resume(0).unwrap();
        // From one broker to another, so an earlier one may have come again.
        let id = number.to_string();
        let has_come =
            |host: &Host| Ok(host.history("out")?.iter().any(|event| event["id"] == id.as_str()).then_some(()));
        host.wait_for("the event", |host| if count(host, "out")? == 0 { Ok(None) } else { has_come(host) }).unwrap();
        wait_for_state(&host, "running", |_| true);
        let again = "it can be reached again, after";
        host.wait_for("that to be logged", |_| Ok((told(again) >= number).then_some(()))).unwrap();
        // Once each time, and again after a minute.
        let gone = told("; it is tried again broker=bus");
        assert!((number..=2 * number).contains(&gone) && told(again) == number, "{}", host.log());
        kafka.kill(0).unwrap();
    }
    assert!(told("the group is not well for now") <= 2, "{}", host.log());
}

#[test]
fn a_killed_host_that_is_started_again_says_that_it_waits_for_its_lease() {
    let mut host = Host::prepare(&format!(
        "[brokers.bus]\nkind = \"kafka\"\nbootstrap = {:?}\nlease = \"6s\"\n[topics.\"bus/waits-in\"]\npartitions = 2\n\
         [[pipelines]]\nname = \"waits\"\nfrom = \"bus/waits-in\"\nto = \"bus/waits-out\"\n",
        Kafka::shared().bootstrap()
    ))
    .unwrap();
    host.resume().unwrap();
    let pipeline = |host: &Host| host.get_json("/v1/pipelines/waits");
    let running = |host: &Host| Ok((pipeline(host)?["state"] == "running").then_some(()));
    host.wait_for("its share", running).unwrap();
    host.kill().unwrap();
    host.resume_unready().unwrap();
    let waits =
        host.wait_for("what it waits for", |host| Ok(Some(pipeline(host)?).filter(|at| at["state"] == "waiting")));
    let waits = waits.unwrap();
    assert!(waits["reason"].as_str().unwrap().contains("until their lease of 6 s has ended"), "{waits}");
    // Where its lanes are is told all the same.
    assert_eq!((&waits["unseen"], waits["lanes"].as_array().unwrap().len()), (&Value::Null, 2), "{waits}");
    assert_eq!(host.get("/readyz").unwrap().0, 503);
    host.wait_for("its share", running).unwrap();
    host.wait_for("its lanes", |host| Ok((host.get("/readyz")?.0 == 200).then_some(()))).unwrap();
    assert_eq!(host.log().matches("sharing its partitions out anew").count(), 1, "{}", host.log());
}

#[test]
fn a_redis_that_is_away_is_waited_for() {
    let mut server = RedisServer::start().unwrap();
    let url = server.url();
    server.kill().unwrap();
    let host = Host::start_unready(&format!(
        "[brokers.bus]\nkind = \"redis\"\nurl = {url:?}\n[[pipelines]]\nname = \"p\"\nfrom = \"bus/in\"\nto = \"local/out\"\n\
         [[pipelines]]\nname = \"q\"\nfrom = \"local/in\"\nto = \"local/q\"\n"
    ))
    .unwrap();
    // What needs no Redis works meanwhile.
    host.publish("in", &event(1, "fine")).unwrap();
    host.wait_for("the other pipeline", |host| Ok((count(host, "q")? == 1).then_some(()))).unwrap();
    server.resume().unwrap();
    let mut connection = server.client().unwrap().get_connection().unwrap();
    let fields = ["ce_specversion", "1.0", "ce_id", "1", "ce_source", "/t", "ce_type", "t"];
    redis::cmd("XADD").arg("in").arg("*").arg(&fields).query::<String>(&mut connection).unwrap();
    host.wait_for("the event from Redis", |host| Ok((count(host, "out")? == 1).then_some(()))).unwrap();
    // Again, while it runs.
    assert_eq!(host.get_json("/v1/pipelines/p").unwrap()["unseen"], Value::Null);
    server.kill().unwrap();
    let unseen = host.get_json("/v1/pipelines/p").unwrap()["unseen"].clone();
    assert!(unseen.as_str().is_some_and(|why| why.contains("bus")), "{unseen}");
    server.resume().unwrap();
    let mut connection = server.client().unwrap().get_connection().unwrap();
    redis::cmd("XADD").arg("in").arg("*").arg(&fields).query::<String>(&mut connection).unwrap();
    host.wait_for("the next event from Redis", |host| Ok((count(host, "out")? == 2).then_some(()))).unwrap();
}
