//! A pipeline's consumer group: its offsets, and which partitions this host is to work on.
//!
//! The group has the pipeline's name, so that Kafka's own tools tell where it is. Its members only agree on partitions;
//! they fetch nothing, since readers are shared ([`super::reader`]). A task polls the member whatever the pipeline is
//! busy with, so a slow plugin never exceeds `max.poll.interval.ms`.
//!
//! A rebalance takes a partition away in two steps: the engine is told and ends the lane, and only then is the partition
//! given back, so that the next owner begins where the last commit ended. Nothing waits inside librdkafka's callbacks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use synapse_core::broker::Ending;
use synapse_core::share::{Membership, Share};
use synapse_core::topic::Label;
use synapse_core::{BrokerError, TopicName, TopicPartition, TopicPath};
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{Cluster, Context};
use super::publish::native;
use super::reach::seconds;

/// How often a member is polled, whether something happens or not.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How often a member is asked something, whatever: the thread that sends its heartbeats sleeps by the system's clock, and
/// would sleep for an hour if that is put back by one.
const WAKE_EVERY: Duration = Duration::from_secs(1);
/// How long a member that leaves waits for the group to hear of it.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// How long a share that was asked for takes to come when nothing is waited for.
const JOINS_WITHIN: Duration = Duration::from_secs(2);
/// How long those wait who only want to know where lanes are.
const SOON: Duration = Duration::from_secs(1);
/// How often the log is told that a group is not well, at most.
const WARN_EVERY: Duration = Duration::from_secs(30);
/// How many events one poll takes, so that others get their turn.
const EVENTS_MAX: usize = 64;

/// What rebalances ask for, noted down by librdkafka's callback.
#[derive(Clone, Default)]
pub(super) struct Rebalanced(Arc<Notes>);

#[derive(Default)]
struct Notes {
    asked: Mutex<VecDeque<Asked>>,
    /// The member is leaving: whatever is taken away is given back at once.
    leaving: AtomicBool,
}

/// One step of a rebalance.
enum Asked {
    Take(TopicPartitionList),
    GiveBack(TopicPartitionList),
}

impl Rebalanced {
    /// Called by librdkafka while the member is polled.
    pub(super) fn told(&self, member: &BaseConsumer<Context>, event: RDKafkaRespErr, partitions: &TopicPartitionList) {
        match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.asked().push_back(Asked::Take(partitions.clone()));
            }
            _ if self.0.leaving.load(Ordering::Acquire) => {
                if let Err(error) = give_back(member, partitions) {
                    tracing::debug!(%error, "a leaving member could not give its partitions back");
                }
            }
            _ => self.asked().push_back(Asked::GiveBack(partitions.clone())),
        }
    }

    fn asked(&self) -> MutexGuard<'_, VecDeque<Asked>> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes partitions and fetches nothing of them.
fn take(member: &BaseConsumer<Context>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match member.rebalance_protocol() {
        RebalanceProtocol::Cooperative => member.incremental_assign(partitions)?,
        RebalanceProtocol::Eager | RebalanceProtocol::None => member.assign(partitions)?,
    }
    member.pause(partitions)
}

fn give_back(member: &BaseConsumer<Context>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match member.rebalance_protocol() {
        RebalanceProtocol::Cooperative => member.incremental_unassign(partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => member.unassign(),
    }
}

/// One pipeline's group.
pub(super) struct Group {
    cluster: Arc<Cluster>,
    name: Label,
    /// `None` only while it is being dropped.
    consumer: Option<Arc<BaseConsumer<Context>>>,
    /// Of somebody who is no member. Offsets that are committed with it are not held up by a rebalance of other
    /// partitions; what keeps an old owner from committing is the transactional id of its lane.
    metadata: ConsumerGroupMetadata,
    rebalanced: Rebalanced,
    wake: Arc<Notify>,
    /// Held by the one member that there may be, until it has left.
    membership: Arc<tokio::sync::Mutex<()>>,
    /// This host's partitions, while it is a member.
    share: Mutex<Option<BTreeSet<TopicPartition>>>,
    /// Since when this host wants a share and was told of none.
    joining: Mutex<Option<Instant>>,
}

/// What is committed of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Committed {
    /// The next offset to read; `None`: nothing is committed.
    pub(super) next: Option<i64>,
    /// What was written beside it.
    pub(super) note: String,
}

