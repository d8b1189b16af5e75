//! What a fault happens in: hosts at work on one pipeline, a load on it, and a watch on its sink.

use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use synapse_test_servers::kafka::Kafka;

use super::Plan;
use super::watch::Watch;
use crate::PATIENCE;
use crate::bus::{Endpoint, Topic};
use crate::checker::{Kind, Receipt};
use crate::host::{Host, workspace};
use crate::load::{Load, Sent};
use crate::plugins::component;
use crate::random::Random;
use crate::redis::RedisServer;

/// Producers, keys of each, and events of a batch.
const PRODUCERS: usize = 2;
const KEYS: usize = 5;
const BATCH: usize = 10;

type Fault = Box<dyn FnMut(&mut World) -> Result<()>>;

/// How a world is set up.
pub struct Scene {
    source: Option<Endpoint>,
    sink: Option<Endpoint>,
    partitions: u32,
    hosts: usize,
    server: String,
    brokers: String,
    /// The brokers of source and sink, as the configuration names them.
    route: [&'static str; 2],
    /// Ends the names of topics and pipeline where other cases use the same broker.
    tag: String,
    pipeline: String,
    stage: String,
    environment: Vec<(String, OsString)>,
    kind: fn(&Receipt) -> Kind,
    fault: Option<Fault>,
}

impl Scene {
    /// From the embedded log to itself.
    pub fn embedded() -> Self {
        let filter = component("plugins/filter-match");
        Self {
            source: None,
            sink: None,
            partitions: 2,
            hosts: 1,
            server: String::new(),
            brokers: String::new(),
            route: ["local", "local"],
            tag: String::new(),
            pipeline: String::new(),
            stage: format!("plugin = {filter:?}\nconfig = {{ type = \"load\" }}\n"),
            environment: Vec::new(),
            kind: |_| Kind::Plain,
            fault: None,
        }
    }

    /// From one Redis to itself.
    ///
    /// # Errors
    /// If it has no address.
    pub fn redis(server: &RedisServer) -> Result<Self> {
        Ok(Self::redis_at(&server.url(), server.client()?))
    }

    /// From one Redis to itself, which hosts reach at `url`.
    pub fn redis_at(url: &str, client: redis::Client) -> Self {
        Self {
            source: Some(Endpoint::Redis(client.clone())),
            sink: Some(Endpoint::Redis(client)),
            partitions: 1,
            brokers: redis_broker("bus", url),
            route: ["bus", "bus"],
            ..Self::embedded()
        }
    }

    /// From one Kafka to itself, with four partitions.
    pub fn kafka(cluster: &Kafka) -> Self {
        let bootstrap = cluster.bootstrap();
        Self {
            source: Some(Endpoint::Kafka(bootstrap.clone())),
            sink: Some(Endpoint::Kafka(bootstrap.clone())),
            partitions: 4,
            brokers: kafka_broker("bus", &bootstrap),
            route: ["bus", "bus"],
            tag: tag(),
            ..Self::embedded()
        }
    }

    /// Leads to another Redis.
    ///
    /// # Errors
    /// If it has no address.
    pub fn to_redis(mut self, server: &RedisServer) -> Result<Self> {
        self.sink = Some(Endpoint::Redis(server.client()?));
        self.brokers += &redis_broker("other", &server.url());
        self.route[1] = "other";
        Ok(self)
    }

    /// Leads to a Kafka.
    pub fn to_kafka(mut self, cluster: &Kafka) -> Self {
        self.sink = Some(Endpoint::Kafka(cluster.bootstrap()));
        self.brokers += &kafka_broker("other", &cluster.bootstrap());
        self.route[1] = "other";
        self.tag = tag();
        self
    }

    /// Leads to the embedded log.
    pub fn to_embedded(mut self) -> Self {
        self.sink = None;
        self.route[1] = "local";
        self
    }

    /// So many partitions of each topic.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// So many hosts.
    pub fn hosts(mut self, hosts: usize) -> Self {
        self.hosts = hosts;
        self
    }

