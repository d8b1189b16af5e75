//! Writing commands: RESP arrays of bulk strings, appended to one buffer.
//!
//! Entries are written straight from the columns of a batch. This module does not know sockets or replies.

use std::fmt::Write as _;

use synapse_core::codec;
use synapse_core::event::EventRef;
use synapse_core::spec::Encoding;

use super::resp::EntryId;

/// Appends one command.
pub(super) fn command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    length(out, b'*', arguments.len());
    for argument in arguments {
        bulk(out, argument);
    }
}

/// Appends a command of fixed arguments followed by entry ids.
pub(super) fn command_with_ids(out: &mut Vec<u8>, arguments: &[&[u8]], ids: &[EntryId]) {
    length(out, b'*', arguments.len() + ids.len());
    for argument in arguments {
        bulk(out, argument);
    }
    let mut text = String::with_capacity(40);
    for id in ids {
        text.clear();
        write!(text, "{id}").expect("a String takes all that is written");
        bulk(out, text.as_bytes());
    }
}

/// Appends `XADD key *` with the fields of an event.
pub(super) fn xadd(out: &mut Vec<u8>, key: &str, event: EventRef<'_>, encoding: Encoding) {
    // Most events have between 4 and 48 fields, so that the number of arguments has two digits; it is known last.
    let start = out.len();
    out.extend_from_slice(b"*00\r\n$4\r\nXADD\r\n");
    bulk(out, key.as_bytes());
    out.extend_from_slice(b"$1\r\n*\r\n");
    let mut arguments = 3;
    codec::redis::encode(event, encoding, |name, value| {
        bulk(out, name);
        bulk(out, value);
        arguments += 2;
    });
    if (10..100).contains(&arguments) {
        out[start + 1] = b'0' + (arguments / 10) as u8;
        out[start + 2] = b'0' + (arguments % 10) as u8;
    } else {
        out.splice(start + 1..start + 3, arguments.to_string().into_bytes());
    }
}

#[inline]
fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    length(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn length(out: &mut Vec<u8>, kind: u8, length: usize) {
    let digit = |number: usize| b'0' + (number % 10) as u8;
    match length {
        0..10 => out.extend_from_slice(&[kind, digit(length), b'\r', b'\n']),
        10..100 => out.extend_from_slice(&[kind, digit(length / 10), digit(length), b'\r', b'\n']),
        100..1000 => {
            out.extend_from_slice(&[kind, digit(length / 100), digit(length / 10), digit(length), b'\r', b'\n']);
        }
        _ => {
            out.push(kind);
            out.extend_from_slice(length.to_string().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use synapse_core::{Batch, Event};

    #[test]
    fn lengths_of_every_size_are_written() {
        for size in [0, 9, 10, 99, 100, 999, 1000, 70_000] {
            let mut out = Vec::new();
            command(&mut out, &[&vec![b'x'; size]]);
            let expected = format!("*1\r\n${size}\r\n{}\r\n", "x".repeat(size));
            assert_eq!(out, expected.as_bytes());
        }
    }

    #[test]
    fn ids_follow_the_arguments() {
        let mut out = Vec::new();
        command_with_ids(&mut out, &[b"XACK", b"k"], &[EntryId { ms: 1, seq: 2 }, EntryId { ms: 30, seq: 4 }]);
        assert_eq!(out, b"*4\r\n$4\r\nXACK\r\n$1\r\nk\r\n$3\r\n1-2\r\n$4\r\n30-4\r\n");
    }

    #[test]
    fn the_number_of_arguments_is_right_for_few_and_many_fields() {
        for extensions in [0, 1, 40, 60] {
            let attributes = (0..extensions).map(|n| (format!("x{n}"), "v".to_owned())).collect();
            let event = Event { id: "i".into(), source: "s".into(), kind: "k".into(), attributes, ..Event::default() };
            let batch: Batch = [event].iter().collect();
            let mut out = Vec::new();
            xadd(&mut out, "key", batch.event(0), Encoding::CloudEvents);
            let reply = super::super::resp::Scanner::new(&out).reply().unwrap();
            assert_eq!(reply.elements().len() % 2, 1);
            assert!(reply.elements().len() >= 3 + 2 * extensions);
        }
    }
}