impl Group {
    pub(super) fn open(cluster: &Arc<Cluster>, name: &Label) -> Result<Self, BrokerError> {
        let failed = |error: KafkaError| cluster.failed("make a consumer", &error);
        let rebalanced = Rebalanced::default();
        let context = cluster.member_context(rebalanced.clone());
        let mut consumer: BaseConsumer<Context> =
            cluster.member(name.as_str()).create_with_context(context).map_err(failed)?;
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        consumer.set_nonempty_callback(move || waker.notify_one());
        let metadata = metadata_of_nobody(cluster, name)?;
        let consumer = Some(Arc::new(consumer));
        Ok(Self {
            cluster: Arc::clone(cluster),
            name: name.clone(),
            consumer,
            metadata,
            rebalanced,
            wake,
            membership: Arc::default(),
            share: Mutex::default(),
            joining: Mutex::default(),
        })
    }

    fn share(&self) -> MutexGuard<'_, Option<BTreeSet<TopicPartition>>> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn joining(&self) -> MutexGuard<'_, Option<Instant>> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why this host has no share, if it wants one and was told of none for a while.
    pub(super) fn unshared(&self) -> Option<String> {
        let since = self.joining().filter(|since| since.elapsed() >= JOINS_WITHIN)?;
        let (name, time, lease) = (&self.name, seconds(since.elapsed()), seconds(self.cluster.lease));
        Some(format!(
            "group `{name}` has been sharing its partitions out anew for {time}; hosts that went without a word are waited \
             for until their lease of {lease} has ended"
        ))
    }

    /// Whether this host is a member and the partition is another one's: opening its lane would only shut that one out.
    pub(super) fn is_anothers(&self, partition: &TopicPartition) -> bool {
        self.share().as_ref().is_some_and(|share| !share.contains(partition))
    }

    fn consumer(&self) -> &Arc<BaseConsumer<Context>> {
        self.consumer.as_ref().expect("it goes only when the group is dropped")
    }

    /// For commits within a transaction.
    pub(super) fn metadata(&self) -> &ConsumerGroupMetadata {
        &self.metadata
    }

    /// What is committed of these partitions, in order. Waits for transactions that are under way (KIP-447).
    pub(super) async fn committed(&self, places: &[(TopicName, u32)]) -> Result<Vec<Committed>, BrokerError> {
        self.ask_committed(Arc::clone(self.consumer()), places, self.cluster.timeout).await
    }

    /// As [`Group::committed`], but soon, for who only wants to know: waits neither for transactions nor for a rebalance,
    /// during which the member's own connection to the group's server stands still.
    pub(super) async fn committed_soon(&self, places: &[(TopicName, u32)]) -> Result<Vec<Committed>, BrokerError> {
        let found = self.ask_committed(Arc::clone(self.consumer()), places, SOON).await;
        if found.is_ok() || self.cluster.reach.is_away() {
            return found;
        }
        let mut config = self.cluster.nobody(self.name.as_str());
        config.set("isolation.level", "read_uncommitted");
        let made = config.create_with_context(self.cluster.context());
        let nobody = Arc::new(made.map_err(|error| self.cluster.failed("make a consumer", &error))?);
        let found = self.ask_committed(Arc::clone(&nobody), places, SOON).await;
        super::drop_elsewhere(nobody);
        found
    }

