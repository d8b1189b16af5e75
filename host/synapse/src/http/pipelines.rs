//! How pipelines are, and which plugins handled what.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use synapse_core::broker::LaneKey;
use synapse_core::share::LanePlace;
use synapse_core::spec::PipelineSpec;
use synapse_core::topic::{Label, TopicPartition};
use synapse_engine::{Health, LaneStatus, PipelineState, PipelineStatus};
use tokio::time::timeout;

use super::problem::{Kind, Problem};
use super::{Host, Name, view};

/// `GET /v1/pipelines`.
pub(super) async fn list(State(host): State<Host>) -> Json<view::Pipelines> {
    let all = host.api.0.engine.status();
    Json(view::Pipelines { pipelines: all.values().map(|(spec, status)| pipeline(&host, spec, status)).collect() })
}

/// `GET /v1/pipelines/{name}`.
pub(super) async fn show(State(host): State<Host>, Name(name): Name) -> Result<Json<view::Pipeline>, Problem> {
    let (spec, status) = find(&host, &name)?;
    let mut pipeline = pipeline(&host, &spec, &status);
    let mut lanes: BTreeMap<_, _> = status.lanes.keys().cloned().zip(std::mem::take(&mut pipeline.lanes)).collect();
    let (places, unseen) = places(&host, &spec).await;
    pipeline.unseen = unseen;
    for place in places {
        let lane = lanes.entry(place.partition.clone()).or_insert_with(|| elsewhere(&place.partition));
        lane.owner = place.owner;
        lane.lag = place.lag;
        // What this host committed just now may be newer than what the broker was asked for.
        lane.committed = lane.committed.max(place.committed);
    }
    pipeline.lanes = lanes.into_values().collect();
    Ok(Json(pipeline))
}

/// `GET /v1/pipelines/{name}/history`: every change of plugins in each lane, also of a pipeline that does not run.
pub(super) async fn history(State(host): State<Host>, Name(name): Name) -> Result<Json<view::History>, Problem> {
    let (spec, _) = find(&host, &name)?;
    let mut lanes = Vec::new();
    for topic in &spec.from {
        let broker = host.broker(&topic.broker)?;
        let count = broker.topic(&topic.topic).await?.map_or(0, |info| info.partitions.len());
        for partition in topic.partitions(u32::try_from(count).expect("partitions are counted by a u32")) {
            let key = LaneKey { pipeline: spec.name.clone(), partition: partition.clone() };
            let boundaries = broker.boundaries(&key).await?.into_iter().map(|boundary| view::Boundary {
                from: boundary.from,
                stages: boundary.stages.into_iter().map(|(name, digest)| view::StageDigest { name, digest }).collect(),
            });
            lanes.push(view::LaneHistory { partition: partition.to_string(), boundaries: boundaries.collect() });
        }
    }
    Ok(Json(view::History { pipeline: spec.name.to_string(), lanes }))
}

fn find(host: &Host, name: &str) -> Result<(PipelineSpec, PipelineStatus), Problem> {
    let label = name.parse::<Label>().ok();
    label.and_then(|label| host.api.0.engine.status().remove(&label)).ok_or_else(|| {
        let detail = format!("there is no pipeline `{}`; GET /v1/pipelines lists those there are", name.escape_debug());
        Problem::new(Kind::UnknownPipeline, detail)
    })
}

