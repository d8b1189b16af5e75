//! Dead letters: events that could not be processed, with what is needed to understand and to redrive them.
//!
//! A dead letter keeps the event's identity, attributes and payload and adds extension attributes, all beginning with
//! `dl`. Taking those off gives the event back.

use synapse_core::batch::{Batch, Row};
use synapse_core::broker::Undecodable;
use synapse_core::codec::Origin;
use synapse_core::event::EventRef;
use synapse_core::stage::{Digest, FailureKind};
use synapse_core::time::Timestamp;
use synapse_core::topic::{Label, Offset, TopicPartition};

/// The extension attributes of a dead letter.
const NAMES: [&str; 9] = [
    "dlpipeline",
    "dlkind",
    "dlreason",
    "dlposition",
    "dlattempts",
    "dlfirstfailure",
    "dlstage",
    "dlplugin",
    "dltraceid",
];

/// What is said of every failure.
pub(crate) struct Circumstances<'a> {
    pub(crate) pipeline: &'a Label,
    /// Stage and digest of its plugin; none if the entry was no event.
    pub(crate) stage: Option<(&'a Label, Digest)>,
    pub(crate) kind: FailureKind,
    pub(crate) reason: &'a str,
    pub(crate) source: &'a TopicPartition,
    pub(crate) offset: Offset,
    /// How often it was tried.
    pub(crate) attempts: u32,
    pub(crate) now: Timestamp,
}

/// Appends the dead letter of an event.
pub(crate) fn push(into: &mut Batch, event: EventRef<'_>, what: &Circumstances<'_>) {
    let row = Row {
        id: event.id(),
        source: event.source(),
        kind: event.kind(),
        subject: event.subject().unwrap_or_default(),
        time: event.time(),
        partition_key: event.partition_key().unwrap_or_default(),
        content_type: event.content_type().unwrap_or_default(),
        data: event.data(),
    };
    let trace_id = event.attribute("traceparent").and_then(|parent| parent.split('-').nth(1));
    let added = attributes(what, trace_id);
    let kept = event.attributes().filter(|(name, _)| !NAMES.contains(name));
    push_row(into, &row, kept, &added);
}

/// Appends the dead letter of an entry that was no event: its bytes become the payload.
pub(crate) fn push_undecodable(into: &mut Batch, entry: &Undecodable, what: &Circumstances<'_>) {
    let origin = Origin { topic: &what.source.topic.topic, partition: what.source.partition, offset: entry.offset };
    let id = origin.to_string();
    let source = format!("/{}", what.source);
    let row = Row {
        id: &id,
        source: &source,
        kind: "synapse.undecodable",
        time: Some(what.now),
        content_type: "application/octet-stream",
        data: &entry.bytes,
        ..Row::default()
    };
    push_row(into, &row, std::iter::empty(), &attributes(what, None));
}

fn attributes(what: &Circumstances<'_>, trace_id: Option<&str>) -> Vec<(&'static str, String)> {
    let mut added = vec![
        ("dlpipeline", what.pipeline.to_string()),
        ("dlkind", what.kind.as_str().to_owned()),
        ("dlreason", what.reason.to_owned()),
        ("dlposition", format!("{}/{}", what.source, what.offset)),
        ("dlattempts", what.attempts.to_string()),
        ("dlfirstfailure", what.now.to_string()),
    ];
    if let Some((stage, digest)) = what.stage {
        added.push(("dlstage", stage.to_string()));
        added.push(("dlplugin", digest.to_string()));
    }
    if let Some(trace_id) = trace_id {
        added.push(("dltraceid", trace_id.to_owned()));
    }
    added
}

fn push_row<'p>(
    into: &mut Batch,
    row: &Row<'_>,
    kept: impl Iterator<Item = (&'p str, &'p str)>,
    added: &'p [(&'static str, String)],
) {
    let all: Vec<(&str, &str)> = kept.chain(added.iter().map(|(name, value)| (*name, value.as_str()))).collect();
    let pushed = into.push(row, all.iter().copied());
    if pushed.is_err() {
        // Its own attributes leave no room in the column: what the failure says is worth more than they are.
        into.push(row, added.iter().map(|(name, value)| (*name, value.as_str())))
            .expect("an event that came in a batch fits into one with a few short attributes");
    }
}
