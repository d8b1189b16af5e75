//! When each event was first seen in the sink or among the dead letters.
//!
//! For times only: what counts in the end is read anew, since a broker may lose what was seen in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bus::Reader;
use crate::checker::Receipt;

/// How often it looks; also how exact the times are.
const EVERY: Duration = Duration::from_millis(10);

/// Reads topics until it is dropped.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<HashMap<Receipt, Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(mut readers: Vec<Box<dyn Reader>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    for reader in &mut readers {
                        // It may be away just now.
                        let Ok(new) = reader.read() else { continue };
                        let now = Instant::now();
                        let mut seen = seen.lock().expect("nobody panics while holding it");
                        for receipt in new {
                            seen.entry(receipt).or_insert(now);
                        }
                    }
                    std::thread::sleep(EVERY);
                }
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Receipt, Instant>> {
        self.seen.lock().expect("nobody panics while holding it")
    }

    /// How many different events were seen.
    pub(super) fn number(&self) -> usize {
        self.seen().len()
    }

    /// How long after `from` the first event was seen, and the last of `due`, as far as these were seen at all.
    pub(super) fn since<'r>(&self, from: Instant, due: impl Iterator<Item = &'r Receipt>) -> (Duration, Duration) {
        let seen = self.seen();
        let after = |at: &Instant| at.saturating_duration_since(from);
        let first = seen.values().filter(|at| **at > from).min().map(after);
        let last = due.filter_map(|receipt| seen.get(receipt)).max().map(after);
        (first.unwrap_or_default(), last.unwrap_or_default())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been told already.
            let _ = thread.join();
        }
    }
}
