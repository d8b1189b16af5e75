//! Faults of the machine: a network of its own for a server, a small disk, a clock that can be moved.
//!
//! Networks and disks need root. All of it is undone when dropped.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// Runs a tool with something on its standard input.
fn tool(words: &[&str], input: &str) -> Result<()> {
    let (program, arguments) = words.split_first().context("no tool")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let missing = || format!("`{program}` cannot be started; tests/install faults installs it");
    let mut child = command.spawn().with_context(missing)?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {said} (networks and disks of tests need root)", words.join(" "));
    Ok(())
}

/// A network with one server in it, joined to the machine's by a cable of two interfaces.
pub struct Network {
    name: String,
    inside: Ipv4Addr,
}

/// What becomes of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// They vanish, both ways.
    Vanish,
    /// Those from the server vanish; it still hears what is asked of it.
    AnswersVanish,
    /// They are answered by a reset of their connection, both ways.
    Reset,
}

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// Without root, or without `ip`.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sy{}n{number}", std::process::id());
        // 198.18.0.0/15 is set aside for tests of networks; each of ours takes four addresses of it.
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (std::process::id() * 8 + number) % (1 << 15) * 4;
        let [outside, inside] = [1, 2].map(|host| Ipv4Addr::from(base + host));
        let network = Self { name, inside };
        let name = &network.name;
        tool(&["ip", "netns", "add", name], "")?;
        tool(&["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name], "")?;
        tool(&["ip", "address", "add", &format!("{outside}/30"), "dev", name], "")?;
        tool(&["ip", "link", "set", name, "up"], "")?;
        network.inside(&["ip", "address", "add", &format!("{inside}/30"), "dev", "eth0"], "")?;
        network.inside(&["ip", "link", "set", "eth0", "up"], "")?;
        network.inside(&["ip", "link", "set", "lo", "up"], "")?;
        Ok(network)
    }

    /// The address of the server in it.
    pub fn address(&self) -> Ipv4Addr {
        self.inside
    }

    /// What a server is started through to be in it.
    pub fn through(&self) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.name].map(OsString::from).to_vec()
    }

    /// Moves the calling thread into it, and with it whatever that thread starts from now on: threads, and processes that
    /// have 127.0.0.1 to themselves.
    ///
    /// # Errors
    /// Without root.
    pub fn enter(&self) -> Result<()> {
        let namespace = File::open(Path::new("/run/netns").join(&self.name))?;
        Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Does something to all packets to and from a server's port from now on.
    ///
    /// # Errors
    /// Without `nft`.
    pub fn disturb(&self, port: u16, packets: Packets) -> Result<()> {
        let (input, output) = match packets {
            Packets::Vanish => ("drop", "drop"),
            Packets::AnswersVanish => ("accept", "drop"),
            Packets::Reset => ("reject with tcp reset", "reject with tcp reset"),
        };
        // Resets that were made here must get out.
        let rules = format!(
            "table inet fault {{\n\
             chain i {{ type filter hook input priority 0; tcp dport {port} {input}; }}\n\
             chain o {{ type filter hook output priority 0; tcp flags rst accept; tcp sport {port} {output}; }}\n}}\n"
        );
        self.inside(&["nft", "-f", "-"], &rules)
    }

    /// Lets so many kilobits a second pass each way from now on, or as many as come.
    ///
    /// # Errors
    /// Without `tc`.
    pub fn limit(&self, kilobits_per_second: Option<u32>) -> Result<()> {
        let rate = rate(kilobits_per_second);
        tool(&limiting(&self.name, rate.as_deref(), "4kb"), "")?;
        self.inside(&limiting("eth0", rate.as_deref(), "4kb"), "")
    }

    /// As [`Network::limit`], between those who are all inside.
    ///
    /// # Errors
    /// Without `tc`.
    pub fn limit_inside(&self, kilobits_per_second: Option<u32>) -> Result<()> {
        // A packet may be 64 KiB large there.
        self.inside(&limiting("lo", rate(kilobits_per_second).as_deref(), "70kb"), "")
    }

    /// Lets packets be again.
    ///
    /// # Errors
    /// Without `nft`.
    pub fn mend(&self) -> Result<()> {
        self.inside(&["nft", "flush", "ruleset"], "")
    }

    fn inside(&self, words: &[&str], input: &str) -> Result<()> {
        tool(&[["ip", "netns", "exec", &self.name].as_slice(), words].concat(), input)
    }
}

