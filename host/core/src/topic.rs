//! Names of brokers and topics, and places in them: `(topic, partition, offset)`.
//!
//! Invariant: a name that exists is valid, so nothing behind this module checks names again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not the name or the place it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct NameError {
    text: String,
    expected: &'static str,
}

impl NameError {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(300).collect(), expected }
    }

    /// What the text should have been, such as `a broker name (…)`: for messages that must not repeat the text.
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $expected:expr, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { Err(NameError::new(text, $expected)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_label(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

name_type!(
    /// A broker's name in the configuration, for example `bus`.
    BrokerName,
    "a broker name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)",
    is_label
);

name_type!(
    /// A pipeline's, stage's or tenant's name.
    Label,
    "a name (1 to 64 of a-z, A-Z, 0-9, `-`, `_`, `.`)",
    is_label
);

name_type!(
    /// A topic's name on its broker, for example `model-events`.
    TopicName,
    "a topic name (1 to 200 of a-z, A-Z, 0-9, `-`, `_`, `.`, `:`)",
    |text| (1..=200).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'))
);

/// A topic on a broker, written `broker/topic`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPath {
    /// The broker that holds the topic.
    pub broker: BrokerName,
    /// The topic on it.
    pub topic: TopicName,
}

impl TopicPath {
    /// Reads `broker/topic`, or `topic` on the default broker.
    ///
    /// # Errors
    /// A part that is not a valid name.
    pub fn parse(text: &str, default_broker: &BrokerName) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((broker, topic)) => Ok(Self { broker: broker.parse()?, topic: topic.parse()? }),
            None => Ok(Self { broker: default_broker.clone(), topic: text.parse()? }),
        }
    }
}

impl TopicPath {
    /// Its first `count` shards, in order.
    pub fn partitions(&self, count: u32) -> impl Iterator<Item = TopicPartition> + use<> {
        let topic = self.clone();
        (0..count).map(move |partition| TopicPartition { topic: topic.clone(), partition })
    }
}

impl fmt::Display for TopicPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.broker, self.topic)
    }
}

impl FromStr for TopicPath {
    type Err = NameError;

    /// Reads `broker/topic`; both parts are needed.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (broker, topic) =
            text.split_once('/').ok_or_else(|| NameError::new(text, "a topic written `broker/topic`"))?;
        Ok(Self { broker: broker.parse()?, topic: topic.parse()? })
    }
}

impl TryFrom<String> for TopicPath {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<TopicPath> for String {
    fn from(path: TopicPath) -> Self {
        path.to_string()
    }
}

/// One shard of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicPath,
    /// The shard, from 0.
    pub partition: u32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A place in a partition. Within one partition offsets ascend; they need not be dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Offset {
    /// A count from 0: the embedded log, memory, Kafka. Written `17`.
    Number(u64),
    /// A Redis entry id. Written `1526919030474-55`.
    Entry {
        /// Milliseconds since the Unix epoch, by the server's clock.
        ms: u64,
        /// Tells entries of one millisecond apart.
        seq: u64,
    },
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Entry { ms, seq } => write!(f, "{ms}-{seq}"),
        }
    }
}

impl FromStr for Offset {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::new(text, "an offset such as 17 or 1526919030474-55");
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten().ok_or_else(error)
        };
        match text.split_once('-') {
            Some((ms, seq)) => Ok(Self::Entry { ms: number(ms)?, seq: number(seq)? }),
            None => Ok(Self::Number(number(text)?)),
        }
    }
}

impl TryFrom<String> for Offset {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Offset> for String {
    fn from(offset: Offset) -> Self {
        offset.to_string()
    }
}

/// A place of one event: `broker/topic/partition/offset`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    /// The topic's shard.
    pub at: TopicPartition,
    /// The place in it.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at, self.offset)
    }
}

impl FromStr for Position {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::new(text, "a position written `broker/topic/partition/offset`");
        let (rest, offset) = text.rsplit_once('/').ok_or_else(error)?;
        let (topic, partition) = rest.rsplit_once('/').ok_or_else(error)?;
        let partition = partition.parse().map_err(|_| error())?;
        Ok(Self { at: TopicPartition { topic: topic.parse()?, partition }, offset: offset.parse()? })
    }
}

impl TryFrom<String> for Position {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

/// The partition that events with this key go to, of `partitions`. Stable for ever: stored data depends on it (xxh3,
/// 64 bits, seed 0, modulo). Without a key the event's id decides.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    let hash = xxhash_rust::xxh3::xxh3_64(key);
    u32::try_from(hash % u64::from(partitions.max(1))).expect("a remainder below a u32 is a u32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back() {
        for text in ["local/flights/0/17", "bus/model-events/3/1526919030474-55"] {
            assert_eq!(text.parse::<Position>().unwrap().to_string(), text);
        }
        for text in ["flights/0/1", "local/flights/x/1", "local/flights/0/-1", "local/flights/0/1-", "local/a b/0/1"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_keep_their_partition_for_ever() {
        assert_eq!([1, 2, 7, 1000].map(|n| partition_of(b"N14228", n)), [0, 0, 3, 462]);
    }
}
