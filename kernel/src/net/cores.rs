//! Several CPUs, each with a queue pair, a network stack and its services, and
//! nothing shared between them on the way of a packet.
//!
//! The CPU that booted ("the first core") owns the device: it opens it, hands
//! the pairs out, and calls them back before it opens it again. A flow stays
//! on the core where it arrived, because the device sends its packets to the
//! pair by which it was last answered (see `virtio_net::net::flow`), or with
//! RSS to the pair that the table says (see `virtio_net::net::rss`).
//!
//! What all must know and one alone hears goes by [`Mail`], a bounded box for
//! each core: frames of address resolution and router advertisements, which
//! only the core that received them answers, and the address that the first
//! core's DHCP client got. When a box is full, a frame is lost, as on any cable.
//! Mail takes its time, and may be lost: a core to which a packet comes before it
//! has heard who the sender is keeps the answer back, and asks itself.
//!
//! A device may move a flow: it forgets, and it is told of the pairs anew when
//! it is opened again. A TCP segment whose connection is on another core goes
//! from core to core by mail until one has it; its answer leads the next one
//! there. Only what none has is answered by RST. Other services do not care.

mod team;
mod worker;

pub use team::Mail;

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use kickpath_abi::config::{Config, UdpWay};
use kickpath_abi::status::Status;
use kickpath_services::{Ipv4State, Stack};
use virtio_net::net::Stats;

use super::device::Nic;
use super::interrupts;
use crate::arch::{self, percpu, smp, time};
use crate::memory::heap;
use team::{Assignment, Core, Team};

/// Heap that a core with its pair takes, in bytes: sockets, rings and frame
/// buffers.
const CORE_MEMORY: u64 = 6 << 20;
/// How long the other cores may take to give their pairs back, in
/// microseconds. A turn of theirs takes much less; a host that is busy may not
/// let them run.
const RECALL_US: u64 = 2_000_000;

/// How many pairs this machine can make use of: one a CPU, as far as the
/// memory goes. A host of a VLAN, and one that sends its log, has one.
pub fn wanted_pairs(config: &Config) -> u16 {
    let cpus = percpu::all().len();
    if config.vlan.is_some() || config.netconsole.is_some() {
        return 1;
    }
    let heap = heap::stats();
    let room = heap.size.saturating_sub(heap.used) / CORE_MEMORY;
    let pairs = cpus.min(usize::try_from(room).unwrap_or(cpus)).max(1);
    if pairs < cpus {
        log::warn!("memory for {pairs} network cores only, on {cpus} CPUs");
    }
    // There are at most `layout::MAX_CPUS`.
    pairs as u16
}

/// The other cores, as the first one sees them.
pub struct Cores {
    pub team: &'static Team,
    /// The IPv4 address that they were told.
    ipv4: Option<Ipv4State>,
    /// How many of them have not said yet that they know it.
    unaware: usize,
    /// What the first pair counted before the device was opened again.
    past: Stats,
}

impl Cores {
    /// Starts a network stack on as many CPUs as the device has pairs. They
    /// wait for [`Self::hand_out`].
    pub fn start(pairs: usize, udp: UdpWay) -> Self {
        let team: &'static Team = Box::leak(Box::new(Team::new(pairs, udp)));
        for (number, core) in team.cores.iter().enumerate().skip(1) {
            smp::run_on(
                core.cpu,
                Box::new(move || worker::serve(team, core, number)),
            );
        }
        Self {
            team,
            ipv4: None,
            unaware: 0,
            past: Stats::default(),
        }
    }

    /// Every core but the first, with its number.
    fn others(&self) -> impl Iterator<Item = (usize, &'static Core)> {
        self.team.cores.iter().enumerate().skip(1)
    }

