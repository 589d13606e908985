//! A Linux to boot: Debian's packages, downloaded once, of which no more is kept
//! than is booted.

pub mod initramfs;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use object::{Object, ObjectSection};
use tempfile::TempDir;

use crate::command::{self, CommandError, Progress, Sink};
use crate::install::{Host, InstallError, Policy};

/// A shell and its commands, in one file that needs no library.
const SHELL: (&str, &str) = ("busybox-static", "busybox-static");

/// A kernel, and what is wanted of it.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Its package, which depends on the one of today, and how that one's name
    /// begins.
    package: (&'static str, &'static str),
    /// The modules; those that they need come along.
    modules: &'static [&'static str],
    /// The directory in the cache. Another content needs another name.
    directory: &'static str,
    /// The option that asks for it.
    option: &'static str,
}

/// What `--accel nested` boots between this machine and the guest.
pub const BETWEEN: Choice = Choice {
    package: ("linux-image-amd64", "linux-image-"),
    modules: &[
        "virtio_pci",
        "9pnet_virtio",
        "9p",
        "overlay",
        "kvm_amd",
        "tun",
    ],
    directory: "linux-1",
    option: "--accel nested",
};

/// What `--guest linux` boots: the kernel for clouds is a third of
/// the other's size, and has all that a virtio device needs.
pub const GUEST: Choice = Choice {
    package: ("linux-image-cloud-amd64", "linux-image-"),
    modules: &["virtio_net", "virtio_pci"],
    directory: "linux-guest-1",
    option: "--guest linux",
};

/// Why there is no Linux to boot.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// It is not there, and may not be downloaded.
    #[error(
        "--no-install forbids downloading {packages}, of which {option} boots a Linux; \
         without that option they come to {}", cache.display()
    )]
    Forbidden {
        /// The packages.
        packages: String,
        /// What asks for them.
        option: &'static str,
        /// Where they would be unpacked.
        cache: PathBuf,
    },
    /// No place for what is downloaded.
    #[error("there is no place for a downloaded kernel: neither XDG_CACHE_HOME nor HOME is set")]
    NoCache,
    /// A package cannot be downloaded.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A package cannot be unpacked.
    #[error("cannot unpack a package: {0}")]
    Unpack(CommandError),
    /// A package is another than was thought.
    #[error("the package {package} has no {what}")]
    Lacks {
        /// The package.
        package: &'static str,
        /// What was looked for.
        what: String,
    },
    /// The system refuses.
    #[error("cannot {what} {}: {source}", file.display())]
    System {
        /// What.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LinuxError {
    /// Whether the packages cannot be had on this machine now.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Forbidden { .. } | Self::NoCache | Self::Install(_)
        )
    }

    fn system(what: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::System { what, file, source }
    }
}

/// Some 400 MB on a slow disk.
const UNPACK_LIMIT: Duration = Duration::from_secs(600);

/// A kernel and what it needs to run a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linux {
    directory: PathBuf,
}

impl Linux {
    /// The one in the cache, or, where there is none, of Debian's packages.
    ///
    /// # Errors
    /// It may not or cannot be downloaded or unpacked.
    pub fn get(choice: Choice, policy: Policy, sink: &mut Sink<'_>) -> Result<Self, LinuxError> {
        Self::get_in(choice, &cache()?, &Host::detect(), policy, sink)
    }

    fn get_in(
        choice: Choice,
        cache: &Path,
        host: &Host,
        policy: Policy,
        sink: &mut Sink<'_>,
    ) -> Result<Self, LinuxError> {
        let linux = Self {
            directory: cache.join(choice.directory),
        };
        if linux.kernel().is_file() {
            return Ok(linux);
        }
        if policy == Policy::Forbid {
            return Err(LinuxError::Forbidden {
                packages: [choice.package.0, SHELL.0].join(" and "),
                option: choice.option,
                cache: linux.directory,
            });
        }
        fs::create_dir_all(cache).map_err(LinuxError::system("make", cache))?;
        // Goes with everything in it, also when somebody interrupts.
        let work = tempfile::Builder::new()
            .prefix("unpacking-")
            .tempdir_in(cache);
        let work = work.map_err(LinuxError::system("make a directory in", cache))?;
        let made = work.path().join("made");
        make(choice, &made, &work, host, sink)?;
        match fs::rename(&made, &linux.directory) {
            Err(_) if linux.kernel().is_file() => {} // Another was faster.
            moved => moved.map_err(LinuxError::system("make", &linux.directory))?,
        }
        Ok(linux)
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The shell.
    pub fn busybox(&self) -> PathBuf {
        self.directory.join("busybox")
    }

    /// The modules, in the order in which they can be loaded.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn modules(&self) -> Result<Vec<PathBuf>, LinuxError> {
        let directory = self.directory.join("modules");
        let mut files = files_below(&directory).map_err(LinuxError::system("read", &directory))?;
        files.sort();
        Ok(files)
    }
}

