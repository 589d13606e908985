//! QEMU's own call chain where it hears of a kick: from its main loop, or from the thread of the
//! virtual CPU, to the device.
//!
//! A debugger takes it, which stops QEMU for a while: so it is taken at a kick of its own, after
//! what is recorded and measured. QEMU exports its functions for its modules; those that are
//! `static` have a name only where QEMU's debug symbols are installed.

use std::fs;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{self, CommandError, Progress};
use crate::install::{GDB, Host};

/// Where QEMU hears of a kick: told by the thread that carries out the guest's write, or by an
/// eventfd (`hw/virtio/virtio.c`).
const HEARS: [&str; 2] = ["virtio_queue_notify", "virtio_queue_host_notifier_read"];

/// What the debugger says when the next kick will stop QEMU.
const READY: &str = "kickpath: ready";

/// How long QEMU is waited for at a kick, in seconds.
const PATIENCE: u64 = 60;

/// How long a debugger may take in all: one that is killed leaves its breakpoints in QEMU.
const BOUND: Duration = Duration::from_secs(2 * PATIENCE);

/// Where TCG keeps the code that it makes of the guest's; QEMU tells debuggers of it.
const TRANSLATED: &str = "code_gen_buffer";

/// What a thread begins with; no part of QEMU is outside of it.
const BEGINNINGS: [&str; 3] = [
    "__libc_start_call_main",
    "__libc_start_main",
    "start_thread",
];

/// Why there is no call chain.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// No debugger.
    #[error("gdb is not installed")]
    NoGdb,
    /// It did not do what it was told.
    #[error(transparent)]
    Gdb(#[from] CommandError),
    /// It may not look at QEMU, or knows none of its functions.
    #[error("gdb says: {0}")]
    Refused(String),
    /// The kick did not come.
    #[error("no kick stopped QEMU for {PATIENCE} s")]
    NoKick,
    /// QEMU's mappings.
    #[error("cannot read QEMU's mappings: {0}")]
    Mappings(std::io::Error),
}

/// What called the function that heard of a kick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuStack {
    /// The queue that was kicked.
    pub queue: u16,
    /// The thread that heard of it.
    pub thread: u32,
    /// Functions, innermost first.
    pub functions: Vec<String>,
}

/// Takes the call chain of QEMU's process at the kick that `kick` causes. The queue is not known
/// here.
///
/// # Errors
/// There is no debugger, it may not or cannot look, or the kick does not come.
pub fn take(process: u32, kick: impl FnOnce()) -> Result<QemuStack, StackError> {
    let gdb = Host::detect().find(&GDB).ok_or(StackError::NoGdb)?;
    let mut command = Command::new("timeout");
    command
        // Interrupted, it goes on behind `continue`, and takes its breakpoints out.
        .args(["--signal=INT", &PATIENCE.to_string()])
        .arg(gdb)
        .args(["-nx", "-batch", "-iex", "set auto-load off"])
        .args(["-iex", "set debuginfod enabled off"])
        .args(["-p", &process.to_string()]);
    let wishes = [
        "set width 0",
        "set print frame-arguments none",
        "set print entry-values no",
        "handle all nostop noprint pass",
    ];
    let breaks = HEARS.map(|function| format!("tbreak {function}"));
    let told = format!("echo {READY}\\n");
    let then = ["continue", "thread", "backtrace", "detach"];
    let steps = wishes.into_iter().chain(breaks.iter().map(String::as_str));
    for step in steps.chain([told.as_str()]).chain(then) {
        command.args(["-ex", step]);
    }
    let (ready, is_ready) = mpsc::channel();
    let said = thread::scope(|scope| {
        let debugger = scope.spawn(move || {
            let mut said = Vec::new();
            let result = command::run(&mut command, Some(BOUND), &mut |progress| {
                if let Progress::Line(line) = progress {
                    if line == READY {
                        // Fails only if nobody waits any more.
                        let _ = ready.send(());
                    }
                    said.push(line.to_owned());
                }
            });
            // It fails too where its time was over.
            match result {
                Ok(()) | Err(CommandError::Failed { .. }) => Ok(said),
                Err(error) => Err(error),
            }
        });
        if is_ready.recv().is_ok() {
            kick();
        }
        debugger
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).map_err(StackError::Mappings)?;
    parse(&said, &maps)
}

/// Reads what the debugger said.
fn parse(said: &[String], maps: &str) -> Result<QemuStack, StackError> {
    let mut functions = Vec::new();
    for frame in said.iter().filter_map(|line| Frame::of(line)) {
        if BEGINNINGS
            .iter()
            .any(|name| frame.function.starts_with(name))
        {
            break;
        }
        let file = frame.address.and_then(|address| file_at(maps, address));
        functions.push(match (frame.function, file) {
            ("??", Some(file)) => format!("(static in {file})"),
            ("??", None) => "(unknown)".to_owned(),
            (TRANSLATED, _) => format!("{TRANSLATED} (the guest's code, as TCG translated it)"),
            (function, _) => function.to_owned(),
        });
        // Nothing says how to go on from a place that no file has.
        if (frame.function, file) == ("??", None) {
            break;
        }
    }
    let hears = functions
        .first()
        .is_some_and(|first| HEARS.contains(&first.as_str()));
    let thread = said.iter().rev().find_map(|line| thread_of(line));
    match (thread, hears) {
        (Some(thread), true) => Ok(QemuStack {
            queue: 0,
            thread,
            functions,
        }),
        _ if said.iter().any(|line| line == READY) => Err(StackError::NoKick),
        _ => {
            let mut complaints = said.iter().rev();
            let complaint = complaints
                .find(|line| ["ptrace", "defined"].iter().any(|word| line.contains(word)));
            let last = complaint.or(said.last()).cloned();
            Err(StackError::Refused(last.unwrap_or_default()))
        }
    }
}

/// A line of a call chain: `#1  0x000055d33b25c6a8 in aio_dispatch () from FILE`.
struct Frame<'a> {
    /// The innermost has none where its line of source is known.
    address: Option<u64>,
    function: &'a str,
}

