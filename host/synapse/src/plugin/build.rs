//! From a Rust crate to a plugin file.
//!
//! Invariant: a file is only written once the component was found to be a plugin, and it is replaced whole, so a host
//! that watches it never reads half of it. This module must not know how a component is looked into, nor run one.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use synapse_core::stage::{Digest, PluginKind};

use super::component::{self, World};

/// The target plugins are built for: it has no WASI, so a plugin cannot ask for any.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// Bytes of shadow stack. Rust's default of 1 MiB is sixteen pages that every instance pays for; plugins do not recurse
/// far, and an overflow traps because the stack lies below the data.
const SHADOW_STACK_BYTES: u32 = 128 * 1024;

/// How to build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Where the component goes; by default beside Cargo's artifact, as `NAME.component.wasm`.
    pub out: Option<PathBuf>,
    /// Cargo's target directory; by default Cargo decides.
    pub target_dir: Option<PathBuf>,
    /// Features to switch on.
    pub features: Vec<String>,
    /// `--locked`: fail rather than change `Cargo.lock`.
    pub locked: bool,
    /// `--offline`: never use the network.
    pub offline: bool,
    /// Keep Cargo's progress off standard error; what the compiler says is then part of the error.
    pub quiet: bool,
}

/// A plugin that was built, checked and written.
#[derive(Debug, Clone)]
pub struct BuiltPlugin {
    /// The component.
    pub bytes: Vec<u8>,
    /// Its length in bytes.
    pub size: usize,
    /// SHA-256 of the bytes; displays as 64 hexadecimal digits.
    pub digest: Digest,
    /// Filter, transform or router.
    pub kind: PluginKind,
    /// Columns or records.
    pub world: World,
    /// The grants it wants, sorted.
    pub grants: Vec<String>,
    /// The file that was written.
    pub path: PathBuf,
}

/// Why a crate did not become a plugin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no manifest.
    #[error(
        "{} is not a Rust crate: it has no Cargo.toml; start one with `synapse plugin new NAME --kind filter`", .dir.display()
    )]
    NoManifest {
        /// The directory.
        dir: PathBuf,
    },
    /// Cargo is not installed, or cannot be started.
    #[error("`{}` cannot be started ({source}): install Rust from https://rustup.rs, or name Cargo in CARGO", .cargo.display())]
    NoCargo {
        /// What was tried.
        cargo: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The standard library for the target is missing.
    #[error("Rust on this machine cannot build for {TARGET} yet: run `rustup target add {TARGET}` and try again")]
    NoTarget,
    /// The compiler found errors.
    #[error("{} does not compile for {TARGET}{}", .dir.display(), indented(.output))]
    Compile {
        /// The crate.
        dir: PathBuf,
        /// What Cargo wrote; empty when it went to standard error.
        output: String,
    },
    /// The crate has no `cdylib`.
    #[error(
        "{} builds no WebAssembly module: add `crate-type = [\"cdylib\"]` under `[lib]` in its Cargo.toml", .dir.display()
    )]
    NoModule {
        /// The crate.
        dir: PathBuf,
    },
    /// A workspace root, or several packages.
    #[error(
        "{} is a workspace of several plugins ({names}): name the folder of one", .dir.display()
    )]
    SeveralModules {
        /// The directory.
        dir: PathBuf,
        /// What it would build.
        names: String,
    },
    /// What was built is not a plugin.
    #[error("{} compiles, but is not a plugin: {source}", .dir.display())]
    NotAPlugin {
        /// The crate.
        dir: PathBuf,
        /// What is wrong with the component.
        #[source]
        source: component::Error,
    },
    /// A file could not be read or written.
    #[error("could not {action} {}: {source}", .path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Compiles the crate in `manifest_dir` for [`TARGET`], wraps it into a component, checks it against the contract and
/// writes it.
///
/// The build is Cargo's `release` profile with what keeps a plugin small: one codegen unit, link-time optimisation, no
/// symbols, and panics that trap. `opt-level` stays the crate's own. `RUSTFLAGS` is meant for the host and is not
/// passed on; flags for plugins go into the crate's `.cargo/config.toml` or `CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS`.
/// The shadow stack has 128 KiB unless one of these places sets `stack-size`.
///
/// # Errors
/// When the crate does not compile, builds no module or something else than a plugin, and when the file cannot be
/// written.
pub fn build_crate(manifest_dir: &Path, options: &BuildOptions) -> Result<BuiltPlugin, Error> {
    let dir = std::path::absolute(manifest_dir).map_err(|source| Error::Io {
        action: "read",
        path: manifest_dir.to_owned(),
        source,
    })?;
    if !dir.join("Cargo.toml").is_file() {
        return Err(Error::NoManifest { dir });
    }
    let module_path = run_cargo(&dir, options)?;
    let module = std::fs::read(&module_path).map_err(|source| Error::Io {
        action: "read",
        path: module_path.clone(),
        source,
    })?;
    let not_a_plugin = |source| Error::NotAPlugin { dir: dir.clone(), source };
    let bytes = component::from_module(&module).map_err(not_a_plugin)?;
    let shape = component::inspect(&bytes).map_err(not_a_plugin)?;
    let path = match &options.out {
        Some(path) => path.clone(),
        None => module_path.with_extension("component.wasm"),
    };
    replace(&path, &bytes)?;
    Ok(BuiltPlugin {
        size: bytes.len(),
        digest: component::digest(&bytes),
        kind: shape.kind,
        world: shape.world,
        grants: shape.grants,
        bytes,
        path,
    })
}

