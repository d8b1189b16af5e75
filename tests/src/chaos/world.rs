//! What a fault happens in: hosts at work on one pipeline, a load on it, and a watch on its sink.

use std::any::Any;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::watch::Watch;
use super::{Plan, Scene};
use crate::PATIENCE;
use crate::bus::{Endpoint, Topic};
use crate::checker::{Kind, Receipt};
use crate::host::{Host, workspace};
use crate::load::{Load, Sent};
use crate::random::Random;

/// Producers, keys of each, and events of a batch.
const PRODUCERS: usize = 2;
const KEYS: usize = 5;
const BATCH: usize = 10;

/// A world in which a fault happens.
pub struct World {
    /// The hosts, all with the same configuration.
    pub hosts: Vec<Host>,
    /// Decides what the seed decides.
    pub random: Random,
    /// How much is done.
    pub plan: Plan,
    /// What a case has to tell beyond what is counted for all.
    pub notes: Vec<String>,
    load: Option<Load>,
    watch: Watch,
    mended: Option<Instant>,
    source: Topic,
    sink: Topic,
    dead_letters: Topic,
    kind: fn(&Receipt) -> Kind,
    /// What the scene keeps; it outlives the hosts.
    _kept: Vec<Box<dyn Any>>,
}

impl World {
    pub(super) fn start(scene: Scene, plan: Plan, random: Random) -> Result<Self> {
        let configuration = scene.configuration();
        let mut hosts = Vec::new();
        for _ in 0..scene.hosts {
            let mut host = Host::prepare(&configuration)?;
            scene.environment.iter().for_each(|(name, value)| host.set_variable(name, value.clone()));
            host.resume()?;
            hosts.push(host);
        }
        let own = Endpoint::Embedded(hosts.first().context("a world has a host")?.url());
        let (source, sink) = (scene.source.unwrap_or_else(|| own.clone()), scene.sink.unwrap_or(own));
        let topic = |at: &Endpoint, name: &str| {
            let name = format!("{name}{}", scene.tag);
            Topic { at: at.clone(), name, partitions: scene.partitions }
        };
        let (source, sink, dead_letters) = (topic(&source, "in"), topic(&sink, "out"), topic(&sink, "dead"));
        let senders = (0..PRODUCERS).map(|_| source.sender(scene.kind)).collect();
        Ok(Self {
            load: Some(Load::at_rate(senders, KEYS, BATCH, plan.events_per_second)),
            watch: Watch::start(vec![sink.reader(), dead_letters.reader()]),
            mended: None,
            notes: Vec::new(),
            kind: scene.kind,
            _kept: scene.kept,
            hosts,
            random,
            plan,
            source,
            sink,
            dead_letters,
        })
    }

    /// How often a fault is repeated that is over in a moment.
    pub fn rounds(&self) -> usize {
        (self.plan.events / 400).clamp(3, 25)
    }

    /// How many events were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.load.as_ref().map_or(0, Load::acknowledged)
    }

    /// Waits until so many more events were acknowledged.
    ///
    /// # Errors
    /// If they are not within patience.
    pub fn let_pass(&self, events: usize) -> Result<()> {
        let load = self.load.as_ref().context("the load has ended")?;
        // Brokers may be slower than the rate.
        let patience = PATIENCE + Duration::from_secs(4 * (events / self.plan.events_per_second) as u64);
        ensure!(load.wait_for_more(events, patience), "{events} more events are not acknowledged within {patience:?}");
        Ok(())
    }

    /// Waits for a time that the seed decides, within this range of milliseconds.
    pub fn wait(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(self.random.millis(millis));
    }

    /// Waits until something new is in the sink.
    ///
    /// # Errors
    /// If there is not within patience.
    pub fn wait_for_output(&self) -> Result<()> {
        let (before, begun) = (self.watch.number(), Instant::now());
        while self.watch.number() == before {
            ensure!(begun.elapsed() < PATIENCE, "nothing new arrives in the sink");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The fault is over now. Without a word it is once it returns.
    pub fn mended(&mut self) {
        self.mended = Some(Instant::now());
    }

    /// The host of a world that has one.
    ///
    /// # Errors
    /// If there is none.
    pub fn host(&mut self) -> Result<&mut Host> {
        self.hosts.first_mut().context("a world has a host")
    }

    /// How often lanes failed and were opened again, on the hosts that run, since these were started.
    ///
    /// # Errors
    /// If one of them does not answer.
    pub fn retries(&self) -> Result<usize> {
        self.counted("synapse_lane_retries_total")
    }

    pub(super) fn mended_at(&self) -> Instant {
        self.mended.unwrap_or_else(Instant::now)
    }

    pub(super) fn stop_load(&mut self) -> Sent {
        self.load.take().map(Load::stop).unwrap_or_default()
    }

    pub(super) fn arrivals(&self) -> &Watch {
        &self.watch
    }

    pub(super) fn kind(&self) -> fn(&Receipt) -> Kind {
        self.kind
    }

    /// What the pipeline reads.
    pub fn source(&self) -> &Topic {
        &self.source
    }

    /// What it writes.
    pub fn sink(&self) -> &Topic {
        &self.sink
    }

    /// What went wrong.
    pub fn dead_letters(&self) -> &Topic {
        &self.dead_letters
    }

    /// How many events the hosts counted as trimmed before they were read.
    pub(super) fn trimmed(&self) -> Result<usize> {
        self.counted("synapse_events_lost_to_trim_total")
    }

    fn counted(&self, metric: &str) -> Result<usize> {
        let running = self.hosts.iter().filter(|host| host.is_running());
        Ok(running.map(|host| host.metric(metric, "")).sum::<Result<f64>>()? as usize)
    }

    /// Ends the hosts the way operators do: each must drain.
    pub(super) fn end(&mut self) -> Result<()> {
        for host in self.hosts.iter_mut().filter(|host| host.is_running()) {
            let code = host.terminate()?;
            ensure!(code == 0, "a host ended with exit code {code} on SIGTERM");
        }
        Ok(())
    }

    pub(super) fn log_tails(&self) -> String {
        self.hosts.iter().map(Host::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Keeps the logs of the hosts, and what they tell of their pipeline, beside what was built.
    pub(super) fn keep_logs(&self, name: &str) -> Result<()> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), Into::into);
        let kept = target.join("chaos");
        std::fs::create_dir_all(&kept)?;
        for (number, host) in self.hosts.iter().enumerate() {
            std::fs::write(kept.join(format!("{name}-host-{number}.log")), host.log())?;
            // One that does not answer has nothing to tell.
            let told = ["/v1/pipelines", "/metrics"].map(|path| host.get(path).map_or(String::new(), |(_, body)| body));
            std::fs::write(kept.join(format!("{name}-host-{number}.txt")), told.join("\n"))?;
        }
        Ok(())
    }
}
