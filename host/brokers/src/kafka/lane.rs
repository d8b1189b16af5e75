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

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::{Offset as NativeOffset, TopicPartitionList};
use synapse_core::broker::{Boundary, BrokerErrorKind, LaneKey, LaneSpec, OpenLane, Reading};
use synapse_core::spec::{ReadFrom, Start};
use synapse_core::{BrokerError, Committer, Effects, Offset, Output, Timestamp, TopicName};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::member::Group;
use super::native::{Destination, wait_delivered};
use super::publish::{
    Deliveries, LaneSide, Outgoing, ROOM_WAIT, Sent, ask_partitions, destination, murmur2_partition, native,
};
use super::reader::number;
use crate::rows::key_of;

/// How much longer than it was given a call of librdkafka's may take.
const GRACE: Duration = Duration::from_secs(1);
/// How long opening a lane waits for a connection that only saves time.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked whether a record has failed while deliveries are waited for.
const FAILURES_LOOK: Duration = Duration::from_millis(100);
/// How often a boundary is looked for that was committed just now.
const BOUNDARY_LOOK: Duration = Duration::from_millis(50);

/// Takes the lane over and finds its place.
pub(super) async fn open(shared: &Arc<Shared>, spec: &LaneSpec) -> Result<OpenLane, BrokerError> {
    let at = &spec.key.partition;
    shared.check_own(&at.topic)?;
    shared.topics.check_partition(&at.topic.topic, at.partition).await?;
    let group = shared.group(&spec.key.pipeline)?;
    if group.is_anothers(at) {
        let cluster = &shared.topics.cluster;
        return Err(cluster.error(
            BrokerErrorKind::Fenced,
            format_args!("could not open lane `{}`: the group has given its partition to another host", spec.key),
        ));
    }
    let lane = Lane::fence(shared, &spec.key, group).await?;
    let place = [(at.topic.topic.clone(), at.partition)];
    let found = lane.group.committed(&place).await?.pop().unwrap_or_default();
    let before = Note::parse(&found.note);
    let begin = Begin::find(shared, spec, found.next, &before).await?;
    let boundary = lane.last_boundary(before.boundary).await?;
    // Written under our name whatever it is: it tells others who has the lane, and a starting place stays.
    let note = Note { host: shared.topics.cluster.host.clone(), from_time: begin.time, boundary: before.boundary };
    lane.transact(Vec::new(), None, begin.next, note.to_string()).await?;
    let from = match begin.time {
        Some(time) => ReadFrom::Time(time),
        None => ReadFrom::At(Offset::Number(u64::try_from(begin.next).unwrap_or_default())),
    };
    let note = Note { from_time: None, ..note };
    let committer = LaneCommitter { shared: Arc::clone(shared), lane, next: begin.next, note };
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
    async fn find(shared: &Shared, spec: &LaneSpec, next: Option<i64>, note: &Note) -> Result<Self, BrokerError> {
        if let Some(next) = next {
            return Ok(Self { next, time: note.from_time });
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
}

/// What is written beside a lane's offset: `host=…;from-time=…;boundary=…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Who wrote it.
    pub(super) host: String,
    /// For a start at a time that nothing had reached yet.
    from_time: Option<Timestamp>,
    /// Where the last boundary is, so that a reader of boundaries knows whether it has seen it.
    boundary: Option<Offset>,
}

impl Note {
    pub(super) fn parse(text: &str) -> Self {
        let mut note = Self::default();
        for (name, value) in text.split(';').filter_map(|part| part.split_once('=')) {
            match name {
                "host" => value.clone_into(&mut note.host),
                "from-time" => note.from_time = value.parse().ok().map(Timestamp::from_micros),
                "boundary" => note.boundary = value.parse().ok().map(Offset::Number),
                _ => {}
            }
        }
        note
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host={}", self.host)?;
        if let Some(time) = self.from_time {
            write!(f, ";from-time={}", time.as_micros())?;
        }
        if let Some(boundary) = self.boundary {
            write!(f, ";boundary={boundary}")?;
        }
        Ok(())
    }
}

/// Something to do with a lane's producer.
type Call = Box<dyn FnOnce(&BaseProducer<LaneSide>) + Send>;

/// A lane that this host has. Its producer lives on a thread of its own, since its calls block: once the lane is dropped
/// that thread ends what it is at and closes the producer. Should librdkafka never come back from a call, the thread and
/// the producer are left behind.
struct Lane {
    shared: Arc<Shared>,
    key: LaneKey,
    group: Arc<Group>,
    calls: mpsc::Sender<Call>,
}

impl Lane {
    /// Shuts out whoever had the lane before.
    async fn fence(shared: &Arc<Shared>, key: &LaneKey, group: Arc<Group>) -> Result<Self, BrokerError> {
        let cluster = &shared.topics.cluster;
        let at = &key.partition;
        let id = format!("synapse/{}/{}/{}", key.pipeline, at.topic.topic, at.partition);
        let producer = cluster.transactional(&id).create_with_context(LaneSide::new(cluster.context()));
        let producer = producer.map_err(|error| cluster.failed("make a producer", &error))?;
        let (calls, called) = mpsc::channel::<Call>();
        let work = move || called.iter().for_each(|call| call(&producer));
        let thread = std::thread::Builder::new().name("kafka-lane".to_owned()).spawn(work);
        thread.map_err(|error| cluster.invalid(format_args!("a thread cannot be started: {error}")))?;
        let lane = Self { shared: Arc::clone(shared), key: key.clone(), group, calls };
        let patience = 3 * cluster.timeout;
        let (deadline, topic) = (Instant::now() + patience, at.topic.topic.clone());
        let open = move |producer: &BaseProducer<_>, _: &_| {
            connect(producer, topic.as_str(), deadline);
            producer.init_transactions(left(deadline))
        };
        lane.call("open", patience, open).await?;
        Ok(lane)
    }

    /// Has something done with the producer. What is begun goes on, also if nobody waits any more: the lane is opened
    /// again with another producer then, whose epoch shuts this one out.
    ///
    /// # Errors
    /// What librdkafka says, or `Unavailable` if it says nothing within `patience`.
    async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        patience: Duration,
        run: impl FnOnce(&BaseProducer<LaneSide>, &ConsumerGroupMetadata) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let cluster = &self.shared.topics.cluster;
        let doing = format!("{doing} lane `{}`", self.key);
        let (tell, told) = oneshot::channel();
        let call = {
            let (cluster, group, doing) = (Arc::clone(cluster), Arc::clone(&self.group), doing.clone());
            move |producer: &BaseProducer<LaneSide>| {
                let done = run(producer, group.metadata()).map_err(|error| {
                    let error = match error.rdkafka_error_code() {
                        // The transaction is lost already: the record that failed tells why.
                        Some(RDKafkaErrorCode::State) => flush(producer, Instant::now() + GRACE).err().unwrap_or(error),
                        _ => error,
                    };
                    // A producer that is done for says why only when it is asked.
                    match (error.rdkafka_error_code(), producer.client().fatal_error()) {
                        (Some(code), Some((cause, reason))) if code != cause => cluster.refused(&doing, cause, &reason),
                        _ => cluster.failed(&doing, &error),
                    }
                });
                // Nobody waits any more if it took too long.
                let _ = tell.send(done);
            }
        };
        let called = self.calls.send(Box::new(call)).is_ok();
        match timeout(patience + GRACE, told).await {
            Ok(Ok(done)) if called => done,
            Ok(_) => Err(cluster.invalid(format_args!("could not {doing}: the thread of its producer has ended"))),
            Err(_) => {
                tracing::warn!(lane = %self.key, "librdkafka does not answer; its producer is left behind");
                Err(cluster.refused(&doing, RDKafkaErrorCode::OperationTimedOut, "librdkafka does not answer"))
            }
        }
    }

    /// Publishes outputs apart from any transaction; the lane's thread does what is work, so that reading goes on.
    async fn publish(&self, outputs: Vec<(Output, u32)>) -> Result<(), BrokerError> {
        let cluster = &self.shared.topics.cluster;
        let (publisher, deliveries) = (self.shared.publisher.current(), Arc::<Deliveries>::default());
        let deadline = Instant::now() + 3 * cluster.timeout;
        let sent = Arc::clone(&deliveries);
        let enqueue =
            move |_: &BaseProducer<_>, _: &_| enqueue(&publisher, &outputs, None, || Arc::clone(&sent), deadline);
        let sent = self.call("write outputs of", left(deadline), enqueue).await?;
        let doing = format!("write outputs of lane `{}`", self.key);
        deliveries.finish(sent).await.map(drop).map_err(|error| cluster.failed(&doing, &error))
    }

    /// The lane's last boundary, which is at `expected` unless someone deleted it. It can be read once the marks of its
    /// transaction are written, and those of other lanes' transactions before it.
    async fn last_boundary(&self, expected: Option<Offset>) -> Result<Option<Boundary>, BrokerError> {
        let (changelog, deadline) = (&self.shared.changelog, Instant::now() + 3 * self.shared.topics.cluster.timeout);
        let Some(expected) = expected else {
            // There is none; the first commit writes one.
            changelog.make().await?;
            return Ok(None);
        };
        loop {
            let last = changelog.boundaries(&self.key).await?.pop();
            if last.as_ref().is_some_and(|boundary| boundary.from >= expected) {
                return Ok(last);
            }
            if Instant::now() > deadline {
                tracing::warn!(lane = %self.key, "the lane's last boundary is gone; the builds at work are noted anew");
                return Ok(None);
            }
            sleep(BOUNDARY_LOOK).await;
        }
    }

    /// One transaction: these outputs, a boundary, and the group's offset.
    async fn transact(
        &self,
        outputs: Vec<(Output, u32)>,
        boundary: Option<Boundary>,
        next: i64,
        note: String,
    ) -> Result<(), BrokerError> {
        let deadline = Instant::now() + 3 * self.shared.topics.cluster.timeout;
        let transacted = self.transact_until(deadline, outputs, boundary, next, note).await;
        if transacted.is_err() {
            // Readers need not wait for its time to run out. If this fails, too, whoever opens the lane next gives the
            // transaction up.
            let abort = move |producer: &BaseProducer<LaneSide>| {
                let aborted = again(deadline, || {
                    // It ends once the failures that it causes were heard, which it does not do itself.
                    let aborted = producer.abort_transaction(FAILURES_LOOK.min(left(deadline)));
                    hear(producer);
                    aborted
                });
                if let Err(error) = aborted {
                    tracing::debug!(%error, "a transaction could not be given up");
                }
            };
            let _ = self.calls.send(Box::new(abort));
        }
        transacted
    }

    async fn transact_until(
        &self,
        deadline: Instant,
        outputs: Vec<(Output, u32)>,
        boundary: Option<Boundary>,
        next: i64,
        note: String,
    ) -> Result<(), BrokerError> {
        let boundary = boundary.map(|boundary| self.shared.changelog.record(&self.key, &boundary));
        let produce = move |producer: &BaseProducer<_>, _: &_| {
            producer.begin_transaction()?;
            enqueue(producer, &outputs, boundary.as_ref(), || (), deadline)
        };
        self.call("write outputs of", left(deadline), produce).await?;

        let (topic, partition) = (self.key.partition.topic.topic.clone(), native(self.key.partition.partition));
        // This call forgets its time when the group's coordinator goes away under it (librdkafka's issues 5456 and 5511),
        // so it gets less of it: nothing but a new producer helps then.
        let patience = self.shared.topics.cluster.timeout.min(left(deadline));
        let offsets_by = Instant::now() + patience;
        let position = move |producer: &BaseProducer<_>, group: &_| {
            let mut offsets = TopicPartitionList::with_capacity(1);
            let mut offset = offsets.add_partition(topic.as_str(), partition);
            offset.set_offset(NativeOffset::Offset(next))?;
            offset.set_metadata(&note);
            again(offsets_by, || producer.send_offsets_to_transaction(&offsets, group, left(offsets_by)))
        };
        self.call("write the position of", patience, position).await?;

        // The outputs were on their way meanwhile.
        let commit = move |producer: &BaseProducer<_>, _: &_| {
            flush(producer, deadline)?;
            again(deadline, || producer.commit_transaction(left(deadline)))
        };
        self.call("commit", left(deadline), commit).await
    }
}

