//! The contract on the embedded log, and what it alone promises.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc;

use synapse_core::broker::BatchLimit;
use synapse_core::spec::{Encoding, ReadMode, Retention, Start};
use synapse_core::{Event, SourceBatch, Timestamp, TopicPartition};
use tokio::task::JoinSet;

use super::*;
use crate::contract::{DurableHarness, Harness};

/// A directory of its own for each promise.
struct Embedded {
    dir: tempfile::TempDir,
    tail_bytes_max: usize,
}

impl Embedded {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), tail_bytes_max: 1 << 20 }
    }

    /// Almost everything is read from the store.
    fn without_tail() -> Self {
        Self { tail_bytes_max: 0, ..Self::new() }
    }
}

#[async_trait]
impl Harness for Embedded {
    async fn broker(&self) -> Arc<dyn Broker> {
        let options = Options { tail_bytes_max: self.tail_bytes_max, ..Options::default() };
        Arc::new(EmbeddedLog::open(self.dir.path(), options).unwrap().0)
    }
}

#[async_trait]
impl DurableHarness for Embedded {
    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        assert_eq!(Arc::strong_count(&broker), 1);
        drop(broker);
        self.broker().await
    }
}

crate::keeps_contract!(Embedded::new());
crate::survives_restart!(Embedded::new());

mod without_tail {
    use super::Embedded;

    crate::keeps_contract!(Embedded::without_tail());
}

const NOW: Duration = Duration::ZERO;

fn open(dir: &Path) -> EmbeddedLog {
    EmbeddedLog::open(dir, Options::default()).unwrap().0
}

fn topic() -> TopicName {
    "t".parse().unwrap()
}

/// Events whose data is `size` bytes made of their id.
fn output(ids: std::ops::Range<usize>, size: usize) -> Output {
    let events: Vec<Event> = ids
        .map(|id| Event {
            id: id.to_string(),
            data: format!("<{id}>").into_bytes().into_iter().cycle().take(size).collect(),
            ..Event::default()
        })
        .collect();
    Output {
        topic: "local/t".parse().unwrap(),
        encoding: Encoding::CloudEvents,
        events: Arc::new(events.iter().collect()),
    }
}

async fn publish(log: &EmbeddedLog, ids: std::ops::Range<usize>, size: usize) {
    let positions = log.publish(&output(ids.clone(), size)).await.unwrap();
    let offsets: Vec<u64> = positions.into_iter().map(|(_, offset)| log.number(offset).unwrap()).collect();
    assert!(offsets.windows(2).all(|pair| pair[1] == pair[0] + 1), "offsets are dense: {offsets:?}");
}

/// Reads until nothing comes or reading fails; each event must be as it was published and follow its predecessor.
async fn read(log: &EmbeddedLog, from: ReadFrom) -> (std::ops::Range<usize>, Result<(), BrokerError>) {
    let mut source = log.read(&topic(), 0, from).await.unwrap();
    let mut seen: Option<std::ops::Range<usize>> = None;
    loop {
        let batch = match source.poll(BatchLimit::default(), NOW).await {
            Ok(batch) if batch.is_empty() => return (seen.unwrap_or(0..0), Ok(())),
            Ok(batch) => batch,
            Err(error) => return (seen.unwrap_or(0..0), Err(error)),
        };
        for event in batch.events.events() {
            let id: usize = event.id().parse().unwrap();
            let expected = output(id..id + 1, event.data().len());
            assert_eq!(event.to_event(), expected.events.event(0).to_event());
            let range = seen.get_or_insert(id..id);
            assert_eq!(range.end, id, "events follow each other");
            range.end += 1;
        }
    }
}

async fn kept(log: &EmbeddedLog) -> (Option<Offset>, u64) {
    let partition = log.topic(&topic()).await.unwrap().unwrap().partitions[0];
    (partition.earliest, partition.events)
}

fn values(log: &EmbeddedLog) -> usize {
    let shard = log.partition(&topic(), 0).unwrap().shard;
    log.shared().store.entries(shard, Timestamp::from_micros(0), 0).count()
}

#[tokio::test]
async fn a_second_host_is_told_who_has_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = EmbeddedLog::open(dir.path(), Options::default()).err().unwrap().to_string();
    assert!(error.contains(&format!("in use by process {} since 2", std::process::id())), "{error}");
    drop(log);
    open(dir.path());
}

