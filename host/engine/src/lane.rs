//! One lane: the driver that carries out what its [`machine`] decides.
//!
//! Reading, processing and committing run as tasks that overlap; each takes what it needs and brings it back, so
//! nothing is shared. The driver itself only waits for the next thing to happen and hands it to the machine.

mod machine;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use synapse_core::broker::{
    BatchLimit, Boundary, Broker, BrokerError, Brokers, Committer, Effects, Ending, LaneSpec, Output, Reading,
    SourceBatch,
};
use synapse_core::stage::{PluginError, Stage};
use synapse_core::topic::{Offset, partition_of};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};

use self::machine::{Action, Bounds, Event, Machine};
use crate::Clock;
use crate::flow::{self, Outcome, Plan, Share};
use crate::metrics::PipelineMetrics;
use crate::reader::{Feed, Readers};

pub use self::machine::Health;

/// How long a source may wait for something to come.
const POLL_WAIT: Duration = Duration::from_secs(1);

/// What a lane works with.
pub(crate) struct Means {
    pub(crate) spec: LaneSpec,
    /// The broker that the lane reads.
    pub(crate) home: Arc<dyn Broker>,
    pub(crate) brokers: Brokers,
    pub(crate) readers: Readers,
    pub(crate) limit: BatchLimit,
    /// Where guests run, apart from the reactor.
    pub(crate) guests: tokio::runtime::Handle,
    pub(crate) clock: Clock,
    pub(crate) metrics: PipelineMetrics,
    pub(crate) seed: u64,
}

/// Stages ready to work, and what is done with what they say.
pub(crate) struct Loadout {
    pub(crate) plan: Arc<Plan>,
    /// The instances of each worker; at least one worker.
    pub(crate) workers: Vec<Vec<Box<dyn Stage>>>,
}

/// What is wanted of a running lane.
pub(crate) enum Wish {
    /// Use these stages from the next batch on; answered once that is so.
    Swap(Loadout, oneshot::Sender<()>),
    /// Finish what is under way, then end.
    Drain,
}

/// What is known of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// How it is.
    pub health: Health,
    /// The last entry whose effects are durable, since the lane was opened.
    pub committed: Option<Offset>,
}

/// Runs a lane until it has drained or stopped.
pub(crate) async fn run(
    means: Means,
    loadout: Loadout,
    mut wishes: mpsc::Receiver<Wish>,
    status: watch::Sender<LaneStatus>,
) {
    let bounds = Bounds { ready_max: means.home.batches_per_commit_max(), ..Bounds::default() };
    let (machine, first) = Machine::start(bounds, means.seed);
    let mut driver = Driver {
        means: Arc::new(means),
        machine,
        plan: Arc::clone(&loadout.plan),
        tasks: JoinSet::new(),
        open_tasks: Vec::new(),
        feed: None,
        committer: None,
        loadout: Some(loadout),
        next_loadout: None,
        waiting_to_process: None,
        read: VecDeque::new(),
        ready: VecDeque::new(),
        boundary: None,
        status,
        warned: None,
        ended: false,
    };
    driver.carry_out(first);
    let mut wished = true;
    while !driver.ended {
        tokio::select! {
            Some(done) = driver.tasks.join_next() => driver.done(done),
            wish = wishes.recv(), if wished => match wish {
                Some(Wish::Swap(loadout, changed)) => {
                    driver.next_loadout = Some((loadout, changed));
                    driver.tell(Event::SwapReady);
                }
                Some(Wish::Drain) => driver.tell(Event::Drain),
                None => {
                    wished = false;
                    driver.tell(Event::Drain);
                }
            },
        }
    }
}

/// A batch whose stages are done.
struct Ready {
    outcome: Outcome,
    boundary: Option<Boundary>,
}

/// What a task brings back.
enum Done {
    Opened { epoch: u64, result: Result<synapse_core::broker::OpenLane, BrokerError> },
    Polled { epoch: u64, feed: Feed, result: Result<Arc<SourceBatch>, BrokerError> },
    Processed { epoch: u64, loadout: Loadout, result: Result<Outcome, PluginError> },
    Committed { epoch: u64, committer: Box<dyn Committer>, last: Option<Offset>, result: Result<(), BrokerError> },
    Waited { epoch: u64 },
}

