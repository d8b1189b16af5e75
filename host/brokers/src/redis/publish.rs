//! Publishing: for each node one task writes everybody's `XADD`s over one connection and reads the ids.
//!
//! Whoever publishes encodes on his own thread and waits; the task joins what is there into one write and does not wait
//! for replies before it writes more. Several events are one transaction: all are added or none; in a cluster that holds
//! for the events of each partition. What was sent over a connection that broke may or may not have happened; it is
//! answered with an error and never sent again. What a node refused since the slot is elsewhere did not happen, and is
//! sent there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use synapse_core::broker::BrokerErrorKind;
use synapse_core::topic::partition_of;
use synapse_core::{BrokerError, Offset, Output};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::command::{command, xadd};
use super::node::Node;
use super::nodes::Redirect;
use super::resp::{EntryId, Scan, Scanner, Stop};
use super::topics::{Layout, offset};
use super::wire::{SEND_BYTES, Wire};
use crate::rows::key_of;

/// Most publishes that wait to be written.
const QUEUE_MAX: usize = 256;
/// Most publishes that were written and have no answer yet.
const IN_FLIGHT_MAX: usize = 1024;
/// How often events are sent on to another node, or again.
const HOPS_MAX: usize = 8;
/// How long events wait whose stream is on its way to another node.
const HOP_WAIT: Duration = Duration::from_millis(50);
const DOING: &str = "publish";

/// Events that one transaction adds.
pub(super) struct Part {
    /// A stream that is written, and with it the node; on one node it stands for all of them.
    stream: String,
    /// The rows of the batch, with their partitions.
    rows: Vec<(usize, u32)>,
    commands: Bytes,
}

/// One part on its way.
pub(super) struct Request {
    commands: Bytes,
    /// Whether the commands begin with `ASKING`, which has a reply of its own.
    asking: bool,
    events: usize,
    done: oneshot::Sender<Result<Vec<EntryId>, Failed>>,
}

/// Why there is no id of an event.
enum Failed {
    /// Nothing was added: the server answered with this line.
    Refused(Vec<u8>),
    /// The events may or may not have been added.
    Lost(BrokerError),
}

type Answer = oneshot::Receiver<Result<Vec<EntryId>, Failed>>;

/// Where publishes are handed in.
#[derive(Default)]
pub(super) struct Publisher {
    /// By the address of the node.
    queues: Mutex<HashMap<String, mpsc::Sender<Request>>>,
}

impl Publisher {
    /// Appends events and waits for their places.
    pub(super) async fn publish(&self, shared: &Shared, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        shared.check_own(&output.topic)?;
        let layout = shared.topics.layout(&output.topic.topic).await.map_err(BrokerError::before_anything)?;
        let events = output.events.len();
        if events == 0 {
            return Ok(Vec::new());
        }
        let parts = encode(output, &layout, shared.nodes.is_cluster(), |_| true);
        let mut places = vec![(0, offset(EntryId::ZERO)); events];
        for (part, ids) in parts.iter().zip(self.write(shared, &parts).await?) {
            for (&(row, partition), id) in part.rows.iter().zip(ids) {
                places[row] = (partition, offset(id));
            }
        }
        if shared.retention.added(&output.topic.topic, &layout, events) {
            shared.retention.trim_full(&shared.control).await;
        }
        Ok(places)
    }