/// As `tc` writes it.
fn rate(kilobits_per_second: Option<u32>) -> Option<String> {
    kilobits_per_second.map(|rate| format!("{rate}kbit"))
}

/// The words that let so much pass through an interface; without a rate, as much as comes.
fn limiting<'w>(interface: &'w str, rate: Option<&'w str>, burst: &'w str) -> Vec<&'w str> {
    let mut words = vec!["tc", "qdisc", "replace", "dev", interface, "root"];
    match rate {
        Some(rate) => words.extend(["tbf", "rate", rate, "burst", burst, "latency", "300ms"]),
        None => words.push("pfifo"),
    }
    words
}

impl Drop for Network {
    fn drop(&mut self) {
        // The cable goes with its end. Nothing can be done about one that does not.
        let _ = tool(&["ip", "netns", "delete", &self.name], "");
    }
}

/// A small file system of its own.
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// Makes one of this size.
    ///
    /// # Errors
    /// Without root, or without `mkfs.ext4`.
    pub fn new(mebibytes: u64) -> Result<Self> {
        // Short, since sockets lie in it.
        let disk = Self { dir: tempfile::Builder::new().prefix("disk-").tempdir_in("/tmp")? };
        let image = disk.dir.path().join("image");
        File::create(&image)?.set_len(mebibytes << 20)?;
        std::fs::create_dir(disk.path())?;
        let (image, path) = (image.to_string_lossy(), disk.path());
        tool(&["mkfs.ext4", "-q", "-m", "0", &image], "")?;
        tool(&["mount", "-o", "loop", &image, &path.to_string_lossy()], "")?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Takes all of its space but this.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn fill(&self, but_mebibytes: u64) -> Result<()> {
        let file = File::create(self.ballast())?;
        let disk = statvfs(self.path())?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let (mut taken, mut piece) = (0, free.saturating_sub(but_mebibytes << 20));
        let goal = piece;
        // The file system keeps something back for itself, so the last pieces are small.
        while taken < goal && piece >= disk.f_frsize {
            match fallocate(&file, FallocateFlags::empty(), taken, piece) {
                Ok(()) => taken += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// If it was not taken.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server may not have ended yet. Nothing can be done about one that does not.
        let _ = tool(&["umount", "--lazy", &self.path().to_string_lossy()], "");
    }
}

/// A wall clock that can be moved, of the processes that are started with its environment. Their monotonic clocks go on
/// as they do.
pub struct Clock {
    offset: TempDir,
    library: PathBuf,
}

impl Clock {
    /// One that is right.
    ///
    /// # Errors
    /// If libfaketime is not there.
    pub fn new() -> Result<Self> {
        let clock = Self { offset: tempfile::Builder::new().prefix("clock-").tempdir()?, library: libfaketime()? };
        clock.set("+0")?;
        Ok(clock)
    }

    /// What a process needs in its environment.
    pub fn environment(&self) -> Vec<(String, OsString)> {
        // The C library's allocator goes before jemalloc, which asks for the time before libfaketime can tell it.
        let preloaded = [self.library.as_os_str(), OsStr::new("libc.so.6")].join(OsStr::new(":"));
        let pairs = [
            ("LD_PRELOAD", preloaded),
            ("FAKETIME_TIMESTAMP_FILE", self.file().into_os_string()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Moves it to so much before (`-1h`) or behind (`+1h`) the right time.
    ///
    /// # Errors
    /// If the offset cannot be written.
    pub fn set(&self, offset: &str) -> Result<()> {
        let new = self.offset.path().join("new");
        std::fs::write(&new, offset)?;
        Ok(std::fs::rename(new, self.file())?)
    }

    fn file(&self) -> PathBuf {
        self.offset.path().join("offset")
    }
}

fn libfaketime() -> Result<PathBuf> {
    // Debian has a folder for each architecture, others have not.
    let folders = std::fs::read_dir("/usr/lib")?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut candidates = folders.chain(["/usr/lib".into()]).map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    candidates.find(|path| path.exists()).context("libfaketime is not there; tests/install faults installs it")
}
