//! The wasmtime engine with all its bounds in one place, and the clock by which guests yield.
//!
//! Invariant: two engines made here from the same options compile to interchangeable code. Nothing here knows what a
//! plugin is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Linear memories that one component may have: one, or a few if it was composed of others.
pub(crate) const MEMORIES_PER_COMPONENT_MAX: u32 = 4;
/// Core instances of one component; interpreters linked from shared libraries have dozens.
pub(crate) const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 64;
/// Tables of one component: one for each core module that calls indirectly.
pub(crate) const TABLES_PER_COMPONENT_MAX: u32 = 8;
/// Elements of a table: the functions whose address is taken; 20 MB of interpreter have about 20,000.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 64 * 1024;
/// Stack of wasm frames, in bytes.
const WASM_STACK_BYTES: usize = 512 << 10;
/// Stack of a guest with the host functions that it calls, in bytes of address space.
const FIBER_STACK_BYTES: usize = 2 << 20;

/// An engine that holds at most `instances_max` linear memories, each of at most `memory_bytes_max`.
///
/// Each slot of the pool takes 4 GiB of address space, so that compiled code needs no bounds checks; real memory is
/// taken page by page and given back when the instance ends.
pub(crate) fn new(instances_max: u32, memory_bytes_max: usize) -> Result<Engine, wasmtime::Error> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(instances_max)
        .total_stacks(instances_max)
        .total_component_instances(instances_max)
        .total_core_instances(instances_max.saturating_mul(CORE_INSTANCES_PER_COMPONENT_MAX))
        .total_tables(instances_max.saturating_mul(TABLES_PER_COMPONENT_MAX))
        .max_memories_per_module(1)
        .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(memory_bytes_max)
        // Keeping pages for the next instance makes resetting them cost more than fresh ones.
        .linear_memory_keep_resident(0)
        .table_keep_resident(0);

    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        .concurrency_support(false)
        // Nobody unwinds or symbolises guest code.
        .native_unwind_info(false)
        .generate_address_map(false);
    // What compilers of plugins do not need is off: less to attack.
    config
        .wasm_threads(false)
        .gc_support(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_memory64(false);
    // A replay must be the same run again, on any machine: no operation may depend on the processor. Canonical NaNs
    // cost a compare after each float operation; event code is made of integers and bytes.
    config.wasm_relaxed_simd(false).cranelift_nan_canonicalization(true);
    Engine::new(&config)
}

/// A thread that moves the engine's epoch on while guests run and sleeps while none does. Dropping it ends the thread.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    asleep: AtomicBool,
    ended: AtomicBool,
}

/// Ticks without a running guest before the thread goes to sleep: waking it up costs more than a few idle ticks.
const IDLE_TICKS_MAX: u32 = 100;

impl Ticker {
    /// Starts the thread.
    pub(crate) fn start(engine: &Engine, tick: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (engine, seen) = (engine.clone(), shared.clone());
        let thread = thread::Builder::new().name("synapse-epoch".to_owned()).spawn(move || {
            let mut idle_ticks = 0;
            while !seen.ended.load(Ordering::SeqCst) {
                if idle_ticks < IDLE_TICKS_MAX {
                    thread::sleep(tick);
                    engine.increment_epoch();
                    idle_ticks = if seen.running.load(Ordering::SeqCst) == 0 { idle_ticks + 1 } else { 0 };
                } else {
                    seen.sleep_until_needed();
                    idle_ticks = 0;
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says that a guest runs until the guard is dropped.
    pub(crate) fn guest_runs(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
        Running(&self.shared.running)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Shared {
    /// Either a guest that starts sees `asleep`, or this thread sees the guest.
    fn sleep_until_needed(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        while self.running.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst) {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the epoch thread only adds and sleeps");
        }
    }
}

/// A guest is running.
pub(crate) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_sleeps_without_guests_and_wakes_for_one() {
        let engine = new(1, 1 << 20).expect("the machine runs wasmtime");
        let ticker = Ticker::start(&engine, Duration::from_micros(10)).expect("the machine has threads");
        let is_asleep = || ticker.shared.asleep.load(Ordering::SeqCst);
        for _ in 0..3 {
            while !is_asleep() {
                thread::yield_now();
            }
            let running = ticker.guest_runs();
            while is_asleep() {
                thread::yield_now();
            }
            drop(running);
        }
    }
}
