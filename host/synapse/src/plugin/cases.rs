//! Case files of a plugin: finding them, handing their events over in the host's own shape, and telling what failed.
//!
//! What a case is and when it holds is the SDK's to say, so that `cargo test` and `synapse plugin test` agree. This module
//! knows how a stage's answer reads as an outcome; it must not run one: who does hands the answers in.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use synapse_core::Batch;
use synapse_core::codec::cloudevents;
use synapse_core::stage::{Answer, StageRun};

pub use synapse_plugin::cases::{Case, Expect, Failure, Outcome};

/// Why there are no cases to run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("could not read {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A line that is no case.
    #[error("{}, {source}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line and what is wrong with it.
        source: synapse_plugin::cases::ParseError,
    },
    /// An event that cannot be read.
    #[error("{}, line {line}: `given` is no event: {problem}", .path.display())]
    Given {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A crate without cases.
    #[error("{} has no cases: write some into cases.ndjson, one a line: {EXAMPLE}", .dir.display())]
    None {
        /// The crate.
        dir: PathBuf,
    },
}

const EXAMPLE: &str = r#"{"given": {"type": "model-ready"}, "config": {}, "expect": "keep"}"#;

/// A case file that was read.
#[derive(Debug, Clone)]
pub struct CaseFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its cases, and for each the event as a batch of one.
    pub cases: Vec<(Case, Batch)>,
}

impl CaseFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, and for the first line that is no case or whose event is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// As [`Self::read`], with the text at hand.
    ///
    /// # Errors
    /// For the first line that is no case or whose event is none.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let cases = synapse_plugin::cases::parse(text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source })?
            .into_iter()
            .map(|case| {
                let problem = |problem| Error::Given { path: path.to_owned(), line: case.line, problem };
                let batch = given(&case).map_err(problem)?;
                Ok((case, batch))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), cases })
    }

    /// Every case file of a crate: `cases.ndjson` beside its manifest, and each `*.ndjson` in its folder `cases`, by name.
    ///
    /// # Errors
    /// When one cannot be read, and when there is no case in any.
    pub fn of_crate(dir: &Path) -> Result<Vec<Self>, Error> {
        let mut paths: Vec<PathBuf> = [dir.join("cases.ndjson")].into_iter().filter(|path| path.is_file()).collect();
        let folder = dir.join("cases");
        if folder.is_dir() {
            let failed = |source| Error::Io { path: folder.clone(), source };
            let entries = std::fs::read_dir(&folder).map_err(failed)?;
            let mut inside =
                entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
            inside.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
            inside.sort();
            paths.append(&mut inside);
        }
        let files = paths.iter().map(|path| Self::read(path)).collect::<Result<Vec<_>, _>>()?;
        if files.iter().all(|file| file.cases.is_empty()) {
            Err(Error::None { dir: dir.to_owned() })
        } else {
            Ok(files)
        }
    }

    /// Runs every case. `run` configures the plugin with the case's `config`, hands it the batch, and says what became
    /// of its one event: [`outcome`] reads a stage's answer.
    pub fn run(&self, mut run: impl FnMut(&Case, &Batch) -> Outcome) -> Report {
        let mut report = Report::new(self);
        for (case, batch) in &self.cases {
            report.record(case, &run(case, batch));
        }
        report
    }
}

fn given(case: &Case) -> Result<Batch, String> {
    let json = Value::Object(case.given.clone()).to_string();
    let mut batch = Batch::default();
    cloudevents::decode(json.as_bytes(), &mut batch).map_err(|error| error.to_string())?;
    Ok(batch)
}

/// What a stage's answer to a batch of one event says became of it.
///
/// An answer that was taken apart wrongly (a topic's index out of range, a batch of none) counts as a rejection that
/// says so: the caller has checked it already.
pub fn outcome(run: &StageRun) -> Outcome {
    if let Some(failure) = run.failures.first() {
        return Outcome::Reject(failure.reason.clone());
    }
    match &run.answer {
        Answer::Keep(kept) => match kept.first() {
            Some(true) => Outcome::Keep,
            Some(false) => Outcome::Drop,
            None => Outcome::Reject("the plugin answered nothing".to_owned()),
        },
        Answer::Rewrite { batch, .. } => Outcome::Emit(batch.events().map(cloudevent).collect()),
        Answer::Route { topics, choice, choices } => match choice.first() {
            Some(Some(choice)) => {
                let chosen = choices.get(*choice as usize).map(Vec::as_slice).unwrap_or_default();
                Outcome::To(chosen.iter().filter_map(|topic| topics.get(*topic as usize).cloned()).collect())
            }
            Some(None) => Outcome::Pass,
            None => Outcome::Reject("the plugin answered nothing".to_owned()),
        },
    }
}

