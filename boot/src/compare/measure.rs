//! The measurements behind a pair of rows.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use kickpath_abi::config::Bench;
use serde::Deserialize;
use serde_json::Value;

use super::{BURSTS, Handler, Row, Way};
use crate::bench::{self, BenchOptions, UdpEcho};
use crate::guest::Guest;
use crate::publish;
use crate::qemu::{Accel, Machine, Net, Trace};
use crate::scratch::Scratch;
use crate::session::{Prepared, SessionError};
use crate::trace::capture;
use crate::trace::kvm::parse::KvmRecord;
use crate::trace::kvm::{self, HostTrace};
use crate::trace::qemu::{self, threads};

/// The event by which QEMU says that it handles a kick.
const NOTIFY: &str = "virtio_queue_notify";

/// Index of the queue that is kicked: transmitq1.
const TRANSMIT_QUEUE: u16 = 1;

/// Content bytes of an echo.
const ECHO_SIZE: usize = 64;

/// What is measured together.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    pub way: Way,
    pub ioeventfd: bool,
    pub event_idx: bool,
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on| if on { "on" } else { "off" };
        write!(
            f,
            "the kick by {}, ioeventfd {}, EVENT_IDX {}",
            self.way.title(),
            word(self.ioeventfd),
            word(self.event_idx)
        )
    }
}

impl Conditions {
    /// As a user has it who asks for nothing.
    pub const fn usual(way: Way) -> Self {
        Self {
            way,
            ioeventfd: true,
            event_idx: true,
        }
    }

    fn apply(self, machine: &mut Machine) {
        if let Some(nic) = &mut machine.nic {
            nic.ioeventfd = Some(self.ioeventfd);
            if self.way == Way::ModernPort {
                let property = ("modern-pio-notify".to_owned(), "on".to_owned());
                nic.properties.push(property);
            }
        }
        if !self.event_idx {
            let off = &mut machine.config.features_off;
            let separator = if off.is_empty() { "" } else { "," };
            *off += separator;
            *off += "event_idx";
        }
    }
}

/// What the guest counted of one burst length.
#[derive(Clone, Debug, Deserialize)]
struct KickSums {
    packets: u64,
    kicks: u64,
    register_accesses: u64,
    kick_cycles: u64,
    driver_cycles: u64,
}

#[derive(Deserialize)]
struct GuestLine {
    kick: Vec<KickSums>,
}

/// Measures the rows of these conditions, one a burst length. Also
/// returns what could not be recorded, and why.
pub fn rows(
    prepared: &Prepared,
    conditions: Conditions,
    echoes: u64,
) -> Result<(Vec<Row>, Vec<String>), SessionError> {
    let exact = exactly(prepared);
    let counted = kicks(&exact, conditions)?;
    let timed = kicks(prepared, conditions)?;
    let mut rows = Vec::new();
    for (burst, count) in BURSTS.into_iter().zip(&counted.sums) {
        let (echo, access) = traffic(&exact, conditions, burst, echoes)?;
        rows.push(Row {
            way: conditions.way,
            access,
            ioeventfd: conditions.ioeventfd,
            event_idx: conditions.event_idx,
            burst,
            instructions_per_kick: per(count.kick_cycles, count.kicks),
            instructions_per_packet: per(count.driver_cycles, count.packets),
            accesses_per_kick: per(count.register_accesses, count.kicks),
            kicks_per_packet: echo.per_packet.kicks,
            interrupts_per_packet: echo.per_packet.interrupts,
            userspace_exits_per_kick: timed.exits.as_ref().copied().unwrap_or(None),
            handler: timed.handler.as_ref().ok().copied(),
        });
    }
    let exits = timed.exits.err();
    let exits = exits.map(|reason| format!("exits to QEMU a kick: {reason}"));
    let handler = timed.handler.err();
    let handler = handler.map(|reason| format!("who handled the kicks: {reason}"));
    Ok((rows, exits.into_iter().chain(handler).collect()))
}

/// The machine on which the time stamp counter counts instructions.
fn exactly(prepared: &Prepared) -> Prepared {
    let mut exact = prepared.clone();
    exact.machine.accel = Accel::Tcg;
    exact.machine.icount = Some(0);
    exact
}

/// What the guest measured of its kicks, and what was recorded of them outside.
struct Kicks {
    sums: Vec<KickSums>,
    /// Who handled the kicks, or why that is not known.
    handler: Result<Handler, String>,
    /// Exits to QEMU a kick, `None` on TCG; or why they were not recorded.
    exits: Result<Option<f64>, String>,
}

