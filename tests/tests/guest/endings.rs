//! A command that is ended while it works with the guest: nothing runs on, and nothing is left
//! but after `SIGKILL`, which the next run takes away.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kickpath_tests::{Suite, program, setup};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BOUND: Duration = Duration::from_secs(120);

const SIGNALS: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGKILL,
];

/// Where Linux keeps what a command may leave behind, and what that is called.
const PLACES: [&str; 2] = ["/run/netns", "/sys/kernel/tracing/instances"];

pub fn add(suite: &mut Suite) {
    let mut add = |name: &str, arguments: &'static [&'static str], at: &'static str| {
        suite.test(&format!("endings::{name}"), move || {
            for signal in SIGNALS {
                end(arguments, at, signal).with_context(|| format!("{arguments:?}, {signal}"))?;
            }
            Ok(())
        });
    };
    add("while_it_talks", &["run"], "Traffic");
    add("while_it_traces", &["trace"], "Sending one datagram");
    add("while_it_compares", &["compare"], "Measuring");
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("endings::with_a_tap", || {
            for signal in SIGNALS {
                end(&["run", "--net", "tap"], "Cable", signal)?;
            }
            Ok(())
        });
    });
    suite.needs(setup::kvm().err(), |suite| {
        suite.test("endings::while_it_traces_kvm", || {
            // Without firmware, which a software KVM takes its time for.
            const ARGUMENTS: &[&str] = &["trace", "--accel", "kvm", "--machine", "microvm"];
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                end(ARGUMENTS, "Sending one datagram", signal)?;
            }
            Ok(())
        });
    });
    suite.test("endings::three_at_once", three);
}

/// Starts the command, waits for what it says, ends it, and looks for what is left.
fn end(arguments: &[&str], at: &str, signal: Signal) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let mut child = program::command(arguments)?
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // The steps are on the one, the story on the other.
    let mut lines: Box<dyn BufRead> = match arguments[0] {
        "run" => Box::new(BufReader::new(child.stdout.take().context("no output")?)),
        _ => Box::new(BufReader::new(child.stderr.take().context("no output")?)),
    };
    loop {
        let mut line = String::new();
        ensure!(lines.read_line(&mut line)? > 0, "it ends before '{at}'");
        if line.contains(at) {
            break;
        }
    }
    let started = descendants(child.id());
    kill(Pid::from_raw(child.id().cast_signed()), signal)?;
    let status = wait(&mut child)?;
    // It may be done already, with success.
    let expected = match signal {
        Signal::SIGKILL => [None, Some(0)],
        _ => [Some(130), Some(0)],
    };
    ensure!(expected.contains(&status.code()), "{status}");
    until("what it has started ends", || {
        started.iter().all(|&pid| !runs(pid))
    })?;
    if signal == Signal::SIGKILL {
        // The next run of the same kind takes away what is left.
        let mut next = program::command(arguments)?;
        next.env("TMPDIR", temporary.path())
            .args(["--qemu", "/bin/false"]);
        next.stdout(Stdio::null()).stderr(Stdio::null());
        ensure!(next.status()?.code() == Some(1), "it starts /bin/false");
    }
    let left = names(temporary.path());
    ensure!(left.is_empty(), "{left:?} were left");
    let own = format!("kickpath-{}-", child.id());
    for place in PLACES {
        let mut left = names(Path::new(place));
        left.retain(|name| name.starts_with(&own));
        // An instance of a killed trace goes with the next trace of KVM.
        let is_instance = signal == Signal::SIGKILL && place.ends_with("instances");
        ensure!(
            left.is_empty() || is_instance,
            "{left:?} were left in {place}"
        );
    }
    Ok(())
}

/// Three serve at once, each by ports of its own, and end.
fn three() -> Result<()> {
    let mut serving = Vec::new();
    for _ in 0..3 {
        serving.push(program::Running::start(&["serve", "--http-port", "18080"])?);
    }
    let mut ports = Vec::new();
    for serving in &mut serving {
        let line = serving.line_with("http://127.0.0.1:")?;
        ports.push(program::loopback_address(&line, "127.0.0.1:")?);
    }
    ports.sort();
    ports.dedup();
    ensure!(ports.len() == 3, "{ports:?}");
    for serving in &mut serving {
        let started = descendants(serving.child.id());
        ensure!(!started.is_empty(), "no QEMU");
        kill(
            Pid::from_raw(serving.child.id().cast_signed()),
            Signal::SIGHUP,
        )?;
        let status = wait(&mut serving.child)?;
        ensure!(status.success(), "{status}");
        ensure!(
            started.iter().all(|&pid| !runs(pid)),
            "QEMU was left behind"
        );
    }
    Ok(())
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus> {
    let mut status = None;
    until("the command ends", || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    })?;
    status.context("no status")
}

fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + BOUND;
    while !done() {
        ensure!(Instant::now() < deadline, "{what}: not within {BOUND:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

/// The processes that this one has started, and those that they have.
fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let texts = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = texts
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let below: Vec<u32> = children
        .iter()
        .flat_map(|&child| descendants(child))
        .collect();
    [children, below].concat()
}

/// Whether a process runs (a zombie does not).
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}
