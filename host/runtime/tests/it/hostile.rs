//! Guests that loop, hoard, overflow and panic: what each costs, and that nobody else pays.

use std::time::Duration;

use serde_json::{Value, json};
use synapse_core::stage::{FailureKind, PluginErrorKind};

use crate::support::{
    batch, failed, guest, kept, label, load, mode, mode_at, run, runtime, runtime_with, spec, stage_with,
};

const FAST: Duration = Duration::from_millis(20);

/// One event of four is at fault: it fails, the others are answered in order, and the next batch is as ever.
async fn check_one(config: Value, kind: FailureKind, sentence: &str) {
    let mut stage = stage_with("batch_filter", config.clone(), |spec| {
        spec.limits.cpu_max = Duration::from_millis(200);
        spec.limits.memory_bytes_max = 32 << 20;
        spec.limits.output_bytes_max = 1 << 20;
    })
    .await;
    let run = stage.run(&batch(&["a", "x", "drop", "b"])).await.unwrap();
    assert_eq!(failed(&run), [(1, kind)], "{config}: {:?}", run.failures);
    assert_eq!(kept(&run), [true, false, false, true], "{config}");
    assert!(run.failures[0].reason.contains(sentence), "{config}: {}", run.failures[0].reason);
    // The batch; the event after a good one; the event alone on a fresh instance.
    assert_eq!((run.usage.faults, run.usage.instances), (3, 3), "{config}");
    let run = stage.run(&batch(&["c", "d"])).await.unwrap();
    assert_eq!((kept(&run), failed(&run), run.usage.faults), (&[true, true][..], vec![], 0), "{config}");
}

#[tokio::test]
async fn an_endless_loop() {
    check_one(mode_at("loop", "x"), FailureKind::Deadline, "used more than 200ms of CPU time").await;
}

#[tokio::test]
async fn a_memory_bomb() {
    check_one(mode_at("memory", "x"), FailureKind::Memory, "wanted more than 32 MiB of memory").await;
}

#[tokio::test]
async fn a_stack_overflow() {
    check_one(mode_at("stack", "x"), FailureKind::Trap, "wasm trap: call stack exhausted").await;
}

#[tokio::test]
async fn a_panic_with_its_message() {
    let sentence = "`unreachable` instruction executed; the plugin said: panicked at event x";
    check_one(mode_at("panic", "x"), FailureKind::Trap, sentence).await;
}

#[tokio::test]
async fn an_access_out_of_bounds() {
    check_one(mode_at("out-of-bounds", "x"), FailureKind::Trap, "wasm trap: out of bounds memory access").await;
}

#[tokio::test]
async fn an_answer_too_large() {
    let config = json!({ "mode": "large-answer", "id": "x", "amount": 2 << 20 });
    check_one(config, FailureKind::OutputTooLarge, "answered more than 1 MiB in one call").await;
}

#[tokio::test]
async fn the_same_in_every_world() {
    for name in ["filter", "transform", "router", "batch_transform", "batch_router"] {
        let run = run(name, mode_at("panic", "x"), &["a:t", "x:t", "b:t"]).await;
        assert_eq!(failed(&run), [(1, FailureKind::Trap)], "{name}");
    }
    let large = json!({ "mode": "large-answer", "amount": 20 << 20 });
    assert_eq!(failed(&run("batch_transform", large, &["a"]).await), [(0, FailureKind::OutputTooLarge)]);
}

#[tokio::test]
async fn an_endless_loop_at_every_event_is_bounded() {
    let mut stage = stage_with("batch_filter", mode("loop"), |spec| spec.limits.cpu_max = FAST).await;
    let ids = ["x"; 10];
    let run = stage.run(&batch(&ids)).await.unwrap();
    assert_eq!(run.failures.len(), ids.len());
    assert!(run.failures.iter().all(|failure| failure.kind == FailureKind::Deadline));
    let faults = ids.len() as u32 + 1;
    assert_eq!((run.usage.faults, run.usage.instances), (faults, faults - 1));
    assert!(run.usage.cpu >= FAST * faults, "{:?}", run.usage.cpu);
}

