//! Pipelines and lanes: events from sources through stages to sinks, committed batch by batch.
//!
//! [`Engine`] is the service: make it with [`Options`], let [`Engine::run`] run until told to end, and speak to it through
//! a [`Handle`]. It knows brokers and plugins only by the traits of `synapse-core`.

mod dead_letter;
mod flow;
mod lane;
mod metrics;
mod pipeline;
mod reader;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use synapse_core::broker::{BatchLimit, Brokers};
use synapse_core::spec::{PipelineSpec, TopicSpec};
use synapse_core::stage::PluginLoader;
use synapse_core::time::Timestamp;
use synapse_core::topic::{BrokerName, Label, TopicPath};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};

pub use self::lane::{Health, LaneStatus};
pub use self::metrics::Metrics;
pub use self::pipeline::{Changed, PipelineState, PipelineStatus};
use self::pipeline::{Command, Report, Shared};
use self::reader::Readers;

/// Tells the time; a parameter, so that tests choose it.
pub type Clock = fn() -> Timestamp;

/// What an engine works with.
pub struct Options {
    /// Every broker that pipelines name.
    pub brokers: Brokers,
    /// Loads plugins.
    pub plugins: Arc<dyn PluginLoader>,
    /// Where a topic without a broker lies.
    pub default_broker: BrokerName,
    /// Where guests run: a runtime of its own, so that they cannot starve the reactor.
    pub guests: tokio::runtime::Handle,
    /// Tells the time.
    pub clock: Clock,
    /// Where to count.
    pub metrics: Metrics,
    /// How much a lane reads at once.
    pub limit: BatchLimit,
}

/// The service. Ends, drained, when every [`Handle`] is gone or one of them says so.
pub struct Engine {
    shared: Arc<Shared>,
    pipelines: Pipelines,
    tasks: JoinSet<Label>,
    commands: mpsc::Receiver<Wanted>,
    /// How long everything under way may take to end, once that is wanted.
    drain: watch::Receiver<Option<Duration>>,
}

/// Speaks to an engine. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Wanted>,
    drain: watch::Sender<Option<Duration>>,
    pipelines: Pipelines,
}

type Pipelines = Arc<Mutex<BTreeMap<Label, Running>>>;

struct Running {
    spec: PipelineSpec,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Report>,
    abort: AbortHandle,
}

/// What an engine is to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// The pipelines that are to run, and no others.
    pub pipelines: Vec<PipelineSpec>,
    /// How topics are kept; others get the defaults.
    pub topics: BTreeMap<TopicPath, TopicSpec>,
}

enum Wanted {
    Apply(Wish, oneshot::Sender<Applied>),
    PluginChanged(PathBuf),
}

/// What [`Handle::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Pipelines that were not there before.
    pub started: Vec<Label>,
    /// Pipelines whose stages were swapped under traffic.
    pub swapped: Vec<Label>,
    /// Pipelines that were drained and started again.
    pub restarted: Vec<Label>,
    /// Pipelines that were drained and are gone.
    pub ended: Vec<Label>,
    /// Pipelines that stay as they were, and why.
    pub refused: Vec<(Label, String)>,
}

/// The engine is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has ended")]
pub struct Gone;

impl Engine {
    /// An engine without pipelines.
    pub fn new(options: Options) -> (Self, Handle) {
        let shared = Shared {
            brokers: options.brokers,
            topics: RwLock::default(),
            plugins: options.plugins,
            default_broker: options.default_broker,
            guests: options.guests,
            clock: options.clock,
            metrics: options.metrics,
            readers: Readers::default(),
            limit: options.limit,
        };
        let (sender, commands) = mpsc::channel(16);
        let pipelines = Pipelines::default();
        let (drain, drained) = watch::channel(None);
        let handle = Handle { commands: sender, drain, pipelines: Arc::clone(&pipelines) };
        (Self { shared: Arc::new(shared), pipelines, tasks: JoinSet::new(), commands, drain: drained }, handle)
    }

