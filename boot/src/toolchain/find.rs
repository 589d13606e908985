//! The search for a toolchain, in the order that the parent module gives.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use super::{BuildOptions, Choice, Source, TARGET, Toolchain, ToolchainError};
use crate::command::{self, Progress, Sink};
use crate::install::{Check, Host, Policy, Requirement};
use crate::interrupt;

/// `rustc --version` takes milliseconds; rustup's proxy may read the network
/// configuration first.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// What rustup fetches is some 10 MB; a server that cannot bring them in
/// this time counts as out of reach.
const RUSTUP_LIMIT: Duration = Duration::from_secs(120);
/// Seconds after which rustup gives up on a silent server (its default is 180).
const RUSTUP_SILENCE: &str = "20";

const NEEDED: Version = Version::of_manifest(env!("CARGO_PKG_RUST_VERSION"));

const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";

/// Where a sysroot has the sources of its standard library.
const SYSROOT_SOURCES: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

/// What a distribution's packages must bring to build the guest.
const DISTRIBUTION: [Requirement; 3] = [
    package(&[RUSTC], "compile the guest", "rustc-web", "rust", "rust"),
    package(&[CARGO], "build the guest", "cargo-web", "cargo", "rust"),
    package(
        &[SOURCES],
        "build core and alloc for a machine without an operating system",
        "rust-web-src",
        "rust-src",
        "rust-src",
    ),
];
const LLD: Requirement = Requirement {
    check: Check::Program("ld.lld"),
    purpose: "link the guest",
    apt: "lld",
    dnf: "lld",
    pacman: "lld",
    zypper: "lld",
    brew: "lld",
};

const fn package(
    files: &'static [&'static str],
    purpose: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
) -> Requirement {
    Requirement {
        check: Check::AnyFile(files),
        purpose,
        apt,
        dnf,
        pacman,
        zypper: dnf,
        brew: "",
    }
}

/// The version of a compiler, without what follows the three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// Major.
    pub major: u16,
    /// Minor.
    pub minor: u16,
    /// Patch.
    pub patch: u16,
}

impl Version {
    /// Reads `rustc 1.96.0 (...)`, the output of `rustc --version`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (Some("rustc"), Some(version)) = (words.next(), words.next()) else {
            return None;
        };
        // `1.97.0-nightly`, `1.96.0-beta.2`
        let version = version.split('-').next()?;
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        let version = Self {
            major: numbers.next()??,
            minor: numbers.next()??,
            patch: numbers.next()??,
        };
        numbers.next().is_none().then_some(version)
    }

    /// Reads `1.95`, as a manifest's `rust-version`.
    const fn of_manifest(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut numbers = [0_u16; 3];
        let (mut index, mut part) = (0, 0);
        while index < bytes.len() {
            match bytes[index] {
                b'.' => part += 1,
                digit @ b'0'..=b'9' => {
                    numbers[part] = numbers[part] * 10 + (digit - b'0') as u16;
                }
                _ => panic!("rust-version is not of the form 1.95"),
            }
            index += 1;
        }
        assert!(numbers[0] > 0, "the manifest has no rust-version");
        Self {
            major: numbers[0],
            minor: numbers[1],
            patch: numbers[2],
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What there is on this machine to build the guest with.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    /// The toolchain that would be used, if one is complete.
    pub toolchain: Option<Toolchain>,
    /// One line for each that was looked at and found wanting.
    pub tried: Vec<String>,
    /// The command that would complete one, where one would.
    pub remedy: Option<String>,
}

/// Looks for toolchains on one machine for one workspace.
pub(super) struct Finder<'a> {
    host: &'a Host,
    workspace: &'a Path,
    target: &'a str,
    /// Whether rustup may fetch: not with `RUSTUP_AUTO_INSTALL=0`.
    rustup_may_fetch: bool,
}