fn left(deadline: Instant) -> Duration {
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

/// Has a producer connect to a server if it can be done soon. librdkafka looks for one when transactions begin, and again
/// only after half a second.
fn connect(producer: &BaseProducer<LaneSide>, topic: &str, deadline: Instant) {
    // Twice, since the connection that answers the first question is given up for those to servers that it tells of.
    for _ in 0..2 {
        ask_partitions(producer, topic, CONNECT_WAIT.min(left(deadline)));
    }
}

/// Hears all that a producer has to tell by now.
fn hear(producer: &BaseProducer<LaneSide>) {
    // One poll hears one thing; what is not heard of yet counts as under way.
    let mut before = producer.in_flight_count();
    loop {
        producer.poll(Duration::ZERO);
        let now = producer.in_flight_count();
        if now >= before {
            return;
        }
        before = now;
    }
}

/// Hands records to a producer, in order, each with an `opaque`; how many.
fn enqueue<C: ProducerContext + 'static>(
    producer: &BaseProducer<C>,
    outputs: &[(Output, u32)],
    boundary: Option<&(TopicName, Vec<u8>, Vec<u8>)>,
    opaque: impl Fn() -> C::DeliveryOpaque,
    deadline: Instant,
) -> KafkaResult<usize> {
    let put = |record: Outgoing<'_>, to: &Destination<'_, C>, topic: &TopicName, partition: u32| {
        loop {
            match record.send(to, partition, opaque())? {
                Sent::Yes => return Ok(()),
                _ if Instant::now() > deadline => {
                    return Err(KafkaError::MessageProduction(RDKafkaErrorCode::TimedOutQueue));
                }
                Sent::Full => std::thread::sleep(ROOM_WAIT),
                Sent::Unknown => ask_partitions(producer, topic.as_str(), left(deadline)),
            }
        }
    };
    for (output, partitions) in outputs {
        let topic = &output.topic.topic;
        let to = destination(producer, topic)?;
        for event in output.events.events() {
            let partition = murmur2_partition(key_of(event).as_bytes(), *partitions);
            put(Outgoing::Event(event), &to, topic, partition)?;
        }
    }
    if let Some((topic, key, value)) = boundary {
        put(Outgoing::Plain { key, value }, &destination(producer, topic)?, topic, 0)?;
    }
    Ok(outputs.iter().map(|(output, _)| output.events.len()).sum::<usize>() + usize::from(boundary.is_some()))
}

