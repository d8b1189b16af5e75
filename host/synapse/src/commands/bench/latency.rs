//! How long an event is under way: from just before it is published until a reader has it.
//!
//! Published at a steady rate, in small batches as a service would, for the rate and not the machine's limit is what
//! latency is asked at. The baseline publishes to the topic that is read; the other arm has a pipeline in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use synapse_core::broker::{BatchLimit, Broker, Output};
use synapse_core::spec::{Encoding, ReadFrom, TopicSpec};
use synapse_core::topic::TopicPath;
use synapse_core::{Batch, Event};

/// Events published together, and how often.
const EVENTS: usize = 10;
const EVERY: Duration = Duration::from_millis(1);
/// How many are published in all.
const TOTAL: usize = 30_000;
/// The first are not counted: connections and code warm up.
const WARM: usize = 5_000;

/// Microseconds that 50 % and 99 % of events stay below, published to one topic and read from another or the same.
pub(super) async fn measure(
    broker: &Arc<dyn Broker>,
    to: &TopicPath,
    from: &TopicPath,
    template: &Event,
) -> Result<[f64; 2]> {
    for topic in [to, from] {
        broker.ensure_topic(&topic.topic, &TopicSpec::default()).await?;
    }
    let start = Instant::now();
    let sent: Arc<[AtomicU64]> = (0..TOTAL).map(|_| AtomicU64::new(0)).collect();
    let mut source = broker.read(&from.topic, 0, ReadFrom::Latest).await?;
    // A first look, so that the reader stands where it is to begin.
    source.poll(BatchLimit::default(), Duration::from_millis(10)).await?;
    let times = Arc::clone(&sent);
    let reading = tokio::spawn(async move {
        let mut took = Vec::with_capacity(TOTAL);
        while took.len() < TOTAL {
            let batch = source.poll(BatchLimit::default(), Duration::from_secs(5)).await?;
            anyhow::ensure!(!batch.is_empty(), "only {} of {TOTAL} events came", took.len());
            let now = start.elapsed().as_nanos() as u64;
            for event in batch.events.events() {
                let number: usize = event.id().parse()?;
                took.push((number, now - times[number].load(Ordering::Relaxed)));
            }
        }
        Ok(took)
    });
    let mut ticks = tokio::time::interval(EVERY);
    for first in (0..TOTAL).step_by(EVENTS) {
        ticks.tick().await;
        let batch: Batch = (first..first + EVENTS)
            .map(|number| Event { id: number.to_string(), ..template.clone() })
            .collect::<Vec<_>>()
            .iter()
            .collect();
        let now = start.elapsed().as_nanos() as u64;
        sent[first..first + EVENTS].iter().for_each(|at| at.store(now, Ordering::Relaxed));
        broker.publish(&Output { topic: to.clone(), encoding: Encoding::default(), events: Arc::new(batch) }).await?;
    }
    let took = reading.await??;
    let mut nanos: Vec<u64> = took.into_iter().filter(|(number, _)| *number >= WARM).map(|(_, took)| took).collect();
    nanos.sort_unstable();
    Ok([50, 99].map(|percent| nanos[nanos.len() * percent / 100] as f64 / 1000.0))
}
