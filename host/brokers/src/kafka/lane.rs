//! One lane: its place in the group's offsets, and commits as transactions.
//!
//! # The fence
//! Each lane has a transactional id of its own, `synapse/<pipeline>/<topic>/<partition>`. Who opens the lane takes a
//! newer epoch of that id (KIP-98): a transaction that an older owner left open is given up, and whatever it still sends
//! is refused. So a zombie cannot commit, whoever the group believes to be its member, and a rebalance of other
//! partitions holds no lane up.
//!
//! # All or nothing
//! Outputs, dead letters, a boundary and the group's offset are one transaction. With `delivery = "at-least-once"` the
//! outputs are acknowledged first and only the rest is a transaction, which is quicker and may repeat outputs after a
//! crash.
//!
//! Whatever fails, the producer is thrown away; the next one finds out what became of its last transaction before it
//! reads the offsets.

use std::sync::Arc;

use async_trait::async_trait;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset as NativeOffset, TopicPartitionList};
use synapse_core::broker::{Boundary, LaneKey, LaneSpec, OpenLane, Reading};
use synapse_core::spec::{ReadFrom, Start};
use synapse_core::{BrokerError, Committer, Effects, Offset, Output, Timestamp, TopicName};
use tokio::time::Instant;

use super::member::{Committed, Group};
use super::publish::{
    DELIVERIES_LOOK, Deliveries, Outgoing, ProducerSide, ROOM_WAIT, Sent, ask_partitions, murmur2_partition, native,
};
use super::reader::number;
use super::{Shared, drop_elsewhere};
use crate::rows::key_of;

/// Takes the lane over and finds its place.
pub(super) async fn open(shared: &Arc<Shared>, spec: &LaneSpec) -> Result<OpenLane, BrokerError> {
    let at = &spec.key.partition;
    shared.check_own(&at.topic)?;
    shared.topics.check_partition(&at.topic.topic, at.partition).await?;
    let group = shared.group(&spec.key.pipeline)?;
    let lane = Arc::new(Lane::fence(shared, &spec.key, group).await?);
    let place = [(at.topic.topic.clone(), at.partition)];
    let found = lane.group.committed(&place).await?.pop().unwrap_or_default();
    let begin = Begin::find(shared, spec, &found).await?;
    // Written under our name whatever it is: it tells others who has the lane, and a starting place stays.
    let note = begin.note(&shared.topics.cluster.host);
    lane.transact(Vec::new(), None, begin.next, note).await?;
    let boundary = shared.changelog.boundaries(&spec.key).await?.pop();
    let from = match begin.time {
        Some(time) => ReadFrom::Time(time),
        None => ReadFrom::At(Offset::Number(u64::try_from(begin.next).unwrap_or_default())),
    };
    let committer = LaneCommitter { shared: Arc::clone(shared), lane, next: begin.next };
    Ok(OpenLane { committer: Box::new(committer), reading: Reading::From(from), boundary })
}

/// Where a lane begins.
#[derive(Clone, Copy)]
struct Begin {
    next: i64,
    /// For a start at a time that nothing had reached yet.
    time: Option<Timestamp>,
}

impl Begin {
    async fn find(shared: &Shared, spec: &LaneSpec, found: &Committed) -> Result<Self, BrokerError> {
        if let Some(next) = found.next {
            return Ok(Self { next, time: time_of(&found.note) });
        }
        let at = &spec.key.partition;
        let span = shared.topics.span(&at.topic.topic, at.partition).await?;
        Ok(match spec.start {
            Start::Earliest => Self { next: span.low, time: None },
            Start::Latest => Self { next: span.high, time: None },
            Start::Time(time) => match shared.topics.offset_at(&at.topic.topic, at.partition, time).await? {
                Some(next) => Self { next, time: None },
                None => Self { next: span.high, time: Some(time) },
            },
        })
    }

    fn note(self, host: &str) -> String {
        match self.time {
            Some(time) => format!("{HOST}{host};{FROM_TIME}{}", time.as_micros()),
            None => format!("{HOST}{host}"),
        }
    }
}

const HOST: &str = "host=";
const FROM_TIME: &str = "from-time=";

/// The host that a note beside an offset names.
pub(super) fn host_of(note: &str) -> Option<&str> {
    note.split(';').find_map(|part| part.strip_prefix(HOST))
}

fn time_of(note: &str) -> Option<Timestamp> {
    let micros = note.split(';').find_map(|part| part.strip_prefix(FROM_TIME))?;
    micros.parse().ok().map(Timestamp::from_micros)
}

/// A lane that this host has.
struct Lane {
    shared: Arc<Shared>,
    key: LaneKey,
    group: Arc<Group>,
    /// `None` only while it is being dropped.
    producer: Option<Arc<BaseProducer<ProducerSide>>>,
}

impl Lane {
    /// Shuts out whoever had the lane before.
    async fn fence(shared: &Arc<Shared>, key: &LaneKey, group: Arc<Group>) -> Result<Self, BrokerError> {
        let cluster = &shared.topics.cluster;
        let at = &key.partition;
        let id = format!("synapse/{}/{}/{}", key.pipeline, at.topic.topic, at.partition);
        let producer = cluster.transactional(&id).create_with_context(ProducerSide(cluster.context()));
        let producer = Arc::new(producer.map_err(|error| cluster.failed("make a producer", &error))?);
        let lane = Self { shared: Arc::clone(shared), key: key.clone(), group, producer: Some(producer) };
        let timeout = 3 * cluster.timeout;
        lane.blocking("open", move |producer, _| producer.init_transactions(timeout)).await?;
        Ok(lane)
    }

