//! Liveness, readiness and metrics, for whoever keeps the host running.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use prometheus::TextEncoder;
use synapse_engine::{Health, PipelineState};
use tokio::time::{Duration, timeout};

use super::problem::{Kind, Problem};
use super::{Host, Phase, pipelines, view};

/// How long a broker may take to answer before it counts as away.
const BROKER_WAIT: Duration = Duration::from_secs(2);

/// `GET /healthz`: the process answers.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// `GET /metrics`: Prometheus' text format.
pub(super) async fn metrics(State(host): State<Host>) -> Result<Response, Problem> {
    let text = TextEncoder::new().encode_to_string(&host.api.0.registry.gather());
    let text = text.map_err(|error| Problem::new(Kind::Defect, format!("metrics cannot be written: {error}")))?;
    Ok(([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// `GET /readyz`: 200 if the host can be relied on, else 503 and why.
pub(super) async fn ready(State(host): State<Host>) -> Response {
    let mut readiness =
        view::Readiness { ready: false, reasons: Vec::new(), stopped: Vec::new(), retrying: Vec::new() };
    match *host.api.0.phase.borrow() {
        Phase::Starting => readiness.reasons.push("the host is starting".to_owned()),
        Phase::Serving => {}
        Phase::Draining => readiness.reasons.push("the host is ending".to_owned()),
    }
    readiness.reasons.extend(brokers_away(&host).await);
    look_at_pipelines(&host, &mut readiness);
    readiness.ready = readiness.reasons.is_empty();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// Which brokers cannot be reached or take no writes.
async fn brokers_away(host: &Host) -> Vec<String> {
    let asked = host.api.0.brokers.all().into_iter().map(|broker| async move {
        if let Some(why) = broker.away() {
            return Some(format!("broker `{}`: {why}", broker.name()));
        }
        match timeout(BROKER_WAIT, broker.health()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => {
                let seconds = BROKER_WAIT.as_secs();
                Some(format!("broker `{}`: no answer within {seconds} s", broker.name()))
            }
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn look_at_pipelines(host: &Host, readiness: &mut view::Readiness) {
    for (name, (spec, status)) in host.api.0.engine.status() {
        match status.state {
            PipelineState::Starting | PipelineState::Running if let Some(why) = pipelines::waits(host, &spec) => {
                readiness.reasons.push(format!("pipeline `{name}` waits: {why}"));
            }
            PipelineState::Starting => {
                let why = status.refused.map(|reason| format!(": {reason}")).unwrap_or_default();
                readiness.reasons.push(format!("pipeline `{name}` is starting{why}"));
            }
            PipelineState::Stopped { reason } => readiness.stopped.push(format!("pipeline `{name}`: {reason}")),
            PipelineState::Running | PipelineState::Ended => {}
        }
        for (partition, lane) in status.lanes {
            match lane.health {
                Health::Opening => readiness.reasons.push(format!("pipeline `{name}` is opening its lane {partition}")),
                Health::Retrying { reason, .. } => {
                    readiness.retrying.push(format!("pipeline `{name}`, lane {partition}: {reason}"));
                }
                Health::Running | Health::Drained | Health::Stopped { .. } => {}
            }
        }
    }
}
