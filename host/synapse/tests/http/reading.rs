//! Topics, history and pipelines.

use serde_json::{Value, json};
use synapse_core::{Broker, Event, Timestamp};
use synapse_engine::Health;

use crate::support::*;

const LINES: [(&str, &str); 1] = [("accept", "application/x-ndjson")];

/// Follows `next` to the end.
async fn pages(host: &Host, path: &str) -> Vec<Vec<String>> {
    let (mut pages, mut next) = (Vec::new(), None);
    loop {
        let from = next.map(|next: String| format!("&from={next}")).unwrap_or_default();
        let page = host.get(&format!("{path}{from}")).await;
        pages.push(page.ids());
        match page.json()["next"].as_str() {
            Some(token) => next = Some(token.to_owned()),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn pages_hold_every_event_once_whatever_their_size() {
    let host = Host::start().await;
    host.ensure("t", 3).await;
    host.publish("t", &events(0..50)).await;
    for limit in [1, 7, 50, 51] {
        let pages = pages(&host, &format!("/v1/topics/t/events?limit={limit}")).await;
        assert!(pages.iter().all(|page| page.len() <= limit));
        let mut ids = pages.concat();
        assert_distinct(&ids);
        ids.sort_unstable_by_key(|id| id.parse::<usize>().unwrap());
        assert_eq!(ids, numbers(0..50), "limit {limit}");
    }
}

#[tokio::test]
async fn a_range_includes_its_beginning_and_not_its_end() {
    let host = Host::start().await;
    host.publish("t", &events(0..10)).await;
    let read = async |query: &str| host.get(&format!("/v1/topics/t/events?{query}")).await.ids();
    assert_eq!(read("from=3&to=6").await, ["3", "4", "5"]);
    assert_eq!(read("from=8").await, ["8", "9"]);
    assert_eq!(read("to=2").await, ["0", "1"]);
    assert_eq!(read("from=earliest&to=latest&limit=2").await, ["0", "1"]);
    for nothing in ["from=latest", "to=earliest", "from=5&to=5", "from=6&to=5", "from=99", "type=other"] {
        assert!(read(nothing).await.is_empty(), "{nothing}");
    }
}

#[tokio::test]
async fn a_range_of_time_goes_by_when_events_came() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};
    let time = Arc::new(AtomicI64::new(0));
    let clock = Arc::clone(&time);
    let timed: synapse_brokers::clock::Clock =
        Arc::new(move || Timestamp::from_micros(clock.load(Ordering::Relaxed) * 1_000_000));
    let broker = synapse_brokers::memory::MemoryBroker::with_clock("timed".parse().unwrap(), timed);
    let brokers: Vec<Arc<dyn Broker>> = vec![Arc::new(broker)];
    let host = Host::with(Extras { brokers, ..Extras::default() }).await;
    for id in 0..5 {
        time.store(id * 10, Ordering::Relaxed);
        host.post("t", "application/cloudevents+json", line(id)).await;
        let path = "/v1/topics/t/events?broker=timed";
        host.ask("POST", path, &[("content-type", "application/cloudevents+json")], line(id)).await.ok();
    }
    let read = async |query: &str| host.get(&format!("/v1/topics/timed%2Ft/events?{query}")).await.ids();
    assert_eq!(read("from=1970-01-01T00:00:20Z").await, ["2", "3", "4"]);
    assert_eq!(read("from=1970-01-01T00:00:05Z&to=1970-01-01T00:00:30Z").await, ["1", "2"]);
    assert_eq!(read("to=1970-01-01T01:00:10%2B01:00").await, ["0"]);
    assert_eq!(read("to=2100-01-01T00:00:00Z&limit=2").await, ["0", "1"]);
}

#[tokio::test]
async fn partitions_are_merged_by_the_events_own_times() {
    let host = Host::start().await;
    host.ensure("t", 4).await;
    let timed = |id: usize| Event { time: Some(Timestamp::from_micros(id as i64)), ..event(id) };
    host.publish("t", &(0..100).map(timed).collect::<Vec<_>>()).await;
    assert_eq!(host.get("/v1/topics/t/events").await.ids(), numbers(0..100));
    let lines = host.ask("GET", "/v1/topics/t/events?limit=40", &LINES, "").await.lines();
    assert_eq!(ids(&lines), numbers(0..40));
}

#[tokio::test]
async fn types_are_chosen_by_pattern() {
    let host = Host::start().await;
    let kinds = ["a.b", "a.b.c", "b", "a.x"];
    let typed: Vec<Event> =
        kinds.iter().enumerate().map(|(id, kind)| Event { kind: (*kind).to_owned(), ..event(id) }).collect();
    host.publish("t", &typed).await;
    assert_eq!(host.get("/v1/topics/t/events?type=a.*").await.ids(), ["0", "3"]);
    assert_eq!(host.get("/v1/topics/t/events?type=a.**").await.ids(), ["0", "1", "3"]);
    // The last page may be empty, but no event of the type is missing.
    assert_eq!(pages(&host, "/v1/topics/t/events?type=b&limit=1").await.concat(), ["2"]);
}

#[tokio::test]
async fn lines_have_no_bound() {
    let host = Host::start().await;
    host.publish("t", &events(0..12_000)).await;
    let lines = host.ask("GET", "/v1/topics/t/events", &LINES, "").await.lines();
    assert_eq!(ids(&lines), numbers(0..12_000));
    assert_eq!(lines[17]["synapseposition"], "local/t/0/17");
    assert_eq!(host.get("/v1/topics/t/events").await.ids().len(), 1000);
}

#[tokio::test]
async fn entries_that_are_no_events_are_told_once() {
    let host = Host::with(Extras { brokers: vec![Odd::broker("odd", None)], ..Extras::default() }).await;
    let page = host.get("/v1/topics/mixed/events?broker=odd").await.ok();
    assert_eq!(ids(page["events"].as_array().unwrap()), ["4"]);
    assert_eq!(page["undecodable"], json!([{"position": "odd/mixed/0/5", "reason": "not JSON"}]));
    assert_eq!(page["next"], Value::Null);
    // An end that lies before the entry leaves it out.
    let page = host.get("/v1/topics/mixed/events?broker=odd&to=5").await.ok();
    assert_eq!((ids(page["events"].as_array().unwrap()), &page["undecodable"]), (vec!["4".to_owned()], &Value::Null));
}

#[tokio::test]
async fn topics_are_listed_of_all_brokers_that_answer() {
    use synapse_core::broker::BrokerErrorKind;
    let away = Odd::broker("away", Some(BrokerErrorKind::Unavailable));
    let host = Host::with(Extras { brokers: vec![away, Odd::broker("odd", None)], ..Extras::default() }).await;
    host.ensure("two", 2).await;
    host.publish("one", &events(0..3)).await;
    let all = host.get("/v1/topics").await.ok();
    let names: Vec<_> = all["topics"].as_array().unwrap().iter().map(|topic| topic["path"].clone()).collect();
    assert_eq!(names, ["local/one", "local/two", "odd/mixed"]);
    assert_eq!(all["unavailable"], json!([{"broker": "away", "reason": "broker `away`: it says no"}]));
    assert_eq!(host.get("/v1/topics?broker=odd").await.ok()["topics"].as_array().unwrap().len(), 1);
    let bytes: usize = events(0..3).iter().collect::<synapse_core::Batch>().bytes().len();
    let expected = json!({
        "path": "local/one", "broker": "local", "name": "one", "events": 3, "bytes": bytes,
        "partitions": [{"partition": 0, "earliest": "0", "latest": "2", "events": 3, "bytes": bytes}],
    });
    assert_eq!(host.get("/v1/topics/one").await.ok(), expected);
    let mixed = host.get("/v1/topics/mixed?broker=odd").await.ok();
    assert_eq!((&mixed["bytes"], &mixed["events"]), (&Value::Null, &json!(3)));
}

/// A host with a pipeline that has handled five events, and one that cannot start.
pub(crate) async fn with_pipelines() -> Host {
    let host = Host::start().await;
    host.publish("in", &events(0..5)).await;
    host.apply(vec![pipeline("copy", "in", "out", "keep-all"), pipeline("broken", "in", "out", "missing")]).await;
    host.ensure("out", 1).await;
    host.stored_at_least("out", 5).await;
    let done = |status: &synapse_engine::PipelineStatus| {
        status.lanes.values().all(|lane| lane.health == Health::Running && lane.committed.is_some())
            && status.state == synapse_engine::PipelineState::Running
    };
    host.pipeline_until("copy", done).await;
    host.pipeline_until("broken", |status| matches!(status.state, synapse_engine::PipelineState::Stopped { .. })).await;
    host
}

#[tokio::test]
async fn pipelines_show_how_they_are() {
    let host = with_pipelines().await;
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let all = host.get("/v1/pipelines").await.ok();
    assert_eq!(all["pipelines"].as_array().unwrap().len(), 2);
    insta::assert_snapshot!("pipeline_broken", text(&host.get("/v1/pipelines/broken").await.ok()));
    insta::assert_snapshot!("pipeline_copy", text(&host.get("/v1/pipelines/copy").await.ok()));
    insta::assert_snapshot!("pipeline_history", text(&host.get("/v1/pipelines/copy/history").await.ok()));
}

#[tokio::test]
async fn a_page_ends_where_too_many_entries_are_no_events() {
    let host = Host::with(Extras { brokers: vec![Odd::broker("odd", None)], ..Extras::default() }).await;
    let (mut pages, mut found, mut next) = (0, 0, "earliest".to_owned());
    loop {
        let page = host.get(&format!("/v1/topics/garbage/events?broker=odd&from={next}")).await.ok();
        assert_eq!(page["events"], json!([]));
        for entry in page["undecodable"].as_array().unwrap() {
            assert_eq!(entry["position"], json!(format!("odd/garbage/0/{found}")));
            found += 1;
        }
        pages += 1;
        match page["next"].as_str() {
            Some(place) => place.clone_into(&mut next),
            None => break,
        }
    }
    assert_eq!((pages, found), (3, GARBAGE));
    let lines =
        host.ask("GET", "/v1/topics/garbage/events?broker=odd", &[("accept", "application/x-ndjson")], "").await;
    assert_eq!((lines.status.as_u16(), lines.text()), (200, ""));
}
