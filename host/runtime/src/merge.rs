//! Finds the events at fault in a batch that a plugin failed on, and joins the answers for the others.
//!
//! After a fault the rows run again one by one, in order. Not by halves: a fault is what costs (a fresh instance, or the
//! whole of the CPU time allowed), a call with one row is cheap, and one by one each event at fault costs one fault
//! where halving costs one for each level. A row is at fault only if it fails alone on an instance that has run nothing
//! before; if it fails on a used one it gets a second, fresh chance, so no event answers for what its neighbours left
//! behind. A batch that only failed as a whole, for its CPU time, its memory or its answer's size, fails no event.
//!
//! The worst case: an instance is fresh again after each fault, so a second chance needs a good event before it, and a
//! batch of n rows costs at most n + 1 faults, as many fresh instances, and 1.5 n + 1 times `cpu_max`, whatever the
//! guest does. Meanwhile the guest yields at every epoch tick, so only its own lane waits.
//!
//! Invariant: every row is either in the answer or among the failures, in order. Knows no wasm.

use synapse_core::batch::Batch;
use synapse_core::stage::{Answer, Failure, FailureKind, PluginError, PluginKind, StageRun, Usage};

use crate::answer::{Interner, Part};
use crate::text;

/// What a guest did wrong.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: FailureKind,
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The guest's fault: its instance is gone.
    Guest(Fault),
    /// The host's.
    Host(PluginError),
}

/// Runs rows through a plugin. After a fault the next run gets a fresh instance.
pub(crate) trait Runner {
    /// Runs the rows of `batch` in one call.
    async fn run(&mut self, batch: &Batch) -> Result<Part, Trouble>;

    /// Whether the instance that the last run used had run nothing before it.
    fn last_was_fresh(&self) -> bool;
}

/// Answers of a whole batch may together take this many times what one call may answer; what exceeds it fails.
const MERGED_OUTPUT_FACTOR: usize = 4;

/// Runs `batch`, narrows faults down to the events that cause them, and returns everything but the usage.
pub(crate) async fn run(
    runner: &mut impl Runner,
    kind: PluginKind,
    batch: &Batch,
    output_bytes_max: usize,
) -> Result<StageRun, PluginError> {
    if batch.is_empty() {
        return Ok(Merger::new(kind, 0).finish());
    }
    let fault = match runner.run(batch).await {
        Ok(part) => return Ok(StageRun { answer: part.answer, failures: part.rejected, usage: Usage::default() }),
        Err(Trouble::Host(error)) => return Err(error),
        Err(Trouble::Guest(fault)) => fault,
    };
    let mut merger = Merger::new(kind, output_bytes_max.saturating_mul(MERGED_OUTPUT_FACTOR));
    if batch.len() == 1 && runner.last_was_fresh() {
        merger.fail(&fault);
        return Ok(merger.finish());
    }
    for row in 0..batch.len() {
        let mut alone = Batch::default();
        alone.extend_from(batch, row..row + 1).expect("a part of a batch is no larger than the batch");
        match run_alone(runner, &alone).await {
            Ok(part) => merger.push(1, part),
            Err(Trouble::Guest(fault)) => merger.fail(&fault),
            Err(Trouble::Host(error)) => return Err(error),
        }
    }
    Ok(merger.finish())
}

async fn run_alone(runner: &mut impl Runner, alone: &Batch) -> Result<Part, Trouble> {
    match runner.run(alone).await {
        Err(Trouble::Guest(_)) if !runner.last_was_fresh() => runner.run(alone).await,
        outcome => outcome,
    }
}

/// Joins the answers for consecutive rows.
struct Merger {
    answer: Answer,
    topics: Interner<String>,
    sets: Interner<Vec<u32>>,
    failures: Vec<Failure>,
    rows: u32,
    bytes_max: usize,
}

impl Merger {
    fn new(kind: PluginKind, bytes_max: usize) -> Self {
        let answer = match kind {
            PluginKind::Filter => Answer::Keep(Vec::new()),
            PluginKind::Transform => Answer::Rewrite { batch: Batch::default(), parents: Vec::new() },
            PluginKind::Router => Answer::Route { topics: Vec::new(), choice: Vec::new(), choices: Vec::new() },
        };
        let (topics, sets) = (Interner::default(), Interner::default());
        Self { answer, topics, sets, failures: Vec::new(), rows: 0, bytes_max }
    }

