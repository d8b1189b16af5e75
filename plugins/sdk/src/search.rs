//! Finding bytes in bytes.
//!
//! A loop over single bytes is what a sandbox slows down most: use these instead, they look at many bytes at a time.

use memchr::memmem;

/// Whether `needle` occurs in `haystack`. To look for the same needle in many events, make a [`Needle`] once.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    find(haystack, needle).is_some()
}

/// Where `needle` first occurs in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memmem::find(haystack, needle)
}

/// Where `byte` first occurs in `haystack`.
pub fn find_byte(haystack: &[u8], byte: u8) -> Option<usize> {
    memchr::memchr(byte, haystack)
}

/// Bytes to look for, prepared once.
///
/// ```
/// let error = synapse_plugin::Needle::new("error");
/// assert!(error.is_in(b"an error occurred"));
/// assert_eq!(error.find(b"an error occurred"), Some(3));
/// ```
#[derive(Debug, Clone)]
pub struct Needle(Box<memmem::Finder<'static>>);

impl Needle {
    /// Prepares the search.
    pub fn new(needle: impl AsRef<[u8]>) -> Self {
        Self(Box::new(memmem::Finder::new(needle.as_ref()).into_owned()))
    }

    /// Whether it occurs in `haystack`.
    pub fn is_in(&self, haystack: &[u8]) -> bool {
        self.find(haystack).is_some()
    }

    /// Where it first occurs in `haystack`.
    pub fn find(&self, haystack: &[u8]) -> Option<usize> {
        self.0.find(haystack)
    }
}
