//! A running host: configuration → brokers, plugins, engine, API → until a signal → drain within the grace period.
//!
//! It watches its configuration and the plugins' files, and changes only what differs. A change that cannot be used
//! changes nothing and says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use synapse_core::broker::{BatchLimit, Brokers};
use synapse_core::spec::{PluginRef, TopicSpec};
use synapse_core::time::Timestamp;
use synapse_core::topic::TopicPath;
use synapse_engine::{Applied, Drained, Engine, Handle, Metrics, Options, Wish};
use synapse_runtime::{Runtime, RuntimeOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::brokers;
use crate::config::{self, HostSpec};
use crate::http::{self, Phase};
use crate::watch::{Changed, Watcher};

/// How long to wait before a topic of the configuration is asked for again at a broker that was away.
const TOPICS_RETRY: Duration = Duration::from_secs(5);

/// Runs a host until SIGTERM or SIGINT, and drains it then. A second signal ends it at once.
///
/// # Errors
/// A configuration that is wrong, an address in use, a damaged log: whatever keeps a host from starting.
pub async fn run(file: &Path) -> anyhow::Result<()> {
    let spec = config::load(file)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut host = Host::start(file, spec).await?;
    tracing::info!(listen = %host.spec.listen, pipelines = host.spec.pipelines.len(), "serving");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(changed) = host.changes.recv() => host.changed(changed).await,
            Some(ended) = host.tasks.join_next() => ended.context("a defect of the host")??,
        }
    }
    tracing::info!(grace = ?host.spec.grace, "draining");
    tokio::select! {
        drained = host.drain() => drained,
        _ = terminate.recv() => anyhow::bail!("a second signal ended the host before it had drained"),
        _ = interrupt.recv() => anyhow::bail!("a second signal ended the host before it had drained"),
    }
}

struct Host {
    file: PathBuf,
    spec: HostSpec,
    brokers: Brokers,
    topics: watch::Sender<BTreeMap<TopicPath, TopicSpec>>,
    phase: watch::Sender<Phase>,
    engine: Handle,
    watcher: Watcher,
    changes: mpsc::Receiver<Changed>,
    /// The API and whatever else lives as long as the host; none of them ends by itself.
    tasks: JoinSet<anyhow::Result<()>>,
    running: tokio::task::JoinHandle<Drained>,
    cancel: CancellationToken,
    /// Guests run here, apart from the reactor, as long as the host lives.
    _guests: GuestThreads,
}

