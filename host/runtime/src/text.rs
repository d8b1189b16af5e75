//! Text of guests made fit for logs and dead letters: bounded, and without characters that steer a terminal.
//!
//! Pure; knows nothing of where a text goes.

/// Bytes kept of one text of a guest: a log line, a reason.
pub(crate) const TEXT_BYTES_MAX: usize = 4096;

/// At most [`TEXT_BYTES_MAX`] bytes of `text`, control characters and changes of writing direction escaped. What was
/// cut is counted at the end.
pub(crate) fn clean(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    let mut clean = String::with_capacity(end);
    for char in text[..end].chars() {
        if is_steering(char) {
            clean.extend(char.escape_default());
        } else {
            clean.push(char);
        }
    }
    if end < text.len() {
        clean.push_str(&format!("… ({} bytes more)", text.len() - end));
    }
    clean
}

fn is_steering(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A number of bytes as operators write it in the configuration: `64 MiB`, `1.5 KiB`, `17 bytes`.
pub(crate) fn bytes(count: usize) -> String {
    match [(30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter().find(|(shift, _)| count >= 1 << shift) {
        Some((shift, unit)) if count.is_multiple_of(1 << shift) => format!("{} {unit}", count >> shift),
        Some((shift, unit)) => format!("{:.1} {unit}", count as f64 / f64::from(1 << shift)),
        None => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(clean("a\nb\x1b[2J\u{202e}é"), "a\\nb\\u{1b}[2J\\u{202e}é");
    }

    #[test]
    fn long_texts_are_cut_at_a_character_and_say_so() {
        let long = "é".repeat(TEXT_BYTES_MAX);
        let cut = clean(&long);
        assert!(cut.starts_with(&"é".repeat(TEXT_BYTES_MAX / 2)));
        assert!(cut.ends_with(&format!("é… ({TEXT_BYTES_MAX} bytes more)")), "{}", &cut[cut.len() - 40..]);
    }

    #[test]
    fn sizes_read_as_in_the_configuration() {
        assert_eq!([64 << 20, 1 << 30, 1536, 1000].map(bytes), ["64 MiB", "1 GiB", "1.5 KiB", "1000 bytes"]);
    }
}