    /// Further lines under the broker that was named last.
    pub fn broker(mut self, lines: &str) -> Self {
        self.brokers += &format!("{lines}\n");
        self
    }

    /// Further lines of the pipeline.
    pub fn pipeline(mut self, lines: &str) -> Self {
        self.pipeline += &format!("{lines}\n");
        self
    }

    /// Further lines under `[server]`.
    pub fn server(mut self, lines: &str) -> Self {
        self.server += &format!("{lines}\n");
        self
    }

    /// A variable of the hosts' environment.
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Other plugins: the lines of the stage, and what each event asks of it.
    pub fn stage(mut self, lines: String, kind: fn(&Receipt) -> Kind) -> Self {
        (self.stage, self.kind) = (lines, kind);
        self
    }

    /// What goes wrong. It holds what it needs, such as servers, and keeps it until the end.
    pub fn fault(mut self, fault: impl FnMut(&mut World) -> Result<()> + 'static) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    pub(super) fn take_fault(&mut self) -> Fault {
        self.fault.take().unwrap_or_else(|| Box::new(|_| Ok(())))
    }

    fn configuration(&self) -> String {
        let Self { server, brokers, partitions, pipeline, stage, route: [source, sink], tag, .. } = self;
        let [from, to, dead] =
            [(source, "in"), (sink, "out"), (sink, "dead")].map(|(at, name)| format!("{at}/{name}{tag}"));
        format!(
            "{server}\n{brokers}\n\
             [topics.{from:?}]\npartitions = {partitions}\n[topics.{to:?}]\npartitions = {partitions}\n\
             [topics.{dead:?}]\npartitions = {partitions}\n\
             [[pipelines]]\nname = \"p{tag}\"\nfrom = {from:?}\nto = {to:?}\ndead-letters = {dead:?}\n{pipeline}\n\
             [[pipelines.stages]]\nname = \"stage\"\n{stage}\n"
        )
    }
}

/// One that no other case of this process has.
fn tag() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(1);
    format!("-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn kafka_broker(name: &str, bootstrap: &str) -> String {
    format!("[brokers.{name}]\nkind = \"kafka\"\nbootstrap = {bootstrap:?}\n")
}

fn redis_broker(name: &str, url: &str) -> String {
    format!("[brokers.{name}]\nkind = \"redis\"\nurl = {url:?}\n")
}

/// A world in which a fault happens.
pub struct World {
    /// The hosts, all with the same configuration.
    pub hosts: Vec<Host>,
    /// Decides what the seed decides.
    pub random: Random,
    /// How much is done.
    pub plan: Plan,
    /// What a case has to tell beyond what is counted for all.
    pub notes: Vec<String>,
    load: Option<Load>,
    watch: Watch,
    mended: Option<Instant>,
    source: Topic,
    sink: Topic,
    dead_letters: Topic,
    kind: fn(&Receipt) -> Kind,
}

impl World {
    pub(super) fn start(scene: Scene, plan: Plan, random: Random) -> Result<Self> {
        let configuration = scene.configuration();
        let mut hosts = Vec::new();
        for _ in 0..scene.hosts {
            let mut host = Host::prepare(&configuration)?;
            scene.environment.iter().for_each(|(name, value)| host.set_variable(name, value.clone()));
            host.resume()?;
            hosts.push(host);
        }
        let own = Endpoint::Embedded(hosts.first().context("a world has a host")?.url());
        let (source, sink) = (scene.source.unwrap_or_else(|| own.clone()), scene.sink.unwrap_or(own));
        let topic = |at: &Endpoint, name: &str| {
            let name = format!("{name}{}", scene.tag);
            Topic { at: at.clone(), name, partitions: scene.partitions }
        };
        let (source, sink, dead_letters) = (topic(&source, "in"), topic(&sink, "out"), topic(&sink, "dead"));
        let senders = (0..PRODUCERS).map(|_| source.sender(scene.kind)).collect();
        Ok(Self {
            load: Some(Load::at_rate(senders, KEYS, BATCH, plan.events_per_second)),
            watch: Watch::start(vec![sink.reader(), dead_letters.reader()]),
            mended: None,
            notes: Vec::new(),
            kind: scene.kind,
            hosts,
            random,
            plan,
            source,
            sink,
            dead_letters,
        })
    }

