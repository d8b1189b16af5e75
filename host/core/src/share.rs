//! Sharing a pipeline's work among hosts: who works on which partitions, as it changes.
//!
//! Brokers know who the hosts are; the engine only follows what a [`Membership`] tells. That a host works on a
//! partition which another has by now, because it was away when that changed, loses and repeats nothing: the lane's fence
//! decides whose commits count, a share only spreads the work.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::broker::BrokerError;
use crate::spec::ReadMode;
use crate::topic::{Label, Offset, TopicName, TopicPartition};

/// A pipeline's work on one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The pipeline.
    pub pipeline: Label,
    /// What it reads there, at least one topic; they exist.
    pub topics: Vec<TopicName>,
    /// How it reads, where the broker has a choice.
    pub read: ReadMode,
}

/// This host among those that share a pipeline's work. Dropping it leaves them.
#[async_trait]
pub trait Membership: Send + Sync {
    /// Waits until the partitions that this host is to work on are others than it was told before, and tells all of
    /// them; the first call tells what it begins with. New partitions of the topics come in this way, too.
    ///
    /// To call it again says that the lanes of all partitions that were not among those told last have ended, so that
    /// other hosts may have them. Cancel-safe.
    ///
    /// # Errors
    /// Only what an operator has to mend; a broker that is away is waited for, with the shares as they were.
    async fn changed(&mut self) -> Result<BTreeSet<TopicPartition>, BrokerError>;
}

/// What the broker knows of one lane, whichever host works on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePlace {
    /// The partition that it reads.
    pub partition: TopicPartition,
    /// The host that works on it: its id, or what the broker calls it. `None`: nobody that the broker knows of.
    pub owner: Option<String>,
    /// The last entry that is done with.
    pub committed: Option<Offset>,
    /// How many entries lie behind that one, if the broker can tell.
    pub lag: Option<u64>,
}

/// Shares partitions out among `members`: each gets as many as any other, give or take one. Whoever knows the same
/// members comes to the same result, and few partitions move when a member comes or goes: rendezvous hashing (Thaler
/// and Ravishankar, 1998) with a bound on what one member gets. Without members the result is empty.
pub fn assign<'m>(
    partitions: &BTreeSet<TopicPartition>,
    members: &'m BTreeSet<String>,
) -> BTreeMap<TopicPartition, &'m str> {
    let mut loads: BTreeMap<&str, usize> = members.iter().map(|member| (member.as_str(), 0)).collect();
    let least = partitions.len().checked_div(members.len()).unwrap_or_default();
    let mut one_more = partitions.len().checked_rem(members.len()).unwrap_or_default();
    let mut assigned = BTreeMap::new();
    for partition in partitions {
        let place = xxh3_64_with_seed(partition.to_string().as_bytes(), 0);
        let with_room = loads.iter().filter(|(_, load)| **load < least || (**load == least && one_more > 0));
        let best =
            with_room.map(|(member, _)| *member).max_by_key(|member| xxh3_64_with_seed(member.as_bytes(), place));
        let Some(member) = best else { break };
        let load = loads.get_mut(member).expect("it was found there");
        one_more -= usize::from(*load == least);
        *load += 1;
        assigned.insert(partition.clone(), member);
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(count: u32) -> BTreeSet<TopicPartition> {
        (0..count).map(|partition| TopicPartition { topic: "bus/t".parse().unwrap(), partition }).collect()
    }

    fn members(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn everyone_gets_as_much_as_anyone() {
        for count in [0, 1, 2, 5, 12, 64] {
            for names in [&["a"][..], &["a", "b"], &["a", "b", "c"], &["a", "b", "c", "d", "e"]] {
                let members = members(names);
                let assigned = assign(&partitions(count), &members);
                assert_eq!(assigned.len(), count as usize, "every partition has an owner");
                let loads = names.iter().map(|name| assigned.values().filter(|owner| *owner == name).count());
                let loads: Vec<usize> = loads.collect();
                assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{count}: {loads:?}");
            }
        }
        assert_eq!(assign(&partitions(3), &members(&[])), BTreeMap::new());
    }

    #[test]
    fn few_partitions_move_when_a_member_goes() {
        let (all, before, after) = (partitions(60), members(&["a", "b", "c"]), members(&["a", "c"]));
        let (before, after) = (assign(&all, &before), assign(&all, &after));
        let moved = all.iter().filter(|at| before[*at] != "b" && before[*at] != after[*at]).count();
        assert!(moved <= 12, "{moved} of 40 that could have stayed");
    }
}
