//! Promises about lanes: cursors, commits, boundaries and fences.

use synapse_core::broker::Boundary;

use super::*;

/// A fresh pipeline's lane on partition 0 of `topic`.
fn fresh_lane(broker: &dyn Broker, topic: &TopicName, start: Start) -> LaneSpec {
    lane_spec(broker, topic, &fresh("lane"), start)
}

/// A lane without a position reads from the beginning if it starts there.
pub async fn a_lane_from_earliest_reads_everything(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..3).await;
    let (lane, mut source) = open(&*broker, &fresh_lane(&*broker, &name, Start::Earliest)).await;
    assert_eq!(lane.boundary, None);
    publish_ids(&*broker, &name, 3..5).await;
    assert_eq!(next_ids(&mut *source, 5).await, ids(0..5));
}

/// The starting place is stored when the lane is opened: a crash before the first commit does not move it.
pub async fn a_lane_from_latest_keeps_its_starting_place(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..3).await;
    let spec = fresh_lane(&*broker, &name, Start::Latest);
    drop(open(&*broker, &spec).await);
    publish_ids(&*broker, &name, 3..5).await;
    let (lane, mut source) = open(&*broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 2).await, ids(3..5));
    drop((lane, source));
    // What the pipeline asks for now does not matter either.
    let (_lane, mut source) = open(&*broker, &LaneSpec { start: Start::Earliest, ..spec }).await;
    assert_eq!(next_ids(&mut *source, 2).await, ids(3..5));
}

/// As above for a lane that starts at a time.
pub async fn a_lane_from_a_time_keeps_its_starting_place(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..2).await;
    let between = reading::time_between().await;
    let spec = fresh_lane(&*broker, &name, Start::Time(between));
    drop(open(&*broker, &spec).await);
    publish_ids(&*broker, &name, 2..4).await;
    let (mut lane, mut source) = open(&*broker, &LaneSpec { start: Start::Earliest, ..spec.clone() }).await;
    let read = next(&mut *source, 2).await;
    assert_eq!(read[0].1.id, "2");
    lane.committer.commit(&covering(&[read[0].0])).await.unwrap();
    let (_lane, mut source) = open(&*broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 1).await, ids(3..4));
}

/// A lane goes on right behind the highest entry that was committed.
pub async fn a_reopened_lane_resumes_behind_the_last_commit(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..10).await;
    let spec = fresh_lane(&*broker, &name, Start::Earliest);
    let mut done = 0;
    for step in [1, 3, 2] {
        let (mut lane, mut source) = open(&*broker, &spec).await;
        let read = next(&mut *source, 10 - done).await;
        let offsets: Vec<Offset> = read.into_iter().map(|(offset, _)| offset).collect();
        // Two commits on one lane, so that the second builds on the first.
        lane.committer.commit(&covering(&offsets[..step])).await.unwrap();
        lane.committer.commit(&covering(&offsets[step..=step])).await.unwrap();
        done += step + 1;
    }
    let (_lane, mut source) = open(&*broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 10 - done).await, ids(done..10));
}

/// Reading alone moves no cursor.
pub async fn what_was_not_committed_is_read_again(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..4).await;
    let spec = fresh_lane(&*broker, &name, Start::Earliest);
    for _ in 0..2 {
        let (_lane, mut source) = open(&*broker, &spec).await;
        assert_eq!(next_ids(&mut *source, 4).await, ids(0..4));
    }
}

/// Covering what was covered before does not move the cursor back.
pub async fn the_cursor_never_goes_back(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let offsets = publish_ids(&*broker, &name, 0..6).await;
    let spec = fresh_lane(&*broker, &name, Start::Earliest);
    let (mut lane, _source) = open(&*broker, &spec).await;
    lane.committer.commit(&covering(&offsets[..4])).await.unwrap();
    lane.committer.commit(&covering(&offsets[..1])).await.unwrap();
    let (_lane, mut source) = open(&*broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 2).await, ids(4..6));
}

