//! The commands that speak to a running host.

use std::io::{Read, Write};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use synapse::client::{Client, Output, output, pipeline, publish, tail, topic};
use synapse_core::Event;
use synapse_core::broker::BrokerErrorKind;
use tokio::net::TcpListener;

use crate::reading::with_pipelines;
use crate::support::*;

#[derive(Parser)]
enum Cli {
    Publish(publish::Args),
    Tail(tail::Args),
    Topic(topic::Args),
    Pipeline(pipeline::Args),
}

/// What a command printed, and what it noted beside that.
struct Ran {
    result: anyhow::Result<()>,
    out: String,
    notes: String,
}

impl Ran {
    fn ok(self) -> String {
        self.result.unwrap();
        self.out
    }

    fn error(self) -> String {
        format!("{:#}", self.result.unwrap_err())
    }
}

async fn run_on(host: &Host, words: &[&str], input: &[u8]) -> Ran {
    let (json, words): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| **word == "--json");
    let words = std::iter::once("synapse").chain(words);
    let (out, notes) = (Printed::default(), Printed::default());
    let mut output = Output::new(!json.is_empty(), Box::new(out.clone()), Box::new(notes.clone()), false);
    let client = host.client();
    let input: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(input.to_vec()));
    let running = async {
        match Cli::try_parse_from(words).unwrap() {
            Cli::Publish(args) if args.file.as_os_str() == "-" => {
                publish::run_on(input, args, &client, &mut output).await
            }
            Cli::Publish(args) => publish::run(args, &client, &mut output).await,
            Cli::Tail(args) => tail::run(args, &client, &mut output).await,
            Cli::Topic(args) => topic::run(args, &client, &mut output).await,
            Cli::Pipeline(args) => pipeline::run(args, &client, &mut output).await,
        }
    };
    let result = tokio::time::timeout(PATIENCE, running).await.expect("the command ends");
    Ran { result, out: out.text(), notes: notes.text() }
}

async fn run(host: &Host, words: &[&str]) -> Ran {
    run_on(host, words, b"").await
}

/// A text without its measurements.
fn timeless(text: &str) -> String {
    let (start, _) = text.split_once(" in ").unwrap();
    start.to_owned()
}

#[tokio::test]
async fn publish_reads_odd_but_harmless_input() {
    let host = Host::start().await;
    assert_eq!(timeless(&run(&host, &["publish", "t"]).await.ok()), "0 events published to t");
    let text = format!("\u{feff}{}\r\n\n \r\n{}\n{}", line(0), line(1), line(2));
    assert_eq!(timeless(&run_on(&host, &["publish", "t", "-"], text.as_bytes()).await.ok()), "3 events published to t");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(format!("{}\n", line(3)).as_bytes()).unwrap();
    let mut file = tempfile::Builder::new().suffix(".ndjson.gz").tempfile().unwrap();
    let mut members = gzip.finish().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(line(4).as_bytes()).unwrap();
    members.extend(gzip.finish().unwrap());
    file.write_all(&members).unwrap();
    let words = ["publish", "local/t", file.path().to_str().unwrap(), "--json"];
    let report: Value = serde_json::from_str(&run(&host, &words).await.ok()).unwrap();
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!((&report["topic"], &report["accepted"]), (&json!("local/t"), &json!(2)));
    assert_eq!((&report["first"], &report["last"]), (&json!("local/t/0/3"), &json!("local/t/0/4")));
    let ids: Vec<String> = host.stored("t").await.into_iter().map(|event| event.id).collect();
    assert_eq!(ids, numbers(0..5));
}

#[tokio::test]
async fn publish_says_which_line_is_wrong_and_what_is_durable() {
    let host = Host::start().await;
    let with = |bad: &str| format!("{}\n\n{bad}\n{}\n", line(1), line(2));
    // Wrong already here, and wrong only to the host.
    for bad in ["{,}", "{\"specversion\":\"1.0\",\"type\":\"t\",\"time\":\"noon\"}"] {
        let error = run_on(&host, &["publish", "t"], with(bad).as_bytes()).await.error();
        let place = "line 3: ";
        assert!(error.starts_with(place) && error.ends_with("; 1 event before that is durable"), "{error}");
    }
    assert_eq!(host.stored("t").await.len(), 2);
    let error = run_on(&host, &["publish", "t"], with("{,}").as_bytes()).await.error();
    insta::assert_snapshot!(error, @"line 3: not JSON: key must be a string at column 2; 1 event before that is durable");
    let error = run_on(&host, &["publish", "t"], b"\x1f\x8bnot gzip").await.error();
    assert!(error.starts_with("line 1: cannot read the input: "), "{error}");
    let long = line("x".repeat(5 << 20));
    insta::assert_snapshot!(run_on(&host, &["publish", "t"], long.as_bytes()).await.error(), @"line 1: is longer than 4194304 bytes; 0 events before that are durable");
    insta::assert_snapshot!(run(&host, &["publish", "t", "/nowhere/x"]).await.error(), @"cannot open `/nowhere/x`: No such file or directory (os error 2)");
    insta::assert_snapshot!(run_on(&host, &["publish", "none/t"], line(1).as_bytes()).await.error(), @"there is no broker `none`; the configuration has `local`; 0 events before that are durable");
}