impl<'a> Finder<'a> {
    pub(super) fn new(host: &'a Host, workspace: &'a Path) -> Self {
        Self {
            host,
            workspace,
            target: TARGET,
            rustup_may_fetch: env::var_os("RUSTUP_AUTO_INSTALL").is_none_or(|value| value != "0"),
        }
    }

    /// Looks for one for another machine than the guest's.
    pub(super) fn for_target(mut self, target: &'a str) -> Self {
        self.target = target;
        self
    }

    #[cfg(test)]
    pub(super) fn with_fetching(mut self, allowed: bool) -> Self {
        self.rustup_may_fetch = allowed;
        self
    }

    /// Finds a toolchain with what `source` says, or completes one as `options`
    /// permit. The distribution's always has sources, and serves for both.
    pub(super) fn complete(
        &self,
        source: Source,
        options: &BuildOptions,
        sink: &mut Sink<'_>,
    ) -> Result<Toolchain, ToolchainError> {
        let mut tried = Vec::new();
        if options.choice != Choice::Debian {
            match self.pinned(source) {
                Ok(toolchain) => return Ok(toolchain),
                Err(why) => tried.push(why),
            }
        }
        // What is complete comes before any download, or every run on a machine
        // out of rustup's reach would try one.
        if options.choice != Choice::Debian
            && let Ok(toolchain) = self.pinned(Source::BuildStd)
        {
            return Ok(toolchain);
        }
        if options.choice != Choice::Rustup
            && let Ok(toolchain) = self.distribution()
        {
            return Ok(toolchain);
        }
        // A compiler that was interrupted says nothing of what there is.
        if interrupt::requested() {
            return Err(ToolchainError::Interrupted);
        }
        if options.choice != Choice::Debian {
            match self.fetch(source, options.policy, sink) {
                Ok(()) => match self.pinned(source) {
                    Ok(toolchain) => return Ok(toolchain),
                    Err(why) => tried.push(why),
                },
                Err(why) => tried.push(why),
            }
        }
        if options.choice == Choice::Rustup {
            return Err(ToolchainError::NoToolchain { tried });
        }
        for why in &tried {
            sink(Progress::Step(&format!("Toolchain: {why}")));
        }
        if let Err(install) = self
            .host
            .ensure(&self.distribution_needs(), options.policy, sink)
        {
            return Err(ToolchainError::Install {
                install: Box::new(install),
                tried,
            });
        }
        let result = self.distribution();
        if !matches!(result, Err(ToolchainError::TooOld { .. })) {
            return result;
        }
        // The distribution may have brought a newer one since.
        match self
            .host
            .upgrade(&self.distribution_needs(), options.policy, sink)
        {
            Ok(true) => self.distribution(),
            Ok(false) => result,
            Err(install) => Err(ToolchainError::Install {
                install: Box::new(install),
                tried,
            }),
        }
    }

    /// What [`Self::complete`] would find, without changing anything.
    pub(super) fn survey(&self, choice: Choice) -> Survey {
        let mut survey = Survey {
            toolchain: None,
            tried: Vec::new(),
            remedy: None,
        };
        if choice != Choice::Debian {
            match self
                .pinned(Source::Prebuilt)
                .or_else(|why| self.pinned(Source::BuildStd).map_err(|_| why))
            {
                Ok(toolchain) => survey.toolchain = Some(toolchain),
                Err(why) => survey.tried.push(why),
            }
        }
        if choice != Choice::Rustup && survey.toolchain.is_none() {
            match self.distribution() {
                Ok(toolchain) => survey.toolchain = Some(toolchain),
                Err(ToolchainError::NoToolchain { tried }) => survey.tried.extend(tried),
                Err(why) => survey.tried.push(why.to_string()),
            }
        }
        if survey.toolchain.is_none() {
            let by_rustup = choice != Choice::Debian
                && self.rustup_may_fetch
                && self.host.find_program("rustup").is_some();
            survey.remedy = if by_rustup {
                Some(format!("rustup target add {}", self.target))
            } else {
                let missing: Vec<_> = self
                    .distribution_needs()
                    .into_iter()
                    .filter(|need| self.host.find(need).is_none())
                    .collect();
                self.host.command(&missing)
            };
        }
        survey
    }

