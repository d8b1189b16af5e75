//! A real redis-server for one test: ready by its own word, killed by its own process id, its log shown when the test
//! fails. And what the tests say to it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use synapse_brokers::redis::{RedisBroker, RedisOptions};
use synapse_core::broker::{BatchLimit, BrokerErrorKind, LaneKey, LaneSpec, Reading};
use synapse_core::spec::{Encoding, ReadFrom, ReadMode, Start};
use synapse_core::{Broker, BrokerError, Committer, Effects, Event, Offset, Output, Source, TopicPartition, TopicPath};

const SERVER: &str = "/usr/bin/redis-server";
pub(crate) const CLI: &str = "/usr/bin/redis-cli";
/// How long a server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often a TCP port is chosen that someone else takes first.
const PORTS_MAX: usize = 8;

/// A running server.
pub(crate) struct RedisServer {
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    port: u16,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl RedisServer {
    /// On a Unix socket only.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_on(0, arguments).expect("a server on a Unix socket needs no free port")
    }

    /// On a TCP port and a Unix socket.
    pub(crate) fn start_on_tcp(arguments: &[&str]) -> Self {
        for _ in 0..PORTS_MAX {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(server) = Self::start_on(port, arguments) {
                return server;
            }
        }
        panic!("no free TCP port was found in {PORTS_MAX} tries");
    }

    pub(crate) fn start_on(port: u16, arguments: &[&str]) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("syn").tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let log = Arc::default();
        let child = spawn(dir.path(), port, &arguments, &log)?;
        Some(Self { dir, arguments, port, child, log })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("r.sock")
    }

    pub(crate) fn unix_url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn tcp_url(&self) -> String {
        assert_ne!(self.port, 0, "this server has no TCP port");
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A broker `bus` on the Unix socket.
    pub(crate) async fn broker(&self) -> RedisBroker {
        self.try_broker(|_| {}).await.unwrap()
    }

    pub(crate) async fn try_broker(&self, change: impl FnOnce(&mut RedisOptions)) -> Result<RedisBroker, BrokerError> {
        let mut options = RedisOptions { host_id: "one".to_owned(), ..RedisOptions::new(self.unix_url()) };
        change(&mut options);
        RedisBroker::connect("bus".parse().unwrap(), options).await
    }

    /// Another host's broker of the same name.
    pub(crate) async fn peer(&self, host: &str) -> RedisBroker {
        self.try_broker(|options| options.host_id = host.to_owned()).await.unwrap()
    }

    /// Runs redis-cli, as any other tool would; its answer without the last newline.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let out = Command::new(CLI).arg("-s").arg(self.socket()).args(arguments).output();
        let out = out.unwrap_or_else(|error| panic!("{CLI} is needed for this test: {error}"));
        assert!(out.status.success(), "redis-cli {arguments:?}: {out:?}");
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again on the same files.
    pub(crate) fn start_again(&mut self) {
        let child = spawn(self.dir.path(), self.port, &self.arguments, &self.log);
        self.child = child.expect("the port was ours a moment ago");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have been killed by the test.
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of redis-server:\n{}", self.log.lock().unwrap());
        }
    }
}

