//! Files that are read again when they change: the configuration, and the components of plugins.
//!
//! People and machines change a file in many ways: they write into it, put another in its place, swap a link that
//! leads to it, replace its directory. So what is watched is every directory on the way to a file, and what is
//! reported is neither of these but a new content.
//!
//! Invariant: a path is reported once for each content that differs from the last one known of it, and only when the
//! file has kept still, so that nobody reads half of it. A file that is gone is not reported; one that comes back as
//! it was is not, either. This module must not know what the files are for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

/// How long a file must keep still before it is read.
const STILL: Duration = Duration::from_millis(100);

/// The same while someone has written into it and not closed it yet, or while it is empty.
const STILL_WHILE_UNFINISHED: Duration = Duration::from_secs(2);

/// Between two looks at files that are changing.
const LOOK: Duration = Duration::from_millis(25);

/// How much later a look may be while there are words to hear.
const LATE: Duration = Duration::from_millis(100);

/// Between two looks at files of which nothing was heard: some file systems tell nothing.
const LOOK_WITHOUT_WORD: Duration = Duration::from_secs(2);

/// Words from the system that wait to be heard. More are dropped: one is enough to look at every file.
const WORDS_MAX: usize = 1_024;

/// Changes that wait to be taken. More wait in the watcher.
const CHANGES_MAX: usize = 64;

/// Links to follow on the way to one file, as the kernel counts them.
const LINKS_MAX: usize = 40;

/// A path leads to another content than it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// As it was given to the watcher.
    pub path: PathBuf,
}

/// Why files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's own watcher could not be started.
    #[error("the system's file watcher could not be started: {0}")]
    System(#[from] notify::Error),
    /// No thread for it.
    #[error("the thread that watches files could not be started: {0}")]
    Thread(#[source] io::Error),
}

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    words: SyncSender<Word>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches `paths`. A file counts as known as it is now, so watch first and load then.
    ///
    /// # Errors
    /// The system's watcher or the thread cannot be started. A single path that cannot be watched is no error: it is
    /// looked at every two seconds.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Result<(Self, mpsc::Receiver<Changed>), Error> {
        Self::start(paths, LOOK_WITHOUT_WORD)
    }

    fn start(
        paths: impl IntoIterator<Item = PathBuf>,
        look_without_word: Duration,
    ) -> Result<(Self, mpsc::Receiver<Changed>), Error> {
        let (words, heard) = sync_channel(WORDS_MAX);
        let to_thread = words.clone();
        let system = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // A full queue holds a word already, and any word makes the thread look at everything.
            let _ = to_thread.try_send(Word::System(event.ok()));
        })?;
        let (changes, receiver) = mpsc::channel(CHANGES_MAX);
        let files = paths.into_iter().map(|path| (path.clone(), Watched::now(&path))).collect();
        let mut lookout = Lookout { files, directories: BTreeMap::new(), system, changes, look_without_word };
        lookout.watch_directories();
        let thread = std::thread::Builder::new()
            .name("synapse-watch".to_owned())
            .spawn(move || lookout.run(&heard))
            .map_err(Error::Thread)?;
        Ok((Self { words, thread: Some(thread) }, receiver))
    }

    /// Watches `path`, too; known as it is now. A path that is watched already is left as it is.
    pub fn add(&self, path: PathBuf) {
        let watched = Box::new(Watched::now(&path));
        self.say(Word::Add(path, watched));
    }

    /// Watches `path` no longer.
    pub fn remove(&self, path: &Path) {
        self.say(Word::Remove(path.to_owned()));
    }

    fn say(&self, word: Word) {
        // The thread ends early only when nobody receives any more; then there is nothing to watch for.
        let _ = self.words.send(word);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.say(Word::End);
        if let Some(thread) = self.thread.take() {
            // It panicked or it ended; either way it watches no longer.
            let _ = thread.join();
        }
    }
}

/// What the thread is told.
#[derive(Debug)]
enum Word {
    /// By the system; nothing if the system could not say what.
    System(Option<notify::Event>),
    Add(PathBuf, Box<Watched>),
    Remove(PathBuf),
    End,
}

