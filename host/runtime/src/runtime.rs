//! The runtime: one wasmtime engine for a host, from which plugins are loaded.
//!
//! It reads files, compiles off the async threads and remembers what is loaded, so that a thousand stages of one
//! component share one copy of its code. It knows no stage and no batch.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Engine;
use wasmtime::component::Component;

use synapse_core::spec::PluginRef;
use synapse_core::stage::{Digest, Plugin, PluginError, PluginErrorKind, PluginLoader};

use crate::cache::Cache;
use crate::engine::{self, MEMORIES_PER_COMPONENT_MAX, Ticker};
use crate::inspect;
use crate::plugin::{Compiled, Loaded};
use crate::text;

/// Bounds of a host for all its plugins together.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Where compiled code is kept; `None`: nowhere. Made if absent, closed to other users, safe to delete.
    pub cache_dir: Option<PathBuf>,
    /// Instances alive at once: one for each lane of each stage. Each reserves 4 GiB of address space, of which Linux
    /// has 128 TiB on most processors.
    pub instances_max: NonZeroU32,
    /// How long a stage waits for another's instance to end before it gives up.
    pub instance_wait_max: Duration,
    /// How long a guest holds a thread before it must yield.
    pub epoch_tick: Duration,
    /// Size of a component, in bytes.
    pub component_bytes_max: usize,
    /// Linear memory of one instance, in bytes: the bound of what a stage's limits may allow. At most 4 GiB.
    pub memory_bytes_max: usize,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            instances_max: NonZeroU32::new(4096).expect("4096 is not 0"),
            instance_wait_max: Duration::from_secs(5),
            epoch_tick: Duration::from_millis(1),
            component_bytes_max: 32 << 20,
            memory_bytes_max: 1 << 30,
        }
    }
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wasmtime refuses the machine or the options.
    #[error("cannot set up the WebAssembly engine for {instances} instances: {reason}")]
    Engine {
        /// How many were wanted.
        instances: u32,
        /// Wasmtime's words.
        reason: String,
    },
    /// The directory for compiled code cannot be used.
    #[error("cannot keep compiled code in {}: {source}", path.display())]
    Cache {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// No thread for the clock by which guests yield.
    #[error("cannot start the epoch thread: {0}")]
    Thread(std::io::Error),
}

/// Loads and runs plugins. Cloning it is cheap; the last clone, or the last plugin or stage made by it, ends its thread.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

/// What plugins need of their runtime.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) options: RuntimeOptions,
    cache: Option<Cache>,
    /// Linear memories of the engine's pool.
    memories: Arc<Semaphore>,
    /// Components compiled at once.
    compiling: Semaphore,
    loaded: Mutex<HashMap<Digest, Slot>>,
}

/// Locked while a component is being compiled, so that it is compiled once.
type Slot = Arc<tokio::sync::Mutex<Weak<Compiled>>>;

