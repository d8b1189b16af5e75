//! Which node holds which key: one node holds all, the masters of a cluster have slots.
//!
//! A cluster's map of slots is only ever a guess. Who opens a connection of its own asks for it anew, at most every
//! [`FRESH`]; everyone else uses the last one until a node answers that it is not the right one, or does not answer.
//! Nodes are asked in turn, so that one which lost touch with the others is not believed for long.
//!
//! This module does not know what is kept under the keys.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::ConnectionAddr;
use synapse_core::broker::BrokerErrorKind;
use synapse_core::{BrokerError, BrokerName};
use tokio::time::{Instant, timeout};

use super::node::Node;
use super::resp::Reply;
use super::wire::Wire;

/// How long a map of the slots is taken to be true by who opens a connection.
const FRESH: Duration = Duration::from_millis(500);
/// How long one node may take to tell the map.
const ASK_WITHIN: Duration = Duration::from_secs(2);
const DOING: &str = "learn which node has which slots";

/// All nodes of one broker.
pub(super) struct Nodes {
    /// What the configuration names, at least one.
    seeds: Vec<Arc<Node>>,
    cluster: Option<Cluster>,
}

struct Cluster {
    map: Mutex<Map>,
    /// Held by who asks, so that the others wait for the answer.
    asking: tokio::sync::Mutex<()>,
    /// Which node is asked first the next time.
    turn: AtomicUsize,
}

#[derive(Default)]
struct Map {
    /// When it was asked for; `None` if it is known to be wrong.
    asked: Option<Instant>,
    /// The masters by the last slot of each range, with the first.
    ranges: BTreeMap<u16, (u16, Arc<Node>)>,
}

/// Where a node says that a command belongs.
pub(super) enum Redirect {
    /// The slot is there.
    Moved(Arc<Node>),
    /// The slot is on its way there: this one command may be asked for there.
    Ask(Arc<Node>),
    /// The keys of the command are partly here, partly there: again in a moment.
    Later,
}

impl Nodes {
    /// One node.
    pub(super) fn one(broker: BrokerName, url: &str, timeout: Duration) -> Result<Self, BrokerError> {
        Ok(Self { seeds: vec![Arc::new(Node::new(broker, url, timeout)?)], cluster: None })
    }

    /// A cluster, of which some nodes are known.
    ///
    /// # Errors
    /// `Invalid`: no node, or an address that no node of a cluster has.
    pub(super) fn cluster(broker: &BrokerName, urls: &[String], timeout: Duration) -> Result<Self, BrokerError> {
        let seeds = urls.iter().map(|url| Node::of_cluster(broker.clone(), url, timeout).map(Arc::new));
        let seeds = seeds.collect::<Result<Vec<_>, _>>()?;
        if seeds.is_empty() {
            return Err(BrokerError {
                broker: broker.clone(),
                kind: BrokerErrorKind::Invalid,
                message: "a cluster needs the address of at least one of its nodes".to_owned(),
            });
        }
        let cluster = Cluster { map: Mutex::default(), asking: tokio::sync::Mutex::new(()), turn: AtomicUsize::new(0) };
        Ok(Self { seeds, cluster: Some(cluster) })
    }

    /// A node that the configuration names.
    pub(super) fn any(&self) -> &Arc<Node> {
        &self.seeds[0]
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster.is_some()
    }

    /// Whether one transaction may write both keys.
    pub(super) fn together(&self, one: &str, other: &str) -> bool {
        !self.is_cluster() || slot(one) == slot(other)
    }

    /// The node that has the key, as far as we know.
    pub(super) async fn owner(&self, key: &str) -> Result<Arc<Node>, BrokerError> {
        self.owner_within(key, Duration::MAX).await
    }

    /// The node that has the key now, for a connection that stays.
    pub(super) async fn owner_now(&self, key: &str) -> Result<Arc<Node>, BrokerError> {
        self.owner_within(key, FRESH).await
    }

    async fn owner_within(&self, key: &str, age_max: Duration) -> Result<Arc<Node>, BrokerError> {
        let Some(cluster) = &self.cluster else { return Ok(Arc::clone(self.any())) };
        self.refresh(cluster, age_max).await?;
        let slot = slot(key);
        let mut map = cluster.map();
        let range = map.ranges.range(slot..).next();
        let owner = range.filter(|(_, (first, _))| *first <= slot).map(|(_, (_, node))| Arc::clone(node));
        owner.ok_or_else(|| {
            // Somebody may have it by the next look.
            map.asked = None;
            self.any().error(
                BrokerErrorKind::Unavailable,
                format_args!("no node of the cluster has slot {slot}; check it with redis-cli --cluster check"),
            )
        })
    }

    /// Every node that keeps something.
    pub(super) async fn masters(&self) -> Result<Vec<Arc<Node>>, BrokerError> {
        let Some(cluster) = &self.cluster else { return Ok(self.seeds.clone()) };
        self.refresh(cluster, FRESH).await?;
        Ok(cluster.masters().into_values().collect())
    }

