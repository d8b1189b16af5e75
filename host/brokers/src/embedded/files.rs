//! The two small files beside the store: the lock, and the witness of what was acknowledged.
//!
//! The lock holds one process to one directory and says who has it. The witness is a number that goes up with each
//! group of writes once the group is durable. It is written without syncing, so it may lag behind the store after a
//! power loss but never runs ahead of it: if the store comes back with less than the witness says, acknowledged events
//! are missing, and that is found out when the log is opened. Nothing here knows what a group holds.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// How often a lock that is held is tried before that is believed.
const LOOKS_MAX: usize = 3;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Held as long as the log is open; the kernel lets go of it when the process ends, however it ends.
pub(super) struct Lock {
    _file: File,
}

/// Why there is no lock.
pub(super) enum LockError {
    /// Who has it, in words.
    Held(String),
    Io(io::Error),
}

impl Lock {
    /// `holder` tells others who has the lock.
    pub(super) fn take(path: &Path, holder: &str) -> Result<Self, LockError> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(LockError::Io)?;
        for look in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                // Someone may only be asking who has it.
                Err(TryLockError::WouldBlock) if look < LOOKS_MAX => std::thread::sleep(LOOK_EVERY),
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(name_in(&mut file))),
                Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
            }
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            writeln!(file, "{holder}")
        };
        write(&mut file).map_err(LockError::Io)?;
        Ok(Self { _file: file })
    }

    /// Who has the lock, if anyone has. Holds it for a moment if nobody has.
    pub(super) fn holder(path: &Path) -> Option<String> {
        let mut file = File::open(path).ok()?;
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)).then(|| name_in(&mut file))
    }
}

/// The holder's name; it may be writing it just now and stays unknown then.
fn name_in(file: &mut File) -> String {
    let mut holder = String::new();
    let read = file.take(300).read_to_string(&mut holder);
    let named = read.is_ok() && !holder.trim().is_empty();
    if named { holder.trim().to_owned() } else { "someone".to_owned() }
}

/// The last group that was acknowledged.
pub(super) struct Witness {
    file: File,
}

impl Witness {
    /// The file and the number in it; 0 if there is none, or none that can be read.
    pub(super) fn open(path: &Path) -> io::Result<(Self, u64)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok((Self { file }, read(&bytes).unwrap_or(0)))
    }

    pub(super) fn write(&self, group: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&group.to_le_bytes());
        bytes[8..].copy_from_slice(&(!group).to_le_bytes());
        self.file.write_all_at(&bytes, 0)
    }
}

/// The number is followed by its complement, so a half-written one is told from a whole one.
fn read(bytes: &[u8]) -> Option<u64> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let group = number(0)?;
    (number(8)? == !group).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, "process 1").ok().unwrap();
        match Lock::take(&path, "process 2") {
            Err(LockError::Held(holder)) => assert_eq!(holder, "process 1"),
            _ => panic!("the lock is held"),
        }
        assert_eq!(Lock::holder(&path).as_deref(), Some("process 1"));
        drop(first);
        assert_eq!(Lock::holder(&path), None);
        assert!(Lock::take(&path, "process 2").is_ok());
    }

    #[test]
    fn the_witness_keeps_the_last_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness");
        let (witness, before) = Witness::open(&path).unwrap();
        assert_eq!(before, 0);
        witness.write(7).unwrap();
        witness.write(8).unwrap();
        assert_eq!(Witness::open(&path).unwrap().1, 8);
        std::fs::write(&path, [1; 16]).unwrap();
        assert_eq!(Witness::open(&path).unwrap().1, 0, "a torn number is none");
    }
}
