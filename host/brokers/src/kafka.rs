//! The Kafka broker: topics are topics, a pipeline is a consumer group, a commit is a transaction.
//!
//! - Reading ([`reader`]): one partition at a time through a small pool of consumers that all lanes share, records
//!   decoded from librdkafka's buffers into the columns. Only what committed transactions wrote is read.
//! - Sharing the work ([`member`]): the pipeline's consumer group says which partitions are this host's.
//! - Committing ([`lane`]): outputs, dead letters, boundary and offset in one transaction, under a fence of the lane's.
//! - Publishing: an idempotent producer, one counter of deliveries for each call.
//!
//! Events are written in CloudEvents' binary mode; a key goes to the partition that Kafka's own clients would choose.
//! This module must not know the engine or other brokers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use synapse_core::broker::{Boundary, BrokerErrorKind, LaneKey, LaneSpec, OpenLane, TopicInfo};
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::{ReadFrom, TopicSpec};
use synapse_core::topic::Label;
use synapse_core::{Broker, BrokerError, BrokerName, Offset, Output, Source, TopicName, TopicPartition, TopicPath};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::alone;
use crate::rows::key_of;
use changelog::Changelog;
use client::Cluster;
use member::{Group, Groups};
use publish::{
    Deliveries, Offsets, Outgoing, ProducerSide, ROOM_WAIT, Sent, ask_partitions, destination, murmur2_partition,
    native,
};
use reader::Readers;
use topics::Topics;

#[doc(hidden)]
pub mod bare;
mod changelog;
mod client;
mod lane;
mod member;
mod native;
mod properties;
mod publish;
mod reach;
mod reader;
mod topics;

pub use properties::{canonical, refuses};
pub use topics::refuses_topic;

/// How often clients that nobody waits for are polled.
const SERVE_EVERY: Duration = Duration::from_millis(200);
/// How long one look of the publisher's thread waits for deliveries.
const DELIVERIES_WAIT: Duration = Duration::from_millis(100);
/// Shortest time that a host that died may be missed for.
const LEASE_MIN: Duration = Duration::from_secs(1);

/// Why outputs and position do not become durable in one step, where the configuration wants it so.
pub const DELIVERS_AT_LEAST_ONCE: &str = "its `delivery` is \"at-least-once\"";

/// Where a Kafka cluster is and how it is used.
#[derive(Clone)]
pub struct KafkaOptions {
    /// `host:port,…` of some of its servers.
    pub bootstrap: String,
    /// Names this host among all that share the cluster.
    pub host_id: String,
    /// How long a host counts as alive after it was last heard of; others take its partitions over then.
    pub lease: Duration,
    /// How long a connection or an answer may take.
    pub timeout: Duration,
    /// Whether outputs and position become visible in one transaction. Without it outputs may be repeated after a crash.
    pub exactly_once: bool,
    /// Properties of librdkafka's, for all clients; none of those that [`refuses`] names.
    pub client: BTreeMap<String, String>,
}

impl KafkaOptions {
    /// A cluster at `bootstrap`; the host is called `host`, it counts as alive for 15 s, an answer may take 10 s.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            host_id: "host".to_owned(),
            lease: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
            exactly_once: true,
            client: BTreeMap::new(),
        }
    }

    /// Whether all clients that a broker with these options may need could be made; nothing is connected to.
    ///
    /// # Errors
    /// What [`KafkaBroker::new`] would refuse, or librdkafka later, as a sentence.
    pub fn check(self) -> Result<(), String> {
        let name = "kafka".parse().expect("it is a valid name");
        KafkaBroker::cluster(name, self).and_then(|cluster| cluster.check()).map_err(|error| error.message)
    }
}

/// A Kafka cluster. Cheap to clone; its tasks and clients end with the last clone.
#[derive(Clone)]
pub struct KafkaBroker {
    shared: Arc<Shared>,
    _stopping: Arc<DropGuard>,
}

