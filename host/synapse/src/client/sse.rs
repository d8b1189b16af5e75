//! Reads server-sent events from an answer's body.
//!
//! Only what hosts send is understood: `event`, `data` and `id`, lines that end in LF or CRLF. A message without data is
//! handed out, too: its id counts. Nothing here knows what messages mean.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};

/// Size in bytes of one message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// Its name; empty for the ordinary ones.
    pub(super) event: String,
    /// Its data, lines joined by LF.
    pub(super) data: Vec<u8>,
    /// Where to go on behind it, if it says so.
    pub(super) id: Option<String>,
}

/// A stream of messages.
pub(super) struct Messages<B> {
    body: B,
    /// What has arrived and was not looked at; `seen` bytes of it hold no line feed.
    arrived: Vec<u8>,
    seen: usize,
    message: Message,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(body: B) -> Self {
        Self { body, arrived: Vec::new(), seen: 0, message: Message::default() }
    }

    /// The next message; `None` once the stream has ended. What had begun by then is forgotten.
    ///
    /// # Errors
    /// Why the stream broke off.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, String> {
        loop {
            while let Some(at) = self.arrived[self.seen..].iter().position(|byte| *byte == b'\n') {
                let end = self.seen + at;
                let line: Vec<u8> = self.arrived.drain(..=end).collect();
                self.seen = 0;
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if self.line(line) {
                    return Ok(Some(std::mem::take(&mut self.message)));
                }
            }
            self.seen = self.arrived.len();
            if self.seen + self.message.data.len() > MESSAGE_BYTES_MAX {
                return Err(format!("a message is larger than {MESSAGE_BYTES_MAX} bytes"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => self.arrived.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    /// Takes a line in; tells whether it ended a message.
    fn line(&mut self, line: &[u8]) -> bool {
        if line.is_empty() {
            return self.message != Message::default();
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (line, &b""[..]),
        };
        match name {
            b"event" => self.message.event = String::from_utf8_lossy(value).into_owned(),
            b"id" => self.message.id = Some(String::from_utf8_lossy(value).into_owned()),
            b"data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push(b'\n');
                }
                self.message.data.extend_from_slice(value);
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    async fn read(pieces: Vec<&'static [u8]>) -> Vec<(String, String, Option<String>)> {
        let frames = pieces.into_iter().map(|piece| Ok::<_, String>(Frame::data(Bytes::from_static(piece))));
        let mut messages = Messages::new(StreamBody::new(stream::iter(frames)));
        let mut read = Vec::new();
        while let Some(message) = messages.next().await.unwrap() {
            read.push((message.event, String::from_utf8(message.data).unwrap(), message.id));
        }
        read
    }

    #[tokio::test]
    async fn messages_come_however_they_are_cut() {
        let text = b": hello\r\nretry: 1000\nid: 0@1\n\n\nid: 0@2\ndata: {\"a\":1}\n\nevent: lost\ndata:x\ndata: y\n\nid: 0@3\ndata: cut";
        let expected = [
            (String::new(), String::new(), Some("0@1".to_owned())),
            (String::new(), "{\"a\":1}".to_owned(), Some("0@2".to_owned())),
            ("lost".to_owned(), "x\ny".to_owned(), None),
        ];
        assert_eq!(read(vec![text]).await, expected);
        assert_eq!(read(text.chunks(1).collect()).await, expected);
        assert_eq!(read(text.chunks(7).collect()).await, expected);
    }
}
