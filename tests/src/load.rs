//! Producers that publish as fast as they are answered and remember what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::checker::Receipt;

/// Sends a batch; answers whether it was acknowledged. Called with ids in the order of their keys.
pub type Send = Box<dyn FnMut(&[Receipt]) -> bool + std::marker::Send>;

/// Producers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    producers: Vec<JoinHandle<(Vec<Receipt>, Vec<Receipt>)>>,
}

/// What producers did.
pub struct Sent {
    /// Everything that was sent, acknowledged or not.
    pub all: Vec<Receipt>,
    /// What was acknowledged.
    pub acknowledged: Vec<Receipt>,
}

impl Load {
    /// Starts one producer for each of `senders`, with `keys` keys of its own each, in batches of `batch` events. What
    /// was not acknowledged is never sent again: it may have arrived.
    pub fn start(senders: Vec<Send>, keys: usize, batch: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let producers = senders.into_iter().enumerate().map(|(producer, send)| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || produce(producer, send, keys, batch, &stop, &acknowledged))
        });
        Self { producers: producers.collect(), stop, acknowledged }
    }

    /// How many events were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more were acknowledged, or until `patience` has passed.
    pub fn wait_for_more(&self, events: usize, patience: Duration) {
        let (goal, started) = (self.acknowledged() + events, std::time::Instant::now());
        while self.acknowledged() < goal && started.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the producers.
    ///
    /// # Panics
    /// If one of them panicked.
    pub fn stop(self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = Sent { all: Vec::new(), acknowledged: Vec::new() };
        for producer in self.producers {
            let (all, acknowledged) = producer.join().expect("producers do not panic");
            sent.all.extend(all);
            sent.acknowledged.extend(acknowledged);
        }
        sent
    }
}

fn produce(
    producer: usize,
    mut send: Send,
    keys: usize,
    batch: usize,
    stop: &AtomicBool,
    acknowledged: &AtomicUsize,
) -> (Vec<Receipt>, Vec<Receipt>) {
    let (mut all, mut known) = (Vec::new(), Vec::new());
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let receipt = |n: u64| Receipt { key: format!("p{producer}k{}", n as usize % keys), number: n };
        let receipts: Vec<Receipt> = (number..number + batch as u64).map(receipt).collect();
        number += batch as u64;
        all.extend(receipts.iter().cloned());
        if send(&receipts) {
            acknowledged.fetch_add(receipts.len(), Ordering::Relaxed);
            known.extend(receipts);
        } else {
            // Whoever is away is not hammered.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    (all, known)
}