    async fn ask_committed(
        &self,
        consumer: Arc<BaseConsumer<Context>>,
        places: &[(TopicName, u32)],
        timeout: Duration,
    ) -> Result<Vec<Committed>, BrokerError> {
        let places: Vec<(String, i32)> =
            places.iter().map(|(topic, partition)| (topic.to_string(), native(*partition))).collect();
        let asked = move || -> KafkaResult<Vec<Committed>> {
            let mut list = TopicPartitionList::with_capacity(places.len());
            for (topic, partition) in &places {
                list.add_partition(topic, *partition);
            }
            let found = consumer.committed_offsets(list, timeout)?;
            places.iter().map(|(topic, partition)| committed(&found, topic, *partition)).collect()
        };
        let doing = format!("read the offsets of group `{}`", self.name);
        let answer = tokio::task::spawn_blocking(asked).await;
        let answer = answer.map_err(|panic| self.cluster.invalid(panic))?;
        answer.map_err(|error| self.cluster.failed(&doing, &error))
    }

    /// The ids of the members' clients; `None` if the server does not tell, as of groups of the newer protocol.
    pub(super) async fn members(&self) -> Option<BTreeSet<String>> {
        let (consumer, timeout, name) = (Arc::clone(self.consumer()), self.cluster.patience(), self.name.clone());
        let asked = move || {
            let list = consumer.fetch_group_list(Some(name.as_str()), timeout).ok()?;
            let group = list.groups().iter().find(|group| group.name() == name.as_str())?;
            let told = !group.members().is_empty() || group.state() == "Empty";
            told.then(|| group.members().iter().map(|member| member.client_id().to_owned()).collect())
        };
        tokio::task::spawn_blocking(asked).await.ok().flatten()
    }

    /// What a member failed with; a client that is done for says why only when it is asked.
    fn failed(&self, error: &KafkaError) -> BrokerError {
        let doing = format!("share the work of group `{}`", self.name);
        match self.consumer().client().fatal_error() {
            Some((_, reason)) => self.cluster.invalid(format_args!(
                "could not {doing} at {}: {reason}; check who else is in the group, and the broker's `client` table",
                self.cluster.bootstrap
            )),
            None => self.cluster.failed(&doing, error),
        }
    }

    /// Joins the group for these topics; the task ends and leaves the group when the membership is dropped. Waits until
    /// an earlier member of this host has left.
    pub(super) async fn join(self: &Arc<Self>, share: &Share) -> Result<(KafkaMembership, Member), BrokerError> {
        let only = Arc::clone(&self.membership).lock_owned().await;
        self.rebalanced.0.leaving.store(false, Ordering::Release);
        self.rebalanced.asked().clear();
        let topics: Vec<&str> = share.topics.iter().map(TopicName::as_str).collect();
        let subscribed = self.consumer().subscribe(&topics);
        subscribed.map_err(|error| self.cluster.failed(&format!("join group `{}`", self.name), &error))?;
        let (tell, told) = watch::channel(Told::default());
        let (ended, has_ended) = watch::channel(0);
        let leave = CancellationToken::new();
        *self.share() = Some(BTreeSet::new());
        *self.joining() = Some(Instant::now());
        let member = Member {
            group: Arc::clone(self),
            _only: only,
            tell,
            has_ended,
            giving_back: None,
            warned: None,
            waits: false,
            leave: leave.clone(),
        };
        Ok((KafkaMembership { told, seen: 0, ended, _leaving: leave.drop_guard() }, member))
    }
}

/// The group, told by a client that joins nothing and goes at once. (A client of the newer protocol names itself before
/// it has joined, and would be checked.)
fn metadata_of_nobody(cluster: &Cluster, group: &Label) -> Result<ConsumerGroupMetadata, BrokerError> {
    let failed = |error: KafkaError| cluster.failed("make a consumer", &error);
    let config = cluster.nobody(group.as_str());
    let nobody: BaseConsumer<Context> = config.create_with_context(cluster.context()).map_err(failed)?;
    let metadata = nobody.group_metadata();
    super::drop_elsewhere(nobody);
    metadata.ok_or_else(|| cluster.invalid("librdkafka knows of no group"))
}

