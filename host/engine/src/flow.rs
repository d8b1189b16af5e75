//! A batch on its way through the stages of a pipeline, and what comes of it.
//!
//! Every event in flight knows the row of the source batch it came from (its parent). Whatever stages and workers do,
//! outputs of one topic come out in the order of their parents: that is how order per key is kept.
//!
//! What a failure means is decided here alone (`on-error`). Nothing here knows brokers, tasks or swaps.

use std::collections::BTreeMap;
use std::sync::Arc;

use synapse_core::batch::{Batch, Column, Row};
use synapse_core::broker::{Output, SourceBatch};
use synapse_core::spec::{Encoding, OnError, RoutePattern, SinkSpec};
use synapse_core::stage::{Answer, Digest, FailureKind, PluginError, Stage, StageRun};
use synapse_core::time::Timestamp;
use synapse_core::topic::{BrokerName, Label, Offset, TopicPartition, TopicPath};

use crate::dead_letter::{self, Circumstances};
use crate::metrics::StageMetrics;

/// How many topics a router may name for one event.
const TOPICS_PER_EVENT_MAX: usize = 256;

/// What a lane does with events, apart from the instances that do it.
pub(crate) struct Plan {
    pub(crate) pipeline: Label,
    pub(crate) stages: Vec<StagePlan>,
    pub(crate) sinks: Vec<SinkSpec>,
    pub(crate) dead_letters: TopicPath,
    /// Where a topic without a broker lies.
    pub(crate) default_broker: BrokerName,
}

/// One stage of a plan.
pub(crate) struct StagePlan {
    pub(crate) name: Label,
    pub(crate) digest: Digest,
    pub(crate) on_error: OnError,
    pub(crate) routes: Vec<RoutePattern>,
    /// Size in bytes of what an answer may become once it is completed.
    pub(crate) output_bytes_max: usize,
    pub(crate) metrics: StageMetrics,
}

/// What came of a batch.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// By topic; dead letters among them.
    pub(crate) outputs: Vec<Output>,
    /// The entries that are done with.
    pub(crate) covered: Vec<Offset>,
    /// The pipeline is to end behind these entries, for this reason.
    pub(crate) stop: Option<String>,
}

/// Events that leave the stages.
struct Piece {
    /// `None`: the pipeline's own sinks.
    topic: Option<TopicPath>,
    events: Arc<Batch>,
    rows: Vec<u32>,
    /// For each of `rows` its parent.
    parents: Vec<u32>,
}

struct Casualty {
    parent: u32,
    events: Arc<Batch>,
    row: u32,
    stage: usize,
    kind: FailureKind,
    reason: String,
}

/// What one worker made of its share of a batch.
#[derive(Default)]
pub(crate) struct Share {
    pieces: Vec<Piece>,
    dead: Vec<Casualty>,
    /// The first event that stops the pipeline, and why.
    stop: Option<(u32, String)>,
}

/// Runs a share of a batch through the stages. `parents` gives each row's row in the source batch.
///
/// # Errors
/// The host's fault; nothing of the share has had an effect.
pub(crate) async fn run(
    plan: &Plan,
    stages: &mut [Box<dyn Stage>],
    events: Arc<Batch>,
    parents: Vec<u32>,
) -> Result<Share, PluginError> {
    let mut share = Share::default();
    let mut flow = Flow { events, parents };
    for (index, (stage, plan_of)) in stages.iter_mut().zip(&plan.stages).enumerate() {
        if flow.events.is_empty() {
            return Ok(share);
        }
        let run = stage.run(&flow.events).await?;
        plan_of.metrics.ran(flow.events.len(), &run.usage);
        flow = Step { plan, index, share: &mut share }.take(flow, run);
    }
    let rows = (0..flow.events.len() as u32).collect();
    share.pieces.push(Piece { topic: None, events: flow.events, rows, parents: flow.parents });
    Ok(share)
}

/// Events between two stages.
struct Flow {
    events: Arc<Batch>,
    parents: Vec<u32>,
}

/// What one stage's answer does to the events in flight.
struct Step<'a> {
    plan: &'a Plan,
    index: usize,
    share: &'a mut Share,
}