    /// Runs what blocks off the reactor. What is begun runs to its end, also if nobody waits any more.
    async fn blocking(
        &self,
        doing: &str,
        run: impl FnOnce(&BaseProducer<ProducerSide>, &ConsumerGroupMetadata) -> KafkaResult<()> + Send + 'static,
    ) -> Result<(), BrokerError> {
        let producer = Arc::clone(self.producer.as_ref().expect("it goes only when the lane is dropped"));
        let group = Arc::clone(&self.group);
        let doing = format!("{doing} lane `{}`", self.key);
        let cluster = Arc::clone(&self.shared.topics.cluster);
        let run = move || {
            run(&producer, group.metadata()).map_err(|error| {
                // A producer that is done for says why only when it is asked.
                match (error.rdkafka_error_code(), producer.client().fatal_error()) {
                    (Some(code), Some((cause, reason))) if code != cause => cluster.refused(&doing, cause, &reason),
                    _ => cluster.failed(&doing, &error),
                }
            })
        };
        let ran = tokio::task::spawn_blocking(run).await;
        ran.map_err(|panic| self.shared.topics.cluster.invalid(panic))?
    }

    /// One transaction: these outputs, a boundary, and the group's offset.
    async fn transact(
        &self,
        outputs: Vec<(Output, u32)>,
        boundary: Option<Boundary>,
        next: i64,
        note: String,
    ) -> Result<(), BrokerError> {
        let boundary = boundary.map(|boundary| self.shared.changelog.record(&self.key, &boundary));
        let (topic, partition) = (self.key.partition.topic.topic.clone(), native(self.key.partition.partition));
        let timeout = 3 * self.shared.topics.cluster.timeout;
        self.blocking("commit", move |producer, group| {
            let deadline = Instant::now() + timeout;
            producer.begin_transaction()?;
            let done = send(producer, &outputs, boundary.as_ref(), deadline).and_then(|()| {
                let mut offsets = TopicPartitionList::with_capacity(1);
                let mut offset = offsets.add_partition(topic.as_str(), partition);
                offset.set_offset(NativeOffset::Offset(next))?;
                offset.set_metadata(&note);
                again(deadline, || producer.send_offsets_to_transaction(&offsets, group, left(deadline)))?;
                again(deadline, || producer.commit_transaction(left(deadline)))
            });
            if done.is_err() {
                // If this fails, too, whoever opens the lane next gives the transaction up.
                let _ = producer.abort_transaction(left(deadline));
            }
            done
        })
        .await
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Closing waits for librdkafka's threads.
        drop_elsewhere(self.producer.take());
    }
}

fn left(deadline: Instant) -> std::time::Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Calls again while librdkafka says that it may.
fn again(deadline: Instant, mut call: impl FnMut() -> KafkaResult<()>) -> KafkaResult<()> {
    loop {
        match call() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                std::thread::sleep(ROOM_WAIT);
            }
            other => return other,
        }
    }
}

/// Sends records and waits until all are acknowledged.
fn send(
    producer: &BaseProducer<ProducerSide>,
    outputs: &[(Output, u32)],
    boundary: Option<&(TopicName, Vec<u8>, Vec<u8>)>,
    deadline: Instant,
) -> KafkaResult<()> {
    let deliveries = Deliveries::counted();
    let put = |record: Outgoing<'_>, topic: &TopicName, partition: u32| {
        loop {
            match record.send(producer, topic.as_str(), partition, &deliveries)? {
                Sent::Yes => return Ok(()),
                _ if Instant::now() > deadline => {
                    return Err(KafkaError::MessageProduction(RDKafkaErrorCode::TimedOutQueue));
                }
                Sent::Full => producer.poll(ROOM_WAIT),
                Sent::Unknown => ask_partitions(producer, topic.as_str(), left(deadline)),
            }
        }
    };
    for (output, partitions) in outputs {
        for event in output.events.events() {
            let partition = murmur2_partition(key_of(event).as_bytes(), *partitions);
            put(Outgoing::Event(event), &output.topic.topic, partition)?;
        }
    }
    if let Some((topic, key, value)) = boundary {
        put(Outgoing::Plain { key, value }, topic, 0)?;
    }
    // The crate's own `flush` looks every tenth of a second only.
    while producer.in_flight_count() > 0 {
        if Instant::now() > deadline {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        }
        producer.poll(DELIVERIES_LOOK);
    }
    deliveries.result().map(drop)
}

struct LaneCommitter {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    /// The next offset to read, as it was committed last.
    next: i64,
}

#[async_trait]
impl Committer for LaneCommitter {
    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError> {
        let shared = &self.shared;
        effects.outputs.iter().try_for_each(|output| shared.check_own(&output.topic))?;
        let last = effects.covered.iter().max().map(|&last| number(&shared.topics, last)).transpose()?;
        let next = last.map_or(self.next, |last| self.next.max(last + 1));
        if effects.outputs.is_empty() && effects.boundary.is_none() && next == self.next {
            return Ok(());
        }
        let mut outputs = Vec::new();
        if shared.exactly_once {
            for output in &effects.outputs {
                outputs.push((output.clone(), shared.topics.made(&output.topic.topic).await?));
            }
        } else {
            shared.publish(&effects.outputs).await?;
        }
        let note = format!("{HOST}{}", shared.topics.cluster.host);
        self.lane.transact(outputs, effects.boundary.clone(), next, note).await?;
        self.next = next;
        if let Some(boundary) = &effects.boundary {
            shared.changelog.committed(&self.lane.key, boundary).await;
        }
        if shared.exactly_once {
            for output in &effects.outputs {
                shared.topics.added(&output.topic.topic, output.events.len());
            }
        }
        Ok(())
    }
}
