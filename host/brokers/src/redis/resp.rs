//! Reading what Redis answers: RESP2 frames, found in place.
//!
//! We never send `HELLO 3`, so every server answers in RESP2; a frame of another protocol is malformed here. Stream
//! entries are handed out as slices of the read buffer; only rare replies become owned values ([`Reply`]).
//!
//! Invariant: no bytes make anything here panic, recurse without bound or reserve memory that did not arrive. This
//! module does not know sockets, commands or events.

use std::fmt;

/// Why there is no frame (yet).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The frame goes on behind the bytes at hand.
    More,
    /// The bytes are no frame of the shape that was asked for.
    Malformed(&'static str),
}

pub(super) type Scan<T> = Result<T, Stop>;

/// Longest status or error line, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest bulk string: the bound of Redis' own `proto-max-bulk-len` by default, in bytes.
const BULK_BYTES_MAX: i64 = 512 << 20;
/// Most elements of an array.
const ELEMENTS_MAX: i64 = 1 << 24;
/// Deepest nesting of an owned reply. `XINFO STREAM` takes 3.
const DEPTH_MAX: usize = 8;

/// The id of a stream entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EntryId {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl EntryId {
    /// Before every entry.
    pub(super) const ZERO: Self = Self { ms: 0, seq: 0 };
    /// Behind every entry.
    pub(super) const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// Reads `ms-seq`.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|&byte| byte == b'-')?;
        Some(Self { ms: digits(&text[..dash])?, seq: digits(&text[dash + 1..])? })
    }

    /// The id right behind this one.
    pub(super) fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => self.ms.checked_add(1).map_or(Self::MAX, |ms| Self { ms, seq: 0 }),
        }
    }

    /// The id right before this one; 0-0 stays.
    pub(super) fn previous(self) -> Self {
        match self.seq.checked_sub(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => self.ms.checked_sub(1).map_or(Self::ZERO, |ms| Self { ms, seq: u64::MAX }),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

fn digit(byte: u8) -> usize {
    usize::from(byte - b'0')
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Names and values of an entry, in order.
pub(super) type Fields<'a> = Vec<(&'a [u8], &'a [u8])>;

/// What was at the place of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryBody {
    /// Fields.
    Kept,
    /// Nothing: it was removed after a group had handed it out.
    Removed,
}

/// Steps through the frames of a buffer.
#[derive(Clone)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes were stepped over.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn peek(&self) -> Scan<u8> {
        self.bytes.get(self.at).copied().ok_or(Stop::More)
    }

    /// The error line at this place, if there is one; it is then stepped over.
    pub(super) fn error(&mut self) -> Scan<Option<&'a [u8]>> {
        if self.peek()? == b'-' { self.line().map(Some) } else { Ok(None) }
    }

    /// The rest of a line behind its first byte, without its end.
    fn line(&mut self) -> Scan<&'a [u8]> {
        let rest = &self.bytes[self.at + 1..];
        let window = &rest[..rest.len().min(LINE_BYTES_MAX)];
        let Some(end) = window.iter().position(|&byte| byte == b'\r') else {
            return Err(if window.len() < LINE_BYTES_MAX { Stop::More } else { Stop::Malformed("a line has no end") });
        };
        self.at += 1 + end;
        match self.newline() {
            Ok(()) => Ok(&rest[..end]),
            Err(stop) => {
                self.at -= 1 + end;
                Err(stop)
            }
        }
    }

    /// Steps over `\r\n`.
    fn newline(&mut self) -> Scan<()> {
        match self.bytes.get(self.at..self.at + 2) {
            Some(b"\r\n") => {
                self.at += 2;
                Ok(())
            }
            Some(_) => Err(Stop::Malformed("a frame does not end with CR LF")),
            None => Err(Stop::More),
        }
    }

    /// `kind`, a number and the end of the line.
    #[inline]
    fn header(&mut self, kind: u8) -> Scan<i64> {
        if self.peek()? != kind {
            return Err(Stop::Malformed("a frame of another type was expected"));
        }
        let mut at = self.at + 1;
        let negative = self.bytes.get(at) == Some(&b'-');
        at += usize::from(negative);
        let first = at;
        let mut number = 0i64;
        loop {
            match self.bytes.get(at) {
                Some(byte) if byte.is_ascii_digit() && at - first < 18 => {
                    number = number * 10 + i64::from(byte - b'0');
                    at += 1;
                }
                Some(b'\r') if at > first => break,
                Some(_) => return Err(Stop::Malformed("a number was expected")),
                None => return Err(Stop::More),
            }
        }
        match self.bytes.get(at + 1) {
            Some(b'\n') => {
                self.at = at + 2;
                Ok(if negative { -number } else { number })
            }
            Some(_) => Err(Stop::Malformed("a number does not end with CR LF")),
            None => Err(Stop::More),
        }
    }

    pub(super) fn integer(&mut self) -> Scan<i64> {
        self.header(b':')
    }

    /// The length of an array; `None` is a null array. Its elements follow.
    pub(super) fn array(&mut self) -> Scan<Option<usize>> {
        match self.header(b'*')? {
            -1 => Ok(None),
            count @ 0..=ELEMENTS_MAX => Ok(Some(count as usize)),
            _ => Err(Stop::Malformed("an array has an impossible length")),
        }
    }

    /// A bulk string, in place; `None` is null.
    #[inline]
    pub(super) fn bulk(&mut self) -> Scan<Option<&'a [u8]>> {
        let rest = &self.bytes[self.at..];
        // Almost all are shorter than 1000 bytes: their heads need no loop.
        let (length, start) = match *rest {
            [b'$', a @ b'0'..=b'9', b'\r', b'\n', ..] => (digit(a), 4),
            [b'$', a @ b'0'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', ..] => (10 * digit(a) + digit(b), 5),
            [b'$', a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', b'\n', ..] => {
                (100 * digit(a) + 10 * digit(b) + digit(c), 6)
            }
            _ => return self.long_bulk(),
        };
        match rest.get(start + length..start + length + 2) {
            Some(b"\r\n") => {
                self.at += start + length + 2;
                Ok(Some(&rest[start..start + length]))
            }
            Some(_) => Err(Stop::Malformed("a string is longer than it says")),
            None => Err(Stop::More),
        }
    }

    fn long_bulk(&mut self) -> Scan<Option<&'a [u8]>> {
        let before = self.at;
        let length = match self.header(b'$')? {
            -1 => return Ok(None),
            length @ 0..=BULK_BYTES_MAX => length as usize,
            _ => return Err(Stop::Malformed("a string has an impossible length")),
        };
        let start = self.at;
        self.at += length;
        if let Err(stop) = self.newline() {
            self.at = before;
            return Err(stop);
        }
        Ok(Some(&self.bytes[start..start + length]))
    }

    #[inline]
    fn text(&mut self) -> Scan<&'a [u8]> {
        self.bulk()?.ok_or(Stop::Malformed("a string was expected"))
    }

    /// Steps over a reply without elements; its error line, if it is one.
    #[inline]
    pub(super) fn outcome(&mut self) -> Scan<Option<&'a [u8]>> {
        match self.peek()? {
            b'-' => self.line().map(Some),
            b'+' => self.line().map(|_| None),
            b':' => self.integer().map(|_| None),
            b'$' => self.bulk().map(|_| None),
            _ => Err(Stop::Malformed("a reply without elements was expected")),
        }
    }

    /// An entry of a stream: id and fields. `fields` is cleared first. What stops leaves the scanner where it was.
    pub(super) fn entry(&mut self, fields: &mut Fields<'a>) -> Scan<(EntryId, EntryBody)> {
        let before = self.at;
        let entry = self.entry_parts(fields);
        if entry.is_err() {
            self.at = before;
        }
        entry
    }

    fn entry_parts(&mut self, fields: &mut Fields<'a>) -> Scan<(EntryId, EntryBody)> {
        fields.clear();
        if self.array()? != Some(2) {
            return Err(Stop::Malformed("an entry is not an id and its fields"));
        }
        let id = EntryId::parse(self.text()?).ok_or(Stop::Malformed("an entry's id is none"))?;
        if self.peek()? == b'$' {
            return match self.bulk()? {
                None => Ok((id, EntryBody::Removed)),
                Some(_) => Err(Stop::Malformed("an entry's fields are no array")),
            };
        }
        let Some(count) = self.array()? else { return Ok((id, EntryBody::Removed)) };
        if !count.is_multiple_of(2) {
            return Err(Stop::Malformed("an entry has a field without a value"));
        }
        for _ in 0..count / 2 {
            let name = self.text()?;
            fields.push((name, self.text()?));
        }
        Ok((id, EntryBody::Kept))
    }

    /// Any reply, owned. What stops leaves the scanner where it was.
    pub(super) fn reply(&mut self) -> Scan<Reply> {
        let before = self.at;
        let reply = self.reply_within(DEPTH_MAX);
        if reply.is_err() {
            self.at = before;
        }
        reply
    }

    fn reply_within(&mut self, depth: usize) -> Scan<Reply> {
        match self.peek()? {
            b'+' => Ok(Reply::Status(self.line()?.to_vec())),
            b'-' => Ok(Reply::Error(self.line()?.to_vec())),
            b':' => Ok(Reply::Integer(self.integer()?)),
            b'$' => Ok(self.bulk()?.map_or(Reply::Null, |bytes| Reply::Bulk(bytes.to_vec()))),
            b'*' if depth > 0 => {
                let Some(count) = self.array()? else { return Ok(Reply::Null) };
                let mut elements = Vec::new();
                for _ in 0..count {
                    elements.push(self.reply_within(depth - 1)?);
                }
                Ok(Reply::Array(elements))
            }
            b'*' => Err(Stop::Malformed("arrays are nested too deeply")),
            _ => Err(Stop::Malformed("this is no RESP2 frame")),
        }
    }
}

