//! Live streams.

use std::time::Duration;

use synapse::http::Limits;
use synapse_core::{Event, Offset};

use crate::support::*;

#[tokio::test]
async fn a_client_that_comes_back_misses_nothing_and_sees_nothing_twice() {
    let host = Host::start().await;
    host.ensure("t", 3).await;
    host.publish("t", &events(0..40)).await;
    let (mut seen, mut last) = (Vec::new(), None);
    let mut published = 40;
    // It leaves after a few events each time, with more of them on the way to it.
    for leaves_after in (1..8).cycle() {
        let mut stream = Stream::open(&host, "/v1/topics/t/events?from=earliest", last.as_deref()).await;
        for _ in 0..leaves_after {
            if seen.len() == 200 {
                break;
            }
            if seen.len() == published {
                host.publish("t", &events(published..published + 20)).await;
                published += 20;
            }
            let (id, event) = stream.event().await;
            seen.push((
                event["synapseposition"].as_str().unwrap().to_owned(),
                event["id"].as_str().unwrap().to_owned(),
            ));
            last = Some(id);
        }
        if seen.len() == 200 {
            break;
        }
    }
    let ids: Vec<String> = seen.iter().map(|(_, id)| id.clone()).collect();
    assert_distinct(&ids);
    for partition in 0..3 {
        let of = |(position, _): &&(String, String)| position.starts_with(&format!("local/t/{partition}/"));
        let offsets: Vec<Offset> = seen
            .iter()
            .filter(of)
            .map(|(position, _)| position.parse::<synapse_core::Position>().unwrap().offset)
            .collect();
        assert!(offsets.is_sorted(), "{offsets:?}");
    }
}

#[tokio::test]
async fn what_comes_while_a_client_is_away_is_not_missed_even_if_it_saw_nothing() {
    let host = Host::start().await;
    host.ensure("t", 2).await;
    host.publish("t", &events(0..1)).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events", None).await;
    let id = stream.next().await.unwrap().id.unwrap();
    drop(stream);
    host.publish("t", &events(1..9)).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events", Some(&id)).await;
    let mut ids = Vec::new();
    for _ in 1..9 {
        ids.push(stream.event().await.1["id"].as_str().unwrap().to_owned());
    }
    ids.sort_unstable();
    assert_eq!(ids, numbers(1..9));
}

#[tokio::test]
async fn events_come_as_they_are_published() {
    let host = Host::start().await;
    host.ensure("t", 1).await;
    host.publish("t", &events(0..3)).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events", None).await;
    for id in 3..6 {
        host.publish("t", &events(id..id + 1)).await;
        assert_eq!(stream.event().await.1["id"], id.to_string());
    }
}

#[tokio::test]
async fn a_limit_and_a_type_choose() {
    let host = Host::start().await;
    let kinds = ["a", "b", "a", "b", "a"];
    let typed: Vec<Event> =
        kinds.iter().enumerate().map(|(id, kind)| Event { kind: (*kind).to_owned(), ..event(id) }).collect();
    host.publish("t", &typed).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events?from=earliest&type=a&limit=2", None).await;
    assert_eq!(stream.event().await.1["id"], "0");
    assert_eq!(stream.event().await.1["id"], "2");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn an_idle_stream_says_where_it_is_and_finds_new_partitions() {
    let limits = Limits { heartbeat: Duration::from_millis(20), ..Limits::default() };
    let host = Host::with(Extras { limits, ..Extras::default() }).await;
    host.ensure("t", 1).await;
    host.publish("t", &events(0..2)).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events?from=earliest&type=none", None).await;
    let first = stream.next().await.unwrap();
    assert_eq!((first.id.as_deref(), first.data.as_str()), (Some("*@earliest"), ""));
    // Events that are not wanted move it on all the same.
    while stream.next().await.unwrap().id.as_deref() != Some("0@1") {}
    let mut stream = Stream::open(&host, "/v1/topics/t/events", None).await;
    host.ensure("t", 4).await;
    host.publish("t", &events(2..30)).await;
    let mut ids = Vec::new();
    for _ in 2..30 {
        ids.push(stream.event().await.1["id"].as_str().unwrap().to_owned());
    }
    ids.sort_unstable_by_key(|id| id.parse::<usize>().unwrap());
    assert_eq!(ids, numbers(2..30));
}

#[tokio::test]
async fn what_cannot_be_shown_is_told() {
    let host = Host::with(Extras { brokers: vec![Odd::broker("odd", None)], ..Extras::default() }).await;
    let mut stream = Stream::open(&host, "/v1/topics/mixed/events?broker=odd", None).await;
    stream.next().await.unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        let sent = stream.next().await.unwrap();
        told.push((sent.name, sent.data));
    }
    let expected = [
        ("lost", r#"{"partition":"odd/mixed/0","events":3}"#),
        ("undecodable", r#"{"position":"odd/mixed/0/5","reason":"not JSON"}"#),
    ];
    for ((name, data), expected) in told.iter().zip(expected) {
        assert_eq!((name.as_str(), data.as_str()), expected);
    }
    assert!(told[2].1.contains(r#""synapseposition":"odd/mixed/0/4""#));
}

#[tokio::test]
async fn streams_end_with_the_host() {
    let mut host = Host::start().await;
    host.ensure("t", 1).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events", None).await;
    stream.next().await.unwrap();
    host.ended().await;
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_free() {
    let limits = Limits { connections_max: 1, heartbeat: Duration::from_millis(20), ..Limits::default() };
    let host = Host::with(Extras { limits, ..Extras::default() }).await;
    host.ensure("t", 1).await;
    let mut stream = Stream::open(&host, "/v1/topics/t/events", None).await;
    stream.next().await.unwrap();
    let health = host.get("/healthz");
    tokio::pin!(health);
    // The one place is taken: the stream goes on, the question waits.
    tokio::select! {
        _ = &mut health => panic!("there is only one place"),
        _ = async { for _ in 0..3 { stream.next().await.unwrap(); } } => {}
    }
    drop(stream);
    assert_eq!(health.await.text(), "ok\n");
}