/// Runs Cargo and returns the one module it built for this crate.
fn run_cargo(dir: &Path, options: &BuildOptions) -> Result<PathBuf, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = cargo_command(&cargo, dir, options)
        .output()
        .map_err(|source| Error::NoCargo { cargo: PathBuf::from(&cargo), source })?;
    if !output.status.success() {
        if !has_target(dir) {
            return Err(Error::NoTarget);
        }
        return Err(Error::Compile {
            dir: dir.to_owned(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    one_module(dir, &String::from_utf8_lossy(&output.stdout))
}

fn cargo_command(cargo: &OsString, dir: &Path, options: &BuildOptions) -> Command {
    let mut command = Command::new(cargo);
    command
        .current_dir(dir)
        .args(["build", "--release", "--lib", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics");
    for setting in ["codegen-units=1", "debug=false", "lto=true", "panic=\"abort\"", "strip=\"symbols\""] {
        command.arg("--config").arg(format!("profile.release.{setting}"));
    }
    if !sets_stack_size(dir) {
        command
            .arg("--config")
            .arg(format!("target.{TARGET}.rustflags=[\"-Clink-arg=-zstack-size={SHADOW_STACK_BYTES}\"]"));
    }
    if let Some(target_dir) = &options.target_dir {
        command.arg("--target-dir").arg(target_dir);
    }
    if !options.features.is_empty() {
        command.arg("--features").arg(options.features.join(","));
    }
    for (wanted, flag) in [(options.locked, "--locked"), (options.offline, "--offline"), (options.quiet, "--quiet")] {
        if wanted {
            command.arg(flag);
        }
    }
    command
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(if options.quiet { Stdio::piped() } else { Stdio::inherit() });
    command
}

/// Whether the crate's own Cargo configuration, or the environment's, has a stack size.
fn sets_stack_size(dir: &Path) -> bool {
    let says_so = |text: &str| text.contains("stack-size");
    std::env::var("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS").is_ok_and(|flags| says_so(&flags))
        || dir
            .ancestors()
            .flat_map(|dir| [".cargo/config.toml", ".cargo/config"].map(|name| dir.join(name)))
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .any(|text| says_so(&text))
}

/// Whether the toolchain of `dir` has the target's standard library. When it cannot be asked: yes, so that Cargo's own
/// words are shown.
fn has_target(dir: &Path) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let asked = Command::new(rustc).current_dir(dir).args(["--print", "target-libdir", "--target", TARGET]).output();
    match asked {
        Ok(output) if output.status.success() => Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir(),
        _ => true,
    }
}

/// One line of Cargo's `--message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn one_module(dir: &Path, messages: &str) -> Result<PathBuf, Error> {
    let inside = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut modules: Vec<(String, PathBuf)> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| message.manifest_path.starts_with(dir) || message.manifest_path.starts_with(&inside))
        .filter_map(|message| {
            let target = message.target.filter(|target| target.kind.iter().any(|kind| kind == "cdylib"))?;
            let module = message
                .filenames
                .into_iter()
                .find(|file| file.extension().is_some_and(|extension| extension == "wasm"))?;
            Some((target.name, module))
        })
        .collect();
    match modules.len() {
        1 => Ok(modules.remove(0).1),
        0 => Err(Error::NoModule { dir: dir.to_owned() }),
        _ => Err(Error::SeveralModules {
            dir: dir.to_owned(),
            names: modules.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Writes beside the file and renames, so that a reader sees the old bytes or the new ones.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Io { action: "write", path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // The half-written file is of no use; that it may stay behind is the lesser problem.
        let _ = std::fs::remove_file(&new);
    }
    written.map_err(failed)
}

/// A compiler's output below a sentence, or nothing.
fn indented(output: &str) -> String {
    let output = output.trim_end();
    if output.is_empty() {
        return "; the errors are above".to_owned();
    }
    let mut text = String::from(":");
    for line in output.lines() {
        text.push_str("\n  ");
        text.push_str(line);
    }
    text
}
