//! What plugins log.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use synapse_core::stage::FailureKind;
use tracing::subscriber::DefaultGuard;

use crate::support::{batch, failed, guest, label, load, runtime, spec};

/// The host's log of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn capture() -> (Lines, DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

/// The lines of plugins in the log after a batch of one event, and how the event failed.
async fn check(config: Value) -> (Vec<String>, Vec<(u32, FailureKind)>) {
    let (lines, _guard) = capture();
    let path = guest("batch_filter");
    let plugin = load(&runtime(), &path).await.unwrap();
    let mut spec = spec(&path, config);
    spec.limits.log_lines_per_second_max = 5.try_into().unwrap();
    let mut stage = plugin.stage(&label("ships"), &spec).await.unwrap();
    let run = stage.run(&batch(&["x"])).await.unwrap();
    drop(stage);
    let text = String::from_utf8(std::mem::take(&mut *lines.0.lock().unwrap())).unwrap();
    let place = format!("pipeline=ships stage=judge digest={}", plugin.info().digest);
    let lines: Vec<String> = text.lines().filter(|line| line.contains("synapse::plugin")).map(str::to_owned).collect();
    assert!(lines.iter().all(|line| line.contains(&place)), "{text}");
    (lines, failed(&run))
}

#[tokio::test]
async fn lines_have_their_place_and_no_control_characters() {
    let (lines, failed) = check(json!({ "mode": "log", "amount": 2 })).await;
    assert_eq!((lines.len(), failed), (2, vec![]));
    assert!(lines[0].contains(" INFO ") && lines[0].contains("line 0\\nof x"), "{}", lines[0]);
}

#[tokio::test]
async fn endless_logging_is_withheld_and_counted() {
    let (lines, failed) = check(json!({ "mode": "log", "amount": 10_000 })).await;
    assert_eq!(failed, []);
    // A second may end meanwhile on a slow machine; then more lines are due.
    let withheld: usize = lines
        .iter()
        .filter_map(|line| line.split_once("lines more than 5 a second were withheld"))
        .map(|(before, _)| before.trim_end().rsplit(' ').next().unwrap().parse::<usize>().unwrap())
        .sum();
    let written = lines.iter().filter(|line| line.contains("of x")).count();
    assert_eq!(written + withheld, 10_000);
    assert!((5..500).contains(&written), "{written}");
}

#[tokio::test]
async fn endless_logging_ends_at_the_deadline() {
    let (_, failed) = check(json!({ "mode": "log", "amount": 4_000_000_000_u32 })).await;
    assert_eq!(failed, [(0, FailureKind::Deadline)]);
}

#[tokio::test]
async fn long_lines_are_cut() {
    let (lines, failed) = check(json!({ "mode": "log-large", "amount": 1_000_000 })).await;
    assert_eq!(failed, []);
    let [line] = lines.try_into().unwrap();
    assert!(line.contains("xxxx… (995904 bytes more)") && line.len() < 5000, "{line}");
}
