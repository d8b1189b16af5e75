//! A lane against a simulated broker, driven by a seed: crashes at every step, lost replies, slow stages, zombies,
//! swaps and drains in every order. What is checked: nothing lost, nothing repeated, order kept, every output
//! attributed to the plugin that the committed boundaries name, and that the lane never stands still for ever.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Draws numbers below a bound.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = split_mix(self.0);
        (self.0 % bound as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// An input and the version that handled it; of a boundary, the first input and its version.
type Handled = (usize, u32);

/// What survives a crash of the host.
#[derive(Default)]
struct SimulatedBroker {
    inputs: usize,
    cursor: usize,
    generation: u64,
    outputs: Vec<Handled>,
    boundaries: Vec<Handled>,
}

/// A commit on its way to the broker. It may arrive after its sender is gone.
#[derive(Clone, Debug)]
struct SentCommit {
    generation: u64,
    inputs: Vec<Handled>,
    boundary: Option<Handled>,
}

impl SimulatedBroker {
    fn apply(&mut self, commit: &SentCommit) -> bool {
        if commit.generation != self.generation {
            return false;
        }
        if let Some(&(last, _)) = commit.inputs.last() {
            self.cursor = last + 1;
        }
        self.outputs.extend(&commit.inputs);
        self.boundaries.extend(commit.boundary);
        true
    }
}

/// The driver, reduced to what the machine can tell apart: what was read, processed and sent.
struct Host {
    machine: Machine,
    pending: Vec<Action>,
    generation: u64,
    next_read: usize,
    read: VecDeque<Vec<usize>>,
    processing: Option<Vec<usize>>,
    ready: VecDeque<(Vec<Handled>, Option<Handled>)>,
    version: u32,
    next_version: u32,
    boundary_version: Option<u32>,
    sent: Option<SentCommit>,
    /// Commits under way when their opening ended.
    orphans: Vec<SentCommit>,
    stop_at: Option<usize>,
    ended: Option<Health>,
    last_health: Option<Health>,
}

impl Host {
    fn new(seed: u64, version: u32, stop_at: Option<usize>) -> Self {
        let bounds = Bounds { read_ahead_max: 2, ready_max: 3, ..Bounds::default() };
        let (machine, first) = Machine::start(bounds, seed);
        let mut host = Self {
            machine,
            pending: Vec::new(),
            generation: 0,
            next_read: 0,
            read: VecDeque::new(),
            processing: None,
            ready: VecDeque::new(),
            version,
            next_version: version,
            boundary_version: None,
            sent: None,
            orphans: Vec::new(),
            stop_at,
            ended: None,
            last_health: None,
        };
        host.carry_out(first);
        host
    }

    fn tell(&mut self, event: Event) {
        let actions = self.machine.apply(event);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::ChangeOver => self.version = self.next_version,
                Action::Report(health) => self.last_health = Some(health),
                Action::End => self.ended = self.last_health.clone(),
                Action::Close => {
                    self.read.clear();
                    self.processing = None;
                    self.ready.clear();
                    // A commit that was sent may still arrive.
                    self.orphans.extend(self.sent.take());
                    self.pending.clear();
                }
                Action::Process { .. } => {
                    assert!(self.processing.is_none(), "two batches in the stages at once");
                    self.processing = self.read.pop_front();
                    assert!(self.processing.is_some(), "a batch that was not read");
                    self.pending.push(action);
                }
                Action::Commit { count, .. } => {
                    assert!(self.sent.is_none(), "two commits under way at once");
                    let batches: Vec<_> = self.ready.iter().take(count).cloned().collect();
                    assert!(
                        batches[1..].iter().all(|(_, boundary)| boundary.is_none()),
                        "a commit across a change-over"
                    );
                    self.sent = Some(SentCommit {
                        generation: self.generation,
                        inputs: batches.iter().flat_map(|(inputs, _)| inputs.clone()).collect(),
                        boundary: batches[0].1,
                    });
                    self.pending.push(action);
                }
                other => self.pending.push(other),
            }
        }
    }

    /// Carries one of the pending actions out, well or badly.
    fn step(&mut self, broker: &mut SimulatedBroker, dice: &mut Dice, faults: bool) {
        if self.pending.is_empty() {
            return;
        }
        let action = self.pending.swap_remove(dice.below(self.pending.len()));
        let fails = faults && dice.one_in(8);
        let failed = |epoch| Event::Failed { epoch, ending: Ending::Retry, reason: "simulated".to_owned() };
        match action {
            Action::Open { epoch } if fails => self.tell(failed(epoch)),
            Action::Open { epoch } => {
                broker.generation += 1;
                self.generation = broker.generation;
                self.next_read = broker.cursor;
                self.boundary_version = broker.boundaries.last().map(|&(_, version)| version);
                self.tell(Event::Opened { epoch });
            }
            Action::Poll { epoch } if fails => self.tell(failed(epoch)),
            Action::Poll { epoch } => {
                let batch: Vec<usize> = (self.next_read..broker.inputs).take(1 + dice.below(3)).collect();
                match batch.last() {
                    None => self.tell(Event::PolledNothing { epoch }),
                    Some(last) => {
                        self.next_read = last + 1;
                        self.read.push_back(batch);
                        self.tell(Event::Polled { epoch });
                    }
                }
            }
            Action::Process { epoch, .. } if fails => self.tell(failed(epoch)),
            Action::Process { epoch, .. } => {
                let batch = self.processing.take().expect("one is being processed");
                let stop = self.stop_at.filter(|at| batch.contains(at));
                let done: Vec<_> = batch.iter().filter(|&&input| stop.is_none_or(|at| input < at)).collect();
                // Nothing lies before the event at fault: nothing is to be made durable.
                let changed = !done.is_empty() && self.boundary_version != Some(self.version);
                let boundary = changed.then_some((batch[0], self.version));
                if changed {
                    self.boundary_version = Some(self.version);
                }
                self.ready.push_back((done.into_iter().map(|&input| (input, self.version)).collect(), boundary));
                self.tell(Event::Processed { epoch, stop: stop.map(|at| format!("event {at}")) });
            }
            Action::Commit { epoch, count, .. } => {
                let sent = self.sent.take().expect("a commit was sent");
                if fails {
                    match dice.below(3) {
                        0 => drop(broker.apply(&sent)), // the reply is lost
                        1 => self.orphans.push(sent),   // it arrives later
                        _ => {}                         // it never arrives
                    }
                    self.tell(failed(epoch));
                } else if broker.apply(&sent) {
                    self.ready.drain(..count);
                    self.tell(Event::Committed { epoch });
                } else {
                    self.tell(failed(epoch));
                }
            }
            Action::Wait { epoch, .. } => self.tell(Event::BackoffOver { epoch }),
            Action::ChangeOver | Action::Close | Action::Report(_) | Action::End => unreachable!("carried out at once"),
        }
    }
}

