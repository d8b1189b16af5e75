//! The engine on the memory broker with native stages: what comes out, in which order, through which version.

#![expect(clippy::unwrap_used, reason = "a test that fails says where by itself")]

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use synapse_core::spec::{OnError, PipelineSpec, TopicSpec};
use synapse_engine::PipelineState;

use support::{Bench, events, ids, pipeline, stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_keeps_and_drops() {
    let bench = Bench::start().await;
    bench.publish("in", &events(1000, 7)).await;
    bench.apply([pipeline("p", "in", "out", [stage("evens")])]).await;
    let out = bench.read("out", 500).await;
    assert_eq!(ids(&out), (0..1000).filter(|n| n % 2 == 0).map(|n| n.to_string()).collect::<Vec<_>>());
    bench.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_stages_events_are_copied_to_every_sink() {
    let bench = Bench::start().await;
    bench.publish("in", &events(10, 1)).await;
    let mut spec = pipeline("p", "in", "a", []);
    spec.to.push(support::sink("b"));
    bench.apply([spec]).await;
    assert_eq!(bench.read("a", 10).await, events(10, 1));
    assert_eq!(bench.read("b", 10).await, events(10, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_at_fault_costs_one_event_and_becomes_a_dead_letter_with_its_story() {
    let bench = Bench::start().await;
    let mut all = events(100, 3);
    all[42]
        .attributes
        .push(("traceparent".to_owned(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()));
    bench.publish("in", &all).await;
    bench.apply([pipeline("p", "in", "out", [stage("fails-on-42")])]).await;
    let out = bench.read("out", 99).await;
    assert_eq!(ids(&out), (0..100).filter(|n| *n != 42).map(|n| n.to_string()).collect::<Vec<_>>());
    let dead = bench.read("in.dead-letters", 1).await.remove(0);
    let story: BTreeMap<&str, &str> =
        dead.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let digest = support::digest("fails-on-42", 1).to_string();
    let expected = [
        ("dlattempts", "1"),
        ("dlfirstfailure", "1970-01-01T00:00:00Z"),
        ("dlkind", "trap"),
        ("dlpipeline", "p"),
        ("dlplugin", digest.as_str()),
        ("dlposition", "local/in/0/42"),
        ("dlreason", "forty-two"),
        ("dlstage", "fails-on-42"),
        ("dltraceid", "0af7651916cd43dd8448eb211c80319c"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    assert_eq!(story, expected.into());
    assert_eq!((dead.id.as_str(), &dead.data), ("42", &all[42].data));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_error_decides_what_a_failure_costs() {
    for (on_error, expected) in [(OnError::Drop, 99), (OnError::Pass, 100), (OnError::DeadLetter, 99)] {
        let bench = Bench::start().await;
        bench.publish("in", &events(100, 3)).await;
        let mut fails = stage("fails-on-42");
        fails.on_error = on_error;
        bench.apply([pipeline("p", "in", "out", [fails, stage("shout")])]).await;
        let out = bench.read("out", expected).await;
        assert_eq!(out.len(), expected, "{on_error:?}");
        let dead = bench.count("in.dead-letters").await;
        assert_eq!(dead, usize::from(on_error == OnError::DeadLetter), "{on_error:?}");
        assert!(out.windows(2).all(|pair| pair[0].id.parse::<u32>().unwrap() < pair[1].id.parse::<u32>().unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_error_stop_ends_right_before_the_event_and_a_mended_plugin_goes_on_there() {
    let bench = Bench::start().await;
    bench.publish("in", &events(100, 3)).await;
    let mut fails = stage("fails-on-42");
    fails.on_error = OnError::Stop;
    bench.apply([pipeline("p", "in", "out", [fails])]).await;
    let reason = bench
        .wait_for("p", |status| match &status.state {
            PipelineState::Stopped { reason } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert_eq!(reason, "local/in/0: stage `fails-on-42` (trap): forty-two");
    assert_eq!(ids(&bench.read("out", 42).await).last().unwrap(), "41");
    bench.plugins.mend("fails-on-42");
    bench.handle.plugin_changed(PathBuf::from("fails-on-42")).await.unwrap();
    let out = bench.read("out", 100).await;
    assert_eq!(ids(&out), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transform_makes_none_one_or_many_and_ids_are_derived() {
    let bench = Bench::start().await;
    bench.publish("in", &events(4, 1)).await;
    bench.apply([pipeline("p", "in", "out", [stage("repeat-by-id")])]).await;
    let out = bench.read("out", 6).await;
    assert_eq!(ids(&out), ["1", "2/0", "2/1", "3/0", "3/1", "3/2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_sends_where_it_may_and_the_rest_is_a_dead_letter() {
    let bench = Bench::start().await;
    bench.publish("in", &events(8, 1)).await;
    let mut router = stage("by-remainder");
    router.routes = vec![support::route("r-*")];
    bench.apply([pipeline("p", "in", "out", [router, stage("shout")])]).await;
    // 0 → r-0, 1 → r-0 and r-1, 2 → forbidden, 3 → on
    assert_eq!(ids(&bench.read("r-0", 4).await), ["0", "1", "4", "5"]);
    assert_eq!(ids(&bench.read("r-1", 2).await), ["1", "5"]);
    assert_eq!(ids(&bench.read("out", 2).await), ["3", "7"]);
    let dead = bench.read("in.dead-letters", 2).await;
    assert_eq!(ids(&dead), ["2", "6"]);
    let reason = "it may not send to `local/elsewhere`; add the topic or a pattern of it to the stage's `routes`";
    assert_eq!(dead[0].attribute("dlreason"), Some(reason));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_both_routed_to_and_a_sink_keeps_one_order() {
    let bench = Bench::start().await;
    bench.publish("in", &events(400, 1)).await;
    let mut router = stage("by-remainder");
    router.routes = vec![support::route("**")];
    bench.apply([pipeline("p", "in", "r-0", [router])]).await;
    // 0 and 1 are routed to r-0, 2 elsewhere, 3 passes on to the sink, which is r-0 as well.
    let expected: Vec<_> = (0..400).filter(|n| n % 4 != 2).map(|n| n.to_string()).collect();
    assert_eq!(ids(&bench.read("r-0", 300).await), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_leaves_empty_is_completed_within_its_output_limit() {
    let bench = Bench::start().await;
    let mut all = events(3, 1);
    all[1].source = "long".repeat(10_000);
    bench.publish("in", &all).await;
    let mut repeats = stage("repeat-nothing");
    repeats.limits.output_bytes_max = 1 << 20;
    bench.apply([pipeline("p", "in", "out", [repeats])]).await;
    let out = bench.read("out", 200).await;
    assert_eq!((out[0].id.as_str(), out[199].id.as_str()), ("0/0", "2/99"));
    let dead = bench.read("in.dead-letters", 1).await;
    assert_eq!((dead[0].id.as_str(), dead[0].attribute("dlkind")), ("1", Some("output-too-large")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_not_kept_waiting_by_a_change_that_takes_long() {
    let bench = Bench::start().await;
    bench.publish("in", &events(10, 1)).await;
    bench.apply([pipeline("p", "in", "out", [stage("never-ends")])]).await;
    bench.wait_for("p", |status| status.lanes.values().next().map(drop)).await;
    // The lane is busy for ever, so that it can neither swap nor drain.
    bench.plugins.busy().await;
    let change = tokio::spawn({
        let handle = bench.handle.clone();
        async move { handle.apply(synapse_engine::Wish::default()).await }
    });
    bench.handle.drain(std::time::Duration::from_millis(50)).unwrap();
    assert_eq!(bench.ended().await, synapse_engine::Drained::CutShort);
    // Nobody is left to answer.
    change.await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_workers_keep_the_order_of_a_batch() {
    let bench = Bench::start().await;
    bench.publish("in", &events(2000, 50)).await;
    let mut spec = pipeline("p", "in", "out", [stage("slow-by-key")]);
    spec.parallel = NonZeroUsize::new(4).unwrap();
    bench.apply([spec]).await;
    assert_eq!(bench.read("out", 2000).await, events(2000, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_lose_and_repeat_nothing_and_every_event_is_attributable() {
    let bench = Bench::start().await;
    bench.apply([pipeline("p", "in", "out", [stage("stamp")])]).await;
    bench.running("p").await;
    let all = events(20_000, 40);
    for (n, chunk) in all.chunks(100).enumerate() {
        bench.publish("in", chunk).await;
        if n % 5 == 4 {
            bench.plugins.next_version("stamp");
            bench.handle.plugin_changed(PathBuf::from("stamp")).await.unwrap();
        }
    }
    let out = bench.read("out", all.len()).await;
    assert_eq!(ids(&out), ids(&all));
    let boundaries = bench.boundaries("p", "in").await;
    assert!(boundaries.len() > 5, "{} boundaries", boundaries.len());
    for (offset, event) in (0u64..).zip(&out) {
        let boundary =
            boundaries.iter().rfind(|boundary| boundary.from <= synapse_core::Offset::Number(offset)).unwrap();
        assert_eq!(event.attribute("stamp"), Some(boundary.stages[0].1.as_str()), "event {offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_load_leaves_the_old_one_at_work_and_says_why() {
    let bench = Bench::start().await;
    bench.apply([pipeline("p", "in", "out", [stage("evens")])]).await;
    bench.running("p").await;
    bench.plugins.spoil("evens", "it is not a component");
    bench.handle.plugin_changed(PathBuf::from("evens")).await.unwrap();
    let why = bench.wait_for("p", |status| status.refused.clone()).await;
    assert_eq!(why, "it is not a component");
    bench.publish("in", &events(10, 1)).await;
    assert_eq!(bench.read("out", 5).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_whose_plugin_is_missing_starts_once_it_is_there_and_harms_no_other() {
    let bench = Bench::start().await;
    bench.plugins.spoil("evens", "there is no file `evens`");
    bench.publish("in", &events(10, 1)).await;
    bench.apply([pipeline("broken", "in", "out", [stage("evens")]), pipeline("whole", "in", "copy", [])]).await;
    let reason = bench
        .wait_for("broken", |status| match &status.state {
            PipelineState::Stopped { reason } => Some(reason.clone()),
            _ => None,
        })
        .await;
    assert_eq!(reason, "there is no file `evens`");
    assert_eq!(bench.read("copy", 10).await.len(), 10);
    bench.plugins.mend("evens");
    bench.handle.plugin_changed(PathBuf::from("evens")).await.unwrap();
    assert_eq!(bench.read("out", 5).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_touches_only_what_differs() {
    let bench = Bench::start().await;
    let keep = pipeline("keep", "in", "keep-out", [stage("evens")]);
    let swap = pipeline("swap", "in", "swap-out", [stage("evens")]);
    let leave = pipeline("leave", "in", "leave-out", []);
    let first = bench.apply([keep.clone(), swap.clone(), leave.clone()]).await;
    assert_eq!(support::names(&first.started), ["keep", "leave", "swap"]);
    for name in ["keep", "swap", "leave"] {
        bench.running(name).await;
    }
    let with_other_stage = pipeline("swap", "in", "swap-out", [stage("shout")]);
    let second = bench.apply([keep.clone(), with_other_stage, pipeline("new", "in", "new-out", [])]).await;
    assert_eq!(support::names(&second.started), ["new"]);
    assert_eq!(support::names(&second.swapped), ["swap"]);
    assert_eq!(support::names(&second.ended), ["leave"]);
    assert!(second.restarted.is_empty() && second.refused.is_empty());
    let elsewhere = pipeline("keep", "other", "keep-out", [stage("evens")]);
    let third = bench.apply([elsewhere]).await;
    assert_eq!(support::names(&third.restarted), ["keep"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_on_one_topic_share_reading_and_keep_their_own_places() {
    let bench = Bench::start().await;
    bench.publish("in", &events(3000, 10)).await;
    let specs: Vec<PipelineSpec> =
        (0..20).map(|n| pipeline(&format!("p{n}"), "in", &format!("out{n}"), [stage("evens")])).collect();
    bench.apply(specs).await;
    for n in 0..20 {
        assert_eq!(bench.read(&format!("out{n}"), 1500).await.len(), 1500, "pipeline {n}");
    }
    bench.publish("in", &events(3000, 10)).await;
    for n in 0..20 {
        assert_eq!(bench.read(&format!("out{n}"), 3000).await.len(), 3000, "pipeline {n}");
    }
    // Twenty pipelines, 6,000 events each, in batches of 512: alone they would have polled 240 times and more.
    let polls = bench.polls();
    assert!(polls < 120, "{polls} batches were read for twenty pipelines");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_under_way_and_a_new_engine_goes_on_there() {
    let bench = Bench::start().await;
    let spec = pipeline("p", "in", "out", [stage("slow-by-key")]);
    bench.publish("in", &events(5000, 20)).await;
    bench.apply([spec.clone()]).await;
    bench.read("out", 1).await;
    let broker = bench.drain().await;
    let again = Bench::on(broker).await;
    again.apply([spec]).await;
    assert_eq!(again.read("out", 5000).await, events(5000, 20));
    // Nothing more comes.
    assert_eq!(again.read_all("out").await.len(), 5000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_fails_now_and_then_costs_nothing() {
    let bench = Bench::flaky(12).await;
    let all = events(5000, 20);
    for chunk in all.chunks(250) {
        bench.publish("in", chunk).await;
    }
    bench.apply([pipeline("p", "in", "out", [stage("evens")])]).await;
    let out = bench.read("out", 2500).await;
    assert_eq!(ids(&out), (0..5000).filter(|n| n % 2 == 0).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(bench.read_all("out").await.len(), 2500);
    assert!(bench.faults() >= 10, "only {} faults", bench.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_partitions_get_lanes() {
    let bench = Bench::start().await;
    bench.apply([pipeline("p", "in", "out", [])]).await;
    bench.running("p").await;
    let four = TopicSpec { partitions: 4.try_into().unwrap(), ..TopicSpec::default() };
    bench.ensure("in", &four).await;
    bench.publish("in", &events(400, 40)).await;
    let out = bench.read("out", 400).await;
    assert_eq!(out.len(), 400);
}