#[tokio::test]
async fn a_format_of_the_future_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let mut batch = log.shared().store.synced();
    batch.put_number(FORMAT_KEY, 2);
    batch.commit().unwrap();
    drop(log);
    let error = EmbeddedLog::open(dir.path(), Options::default()).err().unwrap().to_string();
    assert!(error.ends_with("has format 2, but this host knows format 1"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_refused_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 30));
    let probe = Arc::clone(&free);
    let options = Options {
        disk_free_bytes_min: 100 << 20,
        disk_free_ratio_min: 0.01,
        disk_space: Arc::new(move |_| {
            Ok(DiskSpace { free_bytes: probe.load(Ordering::Relaxed), total_bytes: 20 << 30 })
        }),
        ..Options::default()
    };
    let (log, _) = EmbeddedLog::open(dir.path(), options).unwrap();
    publish(&log, 0..1, 10).await;
    // One hundredth of the disk is more than 100 MiB.
    free.store(204 << 20, Ordering::Relaxed);
    let error = log.publish(&output(1..2, 10)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Full);
    assert!(error.message.contains("204 MiB are free, and 204 MiB are kept free"), "{error}");
    assert_eq!(log.health().await.unwrap_err().kind, BrokerErrorKind::Full);
    assert_eq!(log.failure(), None);
    free.store(205 << 20, Ordering::Relaxed);
    log.health().await.unwrap();
    publish(&log, 1..2, 10).await;
    assert_eq!(read(&log, ReadFrom::Earliest).await.0, 0..2);
}

#[tokio::test]
async fn events_too_large_to_store_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = log.publish(&output(0..1, EVENT_BYTES_MAX + 1)).await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Invalid);
    assert!(error.message.contains("larger than 64 MiB"), "{error}");
}

/// Holds the writer back. Each message lets one write pass; once the sender is gone, all pass.
struct Gate {
    pass: mpsc::Sender<()>,
    /// Tells that the writer waits.
    entered: mpsc::Receiver<()>,
}

/// A log with the topic whose writer waits at the gate in each write.
async fn gated(dir: &Path) -> (EmbeddedLog, Gate) {
    let ((pass, passing), (entering, entered)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    let passing = Mutex::new(passing);
    // The clock is read once for each write.
    let clock: Clock = Arc::new(move || {
        entering.send(()).ok();
        passing.lock().unwrap().recv().ok();
        Timestamp::from_micros(0)
    });
    // One time for opening, one for the topic.
    pass.send(()).unwrap();
    pass.send(()).unwrap();
    let (log, _) = EmbeddedLog::open(dir, Options { clock, ..Options::default() }).unwrap();
    log.ensure_topic(&topic(), &TopicSpec::default()).await.unwrap();
    (log, Gate { pass, entered })
}

/// Lets requests queue up while the writer is busy; what they answer, and how many writes they took together.
async fn all_at_once<T: Send + 'static>(
    log: &EmbeddedLog,
    gate: Gate,
    requests: Vec<impl Future<Output = T> + Send + 'static>,
) -> (Vec<T>, u64) {
    let (count, busy) = (requests.len(), log.clone());
    while gate.entered.try_recv().is_ok() {}
    let first = tokio::spawn(async move {
        let elsewhere = Output { topic: "local/elsewhere".parse().unwrap(), ..output(0..1, 10) };
        busy.publish(&elsewhere).await.unwrap();
    });
    while gate.entered.try_recv().is_err() {
        tokio::task::yield_now().await;
    }
    let mut requests: JoinSet<T> = requests.into_iter().collect();
    while log.shared().queue.len() < count {
        tokio::task::yield_now().await;
    }
    let before = log.shared().store.number(GROUP_KEY).unwrap().unwrap();
    drop(gate);
    first.await.unwrap();
    let mut answers = Vec::new();
    while let Some(answer) = requests.join_next().await {
        answers.push(answer.unwrap());
    }
    // The first write is not theirs.
    (answers, log.shared().store.number(GROUP_KEY).unwrap().unwrap() - before - 1)
}

#[tokio::test]
async fn one_sync_serves_many_publishers_and_joins_their_events() {
    let dir = tempfile::tempdir().unwrap();
    let (log, gate) = gated(dir.path()).await;
    let publisher = |id: usize| {
        let log = log.clone();
        async move { log.publish(&output(id..id + 1, 100)).await.unwrap()[0].1 }
    };
    let (offsets, writes) = all_at_once(&log, gate, (0..640).map(publisher).collect()).await;
    let dense: HashSet<Offset> = (0..640).map(Offset::Number).collect();
    assert_eq!(offsets.into_iter().collect::<HashSet<_>>(), dense);
    assert_eq!(writes, 1);
    // 640 events of 103 bytes or so are a little more than 64 KiB.
    assert_eq!(values(&log), 2);
}

