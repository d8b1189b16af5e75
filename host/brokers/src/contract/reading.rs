//! Promises about reading without a cursor.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use synapse_core::Timestamp;

use super::*;

/// Whatever an event holds comes back unchanged.
pub async fn events_come_back_bit_for_bit(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let full = Event {
        id: "🛩 1".to_owned(),
        source: "urn:flights?a=b&c=d".to_owned(),
        kind: "flight.departed.v2".to_owned(),
        subject: Some("EWR → IAH\n".to_owned()),
        time: Some(Timestamp::from_micros(1_357_013_700_250_001)),
        partition_key: Some("N14228".to_owned()),
        content_type: Some("application/json; charset=utf-8".to_owned()),
        attributes: vec![
            ("traceparent".to_owned(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            ("tenant".to_owned(), "ÄÖ".to_owned()),
            ("a1".to_owned(), "0".to_owned()),
        ],
        data: br#"{"dep_delay":2}"#.to_vec(),
    };
    let before_1970 = Event { time: Some(Timestamp::from_micros(-1)), ..event("old", "") };
    let binary = Event { data: (0..=255).collect(), ..event("binary", "") };
    let all = [full, event("bare", ""), Event { data: Vec::new(), ..event("empty", "k") }, before_1970, binary];
    publish(&*broker, &name, &all).await;
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let read: Vec<Event> = next(&mut *source, all.len()).await.into_iter().map(|(_, event)| event).collect();
    assert_eq!(read, all);
}

/// Large events are no special case.
pub async fn an_event_of_a_mebibyte_passes(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let data: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let all = [event("small", ""), Event { data, ..event("large", "") }, event("behind", "")];
    publish(&*broker, &name, &all).await;
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let read: Vec<Event> = next(&mut *source, 3).await.into_iter().map(|(_, event)| event).collect();
    assert!(read == all, "the events differ");
}

/// No poll hands out more events than it may, and none goes missing between two polls.
pub async fn poll_honours_the_limit_of_events(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..7).await;
    publish_ids(&*broker, &name, 7..20).await;
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let limit = BatchLimit { events_max: 3, ..PLENTY };
    let mut read = Vec::new();
    while read.len() < 20 {
        let batch = source.poll(limit, PATIENCE).await.unwrap();
        assert!((1..=3).contains(&batch.events.len()), "{}", batch.events.len());
        read.extend(batch.events.events().map(|event| event.id().to_owned()));
    }
    assert_eq!(read, ids(0..20));
}

/// No poll hands out more bytes than it may, but an event larger than that comes alone.
pub async fn poll_honours_the_limit_of_bytes(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let large = |id: usize| Event { data: vec![b'x'; 1000], ..event(id, "") };
    publish(&*broker, &name, &(0..10).map(large).collect::<Vec<_>>()).await;
    for (bytes_max, events_max) in [(2500, 2), (10, 1)] {
        let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
        let mut read = Vec::new();
        while read.len() < 10 {
            let batch = source.poll(BatchLimit { events_max: 100, bytes_max }, PATIENCE).await.unwrap();
            assert!((1..=events_max).contains(&batch.events.len()), "{} of {bytes_max} bytes", batch.events.len());
            read.extend(batch.events.events().map(|event| event.id().to_owned()));
        }
        assert_eq!(read, ids(0..10));
    }
}

/// A batch never waits to fill.
pub async fn poll_hands_out_what_is_there_at_once(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    publish_ids(&*broker, &name, 0..2).await;
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let started = Instant::now();
    assert_eq!(next_ids(&mut *source, 2).await, ids(0..2));
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    publish_ids(&*broker, &name, 2..3).await;
    assert_eq!(next_ids(&mut *source, 1).await, ids(2..3));
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
}

/// With nothing there a poll answers empty once its time has passed: not before, and not much later.
pub async fn poll_waits_no_longer_than_it_may(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let mut source = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let started = Instant::now();
    assert!(source.poll(PLENTY, Duration::ZERO).await.unwrap().is_empty());
    assert!(source.poll(PLENTY, Duration::from_millis(200)).await.unwrap().is_empty());
    // A broker may count in whole milliseconds.
    assert!(started.elapsed() >= Duration::from_millis(195), "{:?}", started.elapsed());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    publish_ids(&*broker, &name, 0..1).await;
    assert_eq!(next_ids(&mut *source, 1).await, ids(0..1));
}

/// A waiting poll answers as soon as something is published.
pub async fn poll_wakes_on_publish(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let mut source = broker.read(&name, 0, ReadFrom::Latest).await.unwrap();
    let started = Instant::now();
    for turn in 0..5 {
        // `join!` polls in order: the source is waiting when the event is published.
        let (read, _) = tokio::join!(next_ids(&mut *source, 1), publish_ids(&*broker, &name, turn..turn + 1));
        assert_eq!(read, ids(turn..turn + 1));
    }
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
}

/// Earliest, latest, at and after an offset.
pub async fn reading_starts_where_it_is_told(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let mut offsets = publish_ids(&*broker, &name, 0..3).await;
    offsets.extend(publish_ids(&*broker, &name, 3..6).await);
    let mut latest = broker.read(&name, 0, ReadFrom::Latest).await.unwrap();
    let cases = [
        (ReadFrom::Earliest, 0),
        (ReadFrom::At(offsets[0]), 0),
        (ReadFrom::After(offsets[0]), 1),
        (ReadFrom::At(offsets[4]), 4),
        (ReadFrom::After(offsets[2]), 3),
        (ReadFrom::At(offsets[5]), 5),
    ];
    for (from, first) in cases {
        let mut source = broker.read(&name, 0, from).await.unwrap();
        assert_eq!(next_ids(&mut *source, 6 - first).await, ids(first..6), "{from:?}");
        assert_nothing(&mut *source).await;
    }
    let mut behind = broker.read(&name, 0, ReadFrom::After(offsets[5])).await.unwrap();
    assert_nothing(&mut *behind).await;
    assert_nothing(&mut *latest).await;
    publish_ids(&*broker, &name, 6..8).await;
    assert_eq!(next_ids(&mut *behind, 2).await, ids(6..8));
    assert_eq!(next_ids(&mut *latest, 2).await, ids(6..8));
}

/// A time that lies behind everything published so far, and in front of what is published from now on.
pub(super) async fn time_between() -> Timestamp {
    let millis = || i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let before = millis();
    while millis() <= before + 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Timestamp::from_micros(millis() * 1000)
}

/// From a time on: what was published at or after it.
pub async fn reading_starts_at_a_time(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let before = time_between().await;
    publish_ids(&*broker, &name, 0..3).await;
    let between = time_between().await;
    let mut waiting = broker.read(&name, 0, ReadFrom::Time(between)).await.unwrap();
    assert_nothing(&mut *waiting).await;
    publish_ids(&*broker, &name, 3..5).await;
    let mut all = broker.read(&name, 0, ReadFrom::Time(before)).await.unwrap();
    assert_eq!(next_ids(&mut *all, 5).await, ids(0..5));
    let mut some = broker.read(&name, 0, ReadFrom::Time(between)).await.unwrap();
    assert_eq!(next_ids(&mut *some, 2).await, ids(3..5));
    assert_eq!(next_ids(&mut *waiting, 2).await, ids(3..5));
}

/// Each source has its own place.
pub async fn readers_do_not_disturb_each_other(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let name = topic(&*broker, 1).await;
    let mut one = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    let mut two = broker.read(&name, 0, ReadFrom::Earliest).await.unwrap();
    publish_ids(&*broker, &name, 0..4).await;
    assert_eq!(next_ids(&mut *one, 4).await, ids(0..4));
    publish_ids(&*broker, &name, 4..6).await;
    assert_eq!(next_ids(&mut *two, 6).await, ids(0..6));
    assert_eq!(next_ids(&mut *one, 2).await, ids(4..6));
}

/// Topics and partitions that do not exist are refused by name.
pub async fn unknown_places_are_refused(harness: &dyn Harness) {
    let broker = harness.broker().await;
    let nowhere = fresh_topic();
    let refused = broker.read(&nowhere, 0, ReadFrom::Earliest).await;
    assert_kind(refused.map(drop), BrokerErrorKind::Invalid, nowhere.as_str());
    let name = topic(&*broker, 2).await;
    let refused = broker.read(&name, 2, ReadFrom::Earliest).await;
    assert_kind(refused.map(drop), BrokerErrorKind::Invalid, name.as_str());
}