impl<'a> Frame<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let numbered = line.strip_prefix('#')?;
        let rest = numbered
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .trim_start();
        let (address, rest) = match rest
            .strip_prefix("0x")
            .and_then(|rest| rest.split_once(" in "))
        {
            Some((digits, rest)) => (u64::from_str_radix(digits, 16).ok(), rest),
            None => (None, rest),
        };
        let (function, _) = rest.split_once(" (")?;
        Some(Self { address, function })
    }
}

/// The thread of `[Current thread is 1 (Thread 0x7f8e590c9ec0 (LWP 8805))]`.
fn thread_of(line: &str) -> Option<u32> {
    let rest = line.strip_prefix("[Current thread is ")?;
    let number = ["LWP ", "process "]
        .iter()
        .find_map(|word| rest.split_once(word))?
        .1;
    number.trim_end_matches([')', ']']).parse().ok()
}

/// The name of the file that is mapped at an address, by `/proc/PID/maps`.
fn file_at(maps: &str, address: u64) -> Option<&str> {
    let line = maps.lines().find(|line| {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        range.is_some_and(|(from, to)| {
            let number = |text| u64::from_str_radix(text, 16);
            matches!((number(from), number(to)), (Ok(from), Ok(to)) if (from..to).contains(&address))
        })
    })?;
    let file = line.get(line.find('/')?..)?;
    file.rsplit('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d33ab00000-55d33b400000 r-xp 00300000 fe:00 1 /usr/bin/qemu-system-x86_64
7f0000000000-7f0040000000 rwxp 00000000 00:00 0
7f8e59c80000-7f8e59d80000 r-xp 00000000 fe:00 2 /usr/lib/x86_64-linux-gnu/libglib-2.0.so.0.7400.6
";

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_chain_leads_from_the_main_loop_to_the_device() {
        let said = lines(
            "Temporary breakpoint 1 at 0x55d33b025830
kickpath: ready

Thread 1 \"qemu-system-x86\" hit Temporary breakpoint 2, 0x000055d33b022700 in virtio_queue_host_notifier_read ()
[Current thread is 1 (Thread 0x7f8e590c9ec0 (LWP 8805))]
#0  0x000055d33b022700 in virtio_queue_host_notifier_read ()
#1  0x000055d33b25c6a8 in ?? ()
#2  0x000055d33b25cf42 in aio_dispatch ()
#3  0x00007f8e59c90000 in ?? () from /lib/x86_64-linux-gnu/libglib-2.0.so.0
#4  0x00007f8e59cdd719 in g_main_context_dispatch () from /lib/x86_64-linux-gnu/libglib-2.0.so.0
#5  0x000055d33b273308 in main_loop_wait ()
#6  0x00007f8e5971b24a in __libc_start_call_main (main=...) at ../sysdeps/nptl/libc_start_call_main.h:58
#7  0x000055d33ad02e51 in _start ()
[Inferior 1 (process 8805) detached]",
        );
        let stack = parse(&said, MAPS).unwrap();
        assert_eq!(stack.thread, 8805);
        assert_eq!(
            stack.functions,
            [
                "virtio_queue_host_notifier_read",
                "(static in qemu-system-x86_64)",
                "aio_dispatch",
                "(static in libglib-2.0.so.0.7400.6)",
                "g_main_context_dispatch",
                "main_loop_wait",
            ]
        );
    }

    #[test]
    fn a_chain_goes_through_translated_code_and_ends_at_what_nobody_knows() {
        let said = lines(
            "kickpath: ready
[Current thread is 4 (Thread 0x7f8e590c9ec0 (LWP 9))]
#0  virtio_queue_notify (vdev=..., n=...) at ../hw/virtio/virtio.c:2385
#1  0x000055d33b25c6a8 in memory_region_dispatch_write ()
#2  0x00007f0000000100 in code_gen_buffer ()
#3  0x000055d33b25c6a8 in cpu_exec ()
#4  0x00007f0000000200 in ?? ()
#5  0x000055d33b25c6a8 in main_loop_wait ()",
        );
        let stack = parse(&said, MAPS).unwrap();
        assert_eq!(
            stack.functions,
            [
                "virtio_queue_notify",
                "memory_region_dispatch_write",
                "code_gen_buffer (the guest's code, as TCG translated it)",
                "cpu_exec",
                "(unknown)",
            ]
        );
    }

    #[test]
    fn without_a_kick_or_a_permission_there_is_none() {
        let waits = "kickpath: ready\n[Current thread is 1 (process 7)]\n#0  0x00007f8e59c90000 in ppoll ()";
        assert!(matches!(
            parse(&lines(waits), MAPS),
            Err(StackError::NoKick)
        ));
        let refused =
            "warning: process 1 is a zombie\nptrace: Operation not permitted.\nNo symbol table.";
        let error = parse(&lines(refused), MAPS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "gdb says: ptrace: Operation not permitted."
        );
    }
}