/// The machine of these conditions, on a cable that anybody may make.
pub fn command_line(prepared: &Prepared, conditions: Conditions) -> String {
    let mut prepared = prepared.clone();
    prepared.attach(Net::dgram_to_paste());
    conditions.apply(&mut prepared.machine);
    prepared.machine.config.bench = Bench::Kick;
    publish::shorten(&prepared.machine.command_line())
}

/// Has the guest measure its kicks.
fn kicks(prepared: &Prepared, conditions: Conditions) -> Result<Kicks, SessionError> {
    let directory = Scratch::new("compare")?;
    let edit = |machine: &mut Machine| {
        conditions.apply(machine);
        // Until KVM's events are recorded.
        machine.paused = matches!(machine.accel, Accel::Kvm { .. });
        machine.trace = Some(Trace {
            events: vec![NOTIFY.to_owned()],
            directory: directory.path().to_owned(),
        });
    };
    let mut recording = None;
    let mut main = 0;
    let launched = |guest: &Guest| {
        let threads = capture::threads_of(guest, prepared.machine.vmm);
        main = threads.main;
        if let Accel::Kvm { .. } = prepared.machine.accel {
            recording = Some(HostTrace::start(&threads));
            guest.qmp("cont", Value::Null)?;
        }
        Ok(())
    };
    let (line, guest) = bench::alone(prepared.clone(), Bench::Kick, edit, launched)?;
    let exits = recording.map(|started| started.and_then(HostTrace::stop));
    // QEMU leaves out of its log what does not fit.
    directory.check_room()?;
    let GuestLine { kick: sums } =
        bench::parse_line(&line).map_err(|error| bench::wrong(&guest, &error))?;
    Ok(Kicks {
        sums,
        handler: handler(directory.path(), main),
        exits: match exits {
            Some(Ok(recorded)) => Ok(userspace_exits_per_kick(&kvm::parse::parse(&recorded.text))),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(None),
        },
    })
}

/// Has the guest answer UDP echoes, `burst` on their way at a time. Returns the
/// doorbell's access as well.
fn traffic(
    prepared: &Prepared,
    conditions: Conditions,
    burst: u16,
    echoes: u64,
) -> Result<(UdpEcho, String), SessionError> {
    let options = BenchOptions {
        echoes,
        size: ECHO_SIZE,
        outstanding: usize::from(burst),
        ..BenchOptions::default()
    };
    let edit = |machine: &mut Machine| conditions.apply(machine);
    let (echo, _, status) = bench::echo(prepared.clone(), &options, edit)?;
    Ok((echo, status.device.doorbell))
}

/// Which threads QEMU says handled the kicks of the transmit queue: `main` runs its main loop.
fn handler(logs: &Path, main_loop: u32) -> Result<Handler, String> {
    let logs = threads::read(logs).map_err(|error| format!("QEMU's log: {error}"))?;
    let log = qemu::parse(&threads::merge(&logs).0);
    let kicks = log.records.iter().filter(|record| {
        record.event == NOTIFY && record.number("n") == Some(TRANSMIT_QUEUE.into())
    });
    let (main, vcpu): (Vec<_>, Vec<_>) = kicks.partition(|record| record.thread == main_loop);
    match (main.is_empty(), vcpu.is_empty()) {
        (true, true) => Err(match log.unread.first() {
            Some(line) => format!("this line of QEMU's log is unknown: {line}"),
            None => format!("QEMU's log has no {NOTIFY}"),
        }),
        _ if main_loop == 0 => Err("QEMU does not tell the numbers of its threads".to_owned()),
        (false, true) => Ok(Handler::MainLoop),
        (true, false) => Ok(Handler::VcpuThread),
        (false, false) => Ok(Handler::Both),
    }
}

