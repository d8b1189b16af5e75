//! An engine on the memory broker, stages in plain Rust, and a broker that fails by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use synapse_brokers::memory::MemoryBroker;
use synapse_core::broker::{
    BatchLimit, Boundary, BrokerErrorKind, Brokers, LaneKey, LaneSpec, OpenLane, Reading, TopicInfo,
};
use synapse_core::event::EventRef;
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::*;
use synapse_core::stage::*;
use synapse_core::topic::{Label, TopicPartition, TopicPath};
use synapse_core::{
    Batch, Broker, BrokerError, BrokerName, Committer, Effects, Event, Offset, Output, Source, SourceBatch, Timestamp,
    TopicName,
};
use synapse_engine::{Applied, Engine, Handle, Metrics, Options, PipelineStatus, Wish};
use tokio::sync::Notify;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn events(count: usize, keys: usize) -> Vec<Event> {
    let event = |n: usize| Event {
        id: n.to_string(),
        source: "/tests".to_owned(),
        kind: "number".to_owned(),
        partition_key: Some(format!("k{}", n % keys)),
        data: format!("payload of {n}").into_bytes(),
        ..Event::default()
    };
    (0..count).map(event).collect()
}

pub(crate) fn ids(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.id.clone()).collect()
}

pub(crate) fn names(labels: &[Label]) -> Vec<&str> {
    labels.iter().map(Label::as_str).collect()
}

fn local() -> BrokerName {
    "local".parse().unwrap()
}

fn path(topic: &str) -> TopicPath {
    TopicPath::parse(topic, &local()).unwrap()
}

pub(crate) fn sink(topic: &str) -> SinkSpec {
    SinkSpec { topic: path(topic), encoding: Encoding::default() }
}

pub(crate) fn route(pattern: &str) -> RoutePattern {
    RoutePattern { broker: local(), topic: pattern.parse().unwrap() }
}

pub(crate) fn stage(plugin: &str) -> StageSpec {
    StageSpec {
        name: plugin.parse().unwrap(),
        plugin: PluginRef::File(PathBuf::from(plugin)),
        config: serde_json::json!({}),
        grants: Vec::new(),
        routes: Vec::new(),
        limits: StageLimits::default(),
        on_error: OnError::default(),
        instance: InstanceMode::default(),
    }
}

pub(crate) fn pipeline(name: &str, from: &str, to: &str, stages: impl IntoIterator<Item = StageSpec>) -> PipelineSpec {
    PipelineSpec {
        name: name.parse().unwrap(),
        tenant: "default".parse().unwrap(),
        from: vec![path(from)],
        to: vec![sink(to)],
        dead_letters: path(&format!("{from}.dead-letters")),
        read: ReadMode::default(),
        parallel: NonZeroUsize::MIN,
        start: Start::Earliest,
        stages: stages.into_iter().collect(),
    }
}