/// What lanes, sources and tasks share.
struct Shared {
    topics: Arc<Topics>,
    readers: Arc<Readers>,
    changelog: Changelog,
    groups: Groups,
    publisher: Arc<Publisher>,
    exactly_once: bool,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl KafkaBroker {
    fn cluster(name: BrokerName, options: KafkaOptions) -> Result<Cluster, BrokerError> {
        let KafkaOptions { bootstrap, host_id, lease, timeout, exactly_once: _, client } = options;
        let invalid = |message| BrokerError { broker: name.clone(), kind: BrokerErrorKind::Invalid, message };
        let client = properties::checked(client).map_err(invalid)?;
        let cluster = Cluster::new(name, bootstrap, host_id, timeout, lease, client);
        if lease < LEASE_MIN {
            return Err(cluster.invalid(format_args!("a lease of {lease:?} is too short; {LEASE_MIN:?} is the least")));
        }
        Ok(cluster)
    }

    /// A broker that connects when it is first used, again and again if need be. Call it within a tokio runtime.
    ///
    /// # Errors
    /// `Invalid`: options or properties that cannot be.
    pub fn new(name: BrokerName, options: KafkaOptions) -> Result<Self, BrokerError> {
        let exactly_once = options.exactly_once;
        let cluster = Arc::new(Self::cluster(name, options)?);
        let topics = Arc::new(Topics::new(&cluster)?);
        let readers = Arc::new(Readers::new(Arc::clone(&topics)));
        let publisher = Arc::new(Publisher::new(&cluster)?);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            changelog: Changelog::new(&topics, &readers),
            topics,
            readers,
            groups: Groups::default(),
            publisher,
            exactly_once,
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        });
        let (publisher, stopped) = (Arc::clone(&shared.publisher), stop.clone());
        let deliver = move || {
            while !stopped.is_cancelled() || publisher.current().in_flight_count() > 0 {
                publisher.current().poll(DELIVERIES_WAIT);
            }
        };
        let thread = std::thread::Builder::new().name("kafka-publisher".to_owned()).spawn(deliver);
        thread.map_err(|error| cluster.invalid(format_args!("a thread cannot be started: {error}")))?;
        shared.tasks.spawn(serve(Arc::clone(&shared.topics), Arc::clone(&shared.readers), stop.clone()));
        let (topics, stopped) = (Arc::clone(&shared.topics), stop.clone());
        shared.tasks.spawn(async move {
            stopped.run_until_cancelled(watch(&topics)).await;
        });
        Ok(Self { shared, _stopping: Arc::new(stop.drop_guard()) })
    }
}

/// Polls clients for what librdkafka wants to tell, and looks after how many events topics keep.
async fn serve(topics: Arc<Topics>, readers: Arc<Readers>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(SERVE_EVERY)).await.is_some() {
        topics.serve();
        readers.serve();
        topics.trim_due().await;
    }
}

/// Notices when the cluster goes and when it is there again.
async fn watch(topics: &Topics) {
    let cluster = &topics.cluster;
    let quickly = async || drop(topics.health_within(client::AWAY_TIMEOUT).await);
    let patiently = async || drop(topics.health_within(cluster.timeout).await);
    cluster.reach.watch(&cluster.broker, quickly, patiently, |away| cluster.tell(away)).await;
}

/// Publishes outside of transactions, for all of the host.
struct Publisher {
    cluster: Arc<Cluster>,
    producer: Mutex<Arc<BaseProducer<ProducerSide>>>,
}

impl Publisher {
    fn new(cluster: &Arc<Cluster>) -> Result<Self, BrokerError> {
        Ok(Self { cluster: Arc::clone(cluster), producer: Mutex::new(Self::make(cluster)?) })
    }

    fn make(cluster: &Cluster) -> Result<Arc<BaseProducer<ProducerSide>>, BrokerError> {
        let producer = cluster.producer().create_with_context(ProducerSide(cluster.context()));
        producer.map(Arc::new).map_err(|error| cluster.failed("make a producer", &error))
    }

