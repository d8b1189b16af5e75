//! What a lane does next: a pure state machine.
//!
//! `apply(event)` answers with actions; the driver carries them out and comes back with events. Here is no I/O, no
//! clock and no randomness but a seeded one for jitter, so the whole of a lane's decisions is tested by simulation.
//!
//! Invariants, each checked in the simulation below:
//! - batches are processed and committed in the order in which they were read;
//! - at most one poll, one processing and one commit are under way; what waits in between is bounded;
//! - whatever goes wrong, there is one way back: close everything, wait, open the lane again at its committed place.
//!   An answer that belongs to an earlier opening (its `epoch`) is ignored;
//! - a swap changes over between two batches and never waits for traffic.

use std::collections::VecDeque;
use std::time::Duration;

use synapse_core::broker::Ending;

/// Which batch, counted within an opening.
pub(crate) type Seq = u64;

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Batches read that wait for the stages.
    pub(crate) read_ahead_max: usize,
    /// Batches processed that wait for the commit.
    pub(crate) ready_max: usize,
    /// The first wait after a failure; it doubles from there.
    pub(crate) backoff_min: Duration,
    /// The longest wait after a failure.
    pub(crate) backoff_max: Duration,
    /// The longest wait while someone else has the lane.
    pub(crate) soon_max: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            read_ahead_max: 4,
            ready_max: 8,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(10),
            soon_max: Duration::from_millis(400),
        }
    }
}

/// What happened. All but the operator's wishes belong to an opening.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// The lane was opened.
    Opened { epoch: u64 },
    /// A batch was read.
    Polled { epoch: u64 },
    /// A poll ended with nothing.
    PolledNothing { epoch: u64 },
    /// The stages are done with a batch. `stop`: the pipeline is to end behind what was processed.
    Processed { epoch: u64, stop: Option<String> },
    /// The commit under way is durable.
    Committed { epoch: u64 },
    /// Opening, polling, processing or committing failed.
    Failed { epoch: u64, ending: Ending, reason: String },
    /// The wait after a failure is over.
    BackoffOver { epoch: u64 },
    /// New stages stand ready.
    SwapReady,
    /// The operator, or the host's end: finish what is under way, then end.
    Drain,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Open the lane.
    Open { epoch: u64 },
    /// Read one batch.
    Poll { epoch: u64 },
    /// Run the stages over batch `seq`.
    Process { epoch: u64, seq: Seq },
    /// Make the effects of these neighbouring batches durable together.
    Commit { epoch: u64, first: Seq, count: usize },
    /// From the next batch on, use the stages that stand ready.
    ChangeOver,
    /// Throw the source and the committer of this and earlier openings away, with all that waits.
    Close,
    /// Come back after a while.
    Wait { epoch: u64, wait: Duration },
    /// Tell operators.
    Report(Health),
    /// Nothing more will happen.
    End,
}

/// What operators see of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is being opened.
    Opening,
    /// It works.
    Running,
    /// It failed and will try again.
    Retrying {
        /// Why.
        reason: String,
        /// How often in a row.
        attempt: u32,
    },
    /// It ended as it was told to.
    Drained,
    /// It ended and needs an operator.
    Stopped {
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Running,
    Waiting,
    Ended,
}

/// Whether and why the lane takes no more batches.
#[derive(Clone, Debug, PartialEq)]
enum Winding {
    No,
    Drain,
    Stop(String),
}

/// The lane's mind.
#[derive(Debug)]
pub(crate) struct Machine {
    bounds: Bounds,
    phase: Phase,
    epoch: u64,
    winding: Winding,
    /// Whether the operator wants the lane to end, whatever else ends it first.
    draining: bool,
    polling: bool,
    next_seq: Seq,
    read: VecDeque<Seq>,
    processing: Option<Seq>,
    ready: VecDeque<Seq>,
    committing: usize,
    /// Batches that were the first after a change-over; a commit never reaches across one.
    boundaries: VecDeque<Seq>,
    changed_over: bool,
    swap_ready: bool,
    failures: u32,
    jitter: u64,
}

impl Machine {
    /// A lane that has not begun, and its first actions. `seed` spreads the waits of lanes that fail together.
    pub(crate) fn start(bounds: Bounds, seed: u64) -> (Self, Vec<Action>) {
        let machine = Self {
            bounds,
            phase: Phase::Opening,
            epoch: 1,
            winding: Winding::No,
            draining: false,
            polling: false,
            next_seq: 0,
            read: VecDeque::new(),
            processing: None,
            ready: VecDeque::new(),
            committing: 0,
            boundaries: VecDeque::new(),
            changed_over: false,
            swap_ready: false,
            failures: 0,
            jitter: seed,
        };
        (machine, vec![Action::Report(Health::Opening), Action::Open { epoch: 1 }])
    }

    /// Decides. Answers of earlier openings change nothing.
    pub(crate) fn apply(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Ended || self.is_stale(&event) {
            return actions;
        }
        match event {
            Event::Opened { .. } => {
                self.phase = Phase::Running;
                actions.push(Action::Report(Health::Running));
            }
            Event::Polled { .. } => {
                self.polling = false;
                self.read.push_back(self.next_seq);
                self.next_seq += 1;
            }
            Event::PolledNothing { .. } => self.polling = false,
            Event::Processed { stop, .. } => {
                let seq = self.processing.take().expect("only what is being processed is done");
                self.ready.push_back(seq);
                if let Some(reason) = stop {
                    self.winding = Winding::Stop(reason);
                    self.read.clear();
                }
            }
            Event::Committed { .. } => {
                self.ready.drain(..self.committing);
                self.committing = 0;
                self.failures = 0;
            }
            Event::Failed { ending, reason, .. } => self.fail(ending, reason, &mut actions),
            Event::BackoffOver { .. } => {
                self.phase = Phase::Opening;
                actions.push(Action::Open { epoch: self.epoch });
            }
            Event::SwapReady => self.swap_ready = true,
            Event::Drain => self.drain(&mut actions),
        }
        self.go_on(&mut actions);
        actions
    }

