//! Promises of brokers whose events outlive the process: whatever was acknowledged is there after a restart.

use synapse_core::broker::Boundary;

use super::*;

/// Topics, partitions and events stay, and new events go behind the old ones.
pub async fn a_restart_keeps_topics_and_events(harness: &dyn DurableHarness) {
    let broker = harness.broker().await;
    let (name, empty) = (topic(&*broker, 1).await, topic(&*broker, 3).await);
    let before = publish_ids(&*broker, &name, 0..5).await;
    let info = broker.topic(&name).await.unwrap();
    let broker = harness.restart(broker).await;
    assert_eq!(broker.topic(&name).await.unwrap(), info);
    assert_eq!(broker.topic(&empty).await.unwrap().unwrap().partitions.len(), 3);
    let after = publish_ids(&*broker, &name, 5..7).await;
    assert!(after[0] > before[4], "{after:?} must lie behind {before:?}");
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 7).await, ids(0..7));
}

/// Cursors, starting places and boundaries stay.
pub async fn a_restart_keeps_cursors_and_boundaries(harness: &dyn DurableHarness) {
    let broker = harness.broker().await;
    let (name, to) = (topic(&*broker, 1).await, fresh_topic());
    let offsets = publish_ids(&*broker, &name, 0..4).await;
    let moved = lane_spec(&*broker, &name, &fresh("lane"), Start::Earliest);
    let unmoved = lane_spec(&*broker, &name, &fresh("lane"), Start::Latest);
    let boundary = Boundary { from: offsets[0], stages: vec![("keep".to_owned(), "a".repeat(64))] };
    let effects = Effects {
        outputs: vec![output(&*broker, &to, &events(0..2))],
        boundary: Some(boundary.clone()),
        ..covering(&offsets[..3])
    };
    {
        let (mut lane, _source) = open(&*broker, &moved).await;
        lane.committer.commit(&effects).await.unwrap();
        drop(open(&*broker, &unmoved).await);
    }
    publish_ids(&*broker, &name, 4..6).await;
    let broker = harness.restart(broker).await;
    let (lane, mut source) = open(&*broker, &moved).await;
    assert_eq!(lane.boundary, Some(boundary.clone()));
    assert_eq!(next_ids(&mut *source, 3).await, ids(3..6));
    assert_eq!(broker.boundaries(&moved.key).await.unwrap(), [boundary]);
    let (_lane, mut source) = open(&*broker, &unmoved).await;
    assert_eq!(next_ids(&mut *source, 2).await, ids(4..6));
    let mut source = broker.read(&to, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 2).await, ids(0..2));
}

/// After a restart a lane can be opened and committed to, again and again.
pub async fn a_restart_fences_nobody_out(harness: &dyn DurableHarness) {
    let mut broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let offsets = publish_ids(&*broker, &name, 0..3).await;
    let spec = lane_spec(&*broker, &name, &fresh("lane"), Start::Earliest);
    for (index, offset) in offsets.iter().enumerate() {
        {
            let (mut lane, mut source) = open(&*broker, &spec).await;
            assert_eq!(next_ids(&mut *source, 3 - index).await, ids(index..3));
            lane.committer.commit(&covering(&[*offset])).await.unwrap();
        }
        broker = harness.restart(broker).await;
    }
}
