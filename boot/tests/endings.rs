//! The `kickpath` command, ended by a signal at every phase: nothing runs on, nothing is left.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use common::{
    HANG, children, kernel, kickpath, leftovers, print, qemu, run, runs, send, wait_for_end,
    wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Those by which people and programs ask a program to end.
const ASKING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// All by which it can be ended.
const ALL: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGKILL,
];

/// Starts this command on this kernel, and waits for its QEMU.
fn start(directory: &TempDir, arguments: &[&str], kernel: &Path) -> (Child, u32) {
    qemu();
    let mut command = kickpath(directory);
    let command = command.args(arguments).arg("--kernel").arg(kernel);
    let child = command.spawn().unwrap();
    let mut pid = None;
    wait_until("QEMU starts", || {
        pid = children(child.id()).into_iter().find(|&pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(11).any(|w| w == b"-nodefaults")
        });
        pid.is_some()
    });
    (child, pid.unwrap_or_default())
}

/// Has it end, checks that QEMU has, and what it leaves: nothing, or after `SIGKILL` what the
/// next run takes away.
fn end(directory: &TempDir, mut child: Child, qemu: u32, signal: Signal) {
    send(&child, signal);
    // As `timeout` does, which means the same.
    send(&child, signal);
    let status = wait_for_end(&mut child);
    wait_until("QEMU ends", || !runs(qemu));
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    if signal == Signal::SIGKILL {
        assert_eq!(status.code(), None);
        assert_ne!(leftovers(directory), Vec::<String>::new());
        // Ends at once, but not before it has a directory.
        let gone = directory.path().join("gone");
        fs::write(&gone, "no kernel").unwrap();
        let mut next = kickpath(directory);
        next.arg("--kernel").arg(gone);
        assert_eq!(run(next).0.status.code(), Some(1));
    } else {
        assert_eq!(status.code(), Some(130), "{stderr}");
        assert!(
            stderr.ends_with("Interrupted. QEMU has ended.\n"),
            "{stderr}"
        );
    }
    assert_eq!(leftovers(directory), Vec::<String>::new(), "{signal}");
}

/// Nothing that looks like a gallery is left, and nothing of it beside.
#[test]
fn while_a_gallery_is_made() {
    qemu();
    let (directory, place) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let hangs = kernel(&directory, "hangs", &[HANG]);
    let mut command = kickpath(&directory);
    command.arg("gallery").arg(place.path().join("site"));
    command
        .args(["--only", "compare"])
        .env("KICKPATH_KERNEL", hangs);
    let mut child = command.spawn().unwrap();
    wait_until("QEMU starts", || {
        let is_guest = |pid: u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(11).any(|w| w == b"-nodefaults")
        };
        children(child.id()).into_iter().any(is_guest)
    });
    assert_ne!(fs::read_dir(place.path()).unwrap().count(), 0);
    assert!(!place.path().join("site").exists());
    send(&child, Signal::SIGINT);
    assert_eq!(wait_for_end(&mut child).code(), Some(130));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn while_it_boots() {
    for command in ["run", "serve"] {
        for signal in ALL {
            // Serve takes a request to end for success.
            if command == "serve" && signal != Signal::SIGKILL {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let hang = kernel(&directory, "hang", &[HANG]);
            let (child, pid) = start(&directory, &[command], &hang);
            end(&directory, child, pid, signal);
        }
    }
}

/// The guest says that it serves, and never answers.
#[test]
fn while_it_waits_for_an_answer() {
    thread::scope(|scope| {
        for signal in ALL {
            scope.spawn(move || {
                let directory = tempfile::tempdir().unwrap();
                let text = print("kickpath: up ipv4=10.0.2.15/24\n");
                let mute = kernel(&directory, "mute", &[&text, HANG]);
                let arguments = ["run", "--accel", "tcg", "--pcap"];
                let pcap = directory.path().join("run.pcap");
                let pcap = pcap.to_str().unwrap();
                let arguments = [&arguments[..], &[pcap]].concat();
                let (mut child, pid) = start(&directory, &arguments, &mute);
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                assert!(lines.any(|line| line.unwrap().contains("Traffic")));
                end(&directory, child, pid, signal);
                // What was recorded until then is there, and nothing unfinished.
                let files = fs::read_dir(directory.path()).unwrap();
                let parts = files
                    .map(|file| file.unwrap().file_name().into_string().unwrap())
                    .filter(|name| name.starts_with("run.pcap."));
                match signal {
                    Signal::SIGKILL => assert_eq!(parts.count(), 1),
                    _ => {
                        assert_eq!(parts.count(), 0);
                        assert!(fs::metadata(pcap).unwrap().len() > 24);
                    }
                }
            });
        }
    });
}

/// QEMU is what is ended; the command says so.
#[test]
fn qemu_is_ended() {
    for signal in ALL {
        let directory = tempfile::tempdir().unwrap();
        let hang = kernel(&directory, "hang", &[HANG]);
        let (mut child, pid) = start(&directory, &["run"], &hang);
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        let status = wait_for_end(&mut child);
        assert_eq!(status.code(), Some(1), "{signal}");
        let mut stderr = String::new();
        let mut pipe = child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        let said = match signal {
            Signal::SIGKILL => "was ended by SIGKILL",
            // It ends in good order, or before it has taken its signals over.
            _ => "ended",
        };
        assert!(stderr.contains(said), "{signal}: {stderr}");
        assert_eq!(leftovers(&directory), Vec::<String>::new());
    }
}

/// Three at once neither end nor sweep each other.
#[test]
fn three_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let hang = kernel(&directory, "hang", &[HANG]);
    let started: Vec<_> = (0..3).map(|_| start(&directory, &["run"], &hang)).collect();
    let count = leftovers(&directory).len();
    assert!(count >= 6, "{count} directories");
    let mut left = started.len();
    for (mut child, pid) in started {
        send(&child, Signal::SIGTERM);
        assert_eq!(wait_for_end(&mut child).code(), Some(130));
        assert!(!runs(pid));
        left -= 1;
        assert!(leftovers(&directory).len() >= 2 * left);
    }
    assert_eq!(leftovers(&directory), Vec::<String>::new());
}

