//! What short tests do not show, on a Kafka of its own: how much more two hosts get done than one, and whether a host at
//! full speed keeps its memory.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use synapse_test_servers::kafka::Kafka;
use synapse_tests::host::Host;
use synapse_tests::plugins::component;

/// Partitions of every topic.
const PARTITIONS: u32 = 4;
/// Bytes of an event's data.
const DATA_BYTES: usize = 100;
/// Until so much of the work is done, hosts may still be starting; a share of the events.
const WARM: f64 = 0.2;
/// How far the producer may be ahead of the pipeline, in events.
const AHEAD_MAX: usize = 200_000;
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Parser)]
#[command(name = "endure")]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Events a second of one host, of one again, and of two, from one topic to another. Each host has one processor core.
    Hosts {
        /// Events that the plugin works at for some ten microseconds each, instead of ones that it only looks at.
        #[arg(long)]
        work: bool,
        /// How many events each time.
        #[arg(long, default_value_t = 1_000_000)]
        events: usize,
        /// How often.
        #[arg(long, default_value = "3")]
        rounds: NonZeroUsize,
    },
    /// The memory of one host while events come as fast as it takes them.
    Soak {
        /// For how many seconds.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
}

fn main() -> Result<()> {
    let options = Options::parse();
    let kafka = Kafka::start()?;
    match options.what {
        What::Hosts { work, events, rounds } => {
            let load = if work { Load::Work } else { Load::Look };
            hosts(&kafka, load, events, rounds.get())
        }
        What::Soak { seconds } => soak(&kafka, Duration::from_secs(seconds)),
    }
}

/// What is to be done with each event.
#[derive(Clone, Copy)]
enum Load {
    Look,
    Work,
}

impl Load {
    fn event_type(self) -> &'static str {
        match self {
            Self::Look => "load",
            Self::Work => "work",
        }
    }

    fn stage(self) -> String {
        match self {
            Self::Look => format!("plugin = {:?}\nconfig = {{ type = \"load\" }}\n", component("plugins/filter-match")),
            Self::Work => format!("plugin = {:?}\n", component("tests/plugins/picky")),
        }
    }
}

/// `kept` says how much of the source is.
fn configuration(kafka: &Kafka, load: Load, pipeline: &str, to: &str, kept: &str) -> String {
    let (bootstrap, stage) = (kafka.bootstrap(), load.stage());
    format!(
        "[brokers.bus]\nkind = \"kafka\"\nbootstrap = {bootstrap:?}\n\
         [topics.\"bus/in\"]\npartitions = {PARTITIONS}\n{kept}\
         [topics.\"bus/{to}\"]\npartitions = {PARTITIONS}\nretention = {{ size = \"64 MiB\" }}\n\
         [[pipelines]]\nname = {pipeline:?}\nfrom = \"bus/in\"\nto = \"bus/{to}\"\n\
         [[pipelines.stages]]\nname = \"filter\"\n{stage}"
    )
}

