//! One pipeline: its plugins, its lanes, and changes of both while events flow.
//!
//! Which partitions it has lanes for is told by its memberships, one on each broker that it reads: hosts that share the
//! work agree there. A partition that another host is to have is let go only once its lane has ended.
//!
//! A pipeline that cannot start or stops says why and waits for a change that may mend it: of its configuration or of a
//! plugin's file. It never ends the host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_util::future::{select_all, try_join_all};
use synapse_core::broker::{BatchLimit, BrokerError, Brokers, Ending, LaneKey, LaneSpec};
use synapse_core::share::Membership;
use synapse_core::spec::{PipelineSpec, PluginRef, TopicSpec};
use synapse_core::stage::{Plugin, PluginError, PluginErrorKind, PluginInfo, PluginKind};
use synapse_core::topic::{BrokerName, TopicPartition, TopicPath};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use crate::flow::{Plan, StagePlan};
use crate::lane::{self, Health, LaneStatus, Loadout, Means, Wish};
use crate::reader::Readers;
use crate::{Clock, Metrics, PluginLoader};

/// How long a pipeline that could not start because of something passing waits before it tries again.
const RESTART_WAIT: Duration = Duration::from_secs(2);

/// How long lanes may take to end when other hosts are to have their partitions; what is not committed by then, the
/// others do again.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);

/// What all pipelines of a host share.
pub(crate) struct Shared {
    pub(crate) brokers: Brokers,
    pub(crate) topics: RwLock<BTreeMap<TopicPath, TopicSpec>>,
    pub(crate) plugins: Arc<dyn PluginLoader>,
    pub(crate) default_broker: BrokerName,
    pub(crate) guests: tokio::runtime::Handle,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) readers: Readers,
    pub(crate) limit: BatchLimit,
}

/// What is wanted of a running pipeline.
pub(crate) enum Command {
    /// Work by this spec from now on; only what differs is touched. Answers with what was done, or why it cannot be;
    /// then everything is as it was.
    Change(Box<PipelineSpec>, oneshot::Sender<Result<Changed, String>>),
    /// A plugin's file has changed.
    PluginChanged(std::path::PathBuf),
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Stages were swapped at batch boundaries.
    Swapped,
    /// Lanes were drained and started again.
    Restarted,
}

/// What is known of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineStatus {
    /// How it is, in short.
    pub state: PipelineState,
    /// Why the last new version or configuration was not used, if it was not.
    pub refused: Option<String>,
    /// The plugins in use, by stage.
    pub stages: Vec<(String, PluginInfo)>,
    /// Its lanes.
    pub lanes: BTreeMap<TopicPartition, LaneStatus>,
}

/// What a pipeline tells of itself; the lanes tell for themselves.
#[derive(Clone)]
pub(crate) struct Report {
    state: PipelineState,
    refused: Option<String>,
    stages: Vec<(String, PluginInfo)>,
    lanes: BTreeMap<TopicPartition, watch::Receiver<LaneStatus>>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { state: PipelineState::Starting, refused: None, stages: Vec::new(), lanes: BTreeMap::new() }
    }

    /// Whether the pipeline has drained for good.
    pub(crate) fn has_ended(&self) -> bool {
        self.state == PipelineState::Ended
    }

    /// Whether a change of it was refused and nothing was used since.
    pub(crate) fn has_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// How things are now.
    pub(crate) fn status(&self) -> PipelineStatus {
        PipelineStatus {
            state: self.state.clone(),
            refused: self.refused.clone(),
            stages: self.stages.clone(),
            lanes: self.lanes.iter().map(|(at, lane)| (at.clone(), lane.borrow().clone())).collect(),
        }
    }
}

/// How a pipeline is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipelineState {
    /// Plugins are loaded and lanes opened.
    Starting,
    /// Its lanes are at work, or trying again by themselves.
    Running,
    /// It needs an operator, or a change, to go on.
    Stopped {
        /// Why.
        reason: String,
    },
    /// It ended as it was told to.
    Ended,
}

/// A pipeline that cannot go on as it is.
struct Trouble {
    ending: Ending,
    reason: String,
}

impl From<BrokerError> for Trouble {
    fn from(error: BrokerError) -> Self {
        Self { ending: error.kind.ending(), reason: error.to_string() }
    }
}

