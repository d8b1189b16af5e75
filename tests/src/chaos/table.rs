//! The table of what was promised and what was observed.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Case, Observed};

const BEGIN: &str = "<!-- what was observed: begin -->";
/// Begins the line above a table that says what it comes to.
const SUMMARY: &str = "**What was promised was kept in";
/// In rows of promises that were not kept, and of cases that could not be carried out.
const BROKEN: &str = "**broken: ";
const UNTRIED: &str = "**could not be carried out**";
const END: &str = "<!-- what was observed: end -->";

/// What a table comes to: a line for above it.
pub fn summary(table: &str) -> String {
    let rows = |what: &str| table.lines().filter(|line| line.starts_with("| `") && line.contains(what)).count();
    let [all, broken, untried] = [rows(""), rows(BROKEN), rows(UNTRIED)];
    let rest = if untried == 0 { String::new() } else { format!("; {untried} more could not be carried out") };
    format!("{SUMMARY} {} of {} cases{rest}.**", all - broken - untried, all - untried)
}

/// The table as Markdown; a case that could not be carried out has an error instead of what was observed.
pub fn markdown(rows: &[(&Case, Result<Observed>)]) -> String {
    let mut table = String::from(
        "| case | from → to | what goes wrong | promised | acknowledged | in the sink | lost | repeated | out of order | \
         first output after | caught up after |\n|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (case, observed) in rows {
        let Case { name, route, what, promise, .. } = case;
        let (lease, notes, cells) = match observed {
            Ok(observed) => {
                let lease = observed.lease.map_or_else(String::new, |lease| format!(", lease {lease}"));
                (lease, observed.notes.iter().map(|note| format!("; {note}")).collect(), cells(observed))
            }
            Err(_) => (String::new(), String::new(), format!("{UNTRIED} | | | | | |")),
        };
        writeln!(table, "| `{name}` | {route}{lease} | {what}{notes} | {promise} | {cells} |")
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
    let broken = if breaks.is_empty() { String::new() } else { format!(" {BROKEN}{}**", breaks.join("; ")) };
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
    let (before, _, after) = parts(page)?;
    Ok(format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))
}

/// Takes the rows of `table` over into the page's table, where these cases have rows already, and adds a sentence on them
/// above it.
///
/// # Errors
/// If the page has no such table, or no such rows.
pub fn replace_rows(page: &str, sentence: &str, table: &str) -> Result<String> {
    let (_, old, _) = parts(page)?;
    let mut lines: Vec<&str> = old.trim().lines().collect();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let name = row.split('`').nth(1).context("a row begins with the case's name")?;
        let place = lines.iter_mut().find(|line| line.starts_with(&format!("| `{name}` |")));
        *place.with_context(|| format!("the page has no row of `{name}`"))? = row;
    }
    let summary = summary(&lines.join("\n"));
    if let Some(line) = lines.iter_mut().find(|line| line.starts_with(SUMMARY)) {
        *line = &summary;
    }
    let table_begins = lines.iter().position(|line| line.starts_with('|')).context("the page has no table")?;
    lines.insert(table_begins.saturating_sub(1), sentence);
    replace_between_markers(page, &format!("{}\n", lines.join("\n")))
}

fn parts(page: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("the page has no `{BEGIN}`"))?;
    let (between, after) = rest.split_once(END).with_context(|| format!("the page has no `{END}`"))?;
    Ok((before, between, after))
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

    #[test]
    fn rows_are_replaced_one_by_one() {
        let table = "| case | x |\n|---|---|\n| `a` | 1 |\n| `a-b` | 2 |\n";
        let old = format!("{}\n\nFirst run.\n\n{table}", summary(table));
        let page = replace_between_markers(&format!("{BEGIN}{END}"), &old).unwrap();
        let new = "| case | x |\n|---|---|\n| `a` | 3 **broken: one was lost** |\n";
        let replaced = replace_rows(&page, "`a` again.", new).unwrap();
        let expected = "**What was promised was kept in 1 of 2 cases.**\n\nFirst run.\n`a` again.\n\n\
                        | case | x |\n|---|---|\n| `a` | 3 **broken: one was lost** |\n| `a-b` | 2 |\n";
        assert_eq!(replaced, format!("{BEGIN}\n\n{expected}\n{END}"));
        assert!(replace_rows(&page, "", "| `c` | 1 |").is_err());
        let untried = summary(&format!("{table}| `c` | {UNTRIED} |\n"));
        assert_eq!(untried, "**What was promised was kept in 2 of 2 cases; 1 more could not be carried out.**");
    }
}
