//! The command line as a new user meets it, with the wrong input too.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use synapse_tests::host::{Host, binary, workspace};

fn run(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command.env("SYNAPSE_SDK", workspace().join("plugins/sdk")).env_remove("SYNAPSE_URL");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The exit code and what was said on stderr.
fn refused(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = run(dir, args);
    assert!(!output.status.success(), "{args:?} was not refused: {}", text(&output.stdout));
    (output.status.code().unwrap(), text(&output.stderr))
}

#[test]
fn a_new_plugin_of_each_kind_builds_and_passes_its_cases_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["filter", "transform", "router"] {
        let name = format!("my-{kind}");
        let made = run(dir.path(), &["plugin", "new", &name, "--kind", kind]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let target = synapse_tests::plugins::target_dir();
        let mut build = Command::new(binary());
        build.args(["plugin", "build", &name, "--out", "p.wasm", "--json"]).current_dir(dir.path());
        let built = build.env("CARGO_TARGET_DIR", &target).output().unwrap();
        assert!(built.status.success(), "{}", text(&built.stderr));
        let told: serde_json::Value = serde_json::from_slice(&built.stdout).unwrap();
        assert_eq!(told["kind"], kind);
        assert!(told["bytes"].as_u64().unwrap() < 300_000, "{told}");
        let tested = run(dir.path(), &["plugin", "test", &name, "p.wasm"]);
        assert!(tested.status.success(), "{}{}", text(&tested.stdout), text(&tested.stderr));
        // A case that does not hold fails the command, and is told by its line.
        let cases = dir.path().join(&name).join("cases.ndjson");
        let wrong = std::fs::read_to_string(&cases).unwrap()
            + r#"{"name": "wrong", "given": {"type": "t"}, "expect": {"reject": "never"}}"#;
        std::fs::write(cases, wrong).unwrap();
        let tested = run(dir.path(), &["plugin", "test", &name, "p.wasm"]);
        assert_eq!(tested.status.code(), Some(1), "{}", text(&tested.stdout));
        assert!(text(&tested.stdout).contains("wrong"), "{}", text(&tested.stdout));
    }
}

#[test]
fn wrong_usage_and_wrong_files_get_one_clear_sentence_and_the_right_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("synapse.toml"), "[[pipelines]]\nname = \"p\"\nfrom = \"in\"\ntoo = \"out\"\n")
        .unwrap();
    let (code, said) = refused(dir.path(), &["check"]);
    assert_eq!(code, 2);
    assert_eq!(said, "synapse: synapse.toml:4: pipelines: unknown key \"too\"; did you mean \"to\"?\n");

    let (code, said) = refused(dir.path(), &["run", "--config", "nowhere.toml"]);
    assert_eq!(code, 2);
    assert_eq!(
        said,
        "synapse: nowhere.toml: the configuration could not be read: No such file or directory (os error 2)\n"
    );

    let broker = "[brokers.k]\nkind = \"kafka\"\nbootstrap = \"127.0.0.1:1\"\nclient.\"max.poll.interval.ms\" = 1000\n";
    std::fs::write(dir.path().join("synapse.toml"), broker).unwrap();
    for command in ["check", "run"] {
        let (code, said) = refused(dir.path(), &[command]);
        assert_eq!(code, 2);
        assert!(
            said.starts_with("synapse: synapse.toml:4: brokers.k.client: `max.poll.interval.ms` must not be shorter"),
            "{said}"
        );
    }
    assert!(!dir.path().join("data").exists(), "a host that does not start leaves nothing behind");

    let (code, _) = refused(dir.path(), &["publish"]);
    assert_eq!(code, 2);

    let (code, said) = refused(dir.path(), &["topic", "list", "--url", "http://127.0.0.1:9"]);
    assert_eq!(code, 1);
    assert!(said.contains("nothing answers at http://127.0.0.1:9") && said.contains("synapse run"), "{said}");

    let (code, said) = refused(dir.path(), &["plugin", "build", "."]);
    assert_eq!(code, 1);
    assert!(said.contains("synapse plugin new"), "{said}");

    std::fs::write(dir.path().join("p.wasm"), b"\0asm\x01\0\0\0").unwrap();
    let stage = "[[pipelines]]\nname = \"p\"\nfrom = \"in\"\nto = \"out\"\n[[pipelines.stages]]\nplugin = \"p.wasm\"\n";
    std::fs::write(dir.path().join("synapse.toml"), stage).unwrap();
    let (code, said) = refused(dir.path(), &["check"]);
    assert_eq!(code, 1);
    assert!(said.contains("p.wasm") && said.contains("synapse plugin build"), "{said}");
}