/// Outputs land in their topics, in order, by key; topics that are missing are made.
pub async fn outputs_of_a_commit_are_readable(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let (from, to, fresh) = (topic(&*broker, 1).await, topic(&*broker, 2).await, fresh_topic());
    let offsets = publish_ids(&*broker, &from, 0..2).await;
    let (mut lane, _source) = open(&*broker, &fresh_lane(&*broker, &from, Start::Earliest)).await;
    // Twice the same topic is fine.
    let outputs = vec![
        output(&*broker, &to, &[event(0, "N14228"), event(1, "N14228")]),
        output(&*broker, &fresh, &events(10..12)),
        output(&*broker, &to, &[event(2, "N14228")]),
    ];
    lane.committer.commit(&Effects { outputs, ..covering(&offsets) }).await.unwrap();
    let partition = broker.partition_of(b"N14228", 2);
    let mut source = broker.read(&to, partition, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 3).await, ids(0..3));
    let mut source = broker.read(&fresh, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 2).await, ids(10..12));
}

/// A commit that cannot be done whole is not done at all.
pub async fn a_refused_commit_writes_nothing(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let (from, to) = (topic(&*broker, 1).await, topic(&*broker, 1).await);
    let offsets = publish_ids(&*broker, &from, 0..2).await;
    let spec = fresh_lane(&*broker, &from, Start::Earliest);
    let (mut lane, _source) = open(&*broker, &spec).await;
    let mut wrong = output(&*broker, &to, &events(1..2));
    wrong.topic.broker = "elsewhere".parse().unwrap();
    let boundary = Boundary { from: offsets[0], stages: Vec::new() };
    let effects = Effects {
        outputs: vec![output(&*broker, &to, &events(0..1)), wrong],
        covered: offsets,
        boundary: Some(boundary),
    };
    assert_kind(lane.committer.commit(&effects).await, BrokerErrorKind::Invalid, "elsewhere");
    assert_eq!(broker.topic(&to).await.unwrap().unwrap().partitions[0].events, 0);
    assert_eq!(broker.boundaries(&spec.key).await.unwrap(), []);
    let (_lane, mut source) = open(&*broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 2).await, ids(0..2));
}

/// Nothing to write is nothing wrong, and moves nothing.
pub async fn a_commit_without_effects_is_fine(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..2).await;
    let spec = fresh_lane(&*broker, &name, Start::Earliest);
    let (mut lane, _source) = open(&*broker, &spec).await;
    lane.committer.commit(&Effects::default()).await.unwrap();
    let (_lane, mut source) = open(&*broker, &spec).await;
    assert_eq!(next_ids(&mut *source, 2).await, ids(0..2));
}

/// The last boundary comes back with the lane, all of them in a list.
pub async fn boundaries_are_kept(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let offsets = publish_ids(&*broker, &name, 0..3).await;
    let spec = fresh_lane(&*broker, &name, Start::Earliest);
    assert_eq!(broker.boundaries(&spec.key).await.unwrap(), []);
    let boundary = |from: usize| Boundary {
        from: offsets[from],
        stages: vec![("keep".to_owned(), format!("{from:064x}")), ("shape".to_owned(), "b".repeat(64))],
    };
    let (mut lane, _source) = open(&*broker, &spec).await;
    for (index, offset) in offsets.iter().enumerate() {
        let boundary = (index != 1).then(|| boundary(index));
        lane.committer.commit(&Effects { boundary, ..covering(&[*offset]) }).await.unwrap();
    }
    assert_eq!(broker.boundaries(&spec.key).await.unwrap(), [boundary(0), boundary(2)]);
    let (lane, _source) = open(&*broker, &spec).await;
    assert_eq!(lane.boundary, Some(boundary(2)));
}

