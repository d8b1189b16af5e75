//! Checks what guests answer and brings it into one shape.
//!
//! A guest's answer is as untrusted as bytes from the network. Invariant: what leaves here satisfies every promise of
//! [`Answer`]; an answer that breaks one is refused as a whole, with a sentence. Pure.

use std::collections::HashMap;

use synapse_core::batch::{Batch, Row};
use synapse_core::stage::{Answer, Failure, FailureKind};
use synapse_core::time::Timestamp;

use crate::contract::{EventOut, Outcome, PASS, Rejection, Rewrite, Routes, Routing, Selection, Verdict};
use crate::text;

/// A checked answer for some rows; rows count from the first of them.
#[derive(Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) answer: Answer,
    /// Ascending, each row once.
    pub(crate) rejected: Vec<Failure>,
}

/// How an answer breaks the contract.
pub(crate) type Lie = String;

/// A batch filter's answer for `rows` rows.
pub(crate) fn selection(rows: usize, selection: &Selection) -> Result<Part, Lie> {
    length("kept", selection.kept.len(), rows)?;
    let rejected = rejections(rows, &selection.rejected)?;
    let unclear = selection.kept.iter().zip(0..).find(|&(&flag, row)| flag > 1 && !is_rejected(&rejected, row));
    if let Some((flag, row)) = unclear {
        return Err(format!("`kept` holds {flag} at row {row}, which is neither 1 (keep) nor 0 (drop)"));
    }
    let mut kept: Vec<bool> = selection.kept.iter().map(|&flag| flag == 1).collect();
    for failure in &rejected {
        kept[failure.row as usize] = false;
    }
    Ok(Part { answer: Answer::Keep(kept), rejected })
}

/// A typed filter's answer for `rows` rows.
pub(crate) fn verdicts(rows: usize, verdicts: Vec<Verdict>) -> Result<Part, Lie> {
    length("the list of verdicts", verdicts.len(), rows)?;
    let mut rejected = Vec::new();
    let kept = verdicts.into_iter().zip(0..).map(|(verdict, row)| match verdict {
        Verdict::Keep => true,
        Verdict::Drop => false,
        Verdict::Reject(reason) => {
            rejected.push(rejection(row, &reason));
            false
        }
    });
    Ok(Part { answer: Answer::Keep(kept.collect()), rejected })
}

/// A batch transform's answer for `rows` rows.
pub(crate) fn rewrite(rows: usize, rewrite: Rewrite) -> Result<Part, Lie> {
    let rejected = rejections(rows, &rewrite.rejected)?;
    let columns = rewrite.batch;
    let batch = Batch::from_columns(columns.stride as usize, columns.ends, columns.bytes)
        .map_err(|error| format!("`batch` is malformed: {error}"))?;
    length("parents", rewrite.parents.len(), batch.len())?;
    let mut last = 0;
    for &parent in &rewrite.parents {
        if parent < last {
            return Err(format!("`parents` must ascend, but {parent} follows {last}"));
        }
        if parent as usize >= rows {
            return Err(format!("`parents` names row {parent} of a batch of {rows}"));
        }
        if is_rejected(&rejected, parent) {
            return Err(format!("row {parent} is rejected and yet the parent of an event"));
        }
        last = parent;
    }
    Ok(Part { answer: Answer::Rewrite { batch, parents: rewrite.parents }, rejected })
}

/// A typed transform's answer for `rows` rows.
pub(crate) fn outcomes(rows: usize, outcomes: Vec<Outcome>) -> Result<Part, Lie> {
    length("the list of outcomes", outcomes.len(), rows)?;
    let (mut batch, mut parents, mut rejected) = (Batch::default(), Vec::new(), Vec::new());
    for (outcome, row) in outcomes.into_iter().zip(0..) {
        match outcome {
            Outcome::Emit(events) => {
                for event in &events {
                    push(&mut batch, event).map_err(|problem| format!("an event emitted for row {row} {problem}"))?;
                    parents.push(row);
                }
            }
            Outcome::Reject(reason) => rejected.push(rejection(row, &reason)),
        }
    }
    Ok(Part { answer: Answer::Rewrite { batch, parents }, rejected })
}

