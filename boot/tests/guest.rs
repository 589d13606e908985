//! QEMU's process and the guest's console, with guests of a few bytes.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{HANG, PVPANIC, TRIPLE_FAULT, exit_with, kernel, machine, print, runs};
use kickpath::guest::{Cause, Exit, Guest};
use serde_json::Value;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(60);

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_dropped_guest_is_gone() {
    let directory = directory();
    let mut machine = machine(kernel(&directory, "hang", &[HANG]));
    machine.paused = true;
    let guest = Guest::launch(&machine).unwrap();
    let pid = guest.pid();
    assert!(runs(pid));
    assert_eq!(guest.exit(), None);
    let status = guest.qmp("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], false);
    drop(guest);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_panic_of_the_runner_takes_the_guest_along() {
    let directory = directory();
    let machine = machine(kernel(&directory, "hang", &[HANG]));
    let mut pid = 0;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let guest = Guest::launch(&machine).unwrap();
        pid = guest.pid();
        assert!(runs(pid));
        panic!("as a defect would");
    }));
    assert!(panicked.is_err());
    assert!(pid != 0 && !runs(pid));
}

#[test]
fn the_thread_that_launched_may_end() {
    let directory = directory();
    let machine = machine(kernel(&directory, "hang", &[HANG]));
    let guest = std::thread::spawn(move || Guest::launch(&machine).unwrap())
        .join()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(runs(guest.pid()));
    guest.check().unwrap();
}

