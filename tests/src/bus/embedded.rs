//! The embedded log, through the HTTP API of its host.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{PAGE, Reader, Topic, ndjson, receipt};
use crate::checker::{Kind, Receipt};
use crate::host;
use crate::load::Send;

pub(super) fn sender(url: &str, topic: &Topic, kind: fn(&Receipt) -> Kind) -> Send {
    let (url, topic) = (url.to_owned(), topic.name.clone());
    Box::new(move |receipts| matches!(host::publish(&url, &topic, &ndjson(receipts, kind)), Ok((202, _))))
}

pub(super) struct HistoryReader {
    url: String,
    topic: String,
    /// The last offset that was read of each partition.
    read_upto: BTreeMap<u64, u64>,
}

impl HistoryReader {
    pub(super) fn new(url: &str, topic: &Topic) -> Self {
        Self { url: url.to_owned(), topic: topic.name.clone(), read_upto: BTreeMap::new() }
    }
}

impl Reader for HistoryReader {
    fn read(&mut self) -> Result<Vec<Receipt>> {
        let (mut receipts, mut read_upto) = (Vec::new(), self.read_upto.clone());
        loop {
            let places: Vec<String> = read_upto.iter().map(|(part, offset)| format!("{part}@{offset}")).collect();
            let from = if places.is_empty() { "earliest".to_owned() } else { places.join(",") };
            let path = format!("/v1/topics/{}/events?from={from}&limit={PAGE}", self.topic);
            let (status, body) = host::get(&self.url, &path)?;
            if status == 404 {
                return Ok(receipts);
            }
            ensure!(status == 200, "GET {path}: {status}: {body}");
            let page: Value = serde_json::from_str(&body)?;
            for event in page["events"].as_array().context("no events in the answer")? {
                let text = |name: &str| event[name].as_str().with_context(|| format!("no {name} in {event}"));
                receipts.push(receipt(text("id")?, &event["data"])?);
                let mut place = text("synapseposition")?.rsplit('/');
                let mut number = || place.next()?.parse().ok();
                let (offset, partition) = number().zip(number()).context("a position ends in two numbers")?;
                read_upto.insert(partition, offset);
            }
            if page["next"].is_null() {
                self.read_upto = read_upto;
                return Ok(receipts);
            }
        }
    }
}
