//! Which hosts share a pipeline's work, and what of it is this host's.
//!
//! Each host keeps an entry in a sorted set, ranked by the time at which it ends by the server's clock; clocks of hosts
//! do not matter. All who see the same entries come to the same shares. The set only spreads the work: whose commits
//! count is decided by the leases of the lanes, so an entry that is wrong for a while costs nothing but time.
//!
//! # How long a change takes
//! Everyone looks at the entries every [`look_every`], which is a second or a fifth of the lease, whichever is less.
//! - A host that leaves takes its entry out at once; the others know at their next look.
//! - The entry of a host that dies ends within the lease, as do the leases of its lanes. So its partitions are open to
//!   others within the lease and one look, and the engine, which tries a lane that someone else still holds again every
//!   0.4 s at most, has them shortly after.
//! - A restarted host has a new entry under the same name, so it need not wait for its old one.
//! - Who finds its own entry gone was away for longer than the lease, or someone flushed the server. The others may be
//!   about to enter again, too, so it leaves its share as it was until the next look.
//!
//! Only hosts that read the same topics by the pipeline share it: one whose configuration is older would get partitions
//! of which it does not know. With `read = "group"` there are no entries, since the group shares the work out.
//!
//! This module must not know lanes or streams.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use synapse_core::broker::{BrokerErrorKind, Ending};
use synapse_core::share::{Membership, Share, assign};
use synapse_core::spec::ReadMode;
use synapse_core::{BrokerError, TopicPartition, TopicPath};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::resp::Reply;
use super::topics::PREFIX;