#[tokio::test]
async fn a_batch_too_slow_as_a_whole_fails_no_event() {
    let config = json!({ "mode": "burn", "amount": 1 });
    let slow = |spec: &mut synapse_core::spec::StageSpec| spec.limits.cpu_max = Duration::from_secs(100);
    let one = stage_with("batch_filter", config.clone(), slow).await.run(&batch(&["a"])).await.unwrap().usage.cpu;
    let mut stage = stage_with("batch_filter", config, |spec| spec.limits.cpu_max = one * 8).await;
    let run = stage.run(&batch(&["a"; 32])).await.unwrap();
    assert_eq!((kept(&run), failed(&run)), (&[true; 32][..], vec![]));
    assert_eq!(run.usage.faults, 1);
}

#[tokio::test]
async fn an_endless_loop_yields_to_others() {
    let mut stage = stage_with("batch_filter", mode("loop"), |spec| spec.limits.cpu_max = FAST).await;
    let events = batch(&["x"]);
    let mut turns = 0;
    let neighbour = async {
        loop {
            turns += 1;
            tokio::task::yield_now().await;
        }
    };
    // One thread: the neighbour gets its turns only from the guest.
    tokio::select! {
        biased;
        run = stage.run(&events) => assert_eq!(failed(&run.unwrap()), [(0, FailureKind::Deadline)]),
        () = neighbour => {}
    }
    assert!(turns >= 5, "{turns}");
}

#[tokio::test]
async fn a_run_that_is_given_up_ends_the_guest() {
    let mut stage =
        stage_with("batch_filter", mode_at("loop", "x"), |spec| spec.limits.cpu_max = Duration::from_secs(100)).await;
    let given_up = tokio::time::timeout(FAST, stage.run(&batch(&["x"]))).await;
    assert!(given_up.is_err());
    let run = stage.run(&batch(&["a"])).await.unwrap();
    assert_eq!((kept(&run), run.usage.instances), (&[true][..], 1));
}

/// The plugin loads; no stage can be made of it.
async fn check_configure(config: Value, sentence: &str) {
    let path = guest("batch_filter");
    let plugin = load(&runtime(), &path).await.unwrap();
    let error = plugin.stage(&label("ships"), &spec(&path, config)).await.err().expect("the config is refused");
    assert_eq!((error.kind, error.message.as_str()), (PluginErrorKind::Misconfigured, sentence));
}

#[tokio::test]
async fn trouble_in_configure() {
    let place = "stage `judge`: plugin `batch_filter`";
    check_configure(mode("refuse-config"), &format!("{place} refuses its config: min-accuracy is missing")).await;
    check_configure(mode("loop-in-configure"), &format!("{place} failed in configure: used more than 1s of CPU time"))
        .await;
    let trap = "wasm trap: wasm `unreachable` instruction executed";
    check_configure(mode("panic-in-configure"), &format!("{place} failed in configure: {trap}")).await;
}

#[tokio::test]
async fn instances_are_counted_and_given_back() {
    let path = guest("batch_filter");
    let runtime = runtime_with(|options| {
        options.instances_max = 4.try_into().unwrap();
        options.instance_wait_max = FAST;
    });
    let plugin = load(&runtime, &path).await.unwrap();
    let spec = spec(&path, mode_at("loop", "x"));
    let mut stages = vec![];
    for _ in 0..4 {
        stages.push(plugin.stage(&label("ships"), &spec).await.unwrap());
    }
    let error = plugin.stage(&label("ships"), &spec).await.err().expect("all are in use");
    let sentence = "all 4 instances of plugins are in use and none ended within 20ms";
    assert_eq!((error.kind, error.message.as_str()), (PluginErrorKind::Exhausted, sentence));
    drop(stages.pop());
    plugin.stage(&label("ships"), &spec).await.expect("one was given back");
    // An instance that faults gives its place back before the next one takes it.
    let run = stages[0].run(&batch(&["a", "x"])).await.unwrap();
    assert_eq!(failed(&run), [(1, FailureKind::Deadline)]);
}
