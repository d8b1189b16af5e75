//! The host's HTTP side: publishing and reading topics, looking at pipelines, metrics and health.
//!
//! [`serve`] is the whole of it: it answers on a listener until it is cancelled. Whatever arrives is bounded: headers in
//! time, bodies in size and time, connections in number, what is read from brokers in bytes. An acknowledgement is given
//! only for what a broker has made durable. Nothing here knows plugins' code or where the configuration comes from.

mod cursor;
mod guard;
mod health;
mod history;
mod live;
mod pipelines;
mod problem;
mod publish;
mod server;
mod topics;
pub mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::Uri;
use axum::http::request::Parts;
use axum::routing::{get, post};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use serde::de::DeserializeOwned;
use synapse_core::broker::{Broker, Brokers, TopicInfo};
use synapse_core::spec::TopicSpec;
use synapse_core::topic::{BrokerName, TopicPath};
use synapse_engine::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::problem::{Kind, Problem};
pub use self::server::serve;

/// What the API speaks for.
pub struct Options {
    /// Every broker of the host.
    pub brokers: Brokers,
    /// How topics are kept, as far as that is configured now.
    pub topics: watch::Receiver<BTreeMap<TopicPath, TopicSpec>>,
    /// Where a topic without a broker lies.
    pub default_broker: BrokerName,
    /// What other hosts know this one as.
    pub host_id: String,
    /// The pipelines.
    pub engine: Handle,
    /// What `/metrics` shows; the API's own families are registered here, too.
    pub registry: Registry,
    /// How far the host is.
    pub phase: watch::Receiver<Phase>,
    /// Bounds.
    pub limits: Limits,
}

/// How far the host is, for `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its pipelines have not been handed to the engine yet.
    Starting,
    /// At work.
    Serving,
    /// It finishes what is under way and takes nothing new.
    Draining,
}

/// Bounds on what clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// How long a request's headers may take to arrive; also how long a connection may idle between requests.
    pub headers_wait_max: Duration,
    /// Size in bytes of a body that is one event or a batch.
    pub body_bytes_max: usize,
    /// How long such a body may take to arrive.
    pub body_wait_max: Duration,
    /// Bytes of such bodies in memory at once; more of them wait.
    pub bodies_bytes_max: usize,
    /// Size in bytes of one line of NDJSON; the number of lines has no bound.
    pub line_bytes_max: usize,
    /// How often a live stream without events says that it is alive.
    pub heartbeat: Duration,
    /// How long requests under way may take to end once the host ends.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            headers_wait_max: Duration::from_secs(20),
            body_bytes_max: 16 << 20,
            body_wait_max: Duration::from_secs(60),
            bodies_bytes_max: 256 << 20,
            line_bytes_max: 4 << 20,
            heartbeat: Duration::from_secs(15),
            grace: Duration::from_secs(10),
        }
    }
}

/// What all requests share. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    brokers: Brokers,
    topics: watch::Receiver<BTreeMap<TopicPath, TopicSpec>>,
    default_broker: BrokerName,
    host_id: String,
    engine: Handle,
    registry: Registry,
    phase: watch::Receiver<Phase>,
    limits: Limits,
    /// Room for bodies, in units of [`BODY_UNIT`].
    bodies: Semaphore,
    /// Configured topics that were made sure of before something was published to them, and how.
    ensured: Mutex<BTreeMap<TopicPath, TopicSpec>>,
    metrics: Metrics,
}

/// What room for bodies is counted in, in bytes.
const BODY_UNIT: usize = 64 << 10;

impl Api {
    /// An API for these brokers and pipelines.
    ///
    /// # Panics
    /// If the registry has the API's metrics already.
    pub fn new(options: Options) -> Self {
        let Options { brokers, topics, default_broker, host_id, engine, registry, phase, limits } = options;
        let metrics = Metrics::register(&registry);
        let bodies = Semaphore::new(limits.bodies_bytes_max.div_ceil(BODY_UNIT));
        let ensured = Mutex::default();
        Self(Arc::new(Shared {
            brokers,
            topics,
            default_broker,
            host_id,
            engine,
            registry,
            phase,
            limits,
            bodies,
            ensured,
            metrics,
        }))
    }
}

/// What the API counts. Labels are routes and statuses, never names from requests.
struct Metrics {
    requests: IntCounterVec,
    published: IntCounterVec,
    connections: IntGauge,
    streams: IntGauge,
}

impl Metrics {
    fn register(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels).expect("constant names are valid");
            registry.register(Box::new(family.clone())).expect("registered once");
            family
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("constant names are valid");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        Self {
            requests: counter("synapse_http_requests_total", "Requests answered.", &["method", "route", "status"]),
            published: counter("synapse_http_events_published_total", "Events accepted over HTTP.", &["broker"]),
            connections: gauge("synapse_http_connections", "Open connections."),
            streams: gauge("synapse_http_streams", "Live streams at work."),
        }
    }
}

