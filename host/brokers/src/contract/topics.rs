//! Promises about topics, partitions and publishing.

use super::*;

/// Asking again for a topic changes nothing.
pub async fn ensure_topic_may_be_repeated(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = fresh_topic();
    let first = broker.ensure_topic(&name, &spec(2)).await.unwrap();
    assert_eq!((&first.name, first.partitions.len()), (&name, 2));
    publish(&*broker, &name, &events(0..3)).await;
    let second = broker.ensure_topic(&name, &spec(2)).await.unwrap();
    assert_eq!(second.partitions.iter().map(|partition| partition.events).sum::<u64>(), 3);
}

/// A topic grows when more partitions are asked for, and keeps them when fewer are.
pub async fn partitions_are_added_but_never_taken_away(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 2).await;
    publish(&*broker, &name, &[event(0, "N14228"), event(1, "N14228")]).await;
    assert_eq!(broker.ensure_topic(&name, &spec(3)).await.unwrap().partitions.len(), 3);
    let fewer = broker.ensure_topic(&name, &spec(2)).await.unwrap();
    assert_eq!(fewer.partitions.len(), 3);
    assert_eq!(fewer.partitions[0].events, 2);
    let positions = publish(&*broker, &name, &[event(0, "N14228"), event(1, "N14229")]).await;
    assert_eq!(positions[0].0, broker.partition_of(b"N14228", 3));
    assert_eq!(positions[1].0, broker.partition_of(b"N14229", 3));
}

/// A topic of one partition gets more and keeps its events in the first; or it is refused and stays as it was.
pub async fn a_topic_of_one_partition_grows_or_stays_as_it_was(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..3).await;
    let partitions = match broker.ensure_topic(&name, &spec(3)).await {
        Ok(info) => info.partitions.len(),
        Err(error) => {
            assert_eq!(error.kind, BrokerErrorKind::Invalid, "{error}");
            1
        }
    };
    let info = broker.topic(&name).await.unwrap().unwrap();
    assert_eq!((info.partitions.len(), info.partitions[0].events), (partitions, 3));
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 3).await, ids(0..3));
}

/// Topics are found in the list, sorted, and by name; others are not there.
pub async fn topics_are_listed_by_name(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let (one, two) = (topic(&*broker, 1).await, topic(&*broker, 2).await);
    let listed: Vec<_> = broker.topics().await.unwrap().into_iter().map(|info| info.name).collect();
    assert!(listed.contains(&one) && listed.contains(&two), "{listed:?}");
    assert!(listed.is_sorted(), "{listed:?}");
    let partitions = broker.topic(&two).await.unwrap().map(|info| info.partitions.len());
    assert_eq!(partitions, Some(2));
    assert_eq!(broker.topic(&fresh_topic()).await.unwrap(), None);
}

/// Information about a partition tells its oldest and newest entry and their number.
pub async fn topic_info_tells_what_is_kept(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let before = broker.topic(&name).await.unwrap().unwrap().partitions[0];
    assert_eq!((before.earliest, before.latest, before.events), (None, None, 0));
    let offsets = publish_ids(&*broker, &name, 0..5).await;
    let after = broker.topic(&name).await.unwrap().unwrap().partitions[0];
    assert_eq!((after.earliest, after.latest, after.events), (Some(offsets[0]), Some(offsets[4]), 5));
}

/// Publishing to a topic that nobody made makes it.
pub async fn publish_creates_the_topic(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = fresh_topic();
    publish_ids(&*broker, &name, 0..2).await;
    let info = broker.topic(&name).await.unwrap().unwrap();
    assert_eq!((info.partitions.len(), info.partitions[0].events), (1, 2));
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 2).await, ids(0..2));
}

/// Publish tells the position of each row in order; reading finds each event at just that position.
pub async fn positions_ascend_and_are_those_read_back(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 3).await;
    let all = events(0..40);
    let mut positions = publish(&*broker, &name, &all[..25]).await;
    positions.extend(publish(&*broker, &name, &all[25..]).await);
    assert_eq!(positions.len(), all.len());
    for partition in 0..3 {
        let expected: Vec<(Offset, Event)> = positions
            .iter()
            .zip(&all)
            .filter(|((at, _), _)| *at == partition)
            .map(|((_, offset), event)| (*offset, event.clone()))
            .collect();
        assert!(expected.is_sorted_by(|one, two| one.0 < two.0), "{expected:?}");
        assert!(!expected.is_empty(), "40 ids should reach all of 3 partitions");
        let mut source = broker.read(&name, partition, ReadFrom::Earliest).await.unwrap();
        assert_eq!(next(&mut *source, expected.len()).await, expected);
    }
}

