//! `log`: lines of plugins in the host's own log, with pipeline, stage and digest.
//!
//! Invariant: a stage writes at most its lines per second, of bounded length, whatever it does; what it does not write
//! is counted and said. A line is only read out of the guest if somebody will see it.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, WasmStr};

use synapse_core::stage::Digest;

use super::Host;
use crate::text;

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "guests make these values: lifting writes their number")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// Links the interface.
pub(super) fn add_to(linker: &mut Linker<Host>) -> Result<(), wasmtime::Error> {
    linker.instance("synapse:plugin/log@0.1.0")?.func_wrap("write", write)
}

fn write(mut store: StoreContextMut<'_, Host>, (level, message): (Level, WasmStr)) -> Result<(), wasmtime::Error> {
    let admitted = store.data().log.admits(level, Instant::now());
    if !admitted && level != Level::Error {
        return Ok(());
    }
    let message = text::clean(&message.to_str(&store)?);
    if admitted {
        store.data().log.emit(level, &message);
    }
    if level == Level::Error {
        store.data_mut().last_error = Some(message);
    }
    Ok(())
}

/// Lets through so many lines of one stage each second, over all its instances.
pub(crate) struct LogGate {
    pipeline: String,
    stage: String,
    digest: Digest,
    lines_per_second_max: u32,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    began: Option<Instant>,
    written: u32,
    withheld: u64,
}

impl LogGate {
    pub(crate) fn new(pipeline: String, stage: String, digest: Digest, lines_per_second_max: NonZeroU32) -> Self {
        let lines_per_second_max = lines_per_second_max.get();
        Self { pipeline, stage, digest, lines_per_second_max, window: Mutex::default() }
    }

    fn admits(&self, level: Level, now: Instant) -> bool {
        if !is_enabled(level) {
            return false;
        }
        let (admitted, withheld) =
            self.window.lock().unwrap_or_else(PoisonError::into_inner).admit(self.lines_per_second_max, now);
        if withheld > 0 {
            self.emit(
                Level::Warn,
                &format!("{withheld} lines more than {} a second were withheld", self.lines_per_second_max),
            );
        }
        admitted
    }

    fn emit(&self, level: Level, message: &str) {
        let Self { pipeline, stage, digest, .. } = self;
        match level {
            Level::Trace => tracing::trace!(target: TARGET, %pipeline, %stage, %digest, "{message}"),
            Level::Debug => tracing::debug!(target: TARGET, %pipeline, %stage, %digest, "{message}"),
            Level::Info => tracing::info!(target: TARGET, %pipeline, %stage, %digest, "{message}"),
            Level::Warn => tracing::warn!(target: TARGET, %pipeline, %stage, %digest, "{message}"),
            Level::Error => tracing::error!(target: TARGET, %pipeline, %stage, %digest, "{message}"),
        }
    }
}

impl Drop for LogGate {
    fn drop(&mut self) {
        let withheld = self.window.get_mut().unwrap_or_else(PoisonError::into_inner).withheld;
        if withheld > 0 {
            self.emit(
                Level::Warn,
                &format!("{withheld} lines more than {} a second were withheld", self.lines_per_second_max),
            );
        }
    }
}

/// By which operators choose the lines of plugins.
const TARGET: &str = "synapse::plugin";

fn is_enabled(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(target: TARGET, tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(target: TARGET, tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: TARGET, tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: TARGET, tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: TARGET, tracing::Level::ERROR),
    }
}

impl Window {
    /// Whether a line may be written at `now`, and how many were withheld in a second that has just ended.
    fn admit(&mut self, lines_max: u32, now: Instant) -> (bool, u64) {
        let over = self.began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1));
        let withheld = if over {
            let withheld = self.withheld;
            *self = Self { began: Some(now), written: 0, withheld: 0 };
            withheld
        } else {
            0
        };
        let admitted = self.written < lines_max;
        if admitted {
            self.written += 1;
        } else {
            self.withheld += 1;
        }
        (admitted, withheld)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_its_lines_and_the_next_says_what_was_withheld() {
        let (mut window, start) = (Window::default(), Instant::now());
        let mut admit = |ms| window.admit(2, start + Duration::from_millis(ms));
        assert_eq!([admit(0), admit(500), admit(600), admit(999)], [(true, 0), (true, 0), (false, 0), (false, 0)]);
        assert_eq!([admit(1000), admit(1100), admit(1200)], [(true, 2), (true, 0), (false, 0)]);
        assert_eq!([admit(9000), admit(9001)], [(true, 1), (true, 0)]);
    }
}
