//! From the file's keys to the specs that the host is built from: defaults, ranges, and what refers to what.
//!
//! Invariant: a part that is missing from the result has left a problem behind, either here or when it was read.
//! Messages show values through [`Text`], which keeps the environment's secrets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use synapse_brokers::kafka::{self, KafkaOptions};
use synapse_core::spec::{
    Encoding, InstanceMode, OnError, PipelineSpec, PluginRef, ReadMode, Retention, RoutePattern, SinkSpec, StageLimits,
    StageSpec, Start, TopicSpec,
};
use synapse_core::topic::{BrokerName, Label, TopicPath};

use super::raw::{self, BrokerKind, Parsed, Size, Span, not_a_name};
use super::read::{At, Key, List, Map, OneOrMany, Place, Reader, Text, joined, nearest, not_available, quoted};
use super::{BrokerSpec, BrokerUrl, ClientProperties, HostSpec, KafkaSpec};

/// The name of the embedded broker.
const LOCAL: &str = "local";

/// The specs, if nothing that they need is missing.
pub(super) fn check(root: raw::Root, base: &Path, reader: &mut Reader<'_>) -> Option<HostSpec> {
    let mut check = Check { base, reader, kinds: BTreeMap::new(), default_broker: None, control: None };
    let brokers = check.brokers(root.brokers);
    let server = check.server(root.server);
    let topics = check.topics(root.topics);
    let pipelines = check.pipelines(root.pipelines);
    let server = server?;
    Some(HostSpec {
        listen: server.listen,
        data: server.data,
        default_broker: server.default_broker,
        control: server.control,
        grace: server.grace,
        brokers,
        topics,
        pipelines,
    })
}

struct Check<'c, 'r> {
    base: &'c Path,
    reader: &'c mut Reader<'r>,
    /// Every broker that the file names; without a kind where it could not be read.
    kinds: BTreeMap<BrokerName, Option<BrokerKind>>,
    /// None where it could not be read: then topics without a broker are not looked at.
    default_broker: Option<BrokerName>,
    control: Option<TopicPath>,
}

struct Server {
    listen: SocketAddr,
    data: std::path::PathBuf,
    default_broker: BrokerName,
    control: TopicPath,
    grace: Duration,
}

impl Check<'_, '_> {
    fn brokers(&mut self, table: Key<Map<raw::Broker>>) -> BTreeMap<BrokerName, BrokerSpec> {
        let local: BrokerName = LOCAL.parse().expect("it is a valid name");
        self.kinds.insert(local.clone(), Some(BrokerKind::Embedded));
        let mut specs = BTreeMap::from([(local.clone(), BrokerSpec::Embedded)]);
        for (name, broker) in entries(table) {
            let key = joined("brokers", &name.value);
            let parsed = match name.value.parse::<BrokerName>() {
                Ok(parsed) => parsed,
                Err(error) => {
                    let message = format!("{} {}", quoted(&name.value), not_a_name(&error));
                    self.reader.problem(name.place, "brokers", message);
                    continue;
                }
            };
            let kind = match &broker {
                Key::Here(At { value: raw::Broker { kind: Key::Here(kind), .. }, .. }) => {
                    Some((kind.value.0, kind.place))
                }
                _ => None,
            };
            if let Some((kind, place)) = kind
                && (parsed == local) != (kind == BrokerKind::Embedded)
            {
                let message = match parsed == local {
                    true => "\"local\" is always the embedded broker; give this one another name",
                    false => "there is one embedded broker, and its name is \"local\"",
                };
                self.reader.problem(place, &format!("{key}.kind"), message);
                self.kinds.entry(parsed).or_insert(None);
                continue;
            }
            if parsed != local {
                self.kinds.insert(parsed.clone(), kind.map(|(kind, _)| kind));
            }
            let Some(At { value: broker, place }) = broker.here() else { continue };
            if let Some(spec) = self.broker(broker, place, &key) {
                specs.insert(parsed, spec);
            }
        }
        specs
    }

