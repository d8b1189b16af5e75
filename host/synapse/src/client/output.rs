//! What commands print: lines and tables for people, NDJSON for machines; progress and notes beside it.
//!
//! Text that came from elsewhere reaches a terminal only through [`escaped`]. A reader that goes away (`… | head`) ends a
//! command quietly: see [`is_closed`].

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

/// How often progress is shown: on a terminal in place, elsewhere as lines.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
const PROGRESS_LINE_EVERY: Duration = Duration::from_secs(5);

/// Where a command's words go.
pub struct Output {
    json: bool,
    out: Box<dyn Write + Send>,
    notes: Box<dyn Write + Send>,
    /// Whether `out` is the standard output.
    standard: bool,
    /// Whether `notes` is a terminal, where lines can be written over.
    terminal: bool,
    shown: Option<Instant>,
    /// Whether an unfinished line of progress stands on the terminal.
    unfinished: bool,
}

impl Output {
    /// Standard output, and standard error for progress and notes.
    pub fn stdio(json: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let out = Box::new(io::BufWriter::new(io::stdout()));
        Self { standard: true, ..Self::new(json, out, Box::new(io::stderr()), terminal) }
    }

    /// Other places than the standard ones.
    pub fn new(json: bool, out: Box<dyn Write + Send>, notes: Box<dyn Write + Send>, terminal: bool) -> Self {
        Self { json, out, notes, standard: false, terminal, shown: None, unfinished: false }
    }

    /// Whether a machine reads.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A line as it is.
    ///
    /// # Errors
    /// As the writer; for all of these functions [`is_closed`] tells a reader that is gone.
    pub fn line(&mut self, line: impl Display) -> io::Result<()> {
        self.finish_progress()?;
        writeln!(self.out, "{line}")
    }

    /// A line of bytes as they are.
    ///
    /// # Errors
    /// As the writer.
    pub fn bytes(&mut self, line: &[u8]) -> io::Result<()> {
        self.finish_progress()?;
        self.out.write_all(line)?;
        self.out.write_all(b"\n")
    }

    /// A JSON object on one line.
    ///
    /// # Errors
    /// As the writer.
    pub fn object(&mut self, value: &impl Serialize) -> io::Result<()> {
        let line = serde_json::to_vec(value)?;
        self.bytes(&line)
    }

    /// Rows under a heading, in columns; cells are escaped.
    ///
    /// # Errors
    /// As the writer.
    pub fn table<const N: usize>(&mut self, heading: [&str; N], rows: Vec<[String; N]>) -> io::Result<()> {
        let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(|cell| escaped(&cell))).collect();
        let mut widths = heading.map(|cell| cell.chars().count());
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in std::iter::once(heading.map(str::to_owned)).chain(rows) {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            self.line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }

    /// What is written so far goes out.
    ///
    /// # Errors
    /// As the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Whether the reader of the standard output, a pipe, has gone.
    pub fn reader_is_gone(&self) -> bool {
        let stdout = io::stdout();
        let mut look = [PollFd::new(&stdout, PollFlags::empty())];
        // An error of the look itself says nothing about the reader.
        self.standard
            && rustix::event::poll(&mut look, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            && look[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
    }

    /// A word beside the output, for people.
    ///
    /// # Errors
    /// As the writer.
    pub fn note(&mut self, text: impl Display) -> io::Result<()> {
        self.finish_progress()?;
        self.out.flush()?;
        writeln!(self.notes, "{text}")
    }

    /// How far long work has come; shown now and then.
    ///
    /// # Errors
    /// As the writer.
    pub fn progress(&mut self, text: impl Display) -> io::Result<()> {
        let every = if self.terminal { PROGRESS_EVERY } else { PROGRESS_LINE_EVERY };
        if *self.shown.get_or_insert_with(Instant::now) + every > Instant::now() {
            return Ok(());
        }
        self.shown = Some(Instant::now());
        if self.terminal {
            self.unfinished = true;
            write!(self.notes, "\r\x1b[K{text}")?;
            self.notes.flush()
        } else {
            writeln!(self.notes, "{text}")
        }
    }

    fn finish_progress(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unfinished) {
            write!(self.notes, "\r\x1b[K")?;
        }
        Ok(())
    }
}

/// Whether an error says that nobody reads the output any more: nothing to complain about.
pub fn is_closed(error: &anyhow::Error) -> bool {
    let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(closed))
}

/// A text that a terminal only shows: control characters and those that turn the direction of writing are written out.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            _ if letter.is_control() || turns_direction(letter) => safe.extend(letter.escape_unicode()),
            _ => safe.push(letter),
        }
    }
    safe
}

fn turns_direction(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// At most `letters_max` letters of a text, with a sign if there was more.
pub fn shortened(text: &str, letters_max: usize) -> String {
    match text.char_indices().nth(letters_max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// A number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A size for people: `1.5 MiB`.
pub fn sized(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    format!("{size:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_letters() {
        assert_eq!(escaped("a\u{1b}[2J\u{9b}1m\n\u{202e}ö"), "a\\u{1b}[2J\\u{9b}1m\\n\\u{202e}ö");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1023, 1024, 1_572_864, u64::MAX].map(sized), ["1023 B", "1.0 KiB", "1.5 MiB", "16384.0 PiB"]);
        assert_eq!((shortened("äöü", 2), shortened("äöü", 3)), ("äö…".to_owned(), "äöü".to_owned()));
    }

    #[test]
    fn a_reader_that_is_gone_is_told_apart() {
        let gone = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_closed(&gone));
        assert!(!is_closed(&anyhow::Error::from(io::Error::from(io::ErrorKind::NotFound))));
    }
}
