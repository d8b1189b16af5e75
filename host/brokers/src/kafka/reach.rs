//! Whether the cluster can be reached, and what librdkafka said last about why it cannot.
//!
//! librdkafka tells a client when none of its servers can be reached, never that one can again, and it tells the same of
//! a server that only closed a connection. So its word is a suspicion, as a question is that gets no answer: the cluster is
//! asked then, and only if it does not answer it counts as away, for all of the host, until something is answered. This
//! module does not know what is asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;
use synapse_core::BrokerName;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a reason that librdkafka gives counts as the reason of what fails now. It repeats one within half of that.
const RECENT: Duration = Duration::from_secs(60);
/// How often a cluster that is away is asked whether it is there again, and one that is suspected of it.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// After how long it is said again that it is away; then after twice as long, and so on.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What the clients of a cluster know together of whether it is there.
#[derive(Default)]
pub(super) struct Reach {
    /// A call that fails often only says that it took too long; why, librdkafka said before.
    last: Mutex<Option<(Instant, RDKafkaErrorCode, String)>>,
    /// Whether the cluster has answered since the host began.
    answered: AtomicBool,
    doubts: watch::Sender<Doubts>,
}

#[derive(Default)]
struct Doubts {
    /// When the cluster was first and last suspected to be away, of what no answer has settled.
    suspected: Option<(Instant, Instant)>,
    away_since: Option<Instant>,
}

/// A cluster that is away.
pub(super) struct Away {
    pub(super) since: Instant,
    /// Why, as librdkafka says, if it does.
    pub(super) why: Option<(RDKafkaErrorCode, String)>,
}

impl Reach {
    fn last(&self) -> MutexGuard<'_, Option<(Instant, RDKafkaErrorCode, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// librdkafka complains.
    pub(super) fn note(&self, code: RDKafkaErrorCode, reason: &str) {
        let all_down = code == RDKafkaErrorCode::AllBrokersDown;
        if is_about_reaching(code) {
            let mut last = self.last();
            let says_more = |(at, code, _): &(Instant, RDKafkaErrorCode, String)| {
                at.elapsed() < RECENT && *code != RDKafkaErrorCode::AllBrokersDown
            };
            // That the others are away as well says less than why one is.
            if !(all_down && last.as_ref().is_some_and(says_more)) {
                *last = Some((Instant::now(), code, reason.to_owned()));
            }
        }
        if all_down {
            self.suspect();
        }
    }

    /// The cluster may be away.
    pub(super) fn suspect(&self) {
        let now = Instant::now();
        self.doubts.send_modify(|doubts| {
            let first = doubts.suspected.map_or(now, |(first, _)| first);
            doubts.suspected = Some((first, now));
        });
    }

    /// The cluster has answered what was asked at `asked`, and what only those are told whom it lets in.
    pub(super) fn has_answered(&self, asked: Instant) {
        self.answered.store(true, Ordering::Relaxed);
        let settled = self.doubts.send_if_modified(|doubts| {
            let Some((_, last)) = doubts.suspected.filter(|(first, _)| *first <= asked) else { return false };
            // What came after the question is a doubt of its own.
            doubts.suspected = (last > asked).then_some((last, last));
            doubts.away_since = None;
            true
        });
        if settled {
            // It was why that was over.
            self.last().take_if(|(at, ..)| *at <= asked);
        }
    }

