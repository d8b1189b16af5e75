//! Hosts that share the partitions of a pipeline by its consumer group.

use std::time::Duration;

use synapse_core::broker::BrokerErrorKind;
use synapse_core::{Broker, Effects};

use crate::support::*;

/// The newer protocol of groups (KIP-848), by configuration.
fn newer(options: &mut synapse_brokers::kafka::KafkaOptions) {
    options.client.insert("group.protocol".to_owned(), "consumer".to_owned());
}

#[tokio::test]
async fn two_hosts_share_and_one_that_leaves_hands_over() {
    two_hosts_share([broker("one"), broker("two")]).await;
}

#[tokio::test]
async fn two_hosts_share_by_the_newer_protocol() {
    two_hosts_share(["one", "two"].map(|host| broker_with(host, newer))).await;
}

async fn two_hosts_share([one, two]: [synapse_brokers::kafka::KafkaBroker; 2]) {
    let (topic, pipeline) = (topic(&one, 4).await, fresh("p"));
    let mut first = Host::join(&one, &pipeline, &topic).await;
    assert_eq!(first.has(4).await, [0, 1, 2, 3]);
    let mut second = Host::join(&two, &pipeline, &topic).await;
    let (mut mine, mut theirs) = (first.has(2).await, second.has(2).await);
    mine.append(&mut theirs);
    mine.sort_unstable();
    assert_eq!(mine, [0, 1, 2, 3]);
    drop(second);
    assert_eq!(first.has(4).await, [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_partition_goes_to_another_host_only_once_its_lane_has_ended() {
    let (one, two) = (broker("one"), broker("two"));
    let (topic, pipeline) = (topic(&one, 2).await, fresh("p"));
    let mut first = one.join(&share(&pipeline, &topic)).await.unwrap();
    assert_eq!(told(&mut first).await, [0, 1]);
    let mut second = Host::join(&two, &pipeline, &topic).await;
    let joining = tokio::spawn(async move { (second.has(1).await, second) });
    let kept = told(&mut first).await;
    assert_eq!(kept.len(), 1, "one of two partitions is to be handed over");
    // The lane still works: the other host waits.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!joining.is_finished(), "it was handed over while its lane was at work");
    // Asking again says that the lane has ended.
    let waiting = tokio::time::timeout(PATIENCE, first.changed());
    let (share, _second) = tokio::select! {
        told = waiting => panic!("nothing more changes for the first: {told:?}"),
        joined = joining => joined.unwrap(),
    };
    assert_ne!(share, kept);
}

#[tokio::test]
async fn a_lane_commits_while_others_join_and_leave() {
    for change in [|_: &mut synapse_brokers::kafka::KafkaOptions| {}, newer] {
        let one = broker_with("one", change);
        let (topic, pipeline) = (topic(&one, 2).await, fresh("p"));
        one.publish(&output(&topic, 0..40)).await.unwrap();
        let mut first = Host::join(&one, &pipeline, &topic).await;
        assert_eq!(first.has(2).await, [0, 1]);
        let (mut committer, mut source) = open(&one, &lane(&pipeline, &topic, 0)).await;
        let read = poll(&mut *source).await;
        let others = tokio::spawn({
            let (topic, pipeline) = (topic.clone(), pipeline.clone());
            async move {
                for _ in 0..3 {
                    let two = broker_with("two", change);
                    Host::join(&two, &pipeline, &topic).await.has(1).await;
                }
            }
        });
        let mut done = 0;
        while !others.is_finished() {
            let next = done % read.offsets.len();
            committer.commit(&covering(&read.offsets[..=next])).await.unwrap();
            done += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        others.await.unwrap();
        assert!(done > 10, "{done} commits");
    }
}

/// As when a pipeline is changed: its membership ends and begins again within moments.
#[tokio::test]
async fn a_host_may_leave_and_join_again_at_once() {
    let one = broker("one");
    let (topic, pipeline) = (topic(&one, 2).await, fresh("p"));
    for _ in 0..4 {
        let mut member = Host::join(&one, &pipeline, &topic).await;
        assert_eq!(member.has(2).await, [0, 1]);
    }
    // Also before it has heard of its share.
    drop(Host::join(&one, &pipeline, &topic).await);
    assert_eq!(Host::join(&one, &pipeline, &topic).await.has(2).await, [0, 1]);
}

/// It would shut the rightful owner out, which would do the same.
#[tokio::test]
async fn a_host_does_not_take_a_lane_whose_partition_the_group_gave_to_another() {
    let (one, two) = (broker("one"), broker("two"));
    let (topic, pipeline) = (topic(&one, 2).await, fresh("p"));
    let mut first = Host::join(&one, &pipeline, &topic).await;
    let mut second = Host::join(&two, &pipeline, &topic).await;
    let (mine, theirs) = (first.has(1).await[0], second.has(1).await[0]);
    let (mut committer, _source) = open(&two, &lane(&pipeline, &topic, theirs)).await;
    let taken = one.open_lane(&lane(&pipeline, &topic, theirs)).await;
    assert_eq!(taken.err().map(|error| error.kind), Some(BrokerErrorKind::Fenced));
    committer.commit(&Effects { outputs: vec![output(&topic, 0..1)], ..covering(&[]) }).await.unwrap();
    open(&one, &lane(&pipeline, &topic, mine)).await;
}

#[tokio::test]
async fn places_tell_owner_position_and_what_is_left() {
    let (one, two, other) = (broker("one"), broker("two"), broker("three"));
    let (topic, pipeline) = (topic(&one, 2).await, fresh("p"));
    one.publish(&output(&topic, 0..20)).await.unwrap();
    let before = other.places(&share(&pipeline, &topic)).await.unwrap();
    assert!(before.iter().all(|place| place.owner.is_none() && place.committed.is_none()), "{before:?}");
    let mut first = Host::join(&one, &pipeline, &topic).await;
    let mut second = Host::join(&two, &pipeline, &topic).await;
    let (mine, theirs) = (first.has(1).await, second.has(1).await);
    let (mut committer, mut source) = open(&one, &lane(&pipeline, &topic, mine[0])).await;
    let _other_lane = open(&two, &lane(&pipeline, &topic, theirs[0])).await;
    let read = poll(&mut *source).await;
    committer.commit(&covering(&read.offsets[..3])).await.unwrap();
    let places = other.places(&share(&pipeline, &topic)).await.unwrap();
    let (my_place, their_place) = (&places[mine[0] as usize], &places[theirs[0] as usize]);
    assert_eq!((my_place.owner.as_deref(), my_place.committed), (Some("one"), Some(read.offsets[2])));
    assert_eq!(my_place.lag, Some(read.offsets.len() as u64 - 3));
    assert_eq!((their_place.owner.as_deref(), their_place.committed), (Some("two"), None));
    drop((first, second, committer, source));
    one.close().await;
    two.close().await;
    let after = other.places(&share(&pipeline, &topic)).await.unwrap();
    assert!(after.iter().all(|place| place.owner.is_none()), "{after:?}");
}

#[tokio::test]
async fn a_new_partition_is_told() {
    let one = broker("one");
    let (topic, pipeline) = (topic(&one, 1).await, fresh("p"));
    let mut host = Host::join(&one, &pipeline, &topic).await;
    assert_eq!(host.has(1).await, [0]);
    let spec = synapse_core::spec::TopicSpec { partitions: 3.try_into().unwrap(), ..Default::default() };
    one.ensure_topic(&topic, &spec).await.unwrap();
    assert_eq!(host.has(3).await, [0, 1, 2]);
}

#[tokio::test]
async fn an_owner_that_comes_back_too_late_cannot_commit() {
    let (one, two) = (broker("one"), broker("two"));
    let (topic, pipeline, to) = (topic(&one, 1).await, fresh("p"), topic(&one, 1).await);
    one.publish(&output(&topic, 0..10)).await.unwrap();
    let spec = lane(&pipeline, &topic, 0);
    let (mut zombie, mut source) = open(&one, &spec).await;
    let read = poll(&mut *source).await;
    let effects = |ids: std::ops::Range<usize>| synapse_core::Effects {
        outputs: vec![output(&to, ids.clone())],
        ..covering(&read.offsets[ids])
    };
    zombie.commit(&effects(0..4)).await.unwrap();
    let (mut owner, mut source) = open(&two, &spec).await;
    assert_eq!(zombie.commit(&effects(4..6)).await.unwrap_err().kind, BrokerErrorKind::Fenced);
    let ids: Vec<String> = (4..10).map(|id| id.to_string()).collect();
    assert_eq!(next_ids(&mut *source, 6).await, ids);
    owner.commit(&effects(4..10)).await.unwrap();
    let mut written = two.read(&to, 0, synapse_core::spec::ReadFrom::Earliest).await.unwrap();
    let all: Vec<String> = (0..10).map(|id| id.to_string()).collect();
    assert_eq!(next_ids(&mut *written, 10).await, all);
}