/// The thread's own.
struct Lookout {
    files: BTreeMap<PathBuf, Watched>,
    /// The directories that the system watches, and which each was: another may have taken its place.
    directories: BTreeMap<PathBuf, Identity>,
    system: RecommendedWatcher,
    changes: mpsc::Sender<Changed>,
    look_without_word: Duration,
}

impl Lookout {
    fn run(mut self, heard: &Receiver<Word>) {
        let mut look_at = Instant::now();
        while !self.changes.is_closed() {
            match heard.recv_timeout(look_at.saturating_duration_since(Instant::now())) {
                Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(word) => {
                    if self.hear(word) {
                        look_at = look_at.min(Instant::now() + LOOK);
                    }
                    // Hear every word that is there before a look, for one may say that a file is being written; but
                    // where words never end, look all the same.
                    if Instant::now() < look_at + LATE {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            self.watch_directories();
            let unsettled = self.look(now);
            look_at = now + if unsettled { LOOK } else { self.look_without_word };
        }
    }

    /// Whether it is a reason to look.
    fn hear(&mut self, word: Word) -> bool {
        match word {
            Word::Add(path, watched) => {
                self.files.entry(path).or_insert(*watched);
            }
            Word::Remove(path) => {
                self.files.remove(&path);
            }
            Word::System(None) | Word::End => {}
            Word::System(Some(event)) => {
                let written = match event.kind {
                    EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
                    // Reading a file is no change; and this thread reads them.
                    EventKind::Access(_) => return false,
                    EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => true,
                    _ => false,
                };
                for watched in self.files.values_mut().filter(|watched| event.paths.contains(&watched.leads_to)) {
                    watched.open = written;
                }
            }
        }
        true
    }

    /// Whether a file is still to be looked at again soon.
    fn look(&mut self, now: Instant) -> bool {
        let mut unsettled = false;
        for (path, watched) in &mut self.files {
            if watched.look(path, now) {
                match self.changes.try_send(Changed { path: path.clone() }) {
                    Ok(()) => watched.reported(),
                    Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => {}
                }
            }
            unsettled |= watched.since.is_some();
        }
        unsettled
    }

    /// Has the system watch the directories on the way to every file. A way may change before its directories are
    /// watched, so it is gone again until nothing new is on it; a way that changes all the time is met at a later look.
    fn watch_directories(&mut self) {
        const ROUNDS_MAX: usize = 8;
        for _ in 0..ROUNDS_MAX {
            if !self.watch_directories_of_now() {
                return;
            }
        }
    }

    /// Watches these directories and no others; whether any of them was new.
    fn watch_directories_of_now(&mut self) -> bool {
        let mut needed = BTreeSet::new();
        for (path, watched) in &mut self.files {
            let way = Way::to(path);
            needed.extend(way.directories);
            if watched.leads_to != way.leads_to {
                // Who was writing was writing into another file.
                (watched.leads_to, watched.open) = (way.leads_to, false);
            }
        }
        let lost: Vec<_> = self
            .directories
            .iter()
            .filter(|(directory, identity)| !needed.contains(*directory) || Identity::of(directory) != Some(**identity))
            .map(|(directory, _)| directory.clone())
            .collect();
        for directory in lost {
            self.directories.remove(&directory);
            // It fails for a directory that is gone, which is what it is for.
            let _ = self.system.unwatch(&directory);
        }
        let mut new = false;
        for directory in needed {
            let Some(identity) = Identity::of(&directory) else { continue };
            if self.directories.contains_key(&directory) {
                continue;
            }
            if let Err(error) = self.system.watch(&directory, RecursiveMode::NonRecursive) {
                tracing::warn!(
                    directory = %directory.display(),
                    %error,
                    "the system cannot watch this directory; its files are looked at every two seconds"
                );
            }
            self.directories.insert(directory, identity);
            new = true;
        }
        new
    }
}

/// Which file or directory it is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// Everything the system tells of a file without reading it, as far as a change of its content changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outside {
    identity: Identity,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Outside {
    fn from(metadata: &Metadata) -> Self {
        Self {
            identity: Identity { device: metadata.dev(), inode: metadata.ino() },
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Outside {
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().filter(Metadata::is_file).as_ref().map(Self::from)
    }
}

/// One file.
#[derive(Debug)]
struct Watched {
    /// The content that is known, SHA-256; none if there never was a file.
    known: Option<[u8; 32]>,
    /// As it was last seen from outside.
    outside: Option<Outside>,
    /// Since when it is as it was last seen; none once that has been dealt with.
    since: Option<Instant>,
    /// A content that was read and not reported yet.
    unreported: Option<[u8; 32]>,
    /// The file that the path leads to when all links are followed.
    leads_to: PathBuf,
    /// Whether someone has made it or written into it, and not closed it.
    open: bool,
}

impl Watched {
    /// The file as it is, all of it known.
    fn now(path: &Path) -> Self {
        let read = read(path);
        let (outside, known) = read.ok().unzip();
        Self { known, outside, since: None, unreported: None, leads_to: Way::to(path).leads_to, open: false }
    }

    /// Looks at the file; whether a new content is to be reported.
    fn look(&mut self, path: &Path, now: Instant) -> bool {
        let outside = Outside::of(path);
        if outside != self.outside {
            (self.outside, self.since) = (outside, Some(now));
            self.unreported = None;
            return false;
        }
        // An empty file was probably just made to be written, even if the system has not said so yet.
        let unfinished = self.open || self.outside.is_some_and(|outside| outside.bytes == 0);
        let still = if unfinished { STILL_WHILE_UNFINISHED } else { STILL };
        if self.unreported.is_none() && self.since.is_some_and(|since| now.duration_since(since) >= still) {
            match read(path) {
                Ok((read_from, _)) if Some(read_from) != self.outside => return false,
                Ok((_, digest)) if Some(digest) != self.known => self.unreported = Some(digest),
                // Known, gone, or not for us to read: nothing to report until it changes again.
                Ok(_) | Err(_) => self.since = None,
            }
        }
        self.unreported.is_some()
    }

    fn reported(&mut self) {
        self.known = self.unreported.take();
        self.since = None;
    }
}

/// The content's SHA-256, and what the file was like from outside when all of it had been read.
fn read(path: &Path) -> io::Result<(Outside, [u8; 32])> {
    let mut file = File::open(path)?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((Outside::from(&file.metadata()?), digest.finalize().into())),
            bytes => digest.update(&buffer[..bytes]),
        }
    }
}

/// How a path leads to a file.
struct Way {
    /// Every directory in which a change can make the path lead elsewhere; links followed.
    directories: BTreeSet<PathBuf>,
    /// The file at its end, whether it is there or not.
    leads_to: PathBuf,
}

impl Way {
    fn to(path: &Path) -> Self {
        // It fails for the empty path and without a current directory: then there is nothing to find.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut directories = BTreeSet::new();
        let mut at = PathBuf::from("/");
        let mut left: VecDeque<PathBuf> = pieces(&path);
        let mut links = 0;
        while let Some(piece) = left.pop_front() {
            if piece == Path::new("/") {
                at = piece;
                continue;
            }
            if piece == Path::new("..") {
                at.pop();
                continue;
            }
            let next = at.join(&piece);
            let kind = fs::symlink_metadata(&next).map(|metadata| metadata.file_type());
            if let (Ok(true), Ok(target)) = (kind.as_ref().map(fs::FileType::is_symlink), fs::read_link(&next))
                && links < LINKS_MAX
            {
                links += 1;
                directories.insert(at.clone());
                for piece in pieces(&target).into_iter().rev() {
                    left.push_front(piece);
                }
                continue;
            }
            if left.is_empty() || kind.is_err() {
                directories.insert(at.clone());
            }
            if kind.is_err() {
                at = left.drain(..).fold(next, |at, piece| at.join(piece));
                break;
            }
            at = next;
        }
        Self { directories, leads_to: at }
    }
}

fn pieces(path: &Path) -> VecDeque<PathBuf> {
    let piece = |component: Component<'_>| match component {
        Component::CurDir => None,
        component => Some(PathBuf::from(component.as_os_str())),
    };
    path.components().filter_map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// Long enough for any change to be reported, on a busy machine, too.
    const SOON: Duration = Duration::from_secs(20);
    /// Long enough for a report that should not come.
    const NEVER: Duration = Duration::from_millis(400);

    /// A directory, a watcher of some files in it, and its reports.
    struct Scene {
        folder: TempDir,
        watcher: Watcher,
        changes: mpsc::Receiver<Changed>,
    }

    impl Scene {
        /// Watches `names`, after `prepare` has made what it wants. Only the system's word makes the watcher look.
        fn new(names: &[&str], prepare: impl FnOnce(&Path)) -> Self {
            Self::looking_every(Duration::from_secs(3_600), names, prepare)
        }

        fn looking_every(look_without_word: Duration, names: &[&str], prepare: impl FnOnce(&Path)) -> Self {
            let folder = tempfile::tempdir().unwrap();
            prepare(folder.path());
            let paths = names.iter().map(|name| folder.path().join(name));
            let (watcher, changes) = Watcher::start(paths, look_without_word).unwrap();
            Self { folder, watcher, changes }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
        }

        /// The next report is of `name`, and then the file reads `content`.
        async fn reports(&mut self, name: &str, content: &str) {
            let changed = tokio::time::timeout(SOON, self.changes.recv()).await.expect("nothing is reported").unwrap();
            assert_eq!(changed.path, self.path(name));
            assert_eq!(fs::read_to_string(&changed.path).unwrap(), content);
        }

        async fn reports_nothing(&mut self) {
            let reported = tokio::time::timeout(NEVER, self.changes.recv()).await;
            assert!(reported.is_err(), "{reported:?}");
        }
    }

    fn write(folder: &Path, name: &str, content: &str) {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), content).unwrap();
    }