/// `None` if the port was taken.
fn spawn(dir: &std::path::Path, port: u16, arguments: &[String], log: &Arc<Mutex<String>>) -> Option<Child> {
    let mut child = Command::new(SERVER)
        .current_dir(dir)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--unixsocket", "r.sock"])
        .args(["--save", "", "--daemonize", "no", "--loglevel", "notice"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{SERVER} is needed for this test, and could not be started: {error}"));
    let lines = BufReader::new(child.stdout.take().unwrap());
    let (ready, told) = mpsc::channel();
    let log = Arc::clone(log);
    // Ends with the server's output.
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            if line.contains("eady to accept connections") || line.contains("is now ready to accept connections at") {
                _ = ready.send(true);
            } else if line.contains("Address already in use") {
                _ = ready.send(false);
            }
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    match told.recv_timeout(READY_WITHIN) {
        Ok(true) => Some(child),
        Ok(false) => {
            _ = child.kill();
            _ = child.wait();
            None
        }
        Err(_) => panic!("{SERVER} was not ready within {READY_WITHIN:?}"),
    }
}

/// Long enough for anything that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to see that nothing happens.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);
pub(crate) const LIMIT: BatchLimit = BatchLimit { events_max: 1000, bytes_max: 1 << 20 };

pub(crate) fn path(topic: &str) -> TopicPath {
    TopicPath { broker: "bus".parse().unwrap(), topic: topic.parse().unwrap() }
}

/// Events with these ids.
pub(crate) fn output(topic: &str, ids: std::ops::Range<usize>) -> Output {
    let events = ids.map(|id| Event {
        id: id.to_string(),
        source: "/tests".to_owned(),
        kind: "test".to_owned(),
        data: format!("data of {id}").into_bytes(),
        ..Event::default()
    });
    let events: Vec<Event> = events.collect();
    Output { topic: path(topic), encoding: Encoding::CloudEvents, events: Arc::new(events.iter().collect()) }
}

pub(crate) async fn publish(broker: &RedisBroker, topic: &str, ids: std::ops::Range<usize>) -> Vec<Offset> {
    let places = broker.publish(&output(topic, ids)).await.unwrap();
    places.into_iter().map(|(_, offset)| offset).collect()
}

/// The lane of the pipeline `pipe` on the first partition of a topic, from the beginning.
pub(crate) fn lane(topic: &str, read: ReadMode) -> LaneSpec {
    let partition = TopicPartition { topic: path(topic), partition: 0 };
    let key = LaneKey { pipeline: "pipe".parse().unwrap(), partition };
    LaneSpec { key, start: Start::Earliest, read }
}

/// Opens a lane and the source it reads from.
pub(crate) async fn open(broker: &RedisBroker, spec: &LaneSpec) -> (Box<dyn Committer>, Box<dyn Source>) {
    let lane = broker.open_lane(spec).await.unwrap();
    let source = match lane.reading {
        Reading::From(from) => broker.read(&spec.key.partition.topic.topic, 0, from).await.unwrap(),
        Reading::Own(source) => source,
    };
    (lane.committer, source)
}

/// What one poll hands out: ids and places.
pub(crate) async fn poll(source: &mut dyn Source, wait: Duration) -> (Vec<String>, Vec<Offset>, u64) {
    let batch = source.poll(LIMIT, wait).await.unwrap();
    assert_eq!((batch.undecodable.len(), batch.expired.len()), (0, 0));
    (batch.events.events().map(|event| event.id().to_owned()).collect(), batch.offsets.clone(), batch.lost_to_trim)
}

/// The next `count` events, and what was counted as lost until then.
pub(crate) async fn next(source: &mut dyn Source, count: usize) -> (Vec<String>, Vec<Offset>, u64) {
    let mut all = (Vec::new(), Vec::new(), 0);
    while all.0.len() < count {
        let (ids, offsets, lost) = poll(source, PATIENCE).await;
        assert!(!ids.is_empty() || lost > 0, "{} of {count} events came, then none for {PATIENCE:?}", all.0.len());
        all.0.extend(ids);
        all.1.extend(offsets);
        all.2 += lost;
    }
    assert_eq!(all.0.len(), count, "{:?}", all.0);
    all
}

/// The ids of everything in a topic.
pub(crate) async fn all_ids(broker: &RedisBroker, topic: &str) -> Vec<String> {
    let topic = topic.parse().unwrap();
    let kept = broker.topic(&topic).await.unwrap().unwrap().partitions[0].events;
    let mut source = broker.read(&topic, 0, ReadFrom::Earliest).await.unwrap();
    next(&mut *source, usize::try_from(kept).unwrap()).await.0
}

pub(crate) fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|id| id.to_string()).collect()
}

pub(crate) fn covering(offsets: &[Offset], outputs: Vec<Output>) -> Effects {
    Effects { covered: offsets.to_vec(), outputs, boundary: None }
}

/// Checks how something failed; its sentence names `about`.
pub(crate) fn assert_kind<T>(result: Result<T, BrokerError>, kind: BrokerErrorKind, about: &str) {
    match result {
        Ok(_) => panic!("should have failed as {kind:?}: {about}"),
        Err(error) => {
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains(about), "`{error}` should name `{about}`");
        }
    }
}
