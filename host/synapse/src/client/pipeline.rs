//! `synapse pipeline`: how pipelines are, and which plugins handled what.

use super::output::{escaped, grouped};
use super::{Client, Connection, Output};
use crate::http::view::{History, Lane, Pipeline, Pipelines};

/// Looks at pipelines.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which host.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with pipelines.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// List all pipelines.
    List,
    /// Show one pipeline: its guarantee, its stages and its lanes on all hosts.
    ///
    /// OWNER is the host that works on a lane; COMMITTED the offset of the last event that is done with, its effects
    /// durable; LAG how many entries lie behind that one.
    Show {
        /// Its name.
        name: String,
    },
    /// Show which plugins handled which part of what a pipeline has read.
    History {
        /// Its name.
        name: String,
    },
}

/// Runs the command.
///
/// # Errors
/// As the host says, or as the output.
pub async fn run(args: Args, client: &Client, out: &mut Output) -> anyhow::Result<()> {
    match args.command {
        Command::List => list(&client.get("/v1/pipelines").await?, out)?,
        Command::Show { name } => show(&client.get(&route(&name, "")).await?, out)?,
        Command::History { name } => history(&client.get(&route(&name, "/history")).await?, out)?,
    }
    out.flush()?;
    Ok(())
}

fn route(name: &str, below: &str) -> String {
    format!("/v1/pipelines/{}{below}", super::encoded(name))
}

fn list(all: &Pipelines, out: &mut Output) -> std::io::Result<()> {
    if out.is_json() {
        return all.pipelines.iter().try_for_each(|pipeline| out.object(pipeline));
    }
    if all.pipelines.is_empty() {
        return out.line("no pipelines: add [[pipelines]] to the host's configuration");
    }
    let row = |pipeline: &Pipeline| {
        let running = pipeline.lanes.iter().filter(|lane| lane.health == "running").count();
        [
            pipeline.name.clone(),
            pipeline.state.clone(),
            format!("{running}/{}", pipeline.lanes.len()),
            pipeline.guarantee.delivery.clone(),
            joined(&pipeline.from),
            joined(&pipeline.to),
        ]
    };
    let rows = all.pipelines.iter().map(row).collect();
    out.table(["PIPELINE", "STATE", "LANES HERE", "GUARANTEE", "FROM", "TO"], rows)?;
    for pipeline in &all.pipelines {
        if let Some(reason) = &pipeline.reason {
            let how = if pipeline.state == "waiting" { "waits" } else { "stopped" };
            out.note(format_args!("{} {how}: {}", pipeline.name, escaped(reason)))?;
        }
    }
    Ok(())
}

fn joined(names: &[impl ToString]) -> String {
    if names.is_empty() {
        return "-".to_owned();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn show(pipeline: &Pipeline, out: &mut Output) -> std::io::Result<()> {
    if out.is_json() {
        return out.object(pipeline);
    }
    out.line(format_args!("pipeline      {} (tenant {})", pipeline.name, pipeline.tenant))?;
    out.line(format_args!("state         {}", pipeline.state))?;
    let told =
        [("reason      ", &pipeline.reason), ("not in use  ", &pipeline.refused), ("not seen    ", &pipeline.unseen)];
    for (name, reason) in told {
        if let Some(reason) = reason {
            out.line(format_args!("{name}  {}", escaped(reason)))?;
        }
    }
    out.line(format_args!("guarantee     {}: {}", pipeline.guarantee.delivery, pipeline.guarantee.why))?;
    out.line(format_args!("from          {}", joined(&pipeline.from)))?;
    out.line(format_args!("to            {}", joined(&pipeline.to)))?;
    out.line(format_args!("dead letters  {}", pipeline.dead_letters))?;
    if !pipeline.stages.is_empty() {
        out.line("")?;
        let rows = pipeline.stages.iter().map(|stage| match &stage.plugin {
            Some(plugin) => [
                stage.name.clone(),
                format!("{}@{}", plugin.name, plugin.version),
                plugin.kind.clone(),
                plugin.digest.clone(),
            ],
            None => [stage.name.clone(), "not loaded".to_owned(), String::new(), String::new()],
        });
        out.table(["STAGE", "PLUGIN", "KIND", "DIGEST"], rows.collect())?;
    }
    if !pipeline.lanes.is_empty() {
        out.line("")?;
        out.table(
            ["LANE", "OWNER", "HEALTH", "COMMITTED", "LAG", "REASON"],
            pipeline.lanes.iter().map(|at| lane(at, &pipeline.host)).collect(),
        )?;
    }
    Ok(())
}

fn lane(lane: &Lane, here: &str) -> [String; 6] {
    let owner = match &lane.owner {
        Some(owner) if owner == here => format!("{owner} (this host)"),
        Some(owner) => owner.clone(),
        None => "-".to_owned(),
    };
    [
        lane.partition.clone(),
        owner,
        lane.health.clone(),
        lane.committed.map_or_else(|| "-".to_owned(), |offset| offset.to_string()),
        lane.lag.map_or_else(|| "-".to_owned(), grouped),
        lane.reason.clone().unwrap_or_default(),
    ]
}

fn history(history: &History, out: &mut Output) -> std::io::Result<()> {
    if out.is_json() {
        return history.lanes.iter().try_for_each(|lane| out.object(lane));
    }
    let mut rows = Vec::new();
    for lane in &history.lanes {
        for boundary in &lane.boundaries {
            let stages = boundary.stages.iter().map(|stage| format!("{} {}", stage.name, stage.digest));
            let stages = stages.collect::<Vec<_>>().join(", ");
            rows.push([lane.partition.clone(), boundary.from.to_string(), stages]);
        }
    }
    if rows.is_empty() {
        return out.line("nothing has been handled yet");
    }
    out.table(["LANE", "FROM", "STAGES AND THEIR PLUGINS' DIGESTS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_asked_is_named_as_such() {
        let at = |owner: Option<&str>| Lane {
            partition: "k/t/0".to_owned(),
            health: "running".to_owned(),
            owner: owner.map(str::to_owned),
            reason: None,
            committed: None,
            lag: None,
        };
        let owner = |host| lane(&at(host), "one")[1].clone();
        assert_eq!([owner(Some("one")), owner(Some("two")), owner(None)], ["one (this host)", "two", "-"]);
    }
}