/// How often the entries are looked at, at least.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);
/// How long a host that leaves tries to say so.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Forgets entries that ended, keeps ours for a lease, and tells whether it was there, and whose there are. An entry is
/// written anew after a third of its lease. The set ends with its last entry.
const LOOK: &[u8] = b"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entry, lease = ARGV[1], tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local ends = redis.call('ZSCORE', KEYS[1], entry)
local left = ends and ends - now or 0
if left < lease * 2 / 3 or left > lease then
    redis.call('ZADD', KEYS[1], now + lease, entry)
    redis.call('PEXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
end
return {ends and 1 or 0, redis.call('ZRANGE', KEYS[1], 0, -1)}
";

/// How often the entries are looked at.
fn look_every(lease: Duration) -> Duration {
    LOOK_EVERY_MAX.min(lease / 5)
}

/// What was found last.
#[derive(PartialEq)]
enum Outlook {
    /// Nothing yet.
    Unknown,
    /// These partitions are ours.
    Share(BTreeSet<TopicPartition>),
    /// An operator has to mend this.
    Failed(BrokerErrorKind, String),
}

/// This host among those that share a pipeline; a task of the broker looks at the others and takes our entry out once
/// this is dropped or the broker is closed.
pub(super) struct Member {
    shared: Arc<Shared>,
    outlook: watch::Receiver<Outlook>,
    told: Option<BTreeSet<TopicPartition>>,
    _leaving: DropGuard,
}

impl Member {
    pub(super) fn join(shared: &Arc<Shared>, share: &Share) -> Self {
        let (found, outlook) = watch::channel(Outlook::Unknown);
        let leaving = shared.stop.child_token();
        let registry = Registry::new(Arc::clone(shared), share);
        shared.tasks.spawn(registry.run(found, leaving.clone()));
        Self { shared: Arc::clone(shared), outlook, told: None, _leaving: leaving.drop_guard() }
    }
}

#[async_trait]
impl Membership for Member {
    async fn changed(&mut self) -> Result<BTreeSet<TopicPartition>, BrokerError> {
        loop {
            match &*self.outlook.borrow_and_update() {
                Outlook::Failed(kind, message) => return Err(self.shared.node.error(*kind, message)),
                Outlook::Share(share) if self.told.as_ref() != Some(share) => {
                    self.told = Some(share.clone());
                    return Ok(share.clone());
                }
                Outlook::Share(_) | Outlook::Unknown => {}
            }
            if self.outlook.changed().await.is_err() {
                // The broker is closed: nothing changes any more.
                return std::future::pending().await;
            }
        }
    }
}

fn tell(found: &watch::Sender<Outlook>, outlook: Outlook) {
    found.send_if_modified(|before| {
        let differs = *before != outlook;
        *before = outlook;
        differs
    });
}

/// The entries of one pipeline's hosts.
struct Registry {
    shared: Arc<Shared>,
    share: Share,
    key: String,
    /// `host token`: an entry of this process, whatever else runs under the host's name.
    entry: String,
    doing: String,
}

impl Registry {
    fn new(shared: Arc<Shared>, share: &Share) -> Self {
        let topics: BTreeSet<&str> = share.topics.iter().map(|topic| topic.as_str()).collect();
        let topics = topics.into_iter().collect::<Vec<_>>().join(",");
        Self {
            key: format!("{PREFIX}members:{}/{topics}", share.pipeline),
            entry: format!("{} {}", shared.host, shared.token()),
            doing: format!("share the work of pipeline `{}`", share.pipeline),
            share: share.clone(),
            shared,
        }
    }

    async fn run(self, found: watch::Sender<Outlook>, leaving: CancellationToken) {
        let every = look_every(self.shared.lease);
        let work = async {
            loop {
                match self.look().await {
                    Ok(Some(share)) => tell(&found, Outlook::Share(share)),
                    Ok(None) if matches!(*found.borrow(), Outlook::Share(_)) => {}
                    // Without a share to keep the next look need not wait.
                    Ok(None) => continue,
                    Err(error) if error.kind.ending() == Ending::Stop => {
                        tell(&found, Outlook::Failed(error.kind, error.message));
                    }
                    Err(error) => tracing::debug!(pipeline = %self.share.pipeline, %error, "the share stays as it was"),
                }
                sleep(every).await;
            }
        };
        tokio::select! {
            () = leaving.cancelled() => {}
            () = work => {}
        }
        if !matches!(timeout(LEAVE_WITHIN, self.leave()).await, Ok(Ok(_))) {
            tracing::debug!(pipeline = %self.share.pipeline, "the host's entry was not taken out and ends by itself");
        }
    }

    /// What is ours; `None` if our entry was not there, so that others' may be missing, too.
    async fn look(&self) -> Result<Option<BTreeSet<TopicPartition>>, BrokerError> {
        let partitions = self.partitions().await?;
        if self.share.read == ReadMode::Group {
            return Ok(Some(partitions));
        }
        let (entry, lease) = (self.entry.as_bytes(), self.shared.lease_ms());
        let arguments: &[&[u8]] = &[b"EVAL", LOOK, b"1", self.key.as_bytes(), entry, lease.as_bytes()];
        let reply = self.shared.control.ask(&self.doing, arguments).await?;
        let [was_there, entries] = reply.elements() else {
            return Err(self.shared.node.garbled(&self.doing, "a script's reply of another shape"));
        };
        if was_there.count() != Some(1) {
            return Ok(None);
        }
        let hosts = entries.elements().iter().filter_map(Reply::text);
        let hosts = hosts.map(|entry| entry.split(' ').next().unwrap_or_default().to_owned()).collect();
        let assigned = assign(&partitions, &hosts).into_iter().filter(|(_, host)| *host == self.shared.host);
        Ok(Some(assigned.map(|(partition, _)| partition).collect()))
    }

    async fn partitions(&self) -> Result<BTreeSet<TopicPartition>, BrokerError> {
        let mut all = BTreeSet::new();
        for topic in &self.share.topics {
            let count = self.shared.topics.layout(topic).await?.partitions();
            all.extend(TopicPath { broker: self.shared.node.broker.clone(), topic: topic.clone() }.partitions(count));
        }
        Ok(all)
    }

    async fn leave(&self) -> Result<(), BrokerError> {
        if self.share.read == ReadMode::Group {
            return Ok(());
        }
        let arguments: &[&[u8]] = &[b"ZREM", self.key.as_bytes(), self.entry.as_bytes()];
        self.shared.control.ask(&self.doing, arguments).await.map(drop)
    }
}