#[tokio::test]
async fn one_sync_serves_many_lanes() {
    let dir = tempfile::tempdir().unwrap();
    let (log, gate) = gated(dir.path()).await;
    let mut commits = Vec::new();
    for lane in 0..100 {
        let partition = TopicPartition { topic: "local/t".parse().unwrap(), partition: 0 };
        let key = LaneKey { pipeline: format!("p{lane}").parse().unwrap(), partition };
        let spec = LaneSpec { key, start: Start::Earliest, read: ReadMode::Cursor };
        gate.pass.send(()).unwrap();
        let mut lane = log.open_lane(&spec).await.unwrap();
        commits.push(async move {
            let effects = Effects { outputs: vec![output(1..2, 10)], ..Effects::default() };
            lane.committer.commit(&effects).await
        });
    }
    let (committed, writes) = all_at_once(&log, gate, commits).await;
    committed.into_iter().collect::<Result<Vec<()>, _>>().unwrap();
    assert_eq!(writes, 1);
    assert_eq!(kept(&log).await.1, 100);
}

/// What is queued while the writer is busy takes effect in that order, in one write.
#[tokio::test]
async fn requests_of_one_write_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (log, gate) = gated(dir.path()).await;
    let spec = |pipeline: &str, start| {
        let partition = TopicPartition { topic: "local/t".parse().unwrap(), partition: 0 };
        let key = LaneKey { pipeline: pipeline.parse().unwrap(), partition };
        LaneSpec { key, start, read: ReadMode::Cursor }
    };
    let other = Output { topic: "local/other".parse().unwrap(), ..output(0..1, 10) };
    let (first, second) = (output(0..3, 10), output(3..5, 10));
    let (earliest, latest) = (spec("earliest", Start::Earliest), spec("latest", Start::Latest));
    // `join!` polls in order, so all are queued before the gate opens.
    let (busy, one, two, three, four, ()) = tokio::join!(
        log.publish(&other),
        log.publish(&first),
        log.open_lane(&earliest),
        log.open_lane(&latest),
        log.publish(&second),
        async { drop(gate) },
    );
    busy.unwrap();
    assert_eq!(one.unwrap()[0], (0, Offset::Number(0)));
    assert_eq!(four.unwrap()[0], (0, Offset::Number(3)));
    let at = |lane: OpenLane| match lane.reading {
        Reading::From(ReadFrom::At(offset)) => offset,
        _ => panic!("a lane of the log starts at an offset"),
    };
    assert_eq!((at(two.unwrap()), at(three.unwrap())), (Offset::Number(0), Offset::Number(3)));
    assert_eq!(read(&log, ReadFrom::Earliest).await.0, 0..5);
}

/// A log whose clock stands still, and the clock.
async fn turned_by_hand(dir: &Path, retention: Retention) -> (EmbeddedLog, Arc<AtomicI64>) {
    let time = Arc::new(AtomicI64::new(0));
    let shared = Arc::clone(&time);
    let clock: Clock = Arc::new(move || Timestamp::from_micros(shared.load(Ordering::Relaxed)));
    let (log, _) = EmbeddedLog::open(dir, Options { clock, ..Options::default() }).unwrap();
    log.ensure_topic(&topic(), &TopicSpec { retention, ..TopicSpec::default() }).await.unwrap();
    (log, time)
}

#[tokio::test]
async fn old_values_go() {
    let dir = tempfile::tempdir().unwrap();
    let age = Some(Duration::from_micros(10));
    let (log, time) = turned_by_hand(dir.path(), Retention { age, ..Retention::default() }).await;
    for (id, now) in [0, 5, 11].into_iter().enumerate() {
        time.store(now, Ordering::Relaxed);
        publish(&log, id * 3..id * 3 + 3, 10).await;
    }
    log.trim().await.unwrap();
    assert_eq!(kept(&log).await, (Some(Offset::Number(3)), 6));
    time.store(100, Ordering::Relaxed);
    log.trim().await.unwrap();
    assert_eq!(kept(&log).await, (None, 0));
    // Offsets go on behind what is gone, also after a restart.
    drop(log);
    let (log, time) = turned_by_hand(dir.path(), Retention { age, ..Retention::default() }).await;
    time.store(100, Ordering::Relaxed);
    assert_eq!(kept(&log).await, (None, 0));
    publish(&log, 9..10, 10).await;
    assert_eq!(kept(&log).await, (Some(Offset::Number(9)), 1));
    assert_eq!(read(&log, ReadFrom::Earliest).await.0, 9..10);
}

