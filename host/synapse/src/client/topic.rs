//! `synapse topic`: what topics there are, and what is in them.

use super::output::{grouped, sized};
use super::{Client, Connection, Output, TopicArg, encoded};
use crate::http::view::{Retention, Topic, Topics};

/// Looks at topics.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which host.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with topics.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// List all topics, or those of one broker.
    List {
        /// Only this broker's.
        #[arg(long)]
        broker: Option<String>,
    },
    /// Show one topic and its partitions.
    Show {
        /// `broker/topic`, or `topic` on the default broker.
        topic: TopicArg,
    },
}

/// Runs the command.
///
/// # Errors
/// As the host says, or as the output.
pub async fn run(args: Args, client: &Client, out: &mut Output) -> anyhow::Result<()> {
    match args.command {
        Command::List { broker } => {
            let parameter = broker.map(|broker| format!("?broker={}", encoded(&broker))).unwrap_or_default();
            list(&client.get(&format!("/v1/topics{parameter}")).await?, out)?;
        }
        Command::Show { topic } => show(&client.get(&topic.route("", &[])).await?, out)?,
    }
    out.flush()?;
    Ok(())
}

fn list(all: &Topics, out: &mut Output) -> std::io::Result<()> {
    if out.is_json() {
        all.topics.iter().try_for_each(|topic| out.object(topic))?;
    } else if all.topics.is_empty() && all.unavailable.is_empty() {
        out.line("no topics yet: one comes into being when something is published to it")?;
    } else if !all.topics.is_empty() {
        let row = |topic: &Topic| {
            let partitions = topic.partitions.len().to_string();
            let size = topic.bytes.map_or("-".to_owned(), sized);
            [topic.path.to_string(), partitions, counted(topic, topic.events), size]
        };
        out.table(["TOPIC", "PARTITIONS", "EVENTS", "SIZE"], all.topics.iter().map(row).collect())?;
    }
    all.unavailable.iter().try_for_each(|broker| out.note(format_args!("not listed: {}", broker.reason)))
}

fn show(topic: &Topic, out: &mut Output) -> std::io::Result<()> {
    if out.is_json() {
        return out.object(topic);
    }
    out.line(format_args!("topic      {}", topic.path))?;
    out.line(format_args!("events     {}", counted(topic, topic.events)))?;
    if let Some(bytes) = topic.bytes {
        out.line(format_args!("size       {}", sized(bytes)))?;
    }
    out.line(format_args!("retention  {}", kept(topic.retention)))?;
    out.line("")?;
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows = topic.partitions.iter().map(|partition| {
        [
            partition.partition.to_string(),
            text(partition.earliest.map(|offset| offset.to_string())),
            text(partition.latest.map(|offset| offset.to_string())),
            counted(topic, partition.events),
            text(partition.bytes.map(sized)),
        ]
    });
    out.table(["PARTITION", "EARLIEST", "LATEST", "EVENTS", "SIZE"], rows.collect())
}

/// How many events there are; on Kafka at most, since the ends of transactions count, too.
fn counted(topic: &Topic, events: u64) -> String {
    let exact = grouped(events);
    if topic.at_most { format!("≤ {exact}") } else { exact }
}

fn kept(retention: Option<Retention>) -> String {
    let Some(retention) = retention else { return "not configured".to_owned() };
    let bounds = [
        retention.age_seconds.map(|seconds| format!("{} s", grouped(seconds))),
        retention.bytes.map(|bytes| format!("{} a partition", sized(bytes))),
        retention.events.map(|events| format!("{} events a partition", grouped(events))),
    ];
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    if bounds.is_empty() { "without bounds".to_owned() } else { bounds.join(", ") }
}
