//! The columns of a batch, for guests of the batch worlds.

/// Columns of a row that these guests know.
pub const STRIDE: usize = 9;
const ID: usize = 0;
const DATA: usize = 8;

/// A batch by its parts.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// Columns a row.
    pub stride: u32,
    /// Where each ends.
    pub ends: &'a [u32],
    /// Their bytes.
    pub bytes: &'a [u8],
}

impl<'a> Columns<'a> {
    /// How many rows.
    pub fn rows(self) -> usize {
        self.ends.len() / self.stride as usize
    }

    fn cell(self, row: usize, column: usize) -> &'a [u8] {
        let at = row * self.stride as usize + column;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.bytes[start..self.ends[at] as usize]
    }

    /// The id of an event.
    pub fn id(self, row: usize) -> &'a str {
        std::str::from_utf8(self.cell(row, ID)).expect("ids are text")
    }

    /// The payload of an event.
    pub fn data(self, row: usize) -> &'a [u8] {
        self.cell(row, DATA)
    }

    /// Appends the columns of `row` to another batch, the id with a suffix.
    pub fn copy(self, row: usize, suffix: &str, ends: &mut Vec<u32>, bytes: &mut Vec<u8>) {
        for column in 0..STRIDE {
            bytes.extend_from_slice(self.cell(row, column));
            if column == ID {
                bytes.extend_from_slice(suffix.as_bytes());
            }
            ends.push(bytes.len() as u32);
        }
    }
}
