//! The embedded log under a process that dies: killed at any moment, or refused by the disk.
//!
//! Each test is also the process that dies: it runs itself with a directory in an environment variable, and that
//! second process publishes and says on its standard output what was acknowledged to it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use synapse_brokers::embedded::{EmbeddedLog, Options};
use synapse_core::broker::{BatchLimit, BrokerErrorKind, Effects, LaneKey, LaneSpec, Reading};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, Start, TopicSpec};
use synapse_core::{Broker, Event, Offset, Output, TopicPartition};

const DIR: &str = "SYNAPSE_CRASH_DIR";
const ACKNOWLEDGED: &str = "acknowledged ";

fn open(dir: &Path) -> EmbeddedLog {
    EmbeddedLog::open(dir, Options::default()).unwrap().0
}

fn output(topic: &str, ids: &[String], size: usize) -> Output {
    let events: Vec<Event> =
        ids.iter().map(|id| Event { id: id.clone(), data: vec![b'x'; size], ..Event::default() }).collect();
    Output {
        topic: format!("local/{topic}").parse().unwrap(),
        encoding: Encoding::CloudEvents,
        events: Arc::new(events.iter().collect()),
    }
}

/// This test again, as a process of its own that dies.
fn this_test_in(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(DIR, dir);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{ACKNOWLEDGED}{what}").unwrap();
    out.flush().unwrap();
}