    /// Adds parts and waits for the ids of each: those of one stream one after the other, since what has to be sent
    /// again would come behind the next, and the streams side by side.
    pub(super) async fn write(&self, shared: &Shared, parts: &[Part]) -> Result<Vec<Vec<EntryId>>, BrokerError> {
        let mut streams: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, part) in parts.iter().enumerate() {
            streams.entry(&part.stream).or_default().push(index);
        }
        let write_stream = async |indices: Vec<usize>| {
            let mut written = Vec::with_capacity(indices.len());
            for index in indices {
                let node = shared.nodes.owner(&parts[index].stream).await?;
                let answer = self.send(shared, &node, &parts[index], false).await?;
                written.push((index, self.settle(shared, &parts[index], node, answer).await?));
            }
            Ok(written)
        };
        let mut written: Vec<_> =
            try_join_all(streams.into_values().map(write_stream)).await?.into_iter().flatten().collect();
        written.sort_unstable_by_key(|(index, _)| *index);
        Ok(written.into_iter().map(|(_, ids)| ids).collect())
    }

    /// Waits for the ids of a part, wherever its stream goes meanwhile.
    async fn settle(
        &self,
        shared: &Shared,
        part: &Part,
        mut node: Arc<Node>,
        mut answer: Answer,
    ) -> Result<Vec<EntryId>, BrokerError> {
        for _ in 0..HOPS_MAX {
            let line = match answer.await.map_err(|_| ended(shared))? {
                Ok(ids) => return Ok(ids),
                Err(Failed::Refused(line)) => line,
                Err(Failed::Lost(error)) => {
                    shared.nodes.distrust();
                    return Err(error);
                }
            };
            let asking = match shared.nodes.redirect(&node, &line) {
                None => return Err(node.refused(DOING, &line)),
                Some(Redirect::Moved(next)) => {
                    node = next;
                    false
                }
                Some(Redirect::Ask(next)) => {
                    node = next;
                    true
                }
                Some(Redirect::Later) => {
                    sleep(HOP_WAIT).await;
                    false
                }
            };
            answer = self.send(shared, &node, part, asking).await?;
        }
        Err(node.error(
            BrokerErrorKind::Unavailable,
            format_args!("could not {DOING}: the nodes sent the stream `{}` on {HOPS_MAX} times", part.stream),
        ))
    }

    async fn send(&self, shared: &Shared, node: &Arc<Node>, part: &Part, asking: bool) -> Result<Answer, BrokerError> {
        let (done, answer) = oneshot::channel();
        let request = Request { commands: part.commands.clone(), asking, events: part.rows.len(), done };
        self.queue(shared, node).send(request).await.map_err(|_| ended(shared))?;
        Ok(answer)
    }

    fn queue(&self, shared: &Shared, node: &Arc<Node>) -> mpsc::Sender<Request> {
        let mut queues = self.queues.lock().expect("nothing panics while it holds this lock");
        let queue = queues.entry(node.address.clone()).or_insert_with(|| {
            let (queue, requests) = mpsc::channel(QUEUE_MAX);
            shared.tasks.spawn(run(Arc::clone(node), requests, shared.stop.clone()));
            queue
        });
        queue.clone()
    }
}

fn ended(shared: &Shared) -> BrokerError {
    shared.node.error(BrokerErrorKind::Unavailable, "could not publish: the broker is closed")
}

/// Encodes the events whose streams are wanted: all as one part, or those of each stream if they lie `apart`.
pub(super) fn encode(output: &Output, layout: &Layout, apart: bool, wanted: impl Fn(&str) -> bool) -> Vec<Part> {
    let mut rows: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
    for (row, event) in output.events.events().enumerate() {
        let partition = match layout.partitions() {
            1 => 0,
            many => partition_of(key_of(event).as_bytes(), many),
        };
        if wanted(&layout.keys[partition as usize]) {
            rows.entry(if apart { partition } else { 0 }).or_default().push((row, partition));
        }
    }
    let part = |rows: Vec<(usize, u32)>| {
        let mut commands =
            Vec::with_capacity((output.events.bytes().len() * 2 / output.events.len() + 128) * rows.len());
        if rows.len() > 1 {
            command(&mut commands, &[b"MULTI"]);
        }
        for &(row, partition) in &rows {
            xadd(&mut commands, &layout.keys[partition as usize], output.events.event(row), output.encoding);
        }
        if rows.len() > 1 {
            command(&mut commands, &[b"EXEC"]);
        }
        Part { stream: layout.keys[rows[0].1 as usize].clone(), rows, commands: commands.into() }
    };
    rows.into_values().map(part).collect()
}

/// Serves the queue until it ends; connects when there is something to send.
async fn run(node: Arc<Node>, mut requests: mpsc::Receiver<Request>, stop: CancellationToken) {
    loop {
        let first = tokio::select! {
            () = stop.cancelled() => return,
            first = requests.recv() => first,
        };
        let Some(first) = first else { return };
        match Wire::open(&node).await {
            Err(error) => drop(first.done.send(Err(Failed::Lost(error)))),
            Ok(wire) => {
                let mut connection = Connection { wire, in_flight: VecDeque::new() };
                let served = tokio::select! {
                    () = stop.cancelled() => return,
                    served = connection.serve(first, &mut requests) => served,
                };
                match served {
                    Ok(()) => return,
                    Err(error) => connection.fail(&error),
                }
            }
        }
    }
}

struct Connection {
    wire: Wire,
    in_flight: VecDeque<Request>,
}