    fn broker(&mut self, broker: raw::Broker, place: Place, key: &str) -> Option<BrokerSpec> {
        let Key::Here(At { value: raw::Choice(kind), .. }) = broker.kind else { return None };
        let (redis, kafka) = (&[BrokerKind::Redis][..], &[BrokerKind::Kafka][..]);
        let places = [
            ("url", broker.url.place(), redis, "Redis brokers"),
            ("nodes", broker.nodes.place(), redis, "Redis brokers"),
            ("lease", broker.lease.place(), &[BrokerKind::Redis, BrokerKind::Kafka], "Redis and Kafka brokers"),
            ("bootstrap", broker.bootstrap.place(), kafka, "Kafka brokers"),
            ("delivery", broker.delivery.place(), kafka, "Kafka brokers"),
            ("client", broker.client.place(), kafka, "Kafka brokers"),
        ];
        for (name, place, kinds, whose) in places {
            if let Some(place) = place.filter(|_| !kinds.contains(&kind)) {
                self.reader.problem(place, &format!("{key}.{name}"), format!("is for {whose} only"));
            }
        }
        match kind {
            BrokerKind::Embedded => Some(BrokerSpec::Embedded),
            BrokerKind::Memory => Some(BrokerSpec::Memory),
            BrokerKind::Redis => self.redis(broker, place, key),
            BrokerKind::Kafka => self.kafka(broker, place, key),
        }
    }

    fn kafka(&mut self, broker: raw::Broker, place: Place, key: &str) -> Option<BrokerSpec> {
        if matches!(broker.bootstrap, Key::Absent) {
            let message = "a Kafka broker needs the key \"bootstrap\", for example \"127.0.0.1:9092\"";
            self.reader.problem(place, key, message);
        }
        let lease = self.lease(broker.lease, key, Duration::from_secs(1));
        let exactly_once = broker.delivery.here().is_none_or(|word| word.value.0 == raw::Delivery::ExactlyOnce);
        let (client_key, client_place) = (joined(key, "client"), broker.client.place());
        let client = self.properties(broker.client, &client_key);
        if let (Some(place), Some(client)) = (client_place, &client) {
            // Of properties that are fine each for itself librdkafka may not take all together, or with this lease.
            let options = KafkaOptions { lease, client: client.expose().clone(), ..KafkaOptions::new("") };
            if let Err(why) = options.check() {
                self.reader.problem(place, &client_key, why);
            }
        }
        let bootstrap = broker.bootstrap.here()?;
        let servers = || bootstrap.value.value.split(',').map(str::trim);
        if !servers().all(is_server) {
            let message = format!("must be servers such as \"127.0.0.1:9092\", not {}", bootstrap.value.shown());
            self.reader.problem(bootstrap.place, &format!("{key}.bootstrap"), message);
            return None;
        }
        let (bootstrap, client) = (servers().collect::<Vec<_>>().join(","), client?);
        Some(BrokerSpec::Kafka(KafkaSpec { bootstrap, lease, exactly_once, client }))
    }

    fn lease(&mut self, lease: Key<Parsed<Span>>, key: &str, least: Duration) -> Duration {
        let range = Span(least)..=Span(Duration::from_secs(600));
        self.bounded(lease, &format!("{key}.lease"), range).unwrap_or(Duration::from_secs(15))
    }

    /// The properties by their canonical names, unless one is wrong. Values are not shown: they may be secrets.
    fn properties(&mut self, client: Key<raw::Properties>, key: &str) -> Option<ClientProperties> {
        let mut all = BTreeMap::new();
        let mut written: BTreeMap<String, String> = BTreeMap::new();
        let mut complete = true;
        for (At { value: name, place }, text) in client.here().map_or(Vec::new(), |client| client.value.0) {
            let canonical = kafka::canonical(&name).to_owned();
            // Of files, as everywhere here.
            let is_file = canonical.ends_with(".location") && text.value != "probe" && !text.value.is_empty();
            let value = if is_file { self.base.join(text.value).to_string_lossy().into_owned() } else { text.value };
            let twice = written.insert(canonical.clone(), name.clone());
            let twice = twice.map(|other| format!("is the same property as {}, which is set, too", quoted(&other)));
            let missing = (is_file && !Path::new(&value).exists()).then(|| format!("there is no file {value}"));
            if let Some(why) = kafka::refuses(&name, &value).or(twice).or(missing) {
                self.reader.problem(place, &joined(key, &name), why);
                complete = false;
            }
            all.insert(canonical, value);
        }
        complete.then_some(ClientProperties(all))
    }