/// Where what is downloaded is kept.
fn cache() -> Result<PathBuf, LinuxError> {
    let named = |name| env::var_os(name).filter(|value| !value.is_empty());
    let directory = named("XDG_CACHE_HOME").map(PathBuf::from);
    let directory = directory.filter(|path| path.is_absolute());
    directory
        .or_else(|| named("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|directory| directory.join("kickpath"))
        .ok_or(LinuxError::NoCache)
}

/// Fills the directory `made`.
fn make(
    choice: Choice,
    made: &Path,
    work: &TempDir,
    host: &Host,
    sink: &mut Sink<'_>,
) -> Result<(), LinuxError> {
    let unpack = |(package, stem): (&str, &str), sink: &mut Sink<'_>| {
        let (into, root) = (work.path().join(package), work.path().join("root"));
        fs::create_dir(&into).map_err(LinuxError::system("make", &into))?;
        let file = host.download(package, stem, &into, sink)?;
        let name = file.file_name().unwrap_or_default().display();
        sink(Progress::Step(&format!("Unpacking {name}")));
        let mut dpkg = Command::new("dpkg-deb");
        dpkg.arg("-x").arg(&file).arg(&root);
        command::run(&mut dpkg, Some(UNPACK_LIMIT), sink).map_err(LinuxError::Unpack)?;
        fs::remove_file(&file).map_err(LinuxError::system("remove", &file))?;
        Ok::<_, LinuxError>(root)
    };
    fs::create_dir(made).map_err(LinuxError::system("make", made))?;
    let root = unpack(SHELL, sink)?;
    keep(&root.join("bin/busybox"), &made.join("busybox"))?;
    let root = unpack(choice.package, sink)?;
    let boot = root.join("boot");
    let files = files_below(&boot).map_err(LinuxError::system("read", &boot))?;
    let mut files = files.into_iter();
    let kernel = files.find(|file| name_of(file).starts_with("vmlinuz-"));
    let kernel = kernel.ok_or_else(|| LinuxError::Lacks {
        package: choice.package.0,
        what: "boot/vmlinuz-*".to_owned(),
    })?;
    keep_modules(
        choice,
        &root.join("lib/modules"),
        &made.join("modules"),
        sink,
    )?;
    keep(&kernel, &made.join("vmlinuz"))
}

fn keep(file: &Path, place: &Path) -> Result<(), LinuxError> {
    fs::rename(file, place).map_err(LinuxError::system("keep", file))
}

/// Keeps the modules that are wanted, each behind those that it needs.
fn keep_modules(
    choice: Choice,
    tree: &Path,
    made: &Path,
    sink: &mut Sink<'_>,
) -> Result<(), LinuxError> {
    fs::create_dir(made).map_err(LinuxError::system("make", made))?;
    let files = files_below(tree).map_err(LinuxError::system("read", tree))?;
    let built_in = files.iter().find(|file| name_of(file) == "modules.builtin");
    let built_in = built_in.and_then(|file| fs::read_to_string(file).ok());
    let built_in: Vec<String> = built_in
        .iter()
        .flat_map(|text| text.lines())
        .map(|line| module_name(Path::new(line)))
        .collect();
    let modules: BTreeMap<String, PathBuf> = files
        .into_iter()
        .filter(|file| name_of(file).contains(".ko"))
        .map(|file| (module_name(&file), file))
        .collect();
    let mut kept = Vec::new();
    // What is on top waits for what it needs.
    let wanted = choice.modules.iter().rev();
    let mut waiting: Vec<(String, bool)> = wanted.map(|name| ((*name).to_owned(), false)).collect();
    while let Some((name, needs_kept)) = waiting.pop() {
        if kept.contains(&name) || built_in.contains(&name) {
            continue;
        }
        let file = modules.get(&name).ok_or_else(|| LinuxError::Lacks {
            package: choice.package.0,
            what: format!("the module {name}"),
        })?;
        let file = decompressed(file, sink)?;
        if needs_kept {
            let place = made.join(format!("{:02}-{name}.ko", kept.len()));
            keep(&file, &place)?;
            kept.push(name);
            continue;
        }
        waiting.push((name.clone(), true));
        for needed in needs(choice, &file)? {
            // No module needs itself, not even by way of others.
            if !waiting
                .iter()
                .any(|(other, open)| *open && *other == needed)
            {
                waiting.push((needed, false));
            }
        }
    }
    Ok(())
}

/// The module without its packing; newer packages pack each.
fn decompressed(file: &Path, sink: &mut Sink<'_>) -> Result<PathBuf, LinuxError> {
    let plain = file.with_extension("");
    let mut command = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => Command::new("xz"),
        Some("zst") => Command::new("zstd"),
        _ => return Ok(file.to_owned()),
    };
    if !plain.is_file() {
        command.args(["-q", "-k", "-d"]).arg(file);
        command::run(&mut command, Some(UNPACK_LIMIT), sink).map_err(LinuxError::Unpack)?;
    }
    Ok(plain)
}