impl Connection {
    /// Ends with the queue, or with the connection.
    async fn serve(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) -> Result<(), BrokerError> {
        self.write(first, requests).await?;
        loop {
            self.answer()?;
            let timeout = self.wire.node.timeout;
            tokio::select! {
                biased;
                request = requests.recv(), if self.in_flight.len() < IN_FLIGHT_MAX => match request {
                    Some(request) => self.write(request, requests).await?,
                    None if self.in_flight.is_empty() => return Ok(()),
                    None => self.wire.fill(DOING, timeout).await?,
                },
                filled = self.wire.fill_within(DOING, timeout) => match filled {
                    Ok(true) => {}
                    Ok(false) if self.in_flight.is_empty() => self.wire.rest(),
                    Ok(false) => return Err(self.wire.node.late(DOING)),
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Sends a request and what else waits.
    async fn write(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) -> Result<(), BrokerError> {
        let mut next = Some(first);
        while let Some(request) = next {
            if request.asking {
                command(&mut self.wire.outbox, &[b"ASKING"]);
            }
            self.wire.outbox.extend_from_slice(&request.commands);
            self.in_flight.push_back(Request { commands: Bytes::new(), ..request });
            let room = self.wire.outbox.len() < SEND_BYTES && self.in_flight.len() < IN_FLIGHT_MAX;
            next = if room { requests.try_recv().ok() } else { None };
        }
        self.wire.send(DOING).await
    }

    /// Answers the requests whose replies are there.
    fn answer(&mut self) -> Result<(), BrokerError> {
        while let Some(request) = self.in_flight.front() {
            let mut scanner = Scanner::new(self.wire.unread());
            let ids = match ids(&mut scanner, request.asking, request.events) {
                Ok(ids) => ids,
                Err(Stop::More) => return Ok(()),
                Err(Stop::Malformed(what)) => return Err(self.wire.node.garbled(DOING, what)),
            };
            let read = scanner.at();
            self.wire.consume(read);
            let answer = ids.map_err(Failed::Refused);
            if let Some(request) = self.in_flight.pop_front() {
                // Whoever gave up waiting does not need it.
                drop(request.done.send(answer));
            }
        }
        Ok(())
    }

    /// Tells everyone who waits that the connection is gone.
    fn fail(&mut self, error: &BrokerError) {
        for request in self.in_flight.drain(..) {
            drop(request.done.send(Err(Failed::Lost(self.wire.node.error(error.kind, &error.message)))));
        }
    }
}

/// The replies to one request: the ids, or the error line that says why there are none.
fn ids(scanner: &mut Scanner<'_>, asking: bool, events: usize) -> Scan<Result<Vec<EntryId>, Vec<u8>>> {
    let mut refused = None;
    if asking {
        scanner.outcome()?;
    }
    if events > 1 {
        for _ in 0..=events {
            let line = scanner.outcome()?.map(<[u8]>::to_vec);
            refused = refused.or(line);
        }
        if let Some(line) = scanner.error()? {
            return Ok(Err(refused.unwrap_or_else(|| line.to_vec())));
        }
        if scanner.array()? != Some(events) {
            return Err(Stop::Malformed("EXEC without a reply for each command"));
        }
    }
    let mut ids = Vec::new();
    for _ in 0..events {
        if let Some(line) = scanner.error()? {
            refused = refused.or(Some(line.to_vec()));
            continue;
        }
        let id = scanner.bulk()?.and_then(EntryId::parse);
        ids.push(id.ok_or(Stop::Malformed("XADD without an id"))?);
    }
    Ok(refused.map_or(Ok(ids), Err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_to_a_publish() {
        let read = |bytes: &str, events| ids(&mut Scanner::new(bytes.as_bytes()), false, events);
        let id = |ms| EntryId { ms, seq: 0 };
        assert_eq!(read("$3\r\n1-0\r\n", 1), Ok(Ok(vec![id(1)])));
        assert_eq!(read("-OOM no\r\n", 1), Ok(Err(b"OOM no".to_vec())));
        let queued = "+OK\r\n+QUEUED\r\n+QUEUED\r\n";
        let added = format!("{queued}*2\r\n$3\r\n1-0\r\n$3\r\n2-0\r\n");
        assert_eq!(read(&added, 2), Ok(Ok(vec![id(1), id(2)])));
        for cut in 0..added.len() {
            assert_eq!(read(&added[..cut], 2), Err(Stop::More));
        }
        let refused = "+OK\r\n-OOM no\r\n-OOM no\r\n-EXECABORT discarded\r\n";
        assert_eq!(read(refused, 2), Ok(Err(b"OOM no".to_vec())));
        let moved = "+OK\r\n-MOVED 7 h:1\r\n-MOVED 7 h:1\r\n-EXECABORT discarded\r\n";
        assert_eq!(read(moved, 2), Ok(Err(b"MOVED 7 h:1".to_vec())));
        let asked = format!("+OK\r\n{added}");
        assert_eq!(ids(&mut Scanner::new(asked.as_bytes()), true, 2), Ok(Ok(vec![id(1), id(2)])));
        assert!(matches!(read("$1\r\nx\r\n", 1), Err(Stop::Malformed(_))));
    }
}
