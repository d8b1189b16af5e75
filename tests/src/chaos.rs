//! Cases: a fault in a running world, what is promised under it, and what was observed.
//!
//! A [`Case`] sets a scene (brokers, hosts, a pipeline) and says what goes wrong in it. [`run`] does the rest, alike for
//! all: it starts the hosts, puts a load on them at a set rate, lets the fault happen in the middle of it, waits until
//! everything has come to its end, and has one checker compare what producers were told with what the sink holds. Nothing
//! here knows what a fault is; a case knows nothing of counting.

mod cases;
mod scene;
mod table;
mod watch;
mod world;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::PATIENCE;
use crate::checker::{Account, Finding, Promise};
use crate::random::Random;

pub use cases::all;
pub use scene::Scene;
pub use table::{markdown, replace_between_markers, replace_rows, summary};
pub use world::World;

/// How long the sink must stay as it is before it is read for the last time: a fenced host may still try to write.
const QUIET: Duration = Duration::from_millis(300);

/// One fault, and what is promised under it.
#[derive(Clone, Copy)]
pub struct Case {
    /// Names it on the command line and in the table.
    pub name: &'static str,
    /// Where the pipeline leads from and to.
    pub route: &'static str,
    /// What goes wrong, as a sentence of the table.
    pub what: &'static str,
    /// What is promised.
    pub promise: Promise,
    /// Sets the scene.
    pub scene: fn() -> Result<Scene>,
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides when faults happen, and where.
    pub seed: u64,
    /// How many events are acknowledged at least.
    pub events: usize,
    /// How many are sent in a second.
    pub events_per_second: usize,
}

impl Plan {
    /// A few seconds of load.
    pub fn short(seed: u64) -> Self {
        Self { seed, events: 2_000, events_per_second: 500 }
    }

    /// Whether there is time for faults that take long.
    pub fn is_long(&self) -> bool {
        self.events > 10_000
    }
}

/// What was observed.
pub struct Observed {
    /// What the checker found.
    pub finding: Finding,
    /// What of the promise was not kept, a sentence each.
    pub breaks: Vec<String>,
    /// The broker's `lease`, if it is not the default.
    pub lease: Option<&'static str>,
    /// What else the case has to tell.
    pub notes: Vec<String>,
    /// From the end of the fault until something new was in the sink.
    pub first_output_after: Duration,
    /// From the end of the fault until everything that had been acknowledged before was in the sink.
    pub caught_up_after: Duration,
    /// How long all of it took.
    pub took: Duration,
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { finding, breaks, notes, first_output_after, caught_up_after, took, lease: _ } = self;
        write!(
            f,
            "{finding}; output after {first_output_after:.2?}, caught up after {caught_up_after:.2?}; took {took:.1?}"
        )?;
        notes.iter().try_for_each(|note| write!(f, "; {note}"))?;
        breaks.iter().try_for_each(|broken| write!(f, "; BROKEN: {broken}"))
    }
}

/// Runs a case, on a thread of its own, since a case may move that into another network.
///
/// # Errors
/// If it could not be carried out, with the ends of the hosts' logs. A promise that is not kept is no error here.
///
/// # Panics
/// If the case does.
pub fn run(case: &Case, plan: &Plan) -> Result<Observed> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(case.name.to_owned());
        let running = thread.spawn_scoped(scope, || carry_out(case, plan))?;
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn carry_out(case: &Case, plan: &Plan) -> Result<Observed> {
    let started = Instant::now();
    let mut scene = (case.scene)().with_context(|| format!("set the scene of {}", case.name))?;
    let (mut fault, lease) = (scene.take_fault(), scene.lease);
    let mut world = World::start(scene, *plan, Random::new(plan.seed))?;
    let observed = observe(&mut world, &mut *fault, case, lease, started).with_context(|| world.log_tails());
    if !observed.as_ref().is_ok_and(|observed| observed.breaks.is_empty()) {
        world.keep_logs(case.name)?;
    }
    // What the fault holds, such as servers, outlives the hosts.
    drop(world);
    observed
}

fn observe(
    world: &mut World,
    fault: &mut dyn FnMut(&mut World) -> Result<()>,
    case: &Case,
    lease: Option<&'static str>,
    started: Instant,
) -> Result<Observed> {
    let plan = world.plan;
    world.let_pass(plan.events / 10)?;
    world.wait_for_output()?;
    fault(world).context("bring the fault about")?;
    let mended = world.mended_at();
    // The load goes on after the fault, too.
    let rest = plan.events.saturating_sub(world.acknowledged()).max(plan.events / 5);
    world.let_pass(rest)?;
    let sent = world.stop_load();
    let account = settle(world, &sent, case.promise)?;
    let finding = account.find();
    let breaks = finding.breaks(case.promise);
    let before = sent.acknowledged.iter().zip(&sent.acknowledged_at).filter(|(_, at)| **at <= mended);
    let (first_output_after, caught_up_after) = world.arrivals().since(mended, before.map(|(receipt, _)| receipt));
    if breaks.is_empty() {
        world.end()?;
    }
    let notes = std::mem::take(&mut world.notes);
    Ok(Observed { finding, breaks, lease, notes, first_output_after, caught_up_after, took: started.elapsed() })
}

/// Waits until everything in the source has come to its end, or nothing more does within patience; what it comes to is
/// the same question for both.
fn settle(world: &World, sent: &crate::load::Sent, promise: Promise) -> Result<Account> {
    let source = world.source().read_all()?;
    let (mut arrived, mut last) = (world.arrivals().number(), Instant::now());
    loop {
        std::thread::sleep(QUIET);
        let account = Account {
            sent: sent.all.clone(),
            acknowledged: sent.acknowledged.clone(),
            source: source.clone(),
            outputs: world.sink().read_all()?,
            dead_letters: world.dead_letters().read_all()?,
            trimmed: world.trimmed()?,
            kind: world.kind(),
        };
        let before = std::mem::replace(&mut arrived, world.arrivals().number());
        if arrived > before {
            last = Instant::now();
        } else if account.is_settled(promise) || last.elapsed() > PATIENCE {
            return Ok(account);
        }
    }
}

/// Runs a case in its short form.
///
/// # Errors
/// If it could not be carried out, or if what was observed breaks what is promised.
pub fn verify(name: &str, seed: u64) -> Result<()> {
    let cases = all();
    let case = cases.iter().find(|case| case.name == name).with_context(|| format!("there is no case {name}"))?;
    let plan = Plan::short(seed);
    let observed = run(case, &plan)?;
    eprintln!("{name}: {observed}");
    ensure!(observed.breaks.is_empty(), "{name} with seed {seed}: {}", observed.breaks.join("; "));
    Ok(())
}
