//! The measurements behind a pair of rows.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use kickpath_abi::config::Bench;
use serde::Deserialize;
use serde_json::Value;

use super::{BURSTS, Handler, Row, Way};
use crate::bench::{self, BenchOptions, UdpEcho};
use crate::guest::Guest;
use crate::qemu::{Accel, Machine, Net, Trace};
use crate::session::{Prepared, SessionError};
use crate::trace::kvm::parse::KvmRecord;
use crate::trace::kvm::{self, HostTrace};
use crate::trace::{capture, qemu};

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
    burst: u16,
    packets: u64,
    kicks: u64,
    register_accesses: u64,
    kick_cycles: u64,
    driver_cycles: u64,
    batch_rounds: u64,
    journey_cycles: Vec<u64>,
}

impl KickSums {
    /// Cycles from a kick until the device had used the burst, a packet, of
    /// the batch that the host disturbed least.
    fn journey(&self) -> f64 {
        let best = self.journey_cycles.iter().copied().min().unwrap_or(0);
        per(best, self.batch_rounds * u64::from(self.burst))
    }
}

#[derive(Deserialize)]
struct GuestLine {
    kick: Vec<KickSums>,
}

/// Measures the rows of these conditions, one a burst length. Their cost is in
/// cycles yet. Also returns why KVM's events could not be recorded, if so.
pub fn rows(
    prepared: &Prepared,
    conditions: Conditions,
    echoes: u64,
) -> Result<(Vec<Row>, Option<String>), SessionError> {
    let exact = exactly(prepared);
    let counted = kicks(&exact, conditions)?;
    let timed = kicks(prepared, conditions)?;
    let mut rows = Vec::new();
    for ((burst, count), time) in BURSTS.into_iter().zip(&counted.sums).zip(&timed.sums) {
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
            handler: timed.handler,
            cost: Some(time.journey()),
        });
    }
    Ok((rows, timed.exits.err()))
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
    handler: Option<Handler>,
    /// Exits to QEMU a kick, `None` on TCG; or why they were not recorded.
    exits: Result<Option<f64>, String>,
}

/// The machine of these conditions, on a cable that anybody may make.
pub fn command_line(prepared: &Prepared, conditions: Conditions) -> String {
    let mut prepared = prepared.clone();
    prepared.attach(Net::dgram_to_paste());
    conditions.apply(&mut prepared.machine);
    prepared.machine.config.bench = Bench::Kick;
    prepared.machine.command_line()
}

/// Has the guest measure its kicks.
fn kicks(prepared: &Prepared, conditions: Conditions) -> Result<Kicks, SessionError> {
    let directory = tempfile::Builder::new()
        .prefix("kickpath-compare-")
        .tempdir()?;
    let file = directory.path().join("qemu.log");
    let edit = |machine: &mut Machine| {
        conditions.apply(machine);
        // Until KVM's events are recorded.
        machine.paused = matches!(machine.accel, Accel::Kvm { .. });
        machine.trace = Some(Trace {
            events: vec![NOTIFY.to_owned()],
            file: file.clone(),
        });
    };
    let mut recording = None;
    let launched = |guest: &Guest| {
        if let Accel::Kvm { .. } = prepared.machine.accel {
            recording = Some(HostTrace::start(&capture::threads(guest)));
            guest.qmp("cont", Value::Null)?;
        }
        Ok(())
    };
    let (line, guest) = bench::alone(prepared.clone(), Bench::Kick, edit, launched)?;
    let exits = recording.map(|started| started.and_then(HostTrace::stop));
    let GuestLine { kick: sums } =
        bench::parse_line(&line).map_err(|error| bench::wrong(&guest, &error))?;
    Ok(Kicks {
        sums,
        handler: handler(&file, guest.pid()),
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
    };
    let edit = |machine: &mut Machine| conditions.apply(machine);
    let (echo, _, status) = bench::echo(prepared.clone(), options, edit)?;
    Ok((echo, status.device.doorbell))
}

/// Which threads QEMU says handled the kicks of the transmit queue. Its main
/// loop runs in the process's first thread.
fn handler(log: &Path, pid: u32) -> Option<Handler> {
    let log = fs::read(log).ok()?;
    let log = qemu::parse(&String::from_utf8_lossy(&log));
    let kicks = log.records.iter().filter(|record| {
        record.event == NOTIFY && record.number("n") == Some(TRANSMIT_QUEUE.into())
    });
    let (main, vcpu): (Vec<_>, Vec<_>) = kicks.partition(|record| record.thread == pid);
    match (main.is_empty(), vcpu.is_empty()) {
        (true, true) => None,
        (false, true) => Some(Handler::MainLoop),
        (true, false) => Some(Handler::VcpuThread),
        (false, false) => Some(Handler::Both),
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
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let kick = |thread| format!("{thread}@1.000001:virtio_queue_notify vdev 0x1 n 1 vq 0x2\n");
        // The receive queue's kicks are not asked for.
        let other = "8@1.000001:virtio_queue_notify vdev 0x1 n 0 vq 0x2\n";
        for (text, expected) in [
            (other.to_owned(), None),
            (kick(7) + other, Some(Handler::MainLoop)),
            (kick(8) + other, Some(Handler::VcpuThread)),
            (kick(7) + &kick(8), Some(Handler::Both)),
        ] {
            fs::write(&log, text).unwrap();
            assert_eq!(handler(&log, 7), expected);
        }
        assert_eq!(handler(&directory.path().join("none"), 7), None);
    }

    #[test]
    fn the_batch_that_was_disturbed_least_counts() {
        let line = "kickpath: bench {\"kick\":[{\"burst\":32,\"packets\":64000,\"kicks\":2000,\
                    \"kicks_suppressed\":0,\"register_accesses\":2000,\"kick_cycles\":170000,\
                    \"driver_cycles\":4096000,\"batch_rounds\":100,\"journey_cycles\":[9000,6400,7000]}]}";
        let GuestLine { kick } = bench::parse_line(line).unwrap();
        assert_eq!(kick.len(), 1);
        assert_eq!(kick[0].journey(), 2.0);
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
