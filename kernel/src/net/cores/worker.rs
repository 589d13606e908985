//! A core other than the first: its pair, and its network stack, which follows
//! that of the first core.

use core::sync::atomic::Ordering;

use kickpath_abi::status::Status;
use kickpath_services::Stack;
use smoltcp::time::Instant;
use virtio_net::interrupt::InterruptState;
use virtio_net::net::Stats;
use virtio_net::queue::QueueError;
use virtio_net::vectors::Rung;
use x86_64::instructions::interrupts as interrupts_at_cpu;

use super::team::{Assignment, Core, Mail, Team};
use crate::arch::time;
use crate::memory::heap;
use crate::net::device::NetDevice;
use crate::net::idle::now;
use crate::net::report::Pair;
use crate::net::serve::{self, Part};
use crate::net::{interrupts, report};

/// A core while it has a pair.
struct Worker {
    team: &'static Team,
    core: &'static Core,
    number: usize,
    assignment: Assignment,
    /// What the core's earlier pairs have counted.
    past: Stats,
    link_up: bool,
    /// Why the pair cannot be used any more.
    broken: Option<QueueError>,
}

/// Serves the network on another core than the first, for ever.
pub(super) fn serve(team: &'static Team, core: &'static Core, number: usize) -> ! {
    let mut stack: Option<Stack> = None;
    let mut past = Stats::default();
    loop {
        let mut worker = Worker {
            team,
            core,
            number,
            assignment: core.wait_for_pair(),
            past,
            link_up: true,
            broken: None,
        };
        worker.publish();
        let stack = stack.get_or_insert_with(|| {
            let mac = worker.assignment.info.mac;
            let seed = time::cycles() ^ (number as u64) << 32;
            let mut stack = Stack::following(team.udp, mac, &mut worker.device(), now(), seed);
            stack.set_heap(heap::stats().share(team.cores.len() as u16));
            stack
        });
        interrupts_at_cpu::enable();
        serve::serve(&mut worker, stack);
        interrupts_at_cpu::disable();
        past.add(&worker.assignment.pair.stats());
        worker.give_back();
    }
}

impl Worker {
    /// Gives the pair back, and says why if it broke.
    fn give_back(self) {
        {
            let mut report = self.core.report.lock();
            *self.core.returned.lock() = Some(self.assignment.pair);
            report.queues.clear();
            let interrupts = report.device.interrupts;
            report.device = Stats::default();
            report.device.interrupts = interrupts;
        }
        if let Some(error) = self.broken
            && let Some(first) = self.team.cores.first()
        {
            first.post(Mail::Broken(error));
        }
    }

    #[cold]
    fn read_mail(&mut self, stack: &mut Stack, time: Instant) {
        while let Some(mail) = self.core.next_mail() {
            match mail {
                Mail::Frame(frame) => stack.receive_shared(time, &frame),
                Mail::Stray(stray) => {
                    let (team, number) = (self.team, self.number);
                    team.look_up(number, stray, stack, &mut self.device());
                }
                Mail::Ipv4(state) => {
                    stack.follow_ipv4(time, state);
                    if let Some(first) = self.team.cores.first() {
                        first.post(Mail::Ipv4(state));
                    }
                }
                Mail::Broken(_) => (),
            }
        }
    }

    /// Whether the pair is to be given back.
    #[inline]
    fn is_recalled(&self) -> bool {
        self.core.generation.load(Ordering::Relaxed) != self.assignment.generation
    }
}

impl Part for Worker {
    #[inline]
    fn begin(&mut self, _stack: &mut Stack) -> bool {
        if self.is_recalled() {
            return false;
        }
        let link_up = self.team.link_up.get();
        if link_up && !self.link_up {
            self.assignment.pair.notify_again();
        }
        self.link_up = link_up;
        self.broken = self.assignment.pair.begin_poll().err();
        self.broken.is_none()
    }

    #[inline]
    fn device(&mut self) -> NetDevice<'_> {
        NetDevice::own(&mut self.assignment.pair, &self.assignment.info)
    }

    #[inline]
    fn pair(&mut self) -> Option<&mut Pair> {
        Some(&mut self.assignment.pair)
    }

    #[inline]
    fn interrupts(&self) -> &'static InterruptState {
        interrupts::of_other(self.core.cpu)
    }

    #[inline]
    fn is_link_up(&self) -> bool {
        self.link_up
    }

    #[inline]
    fn talk(&mut self, time: Instant, stack: &mut Stack) {
        for frame in stack.take_shared() {
            self.team.spread(self.number, &frame);
        }
        if self.core.has_mail() {
            self.read_mail(stack, time);
        }
        let (team, number) = (self.team, self.number);
        team.look_up_strays(number, stack, &mut self.device());
    }

    /// The report of the first core, with what this one knows now.
    #[cold]
    fn status(&mut self) -> Status {
        self.publish();
        let mut status = self.team.status.lock().clone();
        status.cpu = report::cpu();
        self.team.complete(&mut status);
        status
    }

    #[inline]
    fn rung(&self) -> Option<Rung> {
        Some(self.assignment.rung)
    }

    fn publish(&self) {
        let pair = &self.assignment.pair;
        let mut report = self.core.report.lock();
        report.device = pair.stats();
        report.device.interrupts = self.interrupts().interrupts();
        report.pair = self.past;
        report.pair.add(&pair.stats());
        report.pair.interrupts = report.device.interrupts;
        report.queues = pair.snapshots().into_iter().collect();
    }

    #[inline]
    fn is_called(&mut self, frames_to_leave: u16) -> bool {
        let pair = &mut self.assignment.pair;
        let work = match self.assignment.rung {
            Rung::Polling => pair.has_work(),
            _ => pair.enable_interrupts_after(frames_to_leave),
        };
        work || self.core.has_mail()
            || self.is_recalled()
            || self.team.link_up.get() != self.link_up
    }
}