/// What the child was told, until it dies; it is killed after `kill_after` lines.
fn acknowledged(child: &mut Child, kill_after: usize) -> Vec<String> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = Vec::new();
    for line in lines {
        let Ok(line) = line else { break };
        // The first line begins with what the test runner has to say.
        told.extend(line.split_once(ACKNOWLEDGED).map(|(_, what)| what.to_owned()));
        if told.len() == kill_after {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    told
}

/// Every event of a partition with its offset; offsets are dense.
async fn read_all(log: &EmbeddedLog, topic: &str) -> BTreeMap<u64, String> {
    let mut source = log.read(&topic.parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
    let mut all = BTreeMap::new();
    loop {
        let batch = source.poll(BatchLimit::default(), Duration::ZERO).await.unwrap();
        if batch.is_empty() {
            break;
        }
        for (offset, event) in batch.offsets.iter().zip(batch.events.events()) {
            assert_eq!(*offset, Offset::Number(all.len() as u64), "offsets are dense");
            all.insert(all.len() as u64, event.id().to_owned());
        }
    }
    all
}

/// Four publishers and a lane that copies what they publish, for ever.
async fn publish_until_killed(dir: &Path) {
    let log = open(dir);
    let run = log.ensure_topic(&"in".parse().unwrap(), &TopicSpec::default()).await.unwrap().partitions[0].events;
    log.ensure_topic(&"out".parse().unwrap(), &TopicSpec::default()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..4 {
        let log = log.clone();
        tasks.spawn(async move {
            for turn in 0.. {
                let ids: Vec<String> = (0..1 + turn % 5).map(|n| format!("{run}.{publisher}.{turn}.{n}")).collect();
                // Large enough that memtables are written out under the kills, too.
                let positions = log.publish(&output("in", &ids, 20_000)).await.unwrap();
                for (id, (_, offset)) in ids.iter().zip(positions) {
                    say(&format!("{offset} {id}"));
                }
            }
        });
    }
    tasks.spawn(async move { copy_for_ever(&log).await });
    tasks.join_next().await;
}

async fn copy_for_ever(log: &EmbeddedLog) {
    let (mut lane, from) = open_lane(log).await;
    let mut source = log.read(&"in".parse().unwrap(), 0, from).await.unwrap();
    loop {
        let batch = source.poll(BatchLimit::default(), Duration::from_secs(1)).await.unwrap();
        let ids: Vec<String> = batch.events.events().map(|event| event.id().to_owned()).collect();
        let effects = Effects { outputs: vec![output("out", &ids, 10)], covered: batch.offsets, boundary: None };
        lane.commit(&effects).await.unwrap();
    }
}

async fn open_lane(log: &EmbeddedLog) -> (Box<dyn synapse_core::Committer>, ReadFrom) {
    let partition = TopicPartition { topic: "local/in".parse().unwrap(), partition: 0 };
    let key = LaneKey { pipeline: "copy".parse().unwrap(), partition };
    let lane = log.open_lane(&LaneSpec { key, start: Start::Earliest, read: ReadMode::Cursor }).await.unwrap();
    match lane.reading {
        Reading::From(from) => (lane.committer, from),
        Reading::Own(_) => panic!("the log has no groups"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_acknowledged_outlives_kill_9() {
    if let Some(dir) = std::env::var_os(DIR) {
        return publish_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut told = BTreeMap::new();
    for round in 0..10 {
        let mut child = this_test_in(dir.path(), "whatever_was_acknowledged_outlives_kill_9").spawn().unwrap();
        let lines = acknowledged(&mut child, 1 + round * 67);
        assert!(lines.len() > round * 67, "the process ended by itself in round {round}");
        for line in lines {
            let (offset, id) = line.split_once(' ').unwrap();
            let before = told.insert(offset.parse::<u64>().unwrap(), id.to_owned());
            assert_eq!(before, None, "offset {offset} was given twice");
        }
        let log = open(dir.path());
        let stored = read_all(&log, "in").await;
        for (offset, id) in &told {
            assert_eq!(stored.get(offset), Some(id), "round {round}: offset {offset} was acknowledged");
        }
        // Output and cursor are one: the copy holds exactly what the cursor has passed.
        let (_, from) = open_lane(&log).await;
        let ReadFrom::At(Offset::Number(cursor)) = from else { panic!("the lane starts at an offset: {from:?}") };
        let expected: Vec<String> = stored.values().take(cursor.try_into().unwrap()).cloned().collect();
        let copied: Vec<String> = read_all(&log, "out").await.into_values().collect();
        assert_eq!(copied, expected, "round {round}: the copy and the cursor");
    }
}

/// Bytes of an event. Once a journal is larger than 64,000,000 bytes another may begin: with ten of these it is not, and
/// the eleventh takes it past the limit of a file. Small ones would race with its end.
const LARGE: usize = 6 << 20;

/// Publishes until the disk refuses, then sees that everything is refused.
async fn publish_until_refused(dir: &Path) {
    let log = open(dir);
    for turn in 0.. {
        let id = turn.to_string();
        match log.publish(&output("in", std::slice::from_ref(&id), LARGE)).await {
            Ok(_) => say(&id),
            Err(error) => {
                assert_eq!(error.kind, BrokerErrorKind::Unavailable, "{error}");
                assert!(error.message.contains("then start Synapse again"), "{error}");
                break;
            }
        }
    }
    let failure = log.failure().unwrap();
    let error = log.publish(&output("in", &["late".to_owned()], 1)).await.unwrap_err();
    assert_eq!(error.message, failure);
    let error = log.ensure_topic(&"other".parse().unwrap(), &TopicSpec::default()).await.unwrap_err();
    assert_eq!(error.message, failure);
    say("refused");
}

#[tokio::test]
async fn a_disk_that_refuses_a_write_ends_all_writing() {
    if let Some(dir) = std::env::var_os(DIR) {
        return publish_until_refused(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let test = this_test_in(dir.path(), "a_disk_that_refuses_a_write_ends_all_writing");
    // Files may not grow beyond 65 MiB: a little more than a journal begins with, less than it grows to. Without the
    // signal the write itself fails.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 133120; exec \"$@\"", "sh"]);
    shell.arg(test.get_program()).args(test.get_args()).env(DIR, dir.path());
    let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut told = acknowledged(&mut child, usize::MAX);
    assert_eq!(told.pop().as_deref(), Some("refused"));
    assert!(!told.is_empty());
    // A new process without the limit finds what was acknowledged, and goes on.
    let log = open(dir.path());
    let stored: Vec<String> = read_all(&log, "in").await.into_values().collect();
    assert!(stored.starts_with(&told), "{told:?} were acknowledged, {stored:?} are there");
    log.publish(&output("in", &["on".to_owned()], 1)).await.unwrap();
}
