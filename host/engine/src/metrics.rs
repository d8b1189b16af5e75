//! What the engine counts, for Prometheus.
//!
//! Labels are bounded by the configuration: tenants, pipelines, stages and kinds of failure; never an event's id, key
//! or topic. Events are counted when they are handled; a batch that is run again after a failure is counted again,
//! except in the `committed` counters.

use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};
use synapse_core::spec::PipelineSpec;
use synapse_core::stage::{FailureKind, Usage};

/// Seconds; from 50 µs to 10 s.
const COMMIT_SECONDS: &[f64] = &[
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0,
];

/// All families of the engine.
#[derive(Clone)]
pub struct Metrics {
    read: IntCounterVec,
    committed: IntCounterVec,
    written: IntCounterVec,
    expired: IntCounterVec,
    lost_to_trim: IntCounterVec,
    retries: IntCounterVec,
    swaps: IntCounterVec,
    swaps_refused: IntCounterVec,
    running: IntGaugeVec,
    commit_seconds: HistogramVec,
    stage_events: IntCounterVec,
    stage_dropped: IntCounterVec,
    stage_failures: IntCounterVec,
    stage_cpu_seconds: CounterVec,
    stage_faults: IntCounterVec,
    stage_memory_bytes: IntGaugeVec,
}

const PIPELINE: [&str; 2] = ["tenant", "pipeline"];
const STAGE: [&str; 3] = ["tenant", "pipeline", "stage"];

impl Metrics {
    /// Makes the families and registers them.
    ///
    /// # Panics
    /// If the registry has families of these names already.
    pub fn register(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels).expect("constant names are valid");
            registry.register(Box::new(family.clone())).expect("registered once");
            family
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels).expect("constant names are valid");
            registry.register(Box::new(family.clone())).expect("registered once");
            family
        };
        let commit_seconds = HistogramVec::new(
            HistogramOpts::new("synapse_commit_seconds", "How long commits took.").buckets(COMMIT_SECONDS.to_vec()),
            &PIPELINE,
        )
        .expect("constant names are valid");
        registry.register(Box::new(commit_seconds.clone())).expect("registered once");
        let stage_cpu_seconds =
            CounterVec::new(Opts::new("synapse_stage_cpu_seconds_total", "CPU time spent in plugins."), &STAGE)
                .expect("constant names are valid");
        registry.register(Box::new(stage_cpu_seconds.clone())).expect("registered once");
        Self {
            read: counter("synapse_events_read_total", "Events read from sources.", &PIPELINE),
            committed: counter(
                "synapse_events_committed_total",
                "Source entries whose effects are durable.",
                &PIPELINE,
            ),
            written: counter("synapse_events_written_total", "Events durably written to sinks.", &PIPELINE),
            expired: counter("synapse_events_expired_total", "Entries past their own time to live.", &PIPELINE),
            lost_to_trim: counter(
                "synapse_events_lost_to_trim_total",
                "Entries that the broker trimmed before they were read.",
                &PIPELINE,
            ),
            retries: counter("synapse_lane_retries_total", "How often lanes failed and were opened again.", &PIPELINE),
            swaps: counter("synapse_swaps_total", "Changes of stages under traffic, by lane.", &PIPELINE),
            swaps_refused: counter("synapse_swaps_refused_total", "New versions that could not be used.", &PIPELINE),
            running: gauge("synapse_lanes_running", "Lanes at work.", &PIPELINE),
            commit_seconds,
            stage_events: counter("synapse_stage_events_total", "Events given to plugins.", &STAGE),
            stage_dropped: counter("synapse_stage_dropped_total", "Events that plugins dropped.", &STAGE),
            stage_failures: counter(
                "synapse_stage_failures_total",
                "Events that plugins rejected or failed on.",
                &["tenant", "pipeline", "stage", "kind"],
            ),
            stage_cpu_seconds,
            stage_faults: counter("synapse_stage_faults_total", "Traps, timeouts and memory exhaustions.", &STAGE),
            stage_memory_bytes: gauge(
                "synapse_stage_memory_bytes",
                "Linear memory of the last run's instance.",
                &STAGE,
            ),
        }
    }

    /// The series of one pipeline.
    pub(crate) fn pipeline(&self, spec: &PipelineSpec) -> PipelineMetrics {
        let labels = [spec.tenant.as_str(), spec.name.as_str()];
        PipelineMetrics {
            read: self.read.with_label_values(&labels),
            committed: self.committed.with_label_values(&labels),
            written: self.written.with_label_values(&labels),
            expired: self.expired.with_label_values(&labels),
            lost_to_trim: self.lost_to_trim.with_label_values(&labels),
            retries: self.retries.with_label_values(&labels),
            swaps: self.swaps.with_label_values(&labels),
            swaps_refused: self.swaps_refused.with_label_values(&labels),
            running: self.running.with_label_values(&labels),
            commit_seconds: self.commit_seconds.with_label_values(&labels),
        }
    }

    /// The series of one stage.
    pub(crate) fn stage(&self, spec: &PipelineSpec, stage: &str) -> StageMetrics {
        let labels = [spec.tenant.as_str(), spec.name.as_str(), stage];
        StageMetrics {
            events: self.stage_events.with_label_values(&labels),
            dropped: self.stage_dropped.with_label_values(&labels),
            failures: self.stage_failures.clone(),
            failure_labels: labels.map(str::to_owned),
            cpu_seconds: self.stage_cpu_seconds.with_label_values(&labels),
            faults: self.stage_faults.with_label_values(&labels),
            memory_bytes: self.stage_memory_bytes.with_label_values(&labels),
        }
    }
}

/// The series of one pipeline.
#[derive(Clone)]
pub(crate) struct PipelineMetrics {
    pub(crate) read: IntCounter,
    pub(crate) committed: IntCounter,
    pub(crate) written: IntCounter,
    pub(crate) expired: IntCounter,
    pub(crate) lost_to_trim: IntCounter,
    pub(crate) retries: IntCounter,
    pub(crate) swaps: IntCounter,
    pub(crate) swaps_refused: IntCounter,
    pub(crate) running: IntGauge,
    pub(crate) commit_seconds: Histogram,
}

/// The series of one stage.
#[derive(Clone)]
pub(crate) struct StageMetrics {
    events: IntCounter,
    dropped: IntCounter,
    failures: IntCounterVec,
    failure_labels: [String; 3],
    cpu_seconds: Counter,
    faults: IntCounter,
    memory_bytes: IntGauge,
}

impl StageMetrics {
    pub(crate) fn ran(&self, events: usize, usage: &Usage) {
        self.events.inc_by(events as u64);
        self.cpu_seconds.inc_by(usage.cpu.as_secs_f64());
        self.faults.inc_by(u64::from(usage.faults));
        self.memory_bytes.set(i64::try_from(usage.memory_bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn dropped(&self, events: usize) {
        self.dropped.inc_by(events as u64);
    }

    pub(crate) fn failed(&self, kind: FailureKind) {
        let [tenant, pipeline, stage] = &self.failure_labels;
        self.failures.with_label_values(&[tenant.as_str(), pipeline, stage, kind.as_str()]).inc();
    }
}