#[test]
fn a_second_host_on_the_same_address_or_data_is_refused() {
    let host = Host::start("").unwrap();
    let same = host.synapse(&["run"]).unwrap();
    assert_eq!(same.status.code(), Some(1));
    assert!(text(&same.stderr).contains("cannot listen on"), "{}", text(&same.stderr));
    let address = synapse_tests::host::free_address().unwrap();
    std::fs::write(host.path("other.toml"), format!("[server]\nlisten = {address:?}\n")).unwrap();
    let other = host.synapse(&["run", "--config", "other.toml"]).unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("in use by"), "{}", text(&other.stderr));
    let doctor = host.synapse(&["doctor", "--config", "other.toml"]).unwrap();
    let found = text(&doctor.stdout);
    assert!(found.contains("WRONG  data directory:") && found.contains("is in use by process"), "{found}");
    // A host that is at work is no fault of its own.
    let doctor = text(&host.synapse(&["doctor"]).unwrap().stdout);
    assert!(doctor.contains("ok     data directory:") && doctor.contains("in use by process"), "{doctor}");
}

#[test]
fn check_tells_each_pipelines_guarantee_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[brokers.bus]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n\
        [[pipelines]]\nname = \"home\"\nfrom = \"bus/a\"\nto = \"bus/b\"\n\
        [[pipelines]]\nname = \"away\"\nfrom = \"bus/a\"\nto = \"local/b\"\n";
    std::fs::write(dir.path().join("synapse.toml"), config).unwrap();
    let checked = run(dir.path(), &["check", "--json"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let told: Vec<serde_json::Value> =
        text(&checked.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (told[0]["guarantee"].as_str(), told[1]["guarantee"].as_str()),
        (Some("exactly-once"), Some("at-least-once"))
    );
    assert!(told[1]["why"].as_str().unwrap().contains("`local`"), "{}", told[1]);
}

#[test]
fn what_is_published_can_be_tailed_in_every_way() {
    let host = Host::start("").unwrap();
    let file = host.path("orders.ndjson");
    std::fs::write(&file, "{\"total\": 1}\n{\"total\": 2}\r\n\n{\"total\": 3}\n").unwrap();
    let published =
        host.synapse(&["publish", "orders", "orders.ndjson", "--raw", "--type", "order", "--key", "k"]).unwrap();
    assert!(published.status.success(), "{}", text(&published.stderr));
    let tailed = host.synapse(&["tail", "orders", "--from", "earliest", "--limit", "3", "--json"]).unwrap();
    let events: Vec<serde_json::Value> =
        text(&tailed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let totals: Vec<u64> = events.iter().map(|event| event["data"]["total"].as_u64().unwrap()).collect();
    assert_eq!(totals, [1, 2, 3]);
    assert!(events.iter().all(|event| event["type"] == "order" && event["partitionkey"] == "k"));
    assert_eq!(events[2]["synapseposition"], "local/orders/0/2");
    let from_offset = host.synapse(&["tail", "orders", "--from", "1", "--limit", "1", "--json"]).unwrap();
    assert!(text(&from_offset.stdout).contains("local/orders/0/1"), "{}", text(&from_offset.stdout));
    let listed = host.synapse(&["topic", "list", "--json"]).unwrap();
    assert!(text(&listed.stdout).contains("orders"), "{}", text(&listed.stdout));
    let unknown = host.synapse(&["topic", "show", "nothing"]).unwrap();
    assert_eq!(unknown.status.code(), Some(1));
}