struct Driver {
    means: Arc<Means>,
    machine: Machine,
    tasks: JoinSet<Done>,
    /// Tasks that end with their opening. Those that process do not: they bring the stages back.
    open_tasks: Vec<AbortHandle>,
    feed: Option<Feed>,
    committer: Option<Box<dyn Committer>>,
    /// The plan of the stages in use; those of an earlier plan are dropped when they come back.
    plan: Arc<Plan>,
    /// Away while a batch is processed.
    loadout: Option<Loadout>,
    next_loadout: Option<(Loadout, oneshot::Sender<()>)>,
    /// The machine wants to process, but the stages are still busy with an earlier opening's batch.
    waiting_to_process: Option<u64>,
    read: VecDeque<Arc<SourceBatch>>,
    ready: VecDeque<Ready>,
    /// The boundary that holds at the end of what was processed.
    boundary: Option<Boundary>,
    status: watch::Sender<LaneStatus>,
    /// What the log was last told to have failed.
    warned: Option<String>,
    ended: bool,
}

impl Driver {
    fn tell(&mut self, event: Event) {
        let actions = self.machine.apply(event);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Open { epoch } => self.open(epoch),
                Action::Poll { epoch } => self.poll(epoch),
                Action::Process { epoch, .. } => self.process(epoch),
                Action::Commit { epoch, count, .. } => self.commit(epoch, count),
                Action::ChangeOver => self.change_over(),
                Action::Close => self.close(),
                Action::Wait { epoch, wait } => self.spawn(async move {
                    tokio::time::sleep(wait).await;
                    Done::Waited { epoch }
                }),
                Action::Report(health) => self.report(health),
                Action::End => self.ended = true,
            }
        }
    }

    fn done(&mut self, done: Result<Done, JoinError>) {
        let event = match done {
            Ok(Done::Opened { epoch, result }) => self.opened(epoch, result),
            Ok(Done::Polled { epoch, feed, result }) => self.polled(epoch, feed, result),
            Ok(Done::Processed { epoch, loadout, result }) => self.processed(epoch, loadout, result),
            Ok(Done::Committed { epoch, committer, last, result }) => self.committed(epoch, committer, last, result),
            Ok(Done::Waited { epoch }) => Some(Event::BackoffOver { epoch }),
            Err(error) if error.is_cancelled() => None,
            Err(error) => Some(self.machine.failed(Ending::Stop, format!("a defect of the host: {error}"))),
        };
        if let Some(event) = event {
            self.tell(event);
        }
    }

    fn spawn(&mut self, task: impl Future<Output = Done> + Send + 'static) {
        self.open_tasks.retain(|task| !task.is_finished());
        let handle = self.tasks.spawn(task);
        self.open_tasks.push(handle);
    }

    fn home(&self) -> Arc<dyn Broker> {
        Arc::clone(&self.means.home)
    }

    fn open(&mut self, epoch: u64) {
        let (broker, means) = (self.home(), Arc::clone(&self.means));
        self.spawn(async move { Done::Opened { epoch, result: broker.open_lane(&means.spec).await } });
    }

    fn opened(&mut self, epoch: u64, result: Result<synapse_core::broker::OpenLane, BrokerError>) -> Option<Event> {
        match result {
            Ok(_) if !self.machine.is_current(epoch) => None,
            Ok(lane) => {
                self.committer = Some(lane.committer);
                self.boundary = lane.boundary;
                let partition = self.means.spec.key.partition.clone();
                self.feed = Some(match lane.reading {
                    Reading::Own(source) => Feed::Own(source),
                    Reading::From(from) => self.means.readers.feed(self.home(), partition, from),
                });
                Some(Event::Opened { epoch })
            }
            Err(error) => Some(broker_failed(epoch, &error)),
        }
    }

    fn poll(&mut self, epoch: u64) {
        let mut feed = self.feed.take().expect("one poll at a time, of an open lane");
        let limit = self.means.limit;
        self.spawn(async move {
            let result = feed.next(limit, POLL_WAIT).await;
            Done::Polled { epoch, feed, result }
        });
    }

    fn polled(&mut self, epoch: u64, feed: Feed, result: Result<Arc<SourceBatch>, BrokerError>) -> Option<Event> {
        if !self.machine.is_current(epoch) {
            return None;
        }
        self.feed = Some(feed);
        match result {
            Ok(batch) if batch.is_empty() => Some(Event::PolledNothing { epoch }),
            Ok(batch) => {
                self.means.metrics.read.inc_by(batch.offsets.len() as u64);
                self.means.metrics.expired.inc_by(batch.expired.len() as u64);
                self.means.metrics.lost_to_trim.inc_by(batch.lost_to_trim);
                self.read.push_back(batch);
                Some(Event::Polled { epoch })
            }
            Err(error) => Some(broker_failed(epoch, &error)),
        }
    }

    fn process(&mut self, epoch: u64) {
        let Some(loadout) = self.loadout.take() else {
            self.waiting_to_process = Some(epoch);
            return;
        };
        let batch = self.read.pop_front().expect("the machine processes what was read");
        let means = Arc::clone(&self.means);
        // Not ended with its opening: the stages come back with it.
        self.tasks.spawn_on(process(epoch, means, loadout, batch), &self.means.guests);
    }

    fn processed(&mut self, epoch: u64, loadout: Loadout, result: Result<Outcome, PluginError>) -> Option<Event> {
        let plan = Arc::clone(&loadout.plan);
        if Arc::ptr_eq(&plan, &self.plan) {
            self.loadout = Some(loadout);
        }
        if let Some(waiting) = self.waiting_to_process.take() {
            self.process(waiting);
        }
        if !self.machine.is_current(epoch) {
            return None;
        }
        match result {
            Ok(outcome) => {
                let stop = outcome.stop.clone();
                let boundary = self.boundary_of(&plan, &outcome);
                self.ready.push_back(Ready { outcome, boundary });
                Some(Event::Processed { epoch, stop })
            }
            Err(error) => Some(Event::Failed { epoch, ending: error.kind.ending(), reason: error.message }),
        }
    }

    /// The boundary that begins with this batch, if other plugins handled it than those before.
    fn boundary_of(&mut self, plan: &Plan, outcome: &Outcome) -> Option<Boundary> {
        let from = *outcome.covered.iter().min()?;
        let stages: Vec<_> =
            plan.stages.iter().map(|stage| (stage.name.to_string(), stage.digest.to_string())).collect();
        if self.boundary.as_ref().is_some_and(|boundary| boundary.stages == stages) {
            return None;
        }
        self.boundary = Some(Boundary { from, stages });
        self.boundary.clone()
    }

    fn commit(&mut self, epoch: u64, count: usize) {
        let committer = self.committer.take().expect("one commit at a time, of an open lane");
        let ready: Vec<Ready> = self.ready.drain(..count).collect();
        let means = Arc::clone(&self.means);
        self.spawn(commit(epoch, means, committer, ready));
    }

    fn committed(
        &mut self,
        epoch: u64,
        committer: Box<dyn Committer>,
        last: Option<Offset>,
        result: Result<(), BrokerError>,
    ) -> Option<Event> {
        if !self.machine.is_current(epoch) {
            return None;
        }
        match result {
            Ok(()) => {
                self.committer = Some(committer);
                if last.is_some() {
                    self.status.send_modify(|status| status.committed = last);
                }
                Some(Event::Committed { epoch })
            }
            Err(error) => Some(broker_failed(epoch, &error)),
        }
    }

    fn change_over(&mut self) {
        if let Some((loadout, changed)) = self.next_loadout.take() {
            self.plan = Arc::clone(&loadout.plan);
            self.loadout = Some(loadout);
            self.means.metrics.swaps.inc();
            // Whoever asked may be gone.
            let _ = changed.send(());
        }
    }

    fn close(&mut self) {
        self.open_tasks.drain(..).for_each(|task| task.abort());
        self.feed = None;
        self.committer = None;
        self.waiting_to_process = None;
        self.read.clear();
        self.ready.clear();
        self.boundary = None;
    }

    fn report(&mut self, health: Health) {
        let lane = &self.means.spec.key;
        let was_running = self.status.borrow().health == Health::Running;
        match &health {
            Health::Retrying { reason, attempt } => {
                self.means.metrics.retries.inc();
                // Every few seconds while a broker is away: said less and less often, unless the reason is another one.
                if attempt.is_power_of_two() || self.warned.as_ref() != Some(reason) {
                    self.warned = Some(reason.clone());
                    tracing::warn!(%lane, attempt, %reason, "lane failed; it is opened again");
                } else {
                    tracing::debug!(%lane, attempt, %reason, "lane failed again");
                }
            }
            Health::Stopped { reason } => tracing::error!(%lane, %reason, "lane stopped"),
            Health::Opening | Health::Running | Health::Drained => tracing::debug!(%lane, ?health, "lane"),
        }
        match (was_running, health == Health::Running) {
            (false, true) => self.means.metrics.running.inc(),
            (true, false) => self.means.metrics.running.dec(),
            (true, true) | (false, false) => {}
        }
        self.status.send_modify(|status| status.health = health);
    }
}