fn committed(found: &TopicPartitionList, topic: &str, partition: i32) -> KafkaResult<Committed> {
    let Some(element) = found.find_partition(topic, partition) else { return Ok(Committed::default()) };
    element.error()?;
    let next = element.offset().to_raw().filter(|&offset| offset >= 0);
    Ok(Committed { next, note: element.metadata().to_owned() })
}

impl Drop for Group {
    fn drop(&mut self) {
        self.rebalanced.0.leaving.store(true, Ordering::Release);
        // Closing takes a round trip at least.
        super::drop_elsewhere(self.consumer.take());
    }
}

/// What a member was told last.
#[derive(Clone, Default)]
struct Told {
    /// Goes up with every change; 0: nothing was told yet.
    number: u64,
    share: BTreeSet<TopicPartition>,
    failed: Option<Arc<BrokerError>>,
}

/// The engine's end of a membership.
pub(super) struct KafkaMembership {
    told: watch::Receiver<Told>,
    seen: u64,
    /// Up to which change lanes have ended.
    ended: watch::Sender<u64>,
    _leaving: DropGuard,
}

#[async_trait]
impl Membership for KafkaMembership {
    async fn changed(&mut self) -> Result<BTreeSet<TopicPartition>, BrokerError> {
        self.ended.send_replace(self.seen);
        let seen = self.seen;
        let told = self.told.wait_for(|told| told.number > seen).await.map(|told| told.clone());
        let Ok(told) = told else {
            // The broker was closed: nothing changes any more.
            return std::future::pending().await;
        };
        self.seen = told.number;
        match told.failed {
            Some(error) => {
                Err(BrokerError { broker: error.broker.clone(), kind: error.kind, message: error.message.clone() })
            }
            None => Ok(told.share),
        }
    }
}

/// The member itself, run as a task.
pub(super) struct Member {
    group: Arc<Group>,
    _only: OwnedMutexGuard<()>,
    tell: watch::Sender<Told>,
    has_ended: watch::Receiver<u64>,
    /// What is to be given back once the lanes of this change have ended.
    giving_back: Option<(u64, TopicPartitionList)>,
    /// When the log was last told that something passing is wrong.
    warned: Option<Instant>,
    /// Whether the log was told that a share is long in coming.
    waits: bool,
    leave: CancellationToken,
}

