//! The `kickpath` command from outside: what is left of it when it ends.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{HANG, exit_with, kernel, print, qemu, runs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(30);

/// The command with a directory of its own for temporary files.
fn kickpath(directory: &TempDir) -> Command {
    let temporary = directory.path().join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickpath"));
    command
        .env("TMPDIR", temporary)
        .env("NO_COLOR", "1")
        .env_remove("KICKPATH_KERNEL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {BOUND:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// The processes whose parent is this one.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Starts a command whose guest never comes up, and waits for its QEMU.
fn start_hanging(directory: &TempDir, arguments: &[&str]) -> (Child, u32) {
    qemu();
    let hang = kernel(directory, "hang", &[HANG]);
    let mut command = kickpath(directory);
    let child = command
        .args(arguments)
        .arg("--kernel")
        .arg(hang)
        .spawn()
        .unwrap();
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

fn wait_for_end(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    wait_until("the command ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap_or_default()
}

fn leftovers(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path().join("tmp")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn ctrl_c_ends_everything() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, pid) = start_hanging(&directory, &["run"]);
        thread::sleep(Duration::from_millis(300));
        send(&child, signal);
        // As `timeout` does, which means the same.
        send(&child, signal);
        let status = wait_for_end(&mut child);
        assert_eq!(status.code(), Some(130));
        assert!(!runs(pid));
        assert_eq!(leftovers(&directory), Vec::<String>::new());
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(stderr.trim(), "Interrupted. QEMU has ended.");
    }
}

/// What was interrupted has not said that anything is missing.
#[test]
fn ctrl_c_while_a_toolchain_is_looked_for_installs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let programs = directory.path().join("bin");
    let calls = directory.path().join("calls");
    fs::create_dir(&programs).unwrap();
    for (program, ending) in [("rustc", "exec sleep 60"), ("rustup", ""), ("apt-get", "")] {
        let script = format!(
            "#!/bin/sh\necho {program} >> '{}'\n{ending}\n",
            calls.display()
        );
        let file = programs.join(program);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap();
    let path = std::iter::once(programs).chain(std::env::split_paths(&path));
    let mut command = kickpath(&directory);
    let mut child = command
        .args(["--qemu", "/bin/sh"])
        .env("PATH", std::env::join_paths(path).unwrap())
        .env_remove("KICKPATH_TOOLCHAIN")
        .env_remove("RUSTUP_AUTO_INSTALL")
        .spawn()
        .unwrap();
    wait_until("the compiler is asked", || calls.exists());
    send(&child, Signal::SIGINT);
    assert_eq!(wait_for_end(&mut child).code(), Some(130));
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
    assert_eq!(fs::read_to_string(calls).unwrap(), "rustc\n");
}

#[test]
fn a_killed_command_takes_its_qemu_along() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, pid) = start_hanging(&directory, &[]);
    assert!(runs(pid));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("QEMU ends", || !runs(pid));
}

#[test]
fn serve_streams_the_log_and_ends_well_by_ctrl_c() {
    let directory = tempfile::tempdir().unwrap();
    qemu();
    let text = print("hello\nkickpath: up ipv4=10.0.2.15/24\nafter\n");
    let kernel = kernel(&directory, "up", &[&text, HANG]);
    let mut command = kickpath(&directory);
    let mut child = command
        .args(["serve", "--kernel"])
        .arg(kernel)
        .spawn()
        .unwrap();
    let mut lines = Vec::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    while lines.last().map(String::as_str) != Some("  after") {
        let mut line = String::new();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "{lines:#?}");
        lines.push(line.trim_end().to_owned());
    }
    let pid = children(child.id())[0];
    assert!(
        lines.iter().any(|l| l.contains("http://127.0.0.1:")),
        "{lines:#?}"
    );
    assert!(lines.contains(&"  hello".to_owned()), "{lines:#?}");
    send(&child, Signal::SIGINT);
    assert_eq!(wait_for_end(&mut child).code(), Some(0));
    assert!(!runs(pid));
    assert_eq!(leftovers(&directory), Vec::<String>::new());
}

#[test]
fn a_guest_that_fails_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    qemu();
    let code = [print("no device\n"), exit_with(0x11)].concat();
    let kernel = kernel(&directory, "fails", &[&code]);
    let mut command = kickpath(&directory);
    command.arg("--kernel").arg(&kernel);
    let (output, text) = run(command);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("isa-debug-exit with 0x11"), "{text}");
    assert!(text.contains("  no device"), "{text}");

    let mut command = kickpath(&directory);
    command.args(["--json", "--kernel"]).arg(&kernel);
    let (output, _) = run(command);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], false);
    let failure = json["failures"][0].as_str().unwrap();
    assert!(failure.contains("no device"), "{failure}");
    assert_eq!(leftovers(&directory), Vec::<String>::new());
}