fn broker_failed(epoch: u64, error: &BrokerError) -> Event {
    Event::Failed { epoch, ending: error.kind.ending(), reason: error.to_string() }
}

/// Runs a batch through the stages, on one worker or on several by key.
async fn process(epoch: u64, means: Arc<Means>, loadout: Loadout, source: Arc<SourceBatch>) -> Done {
    let Loadout { plan, workers } = loadout;
    let (workers, shares) =
        if workers.len() == 1 { alone(&plan, workers, &source).await } else { split(&plan, workers, &source).await };
    let at = &means.spec.key.partition;
    let result = shares.map(|shares| flow::join(&plan, at, &source, shares, (means.clock)()));
    Done::Processed { epoch, loadout: Loadout { plan, workers }, result }
}

type Workers = Vec<Vec<Box<dyn Stage>>>;

async fn alone(plan: &Plan, mut workers: Workers, source: &SourceBatch) -> (Workers, Result<Vec<Share>, PluginError>) {
    let parents = (0..source.events.len() as u32).collect();
    let share = flow::run(plan, &mut workers[0], Arc::clone(&source.events), parents).await;
    (workers, share.map(|share| vec![share]))
}

/// Rows of one key go to one worker, so their order is kept.
async fn split(plan: &Arc<Plan>, workers: Workers, source: &SourceBatch) -> (Workers, Result<Vec<Share>, PluginError>) {
    let count = workers.len();
    let mut rows = vec![Vec::new(); count];
    for (row, event) in (0u32..).zip(source.events.events()) {
        let key = event.partition_key().unwrap_or_else(|| event.id());
        rows[partition_of(key.as_bytes(), count as u32) as usize].push(row);
    }
    let mut tasks = JoinSet::new();
    for (index, (mut stages, rows)) in workers.into_iter().zip(rows).enumerate() {
        let (plan, events) = (Arc::clone(plan), Arc::clone(&source.events));
        tasks.spawn(async move {
            let share = if rows.is_empty() {
                Ok(Share::default())
            } else {
                flow::run(&plan, &mut stages, Arc::new(events.select(&rows)), rows).await
            };
            (index, stages, share)
        });
    }
    let mut done: Vec<_> = tasks.join_all().await;
    done.sort_by_key(|(index, _, _)| *index);
    let (workers, shares): (Workers, Vec<_>) = done.into_iter().map(|(_, stages, share)| (stages, share)).unzip();
    (workers, shares.into_iter().collect())
}

