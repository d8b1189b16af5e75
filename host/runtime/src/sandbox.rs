//! One instance of a component in its store: its calls bounded in CPU time, memory and size of answer, its traps
//! turned into sentences.
//!
//! Invariants: CPU time is that of the thread while the guest is on it, so a busy machine harms no innocent guest; a
//! guest in a loop yields at every epoch tick and ends at most one tick after its limit; a sandbox that answered with
//! [`Trouble`] must be dropped. Nothing here knows what other rows a batch had or which stage comes next.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Instance, InstancePre, Lift, Lower, TypedFunc};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use synapse_core::batch::{Batch, STRIDE};
use synapse_core::spec::StageLimits;
use synapse_core::stage::{FailureKind, PluginError, PluginErrorKind};

use crate::answer::{self, Lie, Part};
use crate::contract::{ColumnsIn, EventIn, Manifest, Outcome, Rewrite, Routes, Routing, Selection, Verdict, World};
use crate::engine::Ticker;
use crate::host::{Host, LogGate};
use crate::merge::{Fault, Trouble};
use crate::text;

/// CPU time for making an instance and for each of `describe` and `configure`: interpreters start slower than they run.
const SETUP_CPU_MAX: Duration = Duration::from_secs(1);

/// A component ready to be instantiated: its imports linked, its exports found.
pub(crate) struct Blueprint {
    pub(crate) world: World,
    pub(crate) pre: InstancePre<Host>,
    pub(crate) describe: ComponentExportIndex,
    pub(crate) configure: ComponentExportIndex,
    pub(crate) work: ComponentExportIndex,
    /// Linear memories that an instance takes.
    pub(crate) memories: u32,
}

/// A live instance.
pub(crate) struct Sandbox {
    // Before the permit, so that its place in the pool is free when the permit is.
    store: Store<Host>,
    instance: Instance,
    work: Work,
    ticker: Arc<Ticker>,
    limits: StageLimits,
    cpu: Duration,
    batches: u32,
    _permit: OwnedSemaphorePermit,
}

type Work1<I, O> = TypedFunc<(I,), (O,)>;