impl From<PluginError> for Trouble {
    fn from(error: PluginError) -> Self {
        Self { ending: error.kind.ending(), reason: error.message }
    }
}

/// Runs a pipeline until `commands` is closed; then it drains.
pub(crate) async fn run(
    shared: Arc<Shared>,
    spec: PipelineSpec,
    mut commands: mpsc::Receiver<Command>,
    status: watch::Sender<Report>,
) {
    let mut pipeline = Pipeline {
        shared,
        spec,
        plugins: Vec::new(),
        members: Vec::new(),
        lanes: BTreeMap::new(),
        tasks: JoinSet::new(),
        postponed: None,
        status,
    };
    pipeline.start().await;
    loop {
        let retry = pipeline.wants_retry();
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Change(spec, answer)) => {
                    let changed = pipeline.change(*spec).await;
                    // Whoever asked may be gone.
                    let _ = answer.send(changed);
                }
                Some(Command::PluginChanged(path)) => pipeline.plugin_changed(&path).await,
                None => break,
            },
            Some(ended) = pipeline.tasks.join_next_with_id() => pipeline.lane_ended(ended).await,
            () = tokio::time::sleep(RESTART_WAIT), if retry => pipeline.try_again().await,
            (index, told) = next_share(&mut pipeline.members) => pipeline.share_told(index, told).await,
        }
    }
    pipeline.drain().await;
    pipeline.status.send_modify(|status| status.state = PipelineState::Ended);
}

struct Lane {
    wishes: mpsc::Sender<Wish>,
    status: watch::Receiver<LaneStatus>,
    abort: AbortHandle,
}

/// The pipeline's place among the hosts that share its work on one broker.
struct Member {
    broker: BrokerName,
    membership: Box<dyn Membership>,
    /// The partitions that are this host's; `None` until they were told for the first time.
    share: Option<BTreeSet<TopicPartition>>,
}

/// The next change of a share, and whose it is. Cancel-safe.
async fn next_share(members: &mut [Member]) -> (usize, Result<BTreeSet<TopicPartition>, BrokerError>) {
    if members.is_empty() {
        return std::future::pending().await;
    }
    let (told, index, _) = select_all(members.iter_mut().map(|member| member.membership.changed())).await;
    (index, told)
}

struct Pipeline {
    shared: Arc<Shared>,
    spec: PipelineSpec,
    /// One for each stage, in order.
    plugins: Vec<Arc<dyn Plugin>>,
    /// One on each broker that is read while the pipeline is at work; none while it is not.
    members: Vec<Member>,
    lanes: BTreeMap<TopicPartition, Lane>,
    tasks: JoinSet<TopicPartition>,
    /// A change that could not be made for want of something passing.
    postponed: Option<PipelineSpec>,
    status: watch::Sender<Report>,
}

impl Pipeline {
    fn is_at_work(&self) -> bool {
        !self.members.is_empty()
    }

    fn wants_retry(&self) -> bool {
        let starting = !self.is_at_work() && self.status.borrow().state == PipelineState::Starting;
        starting || self.postponed.is_some() || self.without_lane().next().is_some()
    }

    async fn try_again(&mut self) {
        if !self.is_at_work() {
            return self.start().await;
        }
        if let Some(spec) = self.postponed.take() {
            // The refusal is logged and shown in the status; whoever asked has had an answer.
            let _ = self.swap(spec).await;
        }
        self.open_lanes().await;
    }

    /// Loads the plugins and opens the lanes. What may pass is tried again later, anything else stops the pipeline.
    async fn start(&mut self) {
        self.status.send_modify(|status| {
            status.state = PipelineState::Starting;
            status.lanes.clear();
        });
        match self.try_start().await {
            Ok(members) => self.members = members,
            Err(Trouble { ending: Ending::Retry | Ending::RetrySoon, reason }) => {
                // It is tried every few seconds, and says so when the reason is another one.
                if self.status.borrow().refused.as_ref() != Some(&reason) {
                    tracing::warn!(pipeline = %self.spec.name, %reason, "pipeline cannot start yet; it is tried again");
                }
                self.status.send_modify(|status| status.refused = Some(reason));
            }
            Err(Trouble { ending: Ending::Stop, reason }) => self.stop(reason).await,
        }
    }

