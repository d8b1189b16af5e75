//! Whole pipelines, from a broker to the same broker, with and without the filter.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use synapse_brokers::embedded::EmbeddedLog;
use synapse_brokers::kafka::{KafkaBroker, KafkaOptions, bare};
use synapse_brokers::memory::MemoryBroker;
use synapse_brokers::redis::{RedisBroker, RedisOptions};
use synapse_core::broker::{BatchLimit, Broker, Brokers, Output};
use synapse_core::spec::{
    Encoding, InstanceMode, PipelineSpec, PluginRef, ReadMode, Retention, SinkSpec, Start, TopicSpec,
};
use synapse_core::topic::{BrokerName, Label, Offset, TopicPath};
use synapse_engine::{Engine, Handle, Health, LaneStatus, Metrics, Options, PipelineState, Wish};
use synapse_runtime::Runtime;

use super::redis_loops::{Server, crate_loop, raw_loop};
use super::{Arm, batch, latency, stage};

/// Rows of each published batch.
const ROWS: usize = 256;

/// What all pipelines of the benchmark share.
pub(super) struct Bench<'a> {
    pub(super) runtime: &'a tokio::runtime::Runtime,
    pub(super) plugins: Arc<Runtime>,
    pub(super) component: PathBuf,
    pub(super) events: usize,
    pub(super) rounds: usize,
    pub(super) data_bytes: usize,
}

