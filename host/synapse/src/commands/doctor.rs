//! `synapse doctor`: what on this machine, or at the configured brokers, would keep a host or a plugin author from
//! working, with the remedy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;
use synapse_brokers::embedded::EmbeddedLog;

use crate::brokers;
use crate::client::Output;
use crate::config::{self, HostSpec};

/// Free space below which the embedded log is in danger, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// One look at one thing.
struct Finding {
    what: String,
    /// What was found, or what is wrong and what to do.
    result: Result<String, String>,
}

/// Looks at everything and prints what it found.
///
/// # Errors
/// If something is wrong.
pub async fn run(file: &Path, out: &mut Output) -> anyhow::Result<()> {
    let mut findings = vec![cargo(), wasm_target()];
    if file.exists() {
        match config::load(file) {
            Ok(spec) => {
                let count = spec.pipelines.len();
                findings.push(finding("configuration", Ok(format!("{} with {count} pipelines", file.display()))));
                findings.push(finding("listening address", listens(&spec)));
                findings.push(finding("data directory", data(&spec)));
                findings.extend(all_brokers(&spec).await);
            }
            Err(error) => findings.push(finding("configuration", Err(error.to_string()))),
        }
    } else {
        let none = format!("there is no {}; give --config FILE to look at its brokers, too", file.display());
        findings.push(finding("configuration", Ok(none)));
    }
    let wrong = findings.iter().filter(|finding| finding.result.is_err()).count();
    for Finding { what, result } in findings {
        let (sign, text) = match &result {
            Ok(text) => ("ok   ", text),
            Err(text) => ("WRONG", text),
        };
        if out.is_json() {
            out.object(&serde_json::json!({ "what": what, "ok": result.is_ok(), "found": text }))?;
        } else {
            out.line(format!("{sign}  {what}: {text}"))?;
        }
    }
    if wrong > 0 {
        bail!("{wrong} of these need attention");
    }
    Ok(())
}

fn finding(what: &str, result: Result<String, String>) -> Finding {
    Finding { what: what.to_owned(), result }
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn cargo() -> Finding {
    let remedy = "not found; plugins written in Rust need it: install it by rustup, https://rustup.rs".to_owned();
    finding("cargo", output("cargo", &["--version"]).ok_or(remedy))
}

fn wasm_target() -> Finding {
    let target = crate::plugin::build::TARGET;
    let installed = output("rustc", &["--print", "target-libdir", "--target", target])
        .filter(|dir| Path::new(dir).read_dir().is_ok_and(|mut files| files.next().is_some()));
    let remedy = format!("not installed; run `rustup target add {target}`");
    finding("target for plugins", installed.map(|_| format!("{target} is installed")).ok_or(remedy))
}

fn listens(spec: &HostSpec) -> Result<String, String> {
    match std::net::TcpListener::bind(spec.listen) {
        Ok(_) => Ok(format!("{} is free", spec.listen)),
        Err(_) if host_answers(spec.listen) => Ok(format!("a host is at work on {}", spec.listen)),
        Err(error) => Err(format!("{}: {error}; if that is not a host of yours, change `server.listen`", spec.listen)),
    }
}

/// Whether what listens there is a host.
fn host_answers(address: SocketAddr) -> bool {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 64];
        let read = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    asked().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn data(spec: &HostSpec) -> Result<String, String> {
    let existing = spec.data.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).map_err(|error| format!("{}: {error}", existing.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let place = spec.data.display();
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        return Err(format!("{place} cannot be written; change its owner or `server.data`"));
    }
    if free < FREE_BYTES_MIN {
        return Err(format!(
            "{place} has only {} MiB free; the embedded log refuses writes when a disk fills up",
            free >> 20
        ));
    }
    let free = format!("{place}, {} GiB free", free >> 30);
    match EmbeddedLog::holder(brokers::embedded_log(&spec.data)) {
        None => Ok(free),
        Some(holder) if host_answers(spec.listen) => Ok(format!("{free}, in use by {holder}")),
        Some(holder) => {
            Err(format!("{place} is in use by {holder}; stop that, or give this host another `server.data`"))
        }
    }
}

async fn all_brokers(spec: &HostSpec) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, broker) in &spec.brokers {
        // The embedded log belongs to one process, perhaps to a host at work; the data directory was looked at above.
        if matches!(broker, config::BrokerSpec::Embedded) {
            continue;
        }
        let looked = match brokers::open(name, broker, &spec.data, "doctor").await {
            Ok(broker) => broker.health().await.map(|()| "answers".to_owned()).map_err(|error| error.message),
            Err(error) => Err(format!("{error:#}")),
        };
        findings.push(finding(&format!("broker `{name}`"), looked));
    }
    findings
}
