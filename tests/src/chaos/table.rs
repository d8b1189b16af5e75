//! The table of what was promised and what was observed.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Case, Observed};

const BEGIN: &str = "<!-- what was observed: begin -->";
const END: &str = "<!-- what was observed: end -->";

/// The table as Markdown; a case that could not be carried out has an error instead of what was observed.
pub fn markdown(rows: &[(&Case, Result<Observed>)]) -> String {
    let mut table = String::from(
        "| case | from → to | what goes wrong | promised | acknowledged | in the sink | lost | repeated | out of order | \
         first output after | caught up after |\n|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (case, observed) in rows {
        let Case { name, route, what, promise, .. } = case;
        let (notes, cells) = match observed {
            Ok(observed) => (observed.notes.iter().map(|note| format!("; {note}")).collect(), cells(observed)),
            Err(_) => (String::new(), "**could not be carried out** | | | | | |".to_owned()),
        };
        writeln!(table, "| `{name}` | {route} | {what}{notes} | {promise} | {cells} |")
            .expect("a string takes everything");
    }
    table
}

fn cells(observed: &Observed) -> String {
    let Observed { finding, breaks, first_output_after, caught_up_after, .. } = observed;
    let outputs = match finding.dead_letters {
        0 => finding.outputs.to_string(),
        dead => format!("{} and {dead} dead letters", finding.outputs),
    };
    let lost = match (finding.lost.len(), finding.lost_by_broker, finding.trimmed) {
        (0, ..) => "0".to_owned(),
        (lost, _, trimmed) if trimmed > 0 => format!("{lost} ({trimmed} counted as trimmed)"),
        (lost, by_broker, _) => format!("{lost} ({by_broker} by the broker)"),
    };
    let broken = if breaks.is_empty() { String::new() } else { format!(" **broken: {}**", breaks.join("; ")) };
    format!(
        "{} | {outputs} | {lost}{broken} | {} | {} | {} | {}",
        finding.acknowledged,
        finding.repeated.len(),
        finding.out_of_order.len(),
        seconds(*first_output_after),
        seconds(*caught_up_after),
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Puts new text between the two marks of a page.
///
/// # Errors
/// If they are not there.
pub fn replace_between_markers(page: &str, text: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("the page has no `{BEGIN}`"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("the page has no `{END}`"))?;
    Ok(format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_markers_is_replaced() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let replaced = replace_between_markers(&page, "new").unwrap();
        assert_eq!(replaced, format!("before\n{BEGIN}\n\nnew\n{END}\nafter\n"));
        assert!(replace_between_markers("nothing", "new").is_err());
    }
}