impl Step<'_> {
    fn take(&mut self, flow: Flow, run: StageRun) -> Flow {
        let failed: Vec<(u32, FailureKind, String)> =
            run.failures.into_iter().map(|failure| (failure.row, failure.kind, failure.reason)).collect();
        let passed = self.fail(&flow, failed);
        match run.answer {
            Answer::Keep(kept) => self.keep(flow, kept, &passed),
            Answer::Rewrite { batch, parents } => self.rewrite(&flow, batch, parents, passed),
            Answer::Route { topics, choice, choices } => self.route(flow, &topics, &choice, &choices, passed),
        }
    }

    /// Gives each failed row its end. The answer tells for every row whether it failed, and whether it goes on all the
    /// same: `Some(true)`.
    fn fail(&mut self, flow: &Flow, failures: Vec<(u32, FailureKind, String)>) -> BTreeMap<u32, bool> {
        let stage = &self.plan.stages[self.index];
        let mut passed = BTreeMap::new();
        for (row, kind, reason) in failures {
            stage.metrics.failed(kind);
            let parent = flow.parents[row as usize];
            passed.insert(row, stage.on_error == OnError::Pass);
            match stage.on_error {
                OnError::Drop | OnError::Pass => {}
                OnError::DeadLetter => {
                    let events = Arc::clone(&flow.events);
                    self.share.dead.push(Casualty { parent, events, row, stage: self.index, kind, reason });
                }
                OnError::Stop => {
                    if self.share.stop.as_ref().is_none_or(|(at, _)| parent < *at) {
                        let why = format!("stage `{}` ({}): {reason}", stage.name, kind.as_str());
                        self.share.stop = Some((parent, why));
                    }
                }
            }
        }
        passed
    }

    fn keep(&mut self, flow: Flow, kept: Vec<bool>, passed: &BTreeMap<u32, bool>) -> Flow {
        let mut kept = kept;
        for (&row, &goes_on) in passed {
            kept[row as usize] = goes_on;
        }
        let rows: Vec<u32> = (0u32..).zip(&kept).filter(|(_, keep)| **keep).map(|(row, _)| row).collect();
        let failed = passed.values().filter(|goes_on| !**goes_on).count();
        self.plan.stages[self.index].metrics.dropped(kept.len() - rows.len() - failed);
        flow.only(&rows)
    }

    fn rewrite(&mut self, flow: &Flow, batch: Batch, parents: Vec<u32>, mut passed: BTreeMap<u32, bool>) -> Flow {
        let mut answered = vec![false; flow.events.len()];
        parents.iter().for_each(|&row| answered[row as usize] = true);
        let dropped = (0u32..).zip(&answered).filter(|(row, out)| !**out && !passed.contains_key(row)).count();
        self.plan.stages[self.index].metrics.dropped(dropped);
        let output_bytes_max = self.plan.stages[self.index].output_bytes_max;
        let (mut batch, mut parents, too_large) = complete(batch, parents, &flow.events, output_bytes_max);
        if !too_large.is_empty() {
            let reason = format!("what came of it is larger than {output_bytes_max} bytes");
            let failed = too_large.into_iter().map(|row| (row, FailureKind::OutputTooLarge, reason.clone())).collect();
            passed.append(&mut self.fail(flow, failed));
        }
        if passed.values().any(|goes_on| *goes_on) {
            (batch, parents) = interleave(&batch, &parents, &flow.events, &passed);
        }
        let parents = parents.into_iter().map(|row| flow.parents[row as usize]).collect();
        Flow { events: Arc::new(batch), parents }
    }

    fn route(
        &mut self,
        flow: Flow,
        topics: &[String],
        choice: &[Option<u32>],
        choices: &[Vec<u32>],
        mut passed: BTreeMap<u32, bool>,
    ) -> Flow {
        let paths: Vec<Result<TopicPath, String>> = topics.iter().map(|topic| self.allowed(topic)).collect();
        let many = format!("it names more than {TOPICS_PER_EVENT_MAX} topics for one event");
        let forbidden = |set: &Vec<u32>| match set.len() {
            0..=TOPICS_PER_EVENT_MAX => set.iter().find_map(|&topic| paths[topic as usize].as_ref().err()),
            _ => Some(&many),
        };
        let mut refused = Vec::new();
        let mut on = Vec::new();
        let mut by_topic = vec![Vec::new(); topics.len()];
        let mut dropped = 0;
        for (row, choice) in (0u32..).zip(choice) {
            if let Some(goes_on) = passed.get(&row) {
                on.extend(goes_on.then_some(row));
                continue;
            }
            match choice.map(|index| &choices[index as usize]) {
                None => on.push(row),
                Some(set) if set.is_empty() => dropped += 1,
                Some(set) => match forbidden(set) {
                    Some(reason) => refused.push((row, FailureKind::Route, reason.clone())),
                    None => set.iter().for_each(|&topic| by_topic[topic as usize].push(row)),
                },
            }
        }
        self.plan.stages[self.index].metrics.dropped(dropped);
        passed = self.fail(&flow, refused);
        if passed.values().any(|goes_on| *goes_on) {
            on.extend(passed.into_iter().filter(|(_, goes_on)| *goes_on).map(|(row, _)| row));
            on.sort_unstable();
        }
        for (path, rows) in paths.into_iter().zip(by_topic) {
            if let (Ok(path), false) = (path, rows.is_empty()) {
                let parents = rows.iter().map(|&row| flow.parents[row as usize]).collect();
                let events = Arc::clone(&flow.events);
                self.share.pieces.push(Piece { topic: Some(path), events, rows, parents });
            }
        }
        flow.only(&on)
    }

    /// The topic that a router named, if its stage may send there.
    fn allowed(&self, topic: &str) -> Result<TopicPath, String> {
        let stage = &self.plan.stages[self.index];
        let path = TopicPath::parse(topic, &self.plan.default_broker).map_err(|error| error.to_string())?;
        if stage.routes.iter().any(|route| route.allows(&path)) {
            return Ok(path);
        }
        Err(format!("it may not send to `{path}`; add the topic or a pattern of it to the stage's `routes`"))
    }
}

