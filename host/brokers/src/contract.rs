//! What every broker promises: one function for each promise, run against each implementation.
//!
//! A function panics if the promise is broken. Topics and pipelines get names that nobody used before, so promises may
//! share a server and run side by side. [`keeps_contract!`](crate::keeps_contract) makes each promise a test of its
//! own; brokers whose events outlive the process add [`survives_restart!`](crate::survives_restart), those that several
//! hosts may use add [`shares_work!`](crate::shares_work). Nothing here knows which broker it is talking to.
#![expect(clippy::unwrap_used, reason = "these are tests, shared by several crates' test runs")]

pub mod lanes;
pub mod reading;
pub mod restart;
pub mod sharing;
pub mod topics;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{
    BatchLimit, BrokerErrorKind, Effects, LaneKey, LaneSpec, OpenLane, Output, Reading, Source,
};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, Retention, Start, TopicSpec};
use synapse_core::{Batch, Broker, BrokerError, Event, Offset, TopicName, TopicPartition, TopicPath};

/// An implementation under test.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The broker; asked for once by each promise.
    async fn broker(&self) -> Arc<dyn Broker>;

    /// The same store as another host would see it.
    async fn peer(&self, of: &Arc<dyn Broker>) -> Arc<dyn Broker> {
        Arc::clone(of)
    }

    /// Whether the number of entries that a lane has still to read counts events only.
    fn lag_is_exact(&self) -> bool {
        true
    }
}

/// An implementation that several hosts may use at once.
#[async_trait]
pub trait SharedHarness: Harness {
    /// The same store as another host of this name uses it, at the same time.
    async fn host(&self, name: &str) -> Arc<dyn Broker>;
}

/// An implementation whose events outlive the process.
#[async_trait]
pub trait DurableHarness: Harness {
    /// The same store after the process that ran `broker` has ended and another one was started. Nothing else refers
    /// to the broker.
    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker>;
}

/// Makes each promise a `#[tokio::test]`. Takes an expression that makes a [`Harness`]; it is evaluated in each test
/// and may await.
#[macro_export]
macro_rules! keeps_contract {
    ($harness:expr) => {
        $crate::keeps_contract!(@tests $harness;
            topics: [
                ensure_topic_may_be_repeated
                partitions_are_added_but_never_taken_away
                a_topic_of_one_partition_grows_or_stays_as_it_was
                topics_are_listed_by_name
                topic_info_tells_what_is_kept
                publish_creates_the_topic
                positions_ascend_and_are_those_read_back
                an_event_goes_to_the_partition_of_its_key
                an_event_without_a_key_goes_to_the_partition_of_its_id
                publishers_side_by_side_keep_their_order
                an_empty_publish_is_nothing
                a_topic_of_another_broker_is_refused
                retention_keeps_the_newest_events
            ]
            reading: [
                events_come_back_bit_for_bit
                an_event_of_a_mebibyte_passes
                poll_honours_the_limit_of_events
                poll_honours_the_limit_of_bytes
                poll_hands_out_what_is_there_at_once
                poll_waits_no_longer_than_it_may
                poll_wakes_on_publish
                reading_starts_where_it_is_told
                reading_starts_at_a_time
                readers_do_not_disturb_each_other
                unknown_places_are_refused
            ]
            lanes: [
                a_lane_from_earliest_reads_everything
                a_lane_from_latest_keeps_its_starting_place
                a_lane_from_a_time_keeps_its_starting_place
                a_reopened_lane_resumes_behind_the_last_commit
                what_was_not_committed_is_read_again
                the_cursor_never_goes_back
                outputs_of_a_commit_are_readable
                a_refused_commit_writes_nothing
                a_commit_without_effects_is_fine
                boundaries_are_kept
                a_second_owner_fences_the_first
                pipelines_have_cursors_of_their_own
                partitions_have_cursors_of_their_own
                an_unknown_lane_is_refused
            ]
            sharing: [
                a_host_alone_works_on_every_partition
                new_partitions_are_told
                places_tell_what_is_committed_and_what_is_left
            ]
        );
    };
    (@tests $harness:expr; $($module:ident: [$($promise:ident)*])*) => {
        $($(
            #[tokio::test]
            async fn $promise() {
                $crate::contract::$module::$promise(&$harness).await;
            }
        )*)*
    };
}

/// As [`keeps_contract!`](crate::keeps_contract), for the promises of a [`DurableHarness`].
#[macro_export]
macro_rules! survives_restart {
    ($harness:expr) => {
        $crate::keeps_contract!(@tests $harness;
            restart: [
                a_restart_keeps_topics_and_events
                a_restart_keeps_cursors_and_boundaries
                a_restart_fences_nobody_out
            ]
        );
    };
}

/// As [`keeps_contract!`](crate::keeps_contract), for the promises of a [`SharedHarness`].
#[macro_export]
macro_rules! shares_work {
    ($harness:expr) => {
        $crate::keeps_contract!(@tests $harness;
            sharing: [
                hosts_share_the_partitions_evenly
                others_go_on_where_a_leaver_stopped
            ]
        );
    };
}

