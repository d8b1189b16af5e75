//! A host on the memory broker with plugins in plain Rust, and an HTTP client that hides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use synapse::client::Client;
use synapse::http::{Api, Limits, Options, Phase, serve};
use synapse_brokers::memory::MemoryBroker;
use synapse_core::broker::{
    BatchLimit, Boundary, BrokerErrorKind, Brokers, LaneKey, LaneSpec, OpenLane, PartitionInfo, TopicInfo,
};
use synapse_core::event::EventRef;
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::*;
use synapse_core::stage::*;
use synapse_core::topic::{Label, TopicPath};
use synapse_core::{
    Batch, Broker, BrokerError, BrokerName, Event, Offset, Output, Source, SourceBatch, Timestamp, TopicName,
};
use synapse_engine::{Engine, Handle, Metrics, PipelineStatus, Wish};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn local() -> BrokerName {
    "local".parse().unwrap()
}

/// A host under test.
pub(crate) struct Host {
    pub(crate) memory: MemoryBroker,
    pub(crate) handle: Handle,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) address: SocketAddr,
    api: Api,
    ending: CancellationToken,
    served: JoinHandle<std::io::Result<()>>,
    pool: Pool<HttpConnector, Full<Bytes>>,
}

/// What a host may have beyond the defaults.
#[derive(Default)]
pub(crate) struct Extras {
    pub(crate) limits: Limits,
    pub(crate) brokers: Vec<Arc<dyn Broker>>,
    pub(crate) topics: BTreeMap<TopicPath, TopicSpec>,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::with(Extras::default()).await
    }

    pub(crate) async fn with(extras: Extras) -> Self {
        let memory = MemoryBroker::new(local());
        let brokers: Brokers = extras.brokers.into_iter().collect();
        brokers.insert(Arc::new(memory.clone()));
        let registry = prometheus::Registry::new();
        let (engine, handle) = Engine::new(synapse_engine::Options {
            brokers: brokers.clone(),
            plugins: Arc::new(Plugins),
            default_broker: local(),
            guests: tokio::runtime::Handle::current(),
            clock: || Timestamp::from_micros(0),
            metrics: Metrics::register(&registry),
            limit: BatchLimit::default(),
        });
        tokio::spawn(engine.run());
        let (phase, phase_now) = watch::channel(Phase::Serving);
        let api = Api::new(Options {
            brokers,
            topics: watch::channel(extras.topics).1,
            default_broker: local(),
            host_id: "one".to_owned(),
            engine: handle.clone(),
            registry,
            phase: phase_now,
            limits: extras.limits,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ending = CancellationToken::new();
        let served = tokio::spawn(serve(listener, api.clone(), ending.clone()));
        let pool = Pool::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { memory, handle, phase, address, api, ending, served, pool }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.url(), None).unwrap()
    }

    /// Tells the host to end.
    pub(crate) fn end(&self) {
        self.ending.cancel();
    }

    /// Ends the host's HTTP side and waits for that.
    pub(crate) async fn ended(&mut self) {
        self.end();
        tokio::time::timeout(PATIENCE, &mut self.served).await.expect("it ends in time").unwrap().unwrap();
    }

    /// Serves again, at the same address.
    pub(crate) async fn serve_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.ending = CancellationToken::new();
        self.served = tokio::spawn(serve(listener, self.api.clone(), self.ending.clone()));
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        tokio::time::timeout(PATIENCE, self.pool.request(request)).await.expect("it answers").unwrap()
    }

    /// Asks with a method, a path, headers and a body.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Full::new(body.into())).unwrap()).await;
        Answer::of(response).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, topic: &str, media: &str, body: impl Into<Bytes>) -> Answer {
        self.ask("POST", &format!("/v1/topics/{topic}/events"), &[("content-type", media)], body).await
    }

    pub(crate) async fn ensure(&self, topic: &str, partitions: u32) {
        let spec = TopicSpec { partitions: NonZeroU32::new(partitions).unwrap(), ..TopicSpec::default() };
        self.memory.ensure_topic(&topic.parse().unwrap(), &spec).await.unwrap();
    }

    pub(crate) async fn publish(&self, topic: &str, events: &[Event]) {
        let topic = TopicPath { broker: local(), topic: topic.parse().unwrap() };
        let events: Arc<Batch> = Arc::new(events.iter().collect());
        self.memory.publish(&Output { topic, encoding: Encoding::default(), events }).await.unwrap();
    }

    /// What a topic's first partition holds.
    pub(crate) async fn stored(&self, topic: &str) -> Vec<Event> {
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

    /// Waits until a topic's first partition holds so many events.
    pub(crate) async fn stored_at_least(&self, topic: &str, count: usize) -> Vec<Event> {
        let mut source = self.memory.read(&topic.parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
        let mut events = Vec::new();
        while events.len() < count {
            let batch = source.poll(BatchLimit::default(), PATIENCE).await.unwrap();
            assert!(!batch.is_empty(), "only {} of {count} events", events.len());
            events.extend(batch.events.events().map(EventRef::to_event));
        }
        events
    }

    /// Runs pipelines and waits until the named one is as it should be.
    pub(crate) async fn apply(&self, specs: Vec<PipelineSpec>) {
        self.handle.apply(Wish { pipelines: specs, ..Wish::default() }).await.unwrap();
    }

    pub(crate) async fn pipeline_until(&self, name: &str, test: impl Fn(&PipelineStatus) -> bool) {
        let name: Label = name.parse().unwrap();
        let all = async {
            while !test(&self.handle.status()[&name].1) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the pipeline comes to be as it should");
    }
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("the answer ends").unwrap().to_bytes();
        Self { status: head.status, headers: head.headers, body }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The answer's JSON, which is a success.
    pub(crate) fn ok(&self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.text());
        self.json()
    }

    /// The ids of a page's events.
    pub(crate) fn ids(&self) -> Vec<String> {
        ids(self.ok()["events"].as_array().unwrap())
    }

    /// The objects of NDJSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        assert!(self.status.is_success(), "{} {}", self.status, self.text());
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub(crate) fn ids<'e>(events: impl IntoIterator<Item = &'e Value>) -> Vec<String> {
    events.into_iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// An event with an id, and that id as its key.
pub(crate) fn event(id: usize) -> Event {
    let id = id.to_string();
    Event {
        source: "/tests".to_owned(),
        kind: "number".to_owned(),
        partition_key: Some(id.clone()),
        data: format!("{{\"n\":{id}}}").into_bytes(),
        id,
        ..Event::default()
    }
}

pub(crate) fn events(ids: std::ops::Range<usize>) -> Vec<Event> {
    ids.map(event).collect()
}

pub(crate) fn line(id: impl std::fmt::Display) -> String {
    format!(r#"{{"specversion":"1.0","id":"{id}","source":"/tests","type":"number","data":{{"n":1}}}}"#)
}

pub(crate) fn numbers(ids: std::ops::Range<usize>) -> Vec<String> {
    ids.map(|id| id.to_string()).collect()
}

pub(crate) fn pipeline(name: &str, from: &str, to: &str, plugin: &str) -> PipelineSpec {
    let path = |topic: &str| TopicPath::parse(topic, &local()).unwrap();
    let stage = StageSpec {
        name: "only".parse().unwrap(),
        plugin: PluginRef::File(PathBuf::from(plugin)),
        config: serde_json::json!({}),
        grants: Vec::new(),
        routes: Vec::new(),
        limits: StageLimits::default(),
        on_error: OnError::default(),
        instance: InstanceMode::default(),
    };
    PipelineSpec {
        name: name.parse().unwrap(),
        tenant: "default".parse().unwrap(),
        from: vec![path(from)],
        to: vec![SinkSpec { topic: path(to), encoding: Encoding::default() }],
        dead_letters: path(&format!("{from}.dead-letters")),
        read: ReadMode::default(),
        parallel: NonZeroUsize::MIN,
        start: Start::Earliest,
        stages: vec![stage],
    }
}

/// One plugin, `keep-all`, and none besides.
struct Plugins;

#[async_trait]
impl PluginLoader for Plugins {
    async fn load(&self, plugin: &PluginRef) -> Result<Arc<dyn Plugin>, PluginError> {
        let PluginRef::File(path) = plugin;
        if path.to_str() != Some("keep-all") {
            let message = format!("`{}` is no component", path.display());
            return Err(PluginError::new(PluginErrorKind::Unusable, message));
        }
        Ok(Arc::new(KeepAll(PluginInfo {
            name: "keep-all".to_owned(),
            version: "1.2.0".to_owned(),
            summary: String::new(),
            config_schema: String::new(),
            digest: Digest([7; 32]),
            kind: PluginKind::Filter,
            columnar: true,
            wants: Vec::new(),
            size_bytes: 0,
        })))
    }
}

#[derive(Clone)]
struct KeepAll(PluginInfo);

#[async_trait]
impl Plugin for KeepAll {
    fn info(&self) -> &PluginInfo {
        &self.0
    }

    async fn stage(&self, _: &Label, _: &StageSpec) -> Result<Box<dyn Stage>, PluginError> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Stage for KeepAll {
    fn info(&self) -> &PluginInfo {
        &self.0
    }

    async fn run(&mut self, batch: &Batch) -> Result<StageRun, PluginError> {
        let answer = synapse_core::stage::Answer::Keep(vec![true; batch.len()]);
        Ok(StageRun { answer, failures: Vec::new(), usage: Usage::default() })
    }
}

/// A broker that fails in one way, or in none: then it has one topic, `mixed`, with an event, an entry that is none,
/// and entries that were trimmed before anyone read them.
pub(crate) struct Odd {
    pub(crate) name: BrokerName,
    pub(crate) fails: Option<BrokerErrorKind>,
    held: Option<Arc<Held>>,
}

/// Holds publishing back.
#[derive(Default)]
pub(crate) struct Held {
    /// Told when it begins.
    pub(crate) begun: Notify,
    /// Lets it end.
    pub(crate) pass: Notify,
}

impl Odd {
    pub(crate) fn broker(name: &str, fails: Option<BrokerErrorKind>) -> Arc<dyn Broker> {
        Arc::new(Self { name: name.parse().unwrap(), fails, held: None })
    }

    pub(crate) fn slow(name: &str) -> (Arc<dyn Broker>, Arc<Held>) {
        let held = Arc::<Held>::default();
        (Arc::new(Self { name: name.parse().unwrap(), fails: None, held: Some(Arc::clone(&held)) }), held)
    }

    fn answer<T>(&self, value: T) -> Result<T, BrokerError> {
        match self.fails {
            None => Ok(value),
            Some(kind) => Err(BrokerError { broker: self.name.clone(), kind, message: "it says no".to_owned() }),
        }
    }

    fn info(&self, name: &TopicName) -> TopicInfo {
        let [earliest, latest] = [3, 5].map(|number| Some(Offset::Number(number)));
        let partition = PartitionInfo { earliest, latest, events: 3, bytes: None };
        TopicInfo { name: name.clone(), partitions: vec![partition], at_most: true }
    }
}

#[async_trait]
impl Broker for Odd {
    fn name(&self) -> &BrokerName {
        &self.name
    }

    fn commits_apart(&self) -> Option<&'static str> {
        Some("it is odd")
    }

    async fn ensure_topic(&self, topic: &TopicName, _: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        self.answer(self.info(topic))
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        self.answer(vec![self.info(&"mixed".parse().unwrap())])
    }

    async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        self.answer(match topic.as_str() {
            "mixed" => Some(self.info(topic)),
            "garbage" => {
                let [earliest, latest] = [0, GARBAGE - 1].map(|number| Some(Offset::Number(number)));
                let partition = PartitionInfo { earliest, latest, events: GARBAGE, bytes: None };
                Some(TopicInfo { name: topic.clone(), partitions: vec![partition], at_most: false })
            }
            _ => None,
        })
    }

    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        if let Some(held) = &self.held {
            held.begun.notify_one();
            held.pass.notified().await;
        }
        self.answer(vec![(0, Offset::Number(6)); output.events.len()])
    }

    async fn read(&self, topic: &TopicName, _: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError> {
        if topic.as_str() == "garbage" {
            let next = if let ReadFrom::After(Offset::Number(number)) = from { number + 1 } else { 0 };
            return self.answer(Box::new(GarbageSource { next }));
        }
        self.answer(Box::new(OddSource { read: false }))
    }

    async fn join(&self, _: &Share) -> Result<Box<dyn Membership>, BrokerError> {
        unreachable!("no pipeline reads it")
    }

    async fn places(&self, _: &Share) -> Result<Vec<LanePlace>, BrokerError> {
        unreachable!("no pipeline reads it")
    }

    async fn open_lane(&self, _: &LaneSpec) -> Result<OpenLane, BrokerError> {
        unreachable!("no pipeline reads it")
    }

    async fn boundaries(&self, _: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        self.answer(Vec::new())
    }

    fn away(&self) -> Option<String> {
        (self.fails == Some(BrokerErrorKind::Unreachable)).then(|| "nobody is there".to_owned())
    }

    async fn health(&self) -> Result<(), BrokerError> {
        self.answer(())
    }
}

/// How many entries the topic `garbage` has, none of them an event.
pub(crate) const GARBAGE: u64 = 2_500;

struct GarbageSource {
    next: u64,
}

#[async_trait]
impl Source for GarbageSource {
    async fn poll(&mut self, _: BatchLimit, _: Duration) -> Result<SourceBatch, BrokerError> {
        let numbers = self.next..GARBAGE.min(self.next + 400);
        self.next = numbers.end;
        let undecodable = numbers.map(|number| synapse_core::broker::Undecodable {
            offset: Offset::Number(number),
            reason: "not JSON".to_owned(),
            bytes: b"{".to_vec(),
        });
        Ok(SourceBatch { undecodable: undecodable.collect(), ..SourceBatch::default() })
    }
}

struct OddSource {
    read: bool,
}

#[async_trait]
impl Source for OddSource {
    async fn poll(&mut self, _: BatchLimit, wait: Duration) -> Result<SourceBatch, BrokerError> {
        if std::mem::replace(&mut self.read, true) {
            tokio::time::sleep(wait).await;
            return Ok(SourceBatch::default());
        }
        let undecodable = synapse_core::broker::Undecodable {
            offset: Offset::Number(5),
            reason: "not JSON".to_owned(),
            bytes: b"{".to_vec(),
        };
        Ok(SourceBatch {
            events: Arc::new([&event(4)].into_iter().collect()),
            offsets: vec![Offset::Number(4)],
            undecodable: vec![undecodable],
            expired: Vec::new(),
            lost_to_trim: 3,
        })
    }
}

/// Server-sent events, as they come.
pub(crate) struct Stream {
    body: Incoming,
    arrived: Vec<u8>,
}

/// One of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: String,
}

impl Stream {
    pub(crate) async fn open(host: &Host, path: &str, last_event_id: Option<&str>) -> Self {
        let mut request = Request::get(format!("{}{path}", host.url())).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = host.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), arrived: Vec::new() }
    }

    /// The next one; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some(end) = self.arrived.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.arrived.drain(..end + 2).collect();
                let mut sent = Sent::default();
                for line in String::from_utf8(block).unwrap().lines() {
                    match line.split_once(": ") {
                        Some(("event", name)) => sent.name = name.to_owned(),
                        Some(("id", id)) => sent.id = Some(id.to_owned()),
                        Some(("data", data)) => sent.data = data.to_owned(),
                        _ => {}
                    }
                }
                return Some(sent);
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("the stream goes on");
            self.arrived.extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }

    /// The next event of the topic.
    pub(crate) async fn event(&mut self) -> (String, Value) {
        loop {
            let sent = self.next().await.expect("the stream goes on");
            if !sent.data.is_empty() {
                assert_eq!(sent.name, "");
                return (sent.id.unwrap(), serde_json::from_str(&sent.data).unwrap());
            }
        }
    }
}

/// What a command prints.
#[derive(Clone, Default)]
pub(crate) struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// No two of them are the same.
pub(crate) fn assert_distinct(ids: &[String]) {
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}
