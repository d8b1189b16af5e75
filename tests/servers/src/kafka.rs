//! Apache Kafka in KRaft mode: one broker for most tests, several for those about faults.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{READY_WITHIN, free_port};

/// The version in `tests/servers/kafka/pom.xml`.
const VERSION: &str = "4.1.1";
/// What a broker says once it serves.
const READY: &str = "Kafka Server started";
/// One broker's heap is small and its code compiled quickly: it lives for seconds.
const JAVA: [&str; 4] = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"];
/// Starts java, says its process id, and kills it once nobody holds the other end of its input any more: so a server
/// never outlives the process of its tests, however that ends.
const KEEPER: &str =
    r#"log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!; read -r _; kill -9 $! 2>/dev/null; wait"#;

/// A cluster; its servers are killed when it is dropped.
pub struct Kafka {
    dir: TempDir,
    nodes: Vec<Node>,
}

struct Node {
    /// For clients.
    port: u16,
    /// For controllers among each other.
    controller: u16,
    running: Option<Running>,
}

struct Running {
    java: Pid,
    keeper: Child,
}

impl Kafka {
    /// One broker that all tests of this process share; they choose topics of their own.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Kafka::start().expect("Kafka starts"))
    }

    /// One broker.
    ///
    /// # Errors
    /// If its jars or java are missing, or it does not get ready.
    pub fn start() -> Result<Self> {
        Self::start_with(1, "")
    }

    /// A cluster of this many brokers, with further lines for `server.properties`, in which `{port}` and `{controller}`
    /// stand for the ports of each broker.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn start_with(brokers: usize, properties: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("kafka-").tempdir()?;
        let node = || Ok(Node { port: free_port()?, controller: free_port()?, running: None });
        let nodes = (0..brokers).map(|_| node()).collect::<Result<Vec<_>>>()?;
        let mut kafka = Self { dir, nodes };
        for index in 0..brokers {
            kafka.format(index, properties)?;
        }
        for index in 0..brokers {
            kafka.launch(index)?;
        }
        for index in 0..brokers {
            kafka.wait_until_ready(index)?;
        }
        Ok(kafka)
    }

    /// For `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect::<Vec<_>>().join(",")
    }

    /// Where a broker listens for clients.
    pub fn port(&self, broker: usize) -> u16 {
        self.nodes[broker].port
    }

    /// The process of a broker, if it runs.
    pub fn pid(&self, broker: usize) -> Option<Pid> {
        self.nodes[broker].running.as_ref().map(|running| running.java)
    }

    /// Sends a signal to a broker: `KILL`, `STOP`, `CONT`, or `TERM` for a clean end.
    ///
    /// # Errors
    /// If it does not run.
    pub fn signal(&self, broker: usize, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid(broker).context("the broker does not run")?, signal)?)
    }

    /// kill -9.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill(&mut self, broker: usize) -> Result<()> {
        self.signal(broker, Signal::KILL)?;
        self.reap(broker)
    }

    /// A clean shutdown.
    ///
    /// # Errors
    /// If it was not running.
    pub fn stop(&mut self, broker: usize) -> Result<()> {
        self.signal(broker, Signal::TERM)?;
        let begun = Instant::now();
        let pid = self.pid(broker).context("the broker does not run")?.as_raw_nonzero();
        // The keeper has not waited for it, so it stays there as a zombie.
        while !std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z ")) {
            ensure!(begun.elapsed() < READY_WITHIN, "the broker does not end\n{}", self.log(broker));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.reap(broker)
    }

    /// Starts a broker again on what it kept.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn resume(&mut self, broker: usize) -> Result<()> {
        self.launch(broker)?;
        self.wait_until_ready(broker)
    }

    /// A command of Kafka's own tools, such as `org.apache.kafka.tools.consumer.group.ConsumerGroupCommand`; its output.
    ///
    /// # Errors
    /// If it fails.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let output = java(class).args(arguments).current_dir(self.dir.path()).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{class} {arguments:?}: {out}\n{err}");
        Ok(out.into_owned())
    }

    fn home(&self, broker: usize) -> PathBuf {
        self.dir.path().join(format!("broker-{broker}"))
    }

    /// What a broker has logged since it was last started.
    pub fn log(&self, broker: usize) -> String {
        std::fs::read_to_string(self.home(broker).join("log")).unwrap_or_default()
    }

    fn format(&self, broker: usize, further: &str) -> Result<()> {
        let home = self.home(broker);
        std::fs::create_dir_all(&home)?;
        let Node { port, controller, .. } = self.nodes[broker];
        let further = further.replace("{port}", &port.to_string()).replace("{controller}", &controller.to_string());
        let voters = self.nodes.iter().zip(1..).map(|(node, id)| format!("{id}@127.0.0.1:{}", node.controller));
        let (replicas, id) = (self.nodes.len().min(3), broker + 1);
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id={id}\n\
             controller.quorum.voters={voters}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT\n\
             log.dirs={data}\n\
             offsets.topic.replication.factor={replicas}\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor={replicas}\n\
             transaction.state.log.min.isr={min_isr}\n\
             transaction.state.log.num.partitions=4\n\
             default.replication.factor={replicas}\n\
             min.insync.replicas={min_isr}\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             auto.create.topics.enable=false\n\
             controlled.shutdown.enable=true\n\
             {further}\n",
            voters = voters.collect::<Vec<_>>().join(","),
            data = home.join("data").display(),
            min_isr = if replicas == 3 { 2 } else { 1 },
        );
        std::fs::write(home.join("server.properties"), properties)?;
        // Any 16 bytes in base64 name a cluster.
        let cluster = "c3luYXBzZS10ZXN0cy0wMQ";
        let output = java("kafka.tools.StorageTool")
            .args(["format", "-t", cluster, "-c", "server.properties"])
            .current_dir(&home)
            .output()
            .context("java cannot be started; tests/install kafka installs it")?;
        ensure!(output.status.success(), "StorageTool: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn launch(&mut self, broker: usize) -> Result<()> {
        ensure!(self.nodes[broker].running.is_none(), "the broker runs already");
        let home = self.home(broker);
        // What an earlier start said does not count.
        std::fs::write(home.join("log"), "")?;
        let server = java("kafka.Kafka");
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper", "log"])
            .arg(server.get_program())
            .args(server.get_args())
            .arg("server.properties")
            .current_dir(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("no output")?).read_line(&mut line)?;
        let java = line.trim().parse().ok().and_then(Pid::from_raw).context("the keeper named no process")?;
        self.nodes[broker].running = Some(Running { java, keeper });
        Ok(())
    }

    fn wait_until_ready(&mut self, broker: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            let log = File::open(self.home(broker).join("log"))?;
            if BufReader::new(log).lines().map_while(Result::ok).any(|line| line.contains(READY)) {
                return Ok(());
            }
            if begun.elapsed() > READY_WITHIN {
                bail!("Kafka is not ready\n{}", self.log(broker));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn reap(&mut self, broker: usize) -> Result<()> {
        let Some(mut running) = self.nodes[broker].running.take() else { return Ok(()) };
        drop(running.keeper.stdin.take());
        running.keeper.wait()?;
        Ok(())
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        for broker in 0..self.nodes.len() {
            // It may have ended by itself.
            let _ = self.reap(broker);
            if std::thread::panicking() {
                let log = self.log(broker);
                let tail: Vec<_> = log.lines().rev().take(40).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                let _ =
                    writeln!(std::io::stderr(), "--- the log of broker {broker} ends with ---\n{}", tail.join("\n"));
            }
        }
    }
}

fn java(class: &str) -> Command {
    let mut command = Command::new("java");
    command.args(JAVA).arg("-cp").arg(jars().join("*")).arg(class);
    command
}

/// Where `tests/install kafka` puts them.
fn jars() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"), PathBuf::from);
    cache.join("synapse-tests").join(format!("kafka-{VERSION}"))
}
