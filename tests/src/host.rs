//! The real binary, started on a configuration of the test's own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::PATIENCE;

/// The binary, built once for each run of the tests, with the profile that the tests have.
///
/// # Panics
/// If it does not build.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build_binary().expect("the synapse binary builds"))
}

fn build_binary() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--bin", "synapse", "--message-format=json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build.current_dir(workspace()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo build ended with {}", output.status);
    let stdout = String::from_utf8(output.stdout)?;
    let executable = stdout.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.into_iter().next_back().context("cargo named no executable")
}

/// The checkout.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout")
}

/// A host in a directory of its own, which is removed with it. Killed when dropped.
pub struct Host {
    dir: TempDir,
    address: String,
    environment: Vec<(String, OsString)>,
    child: Option<Child>,
}

impl Host {
    /// Writes `synapse.toml` with a listening address and these lines, and starts the host.
    ///
    /// # Errors
    /// If it does not get ready; with the end of its log.
    pub fn start(config: &str) -> Result<Self> {
        let mut host = Self::prepare(config)?;
        host.resume()?;
        Ok(host)
    }

    /// As [`Host::start`], but waits only until it answers: it may wait for brokers that are away.
    ///
    /// # Errors
    /// If it does not answer in time; with the end of its log.
    pub fn start_unready(config: &str) -> Result<Self> {
        let mut host = Self::prepare(config)?;
        host.launch("/healthz")?;
        Ok(host)
    }

    /// As [`Host::start`], but does not start it yet.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn prepare(config: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("synapse-").tempdir()?;
        let host = Self { address: free_address()?, dir, environment: Vec::new(), child: None };
        host.configure(config)?;
        Ok(host)
    }

    /// Sets a variable of its environment from the next start on.
    pub fn set_variable(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Replaces the lines behind `[server]`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, config: &str) -> Result<()> {
        let text = format!("[server]\nlisten = \"{}\"\n\n{config}", self.address);
        let new = self.path("synapse.toml.new");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, self.path("synapse.toml"))?)
    }

    /// A path in the host's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where its HTTP API is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts it, again if it was started before, and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or does not get ready in time; with the end of its log.
    pub fn resume(&mut self) -> Result<()> {
        self.launch("/readyz")
    }

    /// As [`Host::resume`], but waits only until it answers.
    ///
    /// # Errors
    /// If it does not.
    pub fn resume_unready(&mut self) -> Result<()> {
        self.launch("/healthz")
    }

    fn launch(&mut self, until: &str) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.path("host.log"))?;
        let child = Command::new(binary())
            .args(["run", "--config", "synapse.toml"])
            .current_dir(self.dir.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        self.wait_until(until).with_context(|| self.log_tail())
    }

    fn wait_until(&mut self, path: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("the host ended with {status}");
            }
            if matches!(self.get(path), Ok((200, _))) {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "the host is not ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the host was not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal, such as `STOP` and `CONT`.
    ///
    /// # Errors
    /// If it was not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the host was not running")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// How much memory it has resident, in bytes.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.child.as_ref().context("the host does not run")?.id();
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: u64 = statm.split(' ').nth(1).context("no second number in statm")?.parse()?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    /// Whether it was started and not stopped since.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it was not running or does not end in time.
    pub fn wait_for_end(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            let child = self.child.as_mut().context("the host was not running")?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            ensure!(started.elapsed() < PATIENCE, "the host does not end by itself\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and waits for the end. Answers with the exit code.
    ///
    /// # Errors
    /// If it was not running or does not end in time.
    pub fn terminate(&mut self) -> Result<i32> {
        let mut child = self.child.take().context("the host was not running")?;
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM)?;
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return status.code().context("ended by a signal");
            }
            if started.elapsed() > PATIENCE {
                child.kill()?;
                bail!("the host does not end on SIGTERM\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("--- the host's log ends with ---\n{last}")
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("host.log")).unwrap_or_default()
    }

    /// Runs a command of the command line against this host.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn synapse(&self, args: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.dir.path()).env("SYNAPSE_URL", self.url()).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// A GET; status and body.
    ///
    /// # Errors
    /// If nothing answers.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(&self.url(), path)
    }

    /// A GET of JSON.
    ///
    /// # Errors
    /// If nothing answers, or no 200 with JSON.
    pub fn get_json(&self, path: &str) -> Result<serde_json::Value> {
        let (status, body) = self.get(path)?;
        ensure!(status == 200, "GET {path}: {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Publishes NDJSON and answers with the status: 202 means durable.
    ///
    /// # Errors
    /// If nothing answers.
    pub fn publish(&self, topic: &str, ndjson: &str) -> Result<(u16, String)> {
        publish(&self.url(), topic, ndjson)
    }

    /// Every event of a topic, from the first.
    ///
    /// # Errors
    /// If nothing answers, or not with events.
    pub fn history(&self, topic: &str) -> Result<Vec<serde_json::Value>> {
        let mut events = Vec::new();
        let mut from = "earliest".to_owned();
        loop {
            let page = self.get_json(&format!("/v1/topics/{topic}/events?from={from}&limit=10000"))?;
            let page_events = page["events"].as_array().context("no events in the answer")?;
            events.extend(page_events.iter().cloned());
            match page["next"].as_str() {
                Some(next) if !page_events.is_empty() => from = next.to_owned(),
                _ => return Ok(events),
            }
        }
    }

    /// The value of a metric, summed over the series whose labels contain `labels`.
    ///
    /// # Errors
    /// If nothing answers.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let (_, text) = self.get("/metrics")?;
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(labels)
        });
        Ok(series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until `test` answers with something.
    ///
    /// # Errors
    /// If it does not in time; with the end of the log.
    pub fn wait_for<T>(&self, what: &str, mut test: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(found) = test(self)? {
                return Ok(found);
            }
            if started.elapsed() > PATIENCE {
                bail!("{what} did not come\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.log_tail());
        }
    }
}

/// A GET of the host at `url`; status and body.
///
/// # Errors
/// If nothing answers.
pub fn get(url: &str, path: &str) -> Result<(u16, String)> {
    let address = url.trim_start_matches("http://");
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"), b"")
}

/// Publishes NDJSON to the host at `url` and answers with the status: 202 means durable.
///
/// # Errors
/// If nothing answers.
pub fn publish(url: &str, topic: &str, ndjson: &str) -> Result<(u16, String)> {
    let address = url.trim_start_matches("http://");
    let head = format!(
        "POST /v1/topics/{topic}/events HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n",
        ndjson.len()
    );
    request(address, &head, ndjson.as_bytes())
}

/// An address of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// If there is none.
pub fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// One plain HTTP/1.1 exchange on a connection of its own.
fn request(address: &str, head: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "the answer's head is cut off");
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
        chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
    }
    let body = if chunked { read_chunks(&mut reader)? } else { read_body(&mut reader, length)? };
    Ok((status, String::from_utf8(body)?))
}

fn read_body(reader: &mut impl Read, length: Option<usize>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    ensure!(length.is_none_or(|length| length == body.len()), "the answer's body is cut off");
    Ok(body)
}

fn read_chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).context("a chunk's size")?;
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_exact(&mut [0; 2])?;
        if size == 0 {
            return Ok(body);
        }
    }
}