    /// The toolchain in use, if it has what `source` says; else why not.
    fn pinned(&self, source: Source) -> Result<Toolchain, String> {
        let compiler = self.compiler_in_use()?;
        let linker = self.linker(&compiler);
        let Compiler {
            version,
            host,
            sysroot,
        } = compiler;
        let (there, what) = match source {
            Source::Prebuilt => {
                let libraries = sysroot.join("lib/rustlib").join(self.target).join("lib");
                (has_core(&libraries), format!("target {}", self.target))
            }
            Source::BuildStd => (
                sysroot.join(SYSROOT_SOURCES).is_file(),
                "sources of its standard library".to_owned(),
            ),
        };
        if !there {
            return Err(format!(
                "Rust {version} in {} has no {what}",
                sysroot.display()
            ));
        }
        if version < NEEDED {
            return Err(format!(
                "Rust {version} in {} is older than {NEEDED}",
                sysroot.display()
            ));
        }
        let linker = linker.ok_or_else(|| format!("{} has no rust-lld", sysroot.display()))?;
        // Not the proxies: they would choose a toolchain again.
        let (own_cargo, own_rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
        if !own_cargo.is_file() || !own_rustc.is_file() {
            return Err(format!("{} has no cargo", sysroot.display()));
        }
        Ok(Toolchain {
            version,
            cargo: own_cargo,
            rustc: own_rustc,
            linker,
            host,
            sysroot,
            source,
        })
    }

    /// Has rustup fetch what `source` says; the error says why that is not
    /// possible.
    fn fetch(&self, source: Source, policy: Policy, sink: &mut Sink<'_>) -> Result<(), String> {
        let (arguments, purpose) = match source {
            Source::Prebuilt => (
                ["target", "add", self.target],
                "the guest needs Rust's libraries for a machine without an operating system",
            ),
            Source::BuildStd => (
                ["component", "add", "rust-src"],
                "the boot loader builds Rust's core library for its own targets",
            ),
        };
        let command_line = format!("rustup {}", arguments.join(" "));
        let rustup = self
            .host
            .find_program("rustup")
            .ok_or_else(|| format!("there is no rustup for `{command_line}`"))?;
        if policy == Policy::Forbid {
            return Err(format!("--no-install forbids `{command_line}`"));
        }
        if !self.rustup_may_fetch {
            return Err(format!(
                "RUSTUP_AUTO_INSTALL=0 says that rustup must not fetch, so `{command_line}` was not tried"
            ));
        }
        sink(Progress::Step(&format!(
            "Running `{command_line}`: {purpose}"
        )));
        let mut command = Command::new(rustup);
        command
            .args(arguments)
            // Where rust-toolchain.toml says which toolchain it is about.
            .current_dir(self.workspace);
        if env::var_os("RUSTUP_DOWNLOAD_TIMEOUT").is_none() {
            command.env("RUSTUP_DOWNLOAD_TIMEOUT", RUSTUP_SILENCE);
        }
        command::run(&mut command, Some(RUSTUP_LIMIT), sink).map_err(|error| error.to_string())
    }

    /// A program of LLVM's `objcopy`: a toolchain's own, or the system's. The
    /// former finds its libraries only by the second path.
    pub(super) fn objcopy(&self) -> Option<(PathBuf, Option<PathBuf>)> {
        let own = || {
            let compiler = self.compiler_in_use().ok()?;
            let tools = compiler.tools();
            ["llvm-objcopy", "rust-objcopy"]
                .map(|name| tools.join(name))
                .into_iter()
                .find(|path| path.is_file())
                .map(|path| (path, Some(compiler.sysroot.join("lib"))))
        };
        own().or_else(|| Some((self.host.find_program("llvm-objcopy")?, None)))
    }

    /// What the distribution must bring.
    fn distribution_needs(&self) -> Vec<Requirement> {
        let mut needs = DISTRIBUTION.to_vec();
        if self.any_linker().is_none() {
            needs.push(LLD);
        }
        needs
    }

    /// The toolchain of the distribution, if it is complete.
    fn distribution(&self) -> Result<Toolchain, ToolchainError> {
        let missing: Vec<_> = self
            .distribution_needs()
            .iter()
            .filter(|need| self.host.find(need).is_none())
            .map(|need| need.apt)
            .collect();
        let (Some(linker), true) = (self.any_linker(), missing.is_empty()) else {
            return Err(ToolchainError::NoToolchain {
                tried: vec![format!(
                    "not installed from the distribution: {}",
                    missing.join(", ")
                )],
            });
        };
        let rustc = self.host.path(RUSTC);
        let compiler = self.probe(&rustc)?;
        if compiler.version < NEEDED {
            return Err(ToolchainError::TooOld {
                path: rustc,
                found: compiler.version,
                needed: NEEDED,
            });
        }
        Ok(Toolchain {
            version: compiler.version,
            host: compiler.host,
            sysroot: compiler.sysroot,
            cargo: self.host.path(CARGO),
            rustc,
            linker,
            source: Source::BuildStd,
        })
    }

    /// Asks a compiler what it is.
    fn probe(&self, rustc: &Path) -> Result<Compiler, ToolchainError> {
        let run = |argument: &[&str]| {
            let mut command = Command::new(rustc);
            command
                .args(argument)
                .current_dir(self.workspace)
                .env_remove("LD_LIBRARY_PATH")
                // To look must not download anything.
                .env("RUSTUP_AUTO_INSTALL", "0");
            command::output(&mut command, PROBE_LIMIT)
        };
        let text = run(&["-vV"])?;
        let version = text.lines().find_map(Version::parse);
        let host = text.lines().find_map(|line| line.strip_prefix("host: "));
        let text_of_sysroot = run(&["--print", "sysroot"])?;
        let sysroot = text_of_sysroot.lines().next_back();
        match (version, host, sysroot) {
            (Some(version), Some(host), Some(sysroot)) => Ok(Compiler {
                version,
                host: host.to_owned(),
                sysroot: PathBuf::from(sysroot),
            }),
            _ => Err(ToolchainError::NoToolchain {
                tried: vec![format!("{} is not a Rust compiler", rustc.display())],
            }),
        }
    }

    /// The compiler in use: the first on the search path.
    fn compiler_in_use(&self) -> Result<Compiler, String> {
        let rustc = self
            .host
            .find_program("rustc")
            .ok_or("there is no rustc on the path")?;
        self.probe(&rustc)
            .map_err(|error| format!("{}: {error}", rustc.display()))
    }

    /// A linker for a toolchain: its own LLD, or the system's.
    fn linker(&self, compiler: &Compiler) -> Option<PathBuf> {
        let own = compiler.tools().join("rust-lld");
        if own.is_file() {
            return Some(own);
        }
        self.host.find_program("ld.lld")
    }

    /// The system's LLD, or that of the toolchain in use.
    fn any_linker(&self) -> Option<PathBuf> {
        self.host
            .find_program("ld.lld")
            .or_else(|| self.linker(&self.compiler_in_use().ok()?))
    }
}

/// What a compiler says about itself.
struct Compiler {
    version: Version,
    /// The triple that it runs on.
    host: String,
    sysroot: PathBuf,
}

impl Compiler {
    /// Where a toolchain keeps the tools that go with its compiler.
    fn tools(&self) -> PathBuf {
        self.sysroot
            .join("lib/rustlib")
            .join(&self.host)
            .join("bin")
    }
}

/// Whether `directory` holds a compiled `core`.
fn has_core(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.filter_map(Result::ok).any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    })
}
