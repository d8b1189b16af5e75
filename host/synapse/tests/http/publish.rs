//! Publishing.

use std::time::Duration;

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use synapse::http::Limits;
use synapse_core::Event;
use synapse_core::codec::cloudevents;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::support::*;

const ONE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const LINES: &str = "application/x-ndjson";

const FULL: &str = r#"{"specversion":"1.0","id":"🛩 1","source":"urn:flights?a=b","type":"flight.departed","subject":"EWR → IAH","time":"2013-01-01T05:15:00.25Z","partitionkey":"N14228","datacontenttype":"application/json","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tenant":"ÄÖ","data":{"dep_delay": 2}}"#;
const BYTES: &str =
    r#"{"specversion":"1.0","id":"2","source":"/s","type":"t","datacontenttype":"image/png","data_base64":"AP8="}"#;

fn events() -> [Event; 2] {
    [FULL, BYTES].map(|json| cloudevents::to_event(json.as_bytes()).unwrap())
}

#[tokio::test]
async fn every_form_is_read_back_as_it_was_published() {
    let host = Host::start().await;
    for json in [FULL, BYTES] {
        let answer = host.post("one", ONE, json).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
    }
    let answer = host.post("batch", BATCH, format!("[{FULL},\n{BYTES}]")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.json(), json!({"positions": ["local/batch/0/0", "local/batch/0/1"]}));
    let answer = host.post("lines", LINES, format!("{FULL}\n{BYTES}\n")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.json(), json!({"accepted": 2, "first": "local/lines/0/0", "last": "local/lines/0/1"}));
    for event in events() {
        let batch = [&event].into_iter().collect::<synapse_core::Batch>();
        let mut headers = Vec::new();
        synapse_core::codec::headers::encode(synapse_core::codec::headers::HTTP, batch.event(0), |name, value| {
            headers.push((name.to_owned(), String::from_utf8(value.to_vec()).unwrap()));
        });
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = host.ask("POST", "/v1/topics/binary/events?broker=local", &headers, event.data.clone()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    }
    for topic in ["one", "batch", "lines", "binary"] {
        assert_eq!(host.stored(topic).await, events(), "{topic}");
        let path = format!("/v1/topics/{topic}/events");
        let answer = host.ask("GET", &path, &[("accept", LINES)], "").await;
        let with_position = |json: &str, at: usize| {
            let data = if json.contains("data_base64") { r#","data_base64":"# } else { r#","data":"# };
            json.replacen(data, &format!(r#","synapseposition":"local/{topic}/0/{at}"{data}"#), 1)
        };
        let [full, bytes] = [with_position(FULL, 0), with_position(BYTES, 1)];
        assert_eq!(answer.text(), format!("{full}\n{bytes}\n"));
        assert_eq!(host.get(&path).await.text(), format!(r#"{{"events":[{full},{bytes}]}}"#));
    }
}

#[tokio::test]
async fn what_is_read_can_be_published_again() {
    let host = Host::start().await;
    host.post("one", LINES, format!("{FULL}\n{BYTES}\n")).await.ok();
    let read = host.ask("GET", "/v1/topics/one/events", &[("accept", LINES)], "").await;
    host.post("two", LINES, read.body).await.ok();
    assert_eq!(host.stored("two").await, events());
}

#[tokio::test]
async fn an_empty_body_publishes_nothing_and_makes_no_topic() {
    let host = Host::start().await;
    for (media, body) in [(BATCH, "[]"), (LINES, ""), (LINES, "\n \r\n\u{feff}")] {
        let answer = host.post("nothing", media, body).await;
        if body.contains('\u{feff}') {
            // A byte order mark means something only at the very beginning.
            assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        } else {
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        }
    }
    assert_eq!(host.get("/v1/topics").await.ok(), json!({"topics": []}));
}

#[tokio::test]
async fn odd_but_harmless_lines_are_read() {
    let host = Host::start().await;
    let body = format!("\u{feff}{}\r\n\r\n   \n\t{}  \n{}", line(1), line(2), line(3));
    assert_eq!(host.post("t", LINES, body).await.ok()["accepted"], 3);
    assert_eq!(host.stored("t").await.iter().map(|event| event.id.clone()).collect::<Vec<_>>(), ["1", "2", "3"]);
}

#[tokio::test]
async fn a_line_that_is_no_event_ends_it_and_what_came_before_is_durable() {
    let host = Host::start().await;
    let answer = host.post("t", LINES, format!("{}\n\n{}\n{{}}\n{}\n", line(1), line(2), line(3))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let expected = json!({
        "type": "urn:synapse:problem:not-an-event",
        "title": "What was sent is no event",
        "status": 400,
        "detail": "line 4: `specversion` is missing; 2 events before that are durable",
        "reason": "`specversion` is missing",
        "line": 4,
        "accepted": 2,
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(host.stored("t").await.len(), 2);
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let host = Host::start().await;
    let mut body = "no event\n".to_owned();
    while body.len() < 8 << 20 {
        body.push_str(&line(1));
        body.push('\n');
    }
    let answer = host.post("t", LINES, body).await;
    assert_eq!((answer.status, answer.json()["line"].clone()), (StatusCode::BAD_REQUEST, json!(1)));
}

#[tokio::test]
async fn more_than_one_batch_keeps_its_order() {
    let host = Host::start().await;
    let body: String = (0..3000).map(|id| line(id) + "\n").collect();
    let answer = host.post("t", LINES, body).await.ok();
    assert_eq!(answer, json!({"accepted": 3000, "first": "local/t/0/0", "last": "local/t/0/2999"}));
    let stored: Vec<_> = host.stored("t").await.into_iter().map(|event| event.id).collect();
    assert_eq!(stored, numbers(0..3000));
}

#[tokio::test]
async fn lines_come_however_they_are_cut() {
    let host = Host::start().await;
    let pool = Pool::builder(TokioExecutor::new()).build_http();
    let body: String = (0..6).map(|id| format!("{}\r\n\n", line(format!("🛩{id}")))).collect();
    for size in [1, 2, 3, 7, 50, 1000] {
        let pieces: Vec<_> = body.as_bytes().chunks(size).map(bytes::Bytes::copy_from_slice).collect();
        let frames = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)));
        let request = Request::post(format!("{}/v1/topics/cut-{size}/events", host.url()));
        let frames = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let answer = pool.request(request.header("content-type", LINES).body(frames).unwrap()).await.unwrap();
        assert_eq!(Answer::of(answer).await.ok()["accepted"], 6);
        let ids: Vec<String> = host.stored(&format!("cut-{size}")).await.into_iter().map(|event| event.id).collect();
        assert_eq!(ids, ["🛩0", "🛩1", "🛩2", "🛩3", "🛩4", "🛩5"]);
    }
}

/// Posts NDJSON whose pieces the test hands in one by one.
fn open_ended(host: &Host) -> (mpsc::Sender<&'static str>, tokio::task::JoinHandle<serde_json::Value>) {
    let (sender, mut pieces) = mpsc::channel(1);
    let frames = futures_util::stream::poll_fn(move |context| {
        pieces.poll_recv(context).map(|piece: Option<&'static str>| {
            piece.map(|piece| Ok::<_, std::io::Error>(Frame::data(bytes::Bytes::from_static(piece.as_bytes()))))
        })
    });
    let request = Request::post(format!("{}/v1/topics/t/events", host.url())).header("content-type", LINES);
    let request = request.body(StreamBody::new(frames).boxed_unsync()).unwrap();
    let pool = Pool::builder(TokioExecutor::new()).build_http();
    (sender, tokio::spawn(async move { Answer::of(pool.request(request).await.unwrap()).await.json() }))
}

#[tokio::test]
async fn what_has_arrived_is_published_before_the_body_ends() {
    let host = Host::start().await;
    host.ensure("t", 1).await;
    let (pieces, answer) = open_ended(&host);
    let first = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
    pieces.send(first).await.unwrap();
    pieces.send("\n{\"specversion\":").await.unwrap();
    assert_eq!(host.stored_at_least("t", 1).await[0].id, "1");
    pieces.send(r#""1.0","id":"2","source":"/s","type":"t"}"#).await.unwrap();
    drop(pieces);
    assert_eq!(answer.await.unwrap()["accepted"], 2);
}

#[tokio::test]
async fn a_host_that_ends_says_how_far_it_came() {
    let mut host = Host::start().await;
    host.ensure("t", 1).await;
    let (pieces, answer) = open_ended(&host);
    pieces.send("{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}\n{").await.unwrap();
    host.stored_at_least("t", 1).await;
    host.end();
    let problem = answer.await.unwrap();
    assert_eq!((problem["status"].as_u64(), problem["accepted"].as_u64()), (Some(503), Some(1)));
    drop(pieces);
    host.ended().await;
}

fn small() -> Extras {
    let limits = Limits { body_bytes_max: 1000, line_bytes_max: 200, ..Limits::default() };
    Extras { limits, ..Extras::default() }
}

#[tokio::test]
async fn bodies_and_lines_have_bounds_but_streams_have_none() {
    let host = Host::with(small()).await;
    let lines: Vec<String> = (0..100).map(line).collect();
    let answer = host.post("t", BATCH, format!("[{}]", lines.join(","))).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(host.post("t", LINES, lines.join("\n")).await.ok()["accepted"], 100);
    let long = line("x".repeat(200));
    let answer = host.post("t", LINES, [line(1), line(2), long, line(3)].join("\n")).await;
    let problem = answer.json();
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!((problem["line"].as_u64(), problem["accepted"].as_u64()), (Some(3), Some(2)));
    assert_eq!(host.stored("t").await.len(), 102);
}

/// Speaks HTTP by hand and reads until the other side closes.
async fn by_hand(host: &Host, text: &str) -> String {
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it closes").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_chunked_body_is_bounded_too() {
    let host = Host::with(small()).await;
    let chunk = format!("200\r\n{}\r\n", "x".repeat(0x200));
    let head = "POST /v1/topics/t/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let body = format!("content-type: {ONE}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    let answer = by_hand(&host, &format!("{head}{body}")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn slow_headers_and_bodies_are_cut_off() {
    // Long enough for those who are not slow, on a busy machine.
    let headers_wait_max = Duration::from_secs(1);
    let limits = Limits { headers_wait_max, body_wait_max: Duration::from_millis(50), ..Limits::default() };
    let host = Host::with(Extras { limits, ..Extras::default() }).await;
    assert_eq!(by_hand(&host, "GET /healthz HTTP/1.1\r\nhost: local").await, "");
    let head = "POST /v1/topics/t/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let body = format!("content-type: {ONE}\r\ncontent-length: 10\r\n\r\n{{");
    let answer = by_hand(&host, &format!("{head}{body}")).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // Others are served all the while.
    assert_eq!(host.get("/healthz").await.text(), "ok\n");
}

#[tokio::test]
async fn a_body_that_breaks_off_publishes_no_half_line() {
    let host = Host::start().await;
    host.ensure("t", 1).await;
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    let head = format!("POST /v1/topics/t/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: {LINES}\r\n");
    let whole = line(1);
    // The second line is an event as far as it goes.
    let text = format!("{head}content-length: 100000\r\n\r\n{whole}\n{whole}");
    stream.write_all(text.as_bytes()).await.unwrap();
    host.stored_at_least("t", 1).await;
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // An answer or none: what counts is that the host is done with it.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it closes");
    assert_eq!(host.stored("t").await.len(), 1);
}

#[tokio::test]
async fn a_configured_topic_is_made_as_it_is_configured() {
    let spec = synapse_core::spec::TopicSpec {
        partitions: std::num::NonZeroU32::new(3).unwrap(),
        retention: synapse_core::spec::Retention { events: Some(5), ..Default::default() },
    };
    let topics = [("local/wide".parse().unwrap(), spec)].into_iter().collect();
    let host = Host::with(Extras { topics, ..Extras::default() }).await;
    host.post("wide", ONE, line(1)).await.ok();
    let topic = host.get("/v1/topics/wide").await.ok();
    assert_eq!(topic["partitions"].as_array().unwrap().len(), 3);
    assert_eq!(topic["retention"], json!({"age-seconds": null, "bytes": null, "events": 5}));
}

#[tokio::test]
async fn what_is_under_way_when_the_host_ends_is_answered() {
    let (slow, held) = Odd::slow("slow");
    let host = Host::with(Extras { brokers: vec![slow], ..Extras::default() }).await;
    let ending = async {
        held.begun.notified().await;
        host.end();
        held.pass.notify_one();
    };
    let (answer, ()) = tokio::join!(host.post("slow%2Fmixed", ONE, FULL), ending);
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    assert_eq!(answer.json(), json!({"positions": ["slow/mixed/0/6"]}));
}