    async fn try_start(&mut self) -> Result<Vec<Member>, Trouble> {
        let plugins = self.load(&self.spec).await?;
        // Instances that cannot be made should be known before any host relies on this one.
        self.loadout(&self.spec, &plugins).await?;
        for path in &self.spec.from {
            let spec = self.topic_spec(path).unwrap_or_default();
            self.shared.brokers.get(&path.broker)?.ensure_topic(&path.topic, &spec).await?;
        }
        // What is written to is made on the first write, unless the configuration says how it is kept.
        for topic in self.spec.to.iter().map(|sink| &sink.topic).chain([&self.spec.dead_letters]) {
            if let Some(spec) = self.topic_spec(topic) {
                self.shared.brokers.get(&topic.broker)?.ensure_topic(&topic.topic, &spec).await?;
            }
        }
        let mut members = Vec::new();
        for (broker, share) in self.spec.shares() {
            let membership = self.shared.brokers.get(&broker)?.join(&share).await?;
            members.push(Member { broker, membership, share: None });
        }
        self.plugins = plugins;
        Ok(members)
    }

    /// Has lanes for exactly the partitions that are this host's.
    async fn share_told(&mut self, index: usize, told: Result<BTreeSet<TopicPartition>, BrokerError>) {
        let share = match told {
            Ok(share) => share,
            Err(error) => return self.stop(error.to_string()).await,
        };
        let broker = self.members[index].broker.clone();
        let lost = self.lanes.keys().filter(|at| at.topic.broker == broker && !share.contains(*at));
        let lost: Vec<TopicPartition> = lost.cloned().collect();
        self.members[index].share = Some(share);
        self.hand_over(&lost).await;
        self.open_lanes().await;
        let all_told = self.is_at_work() && self.members.iter().all(|member| member.share.is_some());
        if all_told && self.status.borrow().state == PipelineState::Starting {
            self.running();
        }
    }

    /// Partitions that are this host's and have no lane yet.
    fn without_lane(&self) -> impl Iterator<Item = &TopicPartition> {
        let shares = self.members.iter().filter_map(|member| member.share.as_ref()).flatten();
        shares.filter(|partition| !self.lanes.contains_key(partition))
    }

    /// Opens lanes that are missing. What may pass is tried again later, anything else stops the pipeline.
    async fn open_lanes(&mut self) {
        let missing: Vec<TopicPartition> = self.without_lane().cloned().collect();
        for (index, partition) in missing.iter().enumerate() {
            match self.open(partition.clone()).await {
                Ok(()) => {}
                Err(Trouble { ending: Ending::Retry | Ending::RetrySoon, reason }) => {
                    tracing::warn!(pipeline = %self.spec.name, %partition, %reason, "the lane cannot be opened yet; it is tried again");
                    return self.taken(&missing[..index]);
                }
                Err(Trouble { ending: Ending::Stop, reason }) => return self.stop(reason).await,
            }
        }
        self.taken(&missing);
    }

    fn taken(&self, partitions: &[TopicPartition]) {
        if !partitions.is_empty() {
            tracing::info!(pipeline = %self.spec.name, partitions = %joined(partitions), "partitions are this host's; their lanes open");
        }
    }

