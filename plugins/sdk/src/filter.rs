//! Filters: a verdict for each event.
//!
//! Invariant: no allocation for an event that is kept or dropped.

use serde::de::DeserializeOwned;

use crate::Reject;
use crate::columns::{Batch, Rejection, Selection, View};
use crate::event::Event;

/// Decides which events go on. Export it with [`export_filter!`](crate::export_filter).
pub trait Filter: Sized + 'static {
    /// What the stage's `config` is read into; [`NoConfig`](crate::NoConfig) for none. Put
    /// `#[serde(deny_unknown_fields)]` on it, so that a typing error is an error.
    type Config: DeserializeOwned;

    /// JSON Schema of the configuration, shown by `synapse plugin show` and checked by the host; empty: not described.
    const CONFIG_SCHEMA: &'static str = "";

    /// Sets the plugin up. Called once on each instance, before the first event.
    ///
    /// # Errors
    /// One sentence for the operator on what is wrong with the configuration; the plugin is then not used.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// What becomes of an event.
    fn judge(&mut self, event: &Event<'_>) -> Verdict;
}

/// What becomes of an event that a filter saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on unchanged.
    Keep,
    /// It ends here.
    Drop,
    /// It can never be judged; it becomes a dead letter with this reason.
    Reject(String),
}

impl Verdict {
    /// Keep if `condition`, else drop.
    pub fn keep_if(condition: bool) -> Self {
        if condition { Self::Keep } else { Self::Drop }
    }

    /// Reject with a reason.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject(reason.into())
    }
}

impl From<bool> for Verdict {
    fn from(keep: bool) -> Self {
        Self::keep_if(keep)
    }
}

impl From<Result<bool, Reject>> for Verdict {
    fn from(keep: Result<bool, Reject>) -> Self {
        match keep {
            Ok(keep) => Self::keep_if(keep),
            Err(Reject(reason)) => Self::Reject(reason),
        }
    }
}

/// Judges a batch: what the exported function does.
pub(crate) fn judge<F: Filter>(filter: &mut F, batch: &Batch) -> Selection {
    let view = View::of(batch);
    let mut kept = Vec::with_capacity(view.rows());
    let mut rejected = Vec::new();
    for (row, event) in view.events() {
        let verdict = filter.judge(&event);
        kept.push(u8::from(verdict == Verdict::Keep));
        if let Verdict::Reject(reason) = verdict {
            rejected.push(Rejection { row, reason });
        }
    }
    Selection { kept, rejected }
}
