//! A batch transform: each event stays and is followed by a copy of it. It can lie about every part of its answer.

wit_bindgen::generate!({ path: "../../wit", world: "batch-transform-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::batch_transform::{Batch, Rejection, Rewrite};
use synapse_test_guests::columns::{Columns, STRIDE};

impl exports::synapse::plugin::batch_transform::Guest for Guest {
    fn apply(batch: Batch) -> Rewrite {
        let batch = Columns { stride: batch.stride, ends: &batch.ends, bytes: &batch.bytes };
        let (mut ends, mut bytes, mut parents, mut rejected) = (vec![], vec![], vec![], vec![]);
        for row in 0..batch.rows() {
            let (id, at) = (batch.id(row), row as u32);
            synapse_test_guests::misbehave(id, log);
            match id {
                "drop" => continue,
                "reject" => rejected.push(Rejection { row: at, reason: "no".to_owned() }),
                _ => {
                    batch.copy(row, "", &mut ends, &mut bytes);
                    batch.copy(row, "-copy", &mut ends, &mut bytes);
                    parents.extend([at, at]);
                }
            }
        }
        let batch = Batch { stride: STRIDE as u32, ends, bytes };
        let mut rewrite = Rewrite { batch, parents, rejected };
        lie(&mut rewrite);
        rewrite
    }
}

fn lie(rewrite: &mut Rewrite) {
    let config = synapse_test_guests::config();
    let batch = &mut rewrite.batch;
    match config.mode.as_deref().unwrap_or_default() {
        "stride-0" => batch.stride = 0,
        "stride-8" => batch.stride = 8,
        "ragged" => drop(batch.ends.pop()),
        "ends-descend" => batch.ends[0] = u32::MAX,
        "ends-beyond" => *batch.ends.last_mut().expect("there are events") += 1,
        "not-utf8" => batch.bytes[0] = 0xff,
        "parents-short" => drop(rewrite.parents.pop()),
        "parents-descend" => rewrite.parents.reverse(),
        "parents-beyond" => *rewrite.parents.last_mut().expect("there are events") = u32::MAX,
        "rejected-parent" => rewrite.rejected.push(Rejection { row: 0, reason: "no".to_owned() }),
        "large-answer" => batch.bytes = vec![0; config.amount],
        _ => {}
    }
}
