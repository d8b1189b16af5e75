//! The command line: which commands there are, and how they end.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. An error is told in sentences, never as a backtrace.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::client::output::is_closed;
use crate::client::{self, Output};
use crate::commands::{bench, check, doctor, plugin};
use crate::{config, host};

/// An event bus programmed with WebAssembly.
#[derive(Parser)]
#[command(name = "synapse", version, max_term_width = 100)]
pub struct Cli {
    /// Print JSON, one object a line; for `run`, log in JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration.
    #[arg(long, default_value = "synapse.toml", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run a host until SIGTERM or Ctrl-C; then drain.
    Run(ConfigFile),
    /// Check a configuration and its plugins; say what each pipeline guarantees, and why.
    Check(ConfigFile),
    /// Look at this machine and the configured brokers for what would keep a host from working.
    Doctor(ConfigFile),
    Publish(client::publish::Args),
    /// Follow topics.
    Tail(client::tail::Args),
    /// Look at topics.
    Topic(client::topic::Args),
    /// Look at pipelines.
    Pipeline(client::pipeline::Args),
    /// Make, build and test plugins.
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Measure this machine: stages, pipelines and brokers, as ratios to baselines in the same run.
    Bench(bench::Args),
}

/// How long calls that block may hold the end of the process up.
const BLOCKED_MAX: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
/// Whatever keeps it from being done; see [`report`].
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let mut out = Output::stdio(cli.json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("synapse-io").build()?;
    let done = match cli.command {
        Command::Run(file) => runtime.block_on(host::run(&file.config)),
        Command::Check(file) => runtime.block_on(check::run(&file.config, &mut out)),
        Command::Doctor(file) => runtime.block_on(doctor::run(&file.config, &mut out)),
        Command::Publish(args) => {
            let client = args.client()?;
            runtime.block_on(client::publish::run(args, &client, &mut out))
        }
        Command::Tail(args) => {
            let client = args.connection.client()?;
            runtime.block_on(client::tail::run(args, &client, &mut out))
        }
        Command::Topic(args) => {
            let client = args.connection.client()?;
            runtime.block_on(client::topic::run(args, &client, &mut out))
        }
        Command::Pipeline(args) => {
            let client = args.connection.client()?;
            runtime.block_on(client::pipeline::run(args, &client, &mut out))
        }
        Command::Plugin(command) => runtime.block_on(plugin::run(command, &mut out)),
        Command::Bench(args) => bench::run(&args, &runtime, &mut out),
    };
    // Whoever waits for a broker that is away has nothing to do any more.
    runtime.shutdown_timeout(BLOCKED_MAX);
    // What was written belongs out, also before an error is told.
    match done.and(out.flush().map_err(Into::into)) {
        Err(error) if is_closed(&error) => Ok(()),
        done => done,
    }
}

/// A fault of whoever gave the command: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Tells the error and chooses the exit code.
#[expect(clippy::print_stderr, reason = "this is where errors are told")]
pub fn report(error: &anyhow::Error) -> ExitCode {
    let usage = error.chain().any(|cause| cause.is::<Usage>() || cause.is::<config::Error>());
    eprintln!("synapse: {error:#}");
    ExitCode::from(if usage { 2 } else { 1 })
}

/// Logs go to stderr: `SYNAPSE_LOG` filters them (unless told, `info` for `run`, `error` for `doctor`, else `warn`).
pub fn start_logging(cli: &Cli) {
    // The store under the embedded log speaks of its own affairs at `info`.
    let default = match cli.command {
        Command::Run(_) => "info,fjall=warn,lsm_tree=warn",
        // What it has to say of brokers is in its findings.
        Command::Doctor(_) => "error",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("SYNAPSE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if cli.json {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
}
