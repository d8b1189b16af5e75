//! What was acknowledged against what was received: lost, repeated, out of order.
//!
//! Every producer logs what was acknowledged, every sink what it received; this is the one place that judges. [`check`]
//! compares two lists; an [`Account`] is everything that is known after a run under a fault, and a [`Promise`] what it is
//! measured against. Nothing here knows brokers or hosts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

/// What a producer sent, or a sink received: an id within the order of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// What is promised of a pipeline under a fault. Nothing is ever invented, and nothing ends in another place than its
/// plugins say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// What may be lost.
    pub loss: Loss,
    /// Whether events may be written again.
    pub repeats: bool,
    /// Whether events of one key stay in order, first writings among each other.
    pub order: bool,
}

/// What may be lost of what was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// What the source itself no longer has; of what it has, nothing.
    BrokersOwn,
    /// Exactly as many as the host counted as trimmed before it read them.
    Counted,
}

impl Promise {
    /// Each event once, in order.
    pub const EXACTLY_ONCE: Self = Self { loss: Loss::Nothing, repeats: false, order: true };
    /// Each event once; several readers share the work, so in any order.
    pub const EXACTLY_ONCE_UNORDERED: Self = Self { order: false, ..Self::EXACTLY_ONCE };
    /// Each event at least once, its first writing in order.
    pub const AT_LEAST_ONCE: Self = Self { repeats: true, ..Self::EXACTLY_ONCE };
    /// Each event that the broker kept once, in order.
    pub const WHAT_THE_BROKER_KEPT: Self = Self { loss: Loss::BrokersOwn, ..Self::EXACTLY_ONCE };
    /// Each event once, in order, but for those counted as trimmed.
    pub const ALL_BUT_TRIMMED: Self = Self { loss: Loss::Counted, ..Self::EXACTLY_ONCE };
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.repeats { "at least once" } else { "exactly once" })?;
        f.write_str(if self.order { ", in order" } else { "" })?;
        f.write_str(match self.loss {
            Loss::Nothing => "",
            Loss::BrokersOwn => ", of what the broker kept",
            Loss::Counted => ", but for what is counted as trimmed",
        })
    }
}

/// What an event asks of the plugins in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be kept.
    Plain,
    /// To be dropped.
    Drop,
    /// To be rejected.
    Reject,
    /// To trap.
    Trap,
    /// Never to come to an end.
    Loop,
}

impl Kind {
    /// The event's type, as the plugins of these tests know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "load",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Trap => "panic",
            Self::Loop => "loop",
        }
    }

    fn fate(self) -> Fate {
        match self {
            Self::Plain => Fate::Output,
            Self::Drop => Fate::Dropped,
            Self::Reject | Self::Trap | Self::Loop => Fate::DeadLetter,
        }
    }
}

/// Where an event should end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Output,
    DeadLetter,
    Dropped,
}

/// Everything that is known after a run.
pub struct Account {
    /// What producers sent.
    pub sent: Vec<Receipt>,
    /// What was acknowledged to them.
    pub acknowledged: Vec<Receipt>,
    /// What the source holds in the end.
    pub source: Vec<Receipt>,
    /// What the sink holds.
    pub outputs: Vec<Receipt>,
    /// What the dead letters hold.
    pub dead_letters: Vec<Receipt>,
    /// How many events the hosts counted as trimmed before they read them.
    pub trimmed: usize,
    /// What each event asks for.
    pub kind: fn(&Receipt) -> Kind,
}