/// Programs that note that they were started, by their process ids, and wait.
fn waiting_programs(directory: &TempDir, names: &[&str]) -> (PathBuf, PathBuf) {
    let programs = directory.path().join("bin");
    let calls = directory.path().join("calls");
    fs::create_dir(&programs).unwrap();
    for (program, ending) in [
        ("rustc", "sleep 60 & wait"),
        ("rustup", ""),
        ("apt-get", ""),
    ] {
        let name = match names.contains(&program) {
            true => program,
            false => continue,
        };
        let script = format!(
            "#!/bin/sh\necho {name} $$ >> '{}'\n{ending}\n",
            calls.display()
        );
        let file = programs.join(name);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    (programs, calls)
}

/// What was interrupted has not said that anything is missing: nothing is installed. And
/// what it has started goes with it.
#[test]
fn while_a_toolchain_is_looked_for() {
    for signal in ALL {
        let directory = tempfile::tempdir().unwrap();
        let (programs, calls) = waiting_programs(&directory, &["rustc", "rustup", "apt-get"]);
        let path = std::env::var_os("PATH").unwrap();
        let path = std::iter::once(programs).chain(std::env::split_paths(&path));
        let mut command: Command = kickpath(&directory);
        let mut child = command
            .args(["--qemu", "/bin/sh"])
            .env("PATH", std::env::join_paths(path).unwrap())
            .env_remove("KICKPATH_TOOLCHAIN")
            .env_remove("RUSTUP_AUTO_INSTALL")
            .spawn()
            .unwrap();
        let called = || fs::read_to_string(&calls).unwrap_or_default();
        let mut compiler = 0;
        wait_until("the compiler is asked", || {
            let text = called();
            let pid = text.trim().strip_prefix("rustc ");
            compiler = pid.and_then(|pid| pid.parse().ok()).unwrap_or_default();
            compiler != 0 && !children(compiler).is_empty()
        });
        let sleeper = children(compiler)[0];
        send(&child, signal);
        let code = wait_for_end(&mut child).code();
        wait_until("the compiler ends", || !runs(compiler));
        let mut stderr = String::new();
        let mut pipe = child.stderr.take().unwrap();
        if ASKING.contains(&signal) {
            assert_eq!(code, Some(130), "{signal}");
            wait_until("what it has started ends", || !runs(sleeper));
            pipe.read_to_string(&mut stderr).unwrap();
            assert_eq!(stderr, "");
        } else {
            // Of a killed command the kernel tells its children only.
            kill(Pid::from_raw(sleeper.cast_signed()), Signal::SIGKILL).unwrap();
        }
        assert_eq!(called().lines().count(), 1, "{}", called());
        assert_eq!(leftovers(&directory), Vec::<String>::new());
    }
}

#[test]
fn a_long_directory_for_temporary_files_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let hang = kernel(&directory, "hang", &[HANG]);
    let long = directory.path().join("x".repeat(100));
    fs::create_dir(&long).unwrap();
    for (place, expected) in [
        (
            long,
            "bytes too long for a socket in it; set TMPDIR to a shorter one",
        ),
        ("/no/such/place".into(), "cannot write into /no/such/place"),
        ("/dev/null".into(), "cannot write into /dev/null"),
    ] {
        let mut command = kickpath(&directory);
        command.arg("--kernel").arg(&hang).env("TMPDIR", &place);
        let (output, text) = run(command);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}