#[tokio::test]
async fn publish_fills_in_what_lines_lack() {
    let host = Host::start().await;
    let input = b"{\"n\":1}\nplain text\n";
    run_on(&host, &["publish", "raw", "--raw", "--type", "note", "--key", "k", "--source", "me"], input).await.ok();
    let stored = host.stored("raw").await;
    let data: Vec<_> = stored.iter().map(|event| (event.content_type.as_deref().unwrap(), &event.data[..])).collect();
    assert_eq!(data, [("application/json", &b"{\"n\":1}"[..]), ("text/plain", b"plain text")]);
    for event in &stored {
        assert_eq!(
            (event.kind.as_str(), event.source.as_str(), event.partition_key.as_deref()),
            ("note", "me", Some("k"))
        );
        assert!(event.time.is_some() && event.id.len() == 36);
    }
}

#[tokio::test]
async fn publish_takes_many_requests_for_much_input() {
    let host = Host::start().await;
    let input: String = (0..60_000).map(|id| line(id) + "\n").collect();
    assert_eq!(
        timeless(&run_on(&host, &["publish", "t"], input.as_bytes()).await.ok()),
        "60,000 events published to t"
    );
    let ids: Vec<String> = host.stored("t").await.into_iter().map(|event| event.id).collect();
    assert_eq!(ids, numbers(0..60_000));
}

#[tokio::test]
async fn publish_does_not_wait_for_more_input() {
    let host = Host::start().await;
    host.ensure("t", 1).await;
    let (reader, mut writer) = std::io::pipe().unwrap();
    let client = host.client();
    let Cli::Publish(args) = Cli::try_parse_from(["synapse", "publish", "t"]).unwrap() else { unreachable!() };
    let publishing = tokio::spawn(async move {
        let printed = Printed::default();
        let mut output = Output::new(false, Box::new(printed.clone()), Box::new(Printed::default()), false);
        publish::run_on(Box::new(reader), args, &client, &mut output).await.unwrap();
        printed.text()
    });
    // The second line has begun, but the first one does not wait for it.
    writer.write_all(format!("{}\n{{\"spec", line(0)).as_bytes()).unwrap();
    assert_eq!(host.stored_at_least("t", 1).await[0].id, "0");
    writer.write_all(&line(1).as_bytes()[6..]).unwrap();
    drop(writer);
    assert_eq!(timeless(&publishing.await.unwrap()), "2 events published to t");
}

#[tokio::test]
async fn tail_prints_a_line_an_event() {
    let host = Host::start().await;
    let odd = Event {
        id: "1".to_owned(),
        source: "/s".to_owned(),
        kind: "a\u{1b}[2Jb".to_owned(),
        time: Some("2013-01-01T05:15:00Z".parse().unwrap()),
        content_type: Some("text/plain".to_owned()),
        data: "line\nbreak \u{202e}".as_bytes().to_vec(),
        ..Event::default()
    };
    let bytes = Event { data: vec![0xff; 1500], content_type: Some("image/png".to_owned()), ..event(2) };
    let long = Event { data: vec![b'x'; 500], content_type: Some("text/plain".to_owned()), ..event(3) };
    host.publish("t", &[odd, bytes, long]).await;
    let printed = run(&host, &["tail", "t", "--from", "earliest", "--limit", "3"]).await.ok();
    insta::assert_snapshot!("tail", printed);
    assert!(printed.lines().all(|line| !line.contains(char::is_control)));
    let json = run(&host, &["tail", "local/t", "--from", "1", "--limit", "1", "--json"]).await.ok();
    let event: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&event["id"], &event["synapseposition"]), (&json!("2"), &json!("local/t/0/1")));
    let chosen =
        run(&host, &["tail", "t", "--from", "earliest", "--type", "num*", "--limit", "1", "--json"]).await.ok();
    assert_eq!(serde_json::from_str::<Value>(&chosen).unwrap()["id"], "2");
}

