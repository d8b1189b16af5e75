//! The fault runner in its long form; see `tests/chaos.sh`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use synapse_tests::chaos::{self, Case, Observed, Plan};
use synapse_tests::host::workspace;

/// Runs faults under load, and compares what was observed with what is promised.
#[derive(Parser)]
#[command(name = "chaos")]
struct Options {
    /// Decides when faults happen, and where.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many events are acknowledged in each case, at least.
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// How many are sent in a second.
    #[arg(long, default_value_t = 5_000)]
    rate: usize,
    /// Only this case; may be given again.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Names the cases and runs none.
    #[arg(long)]
    list: bool,
    /// The page whose table is replaced, or with `--case` the rows of these cases.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut out = std::io::stdout().lock();
    let cases = chosen(&options.cases)?;
    if options.list {
        for Case { name, route, what, promise, .. } in cases {
            writeln!(out, "{name}: {route}: {what}; {promise}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan { seed: options.seed, events: options.events, events_per_second: options.rate };
    let circumstances = circumstances(&plan)?;
    let mut rows: Vec<(&Case, Result<Observed>)> = Vec::new();
    for case in &cases {
        let observed = chaos::run(case, &plan);
        match &observed {
            Ok(observed) => writeln!(out, "{}: {observed}", case.name)?,
            Err(error) => writeln!(out, "{}: could not be carried out: {error:#}", case.name)?,
        }
        rows.push((case, observed));
    }
    let kept = rows.iter().all(|(_, observed)| observed.as_ref().is_ok_and(|observed| observed.breaks.is_empty()));
    let table = chaos::markdown(&rows);
    let summary = chaos::summary(&table);
    if let Some(path) = &options.write {
        let page = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let page = if options.cases.is_empty() {
            chaos::replace_between_markers(&page, &format!("{summary}\n\nRun {circumstances}\n\n{table}"))?
        } else {
            let sentence = format!("`{}` was run {circumstances}", options.cases.join("`, `"));
            chaos::replace_rows(&page, &sentence, &table)?
        };
        std::fs::write(path, page)?;
    } else {
        writeln!(out, "\n{summary}\n\nRun {circumstances}\n\n{table}")?;
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String]) -> Result<Vec<Case>> {
    let all = chaos::all();
    for name in names {
        ensure!(all.iter().any(|case| case.name == name), "there is no case `{name}`; --list names them");
    }
    Ok(all.into_iter().filter(|case| names.is_empty() || names.iter().any(|name| name == case.name)).collect())
}

/// When, of what, and how.
fn circumstances(plan: &Plan) -> Result<String> {
    let Plan { seed, events, events_per_second } = plan;
    let date = first_line("date", &["-u", "+%Y-%m-%d"])?;
    let commit = first_line("git", &["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned());
    let cores = std::thread::available_parallelism()?;
    let redis = first_line("redis-server", &["--version"])?;
    let redis = redis.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("unknown");
    let pom = std::fs::read_to_string(workspace().join("tests/servers/kafka/pom.xml"))?;
    let kafka = pom.split("<version>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or("unknown");
    Ok(format!(
        "on {date} on one machine with {cores} cores, with Synapse {} at commit {commit} (built for development, that is \
         unoptimised), redis-server {redis}, Apache Kafka {kafka}, seed {seed}: at least {events} events a case, \
         {events_per_second} a second.",
        env!("CARGO_PKG_VERSION")
    ))
}

fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}