/// Events of one key share a partition, which the key alone decides, and keep their order in it.
pub async fn an_event_goes_to_the_partition_of_its_key(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 4).await;
    let keys = ["alpha", "beta", "gamma", "delta", "epsilon"];
    let all: Vec<Event> = (0..50).map(|id| event(id, keys[id % keys.len()])).collect();
    let positions = publish(&*broker, &name, &all).await;
    for (event, (partition, _)) in all.iter().zip(&positions) {
        let key = event.partition_key.as_deref().unwrap();
        assert_eq!(*partition, broker.partition_of(key.as_bytes(), 4), "{key}");
    }
    for partition in 0..4 {
        let expected: Vec<String> = all
            .iter()
            .filter(|event| broker.partition_of(event.partition_key.as_deref().unwrap().as_bytes(), 4) == partition)
            .map(|event| event.id.clone())
            .collect();
        let mut source = broker.read(&name, partition, ReadFrom::Earliest).await.unwrap();
        assert_eq!(next_ids(&mut *source, expected.len()).await, expected);
        assert_nothing(&mut *source).await;
    }
}

/// Without a key the id decides.
pub async fn an_event_without_a_key_goes_to_the_partition_of_its_id(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 5).await;
    let all = events(0..20);
    let positions = publish(&*broker, &name, &all).await;
    for (event, (partition, _)) in all.iter().zip(positions) {
        assert_eq!(partition, broker.partition_of(event.id.as_bytes(), 5), "{}", event.id);
    }
}

/// What one publisher publishes in turn is read in that order, whatever others do.
pub async fn publishers_side_by_side_keep_their_order(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..8 {
        let (broker, name) = (Arc::clone(&broker), name.clone());
        publishers.spawn(async move {
            let mut offsets = Vec::new();
            for turn in 0..20 {
                let event = event(format!("{publisher}.{turn}"), &publisher.to_string());
                offsets.push(publish(&*broker, &name, &[event]).await[0].1);
            }
            assert!(offsets.is_sorted_by(|one, two| one < two), "{offsets:?}");
        });
    }
    while let Some(ended) = publishers.join_next().await {
        ended.unwrap();
    }
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let read = next(&mut *source, 160).await;
    assert!(read.is_sorted_by(|one, two| one.0 < two.0), "places must ascend");
    for publisher in 0..8 {
        let prefix = format!("{publisher}.");
        let turns: Vec<_> = read.iter().filter_map(|(_, event)| event.id.strip_prefix(&prefix)).collect();
        assert_eq!(turns, ids(0..20));
    }
}

/// Publishing no events has no effect.
pub async fn an_empty_publish_is_nothing(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    assert_eq!(publish(&*broker, &name, &[]).await, []);
    assert_eq!(broker.topic(&name).await.unwrap().unwrap().partitions[0].events, 0);
}

/// Nobody publishes to the wrong broker.
pub async fn a_topic_of_another_broker_is_refused(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let mut wrong = output(&*broker, &fresh_topic(), &events(0..1));
    wrong.topic.broker = "elsewhere".parse().unwrap();
    assert_kind(broker.publish(&wrong).await, BrokerErrorKind::Invalid, "elsewhere");
}

/// A bound in events lets old events go, never the newest ones; what stays has no gap.
pub async fn retention_keeps_the_newest_events(harness: &dyn Harness) {
    const KEPT: usize = 20;
    let broker = harness.broker().await;
    let name = fresh_topic();
    let retention = Retention { events: Some(KEPT as u64), ..Retention::default() };
    broker.ensure_topic(&name, &TopicSpec { retention, ..spec(1) }).await.unwrap();
    let (mut published, mut first) = (0, None);
    // A broker may let go in steps of its own, but not for ever later.
    while published < 20_000 {
        let offsets = publish_ids(&*broker, &name, published..published + 50).await;
        first.get_or_insert(offsets[0]);
        published += 50;
        let info = broker.topic(&name).await.unwrap().unwrap().partitions[0];
        assert!(info.events >= KEPT as u64, "{info:?}");
        if info.earliest > first && published >= 200 {
            break;
        }
    }
    let info = broker.topic(&name).await.unwrap().unwrap().partitions[0];
    assert!(info.earliest > first, "nothing went of {published} events: {info:?}");
    // More may go while this reads, so only the end is known.
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let mut read = Vec::new();
    while read.last() != Some(&(published - 1)) {
        let batch = source.poll(PLENTY, PATIENCE).await.unwrap();
        assert!(!batch.is_empty(), "the newest event is missing: {read:?}");
        read.extend(batch.events.events().map(|event| event.id().parse::<usize>().unwrap()));
    }
    assert!(read.len() >= KEPT && read.len() < published, "{} events", read.len());
    assert!(read.windows(2).all(|pair| pair[1] == pair[0] + 1), "events are missing: {read:?}");
}
