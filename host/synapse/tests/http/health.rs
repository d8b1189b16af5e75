//! Metrics, liveness and readiness.

use serde_json::json;
use synapse::http::Phase;
use synapse_core::broker::BrokerErrorKind;

use crate::reading::with_pipelines;
use crate::support::*;

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let host = with_pipelines().await;
    host.post("t", "application/cloudevents+json", line(1)).await.ok();
    host.get("/v1/topics/t").await.ok();
    host.get("/nowhere").await;
    let answer = host.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4");
    let mut samples = std::collections::BTreeMap::new();
    for line in answer.text().lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(samples.insert(name.to_owned(), value).is_none(), "{name} is there twice");
    }
    let sample = |name: &str| samples.get(name).copied();
    let requests = |method: &str, route: &str, status: u16| {
        let labels = format!(r#"method="{method}",route="{route}",status="{status}""#);
        sample(&format!("synapse_http_requests_total{{{labels}}}"))
    };
    assert_eq!(requests("POST", "/v1/topics/{topic}/events", 202), Some(1.0));
    assert_eq!(requests("GET", "/v1/topics/{topic}", 200), Some(1.0));
    assert_eq!(requests("GET", "unknown", 404), Some(1.0));
    assert_eq!(sample(r#"synapse_http_events_published_total{broker="local"}"#), Some(1.0));
    assert_eq!(sample(r#"synapse_events_committed_total{pipeline="copy",tenant="default"}"#), Some(5.0));
}

#[tokio::test]
async fn a_host_is_ready_once_it_serves() {
    let host = Host::start().await;
    host.phase.send_replace(Phase::Starting);
    let answer = host.get("/readyz").await;
    assert_eq!(answer.status, 503);
    let expected = json!({"ready": false, "reasons": ["the host is starting"], "stopped": [], "retrying": []});
    assert_eq!(answer.json(), expected);
    host.phase.send_replace(Phase::Serving);
    assert_eq!(host.get("/readyz").await.ok()["ready"], true);
    host.phase.send_replace(Phase::Draining);
    assert_eq!(host.get("/readyz").await.json()["reasons"], json!(["the host is ending"]));
    assert_eq!(host.get("/healthz").await.text(), "ok\n");
}

#[tokio::test]
async fn a_stopped_pipeline_is_told_and_does_not_make_the_host_unready() {
    let host = with_pipelines().await;
    let ready = host.get("/readyz").await.ok();
    assert_eq!(ready["stopped"], json!(["pipeline `broken`: `missing` is no component"]));
}

#[tokio::test]
async fn a_broker_that_is_away_makes_the_host_unready() {
    let away = Odd::broker("bus", Some(BrokerErrorKind::Unreachable));
    let host = Host::with(Extras { brokers: vec![away], ..Extras::default() }).await;
    host.apply(vec![pipeline("waits", "bus/in", "out", "keep-all")]).await;
    host.pipeline_until("waits", |status| status.refused.is_some()).await;
    let answer = host.get("/readyz").await;
    assert_eq!(answer.status, 503);
    let reasons = ["broker `bus`: nobody is there", "pipeline `waits` waits: broker `bus`: nobody is there"];
    assert_eq!(answer.json()["reasons"], json!(reasons));
    let waits = &host.get("/v1/pipelines").await.ok()["pipelines"][0];
    assert_eq!([&waits["state"], &waits["reason"]], ["waiting", "broker `bus`: nobody is there"]);
}
