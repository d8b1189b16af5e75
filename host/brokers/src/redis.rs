//! The Redis Streams broker: topics are streams, lanes are consumer groups, a commit is one transaction.
//!
//! Stream data moves over sockets of its own, decoded from the read buffer into the columns and encoded from them;
//! everything rare goes through the redis crate. What is durable here is what Redis makes durable: with
//! `appendfsync always` what was acknowledged survives a power loss, with `everysec` up to about a second of it may not,
//! and a failover may lose what the replica had not got yet.
//!
//! In a cluster, a lane's transaction writes what lies in the slot of its stream; outputs in other slots are written right
//! before it, so they may come again after a crash. No TLS. This module must not know the engine or other brokers.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use synapse_core::broker::{Boundary, BrokerErrorKind, LaneKey, LaneSpec, OpenLane, TopicInfo};
use synapse_core::share::{LanePlace, Membership, Share};
use synapse_core::spec::{ReadFrom, TopicSpec};
use synapse_core::{Broker, BrokerError, BrokerName, Offset, Output, Source, TopicName, TopicPath};
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, system_clock};
use control::Control;
use members::Member;
use node::Node;
use nodes::Nodes;
use publish::Publisher;
use resp::EntryId;
use retention::Retainer;
use stream::StreamSource;
use topics::{Layout, Topics};

mod command;
mod control;
mod group;
mod growth;
mod lane;
mod members;
mod node;
mod nodes;
mod page;
mod places;
mod publish;
mod resp;
mod retention;
mod stream;
mod topics;
mod wire;

/// Shortest lease: it is renewed three times in its life, each time within a round trip.
const LEASE_MIN: Duration = Duration::from_millis(100);

/// Why a lane's outputs and its cursor do not become durable in one step in a cluster.
pub const CLUSTER_COMMITS_APART: &str =
    "in a Redis Cluster outputs may lie in other slots than the position, and no transaction spans slots";

/// Where a Redis is.
#[derive(Clone)]
pub enum Servers {
    /// One node, at `redis://[user:password@]host:port/db` or `unix:///path.sock?db=0`.
    One(String),
    /// A cluster, of which these nodes are asked for the others: `redis://[user:password@]host:port`.
    Cluster(Vec<String>),
}

/// Where a Redis is and how it is used.
#[derive(Clone)]
pub struct RedisOptions {
    /// Where it is.
    pub servers: Servers,
    /// Names this host among all that share the Redis; it must stay the same over restarts, and two running processes
    /// must not share it. 1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`.
    pub host_id: String,
    /// How long a lane stays ours after we were last heard of; another host takes it over then.
    pub lease: Duration,
    /// How long a connection or an answer may take.
    pub timeout: Duration,
    /// What time it is, for entries that say when they expire.
    pub clock: Clock,
}

impl RedisOptions {
    /// One node at `url`; the host is named by its network name, a lease lasts 15 s, an answer may take 10 s.
    pub fn new(url: impl Into<String>) -> Self {
        Self::at(Servers::One(url.into()))
    }

    /// As [`RedisOptions::new`], wherever it is.
    pub fn at(servers: Servers) -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let valid = |byte: char| byte.is_ascii_alphanumeric() || matches!(byte, '-' | '_' | '.');
        let name: String = name.chars().take(64).map(|byte| if valid(byte) { byte } else { '-' }).collect();
        Self {
            servers,
            host_id: if name.is_empty() { "host".to_owned() } else { name },
            lease: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
            clock: system_clock(),
        }
    }
}

/// A connection to one Redis; its tasks end with the last clone.
#[derive(Clone)]
pub struct RedisBroker {
    shared: Arc<Shared>,
    _stopping: Arc<DropGuard>,
}

/// What lanes, sources and tasks share.
struct Shared {
    /// For errors that are no node's own.
    node: Arc<Node>,
    nodes: Arc<Nodes>,
    control: Control,
    publisher: Publisher,
    /// Set once the server was found to keep what it is given.
    checked: OnceCell<()>,
    topics: Topics,
    retention: Retainer,
    clock: Clock,
    host: String,
    lease: Duration,
    /// The last cursor of every lane that this process opened: should its group vanish, it is made again there.
    kept: Mutex<HashMap<LaneKey, EntryId>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl RedisBroker {
    /// Connects and checks that the server keeps what it is given.
    ///
    /// # Errors
    /// `Unavailable`: nobody answers there. `Refused`: wrong credentials, or a server that evicts keys. `Invalid`: options
    /// that cannot be.
    pub async fn connect(name: BrokerName, options: RedisOptions) -> Result<Self, BrokerError> {
        let broker = Self::new(name, options)?;
        broker.shared.check_server().await?;
        Ok(broker)
    }

    /// A broker that connects when it is first used, again and again if need be. Call it within a tokio runtime.
    ///
    /// # Errors
    /// `Invalid`: options that cannot be.
    pub fn new(name: BrokerName, options: RedisOptions) -> Result<Self, BrokerError> {
        let nodes = Arc::new(match &options.servers {
            Servers::One(url) => Nodes::one(name, url, options.timeout)?,
            Servers::Cluster(urls) => Nodes::cluster(&name, urls, options.timeout)?,
        });
        let node = Arc::clone(nodes.any());
        if options.host_id.parse::<synapse_core::topic::Label>().is_err() {
            return Err(node.invalid(format_args!(
                "the host id `{}` is not 1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`; choose another one",
                options.host_id
            )));
        }
        if options.lease < LEASE_MIN {
            let lease = options.lease;
            return Err(node.invalid(format_args!("a lease of {lease:?} is too short; {LEASE_MIN:?} is the least")));
        }
        let control = Control::new(&nodes)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            topics: Topics::new(control.clone()),
            retention: Retainer::default(),
            clock: options.clock,
            host: options.host_id,
            lease: options.lease,
            kept: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            node,
            nodes,
            control,
            publisher: Publisher::default(),
            checked: OnceCell::new(),
        });
        shared.tasks.spawn({
            let shared = Arc::clone(&shared);
            async move { shared.retention.run(&shared.control, &shared.stop).await }
        });
        Ok(Self { shared, _stopping: Arc::new(stop.drop_guard()) })
    }
}