impl Runtime {
    /// Sets up the engine, reserves address space and starts the thread that makes guests yield.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(options: RuntimeOptions) -> Result<Self, Error> {
        let instances = options.instances_max.get();
        // Room for one component with as many memories as it may have.
        let memories = instances.max(MEMORIES_PER_COMPONENT_MAX);
        let engine = engine::new(memories, options.memory_bytes_max)
            .map_err(|error| Error::Engine { instances, reason: format!("{error:#}") })?;
        let cache = match &options.cache_dir {
            Some(path) => {
                let opened = Cache::open(path, &engine);
                Some(opened.map_err(|source| Error::Cache { path: path.clone(), source })?)
            }
            None => None,
        };
        let ticker = Arc::new(Ticker::start(&engine, options.epoch_tick).map_err(Error::Thread)?);
        // Compiling must leave room for events.
        let compilers = (thread::available_parallelism().map_or(1, usize::from) / 2).max(1);
        let shared = Shared {
            engine,
            ticker,
            options,
            cache,
            memories: Arc::new(Semaphore::new(memories as usize)),
            compiling: Semaphore::new(compilers),
            loaded: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

#[async_trait]
impl PluginLoader for Runtime {
    async fn load(&self, plugin: &PluginRef) -> Result<Arc<dyn Plugin>, PluginError> {
        let PluginRef::File(path) = plugin;
        let (path, bytes_max) = (path.clone(), self.shared.options.component_bytes_max);
        let name = path.display().to_string();
        let (bytes, digest) = off_thread(move || {
            let bytes = read(&path, bytes_max)?;
            let digest = Digest(Sha256::digest(&bytes).into());
            Ok((bytes, digest))
        })
        .await?;
        let slot = self.shared.slot(digest);
        let mut slot = slot.lock().await;
        if let Some(compiled) = slot.upgrade() {
            return Ok(Arc::new(Loaded(compiled)));
        }
        let compiled = Arc::new(Compiled::new(&self.shared, &name, bytes, digest).await?);
        *slot = Arc::downgrade(&compiled);
        Ok(Arc::new(Loaded(compiled)))
    }
}

impl Shared {
    fn slot(&self, digest: Digest) -> Slot {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else holds a slot that only the map knows; a lock that is free and dead is of no use any more.
        loaded
            .retain(|_, slot| Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|weak| weak.strong_count() > 0));
        loaded.entry(digest).or_default().clone()
    }

    /// Compiles, or takes compiled code from the disk. `name` is the plugin's, for sentences.
    pub(crate) async fn compile(
        self: &Arc<Self>,
        name: &str,
        bytes: Vec<u8>,
        digest: Digest,
    ) -> Result<Component, PluginError> {
        let _turn = self.compiling.acquire().await.expect("nobody closes this semaphore");
        let (shared, name) = (self.clone(), name.to_owned());
        off_thread(move || {
            let unusable = |sentence| PluginError::new(PluginErrorKind::Unusable, format!("{name} {sentence}"));
            inspect::scan(&bytes).map_err(unusable)?;
            if let Some(component) = shared.cache.as_ref().and_then(|cache| cache.load(&shared.engine, digest)) {
                return Ok(component);
            }
            let component = Component::from_binary(&shared.engine, &bytes)
                .map_err(|error| unusable(format!("cannot be compiled: {}", text::clean(&format!("{error:#}")))))?;
            if let Some(cache) = &shared.cache {
                cache.store(digest, &component);
            }
            Ok(component)
        })
        .await
    }

    /// Waits until `memories` more of them may be live.
    pub(crate) async fn room_for(&self, memories: u32) -> Result<OwnedSemaphorePermit, PluginError> {
        let wait_max = self.options.instance_wait_max;
        match tokio::time::timeout(wait_max, self.memories.clone().acquire_many_owned(memories)).await {
            Ok(permit) => Ok(permit.expect("nobody closes this semaphore")),
            Err(_) => Err(PluginError::new(
                PluginErrorKind::Exhausted,
                format!(
                    "all {} instances of plugins are in use and none ended within {wait_max:?}",
                    self.options.instances_max
                ),
            )),
        }
    }
}

/// Runs blocking work on a thread for it; a panic there is a defect of the host, not of the lane that waits.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PluginError> + Send + 'static,
) -> Result<T, PluginError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(PluginError::new(PluginErrorKind::Internal, format!("loading ended early: {error}")))
    })
}

fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, PluginError> {
    let unreadable = |error: std::io::Error| {
        PluginError::new(PluginErrorKind::Unreadable, format!("cannot read the plugin {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let too_large = || {
        let sentence = format!("{} is larger than a component may be ({})", path.display(), text::bytes(bytes_max));
        PluginError::new(PluginErrorKind::Unusable, sentence)
    };
    if size > bytes_max as u64 {
        return Err(too_large());
    }
    // The file may grow meanwhile, or be no regular file.
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > bytes_max { Err(too_large()) } else { Ok(bytes) }
}
