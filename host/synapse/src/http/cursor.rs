//! Where reading a topic begins and ends, as clients write it.
//!
//! A [`Cursor`] is a place in every partition at once: `0@17,1@22` goes on behind offset 17 of partition 0 and behind 22
//! of partition 1. Partitions that it does not name begin at its rest, written `*@…` unless that is `earliest`. It
//! travels as `next` of a page and as the id of a live stream's event, and comes back as `from` or `Last-Event-ID`:
//! whoever gives it back misses nothing and sees nothing twice. Plain places (`earliest`, `latest`, a time, an offset)
//! are cursors that name no partition.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use synapse_core::broker::TopicInfo;
use synapse_core::spec::ReadFrom;
use synapse_core::{Offset, Timestamp};

/// A place in every partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    after: BTreeMap<u32, Offset>,
    rest: Bound,
}

/// A place that is the same for every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// The oldest event that is kept.
    Earliest,
    /// Behind the newest event.
    Latest,
    /// The first event that came at or after this time.
    Time(Timestamp),
    /// The first event at or after this offset.
    Offset(Offset),
}

impl Cursor {
    pub(super) fn new(rest: Bound) -> Self {
        Self { after: BTreeMap::new(), rest }
    }

    /// Where reading of a partition begins.
    pub(super) fn start(&self, partition: u32) -> ReadFrom {
        match (self.after.get(&partition), self.rest) {
            (Some(offset), _) => ReadFrom::After(*offset),
            (None, Bound::Earliest) => ReadFrom::Earliest,
            (None, Bound::Latest) => ReadFrom::Latest,
            (None, Bound::Time(time)) => ReadFrom::Time(time),
            (None, Bound::Offset(offset)) => ReadFrom::At(offset),
        }
    }

    /// Everything up to `offset` is done with.
    pub(super) fn advance(&mut self, partition: u32, offset: Offset) {
        self.after.insert(partition, offset);
    }

    /// Whether everything up to `offset` is done with.
    pub(super) fn covers(&self, partition: u32, offset: Offset) -> bool {
        self.after.get(&partition).is_some_and(|done| *done >= offset)
    }

    /// Turns "the newest" into places that stay where they are: what comes while a client is away is not missed.
    pub(super) fn pin(&mut self, info: &TopicInfo) {
        if self.rest != Bound::Latest {
            return;
        }
        for (partition, info) in (0..).zip(&info.partitions) {
            if let Some(latest) = info.latest {
                self.after.entry(partition).or_insert(latest);
            }
        }
        self.rest = Bound::Earliest;
    }
}

/// A text that is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlace;

impl FromStr for Bound {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match text.parse() {
                Ok(offset) => Ok(Self::Offset(offset)),
                Err(_) => text.parse().map(Self::Time).map_err(|_| NoPlace),
            },
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Time(time) => time.fmt(f),
            Self::Offset(offset) => offset.fmt(f),
        }
    }
}

impl FromStr for Cursor {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        if !text.contains('@') {
            return text.parse().map(Self::new);
        }
        let mut cursor = Self::new(Bound::Earliest);
        for part in text.split(',') {
            let (partition, place) = part.split_once('@').ok_or(NoPlace)?;
            if partition == "*" {
                cursor.rest = place.parse()?;
            } else {
                let partition = partition.parse().map_err(|_| NoPlace)?;
                cursor.after.insert(partition, place.parse().map_err(|_| NoPlace)?);
            }
        }
        Ok(cursor)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (partition, offset) in &self.after {
            write!(f, "{between}{partition}@{offset}")?;
            between = ",";
        }
        if self.after.is_empty() || self.rest != Bound::Earliest {
            write!(f, "{between}*@{}", self.rest)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use synapse_core::broker::PartitionInfo;

    #[test]
    fn places_are_read_as_people_write_them() {
        let start = |text: &str| text.parse::<Cursor>().unwrap().start(0);
        assert_eq!(start("earliest"), ReadFrom::Earliest);
        assert_eq!(start("latest"), ReadFrom::Latest);
        assert_eq!(start("17"), ReadFrom::At(Offset::Number(17)));
        assert_eq!(start("1526919030474-55"), ReadFrom::At(Offset::Entry { ms: 1_526_919_030_474, seq: 55 }));
        assert_eq!(start("1970-01-01T00:00:01+00:00"), ReadFrom::Time(Timestamp::from_micros(1_000_000)));
        assert_eq!(start("0@17,1@3"), ReadFrom::After(Offset::Number(17)));
        assert_eq!(start("1@3"), ReadFrom::Earliest);
        assert_eq!(start("1@3,*@1970-01-01T00:00:01Z"), ReadFrom::Time(Timestamp::from_micros(1_000_000)));
        for text in ["", "yesterday", "@", "0@", "0@1,", "0@1,x@2", "-1", "0@earliest", "*@"] {
            assert_eq!(text.parse::<Cursor>(), Err(NoPlace), "{text}");
        }
    }

    #[test]
    fn the_newest_is_pinned_where_it_was() {
        let partition = |latest| PartitionInfo { latest, ..PartitionInfo::default() };
        let partitions = vec![partition(Some(Offset::Number(4))), partition(None)];
        let mut cursor: Cursor = "latest".parse().unwrap();
        cursor.pin(&TopicInfo { name: "t".parse().unwrap(), partitions, at_most: false });
        assert_eq!(cursor.start(0), ReadFrom::After(Offset::Number(4)));
        assert_eq!(cursor.start(1), ReadFrom::Earliest);
        assert_eq!(cursor.to_string(), "0@4");
    }

    fn offset() -> impl Strategy<Value = Offset> {
        prop_oneof![
            any::<u64>().prop_map(Offset::Number),
            any::<(u64, u64)>().prop_map(|(ms, seq)| Offset::Entry { ms, seq })
        ]
    }

    fn bound() -> impl Strategy<Value = Bound> {
        prop_oneof![
            Just(Bound::Earliest),
            Just(Bound::Latest),
            (0i64..1 << 51).prop_map(|micros| Bound::Time(Timestamp::from_micros(micros))),
            offset().prop_map(Bound::Offset),
        ]
    }

    proptest! {
        #[test]
        fn cursors_read_back(after in proptest::collection::btree_map(any::<u32>(), offset(), 0..4), rest in bound()) {
            let cursor = Cursor { after, rest };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn no_text_makes_reading_panic(text in "[0-9@,*.TZ-]{0,20}") {
            let _ = text.parse::<Cursor>();
        }
    }
}
