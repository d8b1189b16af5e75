//! What was acknowledged against what was received: lost, repeated, out of order.
//!
//! Every producer logs what was acknowledged, every sink what it received; this is the one place that judges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a producer sent, or a sink received: an id within the order of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt {
    /// The ordering key.
    pub key: String,
    /// Ascends within the key.
    pub number: u64,
}

impl Receipt {
    /// Reads `key/number`, which is how producers here make ids.
    ///
    /// # Panics
    /// If the id is another.
    pub fn from_id(id: &str) -> Self {
        let (key, number) = id.rsplit_once('/').expect("ids of these tests are key/number");
        Self { key: key.to_owned(), number: number.parse().expect("ids of these tests end in a number") }
    }
}

/// How sinks differ from producers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged but never received.
    pub lost: Vec<Receipt>,
    /// Received more than once.
    pub repeated: Vec<Receipt>,
    /// Received after a later one of the same key.
    pub out_of_order: Vec<Receipt>,
    /// Received though nobody sent it.
    pub invented: Vec<Receipt>,
    /// How many were received.
    pub received: usize,
}

impl Verdict {
    /// Whether every event came exactly once and in order.
    pub fn is_exact(&self) -> bool {
        self.lost.is_empty() && self.repeated.is_empty() && self.out_of_order.is_empty() && self.invented.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = |receipts: &[Receipt]| receipts.first().map_or(String::new(), |at| format!(" (first {at:?})"));
        write!(
            f,
            "{} received, {} lost{}, {} repeated{}, {} out of order{}, {} invented{}",
            self.received,
            self.lost.len(),
            first(&self.lost),
            self.repeated.len(),
            first(&self.repeated),
            self.out_of_order.len(),
            first(&self.out_of_order),
            self.invented.len(),
            first(&self.invented),
        )
    }
}

/// Compares. `sent` may hold more than was acknowledged: what was sent without an answer may or may not arrive.
pub fn check(sent: &[Receipt], acknowledged: &[Receipt], received: &[Receipt]) -> Verdict {
    let known: BTreeSet<&Receipt> = sent.iter().collect();
    let mut verdict = Verdict { received: received.len(), ..Verdict::default() };
    let mut seen = BTreeSet::new();
    let mut latest: BTreeMap<&str, u64> = BTreeMap::new();
    for receipt in received {
        if !known.contains(receipt) {
            verdict.invented.push(receipt.clone());
        }
        if !seen.insert(receipt) {
            verdict.repeated.push(receipt.clone());
            continue;
        }
        let last = latest.entry(&receipt.key).or_insert(receipt.number);
        if receipt.number < *last {
            verdict.out_of_order.push(receipt.clone());
        }
        *last = receipt.number.max(*last);
    }
    verdict.lost = acknowledged.iter().filter(|receipt| !seen.contains(receipt)).cloned().collect();
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipts(ids: &[&str]) -> Vec<Receipt> {
        ids.iter().map(|id| Receipt::from_id(id)).collect()
    }

    #[test]
    fn each_fault_is_seen() {
        let sent = receipts(&["a/1", "a/2", "a/3", "b/1"]);
        let fine = check(&sent, &sent, &receipts(&["a/1", "b/1", "a/2", "a/3"]));
        assert!(fine.is_exact(), "{fine}");
        let faulty = check(&sent, &sent[..3], &receipts(&["a/2", "a/1", "a/2", "c/9"]));
        assert_eq!(faulty.lost, receipts(&["a/3"]));
        assert_eq!(faulty.repeated, receipts(&["a/2"]));
        assert_eq!(faulty.out_of_order, receipts(&["a/1"]));
        assert_eq!(faulty.invented, receipts(&["c/9"]));
    }
}