    /// The producer, another one once it is done for: an idempotent one is, for example, when the server has forgotten
    /// what it sent.
    fn current(&self) -> Arc<BaseProducer<ProducerSide>> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reason)) = producer.client().fatal_error() {
            tracing::warn!(broker = %self.cluster.broker, %reason, "the publisher is done for and made anew");
            match Self::make(&self.cluster) {
                // What it had not delivered is told to have failed when it is dropped.
                Ok(new) => drop_elsewhere(std::mem::replace(&mut *producer, new)),
                Err(error) => tracing::error!(broker = %self.cluster.broker, %error, "it cannot be made"),
            }
        }
        Arc::clone(&producer)
    }
}

/// Drops what takes long to be dropped on a thread of its own.
fn drop_elsewhere<T: Send + 'static>(slow: T) {
    // Without a thread it is dropped here.
    let _ = std::thread::Builder::new().name("kafka-closing".to_owned()).spawn(move || drop(slow));
}

impl Shared {
    fn check_own(&self, topic: &TopicPath) -> Result<(), BrokerError> {
        if topic.broker == self.topics.cluster.broker {
            return Ok(());
        }
        Err(self.topics.cluster.invalid(format_args!("the topic `{topic}` is on another broker")))
    }

    fn group(&self, pipeline: &Label) -> Result<Arc<Group>, BrokerError> {
        self.groups.get(&self.topics.cluster, pipeline)
    }

    /// Publishes, in order; returns once all is durable, with the position of each row.
    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        let (topic, deliveries) = (&output.topic.topic, Arc::new(Deliveries::placed()));
        let asked = tokio::time::Instant::now();
        let rows = self.send_all(output, &deliveries).await?;
        let doing = format!("publish to topic `{topic}`");
        let offsets =
            deliveries.finish(rows.len()).await.map_err(|error| self.topics.cluster.failed(&doing, &error))?;
        self.topics.cluster.reach.has_answered(asked);
        self.topics.added(topic, rows.len());
        placed(&rows, offsets)
            .ok_or_else(|| self.topics.cluster.invalid(format_args!("could not {doing}: the server named no offsets")))
    }

    /// Hands all events of an output to the producer, in order; tells for which partition each was.
    async fn send_all(&self, output: &Output, deliveries: &Arc<Deliveries>) -> Result<Vec<u32>, BrokerError> {
        self.check_own(&output.topic)?;
        let topic = &output.topic.topic;
        let partitions = self.topics.made(topic).await.map_err(BrokerError::before_anything)?;
        let publisher = self.publisher.current();
        let failed = |error| self.topics.cluster.failed(&format!("publish to topic `{topic}`"), &error);
        let to = destination(&publisher, topic).map_err(failed)?;
        let deadline = Instant::now() + 3 * self.topics.cluster.timeout;
        let mut rows = Vec::with_capacity(output.events.len());
        for event in output.events.events() {
            let partition = murmur2_partition(key_of(event).as_bytes(), partitions);
            rows.push(partition);
            while let sent @ (Sent::Full | Sent::Unknown) =
                Outgoing::Event(event).send(&to, partition, Arc::clone(deliveries)).map_err(failed)?
            {
                if Instant::now() > deadline {
                    return Err(failed(KafkaError::MessageProduction(RDKafkaErrorCode::TimedOutQueue)));
                }
                self.make_room(sent, &publisher, topic).await;
            }
        }
        Ok(rows)
    }

    /// Waits until a record that was not taken can be tried again.
    async fn make_room(&self, sent: Sent, publisher: &Arc<BaseProducer<ProducerSide>>, topic: &TopicName) {
        if sent == Sent::Full {
            return tokio::time::sleep(ROOM_WAIT).await;
        }
        let (publisher, name, timeout) = (Arc::clone(publisher), topic.to_string(), self.topics.cluster.timeout);
        // It is tried again in any case.
        let _ = tokio::task::spawn_blocking(move || ask_partitions(&publisher, &name, timeout)).await;
    }
}