/// Waits until everything that a lane's producer was given is acknowledged.
fn flush(producer: &BaseProducer<LaneSide>, deadline: Instant) -> KafkaResult<()> {
    loop {
        let delivered = wait_delivered(producer, FAILURES_LOOK.min(left(deadline)));
        hear(producer);
        match producer.context().failed() {
            Some(error) => return Err(error),
            None if delivered => return Ok(()),
            None if Instant::now() > deadline => {
                return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
            }
            None => {}
        }
    }
}

struct LaneCommitter {
    shared: Arc<Shared>,
    lane: Lane,
    /// The next offset to read, as it was committed last.
    next: i64,
    /// What was written beside it.
    note: Note,
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
        let mut outputs = Vec::with_capacity(effects.outputs.len());
        for output in &effects.outputs {
            outputs.push((output.clone(), shared.topics.made(&output.topic.topic).await?));
        }
        if !shared.exactly_once {
            self.lane.publish(std::mem::take(&mut outputs)).await?;
        }
        let at = effects.boundary.as_ref().map(|boundary| boundary.from);
        let note = Note { boundary: at.or(self.note.boundary), ..self.note.clone() };
        let asked = tokio::time::Instant::now();
        self.lane.transact(outputs, effects.boundary.clone(), next, note.to_string()).await?;
        shared.topics.cluster.reach.has_answered(asked);
        (self.next, self.note) = (next, note);
        if let Some(boundary) = &effects.boundary {
            shared.changelog.committed(&self.lane.key, boundary).await;
        }
        for output in &effects.outputs {
            shared.topics.added(&output.topic.topic, output.events.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_beside_an_offset_is_read_again() {
        let note = Note {
            host: "one".to_owned(),
            from_time: Some(Timestamp::from_micros(17)),
            boundary: Some(Offset::Number(4)),
        };
        assert_eq!(note.to_string(), "host=one;from-time=17;boundary=4");
        assert_eq!(Note::parse(&note.to_string()), note);
        let plain = Note { host: "two".to_owned(), ..Note::default() };
        assert_eq!(Note::parse(&plain.to_string()), plain);
        assert_eq!(Note::parse("what others write"), Note::default());
    }
}