fn simulate(seed: u64, inputs: usize, swaps: bool, stop_at: Option<usize>) -> SimulatedBroker {
    let mut dice = Dice(seed);
    let mut broker = SimulatedBroker { inputs, ..SimulatedBroker::default() };
    let mut zombies: Vec<SentCommit> = Vec::new();
    let mut version = 0;
    let mut host = Host::new(seed, version, stop_at);
    for step in 0.. {
        assert!(step < 200_000, "the lane stands still at {} of {inputs}", broker.cursor);
        // Faults come for a while, then the world is kind, so that every run ends.
        let faults = step < 2_000;
        if faults && dice.one_in(40) {
            // The host dies. What it had sent may still arrive.
            zombies.extend(host.sent.take());
            host = Host::new(dice.0, version, stop_at);
        }
        if faults && !zombies.is_empty() && dice.one_in(3) {
            let late = zombies.swap_remove(dice.below(zombies.len()));
            broker.apply(&late);
        }
        if swaps && faults && dice.one_in(25) {
            version += 1;
            host.next_version = version;
            host.tell(Event::SwapReady);
        }
        if faults && dice.one_in(200) {
            host.tell(Event::Drain);
        }
        host.step(&mut broker, &mut dice, faults);
        zombies.append(&mut host.orphans);
        match &host.ended {
            Some(Health::Drained) => host = Host::new(dice.0, version, stop_at),
            Some(Health::Stopped { .. }) => return broker,
            _ => {}
        }
        if broker.cursor == inputs && !faults {
            return broker;
        }
    }
    unreachable!("the loop returns")
}