/// What an account comes to.
#[derive(Debug)]
pub struct Finding {
    /// Acknowledged, or in the source, but neither in the sink nor among the dead letters, though no plugin dropped it.
    pub lost: Vec<Receipt>,
    /// Of these, what the source does not have either.
    pub lost_by_broker: usize,
    /// Counted by the hosts as trimmed.
    pub trimmed: usize,
    /// In sink or dead letters more than once.
    pub repeated: Vec<Receipt>,
    /// In the sink after a later event of the same key, though not in the source.
    pub out_of_order: Vec<Receipt>,
    /// Never sent, or not where the plugins say.
    pub wrong: Vec<Receipt>,
    /// How many were acknowledged.
    pub acknowledged: usize,
    /// How many different events the sink holds.
    pub outputs: usize,
    /// How many different events the dead letters hold.
    pub dead_letters: usize,
}

impl Account {
    /// Whether everything in the source has come to its end, and what has to be counted is: hosts may count what was
    /// trimmed only when they are at the end of a stream.
    pub fn is_settled(&self, promise: Promise) -> bool {
        let received: HashSet<&Receipt> = self.received().collect();
        let ended = |receipt| received.contains(receipt) || self.fate(receipt) == Fate::Dropped;
        self.source.iter().all(ended) && (promise.loss != Loss::Counted || self.find().lost.len() == self.trimmed)
    }

    /// Compares everything.
    pub fn find(&self) -> Finding {
        let received: Vec<Receipt> = self.received().cloned().collect();
        let mut due: Vec<Receipt> = self.acknowledged.iter().chain(&self.source).cloned().collect();
        due.sort_unstable();
        due.dedup();
        due.retain(|receipt| self.fate(receipt) != Fate::Dropped);
        let all = check(&self.sent, &due, &received);
        let source: HashSet<&Receipt> = self.source.iter().collect();
        // Producers do not wait for each other's answers, so after a fault the source may have an order of its own.
        let disorder = |list: &[Receipt]| check(&self.sent, &[], list).out_of_order;
        let before: HashSet<Receipt> = disorder(&self.source).into_iter().collect();
        let late = |list: &[Receipt]| disorder(list).into_iter().filter(|at| !before.contains(at)).collect::<Vec<_>>();
        let misplaced = |list: &[Receipt], fate| list.iter().filter(move |at| self.fate(at) != fate).cloned().collect();
        let misplaced: [Vec<Receipt>; 2] =
            [misplaced(&self.outputs, Fate::Output), misplaced(&self.dead_letters, Fate::DeadLetter)];
        let different = |list: &[Receipt]| list.iter().collect::<HashSet<_>>().len();
        Finding {
            lost_by_broker: all.lost.iter().filter(|receipt| !source.contains(receipt)).count(),
            lost: all.lost,
            trimmed: self.trimmed,
            repeated: all.repeated,
            out_of_order: [late(&self.outputs), late(&self.dead_letters)].concat(),
            wrong: [all.invented, misplaced.concat()].concat(),
            acknowledged: self.acknowledged.len(),
            outputs: different(&self.outputs),
            dead_letters: different(&self.dead_letters),
        }
    }

    fn fate(&self, receipt: &Receipt) -> Fate {
        (self.kind)(receipt).fate()
    }

    fn received(&self) -> impl Iterator<Item = &Receipt> {
        self.outputs.iter().chain(&self.dead_letters)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, outputs, dead_letters, lost_by_broker, trimmed, .. } = self;
        let [lost, repeated, disorder] = [&self.lost, &self.repeated, &self.out_of_order].map(Vec::len);
        write!(
            f,
            "{acknowledged} acknowledged, {outputs} in the sink, {dead_letters} dead letters, {lost} lost \
             ({lost_by_broker} by the broker, {trimmed} counted as trimmed), {repeated} repeated, {disorder} out of order"
        )
    }
}

