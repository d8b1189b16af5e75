//! Well-behaved guests of all six worlds.

use serde_json::json;
use synapse_core::event::Event;
use synapse_core::spec::InstanceMode;
use synapse_core::stage::{Answer, FailureKind, PluginKind};

use crate::support::{batch, event, failed, guest, kept, load, run, runtime, stage, stage_with};

#[tokio::test]
async fn every_world_says_what_it_is() {
    let runtime = runtime();
    for (name, kind, columnar) in [
        ("filter", PluginKind::Filter, false),
        ("transform", PluginKind::Transform, false),
        ("router", PluginKind::Router, false),
        ("batch_filter", PluginKind::Filter, true),
        ("batch_transform", PluginKind::Transform, true),
        ("batch_router", PluginKind::Router, true),
    ] {
        let path = guest(name);
        let plugin = load(&runtime, &path).await.unwrap();
        let info = plugin.info();
        assert_eq!((info.name.as_str(), info.kind, info.columnar), (name, kind, columnar));
        assert_eq!((info.version.as_str(), info.summary.as_str()), ("1.2.3", "A guest for tests."));
        assert_eq!(info.config_schema, r#"{"type": "object"}"#);
        assert_eq!(info.size_bytes as u64, path.metadata().unwrap().len());
        assert!(info.wants.is_empty());
    }
}

#[tokio::test]
async fn filters_keep_drop_and_reject() {
    for name in ["filter", "batch_filter"] {
        let run = run(name, json!({}), &["a", "drop", "reject", "b"]).await;
        assert_eq!(kept(&run), [true, false, false, true], "{name}");
        assert_eq!(failed(&run), [(2, FailureKind::Rejected)], "{name}");
    }
}

#[tokio::test]
async fn typed_guests_see_every_column() {
    let run = run("filter", json!({}), &["reject"]).await;
    assert_eq!(run.failures[0].reason, r#"reject has subject Some("ship"), time Some(5)"#);
}

#[tokio::test]
async fn transforms_make_none_or_many() {
    for (name, copy) in [
        ("batch_transform", Event { id: "b-copy".to_owned(), ..event("b") }),
        ("transform", {
            let mut copy = Event { id: "b-copy".to_owned(), ..event("b") };
            copy.attributes.push(("copied".to_owned(), "yes".to_owned()));
            copy
        }),
    ] {
        let run = run(name, json!({}), &["a", "drop", "reject", "b"]).await;
        assert_eq!(failed(&run), [(2, FailureKind::Rejected)], "{name}");
        let Answer::Rewrite { batch, parents } = run.answer else { panic!("{name} is a transform") };
        assert_eq!(parents, [0, 0, 3, 3], "{name}");
        let events: Vec<Event> = batch.events().map(|event| event.to_event()).collect();
        assert_eq!(events[0], event("a"), "{name}");
        assert_eq!(events[2..], [event("b"), copy], "{name}");
    }
}

#[tokio::test]
async fn routers_name_topics() {
    for name in ["router", "batch_router"] {
        let run = run(name, json!({}), &["1:x,bus/y", "pass", "2:bus/y", "drop", "reject"]).await;
        assert_eq!(failed(&run), [(4, FailureKind::Rejected)], "{name}");
        let Answer::Route { topics, choice, choices } = run.answer else { panic!("{name} is a router") };
        let names = |row: usize| -> Option<Vec<&str>> {
            let set = &choices[choice[row]? as usize];
            Some(set.iter().map(|&topic| topics[topic as usize].as_str()).collect())
        };
        assert_eq!(topics, ["x", "bus/y"], "{name}");
        assert_eq!([0, 1, 2, 3].map(names), [Some(vec!["x", "bus/y"]), None, Some(vec!["bus/y"]), Some(vec![])]);
    }
}

#[tokio::test]
async fn an_empty_batch_is_no_call() {
    let run = run("batch_filter", json!({}), &[]).await;
    assert_eq!((kept(&run), run.usage.cpu.as_nanos()), (&[][..], 0));
}

#[tokio::test]
async fn a_lane_keeps_its_instance_and_a_batch_does_not() {
    let config = json!({ "mode": "leak", "amount": 100_000 });
    let mut lane = stage("batch_filter", config.clone()).await;
    let mut memory = vec![];
    for _ in 0..3 {
        let run = lane.run(&batch(&["a", "b"])).await.unwrap();
        assert_eq!((run.usage.instances, run.usage.faults), (0, 0));
        memory.push(run.usage.memory_bytes);
    }
    assert!(memory[0] < memory[2], "what leaks stays: {memory:?}");

    let mut fresh = stage_with("batch_filter", config, |spec| spec.instance = InstanceMode::Batch).await;
    let mut runs = vec![];
    for _ in 0..3 {
        let run = fresh.run(&batch(&["a", "b"])).await.unwrap();
        runs.push((run.usage.instances, run.usage.memory_bytes));
    }
    // The first instance was made with the stage.
    assert_eq!(runs, [(0, memory[0]), (1, memory[0]), (1, memory[0])]);
}

#[tokio::test]
async fn an_instance_that_leaks_is_replaced_before_it_hits_the_limit() {
    let config = json!({ "mode": "leak", "amount": 1_000_000 });
    let mut lane = stage_with("batch_filter", config, |spec| spec.limits.memory_bytes_max = 16 << 20).await;
    let (mut instances, mut memory_max) = (0, 0);
    for _ in 0..40 {
        let run = lane.run(&batch(&["a"])).await.unwrap();
        assert_eq!(failed(&run), []);
        assert_eq!(run.usage.faults, 0);
        instances += run.usage.instances;
        memory_max = memory_max.max(run.usage.memory_bytes);
    }
    assert!(instances >= 2, "{instances}");
    assert!(memory_max <= 16 << 20, "{memory_max}");
}