    /// Runs until told to drain. Answers whether everything under way was finished in time.
    pub async fn run(mut self) -> Drained {
        let mut drain = self.drain.clone();
        loop {
            tokio::select! {
                grace = told(&mut drain) => return self.end_all(grace).await,
                wanted = self.commands.recv() => match wanted {
                    // The end need not wait for a change that takes long.
                    Some(wanted) => tokio::select! {
                        () = self.carry_out(wanted) => {}
                        grace = told(&mut drain) => return self.end_all(grace).await,
                    },
                    None => return self.end_all(Duration::MAX).await,
                },
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                    self.bury(&error);
                },
            }
        }
    }

    async fn carry_out(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Apply(wish, answer) => {
                let applied = self.apply(wish).await;
                // Whoever asked may be gone.
                let _ = answer.send(applied);
            }
            Wanted::PluginChanged(path) => self.plugin_changed(&path).await,
        }
    }

    /// A pipeline that panicked is gone: the next change of the configuration starts it anew.
    fn bury(&self, error: &JoinError) {
        let mut pipelines = self.lock();
        let name = pipelines.iter().find(|(_, running)| running.abort.id() == error.id()).map(|(name, _)| name.clone());
        if let Some(name) = name {
            tracing::error!(pipeline = %name, %error, "the pipeline ended by a defect of the host");
            pipelines.remove(&name);
        }
    }

    async fn apply(&mut self, wish: Wish) -> Applied {
        *self.shared.topics.write().expect("nobody panics while holding the lock") = wish.topics;
        let wanted: BTreeMap<Label, PipelineSpec> =
            wish.pipelines.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let ended: Vec<Label> = self.names().into_iter().filter(|name| !wanted.contains_key(name)).collect();
        let mut applied = Applied { ended: ended.clone(), ..Applied::default() };
        let (mut changes, mut starts) = (Vec::new(), Vec::new());
        for (name, spec) in wanted {
            let running = self.lock().get(&name).map(|running| {
                // A change that was refused and is wanted no more is forgotten by taking the old spec again.
                let settled = !running.status.borrow().has_refused();
                (running.spec == spec && settled, running.commands.clone())
            });
            match running {
                Some((true, _)) => {}
                Some((false, commands)) => {
                    changes.push(async move { (change(&commands, spec.clone()).await, name, spec) });
                }
                None => starts.push(spec),
            }
        }
        let (_, changed) = tokio::join!(join_all(ended.iter().map(|name| self.end(name))), join_all(changes));
        for (done, name, spec) in changed {
            match done {
                Ok(done) => {
                    if let Some(running) = self.lock().get_mut(&name) {
                        running.spec = spec;
                    }
                    match done {
                        Changed::Swapped => applied.swapped.push(name),
                        Changed::Restarted => applied.restarted.push(name),
                    }
                }
                Err(reason) => applied.refused.push((name, reason)),
            }
        }
        for spec in starts {
            applied.started.push(spec.name.clone());
            self.start(spec);
        }
        applied
    }

    fn names(&self) -> Vec<Label> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Label, Running>> {
        self.pipelines.lock().expect("nobody panics while holding the lock")
    }

    fn start(&mut self, spec: PipelineSpec) {
        let (commands, commanded) = mpsc::channel(4);
        let (report, status) = watch::channel(Report::new());
        let (shared, name, its_spec) = (Arc::clone(&self.shared), spec.name.clone(), spec.clone());
        let abort = self.tasks.spawn(async move {
            let name = its_spec.name.clone();
            pipeline::run(shared, its_spec, commanded, report).await;
            name
        });
        self.lock().insert(name, Running { spec, commands, status, abort });
    }

    /// Drains one pipeline.
    async fn end(&self, name: &Label) {
        let Some(running) = self.lock().remove(name) else { return };
        let mut status = running.status;
        drop(running.commands);
        // An error means that the pipeline's task has ended: then it has drained.
        let _ = status.wait_for(Report::has_ended).await;
    }

    async fn plugin_changed(&self, path: &std::path::Path) {
        let all: Vec<_> = self.lock().values().map(|running| running.commands.clone()).collect();
        for commands in all {
            // A pipeline that has ended uses no plugin.
            let _ = commands.send(Command::PluginChanged(path.to_owned())).await;
        }
    }

    async fn end_all(mut self, grace: Duration) -> Drained {
        let aborts: Vec<_> = std::mem::take(&mut *self.lock()).into_values().map(|running| running.abort).collect();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_ok() {
            return Drained::Whole;
        }
        aborts.iter().for_each(AbortHandle::abort);
        Drained::CutShort
    }
}

/// How an engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything under way was finished and committed.
    Whole,
    /// The grace period ended first; what was not committed is read again at the next start.
    CutShort,
}

/// Waits until the end is wanted.
async fn told(drain: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let grace = drain.wait_for(Option::is_some).await.map(|grace| *grace);
    match grace {
        Ok(grace) => grace.unwrap_or(Duration::MAX),
        // With the last handle goes the last who could want it; the commands end the engine then.
        Err(_) => std::future::pending().await,
    }
}

async fn change(commands: &mpsc::Sender<Command>, spec: PipelineSpec) -> Result<Changed, String> {
    let (answer, changed) = oneshot::channel();
    let name = spec.name.clone();
    let gone = || {
        // Other refusals the pipeline tells itself.
        tracing::error!(pipeline = %name, "the change is not used: the pipeline has ended");
        "the pipeline has ended".to_owned()
    };
    commands.send(Command::Change(Box::new(spec), answer)).await.map_err(|_| gone())?;
    changed.await.map_err(|_| gone())?
}

impl Handle {
    /// Makes the running pipelines be exactly these; what does not differ is not touched.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn apply(&self, wish: Wish) -> Result<Applied, Gone> {
        let (answer, applied) = oneshot::channel();
        self.commands.send(Wanted::Apply(wish, answer)).await.map_err(|_| Gone)?;
        applied.await.map_err(|_| Gone)
    }

    /// A plugin's file has changed: pipelines that use it try the new version.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn plugin_changed(&self, path: PathBuf) -> Result<(), Gone> {
        self.commands.send(Wanted::PluginChanged(path)).await.map_err(|_| Gone)
    }

    /// Ends the engine: lanes take nothing more, finish what is under way and commit it, for at most `grace`.
    ///
    /// # Errors
    /// If the engine has ended.
    pub fn drain(&self, grace: Duration) -> Result<(), Gone> {
        self.drain.send(Some(grace)).map_err(|_| Gone)
    }

    /// Every pipeline, as it is now.
    pub fn status(&self) -> BTreeMap<Label, (PipelineSpec, PipelineStatus)> {
        let pipelines = self.pipelines.lock().expect("nobody panics while holding the lock");
        let status = |running: &Running| (running.spec.clone(), running.status.borrow().status());
        pipelines.iter().map(|(name, running)| (name.clone(), status(running))).collect()
    }
}
