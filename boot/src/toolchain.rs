//! Finds or completes a toolchain that can build the guest, and builds it.
//!
//! The guest needs `core` and `alloc` for [`TARGET`]. They come from, in order:
//!
//! 1. the Rust toolchain in use (rustup's, pinned by `rust-toolchain.toml`),
//!    where it has that target, or the sources of its standard library, which
//!    cargo then builds itself (`-Zbuild-std`);
//! 2. a compiler in `/usr` with such sources: Debian's packages `rustc-web`,
//!    `cargo-web` and `rust-web-src`, if they are installed;
//! 3. the toolchain in use after `rustup target add`, where rustup may and can
//!    fetch it;
//! 4. those packages of Debian, installed now.
//!
//! `rust-toolchain.toml` does not list the target on purpose: rustup would then
//! refuse to run *any* command, this one included, on a machine where it cannot
//! fetch it.

mod find;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use thiserror::Error;

use crate::command::{self, CommandError, Progress, Sink};
use crate::install::{Check, Host, InstallError, Policy, Requirement};

pub use find::{Survey, Version};

/// The target triple of the guest.
pub const TARGET: &str = "x86_64-unknown-none";
/// The package of the guest, and the name of its executable.
pub const KERNEL: &str = "kickpath-kernel";
/// The cargo profile of the guest.
const PROFILE: &str = "guest";
/// How the guest is built for a comparison with the network driver of `virtio-drivers`,
/// which then checks for overflow as little as ours. That driver is called by way of generic
/// functions, which cost half as much again at the guest's own limit of inlining; so it is
/// given the limit that suits it. The last of an option counts.
const PEER: [&str; 5] = [
    "--features=peer",
    "--config",
    "profile.guest.package.virtio-drivers.overflow-checks=false",
    "--config",
    "target.x86_64-unknown-none.rustflags=['-Cllvm-args=-inline-threshold=1000']",
];
/// Environment variable that restricts the choice: a word of [`Choice`].
pub const CHOICE_VARIABLE: &str = "KICKPATH_TOOLCHAIN";

/// Which toolchains may be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first that works.
    #[default]
    Auto,
    /// Only the toolchain in use (rustup's).
    Rustup,
    /// Only the distribution's.
    Debian,
}

impl Choice {
    /// Reads [`CHOICE_VARIABLE`]; unset or empty is [`Choice::Auto`].
    ///
    /// # Errors
    /// [`ToolchainError::Choice`] for an unknown word.
    pub fn from_env() -> Result<Self, ToolchainError> {
        match env::var_os(CHOICE_VARIABLE) {
            None => Ok(Self::Auto),
            Some(word) => match word.to_str() {
                Some("" | "auto") => Ok(Self::Auto),
                Some("rustup") => Ok(Self::Rustup),
                Some("debian") => Ok(Self::Debian),
                _ => Err(ToolchainError::Choice(word.to_string_lossy().into_owned())),
            },
        }
    }
}

/// How to build the guest.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// Whether a missing toolchain may be installed.
    pub policy: Policy,
    /// Which toolchains may be taken.
    pub choice: Choice,
}

impl BuildOptions {
    /// `policy`, and the choice that the environment makes.
    ///
    /// # Errors
    /// As [`Choice::from_env`].
    pub fn from_env(policy: Policy) -> Result<Self, ToolchainError> {
        Ok(Self {
            policy,
            choice: Choice::from_env()?,
        })
    }
}

/// Where a toolchain's `core` and `alloc` for the guest come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The target is installed.
    Prebuilt,
    /// Cargo builds them from the sources of the compiler's own version.
    BuildStd,
}

/// A toolchain that can build the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Toolchain {
    /// The compiler's version.
    pub version: Version,
    /// The triple that it runs on; names the directory of its tools.
    pub host: String,
    /// Its root: what `rustc --print sysroot` prints.
    pub sysroot: PathBuf,
    /// The `cargo` that belongs to it.
    pub cargo: PathBuf,
    /// The compiler.
    pub rustc: PathBuf,
    /// A linker of the LLD family.
    pub linker: PathBuf,
    /// Where the guest's `core` comes from.
    pub source: Source,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Prebuilt => "which has the bare-metal target",
            Source::BuildStd => "which builds core and alloc from source",
        };
        write!(
            f,
            "Rust {} in {}, {source}",
            self.version,
            self.sysroot.display()
        )
    }
}