#[test]
fn console_lines_are_found_in_order() {
    let directory = directory();
    let text = print("one\r\ntwo \x1b[2J\nkickpath: up ipv4=10.0.2.15/24\n");
    let machine = machine(kernel(&directory, "print", &[&text, HANG]));
    let guest = Guest::launch(&machine).unwrap();
    let up = guest.wait_for_console("kickpath: up", BOUND).unwrap();
    let one = guest.wait_for_console("one", BOUND).unwrap();
    assert_eq!(up.number, one.number + 2);
    assert!(up.at >= one.at && up.at > Duration::ZERO);
    // Nothing on a console can drive a terminal.
    let lines = guest.console_since(one.number);
    assert_eq!(lines[1].text, "two \\u{1b}[2J");

    let start = Instant::now();
    let bound = Duration::from_millis(300);
    let failure = guest
        .wait_for_line(up.number + 1, "one", bound)
        .unwrap_err();
    assert!(matches!(failure.cause, Cause::Timeout { .. }), "{failure}");
    assert!(start.elapsed() >= bound && start.elapsed() < BOUND);
    let report = failure.to_string();
    for part in [
        "waited 0.3 s in vain for 'one'",
        "kickpath: up ipv4",
        "-kernel",
        "-nodefaults",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert!(guest.next_lines(up.number + 1, bound).unwrap().is_empty());
}

#[test]
fn the_guests_own_exit_is_decoded() {
    let directory = directory();
    for (value, exit) in [
        (0x10, Exit::SUCCESS),
        (0x11, Exit::FAILURE),
        (0x00, Exit::Guest(0)),
        (0x7f, Exit::Guest(0x7f)),
    ] {
        let code = [print("last words"), exit_with(value)].concat();
        let machine = machine(kernel(&directory, "exit", &[&code]));
        let guest = Guest::launch(&machine).unwrap();
        assert_eq!(guest.wait_for_exit(BOUND).unwrap(), exit);
        assert_eq!(guest.exit(), Some(exit));
        let failure = guest.wait_for_console("never printed", BOUND).unwrap_err();
        let Cause::Ended { exit: got, .. } = failure.cause else {
            panic!("{failure}");
        };
        assert_eq!(got, exit);
        assert_eq!(failure.console, ["last words"]);
    }
}

/// On a busy machine a guest can be done before its monitor is connected. It is
/// done all the same; a QEMU that gives up is not.
#[test]
fn a_guest_may_be_quicker_than_its_monitor() {
    let directory = directory();
    let program = directory.path().join("qemu");
    let mut machine = machine(kernel(&directory, "exit", &[HANG]));
    machine.program = program.clone();
    let pretend = |script: &str| {
        // By another process: no fork of ours may hold it open for writing.
        let make = r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", make, "sh", script]).arg(&program);
        assert!(shell.status().unwrap().success());
        Guest::launch(&machine)
    };
    let guest = pretend("echo last words; exit 33").unwrap();
    assert_eq!(guest.exit(), Some(Exit::SUCCESS));
    guest.wait_for_console("last words", BOUND).unwrap();
    guest.qmp("query-status", Value::Null).unwrap_err();
    let failure = pretend("echo no such machine >&2; exit 1").unwrap_err();
    assert!(failure.to_string().contains("no such machine"), "{failure}");
}

#[test]
fn a_triple_fault_ends_the_run_and_is_named() {
    let directory = directory();
    let code = [&print("before\n"), TRIPLE_FAULT];
    let machine = machine(kernel(&directory, "fault", &code));
    let guest = Guest::launch(&machine).unwrap();
    let failure = guest.wait_for_console("after", BOUND).unwrap_err();
    let Cause::Ended {
        exit, ref reason, ..
    } = failure.cause
    else {
        panic!("{failure}");
    };
    assert_eq!(exit, Exit::Orderly);
    assert_eq!(reason.as_deref(), Some("guest-reset"));
    assert!(failure.to_string().contains("triple fault"), "{failure}");
}

#[test]
fn a_guest_that_qemu_pauses_is_reported_not_waited_for() {
    let directory = directory();
    let mut machine = machine(kernel(&directory, "panic", &[PVPANIC, HANG]));
    let pause = ["-device", "pvpanic", "-action", "panic=pause"];
    machine.extra = pause.iter().map(Into::into).collect();
    let guest = Guest::launch(&machine).unwrap();
    let start = Instant::now();
    let failure = guest.wait_for_console("never printed", BOUND).unwrap_err();
    let Cause::Paused { ref reason, .. } = failure.cause else {
        panic!("{failure}");
    };
    assert_eq!(reason, "guest-panicked");
    assert!(start.elapsed() < BOUND);
    // The monitor still answers.
    let status = guest.qmp("query-status", Value::Null).unwrap();
    assert_eq!(status["status"], "guest-panicked");
    assert!(guest.check().is_err());
}

#[test]
fn a_guest_stopped_on_purpose_is_no_failure() {
    let directory = directory();
    let machine = machine(kernel(&directory, "hang", &[HANG]));
    let guest = Guest::launch(&machine).unwrap();
    guest.qmp("stop", Value::Null).unwrap();
    let bound = Duration::from_millis(300);
    let failure = guest.wait_for_console("never printed", bound).unwrap_err();
    assert!(matches!(failure.cause, Cause::Timeout { .. }), "{failure}");
    guest.qmp("cont", Value::Null).unwrap();
    let refused = guest.qmp("no-such-command", Value::Null).unwrap_err();
    assert!(matches!(refused.cause, Cause::Command { .. }), "{refused}");
    guest.qmp("quit", Value::Null).unwrap();
    assert_eq!(guest.wait_for_exit(BOUND).unwrap(), Exit::Orderly);
}

#[test]
fn what_qemu_says_is_in_the_report() {
    let directory = directory();
    let mut machine = machine(kernel(&directory, "hang", &[HANG]));
    machine.extra = vec!["-device".into(), "no-such-device".into()];
    let failure = Guest::launch(&machine).unwrap_err();
    assert!(
        matches!(
            failure.cause,
            Cause::Ended {
                exit: Exit::Failed(1),
                ..
            }
        ),
        "{failure}"
    );
    let report = failure.to_string();
    assert!(
        report.contains("'no-such-device' is not a valid device"),
        "{report}"
    );

    machine.program = "/does/not/exist".into();
    let failure = Guest::launch(&machine).unwrap_err();
    assert!(
        failure.to_string().contains("cannot start /does/not/exist"),
        "{failure}"
    );
}

#[test]
fn a_trace_file_ends_the_report() {
    let directory = directory();
    let mut machine = machine(kernel(&directory, "hang", &[&print("x\n"), HANG]));
    machine.trace = Some(kickpath::qemu::Trace {
        events: vec!["serial_write".into()],
        directory: directory.path().to_owned(),
    });
    let guest = Guest::launch(&machine).unwrap();
    guest.wait_for_console("x", BOUND).unwrap();
    let failure = guest.failure(Cause::Other("as an example".into()));
    let trace = failure.trace.as_deref().unwrap_or_default();
    assert!(
        trace.iter().any(|line| line.contains("serial_write")),
        "{failure}"
    );
}