impl Host {
    async fn start(file: &Path, spec: HostSpec) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(spec.listen).await.with_context(|| {
            format!("cannot listen on {}; stop what listens there or change `server.listen`", spec.listen)
        })?;
        std::fs::create_dir_all(&spec.data)
            .with_context(|| format!("cannot make the data directory {}", spec.data.display()))?;
        let brokers = Brokers::default();
        for (name, broker) in &spec.brokers {
            brokers.insert(brokers::open(name, broker, &spec.data).await?);
        }
        let registry = prometheus::Registry::new();
        let guests = GuestThreads::start()?;
        let plugins =
            Runtime::new(RuntimeOptions { cache_dir: Some(spec.data.join("compiled")), ..RuntimeOptions::default() })?;
        let (engine, handle) = Engine::new(Options {
            brokers: brokers.clone(),
            plugins: Arc::new(plugins),
            default_broker: spec.default_broker.clone(),
            guests: guests.handle(),
            clock: now,
            metrics: Metrics::register(&registry),
            limit: BatchLimit::default(),
        });
        let running = tokio::spawn(engine.run());
        let (watcher, changes) = Watcher::new(watched(file, &spec))?;
        let cancel = CancellationToken::new();
        let (topics, topics_seen) = watch::channel(spec.topics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_topics(brokers.clone(), topics_seen.clone()));
        let (phase, phase_seen) = watch::channel(Phase::Starting);
        let api = http::Api::new(http::Options {
            brokers: brokers.clone(),
            topics: topics_seen,
            default_broker: spec.default_broker.clone(),
            engine: handle.clone(),
            registry,
            phase: phase_seen,
            limits: http::Limits::default(),
        });
        let serving = cancel.clone();
        tasks.spawn(async move { Ok(http::serve(listener, api, serving).await?) });
        report(&handle.apply(wish(&spec)).await?);
        phase.send_replace(Phase::Serving);
        let file = file.to_owned();
        Ok(Self {
            file,
            spec,
            brokers,
            topics,
            phase,
            engine: handle,
            watcher,
            changes,
            tasks,
            running,
            cancel,
            _guests: guests,
        })
    }

    async fn changed(&mut self, changed: Changed) {
        let done =
            if changed.path == self.watched_file() { self.reload().await } else { self.plugin(changed.path).await };
        if let Err(error) = done {
            tracing::error!("the change is not used, the host goes on as it was: {error:#}");
        }
    }

    fn watched_file(&self) -> PathBuf {
        std::path::absolute(&self.file).unwrap_or_else(|_| self.file.clone())
    }

    async fn plugin(&self, path: PathBuf) -> anyhow::Result<()> {
        tracing::info!(plugin = %path.display(), "a plugin's file has changed");
        Ok(self.engine.plugin_changed(path).await?)
    }

    async fn reload(&mut self) -> anyhow::Result<()> {
        let new = config::load(&self.file)?;
        let change = self.spec.diff(&new);
        if change.is_empty() {
            return Ok(());
        }
        for key in &change.needs_restart {
            tracing::warn!(key, "this key cannot change while the host runs; it is used after the next start");
        }
        for name in &change.brokers_added {
            self.brokers.insert(brokers::open(name, &new.brokers[name], &self.spec.data).await?);
        }
        for path in watched(&self.file, &new).difference(&watched(&self.file, &self.spec)) {
            self.watcher.add(path.clone());
        }
        for path in watched(&self.file, &self.spec).difference(&watched(&self.file, &new)) {
            self.watcher.remove(path);
        }
        // Nobody but this host's own tasks listens; they end after it.
        let _ = self.topics.send(new.topics.clone());
        report(&self.engine.apply(wish(&new)).await?);
        self.spec = new;
        Ok(())
    }

    async fn drain(mut self) -> anyhow::Result<()> {
        self.phase.send_replace(Phase::Draining);
        self.engine.drain(self.spec.grace).await?;
        let drained = self.running.await.context("a defect of the engine")?;
        self.cancel.cancel();
        self.tasks.shutdown().await;
        match drained {
            Drained::Whole => tracing::info!("drained"),
            Drained::CutShort => tracing::warn!(
                grace = ?self.spec.grace,
                "the grace period ended before all was finished; the rest is read again at the next start"
            ),
        }
        Ok(())
    }
}

fn wish(spec: &HostSpec) -> Wish {
    Wish { pipelines: spec.pipelines.clone(), topics: spec.topics.clone() }
}

/// The files whose change means something to the host.
fn watched(file: &Path, spec: &HostSpec) -> BTreeSet<PathBuf> {
    let plugins = spec.pipelines.iter().flat_map(|pipeline| &pipeline.stages).map(|stage| match &stage.plugin {
        PluginRef::File(path) => path.clone(),
    });
    let config = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    plugins.chain([config]).collect()
}

fn report(applied: &Applied) {
    let names = |labels: &[synapse_core::topic::Label]| {
        labels.iter().map(|label| label.as_str()).collect::<Vec<_>>().join(", ")
    };
    let all = [
        ("started", &applied.started),
        ("swapped", &applied.swapped),
        ("restarted", &applied.restarted),
        ("ended", &applied.ended),
    ];
    for (what, pipelines) in all.into_iter().filter(|(_, pipelines)| !pipelines.is_empty()) {
        tracing::info!(pipelines = %names(pipelines), "{what}");
    }
    for (pipeline, reason) in &applied.refused {
        tracing::error!(%pipeline, %reason, "the change of this pipeline is not used");
    }
}

/// Makes sure that the topics of the configuration are as it says, also those that no pipeline reads.
async fn keep_topics(
    brokers: Brokers,
    mut topics: watch::Receiver<BTreeMap<TopicPath, TopicSpec>>,
) -> anyhow::Result<()> {
    loop {
        let wanted = topics.borrow_and_update().clone();
        let mut missing = false;
        for (path, spec) in &wanted {
            let ensured = match brokers.get(&path.broker) {
                Ok(broker) => broker.ensure_topic(&path.topic, spec).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = ensured {
                tracing::warn!(topic = %path, %error, "the topic cannot be made yet");
                missing = true;
            }
        }
        tokio::select! {
            changed = topics.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(TOPICS_RETRY), if missing => {}
        }
    }
}

/// The system's time.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

/// The threads that guests run on: as many as there are cores.
struct GuestThreads(Option<tokio::runtime::Runtime>);

impl GuestThreads {
    fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("synapse-guests")
            .enable_time()
            .build()
            .context("cannot start the threads that plugins run on")?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("the threads live as long as the host").handle().clone()
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        // A runtime must not be dropped where it would block.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