fn push(batch: &mut Batch, event: &EventOut) -> Result<(), Lie> {
    if event.attributes.iter().any(|attribute| attribute.name.is_empty()) {
        return Err("has an attribute without a name".to_owned());
    }
    let row = Row {
        id: &event.id,
        source: &event.source,
        kind: &event.kind,
        subject: event.subject.as_deref().unwrap_or_default(),
        time: event.time.map(Timestamp::from_micros),
        partition_key: event.partition_key.as_deref().unwrap_or_default(),
        content_type: event.content_type.as_deref().unwrap_or_default(),
        data: &event.data,
    };
    let attributes = event.attributes.iter().map(|attribute| (attribute.name.as_str(), attribute.value.as_str()));
    batch.push(&row, attributes).map_err(|error| format!("does not fit: {error}"))
}

/// A batch router's answer for `rows` rows.
pub(crate) fn routes(rows: usize, routes: Routes) -> Result<Part, Lie> {
    length("choice", routes.choice.len(), rows)?;
    let rejected = rejections(rows, &routes.rejected)?;
    let topics = routes.topics.len();
    if let Some(topic) = routes.choices.iter().flatten().find(|&&topic| topic as usize >= topics) {
        return Err(format!("`choices` names topic {topic} of {topics}"));
    }
    let choices = routes.choices.into_iter().map(set).collect::<Vec<_>>();
    let mut choice = Vec::with_capacity(rows);
    for (wanted, row) in routes.choice.into_iter().zip(0..) {
        choice.push(match wanted {
            PASS => None,
            _ if is_rejected(&rejected, row) => None,
            wanted if (wanted as usize) < choices.len() => Some(wanted),
            wanted => return Err(format!("`choice` names set {wanted} of {} at row {row}", choices.len())),
        });
    }
    Ok(Part { answer: Answer::Route { topics: routes.topics, choice, choices }, rejected })
}

/// Each index once, in the order of first mention: an event goes to a topic once.
fn set(mut indices: Vec<u32>) -> Vec<u32> {
    if indices.len() > 1 {
        let mut seen = std::collections::HashSet::with_capacity(indices.len());
        indices.retain(|index| seen.insert(*index));
    }
    indices
}

/// A typed router's answer for `rows` rows.
pub(crate) fn routings(rows: usize, routings: Vec<Routing>) -> Result<Part, Lie> {
    length("the list of routings", routings.len(), rows)?;
    let (mut topics, mut sets) = (Interner::<String>::default(), Interner::<Vec<u32>>::default());
    let (mut choice, mut rejected) = (Vec::with_capacity(rows), Vec::new());
    for (routing, row) in routings.into_iter().zip(0..) {
        choice.push(match routing {
            Routing::To(names) => Some(sets.index(set(names.into_iter().map(|name| topics.index(name)).collect()))),
            Routing::Pass => None,
            Routing::Reject(reason) => {
                rejected.push(rejection(row, &reason));
                None
            }
        });
    }
    Ok(Part { answer: Answer::Route { topics: topics.values, choice, choices: sets.values }, rejected })
}