    /// One server or a cluster.
    fn redis(&mut self, broker: raw::Broker, place: Place, key: &str) -> Option<BrokerSpec> {
        let nodes_key = format!("{key}.nodes");
        let lease = self.lease(broker.lease, key, Duration::from_millis(100));
        match (broker.url, broker.nodes) {
            (Key::Absent, Key::Absent) => {
                let message = "a Redis broker needs the key \"url\", for example \"redis://127.0.0.1:6379\", or \
                               \"nodes\" for a cluster";
                self.reader.problem(place, key, message);
                None
            }
            (url, Key::Absent) => {
                Some(BrokerSpec::Redis { url: self.url(&url.here()?, &format!("{key}.url"))?, lease })
            }
            (Key::Absent, nodes) => {
                let nodes = nodes.here()?;
                if nodes.value.empty {
                    self.reader.problem(nodes.place, &nodes_key, "must name at least one node of the cluster");
                }
                // Each of them is looked at, whatever is wrong with the ones before.
                let urls: Vec<_> = nodes.value.items.iter().map(|node| self.cluster_node(node, &nodes_key)).collect();
                let nodes: Vec<_> = urls.into_iter().collect::<Option<_>>()?;
                (!nodes.is_empty()).then_some(BrokerSpec::RedisCluster { nodes, lease })
            }
            (_, nodes) => {
                let message = "a Redis broker has \"url\" (one server) or \"nodes\" (a cluster), not both";
                self.reader.problem(nodes.here().map_or(place, |nodes| nodes.place), &nodes_key, message);
                None
            }
        }
    }

    fn cluster_node(&mut self, node: &At<Text>, key: &str) -> Option<BrokerUrl> {
        let url = self.url(node, key)?;
        let server = url.expose().strip_prefix("redis://").and_then(|rest| rest.rsplit('@').next());
        if server.is_some_and(|server| !server.contains(['/', '?'])) {
            return Some(url);
        }
        let message = "a node of a cluster is written \"redis://[user:password@]host:port\", without a database";
        self.reader.problem(node.place, key, message);
        None
    }

