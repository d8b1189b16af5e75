//! `synapse tail`: events of topics as they come.
//!
//! A connection that drops is taken up again where it ended, so nothing is missed and nothing comes twice. A topic that
//! does not exist yet is waited for. Text from events reaches a terminal only escaped.

use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{BoxStream, StreamExt, select_all, unfold};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderName};
use synapse_core::Event;
use synapse_core::codec::cloudevents;

use super::output::{escaped, grouped, shortened};
use super::sse::{Message, Messages};
use super::{Client, Connection, Error, Output, TopicArg};
use crate::http::view::{Lost, Problem, Undecodable};

/// A host says at least every 15 seconds that it is alive.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long to wait before connecting again: doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What the host says of a topic that does not exist.
const UNKNOWN_TOPIC: &str = "urn:synapse:problem:unknown-topic";

/// Letters of an event's data that are shown to people.
const DATA_LETTERS: usize = 120;

/// Prints events as they come, until it is stopped with Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which host.
    #[command(flatten)]
    pub connection: Connection,
    /// `broker/topic`, or `topic` on the default broker.
    #[arg(required = true, value_name = "TOPIC")]
    pub topics: Vec<TopicArg>,
    /// Where to begin: earliest, latest, a time such as 2026-01-31T12:00:00Z, or an offset.
    #[arg(long, value_name = "PLACE", default_value = "latest")]
    pub from: String,
    /// Only events whose type fits: `*` is any run of characters but `.`, `**` any run.
    #[arg(long = "type", value_name = "PATTERN")]
    pub kind: Option<String>,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

/// How often is looked whether anyone still reads.
const READER_LOOK: Duration = Duration::from_millis(250);

/// Runs the command until it is told to end.
///
/// # Errors
/// As the host says, or as the output.
pub async fn run(args: Args, client: &Client, out: &mut Output) -> anyhow::Result<()> {
    let followed = args.topics.iter().map(|topic| follow(client, topic, &args));
    let mut all = select_all(followed);
    // One for the whole run: an interrupt between two waits counts, too.
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        if let Some(interrupted) = interrupt.as_mut().now_or_never() {
            interrupted?;
            break;
        }
        // What has come so far is shown before we wait for more.
        let next = match all.next().now_or_never() {
            Some(next) => next,
            None => {
                out.flush()?;
                tokio::select! {
                    next = all.next() => next,
                    // A reader that has gone is noticed without an event to write, too.
                    () = tokio::time::sleep(READER_LOOK) => match out.reader_is_gone() {
                        true => break,
                        false => continue,
                    },
                    interrupted = interrupt.as_mut() => {
                        interrupted?;
                        break;
                    }
                }
            }
        };
        let Some((topic, item)) = next else { break };
        match item? {
            Item::Event(json) => {
                if out.is_json() {
                    out.bytes(&json)?;
                } else {
                    out.line(line(topic, &json))?;
                }
                left -= 1;
            }
            Item::Note(note) => out.note(format_args!("{topic}: {}", escaped(&note)))?,
        }
    }
    out.flush()?;
    Ok(())
}

/// What a topic has to tell.
enum Item {
    /// An event as one line of JSON.
    Event(Vec<u8>),
    /// Something for people.
    Note(String),
}

type Items<'a> = BoxStream<'a, (&'a TopicArg, Result<Item, Error>)>;

/// All that a topic has to tell, until an error that does not pass.
fn follow<'a>(client: &'a Client, topic: &'a TopicArg, args: &Args) -> Items<'a> {
    let mut parameters = vec![("from", args.from.as_str())];
    parameters.extend(args.kind.as_deref().map(|kind| ("type", kind)));
    let route = topic.route("/events", &parameters);
    let following = Following {
        client,
        route,
        latest: args.from == "latest",
        messages: None,
        last_id: None,
        retry: RETRY_FIRST,
        awaited: None,
    };
    let items = unfold(Some(following), move |following| async move {
        let mut following = following?;
        let item = following.next().await;
        let rest = item.is_ok().then_some(following);
        Some(((topic, item), rest))
    });
    Box::pin(items)
}

struct Following<'a> {
    client: &'a Client,
    route: String,
    /// Whether only new events are wanted.
    latest: bool,
    messages: Option<Messages<Incoming>>,
    /// Where to go on. Once there is one, a host that is away is waited for.
    last_id: Option<String>,
    retry: Duration,
    /// What is to be said once that is there which is waited for.
    awaited: Option<&'static str>,
}