/// An engine at work.
pub(crate) struct Bench {
    pub(crate) handle: Handle,
    pub(crate) plugins: Arc<NativePlugins>,
    memory: MemoryBroker,
    watched: Arc<Watched>,
    engine: tokio::task::JoinHandle<synapse_engine::Drained>,
}

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::on(MemoryBroker::new(local())).await
    }

    pub(crate) async fn on(memory: MemoryBroker) -> Self {
        Self::with(memory, None).await
    }

    /// About one in `one_in` calls of the broker fails; half of the commits that fail have happened all the same.
    pub(crate) async fn flaky(one_in: u64) -> Self {
        Self::with(MemoryBroker::new(local()), Some(one_in)).await
    }

    async fn with(memory: MemoryBroker, one_in: Option<u64>) -> Self {
        let watched = Arc::new(Watched {
            memory: memory.clone(),
            polls: Arc::default(),
            faults: Arc::default(),
            dice: Arc::new(Dice { one_in, state: AtomicU64::new(1) }),
        });
        let plugins = Arc::new(NativePlugins::default());
        let broker: Arc<dyn Broker> = Arc::clone(&watched) as _;
        let (engine, handle) = Engine::new(Options {
            brokers: Brokers::from_iter([broker]),
            plugins: Arc::clone(&plugins) as _,
            default_broker: local(),
            guests: tokio::runtime::Handle::current(),
            clock: || Timestamp::from_micros(0),
            metrics: Metrics::register(&prometheus::Registry::new()),
            limit: BatchLimit { events_max: if one_in.is_some() { 64 } else { 512 }, ..BatchLimit::default() },
        });
        Self { handle, plugins, memory, watched, engine: tokio::spawn(engine.run()) }
    }

    pub(crate) async fn apply(&self, specs: impl IntoIterator<Item = PipelineSpec>) -> Applied {
        self.handle.apply(Wish { pipelines: specs.into_iter().collect(), ..Wish::default() }).await.unwrap()
    }

    pub(crate) async fn drain(self) -> MemoryBroker {
        self.handle.drain(PATIENCE).unwrap();
        assert_eq!(self.engine.await.unwrap(), synapse_engine::Drained::Whole);
        self.memory
    }

    pub(crate) async fn publish(&self, topic: &str, events: &[Event]) {
        let events = Arc::new(events.iter().collect::<Batch>());
        let output = Output { topic: path(topic), encoding: Encoding::default(), events };
        self.memory.publish(&output).await.unwrap();
    }

    pub(crate) async fn ensure(&self, topic: &str, spec: &TopicSpec) {
        self.memory.ensure_topic(&topic.parse().unwrap(), spec).await.unwrap();
    }

    /// The first `count` events of a topic's first partition, waiting for them.
    pub(crate) async fn read(&self, topic: &str, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let topic: TopicName = topic.parse().unwrap();
        self.memory.ensure_topic(&topic, &TopicSpec::default()).await.unwrap();
        let mut source = self.memory.read(&topic, 0, ReadFrom::Earliest).await.unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while events.len() < count {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            assert!(!left.is_zero(), "{topic} has only {} of {count} events; {:?}", events.len(), self.handle.status());
            let batch = source.poll(BatchLimit::default(), left).await.unwrap();
            events.extend(batch.events.events().map(EventRef::to_event));
        }
        events
    }

    /// Waits for the engine's end.
    pub(crate) async fn ended(self) -> synapse_engine::Drained {
        self.engine.await.unwrap()
    }

    /// How many events a topic has now.
    pub(crate) async fn count(&self, topic: &str) -> usize {
        let info = self.memory.topic(&topic.parse().unwrap()).await.unwrap();
        info.map_or(0, |info| info.partitions[0].events as usize)
    }

    /// What is there now.
    pub(crate) async fn read_all(&self, topic: &str) -> Vec<Event> {
        let mut source = self.memory.read(&topic.parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
        let mut events = Vec::new();
        loop {
            let batch = source.poll(BatchLimit::default(), Duration::ZERO).await.unwrap();
            if batch.is_empty() {
                return events;
            }
            events.extend(batch.events.events().map(EventRef::to_event));
        }
    }

    pub(crate) async fn boundaries(&self, pipeline: &str, topic: &str) -> Vec<Boundary> {
        let partition = TopicPartition { topic: path(topic), partition: 0 };
        self.memory.boundaries(&LaneKey { pipeline: pipeline.parse().unwrap(), partition }).await.unwrap()
    }

    pub(crate) async fn running(&self, pipeline: &str) {
        let running = |status: &PipelineStatus| {
            let health = |lane: &synapse_engine::LaneStatus| lane.health == synapse_engine::Health::Running;
            (!status.lanes.is_empty() && status.lanes.values().all(health)).then_some(())
        };
        self.wait_for(pipeline, running).await;
    }

    pub(crate) async fn wait_for<T>(&self, pipeline: &str, test: impl Fn(&PipelineStatus) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.handle.status().remove(&pipeline.parse::<Label>().unwrap()).expect("it was started").1;
            if let Some(value) = test(&status) {
                return value;
            }
            assert!(tokio::time::Instant::now() < deadline, "{pipeline}: {status:?}");
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn polls(&self) -> usize {
        self.watched.polls.load(Ordering::Relaxed)
    }

    pub(crate) fn faults(&self) -> usize {
        self.watched.faults.load(Ordering::Relaxed)
    }
}

struct Dice {
    one_in: Option<u64>,
    state: AtomicU64,
}

impl Dice {
    fn fails(&self) -> bool {
        let Some(one_in) = self.one_in else { return false };
        let mut hasher = DefaultHasher::new();
        self.state.fetch_add(1, Ordering::Relaxed).hash(&mut hasher);
        let draw = hasher.finish();
        draw.is_multiple_of(one_in)
    }
}

/// The memory broker, counted and now and then failing.
struct Watched {
    memory: MemoryBroker,
    polls: Arc<AtomicUsize>,
    faults: Arc<AtomicUsize>,
    dice: Arc<Dice>,
}

fn away(faults: &AtomicUsize) -> BrokerError {
    faults.fetch_add(1, Ordering::Relaxed);
    BrokerError { broker: local(), kind: BrokerErrorKind::Unavailable, message: "it is away".to_owned() }
}

#[async_trait]
impl Broker for Watched {
    fn name(&self) -> &BrokerName {
        self.memory.name()
    }

    fn commits_apart(&self) -> Option<&'static str> {
        self.memory.commits_apart()
    }

    async fn ensure_topic(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        self.memory.ensure_topic(topic, spec).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        self.memory.topics().await
    }

    async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        self.memory.topic(topic).await
    }

    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        self.memory.publish(output).await
    }

    async fn read(&self, topic: &TopicName, partition: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError> {
        if self.dice.fails() {
            return Err(away(&self.faults));
        }
        let source = self.memory.read(topic, partition, from).await?;
        let watched = WatchedSource {
            source,
            polls: Arc::clone(&self.polls),
            faults: Arc::clone(&self.faults),
            dice: Arc::clone(&self.dice),
        };
        Ok(Box::new(watched))
    }

    async fn join(&self, share: &Share) -> Result<Box<dyn Membership>, BrokerError> {
        self.memory.join(share).await
    }

    async fn places(&self, share: &Share) -> Result<Vec<LanePlace>, BrokerError> {
        self.memory.places(share).await
    }

    async fn open_lane(&self, lane: &LaneSpec) -> Result<OpenLane, BrokerError> {
        if self.dice.fails() {
            return Err(away(&self.faults));
        }
        let OpenLane { committer, reading, boundary } = self.memory.open_lane(lane).await?;
        assert!(matches!(reading, Reading::From(_)));
        let committer = WatchedCommitter { committer, faults: Arc::clone(&self.faults), dice: Arc::clone(&self.dice) };
        Ok(OpenLane { committer: Box::new(committer), reading, boundary })
    }

    async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        self.memory.boundaries(lane).await
    }
}