fn pipeline(host: &Host, spec: &PipelineSpec, status: &PipelineStatus) -> view::Pipeline {
    let brokers = &host.api.0.brokers;
    let guarantee = spec.guarantee(|name| match brokers.get(name) {
        Ok(broker) => broker.commits_apart(),
        Err(_) => Some("it is not known here"),
    });
    let or_waits = |state| waits(host, spec).map_or((state, None), |why| ("waiting", Some(why)));
    let (state, reason) = match &status.state {
        PipelineState::Starting => or_waits("starting"),
        PipelineState::Running => or_waits("running"),
        PipelineState::Stopped { reason } => ("stopped", Some(reason.clone())),
        PipelineState::Ended => ("ended", None),
    };
    let stages = spec.stages.iter().map(|stage| {
        let loaded = status.stages.iter().find(|(name, _)| name == stage.name.as_str());
        let plugin = loaded.map(|(_, info)| view::Plugin {
            name: info.name.clone(),
            version: info.version.clone(),
            kind: info.kind.to_string(),
            digest: info.digest.to_string(),
        });
        view::Stage { name: stage.name.to_string(), plugin }
    });
    view::Pipeline {
        name: spec.name.to_string(),
        tenant: spec.tenant.to_string(),
        host: host.api.0.host_id.clone(),
        state: state.to_owned(),
        reason,
        refused: status.refused.clone(),
        unseen: None,
        guarantee: view::Guarantee {
            delivery: if guarantee.exactly_once { "exactly-once" } else { "at-least-once" }.to_owned(),
            why: guarantee.why,
        },
        from: spec.from.clone(),
        to: spec.to.iter().map(|sink| sink.topic.clone()).collect(),
        dead_letters: spec.dead_letters.clone(),
        stages: stages.collect(),
        lanes: status.lanes.iter().map(|(partition, status)| lane(partition, status)).collect(),
    }
}

/// Why the pipeline waits: a broker that its `from`, `to` or `dead-letters` names is known to be away, or one that it reads
/// has no share for this host yet.
pub(super) fn waits(host: &Host, spec: &PipelineSpec) -> Option<String> {
    let written = spec.to.iter().map(|sink| &sink.topic).chain([&spec.dead_letters]);
    let mut used = spec.from.iter().chain(written).map(|topic| &topic.broker);
    let broker = |name| host.api.0.brokers.get(name).ok();
    let away = |name| Some(format!("broker `{name}`: {}", broker(name)?.away()?));
    let unshared = |name| Some(format!("broker `{name}`: {}", broker(name)?.unshared(&spec.name)?));
    used.find_map(away).or_else(|| spec.from.iter().find_map(|topic| unshared(&topic.broker)))
}

fn lane(partition: &TopicPartition, status: &LaneStatus) -> view::Lane {
    let (health, reason) = match &status.health {
        Health::Opening => ("opening", None),
        Health::Running => ("running", None),
        Health::Retrying { reason, attempt } => ("retrying", Some(format!("{reason} (attempt {attempt})"))),
        Health::Drained => ("drained", None),
        Health::Stopped { reason } => ("stopped", Some(reason.clone())),
    };
    view::Lane {
        partition: partition.to_string(),
        health: health.to_owned(),
        owner: None,
        reason,
        committed: status.committed,
        lag: None,
    }
}

/// A lane that this host does not work on.
fn elsewhere(partition: &TopicPartition) -> view::Lane {
    view::Lane {
        partition: partition.to_string(),
        health: "elsewhere".to_owned(),
        owner: None,
        reason: None,
        committed: None,
        lag: None,
    }
}

/// How long brokers are asked where lanes are: who looks at a pipeline of which one is away wants to see the rest.
const PLACES_WITHIN: Duration = Duration::from_secs(3);

/// Where the pipeline's lanes are, whichever hosts work on them, and why some cannot be seen.
async fn places(host: &Host, spec: &PipelineSpec) -> (Vec<LanePlace>, Option<String>) {
    let (mut places, mut unseen) = (Vec::new(), None);
    for (broker, share) in spec.shares() {
        let Ok(broker) = host.broker(&broker) else { continue };
        match timeout(PLACES_WITHIN, broker.places(&share)).await {
            Ok(Ok(found)) => places.extend(found),
            Ok(Err(error)) => unseen = Some(error.to_string()),
            Err(_) => unseen = Some(format!("broker `{}` does not answer within {PLACES_WITHIN:?}", broker.name())),
        }
    }
    (places, unseen)
}
