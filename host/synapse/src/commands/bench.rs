//! `synapse bench`: what things cost on this machine, as ratios to baselines in the same run.
//!
//! Machines are noisy, so no figure stands alone: arms alternate round by round, each ratio is the median of the ratios
//! within the rounds, and the baseline runs twice, so that the second (A/A) tells how much of a ratio is noise.

mod latency;
mod pipelines;
mod redis_loops;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use synapse_core::batch::Batch;
use synapse_core::event::Event;
use synapse_core::spec::PluginRef;
use synapse_core::stage::{Plugin, PluginLoader};
use synapse_runtime::{Runtime, RuntimeOptions};

use crate::client::Output;
use crate::plugin::new::{Sdk, find_sdk};
use crate::plugin::{BuildOptions, build_crate};

/// What the filter looks for; all events have it, so that a pipeline writes as much with the filter as without.
const TEXT: &str = "accuracy";
/// The type it keeps.
const KIND: &str = "model-ready";
/// Options of `synapse bench`.
#[derive(clap::Args)]
pub struct Args {
    /// What to measure; by default everything that this machine has the parts for.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Events in each round of a pipeline.
    #[arg(long, default_value_t = 400_000)]
    events: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The component of `plugins/filter-contains`; by default it is built from the checkout.
    #[arg(long)]
    filter: Option<PathBuf>,
    /// Payload of each event, in bytes.
    #[arg(long, default_value_t = 100)]
    data_bytes: usize,
    /// A Kafka to measure on, `host:port`; its topics `synapse-bench-…` are made and deleted.
    #[arg(long, value_name = "BOOTSTRAP")]
    kafka: Option<String>,
    /// Where the embedded log of the measurement lies; by default the system's temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A filter stage against the native function.
    Stage,
    /// Pipelines on the memory broker, with and without the filter.
    Memory,
    /// The same on the embedded log.
    Embedded,
    /// The same on a Redis started for it, against loops over raw bytes and with the redis crate.
    Redis,
    /// The same on the Kafka that `--kafka` names, against a loop over librdkafka alone.
    Kafka,
}

/// Measures and prints.
///
/// # Errors
/// If a part that is asked for is missing on this machine.
pub fn run(args: &Args, runtime: &tokio::runtime::Runtime, out: &mut Output) -> anyhow::Result<()> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let plugins = Runtime::new(RuntimeOptions::default())?;
    let component = std::path::absolute(component(args)?)?;
    let plugin: Arc<dyn Plugin> = runtime.block_on(plugins.load(&PluginRef::File(component.clone())))?;
    if wanted(Part::Stage) {
        print(
            out,
            "a filter stage, batches of 256 events of 100 bytes",
            "ns/event",
            &runtime.block_on(stage::measure(&*plugin, args.rounds))?,
        )?;
    }
    let bench = pipelines::Bench {
        runtime,
        plugins: Arc::new(plugins),
        component,
        events: args.events,
        rounds: args.rounds,
        data_bytes: args.data_bytes,
    };
    if wanted(Part::Memory) {
        print(out, "memory → memory, one lane", "events/s", &bench.memory()?)?;
    }
    if wanted(Part::Embedded) {
        print(out, "embedded → embedded, one lane, durable", "events/s", &bench.embedded(args.dir.as_deref())?)?;
    }
    if wanted(Part::Redis) {
        let named = args.only.contains(&Part::Redis);
        match redis_loops::Server::start() {
            Ok(server) => {
                print(out, "redis → redis, exactly-once", "events/s", &bench.redis(&server)?)?;
                print(out, "redis, time under way at 10,000 events/s", "µs", &bench.latency(&server)?)?;
            }
            Err(error) if !named => out.note(format!("redis is left out: {error:#}"))?,
            Err(error) => return Err(error),
        }
    }
    if wanted(Part::Kafka) {
        match &args.kafka {
            Some(bootstrap) => {
                print(out, "kafka → kafka, one partition", "events/s", &bench.kafka(bootstrap)?)?;
            }
            None if !args.only.contains(&Part::Kafka) => out.note("kafka is left out: name one with --kafka")?,
            None => anyhow::bail!("name a Kafka to measure on with --kafka, for example --kafka 127.0.0.1:9092"),
        }
    }
    Ok(())
}

fn component(args: &Args) -> anyhow::Result<PathBuf> {
    if let Some(filter) = &args.filter {
        return Ok(filter.clone());
    }
    let sdk = find_sdk(std::path::Path::new("."), std::env::var_os("SYNAPSE_SDK").as_deref().map(std::path::Path::new));
    let Sdk::Path(sdk) = sdk else {
        anyhow::bail!(
            "the filter to measure is built from a checkout of Synapse: run this inside one, or give --filter FILE"
        )
    };
    let source = sdk.parent().context("the SDK lies in a folder")?.join("filter-contains");
    Ok(build_crate(&source, &BuildOptions { quiet: true, ..BuildOptions::default() })?.path)
}

/// Events of the kind that the budgets speak of.
fn events(count: usize, data_bytes: usize) -> Vec<Event> {
    let event = |n: usize| {
        let data = format!(r#"{{"model": "m-{n}", "stage": "training on many files", "{TEXT}": 0.9"#);
        Event {
            id: format!("{n:08}"),
            source: "/bench".to_owned(),
            kind: KIND.to_owned(),
            partition_key: Some(format!("k{}", n % 1000)),
            content_type: Some("text/plain".to_owned()),
            data: format!("{data:data_bytes$}").into_bytes(),
            ..Event::default()
        }
    };
    (0..count).map(event).collect()
}

fn batch(count: usize, data_bytes: usize) -> Batch {
    events(count, data_bytes).iter().collect()
}

/// What one arm came to, round by round.
struct Arm {
    name: &'static str,
    rounds: Vec<f64>,
}

/// The first arm is the baseline; arms named `again` are controls.
fn print(out: &mut Output, what: &str, unit: &str, arms: &[Arm]) -> anyhow::Result<()> {
    if !out.is_json() {
        out.line(format!("\n{what} ({unit}; ratio to the first line, round by round)"))?;
    }
    let baseline = &arms[0].rounds;
    for arm in arms {
        let ratios: Vec<f64> = arm.rounds.iter().zip(baseline).map(|(value, base)| value / base).collect();
        let (value, ratio) = (median(&arm.rounds), median(&ratios));
        if out.is_json() {
            out.object(
                &serde_json::json!({ "what": what, "arm": arm.name, "unit": unit, "median": value, "ratio": ratio }),
            )?;
        } else {
            out.line(format!("  {:<44} {value:>12.0}   {ratio:>6.2}", arm.name))?;
        }
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
