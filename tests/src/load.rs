//! Producers that publish, as fast as they are answered or at a set rate, and remember what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::checker::Receipt;

/// Sends a batch; answers whether it was acknowledged. Called with ids in the order of their keys.
pub type Send = Box<dyn FnMut(&[Receipt]) -> bool + std::marker::Send>;

/// Producers at work; they end when it is dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    producers: Vec<JoinHandle<Sent>>,
}

/// What producers did.
#[derive(Default)]
pub struct Sent {
    /// Everything that was sent, acknowledged or not.
    pub all: Vec<Receipt>,
    /// What was acknowledged.
    pub acknowledged: Vec<Receipt>,
    /// When each of these was acknowledged.
    pub acknowledged_at: Vec<Instant>,
}

/// How one producer works.
#[derive(Clone, Copy)]
struct Pace {
    keys: usize,
    batch: usize,
    /// From the beginning of one batch to that of the next.
    interval: Duration,
}

impl Load {
    /// Starts one producer for each of `senders`, with `keys` keys of its own each, in batches of `batch` events. What
    /// was not acknowledged is never sent again: it may have arrived.
    pub fn start(senders: Vec<Send>, keys: usize, batch: usize) -> Self {
        Self::launch(senders, Pace { keys, batch, interval: Duration::ZERO })
    }

    /// As [`Load::start`], with at most so many events a second of all producers together. What a fault kept them from
    /// sending is not made up for.
    pub fn at_rate(senders: Vec<Send>, keys: usize, batch: usize, events_per_second: usize) -> Self {
        let interval = Duration::from_secs(1) * u32::try_from(batch * senders.len()).unwrap_or(u32::MAX)
            / u32::try_from(events_per_second).unwrap_or(u32::MAX).max(1);
        Self::launch(senders, Pace { keys, batch, interval })
    }

    fn launch(senders: Vec<Send>, pace: Pace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let producers = senders.into_iter().enumerate().map(|(producer, send)| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || produce(producer, send, pace, &stop, &acknowledged))
        });
        Self { producers: producers.collect(), stop, acknowledged }
    }

    /// How many events were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more were acknowledged, or until `patience` has passed; tells whether they were.
    pub fn wait_for_more(&self, events: usize, patience: Duration) -> bool {
        let (goal, started) = (self.acknowledged() + events, Instant::now());
        while self.acknowledged() < goal {
            if started.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Ends the producers.
    ///
    /// # Panics
    /// If one of them panicked.
    pub fn stop(mut self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = Sent::default();
        for producer in std::mem::take(&mut self.producers) {
            let part = producer.join().expect("producers do not panic");
            sent.all.extend(part.all);
            sent.acknowledged.extend(part.acknowledged);
            sent.acknowledged_at.extend(part.acknowledged_at);
        }
        sent
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn produce(producer: usize, mut send: Send, pace: Pace, stop: &AtomicBool, acknowledged: &AtomicUsize) -> Sent {
    let mut sent = Sent::default();
    let mut number = 0;
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let receipt = |n: u64| Receipt { key: format!("p{producer}k{}", n as usize % pace.keys), number: n };
        let receipts: Vec<Receipt> = (number..number + pace.batch as u64).map(receipt).collect();
        number += pace.batch as u64;
        sent.all.extend(receipts.iter().cloned());
        if send(&receipts) {
            acknowledged.fetch_add(receipts.len(), Ordering::Relaxed);
            sent.acknowledged_at.extend(std::iter::repeat_n(Instant::now(), receipts.len()));
            sent.acknowledged.extend(receipts);
        } else {
            // Whoever is away is not hammered.
            std::thread::sleep(Duration::from_millis(2));
        }
        due = (due + pace.interval).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}
