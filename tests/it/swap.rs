//! Plugins replaced under load: nothing lost, nothing repeated, and every event attributable to one build.

use std::collections::HashMap;
use std::path::Path;

use synapse_tests::bus::ndjson;
use synapse_tests::checker::{Kind, Receipt, check};
use synapse_tests::host::Host;
use synapse_tests::load::{Load, Send};
use synapse_tests::plugins::{component, component_with};

const SWAPS: usize = 200;

/// The digest of the build in use, as the host tells it.
fn digest(host: &Host) -> anyhow::Result<String> {
    let pipeline = host.get_json("/v1/pipelines/p")?;
    Ok(pipeline["stages"][0]["plugin"]["digest"].as_str().unwrap_or_default().to_owned())
}

/// Replaces the file the way people do: now in place, now by renaming.
fn replace(from: &Path, to: &Path, n: usize) {
    if n.is_multiple_of(2) {
        std::fs::copy(from, to).unwrap();
    } else {
        let new = to.with_extension("new");
        std::fs::copy(from, &new).unwrap();
        std::fs::rename(new, to).unwrap();
    }
}

#[test]
fn two_hundred_swaps_under_load() {
    let builds = [component("tests/plugins/stamp"), component_with("tests/plugins/stamp", &["second"])];
    let digests = builds.each_ref().map(|build| synapse::plugin::digest(&std::fs::read(build).unwrap()).to_string());
    let mut host = Host::prepare(
        r#"
        [[pipelines]]
        name = "p"
        from = "local/in"
        to = "local/out"
        [[pipelines.stages]]
        plugin = "stamp.wasm"
        "#,
    )
    .unwrap();
    let watched = host.path("stamp.wasm");
    std::fs::copy(&builds[0], &watched).unwrap();
    host.resume().unwrap();
    let address = host.url();
    let sender = || -> Send {
        let address = address.clone();
        Box::new(move |receipts| {
            matches!(synapse_tests::host::publish(&address, "in", &ndjson(receipts, |_| Kind::Plain)), Ok((202, _)))
        })
    };
    let load = Load::start(vec![sender(), sender()], 5, 20);
    for swap in 1..=SWAPS {
        let next = swap % 2;
        replace(&builds[next], &watched, swap / 2);
        host.wait_for("the swap", |host| Ok((digest(host)? == digests[next]).then_some(()))).unwrap();
    }
    let sent = load.stop();
    let count = sent.acknowledged.len();
    host.wait_for("the end of the backlog", |host| {
        Ok((host.get_json("/v1/topics/out")?["events"].as_u64() == Some(count as u64)).then_some(()))
    })
    .unwrap();

    let out = host.history("out").unwrap();
    let received: Vec<Receipt> = out.iter().map(|event| Receipt::from_id(event["id"].as_str().unwrap())).collect();
    let verdict = check(&sent.all, &sent.acknowledged, &received);
    assert!(verdict.is_exact(), "{verdict}");
    assert!(host.metric("synapse_swaps_total", "").unwrap() >= SWAPS as f64);

    // The boundaries that were committed name, for each place of the source, the build that stamped what came of it.
    let names = HashMap::from([(digests[0].as_str(), "first"), (digests[1].as_str(), "second")]);
    let history = host.get_json("/v1/pipelines/p/history").unwrap();
    let boundaries: Vec<(u64, &str)> = history["lanes"][0]["boundaries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|boundary| {
            let from = boundary["from"].as_str().unwrap().parse().unwrap();
            (from, names[boundary["stages"][0]["digest"].as_str().unwrap()])
        })
        .collect();
    for (offset, event) in (0u64..).zip(&out) {
        let build = boundaries.iter().rfind(|(from, _)| *from <= offset).unwrap().1;
        assert_eq!(event["build"], build, "the event that came of offset {offset}");
    }
}
