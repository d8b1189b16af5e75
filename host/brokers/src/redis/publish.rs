//! Publishing: one task writes everybody's `XADD`s over one connection and reads the ids.
//!
//! Whoever publishes encodes on his own thread and waits; the task joins what is there into one write and does not wait
//! for replies before it writes more. Several events are one transaction: all are added or none. What was sent over a
//! connection that broke may or may not have happened; it is answered with an error and never sent again.

use std::collections::VecDeque;
use std::sync::Arc;

use synapse_core::broker::BrokerErrorKind;
use synapse_core::topic::partition_of;
use synapse_core::{BrokerError, Offset, Output};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::command::{command, xadd};
use super::node::Node;
use super::resp::{EntryId, Scan, Scanner, Stop};
use super::topics::{Layout, offset};
use super::wire::{SEND_BYTES, Wire};
use crate::rows::key_of;

/// Most publishes that wait to be written.
const QUEUE_MAX: usize = 256;
/// Most publishes that were written and have no answer yet.
const IN_FLIGHT_MAX: usize = 1024;
const DOING: &str = "publish";

/// One publish, encoded.
pub(super) struct Request {
    commands: Vec<u8>,
    events: usize,
    done: oneshot::Sender<Result<Vec<EntryId>, BrokerError>>,
}

/// Where publishes are handed in.
#[derive(Clone)]
pub(super) struct Publisher {
    queue: mpsc::Sender<Request>,
}

impl Publisher {
    /// The queue, and its other end for [`run`].
    pub(super) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, requests)
    }

    /// Appends events and waits for their places.
    pub(super) async fn publish(&self, shared: &Shared, output: &Output) -> Result<Vec<(u32, Offset)>, BrokerError> {
        shared.check_own(&output.topic)?;
        let layout = shared.topics.layout(&output.topic.topic).await?;
        let events = output.events.len();
        if events == 0 {
            return Ok(Vec::new());
        }
        let (commands, partitions) = encode(output, &layout);
        let (done, answer) = oneshot::channel();
        let ended = || shared.node.error(BrokerErrorKind::Unavailable, "could not publish: the broker is closed");
        self.queue.send(Request { commands, events, done }).await.map_err(|_| ended())?;
        let ids = answer.await.map_err(|_| ended())??;
        if shared.retention.added(&output.topic.topic, &layout, events) {
            shared.retention.trim_full(&shared.control).await;
        }
        Ok(partitions.into_iter().zip(ids.into_iter().map(offset)).collect())
    }
}

fn encode(output: &Output, layout: &Layout) -> (Vec<u8>, Vec<u32>) {
    let events = output.events.len();
    let mut commands = Vec::with_capacity(output.events.bytes().len() * 2 + 128 * events);
    let mut partitions = Vec::with_capacity(events);
    if events > 1 {
        command(&mut commands, &[b"MULTI"]);
    }
    for event in output.events.events() {
        let partition = match layout.partitions() {
            1 => 0,
            many => partition_of(key_of(event).as_bytes(), many),
        };
        partitions.push(partition);
        xadd(&mut commands, &layout.keys[partition as usize], event, output.encoding);
    }
    if events > 1 {
        command(&mut commands, &[b"EXEC"]);
    }
    (commands, partitions)
}

/// Serves the queue until it ends; connects when there is something to send.
pub(super) async fn run(node: Arc<Node>, mut requests: mpsc::Receiver<Request>, stop: CancellationToken) {
    loop {
        let first = tokio::select! {
            () = stop.cancelled() => return,
            first = requests.recv() => first,
        };
        let Some(first) = first else { return };
        match Wire::open(&node).await {
            Err(error) => drop(first.done.send(Err(error))),
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
            self.wire.outbox.extend_from_slice(&request.commands);
            self.in_flight.push_back(Request { commands: Vec::new(), ..request });
            let room = self.wire.outbox.len() < SEND_BYTES && self.in_flight.len() < IN_FLIGHT_MAX;
            next = if room { requests.try_recv().ok() } else { None };
        }
        self.wire.send(DOING).await
    }

    /// Answers the requests whose replies are there.
    fn answer(&mut self) -> Result<(), BrokerError> {
        while let Some(request) = self.in_flight.front() {
            let mut scanner = Scanner::new(self.wire.unread());
            let ids = match ids(&mut scanner, request.events) {
                Ok(ids) => ids,
                Err(Stop::More) => return Ok(()),
                Err(Stop::Malformed(what)) => return Err(self.wire.node.garbled(DOING, what)),
            };
            let read = scanner.at();
            self.wire.consume(read);
            let answer = ids.map_err(|line| self.wire.node.refused(DOING, &line));
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
            drop(request.done.send(Err(self.wire.node.error(error.kind, &error.message))));
        }
    }
}

/// The replies to one request: the ids, or the error line that says why there are none.
fn ids(scanner: &mut Scanner<'_>, events: usize) -> Scan<Result<Vec<EntryId>, Vec<u8>>> {
    let mut refused = None;
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
        let read = |bytes: &str, events| ids(&mut Scanner::new(bytes.as_bytes()), events);
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
        assert!(matches!(read("$1\r\nx\r\n", 1), Err(Stop::Malformed(_))));
    }
}
