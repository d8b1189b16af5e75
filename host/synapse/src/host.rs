//! A running host: configuration → brokers, plugins, engine, API → until a signal → drain within the grace period.
//!
//! It watches its configuration and the plugins' files, and changes only what differs. A change that cannot be used
//! changes nothing and says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use futures_util::future::join_all;
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

/// How long brokers may take to give back what they hold.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(5);

/// How much longer than its own grace the API may take to end.
const API_LATE: Duration = Duration::from_secs(1);

/// Runs a host until SIGTERM or SIGINT, and drains it then. A second signal ends it at once.
///
/// # Errors
/// A configuration that is wrong, an address in use, a damaged log: whatever keeps a host from starting.
pub async fn run(file: &Path) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut host = Host::start(file).await?;
    tracing::info!(listen = %host.spec.listen, pipelines = host.spec.pipelines.len(), host = host.id, "serving");
    loop {
        let changed = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(changed) = host.changes.recv() => changed,
            Some(ended) = host.tasks.join_next() => {
                ended.context("a defect of the host")??;
                continue;
            }
            ended = &mut host.running => {
                ended.context("a defect of the engine")?;
                anyhow::bail!("the engine ended by itself, which is a defect of the host");
            }
        };
        // A signal does not wait for a change: a pipeline may take long to be drained for it.
        tokio::select! {
            () = host.changed(changed) => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
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
    /// What other hosts know it as.
    id: String,
    /// What is used now: of pipelines whose change was refused, how they run on.
    spec: HostSpec,
    /// Whether the file wants a pipeline otherwise than it runs, because its change was refused.
    refused: bool,
    watched: BTreeSet<PathBuf>,
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
    async fn start(file: &Path) -> anyhow::Result<Self> {
        // Before the file is read, so that what is saved in between is seen.
        let (watcher, changes) = Watcher::new([absolute(file)])?;
        let spec = config::load(file)?;
        let watched = watched(file, &spec);
        watched.iter().for_each(|path| watcher.add(path.clone()));
        let listener = TcpListener::bind(spec.listen).await.with_context(|| {
            format!("cannot listen on {}; stop what listens there or change `server.listen`", spec.listen)
        })?;
        std::fs::create_dir_all(&spec.data)
            .with_context(|| format!("cannot make the data directory {}", spec.data.display()))?;
        let host_id = brokers::host_id(&spec.data)?;
        let brokers = Brokers::default();
        for (name, broker) in &spec.brokers {
            brokers.insert(brokers::open(name, broker, &spec.data, &host_id).await?);
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
        let cancel = CancellationToken::new();
        let (topics, topics_seen) = watch::channel(spec.topics.clone());
        let mut tasks = JoinSet::new();
        let (ending, keeping) = (cancel.clone(), keep_topics(brokers.clone(), topics_seen.clone()));
        tasks.spawn(async move {
            ending.run_until_cancelled(keeping).await;
            Ok(())
        });
        let (phase, phase_seen) = watch::channel(Phase::Starting);
        let api = http::Api::new(http::Options {
            brokers: brokers.clone(),
            topics: topics_seen,
            default_broker: spec.default_broker.clone(),
            host_id: host_id.clone(),
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
            id: host_id,
            spec,
            refused: false,
            watched,
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
        if changed.path == absolute(&self.file) {
            told(self.reload().await);
            return;
        }
        tracing::info!(plugin = %changed.path.display(), "a plugin's file has changed");
        if self.refused {
            // It may be what a refused change of a pipeline was waiting for.
            told(self.reload().await);
        }
        told(self.engine.plugin_changed(changed.path).await.map_err(anyhow::Error::from));
    }

    async fn reload(&mut self) -> anyhow::Result<()> {
        let file = self.file.clone();
        let new = tokio::task::spawn_blocking(move || config::load(&file)).await.context("a defect of the host")??;
        let old = self.with_new_topics(&new).await;
        let change = old.diff(&new);
        anyhow::ensure!(
            old.default_broker == new.default_broker,
            "`server.default-broker` cannot change while the host runs, since every topic that is written without a \
             broker is elsewhere then; start the host again to use this file"
        );
        for key in &change.needs_restart {
            tracing::warn!(key, "this key cannot change while the host runs; it is used after the next start");
        }
        let new = old.while_running(new);
        let mut opened = Vec::new();
        for name in &change.brokers_added {
            opened.push(brokers::open(name, &new.brokers[name], &self.spec.data, &self.id).await?);
        }
        opened.into_iter().for_each(|broker| self.brokers.insert(broker));
        self.watch(&watched(&self.file, &new) | &watched(&self.file, &self.spec));
        self.topics.send_if_modified(|topics| {
            let differ = *topics != new.topics;
            topics.clone_from(&new.topics);
            differ
        });
        let applied = self.engine.apply(wish(&new)).await?;
        report(&applied);
        self.used(new, &applied);
        Ok(())
    }

    /// What is used now, and the topics that `new` names and that do not exist yet: these have no partitions that
    /// could change.
    async fn with_new_topics(&self, new: &HostSpec) -> HostSpec {
        let mut old = self.spec.clone();
        for (path, spec) in new.topics.iter().filter(|(path, _)| !self.spec.topics.contains_key(*path)) {
            let is_new = match self.brokers.get(&path.broker) {
                Ok(broker) => matches!(broker.topic(&path.topic).await, Ok(None)),
                Err(_) => true,
            };
            if is_new {
                old.topics.insert(path.clone(), spec.clone());
            }
        }
        old
    }

    /// Notes what is used after `new` was applied: pipelines whose change was refused run on as they were.
    fn used(&mut self, mut new: HostSpec, applied: &Applied) {
        self.refused = !applied.refused.is_empty();
        let mut all = watched(&self.file, &new);
        for pipeline in &mut new.pipelines {
            let refused = applied.refused.iter().any(|(name, _)| *name == pipeline.name);
            if refused && let Some(old) = self.spec.pipelines.iter().find(|old| old.name == pipeline.name) {
                pipeline.clone_from(old);
            }
        }
        all.extend(watched(&self.file, &new));
        self.watch(all);
        self.spec = new;
    }

    fn watch(&mut self, files: BTreeSet<PathBuf>) {
        files.difference(&self.watched).for_each(|path| self.watcher.add(path.clone()));
        self.watched.difference(&files).for_each(|path| self.watcher.remove(path));
        self.watched = files;
    }

    async fn drain(mut self) -> anyhow::Result<()> {
        self.phase.send_replace(Phase::Draining);
        self.engine.drain(self.spec.grace)?;
        let drained = self.running.await.context("a defect of the engine")?;
        self.cancel.cancel();
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a defect of the host")??;
            }
            anyhow::Ok(())
        };
        // The API ends by itself once its own grace is over.
        match tokio::time::timeout(http::Limits::default().grace + API_LATE, ended).await {
            Ok(ended) => ended?,
            Err(_) => tracing::warn!("the API did not end in time and is cut off"),
        }
        let brokers = self.brokers.all();
        let closed = join_all(brokers.iter().map(|broker| broker.close()));
        if tokio::time::timeout(CLOSE_WAIT_MAX, closed).await.is_err() {
            tracing::warn!("a broker was not closed in time; what it holds for this host runs out by itself");
        }
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

fn told(done: anyhow::Result<()>) {
    if let Err(error) = done {
        tracing::error!("the change is not used, the host goes on as it was: {error:#}");
    }
}

fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

fn wish(spec: &HostSpec) -> Wish {
    Wish { pipelines: spec.pipelines.clone(), topics: spec.topics.clone() }
}

/// The files whose change means something to the host.
fn watched(file: &Path, spec: &HostSpec) -> BTreeSet<PathBuf> {
    let plugins = spec.pipelines.iter().flat_map(|pipeline| &pipeline.stages).map(|stage| match &stage.plugin {
        PluginRef::File(path) => path.clone(),
    });
    plugins.chain([absolute(file)]).collect()
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
    // What was refused, and why, the engine has told.
}

/// Makes sure that the topics of the configuration are as it says, also those that no pipeline reads.
async fn keep_topics(brokers: Brokers, mut topics: watch::Receiver<BTreeMap<TopicPath, TopicSpec>>) {
    let mut told = BTreeMap::new();
    loop {
        let wanted = topics.borrow_and_update().clone();
        let mut missing = false;
        for (path, spec) in &wanted {
            let ensured = match brokers.get(&path.broker) {
                Ok(broker) => broker.ensure_topic(&path.topic, spec).await.map(drop),
                Err(error) => Err(error),
            };
            match ensured.map_err(|error| error.to_string()) {
                Ok(()) => drop(told.remove(path)),
                Err(reason) => {
                    missing = true;
                    if told.get(path) != Some(&reason) {
                        tracing::warn!(topic = %path, %reason, "the topic cannot be made yet; it is tried again");
                        told.insert(path.clone(), reason);
                    }
                }
            }
        }
        tokio::select! {
            changed = topics.changed() => if changed.is_err() { return },
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on a broker in memory, and its file.
    async fn started(dir: &Path, text: &str) -> (Host, PathBuf) {
        let file = dir.join("synapse.toml");
        write(&file, text);
        (Host::start(&file).await.unwrap(), file)
    }

    fn write(file: &Path, text: &str) {
        let head = "[server]\nlisten = \"127.0.0.1:0\"\n[brokers.m]\nkind = \"memory\"\n";
        std::fs::write(file, format!("{head}{text}")).unwrap();
    }

    fn partitions(host: &Host, topic: &str) -> u32 {
        host.topics.borrow()[&topic.parse::<TopicPath>().unwrap()].partitions.get()
    }

    #[tokio::test]
    async fn a_reload_uses_what_can_be_used_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (mut host, file) = started(dir.path(), "[topics.\"m/old\"]\npartitions = 2\n").await;
        let changed = "[topics.\"m/old\"]\npartitions = 4\nretention = { events = 7 }\n\
                       [topics.\"m/new\"]\npartitions = 3\n";
        write(&file, changed);
        host.reload().await.unwrap();
        assert_eq!((partitions(&host, "m/old"), partitions(&host, "m/new")), (2, 3));
        assert_eq!(host.topics.borrow()[&"m/old".parse().unwrap()].retention.events, Some(7));
        assert_eq!(host.spec.topics, *host.topics.borrow());

        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("[server]", "[server]\ngrace = \"3s\"")).unwrap();
        host.reload().await.unwrap();
        assert_eq!(host.spec.grace, Duration::from_secs(3));

        std::fs::write(&file, text.replace("[server]", "[server]\ngrace = \"4s\"\ndefault-broker = \"m\"")).unwrap();
        let refused = host.reload().await.unwrap_err().to_string();
        assert!(refused.starts_with("`server.default-broker` cannot change while the host runs"), "{refused}");
        assert_eq!(host.spec.grace, Duration::from_secs(3));
        host.drain().await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_change_of_a_pipeline_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let plain = "[[pipelines]]\nname = \"p\"\nfrom = \"m/in\"\n";
        let (mut host, file) = started(dir.path(), plain).await;
        let before = host.spec.pipelines.clone();
        write(&file, &format!("{plain}stages = [{{ plugin = \"./missing.wasm\" }}]\n"));
        for _ in 0..2 {
            host.reload().await.unwrap();
            assert!(host.refused);
            assert_eq!(host.spec.pipelines, before);
            assert!(host.watched.iter().any(|path| path.ends_with("missing.wasm")), "{:?}", host.watched);
        }
        write(&file, plain);
        host.changed(Changed { path: dir.path().join("missing.wasm") }).await;
        assert!(!host.refused);
        assert_eq!(host.watched, BTreeSet::from([absolute(&file)]));
        host.drain().await.unwrap();
    }
}