/// A server that evicts keys would forget streams, cursors and leases.
async fn refuse_eviction(control: &Control) -> Result<(), BrokerError> {
    for node in control.nodes.masters().await? {
        refuse_eviction_at(control, &node).await?;
    }
    Ok(())
}

async fn refuse_eviction_at(control: &Control, node: &Node) -> Result<(), BrokerError> {
    let info = control.ask_at(node, "read the server's memory policy", &[b"INFO", b"memory"]).await?;
    let info = info.text().unwrap_or_default();
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let (policy, limit) = (value("maxmemory_policy").unwrap_or("noeviction"), value("maxmemory").unwrap_or("0"));
    if limit == "0" || policy == "noeviction" {
        return Ok(());
    }
    Err(node.error(
        BrokerErrorKind::Refused,
        format_args!(
            "could not start on {}: its maxmemory-policy is `{policy}`, which deletes streams when memory runs out; \
             set it to noeviction",
            node.address
        ),
    ))
}

impl Shared {
    async fn check_server(&self) -> Result<(), BrokerError> {
        self.checked.get_or_try_init(|| refuse_eviction(&self.control)).await.copied()
    }

    fn check_own(&self, topic: &TopicPath) -> Result<(), BrokerError> {
        if topic.broker == self.node.broker {
            return Ok(());
        }
        Err(self.node.invalid(format_args!("the topic `{topic}` is on another broker")))
    }

    /// The stream of a partition.
    fn stream_of<'l>(&self, topic: &TopicName, layout: &'l Layout, partition: u32) -> Result<&'l str, BrokerError> {
        layout.keys.get(partition as usize).map(String::as_str).ok_or_else(|| {
            let count = layout.partitions();
            self.node.invalid(format_args!(
                "the topic `{topic}` has {count} partitions, so there is no partition {partition}"
            ))
        })
    }

    fn no_topic(&self, topic: &TopicName) -> BrokerError {
        self.node.invalid(format_args!(
            "there is no topic `{topic}`: publish to it first, or write it down in the configuration"
        ))
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<LaneKey, EntryId>> {
        self.kept.lock().expect("nothing panics while it holds this lock")
    }

    fn lease_ms(&self) -> String {
        self.lease.as_millis().to_string()
    }

    /// A text that no other owner has: it need not be secret.
    fn token(&self) -> String {
        let random = || RandomState::new().hash_one((std::process::id(), SystemTime::now()));
        format!("{:016x}{:016x}", random(), random())
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn name(&self) -> &BrokerName {
        &self.shared.node.broker
    }

    fn commits_apart(&self) -> Option<&'static str> {
        self.shared.nodes.is_cluster().then_some(CLUSTER_COMMITS_APART)
    }

    async fn ensure_topic(&self, topic: &TopicName, spec: &TopicSpec) -> Result<TopicInfo, BrokerError> {
        self.shared.check_server().await?;
        let info = self.shared.topics.ensure(topic, spec).await?;
        let layout = self.shared.topics.layout(topic).await?;
        self.shared.retention.added(topic, &layout, 0);
        Ok(info)
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, BrokerError> {
        self.shared.topics.all().await
    }

    async fn topic(&self, topic: &TopicName) -> Result<Option<TopicInfo>, BrokerError> {
        self.shared.topics.topic(topic).await
    }

    async fn publish(&self, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        self.shared.publisher.publish(&self.shared, output).await
    }

    async fn read(&self, topic: &TopicName, partition: u32, from: ReadFrom) -> Result<Box<dyn Source>, BrokerError> {
        let shared = &self.shared;
        let layout = shared.topics.layout(topic).await?;
        if !layout.exists {
            return Err(shared.no_topic(topic));
        }
        let key = shared.stream_of(topic, &layout, partition)?;
        Ok(Box::new(StreamSource::open(shared, topic, partition, key, from).await?))
    }

    async fn join(&self, share: &Share) -> Result<Box<dyn Membership>, BrokerError> {
        Ok(Box::new(Member::join(&self.shared, share)))
    }

    async fn places(&self, share: &Share) -> Result<Vec<LanePlace>, BrokerError> {
        places::places(&self.shared, share).await
    }

    async fn open_lane(&self, lane: &LaneSpec) -> Result<OpenLane, BrokerError> {
        self.shared.check_server().await?;
        lane::open(&self.shared, lane).await
    }

    async fn boundaries(&self, lane: &LaneKey) -> Result<Vec<Boundary>, BrokerError> {
        lane::boundaries(&self.shared, lane).await
    }

    async fn health(&self) -> Result<(), BrokerError> {
        for node in self.shared.nodes.masters().await? {
            self.shared.control.ask_at(&node, "see whether it is there", &[b"PING"]).await?;
        }
        self.shared.check_server().await
    }

    /// Gives the leases of its lanes back, too, so that another host need not wait for them.
    async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}