struct WatchedSource {
    source: Box<dyn Source>,
    polls: Arc<AtomicUsize>,
    faults: Arc<AtomicUsize>,
    dice: Arc<Dice>,
}

#[async_trait]
impl Source for WatchedSource {
    async fn poll(&mut self, limit: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        let batch = self.source.poll(limit, wait).await?;
        if self.dice.fails() {
            return Err(away(&self.faults));
        }
        self.polls.fetch_add(usize::from(!batch.is_empty()), Ordering::Relaxed);
        Ok(batch)
    }
}

struct WatchedCommitter {
    committer: Box<dyn Committer>,
    faults: Arc<AtomicUsize>,
    dice: Arc<Dice>,
}

#[async_trait]
impl Committer for WatchedCommitter {
    async fn commit(&mut self, effects: &Effects) -> Result<(), BrokerError> {
        if self.dice.fails() {
            return Err(away(&self.faults));
        }
        self.committer.commit(effects).await?;
        if self.dice.fails() {
            return Err(away(&self.faults));
        }
        Ok(())
    }
}

/// Plugins in plain Rust, by name; a name's version can be raised, spoilt and mended.
#[derive(Default)]
pub(crate) struct NativePlugins {
    versions: Mutex<BTreeMap<String, u32>>,
    spoilt: Mutex<BTreeMap<String, String>>,
    mended: Mutex<BTreeSet<String>>,
    /// Told when a stage that never ends has begun.
    busy: Arc<Notify>,
}

impl NativePlugins {
    pub(crate) fn next_version(&self, name: &str) {
        *self.versions.lock().unwrap().entry(name.to_owned()).or_insert(1) += 1;
    }

    pub(crate) fn spoil(&self, name: &str, why: &str) {
        self.spoilt.lock().unwrap().insert(name.to_owned(), why.to_owned());
    }

    pub(crate) async fn busy(&self) {
        self.busy.notified().await;
    }

    pub(crate) fn mend(&self, name: &str) {
        self.spoilt.lock().unwrap().remove(name);
        self.mended.lock().unwrap().insert(name.to_owned());
    }
}

pub(crate) fn digest(name: &str, version: u32) -> Digest {
    let mut bytes = [0; 32];
    bytes[0] = name.len() as u8;
    bytes[1] = name.as_bytes()[0];
    bytes[28..].copy_from_slice(&version.to_be_bytes());
    Digest(bytes)
}

