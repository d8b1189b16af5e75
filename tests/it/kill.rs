//! kill -9 of the host under load: nothing lost, nothing repeated, order kept for each key.

use std::time::Duration;

use redis::streams::StreamRangeReply;
use synapse_tests::checker::{Receipt, check};
use synapse_tests::host::Host;
use synapse_tests::load::{Load, Send};
use synapse_tests::plugins::component;
use synapse_tests::redis::RedisServer;

const KILLS: usize = 20;

pub(crate) fn ndjson(receipts: &[Receipt]) -> String {
    let line = |receipt: &Receipt| {
        format!(
            r#"{{"specversion":"1.0","id":"{key}/{n}","source":"/load","type":"load","partitionkey":"{key}","data":{{"n":{n}}}}}"#,
            key = receipt.key,
            n = receipt.number
        ) + "\n"
    };
    receipts.iter().map(line).collect()
}

/// Kills and starts the host again while the load goes on, the last time to stay.
fn kill_again_and_again(host: &mut Host, load: &Load) {
    for kill in 0..KILLS {
        load.wait_for_more(400 + 97 * (kill % 5), Duration::from_secs(20));
        host.kill().unwrap();
        host.resume().unwrap();
    }
    load.wait_for_more(1000, Duration::from_secs(20));
}

#[test]
fn embedded_to_embedded_is_exactly_once() {
    let filter = component("plugins/filter-match");
    let mut host = Host::start(&format!(
        r#"
        [topics."local/in"]
        partitions = 2
        [topics."local/out"]
        partitions = 2
        [[pipelines]]
        name = "p"
        from = "local/in"
        to = "local/out"
        [[pipelines.stages]]
        name = "keep"
        plugin = {filter:?}
        config = {{ type = "load" }}
        "#
    ))
    .unwrap();
    let address = host.url();
    let sender = || -> Send {
        let address = address.clone();
        Box::new(move |receipts| {
            matches!(synapse_tests::host::publish(&address, "in", &ndjson(receipts)), Ok((202, _)))
        })
    };
    let load = Load::start(vec![sender(), sender()], 5, 20);
    kill_again_and_again(&mut host, &load);
    let sent = load.stop();
    host.wait_for("the end of the backlog", |host| {
        let events =
            |topic: &str| Ok::<_, anyhow::Error>(host.get_json(&format!("/v1/topics/{topic}"))?["events"].as_u64());
        Ok((events("in")? == events("out")?).then_some(()))
    })
    .unwrap();
    let received = |topic: &str| -> Vec<Receipt> {
        let history = host.history(topic).unwrap();
        history.iter().map(|event| Receipt::from_id(event["id"].as_str().unwrap())).collect()
    };
    let arrived = check(&sent.all, &sent.acknowledged, &received("in"));
    assert!(arrived.is_exact(), "at the source: {arrived}");
    let out = check(&received("in"), &received("in"), &received("out"));
    assert!(out.is_exact(), "at the sink: {out}");
    assert!(out.received > KILLS * 400, "only {} events", out.received);
    assert_eq!(host.terminate().unwrap(), 0, "it drains on SIGTERM");
}

fn xadd(connection: &mut redis::Connection, receipts: &[Receipt]) -> bool {
    let mut pipe = redis::pipe();
    for Receipt { key, number } in receipts {
        pipe.cmd("XADD")
            .arg(&["in", "*", "ce_specversion", "1.0", "ce_source", "/load", "ce_type", "load"])
            .arg(&["ce_id", &format!("{key}/{number}"), "ce_partitionkey", key])
            .arg(&["content-type", "application/json", "data", &format!("{{\"n\":{number}}}")])
            .ignore();
    }
    pipe.query::<()>(connection).is_ok()
}

fn stream(connection: &mut redis::Connection, key: &str) -> Vec<Receipt> {
    let reply: StreamRangeReply = redis::cmd("XRANGE").arg(&[key, "-", "+"]).query(connection).unwrap();
    reply.ids.iter().map(|entry| Receipt::from_id(&entry.get::<String>("ce_id").unwrap())).collect()
}

fn redis_to_redis(url: &str, server: &RedisServer, read: &str) -> (synapse_tests::checker::Verdict, Host) {
    let filter = component("plugins/filter-match");
    let mut host = Host::start(&format!(
        r#"
        [brokers.bus]
        kind = "redis"
        url = {url:?}
        [[pipelines]]
        name = "p"
        from = "bus/in"
        to = "bus/out"
        read = {read:?}
        [[pipelines.stages]]
        name = "keep"
        plugin = {filter:?}
        config = {{ type = "load" }}
        "#
    ))
    .unwrap();
    let sender = || -> Send {
        let mut connection = server.client().unwrap().get_connection().unwrap();
        Box::new(move |receipts| xadd(&mut connection, receipts))
    };
    let load = Load::start(vec![sender(), sender()], 5, 20);
    kill_again_and_again(&mut host, &load);
    let sent = load.stop();
    let mut connection = server.client().unwrap().get_connection().unwrap();
    host.wait_for("the end of the backlog", |_| {
        let length =
            |key: &str, connection: &mut redis::Connection| redis::cmd("XLEN").arg(key).query::<usize>(connection);
        Ok((length("in", &mut connection)? <= length("out", &mut connection)?).then_some(()))
    })
    .unwrap();
    assert_eq!(stream(&mut connection, "in").len(), sent.acknowledged.len());
    let out = check(&sent.all, &sent.acknowledged, &stream(&mut connection, "out"));
    assert!(out.received > KILLS * 400, "only {} events", out.received);
    (out, host)
}

#[test]
fn redis_to_redis_is_exactly_once_over_tcp() {
    let server = RedisServer::start().unwrap();
    let (out, _host) = redis_to_redis(&server.url(), &server, "cursor");
    assert!(out.is_exact(), "{out}");
}

#[test]
fn redis_to_redis_is_exactly_once_over_a_unix_socket_and_as_a_group() {
    let server = RedisServer::start().unwrap();
    let url = format!("unix://{}", server.socket().display());
    let (out, _host) = redis_to_redis(&url, &server, "group");
    // Entries that were handed out to the killed host are read again first, so order holds on one host, too.
    assert!(out.is_exact(), "{out}");
}
