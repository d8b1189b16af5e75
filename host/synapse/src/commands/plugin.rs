//! `synapse plugin new | build | test`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use synapse_core::Batch;
use synapse_core::spec::{InstanceMode, OnError, PluginRef, StageLimits, StageSpec};
use synapse_core::stage::{Plugin, PluginErrorKind, PluginKind, PluginLoader};
use synapse_core::topic::Label;
use synapse_runtime::{Runtime, RuntimeOptions};

use crate::client::Output;
use crate::plugin::cases::{self, Case, CaseFile, Outcome, Report};
use crate::plugin::new::{create, find_sdk};
use crate::plugin::{BuildOptions, BuiltPlugin, World, build_crate};

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Start a plugin: a crate that builds and tests at once.
    New {
        /// The plugin's name, for example `ready-only`.
        name: String,
        /// What it does with events.
        #[arg(long, value_enum, default_value_t = Kind::Filter)]
        kind: Kind,
        /// Where to put it; by default a folder of its name.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Build a crate into a component and check it against the contract.
    Build {
        /// The crate.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Where the component goes; by default beside Cargo's artifact.
        #[arg(long, short)]
        out: Option<PathBuf>,
        /// Features of the crate to switch on.
        #[arg(long, value_delimiter = ',')]
        features: Vec<String>,
    },
    /// Run a plugin's cases (`cases.ndjson`) through the real component under the real limits.
    Test {
        /// The crate; its cases are used.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// The component; by default the crate is built.
        component: Option<PathBuf>,
    },
}

/// As on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// A verdict for each event.
    Filter,
    /// None, one or many events for each.
    Transform,
    /// Topics for each event.
    Router,
}

impl From<Kind> for PluginKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Filter => Self::Filter,
            Kind::Transform => Self::Transform,
            Kind::Router => Self::Router,
        }
    }
}

/// Does it.
///
/// # Errors
/// With what is wrong, where, and what to do.
pub async fn run(command: Command, out: &mut Output) -> anyhow::Result<()> {
    match command {
        Command::New { name, kind, dir } => new(&name, kind, dir, out),
        Command::Build { dir, out: file, features } => {
            let built = build_crate(&dir, &BuildOptions { out: file, features, ..BuildOptions::default() })?;
            print_built(&built, out)
        }
        Command::Test { dir, component } => test(&dir, component, out).await,
    }
}

fn new(name: &str, kind: Kind, dir: Option<PathBuf>, out: &mut Output) -> anyhow::Result<()> {
    let dir = dir.unwrap_or_else(|| PathBuf::from(name));
    let sdk = find_sdk(Path::new("."), std::env::var_os("SYNAPSE_SDK").as_deref().map(Path::new));
    let made = create(name, kind.into(), &dir, &sdk)?;
    if out.is_json() {
        return Ok(out.object(&serde_json::json!({ "dir": made.dir, "files": made.files, "to-do": made.to_do }))?);
    }
    out.line(format!("made {}: {}", made.dir.display(), list(&made.files)))?;
    if let Some(to_do) = made.to_do {
        out.line(format!("first: {to_do}"))?;
    }
    Ok(out.line(format!(
        "next:\n  cd {}\n  cargo test              # natively, in a second\n  synapse plugin build    # the component\n  synapse plugin test     # its cases through the component",
        made.dir.display()
    ))?)
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn print_built(built: &BuiltPlugin, out: &mut Output) -> anyhow::Result<()> {
    let world = match built.world {
        World::Batch => "columnar",
        World::Typed => "typed",
    };
    if out.is_json() {
        return Ok(out.object(&serde_json::json!({
            "path": built.path, "kind": built.kind.to_string(), "world": world, "bytes": built.size,
            "digest": built.digest.to_string(), "imports": built.grants,
        }))?);
    }
    let wants =
        if built.grants.is_empty() { "no grants".to_owned() } else { format!("grants {}", built.grants.join(", ")) };
    out.line(built.path.display())?;
    out.line(format!("  {} ({world}), {:.1} KiB, needs {wants}", built.kind, built.size as f64 / 1024.0))?;
    Ok(out.line(format!("  sha256 {}", built.digest))?)
}

async fn test(dir: &Path, component: Option<PathBuf>, out: &mut Output) -> anyhow::Result<()> {
    let files = CaseFile::of_crate(dir)?;
    let component = match component {
        Some(component) => component,
        None => build_crate(dir, &BuildOptions::default())?.path,
    };
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let path = std::path::absolute(&component).with_context(|| component.display().to_string())?;
    let plugin = runtime.load(&PluginRef::File(path)).await?;
    let (mut failed, mut passed) = (0, 0);
    for file in &files {
        let mut report = Report::new(file);
        for (case, batch) in &file.cases {
            let outcome = run_case(plugin.as_ref(), case, batch).await?;
            report.record(case, &outcome);
        }
        failed += report.failures.len();
        passed += report.passed;
        if out.is_json() {
            let failures: Vec<_> = report
                .failures
                .iter()
                .map(|failure| serde_json::json!({ "line": failure.line, "name": failure.name, "difference": failure.difference }))
                .collect();
            out.object(&serde_json::json!({ "file": report.path, "passed": report.passed, "failures": failures }))?;
        } else {
            out.line(report.to_string().trim_end())?;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} cases failed", failed + passed);
    }
    Ok(())
}

/// Each case has an instance of its own, for each may have another configuration.
async fn run_case(plugin: &dyn Plugin, case: &Case, batch: &Batch) -> anyhow::Result<Outcome> {
    let name: Label = "test".parse().expect("a valid name");
    let info = plugin.info();
    let spec = StageSpec {
        name: name.clone(),
        plugin: PluginRef::File(PathBuf::new()),
        config: case.config.clone(),
        grants: info.wants.clone(),
        routes: Vec::new(),
        limits: StageLimits::default(),
        on_error: OnError::default(),
        instance: InstanceMode::Batch,
    };
    match plugin.stage(&name, &spec).await {
        Ok(mut stage) => Ok(cases::outcome(&stage.run(batch).await?)),
        Err(error) if error.kind == PluginErrorKind::Misconfigured => Ok(Outcome::ConfigError(error.message)),
        Err(error) => Err(error.into()),
    }
}
