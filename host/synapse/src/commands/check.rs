//! `synapse check`: whether a configuration and its plugins can be used, and what each pipeline guarantees.
//!
//! Plugins are loaded and configured as a running host would; brokers are not connected to (`synapse doctor` does).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use synapse_brokers::redis::CLUSTER_COMMITS_APART;
use synapse_core::spec::{PipelineSpec, ReadMode};
use synapse_core::stage::{PluginError, PluginInfo, PluginKind, PluginLoader};
use synapse_runtime::{Runtime, RuntimeOptions};

use crate::client::Output;
use crate::config::{self, BrokerSpec, HostSpec};

/// Prints each pipeline with its stages and its guarantee.
///
/// # Errors
/// A configuration that is wrong, or plugins that cannot be used: all of them.
pub async fn run(file: &Path, out: &mut Output) -> anyhow::Result<()> {
    let spec = config::load(file)?;
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let mut problems = Vec::new();
    for pipeline in &spec.pipelines {
        let stages = stages(&runtime, pipeline).await;
        let broken = stages.iter().filter_map(|(name, loaded)| Some((name, loaded.as_ref().err()?)));
        problems.extend(broken.map(|(name, error)| format!("pipelines.{}.{name}: {error}", pipeline.name)));
        print(&spec, pipeline, &stages, out)?;
    }
    if !problems.is_empty() {
        bail!("{} of the plugins cannot be used:\n{}", problems.len(), problems.join("\n"));
    }
    let plugins: usize = spec.pipelines.iter().map(|pipeline| pipeline.stages.len()).sum();
    if !out.is_json() {
        out.line(format!("{}: {} pipelines, {plugins} stages: all can be used", file.display(), spec.pipelines.len()))?;
    }
    Ok(())
}

type Loaded = Result<PluginInfo, PluginError>;

async fn stages(runtime: &Runtime, pipeline: &PipelineSpec) -> Vec<(String, Loaded)> {
    let mut stages = Vec::new();
    for stage in &pipeline.stages {
        let loaded = async {
            let plugin = runtime.load(&stage.plugin).await?;
            plugin.stage(&pipeline.name, stage).await?;
            Ok(plugin.info().clone())
        };
        stages.push((stage.name.to_string(), loaded.await));
    }
    stages
}

fn print(
    spec: &HostSpec,
    pipeline: &PipelineSpec,
    stages: &[(String, Loaded)],
    out: &mut Output,
) -> anyhow::Result<()> {
    let guarantee = pipeline.guarantee(|broker| match spec.brokers.get(broker) {
        Some(BrokerSpec::Embedded | BrokerSpec::Memory | BrokerSpec::Redis { .. }) => None,
        Some(BrokerSpec::RedisCluster { .. }) => Some(CLUSTER_COMMITS_APART),
        Some(BrokerSpec::Kafka(kafka)) => {
            (!kafka.exactly_once).then_some(synapse_brokers::kafka::DELIVERS_AT_LEAST_ONCE)
        }
        None => Some("it is not in the configuration"),
    });
    let promise = if guarantee.exactly_once { "exactly-once" } else { "at-least-once" };
    let order = match pipeline.read {
        ReadMode::Cursor if reads_alone(spec, pipeline) => {
            "order is kept per key, and no other host can share the work, for the embedded log and memory are one host's alone"
        }
        ReadMode::Cursor => "order is kept per key",
        ReadMode::Group => "order is kept per key only within this host, for `read = \"group\"` shares the work",
    };
    if out.is_json() {
        let stages: BTreeMap<_, _> = stages.iter().map(|(name, loaded)| (name, stage_json(loaded))).collect();
        return Ok(out.object(&serde_json::json!({
            "pipeline": pipeline.name.as_str(), "tenant": pipeline.tenant.as_str(),
            "from": pipeline.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "to": pipeline.to.iter().map(|sink| sink.topic.to_string()).collect::<Vec<_>>(),
            "dead-letters": pipeline.dead_letters.to_string(),
            "guarantee": promise, "why": guarantee.why, "order": order, "stages": stages,
        }))?);
    }
    let from: Vec<_> = pipeline.from.iter().map(ToString::to_string).collect();
    let mut path = vec![from.join(" + ")];
    path.extend(stages.iter().map(|(name, loaded)| match loaded {
        Ok(info) => format!("{name} ({} {} {})", info.kind, info.name, info.version),
        Err(_) => format!("{name} (cannot be used)"),
    }));
    let to: Vec<_> = pipeline.to.iter().map(|sink| sink.topic.to_string()).collect();
    let routed = stages.iter().any(|(_, loaded)| loaded.as_ref().is_ok_and(|info| info.kind == PluginKind::Router));
    match (to.is_empty(), routed) {
        (false, _) => path.push(to.join(" + ")),
        (true, true) => path.push("where its router sends them".to_owned()),
        (true, false) => path.push("nowhere (it has no `to`)".to_owned()),
    }
    out.line(format!("{} (tenant {})", pipeline.name, pipeline.tenant))?;
    out.line(format!("  {}", path.join(" → ")))?;
    for (stage, (name, loaded)) in pipeline.stages.iter().zip(stages) {
        if stage.routes.is_empty() && loaded.as_ref().is_ok_and(|info| info.kind == PluginKind::Router) {
            out.line(format!(
                "  warning: `{name}` is a router without `routes`: what it sends anywhere becomes a dead letter"
            ))?;
        }
    }
    out.line(format!("  dead letters: {}", pipeline.dead_letters))?;
    Ok(out.line(format!("  {promise}: {}; {order}", guarantee.why))?)
}

/// Whether the pipeline reads what only this host can.
fn reads_alone(spec: &HostSpec, pipeline: &PipelineSpec) -> bool {
    let alone = |broker| matches!(spec.brokers.get(broker), Some(BrokerSpec::Embedded | BrokerSpec::Memory));
    pipeline.from.iter().all(|topic| alone(&topic.broker))
}

fn stage_json(loaded: &Loaded) -> serde_json::Value {
    match loaded {
        Ok(info) => serde_json::json!({
            "plugin": info.name, "version": info.version, "kind": info.kind.to_string(),
            "digest": info.digest.to_string(), "imports": info.wants,
        }),
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    }
}
