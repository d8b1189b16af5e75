//! What a filter stage costs an event, against the same judgement as a native function.
//!
//! Prints nanoseconds per event for batches of 256 events of 100 bytes: natively, natively again (the noise of this
//! machine), through a stage whose instance stays, and with a fresh instance for each batch. The arms alternate and the
//! best round of each counts, since everything that disturbs a round only adds. Then what an idle instance takes in
//! memory. `cargo run --release -p synapse-runtime --example stage_cost`.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use synapse_core::batch::Batch;
use synapse_core::event::Event;
use synapse_core::spec::{InstanceMode, OnError, PluginRef, StageLimits, StageSpec};
use synapse_core::stage::{Answer, Plugin, PluginLoader, Stage};
use synapse_runtime::{Runtime, RuntimeOptions};
use wit_component::ComponentEncoder;

const ROWS: usize = 256;
const DATA_BYTES: usize = 100;
const ROUNDS: usize = 200;
const BATCHES_PER_ROUND: usize = 100;
const IDLE_INSTANCES: usize = 1000;
const KIND: &str = "model-ready";
const NEEDLE: &str = "accuracy";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let batch = batch();
    let plugin = load(&guest()).await;
    let mut lane = stage(&*plugin, InstanceMode::Lane).await;
    let mut fresh = stage(&*plugin, InstanceMode::Batch).await;
    let expected = native(&batch, &Finder::new(NEEDLE));
    for stage in [&mut lane, &mut fresh] {
        let run = stage.run(&batch).await.expect("the host is well");
        assert_eq!(run.answer, Answer::Keep(expected.clone()), "guest and native function judge alike");
    }

    let mut best = [Duration::MAX; 5];
    for _ in 0..ROUNDS {
        let finder = Finder::new(NEEDLE);
        best[0] = best[0].min(round(|| drop(black_box(native(black_box(&batch), &finder)))));
        best[1] = best[1].min(round(|| drop(black_box(naive(black_box(&batch))))));
        best[2] = best[2].min(staged(&mut lane, &batch).await);
        best[3] = best[3].min(round(|| drop(black_box(native(black_box(&batch), &finder)))));
        best[4] = best[4].min(staged(&mut fresh, &batch).await);
    }
    let ns = best.map(|best| best.as_secs_f64() * 1e9 / (ROWS * BATCHES_PER_ROUND) as f64);
    let [first, naive, lane, again, fresh] = ns;
    println!("{ROWS} events of {DATA_BYTES} bytes a batch, ns/event:");
    println!("native, prepared search          {first:7.1}");
    println!("native, again (A/A)              {again:7.1}   {:.2}×", again / first);
    println!("native, window by window         {naive:7.1}   {:.2}×", naive / first);
    println!("stage, its instance stays        {lane:7.1}   {:.2}×, {:.2}× window by window", lane / first, lane / naive);
    println!("stage, fresh instance each batch {fresh:7.1}   {:.2}×", fresh / first);

    let before = resident_kib();
    let start = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..IDLE_INSTANCES {
        idle.push(stage(&*plugin, InstanceMode::Lane).await);
    }
    let (each, took) = ((resident_kib() - before) / IDLE_INSTANCES, start.elapsed() / IDLE_INSTANCES as u32);
    println!("{IDLE_INSTANCES} idle stages: {each} KiB and {took:?} to make each");
}

/// Memory of this process.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

fn round(mut batch: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..BATCHES_PER_ROUND {
        batch();
    }
    start.elapsed()
}

async fn staged(stage: &mut Box<dyn Stage>, batch: &Batch) -> Duration {
    let start = Instant::now();
    for _ in 0..BATCHES_PER_ROUND {
        black_box(stage.run(black_box(batch)).await.expect("the host is well"));
    }
    start.elapsed()
}

fn native(batch: &Batch, needle: &Finder<'_>) -> Vec<bool> {
    batch.events().map(|event| event.kind() == KIND && needle.find(event.data()).is_some()).collect()
}

fn naive(batch: &Batch) -> Vec<bool> {
    let holds = |data: &[u8]| data.windows(NEEDLE.len()).any(|window| window == NEEDLE.as_bytes());
    batch.events().map(|event| event.kind() == KIND && holds(event.data())).collect()
}

/// Three of four events are of the type, every second payload holds the text, near its end.
fn batch() -> Batch {
    let events: Vec<Event> = (0..ROWS)
        .map(|n| {
            let mut data = format!(r#"{{"model": "m-{n}", "owner": "team {}", "stage": "training on many files""#, n % 7);
            if n % 2 == 0 {
                data.push_str(r#", "accuracy": 0.9"#);
            }
            Event {
                id: format!("{n:08}"),
                source: "/models".to_owned(),
                kind: if n % 4 == 3 { "model-lost" } else { KIND }.to_owned(),
                partition_key: Some(format!("m-{n}")),
                data: format!("{data:DATA_BYTES$}").into_bytes(),
                ..Event::default()
            }
        })
        .collect();
    events.iter().collect()
}

fn guest() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/cost");
    let target = std::env::temp_dir().join("synapse-cost-guest");
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--target", "wasm32-unknown-unknown", "--manifest-path"])
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the guest does not build");
    let module = std::fs::read(target.join("wasm32-unknown-unknown/release/cost_guest.wasm")).expect("it was built");
    let component = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.encode())
        .expect("the guest is a component");
    let path = target.join("cost_guest.component.wasm");
    std::fs::write(&path, component).expect("the target directory is writable");
    path
}

async fn load(path: &Path) -> std::sync::Arc<dyn Plugin> {
    let start = Instant::now();
    let runtime = Runtime::new(RuntimeOptions::default()).expect("the machine runs wasmtime");
    println!("a runtime is ready in {:?}", start.elapsed());
    runtime.load(&PluginRef::File(path.to_owned())).await.expect("the guest loads")
}

async fn stage(plugin: &dyn Plugin, instance: InstanceMode) -> Box<dyn Stage> {
    let name: synapse_core::topic::Label = "cost".parse().expect("a name");
    let spec = StageSpec {
        name: name.clone(),
        plugin: PluginRef::File(PathBuf::new()),
        config: serde_json::json!({ "kind": KIND, "needle": NEEDLE }),
        grants: vec![],
        routes: vec![],
        limits: StageLimits::default(),
        on_error: OnError::default(),
        instance,
    };
    plugin.stage(&name, &spec).await.expect("the guest takes its config")
}