/// Writes what goes to other brokers, then commits the rest with the cursor.
async fn commit(epoch: u64, means: Arc<Means>, mut committer: Box<dyn Committer>, ready: Vec<Ready>) -> Done {
    let timer = means.metrics.commit_seconds.start_timer();
    let home = &means.spec.key.partition.topic.broker;
    let mut effects = Effects::default();
    let mut elsewhere: Vec<Output> = Vec::new();
    for batch in ready {
        effects.covered.extend(batch.outcome.covered);
        effects.boundary = effects.boundary.or(batch.boundary);
        let (at_home, away): (Vec<_>, Vec<_>) =
            batch.outcome.outputs.into_iter().partition(|output| output.topic.broker == *home);
        effects.outputs.extend(at_home);
        elsewhere.extend(away);
    }
    let last = effects.covered.iter().max().copied();
    let result = write(&means, committer.as_mut(), &effects, &elsewhere).await;
    if result.is_ok() {
        let written: usize = effects.outputs.iter().chain(&elsewhere).map(|output| output.events.len()).sum();
        means.metrics.written.inc_by(written as u64);
        means.metrics.committed.inc_by(effects.covered.len() as u64);
        timer.observe_duration();
    } else {
        timer.stop_and_discard();
    }
    Done::Committed { epoch, committer, last, result }
}

async fn write(
    means: &Means,
    committer: &mut dyn Committer,
    effects: &Effects,
    elsewhere: &[Output],
) -> Result<(), BrokerError> {
    for output in elsewhere {
        means.brokers.get(&output.topic.broker)?.publish(output).await?;
    }
    if effects.covered.is_empty() {
        return Ok(());
    }
    committer.commit(effects).await
}
