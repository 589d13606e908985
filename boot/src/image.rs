//! Images of the guest: for BIOS and UEFI by the crate `bootloader`, and a bzImage.
//!
//! That crate compiles its stages, for targets of their own, in its build
//! script. It expects a compiler that may use unstable options, the sources of
//! `core`, `rust-lld` where that compiler looks for it, and `llvm-objcopy`
//! under the sysroot of the `rustc` that is first on the path. We give it a
//! sysroot of links with all of that, and keep it out of every other build: the
//! package `boot/image` is a workspace of its own.
//!
//! A disk image holds no configuration: the guest takes it from QEMU's fw_cfg.

mod bzimage;

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

pub use bzimage::{BzImageError, make as make_bzimage};

use crate::command::{self, CommandError, Progress, Sink};
use crate::output::{Output, OutputError};
use crate::toolchain::{self, BuildOptions, Toolchain, ToolchainError};

/// What to make.
#[derive(Debug, Default)]
pub struct Images {
    /// Where to put the image that SeaBIOS and other BIOSes boot.
    pub bios: Option<Output>,
    /// Where to put the image that UEFI firmware boots.
    pub uefi: Option<Output>,
    /// Where to put the image that loaders of Linux's boot protocol boot.
    pub bzimage: Option<Output>,
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// No image was asked for.
    #[error("name at least one image to make: --bios FILE, --uefi FILE or --bzimage FILE")]
    Nothing,
    /// The ELF file does not become a bzImage.
    #[error("{}: {cause}", path.display())]
    BzImage {
        /// The ELF file.
        path: PathBuf,
        /// Why.
        cause: BzImageError,
    },
    /// The toolchain for the boot loader.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// The boot loader could not be built, or the image not be made.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// An image cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A file could not be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
}

