//! Every error that a client can see, word for word.

use std::fmt::Write;

use synapse::http::Limits;
use synapse_core::broker::BrokerErrorKind;

use crate::support::*;

const ONE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const LINES: &str = "application/x-ndjson";
const EVENTS: &str = "/v1/topics/t/events";
const LIVE: (&str, &str) = ("accept", "text/event-stream");

type Case<'c> = (&'c str, &'c str, &'c [(&'c str, &'c str)], &'c str);

async fn host() -> Host {
    let kinds = [
        ("away", BrokerErrorKind::Unavailable),
        ("far", BrokerErrorKind::Unreachable),
        ("full", BrokerErrorKind::Full),
        ("fenced", BrokerErrorKind::Fenced),
        ("refusing", BrokerErrorKind::Refused),
        ("picky", BrokerErrorKind::Invalid),
        ("rotten", BrokerErrorKind::Corrupt),
    ];
    let brokers = kinds.map(|(name, kind)| Odd::broker(name, Some(kind))).into();
    let limits = Limits { body_bytes_max: 4000, line_bytes_max: 300, ..Limits::default() };
    let host = Host::with(Extras { brokers, limits, ..Extras::default() }).await;
    host.ensure("t", 1).await;
    host.publish("one", &events(0..1)).await;
    host
}

#[tokio::test]
async fn every_problem_is_one_clear_sentence() {
    let host = host().await;
    let one = [("content-type", ONE)];
    let lines = [("content-type", LINES)];
    let good = line(1);
    let long = line("x".repeat(4000));
    let cases: &[Case<'_>] = &[
        ("GET", "/v2/topics", &[], ""),
        ("DELETE", EVENTS, &[], ""),
        ("GET", "/v1/topics/none", &[], ""),
        ("GET", "/v1/topics/none/events", &[], ""),
        ("GET", "/v1/topics/t%20t", &[], ""),
        ("GET", "/v1/topics/t?broker=none", &[], ""),
        ("GET", "/v1/topics/local%2Ft?broker=away", &[], ""),
        ("GET", "/v1/topics?form=1", &[], ""),
        ("GET", "/v1/pipelines/none", &[], ""),
        ("GET", "/v1/pipelines/no%0Ane/history", &[], ""),
        ("GET", "/v1/topics/t/events?from=yesterday", &[], ""),
        ("GET", "/v1/topics/t/events?to=0@1", &[], ""),
        ("GET", "/v1/topics/one/events?from=1-1", &[], ""),
        ("GET", "/v1/topics/t/events?type=a%20b", &[], ""),
        ("GET", "/v1/topics/t/events?limit=0", &[], ""),
        ("GET", "/v1/topics/t/events?limit=10001", &[], ""),
        ("GET", "/v1/topics/t/events?to=5", &[LIVE], ""),
        ("GET", EVENTS, &[LIVE, ("last-event-id", "17@")], ""),
        ("POST", EVENTS, &[], "{}"),
        ("POST", EVENTS, &[("content-type", "application/cloudevents+avro")], "{}"),
        ("POST", EVENTS, &[("content-type", ONE), ("content-encoding", "gzip")], "{}"),
        ("POST", EVENTS, &one, ""),
        ("POST", EVENTS, &one, r#"{"specversion":"1.0","source":"/s","type":"t"}"#),
        ("POST", EVENTS, &one, &long),
        ("POST", EVENTS, &[("content-type", BATCH)], r#"[{"specversion":"1.0","id":"1","source":"/s"}]"#),
        ("POST", EVENTS, &[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "t")], "data"),
        ("POST", EVENTS, &lines, "{\"specversion\":\"1.0\"}"),
        ("POST", EVENTS, &lines, "{,}"),
        ("POST", EVENTS, &lines, &long),
        ("POST", EVENTS, &[("sec-fetch-site", "cross-site"), ("content-type", ONE)], &good),
        ("POST", EVENTS, &[("origin", "http://evil.example"), ("content-type", ONE)], &good),
        ("GET", EVENTS, &[("host", "evil.example")], ""),
        ("GET", "/v1/topics/x?broker=away", &[], ""),
        ("POST", "/v1/topics/x/events?broker=full", &one, &good),
        ("POST", "/v1/topics/x/events?broker=fenced", &one, &good),
        ("POST", "/v1/topics/x/events?broker=refusing", &one, &good),
        ("POST", "/v1/topics/x/events?broker=picky", &one, &good),
        ("POST", "/v1/topics/x/events?broker=rotten", &one, &good),
        ("POST", "/v1/topics/x/events?broker=away", &lines, &good),
        ("POST", "/v1/topics/x/events?broker=far", &lines, &good),
        ("POST", "/v1/topics/far/x/events", &lines, &good),
        ("GET", "/v1/topics/x/evnts", &[], ""),
    ];
    let mut all = String::new();
    for (method, path, headers, body) in cases {
        let answer = host.ask(method, path, headers, body.to_string()).await;
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{method} {path}");
        let problem: synapse::http::view::Problem = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((problem.status, problem.status >= 400), (answer.status.as_u16(), true));
        let shown = headers.iter().map(|(name, value)| format!(" {name}: {value};")).collect::<String>();
        let kind = problem.kind.strip_prefix("urn:synapse:problem:").unwrap();
        writeln!(all, "{method} {path}{shown}").unwrap();
        writeln!(all, "  {} {kind}: {}", problem.status, problem.title).unwrap();
        writeln!(all, "  {}", problem.detail).unwrap();
        if problem.line.is_some() || problem.accepted.is_some() {
            writeln!(all, "  line {:?}, accepted {:?}: {:?}", problem.line, problem.accepted, problem.reason).unwrap();
        }
    }
    insta::assert_snapshot!("problems", all);
    assert!(host.stored("t").await.is_empty());
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let host = host().await;
    let answer = host.ask("DELETE", EVENTS, &[], "").await;
    let mut allowed: Vec<&str> = answer.headers["allow"].to_str().unwrap().split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
}

#[tokio::test]
async fn a_host_that_is_away_is_asked_to_be_tried_again() {
    let host = host().await;
    assert_eq!(host.get("/v1/topics/x?broker=away").await.headers["retry-after"], "1");
}

#[tokio::test]
async fn a_page_of_our_own_may_publish() {
    let host = host().await;
    let headers = [("content-type", ONE), ("sec-fetch-site", "same-origin")];
    assert_eq!(host.ask("POST", EVENTS, &headers, line(1)).await.status, 202);
}
