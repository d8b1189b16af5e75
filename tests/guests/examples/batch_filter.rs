//! A batch filter that can lie about every part of its answer.

wit_bindgen::generate!({ path: "../../wit", world: "batch-filter-plugin" });
synapse_test_guests::plugin!();
export!(Guest);

use exports::synapse::plugin::batch_filter::{Batch, Rejection, Selection};
use synapse_test_guests::columns::Columns;

impl exports::synapse::plugin::batch_filter::Guest for Guest {
    fn judge(batch: Batch) -> Selection {
        let batch = Columns { stride: batch.stride, ends: &batch.ends, bytes: &batch.bytes };
        let config = synapse_test_guests::config();
        let needle = config.needle.as_bytes();
        let mut selection = Selection { kept: Vec::with_capacity(batch.rows()), rejected: vec![] };
        for row in 0..batch.rows() {
            let id = batch.id(row);
            if config.mode.is_some() {
                synapse_test_guests::misbehave(id, log);
            }
            let found = needle.is_empty() || batch.data(row).windows(needle.len()).any(|window| window == needle);
            selection.kept.push(u8::from(found && id != "drop"));
            if id == "reject" {
                selection.rejected.push(Rejection { row: row as u32, reason: "no".to_owned() });
            }
        }
        if let Some(mode) = &config.mode
            && config.id.as_ref().is_none_or(|wanted| (0..batch.rows()).any(|row| batch.id(row) == wanted))
        {
            lie(mode, config.amount, batch.rows(), &mut selection);
        }
        selection
    }
}

fn lie(mode: &str, amount: usize, rows: usize, selection: &mut Selection) {
    let reject = |row: usize| Rejection { row: row as u32, reason: "no".to_owned() };
    match mode {
        "one-too-few" => drop(selection.kept.pop()),
        "one-too-many" => selection.kept.push(1),
        "bad-flag" => selection.kept[0] = 2,
        "reject-beyond" => selection.rejected.push(reject(rows)),
        "reject-twice" => selection.rejected.extend([reject(0), reject(0)]),
        "large-answer" => selection.kept = vec![1; amount],
        "not-utf8" => {
            // SAFETY: none; that is the point. The host must not believe that it is text.
            let reason = unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe]) };
            selection.rejected.push(Rejection { row: 0, reason });
        }
        "long-reason" => selection.rejected.push(Rejection { row: 0, reason: "x\n".repeat(amount) }),
        _ => {}
    }
}