    /// Gives the pairs of an open device to the cores.
    pub fn hand_out(&self, nic: &mut Nic) {
        let (info, Some(rung)) = (*nic.info(), nic.rung()) else {
            return;
        };
        // A device that was opened again may use fewer.
        let others = usize::from(nic.queue_pairs()).saturating_sub(1);
        for (number, core) in self.others().take(others) {
            // Should the core have been too late the last time.
            if let Some(pair) = core.returned.lock().take() {
                nic.give_back(pair);
            }
            let Ok(pair) = nic.take_pair(number) else {
                break;
            };
            core.is_out.store(true, Ordering::Relaxed);
            *core.assignment.lock() = Some(Assignment {
                pair,
                info,
                rung,
                generation: core.generation.load(Ordering::Relaxed),
            });
            arch::interrupts::wake(core.cpu);
        }
    }

    /// Takes the pairs back, before the device is stopped.
    pub fn recall(&mut self, nic: &mut Nic) {
        for (_, core) in self.others() {
            core.generation.fetch_add(1, Ordering::AcqRel);
            arch::interrupts::wake(core.cpu);
        }
        let limit = time::now() + RECALL_US;
        for (number, core) in self.others() {
            while core.is_out.load(Ordering::Relaxed) {
                // It may not have been fetched yet.
                let waiting = core.assignment.lock().take();
                let pair = waiting.map(|waiting| waiting.pair);
                if let Some(pair) = pair.or_else(|| core.returned.lock().take()) {
                    nic.give_back(pair);
                    core.is_out.store(false, Ordering::Relaxed);
                } else if time::now() > limit {
                    log::error!("core {number} does not give its queue pair back");
                    break;
                } else {
                    core::hint::spin_loop();
                }
            }
        }
        if let Some(first) = nic.first_pair() {
            self.past.add(&first.stats());
        }
    }

    #[inline]
    pub fn has_mail(&self) -> bool {
        self.team.cores.first().is_some_and(Core::has_mail)
    }

    pub fn next_mail(&self) -> Option<Mail> {
        self.team.cores.first()?.next_mail()
    }

    /// Tells the others what the first core's stack has learnt.
    pub fn share(&mut self, stack: &mut Stack) {
        for frame in stack.take_shared() {
            self.team.spread(0, &frame);
        }
        let ipv4 = stack.ipv4();
        if self.ipv4 != Some(ipv4) {
            self.ipv4 = Some(ipv4);
            self.unaware = self.others().filter(|(_, core)| core.has_pair()).count();
            for (_, core) in self.others() {
                core.post(Mail::Ipv4(ipv4));
            }
        }
    }

    /// One of the others has this address now.
    pub fn one_knows(&mut self, ipv4: Ipv4State) {
        if self.ipv4 == Some(ipv4) {
            self.unaware = self.unaware.saturating_sub(1);
        }
    }

    /// Whether a packet to the address is answered on whichever core it arrives.
    pub fn all_know(&self) -> bool {
        self.unaware == 0
    }

    /// Tells what the first core has counted, and makes the report complete.
    pub fn complete(&self, status: &mut Status, nic: &Nic) {
        self.publish(nic);
        self.team.complete(status);
    }

    /// Makes the first core's part of the report known to the others, and
    /// whether the link is up.
    pub fn publish_status(&self, status: Status, link_up: bool) {
        *self.team.status.lock() = status;
        if self.team.link_up.0.swap(link_up, Ordering::AcqRel) != link_up {
            for (_, core) in self.others() {
                arch::interrupts::wake(core.cpu);
            }
        }
    }

    /// Tells what the first core has counted.
    pub fn publish(&self, nic: &Nic) {
        let Some(core) = self.team.cores.first() else {
            return;
        };
        let mut report = core.report.lock();
        report.device = nic.stats();
        report.pair = self.past;
        if let Some(first) = nic.first_pair() {
            report.pair.add(&first.stats());
        }
        report.pair.interrupts = interrupts::STATE.interrupts();
        report.queues = nic.snapshots().take(3).collect();
    }
}