/// Makes the images of `kernel`, an ELF executable, that `images` asks for.
///
/// For a disk image, the first time the boot loader is built, which takes minutes; what that
/// build says goes to `sink`.
///
/// # Errors
/// [`ImageError`] when nothing was asked for, no toolchain can build the boot
/// loader, or a file cannot be written.
pub fn build_images(
    kernel: &Path,
    images: Images,
    options: &BuildOptions,
    sink: &mut Sink<'_>,
) -> Result<(), ImageError> {
    let wanted: Vec<_> = [("bios", images.bios), ("uefi", images.uefi)]
        .into_iter()
        .filter_map(|(kind, file)| Some((kind, file?)))
        .collect();
    if wanted.is_empty() && images.bzimage.is_none() {
        return Err(ImageError::Nothing);
    }
    if let Some(file) = images.bzimage {
        file.write(&bzimage::make(kernel)?)?;
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let workspace = toolchain::workspace()?;
    let directory = toolchain::target_directory(&workspace).join("image");
    let (toolchain, objcopy, libraries) = toolchain::complete_for_boot_loader(options, sink)?;
    let sysroot = Sysroot::create(
        &directory.join("sysroot"),
        &toolchain,
        &objcopy,
        libraries.as_deref(),
    )?;

    sink(Progress::Step(&format!(
        "Building the boot loader with Rust {} (minutes the first time)",
        toolchain.version
    )));
    let kinds: Vec<_> = wanted.iter().map(|(kind, _)| *kind).collect();
    let build = directory.join("build");
    let mut command = toolchain.cargo(&workspace.join("boot/image"));
    command
        // Very verbose: what a build script prints is shown only then.
        .args(["build", "--locked", "-vv", "--features", &kinds.join(",")])
        .arg("--target-dir")
        .arg(&build)
        .env("RUSTC", sysroot.path.join("bin/rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", sysroot.search_path());
    command::run(&mut command, None, &mut |progress| match progress {
        Progress::Step(_) => sink(progress),
        Progress::Line(line) => {
            if let Some(line) = news(line) {
                sink(Progress::Line(line));
            }
        }
    })?;

    // A BIOS loads the kernel by sectors: symbols would cost seconds.
    let stripped = directory.join("kernel");
    let mut strip = Command::new(&sysroot.objcopy);
    strip.arg("--strip-all").args([kernel, &stripped]);
    command::run(&mut strip, None, sink)?;

    let mut make = Command::new(build.join("debug/kickpath-image"));
    make.arg(&stripped);
    for (kind, file) in &wanted {
        make.arg(format!("--{kind}")).arg(file.path());
    }
    sink(Progress::Step("Writing the images"));
    command::run(&mut make, None, sink)?;
    for (_, file) in wanted {
        file.keep()?;
    }
    Ok(())
}

/// What cargo does, out of its very verbose output: lines such as
/// `[bootloader 0.11.15]    Compiling x86_64 v0.15.4`.
fn news(line: &str) -> Option<&str> {
    // Warnings in the code of others are of no use to anybody here.
    const VERBS: [&str; 5] = [
        "Compiling ",
        "Downloaded ",
        "Finished ",
        "Blocking ",
        "error",
    ];
    let text = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.1,
        None => line,
    };
    let text = text.trim_start();
    VERBS
        .iter()
        .any(|verb| text.starts_with(verb))
        .then_some(text)
}

/// A sysroot of links to a toolchain's, with the tools that the boot loader's
/// build looks for, and a `rustc` that calls it its own.
struct Sysroot {
    path: PathBuf,
    objcopy: PathBuf,
}

impl Sysroot {
    fn create(
        path: &Path,
        toolchain: &Toolchain,
        objcopy: &Path,
        libraries: Option<&Path>,
    ) -> Result<Self, ImageError> {
        // Made anew, as the links of another toolchain must not stay. Cargo
        // knows the compiler by its version, and does not build again for this.
        if path.exists() {
            fs::remove_dir_all(path).map_err(|cause| file_error(path, cause))?;
        }
        let own = toolchain.sysroot.join("lib/rustlib");
        let rustlib = path.join("lib/rustlib");
        let host = &toolchain.host;
        link_entries(&own, &rustlib, host)?;
        link_entries(&own.join(host), &rustlib.join(host), "bin")?;

        let tools = rustlib.join(host).join("bin");
        let bin = path.join("bin");
        for directory in [&tools, &bin] {
            fs::create_dir_all(directory).map_err(|cause| file_error(directory, cause))?;
        }
        for directory in [&tools, &bin] {
            link(&toolchain.linker, &directory.join("rust-lld"))?;
        }
        let prefix = libraries.map_or(String::new(), |libraries| {
            format!("LD_LIBRARY_PATH={} ", quoted(libraries))
        });
        let call = format!("{prefix}exec {} \"$@\"", quoted(objcopy));
        script(&tools.join("llvm-objcopy"), &call)?;
        // Looked for to find the directory, never run.
        script(
            &tools.join("llvm-objdump"),
            "echo 'not part of this sysroot' >&2; exit 1",
        )?;
        script(
            &bin.join("rustc"),
            &format!(
                "exec {} --sysroot {} \"$@\"",
                quoted(&toolchain.rustc),
                quoted(path)
            ),
        )?;
        Ok(Self {
            path: path.to_owned(),
            objcopy: tools.join("llvm-objcopy"),
        })
    }

    /// Our search path behind this sysroot's programs.
    fn search_path(&self) -> std::ffi::OsString {
        let mut path = self.path.join("bin").into_os_string();
        if let Some(rest) = env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        path
    }
}

/// Links every entry of `from` but `except` into the new directory `to`.
fn link_entries(from: &Path, to: &Path, except: &str) -> Result<(), ImageError> {
    fs::create_dir_all(to).map_err(|cause| file_error(to, cause))?;
    let entries = fs::read_dir(from).map_err(|cause| file_error(from, cause))?;
    for entry in entries {
        let entry = entry.map_err(|cause| file_error(from, cause))?;
        if entry.file_name() != except {
            link(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn link(target: &Path, path: &Path) -> Result<(), ImageError> {
    symlink(target, path).map_err(|cause| file_error(path, cause))
}

fn script(path: &Path, line: &str) -> Result<(), ImageError> {
    fs::write(path, format!("#!/bin/sh\n{line}\n"))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|cause| file_error(path, cause))
}

fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    // Only a zero byte cannot be quoted, and no path can hold one.
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), |text| text.into_owned())
}

fn file_error(path: &Path, cause: io::Error) -> ImageError {
    ImageError::File {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::{Source, Version};

    const HOST: &str = "x86_64-unknown-linux-gnu";

    #[test]
    fn the_news_of_a_very_verbose_build() {
        assert_eq!(
            news("[bootloader 0.11.15]    Compiling x86_64 v0.15.4"),
            Some("Compiling x86_64 v0.15.4")
        );
        assert_eq!(
            news("   Compiling anyhow v1.0"),
            Some("Compiling anyhow v1.0")
        );
        assert_eq!(
            news("[bootloader 0.11.15] error[E0425]: no such function"),
            Some("error[E0425]: no such function")
        );
        for noise in [
            "     Running `rustc --crate-name anyhow`",
            "[bootloader 0.11.15] cargo:rustc-env=X=y",
            "warning: unused",
            "[",
            "",
        ] {
            assert_eq!(news(noise), None, "{noise}");
        }
    }

    #[test]
    fn the_sysroot_is_the_toolchains_but_for_its_tools() {
        let directory = tempfile::TempDir::new().unwrap();
        let base = directory.path().join("a base's");
        let rustlib = base.join("lib/rustlib");
        fs::create_dir_all(rustlib.join(HOST).join("bin")).unwrap();
        fs::create_dir_all(rustlib.join(HOST).join("lib")).unwrap();
        fs::create_dir_all(rustlib.join("src")).unwrap();
        let rustc = Path::new("/bin/echo").to_owned();
        let toolchain = Toolchain {
            version: Version::parse("rustc 1.95.0").unwrap(),
            host: HOST.to_owned(),
            sysroot: base.clone(),
            cargo: base.join("cargo"),
            rustc,
            linker: PathBuf::from("/usr/bin/ld.lld"),
            source: Source::BuildStd,
        };
        let path = directory.path().join("tree");
        let objcopy = Path::new("/bin/echo");
        // Twice: what an earlier run left must not matter.
        for _ in 0..2 {
            Sysroot::create(&path, &toolchain, objcopy, None).unwrap();
        }
        let sysroot = Sysroot::create(&path, &toolchain, objcopy, None).unwrap();

        let tree = path.join("lib/rustlib");
        assert_eq!(
            fs::read_link(tree.join("src")).unwrap(),
            rustlib.join("src")
        );
        let libraries = rustlib.join(HOST).join("lib");
        assert_eq!(
            fs::read_link(tree.join(HOST).join("lib")).unwrap(),
            libraries
        );
        assert!(tree.join(HOST).join("bin/llvm-objdump").is_file());
        assert!(fs::symlink_metadata(path.join("bin/rust-lld")).is_ok());
        let mut rustc = Command::new(path.join("bin/rustc"));
        let limit = std::time::Duration::from_secs(20);
        let printed = command::output(rustc.args(["--print", "a b"]), limit).unwrap();
        assert_eq!(
            printed,
            format!("--sysroot {} --print a b\n", path.display())
        );
        let mut objcopy = Command::new(&sysroot.objcopy);
        assert_eq!(command::output(objcopy.arg("x"), limit).unwrap(), "x\n");
    }

    #[test]
    fn nothing_asked_for_is_refused() {
        let result = build_images(
            Path::new("/nonexistent"),
            Images::default(),
            &BuildOptions::default(),
            &mut |_| {},
        );
        assert!(matches!(result, Err(ImageError::Nothing)));
    }
}
