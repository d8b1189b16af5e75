//! Guests, runtimes, stages and events for the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};
use wit_component::ComponentEncoder;

use synapse_core::batch::Batch;
use synapse_core::event::Event;
use synapse_core::spec::{InstanceMode, OnError, PluginRef, StageLimits, StageSpec};
use synapse_core::stage::{Answer, FailureKind, Plugin, PluginError, PluginLoader, Stage, StageRun};
use synapse_core::topic::Label;
use synapse_runtime::{Runtime, RuntimeOptions};

/// Where the guests' core modules are; they are built once in each test run.
fn modules() -> &'static Path {
    static MODULES: OnceLock<PathBuf> = OnceLock::new();
    MODULES.get_or_init(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/Cargo.toml");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--examples", "--locked", "--target", "wasm32-unknown-unknown"])
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(&target)
            // Flags for the host's tests, such as coverage, are not for guests.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "the guests do not build:\n{}", String::from_utf8_lossy(&built.stderr));
        target.join("wasm32-unknown-unknown/release/examples")
    })
}

/// The path of a guest's core module.
pub(crate) fn module(name: &str) -> PathBuf {
    modules().join(format!("{name}.wasm"))
}

/// The path of a guest's component.
pub(crate) fn guest(name: &str) -> PathBuf {
    static COMPONENTS: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut components = COMPONENTS.lock().unwrap_or_else(PoisonError::into_inner);
    components.entry(name.to_owned()).or_insert_with(|| component(name)).clone()
}

fn component(name: &str) -> PathBuf {
    let path = module(name).with_extension("component.wasm");
    let module = std::fs::read(module(name)).expect("the guest was built");
    let component = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.validate(true).encode())
        .expect("a guest is a component");
    // Test processes may run side by side: nobody may see half a file.
    let new = tempfile::NamedTempFile::new_in(modules()).expect("the target directory is writable");
    std::fs::write(new.path(), component).expect("the target directory is writable");
    new.persist(&path).expect("the target directory is writable");
    path
}

/// A component from its text.
pub(crate) fn wat(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("guest.wasm");
    std::fs::write(&path, wat::parse_str(text).expect("the text is right")).expect("the directory is writable");
    path
}

/// The runtime that most tests share; it keeps compiled code from one test run to the next.
pub(crate) fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let shared = || {
        runtime_with(|options| {
            options.instances_max = 256.try_into().expect("256 is not 0");
            options.cache_dir = Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled"));
        })
    };
    RUNTIME.get_or_init(shared).clone()
}

/// A small runtime for one test, with other options.
pub(crate) fn runtime_with(change: impl FnOnce(&mut RuntimeOptions)) -> Runtime {
    let mut options = RuntimeOptions { instances_max: 8.try_into().expect("8 is not 0"), ..RuntimeOptions::default() };
    change(&mut options);
    Runtime::new(options).expect("the machine runs wasmtime")
}

/// Loads the component at `path`.
pub(crate) async fn load(runtime: &Runtime, path: &Path) -> Result<Arc<dyn Plugin>, PluginError> {
    runtime.load(&PluginRef::File(path.to_owned())).await
}

/// A stage's spec with the given config.
pub(crate) fn spec(path: &Path, config: Value) -> StageSpec {
    StageSpec {
        name: label("judge"),
        plugin: PluginRef::File(path.to_owned()),
        config,
        grants: vec![],
        routes: vec![],
        limits: StageLimits::default(),
        on_error: OnError::default(),
        instance: InstanceMode::default(),
    }
}

/// A name.
pub(crate) fn label(text: &str) -> Label {
    text.parse().expect("a name")
}

/// A guest ready to run: its stage, and what is needed to make it.
pub(crate) async fn stage(name: &str, config: Value) -> Box<dyn Stage> {
    stage_with(name, config, |_| {}).await
}

/// The same with another spec.
pub(crate) async fn stage_with(name: &str, config: Value, change: impl FnOnce(&mut StageSpec)) -> Box<dyn Stage> {
    let path = guest(name);
    let mut spec = spec(&path, config);
    change(&mut spec);
    let plugin = load(&runtime(), &path).await.expect("the guest loads");
    plugin.stage(&label("ships"), &spec).await.expect("the guest takes its config")
}

/// What a guest says of events with these ids.
pub(crate) async fn run(name: &str, config: Value, ids: &[&str]) -> StageRun {
    stage(name, config).await.run(&batch(ids)).await.expect("the host is well")
}

/// A config with a mode.
pub(crate) fn mode(mode: &str) -> Value {
    json!({ "mode": mode })
}

/// A config with a mode at one event.
pub(crate) fn mode_at(mode: &str, id: &str) -> Value {
    json!({ "mode": mode, "id": id })
}

/// Events with these ids.
pub(crate) fn batch(ids: &[&str]) -> Batch {
    let events: Vec<Event> = ids.iter().map(|id| event(id)).collect();
    events.iter().collect()
}

/// An event with every column filled. A payload can be given behind a `:` in the id.
pub(crate) fn event(id: &str) -> Event {
    let (id, data) = id.split_once(':').unwrap_or((id, "payload"));
    Event {
        id: id.to_owned(),
        source: "/tests".to_owned(),
        kind: "test".to_owned(),
        subject: Some("ship".to_owned()),
        time: Some(synapse_core::Timestamp::from_micros(5)),
        partition_key: Some("key".to_owned()),
        content_type: Some("text/plain".to_owned()),
        attributes: vec![("lane".to_owned(), "one".to_owned())],
        data: data.as_bytes().to_vec(),
    }
}

/// The flags of a filter's answer.
pub(crate) fn kept(run: &StageRun) -> &[bool] {
    match &run.answer {
        Answer::Keep(kept) => kept,
        other => panic!("not a filter's answer: {other:?}"),
    }
}

/// The rows that failed, and how.
pub(crate) fn failed(run: &StageRun) -> Vec<(u32, FailureKind)> {
    run.failures.iter().map(|failure| (failure.row, failure.kind)).collect()
}