/// The modules that one needs, as its section `.modinfo` says.
fn needs(choice: Choice, file: &Path) -> Result<Vec<String>, LinuxError> {
    let bytes = fs::read(file).map_err(LinuxError::system("read", file))?;
    let wrong = |_| LinuxError::Lacks {
        package: choice.package.0,
        what: format!("a readable {}", file.display()),
    };
    let elf = object::File::parse(&*bytes).map_err(wrong)?;
    let section = elf.section_by_name(".modinfo");
    let data = section.map(|section| section.data()).transpose();
    let data = data.map_err(wrong)?.unwrap_or_default();
    let texts = data.split(|byte| *byte == 0);
    let mut texts = texts.filter_map(|text| text.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
    let names = list.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| module_name(Path::new(name))).collect())
}

/// The name of a module, which its file may write with `-`.
fn module_name(file: &Path) -> String {
    let name = name_of(file).replace('-', "_");
    name.split('.').next().unwrap_or_default().to_owned()
}

fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The files in a directory and those in it.
fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_known_by_either_name() {
        for (file, name) in [
            ("lib/modules/6/kernel/arch/x86/kvm/kvm-amd.ko", "kvm_amd"),
            ("9p.ko.xz", "9p"),
            ("kernel/drivers/virtio/virtio_pci.ko.zst", "virtio_pci"),
            ("kvm", "kvm"),
        ] {
            assert_eq!(module_name(Path::new(file)), name);
        }
    }

    #[test]
    fn what_is_in_the_cache_is_taken_and_nothing_else_is_done() {
        let cache = tempfile::tempdir().unwrap();
        let host = Host {
            search_path: Vec::new(),
            prefix: cache.path().to_owned(),
            root: false,
            patience: Duration::ZERO,
        };
        let get = |policy| Linux::get_in(GUEST, cache.path(), &host, policy, &mut |_| {});
        let error = get(Policy::Forbid).unwrap_err();
        assert!(matches!(error, LinuxError::Forbidden { .. }), "{error}");
        let error = get(Policy::Install).unwrap_err();
        assert!(matches!(error, LinuxError::Install(_)), "{error}");
        // Nothing is left behind of what failed.
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
        let directory = cache.path().join(GUEST.directory);
        fs::create_dir_all(directory.join("modules")).unwrap();
        for file in ["vmlinuz", "busybox", "modules/01-b.ko", "modules/00-c.ko"] {
            fs::write(directory.join(file), "").unwrap();
        }
        let modules = get(Policy::Forbid).unwrap().modules().unwrap();
        let names: Vec<String> = modules.iter().map(|file| name_of(file)).collect();
        assert_eq!(names, ["00-c.ko", "01-b.ko"]);
    }

    #[test]
    fn modules_that_are_no_elf_files_are_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.ko");
        fs::write(&file, "x").unwrap();
        let error = needs(GUEST, &file).unwrap_err();
        assert!(error.to_string().contains("x.ko"), "{error}");
    }
}