/// One more of what a gauge counts, for as long as this lives.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The state of every handler.
#[derive(Clone)]
struct Host {
    api: Api,
    /// Cancelled when the host ends: whatever may last for ever ends then.
    ending: CancellationToken,
    /// Whether only this machine reaches us, so that no other name than its own can be meant.
    loopback: bool,
}

fn router(host: Host) -> Router {
    Router::new()
        .route("/v1/topics", get(topics::list))
        .route("/v1/topics/{topic}", get(topics::show))
        .route("/v1/topics/{topic}/events", post(publish::publish).get(history::events))
        .route("/v1/pipelines", get(pipelines::list))
        .route("/v1/pipelines/{name}", get(pipelines::show))
        .route("/v1/pipelines/{name}/history", get(pipelines::history))
        .route("/metrics", get(health::metrics))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(host.clone(), guard::guard))
        .with_state(host)
}

async fn unknown_route(State(host): State<Host>, uri: Uri) -> Problem {
    let path = uri.path();
    let is_broker = |name: &str| name.parse().is_ok_and(|name| host.broker(&name).is_ok());
    let hint = match path.strip_prefix("/v1/topics/").and_then(|rest| rest.split_once('/')) {
        Some((broker, rest)) if is_broker(broker) => {
            format!("a topic's broker is a parameter: /v1/topics/{rest}?broker={broker}")
        }
        _ => "the API's routes begin with /v1/".to_owned(),
    };
    Problem::new(Kind::UnknownRoute, format!("there is nothing at `{path}`; {hint}"))
}

async fn wrong_method(method: axum::http::Method, uri: Uri) -> Problem {
    let detail = format!("`{}` does not answer {method}; the header `allow` says what it answers", uri.path());
    Problem::new(Kind::WrongMethod, detail)
}

impl Host {
    fn limits(&self) -> &Limits {
        &self.api.0.limits
    }

    /// The topic that a request names: `topic` or `broker/topic` (its slash percent-encoded) in the path, and perhaps
    /// the broker as a parameter.
    fn topic(&self, name: &str, broker: Option<&str>) -> Result<(TopicPath, Arc<dyn Broker>), Problem> {
        let bad = |error: synapse_core::topic::NameError| Problem::new(Kind::BadRequest, error.to_string());
        let given = broker.map(str::parse::<BrokerName>).transpose().map_err(bad)?;
        let path = TopicPath::parse(name, given.as_ref().unwrap_or(&self.api.0.default_broker)).map_err(bad)?;
        if let Some(given) = given.filter(|given| *given != path.broker) {
            let detail = format!("the path says broker `{}`, the parameter `broker` says `{given}`", path.broker);
            return Err(Problem::new(Kind::BadRequest, detail));
        }
        let broker = self.broker(&path.broker)?;
        Ok((path, broker))
    }

    fn broker(&self, name: &BrokerName) -> Result<Arc<dyn Broker>, Problem> {
        let brokers = &self.api.0.brokers;
        brokers.get(name).map_err(|_| {
            let known: Vec<_> = brokers.all().iter().map(|broker| format!("`{}`", broker.name())).collect();
            let detail = format!("there is no broker `{name}`; the configuration has {}", known.join(", "));
            Problem::new(Kind::UnknownBroker, detail)
        })
    }

    /// As [`Host::topic`], for a topic that has to exist.
    async fn existing(
        &self,
        name: &str,
        broker: Option<&str>,
    ) -> Result<(TopicPath, Arc<dyn Broker>, TopicInfo), Problem> {
        let (path, broker) = self.topic(name, broker)?;
        match broker.topic(&path.topic).await? {
            Some(info) => Ok((path, broker, info)),
            None => {
                let detail = format!(
                    "there is no topic `{}` on broker `{}`; it comes into being when something is published to it",
                    path.topic, path.broker
                );
                Err(Problem::new(Kind::UnknownTopic, detail))
            }
        }
    }
}

/// The name in a route's path.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|error| Problem::new(Kind::BadRequest, error.body_text()))
    }
}

/// The parameters behind a path; unknown ones are refused.
struct Params<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let params = Query::<T>::try_from_uri(&parts.uri);
        params.map(|Query(params)| Self(params)).map_err(|error| {
            let detail = error.body_text();
            // axum's own words first, then what was wrong: only the latter helps.
            let cause = detail.strip_prefix("Failed to deserialize query string: ").unwrap_or(&detail);
            Problem::new(Kind::BadRequest, format!("the parameters behind `?` do not fit: {cause}"))
        })
    }
}
