//! The installer against fake package managers in a directory of their own.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::apt::{Plan, stands_for};
use super::*;

/// Writes an executable shell script. Another process does it: while one of
/// ours has the file open for writing, a concurrent test may fork, and the copy
/// of the descriptor would make executing the script fail (ETXTBSY).
pub(crate) fn write_script(path: &Path, script: &str) {
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = writer.stdin.take().unwrap();
    write!(input, "#!/bin/sh\n{script}\n").unwrap();
    drop(input);
    assert!(writer.wait().unwrap().success());
}

/// A machine in a temporary directory, with the fake programs that it is given.
struct Machine {
    directory: TempDir,
    host: Host,
}

impl Machine {
    fn new(root: bool) -> Self {
        let directory = TempDir::new().unwrap();
        for path in ["bin", "var/lock", "var/lib/apt/lists"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let host = Host {
            search_path: vec![directory.path().join("bin")],
            prefix: directory.path().to_owned(),
            root,
            patience: Duration::from_secs(20),
        };
        Self { directory, host }
    }

    fn program(self, name: &str, script: &str) -> Self {
        let path = self.directory.path().join("bin").join(name);
        write_script(
            &path,
            &format!("cd '{}'\n{script}", self.directory.path().display()),
        );
        self
    }

    /// An `apt-get` that logs its arguments, prints `plan` when it simulates
    /// and makes `bin/curl` when it installs.
    fn apt(self, plan: &str) -> Self {
        self.program(
            "apt-get",
            &format!(
                "echo \"$@\" >> log\ncase \"$*\" in\n*' -s '*) cat <<'END'\n{plan}\nEND\n;;\n\
                 *' update'*) : > var/lib/apt/lists/x_Packages ;;\n\
                 *' install '*) : > bin/curl; chmod +x bin/curl ;;\nesac"
            ),
        )
    }

    fn fresh_lists(self) -> Self {
        fs::write(
            self.directory
                .path()
                .join("var/lib/apt/lists/x_Packages.lz4"),
            "",
        )
        .unwrap();
        self
    }

    fn log(&self) -> Vec<String> {
        fs::read_to_string(self.directory.path().join("log"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn ensure(&self, policy: Policy) -> (Result<(), InstallError>, String) {
        let mut steps = String::new();
        let result = self.host.ensure(&[CURL], policy, &mut |progress| {
            if let Progress::Step(text) = progress {
                steps += text;
                steps.push('\n');
            }
        });
        (result, steps)
    }
}

const PLAN: &str = "Reading package lists...\nInst curl (7.88 Debian:12 [amd64])\nConf curl (7.88)";

#[test]
fn what_is_there_is_not_installed() {
    let machine = Machine::new(true).apt(PLAN).program("curl", "");
    machine.ensure(Policy::Install).0.unwrap();
    machine.ensure(Policy::Forbid).0.unwrap();
    assert!(machine.log().is_empty());
}

#[test]
fn root_installs_after_a_simulation() {
    let machine = Machine::new(true).apt(PLAN).fresh_lists();
    let (result, steps) = machine.ensure(Policy::Install);
    result.unwrap();
    let log = machine.log();
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[0].contains(" -s install"), "{log:?}");
    assert!(log[1].contains("install -y --no-install-recommends --no-remove curl"));
    assert!(steps.contains("fetch the guest's pages"), "{steps}");
}

#[test]
fn missing_lists_are_fetched_first() {
    let machine = Machine::new(true).apt(PLAN);
    machine.ensure(Policy::Install).0.unwrap();
    let log = machine.log();
    assert!(log[0].ends_with(" update"), "{log:?}");
    assert_eq!(log.len(), 3);
}

#[test]
fn lists_older_than_the_sources_are_fetched_again() {
    for source in ["sources.list", "sources.list.d/more.sources"] {
        let machine = Machine::new(true).apt(PLAN).fresh_lists();
        let path = machine.host.path("/etc/apt").join(source);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Times of files are counted in whole seconds.
        let lists = fs::metadata(machine.host.path("/var/lib/apt/lists")).unwrap();
        while !fs::metadata(&path).is_ok_and(|file| file.ctime() > lists.ctime()) {
            fs::write(&path, "").unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        machine.ensure(Policy::Install).0.unwrap();
        let log = machine.log();
        assert!(log[0].ends_with(" update"), "{log:?}");
    }
}

#[test]
fn old_lists_are_fetched_again_after_a_failure_and_only_once() {
    let script = "echo \"$@\" >> log\ncase \"$*\" in *update) exit 0;; esac\n\
                  echo 'E: Unable to locate package curl'; exit 100";
    let machine = Machine::new(true).program("apt-get", script).fresh_lists();
    let (result, _) = machine.ensure(Policy::Install);
    let error = result.unwrap_err();
    assert!(matches!(error, InstallError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("Unable to locate package curl"));
    let updates = machine
        .log()
        .iter()
        .filter(|l| l.ends_with("update"))
        .count();
    assert_eq!(updates, 1);
}

#[test]
fn an_ordinary_user_gets_the_command() {
    let machine = Machine::new(false).apt(PLAN);
    let error = machine.ensure(Policy::Install).0.unwrap_err();
    assert!(matches!(error, InstallError::NotRoot { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("sudo apt-get install --no-install-recommends curl")
    );
    assert!(machine.log().is_empty());
}

#[test]
fn no_install_forbids() {
    let machine = Machine::new(true).apt(PLAN);
    let error = machine.ensure(Policy::Forbid).0.unwrap_err();
    assert!(matches!(error, InstallError::Forbidden { .. }), "{error}");
    assert!(machine.log().is_empty());
}

#[test]
fn qemu_packages_may_be_replaced_and_that_is_said() {
    let plan = format!("Remv qemu-utils [1:10.0.2+ds-2~bpo12+1]\n{PLAN}");
    let machine = Machine::new(true).apt(&plan).fresh_lists();
    let (result, steps) = machine.ensure(Policy::Install);
    result.unwrap();
    assert!(steps.contains("replaces qemu-utils"), "{steps}");
    assert!(!machine.log()[1].contains("--no-remove"));
}

#[test]
fn nothing_else_may_be_removed() {
    let plan = format!("Remv qemu-utils [1]\nRemv rustup [1.27] [foo ]\n{PLAN}");
    let machine = Machine::new(true).apt(&plan).fresh_lists();
    let error = machine.ensure(Policy::Install).0.unwrap_err();
    let InstallError::WouldRemove { removed, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(removed, "rustup");
    assert_eq!(machine.log().len(), 1, "only the simulation ran");
}

#[test]
fn a_package_that_brings_nothing_is_an_error() {
    let machine = Machine::new(true)
        .program("apt-get", "exit 0")
        .fresh_lists();
    let error = machine.ensure(Policy::Install).0.unwrap_err();
    assert!(
        matches!(error, InstallError::StillMissing { .. }),
        "{error}"
    );
}

#[test]
fn other_managers_are_left_to_their_owner() {
    for (program, command) in [
        ("dnf", "dnf install curl"),
        ("pacman", "pacman -S --needed curl"),
        ("zypper", "zypper install curl"),
        ("brew", "brew install curl"),
    ] {
        let machine = Machine::new(true).program(program, "echo called >> log");
        let error = machine.ensure(Policy::Install).0.unwrap_err();
        assert!(matches!(error, InstallError::ByHand { .. }), "{error}");
        assert!(error.to_string().contains(command), "{error}");
        assert!(machine.log().is_empty());
    }
    let error = Machine::new(true).ensure(Policy::Install).0.unwrap_err();
    assert!(matches!(error, InstallError::NoPackage { .. }), "{error}");
}

#[test]
fn waiting_for_another_installer_is_bounded() {
    let mut machine = Machine::new(true).apt(PLAN).fresh_lists();
    machine.host.patience = Duration::from_millis(300);
    let lock = machine.host.lock(&mut |_| {}).unwrap();
    let (result, steps) = machine.ensure(Policy::Install);
    assert!(matches!(result, Err(InstallError::Busy { .. })));
    assert!(steps.contains("Waiting"), "{steps}");
    drop(lock);
    machine.ensure(Policy::Install).0.unwrap();
}

#[test]
fn plans_are_parsed() {
    let text = "\
NOTE: This is only a simulation!
Reading package lists...
The following packages will be REMOVED:
  qemu-utils
Remv qemu-utils [1:10.0.2+ds-2~bpo12+1]
Purg libfoo:i386 [1.0]
Inst seabios (1.16.2-1 Debian:12.11/oldstable [all])
Inst qemu-system-x86 (1:7.2+dfsg-7+deb12u18 Debian:12.11/oldstable [amd64]) []
Conf seabios (1.16.2-1 Debian:12.11/oldstable [all])
Inst
";
    let plan = Plan::parse(text);
    assert_eq!(plan.removed, ["qemu-utils", "libfoo:i386"]);
    assert_eq!(plan.installed, ["seabios", "qemu-system-x86"]);
    assert_eq!(Plan::parse(""), Plan::default());
}

#[test]
fn what_a_package_stands_for_is_downloaded() {
    let script = "case \"$*\" in *download*) : > \"$OLDPWD/${*##* }_1_amd64.deb\" ;; esac\n\
                  echo \"$@\" >> log";
    let depends = "echo linux-image-amd64; echo '  Depends: initramfs-tools'\n\
                   echo '  Depends: linux-image-6.1.0-9-amd64'";
    let machine = Machine::new(true)
        .program("apt-get", script)
        .program("apt-cache", depends)
        .fresh_lists();
    let into = TempDir::new().unwrap();
    let download = |machine: &Machine, stem: &str| {
        let directory = into.path();
        let name = "linux-image-amd64";
        machine.host.download(name, stem, directory, &mut |_| {})
    };
    let file = download(&machine, "linux-image-").unwrap();
    assert!(file.ends_with("linux-image-6.1.0-9-amd64_1_amd64.deb"));
    assert_eq!(machine.log().len(), 1, "{:?}", machine.log());
    fs::remove_file(file).unwrap();
    let nothing = Machine::new(false)
        .program("apt-get", "")
        .program("apt-cache", depends);
    let error = download(&nothing, "linux-image-").unwrap_err();
    assert!(matches!(error, InstallError::NotDownloaded(_)), "{error}");
    let error = download(&Machine::new(true).program("dnf", ""), "").unwrap_err();
    assert!(matches!(error, InstallError::NoApt(_)), "{error}");
    assert_eq!(
        stands_for("busybox-static\n  Conflicts: busybox", "busy"),
        None
    );
}