    /// Whether answers of this opening still count.
    pub(crate) fn is_current(&self, epoch: u64) -> bool {
        epoch == self.epoch
    }

    /// A failure of the present opening that came without saying so.
    pub(crate) fn failed(&self, ending: Ending, reason: String) -> Event {
        Event::Failed { epoch: self.epoch, ending, reason }
    }

    fn is_stale(&self, event: &Event) -> bool {
        match event {
            Event::Opened { epoch }
            | Event::Polled { epoch }
            | Event::PolledNothing { epoch }
            | Event::Processed { epoch, .. }
            | Event::Committed { epoch }
            | Event::Failed { epoch, .. }
            | Event::BackoffOver { epoch } => *epoch != self.epoch,
            Event::SwapReady | Event::Drain => false,
        }
    }

    /// The one way back from anything: forget what is under way and open again, or end.
    fn fail(&mut self, ending: Ending, reason: String, actions: &mut Vec<Action>) {
        self.forget();
        actions.push(Action::Close);
        if ending == Ending::Stop {
            self.end(Health::Stopped { reason }, actions);
        } else if self.draining {
            // What was not committed is read again at the next start.
            self.end(Health::Drained, actions);
        } else {
            // A stop that was decided but not committed is decided again when its event comes back.
            self.winding = Winding::No;
            self.failures += 1;
            self.phase = Phase::Waiting;
            let wait = match ending {
                Ending::RetrySoon => self.backoff(self.bounds.soon_max),
                Ending::Retry | Ending::Stop => self.backoff(self.bounds.backoff_max),
            };
            actions.push(Action::Report(Health::Retrying { reason, attempt: self.failures }));
            actions.push(Action::Wait { epoch: self.epoch, wait });
        }
    }

    fn forget(&mut self) {
        self.epoch += 1;
        self.polling = false;
        self.next_seq = 0;
        self.read.clear();
        self.processing = None;
        self.ready.clear();
        self.committing = 0;
        self.boundaries.clear();
        self.changed_over = false;
    }

    fn end(&mut self, health: Health, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        actions.push(Action::Report(health));
        actions.push(Action::End);
    }

    fn drain(&mut self, actions: &mut Vec<Action>) {
        self.draining = true;
        if self.winding == Winding::No {
            self.winding = Winding::Drain;
            self.read.clear();
        }
        if self.phase != Phase::Running {
            self.forget();
            actions.push(Action::Close);
            self.end(Health::Drained, actions);
        }
    }

    /// Starts whatever may start now.
    fn go_on(&mut self, actions: &mut Vec<Action>) {
        if self.phase == Phase::Ended {
            return;
        }
        if self.swap_ready && self.processing.is_none() {
            self.swap_ready = false;
            self.changed_over = true;
            actions.push(Action::ChangeOver);
        }
        if self.phase != Phase::Running {
            return;
        }
        let epoch = self.epoch;
        let taking = self.winding == Winding::No;
        if taking
            && self.processing.is_none()
            && self.ready.len() < self.bounds.ready_max
            && let Some(seq) = self.read.pop_front()
        {
            self.processing = Some(seq);
            if std::mem::take(&mut self.changed_over) {
                self.boundaries.push_back(seq);
            }
            actions.push(Action::Process { epoch, seq });
        }
        if taking && !self.polling && self.read.len() < self.bounds.read_ahead_max {
            self.polling = true;
            actions.push(Action::Poll { epoch });
        }
        if self.committing == 0 && !self.ready.is_empty() {
            self.committing = self.commit_len();
            actions.push(Action::Commit { epoch, first: self.ready[0], count: self.committing });
        }
        if !taking && self.processing.is_none() && self.ready.is_empty() {
            self.forget();
            actions.push(Action::Close);
            let health = match std::mem::replace(&mut self.winding, Winding::Drain) {
                Winding::Stop(reason) => Health::Stopped { reason },
                Winding::Drain | Winding::No => Health::Drained,
            };
            self.end(health, actions);
        }
    }

    /// How many of the ready batches one commit takes: all, up to the next change-over.
    fn commit_len(&mut self) -> usize {
        let first = self.ready[0];
        while self.boundaries.front().is_some_and(|&boundary| boundary <= first) {
            self.boundaries.pop_front();
        }
        let next = self.boundaries.front().copied();
        self.ready.iter().take_while(|&&seq| next.is_none_or(|boundary| seq < boundary)).count()
    }

    /// Exponential with full jitter above a half: between half and all of the doubled wait.
    fn backoff(&mut self, max: Duration) -> Duration {
        let doublings = (self.failures - 1).min(16);
        let ceiling = self.bounds.backoff_min.saturating_mul(1 << doublings).min(max);
        self.jitter = split_mix(self.jitter);
        let half = ceiling / 2;
        half + Duration::from_nanos(self.jitter % (half.as_nanos() as u64 + 1))
    }
}

/// One step of the SplitMix64 generator (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod simulation;
