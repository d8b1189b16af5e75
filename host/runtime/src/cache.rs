//! Compiled code on the disk, so that a restart compiles nothing again.
//!
//! Compiled code is native code: whoever can write it owns the host. So the directory belongs to this user alone (mode
//! 0700 is enforced), nothing from outside is ever accepted into it, and each file carries the hash of its content, so
//! that a torn or rotten one is compiled again instead of run. A file's name holds everything that its content depends
//! on: the component's digest, wasmtime's version, and the engine's settings with the processor's features. Deleting
//! the directory at any time is safe. This is the one module of Synapse that calls an unsafe function.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use synapse_core::stage::Digest;

/// First bytes of each file; the hash of the rest follows.
const MAGIC: &[u8; 8] = b"synapse1";
const HEADER_BYTES: usize = MAGIC.len() + 32;

/// The directory.
pub(crate) struct Cache {
    dir: PathBuf,
    /// Hash of wasmtime's version, its settings and the processor's features.
    engine: Digest,
}

impl Cache {
    /// Opens the directory, makes it if there is none, and shuts others out.
    ///
    /// # Errors
    /// It cannot be made, or belongs to another user.
    pub(crate) fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let metadata = fs::metadata(dir)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        let mut hasher = StableHasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Ok(Self { dir: dir.to_owned(), engine: Digest(hasher.0.finalize().into()) })
    }

    /// The compiled code of the component with this digest, if it is here and whole.
    pub(crate) fn load(&self, engine: &Engine, digest: Digest) -> Option<Component> {
        let path = self.path(digest);
        let bytes = fs::read(&path).ok()?;
        let Some(code) = verified(&bytes) else {
            tracing::warn!(path = %path.display(), "compiled code on the disk is damaged; compiling again");
            return None;
        };
        deserialize(engine, code)
            .inspect_err(
                |error| tracing::warn!(path = %path.display(), %error, "compiled code does not fit; compiling again"),
            )
            .ok()
    }

    /// Keeps compiled code for the next start; a failure costs only time.
    pub(crate) fn store(&self, digest: Digest, component: &Component) {
        let stored = component
            .serialize()
            .map_err(|error| error.to_string())
            .and_then(|code| self.write(digest, &code).map_err(|error| error.to_string()));
        if let Err(error) = stored {
            tracing::warn!(dir = %self.dir.display(), %error, "compiled code cannot be kept; the next start compiles again");
        }
    }

    fn write(&self, digest: Digest, code: &[u8]) -> io::Result<()> {
        // Readers see the old file, none, or the whole new one.
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(code))?;
        file.write_all(code)?;
        file.persist(self.path(digest))?;
        Ok(())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}-{:.16}.cwasm", self.engine.to_string()))
    }
}

/// What follows the header, if the hash in it is right.
fn verified(bytes: &[u8]) -> Option<&[u8]> {
    let (header, code) = bytes.split_at_checked(HEADER_BYTES)?;
    let (magic, hash) = header.split_at(MAGIC.len());
    (magic == MAGIC && hash == Sha256::digest(code).as_slice()).then_some(code)
}

#[expect(unsafe_code, reason = "native code cannot be checked, only trusted: see the module's page")]
fn deserialize(engine: &Engine, code: &[u8]) -> Result<Component, wasmtime::Error> {
    // SAFETY: `code` was written by `Cache::write` of this user with the output of `Component::serialize`: the
    // directory is closed to others and the content's hash was right.
    unsafe { Component::deserialize(engine, code) }
}

/// A hasher that gives the same result in each process and each build.
struct StableHasher(Sha256);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.clone().finalize();
        u64::from_le_bytes(hash[..8].try_into().expect("a sha256 has more than 8 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> Engine {
        crate::engine::new(1, 1 << 20).unwrap()
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn code_comes_back_and_damage_is_seen() {
        let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
        let (cache, digest) = (Cache::open(dir.path(), &engine).unwrap(), Digest([7; 32]));
        assert!(cache.load(&engine, digest).is_none());
        let component = Component::new(&engine, wat::parse_str("(component (core module (func)))").unwrap()).unwrap();
        cache.store(digest, &component);
        assert!(cache.load(&engine, digest).is_some());
        assert!(cache.load(&engine, Digest([8; 32])).is_none());
        let [path] = files(dir.path()).try_into().unwrap();
        let whole = fs::read(&path).unwrap();
        for at in [0, 20, HEADER_BYTES, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(cache.load(&engine, digest).is_none(), "byte {at}");
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(cache.load(&engine, digest).is_none());
        fs::write(&path, &whole[..10]).unwrap();
        assert!(cache.load(&engine, digest).is_none());
        cache.store(digest, &component);
        assert!(cache.load(&engine, digest).is_some());
    }

    #[test]
    fn others_are_shut_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Cache::open(dir.path(), &engine()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        let made = dir.path().join("a/b");
        Cache::open(&made, &engine()).unwrap();
        assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn engines_with_the_same_settings_share_code() {
        let dir = tempfile::tempdir().unwrap();
        let names = || Cache::open(dir.path(), &engine()).unwrap().engine;
        assert_eq!(names(), names());
    }
}