/// An owned reply, for rare commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Status(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Vec<u8>),
    Array(Vec<Reply>),
    Null,
}

impl Reply {
    /// A text or a status.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Status(bytes) | Self::Bulk(bytes) => Some(bytes),
            Self::Error(_) | Self::Integer(_) | Self::Array(_) | Self::Null => None,
        }
    }

    /// A text or a status, with what is no UTF-8 replaced.
    pub(super) fn text(&self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn id(&self) -> Option<EntryId> {
        self.bytes().and_then(EntryId::parse)
    }

    /// A number, also one written as text.
    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            other => std::str::from_utf8(other.bytes()?).ok()?.parse().ok(),
        }
    }

    /// A count: a number that is not negative.
    pub(super) fn count(&self) -> Option<u64> {
        self.number().and_then(|number| u64::try_from(number).ok())
    }

    /// The elements of an array; none of anything else.
    pub(super) fn elements(&self) -> &[Reply] {
        match self {
            Self::Array(elements) => elements,
            Self::Status(_) | Self::Error(_) | Self::Integer(_) | Self::Bulk(_) | Self::Null => &[],
        }
    }

    /// The value of `name` where names and values alternate.
    pub(super) fn field(&self, name: &str) -> Option<&Reply> {
        let pairs = self.elements().chunks_exact(2);
        pairs.into_iter().find(|pair| pair[0].bytes() == Some(name.as_bytes())).map(|pair| &pair[1])
    }

    pub(super) fn is_error(&self, code: &str) -> bool {
        matches!(self, Self::Error(line) if line.starts_with(code.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redis_protocol::resp2::{decode, encode, types::OwnedFrame};

    fn frames() -> impl Strategy<Value = OwnedFrame> {
        let leaf = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(OwnedFrame::BulkString),
            "[ -~]{0,30}".prop_map(|text| OwnedFrame::SimpleString(text.into_bytes())),
            "[A-Z]{1,8} [ -~]{0,30}".prop_map(OwnedFrame::Error),
            (-99_999_999_999_i64..99_999_999_999).prop_map(OwnedFrame::Integer),
            Just(OwnedFrame::Null),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| proptest::collection::vec(inner, 0..6).prop_map(OwnedFrame::Array))
    }

    fn owned(frame: &OwnedFrame) -> Reply {
        match frame {
            OwnedFrame::SimpleString(bytes) => Reply::Status(bytes.clone()),
            OwnedFrame::Error(text) => Reply::Error(text.clone().into_bytes()),
            OwnedFrame::Integer(number) => Reply::Integer(*number),
            OwnedFrame::BulkString(bytes) => Reply::Bulk(bytes.clone()),
            OwnedFrame::Array(frames) => Reply::Array(frames.iter().map(owned).collect()),
            OwnedFrame::Null => Reply::Null,
        }
    }

    fn encoded(frame: &OwnedFrame) -> Vec<u8> {
        let mut bytes = vec![0; frame.encode_len(false)];
        let length = encode::encode(&mut bytes, frame, false).unwrap();
        bytes.truncate(length);
        bytes
    }

    use redis_protocol::resp2::types::Resp2Frame;

    proptest! {
        /// The oracle is another reader of the protocol.
        #[test]
        fn replies_read_as_another_reader_reads_them(frame in frames()) {
            let bytes = encoded(&frame);
            let mut scanner = Scanner::new(&bytes);
            prop_assert_eq!(scanner.reply(), Ok(owned(&frame)));
            prop_assert_eq!(scanner.at(), bytes.len());
        }

        #[test]
        fn a_cut_reply_asks_for_more_and_steps_nowhere(frame in frames(), cut in any::<prop::sample::Index>()) {
            let bytes = encoded(&frame);
            let mut scanner = Scanner::new(&bytes[..cut.index(bytes.len())]);
            prop_assert_eq!(scanner.reply(), Err(Stop::More));
            prop_assert_eq!(scanner.at(), 0);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'-'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..64,
        )) {
            let mut fields = Vec::new();
            let mut scanner = Scanner::new(&bytes);
            while scanner.entry(&mut fields).is_ok() {}
            let mut scanner = Scanner::new(&bytes);
            while scanner.reply().is_ok() {}
            let ours = Scanner::new(&bytes).reply();
            if let (Ok(ours), Ok(Some((theirs, _)))) = (ours, decode::decode(&bytes)) {
                prop_assert_eq!(ours, owned(&theirs));
            }
        }

        #[test]
        fn entries_read_back(
            ms in any::<u64>(), seq in any::<u64>(),
            fields in proptest::collection::vec((".{0,10}", proptest::collection::vec(any::<u8>(), 0..30)), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let bulk = |bytes: &[u8]| OwnedFrame::BulkString(bytes.to_vec());
            let flat = fields.iter().flat_map(|(name, value)| [bulk(name.as_bytes()), bulk(value)]).collect();
            let id = EntryId { ms, seq };
            let entry = OwnedFrame::Array(vec![bulk(id.to_string().as_bytes()), OwnedFrame::Array(flat)]);
            let bytes = encoded(&entry);
            let mut scanned = Vec::new();
            prop_assert_eq!(Scanner::new(&bytes).entry(&mut scanned), Ok((id, EntryBody::Kept)));
            let expected: Fields<'_> = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())).collect();
            prop_assert_eq!(&scanned, &expected);
            let mut short = Scanner::new(&bytes[..cut.index(bytes.len())]);
            prop_assert_eq!((short.entry(&mut scanned), short.at()), (Err(Stop::More), 0));
        }
    }

    #[test]
    fn removed_entries_are_told_apart() {
        let mut fields = Vec::new();
        for bytes in [&b"*2\r\n$3\r\n1-2\r\n*-1\r\n"[..], b"*2\r\n$3\r\n1-2\r\n$-1\r\n"] {
            let entry = Scanner::new(bytes).entry(&mut fields);
            assert_eq!(entry, Ok((EntryId { ms: 1, seq: 2 }, EntryBody::Removed)));
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_malformed_and_reserve_nothing() {
        for bytes in
            ["$99999999999\r\n", "*99999999999\r\n", "$-2\r\n", "*-7\r\n", "$1x\r\n", "$\r\n", "_\r\n", "%1\r\n"]
        {
            assert!(matches!(Scanner::new(bytes.as_bytes()).reply(), Err(Stop::Malformed(_))), "{bytes}");
        }
        let deep = "*1\r\n".repeat(2_000_000);
        assert!(matches!(Scanner::new(deep.as_bytes()).reply(), Err(Stop::Malformed(_))));
        let endless = vec![b'+'; LINE_BYTES_MAX + 2];
        assert!(matches!(Scanner::new(&endless).reply(), Err(Stop::Malformed(_))));
    }

    #[test]
    fn ids_have_neighbours() {
        let id = |text: &str| EntryId::parse(text.as_bytes()).unwrap();
        assert_eq!(id("5-0").previous(), id("4-18446744073709551615"));
        assert_eq!(id("4-18446744073709551615").next(), id("5-0"));
        assert_eq!((EntryId::ZERO.previous(), EntryId::MAX.next()), (EntryId::ZERO, EntryId::MAX));
        for text in ["5", "5-", "-5", "5-x", "18446744073709551616-0", "+5-0"] {
            assert_eq!(EntryId::parse(text.as_bytes()), None, "{text}");
        }
    }
}