#[tokio::test]
async fn tail_merges_topics_as_their_events_come() {
    let host = Host::start().await;
    host.publish("one", &events(0..10)).await;
    host.publish("two", &events(10..20)).await;
    let printed = run(&host, &["tail", "one", "two", "--from", "earliest", "--limit", "20", "--json"]).await.ok();
    let mut ids: Vec<String> = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().into())
        .collect();
    ids.sort_unstable_by_key(|id| id.parse::<usize>().unwrap());
    assert_eq!(ids, numbers(0..20));
}

/// Waits until something is printed.
async fn until(printed: &Printed, text: &str) {
    let wait = async {
        while !printed.text().contains(text) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it is printed");
}

#[tokio::test]
async fn tail_waits_for_a_topic_and_misses_nothing_of_it() {
    let host = Host::start().await;
    for (topic, words) in [("one", &[][..]), ("two", &["--from", "earliest"])] {
        let (out, notes) = (Printed::default(), Printed::default());
        let mut output = Output::new(true, Box::new(out.clone()), Box::new(notes.clone()), false);
        let client = host.client();
        let words = [&["synapse", "tail", topic, "--limit", "3"][..], words].concat();
        let Cli::Tail(args) = Cli::try_parse_from(words).unwrap() else { unreachable!() };
        let tailing = tokio::spawn(async move { tail::run(args, &client, &mut output).await });
        until(&notes, "; waiting").await;
        host.publish(topic, &events(0..3)).await;
        tokio::time::timeout(PATIENCE, tailing).await.expect("it ends").unwrap().unwrap();
        assert_eq!(out.text().lines().count(), 3);
        let expected = format!(
            "{topic}: there is no topic `{topic}` on broker `local`; it comes into being when something is published \
             to it; waiting\n{topic}: the topic is there\n"
        );
        assert_eq!(notes.text(), expected);
    }
}

#[tokio::test]
async fn tail_goes_on_where_a_connection_dropped() {
    let mut host = Host::start().await;
    host.publish("t", &events(0..5)).await;
    let (out, notes) = (Printed::default(), Printed::default());
    let mut output = Output::new(true, Box::new(out.clone()), Box::new(notes.clone()), false);
    let client = host.client();
    let words = ["synapse", "tail", "t", "--from", "earliest", "--limit", "10"];
    let Cli::Tail(args) = Cli::try_parse_from(words).unwrap() else { unreachable!() };
    let tailing = tokio::spawn(async move { tail::run(args, &client, &mut output).await });
    until(&out, r#""id":"4""#).await;
    host.ended().await;
    until(&notes, "; waiting").await;
    host.publish("t", &events(5..10)).await;
    host.serve_again().await;
    tokio::time::timeout(PATIENCE, tailing).await.expect("it ends").unwrap().unwrap();
    let ids: Vec<String> = out
        .text()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, numbers(0..10));
    assert!(notes.text().ends_with("t: the host is back\n"), "{}", notes.text());
}

#[tokio::test]
async fn tail_tells_what_it_cannot_show() {
    let host = Host::with(Extras { brokers: vec![Odd::broker("odd", None)], ..Extras::default() }).await;
    let ran = run(&host, &["tail", "odd/mixed", "--limit", "1"]).await;
    insta::assert_snapshot!(ran.notes, @r"
    odd/mixed: 3 events were trimmed before they could be read
    odd/mixed: odd/mixed/0/5 is no event: not JSON
    ");
    ran.ok();
}

#[tokio::test]
async fn commands_say_what_the_host_says() {
    let host = Host::start().await;
    insta::assert_snapshot!(run(&host, &["topic", "show", "none"]).await.error(), @"there is no topic `none` on broker `local`; it comes into being when something is published to it");
    insta::assert_snapshot!(run(&host, &["pipeline", "show", "a b"]).await.error(), @"there is no pipeline `a b`; GET /v1/pipelines lists those there are");
    insta::assert_snapshot!(run(&host, &["topic", "list"]).await.ok(), @"no topics yet: one comes into being when something is published to it");
    insta::assert_snapshot!(run(&host, &["pipeline", "list"]).await.ok(), @"no pipelines: add [[pipelines]] to the host's configuration");
}

#[tokio::test]
async fn tables_show_topics_and_pipelines() {
    let host = with_pipelines().await;
    let mut all = String::new();
    for words in [
        &["topic", "list"][..],
        &["topic", "show", "in"],
        &["pipeline", "list"],
        &["pipeline", "show", "copy"],
        &["pipeline", "show", "broken"],
        &["pipeline", "history", "copy"],
        &["topic", "list", "--json"],
        &["pipeline", "history", "copy", "--json"],
    ] {
        let ran = run(&host, words).await;
        all.push_str(&format!("$ synapse {}\n{}{}\n", words.join(" "), ran.out, ran.notes));
        ran.result.unwrap();
    }
    insta::assert_snapshot!("tables", all);
}

#[tokio::test]
async fn what_is_away_and_what_is_not_exact_are_told() {
    let brokers = vec![Odd::broker("odd", None), Odd::broker("far", Some(BrokerErrorKind::Unreachable))];
    let host = Host::with(Extras { brokers, ..Extras::default() }).await;
    host.apply(vec![pipeline("waits", "far/in", "out", "keep-all")]).await;
    host.pipeline_until("waits", |status| status.refused.is_some()).await;
    let mut all = String::new();
    for words in [["topic", "list"], ["pipeline", "list"]] {
        let ran = run(&host, &words).await;
        all.push_str(&format!("{}{}\n", ran.out, ran.notes));
        ran.result.unwrap();
    }
    insta::assert_snapshot!(all, @r"
    TOPIC      PARTITIONS  EVENTS  SIZE
    odd/mixed  1           ≤ 3     -
    not listed: broker `far`: it says no

    PIPELINE  STATE    LANES HERE  GUARANTEE      FROM    TO
    waits     waiting  0/0         at-least-once  far/in  local/out
    waits waits: broker `far`: nobody is there
    ");
}

#[tokio::test]
async fn nobody_at_the_address_is_one_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(&format!("http://{address}"), None).unwrap();
    let mut output = Output::new(false, Box::new(Printed::default()), Box::new(Printed::default()), false);
    let parsed = |words: &[&str]| Cli::try_parse_from(words).unwrap();
    let expected = format!("nothing answers at http://{address}; start a host with `synapse run`, or give --url");
    for words in [&["synapse", "tail", "t"][..], &["synapse", "topic", "list"], &["synapse", "publish", "t"]] {
        let result = match parsed(words) {
            Cli::Tail(args) => tail::run(args, &client, &mut output).await,
            Cli::Topic(args) => topic::run(args, &client, &mut output).await,
            Cli::Publish(args) => {
                let input = Box::new(std::io::Cursor::new(line(1).into_bytes()));
                publish::run_on(input, args, &client, &mut output).await
            }
            Cli::Pipeline(_) => unreachable!(),
        };
        assert_eq!(format!("{:#}", result.unwrap_err()), expected);
    }
}

#[tokio::test]
async fn somebody_else_at_the_address_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await.unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
    });
    let client = Client::new(&format!("http://{address}"), None).unwrap();
    let error = client.get::<Value>("/v1/topics").await.unwrap_err().to_string();
    let expected = format!(
        "what answers at http://{address} is no Synapse host (it says 404 Not Found); give the host's address with --url"
    );
    assert_eq!(error, expected);
    serving.await.unwrap();
}

/// A writer whose reader is gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}

#[tokio::test]
async fn a_reader_that_is_gone_ends_tail_quietly() {
    let host = Host::start().await;
    host.publish("t", &events(0..5)).await;
    let mut output = Output::new(true, Box::new(Closed), Box::new(Printed::default()), false);
    let Cli::Tail(args) = Cli::try_parse_from(["synapse", "tail", "t", "--from", "earliest"]).unwrap() else {
        unreachable!()
    };
    let ended = tokio::time::timeout(PATIENCE, tail::run(args, &host.client(), &mut output)).await;
    assert!(output::is_closed(&ended.expect("it ends").unwrap_err()));
}

#[tokio::test]
async fn the_key_is_shown_to_the_host() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap()), Some("s3cret".into())).unwrap();
    let asking = tokio::spawn(async move { client.get::<Value>("/v1/topics").await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("a request comes").unwrap();
        head.push(byte);
    }
    assert!(String::from_utf8(head).unwrap().contains("authorization: Bearer s3cret\r\n"));
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), asking).await.unwrap().unwrap().unwrap(), json!({}));
}