#[async_trait]
impl PluginLoader for NativePlugins {
    async fn load(&self, plugin: &PluginRef) -> Result<Arc<dyn Plugin>, PluginError> {
        let PluginRef::File(path) = plugin;
        let name = path.to_str().unwrap().to_owned();
        if let Some(why) = self.spoilt.lock().unwrap().get(&name) {
            return Err(PluginError::new(PluginErrorKind::Unusable, why));
        }
        let version = self.versions.lock().unwrap().get(&name).copied().unwrap_or(1);
        let kind = match name.as_str() {
            "shout" | "stamp" | "repeat-by-id" | "repeat-nothing" => PluginKind::Transform,
            "by-remainder" => PluginKind::Router,
            _ => PluginKind::Filter,
        };
        let info = PluginInfo {
            digest: digest(&name, version),
            version: version.to_string(),
            summary: String::new(),
            config_schema: String::new(),
            kind,
            columnar: true,
            wants: Vec::new(),
            size_bytes: 0,
            name: name.clone(),
        };
        let mended = self.mended.lock().unwrap().contains(&name);
        Ok(Arc::new(NativePlugin { info, mended, busy: Arc::clone(&self.busy) }))
    }
}

struct NativePlugin {
    info: PluginInfo,
    mended: bool,
    busy: Arc<Notify>,
}

#[async_trait]
impl Plugin for NativePlugin {
    fn info(&self) -> &PluginInfo {
        &self.info
    }

    async fn stage(&self, _: &Label, _: &StageSpec) -> Result<Box<dyn Stage>, PluginError> {
        Ok(Box::new(NativeStage { info: self.info.clone(), mended: self.mended, busy: Arc::clone(&self.busy) }))
    }
}

struct NativeStage {
    info: PluginInfo,
    mended: bool,
    busy: Arc<Notify>,
}

impl NativeStage {
    fn answer(&self, batch: &Batch) -> Answer {
        let number = |event: EventRef<'_>| event.id().parse::<usize>().unwrap();
        match self.info.name.as_str() {
            "evens" => Answer::Keep(batch.events().map(|event| number(event).is_multiple_of(2)).collect()),
            "shout" => rewrite(batch, |event| vec![Event { data: event.data.to_ascii_uppercase(), ..event }]),
            "stamp" => rewrite(batch, |mut event| {
                event.attributes.push(("stamp".to_owned(), self.info.digest.to_string()));
                vec![event]
            }),
            "repeat-by-id" => rewrite(batch, |event| {
                let count = event.id.parse().unwrap();
                vec![Event { id: String::new(), ..event }; count]
            }),
            "repeat-nothing" => rewrite(batch, |_| vec![Event::default(); 100]),
            "by-remainder" => Answer::Route {
                topics: vec!["r-0".to_owned(), "local/r-1".to_owned(), "elsewhere".to_owned()],
                choice: batch.events().map(|event| Some(number(event) as u32 % 4).filter(|&rest| rest < 3)).collect(),
                choices: vec![vec![0], vec![0, 1], vec![2]],
            },
            _ => Answer::Keep(vec![true; batch.len()]),
        }
    }
}

fn rewrite(batch: &Batch, each: impl Fn(Event) -> Vec<Event>) -> Answer {
    let (mut out, mut parents) = (Batch::default(), Vec::new());
    for (row, event) in (0u32..).zip(batch.events()) {
        for event in each(event.to_event()) {
            out.push_event(&event).unwrap();
            parents.push(row);
        }
    }
    Answer::Rewrite { batch: out, parents }
}

#[async_trait]
impl Stage for NativeStage {
    fn info(&self) -> &PluginInfo {
        &self.info
    }

    async fn run(&mut self, batch: &Batch) -> Result<StageRun, PluginError> {
        if self.info.name == "never-ends" {
            self.busy.notify_one();
            std::future::pending::<()>().await;
        }
        if self.info.name == "slow-by-key" {
            // Workers finish in another order than they began.
            let first = batch.event(0).partition_key().unwrap_or_default().len() + batch.len() % 7;
            for _ in 0..first * 10 {
                tokio::task::yield_now().await;
            }
        }
        let fails = |event: EventRef<'_>| self.info.name == "fails-on-42" && !self.mended && event.id() == "42";
        let failures = (0u32..).zip(batch.events()).filter(|(_, event)| fails(*event)).map(|(row, _)| Failure {
            row,
            kind: FailureKind::Trap,
            reason: "forty-two".to_owned(),
        });
        Ok(StageRun { answer: self.answer(batch), failures: failures.collect(), usage: Usage::default() })
    }
}