/// The place of each row, by its partition: within one, records are told of in the order in which they were sent.
fn placed(rows: &[u32], offsets: Offsets) -> Option<Vec<(u32, Offset)>> {
    let mut offsets: HashMap<_, _> = offsets.into_iter().map(|(at, offsets)| (at, offsets.into_iter())).collect();
    let place = |&partition: &u32| {
        let offset = offsets.get_mut(&native(partition))?.next()?;
        Some((partition, Offset::Number(u64::try_from(offset).ok()?)))
    };
    rows.iter().map(place).collect()
}

#[async_trait]
impl Broker for KafkaBroker {
    fn name(&self) -> &BrokerName {
        &self.shared.topics.cluster.broker
    }

    fn commits_apart(&self) -> Option<&'static str> {
        (!self.shared.exactly_once).then_some(DELIVERS_AT_LEAST_ONCE)
    }

    fn away(&self) -> Option<String> {
        self.shared.topics.cluster.away()
    }

    fn unshared(&self, pipeline: &Label) -> Option<String> {
        self.shared.groups.find(pipeline)?.unshared()
    }

    /// A transaction is several round trips and marks in every partition, however much it holds.
    fn batches_per_commit_max(&self) -> usize {
        128
    }

    async fn ensure_topic(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        self.shared.topics.ensure(topic, spec).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        self.shared.topics.all().await
    }

    async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        self.shared.topics.info(topic).await
    }

    fn partition_of(&self, key: &[u8], partitions: u32) -> u32 {
        murmur2_partition(key, partitions)
    }

    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        self.shared.publish(output).await
    }

    async fn read(&self, topic: &TopicName, partition: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError> {
        Ok(Box::new(self.shared.readers.open(topic, partition, from).await?))
    }

    async fn join(&self, share: &Share) -> Result<Box<dyn Membership>, BrokerError> {
        let (membership, member) = self.shared.group(&share.pipeline)?.join(share).await?;
        self.shared.tasks.spawn(member.run(self.shared.stop.clone()));
        Ok(Box::new(membership))
    }

    async fn places(&self, share: &Share) -> Result<Vec<LanePlace>, BrokerError> {
        let mut lanes = BTreeSet::new();
        for topic in &share.topics {
            let count = self.shared.topics.partitions(topic).await?.unwrap_or_default();
            lanes.extend(TopicPath { broker: self.name().clone(), topic: topic.clone() }.partitions(count));
        }
        let places: Vec<(TopicName, u32)> = lanes.iter().map(|at| (at.topic.topic.clone(), at.partition)).collect();
        let group = self.shared.group(&share.pipeline)?;
        let (committed, spans) = (group.committed_soon(&places).await?, self.shared.topics.spans(&places).await?);
        let members = group.members().await;
        let is_member = |host: &str| members.as_ref().is_none_or(|ids| ids.contains(&format!("synapse-{host}")));
        let count = |offset: i64| u64::try_from(offset).unwrap_or_default();
        let place = |((partition, committed), span): ((TopicPartition, member::Committed), topics::Span)| LanePlace {
            owner: Some(lane::Note::parse(&committed.note).host).filter(|host| !host.is_empty() && is_member(host)),
            ..alone::place(partition, committed.next.map(count), count(span.low), count(span.high))
        };
        Ok(lanes.into_iter().zip(committed).zip(spans).map(place).collect())
    }

    async fn open_lane(&self, lane: &LaneSpec) -> Result<OpenLane, BrokerError> {
        lane::open(&self.shared, lane).await
    }

    async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        self.shared.changelog.boundaries(lane).await
    }

    async fn health(&self) -> Result<(), BrokerError> {
        self.shared.topics.health().await
    }

    /// Leaves the groups, so that other hosts need not wait for this one.
    async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let (publisher, timeout) = (self.shared.publisher.current(), self.shared.topics.cluster.timeout);
        // What is not acknowledged by now was not acknowledged to anyone.
        let _ = tokio::task::spawn_blocking(move || publisher.flush(timeout)).await;
    }
}
