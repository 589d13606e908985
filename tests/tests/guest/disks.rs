//! Disks that are full or take nothing: the command says so, and destroys nothing.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use kickpath_tests::{Suite, program, setup};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// What is in a file before a command that fails.
const OLD: &[u8] = b"what was there before";

/// What the system says.
const FULL: &str = "No space left on device";

pub fn add(suite: &mut Suite) {
    suite.needs(lacks_mounts(), |suite| {
        let mut add = |name: &str, body: fn(&Disk) -> Result<()>| {
            suite.test(&format!("disks::{name}"), move || {
                // Before the clock of anything else: it may take minutes.
                setup::setup()?;
                on_a_disk(body)
            });
        };
        add("a_page_stays_when_its_disk_is_full", page);
        add("an_image_stays_when_its_disk_is_full", image);
        add("a_record_of_frames_stays_when_its_disk_is_full", frames);
        add("a_full_disk_for_temporary_files_is_named", temporary);
        add("a_disk_that_takes_nothing_is_named_at_once", read_only);
    });
}

/// Why no file system of a test's own can be mounted here, if so.
fn lacks_mounts() -> Option<String> {
    let attempt = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS));
    match attempt.join() {
        Ok(Ok(())) => None,
        _ => Some("a file system of a test's own needs root".into()),
    }
}

/// A small file system in memory.
struct Disk {
    root: PathBuf,
}

/// Runs a test with a disk that only its thread and the programs that it starts see, so that
/// it goes with them, however they end.
fn on_a_disk(body: fn(&Disk) -> Result<()>) -> Result<()> {
    let place = tempfile::tempdir()?;
    let thread = std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            let disk = Disk {
                root: place.path().to_owned(),
            };
            disk.mount(MsFlags::empty())?;
            body(&disk)
        };
        scope.spawn(run).join()
    });
    thread.map_err(|_| anyhow!("the test panicked"))?
}

impl Disk {
    fn mount(&self, flags: MsFlags) -> Result<()> {
        let (kind, size) = (Some("tmpfs"), Some("size=512k"));
        mount(kind, &self.root, kind, flags, size).context("mount a tmpfs")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Puts a file there that must survive.
    fn old(&self, name: &str) -> Result<String> {
        fs::write(self.path(name), OLD)?;
        let path = self.path(name);
        Ok(path.to_str().context("a path of UTF-8")?.to_owned())
    }

    /// Leaves room for that many pages of 4096 bytes.
    fn fill(&self, pages: u64) -> Result<()> {
        let filler = self.path("filler");
        let mut file = File::create(&filler)?;
        while file.write_all(&[0x5a; 4096]).is_ok() {}
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(4096 * pages))?;
        Ok(())
    }

    /// The old file is as it was, and nothing unfinished lies beside it.
    fn is_as_before(&self, name: &str) -> Result<()> {
        ensure!(fs::read(self.path(name))? == OLD, "{name} has changed");
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            names.push(entry?.file_name());
        }
        names.retain(|other| other != name && other != "filler");
        ensure!(names.is_empty(), "{names:?} were left");
        Ok(())
    }
}

/// Runs a command that must fail with status 1 and say this.
fn refused(arguments: &[&str], temporary: Option<&Path>, expected: &[&str]) -> Result<()> {
    let mut command = program::command(arguments)?;
    if let Some(directory) = temporary {
        command.env("TMPDIR", directory);
    }
    fails(&mut command, expected).with_context(|| format!("{arguments:?}"))
}

fn fails(command: &mut Command, expected: &[&str]) -> Result<()> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {text}", output.status);
    for part in expected {
        ensure!(text.contains(part), "no '{part}' in {text}");
    }
    Ok(())
}

fn page(disk: &Disk) -> Result<()> {
    let page = disk.old("page.html")?;
    disk.fill(2)?;
    let said = format!("cannot write {page}: {FULL}");
    refused(&["trace", "--html", &page], None, &[&said])?;
    disk.is_as_before("page.html")
}

fn image(disk: &Disk) -> Result<()> {
    let image = disk.old("guest.bz")?;
    disk.fill(2)?;
    let said = format!("cannot write {image}: {FULL}");
    refused(&["image", "--bzimage", &image], None, &[&said])?;
    disk.is_as_before("guest.bz")
}

/// Ours frame by frame, and both of QEMU's.
fn frames(disk: &Disk) -> Result<()> {
    let tap: &[&str] = match setup::lacks_tap() {
        None => &["tap"],
        Some(_) => &[],
    };
    let record = disk.old("run.pcap")?;
    let said = format!("cannot write {record}: {FULL}");
    disk.fill(3)?;
    for net in [&["dgram", "user"], tap].concat() {
        let arguments = ["run", "--net", net, "--pcap", &record];
        refused(&arguments, None, &[&said])?;
        disk.is_as_before("run.pcap")?;
    }
    Ok(())
}

fn temporary(disk: &Disk) -> Result<()> {
    let said = format!("cannot write into {}", disk.root.display());
    // Room for sockets, but neither for QEMU's log nor for the guest's memory.
    disk.fill(10)?;
    refused(&["trace"], Some(&disk.root), &[&said, FULL])?;
    disk.fill(0)?;
    ensure!(fs::read_dir(&disk.root)?.count() == 1, "something is left");
    Ok(())
}

fn read_only(disk: &Disk) -> Result<()> {
    let page = disk.old("page.html")?;
    disk.mount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
    let read_only = "Read-only file system";
    let said = format!("cannot write {page}: {read_only}");
    // Before anything is started: there is no such QEMU.
    for arguments in [
        ["trace", "--html"],
        ["run", "--pcap"],
        ["compare", "--html"],
    ] {
        let arguments = [&arguments[..], &[&page, "--qemu", "/no/qemu"]].concat();
        refused(&arguments, None, &[&said])?;
    }
    let said = format!("cannot write into {}", disk.root.display());
    refused(&["run"], Some(&disk.root), &[&said, read_only])?;
    disk.is_as_before("page.html")
}