    /// Ends lanes whose partitions other hosts are to have.
    async fn hand_over(&mut self, lost: &[TopicPartition]) {
        if lost.is_empty() {
            return;
        }
        let lanes: Vec<Lane> = lost.iter().filter_map(|at| self.lanes.remove(at)).collect();
        let partitions = joined(lost);
        tracing::info!(pipeline = %self.spec.name, %partitions, "partitions are not this host's any more; their lanes end");
        for lane in &lanes {
            // A lane that has ended has drained.
            let _ = lane.wishes.send(Wish::Drain).await;
        }
        let deadline = Instant::now() + HAND_OVER_MAX;
        while lanes.iter().any(|lane| !lane.abort.is_finished()) {
            match tokio::time::timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(Some(ended)) => self.lane_ended(ended).await,
                Ok(None) => break,
                Err(_) => {
                    lanes.iter().for_each(|lane| lane.abort.abort());
                    tracing::warn!(pipeline = %self.spec.name, "lanes took too long to end; what they had not committed is done again elsewhere");
                    break;
                }
            }
        }
        self.status.send_modify(|report| report.lanes.retain(|at, _| !lost.contains(at)));
    }

    fn running(&mut self) {
        let stages = self.stage_infos();
        self.status.send_modify(|status| {
            status.state = PipelineState::Running;
            status.refused = None;
            status.stages = stages;
        });
        tracing::info!(pipeline = %self.spec.name, lanes = self.lanes.len(), "pipeline runs");
    }

    fn stage_infos(&self) -> Vec<(String, PluginInfo)> {
        let names = self.spec.stages.iter().map(|stage| stage.name.to_string());
        names.zip(self.plugins.iter().map(|plugin| plugin.info().clone())).collect()
    }

    async fn load(&self, spec: &PipelineSpec) -> Result<Vec<Arc<dyn Plugin>>, PluginError> {
        let plugins = try_join_all(spec.stages.iter().map(|stage| self.shared.plugins.load(&stage.plugin))).await?;
        for (stage, plugin) in spec.stages.iter().zip(&plugins) {
            if !stage.routes.is_empty() && plugin.info().kind != PluginKind::Router {
                let message = format!(
                    "stage `{}` has `routes`, but its plugin `{}` is a {}; take `routes` away or use a router",
                    stage.name,
                    plugin.info().name,
                    plugin.info().kind
                );
                return Err(PluginError::new(PluginErrorKind::Misconfigured, message));
            }
        }
        Ok(plugins)
    }

    fn topic_spec(&self, topic: &TopicPath) -> Option<TopicSpec> {
        self.shared.topics.read().expect("nobody panics while holding the lock").get(topic).cloned()
    }

    async fn open(&mut self, partition: TopicPartition) -> Result<(), Trouble> {
        let home = self.shared.brokers.get(&partition.topic.broker)?;
        let loadout = self.loadout(&self.spec, &self.plugins).await?;
        let key = LaneKey { pipeline: self.spec.name.clone(), partition: partition.clone() };
        let means = Means {
            spec: LaneSpec { key, start: self.spec.start, read: self.spec.read },
            home,
            brokers: self.shared.brokers.clone(),
            readers: self.shared.readers.clone(),
            limit: self.shared.limit,
            guests: self.shared.guests.clone(),
            clock: self.shared.clock,
            metrics: self.shared.metrics.pipeline(&self.spec),
            seed: seed_of(&self.spec, &partition),
        };
        let (wishes, wished) = mpsc::channel(4);
        let (report, status) = watch::channel(LaneStatus { health: Health::Opening, committed: None });
        let at = partition.clone();
        let abort = self.tasks.spawn(async move {
            lane::run(means, loadout, wished, report).await;
            at
        });
        self.status.send_modify(|report| drop(report.lanes.insert(partition.clone(), status.clone())));
        self.lanes.insert(partition, Lane { wishes, status, abort });
        Ok(())
    }

    /// Fresh, configured instances for one lane.
    async fn loadout(&self, spec: &PipelineSpec, plugins: &[Arc<dyn Plugin>]) -> Result<Loadout, PluginError> {
        let mut workers = Vec::new();
        for _ in 0..spec.parallel.get() {
            let stages = spec.stages.iter().zip(plugins).map(|(stage, plugin)| plugin.stage(&spec.name, stage));
            workers.push(try_join_all(stages).await?);
        }
        let stages = spec.stages.iter().zip(plugins).map(|(stage, plugin)| StagePlan {
            name: stage.name.clone(),
            digest: plugin.info().digest,
            on_error: stage.on_error,
            routes: stage.routes.clone(),
            output_bytes_max: stage.limits.output_bytes_max,
            metrics: self.shared.metrics.stage(spec, stage.name.as_str()),
        });
        let plan = Plan {
            pipeline: spec.name.clone(),
            stages: stages.collect(),
            sinks: spec.to.clone(),
            dead_letters: spec.dead_letters.clone(),
            default_broker: self.shared.default_broker.clone(),
        };
        Ok(Loadout { plan: Arc::new(plan), workers })
    }

    async fn change(&mut self, spec: PipelineSpec) -> Result<Changed, String> {
        let same_lanes = spec.tenant == self.spec.tenant
            && spec.from == self.spec.from
            && spec.read == self.spec.read
            && spec.start == self.spec.start;
        if same_lanes && self.is_at_work() {
            return self.swap(spec).await.map(|()| Changed::Swapped);
        }
        // A version that cannot be used changes nothing: try it before the lanes are drained.
        let tried = match self.load(&spec).await {
            Ok(plugins) => self.loadout(&spec, &plugins).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = tried {
            return Err(self.refuse(error.message));
        }
        self.postponed = None;
        self.drain().await;
        self.spec = spec;
        self.start().await;
        Ok(Changed::Restarted)
    }

    async fn plugin_changed(&mut self, path: &Path) {
        let uses = |stage: &synapse_core::spec::StageSpec| match &stage.plugin {
            PluginRef::File(file) => file == path,
        };
        if !self.spec.stages.iter().any(uses) {
            return;
        }
        if !self.is_at_work() {
            return self.start().await;
        }
        let spec = self.spec.clone();
        // The refusal is logged and shown in the status; nobody waits for an answer.
        let _ = self.swap(spec).await;
    }

    /// Gives every lane new stages, once all of them stand ready.
    async fn swap(&mut self, spec: PipelineSpec) -> Result<(), String> {
        let (plugins, loadouts) = match self.prepare(&spec).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.postponed = (error.kind.ending() != Ending::Stop).then_some(spec);
                return Err(self.refuse(error.message));
            }
        };
        self.postponed = None;
        let mut changed = Vec::new();
        for (lane, loadout) in self.lanes.values().zip(loadouts) {
            let (answer, done) = oneshot::channel();
            // A lane that has just ended needs no new stages.
            if lane.wishes.send(Wish::Swap(loadout, answer)).await.is_ok() {
                changed.push(done);
            }
        }
        for done in changed {
            // As above: then nobody answers.
            let _ = done.await;
        }
        for (stage, (old, new)) in spec.stages.iter().zip(self.plugins.iter().zip(&plugins)) {
            if old.info().digest != new.info().digest {
                tracing::info!(
                    pipeline = %spec.name, stage = %stage.name, from = %old.info().digest, to = %new.info().digest,
                    version = %new.info().version, "swapped"
                );
            }
        }
        (self.spec, self.plugins) = (spec, plugins);
        self.running();
        Ok(())
    }

    async fn prepare(&self, spec: &PipelineSpec) -> Result<(Vec<Arc<dyn Plugin>>, Vec<Loadout>), PluginError> {
        let plugins = self.load(spec).await?;
        let mut loadouts = Vec::new();
        // One even without lanes: a version that cannot be used is refused on every host.
        for _ in 0..self.lanes.len().max(1) {
            loadouts.push(self.loadout(spec, &plugins).await?);
        }
        Ok((plugins, loadouts))
    }

    fn refuse(&self, reason: String) -> String {
        tracing::error!(pipeline = %self.spec.name, %reason, "the change is not used; the version at work goes on");
        self.shared.metrics.pipeline(&self.spec).swaps_refused.inc();
        self.status.send_modify(|status| status.refused = Some(reason.clone()));
        reason
    }

    async fn lane_ended(&mut self, ended: Result<(task::Id, TopicPartition), JoinError>) {
        let reason = match ended {
            Ok((id, partition)) => {
                // One that was handed over may have a successor by now.
                if self.lanes.get(&partition).is_none_or(|lane| lane.abort.id() != id) {
                    return;
                }
                let Some(lane) = self.lanes.remove(&partition) else { return };
                match lane.status.borrow().health.clone() {
                    Health::Stopped { reason } => format!("{partition}: {reason}"),
                    other => format!("{partition}: the lane ended by itself ({other:?})"),
                }
            }
            // It took too long to end.
            Err(error) if error.is_cancelled() => return,
            Err(error) => format!("a defect of the host: {error}"),
        };
        self.stop(reason).await;
    }

    async fn stop(&mut self, reason: String) {
        self.drain().await;
        tracing::error!(pipeline = %self.spec.name, %reason, "pipeline stopped; it starts again when its configuration or a plugin changes");
        self.status.send_modify(|status| status.state = PipelineState::Stopped { reason });
    }

    /// Lets every lane finish what is under way, then leaves the work to other hosts.
    async fn drain(&mut self) {
        for lane in self.lanes.values() {
            // A lane that has ended has drained.
            let _ = lane.wishes.send(Wish::Drain).await;
        }
        while self.tasks.join_next().await.is_some() {}
        self.lanes.clear();
        self.members.clear();
    }
}

/// `broker/topic/0, broker/topic/1`.
fn joined(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Spreads the retries of lanes that fail together.
fn seed_of(spec: &PipelineSpec, partition: &TopicPartition) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (spec.name.as_str(), partition).hash(&mut hasher);
    hasher.finish()
}