/// Why the guest could not be built.
#[derive(Debug, Error)]
pub enum ToolchainError {
    /// [`CHOICE_VARIABLE`] holds an unknown word.
    #[error("{CHOICE_VARIABLE}={0}: expected auto, rustup or debian")]
    Choice(String),
    /// The sources of the guest are not there.
    #[error(
        "cannot find the workspace with kernel/Cargo.toml; looked at {} and above the current directory",
        built_in.display()
    )]
    NoWorkspace {
        /// Where this program was built.
        built_in: PathBuf,
    },
    /// No toolchain can build the guest; what was tried is in the text.
    #[error("no toolchain can build for a bare machine:\n{}", tried.join("\n"))]
    NoToolchain {
        /// One line for each that was looked at.
        tried: Vec<String>,
    },
    /// The distribution's compiler cannot build this project.
    #[error(
        "{} is Rust {found}, but the guest needs {needed} or newer; \
         on Debian the packages rustc-web and cargo-web bring it, elsewhere run \
         `rustup target add {TARGET}`", path.display()
    )]
    TooOld {
        /// The compiler.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest version that will do.
        needed: Version,
    },
    /// Something is missing and could not be installed.
    #[error(
        "{install}\n(or, where rustup can reach its server: rustup target add {TARGET})\n\
         What was tried before:\n{}", tried.join("\n")
    )]
    Install {
        /// Why not.
        install: Box<InstallError>,
        /// One line for each toolchain that was looked at before.
        tried: Vec<String>,
    },
    /// Somebody asked us to end (see [`crate::interrupt`]).
    #[error("interrupted while a toolchain was looked for")]
    Interrupted,
    /// A program that was needed to find out more failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Cargo could not build it.
    #[error("building it failed:\n{}", diagnostics(cause))]
    Build {
        /// How cargo ended, and what it printed last.
        cause: CommandError,
    },
    /// Cargo succeeded but its product is not where it should be.
    #[error("cargo built it without an error, but there is no {}", path.display())]
    NoKernel {
        /// Where it should be.
        path: PathBuf,
    },
}

/// What is built of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// What everybody runs.
    Plain,
    /// With the network driver of `virtio-drivers` as well, for `bench`.
    WithPeer,
}

/// Builds the guest and returns the path of its ELF executable.
///
/// Cargo's own output goes to `sink`, and its end into the error.
///
/// # Errors
/// [`ToolchainError`] when there is no suitable toolchain and none may be or
/// could be had, or when the guest does not compile.
pub fn build_kernel(
    kernel: Kernel,
    options: &BuildOptions,
    sink: &mut Sink<'_>,
) -> Result<PathBuf, ToolchainError> {
    let workspace = workspace()?;
    let shared = target_directory(&workspace).join("kernel");
    let (name, features, place): (_, &[_], _) = match kernel {
        Kernel::Plain => ("the guest", &[], shared),
        Kernel::WithPeer => {
            let name = "the guest with virtio-drivers' driver";
            (name, &PEER, shared.join("peer"))
        }
    };
    build_kernel_of(&workspace, (name, features), &place, options, sink)
}

/// As [`build_kernel`], of this copy of the workspace, with these arguments for its features,
/// in a place of its own.
pub(crate) fn build_kernel_of(
    tree: &Path,
    (name, features): (&str, &[&str]),
    place: &Path,
    options: &BuildOptions,
    sink: &mut Sink<'_>,
) -> Result<PathBuf, ToolchainError> {
    let toolchain = complete(options, sink)?;
    sink(Progress::Step(&format!("Building {name} with {toolchain}")));

    // All share what is built on the way.
    let shared = target_directory(&workspace()?).join("kernel");
    let mut command = toolchain.cargo_for(TARGET, tree);
    command
        .args(["build", "--package", KERNEL, "--profile", PROFILE])
        .args(features)
        .arg("--target-dir")
        .arg(place)
        .env("CARGO_BUILD_BUILD_DIR", shared);
    command::run(&mut command, None, sink).map_err(|cause| ToolchainError::Build { cause })?;

    let path = place.join(TARGET).join(PROFILE).join(KERNEL);
    if path.is_file() {
        Ok(path)
    } else {
        Err(ToolchainError::NoKernel { path })
    }
}

