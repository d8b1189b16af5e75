//! `synapse.toml`: from a text that people write to the checked types that the host is built from.
//!
//! Invariant: a [`HostSpec`] that exists is right: names are valid, units read, brokers that are named exist. Nothing
//! behind this module checks it again. Whatever is wrong with a file is told at once, each fault with its line. This
//! module opens no broker and no plugin; `load` reads the one file and the environment.

mod check;
mod raw;
mod read;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use synapse_core::spec::{PipelineSpec, TopicSpec};
use synapse_core::topic::{BrokerName, Label, TopicPath};

/// Everything a host is told by its file.
#[derive(Clone, Debug, PartialEq)]
pub struct HostSpec {
    /// Where the HTTP API listens; loopback.
    pub listen: SocketAddr,
    /// The directory of the embedded log, the plugin store and compiled code.
    pub data: PathBuf,
    /// The broker of topics that are written without one.
    pub default_broker: BrokerName,
    /// The topic that the hosts of a fleet share their state through.
    pub control: TopicPath,
    /// How long lanes may take to end their work when the host stops.
    pub grace: Duration,
    /// By name; `local`, the embedded one, is always among them.
    pub brokers: BTreeMap<BrokerName, BrokerSpec>,
    /// How topics are kept that the file names; see [`HostSpec::topic`].
    pub topics: BTreeMap<TopicPath, TopicSpec>,
    /// In the order of the file; their names differ.
    pub pipelines: Vec<PipelineSpec>,
}

/// A broker to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerSpec {
    /// The log in the data directory.
    Embedded,
    /// In this process, gone with it.
    Memory,
    /// A Redis server.
    Redis {
        /// Where it is, and who we are to it.
        url: BrokerUrl,
        /// For how long a host owns a partition without renewing.
        lease: Duration,
    },
    /// A Redis Cluster.
    RedisCluster {
        /// Where some of its nodes are, at least one.
        nodes: Vec<BrokerUrl>,
        /// For how long a host owns a partition without renewing.
        lease: Duration,
    },
    /// A Kafka cluster.
    Kafka(KafkaSpec),
}

/// A Kafka cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaSpec {
    /// Some of its servers: `host:port,…`.
    pub bootstrap: String,
    /// For how long a host that is not heard of keeps its partitions.
    pub lease: Duration,
    /// Whether outputs to this cluster and the position become visible at once.
    pub exactly_once: bool,
    /// Properties of its client library.
    pub client: ClientProperties,
}

/// Properties of a client library, some of which may be secrets: printed without their values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientProperties(BTreeMap<String, String>);

impl ClientProperties {
    /// By name, with their values.
    pub fn expose(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for ClientProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// An address that may hold a password: printed without it.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl(String);

impl BrokerUrl {
    /// The whole address, for connecting.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BrokerUrl {
    /// Scheme, host and path; who logs in and any query is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        match rest.rsplit_once('@') {
            Some((_, place)) => write!(f, "{scheme}://***@{place}"),
            None => write!(f, "{scheme}://{rest}"),
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

/// One thing that is wrong with a configuration, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The keys that lead there, such as `pipelines.stages`; empty at the top.
    pub key: String,
    /// What is wrong, and where it can be told, what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    /// `14: pipelines.stages: unknown key "on_error"; did you mean "on-error"?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}: {}{separator}{}", self.line, self.key, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: the configuration could not be read: {error}", file.display())]
    Unreadable {
        /// As it was named.
        file: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// The file is wrong. Displayed as one line for each problem: `synapse.toml:14: …`.
    #[error("{}", lines(file, problems))]
    Invalid {
        /// As it was named.
        file: PathBuf,
        /// At least one, from the first line to the last.
        problems: Vec<Problem>,
    },
}

fn lines(file: &Path, problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(|problem| format!("{}:{problem}", file.display())).collect();
    lines.join("\n")
}

/// Reads the file at `path`, with the environment of this process.
///
/// # Errors
/// The file cannot be read, or it is wrong: then with every problem that could be found.
pub fn load(path: &Path) -> Result<HostSpec, Error> {
    let unreadable = |error| Error::Unreadable { file: path.to_owned(), error };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let invalid = |problems| Error::Invalid { file: path.to_owned(), problems };
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let message = "not TOML: a byte that is not UTF-8".to_owned();
            return Err(invalid(vec![Problem { line, column: 1, key: String::new(), message }]));
        }
    };
    parse(text, base, &|name| std::env::var(name).ok()).map_err(invalid)
}

/// Reads a configuration. Paths in it are relative to `base`, an absolute directory; `env` answers for `${NAME}`.
///
/// # Errors
/// Every problem that could be found, from the first line to the last; at least one.
pub fn parse(text: &str, base: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<HostSpec, Vec<Problem>> {
    let mut reader = read::Reader::new(text, env);
    let spec = reader.document().and_then(|document| {
        let root = raw::Root::read_document(&document, &mut reader);
        check::check(root, base, &mut reader)
    });
    let problems = reader.into_problems();
    match spec {
        Some(spec) if problems.is_empty() => Ok(spec),
        _ => Err(problems),
    }
}

/// The JSON Schema (draft 2020-12) of the file: what this version accepts.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(raw::Root);
    schema.insert("title".to_owned(), "synapse.toml".into());
    schema.into()
}

/// What differs between the configuration of a running host and a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Pipelines to start.
    pub added: Vec<Label>,
    /// Pipelines to end.
    pub removed: Vec<Label>,
    /// Pipelines that are defined otherwise.
    pub changed: Vec<Label>,
    /// Brokers to connect to before any pipeline starts.
    pub brokers_added: Vec<BrokerName>,
    /// Topics that are kept otherwise: named, no longer named, or with another retention.
    pub topics: Vec<TopicPath>,
    /// Keys that differ and cannot change while the host runs, such as `server.listen`.
    pub needs_restart: Vec<String>,
}