impl Flow {
    fn only(self, rows: &[u32]) -> Self {
        if rows.len() == self.events.len() {
            return self;
        }
        Self {
            events: Arc::new(self.events.select(rows)),
            parents: rows.iter().map(|&row| self.parents[row as usize]).collect(),
        }
    }
}

/// Fills in what CloudEvents require and a plugin left empty: source and type from the parent, the id derived from the
/// parent's, so that a repeated run derives the same. A parent whose children do not fit into `bytes_max` any more is
/// left out whole and named behind the batch: a plugin may leave much empty that its parent has at length.
fn complete(batch: Batch, parents: Vec<u32>, before: &Batch, bytes_max: usize) -> (Batch, Vec<u32>, Vec<u32>) {
    let lacks = |row: usize| {
        let event = batch.event(row);
        [Column::Id, Column::Source, Column::Kind].iter().any(|&column| event.column(column).is_empty())
    };
    if !(0..batch.len()).any(lacks) {
        return (batch, parents, Vec::new());
    }
    let mut whole = Batch::with_capacity(batch.len(), batch.bytes().len());
    let (mut kept, mut too_large) = (Vec::new(), Vec::new());
    let mut first = 0;
    for siblings in parents.chunk_by(|one, other| one == other) {
        let (rows, at) = (first..first + siblings.len(), whole.len());
        first = rows.end;
        let parent = siblings[0];
        let fit = rows.clone().all(|row| {
            push_completed(&mut whole, &batch, row, before, parent, (siblings.len() > 1).then_some(row - rows.start));
            whole.bytes().len() <= bytes_max
        });
        if fit {
            kept.extend_from_slice(siblings);
        } else {
            whole.truncate(at);
            too_large.push(parent);
        }
    }
    (whole, kept, too_large)
}

/// `sibling` counts the children of a parent that has several.
fn push_completed(whole: &mut Batch, batch: &Batch, row: usize, before: &Batch, parent: u32, sibling: Option<usize>) {
    let (event, from) = (batch.event(row), before.event(parent as usize));
    let derived = sibling.map_or_else(|| from.id().to_owned(), |sibling| format!("{}/{sibling}", from.id()));
    let completed = Row {
        id: if event.id().is_empty() { &derived } else { event.id() },
        source: if event.source().is_empty() { from.source() } else { event.source() },
        kind: if event.kind().is_empty() { from.kind() } else { event.kind() },
        subject: event.subject().unwrap_or_default(),
        time: event.time(),
        partition_key: event.partition_key().unwrap_or_default(),
        content_type: event.content_type().unwrap_or_default(),
        data: event.data(),
    };
    let attributes: Vec<_> = event.attributes().collect();
    whole.push(&completed, attributes.into_iter()).expect("within `bytes_max`, and one event more, a batch fits");
}

/// Puts rows that go on as they came in between those that a transform made, in order of their parents.
fn interleave(made: &Batch, parents: &[u32], before: &Batch, passed: &BTreeMap<u32, bool>) -> (Batch, Vec<u32>) {
    let mut events = Batch::default();
    let mut rows = Vec::new();
    let mut next = 0;
    let mut put = |from: &Batch, row: usize, parent: u32| {
        events.extend_from(from, row..row + 1).expect("two batches that came separately fit into one");
        rows.push(parent);
    };
    for (&row, _) in passed.iter().filter(|(_, goes_on)| **goes_on) {
        while next < parents.len() && parents[next] < row {
            put(made, next, parents[next]);
            next += 1;
        }
        put(before, row as usize, row);
    }
    (next..parents.len()).for_each(|rest| put(made, rest, parents[rest]));
    (events, rows)
}