/// Long enough for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough to see that nothing happens.
const GLANCE: Duration = Duration::from_millis(50);

const PLENTY: BatchLimit = BatchLimit { events_max: 10_000, bytes_max: 64 << 20 };

/// A text that no other promise and no other run uses.
fn fresh(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{:x}-{:x}-{number}", since_epoch.as_micros(), std::process::id())
}

fn fresh_topic() -> TopicName {
    fresh("contract").parse().unwrap()
}

/// A fresh topic with `partitions` shards that keeps everything.
async fn topic(broker: &dyn Broker, partitions: u32) -> TopicName {
    let name = fresh_topic();
    broker.ensure_topic(&name, &spec(partitions)).await.unwrap();
    name
}

fn spec(partitions: u32) -> TopicSpec {
    TopicSpec { partitions: partitions.try_into().unwrap(), retention: Retention::default() }
}

fn path(broker: &dyn Broker, topic: &TopicName) -> TopicPath {
    TopicPath { broker: broker.name().clone(), topic: topic.clone() }
}

/// An event with a key, if it is not empty, and the id as data.
fn event(id: impl fmt::Display, key: &str) -> Event {
    let id = id.to_string();
    Event {
        source: "/contract".to_owned(),
        kind: "contract.event".to_owned(),
        partition_key: (!key.is_empty()).then(|| key.to_owned()),
        data: id.clone().into_bytes(),
        id,
        ..Event::default()
    }
}

fn events(ids: std::ops::Range<usize>) -> Vec<Event> {
    ids.map(|id| event(id, "")).collect()
}

fn output(broker: &dyn Broker, topic: &TopicName, events: &[Event]) -> Output {
    let batch: Batch = events.iter().collect();
    Output { topic: path(broker, topic), encoding: Encoding::CloudEvents, events: Arc::new(batch) }
}

async fn publish(broker: &dyn Broker, topic: &TopicName, events: &[Event]) -> Vec<(u32, Offset)> {
    broker.publish(&output(broker, topic, events)).await.unwrap()
}

/// The offsets of events published to a topic of one partition.
async fn publish_ids(broker: &dyn Broker, topic: &TopicName, ids: std::ops::Range<usize>) -> Vec<Offset> {
    let positions = publish(broker, topic, &events(ids)).await;
    positions.into_iter().map(|(_, offset)| offset).collect()
}

/// The next `count` events of a source, with their places; and that there is nothing behind them but what comes later.
async fn next(source: &mut dyn Source, count: usize) -> Vec<(Offset, Event)> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = source.poll(PLENTY, PATIENCE).await.unwrap();
        assert!(!batch.offsets.is_empty(), "{} of {count} events came, then none for {PATIENCE:?}", all.len());
        assert_eq!(batch.offsets.len(), batch.events.len());
        assert_eq!((batch.undecodable.len(), batch.expired.len()), (0, 0));
        all.extend(batch.offsets.iter().copied().zip(batch.events.events().map(|event| event.to_event())));
    }
    assert_eq!(all.len(), count, "more events than expected: {all:?}");
    all
}

/// The ids of the next `count` events.
async fn next_ids(source: &mut dyn Source, count: usize) -> Vec<String> {
    next(source, count).await.into_iter().map(|(_, event)| event.id).collect()
}

async fn assert_nothing(source: &mut dyn Source) {
    let batch = source.poll(PLENTY, GLANCE).await.unwrap();
    assert!(batch.is_empty(), "nothing should come here: {batch:?}");
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|id| id.to_string()).collect()
}

fn lane_spec(broker: &dyn Broker, topic: &TopicName, pipeline: &str, start: Start) -> LaneSpec {
    let partition = TopicPartition { topic: path(broker, topic), partition: 0 };
    let key = LaneKey { pipeline: pipeline.parse().unwrap(), partition };
    LaneSpec { key, start, read: ReadMode::Cursor }
}

/// Opens a lane and the source it reads from.
async fn open(broker: &dyn Broker, spec: &LaneSpec) -> (OpenLane, Box<dyn Source>) {
    let mut lane = broker.open_lane(spec).await.unwrap();
    let at = &spec.key.partition;
    let place = std::mem::replace(&mut lane.reading, Reading::From(ReadFrom::Latest));
    let source = match place {
        Reading::From(from) => broker.read(&at.topic.topic, at.partition, from).await.unwrap(),
        Reading::Own(source) => source,
    };
    (lane, source)
}

fn covering(offsets: &[Offset]) -> Effects {
    Effects { covered: offsets.to_vec(), ..Effects::default() }
}

fn assert_kind<T>(result: Result<T, BrokerError>, kind: BrokerErrorKind, about: &str) {
    match result {
        Ok(_) => panic!("should have been refused as {kind:?}: {about}"),
        Err(error) => {
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(about), "`{error}` should name `{about}`");
        }
    }
}