impl HostSpec {
    /// How `path` is kept, whether the file names it or not.
    pub fn topic(&self, path: &TopicPath) -> TopicSpec {
        self.topics.get(path).cloned().unwrap_or_default()
    }

    /// What of `new` a host that runs `self` can use at once: all that [`Change::needs_restart`] names stays as it is.
    #[must_use]
    pub fn while_running(&self, mut new: Self) -> Self {
        new.listen = self.listen;
        new.data.clone_from(&self.data);
        new.default_broker.clone_from(&self.default_broker);
        new.control.clone_from(&self.control);
        new.brokers.extend(self.brokers.clone());
        for path in self.topics.keys().chain(&new.topics.keys().cloned().collect::<Vec<_>>()) {
            let (kept, wanted) = (self.topic(path).partitions, new.topic(path).partitions);
            if kept != wanted {
                new.topics.entry(path.clone()).or_default().partitions = kept;
            }
        }
        new
    }

    /// What a host that runs `self` has to do to run `new`.
    pub fn diff(&self, new: &Self) -> Change {
        let by_name = |spec: &Self| -> BTreeMap<Label, PipelineSpec> {
            spec.pipelines.iter().map(|pipeline| (pipeline.name.clone(), pipeline.clone())).collect()
        };
        let pipelines = Difference::between(&by_name(self), &by_name(new));
        let brokers = Difference::between(&self.brokers, &new.brokers);
        let mut topics = Difference::between(&self.topics, &new.topics).all();
        topics.sort();

        let server = [
            ("server.listen", self.listen != new.listen),
            ("server.data", self.data != new.data),
            ("server.default-broker", self.default_broker != new.default_broker),
            ("server.control", self.control != new.control),
        ];
        let server = server.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned());
        let lost_brokers = brokers.changed.iter().chain(&brokers.removed);
        let lost_brokers = lost_brokers.map(|name| read::joined("brokers", name.as_str()));
        let resharded = topics.iter().filter(|path| self.topic(path).partitions != new.topic(path).partitions);
        let resharded = resharded.map(|path| format!("{}.partitions", read::joined("topics", &path.to_string())));
        let needs_restart = server.chain(lost_brokers).chain(resharded).collect();
        Change {
            added: pipelines.added,
            removed: pipelines.removed,
            changed: pipelines.changed,
            brokers_added: brokers.added,
            topics,
            needs_restart,
        }
    }
}

/// The keys by which two maps differ, in order.
struct Difference<K> {
    added: Vec<K>,
    removed: Vec<K>,
    changed: Vec<K>,
}

impl<K: Ord + Clone> Difference<K> {
    fn between<V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        let without = |a: &BTreeMap<K, V>, b: &BTreeMap<K, V>| -> Vec<K> {
            a.keys().filter(|key| !b.contains_key(*key)).cloned().collect()
        };
        let differs = |(key, value): &(&K, &V)| old.get(*key).is_some_and(|before| before != *value);
        let changed = new.iter().filter(differs).map(|(key, _)| key.clone()).collect();
        Self { added: without(new, old), removed: without(old, new), changed }
    }

    fn all(self) -> Vec<K> {
        [self.added, self.removed, self.changed].concat()
    }
}
