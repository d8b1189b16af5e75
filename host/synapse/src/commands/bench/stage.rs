//! One filter stage against the same judgement as a native function.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use synapse_core::batch::Batch;
use synapse_core::spec::{InstanceMode, OnError, PluginRef, StageLimits, StageSpec};
use synapse_core::stage::{Answer, Plugin, Stage};
use synapse_core::topic::Label;

use super::{Arm, KIND, TEXT, batch};

const ROWS: usize = 256;
/// Payload of each event, in bytes.
const DATA_BYTES: usize = 100;
const BATCHES: usize = 400;

/// Nanoseconds an event.
pub(super) async fn measure(plugin: &dyn Plugin, rounds: usize) -> anyhow::Result<Vec<Arm>> {
    let batch = batch(ROWS, DATA_BYTES);
    let finder = Finder::new(TEXT);
    let mut lane = stage(plugin, InstanceMode::Lane).await?;
    let mut fresh = stage(plugin, InstanceMode::Batch).await?;
    let answer = lane.run(&batch).await?.answer;
    anyhow::ensure!(
        answer == Answer::Keep(native(&batch, &finder)),
        "the plugin does not judge as the native function does"
    );
    let names = ["native function", "native function again (A/A)", "stage", "stage, a fresh instance each batch"];
    let mut arms = names.map(|name| Arm { name, rounds: Vec::new() });
    for _ in 0..rounds * 4 {
        arms[0].rounds.push(each(natively(&batch, &finder)));
        arms[2].rounds.push(each(staged(lane.as_mut(), &batch).await?));
        arms[1].rounds.push(each(natively(&batch, &finder)));
        arms[3].rounds.push(each(staged(fresh.as_mut(), &batch).await?));
    }
    Ok(arms.into())
}

fn each(took: Duration) -> f64 {
    took.as_secs_f64() * 1e9 / (ROWS * BATCHES) as f64
}

async fn stage(plugin: &dyn Plugin, instance: InstanceMode) -> anyhow::Result<Box<dyn Stage>> {
    let name: Label = "bench".parse().expect("a valid name");
    Ok(plugin.stage(&name, &spec(name.clone(), PluginRef::File("bench".into()), instance)).await?)
}

/// The stage that all parts of the benchmark use.
pub(super) fn spec(name: Label, plugin: PluginRef, instance: InstanceMode) -> StageSpec {
    StageSpec {
        name,
        plugin,
        config: serde_json::json!({ "type": KIND, "text": TEXT }),
        grants: Vec::new(),
        routes: Vec::new(),
        limits: StageLimits::default(),
        on_error: OnError::default(),
        instance,
    }
}

fn native(batch: &Batch, text: &Finder<'_>) -> Vec<bool> {
    batch.events().map(|event| event.kind() == KIND && text.find(event.data()).is_some()).collect()
}

fn natively(batch: &Batch, text: &Finder<'_>) -> Duration {
    let start = Instant::now();
    for _ in 0..BATCHES {
        black_box(native(black_box(batch), text));
    }
    start.elapsed()
}

async fn staged(stage: &mut dyn Stage, batch: &Batch) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for _ in 0..BATCHES {
        black_box(stage.run(black_box(batch)).await?);
    }
    Ok(start.elapsed())
}