impl Bench<'_> {
    pub(super) fn memory(&self) -> anyhow::Result<Vec<Arm>> {
        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new(name()));
        self.with_and_without(&broker)
    }

    pub(super) fn embedded(&self, dir: Option<&Path>) -> anyhow::Result<Vec<Arm>> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("synapse-bench-");
        let dir = match dir {
            Some(dir) => builder.tempdir_in(dir)?,
            None => builder.tempdir()?,
        };
        let (log, _) =
            EmbeddedLog::open(dir.path(), synapse_brokers::embedded::Options { name: name(), ..Default::default() })?;
        let broker: Arc<dyn Broker> = Arc::new(log);
        self.with_and_without(&broker)
    }

    pub(super) fn redis(&self, server: &Server) -> anyhow::Result<Vec<Arm>> {
        let options = RedisOptions::new(server.url());
        let broker: Arc<dyn Broker> = Arc::new(self.runtime.block_on(RedisBroker::connect(name(), options))?);
        let last = self.fill(broker.as_ref())?;
        let filled = self.events.div_ceil(ROWS) * ROWS;
        let names = [
            "raw bytes, the same commands and overlap",
            "raw bytes again (A/A)",
            "pipeline with the filter",
            "pipeline without stages",
            "a loop with the redis crate",
        ];
        let mut arms = names.map(|name| Arm { name, rounds: Vec::new() });
        for round in 0..self.rounds {
            arms[0].rounds.push(self.runtime.block_on(raw_loop(server, filled, &format!("raw-{round}")))?);
            arms[2].rounds.push(self.pipeline(&broker, last, &format!("with-{round}"), true)?);
            arms[3].rounds.push(self.pipeline(&broker, last, &format!("without-{round}"), false)?);
            arms[4].rounds.push(self.runtime.block_on(crate_loop(server, filled, &format!("crate-{round}")))?);
            arms[1].rounds.push(self.runtime.block_on(raw_loop(server, filled, &format!("again-{round}")))?);
        }
        Ok(arms.into())
    }

    /// Against librdkafka alone; both promises, since one costs more than the other.
    pub(super) fn kafka(&self, bootstrap: &str) -> anyhow::Result<Vec<Arm>> {
        let run = crate::host::now().as_micros();
        let topic = |what: &str| format!("synapse-bench-{run}-{what}");
        let open = |exactly_once| -> anyhow::Result<Arc<dyn Broker>> {
            let _entered = self.runtime.enter();
            let options = KafkaOptions { exactly_once, ..KafkaOptions::new(bootstrap) };
            Ok(Arc::new(KafkaBroker::new(name(), options)?))
        };
        let (exactly, at_least) = (open(true)?, open(false)?);
        let last = self.fill_topics(exactly.as_ref(), &path(&topic("in")), &path(&topic("out")))?;
        let filled = self.events.div_ceil(ROWS) * ROWS;
        let bare = |what: String, exactly_once| {
            let (from, to, group) = (topic("in"), topic("out"), topic(&what));
            bare::copy(bootstrap, [&from, &to, &group], filled, exactly_once)
        };
        // Counted from when the lane is at work: to join a group takes longer than a loop needs to assign itself.
        let through = |broker, what: String| {
            let spec = self.spec(&topic(&what), true, &[path(&topic("in")), path(&topic("out"))]);
            self.while_running(broker, spec, |handle| async move {
                until_lane(&handle, |lane| lane.health == Health::Running).await?;
                let start = Instant::now();
                until(&handle, last).await?;
                Ok(filled as f64 / start.elapsed().as_secs_f64())
            })
        };
        let names = [
            "librdkafka alone, at-least-once",
            "librdkafka alone again (A/A)",
            "pipeline with the filter, at-least-once",
            "librdkafka alone, exactly-once",
            "pipeline with the filter, exactly-once",
        ];
        let mut arms = names.map(|name| Arm { name, rounds: Vec::new() });
        for round in 0..self.rounds {
            arms[0].rounds.push(bare(format!("bare-{round}"), false)?);
            arms[2].rounds.push(through(&at_least, format!("at-least-{round}"))?);
            arms[3].rounds.push(bare(format!("bare-exactly-{round}"), true)?);
            arms[4].rounds.push(through(&exactly, format!("exactly-{round}"))?);
            arms[1].rounds.push(bare(format!("again-{round}"), false)?);
        }
        Ok(arms.into())
    }

    /// Microseconds from publishing to reading, without and with a pipeline in between.
    pub(super) fn latency(&self, server: &Server) -> anyhow::Result<Vec<Arm>> {
        let options = RedisOptions::new(server.url());
        let broker: Arc<dyn Broker> = Arc::new(self.runtime.block_on(RedisBroker::connect(name(), options))?);
        let names = [
            "published and read, p50",
            "published and read, p99",
            "with the filter in between, p50",
            "with the filter in between, p99",
        ];
        let mut arms = names.map(|name| Arm { name, rounds: Vec::new() });
        let template = super::events(1, self.data_bytes).remove(0);
        for round in 0..self.rounds {
            let near = path(&format!("near-{round}"));
            let near = self.runtime.block_on(latency::measure(&broker, &near, &near, &template))?;
            let far = [path(&format!("from-{round}")), path(&format!("to-{round}"))];
            let far = self.while_running(&broker, self.spec(&format!("far-{round}"), true, &far), |_| async {
                latency::measure(&broker, &far[0], &far[1], &template).await
            })?;
            for (arm, value) in arms.iter_mut().zip(near.into_iter().chain(far)) {
                arm.rounds.push(value);
            }
        }
        Ok(arms.into())
    }

    fn with_and_without(&self, broker: &Arc<dyn Broker>) -> anyhow::Result<Vec<Arm>> {
        let last = self.fill(broker.as_ref())?;
        let names = ["pipeline without stages", "pipeline without stages again (A/A)", "pipeline with the filter"];
        let mut arms = names.map(|name| Arm { name, rounds: Vec::new() });
        for round in 0..self.rounds {
            arms[0].rounds.push(self.pipeline(broker, last, &format!("without-{round}"), false)?);
            arms[2].rounds.push(self.pipeline(broker, last, &format!("with-{round}"), true)?);
            arms[1].rounds.push(self.pipeline(broker, last, &format!("again-{round}"), false)?);
        }
        Ok(arms.into())
    }

    /// Publishes the input and answers with the place of its last event.
    fn fill(&self, broker: &dyn Broker) -> anyhow::Result<Offset> {
        self.fill_topics(broker, &path("in"), &path("out"))
    }

    fn fill_topics(&self, broker: &dyn Broker, from: &TopicPath, to: &TopicPath) -> anyhow::Result<Offset> {
        let events = Arc::new(batch(ROWS, self.data_bytes));
        let mut last = None;
        self.runtime.block_on(async {
            // What comes out is not looked at: only its end is kept.
            let kept = TopicSpec {
                retention: Retention { events: Some(50_000), ..Retention::default() },
                ..TopicSpec::default()
            };
            broker.ensure_topic(&to.topic, &kept).await?;
            for _ in 0..self.events.div_ceil(ROWS) {
                let output = Output { topic: from.clone(), encoding: Encoding::default(), events: Arc::clone(&events) };
                last = broker.publish(&output).await?.last().map(|(_, offset)| *offset);
            }
            anyhow::Ok(())
        })?;
        last.ok_or_else(|| anyhow::anyhow!("--events must not be 0"))
    }

    /// Events a second of one new pipeline over the whole input, counted when the last one's effects are durable.
    fn pipeline(&self, broker: &Arc<dyn Broker>, last: Offset, pipeline: &str, filtered: bool) -> anyhow::Result<f64> {
        let start = Instant::now();
        let spec = self.spec(pipeline, filtered, &[path("in"), path("out")]);
        self.while_running(broker, spec, |handle| async move {
            until(&handle, last).await?;
            Ok((self.events.div_ceil(ROWS) * ROWS) as f64 / start.elapsed().as_secs_f64())
        })
    }

    /// Does something while an engine runs one pipeline.
    fn while_running<T, F: Future<Output = anyhow::Result<T>>>(
        &self,
        broker: &Arc<dyn Broker>,
        spec: PipelineSpec,
        work: impl FnOnce(Handle) -> F,
    ) -> anyhow::Result<T> {
        let guests = tokio::runtime::Builder::new_multi_thread().enable_time().build()?;
        let (engine, handle) = Engine::new(Options {
            brokers: Brokers::from_iter([Arc::clone(broker)]),
            plugins: Arc::<Runtime>::clone(&self.plugins),
            default_broker: name(),
            guests: guests.handle().clone(),
            clock: crate::host::now,
            metrics: Metrics::register(&prometheus::Registry::new()),
            limit: BatchLimit::default(),
        });
        let done = self.runtime.block_on(async {
            let running = tokio::spawn(engine.run());
            handle.apply(Wish { pipelines: vec![spec], ..Wish::default() }).await?;
            let done = work(handle.clone()).await?;
            handle.drain(std::time::Duration::from_secs(10))?;
            running.await?;
            Ok(done)
        });
        guests.shutdown_background();
        done
    }

    fn spec(&self, pipeline: &str, filtered: bool, [from, to]: &[TopicPath; 2]) -> PipelineSpec {
        let name: Label = pipeline.parse().expect("a valid name");
        let filter = stage::spec(name.clone(), PluginRef::File(self.component.clone()), InstanceMode::Lane);
        PipelineSpec {
            name,
            tenant: "default".parse().expect("a valid name"),
            from: vec![from.clone()],
            to: vec![SinkSpec { topic: to.clone(), encoding: Encoding::default() }],
            dead_letters: path("dead"),
            read: ReadMode::Cursor,
            parallel: std::num::NonZeroUsize::MIN,
            start: Start::Earliest,
            stages: if filtered { vec![filter] } else { Vec::new() },
        }
    }
}

/// Waits until everything up to `last` is durable.
async fn until(handle: &Handle, last: Offset) -> anyhow::Result<()> {
    until_lane(handle, |lane| lane.committed.is_some_and(|committed| committed >= last)).await
}

async fn until_lane(handle: &Handle, is_there: impl Fn(&LaneStatus) -> bool) -> anyhow::Result<()> {
    loop {
        for (_, status) in handle.status().into_values() {
            if let PipelineState::Stopped { reason } = status.state {
                anyhow::bail!("the pipeline stopped: {reason}");
            }
            if status.lanes.values().any(&is_there) {
                return Ok(());
            }
        }
        tokio::time::sleep(std::time::Duration::from_micros(500)).await;
    }
}

fn name() -> BrokerName {
    "bench".parse().expect("a valid name")
}

fn path(topic: &str) -> TopicPath {
    TopicPath { broker: name(), topic: topic.parse().expect("a valid name") }
}
