//! What loads, what does not, and what is said about it.

use std::fs::{self, File};

use serde_json::json;
use synapse_core::spec::{RoutePattern, StageSpec};
use synapse_core::stage::{PluginErrorKind, PluginLoader};

use crate::support::{batch, guest, kept, label, load, module, runtime, runtime_with, spec, wat};

/// The sentence about the file at `path`, without the path.
async fn refusal(path: &std::path::Path) -> String {
    let error = load(&runtime(), path).await.err().expect("it does not load");
    assert_eq!(error.kind, PluginErrorKind::Unusable, "{error}");
    let sentence = error.message.strip_prefix(&format!("{} ", path.display()));
    sentence.unwrap_or_else(|| panic!("the path is named first: {error}")).to_owned()
}

#[tokio::test]
async fn bytes_that_are_no_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zeros.wasm");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(refusal(&path).await, "is not WebAssembly");
    File::create(&path).unwrap().set_len(100_000_000).unwrap();
    assert_eq!(refusal(&path).await, "is larger than a component may be (32 MiB)");
    let core = "is a core module; `synapse plugin build` makes a component of it";
    assert_eq!(refusal(&module("filter")).await, core);
    let cut = fs::read(guest("filter")).unwrap();
    fs::write(&path, &cut[..cut.len() / 2]).unwrap();
    assert!(refusal(&path).await.starts_with("is damaged: "));
}

#[tokio::test]
async fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("absent.wasm"), dir.path().to_owned()] {
        let error = load(&runtime(), &path).await.err().expect("it does not load");
        assert_eq!(error.kind, PluginErrorKind::Unreadable);
        assert!(error.message.starts_with(&format!("cannot read the plugin {}: ", path.display())), "{error}");
    }
}

#[tokio::test]
async fn components_of_other_worlds() {
    let dir = tempfile::tempdir().unwrap();
    let check = async |text: &str| refusal(&wat(dir.path(), text)).await;
    let other = check(r#"(component (instance (export "wasi:cli/run@0.2.0")))"#).await;
    assert!(other.starts_with("is a component of another world: it exports `wasi:cli/run@0.2.0`; a plugin"), "{other}");
    assert!(check("(component)").await.contains("it exports nothing; a plugin exports `synapse:plugin/plugin`"));
    let wasi = check(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#).await;
    assert!(wasi.starts_with("imports `wasi:cli/environment@0.2.0`, but a plugin gets nothing of WASI;"), "{wasi}");
    let foreign = check(r#"(component (import "acme:db/query" (func)))"#).await;
    assert_eq!(foreign, "imports `acme:db/query`, which is not an interface for plugins");
    let hollow = check(
        r#"(component
            (instance (export "synapse:plugin/plugin@0.1.0"))
            (instance (export "synapse:plugin/filter@0.1.0")))"#,
    );
    assert_eq!(hollow.await, "exports `synapse:plugin/plugin@0.1.0` without its function `describe`");
    let crooked = check(
        r#"(component
            (core module $m (func (export "f")))
            (core instance $m (instantiate $m))
            (func $f (canon lift (core func $m "f")))
            (instance (export "synapse:plugin/plugin@0.1.0")
                (export "describe" (func $f)) (export "configure" (func $f)))
            (instance (export "synapse:plugin/filter@0.1.0") (export "judge" (func $f))))"#,
    );
    let crooked = crooked.await;
    assert!(crooked.contains("exports `filter` in another shape than the contract's"), "{crooked}");
    let asynchronous = check(
        r#"(component
            (core module $m (func (export "f")))
            (core instance $m (instantiate $m))
            (func (export "f") async (canon lift (core func $m "f") async)))"#,
    );
    let sentence = "uses asynchronous functions of the component model; functions of a plugin are synchronous";
    assert_eq!(asynchronous.await, sentence);
}

#[tokio::test]
async fn a_description_that_never_ends() {
    let sentence = "cannot be asked what it is: used more than 1s of CPU time";
    assert_eq!(refusal(&guest("endless_describe")).await, sentence);
}

