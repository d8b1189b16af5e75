//! How librdkafka's clients are made, what they say, and what their errors mean.
//!
//! Values of properties may be secrets: none of those appears in a message or a log. This module does not know topics,
//! groups or lanes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::admin::AdminClient;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::BaseProducer;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};
use synapse_core::broker::BrokerErrorKind;
use synapse_core::{BrokerError, BrokerName};

use super::member::Rebalanced;
use super::publish::ProducerSide;
use super::reach::{Away, Reach, plain, seconds};

/// Largest record that is sent, in bytes, unless `message.max.bytes` says otherwise.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 20;
/// How long an answer may take of a cluster that is known to be away.
pub(super) const AWAY_TIMEOUT: Duration = Duration::from_secs(2);
/// A member hears of a rebalance when its heartbeat is answered, and partitions that are handed over stand still until
/// the last member has heard: so it beats more often than it has to in order to stay alive.
const HEARTBEAT_EVERY_MAX: Duration = Duration::from_millis(500);

/// How long a member may be busy at least before it counts as dead: librdkafka's own default.
const POLL_INTERVAL_MIN: Duration = Duration::from_secs(300);

/// What every client of a cluster has in common.
pub(super) struct Cluster {
    pub(super) broker: BrokerName,
    pub(super) bootstrap: String,
    pub(super) host: String,
    /// How long a connection or an answer may take.
    pub(super) timeout: Duration,
    /// How long a member of a group counts as alive after it was last heard of.
    pub(super) lease: Duration,
    /// By their canonical names, as all that is set here.
    pub(super) properties: BTreeMap<String, String>,
    pub(super) reach: Arc<Reach>,
}

impl Cluster {
    pub(super) fn new(
        broker: BrokerName,
        bootstrap: String,
        host: String,
        timeout: Duration,
        lease: Duration,
        properties: BTreeMap<String, String>,
    ) -> Self {
        Self { broker, bootstrap, host, timeout, lease, properties, reach: Arc::default() }
    }

    /// For clients that only read: no group is joined by it, though librdkafka wants one to be named.
    pub(super) fn reader(&self) -> ClientConfig {
        let mut config = self.consumer("synapse.readers");
        let defaults = [
            // What is fetched ahead of each partition is bounded, and fetching goes on soon after it was taken.
            ("queued.max.messages.kbytes", "8192"),
            ("fetch.queue.backoff.ms", "5"),
            // A partition that is added waits until the server has answered the fetch of the others.
            ("fetch.wait.max.ms", "100"),
        ];
        self.set(&mut config, &defaults);
        config
    }

    /// For a member of a pipeline's group.
    pub(super) fn member(&self, group: &str) -> ClientConfig {
        let mut config = self.consumer(group);
        if self.is_classic() {
            self.set(&mut config, &[("partition.assignment.strategy", "cooperative-sticky")]);
        }
        let defaults = [
            // New partitions are to be noticed soon. What is fetched before a partition is paused is for nothing.
            ("topic.metadata.refresh.interval.ms", "10000"),
            ("queued.max.messages.kbytes", "64"),
        ];
        self.set(&mut config, &defaults);
        config
    }

    /// With the newer group protocol (KIP-848) some things are the server's to decide, and librdkafka refuses them.
    fn is_classic(&self) -> bool {
        self.properties.get("group.protocol").is_none_or(|protocol| protocol.eq_ignore_ascii_case("classic"))
    }

    /// For a client that joins no group and only knows its name.
    pub(super) fn nobody(&self, group: &str) -> ClientConfig {
        let mut config = self.member(group);
        if !self.is_classic() {
            // A client of the newer protocol names itself before it has joined, and would be checked.
            for name in ["group.protocol", "group.remote.assignor", "max.poll.interval.ms"] {
                config.remove(name);
            }
        }
        config
    }

    fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        let ours = [
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
        ];
        for (name, value) in ours {
            config.set(name, value);
        }
        let times = [self.lease, HEARTBEAT_EVERY_MAX.min(self.lease / 5), POLL_INTERVAL_MIN.max(self.lease)];
        let [lease, beat, poll_interval] = times.map(|time| time.as_millis().to_string());
        // Those who join no group have them, too, since librdkafka wants them to go together.
        if self.is_classic() {
            self.set(&mut config, &[("session.timeout.ms", &lease), ("heartbeat.interval.ms", &beat)]);
        }
        self.set(&mut config, &[("max.poll.interval.ms", &poll_interval)]);
        config
    }

    /// For publishing outside of transactions.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("enable.idempotence", "true").set("acks", "all");
        let timeout = (3 * self.timeout).as_millis().to_string();
        let record_bytes_max = RECORD_BYTES_MAX.to_string();
        let defaults = [
            ("message.max.bytes", record_bytes_max.as_str()),
            ("delivery.timeout.ms", timeout.as_str()),
            // Records that come together go together; nobody waits long for it.
            ("linger.ms", "1"),
            ("queue.buffering.max.kbytes", "65536"),
        ];
        self.set(&mut config, &defaults);
        config
    }

    /// For a lane's commits.
    pub(super) fn transactional(&self, id: &str) -> ClientConfig {
        let mut config = self.producer();
        // Only failures are told of, one by one.
        config.set("transactional.id", id).set("delivery.report.only.error", "true");
        // It must not be shorter than that of a delivery.
        let delivery = self.properties.get("delivery.timeout.ms").and_then(|ms| ms.parse().ok());
        let timeout = (3 * self.timeout).max(Duration::from_millis(delivery.unwrap_or_default()));
        self.set(&mut config, &[("transaction.timeout.ms", &timeout.as_millis().to_string())]);
        config
    }

    /// Whether librdkafka would make clients with these properties; nothing is connected to.
    ///
    /// # Errors
    /// `Invalid`: it refuses them, as it does properties that contradict each other, and files that are not there.
    pub(super) fn check(&self) -> Result<(), BrokerError> {
        let interval =
            self.properties.get("max.poll.interval.ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        if interval.is_some_and(|interval| interval < self.lease) {
            let lease = self.lease;
            return Err(self
                .invalid(format_args!("`max.poll.interval.ms` must not be shorter than `lease`, which is {lease:?}")));
        }
        let offline = |mut config: ClientConfig| {
            config.remove("bootstrap.servers");
            config
        };
        let failed = |error: KafkaError| self.failed("make a client", &error);
        let admin = offline(self.reader());
        drop(admin.create_with_context::<_, AdminClient<Context>>(self.context()).map_err(failed)?);
        for config in [self.reader(), self.member("check"), self.nobody("check")] {
            drop(offline(config).create_with_context::<_, BaseConsumer<Context>>(self.context()).map_err(failed)?);
        }
        for config in [self.producer(), self.transactional("check")] {
            let side = ProducerSide(self.context());
            drop(offline(config).create_with_context::<_, BaseProducer<_>>(side).map_err(failed)?);
        }
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let timeout = self.timeout.as_millis().to_string();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", format!("synapse-{}", self.host))
            .set("allow.auto.create.topics", "false")
            .set("socket.timeout.ms", &timeout)
            .set("socket.connection.setup.timeout.ms", &timeout)
            // A broker that comes back is to be noticed soon.
            .set("reconnect.backoff.max.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Warning);
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    /// Defaults of a role, which the configuration of the broker may replace.
    fn set(&self, config: &mut ClientConfig, defaults: &[(&str, &str)]) {
        for (name, value) in defaults.iter().filter(|(name, _)| !self.properties.contains_key(*name)) {
            config.set(*name, *value);
        }
    }

    /// Why the cluster cannot be used just now, if it is known to be away.
    pub(super) fn away(&self) -> Option<String> {
        self.reach.away().map(|away| self.tell(&away))
    }

    pub(super) fn tell(&self, away: &Away) -> String {
        let (bootstrap, time) = (&self.bootstrap, seconds(away.since.elapsed()));
        match &away.why {
            Some((code, reason)) if meaning(*code).0 == BrokerErrorKind::Refused => {
                format!("no server at {bootstrap} has let the host in for {time} ({})", plain(reason, bootstrap))
            }
            Some((_, reason)) => {
                format!("no server at {bootstrap} could be reached for {time} ({})", plain(reason, bootstrap))
            }
            None => format!("no server at {bootstrap} could be reached for {time}"),
        }
    }

    /// How long a question may take: little, of a cluster that is known to be away.
    pub(super) fn patience(&self) -> Duration {
        if self.reach.is_away() { self.timeout.min(AWAY_TIMEOUT) } else { self.timeout }
    }

    pub(super) fn context(&self) -> Context {
        Context { broker: self.broker.clone(), reach: Arc::clone(&self.reach), rebalanced: None }
    }

    /// As [`Cluster::context`], for a member of a group.
    pub(super) fn member_context(&self, rebalanced: Rebalanced) -> Context {
        Context { rebalanced: Some(rebalanced), ..self.context() }
    }

    pub(super) fn error(&self, kind: BrokerErrorKind, message: impl fmt::Display) -> BrokerError {
        BrokerError { broker: self.broker.clone(), kind, message: message.to_string() }
    }

    pub(super) fn invalid(&self, message: impl fmt::Display) -> BrokerError {
        self.error(BrokerErrorKind::Invalid, message)
    }

    /// librdkafka could not do something.
    pub(super) fn failed(&self, doing: &str, error: &KafkaError) -> BrokerError {
        match (error, error.rdkafka_error_code()) {
            // The reason that librdkafka gives has the value in it.
            (KafkaError::ClientConfig(_, _, name, _), _) => self.invalid(format_args!(
                "could not {doing}: librdkafka refuses the property `{name}` of the client; mend it in the broker's \
                 `client` table"
            )),
            (KafkaError::ClientCreation(reason), _) => self.invalid(format_args!(
                "could not {doing}: librdkafka refuses its configuration ({reason}); mend the broker's `client` table"
            )),
            (KafkaError::Transaction(error), _) => self.refused(doing, error.code(), &error.string()),
            (_, Some(code)) => self.refused(doing, code, &code.to_string()),
            (other, None) => self.refused(doing, RDKafkaErrorCode::Fail, &other.to_string()),
        }
    }

    /// As [`Cluster::failed`], by the code.
    pub(super) fn refused(&self, doing: &str, code: RDKafkaErrorCode, what: &str) -> BrokerError {
        let ((kind, remedy), what) = match self.reach.recent() {
            // Why it took too long is in what it complained of. It may be one server's complaint: who was let in once is
            // let in again.
            Some((cause, reason)) if is_vague(code) => match meaning(cause) {
                (_, remedy) if self.reach.was_ever_there() => {
                    ((BrokerErrorKind::Unavailable, remedy), plain(&reason, &self.bootstrap))
                }
                refusal => (refusal, plain(&reason, &self.bootstrap)),
            },
            _ => (meaning(code), what.to_owned()),
        };
        let bootstrap = &self.bootstrap;
        self.error(kind, format_args!("could not {doing} at {bootstrap}: {what}; {remedy}"))
    }
}

/// Whether an error only says that there was no answer.
fn is_vague(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::OperationTimedOut
            | Code::BrokerTransportFailure
            | Code::MessageTimedOut
            | Code::AllBrokersDown
            | Code::TimedOutQueue
    )
}