/// Joins the workers' shares of a batch into its effects.
pub(crate) fn join(
    plan: &Plan,
    from: &TopicPartition,
    source: &SourceBatch,
    shares: Vec<Share>,
    now: Timestamp,
) -> Outcome {
    let stop = shares.iter().filter_map(|share| share.stop.clone()).min_by_key(|(parent, _)| *parent);
    // Everything from the event that stops the pipeline on is as if it had not been read.
    let end = stop.as_ref().map_or(u32::MAX, |(parent, _)| *parent);
    let before = stop.as_ref().map(|(parent, _)| source.offsets[*parent as usize]);
    let (mut pieces, mut dead) = (Vec::new(), Vec::new());
    for share in shares {
        pieces.extend(share.pieces);
        dead.extend(share.dead.into_iter().filter(|casualty| casualty.parent < end));
    }
    let mut outputs = join_pieces(plan, pieces, end);
    dead.sort_by_key(|casualty| casualty.parent);
    outputs.extend(dead_letters(plan, from, source, &dead, before, now));
    let covered = source.covered().filter(|offset| before.is_none_or(|before| *offset < before)).collect();
    Outcome { outputs, covered, stop: stop.map(|(_, why)| why) }
}

fn join_pieces(plan: &Plan, pieces: Vec<Piece>, end: u32) -> Vec<Output> {
    let mut by_topic: BTreeMap<TopicPath, (Encoding, Vec<Arc<Piece>>)> = BTreeMap::new();
    let encoding = |topic: &TopicPath| {
        let sink = plan.sinks.iter().find(|sink| sink.topic == *topic);
        sink.map_or_else(Encoding::default, |sink| sink.encoding)
    };
    for mut piece in pieces {
        let kept = piece.parents.partition_point(|parent| *parent < end);
        piece.parents.truncate(kept);
        piece.rows.truncate(kept);
        if piece.rows.is_empty() {
            continue;
        }
        // A topic may be a sink and be named by a router, too: then both come out in one order.
        let topics = match &piece.topic {
            Some(topic) => vec![topic.clone()],
            None => plan.sinks.iter().map(|sink| sink.topic.clone()).collect(),
        };
        let piece = Arc::new(piece);
        for topic in topics {
            let how = encoding(&topic);
            by_topic.entry(topic).or_insert_with(|| (how, Vec::new())).1.push(Arc::clone(&piece));
        }
    }
    let output =
        |(topic, (encoding, pieces)): (_, (_, Vec<_>))| Output { topic, encoding, events: join_events(&pieces) };
    by_topic.into_iter().map(output).collect()
}

/// One batch of all pieces, in order of their parents.
fn join_events(pieces: &[Arc<Piece>]) -> Arc<Batch> {
    if let [piece] = pieces {
        let whole = piece.rows.len() == piece.events.len();
        return if whole { Arc::clone(&piece.events) } else { Arc::new(piece.events.select(&piece.rows)) };
    }
    let mut places: Vec<(u32, usize, u32)> = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        places.extend(piece.parents.iter().zip(&piece.rows).map(|(&parent, &row)| (parent, index, row)));
    }
    // Stable: what came of one parent in one piece keeps its order.
    places.sort_by_key(|&(parent, index, _)| (parent, index));
    let mut joined = Batch::with_capacity(places.len(), 0);
    for (_, index, row) in places {
        let row = row as usize;
        joined.extend_from(&pieces[index].events, row..row + 1).expect("the shares of one batch fit into one");
    }
    Arc::new(joined)
}

fn dead_letters(
    plan: &Plan,
    from: &TopicPartition,
    source: &SourceBatch,
    dead: &[Casualty],
    before: Option<Offset>,
    now: Timestamp,
) -> Option<Output> {
    let mut batch = Batch::default();
    let circumstances = |stage, kind, reason, offset| Circumstances {
        pipeline: &plan.pipeline,
        stage,
        kind,
        reason,
        source: from,
        offset,
        attempts: 1,
        now,
    };
    for entry in source.undecodable.iter().filter(|entry| before.is_none_or(|before| entry.offset < before)) {
        let what = circumstances(None, FailureKind::Undecodable, &entry.reason, entry.offset);
        dead_letter::push_undecodable(&mut batch, entry, &what);
    }
    for casualty in dead {
        let stage = &plan.stages[casualty.stage];
        let offset = source.offsets[casualty.parent as usize];
        let what = circumstances(Some((&stage.name, stage.digest)), casualty.kind, &casualty.reason, offset);
        dead_letter::push(&mut batch, casualty.events.event(casualty.row as usize), &what);
    }
    let topic = plan.dead_letters.clone();
    (!batch.is_empty()).then(|| Output { topic, encoding: Encoding::default(), events: Arc::new(batch) })
}