impl Member {
    /// Follows rebalances until the membership is dropped or `stop` says so; then leaves the group.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let wake = Arc::clone(&self.group.wake);
        let mut woken = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.leave.cancelled() => break,
                () = wake.notified() => {}
                _ = self.has_ended.changed() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
            self.say_that_it_waits();
            if woken.elapsed() >= WAKE_EVERY {
                woken = Instant::now();
                // What it answers is known; see `WAKE_EVERY`.
                let _ = self.group.consumer().assignment();
            }
            if let Err(error) = self.step() {
                self.complain(self.group.failed(&error));
            }
        }
        self.end().await;
    }

    /// Once for each time that a share is long in coming while Kafka can be reached.
    fn say_that_it_waits(&mut self) {
        let unshared = self.group.unshared().filter(|_| !self.group.cluster.reach.is_away());
        let waits = unshared.is_some();
        if let Some(why) = unshared.filter(|_| !self.waits) {
            tracing::info!(broker = %self.group.cluster.broker, "{why}");
        }
        self.waits = waits;
    }

    /// What an operator has to mend is told to the engine, what passes to the log: now and then, since librdkafka
    /// tries and fails every second, and not at all where the whole cluster is known to be away.
    fn complain(&mut self, failed: BrokerError) {
        if failed.kind.ending() == Ending::Stop {
            self.told(Some(Arc::new(failed)));
        } else if !self.group.cluster.reach.is_away() && self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(group = %self.group.name, error = %failed, "the group is not well for now");
        }
    }

    /// Serves what librdkafka has to tell, and does what was asked for.
    fn step(&mut self) -> KafkaResult<()> {
        let member = Arc::clone(self.group.consumer());
        let polled = poll(&member);
        loop {
            let asked = self.group.rebalanced.asked().pop_front();
            match asked {
                None => break,
                Some(Asked::Take(partitions)) => {
                    take(&member, &partitions)?;
                    self.group.joining().take();
                    let grown = {
                        let mut share = self.group.share();
                        let share = share.get_or_insert_default();
                        let before = share.len();
                        share.extend(self.named(&partitions));
                        share.len() > before
                    };
                    // A rebalance may leave all as it was; the first is told even if there is nothing for this host.
                    if grown || self.tell.borrow().number == 0 {
                        self.told(None);
                    }
                }
                Some(Asked::GiveBack(partitions)) => {
                    let lost = member.assignment_lost();
                    let named = self.named(&partitions);
                    self.group.share().get_or_insert_default().retain(|partition| !named.contains(partition));
                    let number = self.told(None);
                    if lost {
                        // Others may have them already.
                        self.group.joining().get_or_insert_with(Instant::now);
                        give_back(&member, &partitions)?;
                    } else {
                        self.giving_back = Some((number, partitions));
                    }
                }
            }
        }
        let ended = *self.has_ended.borrow_and_update();
        if let Some((_, partitions)) = self.giving_back.take_if(|(number, _)| *number <= ended) {
            give_back(&member, &partitions)?;
        }
        polled
    }

    fn named(&self, partitions: &TopicPartitionList) -> Vec<TopicPartition> {
        let named = |topic: &str, partition: i32| {
            let topic = TopicPath { broker: self.group.cluster.broker.clone(), topic: topic.parse().ok()? };
            Some(TopicPartition { topic, partition: u32::try_from(partition).ok()? })
        };
        partitions.elements().iter().filter_map(|element| named(element.topic(), element.partition())).collect()
    }

    fn told(&self, failed: Option<Arc<BrokerError>>) -> u64 {
        let share = self.group.share().clone().unwrap_or_default();
        self.tell.send_modify(|told| *told = Told { number: told.number + 1, share, failed });
        self.tell.borrow().number
    }

    /// Leaves the group, so that others need not wait until they miss us.
    async fn end(self) {
        self.group.rebalanced.0.leaving.store(true, Ordering::Release);
        let member = Arc::clone(self.group.consumer());
        let leave = move || {
            if let Some((_, partitions)) = &self.giving_back {
                // It is left to the group's own care otherwise.
                let _ = give_back(&member, partitions);
            }
            member.unsubscribe();
            let begun = Instant::now();
            while begun.elapsed() < LEAVE_WITHIN {
                // What it has to say is of no interest any more.
                let _ = member.poll(Duration::from_millis(20));
                if member.assignment().is_ok_and(|assigned| assigned.count() == 0) {
                    break;
                }
            }
            *self.group.share() = None;
            self.group.joining().take();
            // The group itself goes with its last lane, and the next member may come.
            self
        };
        let _ = tokio::task::spawn_blocking(leave).await;
    }
}

/// Serves events; the first that is an error.
fn poll(member: &BaseConsumer<Context>) -> KafkaResult<()> {
    for _ in 0..EVENTS_MAX {
        match member.poll(Duration::ZERO) {
            None => return Ok(()),
            Some(Err(KafkaError::PartitionEOF(_)) | Ok(_)) => {}
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {}
            Some(Err(error)) => return Err(error),
        }
    }
    Ok(())
}

/// The groups that this host has to do with, by pipeline.
#[derive(Default)]
pub(super) struct Groups(Mutex<BTreeMap<Label, std::sync::Weak<Group>>>);

impl Groups {
    /// The group of a pipeline, if this host has to do with it.
    pub(super) fn find(&self, name: &Label) -> Option<Arc<Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.upgrade()
    }

    pub(super) fn get(&self, cluster: &Arc<Cluster>, name: &Label) -> Result<Arc<Group>, BrokerError> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| group.strong_count() > 0);
        if let Some(group) = groups.get(name).and_then(std::sync::Weak::upgrade) {
            return Ok(group);
        }
        let group = Arc::new(Group::open(cluster, name)?);
        groups.insert(name.clone(), Arc::downgrade(&group));
        Ok(group)
    }
}
