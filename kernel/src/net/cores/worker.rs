//! A core other than the first: its pair, its network stack and its loop.

use core::sync::atomic::Ordering;

use kickpath_abi::status::Status;
use kickpath_services::Stack;
use smoltcp::time::Instant;
use virtio_net::moderation::{HOLD_US, Moderation};
use virtio_net::net::Stats;
use virtio_net::vectors::Rung;
use x86_64::instructions::interrupts as interrupts_at_cpu;

use super::shared::{Assignment, Core, Mail, Shared};
use crate::arch::time;
use crate::net::device::PhyDevice;
use crate::net::report::Pair;
use crate::net::serve::now;
use crate::net::{idle, interrupts, report};

/// What another core than the first tells of itself.
#[derive(Clone, Copy)]
pub struct Own<'c> {
    shared: &'static Shared,
    core: &'static Core,
    /// What the core's earlier pairs have counted.
    past: &'c Stats,
}

impl Own<'_> {
    /// Tells what this core has counted.
    fn publish(&self, pair: &Pair) {
        let mut report = self.core.report.lock();
        report.device = pair.stats();
        report.device.interrupts = interrupts::of_other(self.core.cpu).interrupts();
        report.pair = *self.past;
        report.pair.add(&pair.stats());
        report.pair.interrupts = report.device.interrupts;
        report.queues = pair.snapshots().into_iter().collect();
    }

    /// Whether the pair is to be given back.
    #[inline]
    fn is_recalled(&self, assignment: &Assignment) -> bool {
        self.core.generation.load(Ordering::Relaxed) != assignment.generation
    }

    /// The report, with what this core knows now.
    pub fn status(&self, pair: Option<&Pair>) -> Status {
        if let Some(pair) = pair {
            self.publish(pair);
        }
        let mut status = self.shared.status.lock().clone();
        status.cpu = report::cpu();
        self.shared.complete(&mut status);
        status
    }
}

/// Another core than the first while it has a pair.
struct Worker<'c> {
    assignment: &'c mut Assignment,
    moderation: &'c mut Moderation,
    own: Own<'c>,
}

/// Serves the network on another core than the first, for ever.
pub(super) fn serve(shared: &'static Shared, core: &'static Core, number: usize) -> ! {
    let mut stack: Option<Stack> = None;
    let mut past = Stats::default();
    let mut moderation = Moderation::default();
    loop {
        let mut assignment = core.wait_for_pair();
        let own = Own {
            shared,
            core,
            past: &past,
        };
        let mut worker = Worker {
            assignment: &mut assignment,
            moderation: &mut moderation,
            own,
        };
        own.publish(&worker.assignment.pair);
        let stack = stack.get_or_insert_with(|| {
            let mac = worker.assignment.info.mac;
            let seed = time::cycles() ^ (number as u64) << 32;
            Stack::following(mac, &mut worker.device(), now(), seed)
        });
        interrupts_at_cpu::enable();
        let mut last_work = time::now();
        let error = loop {
            if own.is_recalled(worker.assignment) {
                break None;
            }
            if let Err(error) = worker.assignment.pair.begin_poll() {
                break Some(error);
            }
            let time = now();
            if core.has_mail() {
                worker.read_mail(number, stack, time);
            }
            let link_up = shared.link_up.get();
            if !link_up && !worker.assignment.pair.has_work() {
                // As on the first core: the sockets' clocks stand still.
                worker.assignment.pair.kick();
                worker.idle(None, last_work, link_up);
                continue;
            }
            let busy = stack.poll(time, &mut worker.device());
            // As on the first core: before the answers leave.
            for frame in stack.take_shared() {
                shared.spread(number, &frame);
            }
            shared.look_up_strays(number, stack, &mut worker.device());
            worker.assignment.pair.kick();
            if busy
                || worker
                    .moderation
                    .has_received(worker.assignment.pair.received())
            {
                last_work = time::now();
            }
            if busy {
                continue;
            }
            let deadline = idle::deadline(stack, time);
            worker.idle(deadline, last_work, link_up);
        };
        interrupts_at_cpu::disable();
        past.add(&assignment.pair.stats());
        {
            let mut report = core.report.lock();
            *core.returned.lock() = Some(assignment.pair);
            report.queues.clear();
            let interrupts = report.device.interrupts;
            report.device = Stats {
                interrupts,
                ..Stats::default()
            };
        }
        if let Some(error) = error
            && let Some(first) = shared.cores.first()
        {
            first.post(Mail::Broken(error));
        }
    }
}

impl Worker<'_> {
    /// The device as this core's network stack sees it.
    fn device(&mut self) -> PhyDevice<'_> {
        let Assignment { pair, info, .. } = &mut *self.assignment;
        PhyDevice::own(pair, info, self.own)
    }

    #[cold]
    fn read_mail(&mut self, number: usize, stack: &mut Stack, time: Instant) {
        let Own { shared, core, .. } = self.own;
        while let Some(mail) = core.next_mail() {
            match mail {
                Mail::Frame(frame) => stack.hear(time, &frame),
                Mail::Stray(stray) => shared.look_up(number, stray, stack, &mut self.device()),
                Mail::Ipv4(state) => stack.follow_ipv4(time, state),
                Mail::Broken(_) => (),
            }
        }
    }

    /// Sleeps until there may be something to do: an interrupt, or `deadline`
    /// in microseconds since boot.
    fn idle(&mut self, deadline: Option<u64>, last_work: u64, link_up: bool) {
        let now = time::now();
        let received = self.assignment.pair.received();
        let leave = self.moderation.frames_to_leave(now, received);
        let polling = self.assignment.rung == Rung::Polling;
        let mut deadline = deadline.unwrap_or(u64::MAX);
        if polling {
            let Some(until) = idle::poll_sleep_until(now, last_work) else {
                core::hint::spin_loop();
                return;
            };
            deadline = deadline.min(until);
        } else if leave > 0 {
            deadline = deadline.min(now + HOLD_US);
        }
        self.own.publish(&self.assignment.pair);
        let Self {
            assignment,
            moderation,
            own,
        } = self;
        idle::sleep(moderation, now, deadline, leave, || {
            let pair = &mut assignment.pair;
            let work = if polling {
                pair.has_work()
            } else {
                pair.enable_interrupts_after(leave)
            };
            work || own.core.has_mail()
                || own.is_recalled(assignment)
                || own.shared.link_up.get() != link_up
        });
    }
}