/// What an error means, and what to do.
fn meaning(code: RDKafkaErrorCode) -> (BrokerErrorKind, &'static str) {
    use BrokerErrorKind::{Fenced, Full, Invalid, Refused, Unavailable};
    use RDKafkaErrorCode as Code;
    match code {
        Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Fenced | Code::InvalidProducerIdMapping => {
            (Fenced, "another host has the lane now")
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled => (Refused, "check the `sasl.*` and `security.protocol` properties of its client"),
        Code::SSL => (Refused, "check the `ssl.*` properties of its client and the server's certificate"),
        Code::TopicAuthorizationFailed => {
            (Refused, "let Synapse's user read, write, describe and, if it is to make topics, create the topic")
        }
        Code::GroupAuthorizationFailed => {
            (Refused, "let Synapse's user read the pipeline's group and `synapse.readers`")
        }
        Code::TransactionalIdAuthorizationFailed => {
            (Refused, "let Synapse's user write to transactional ids that begin with `synapse/`")
        }
        Code::ClusterAuthorizationFailed => {
            (Refused, "let Synapse's user create topics, or make them by hand and leave them out of `topics`")
        }
        Code::PolicyViolation | Code::InvalidConfig | Code::InvalidReplicationFactor | Code::InvalidPartitions => {
            (Invalid, "the server does not allow such a topic: check `topics` and the server's policies")
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::InvalidTopic => {
            (Unavailable, "the servers do not know the topic just now: see whether it was deleted")
        }
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => (
            Invalid,
            "an event is larger than the topic takes: raise its `max.message.bytes` and `message.max.bytes` of the \
             broker's `client`, or let a filter drop such events",
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature => {
            (Invalid, "the server is too old: Kafka 2.5 or newer is needed")
        }
        Code::InvalidTransactionTimeout => (
            Invalid,
            "raise the server's `transaction.max.timeout.ms`, or lower `transaction.timeout.ms` or `delivery.timeout.ms` \
             of the broker's `client`",
        ),
        Code::InvalidSessionTimeout => (
            Invalid,
            "choose a `lease` within the server's group.min.session.timeout.ms and group.max.session.timeout.ms, and start the \
             host again",
        ),
        Code::KafkaStorageError | Code::LogDirNotFound => (Full, "the server cannot write: check its disk"),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            (Unavailable, "too few replicas are in sync for now, and it is tried again; check the servers")
        }
        _ => (Unavailable, "check that Kafka runs there and can be reached"),
    }
}

/// What librdkafka tells its clients' owner.
#[derive(Clone)]
pub(super) struct Context {
    broker: BrokerName,
    reach: Arc<Reach>,
    rebalanced: Option<Rebalanced>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Properties for producers are said to be ignored by consumers, and the other way round.
        if facility == "CONFWARN" {
            return;
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(broker = %self.broker, facility, "librdkafka: {message}");
            }
            // Connections come and go; what that costs is told by who notices.
            _ => tracing::debug!(broker = %self.broker, facility, "librdkafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(broker = %self.broker, %error, reason, "librdkafka complains");
        if let Some(code) = error.rdkafka_error_code() {
            self.reach.note(code, reason);
        }
    }

    fn stats(&self, _: Statistics) {}
}

impl ConsumerContext for Context {
    fn rebalance(&self, member: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if let Some(rebalanced) = &self.rebalanced {
            rebalanced.told(member, event, partitions);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn cluster(properties: &[(&str, &str)]) -> Cluster {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (timeout, lease) = (Duration::from_secs(10), Duration::from_secs(15));
        Cluster::new("k".parse().unwrap(), "h:9092".into(), "one".into(), timeout, lease, properties.collect())
    }

    #[test]
    fn properties_replace_defaults_but_not_what_is_ours() {
        let cluster = cluster(&[("linger.ms", "20"), ("max.poll.interval.ms", "60000")]);
        assert_eq!(cluster.producer().get("linger.ms"), Some("20"));
        assert_eq!(cluster.member("p").get("max.poll.interval.ms"), Some("60000"));
        assert_eq!(cluster.member("p").get("session.timeout.ms"), Some("15000"));
        assert_eq!(cluster.member("p").get("heartbeat.interval.ms"), Some("500"));
    }

    #[test]
    fn what_librdkafka_would_refuse_is_found_without_a_server() {
        cluster(&[("compression.type", "lz4"), ("group.protocol", "Consumer")]).check().unwrap();
        for timeout in ["0", "5000", "60000"] {
            cluster(&[("delivery.timeout.ms", timeout), ("max.poll.interval.ms", "15000")]).check().unwrap();
        }
        Cluster { lease: Duration::from_secs(600), ..cluster(&[]) }.check().unwrap();
        cluster(&[("group.protocol", "consumer"), ("max.poll.interval.ms", "15000")]).check().unwrap();
        let error = cluster(&[("max.poll.interval.ms", "14999")]).check().unwrap_err();
        assert!(error.message.contains("max.poll.interval.ms"), "{error}");
        let error = cluster(&[("security.protocol", "ssl"), ("ssl.ca.location", "/no/such")]).check().unwrap_err();
        assert!(error.message.contains("ssl.ca.location"), "{error}");
    }

    #[test]
    fn a_property_that_has_several_names_replaces_its_default() {
        let set = [("message.timeout.ms", "5000"), ("queue.buffering.max.ms", "9")];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let properties = super::super::properties::checked(set.into()).unwrap();
        let config = Cluster { properties, ..cluster(&[]) }.producer();
        let names = ["delivery.timeout.ms", "message.timeout.ms", "linger.ms", "queue.buffering.max.ms"];
        assert_eq!(names.map(|name| config.get(name)), [Some("5000"), None, Some("9"), None]);
    }

    #[test]
    fn little_is_waited_for_a_cluster_that_is_away() {
        let cluster = cluster(&[]);
        assert_eq!((cluster.patience(), cluster.away()), (cluster.timeout, None));
        cluster.reach.goes_now();
        assert_eq!(cluster.patience(), AWAY_TIMEOUT);
        assert_eq!(cluster.away().unwrap(), "no server at h:9092 could be reached for 0 s");
        cluster.reach.note(RDKafkaErrorCode::Authentication, "h:9092/1: SASL authentication error: no");
        let refused = "no server at h:9092 has let the host in for 0 s (SASL authentication error: no)";
        assert_eq!(cluster.away().unwrap(), refused);
    }

    #[test]
    fn the_newer_group_protocol_decides_for_itself() {
        let config = cluster(&[("group.protocol", "consumer")]).member("p");
        let theirs = ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"];
        assert_eq!(theirs.map(|name| config.get(name)), [None, None, None]);
    }

    #[test]
    fn a_timeout_is_told_with_its_cause_and_without_secrets() {
        let cluster = cluster(&[("sasl.password", "secret")]);
        let timed_out = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        assert_eq!(cluster.failed("look", &timed_out).kind, BrokerErrorKind::Unavailable);
        let authentication = KafkaError::Global(RDKafkaErrorCode::Authentication);
        cluster.context().error(authentication, "SASL authentication error: Authentication failed");
        let error = cluster.failed("look", &timed_out);
        assert_eq!(error.kind, BrokerErrorKind::Refused);
        assert!(error.message.contains("Authentication failed") && !error.message.contains("secret"), "{error}");
        // Of whom the cluster knows already it is one server's complaint.
        cluster.reach.has_answered(Instant::now());
        let error = cluster.failed("look", &timed_out);
        assert_eq!(error.kind, BrokerErrorKind::Unavailable);
        assert!(error.message.contains("Authentication failed"), "{error}");
    }
}