#[tokio::test]
async fn grants_are_asked_for_by_imports() {
    let path = guest("wants_state");
    let plugin = load(&runtime(), &path).await.unwrap();
    assert_eq!(plugin.info().wants, ["state"]);
    let refuse = async |grants: &[&str]| {
        let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
        let spec = StageSpec { grants, ..spec(&path, json!({})) };
        let error = plugin.stage(&label("ships"), &spec).await.err().expect("it is not granted");
        assert_eq!(error.kind, PluginErrorKind::Unusable);
        error.message
    };
    let sentence = "stage `judge`: plugin `wants_state` imports `state`, which the stage was not granted; \
                    add grants = [\"state\"] to it";
    assert_eq!(refuse(&["clock"]).await, sentence);
    let sentence = "stage `judge`: plugin `wants_state` needs the grant `state`, \
                    which this version of Synapse does not have yet";
    assert_eq!(refuse(&["clock", "state"]).await, sentence);
}

#[tokio::test]
async fn specs_that_do_not_fit_the_plugin_or_the_host() {
    let path = guest("filter");
    let plugin = load(&runtime(), &path).await.unwrap();
    let refuse = async |spec| {
        let error = plugin.stage(&label("ships"), &spec).await.err().expect("it does not fit");
        assert_eq!(error.kind, PluginErrorKind::Misconfigured);
        error.message
    };
    let mut routes = spec(&path, json!({}));
    routes.routes = vec![RoutePattern { broker: "bus".parse().unwrap(), topic: "**".parse().unwrap() }];
    let sentence = "stage `judge`: it lists routes, but plugin `filter` is a filter; only routers choose topics";
    assert_eq!(refuse(routes).await, sentence);
    let mut memory = spec(&path, json!({}));
    memory.limits.memory_bytes_max = 2 << 30;
    let sentence = "stage `judge`: limits.memory is 2 GiB, but this host gives an instance at most 1 GiB";
    assert_eq!(refuse(memory).await, sentence);
}

#[tokio::test]
async fn a_hundred_megabytes_of_data() {
    let path = guest("large_data");
    assert_eq!(refusal(&path).await, "is larger than a component may be (32 MiB)");
    let plugin = load(&runtime_with(|options| options.component_bytes_max = 128 << 20), &path).await.unwrap();
    let mut spec = spec(&path, json!({}));
    let error = plugin.stage(&label("ships"), &spec).await.err().expect("64 MiB are not enough");
    assert_eq!(error.kind, PluginErrorKind::Unusable);
    let sentence = "stage `judge`: plugin `large_data` cannot be instantiated within the stage's limits: \
                    wanted more than 64 MiB of memory";
    assert!(error.message.starts_with(sentence), "{error}");
    spec.limits.memory_bytes_max = 128 << 20;
    let mut stage = plugin.stage(&label("ships"), &spec).await.expect("128 MiB are enough");
    assert_eq!(kept(&stage.run(&batch(&["a"])).await.unwrap()), [true]);
}

#[tokio::test]
async fn the_same_bytes_are_compiled_once() {
    let (runtime, path) = (runtime(), guest("filter"));
    let plugin_ref = spec(&path, json!({})).plugin;
    let (one, other) = tokio::join!(runtime.load(&plugin_ref), runtime.load(&plugin_ref));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert!(std::ptr::eq(one.info(), other.info()));
    // As long as anything of it lives.
    let stage = one.stage(&label("ships"), &spec(&path, json!({}))).await.unwrap();
    drop((one, other));
    let again = runtime.load(&plugin_ref).await.unwrap();
    assert!(std::ptr::eq(stage.info(), again.info()));
}

#[tokio::test]
async fn compiled_code_outlives_the_host_and_is_made_again_when_damaged() {
    let (dir, path) = (tempfile::tempdir().unwrap(), guest("filter"));
    let cached = || runtime_with(|options| options.cache_dir = Some(dir.path().join("code")));
    let files =
        || -> Vec<_> { fs::read_dir(dir.path().join("code")).unwrap().map(|file| file.unwrap().path()).collect() };
    load(&cached(), &path).await.unwrap();
    let [code] = files().try_into().unwrap();
    let whole = fs::read(&code).unwrap();
    fs::write(&code, &whole[..whole.len() - 1]).unwrap();
    load(&cached(), &path).await.expect("damage is seen");
    assert_eq!(fs::read(&code).unwrap().len(), whole.len());
    let modified = fs::metadata(&code).unwrap().modified().unwrap();
    load(&cached(), &path).await.unwrap();
    assert_eq!(fs::metadata(&code).unwrap().modified().unwrap(), modified, "nothing was compiled again");
    fs::remove_dir_all(dir.path().join("code")).unwrap();
    load(&cached(), &path).await.expect("the directory is safe to delete");
}