impl Following<'_> {
    async fn next(&mut self) -> Result<Item, Error> {
        loop {
            let Some(messages) = &mut self.messages else {
                if let Some(note) = self.connect().await? {
                    return Ok(Item::Note(note));
                }
                continue;
            };
            match tokio::time::timeout(SILENCE_MAX, messages.next()).await {
                Ok(Ok(Some(message))) => {
                    if let Some(item) = self.item(message)? {
                        return Ok(item);
                    }
                }
                // The end, an error or silence: all the same to us.
                Ok(Ok(None) | Err(_)) | Err(_) => self.messages = None,
            }
        }
    }

    /// Connects, or waits a while. Says so the first time.
    async fn connect(&mut self) -> Result<Option<String>, Error> {
        let mut headers = vec![(ACCEPT, "text/event-stream".to_owned())];
        headers.extend(self.last_id.clone().map(|id| (HeaderName::from_static("last-event-id"), id)));
        match self.client.stream(&self.route, headers).await {
            Ok(response) => {
                self.messages = Some(Messages::new(response.into_body()));
                self.retry = RETRY_FIRST;
                Ok(self.awaited.take().map(str::to_owned))
            }
            Err(Error::Refused(problem)) if problem.kind == UNKNOWN_TOPIC => {
                if self.latest {
                    // Whatever it will hold has come after us.
                    self.last_id.get_or_insert_with(|| "*@earliest".to_owned());
                }
                Ok(self.wait("the topic is there", &problem.detail).await)
            }
            Err(error) if error.may_pass() && self.last_id.is_some() => {
                Ok(self.wait("the host is back", &error.to_string()).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Says the first time that it waits and why; waits later.
    async fn wait(&mut self, for_what: &'static str, why: &str) -> Option<String> {
        if self.awaited.replace(for_what) != Some(for_what) {
            return Some(format!("{why}; waiting"));
        }
        tokio::time::sleep(self.retry).await;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        None
    }

    fn item(&mut self, message: Message) -> Result<Option<Item>, Error> {
        if let Some(id) = message.id {
            self.last_id = Some(id);
        }
        let data = message.data.as_slice();
        match message.event.as_str() {
            "" if !data.is_empty() => Ok(Some(Item::Event(message.data))),
            "lost" => {
                let lost: Lost = self.read(data)?;
                let events = grouped(lost.events);
                Ok(Some(Item::Note(format!("{events} events were trimmed before they could be read"))))
            }
            "undecodable" => {
                let entry: Undecodable = self.read(data)?;
                Ok(Some(Item::Note(format!("{} is no event: {}", entry.position, entry.reason))))
            }
            "problem" => {
                let problem: Problem = self.read(data)?;
                self.messages = None;
                Ok(Some(Item::Note(problem.detail)))
            }
            _ => Ok(None),
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, data: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(data).map_err(|error| Error::Foreign {
            url: self.client.url().to_owned(),
            reason: format!("its stream is odd: {error}"),
        })
    }
}

/// An event for people: when, where, what, which, whose, and the beginning of its data.
fn line(topic: &TopicArg, json: &[u8]) -> String {
    let event = match cloudevents::to_event(json) {
        Ok(event) => event,
        Err(error) => return format!("{topic}  (not readable: {})", escaped(&error.to_string())),
    };
    let time = event.time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    let key = event.partition_key.as_deref().unwrap_or("-");
    let texts = [event.kind.as_str(), event.id.as_str(), key].map(|text| escaped(&shortened(text, DATA_LETTERS)));
    let reason = event.attribute("dlreason").map(|reason| format!("  [{}]", escaped(reason))).unwrap_or_default();
    format!("{time}  {topic}  {}  {}{reason}", texts.join("  "), data(&event)).trim_end().to_owned()
}

fn data(event: &Event) -> String {
    match std::str::from_utf8(&event.data) {
        Ok(text) => escaped(&shortened(text, DATA_LETTERS)),
        Err(_) => format!("({} bytes)", grouped(event.data.len() as u64)),
    }
}
