//! The configuration as its users see it: what a file means, and what is said of a wrong one.

mod meaning;
mod refused;

use std::path::Path;

use super::{HostSpec, Problem};

/// The environment of every test here. A secret that turns up in a message is a fault.
fn env(name: &str) -> Option<String> {
    let value = match name {
        "TOPIC" => "bus/model-events",
        "HOST" => "redis.example",
        "EMPTY" => "",
        "SECRET" | "KAFKA_PASSWORD" => "hunter2!",
        "SECRET_TOPIC" => "hunter2/events",
        "SECRET_NAME" => "hunter2",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<HostSpec, Vec<Problem>> {
    super::parse(text, Path::new("/etc/synapse"), &env)
}

fn accepted(text: &str) -> HostSpec {
    parse(text).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"))
}

/// What a user reads of a wrong file; the line break that `text` may begin with is not of it.
fn refused(text: &str) -> String {
    let problems = parse(text.trim_start_matches('\n')).expect_err("the file is wrong");
    assert!(!problems.is_empty());
    let said = super::lines(Path::new("synapse.toml"), &problems);
    assert!(!said.contains("hunter2"), "a secret is shown: {said}");
    said
}
