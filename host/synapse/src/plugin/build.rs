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
    /// A workspace root.
    #[error("{} is a workspace, not a plugin: name the folder of one of its crates", .dir.display())]
    Workspace {
        /// The directory.
        dir: PathBuf,
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
/// The shadow stack has 128 KiB unless one of these places sets `stack-size`, and SIMD is on unless one names `simd128`.
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
    let Ok(manifest) = std::fs::read_to_string(dir.join("Cargo.toml")) else {
        return Err(Error::NoManifest { dir });
    };
    // A manifest that does not parse is left to Cargo, which says where.
    if toml::from_str::<toml::Table>(&manifest).is_ok_and(|manifest| !manifest.contains_key("package")) {
        return Err(Error::Workspace { dir });
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
    let flags = rustflags(&flags_of_crate(dir));
    if !flags.is_empty() {
        command.arg("--config").arg(format!("target.{TARGET}.rustflags={flags:?}"));
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

/// The flags to add to those that are set already.
fn rustflags(set: &str) -> Vec<String> {
    let mut flags = Vec::new();
    if !set.contains("stack-size") {
        flags.push(format!("-Clink-arg=-zstack-size={SHADOW_STACK_BYTES}"));
    }
    // Every host has fixed-width SIMD, and searching in bytes is several times faster with it.
    if !set.contains("simd128") {
        flags.push("-Ctarget-feature=+simd128".to_owned());
    }
    flags
}

/// The text in which the crate may have set flags of its own: what Cargo reads them from.
fn flags_of_crate(dir: &Path) -> String {
    let files = dir.ancestors().flat_map(|dir| [".cargo/config.toml", ".cargo/config"].map(|name| dir.join(name)));
    let texts = files.filter_map(|path| std::fs::read_to_string(path).ok());
    texts.chain(std::env::var("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS")).collect()
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
    kind: Vec<String>,
}

fn one_module(dir: &Path, messages: &str) -> Result<PathBuf, Error> {
    let manifest = dir.join("Cargo.toml");
    // Cargo may have followed symbolic links to the crate.
    let real = std::fs::canonicalize(&manifest).unwrap_or_else(|_| manifest.clone());
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| message.manifest_path == manifest || message.manifest_path == real)
        .filter(|message| message.target.as_ref().is_some_and(|target| target.kind.iter().any(|kind| kind == "cdylib")))
        .flat_map(|message| message.filenames)
        .find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
        .ok_or_else(|| Error::NoModule { dir: dir.to_owned() })
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

/// A compiler's output below a sentence, or where to find it.
fn indented(output: &str) -> String {
    const LINES_MAX: usize = 200;
    let output = output.trim_end();
    if output.is_empty() {
        return "; the errors are above".to_owned();
    }
    let mut text = String::from(":");
    for line in output.lines().take(LINES_MAX) {
        text.push_str("\n  ");
        text.push_str(line);
    }
    match output.lines().count().checked_sub(LINES_MAX) {
        Some(more @ 1..) => text + &format!("\n  … and {more} lines more"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(manifest: Option<&str>, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        if let Some(manifest) = manifest {
            std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
        }
        let error = build_crate(dir.path(), &BuildOptions::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn folders_that_are_no_crate_are_refused() {
        check_refused(None, "is not a Rust crate: it has no Cargo.toml");
        check_refused(Some("[workspace]\n"), "is a workspace, not a plugin");
    }

    #[test]
    fn the_module_is_found_among_what_cargo_built() {
        let line = |manifest: &str, kind: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{manifest}","target":{{"name":"n","kind":["{kind}"]}},"filenames":["{file}"]}}"#
            )
        };
        let messages = [
            line("/registry/serde/Cargo.toml", "lib", "/t/libserde.rlib"),
            line("/crate/inner/Cargo.toml", "cdylib", "/t/inner.wasm"),
            r#"{"reason":"build-script-executed","package_id":"x"}"#.to_owned(),
            "not JSON".to_owned(),
            line("/crate/Cargo.toml", "cdylib", "/t/it.wasm"),
        ];
        assert_eq!(one_module(Path::new("/crate"), &messages.join("\n")).unwrap(), Path::new("/t/it.wasm"));
        let error = one_module(Path::new("/crate"), &messages[..4].join("\n")).unwrap_err().to_string();
        assert!(error.contains("add `crate-type = [\"cdylib\"]` under `[lib]`"), "{error}");
    }

    #[test]
    fn flags_of_the_crate_come_first() {
        assert_eq!(rustflags("").len(), 2);
        assert_eq!(rustflags("-Clink-arg=-zstack-size=65536"), ["-Ctarget-feature=+simd128"]);
        assert_eq!(rustflags("stack-size -Ctarget-feature=-simd128"), [""; 0]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".cargo")).unwrap();
        std::fs::create_dir_all(dir.path().join("inner")).unwrap();
        std::fs::write(dir.path().join(".cargo/config.toml"), "stack-size").unwrap();
        assert!(flags_of_crate(&dir.path().join("inner")).contains("stack-size"));
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/plugin.wasm");
        replace(&path, b"old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn long_output_is_cut() {
        assert_eq!(indented(""), "; the errors are above");
        assert_eq!(indented("a\nb\n"), ":\n  a\n  b");
        assert!(indented(&"x\n".repeat(250)).ends_with("… and 50 lines more"));
    }
}
