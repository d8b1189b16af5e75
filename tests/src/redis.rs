//! A real redis-server on a Unix socket and a port of its own.

mod cluster;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::host::free_address;

pub use cluster::RedisCluster;

/// How a server is started.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// When it syncs its append-only file: `always`, `everysec` or `no`.
    pub appendfsync: &'static str,
    /// The folder that gets its directory, which must have a short path because of the socket.
    pub within: PathBuf,
    /// The address it binds to.
    pub address: IpAddr,
    /// What the program is started through, such as `ip netns exec NAME`, which must replace itself by it.
    pub through: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(String, OsString)>,
    /// Further options.
    pub options: Vec<String>,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self {
            appendfsync: "always",
            within: "/tmp".into(),
            address: Ipv4Addr::LOCALHOST.into(),
            through: Vec::new(),
            environment: Vec::new(),
            options: Vec::new(),
        }
    }
}

/// A server in a directory of its own. Killed when dropped.
pub struct RedisServer {
    dir: TempDir,
    port: u16,
    settings: RedisSettings,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts one with append-only persistence, fsynced for every write.
    ///
    /// # Errors
    /// If there is no redis-server on the machine, or it does not get ready.
    pub fn start() -> Result<Self> {
        Self::start_with(RedisSettings::default())
    }

    /// Starts one with append-only persistence and these settings.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn start_with(settings: RedisSettings) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("redis-").tempdir_in(&settings.within)?;
        let address = free_address()?;
        let port = address.rsplit(':').next().context("no port")?.parse()?;
        let mut server = Self { dir, port, settings, child: None };
        server.resume()?;
        Ok(server)
    }

    /// Starts it, again if it was started before, on what it kept.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub fn resume(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("redis.log"))?;
        let settings = &self.settings;
        let mut words = settings.through.iter().cloned().chain(["redis-server".into()]);
        let child = Command::new(words.next().context("no program")?)
            .args(words)
            .args(["--bind", &settings.address.to_string(), "--port", &self.port.to_string()])
            .args(["--protected-mode", "no", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", settings.appendfsync, "--unixsocket", "redis.sock", "--daemonize", "no"])
            .args(&settings.options)
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
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

    /// Whether it runs.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.as_mut().map(Child::try_wait).transpose()?.is_some_and(|status| status.is_none()))
    }

    /// Its address over TCP.
    pub fn url(&self) -> String {
        format!("redis://{}:{}", self.settings.address, self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// A client of the redis crate, apart from the host's and from faults of the network.
    ///
    /// # Errors
    /// Never for these addresses.
    pub fn client(&self) -> Result<redis::Client> {
        Ok(redis::Client::open(format!("unix://{}", self.socket().display()))?)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// If it is not answered, or with an error.
    pub fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let mut connection = self.client()?.get_connection()?;
        let (name, arguments) = words.split_first().context("no command")?;
        redis::cmd(name).arg(arguments).query(&mut connection).with_context(|| format!("Redis answered to {words:?}"))
    }

    /// Its log.
    pub fn log(&self) -> String {
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