/// Has cargo build for a bare machine of any CPU: `target` is a triple that the
/// compiler knows. Runs in `directory` of the workspace, with `arguments` such as
/// `["build", "--release"]` and these flags of the compiler; returns the directory
/// of what was built.
///
/// # Errors
/// As [`build_kernel`].
pub fn build_for(
    target: &str,
    directory: &str,
    arguments: &[&str],
    flags: &str,
    options: &BuildOptions,
    sink: &mut Sink<'_>,
) -> Result<PathBuf, ToolchainError> {
    let (host, workspace) = (Host::detect(), workspace()?);
    let finder = find::Finder::new(&host, &workspace).for_target(target);
    let toolchain = finder.complete(Source::Prebuilt, options, sink)?;
    let built = target_directory(&workspace).join("bare");
    let mut command = toolchain.cargo_for(target, &workspace.join(directory));
    command.args(arguments).arg("--target-dir").arg(&built);
    if !flags.is_empty() {
        command.env("RUSTFLAGS", flags);
    }
    command::run(&mut command, None, sink).map_err(|cause| ToolchainError::Build { cause })?;
    Ok(built.join(target))
}

/// Has cargo build a library of the workspace as a module of WebAssembly that needs nothing
/// around it, and returns the module.
///
/// # Errors
/// As [`build_kernel`].
pub(crate) fn build_module(
    package: &str,
    options: &BuildOptions,
    sink: &mut Sink<'_>,
) -> Result<Vec<u8>, ToolchainError> {
    const WEB: &str = "wasm32-unknown-unknown";
    let (host, workspace) = (Host::detect(), workspace()?);
    let finder = find::Finder::new(&host, &workspace).for_target(WEB);
    let mut toolchain = finder.complete(Source::Prebuilt, options, sink)?;
    // One program by many names, each for a format of its own.
    if toolchain.linker.ends_with("ld.lld") {
        toolchain.linker.set_file_name("wasm-ld");
    }
    sink(Progress::Step(&format!(
        "Building {package} for a browser with {toolchain}"
    )));
    // With the guest: both need the same compiled for the host.
    let place = target_directory(&workspace).join("kernel");
    let mut command = toolchain.cargo_for(WEB, &workspace);
    command
        .args(["rustc", "--package", package, "--lib"])
        .args(["--crate-type", "cdylib", "--profile", PROFILE])
        .arg("--target-dir")
        .arg(&place)
        // Small. Not in the profile, which is that of what runs on the host, too.
        .env(
            "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS",
            "-Copt-level=s -Cstrip=symbols",
        );
    command::run(&mut command, None, sink).map_err(|cause| ToolchainError::Build { cause })?;
    let file = package.replace('-', "_") + ".wasm";
    let path = place.join(WEB).join(PROFILE).join(file);
    std::fs::read(&path).map_err(|_| ToolchainError::NoKernel { path })
}

/// What went wrong in a build, without the packages that compiled before.
fn diagnostics(error: &CommandError) -> String {
    let lines = error.tail().lines();
    let from_first = lines
        .skip_while(|line| !line.starts_with("error"))
        .collect::<Vec<_>>();
    if from_first.is_empty() {
        error.to_string()
    } else {
        from_first.join("\n")
    }
}

/// The toolchain that [`build_kernel`] uses, completed where necessary.
///
/// # Errors
/// As [`build_kernel`].
pub fn complete(options: &BuildOptions, sink: &mut Sink<'_>) -> Result<Toolchain, ToolchainError> {
    find::Finder::new(&Host::detect(), &workspace()?).complete(Source::Prebuilt, options, sink)
}

