//! Guests that break the contract in their answers: each lie costs the events that it was told for, and no others.

use serde_json::{Value, json};
use synapse_core::stage::{Answer, FailureKind};

use crate::support::{batch, failed, kept, mode, mode_at, run, stage};

/// The guest lies whatever it is asked: every event fails, with the sentence.
async fn check(name: &str, config: Value, sentence: &str) {
    let run = run(name, config.clone(), &["a", "b"]).await;
    assert_eq!(failed(&run), [(0, FailureKind::BadAnswer), (1, FailureKind::BadAnswer)], "{name} {config}");
    for failure in &run.failures {
        assert!(failure.reason.contains(sentence), "{name} {config}: {}", failure.reason);
    }
    assert_eq!(run.usage.faults, 3, "{name} {config}");
}

#[tokio::test]
async fn a_filter_that_lies() {
    check("filter", mode("one-too-few"), "the list of verdicts has 0 entries for 1 rows").await;
    check("batch_filter", mode("one-too-few"), "kept has 0 entries for 1 rows").await;
    check("batch_filter", mode("one-too-many"), "kept has 2 entries for 1 rows").await;
    check("batch_filter", mode("bad-flag"), "`kept` holds 2 at row 0").await;
    check("batch_filter", mode("reject-beyond"), "row 1 of a batch of 1 is rejected").await;
    check("batch_filter", mode("reject-twice"), "row 0 is rejected twice").await;
    check("batch_filter", mode("not-utf8"), "invalid utf-8").await;
}

#[tokio::test]
async fn a_transform_that_lies() {
    check("transform", mode("nameless"), "an event emitted for row 0 has an attribute without a name").await;
    check("batch_transform", mode("stride-0"), "stride 0 is less than the 9 columns of an event").await;
    check("batch_transform", mode("stride-8"), "stride 8 is less than the 9 columns of an event").await;
    check("batch_transform", mode("ragged"), "17 ends are not a multiple of stride 9").await;
    check("batch_transform", mode("ends-descend"), "`batch` is malformed: row 0").await;
    check("batch_transform", mode("ends-beyond"), "`batch` is malformed: row 1").await;
    check("batch_transform", mode("not-utf8"), "column Id is not UTF-8").await;
    check("batch_transform", mode("parents-short"), "parents has 1 entries for 2 rows").await;
    check("batch_transform", mode("parents-beyond"), "`parents` names row 4294967295 of a batch of 1").await;
    check("batch_transform", mode("rejected-parent"), "row 0 is rejected and yet the parent of an event").await;
}

#[tokio::test]
async fn parents_out_of_order_are_a_lie_of_the_batch_only() {
    // Alone, each event's parents are in order: none is at fault.
    let run = run("batch_transform", mode("parents-descend"), &["a", "b"]).await;
    assert_eq!((failed(&run), run.usage.faults), (vec![], 1));
    assert!(matches!(run.answer, Answer::Rewrite { parents, .. } if parents == [0, 0, 1, 1]));
}

#[tokio::test]
async fn a_router_that_lies() {
    check("batch_router", mode("one-too-few"), "choice has 0 entries for 1 rows").await;
    check("batch_router", mode("choice-beyond"), "`choice` names set 1 of 1 at row 0").await;
    check("batch_router", mode("topic-beyond"), "`choices` names topic 1 of 1").await;
}

#[tokio::test]
async fn a_lie_about_one_event_costs_that_event() {
    let mut stage = stage("batch_filter", mode_at("one-too-many", "x")).await;
    let run = stage.run(&batch(&["a", "x", "drop", "b"])).await.unwrap();
    assert_eq!((kept(&run), failed(&run)), (&[true, false, false, true][..], vec![(1, FailureKind::BadAnswer)]));
    let run = stage.run(&batch(&["c"])).await.unwrap();
    assert_eq!((kept(&run), run.usage.faults), (&[true][..], 0));
}

#[tokio::test]
async fn reasons_are_cut_and_escaped() {
    let config = json!({ "mode": "long-reason", "amount": 10_000 });
    let run = run("batch_filter", config, &["a"]).await;
    assert_eq!(failed(&run), [(0, FailureKind::Rejected)]);
    let reason = &run.failures[0].reason;
    assert!(reason.starts_with("x\\nx\\n") && reason.ends_with("… (15904 bytes more)"), "{reason}");
}
