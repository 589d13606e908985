//! The `kickpath` command from outside: what is left of it when it ends.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    HANG, children, exit_with, kernel, kickpath, leftovers, print, qemu, run, runs, send,
    wait_for_end,
};
use nix::sys::signal::Signal;

const BOUND: Duration = Duration::from_secs(180);

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
fn two_traces_are_compared_without_a_guest() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let sample = include_str!("../src/trace/sample.json");
    std::fs::write(file("a.json"), sample).unwrap();
    let other = sample.replacen("\"interrupts\": \"msix\"", "\"interrupts\": \"intx\"", 1);
    assert_ne!(sample, other);
    std::fs::write(file("b.json"), other).unwrap();
    let compare = |b: &str| {
        let mut command = kickpath(&directory);
        command
            .args(["trace", "--diff"])
            .args([file("a.json"), file(b)]);
        command.arg("--html").arg(file("page.html"));
        command.arg("--json").arg(file("diff.json"));
        run(command)
    };
    let (output, text) = compare("b.json");
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("A: msix; B: intx"), "{text}");
    let page = std::fs::read_to_string(file("page.html")).unwrap();
    assert!(page.contains("Two packets, side by side"));
    let diff = std::fs::read(file("diff.json")).unwrap();
    let diff: serde_json::Value = serde_json::from_slice(&diff).unwrap();
    let rows = diff["rows"].as_array().unwrap();
    assert!(rows.len() > 20 && rows.iter().all(|row| row["same"] == true));
    assert_eq!(diff["setup"][0]["name"], "Interrupts");

    let cut = sample.len() / 2;
    std::fs::write(file("cut.json"), &sample[..cut]).unwrap();
    let (output, text) = compare("cut.json");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = sample[..cut].lines().count();
    assert!(text.contains(&format!("cut.json:{line}:")), "{text}");
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
            &["--kernel", "/dev/null"],
            "--kernel /dev/null: it is no regular file",
        ),
        (
            &["image", "--kernel", "/", "--bios", "x.img"],
            "--kernel /: it is a directory",
        ),
        (&["--qemu", "/usr"], "--qemu /usr: it is a directory"),
        (
            &["--pcap", "/no/run.pcap", "--qemu", "/no/qemu"],
            "cannot write /no/run.pcap: No such",
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
        (
            &["trace", "--guest", "linux", "--irq", "poll"],
            "Linux's driver has no such rung",
        ),
        (
            &["trace", "--diff", "/no/a.json", "/no/b.json"],
            "--diff /no/a.json: there is no such file",
        ),
        (&["bench", "--accel", "nested"], "which TCG alone can"),
        (
            &["bench", "--accel", "kvm", "--profile"],
            "--profile: it counts instructions, which TCG alone can",
        ),
        (
            &["bench", "--vmm", "alioth", "--transport", "legacy"],
            "--transport is not for Alioth: it has modern virtio-pci only",
        ),
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
        (
            &["trace", "--udp", "in-place"],
            "--udp in-place: a trace follows the datagram to a socket",
        ),
        (
            &["trace", "--net", "user"],
            "--net user: QEMU's user network shows nobody the frames",
        ),
        (
            &["trace", "--guest", "linux", "--net", "tap"],
            "--net: --guest linux is traced at a far end of our own",
        ),
        (&["compare", "--accel", "nested"], "for `run` and `trace`"),
        (
            &["compare", "--qemu", "/no/qemu"],
            "--qemu /no/qemu: there is no such file",
        ),
    ] {
        let mut command = kickpath(&directory);
        command.args(arguments).arg("--no-install");
        let (output, text) = run(command);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected), "{text}");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            printed.is_empty(),
            "printed before it was refused: {printed}"
        );
    }
    assert!(!Path::new("/no").exists());
}