impl Finding {
    /// What of the promise was not kept, a sentence each.
    pub fn breaks(&self, promise: Promise) -> Vec<String> {
        let lost = self.lost.len();
        let mut breaks = Vec::new();
        let mut unless = |kept: bool, what: String| {
            if !kept {
                breaks.push(what);
            }
        };
        let first =
            |receipts: &[Receipt]| receipts.first().map_or(String::new(), |at| format!("{}/{}", at.key, at.number));
        match promise.loss {
            Loss::Nothing => unless(lost == 0, format!("{lost} were lost, first {}", first(&self.lost))),
            Loss::BrokersOwn => {
                let own = self.lost_by_broker;
                unless(lost == own, format!("{lost} were lost, but the broker lost {own}"));
            }
            Loss::Counted => {
                let trimmed = self.trimmed;
                unless(lost == trimmed, format!("{lost} were lost, but {trimmed} were counted as trimmed"));
            }
        }
        let repeated = format!("{} came again, first {}", self.repeated.len(), first(&self.repeated));
        unless(promise.repeats || self.repeated.is_empty(), repeated);
        let disorder = format!("{} were out of order, first {}", self.out_of_order.len(), first(&self.out_of_order));
        unless(!promise.order || self.out_of_order.is_empty(), disorder);
        let wrong =
            format!("{} were never sent or ended in the wrong place, first {}", self.wrong.len(), first(&self.wrong));
        unless(self.wrong.is_empty(), wrong);
        breaks
    }
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
    fn account(source: &[&str], outputs: &[&str]) -> Account {
        let sent = receipts(&["a/1", "a/2", "a/3", "b/1"]);
        Account {
            acknowledged: sent.clone(),
            sent,
            source: receipts(source),
            outputs: receipts(outputs),
            dead_letters: Vec::new(),
            trimmed: 0,
            kind: |receipt| if receipt.key == "b" { Kind::Drop } else { Kind::Plain },
        }
    }

    fn broken(account: &Account, promise: Promise) -> Vec<String> {
        account.find().breaks(promise)
    }

    #[test]
    fn what_plugins_drop_is_not_missed_and_must_not_appear() {
        let all = ["a/1", "a/2", "a/3", "b/1"];
        assert!(account(&all, &all[..3]).is_settled(Promise::EXACTLY_ONCE));
        assert!(broken(&account(&all, &all[..3]), Promise::EXACTLY_ONCE).is_empty());
        let wrong = "1 were never sent or ended in the wrong place, first b/1";
        assert_eq!(broken(&account(&all, &all), Promise::EXACTLY_ONCE), [wrong]);
    }

    #[test]
    fn what_the_broker_lost_is_told_from_what_was_lost_on_the_way() {
        let lost = account(&["a/1", "a/2"], &["a/1", "a/2"]);
        assert_eq!(broken(&lost, Promise::EXACTLY_ONCE), ["1 were lost, first a/3"]);
        assert!(broken(&lost, Promise::WHAT_THE_BROKER_KEPT).is_empty());
        assert_eq!(broken(&lost, Promise::ALL_BUT_TRIMMED), ["1 were lost, but 0 were counted as trimmed"]);
        assert!(lost.is_settled(Promise::WHAT_THE_BROKER_KEPT) && !lost.is_settled(Promise::ALL_BUT_TRIMMED));
        assert!(broken(&Account { trimmed: 1, ..lost }, Promise::ALL_BUT_TRIMMED).is_empty());
        let both = account(&["a/1", "a/2"], &["a/1"]);
        assert!(!both.is_settled(Promise::EXACTLY_ONCE));
        assert_eq!(broken(&both, Promise::WHAT_THE_BROKER_KEPT), ["2 were lost, but the broker lost 1"]);
    }

    #[test]
    fn the_order_is_that_of_the_source() {
        let swapped = ["a/2", "a/1", "a/3"];
        assert!(broken(&account(&swapped, &swapped), Promise::EXACTLY_ONCE).is_empty());
        let straight = account(&["a/1", "a/2", "a/3"], &swapped);
        assert_eq!(broken(&straight, Promise::AT_LEAST_ONCE), ["1 were out of order, first a/1"]);
        assert!(broken(&straight, Promise::EXACTLY_ONCE_UNORDERED).is_empty());
    }
}