/// Exits to QEMU a kick, by the events of KVM that its buffers still hold. In
/// this measurement nothing is written as often as the doorbell.
fn userspace_exits_per_kick(records: &[KvmRecord]) -> Option<f64> {
    let mut writes: HashMap<u64, u64> = HashMap::new();
    for (address, _) in records.iter().filter_map(KvmRecord::write) {
        *writes.entry(address).or_default() += 1;
    }
    let (&doorbell, &kicks) = writes.iter().max_by_key(|(_, count)| **count)?;
    let mut exits = 0;
    // Of each thread, whether its last access was the doorbell's.
    let mut kicked: HashMap<u32, bool> = HashMap::new();
    for record in records {
        if ["kvm_pio", "kvm_mmio", "kvm_fast_mmio"].contains(&record.event.as_str()) {
            let rang = record
                .write()
                .is_some_and(|(address, _)| address == doorbell);
            kicked.insert(record.thread, rang);
        } else if record.event == "kvm_userspace_exit"
            && ["KVM_EXIT_IO", "KVM_EXIT_MMIO"]
                .iter()
                .any(|reason| record.text.contains(reason))
            && kicked.insert(record.thread, false) == Some(true)
        {
            exits += 1;
        }
    }
    Some(per(exits, kicks))
}

fn per(sum: u64, count: u64) -> f64 {
    sum as f64 / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_tells_the_handler() {
        const KICK: &str = "2026-11-29T04:02:26Z virtio_queue_notify vdev 0x1 n 1 vq 0x2\n";
        // The receive queue's kicks are not asked for.
        const OTHER: &str = "8@1.000001:virtio_queue_notify vdev 0x1 n 0 vq 0x2\n";
        const UNKNOWN: &str = "virtio_queue_notify of a form that is not known\n";
        let handled = |main: &str, vcpu: &str| {
            let directory = tempfile::tempdir().unwrap();
            for (thread, text) in [(7, main), (8, vcpu)] {
                let file = directory.path().join(format!("qemu-thread-{thread}.log"));
                std::fs::write(file, text).unwrap();
            }
            handler(directory.path(), 7)
        };
        assert_eq!(handled(KICK, OTHER), Ok(Handler::MainLoop));
        assert_eq!(handled("", KICK), Ok(Handler::VcpuThread));
        assert_eq!(handled(KICK, KICK), Ok(Handler::Both));
        assert!(
            handled("", OTHER)
                .unwrap_err()
                .contains("has no virtio_queue_notify")
        );
        let unknown = handled(UNKNOWN, OTHER).unwrap_err();
        assert!(unknown.contains(UNKNOWN.trim_end()), "{unknown}");
        let none = handler(Path::new("/does/not/exist"), 7).unwrap_err();
        assert!(none.contains("No such file"), "{none}");
    }

    #[test]
    fn the_guests_sums_are_read() {
        let line = "kickpath: bench {\"kick\":[{\"burst\":32,\"packets\":64000,\"kicks\":2000,\
                    \"kicks_suppressed\":0,\"register_accesses\":2000,\"kick_cycles\":170000,\
                    \"driver_cycles\":4096000,\"batch_rounds\":100,\"journey_cycles\":[9000,6400,7000]}]}";
        let GuestLine { kick } = bench::parse_line(line).unwrap();
        assert_eq!(kick.len(), 1);
        assert_eq!(per(kick[0].kick_cycles, kick[0].kicks), 85.0);
        assert_eq!(per(5, 0), 5.0);
    }

    #[test]
    fn only_exits_that_follow_a_kick_count() {
        let text = "\
 CPU 0/KVM-9 [000] ..... 1: kvm_pio: pio_write at 0xcf8 size 4 count 1 val 0x80000000
 CPU 0/KVM-9 [000] ..... 2: kvm_userspace_exit: reason KVM_EXIT_IO (2)
 CPU 0/KVM-9 [000] ..... 3: kvm_pio: pio_write at 0xc010 size 2 count 1 val 0x1
 CPU 0/KVM-9 [000] ..... 4: kvm_userspace_exit: reason KVM_EXIT_IO (2)
 CPU 0/KVM-9 [000] ..... 5: kvm_userspace_exit: reason KVM_EXIT_IO (2)
 CPU 0/KVM-9 [000] ..... 6: kvm_pio: pio_write at 0xc010 size 2 count 1 val 0x1
 CPU 0/KVM-9 [000] ..... 7: kvm_userspace_exit: reason KVM_EXIT_INTR (10)
 CPU 0/KVM-9 [000] ..... 8: kvm_pio: pio_read at 0xcfc size 4 count 1 val 0x1
";
        let records = kvm::parse::parse(text);
        assert_eq!(records.len(), 8);
        assert_eq!(userspace_exits_per_kick(&records), Some(0.5));
        assert_eq!(userspace_exits_per_kick(&[]), None);
    }
}