fn check(broker: &SimulatedBroker, expected: usize) {
    let inputs: Vec<usize> = broker.outputs.iter().map(|&(input, _)| input).collect();
    assert_eq!(inputs, (0..expected).collect::<Vec<_>>(), "lost, repeated or out of order");
    for &(input, version) in &broker.outputs {
        let named = broker.boundaries.iter().rfind(|&&(from, _)| from <= input).map(|&(_, version)| version);
        assert_eq!(named, Some(version), "input {input} was handled by {version}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_input_comes_out_once_in_order_and_attributed(seed in any::<u64>(), inputs in 1usize..300) {
        check(&simulate(seed, inputs, true, None), inputs);
    }

    #[test]
    fn a_stop_ends_right_before_the_event_at_fault(seed in any::<u64>(), inputs in 2usize..100, at in 0usize..100) {
        let at = at % inputs;
        check(&simulate(seed, inputs, false, Some(at)), at);
    }
}

#[test]
fn answers_of_an_earlier_opening_are_ignored() {
    let (mut machine, _) = Machine::start(Bounds::default(), 1);
    machine.apply(Event::Opened { epoch: 1 });
    machine.apply(Event::Failed { epoch: 1, ending: Ending::Retry, reason: "away".to_owned() });
    assert_eq!(machine.apply(Event::Polled { epoch: 1 }), []);
    assert_eq!(machine.apply(Event::BackoffOver { epoch: 2 }), [Action::Open { epoch: 2 }]);
}

#[test]
fn waits_double_up_to_their_bound_and_start_over_after_a_commit() {
    let bounds = Bounds::default();
    let (mut machine, _) = Machine::start(bounds, 7);
    let mut epoch = 1;
    let mut waits = Vec::new();
    for _ in 0..14 {
        let failed = Event::Failed { epoch, ending: Ending::Retry, reason: "away".to_owned() };
        let actions = machine.apply(failed);
        let Some(Action::Wait { epoch: next, wait }) = actions.last().cloned() else { panic!("{actions:?}") };
        (epoch, waits) = (next, [waits, vec![wait]].concat());
        machine.apply(Event::BackoffOver { epoch });
    }
    for (n, wait) in waits.iter().enumerate() {
        let ceiling = bounds.backoff_min.saturating_mul(1 << n).min(bounds.backoff_max);
        assert!((ceiling / 2..=ceiling).contains(wait), "wait {n}: {wait:?}");
    }
}

#[test]
fn the_waits_between_the_steps_are_bounded() {
    let bounds = Bounds { read_ahead_max: 2, ready_max: 2, ..Bounds::default() };
    let (mut machine, _) = Machine::start(bounds, 1);
    let mut actions = machine.apply(Event::Opened { epoch: 1 });
    // The source always has more, the stages are quick, the commit never comes back.
    for _ in 0..50 {
        let poll = actions.contains(&Action::Poll { epoch: 1 });
        let process = actions.iter().any(|action| matches!(action, Action::Process { .. }));
        actions.clear();
        if poll {
            actions.extend(machine.apply(Event::Polled { epoch: 1 }));
        }
        if process {
            actions.extend(machine.apply(Event::Processed { epoch: 1, stop: None }));
        }
    }
    assert!(actions.is_empty(), "a lane whose commit hangs takes nothing more: {actions:?}");
    assert_eq!((machine.read.len(), machine.ready.len()), (2, 2));
}