/// The function that takes events, by world.
#[derive(Clone, Copy)]
enum Work {
    Filter(Work1<&'static [EventIn<'static>], Vec<Verdict>>),
    Transform(Work1<&'static [EventIn<'static>], Vec<Outcome>>),
    Router(Work1<&'static [EventIn<'static>], Vec<Routing>>),
    BatchFilter(Work1<ColumnsIn<'static>, Selection>),
    BatchTransform(Work1<ColumnsIn<'static>, Rewrite>),
    BatchRouter(Work1<ColumnsIn<'static>, Routes>),
}

impl Sandbox {
    /// Makes an instance. `permit` is for its linear memories.
    ///
    /// # Errors
    /// The guest's fault if its start function traps, or its memories are larger than the limit.
    pub(crate) async fn new(
        blueprint: &Blueprint,
        ticker: &Arc<Ticker>,
        log: Arc<LogGate>,
        limits: StageLimits,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Trouble> {
        let engine = blueprint.pre.engine();
        let mut store = Store::new(engine, Host::new(log, limits.memory_bytes_max));
        store.limiter(Host::limiter);
        store.set_hostcall_fuel(limits.output_bytes_max);
        store.epoch_deadline_callback(|_| Ok(wasmtime::UpdateDeadline::Yield(1)));
        store.set_epoch_deadline(1);
        let mut cpu = Duration::ZERO;
        let made = {
            let _running = ticker.guest_runs();
            metered(SETUP_CPU_MAX, &mut cpu, blueprint.pre.instantiate_async(&mut store)).await
        };
        let instance = match made {
            Ok(Ok(instance)) => instance,
            Ok(Err(error)) => return Err(blame(&error, store.data(), &limits)),
            Err(OverTime) => return Err(over_time(SETUP_CPU_MAX)),
        };
        let work = Work::find(&mut store, &instance, blueprint)
            .map_err(|error| blame_contract(blueprint.world.interface(), &error))?;
        let ticker = ticker.clone();
        Ok(Self { store, instance, work, ticker, limits, cpu, batches: 0, _permit: permit })
    }

    /// What the plugin says of itself.
    pub(crate) async fn describe(&mut self, blueprint: &Blueprint) -> Result<Manifest, Trouble> {
        let describe = self
            .instance
            .get_typed_func::<(), (Manifest,)>(&mut self.store, &blueprint.describe)
            .map_err(|error| blame_contract("plugin", &error))?;
        self.call(describe, (), SETUP_CPU_MAX).await.map(|(manifest,)| manifest)
    }

    /// Hands the configuration over; the inner error is the plugin's own.
    pub(crate) async fn configure(
        &mut self,
        blueprint: &Blueprint,
        config: &str,
    ) -> Result<Result<(), String>, Trouble> {
        let configure = self
            .instance
            .get_typed_func::<(&str,), (Result<(), String>,)>(&mut self.store, &blueprint.configure)
            .map_err(|error| blame_contract("plugin", &error))?;
        self.call(configure, (config,), SETUP_CPU_MAX).await.map(|(answer,)| answer)
    }

    /// Runs all rows of `batch` in one call.
    pub(crate) async fn run(&mut self, batch: &Batch) -> Result<Part, Trouble> {
        self.batches += 1;
        let (rows, cpu_max) = (batch.len(), self.limits.cpu_max);
        let columns = ColumnsIn { stride: STRIDE as u32, ends: batch.ends(), bytes: batch.bytes() };
        let events: Vec<EventIn<'_>> =
            if self.work.is_columnar() { Vec::new() } else { batch.events().map(EventIn::from).collect() };
        let events = events.as_slice();
        let checked: Result<Part, Lie> = match self.work {
            Work::Filter(work) => answer::verdicts(rows, self.call(work, (events,), cpu_max).await?.0),
            Work::Transform(work) => answer::outcomes(rows, self.call(work, (events,), cpu_max).await?.0),
            Work::Router(work) => answer::routings(rows, self.call(work, (events,), cpu_max).await?.0),
            Work::BatchFilter(work) => answer::selection(rows, &self.call(work, (columns,), cpu_max).await?.0),
            Work::BatchTransform(work) => answer::rewrite(rows, self.call(work, (columns,), cpu_max).await?.0),
            Work::BatchRouter(work) => answer::routes(rows, self.call(work, (columns,), cpu_max).await?.0),
        };
        checked.map_err(|lie| Trouble::Guest(Fault::new(FailureKind::BadAnswer, lie)))
    }

    /// CPU time used since this was last asked.
    pub(crate) fn take_cpu(&mut self) -> Duration {
        std::mem::take(&mut self.cpu)
    }

    /// Bytes of linear memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// Calls with events so far.
    pub(crate) fn batches(&self) -> u32 {
        self.batches
    }

    async fn call<I, O>(&mut self, function: TypedFunc<I, O>, input: I, cpu_max: Duration) -> Result<O, Trouble>
    where
        I: ComponentNamedList + Lower + Send + Sync,
        O: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.store.data_mut().begin_call();
        // Counted from now: an instance that lay idle need not yield at once.
        self.store.set_epoch_deadline(1);
        let answered = {
            let _running = self.ticker.guest_runs();
            metered(cpu_max, &mut self.cpu, function.call_async(&mut self.store, input)).await
        };
        match answered {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) => Err(blame(&error, self.store.data(), &self.limits)),
            Err(OverTime) => Err(over_time(cpu_max)),
        }
    }
}

impl Work {
    fn find(store: &mut Store<Host>, instance: &Instance, blueprint: &Blueprint) -> Result<Self, wasmtime::Error> {
        let at = &blueprint.work;
        Ok(match blueprint.world {
            World::Filter => Self::Filter(instance.get_typed_func(store, at)?),
            World::Transform => Self::Transform(instance.get_typed_func(store, at)?),
            World::Router => Self::Router(instance.get_typed_func(store, at)?),
            World::BatchFilter => Self::BatchFilter(instance.get_typed_func(store, at)?),
            World::BatchTransform => Self::BatchTransform(instance.get_typed_func(store, at)?),
            World::BatchRouter => Self::BatchRouter(instance.get_typed_func(store, at)?),
        })
    }

    fn is_columnar(self) -> bool {
        matches!(self, Self::BatchFilter(_) | Self::BatchTransform(_) | Self::BatchRouter(_))
    }
}

/// The guest was still running when its CPU time was used up.
struct OverTime;

/// Awaits `guest`, adds the CPU time that this thread spends in it to `spent`, and gives up once `cpu_max` of it is
/// used and the guest yields. Dropping the guest's future unwinds its stack.
async fn metered<T>(cpu_max: Duration, spent: &mut Duration, guest: impl Future<Output = T>) -> Result<T, OverTime> {
    let mut guest = pin!(guest);
    let mut used = Duration::ZERO;
    let outcome = poll_fn(|context| {
        let start = thread_cpu_time();
        let polled = guest.as_mut().poll(context);
        used += thread_cpu_time().saturating_sub(start);
        match polled {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if used > cpu_max => Poll::Ready(Err(OverTime)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    *spent += used;
    outcome
}

fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a thread's CPU time is never negative")
}

fn over_time(cpu_max: Duration) -> Trouble {
    Trouble::Guest(Fault::new(FailureKind::Deadline, format!("used more than {cpu_max:?} of CPU time")))
}

/// The part of the sentence by which wasmtime says that its limit on data from the guest is reached; the error's type
/// is not public. A test runs into it.
const OUTPUT_LIMIT_REACHED: &str = "fuel allocated for hostcalls has been exhausted";

/// Whose fault a failed call is, and how to say it.
fn blame(error: &wasmtime::Error, host: &Host, limits: &StageLimits) -> Trouble {
    if error.is::<PoolConcurrencyLimitError>() {
        return Trouble::Host(PluginError::new(
            PluginErrorKind::Exhausted,
            format!("no room for an instance: {error}"),
        ));
    }
    let sentence = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let (kind, mut reason) = if sentence.contains(OUTPUT_LIMIT_REACHED) {
        let max = text::bytes(limits.output_bytes_max);
        (FailureKind::OutputTooLarge, format!("answered more than {max} in one call"))
    } else if host.was_refused_memory() {
        let max = text::bytes(limits.memory_bytes_max);
        (FailureKind::Memory, format!("wanted more than {max} of memory, then: {sentence}"))
    } else if error.is::<Trap>() {
        (FailureKind::Trap, sentence)
    } else {
        (FailureKind::BadAnswer, sentence)
    };
    if let Some(said) = host.last_error() {
        reason = format!("{reason}; the plugin said: {said}");
    }
    Trouble::Guest(Fault::new(kind, text::clean(&reason)))
}

fn blame_contract(interface: &str, error: &wasmtime::Error) -> Trouble {
    let reason = format!("exports `{interface}` in another shape than the contract's: {error:#}");
    Trouble::Guest(Fault::new(FailureKind::BadAnswer, text::clean(&reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_is_free_and_work_is_not() {
        let (mut spent, cpu_max) = (Duration::ZERO, Duration::from_millis(20));
        let wait = tokio::time::sleep(cpu_max * 3);
        assert!(metered(cpu_max, &mut spent, wait).await.is_ok());
        assert!(spent < cpu_max, "{spent:?}");
        let endless = async {
            loop {
                std::hint::black_box((0..10_000).sum::<u64>());
                tokio::task::yield_now().await;
            }
        };
        assert!(metered(cpu_max, &mut spent, endless).await.is_err());
        assert!(spent > cpu_max, "{spent:?}");
    }
}