/// A toolchain with the sources of its standard library, and LLVM's `objcopy`
/// with the directory of its libraries: what the boot loader's build needs.
///
/// # Errors
/// As [`build_kernel`].
pub(crate) fn complete_for_boot_loader(
    options: &BuildOptions,
    sink: &mut Sink<'_>,
) -> Result<(Toolchain, PathBuf, Option<PathBuf>), ToolchainError> {
    let (host, workspace) = (Host::detect(), workspace()?);
    let finder = find::Finder::new(&host, &workspace);
    let toolchain = finder.complete(Source::BuildStd, options, sink)?;
    if finder.objcopy().is_none() {
        host.ensure(&[LLVM], options.policy, sink)
            .map_err(|install| ToolchainError::Install {
                install: Box::new(install),
                tried: Vec::new(),
            })?;
    }
    let (objcopy, libraries) = finder
        .objcopy()
        .ok_or_else(|| ToolchainError::NoToolchain {
            tried: vec!["there is no llvm-objcopy".to_owned()],
        })?;
    Ok((toolchain, objcopy, libraries))
}

const LLVM: Requirement = Requirement {
    check: Check::Program("llvm-objcopy"),
    purpose: "cut the boot loader's stages to size",
    apt: "llvm",
    dnf: "llvm",
    pacman: "llvm",
    zypper: "llvm",
    brew: "llvm",
};

/// What there is, without changing anything.
///
/// # Errors
/// [`ToolchainError::NoWorkspace`].
pub fn survey(choice: Choice) -> Result<Survey, ToolchainError> {
    Ok(find::Finder::new(&Host::detect(), &workspace()?).survey(choice))
}

impl Toolchain {
    /// A cargo command of this toolchain, run in `directory`, that nothing in
    /// our own environment misleads.
    pub(crate) fn cargo(&self, directory: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        clean(&mut command);
        command
            .current_dir(directory)
            .env("RUSTC", &self.rustc)
            .env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", &self.linker);
        if self.source == Source::BuildStd {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// The same for a target without an operating system; the subcommand is the
    /// caller's.
    fn cargo_for(&self, target: &str, directory: &Path) -> Command {
        let mut command = self.cargo(directory);
        let name = target.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{name}_LINKER"), &self.linker);
        command.env("CARGO_BUILD_TARGET", target);
        if self.source == Source::BuildStd {
            command.args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        command
    }
}

/// Takes away what `cargo run`, `cargo test`, `cargo clippy` and their users
/// set for the *outer* build: flags and wrappers for the host, the paths and
/// libraries of another compiler. What says how to reach registries stays.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if misleading(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
}

fn misleading(name: &str) -> bool {
    const KEEP: &[&str] = &[
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_BUILD_JOBS",
        "RUSTUP_HOME",
        "RUSTUP_AUTO_INSTALL",
        "RUST_BACKTRACE",
    ];
    const DROP: &[&str] = &["CARGO", "RUST", "LD_LIBRARY_PATH", "MAKEFLAGS", "MFLAGS"];
    let starts = |list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
    starts(DROP) && !starts(KEEP)
}

/// The workspace with the guest's sources: where this program was built, or,
/// if that has moved, around the current directory.
///
/// # Errors
/// [`ToolchainError::NoWorkspace`].
pub fn workspace() -> Result<PathBuf, ToolchainError> {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"));
    let here = env::current_dir().ok();
    std::iter::once(built_in)
        .chain(here.iter().flat_map(|here| here.ancestors()))
        .find(|directory| directory.join("kernel/Cargo.toml").is_file())
        .map(Path::to_owned)
        .ok_or_else(|| ToolchainError::NoWorkspace {
            built_in: built_in.to_owned(),
        })
}

/// Where cargo puts what it builds for the host; ours goes below it.
///
/// A relative `CARGO_TARGET_DIR` would name another place for every current
/// directory, and is not followed.
pub(crate) fn target_directory(workspace: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| workspace.join("target"))
}

#[cfg(test)]
mod tests;
