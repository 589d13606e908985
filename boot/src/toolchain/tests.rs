//! The search for a toolchain against fake compilers, rustup and apt-get.

use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::find::Finder;
use super::*;
use crate::install::tests::write_script;

struct Machine {
    directory: TempDir,
    host: Host,
    fetching: bool,
}

impl Machine {
    /// A machine with a pinned toolchain that lacks the guest's target.
    fn new(root: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        for name in ["bin", "usr/bin", "var/lock", "var/lib/apt/lists"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        fs::write(path.join("var/lib/apt/lists/x_Packages"), "").unwrap();
        let machine = Self {
            host: Host {
                search_path: vec![path.join("bin")],
                prefix: path.to_owned(),
                root,
                patience: Duration::from_secs(20),
            },
            directory,
            fetching: true,
        };
        machine.compiler("bin/rustc", "1.95.0", "pinned");
        machine.program("pinned/bin/cargo", "");
        machine.program("pinned/bin/rustc", "");
        machine.file("pinned/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        self.file(name);
        write_script(&self.path(name), script);
    }

    fn compiler(&self, name: &str, version: &str, sysroot: &str) {
        let sysroot = self.path(sysroot);
        self.program(
            name,
            &format!(
                "case $1 in -vV) echo 'rustc {version} (0123abcd 2026-01-01)'; echo 'host: x86_64-unknown-linux-gnu';; *) echo '{}';; esac",
                sysroot.display()
            ),
        );
    }

    /// A script that creates the files that the pinned toolchain lacks.
    fn script_to_make(&self, name: &str) -> String {
        let path = self.path(name);
        format!(
            "mkdir -p '{}' && : > '{}'",
            path.parent().unwrap().display(),
            path.display()
        )
    }

    /// An `apt-get` that logs, and puts a compiler in `/usr` when it installs.
    fn apt(&self, version: &str) {
        self.compiler("later/rustc", version, "usr");
        let usr = self.path("usr");
        let script = format!(
            "echo \"$@\" >> '{log}'\ncase \"$*\" in *' -s '*) exit 0;; *' install '*)\n\
             cp '{rustc}' '{usr}/bin/rustc'; cp '{rustc}' '{usr}/bin/cargo'\n{sources};; esac",
            log = self.path("log").display(),
            rustc = self.path("later/rustc").display(),
            usr = usr.display(),
            sources = self.script_to_make("usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
        );
        self.program("bin/apt-get", &script);
    }

    fn complete(
        &self,
        policy: Policy,
        choice: Choice,
    ) -> (Result<Toolchain, ToolchainError>, String) {
        let mut steps = String::new();
        let result = Finder::new(&self.host, self.directory.path())
            .with_fetching(self.fetching)
            .complete(
                Source::Prebuilt,
                &BuildOptions { policy, choice },
                &mut |progress| {
                    if let Progress::Step(text) = progress {
                        steps += text;
                        steps.push('\n');
                    }
                },
            );
        (result, steps)
    }

    fn survey(&self, choice: Choice) -> Survey {
        Finder::new(&self.host, self.directory.path())
            .with_fetching(self.fetching)
            .survey(choice)
    }
}

const CORE: &str = "pinned/lib/rustlib/x86_64-unknown-none/lib/libcore-0123.rlib";

#[test]
fn the_pinned_toolchain_comes_first() {
    let machine = Machine::new(true);
    machine.file(CORE);
    machine.apt("1.96.0");
    let toolchain = machine.complete(Policy::Install, Choice::Auto).0.unwrap();
    assert_eq!(toolchain.source, Source::Prebuilt);
    assert_eq!(toolchain.cargo, machine.path("pinned/bin/cargo"));
    assert!(toolchain.linker.ends_with("rust-lld"));
    assert!(!machine.path("log").exists());
    assert_eq!(machine.survey(Choice::Auto).toolchain, Some(toolchain));
}

#[test]
fn another_target_needs_libraries_of_its_own() {
    let machine = Machine::new(false);
    machine.file(CORE);
    let target = "riscv64imac-unknown-none-elf";
    let complete = || {
        let options = BuildOptions {
            policy: Policy::Forbid,
            choice: Choice::Rustup,
        };
        Finder::new(&machine.host, machine.directory.path())
            .for_target(target)
            .complete(Source::Prebuilt, &options, &mut |_| {})
    };
    let error = complete().unwrap_err().to_string();
    assert!(
        error.contains(&format!("has no target {target}")),
        "{error}"
    );
    assert!(error.contains(&format!("rustup target add {target}")) || error.contains("no rustup"));
    machine.file(&CORE.replace(TARGET, target));
    assert_eq!(complete().unwrap().source, Source::Prebuilt);
}

#[test]
fn sources_of_the_pinned_toolchain_will_do() {
    let machine = Machine::new(false);
    machine.file("pinned/lib/rustlib/src/rust/library/core/src/lib.rs");
    let (result, steps) = machine.complete(Policy::Forbid, Choice::Auto);
    let toolchain = result.unwrap();
    assert_eq!(toolchain.source, Source::BuildStd);
    assert_eq!(toolchain.rustc, machine.path("pinned/bin/rustc"));
    assert_eq!(steps, "");
    assert_eq!(machine.survey(Choice::Auto).toolchain, Some(toolchain));
}

#[test]
fn rustup_fetches_the_target() {
    let machine = Machine::new(false);
    let make = machine.script_to_make(CORE);
    machine.program(
        "bin/rustup",
        &format!("[ \"$*\" = 'target add x86_64-unknown-none' ] || exit 3\n{make}"),
    );
    let (result, steps) = machine.complete(Policy::Install, Choice::Rustup);
    assert_eq!(result.unwrap().source, Source::Prebuilt);
    assert!(steps.contains("rustup target add"), "{steps}");
}

#[test]
fn rustup_out_of_reach_leads_to_the_distribution() {
    let machine = Machine::new(true);
    machine.program(
        "bin/rustup",
        "echo 'error: could not download file'; exit 1",
    );
    machine.apt("1.96.0");
    let (result, steps) = machine.complete(Policy::Install, Choice::Auto);
    let toolchain = result.unwrap();
    assert_eq!(toolchain.source, Source::BuildStd);
    assert_eq!(toolchain.cargo, machine.path("usr/bin/cargo"));
    // The pinned toolchain's linker serves: no package for that.
    assert!(toolchain.linker.ends_with("rust-lld"));
    assert!(steps.contains("could not download file"), "{steps}");
    let log = fs::read_to_string(machine.path("log")).unwrap();
    assert!(log.ends_with("rustc-web cargo-web rust-web-src\n"), "{log}");

    // Next time it is there, and rustup is not asked again.
    machine.program("bin/rustup", "echo called; exit 1");
    let (result, steps) = machine.complete(Policy::Install, Choice::Auto);
    assert_eq!(result.unwrap(), toolchain);
    assert_eq!(steps, "");
}

#[test]
fn rustup_that_must_not_fetch_is_not_asked() {
    let mut machine = Machine::new(true);
    machine.fetching = false;
    let asked = machine.script_to_make("asked");
    machine.program("bin/rustup", &asked);
    machine.apt("1.96.0");
    let (result, steps) = machine.complete(Policy::Install, Choice::Auto);
    result.unwrap();
    assert!(steps.contains("RUSTUP_AUTO_INSTALL=0"), "{steps}");
    assert!(!machine.path("asked").exists());
}

#[test]
fn no_install_installs_nothing_and_says_all() {
    let machine = Machine::new(true);
    let asked = machine.script_to_make("asked");
    machine.program("bin/rustup", &asked);
    machine.apt("1.96.0");
    let error = machine
        .complete(Policy::Forbid, Choice::Auto)
        .0
        .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ToolchainError::Install { .. }), "{text}");
    assert!(
        text.contains("apt-get install --no-install-recommends rustc-web cargo-web rust-web-src")
    );
    assert!(text.contains("rustup target add x86_64-unknown-none"));
    assert!(!machine.path("asked").exists() && !machine.path("log").exists());
}

#[test]
fn an_ordinary_user_gets_the_command() {
    let machine = Machine::new(false);
    machine.apt("1.96.0");
    let error = machine
        .complete(Policy::Install, Choice::Debian)
        .0
        .unwrap_err();
    assert!(
        error.to_string().contains("sudo apt-get install"),
        "{error}"
    );
    let survey = machine.survey(Choice::Debian);
    assert_eq!(survey.toolchain, None);
    assert!(survey.remedy.unwrap().contains("rustc-web"));
}

#[test]
fn an_old_compiler_is_refused_by_version() {
    let machine = Machine::new(true);
    machine.apt("1.85.0");
    let error = machine
        .complete(Policy::Install, Choice::Debian)
        .0
        .unwrap_err();
    let ToolchainError::TooOld { found, needed, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(found.to_string(), "1.85.0");
    assert_eq!(needed.minor, 95);
}

/// An image comes with lists that know an older compiler than its sources have.
#[test]
fn an_old_compiler_is_replaced_by_what_new_lists_know() {
    for policy in [Policy::Install, Policy::Forbid] {
        let machine = Machine::new(true);
        machine.apt("1.85.0");
        machine.complete(Policy::Install, Choice::Debian).0.err();
        fs::remove_file(machine.path("log")).unwrap();
        machine.apt("1.96.0");
        let (result, steps) = machine.complete(policy, Choice::Debian);
        if policy == Policy::Forbid {
            assert!(matches!(result, Err(ToolchainError::TooOld { .. })));
            assert!(!machine.path("log").exists());
            continue;
        }
        assert_eq!(result.unwrap().version.minor, 96);
        let log = fs::read_to_string(machine.path("log")).unwrap();
        assert!(log.lines().next().unwrap().ends_with(" update"), "{log}");
        assert!(steps.contains("newest rustc-web"), "{steps}");
    }
}

#[test]
fn a_linker_is_installed_where_there_is_none() {
    let machine = Machine::new(true);
    fs::remove_dir_all(machine.path("pinned/lib")).unwrap();
    machine.apt("1.96.0");
    let error = machine
        .complete(Policy::Install, Choice::Debian)
        .0
        .unwrap_err();
    let log = fs::read_to_string(machine.path("log")).unwrap();
    assert!(log.contains("rust-web-src lld"), "{log}");
    // This fake package brings none.
    assert!(error.to_string().contains("ld.lld"), "{error}");
}

#[test]
fn rustup_alone_fails_with_all_that_was_tried() {
    let machine = Machine::new(true);
    machine.apt("1.96.0");
    let error = machine
        .complete(Policy::Install, Choice::Rustup)
        .0
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("has no target x86_64-unknown-none"), "{text}");
    assert!(text.contains("there is no rustup"), "{text}");
    assert!(!machine.path("log").exists());
}

#[test]
fn a_failed_build_shows_its_errors_first() {
    let failed = |script: &str| {
        let mut shell = Command::new("/bin/sh");
        let error = command::run(shell.args(["-c", script]), None, &mut |_| {}).unwrap_err();
        ToolchainError::Build { cause: error }.to_string()
    };
    let text =
        failed("echo '   Compiling core'; echo 'error: no such thing'; echo ' --> x.rs'; exit 101");
    assert_eq!(text, "building it failed:\nerror: no such thing\n --> x.rs");
    assert!(failed("echo unexpected; exit 3").contains("unexpected"));
}

#[test]
fn versions_are_parsed() {
    for (text, version) in [
        ("rustc 1.95.0 (59807616e 2026-04-14)", Some((1, 95, 0))),
        (
            "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)",
            Some((1, 96, 0)),
        ),
        ("rustc 1.97.0-nightly (0 2026-05-01)", Some((1, 97, 0))),
        ("rustc 1.96.0-beta.2", Some((1, 96, 0))),
        ("rustc 1.96", None),
        ("rustc 1.96.0.1", None),
        ("cargo 1.96.0", None),
        ("rustc 99999.0.0", None),
        ("rustc", None),
        ("", None),
    ] {
        let parsed = Version::parse(text).map(|v| (v.major, v.minor, v.patch));
        assert_eq!(parsed, version, "{text}");
    }
}

#[test]
fn the_outer_build_does_not_mislead_the_inner() {
    for name in [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_MAKEFLAGS",
        "CARGO_MANIFEST_DIR",
        "CARGO_PROFILE_RELEASE_LTO",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "RUSTC_BOOTSTRAP",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
    ] {
        assert!(misleading(name), "{name}");
    }
    for name in [
        "CARGO_HOME",
        "CARGO_NET_OFFLINE",
        "CARGO_HTTP_PROXY",
        "CARGO_REGISTRIES_X_INDEX",
        "CARGO_REGISTRY_TOKEN",
        "CARGO_TERM_COLOR",
        "RUSTUP_HOME",
        "RUSTUP_AUTO_INSTALL",
        "PATH",
        "HOME",
        "http_proxy",
        "SSL_CERT_FILE",
    ] {
        assert!(!misleading(name), "{name}");
    }
}