fn cloudevent(event: synapse_core::EventRef<'_>) -> Map<String, Value> {
    let mut json = Vec::new();
    cloudevents::encode(event, None, &mut json);
    serde_json::from_slice(&json).expect("the codec writes one JSON object")
}

/// What came of a case file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// How many cases came out as expected.
    pub passed: usize,
    /// Those that did not, in the file's order.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Of a file of which nothing was run yet.
    pub fn new(file: &CaseFile) -> Self {
        Self { path: file.path.clone(), passed: 0, failures: Vec::new() }
    }

    /// Adds what came of a case.
    pub fn record(&mut self, case: &Case, outcome: &Outcome) {
        match case.difference(outcome) {
            Some(difference) => self.failures.push(Failure { line: case.line, name: case.name.clone(), difference }),
            None => self.passed += 1,
        }
    }

    /// Whether every case came out as expected.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Report {
    /// Each failure, then one line in all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "{}, {failure}", self.path.display())?;
        }
        write!(f, "{}: {} passed, {} failed", self.path.display(), self.passed, self.failures.len())
    }
}

#[cfg(test)]
mod tests {
    use synapse_core::stage::{Failure as StageFailure, FailureKind, Usage};

    use super::*;

    fn file(text: &str) -> CaseFile {
        CaseFile::parse(Path::new("cases.ndjson"), text).unwrap()
    }

    fn run(answer: Answer) -> StageRun {
        StageRun { answer, failures: Vec::new(), usage: Usage::default() }
    }

    #[test]
    fn answers_read_as_outcomes() {
        assert_eq!(outcome(&run(Answer::Keep(vec![true]))), Outcome::Keep);
        assert_eq!(outcome(&run(Answer::Keep(vec![false]))), Outcome::Drop);
        let route = |choice, choices| {
            outcome(&run(Answer::Route { topics: vec!["a".into(), "b".into()], choice: vec![choice], choices }))
        };
        assert_eq!(route(None, vec![]), Outcome::Pass);
        assert_eq!(route(Some(0), vec![vec![1, 0]]), Outcome::To(vec!["b".into(), "a".into()]));
        assert_eq!(route(Some(0), vec![vec![]]), Outcome::To(vec![]));
        let rejected = StageRun {
            failures: vec![StageFailure { row: 0, kind: FailureKind::Rejected, reason: "bad".into() }],
            ..run(Answer::Keep(vec![true]))
        };
        assert_eq!(outcome(&rejected), Outcome::Reject("bad".into()));
    }

    #[test]
    fn emitted_events_are_compared_as_cloudevents() {
        let line = r#"{"given": {"id": "e", "time": "2026-01-01T00:00:00Z", "tenant": "a", "data": {"x": [1]}}, "expect": "keep"}"#;
        let report =
            file(line).run(|_, batch| outcome(&run(Answer::Rewrite { batch: batch.clone(), parents: vec![0] })));
        assert!(report.is_ok(), "{report}");
    }

    #[test]
    fn reports_name_file_and_line() {
        let text =
            "{\"given\": {}, \"expect\": \"keep\"}\n{\"name\": \"other\", \"given\": {}, \"expect\": \"drop\"}\n";
        let report = file(text).run(|_, _| Outcome::Keep);
        let expected =
            "cases.ndjson, line 2 (other)\n    expected drop\n    but it was kept\ncases.ndjson: 1 passed, 1 failed";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn unreadable_files_are_named() {
        let error = |text| CaseFile::parse(Path::new("cases.ndjson"), text).unwrap_err().to_string();
        assert!(error("{}").starts_with("cases.ndjson, line 1 is no case: missing field `given`"), "{}", error("{}"));
        let given = r#"{"given": {"time": "yesterday"}, "expect": "keep"}"#;
        assert!(error(given).starts_with("cases.ndjson, line 1: `given` is no event: "), "{}", error(given));
    }

    #[test]
    fn a_crate_has_its_cases_beside_the_manifest_and_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let missing = CaseFile::of_crate(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("has no cases: write some into cases.ndjson"), "{missing}");
        std::fs::create_dir(dir.path().join("cases")).unwrap();
        for name in ["cases.ndjson", "cases/b.ndjson", "cases/a.ndjson", "cases/notes.txt"] {
            std::fs::write(dir.path().join(name), EXAMPLE).unwrap();
        }
        let files = CaseFile::of_crate(dir.path()).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.path.strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(names, ["cases.ndjson", "cases/a.ndjson", "cases/b.ndjson"].map(PathBuf::from));
    }

    /// The plugins that ship run these natively; here their events have to be events to the host, too.
    #[test]
    fn the_cases_of_the_plugins_that_ship_are_readable() {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
        for name in ["filter-match", "filter-sample", "router-table", "transform-fields", "transform-split"] {
            let files = CaseFile::of_crate(&plugins.join(name)).unwrap_or_else(|error| panic!("{error}"));
            assert!(files[0].cases.len() > 5, "{name}");
        }
    }
}
