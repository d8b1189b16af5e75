//! Properties of librdkafka's that the configuration may set, by the names that Kafka's own clients use.
//!
//! librdkafka knows some properties by several names, and would let the last one win. So names are told apart only after
//! [`canonical`]. Values may be secrets: none of them appears in a message.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

/// Properties that Synapse sets itself, and why nobody else may.
const OURS: [(&str, &str); 16] = [
    ("bootstrap.servers", "it is `bootstrap` of the broker"),
    ("session.timeout.ms", "it is `lease` of the broker"),
    ("group.id", "a pipeline's group has the pipeline's name"),
    ("client.id", "it names the host among the group's members"),
    ("group.instance.id", "hosts with one configuration would all be the same member"),
    ("transactional.id", "each lane has one of its own, which is its fence"),
    ("enable.idempotence", "without it a retry could repeat and reorder events"),
    ("acks", "what is acknowledged has to be durable"),
    ("delivery.report.only.error", "Synapse asks for those reports that it needs"),
    ("auto.commit.enable", "positions are committed with the effects of their events"),
    ("enable.auto.commit", "positions are committed with the effects of their events"),
    ("enable.auto.offset.store", "positions are committed with the effects of their events"),
    ("enable.partition.eof", "it is how the end of a topic is noticed"),
    ("auto.offset.reset", "it is `start` of the pipeline; nothing is skipped silently"),
    ("isolation.level", "events of transactions that were given up must not be read"),
    ("allow.auto.create.topics", "topics are made as `topics` in the configuration says"),
];

/// Properties of topics among librdkafka's, which it takes with `topic.` in front of them, too.
const OF_TOPICS: [&str; 16] = [
    "acks",
    "request.required.acks",
    "request.timeout.ms",
    "delivery.timeout.ms",
    "message.timeout.ms",
    "produce.offset.report",
    "partitioner",
    "compression.type",
    "compression.codec",
    "compression.level",
    "auto.commit.enable",
    "enable.auto.commit",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "offset.store.method",
    "consume.callback.max.messages",
];

/// Other names, and the name that Kafka's own clients use.
const ALIASES: [(&str, &str); 9] = [
    ("metadata.broker.list", "bootstrap.servers"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("sasl.mechanisms", "sasl.mechanism"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("message.send.max.retries", "retries"),
    ("compression.codec", "compression.type"),
    ("request.required.acks", "acks"),
    ("message.timeout.ms", "delivery.timeout.ms"),
];

/// The one name of a property that has several.
pub fn canonical(property: &str) -> &str {
    let of_topics = property.strip_prefix("topic.").filter(|name| OF_TOPICS.contains(name));
    let property = of_topics.unwrap_or(property);
    ALIASES.iter().find(|(alias, _)| *alias == property).map_or(property, |(_, name)| name)
}

/// All properties by their canonical names.
///
/// # Errors
/// Which one may not be set so, and why, as a sentence.
pub(super) fn checked(properties: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for (name, value) in properties {
        if let Some(why) = refuses(&name, &value) {
            return Err(format!("the property `{name}` of the client {why}"));
        }
        if all.insert(canonical(&name).to_owned(), value).is_some() {
            return Err(format!("the property `{name}` of the client is set under two names"));
        }
    }
    Ok(all)
}

/// Why a property may not be set so, if it may not: the rest of a sentence, without the value.
pub fn refuses(property: &str, value: &str) -> Option<String> {
    const LIST: &str = "https://docs.confluent.io/platform/current/clients/librdkafka/html/md_CONFIGURATION.html";
    let property = canonical(property);
    if let Some((_, why)) = OURS.iter().find(|(name, _)| *name == property) {
        return Some(format!("is set by Synapse itself: {why}"));
    }
    let tried = ClientConfig::new().set(property, value).create_native_config();
    tried.err().map(|error| match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..) => {
            format!("is no property of librdkafka; see {LIST}")
        }
        _ => format!("cannot have this value, says librdkafka; see {LIST}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_is_refused_by_any_of_its_names() {
        for name in ["group.id", "topic.auto.offset.reset", "request.required.acks", "metadata.broker.list"] {
            assert!(refuses(name, "x").is_some_and(|why| why.starts_with("is set by Synapse itself")), "{name}");
        }
        assert!(refuses("session.timeout.ms", "6000").is_some_and(|why| why.contains("`lease`")));
        assert_eq!(refuses("sasl.password", "secret"), None);
        for name in ["topic.message.timeout.ms", "topic.metadata.refresh.interval.ms"] {
            assert_eq!(refuses(name, "5000"), None);
        }
        assert!(refuses("topic.linger.ms", "5").unwrap().starts_with("is no property"));
    }

    #[test]
    fn what_is_set_twice_is_refused() {
        let set = |names: &[&str]| checked(names.iter().map(|name| ((*name).to_owned(), "5".to_owned())).collect());
        let both = set(&["linger.ms", "queue.buffering.max.ms"]).unwrap_err();
        assert_eq!(both, "the property `queue.buffering.max.ms` of the client is set under two names");
        assert!(set(&["linger.ms", "topic.delivery.timeout.ms"]).unwrap().contains_key("delivery.timeout.ms"));
    }

    #[test]
    fn what_librdkafka_does_not_take_is_refused_without_the_value() {
        assert!(refuses("compresion.type", "lz4").unwrap().starts_with("is no property"));
        let wrong = refuses("compression.type", "zzz").unwrap();
        assert!(wrong.starts_with("cannot have this value") && !wrong.contains("zzz"), "{wrong}");
    }

    /// librdkafka takes each pair for one property.
    #[test]
    fn aliases_are_those_of_librdkafka() {
        for (alias, name) in ALIASES {
            let values = ["7000", "1", "PLAIN", "lz4", "h:9092"];
            let read = |set: &[(&str, &str)], get: &str| {
                let mut config = ClientConfig::new();
                for (name, value) in set {
                    config.set(*name, *value);
                }
                config.create_native_config().ok()?.get(get).ok()
            };
            let is_same = |value: &&str| {
                let told = read(&[(alias, value)], name);
                told.is_some() && told == read(&[(name, value)], alias) && told != read(&[], name)
            };
            assert!(values.iter().any(is_same), "{alias} is not {name}");
        }
    }
}