    /// The next `rows` rows were answered by `part`.
    fn push(&mut self, rows: u32, part: Part) {
        let first = self.rows;
        match (&mut self.answer, part.answer) {
            (Answer::Keep(kept), Answer::Keep(more)) => kept.extend(more),
            (Answer::Rewrite { batch, parents }, Answer::Rewrite { batch: more, parents: more_parents }) => {
                let fits = batch.bytes().len().saturating_add(more.bytes().len()) <= self.bytes_max;
                if !fits || batch.extend_from(&more, 0..more.len()).is_err() {
                    let reason = format!(
                        "the answers for the events of one batch are together larger than {}",
                        text::bytes(self.bytes_max)
                    );
                    return self.fail_rows(rows, &Fault::new(FailureKind::OutputTooLarge, reason));
                }
                parents.extend(more_parents.into_iter().map(|parent| first + parent));
            }
            (Answer::Route { choice, .. }, Answer::Route { topics, choice: more, choices }) => {
                let topics: Vec<u32> = topics.into_iter().map(|topic| self.topics.index(topic)).collect();
                let sets: Vec<u32> = choices
                    .into_iter()
                    .map(|set| self.sets.index(set.into_iter().map(|topic| topics[topic as usize]).collect()))
                    .collect();
                choice.extend(more.into_iter().map(|set| set.map(|set| sets[set as usize])));
            }
            _ => unreachable!("a plugin's answers are all of its kind"),
        }
        self.failures.extend(part.rejected.into_iter().map(|failure| Failure { row: first + failure.row, ..failure }));
        self.rows += rows;
    }

    /// The next row failed.
    fn fail(&mut self, fault: &Fault) {
        self.fail_rows(1, fault);
    }

    fn fail_rows(&mut self, rows: u32, fault: &Fault) {
        for row in self.rows..self.rows + rows {
            self.failures.push(Failure { row, kind: fault.kind, reason: fault.reason.clone() });
            match &mut self.answer {
                Answer::Keep(kept) => kept.push(false),
                Answer::Rewrite { .. } => {}
                Answer::Route { choice, .. } => choice.push(None),
            }
        }
        self.rows += rows;
    }

    fn finish(mut self) -> StageRun {
        if let Answer::Route { topics, choices, .. } = &mut self.answer {
            *topics = self.topics.values;
            *choices = self.sets.values;
        }
        debug_assert!(self.failures.is_sorted_by(|one, next| one.row < next.row));
        StageRun { answer: self.answer, failures: self.failures, usage: Usage::default() }
    }
}

#[cfg(test)]
mod tests {
    use synapse_core::event::Event;
    use synapse_core::stage::PluginErrorKind;

    use super::*;

    /// A plugin of any kind whose events say by their `id` what it does with them: `bad` traps, `once` traps on a used
    /// instance, `no` is rejected, anything else is kept, passed on, or sent to the topic of that name.
    struct Script {
        kind: PluginKind,
        /// More rows than this in one call are too much.
        rows_max: usize,
        calls_since_fault: usize,
        fresh: bool,
        faults: usize,
        runs: Vec<usize>,
    }

    fn script(kind: PluginKind) -> Script {
        Script { kind, rows_max: usize::MAX, calls_since_fault: 0, fresh: true, faults: 0, runs: vec![] }
    }

    impl Runner for Script {
        async fn run(&mut self, batch: &Batch) -> Result<Part, Trouble> {
            self.fresh = self.calls_since_fault == 0;
            self.calls_since_fault += 1;
            self.runs.push(batch.len());
            let ids: Vec<&str> = batch.events().map(|event| event.id()).collect();
            if ids.contains(&"away") {
                return Err(Trouble::Host(PluginError::new(PluginErrorKind::Exhausted, "full")));
            }
            let traps = ids.contains(&"bad") || (ids.contains(&"once") && !self.fresh) || ids.len() > self.rows_max;
            if traps {
                self.faults += 1;
                self.calls_since_fault = 0;
                return Err(Trouble::Guest(Fault::new(FailureKind::Trap, "bang")));
            }
            let rejected: Vec<Failure> = (0..)
                .zip(&ids)
                .filter(|(_, id)| **id == "no")
                .map(|(row, _)| Failure { row, kind: FailureKind::Rejected, reason: "no".to_owned() })
                .collect();
            let rows: Vec<u32> = (0..).zip(&ids).filter(|(_, id)| **id != "no").map(|(row, _)| row).collect();
            let answer = match self.kind {
                PluginKind::Filter => Answer::Keep(ids.iter().map(|id| *id != "no").collect()),
                PluginKind::Transform => Answer::Rewrite { batch: batch.select(&rows), parents: rows },
                PluginKind::Router => Answer::Route {
                    topics: ids.iter().map(|&id| id.to_owned()).collect(),
                    choice: (0..).zip(&ids).map(|(row, id)| (*id != "pass").then_some(row)).collect(),
                    choices: (0..).zip(&ids).map(|(row, _)| vec![row]).collect(),
                },
            };
            Ok(Part { answer, rejected })
        }

        fn last_was_fresh(&self) -> bool {
            self.fresh
        }
    }

    fn batch(ids: &[&str]) -> Batch {
        let events: Vec<Event> = ids.iter().map(|&id| Event { id: id.to_owned(), ..Event::default() }).collect();
        events.iter().collect()
    }

