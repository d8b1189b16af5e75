//! How a world is set up: brokers, hosts, and the pipeline they work on.

use std::any::Any;
use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use synapse_test_servers::kafka::Kafka;

use super::World;
use crate::bus::Endpoint;
use crate::checker::{Kind, Receipt};
use crate::plugins::component;
use crate::redis::{RedisCluster, RedisServer};

pub(super) type Fault = Box<dyn FnMut(&mut World) -> Result<()>>;

/// How a world is set up.
pub struct Scene {
    pub(super) source: Option<Endpoint>,
    pub(super) sink: Option<Endpoint>,
    pub(super) partitions: u32,
    pub(super) hosts: usize,
    /// As written in the configuration, if it is not the default.
    pub(super) lease: Option<&'static str>,
    server: String,
    brokers: String,
    /// The brokers of source and sink, as the configuration names them.
    route: [&'static str; 2],
    /// Ends the names of topics and pipeline where other cases use the same broker.
    pub(super) tag: String,
    pipeline: String,
    stage: String,
    pub(super) environment: Vec<(String, OsString)>,
    pub(super) kind: fn(&Receipt) -> Kind,
    /// What has to live as long as the world.
    pub(super) kept: Vec<Box<dyn Any>>,
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
            lease: None,
            server: String::new(),
            brokers: String::new(),
            route: ["local", "local"],
            tag: String::new(),
            pipeline: String::new(),
            stage: format!("plugin = {filter:?}\nconfig = {{ type = \"load\" }}\n"),
            environment: Vec::new(),
            kind: |_| Kind::Plain,
            kept: Vec::new(),
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

    /// From one cluster of Redis to itself, with four partitions.
    ///
    /// # Errors
    /// If it has no address.
    pub fn redis_cluster(cluster: &RedisCluster) -> Result<Self> {
        let client = cluster.client()?;
        Ok(Self {
            source: Some(Endpoint::RedisCluster(client.clone())),
            sink: Some(Endpoint::RedisCluster(client)),
            partitions: 4,
            brokers: format!("[brokers.bus]\nkind = \"redis\"\nnodes = {:?}\n", cluster.urls()),
            route: ["bus", "bus"],
            ..Self::embedded()
        })
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

    /// The lease of the broker that was named last.
    pub fn lease(mut self, lease: &'static str) -> Self {
        self.lease = Some(lease);
        self.broker(&format!("lease = {lease:?}"))
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

    /// Keeps something, such as a server, until the end.
    pub fn keep(mut self, it: impl Any) -> Self {
        self.kept.push(Box::new(it));
        self
    }

    /// What goes wrong. Whatever it holds, such as a server, it keeps until the end.
    pub fn fault(mut self, fault: impl FnMut(&mut World) -> Result<()> + 'static) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    pub(super) fn take_fault(&mut self) -> Fault {
        self.fault.take().unwrap_or_else(|| Box::new(|_| Ok(())))
    }

    pub(super) fn configuration(&self) -> String {
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