    pub(super) fn was_ever_there(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn is_away(&self) -> bool {
        self.doubts.borrow().away_since.is_some()
    }

    pub(super) fn away(&self) -> Option<Away> {
        let since = self.doubts.borrow().away_since?;
        Some(Away { since, why: self.recent() })
    }

    /// What librdkafka complained of a moment ago.
    pub(super) fn recent(&self) -> Option<(RDKafkaErrorCode, String)> {
        let last = self.last();
        let (at, code, reason) = last.as_ref()?;
        (at.elapsed() < RECENT).then(|| (*code, reason.clone()))
    }

    /// Since when the cluster is suspected.
    fn suspected(&self) -> Option<Instant> {
        self.doubts.borrow().suspected.map(|(first, _)| first)
    }

    #[cfg(test)]
    pub(super) fn goes_now(&self) {
        self.suspect();
        self.suspected().into_iter().for_each(|suspected| self.goes(suspected));
    }

    /// The cluster is away since it was suspected, unless something was answered after that.
    fn goes(&self, suspected: Instant) {
        self.doubts.send_modify(|doubts| {
            let is_unsettled = doubts.suspected.is_some_and(|(first, _)| first == suspected);
            doubts.away_since = is_unsettled.then_some(suspected);
        });
    }

    /// Asks a cluster that is suspected to be away, and one that is until it answers; says so when it goes, when it comes,
    /// and now and then between. `quickly` asks for an answer at once; `patiently` waits for one as long as may be; who
    /// asks notes what is answered. `tell` makes a sentence of it.
    pub(super) async fn watch<Q: Future<Output = ()>, P: Future<Output = ()>>(
        &self,
        broker: &BrokerName,
        quickly: impl Fn() -> Q,
        patiently: impl Fn() -> P,
        tell: impl Fn(&Away) -> String,
    ) {
        let mut changes = self.doubts.subscribe();
        loop {
            let Some(since) = self.suspected() else {
                // The sender is ours.
                let _ = changes.wait_for(|doubts| doubts.suspected.is_some()).await;
                continue;
            };
            quickly().await;
            self.goes(since);
            if !self.is_away() {
                tokio::time::sleep(ASK_EVERY).await;
                continue;
            }
            let mut say_at = Duration::ZERO;
            while let Some(away) = self.away() {
                if since.elapsed() >= say_at {
                    let how = tell(&away);
                    tracing::warn!(%broker, "{how}; it is tried again");
                    say_at = SAY_AGAIN.max(say_at * 2);
                }
                let ask = async {
                    patiently().await;
                    tokio::time::sleep(ASK_EVERY).await;
                };
                tokio::select! {
                    // Whoever asked: a cluster that is back is noticed at once.
                    _ = changes.wait_for(|doubts| doubts.away_since.is_none()) => {}
                    () = ask => {}
                }
            }
            tracing::info!(%broker, "it can be reached again, after {}", seconds(since.elapsed()));
        }
    }
}

/// Whether an error says why a server cannot be reached, or does not let us in.
fn is_about_reaching(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::SSL
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SecurityDisabled
            | Code::ClusterAuthorizationFailed
    )
}

/// Whole seconds, for people.
pub(super) fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

