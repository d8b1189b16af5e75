//! A stage in a lane: one configured instance after the other, batches through them.
//!
//! Invariants: an instance that faulted is never used again; dropping a run half-way drops its instance; an instance
//! serves one stage of one pipeline for all its life. Which events are at fault is found by `merge`.

use std::sync::Arc;

use async_trait::async_trait;

use synapse_core::batch::Batch;
use synapse_core::spec::{InstanceMode, StageLimits, StageSpec};
use synapse_core::stage::{PluginError, PluginErrorKind, PluginInfo, Stage, StageRun, Usage};
use synapse_core::topic::Label;

use crate::answer::Part;
use crate::host::LogGate;
use crate::merge::{self, Runner, Trouble};
use crate::plugin::Compiled;
use crate::sandbox::Sandbox;

/// Calls after which a lane's instance is replaced: some guests leak a little with each.
const BATCHES_PER_INSTANCE_MAX: u32 = 10_000;
/// Share of the memory limit, in percent, above which an instance is replaced before it runs into the limit.
const MEMORY_HIGH_WATER_PERCENT: usize = 80;

/// One configured instance in one lane.
pub(crate) struct LaneStage {
    plugin: Arc<Compiled>,
    /// For sentences.
    name: Label,
    config: String,
    limits: StageLimits,
    mode: InstanceMode,
    log: Arc<LogGate>,
    /// Taken out while it runs: whoever stops awaiting a run has dropped its instance.
    sandbox: Option<Sandbox>,
    last_was_fresh: bool,
    usage: Usage,
}

impl LaneStage {
    /// Makes and configures the first instance.
    pub(crate) async fn new(plugin: Arc<Compiled>, pipeline: &Label, spec: &StageSpec) -> Result<Self, PluginError> {
        let log = LogGate::new(
            pipeline.to_string(),
            spec.name.to_string(),
            plugin.info.digest,
            spec.limits.log_lines_per_second_max,
        );
        let mut stage = Self {
            plugin,
            name: spec.name.clone(),
            config: spec.config.to_string(),
            limits: spec.limits,
            mode: spec.instance,
            log: Arc::new(log),
            sandbox: None,
            last_was_fresh: true,
            usage: Usage::default(),
        };
        stage.sandbox = Some(stage.fresh().await?);
        Ok(stage)
    }

    async fn fresh(&mut self) -> Result<Sandbox, PluginError> {
        let permit = self.plugin.runtime.room_for(self.plugin.blueprint.memories).await?;
        let blueprint = &self.plugin.blueprint;
        let plugin = &self.plugin.info.name;
        let place = format!("stage `{}`: plugin `{plugin}`", self.name);
        let failed = |what: &'static str, kind: PluginErrorKind| {
            let place = place.clone();
            move |trouble| match trouble {
                Trouble::Guest(fault) => PluginError::new(kind, format!("{place} {what}: {}", fault.reason)),
                Trouble::Host(error) => error,
            }
        };
        self.usage.instances += 1;
        let mut sandbox = Sandbox::new(blueprint, &self.plugin.runtime.ticker, self.log.clone(), self.limits, permit)
            .await
            .map_err(failed("cannot be instantiated within the stage's limits", PluginErrorKind::Unusable))?;
        let configured = sandbox.configure(blueprint, &self.config).await;
        self.usage.cpu += sandbox.take_cpu();
        match configured.map_err(failed("failed in configure", PluginErrorKind::Misconfigured))? {
            Ok(()) => Ok(sandbox),
            Err(reason) => {
                let reason = crate::text::clean(&reason);
                Err(PluginError::new(PluginErrorKind::Misconfigured, format!("{place} refuses its config: {reason}")))
            }
        }
    }

    /// Whether the instance has had its time.
    fn is_worn(&self, sandbox: &Sandbox) -> bool {
        let high_water = self.limits.memory_bytes_max / 100 * MEMORY_HIGH_WATER_PERCENT;
        self.mode == InstanceMode::Batch
            || sandbox.batches() >= BATCHES_PER_INSTANCE_MAX
            || sandbox.memory_bytes() > high_water
    }
}

impl Runner for LaneStage {
    async fn run(&mut self, batch: &Batch) -> Result<Part, Trouble> {
        let mut sandbox = match self.sandbox.take() {
            Some(sandbox) => sandbox,
            None => self.fresh().await.map_err(Trouble::Host)?,
        };
        self.last_was_fresh = sandbox.batches() == 0;
        let answered = sandbox.run(batch).await;
        self.usage.cpu += sandbox.take_cpu();
        self.usage.memory_bytes = sandbox.memory_bytes();
        match answered {
            Ok(_) => self.sandbox = Some(sandbox),
            Err(Trouble::Guest(_)) => self.usage.faults += 1,
            Err(Trouble::Host(_)) => {}
        }
        answered
    }

    fn last_was_fresh(&self) -> bool {
        self.last_was_fresh
    }
}

#[async_trait]
impl Stage for LaneStage {
    fn info(&self) -> &PluginInfo {
        &self.plugin.info
    }

    async fn run(&mut self, batch: &Batch) -> Result<StageRun, PluginError> {
        self.usage = Usage::default();
        let (kind, output_bytes_max) = (self.plugin.info.kind, self.limits.output_bytes_max);
        let run = merge::run(self, kind, batch, output_bytes_max).await;
        if self.sandbox.as_ref().is_some_and(|sandbox| self.is_worn(sandbox)) {
            self.sandbox = None;
        }
        Ok(StageRun { usage: self.usage, ..run? })
    }
}