/// Gives equal values one index.
#[derive(Debug)]
pub(crate) struct Interner<T> {
    indices: HashMap<T, u32>,
    pub(crate) values: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { indices: HashMap::new(), values: Vec::new() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Interner<T> {
    pub(crate) fn index(&mut self, value: T) -> u32 {
        *self.indices.entry(value).or_insert_with_key(|value| {
            self.values.push(value.clone());
            u32::try_from(self.values.len() - 1).expect("values come from guests of 4 GiB at most")
        })
    }
}

fn length(what: &str, found: usize, expected: usize) -> Result<(), Lie> {
    if found == expected { Ok(()) } else { Err(format!("{what} has {found} entries for {expected} rows")) }
}

fn rejections(rows: usize, rejections: &[Rejection]) -> Result<Vec<Failure>, Lie> {
    let mut failures: Vec<Failure> = rejections.iter().map(|given| rejection(given.row, &given.reason)).collect();
    failures.sort_by_key(|failure| failure.row);
    if let Some(pair) = failures.windows(2).find(|pair| pair[0].row == pair[1].row) {
        return Err(format!("row {} is rejected twice", pair[0].row));
    }
    match failures.last() {
        Some(last) if last.row as usize >= rows => Err(format!("row {} of a batch of {rows} is rejected", last.row)),
        _ => Ok(failures),
    }
}

fn rejection(row: u32, reason: &str) -> Failure {
    Failure { row, kind: FailureKind::Rejected, reason: text::clean(reason) }
}

fn is_rejected(rejected: &[Failure], row: u32) -> bool {
    rejected.binary_search_by_key(&row, |failure| failure.row).is_ok()
}

#[cfg(test)]
mod tests {
    use synapse_core::batch::STRIDE;
    use synapse_core::event::Event;

    use super::*;
    use crate::contract::{AttributeOut, ColumnsOut};

    fn rejected(rows: &[u32]) -> Vec<Rejection> {
        rows.iter().map(|&row| Rejection { row, reason: format!("no {row}") }).collect()
    }

    fn rows_of(part: &Part) -> Vec<u32> {
        part.rejected.iter().map(|failure| failure.row).collect()
    }

    #[test]
    fn a_selection_is_one_flag_a_row() {
        let check = |kept: &[u8], rejections: &[u32]| {
            selection(3, &Selection { kept: kept.to_vec(), rejected: rejected(rejections) })
        };
        let part = check(&[1, 0, 1], &[]).unwrap();
        assert_eq!(part, Part { answer: Answer::Keep(vec![true, false, true]), rejected: vec![] });
        let part = check(&[1, 7, 1], &[2, 1]).unwrap();
        assert_eq!(part.answer, Answer::Keep(vec![true, false, false]));
        assert_eq!(rows_of(&part), [1, 2]);
        let lie = |kept: &[u8], rejections: &[u32]| check(kept, rejections).unwrap_err();
        assert_eq!(lie(&[1, 0], &[]), "kept has 2 entries for 3 rows");
        assert_eq!(lie(&[1, 0, 1, 1], &[]), "kept has 4 entries for 3 rows");
        assert_eq!(lie(&[1, 2, 0], &[]), "`kept` holds 2 at row 1, which is neither 1 (keep) nor 0 (drop)");
        assert_eq!(lie(&[1, 0, 0], &[3]), "row 3 of a batch of 3 is rejected");
        assert_eq!(lie(&[1, 0, 0], &[1, 1]), "row 1 is rejected twice");
    }

    #[test]
    fn verdicts_become_flags() {
        let part = verdicts(3, vec![Verdict::Keep, Verdict::Drop, Verdict::Reject("no\n".to_owned())]).unwrap();
        assert_eq!(part.answer, Answer::Keep(vec![true, false, false]));
        assert_eq!(part.rejected, [Failure { row: 2, kind: FailureKind::Rejected, reason: "no\\n".to_owned() }]);
        assert_eq!(verdicts(1, vec![]).unwrap_err(), "the list of verdicts has 0 entries for 1 rows");
    }

    fn columns(events: usize) -> ColumnsOut {
        let events: Vec<Event> = (0..events).map(|n| Event { id: n.to_string(), ..Event::default() }).collect();
        let batch: Batch = events.iter().collect();
        ColumnsOut { stride: STRIDE as u32, ends: batch.ends().to_vec(), bytes: batch.bytes().to_vec() }
    }

    #[test]
    fn parents_ascend_within_the_batch() {
        let check = |events, parents: &[u32], rejections: &[u32]| {
            let parents = parents.to_vec();
            rewrite(3, Rewrite { batch: columns(events), parents, rejected: rejected(rejections) })
        };
        let part = check(3, &[0, 0, 2], &[1]).unwrap();
        assert!(matches!(part.answer, Answer::Rewrite { ref parents, .. } if *parents == [0, 0, 2]));
        let lie = |events, parents: &[u32], rejections: &[u32]| check(events, parents, rejections).unwrap_err();
        assert_eq!(lie(2, &[0], &[]), "parents has 1 entries for 2 rows");
        assert_eq!(lie(2, &[1, 0], &[]), "`parents` must ascend, but 0 follows 1");
        assert_eq!(lie(1, &[3], &[]), "`parents` names row 3 of a batch of 3");
        assert_eq!(lie(1, &[1], &[1]), "row 1 is rejected and yet the parent of an event");
        let crooked = ColumnsOut { stride: 9, ends: vec![9; 9], bytes: vec![] };
        let lie = rewrite(3, Rewrite { batch: crooked, parents: vec![0], rejected: vec![] }).unwrap_err();
        assert!(lie.starts_with("`batch` is malformed: row 0"), "{lie}");
    }

    #[test]
    fn emitted_events_become_rows() {
        let event = |name: &str| EventOut {
            id: "1".to_owned(),
            source: "/s".to_owned(),
            kind: "k".to_owned(),
            subject: None,
            time: Some(-1),
            partition_key: Some("p".to_owned()),
            content_type: None,
            attributes: vec![AttributeOut { name: name.to_owned(), value: "v".to_owned() }],
            data: b"d".to_vec(),
        };
        let given =
            vec![Outcome::Emit(vec![]), Outcome::Reject("no".to_owned()), Outcome::Emit(vec![event("a"), event("b")])];
        let part = outcomes(3, given).unwrap();
        assert_eq!(rows_of(&part), [1]);
        let Answer::Rewrite { batch, parents } = part.answer else { panic!("a transform rewrites") };
        assert_eq!(parents, [2, 2]);
        assert_eq!(batch.event(1).attribute("b"), Some("v"));
        assert_eq!(batch.event(0).time(), Some(Timestamp::from_micros(-1)));
        let lie = outcomes(1, vec![Outcome::Emit(vec![event("")])]).unwrap_err();
        assert_eq!(lie, "an event emitted for row 0 has an attribute without a name");
    }

    #[test]
    fn routes_stay_within_their_tables() {
        let check = |choice: &[u32], choices: &[&[u32]], rejections: &[u32]| {
            routes(
                2,
                Routes {
                    topics: vec!["a".to_owned(), "b".to_owned()],
                    choice: choice.to_vec(),
                    choices: choices.iter().map(|set| set.to_vec()).collect(),
                    rejected: rejected(rejections),
                },
            )
        };
        let part = check(&[0, PASS], &[&[1, 0, 1]], &[]).unwrap();
        let expected = Answer::Route {
            topics: vec!["a".to_owned(), "b".to_owned()],
            choice: vec![Some(0), None],
            choices: vec![vec![1, 0]],
        };
        assert_eq!(part.answer, expected);
        assert!(check(&[0, 99], &[&[]], &[1]).is_ok());
        let lie = |choice: &[u32], choices: &[&[u32]]| check(choice, choices, &[]).unwrap_err();
        assert_eq!(lie(&[0], &[&[]]), "choice has 1 entries for 2 rows");
        assert_eq!(lie(&[0, 1], &[&[]]), "`choice` names set 1 of 1 at row 1");
        assert_eq!(lie(&[0, 0], &[&[2]]), "`choices` names topic 2 of 2");
    }

    #[test]
    fn routings_share_topics_and_sets() {
        let to = |names: &[&str]| Routing::To(names.iter().map(|&name| name.to_owned()).collect());
        let given =
            vec![to(&["a", "b"]), Routing::Pass, to(&["b"]), to(&["a", "b", "a"]), Routing::Reject("no".into())];
        let part = routings(5, given).unwrap();
        let expected = Answer::Route {
            topics: vec!["a".to_owned(), "b".to_owned()],
            choice: vec![Some(0), None, Some(1), Some(0), None],
            choices: vec![vec![0, 1], vec![1]],
        };
        assert_eq!(part.answer, expected);
        assert_eq!(rows_of(&part), [4]);
    }
}