#[tokio::test]
async fn values_beyond_the_bound_in_bytes_go_but_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = turned_by_hand(dir.path(), Retention { bytes: Some(2500), ..Retention::default() }).await;
    for id in 0..5 {
        publish(&log, id..id + 1, 1000).await;
    }
    log.trim().await.unwrap();
    assert_eq!(kept(&log).await, (Some(Offset::Number(3)), 2));
    let bytes = log.topic(&topic()).await.unwrap().unwrap().partitions[0].bytes.unwrap();
    assert!((2000..=2500).contains(&bytes), "{bytes}");
    publish(&log, 5..6, 5000).await;
    log.trim().await.unwrap();
    assert_eq!(kept(&log).await, (Some(Offset::Number(5)), 1));
}

#[tokio::test]
async fn whole_values_go_and_never_too_many_events() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = turned_by_hand(dir.path(), Retention { events: Some(4), ..Retention::default() }).await;
    for value in 0..3 {
        publish(&log, value * 3..value * 3 + 3, 10).await;
    }
    log.trim().await.unwrap();
    assert_eq!(kept(&log).await, (Some(Offset::Number(3)), 6));
    drop(log);
    let (log, _) = turned_by_hand(dir.path(), Retention { events: Some(4), ..Retention::default() }).await;
    assert_eq!(kept(&log).await, (Some(Offset::Number(3)), 6));
}

#[tokio::test]
async fn a_reader_is_told_how_much_was_trimmed_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = turned_by_hand(dir.path(), Retention { events: Some(1), ..Retention::default() }).await;
    let mut source = log.read(&topic(), 0, ReadFrom::Earliest).await.unwrap();
    for id in 0..8 {
        publish(&log, id..id + 1, 10).await;
    }
    log.trim().await.unwrap();
    let batch: SourceBatch = source.poll(BatchLimit::default(), NOW).await.unwrap();
    assert_eq!((batch.lost_to_trim, batch.offsets), (7, vec![Offset::Number(7)]));
}

/// Readers far behind see every event or are told that it is gone, while the log is trimmed under them.
#[tokio::test]
async fn readers_survive_trimming() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = EmbeddedLog::open(dir.path(), Options { tail_bytes_max: 0, ..Options::default() }).unwrap();
    let retention = Retention { events: Some(2000), ..Retention::default() };
    log.ensure_topic(&topic(), &TopicSpec { retention, ..TopicSpec::default() }).await.unwrap();
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let mut source = log.read(&topic(), 0, ReadFrom::Earliest).await.unwrap();
        readers.spawn(async move {
            let (mut next, mut lost) = (0, 0);
            while next < 20_000 {
                let batch = source.poll(BatchLimit { events_max: 100, ..BatchLimit::default() }, NOW).await.unwrap();
                lost += batch.lost_to_trim;
                next += batch.lost_to_trim + batch.offsets.len() as u64;
                assert!(batch.offsets.last().is_none_or(|last| *last == Offset::Number(next - 1)));
                tokio::task::yield_now().await;
            }
            lost
        });
    }
    for value in 0..200 {
        publish(&log, value * 100..value * 100 + 100, 20).await;
        log.trim().await.unwrap();
    }
    while let Some(lost) = readers.join_next().await {
        assert!(lost.unwrap() <= 18_000);
    }
}

/// Deleted values give their space back.
#[tokio::test]
async fn trimmed_space_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { bytes: Some(64 << 20), ..Retention::default() };
    let (log, _) = turned_by_hand(dir.path(), retention).await;
    let large = output(0..64, 16 << 10);
    for _ in 0..1000 {
        log.publish(&large).await.unwrap();
    }
    // 1000 MiB went through and 64 MiB are kept; beside them lie 256 MiB of journals and what waits for compaction.
    let bytes = log.disk_bytes().unwrap();
    assert!(bytes < 700 << 20, "{} MiB", bytes >> 20);
}

/// The only journal; opening the log has cut off what was not yet written in it.
fn journal(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("store")).unwrap().map(|entry| entry.unwrap().path());
    let journals: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|ext| ext == "jnl")).collect();
    assert_eq!(journals.len(), 1, "{journals:?}");
    journals[0].clone()
}

/// Ten values of ten events, closed; the journal ends with the last write.
async fn closed_log() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for value in 0..10 {
        publish(&log, value * 10..value * 10 + 10, 200).await;
    }
    drop(log);
    drop(open(dir.path()));
    dir
}

