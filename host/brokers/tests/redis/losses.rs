//! What is trimmed before it was read is counted, and what pipelines still need is not trimmed.

use std::time::{Duration, Instant};

use synapse_core::broker::BatchLimit;
use synapse_core::spec::{ReadFrom, ReadMode, Retention, TopicSpec};
use synapse_core::{Broker, Source};

use crate::support::{GLANCE, LIMIT, PATIENCE, RedisServer, covering, ids, lane, next, open, poll, publish};

/// Polls until something was counted as lost; the ids that came meanwhile.
async fn until_lost(source: &mut dyn Source) -> (Vec<String>, u64) {
    let (started, mut all) = (Instant::now(), Vec::new());
    while started.elapsed() < PATIENCE {
        let (ids, _, lost) = poll(source, GLANCE).await;
        all.extend(ids);
        if lost > 0 {
            return (all, lost);
        }
    }
    panic!("nothing was counted as lost within {PATIENCE:?}");
}

#[tokio::test]
async fn what_is_trimmed_while_a_lane_is_closed_is_counted() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..100).await;
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (_, offsets, lost) = next(&mut *source, 100).await;
    assert_eq!(lost, 0);
    committer.commit(&covering(&offsets[..30], Vec::new())).await.unwrap();
    drop((committer, source));
    assert_eq!(server.cli(&["XTRIM", "in", "MAXLEN", "20"]), "80");
    let (mut committer, mut source) = open(&broker, &spec).await;
    let (read, offsets, lost) = next(&mut *source, 20).await;
    assert_eq!((read, lost), (ids(80..100), 50));
    // Counted once: the group knows now how many entries were passed.
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
}

#[tokio::test]
async fn what_is_trimmed_in_front_of_a_reader_is_counted() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    publish(&broker, "in", 0..100).await;
    let mut source = broker.read(&"in".parse().unwrap(), 0, ReadFrom::Earliest).await.unwrap();
    let few = BatchLimit { events_max: 10, ..LIMIT };
    let first = source.poll(few, PATIENCE).await.unwrap();
    assert_eq!((first.events.len(), first.lost_to_trim), (10, 0));
    // Ten more may be on their way to us already.
    assert_eq!(server.cli(&["XTRIM", "in", "MAXLEN", "5"]), "95");
    let (started, mut read, mut lost) = (Instant::now(), 10, 0);
    while read + lost < 100 {
        assert!(started.elapsed() < PATIENCE, "{read} read and {lost} lost of 100");
        let batch = source.poll(few, GLANCE).await.unwrap();
        read += batch.events.len() as u64;
        lost += batch.lost_to_trim;
    }
    assert!(matches!((read, lost), (15, 85) | (25, 75)), "{read} read, {lost} lost");
}

/// Nothing is left to notice it by, but the end of the stream.
#[tokio::test]
async fn a_stream_that_is_emptied_is_counted() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..10).await;
    let mut source = broker.read(&"in".parse().unwrap(), 0, ReadFrom::After(offsets[9])).await.unwrap();
    assert!(poll(&mut *source, GLANCE).await.0.is_empty());
    drop(source);
    let spec = lane("in", ReadMode::Cursor);
    let (mut committer, mut source) = open(&broker, &spec).await;
    next(&mut *source, 10).await;
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    drop((committer, source));
    publish(&broker, "in", 10..17).await;
    server.cli(&["XTRIM", "in", "MAXLEN", "0"]);
    let (_committer, mut source) = open(&broker, &spec).await;
    assert_eq!(until_lost(&mut *source).await, (Vec::new(), 7));
}

#[tokio::test]
async fn other_tools_see_how_far_a_lane_is() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let offsets = publish(&broker, "in", 0..10).await;
    let (mut committer, _source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
    committer.commit(&covering(&offsets[..4], Vec::new())).await.unwrap();
    let groups = server.cli(&["XINFO", "GROUPS", "in"]);
    let expected =
        format!("name\npipe\nconsumers\n0\npending\n0\nlast-delivered-id\n{}\nentries-read\n4\nlag\n6", offsets[3]);
    assert_eq!(groups, expected);
}

#[tokio::test]
async fn retention_stops_at_the_slowest_pipeline() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let retention = Retention { events: Some(100), ..Retention::default() };
    let topic = "in".parse().unwrap();
    broker.ensure_topic(&topic, &TopicSpec { retention, ..TopicSpec::default() }).await.unwrap();
    let offsets = publish(&broker, "in", 0..50).await;
    // Another tool's group is not waited for.
    server.cli(&["XGROUP", "CREATE", "in", "theirs", "0"]);
    let (mut committer, _source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
    for from in (50..2050).step_by(500) {
        publish(&broker, "in", from..from + 500).await;
    }
    let kept = broker.topic(&topic).await.unwrap().unwrap().partitions[0];
    assert_eq!((kept.events, kept.earliest), (2050, Some(offsets[0])));
    committer.commit(&covering(&offsets, Vec::new())).await.unwrap();
    publish(&broker, "in", 2050..2550).await;
    let kept = broker.topic(&topic).await.unwrap().unwrap().partitions[0];
    // Blocks of entries go as a whole, so the cursor's own block may stay.
    assert!(kept.earliest <= Some(offsets[49]) && kept.events >= 2500, "{kept:?}");
    let (mut lane, mut source) = open(&broker, &lane("in", ReadMode::Cursor)).await;
    let (read, offsets, lost) = next(&mut *source, 2500).await;
    assert_eq!((read, lost), (ids(50..2550), 0));
    lane.commit(&covering(&offsets, Vec::new())).await.unwrap();
    publish(&broker, "in", 2550..2700).await;
    let kept = broker.topic(&topic).await.unwrap().unwrap().partitions[0];
    assert!((100..=350).contains(&kept.events), "{kept:?}");
}

#[tokio::test]
async fn retention_by_age_and_size() {
    let server = RedisServer::start(&[]);
    let broker = server.broker().await;
    let aged = Retention { age: Some(Duration::from_secs(3600)), ..Retention::default() };
    let sized = Retention { bytes: Some(20_000), ..Retention::default() };
    for (topic, retention) in [("aged", aged), ("sized", sized)] {
        let spec = TopicSpec { retention, ..TopicSpec::default() };
        broker.ensure_topic(&topic.parse().unwrap(), &spec).await.unwrap();
    }
    // Ids are times: these are from 1970.
    let script = "for ms = 1, 300 do redis.call('XADD', KEYS[1], ms .. '-1', 'event', 'e', 'source', 's') end";
    server.cli(&["EVAL", script, "1", "aged"]);
    publish(&broker, "aged", 0..10_000).await;
    publish(&broker, "sized", 0..10_000).await;
    let aged = broker.topic(&"aged".parse().unwrap()).await.unwrap().unwrap().partitions[0];
    assert!((10_000..10_100).contains(&aged.events), "{aged:?}");
    let sized = broker.topic(&"sized".parse().unwrap()).await.unwrap().unwrap().partitions[0];
    assert!((10..1_000).contains(&sized.events), "{sized:?}");
}