#[test]
fn a_guest_that_does_not_answer_is_a_failure_in_bounded_time() {
    let directory = tempfile::tempdir().unwrap();
    qemu();
    let text = print("kickpath: up ipv4=10.0.2.15/24\n");
    let kernel = kernel(&directory, "mute", &[&text, HANG]);
    let mut command = kickpath(&directory);
    command.args(["--accel", "tcg", "--kernel"]).arg(&kernel);
    let start = Instant::now();
    let (output, text) = run(command);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "Not every reply came back intact.",
        "ping: 0 of 10 replies",
        "UDP datagram of 1472 bytes to 10.0.2.15:7: no answer within",
        "TCP connection to 10.0.2.15:80: no answer within",
        "End of the guest's console:\n  kickpath: up",
        "Last frames on the wire:",
        "type=ARP",
        "-netdev dgram",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(start.elapsed() < BOUND, "{text}");
}

#[test]
fn a_printed_command_line_is_one_that_qemu_takes() {
    let directory = tempfile::tempdir().unwrap();
    qemu();
    let code = exit_with(0x10);
    let kernel = kernel(&directory, "it's a kernel", &[&code]);
    let ports = ["--http-port", "28080", "--echo-port", "27007"];
    let serve = ["serve", "--dry-run", "--transport", "legacy"];
    let pcap = ["--machine", "q35", "--pcap", "a,b.pcap"];
    for arguments in [
        vec!["--dry-run"],
        vec!["bench", "--dry-run"],
        [&serve[..], &ports, &pcap].concat(),
    ] {
        let mut command = kickpath(&directory);
        command.args(&arguments).arg("--kernel").arg(&kernel);
        let output = command.output().unwrap();
        assert!(output.status.success());
        let line = String::from_utf8(output.stdout).unwrap();
        // As a person would: into a shell.
        let pasted = Command::new("sh")
            .arg("-c")
            .arg(&line)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(pasted.status.code(), Some(33), "{line}\n{pasted:?}");
    }
    assert!(directory.path().join("a,b.pcap").is_file());
}

#[test]
fn what_is_not_possible_is_said_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (&["--transport", "mmio"][..], "--machine microvm has them"),
        (
            &["serve", "--machine", "microvm", "--transport", "legacy"],
            "it has virtio-mmio only",
        ),
        (&["--ip", "10.0.0.1/31"], "no room for the host's end"),
        (&["--features=mac"], "features='mac'"),
        (
            &["--kernel", "/no/kernel"],
            "--kernel /no/kernel: there is no such file",
        ),
        (
            &["--image", "/no/image"],
            "cannot read the disk image /no/image",
        ),
        (
            &["--qemu", "/no/qemu"],
            "--qemu /no/qemu: there is no such file",
        ),
        (
            &["trace", "--transport", "modern", "--rss"],
            "--net tap has both",
        ),
        (
            &["bench", "--machine", "microvm", "--rss"],
            "--net tap has both",
        ),
        (
            &["trace", "--qemu", "/no/qemu", "--html", "/no/page.html"],
            "cannot write /no/page.html",
        ),
        (
            &["compare", "--qemu", "/no/qemu", "--html", "/no/page.html"],
            "cannot write /no/page.html",
        ),
        (
            &["image", "--kernel", "/no/kernel", "--bios", "/no/image"],
            "cannot write /no/image",
        ),
        (
            &["image", "--kernel", "/no/kernel", "--bios", "x.img"],
            "--kernel /no/kernel: there is no such file",
        ),
        (&["bench", "--accel", "kvm"], "which TCG alone can"),
        (&["bench", "--ioeventfd", "on"], "without an ioeventfd"),
        (&["compare", "--rss"], "--net tap has both"),
        (&["compare", "--pio-notify"], "tries every way to kick"),
        (&["compare", "--transport", "modern"], "tries every way"),
        (&["compare", "--ioeventfd", "off"], "tries every way"),
        (
            &["compare", "--features=-mac,-event_idx"],
            "--features=-event_idx: compare tries every way",
        ),
        (
            &["compare", "--image", "/no/image"],
            "--image with --machine microvm",
        ),
    ] {
        let mut command = kickpath(&directory);
        command.args(arguments).arg("--no-install");
        let (output, text) = run(command);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    assert!(!Path::new("/no").exists());
}
