//! Components built from the sources of this checkout, once for each run of the tests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use synapse::plugin::{BuildOptions, build_crate};

use crate::host::workspace;

/// The component of a crate in the checkout, for example `plugins/filter-match`; built on first use.
///
/// # Panics
/// If it does not build: a guest that does not compile fails the tests.
pub fn component(crate_dir: &str) -> PathBuf {
    component_with(crate_dir, &[])
}

/// As [`component`], with cargo features.
///
/// # Panics
/// As [`component`].
pub fn component_with(crate_dir: &str, features: &[&str]) -> PathBuf {
    type Built = Arc<OnceLock<PathBuf>>;
    static BUILT: OnceLock<Mutex<HashMap<String, Built>>> = OnceLock::new();
    let all = BUILT.get_or_init(Mutex::default);
    let slot = Arc::clone(
        all.lock()
            .expect("no build panics while holding the lock")
            .entry(format!("{crate_dir} {features:?}"))
            .or_default(),
    );
    slot.get_or_init(|| build(&workspace().join(crate_dir), features)).clone()
}

fn build(dir: &Path, features: &[&str]) -> PathBuf {
    let target_dir = target_dir();
    let name = dir.file_name().expect("a crate's directory has a name").to_string_lossy();
    let out = target_dir.join(format!("{name}{}-{}.wasm", features.concat(), std::process::id()));
    let features = features.iter().map(ToString::to_string).collect();
    let options =
        BuildOptions { out: Some(out), target_dir: Some(target_dir), features, quiet: true, ..BuildOptions::default() };
    let built = build_crate(dir, &options).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    built.path
}

/// Where guests are built: beside the host's own target, and reused from run to run.
///
/// # Panics
/// If it cannot be made.
pub fn target_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let guests = target.join("guests");
    std::fs::create_dir_all(&guests).expect("the target folder can be written");
    guests
}
