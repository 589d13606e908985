//! apt-get without questions: lists brought up to date, the transaction
//! simulated and judged, then carried out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::{Host, InstallError, Manager};
use crate::command::{self, CommandError, Progress, Sink};

/// Package lists older than this are fetched again.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// How long apt waits for another apt or dpkg.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=300";
/// A mirror that does not answer must not hold us for long.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
const SIMULATE_LIMIT: Duration = Duration::from_secs(120);
/// The largest set is some 250 MB.
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);

/// Which package lists will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lists {
    /// Younger than a day, and than what says where lists come from.
    Fresh,
    /// Fetched now.
    New,
}

/// apt-get on one machine.
pub(super) struct Apt<'a> {
    program: &'a Path,
    host: &'a Host,
}

impl<'a> Apt<'a> {
    pub(super) fn new(program: &'a Path, host: &'a Host) -> Self {
        Self { program, host }
    }

    /// Installs `packages`.
    pub(super) fn install(
        &self,
        packages: &[&str],
        lists: Lists,
        sink: &mut Sink<'_>,
    ) -> Result<(), InstallError> {
        let mut updated = false;
        if lists == Lists::New || !self.lists_are_fresh() {
            sink(Progress::Step("Bringing the package lists up to date"));
            self.update(packages, sink)?;
            updated = true;
        }
        match self.attempt(packages, sink) {
            // A package unknown to old lists, or gone from the mirror since.
            Err(InstallError::Failed { cause, .. })
                if !updated && !matches!(cause, CommandError::Interrupted { .. }) =>
            {
                sink(Progress::Step(
                    "That failed; once more with new package lists",
                ));
                self.update(packages, sink)?;
                self.attempt(packages, sink)
            }
            result => result,
        }
    }

    /// Downloads the package that `package` stands for (itself, or the one that it
    /// depends on whose name begins as its own up to `stem`) into the empty
    /// `directory`; returns its file.
    pub(super) fn download(
        &self,
        package: &str,
        stem: &str,
        directory: &Path,
        sink: &mut Sink<'_>,
    ) -> Result<PathBuf, InstallError> {
        if self.host.root && !self.lists_are_fresh() {
            sink(Progress::Step("Bringing the package lists up to date"));
            self.update(&[package], sink)?;
        }
        let failed = |cause| InstallError::Download {
            package: package.to_owned(),
            cause,
        };
        let mut depends = Command::new(self.program.with_file_name("apt-cache"));
        depends.env("LC_ALL", "C").args(["depends", package]);
        let depends = command::output(&mut depends, SIMULATE_LIMIT).map_err(failed)?;
        let real = stands_for(&depends, stem).unwrap_or(package);
        sink(Progress::Step(&format!("Downloading {real} by apt-get")));
        let mut download = self.command(&["download", real]);
        download.current_dir(directory);
        command::run(&mut download, Some(INSTALL_LIMIT), sink).map_err(failed)?;
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut files = files.map(|entry| entry.path());
        files
            .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| InstallError::NotDownloaded(real.to_owned()))
    }

    fn update(&self, packages: &[&str], sink: &mut Sink<'_>) -> Result<(), InstallError> {
        self.run(&["update"], packages, UPDATE_LIMIT, sink)
    }

    fn attempt(&self, packages: &[&str], sink: &mut Sink<'_>) -> Result<(), InstallError> {
        let mut arguments = vec!["install", "-y", "--no-install-recommends"];
        let mut simulate = self.command(&["-s"]);
        simulate.args(&arguments).args(packages);
        let plan = command::output(&mut simulate, SIMULATE_LIMIT)
            .map_err(|cause| self.failed(packages, cause))?;
        let plan = Plan::parse(&plan);

        let strangers: Vec<_> = plan
            .removed
            .iter()
            .filter(|package| !replaceable(package))
            .map(String::as_str)
            .collect();
        if !strangers.is_empty() {
            return Err(InstallError::WouldRemove {
                packages: packages.join(" "),
                removed: strangers.join(", "),
                command: Manager::Apt.command(packages, self.host.root),
            });
        }
        if plan.removed.is_empty() {
            // Between the simulation and now the machine may have changed.
            arguments.push("--no-remove");
        } else {
            sink(Progress::Step(&format!(
                "This replaces {}, which cannot be installed beside the new packages",
                plan.removed.join(", ")
            )));
        }
        sink(Progress::Step(&format!(
            "{} packages to install",
            plan.installed.len()
        )));
        arguments.extend(packages);
        self.run(&arguments, packages, INSTALL_LIMIT, sink)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .args(["-q", "-o", LOCK_TIMEOUT, "-o", "Dpkg::Use-Pty=0"])
            .args(arguments);
        command
    }

    fn run(
        &self,
        arguments: &[&str],
        packages: &[&str],
        limit: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<(), InstallError> {
        command::run_unbroken(&mut self.command(arguments), Some(limit), sink)
            .map_err(|cause| self.failed(packages, cause))
    }

    fn failed(&self, packages: &[&str], cause: CommandError) -> InstallError {
        InstallError::Failed {
            packages: packages.join(" "),
            cause,
            command: Manager::Apt.command(packages, self.host.root),
        }
    }

    /// Whether the package lists are young, and of the sources that there are
    /// now: an image is often made with lists of fewer.
    fn lists_are_fresh(&self) -> bool {
        let youngest = |path, name| youngest(&self.host.path(path), name);
        let Some(lists) = youngest("/var/lib/apt/lists", "_Packages") else {
            return false;
        };
        let sources = [
            youngest("/etc/apt", "sources.list"),
            youngest("/etc/apt/sources.list.d", ""),
        ];
        let age = SystemTime::now().duration_since(lists);
        age.is_ok_and(|age| age < FRESH) && sources.iter().flatten().all(|source| *source <= lists)
    }
}

/// When the youngest file of those in `directory` with `name` in theirs came
/// there: the time of its status change, as the time of modification is the
/// mirror's.
fn youngest(directory: &Path, name: &str) -> Option<SystemTime> {
    use std::os::unix::fs::MetadataExt;

    std::fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().contains(name))
        .filter_map(|entry| entry.metadata().ok())
        .filter(|data| data.is_file())
        .filter_map(|data| u64::try_from(data.ctime()).ok())
        .max()
        .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Whether a package may be removed to make room: those of QEMU conflict with
/// each other's other versions, and nothing else depends on our not touching
/// them.
fn replaceable(package: &str) -> bool {
    package.starts_with("qemu-")
}

/// The first package that one depends on whose name begins with `stem`, of what
/// `apt-cache depends` prints.
pub(super) fn stands_for<'a>(depends: &'a str, stem: &str) -> Option<&'a str> {
    let mut named = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    named.find(|name| name.starts_with(stem))
}

/// What `apt-get -s install` says it would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Names of the packages that come, new or in a new version.
    pub(super) installed: Vec<String>,
    /// Names of the packages that go.
    pub(super) removed: Vec<String>,
}

impl Plan {
    /// Reads the lines `Inst NAME ...`, `Remv NAME ...` and `Purg NAME ...`.
    pub(super) fn parse(text: &str) -> Self {
        let mut plan = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(verb), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            // `name:architecture` where it is not the native one.
            let list = match verb {
                "Inst" => &mut plan.installed,
                "Remv" | "Purg" => &mut plan.removed,
                _ => continue,
            };
            list.push(name.to_owned());
        }
        plan
    }
}