    #[tokio::test]
    async fn a_file_written_in_two_halves_is_reported_once_and_whole() {
        let mut scene = Scene::new(&["a"], |folder| write(folder, "a", "old"));
        let mut file = File::create(scene.path("a")).unwrap();
        file.write_all(b"first ").unwrap();
        scene.reports_nothing().await;
        file.write_all(b"second").unwrap();
        drop(file);
        scene.reports("a", "first second").await;
        scene.reports_nothing().await;
    }

    #[tokio::test]
    async fn a_file_put_in_its_place_is_reported() {
        let mut scene = Scene::new(&["a"], |folder| write(folder, "a", "old"));
        for content in ["new", "newer"] {
            scene.write("a.tmp", content);
            fs::rename(scene.path("a.tmp"), scene.path("a")).unwrap();
            scene.reports("a", content).await;
        }
        scene.reports_nothing().await;
    }

    #[tokio::test]
    async fn a_copy_over_it_is_reported() {
        let mut scene = Scene::new(&["a"], |folder| write(folder, "a", "old"));
        scene.write("b", "new");
        fs::copy(scene.path("b"), scene.path("a")).unwrap();
        scene.reports("a", "new").await;
    }

    #[tokio::test]
    async fn what_changes_nothing_is_not_reported() {
        let mut scene = Scene::new(&["a", "b"], |folder| {
            write(folder, "a", "old");
            write(folder, "b", "old");
        });
        scene.write("a", "old");
        File::open(scene.path("b")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        scene.write("c", "another");
        fs::remove_file(scene.path("b")).unwrap();
        scene.reports_nothing().await;
        scene.write("b", "old");
        scene.reports_nothing().await;
    }

    #[tokio::test]
    async fn a_file_that_comes_back_otherwise_is_reported() {
        let mut scene = Scene::new(&["a"], |folder| write(folder, "a", "old"));
        fs::remove_file(scene.path("a")).unwrap();
        scene.reports_nothing().await;
        scene.write("a", "new");
        scene.reports("a", "new").await;
    }

    #[tokio::test]
    async fn a_file_that_was_not_there_is_reported_when_it_comes() {
        let mut scene = Scene::new(&["deep/er/a"], |_| {});
        fs::create_dir_all(scene.path("deep/er")).unwrap();
        scene.write("deep/er/a", "new");
        scene.reports("deep/er/a", "new").await;
    }

    /// `a → ..data/a`, `..data → one/`; the link `..data` is replaced by one to `two/`.
    #[tokio::test]
    async fn a_swapped_link_is_reported_for_the_files_that_differ() {
        let mut scene = Scene::new(&["a", "b"], |folder| {
            for (version, content) in [("one", "old"), ("two", "new")] {
                write(folder, &format!("{version}/a"), content);
                write(folder, &format!("{version}/b"), "the same");
            }
            symlink("one", folder.join("..data")).unwrap();
            symlink("..data/a", folder.join("a")).unwrap();
            symlink("..data/b", folder.join("b")).unwrap();
        });
        symlink("two", scene.path("..data_tmp")).unwrap();
        fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
        scene.reports("a", "new").await;
        scene.reports_nothing().await;
        scene.write("two/b", "another");
        scene.reports("b", "another").await;
    }

    #[tokio::test]
    async fn a_link_on_the_way_may_be_swapped() {
        let mut scene = Scene::new(&["current/plugins/a"], |folder| {
            write(folder, "releases/1/plugins/a", "old");
            write(folder, "releases/2/plugins/a", "new");
            symlink(folder.join("releases/1"), folder.join("current")).unwrap();
        });
        symlink(scene.path("releases/2"), scene.path("next")).unwrap();
        fs::rename(scene.path("next"), scene.path("current")).unwrap();
        scene.reports("current/plugins/a", "new").await;
        scene.write("releases/2/plugins/a", "newer");
        scene.reports("current/plugins/a", "newer").await;
    }

    #[tokio::test]
    async fn a_directory_may_be_replaced() {
        let mut scene = Scene::new(&["dir/a"], |folder| {
            write(folder, "dir/a", "old");
            write(folder, "new/a", "new");
        });
        fs::rename(scene.path("dir"), scene.path("dir.old")).unwrap();
        fs::rename(scene.path("new"), scene.path("dir")).unwrap();
        scene.reports("dir/a", "new").await;
        scene.write("dir.old/a", "not watched");
        scene.write("dir/a", "newer");
        scene.reports("dir/a", "newer").await;
        scene.reports_nothing().await;
    }

    /// Written through another name in a directory that is not watched: the system says nothing.
    #[tokio::test]
    async fn a_change_without_a_word_is_found() {
        let mut scene = Scene::looking_every(LOOK, &["dir/a"], |folder| {
            write(folder, "dir/a", "old");
            fs::create_dir(folder.join("else")).unwrap();
            fs::hard_link(folder.join("dir/a"), folder.join("else/b")).unwrap();
        });
        scene.write("dir/a", "heard");
        scene.reports("dir/a", "heard").await;
        scene.reports_nothing().await;
        scene.write("else/b", "unheard");
        scene.reports("dir/a", "unheard").await;
    }

    #[tokio::test]
    async fn paths_come_and_go() {
        let mut scene = Scene::new(&["a"], |folder| write(folder, "other/b", "old"));
        scene.watcher.add(scene.path("other/b"));
        scene.write("other/b", "new");
        scene.reports("other/b", "new").await;
        scene.watcher.remove(&scene.path("other/b"));
        scene.write("other/b", "newer");
        scene.reports_nothing().await;
        scene.watcher.add(scene.path("other/b"));
        scene.write("a", "first");
        scene.reports("a", "first").await;
        scene.reports_nothing().await;
    }

    #[tokio::test]
    async fn more_changes_than_anyone_takes_are_kept() {
        let names: Vec<String> = (0..CHANGES_MAX + 10).map(|number| format!("{number:03}")).collect();
        let mut scene = Scene::new(&names.iter().map(String::as_str).collect::<Vec<_>>(), |_| {});
        names.iter().for_each(|name| scene.write(name, "new"));
        let mut reported = BTreeSet::new();
        while reported.len() < names.len() {
            let changed = tokio::time::timeout(SOON, scene.changes.recv()).await.expect("a report is lost").unwrap();
            assert!(reported.insert(changed.path), "a report came twice");
        }
        scene.reports_nothing().await;
    }

    #[tokio::test]
    async fn a_dropped_watcher_ends() {
        let mut scene = Scene::new(&["a"], |_| {});
        drop(scene.watcher);
        assert_eq!(scene.changes.recv().await, None);
    }

    #[test]
    fn links_that_lead_nowhere_are_followed_no_further() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let way = Way::to(&folder.path().join("a"));
        assert!(way.directories.contains(&folder.path().canonicalize().unwrap()));
    }
}