/// What librdkafka gives as a reason, without its own affairs and without the server's name if that is the only one:
/// `h:9092/1: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)` says no more than
/// `Connection refused`.
pub(super) fn plain(reason: &str, bootstrap: &str) -> String {
    let reason = match reason.rfind(" (after ") {
        Some(at) if reason.ends_with(')') => &reason[..at],
        _ => reason,
    };
    let mut roles = ["GroupCoordinator: ", "TxnCoordinator: "].iter();
    let reason = roles.find_map(|role| reason.strip_prefix(role)).unwrap_or(reason);
    let (server, what) = match reason.split_once(": ") {
        // `scheme://host:port/id`, of which only host and port are always there.
        Some((server, what)) if server.contains(':') && !server.contains(' ') => {
            let server = server.rsplit_once("//").map_or(server, |(_, server)| server);
            (server.split('/').next().unwrap_or(server), what)
        }
        _ => ("", reason),
    };
    let what = match what.split_once(" failed: ") {
        Some((call, why)) if call.starts_with("Connect to ") => why,
        _ => what,
    };
    if server.is_empty() || server == bootstrap { what.to_owned() } else { format!("{server}: {what}") }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn reasons_are_told_plainly() {
        let refused = "127.0.0.1:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection refused \
                       (after 0ms in state CONNECT, 3 identical error(s) suppressed)";
        assert_eq!(plain(refused, "127.0.0.1:9092"), "Connection refused");
        assert_eq!(plain(refused, "a:9092,127.0.0.1:9092"), "127.0.0.1:9092: Connection refused");
        let login = "sasl_plaintext://h:9094/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Unsupported \
                     SASL mechanism: broker's supported mechanisms: (after 1ms in state AUTH_HANDSHAKE)";
        let told = "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported \
                    mechanisms:";
        assert_eq!(plain(login, "h:9094"), told);
        let coordinator = "TxnCoordinator: h:9092: Connect to ipv4#10.0.0.1:9092 failed: Connection refused";
        assert_eq!(plain(coordinator, "h:9092"), "Connection refused");
        assert_eq!(plain("h:9092/1: Disconnected (after 4000ms in state UP)", "h:9092"), "Disconnected");
        assert_eq!(plain("1/1 brokers are down", "h:9092"), "1/1 brokers are down");
        assert_eq!(plain("", "h:9092"), "");
    }

    #[tokio::test(start_paused = true)]
    async fn why_a_server_is_away_outlives_that_all_are() {
        let reach = Reach::default();
        reach.note(RDKafkaErrorCode::BrokerTransportFailure, "refused");
        reach.note(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        reach.note(RDKafkaErrorCode::AutoOffsetReset, "no offset");
        assert_eq!(reach.recent().unwrap().1, "refused");
        tokio::time::advance(RECENT).await;
        assert_eq!(reach.recent(), None);
        for reason in ["1/1 brokers are down", "2/2 brokers are down"] {
            reach.note(RDKafkaErrorCode::AllBrokersDown, reason);
            assert_eq!(reach.recent().unwrap().1, reason);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_to_what_was_asked_since_counts() {
        let pass = || tokio::time::advance(Duration::from_secs(1));
        let reach = Reach::default();
        let before = Instant::now();
        pass().await;
        reach.note(RDKafkaErrorCode::BrokerTransportFailure, "refused");
        let now = Instant::now();
        reach.suspect();
        reach.goes(now);
        reach.has_answered(before);
        assert!(reach.is_away() && reach.was_ever_there());
        let between = Instant::now();
        pass().await;
        reach.suspect();
        let later = reach.suspected().unwrap();
        reach.has_answered(between);
        assert!(!reach.is_away() && reach.recent().is_none());
        let last = reach.suspected().unwrap();
        assert!(last > later, "what was suspected after the question is not settled by the answer");
        reach.goes(later);
        assert!(!reach.is_away(), "who answered while it was asked is not away");
        reach.goes(last);
        assert!(reach.is_away());
        reach.has_answered(Instant::now());
        assert_eq!((reach.is_away(), reach.suspected()), (false, None));
    }

    /// A cluster that goes for 200 s and answers slowly then: what is asked, and what is said.
    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_is_suspected_is_asked_and_one_that_is_away_until_it_answers() {
        let (reach, broker) = (Reach::default(), "k".parse().unwrap());
        let (is_there, asked, said) = (Cell::new(true), Cell::new(0), RefCell::new(Vec::new()));
        let ask = async |takes| {
            let begun = Instant::now();
            tokio::time::sleep(Duration::from_secs(takes)).await;
            if is_there.get() {
                reach.has_answered(begun);
            }
        };
        let quickly = async || {
            asked.set(asked.get() + 1);
            ask(0).await;
        };
        let patiently = async || ask(9).await;
        let tell = |away: &Away| {
            said.borrow_mut().push(away.since.elapsed().as_secs());
            String::new()
        };
        let goes = async {
            let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
            pass(10).await;
            assert_eq!(asked.get(), 0, "nobody asks what nobody doubts");
            reach.note(RDKafkaErrorCode::BrokerTransportFailure, "one of several");
            pass(10).await;
            reach.note(RDKafkaErrorCode::AllBrokersDown, "a connection that was idle");
            pass(10).await;
            assert_eq!((asked.get(), reach.is_away()), (1, false), "it was there");
            is_there.set(false);
            reach.note(RDKafkaErrorCode::AllBrokersDown, "all");
            pass(100).await;
            reach.note(RDKafkaErrorCode::AllBrokersDown, "all, says another client");
            pass(100).await;
            assert!(reach.is_away());
            is_there.set(true);
            pass(20).await;
            assert!(!reach.is_away(), "an answer that takes long is one");
            pass(20).await;
            assert_eq!(asked.get(), 2, "nobody asks one who answered");
        };
        tokio::select! {
            () = reach.watch(&broker, quickly, patiently, tell) => {}
            () = goes => {}
        }
        assert_eq!(*said.borrow(), [0, 60, 120], "at once, and then less and less often");
    }
}