    /// Says that the map was wrong.
    pub(super) fn distrust(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.map().asked = None;
        }
    }

    /// What an error line of `from` says about where else to go; `None` if it does not.
    pub(super) fn redirect(&self, from: &Node, line: &[u8]) -> Option<Redirect> {
        let cluster = self.cluster.as_ref()?;
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let (code, address) = (words.next()?, words.nth(1));
        if !matches!((code, address), ("MOVED" | "ASK", Some(_)) | ("TRYAGAIN", _)) {
            return None;
        }
        if code == "TRYAGAIN" {
            return Some(Redirect::Later);
        }
        let (host, port) = address?.rsplit_once(':')?;
        let node = cluster.node(from, host, port.parse().ok()?);
        if code == "ASK" {
            return Some(Redirect::Ask(node));
        }
        self.distrust();
        Some(Redirect::Moved(node))
    }

    /// Asks for the map unless someone did within `age_max`.
    async fn refresh(&self, cluster: &Cluster, age_max: Duration) -> Result<(), BrokerError> {
        let is_fresh = || cluster.map().asked.is_some_and(|asked| asked.elapsed() < age_max);
        if is_fresh() {
            return Ok(());
        }
        let _asking = cluster.asking.lock().await;
        if is_fresh() {
            return Ok(());
        }
        // The masters know best; what the configuration names may be long gone, or all there is.
        let mut nodes: Vec<Arc<Node>> = cluster.masters().into_values().collect();
        let turn = cluster.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(nodes.len()).unwrap_or_default();
        nodes.rotate_left(first);
        nodes.extend(self.seeds.iter().cloned());
        let mut failed = None;
        for node in nodes {
            match timeout(ASK_WITHIN, slots(cluster, &node)).await {
                Ok(Ok(ranges)) => {
                    *cluster.map() = Map { asked: Some(Instant::now()), ranges };
                    return Ok(());
                }
                // What a node refuses an operator has to mend; one that is away must not hide it.
                Ok(Err(error)) if error.kind != BrokerErrorKind::Unavailable => failed = Some(error),
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(_) => failed = failed.or_else(|| Some(node.late(DOING))),
            }
        }
        Err(failed.expect("there is at least one node to ask"))
    }
}

impl Cluster {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().expect("nothing panics while it holds this lock")
    }

    /// The masters by their addresses.
    fn masters(&self) -> BTreeMap<String, Arc<Node>> {
        self.map().ranges.values().map(|(_, node)| (node.address.clone(), Arc::clone(node))).collect()
    }

    /// The node at an address that `from` told; without a host it is its own.
    fn node(&self, from: &Node, host: &str, port: u16) -> Arc<Node> {
        let host = match (host, from.info.addr()) {
            ("" | "?", ConnectionAddr::Tcp(own, _)) => own.as_str(),
            (told, _) => told,
        };
        let node = from.at(host, port);
        self.masters().remove(&node.address).unwrap_or_else(|| Arc::new(node))
    }
}

/// The map as one node tells it.
async fn slots(cluster: &Cluster, node: &Arc<Node>) -> Result<BTreeMap<u16, (u16, Arc<Node>)>, BrokerError> {
    let mut wire = Wire::open(node).await?;
    let reply = wire.ask(DOING, &[b"CLUSTER", b"SLOTS"]).await?;
    let number = |reply: Option<&Reply>| reply?.count()?.try_into().ok();
    let range = |range: &Reply| {
        let [first, last, master, ..] = range.elements() else { return None };
        let (first, last) = (number(Some(first))?, number(Some(last))?);
        let host = master.elements().first()?.text().unwrap_or_default();
        let owner = cluster.node(node, &host, number(master.elements().get(1))?);
        Some((last, (first, owner)))
    };
    let ranges: Option<_> = reply.elements().iter().map(range).collect();
    ranges.ok_or_else(|| node.garbled(DOING, "CLUSTER SLOTS of another shape"))
}

/// The part of a key that decides where it lies: what is in its first braces, or all of it.
pub(super) fn tag(key: &str) -> &str {
    let braces = key.split_once('{').and_then(|(_, inner)| inner.split_once('}'));
    braces.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// The slot of a key: CRC-16/XMODEM of its tag, of 16384.
fn slot(key: &str) -> u16 {
    let crc = tag(key).bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("model-events:{0}"), slot("0"));
        assert_eq!(slot("synapse:lane:{0}:p/t/0"), slot("t:{0}"));
    }

    #[test]
    fn a_tag_is_what_the_first_braces_hold() {
        for (key, expected) in
            [("t", "t"), ("t:{0}", "0"), ("{}x", "{}x"), ("{a}{b}", "a"), ("{x", "{x"), ("a{{b}}", "{b")]
        {
            assert_eq!(tag(key), expected);
        }
    }

    #[test]
    fn redirections_are_followed() {
        let urls = ["redis://:secret@h:1".to_owned()];
        let nodes = Nodes::cluster(&"bus".parse().unwrap(), &urls, Duration::from_secs(1)).unwrap();
        let follow = |line: &str| match nodes.redirect(nodes.any(), line.as_bytes()) {
            Some(Redirect::Moved(node)) => format!("moved to {}", node.address),
            Some(Redirect::Ask(node)) => format!("ask {} as {:?}", node.address, node.info.redis_settings().password()),
            Some(Redirect::Later) => "later".to_owned(),
            None => "nowhere".to_owned(),
        };
        assert_eq!(follow("MOVED 3999 127.0.0.1:6381"), "moved to 127.0.0.1:6381");
        assert_eq!(follow("MOVED 3999 :6381"), "moved to h:6381");
        assert_eq!(follow("MOVED 3999 ::1:6381"), "moved to ::1:6381");
        assert_eq!(follow("ASK 3999 127.0.0.1:6381"), "ask 127.0.0.1:6381 as Some(\"secret\")");
        assert_eq!(follow("TRYAGAIN Multiple keys request during rehashing of slot"), "later");
        assert_eq!(follow("MOVED"), "nowhere");
        assert_eq!(follow("OOM command not allowed"), "nowhere");
    }
}
