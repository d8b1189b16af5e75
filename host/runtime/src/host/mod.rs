//! What a guest's instance carries on the host's side, and the host interfaces: one file for each of the contract.
//!
//! Invariant: host functions never wait and never fail because of what a guest says; what a run did through them must
//! vanish if the run fails. (`log` is the only interface yet, and a line written stays written; an interface that
//! keeps something collects it in [`Host`] and is emptied by [`Host::begin_call`].)

mod log;

use std::sync::Arc;

use wasmtime::component::Linker;
use wasmtime::{Engine, ResourceLimiter};

use crate::engine::{MEMORIES_PER_COMPONENT_MAX, TABLE_ELEMENTS_MAX, TABLES_PER_COMPONENT_MAX};

pub(crate) use log::LogGate;

/// The data of one store: one instance of one stage.
pub(crate) struct Host {
    log: Arc<LogGate>,
    /// The last line at level error in this call: a panic's message, if the call then traps.
    last_error: Option<String>,
    memory: MemoryLimit,
}

impl Host {
    pub(crate) fn new(log: Arc<LogGate>, memory_bytes_max: usize) -> Self {
        let memory = MemoryLimit { bytes: 0, bytes_max: memory_bytes_max, growing: 0, refused: false };
        Self { log, last_error: None, memory }
    }

    /// Forgets what the last call left.
    pub(crate) fn begin_call(&mut self) {
        self.last_error = None;
        self.memory.refused = false;
    }

    /// Bytes of linear memory that the instance has.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Whether memory was refused in this call.
    pub(crate) fn was_refused_memory(&self) -> bool {
        self.memory.refused
    }

    /// What the plugin last said at level error in this call.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// For [`wasmtime::Store::limiter`].
    pub(crate) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }
}

/// Links every host interface that this version has.
pub(crate) fn linker(engine: &Engine) -> Result<Linker<Host>, wasmtime::Error> {
    let mut linker = Linker::new(engine);
    log::add_to(&mut linker)?;
    Ok(linker)
}

/// Bounds the linear memories of an instance, all together, and remembers a refusal: guests answer it with a trap that
/// looks like any other.
struct MemoryLimit {
    bytes: usize,
    bytes_max: usize,
    /// The growth that was last allowed.
    growing: usize,
    refused: bool,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, now: usize, wanted: usize, _: Option<usize>) -> Result<bool, wasmtime::Error> {
        self.growing = wanted.saturating_sub(now);
        let allowed = self.bytes.saturating_add(self.growing) <= self.bytes_max;
        if allowed {
            self.bytes += self.growing;
        } else {
            self.refused = true;
        }
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> Result<(), wasmtime::Error> {
        // Also called after a refusal, for which nothing was counted.
        if !self.refused {
            self.bytes = self.bytes.saturating_sub(self.growing);
            self.refused = true;
        }
        Ok(())
    }

    fn table_growing(&mut self, _: usize, wanted: usize, _: Option<usize>) -> Result<bool, wasmtime::Error> {
        Ok(wanted <= TABLE_ELEMENTS_MAX)
    }

    fn tables(&self) -> usize {
        TABLES_PER_COMPONENT_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_PER_COMPONENT_MAX as usize
    }
}
