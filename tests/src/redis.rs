//! A real redis-server on a Unix socket and a port of its own.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::host::free_address;

/// A server in a directory of its own. Killed when dropped.
pub struct RedisServer {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts one with append-only persistence, fsynced for every write.
    ///
    /// # Errors
    /// If there is no redis-server on the machine, or it does not get ready.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("redis-").tempdir_in("/tmp")?;
        let address = free_address()?;
        let port = address.rsplit(':').next().context("no port")?.parse()?;
        let mut server = Self { dir, port, child: None };
        server.resume()?;
        Ok(server)
    }

    /// Starts it, again if it was started before, on what it kept.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn resume(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("redis.log"))?;
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--unixsocket", "redis.sock", "--daemonize", "no"])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("redis-server cannot be started; tests/run.sh installs it")?;
        self.child = Some(child);
        let started = Instant::now();
        loop {
            if let Ok(mut connection) = self.client()?.get_connection()
                && redis::cmd("PING").query::<String>(&mut connection).is_ok()
            {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("redis-server ended with {status}\n{}", self.log());
            }
            ensure!(started.elapsed() < PATIENCE, "redis-server is not ready\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("redis-server was not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Its address over TCP.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// A client of the redis crate, apart from the host's.
    ///
    /// # Errors
    /// Never for these addresses.
    pub fn client(&self) -> Result<redis::Client> {
        Ok(redis::Client::open(self.url())?)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- redis-server's log ---\n{}", self.log());
        }
    }
}
