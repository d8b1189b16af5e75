//! Whether the cluster can be reached, and what librdkafka said last about why it cannot go on.
//!
//! librdkafka tells each client when none of its servers can be reached, never that one can again. So the first such
//! word marks the cluster as away for all of the host, and it is asked from then on until it answers. This module does
//! not know what is asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use synapse_core::BrokerName;
use tokio::sync::watch;

/// How long a reason that librdkafka gives counts as the reason of what fails now.
const RECENT: Duration = Duration::from_secs(30);
/// How often a cluster that is away is asked whether it is there again.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// After how long it is said again that it is away; then after twice as long, and so on.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What all clients of a cluster know together of whether it is there.
#[derive(Default)]
pub(super) struct Reach {
    /// A call that fails often only says that it took too long; why, librdkafka said before.
    last: Mutex<Option<(Instant, RDKafkaErrorCode, String)>>,
    /// Whether the cluster has answered since the host began.
    answered: AtomicBool,
    away_since: watch::Sender<Option<Instant>>,
}

impl Reach {
    /// librdkafka complains.
    pub(super) fn note(&self, code: RDKafkaErrorCode, reason: &str) {
        let all_down = code == RDKafkaErrorCode::AllBrokersDown;
        if !matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::PartitionEOF) {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            // That the others are away as well says less than why one is.
            if !all_down || last.as_ref().is_none_or(|(at, ..)| at.elapsed() >= RECENT) {
                *last = Some((Instant::now(), code, reason.to_owned()));
            }
        }
        if all_down {
            self.away_since.send_if_modified(|since| since.replace(since.unwrap_or_else(Instant::now)).is_none());
        }
    }

    /// The cluster has answered something that only those are told whom it lets in.
    pub(super) fn has_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
        self.away_since.send_if_modified(|since| since.take().is_some());
    }

    pub(super) fn was_ever_there(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn is_away(&self) -> bool {
        self.away_since.borrow().is_some()
    }

    /// For how long it has been away, and why, if it is.
    pub(super) fn away(&self) -> Option<(Duration, String)> {
        let since = (*self.away_since.borrow())?;
        let why =
            self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, _, reason)| reason.clone());
        Some((since.elapsed(), why.unwrap_or_default()))
    }

    /// What librdkafka complained of a moment ago.
    pub(super) fn recent(&self) -> Option<(RDKafkaErrorCode, String)> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, code, reason) = last.as_ref()?;
        (at.elapsed() < RECENT).then(|| (*code, reason.clone()))
    }

    /// Asks a cluster that is away until it answers; says so when it goes, when it comes, and now and then between.
    pub(super) async fn watch<A: Future<Output = bool>>(
        &self,
        broker: &BrokerName,
        bootstrap: &str,
        answers: impl Fn() -> A,
    ) {
        let mut changes = self.away_since.subscribe();
        // The sender is ours.
        while changes.wait_for(Option::is_some).await.is_ok() {
            let (begun, mut say_at) = (Instant::now(), SAY_AGAIN);
            // For a moment a server that restarts is away, too. If it is more, the reason is known by then.
            if answers().await {
                self.has_answered();
                continue;
            }
            let why = || plain(&self.away().map_or_else(String::new, |(_, why)| why), bootstrap);
            tracing::warn!(%broker, bootstrap, why = %why(), "none of the servers can be reached; they are tried again until one can");
            tokio::time::sleep(ASK_EVERY).await;
            while self.is_away() && !answers().await {
                if begun.elapsed() >= say_at {
                    tracing::warn!(%broker, bootstrap, why = %why(), away = ?whole_seconds(begun), "still none of the servers can be reached");
                    say_at *= 2;
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            self.has_answered();
            tracing::info!(%broker, bootstrap, away = ?whole_seconds(begun), "the servers can be reached again");
        }
    }
}

fn whole_seconds(since: Instant) -> Duration {
    Duration::from_secs(since.elapsed().as_secs())
}

/// What librdkafka gives as a reason, without its own affairs and without the server's name if that is the only one:
/// `h:9092/1: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)` says no more than
/// `Connection refused`.
pub(super) fn plain(reason: &str, bootstrap: &str) -> String {
    let reason = match reason.rfind(" (after ") {
        Some(at) if reason.ends_with(')') => &reason[..at],
        _ => reason,
    };
    let reason =
        ["GroupCoordinator: ", "TxnCoordinator: "].iter().find_map(|part| reason.strip_prefix(part)).unwrap_or(reason);
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
    async fn a_cluster_that_is_away_is_asked_until_it_answers() {
        let (reach, broker) = (Reach::default(), "k".parse().unwrap());
        let asked = std::cell::Cell::new(0);
        let answers = || {
            asked.set(asked.get() + 1);
            std::future::ready(asked.get() == 3)
        };
        let watched = async {
            tokio::time::timeout(Duration::from_secs(60), reach.watch(&broker, "h:9092", answers)).await.unwrap_err();
        };
        let goes = async {
            reach.note(RDKafkaErrorCode::BrokerTransportFailure, "h:9092/1: Disconnected");
            assert!(!reach.is_away(), "one server is not all");
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(asked.get(), 0);
            reach.note(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
            assert_eq!(reach.away().unwrap().1, "h:9092/1: Disconnected");
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!reach.is_away() && reach.was_ever_there());
        };
        tokio::join!(watched, goes);
        assert_eq!(asked.get(), 3, "one that is there is not asked");
    }
}