    /// How often a fault is repeated that is over in a moment.
    pub fn rounds(&self) -> usize {
        (self.plan.events / 400).clamp(3, 25)
    }

    /// How many events were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.load.as_ref().map_or(0, Load::acknowledged)
    }

    /// Waits until so many more events were acknowledged.
    ///
    /// # Errors
    /// If they are not within patience.
    pub fn let_pass(&self, events: usize) -> Result<()> {
        let load = self.load.as_ref().context("the load has ended")?;
        let patience = PATIENCE + Duration::from_secs((events / self.plan.events_per_second) as u64);
        ensure!(load.wait_for_more(events, patience), "{events} more events are not acknowledged within {patience:?}");
        Ok(())
    }

    /// Waits for a time that the seed decides, within this range of milliseconds.
    pub fn wait(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(self.random.millis(millis));
    }

    /// Waits until something new is in the sink.
    ///
    /// # Errors
    /// If there is not within patience.
    pub fn wait_for_output(&self) -> Result<()> {
        let (before, begun) = (self.watch.number(), Instant::now());
        while self.watch.number() == before {
            ensure!(begun.elapsed() < PATIENCE, "nothing new arrives in the sink");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The fault is over now. Without a word it is once it returns.
    pub fn mended(&mut self) {
        self.mended = Some(Instant::now());
    }

    /// The host of a world that has one.
    ///
    /// # Errors
    /// If there is none.
    pub fn host(&mut self) -> Result<&mut Host> {
        self.hosts.first_mut().context("a world has a host")
    }

    /// How often lanes failed and were opened again, on the hosts that run, since these were started.
    ///
    /// # Errors
    /// If one of them does not answer.
    pub fn retries(&self) -> Result<usize> {
        self.counted("synapse_lane_retries_total")
    }

    pub(super) fn mended_at(&self) -> Instant {
        self.mended.unwrap_or_else(Instant::now)
    }

    pub(super) fn stop_load(&mut self) -> Sent {
        self.load.take().map(Load::stop).unwrap_or_default()
    }

    pub(super) fn arrivals(&self) -> &Watch {
        &self.watch
    }

    pub(super) fn kind(&self) -> fn(&Receipt) -> Kind {
        self.kind
    }

    /// What the pipeline reads.
    pub fn source(&self) -> &Topic {
        &self.source
    }

    /// What it writes.
    pub fn sink(&self) -> &Topic {
        &self.sink
    }

    /// What went wrong.
    pub fn dead_letters(&self) -> &Topic {
        &self.dead_letters
    }

    /// How many events the hosts counted as trimmed before they were read.
    pub(super) fn trimmed(&self) -> Result<usize> {
        self.counted("synapse_events_lost_to_trim_total")
    }

    fn counted(&self, metric: &str) -> Result<usize> {
        let running = self.hosts.iter().filter(|host| host.is_running());
        Ok(running.map(|host| host.metric(metric, "")).sum::<Result<f64>>()? as usize)
    }

    /// Ends the hosts the way operators do: each must drain.
    pub(super) fn end(&mut self) -> Result<()> {
        for host in self.hosts.iter_mut().filter(|host| host.is_running()) {
            let code = host.terminate()?;
            ensure!(code == 0, "a host ended with exit code {code} on SIGTERM");
        }
        Ok(())
    }

    pub(super) fn log_tails(&self) -> String {
        self.hosts.iter().map(Host::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Keeps the logs of the hosts beside what was built.
    pub(super) fn keep_logs(&self, name: &str) -> Result<()> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), Into::into);
        let kept = target.join("chaos");
        std::fs::create_dir_all(&kept)?;
        for (number, host) in self.hosts.iter().enumerate() {
            std::fs::write(kept.join(format!("{name}-host-{number}.log")), host.log())?;
        }
        Ok(())
    }
}
