//! The bounded queue between many async callers and the one writer thread.
//!
//! Callers wait for room without blocking a thread; the writer takes everything that waits at once. Nothing here knows
//! what is queued.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Semaphore;

pub(super) struct Queue<T> {
    items_max: usize,
    room: Semaphore,
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// Callers who were just answered are likely to come back at once. Waiting for them a moment, short against the cost of
/// a write, makes one write of what would be two.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Linger {
    /// How many were answered.
    pub(super) returning: usize,
    /// How long they are waited for once there is something to do.
    pub(super) time_max: Duration,
}

/// The writer has ended.
#[derive(Debug)]
pub(super) struct Closed;

impl<T> Queue<T> {
    pub(super) fn new(items_max: usize) -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), closed: false });
        Self { items_max, room: Semaphore::new(items_max), state, arrived: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Waits for room and queues `item`.
    pub(super) async fn send(&self, item: T) -> Result<(), Closed> {
        let permit = self.room.acquire().await.map_err(|_| Closed)?;
        let mut state = self.state();
        if state.closed {
            return Err(Closed);
        }
        permit.forget();
        state.items.push_back(item);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits up to `wait` for items, then takes what is there: as many as weigh at most `weight_max`, but at least one.
    /// None came in time: empty. `None`: closed, and everything was taken.
    pub(super) fn take(
        &self,
        wait: Duration,
        linger: Linger,
        weight: impl Fn(&T) -> usize,
        weight_max: usize,
    ) -> Option<Vec<T>> {
        let awaited = self.items_max.min(self.state().items.len() + linger.returning);
        let mut state = self.wait_for(self.state(), 1, wait);
        if !state.items.is_empty() {
            state = self.wait_for(state, awaited, linger.time_max);
        } else if state.closed {
            return None;
        }
        let mut total = 0;
        let fitting = state.items.iter().take_while(|item| {
            let first = total == 0;
            total += weight(item).max(1);
            first || total <= weight_max
        });
        let count = fitting.count();
        let taken: Vec<T> = state.items.drain(..count).collect();
        drop(state);
        self.room.add_permits(taken.len());
        Some(taken)
    }

    /// Until there are `count` items, or the time is over, or nothing more gets in.
    fn wait_for<'s>(
        &'s self,
        state: MutexGuard<'s, State<T>>,
        count: usize,
        time: Duration,
    ) -> MutexGuard<'s, State<T>> {
        let waiting = |state: &mut State<T>| state.items.len() < count && !state.closed;
        self.arrived.wait_timeout_while(state, time, waiting).expect("nothing panics while it holds this lock").0
    }

    /// How many items wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state().items.len()
    }

    /// Nothing more gets in; what waits is still taken.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.room.close();
        self.arrived.notify_all();
    }

    /// As [`Queue::close`], for a writer that ended without taking what waits.
    pub(super) fn abandon(&self) {
        self.close();
        self.state().items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &Queue<usize>, weight_max: usize) -> Option<Vec<usize>> {
        queue.take(Duration::ZERO, Linger::default(), |item| *item, weight_max)
    }

    #[tokio::test]
    async fn takes_what_waits_up_to_a_weight() {
        let queue = Queue::new(8);
        for item in [3, 4, 5, 100, 1] {
            queue.send(item).await.unwrap();
        }
        for expected in [vec![3, 4], vec![5], vec![100], vec![1], vec![]] {
            assert_eq!(take(&queue, 7), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_full_queue_makes_callers_wait() {
        let queue = Queue::new(2);
        queue.send(1).await.unwrap();
        queue.send(2).await.unwrap();
        let third = queue.send(3);
        tokio::pin!(third);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
        assert_eq!(take(&queue, 1), Some(vec![1]));
        third.await.unwrap();
        assert_eq!(take(&queue, 9), Some(vec![2, 3]));
    }

    #[tokio::test]
    async fn a_closed_queue_is_emptied_first() {
        let queue = Queue::new(2);
        queue.send(1).await.unwrap();
        queue.close();
        assert!(queue.send(2).await.is_err());
        assert_eq!(take(&queue, 9), Some(vec![1]));
        assert_eq!(take(&queue, 9), None);
    }

    #[tokio::test]
    async fn those_who_come_back_are_waited_for() {
        let queue = std::sync::Arc::new(Queue::new(1000));
        queue.send(0).await.unwrap();
        let linger = Linger { returning: 2, time_max: Duration::from_secs(60) };
        let writer = std::sync::Arc::clone(&queue);
        let taking = tokio::task::spawn_blocking(move || writer.take(Duration::ZERO, linger, |_| 1, 1000));
        while !taking.is_finished() {
            queue.send(1).await.unwrap();
            tokio::task::yield_now().await;
        }
        let taken = taking.await.unwrap().unwrap();
        assert!(taken.len() >= 3, "{taken:?}");
    }
}