fn hosts(kafka: &Kafka, load: Load, events: usize, rounds: usize) -> Result<()> {
    // Makes the topics.
    drop(Host::start(&configuration(kafka, load, "none", "none", ""))?);
    fill(kafka, load, events, || 0, &AtomicBool::new(false))?;
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..rounds {
        for (kind, hosts) in [1, 1, 2].into_iter().enumerate() {
            let name = format!("run-{round}-{kind}");
            rates[kind].push(rate(&configuration(kafka, load, &name, &name, ""), hosts, events)?);
        }
    }
    let [one, again, two] = rates.map(median);
    let mut out = std::io::stdout().lock();
    writeln!(out, "one host         {one:>9.0} events/s")?;
    writeln!(out, "one host again   {again:>9.0} events/s   {:.2} of one (A/A)", again / one)?;
    writeln!(out, "two hosts        {two:>9.0} events/s   {:.2} of one", two / one)?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Events a second of so many hosts together, once all are at work.
fn rate(configuration: &str, hosts: usize, events: usize) -> Result<f64> {
    let prepared = (0..hosts).map(|_| Host::prepare(configuration)).collect::<Result<Vec<_>>>()?;
    let hosts = std::thread::scope(|scope| {
        let start = |(core, mut host): (usize, Host)| {
            scope.spawn(move || {
                bind_to(core)?;
                host.resume()?;
                Ok(host)
            })
        };
        let starting: Vec<_> = prepared.into_iter().enumerate().map(start).collect();
        starting.into_iter().map(|host| host.join().expect("no panic")).collect::<Result<Vec<_>>>()
    })?;
    let (begun, mut warm) = (Instant::now(), None);
    loop {
        let done = hosts.iter().map(committed).sum::<Result<usize>>()?;
        if done as f64 >= WARM * events as f64 {
            let (since, before) = *warm.get_or_insert((Instant::now(), done));
            if done >= events {
                ensure!(done > before, "it was over before it could be measured; use more events");
                return Ok((done - before) as f64 / since.elapsed().as_secs_f64());
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "only {done} of {events} events were done in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Binds this thread, and the processes that it starts, to one of the processor cores that it may use.
fn bind_to(which: usize) -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).cycle();
    let mut cores = CpuSet::new();
    cores.set(usable.nth(which).context("no core may be used")?);
    Ok(sched_setaffinity(None, &cores)?)
}

fn committed(host: &Host) -> Result<usize> {
    Ok(host.metric("synapse_events_committed_total", "")? as usize)
}

fn soak(kafka: &Kafka, length: Duration) -> Result<()> {
    let every = (length / 20).max(Duration::from_secs(1));
    let kept = "retention = { size = \"256 MiB\" }\n";
    let host = Host::start(&configuration(kafka, Load::Look, "soak", "out", kept))?;
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:>8} {:>12} {:>12}", "seconds", "events/s", "resident MiB")?;
    std::thread::scope(|scope| {
        let filling = scope.spawn(|| fill(kafka, Load::Look, usize::MAX, || done.load(Ordering::Relaxed), &stop));
        let (begun, mut sampled, mut before) = (Instant::now(), Instant::now(), 0);
        let mut sample = || -> Result<()> {
            while begun.elapsed() < length && !filling.is_finished() {
                std::thread::sleep(Duration::from_millis(50));
                done.store(committed(&host)?, Ordering::Relaxed);
                if sampled.elapsed() >= every {
                    let now = done.load(Ordering::Relaxed);
                    let rate = (now - before) as f64 / sampled.elapsed().as_secs_f64();
                    let resident = host.resident_bytes()? as f64 / f64::from(1 << 20);
                    writeln!(out, "{:>8} {rate:>12.0} {resident:>12.1}", begun.elapsed().as_secs())?;
                    (sampled, before) = (Instant::now(), now);
                }
            }
            Ok(())
        };
        let sampled = sample();
        stop.store(true, Ordering::Relaxed);
        filling.join().expect("no panic")?;
        sampled
    })
}

/// Sends so many events, or until it is stopped, and no further ahead than is allowed of what is done.
fn fill(kafka: &Kafka, load: Load, events: usize, done: impl Fn() -> usize, stop: &AtomicBool) -> Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .create()?;
    let data = [b'x'; DATA_BYTES];
    for number in 0..events {
        // Looked at now and then: where the load is unbounded.
        while number % 1000 == 0 && events == usize::MAX && number > done() + AHEAD_MAX {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (id, partition) = (number.to_string(), i32::try_from(number % PARTITIONS as usize)?);
        let attributes =
            [("ce_specversion", "1.0"), ("ce_id", &id), ("ce_source", "/load"), ("ce_type", load.event_type())];
        let header = |headers: OwnedHeaders, (key, value)| headers.insert(Header { key, value: Some(value) });
        let headers = attributes.into_iter().fold(OwnedHeaders::new(), header);
        let mut record = BaseRecord::to("in").partition(partition).key(&id).payload(&data[..]).headers(headers);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    producer.poll(Duration::from_millis(5));
                }
                Err((error, _)) => return Err(error).context("send an event"),
            }
        }
        producer.poll(Duration::ZERO);
    }
    Ok(producer.flush(PATIENCE)?)
}