/// Who opens a lane shuts out whoever had it: the older owner's commit is refused and leaves no trace.
pub async fn a_second_owner_fences_the_first(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let peer = harness.peer(&broker).await;
    let (from, to) = (topic(&*broker, 1).await, topic(&*broker, 1).await);
    let offsets = publish_ids(&*broker, &from, 0..3).await;
    let spec = fresh_lane(&*broker, &from, Start::Earliest);
    let (mut first, _source) = open(&*broker, &spec).await;
    first.committer.commit(&covering(&offsets[..1])).await.unwrap();
    let (mut second, mut source) = open(&*peer, &spec).await;
    let effects = Effects {
        outputs: vec![output(&*broker, &to, &events(0..1))],
        boundary: Some(Boundary { from: offsets[1], stages: Vec::new() }),
        ..covering(&offsets[1..])
    };
    assert_kind(first.committer.commit(&effects).await, BrokerErrorKind::Fenced, "");
    let mut outputs = broker.read(&to, 0, ReadFrom::Earliest).await.unwrap();
    assert_nothing(&mut *outputs).await;
    assert_eq!(broker.boundaries(&spec.key).await.unwrap(), []);
    assert_eq!(next_ids(&mut *source, 2).await, ids(1..3));
    second.committer.commit(&effects).await.unwrap();
    assert_eq!(next_ids(&mut *outputs, 1).await, ids(0..1));
    assert_nothing(&mut *outputs).await;
}

/// Two pipelines on one topic do not know of each other.
pub async fn pipelines_have_cursors_of_their_own(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let offsets = publish_ids(&*broker, &name, 0..4).await;
    let (one, two) = (fresh_lane(&*broker, &name, Start::Earliest), fresh_lane(&*broker, &name, Start::Earliest));
    let (mut lane_one, _) = open(&*broker, &one).await;
    let (mut lane_two, _) = open(&*broker, &two).await;
    lane_one.committer.commit(&covering(&offsets[..3])).await.unwrap();
    lane_two.committer.commit(&covering(&offsets[..1])).await.unwrap();
    let (_lane, mut source) = open(&*broker, &one).await;
    assert_eq!(next_ids(&mut *source, 1).await, ids(3..4));
    let (_lane, mut source) = open(&*broker, &two).await;
    assert_eq!(next_ids(&mut *source, 3).await, ids(1..4));
}

/// Neither do two partitions of one pipeline.
pub async fn partitions_have_cursors_of_their_own(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 2).await;
    let all = events(0..20);
    let positions = publish(&*broker, &name, &all).await;
    let here = |partition: u32| {
        let at = positions.iter().zip(&all).filter(move |((at, _), _)| *at == partition);
        at.map(|((_, offset), event)| (*offset, event.id.clone())).collect::<Vec<_>>()
    };
    let first = fresh_lane(&*broker, &name, Start::Earliest);
    let mut second = first.clone();
    second.key.partition.partition = 1;
    let (mut lane, _source) = open(&*broker, &first).await;
    let (_other, mut untouched) = open(&*broker, &second).await;
    lane.committer.commit(&covering(&[here(0)[0].0])).await.unwrap();
    let (_lane, mut source) = open(&*broker, &first).await;
    let expected: Vec<String> = here(0).into_iter().skip(1).map(|(_, id)| id).collect();
    assert_eq!(next_ids(&mut *source, expected.len()).await, expected);
    let expected: Vec<String> = here(1).into_iter().map(|(_, id)| id).collect();
    assert_eq!(next_ids(&mut *untouched, expected.len()).await, expected);
}

/// There is no lane on what does not exist.
pub async fn an_unknown_lane_is_refused(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let nowhere = fresh_topic();
    let refused = broker.open_lane(&fresh_lane(&*broker, &nowhere, Start::Earliest)).await;
    assert_kind(refused, BrokerErrorKind::Invalid, nowhere.as_str());
    let name = topic(&*broker, 1).await;
    let mut spec = fresh_lane(&*broker, &name, Start::Earliest);
    spec.key.partition.partition = 1;
    assert_kind(broker.open_lane(&spec).await, BrokerErrorKind::Invalid, name.as_str());
    assert_eq!(broker.boundaries(&spec.key).await.unwrap(), []);
}