    /// The address is never shown: it may hold a password.
    fn url(&mut self, url: &At<Text>, key: &str) -> Option<BrokerUrl> {
        let text = &url.value.value;
        if text.starts_with("rediss://") {
            self.reader.problem(url.place, key, not_available("TLS to a Redis server (\"rediss://\") is"));
            return None;
        }
        let names_a_server = match text.split_once("://") {
            Some(("redis", rest)) => {
                let server = rest.rsplit_once('@').map_or(rest, |(_, server)| server);
                !server.is_empty() && !server.starts_with([':', '/', '?'])
            }
            Some(("redis+unix" | "unix", path)) => path.starts_with('/') && path.len() > 1,
            _ => false,
        };
        if names_a_server && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(BrokerUrl(text.clone()));
        }
        let message = "is not the address of a Redis server, such as \"redis://127.0.0.1:6379\" or \
                       \"redis+unix:///run/redis.sock\"";
        self.reader.problem(url.place, key, message);
        None
    }

    fn server(&mut self, server: Key<raw::Server>) -> Option<Server> {
        let server = match server {
            Key::Here(server) => server.value,
            Key::Absent => raw::Server::default(),
            Key::Bad => return None,
        };
        let default_broker = match server.default_broker {
            Key::Absent => LOCAL.parse().ok(),
            Key::Bad => None,
            Key::Here(At { value: text, place }) => {
                self.broker_named(&text.value, &text, place, "server.default-broker")
            }
        };
        self.default_broker = default_broker.clone();
        let control = match server.control {
            Key::Absent => format!("{LOCAL}/_synapse").parse().ok(),
            Key::Bad => None,
            Key::Here(At { value: text, place }) => self.topic(&text, place, "server.control"),
        };
        self.control = control.clone();
        let listen = match server.listen {
            Key::Absent => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            Key::Bad => None,
            Key::Here(listen) => self.listen(&listen),
        };
        let data = match server.data.here() {
            Some(At { value: text, place }) if text.value.is_empty() => {
                self.reader.problem(place, "server.data", "must name a directory");
                None
            }
            data => Some(self.base.join(data.map_or("data".to_owned(), |data| data.value.value))),
        };
        let range = Span(Duration::ZERO)..=Span(Duration::from_secs(3_600));
        let grace = self.bounded(server.grace, "server.grace", range).unwrap_or(Duration::from_secs(10));
        Some(Server { listen: listen?, data: data?, default_broker: default_broker?, control: control?, grace })
    }

    fn listen(&mut self, listen: &At<Text>) -> Option<SocketAddr> {
        let (text, key) = (&listen.value, "server.listen");
        let address = match text.value.strip_prefix("localhost:").map(str::parse) {
            Some(Ok(port)) => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
            _ => text.value.parse().ok(),
        };
        let Some(address) = address else {
            let message = format!("{} is not an address and a port, such as \"127.0.0.1:8080\"", text.shown());
            self.reader.problem(listen.place, key, message);
            return None;
        };
        if !address.ip().to_canonical().is_loopback() {
            let message = format!(
                "{} can be reached from outside, but without API keys the host only binds to loopback; \
                 write \"127.0.0.1:{}\"",
                text.shown(),
                if text.is_from_env() { "8080".to_owned() } else { address.port().to_string() },
            );
            self.reader.problem(listen.place, key, message);
            return None;
        }
        Some(address)
    }

    fn topics(&mut self, table: Key<Map<raw::Topic>>) -> BTreeMap<TopicPath, TopicSpec> {
        let mut specs = BTreeMap::new();
        let mut named: BTreeMap<TopicPath, Place> = BTreeMap::new();
        for (name, topic) in entries(table) {
            let key = joined("topics", &name.value);
            let path = self.topic(&Text::from_file(name.value.clone()), name.place, &key);
            let Some(At { value: topic, .. }) = topic.here() else { continue };
            let partitions = topic.partitions.here().map_or(1, |count| count.value.0);
            let spec = TopicSpec {
                partitions: u32::try_from(partitions).ok().and_then(NonZeroU32::new).expect("the range was checked"),
                retention: self.retention(topic.retention, &key),
            };
            let Some(path) = path else { continue };
            if let Some(other) = named.insert(path.clone(), name.place) {
                let (first, second) = (other.min(name.place), other.max(name.place));
                let message = format!("the topic {path} is already on line {}", self.reader.line(first));
                self.reader.problem(second, "topics", message);
            }
            specs.insert(path, spec);
        }
        specs
    }

    fn retention(&mut self, retention: Key<raw::Retention>, key: &str) -> Retention {
        let Some(At { value: retention, .. }) = retention.here() else { return Retention::default() };
        let key = format!("{key}.retention");
        let ages = Span(Duration::from_millis(1))..=Span(Duration::from_secs(36_500 * 86_400));
        let sizes = Size(1)..=Size(1 << 63);
        Retention {
            age: self.bounded(retention.age, &format!("{key}.age"), ages),
            bytes: self.bounded(retention.size, &format!("{key}.size"), sizes),
            events: retention.events.here().map(|count| count.value.0),
        }
    }

    fn pipelines(&mut self, list: Key<List<raw::Pipeline>>) -> Vec<PipelineSpec> {
        let mut names = Names::default();
        let mut specs = Vec::new();
        for At { value: pipeline, .. } in list.here().map_or(Vec::new(), |list| list.value.items) {
            if let Key::Here(name) = &pipeline.name {
                names.note(
                    &name.value.value,
                    &name.value.text,
                    name.place,
                    ("pipelines.name", "pipeline"),
                    self.reader,
                );
            }
            specs.extend(self.pipeline(pipeline));
        }
        specs
    }

    fn pipeline(&mut self, pipeline: raw::Pipeline) -> Option<PipelineSpec> {
        let from = self.from(pipeline.from);
        let sources: Vec<_> = from.iter().flatten().map(|(path, _)| path.clone()).collect();
        let to = self.to(pipeline.to, &sources);
        let dead_letters = self.dead_letters(pipeline.dead_letters, from.as_deref());
        let read = pipeline.read.here();
        if let Some(At { value: raw::Choice(ReadMode::Group), place }) = read {
            self.group_needs_redis(&sources, place);
        }
        let stages = self.stages(pipeline.stages);
        let parallel = pipeline.parallel.here().map_or(1, |count| count.value.0);
        Some(PipelineSpec {
            name: pipeline.name.here()?.value.value,
            tenant: label_or(pipeline.tenant, "default"),
            from: from.map(|_| sources)?,
            to: to?,
            dead_letters: dead_letters?,
            read: read.map_or(ReadMode::default(), |read| read.value.0),
            parallel: usize::try_from(parallel).ok().and_then(NonZeroUsize::new).expect("the range was checked"),
            start: pipeline.start.here().map_or(Start::default(), |start| start.value.0),
            stages: stages?,
        })
    }

    /// The sources, as parsed and as written; none unless all are right.
    fn from(&mut self, from: Key<OneOrMany<Text>>) -> Option<Vec<(TopicPath, At<Text>)>> {
        let key = "pipelines.from";
        let At { value: OneOrMany(list), place } = from.here()?;
        if list.empty {
            self.reader.problem(place, key, "must name at least one topic");
            return None;
        }
        let mut paths: Vec<(TopicPath, At<Text>)> = Vec::new();
        let mut complete = true;
        for text in list.items {
            match self.topic(&text.value, text.place, key) {
                None => complete = false,
                Some(path) if paths.iter().any(|(other, _)| *other == path) => {
                    let message = format!("the topic {} is named twice", text.value.shown());
                    self.reader.problem(text.place, key, message);
                }
                Some(path) => paths.push((path, text)),
            }
        }
        complete.then_some(paths).filter(|paths| !paths.is_empty())
    }

    fn to(&mut self, to: Key<OneOrMany<raw::Sink>>, sources: &[TopicPath]) -> Option<Vec<SinkSpec>> {
        let key = "pipelines.to";
        let list = match to {
            Key::Absent => return Some(Vec::new()),
            Key::Bad => return None,
            Key::Here(At { value: OneOrMany(list), .. }) => list.items,
        };
        let mut sinks: Vec<SinkSpec> = Vec::new();
        let mut complete = true;
        for At { value: sink, place } in list {
            let (text, encoding) = match sink {
                raw::Sink::Topic(topic) => (Some(At { value: topic, place }), Encoding::default()),
                raw::Sink::Table(table) => {
                    let encoding = table.encoding.here().map_or(Encoding::default(), |encoding| encoding.value.0);
                    (table.topic.here(), encoding)
                }
            };
            let path = text.as_ref().and_then(|text| self.topic(&text.value, text.place, key));
            let (Some(text), Some(topic)) = (text, path) else {
                complete = false;
                continue;
            };
            let shown = text.value.shown();
            if sources.contains(&topic) {
                let message = format!("{shown} is also read by this pipeline, so its events would go round for ever");
                self.reader.problem(text.place, key, message);
            } else if sinks.iter().any(|sink| sink.topic == topic) {
                self.reader.problem(text.place, key, format!("the topic {shown} is named twice"));
            } else {
                self.not_control(&topic, &text, key);
            }
            sinks.push(SinkSpec { topic, encoding });
        }
        complete.then_some(sinks)
    }

    fn dead_letters(&mut self, dead: Key<Text>, from: Option<&[(TopicPath, At<Text>)]>) -> Option<TopicPath> {
        let key = "pipelines.dead-letters";
        let text = match dead {
            Key::Here(text) => text,
            Key::Bad => return None,
            Key::Absent => {
                let (first, written) = &from?[0];
                let Ok(path) = format!("{first}.dead-letters").parse::<TopicPath>() else {
                    let message = "is too long to add \".dead-letters\" to it; write the key \"dead-letters\"";
                    self.reader.problem(
                        written.place,
                        "pipelines.from",
                        format!("{} {message}", written.value.shown()),
                    );
                    return None;
                };
                if let Some((_, other)) = from?.iter().find(|(other, _)| *other == path) {
                    let message = format!(
                        "{} is where this pipeline's dead letters go, so they would go round for ever; \
                         write the key \"dead-letters\"",
                        other.value.shown()
                    );
                    self.reader.problem(other.place, "pipelines.from", message);
                }
                return Some(path);
            }
        };
        let path = self.topic(&text.value, text.place, key)?;
        if from.is_some_and(|from| from.iter().any(|(source, _)| *source == path)) {
            let message = format!(
                "{} is also read by this pipeline, so its dead letters would go round for ever",
                text.value.shown()
            );
            self.reader.problem(text.place, key, message);
        }
        self.not_control(&path, &text, key);
        Some(path)
    }

    fn not_control(&mut self, path: &TopicPath, text: &At<Text>, key: &str) {
        if self.control.as_ref() == Some(path) {
            let message = format!("{} is the control topic, which only the host writes", text.value.shown());
            self.reader.problem(text.place, key, message);
        }
    }

    fn group_needs_redis(&mut self, sources: &[TopicPath], place: Place) {
        let redis = |path: &&TopicPath| {
            self.kinds.get(&path.broker).copied().flatten().is_none_or(|kind| kind == BrokerKind::Redis)
        };
        if sources.iter().find(|path| !redis(path)).is_some() {
            let message = "\"group\" is for Redis only, and this pipeline reads from a broker of another kind; \
                           write \"cursor\" or leave the key out";
            self.reader.problem(place, "pipelines.read", message);
        }
    }

    fn stages(&mut self, list: Key<List<raw::Stage>>) -> Option<Vec<StageSpec>> {
        let stages = match list {
            Key::Absent => return Some(Vec::new()),
            Key::Bad => return None,
            Key::Here(list) => list.value.items,
        };
        let mut names = Names::default();
        let specs: Vec<_> = stages.into_iter().map(|stage| self.stage(stage.value, &mut names)).collect();
        specs.into_iter().collect()
    }

    fn stage(&mut self, stage: raw::Stage, names: &mut Names) -> Option<StageSpec> {
        let limits = self.limits(stage.limits);
        let routes = self.routes(stage.routes);
        self.grants(stage.grants);
        let plugin = stage.plugin.here();
        let path = plugin.as_ref().and_then(|plugin| self.plugin(plugin));
        let name = match stage.name {
            Key::Here(At { value: Parsed { value, text }, place }) => {
                names.note(&value, &text, place, ("pipelines.stages.name", "stage"), self.reader);
                Some(value)
            }
            Key::Bad => None,
            Key::Absent => plugin.filter(|_| path.is_some()).and_then(|plugin| self.name_of_plugin(&plugin, names)),
        };
        Some(StageSpec {
            name: name?,
            plugin: path?,
            config: stage.config.here().map_or_else(|| serde_json::json!({}), |config| config.value.0),
            grants: Vec::new(),
            routes: routes?,
            limits,
            on_error: stage.on_error.here().map_or(OnError::default(), |on_error| on_error.value.0),
            instance: stage.instance.here().map_or(InstanceMode::default(), |instance| instance.value.0),
        })
    }

    /// A path, or a reference to the registry such as `ready-only@^1`.
    fn plugin(&mut self, plugin: &At<Text>) -> Option<PluginRef> {
        let (text, key) = (plugin.value.value.as_str(), "pipelines.stages.plugin");
        let is_path = text.contains('/') || text.ends_with(".wasm");
        if is_path && !text.ends_with('/') {
            return Some(PluginRef::File(self.base.join(text)));
        }
        let message = match text.split_once('@') {
            Some(_) if !is_path => {
                format!(
                    "{} is in the registry; plugins from the registry are not available in this version; \
                         write the path of a .wasm file",
                    plugin.value.shown()
                )
            }
            _ => format!("{} is not the path of a plugin, such as \"plugins/ready_only.wasm\"", plugin.value.shown()),
        };
        self.reader.problem(plugin.place, key, message);
        None
    }

    /// Components are called after their crates, where `-` becomes `_`.
    fn name_of_plugin(&mut self, plugin: &At<Text>, names: &mut Names) -> Option<Label> {
        let stem = Path::new(&plugin.value.value).file_stem().unwrap_or_default();
        let Ok(name) = stem.to_string_lossy().replace('_', "-").parse::<Label>() else {
            let message = "a stage cannot be called after this file; write the key \"name\"";
            self.reader.problem(plugin.place, "pipelines.stages.plugin", message);
            return None;
        };
        names.note(&name, &plugin.value, plugin.place, ("pipelines.stages.plugin", "stage"), self.reader);
        Some(name)
    }

    /// Plugins are given nothing beyond the log yet: whatever is named is noted.
    fn grants(&mut self, grants: Key<List<raw::Choice<raw::Grant>>>) {
        for At { value: raw::Choice(raw::Grant(name)), place } in grants.here().map_or(Vec::new(), |at| at.value.items)
        {
            let message = not_available(&format!("the grant \"{name}\" is"));
            self.reader.problem(place, "pipelines.stages.grants", message);
        }
    }

    fn routes(&mut self, routes: Key<List<Text>>) -> Option<Vec<RoutePattern>> {
        let items = match routes {
            Key::Absent => return Some(Vec::new()),
            Key::Bad => return None,
            Key::Here(list) => list.value.items,
        };
        let routes: Vec<_> = items.iter().map(|route| self.route(route)).collect();
        routes.into_iter().collect()
    }

    fn route(&mut self, route: &At<Text>) -> Option<RoutePattern> {
        let (text, key) = (&route.value, "pipelines.stages.routes");
        let (broker, pattern) = match text.value.split_once('/') {
            Some((broker, pattern)) => (self.broker_named(broker, text, route.place, key), pattern),
            None => (self.default_broker.clone(), text.value.as_str()),
        };
        let topic_letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:*".contains(&byte);
        let topic = pattern.parse().ok().filter(|_| pattern.bytes().all(topic_letters));
        if topic.is_none() {
            let message = format!(
                "{} is not a pattern of topics (a-z, A-Z, 0-9, `-`, `_`, `.`, `:`, with `*` for any run but `.` and \
                 `**` for any run)",
                text.shown_part(pattern)
            );
            self.reader.problem(route.place, key, message);
        }
        Some(RoutePattern { broker: broker?, topic: topic? })
    }

    fn limits(&mut self, limits: Key<raw::Limits>) -> StageLimits {
        let default = StageLimits::default();
        let Some(At { value: limits, .. }) = limits.here() else { return default };
        let key = |name: &str| format!("pipelines.stages.limits.{name}");
        let bytes = |size: Option<u64>, default| size.and_then(|size| usize::try_from(size).ok()).unwrap_or(default);
        let memory = self.bounded(limits.memory, &key("memory"), Size(64 << 10)..=Size(1 << 30));
        let cpu = Span(Duration::from_millis(1))..=Span(Duration::from_secs(600));
        let output = self.bounded(limits.output, &key("output"), Size(1 << 10)..=Size(1 << 30));
        let lines = limits.log_lines.here().and_then(|count| u32::try_from(count.value.0).ok());
        StageLimits {
            memory_bytes_max: bytes(memory, default.memory_bytes_max),
            cpu_max: self.bounded(limits.cpu, &key("cpu"), cpu).unwrap_or(default.cpu_max),
            output_bytes_max: bytes(output, default.output_bytes_max),
            log_lines_per_second_max: lines.and_then(NonZeroU32::new).unwrap_or(default.log_lines_per_second_max),
        }
    }

    /// The topic that `text` names, on a broker that exists.
    fn topic(&mut self, text: &Text, place: Place, key: &str) -> Option<TopicPath> {
        let (broker, topic) = match text.value.split_once('/') {
            Some((broker, topic)) => (self.broker_named(broker, text, place, key), topic),
            None => (self.default_broker.clone(), text.value.as_str()),
        };
        match topic.parse() {
            Ok(topic) => {
                let broker = broker?;
                let on_kafka = self.kinds.get(&broker) == Some(&Some(BrokerKind::Kafka));
                if let Some(why) = kafka::refuses_topic(&topic).filter(|_| on_kafka) {
                    let message = format!("{} cannot be a topic on Kafka: {why}", text.shown_part(topic.as_str()));
                    self.reader.problem(place, key, message);
                    return None;
                }
                Some(TopicPath { broker, topic })
            }
            Err(error) => {
                self.reader.problem(place, key, format!("{} {}", text.shown_part(topic), not_a_name(&error)));
                None
            }
        }
    }

    /// The broker that `name`, a part of `text`, names.
    fn broker_named(&mut self, name: &str, text: &Text, place: Place, key: &str) -> Option<BrokerName> {
        match name.parse::<BrokerName>() {
            Ok(broker) if self.kinds.contains_key(&broker) => Some(broker),
            Ok(_) => {
                let known = self.kinds.keys().map(BrokerName::as_str);
                let hint = match nearest(name, known.clone()) {
                    Some(near) => format!("did you mean {}?", quoted(near)),
                    None => format!("known brokers: {}", known.map(quoted).collect::<Vec<_>>().join(", ")),
                };
                self.reader.problem(place, key, format!("there is no broker {}; {hint}", text.shown_part(name)));
                None
            }
            Err(error) => {
                self.reader.problem(place, key, format!("{} {}", text.shown_part(name), not_a_name(&error)));
                None
            }
        }
    }

    /// The size or time of a key, if it is there and in range.
    fn bounded<T, V>(&mut self, found: Key<Parsed<T>>, key: &str, range: std::ops::RangeInclusive<T>) -> Option<V>
    where
        T: PartialOrd + std::fmt::Display + Into<V>,
    {
        let At { value: Parsed { value, text }, place } = found.here()?;
        if !range.contains(&value) {
            let message = format!("must be from \"{}\" to \"{}\", not {}", range.start(), range.end(), text.shown());
            self.reader.problem(place, key, message);
            return None;
        }
        Some(value.into())
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

/// Whether a text is `host:port`.
fn is_server(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
            && port.parse::<u16>().is_ok()
    })
}

/// Names that must differ, and where each was first seen.
#[derive(Default)]
struct Names(BTreeMap<Label, Place>);

impl Names {
    /// Notes a name; that it is there already is a problem. `what` is the key and the word for the thing.
    fn note(&mut self, name: &Label, text: &Text, place: Place, what: (&str, &str), reader: &mut Reader<'_>) {
        let (key, thing) = what;
        match self.0.get(name) {
            None => {
                self.0.insert(name.clone(), place);
            }
            Some(first) => {
                let message = format!(
                    "the {thing} {} is already on line {}",
                    text.shown_part(name.as_str()),
                    reader.line(*first)
                );
                reader.problem(place, key, message);
            }
        }
    }
}

fn label_or(key: Key<Parsed<Label>>, default: &str) -> Label {
    key.here().map_or_else(|| default.parse().expect("it is a valid name"), |label| label.value.value)
}

fn entries<T>(map: Key<Map<T>>) -> Vec<(At<String>, Key<T>)> {
    map.here().map_or(Vec::new(), |map| map.value.0)
}
