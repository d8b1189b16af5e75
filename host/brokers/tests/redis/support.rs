//! A real redis-server for one test: ready by its own word, killed by its own process id, its log shown when the test
//! fails.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use synapse_brokers::redis::{RedisBroker, RedisOptions};
use synapse_core::BrokerError;

const SERVER: &str = "/usr/bin/redis-server";
const CLI: &str = "/usr/bin/redis-cli";
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

    fn start_on(port: u16, arguments: &[&str]) -> Option<Self> {
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