    async fn check(script: &mut Script, ids: &[&str]) -> StageRun {
        let kind = script.kind;
        run(script, kind, &batch(ids), 1 << 20).await.unwrap()
    }

    fn failed(run: &StageRun) -> Vec<(u32, &str)> {
        run.failures.iter().map(|failure| (failure.row, failure.reason.as_str())).collect()
    }

    #[tokio::test]
    async fn only_the_events_at_fault_fail() {
        let mut filter = script(PluginKind::Filter);
        let run = check(&mut filter, &["a", "bad", "no", "b", "bad"]).await;
        assert_eq!(run.answer, Answer::Keep(vec![true, false, false, true, false]));
        assert_eq!(failed(&run), [(1, "bang"), (2, "no"), (4, "bang")]);
    }

    #[tokio::test]
    async fn a_whole_batch_at_fault_costs_one_fault_more_than_it_has_events() {
        let mut filter = script(PluginKind::Filter);
        let run = check(&mut filter, &["bad"; 20]).await;
        assert_eq!((run.failures.len(), filter.faults), (20, 21));
        // The worst mixture: each event at fault follows one that used the instance.
        let mut filter = script(PluginKind::Filter);
        let run = check(&mut filter, &["a", "bad"].repeat(10)).await;
        assert_eq!((run.failures.len(), filter.faults), (10, 21));
    }

    #[tokio::test]
    async fn a_batch_that_is_too_much_as_a_whole_fails_no_event() {
        let mut filter = script(PluginKind::Filter);
        filter.rows_max = 2;
        let run = check(&mut filter, &["a", "b", "c"]).await;
        assert_eq!((run.answer, run.failures), (Answer::Keep(vec![true; 3]), vec![]));
        assert_eq!(filter.runs, [3, 1, 1, 1]);
    }

    #[tokio::test]
    async fn an_event_does_not_answer_for_what_others_left_behind() {
        let mut filter = script(PluginKind::Filter);
        filter.calls_since_fault = 1;
        let run = check(&mut filter, &["once"]).await;
        assert_eq!((run.failures, filter.faults), (vec![], 1));
        let mut filter = script(PluginKind::Filter);
        filter.calls_since_fault = 1;
        let run = check(&mut filter, &["a", "once", "b"]).await;
        assert_eq!((run.failures, filter.faults), (vec![], 2));
    }

    #[tokio::test]
    async fn one_event_that_fails_on_a_fresh_instance_is_not_tried_again() {
        let mut filter = script(PluginKind::Filter);
        let run = check(&mut filter, &["bad"]).await;
        assert_eq!((failed(&run), filter.runs), (vec![(0, "bang")], vec![1]));
    }

    #[tokio::test]
    async fn rewritten_events_keep_their_parents() {
        let run = check(&mut script(PluginKind::Transform), &["a", "bad", "no", "b"]).await;
        assert_eq!(failed(&run), [(1, "bang"), (2, "no")]);
        let Answer::Rewrite { batch: rewritten, parents } = run.answer else { panic!("a transform rewrites") };
        assert_eq!((rewritten, parents), (batch(&["a", "b"]), vec![0, 3]));
    }

    #[tokio::test]
    async fn joined_answers_are_bounded() {
        let mut transform = script(PluginKind::Transform);
        transform.rows_max = 1;
        let big = "x".repeat(150);
        let run = run(&mut transform, PluginKind::Transform, &batch(&["a", &big, &big, &big, "b"]), 100).await.unwrap();
        let reason = "the answers for the events of one batch are together larger than 400 bytes";
        assert_eq!(failed(&run), [(3, reason)]);
        assert!(matches!(run.answer, Answer::Rewrite { parents, .. } if parents == [0, 1, 2, 4]));
    }

    #[tokio::test]
    async fn topics_and_sets_of_parts_are_joined() {
        let run = check(&mut script(PluginKind::Router), &["x", "bad", "y", "x", "pass"]).await;
        let expected = Answer::Route {
            topics: vec!["x".to_owned(), "y".to_owned(), "pass".to_owned()],
            choice: vec![Some(0), None, Some(1), Some(0), None],
            choices: vec![vec![0], vec![1], vec![2]],
        };
        assert_eq!(failed(&run), [(1, "bang")]);
        assert_eq!(run.answer, expected);
    }

    #[tokio::test]
    async fn the_hosts_trouble_is_no_events_fault() {
        let error = run(&mut script(PluginKind::Filter), PluginKind::Filter, &batch(&["a", "bad", "away"]), 1).await;
        assert_eq!(error.unwrap_err().kind, PluginErrorKind::Exhausted);
        let none = check(&mut script(PluginKind::Filter), &[]).await;
        assert_eq!(none.answer, Answer::Keep(vec![]));
    }
}