#[tokio::test]
async fn a_torn_write_is_dropped_and_nothing_else() {
    let dir = closed_log().await;
    let path = journal(dir.path());
    let whole = fs::read(&path).unwrap();
    for torn in [1, 7, 30, 200, 2000] {
        fs::write(&path, [whole.as_slice(), &whole[..torn]].concat()).unwrap();
        let (log, opened) = EmbeddedLog::open(dir.path(), Options::default()).unwrap();
        assert_eq!((opened.events, opened.lost_writes), (100, 0), "{torn} bytes torn");
        assert_eq!(read(&log, ReadFrom::Earliest).await.0, 0..100);
    }
    let log = open(dir.path());
    publish(&log, 100..101, 10).await;
    assert_eq!(read(&log, ReadFrom::Earliest).await.0, 0..101);
}

#[tokio::test]
async fn a_cut_journal_is_found_out() {
    let dir = closed_log().await;
    let path = journal(dir.path());
    let bytes = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes - 10).unwrap();
    let error = EmbeddedLog::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(error, Error::Lost { found, acknowledged, .. } if acknowledged == found + 1), "{error}");
    // It stays so until someone accepts it.
    assert!(matches!(EmbeddedLog::open(dir.path(), Options::default()), Err(Error::Lost { .. })));
    let (log, opened) = EmbeddedLog::open(dir.path(), Options { accept_loss: true, ..Options::default() }).unwrap();
    assert_eq!((opened.events, opened.lost_writes), (90, 1));
    publish(&log, 90..91, 10).await;
    drop(log);
    assert_eq!(read(&open(dir.path()), ReadFrom::Earliest).await.0, 0..91);
}

#[tokio::test]
async fn a_damaged_value_is_named_and_can_be_passed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for value in 0..10 {
        publish(&log, value * 10..value * 10 + 10, 200).await;
    }
    log.shared().store.flush();
    drop(log);
    let blobs = walk(&dir.path().join("store"))
        .into_iter()
        .find(|path| path.parent().is_some_and(|parent| parent.ends_with("blobs")));
    let path = blobs.expect("large values are kept apart from their keys");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|window| window == b"<42><42>").unwrap();
    bytes[at] ^= 0x10;
    fs::write(&path, bytes).unwrap();

    let log = open(dir.path());
    let (before, error) = read(&log, ReadFrom::Earliest).await;
    let error = error.unwrap_err();
    assert_eq!((before, error.kind), (0..40, BrokerErrorKind::Corrupt));
    assert!(error.message.contains("local/t/0/40 cannot be read"), "{error}");
    assert!(error.message.ends_with("reading can go on at offset 50"), "{error}");
    let behind = read(&log, ReadFrom::At(Offset::Number(50))).await;
    assert_eq!((behind.0, behind.1.is_ok()), (50..100, true));
    publish(&log, 100..101, 10).await;
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Wherever a bit flips on the disk: events are what was published, or there is an error. Never others, never fewer.
#[tokio::test]
async fn a_flipped_bit_anywhere_is_found_out_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    publish(&log, 0..40, 200).await;
    log.shared().store.flush();
    publish(&log, 40..80, 200).await;
    drop(log);
    drop(open(dir.path()));

    let (mut harmless, mut found_out) = (0, 0);
    for file in walk(&dir.path().join("store")) {
        let whole = fs::read(&file).unwrap();
        let steps = 16.min(whole.len());
        for step in 0..steps {
            let bent = tempfile::tempdir().unwrap();
            copy(dir.path(), bent.path());
            let mut bytes = whole.clone();
            let at = step * whole.len() / steps;
            bytes[at] ^= 1 << (step % 8);
            fs::write(bent.path().join(file.strip_prefix(dir.path()).unwrap()), bytes).unwrap();
            let about = format!("byte {at} of {}", file.display());
            match EmbeddedLog::open(bent.path(), Options::default()) {
                Err(_) => found_out += 1,
                Ok((log, _)) => match read(&log, ReadFrom::Earliest).await {
                    (seen, Ok(())) => {
                        assert_eq!(seen, 0..80, "{about}");
                        harmless += 1;
                    }
                    (seen, Err(error)) => {
                        assert_eq!(error.kind, BrokerErrorKind::Corrupt, "{about}: {error}");
                        assert!(seen.is_empty() || seen.start == 0, "{about}");
                        found_out += 1;
                    }
                },
            }
        }
    }
    assert!(found_out > 20, "{found_out} found out, {harmless} harmless");
}
