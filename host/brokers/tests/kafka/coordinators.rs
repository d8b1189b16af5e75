//! What becomes of commits when the server that coordinates them goes away.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};
use synapse_core::broker::{BatchLimit, BrokerErrorKind};
use synapse_core::spec::ReadFrom;
use synapse_core::{Broker, Effects};
use synapse_test_servers::kafka::Kafka;
use tokio::time::timeout;

use crate::support::{PATIENCE, broker_with, covering, lane, next_ids, open, output, poll, topic};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Groups have no other server to go to, so that commits cannot go on while theirs is away.
const GROUPS_STAY: &str = "offsets.topic.replication.factor=1";

/// Which broker coordinates what has this name: the leader of the partition of `topic` that the name's hash in Java says
/// (`partitionFor` of Kafka's coordinators).
fn coordinator(kafka: &Kafka, topic: &str, name: &str) -> usize {
    let hash = name.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(i32::from(byte)));
    let client: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let metadata = client.client().fetch_metadata(Some(topic), PATIENCE).unwrap();
    let partitions = metadata.topics()[0].partitions();
    let partition = hash.unsigned_abs() as usize % partitions.len();
    let found = partitions.iter().find(|found| found.id() as usize == partition).unwrap();
    usize::try_from(found.leader()).unwrap() - 1
}

/// A group's coordinator dies between a transaction's outputs and its position: the commit ends, and once the server is
/// back the lane goes on where it was, with nothing written twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_ends_though_its_groups_coordinator_is_gone() {
    let mut kafka = Kafka::start_with(3, GROUPS_STAY).unwrap();
    let broker = broker_with("one", |options| (options.bootstrap, options.timeout) = (kafka.bootstrap(), TIMEOUT));
    let (from, to) = (topic(&broker, 1).await, topic(&broker, 1).await);
    broker.publish(&output(&from, 0..3)).await.unwrap();

    // One whose transactions have another coordinator than its group.
    let mut found = None;
    for number in 0..20 {
        let spec = lane(&format!("p{number}"), &from, 0);
        let opened = open(&broker, &spec).await;
        let dying = coordinator(&kafka, "__consumer_offsets", spec.key.pipeline.as_str());
        let transactions = format!("synapse/{}/{from}/0", spec.key.pipeline);
        if coordinator(&kafka, "__transaction_state", &transactions) != dying {
            found = Some((spec, opened, dying));
            break;
        }
    }
    let (spec, (mut committer, mut source), dying) = found.expect("coordinators differ");
    let page = poll(&mut *source).await;
    let effects = Effects { outputs: vec![output(&to, 0..3)], ..covering(&page.offsets) };

    kafka.kill(dying).unwrap();
    let committed = timeout(20 * TIMEOUT, committer.commit(&effects)).await.expect("a commit ends");
    assert_eq!(committed.unwrap_err().kind, BrokerErrorKind::Unavailable);
    drop((committer, source));

    kafka.resume(dying).unwrap();
    let (mut committer, mut source) = open(&broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 3).await, ["0", "1", "2"]);
    committer.commit(&effects).await.unwrap();
    let mut written = broker.read(&to, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *written, 3).await, ["0", "1", "2"]);
    let more = written.poll(BatchLimit { events_max: 1, bytes_max: 1 << 20 }, TIMEOUT).await.unwrap();
    assert!(more.is_empty(), "{:?}", more.offsets);
    broker.close().await;
}
