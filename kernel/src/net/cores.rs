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

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heapless::Deque;
use kickpath_abi::config::Config;
use kickpath_abi::status::{self, CpuLoad, Status};
use kickpath_services::{Ipv4State, Stack};
use kickpath_trace::{Event, NO_QUEUE, tracepoint_unless_repeated};
use smoltcp::time::Instant;
use spin::Mutex;
use virtio_net::moderation::{HOLD_US, Moderation};
use virtio_net::net::{DeviceInfo, QueueSnapshot, Stats, TakenPair};
use virtio_net::queue::QueueError;
use virtio_net::vectors::Rung;
use x86_64::instructions::interrupts as interrupts_at_cpu;

use super::device::{Nic, PhyDevice};
use super::report::{NicRest, Pair};
use super::serve::{now, poll_sleep_until};
use super::{interrupts, report};
use crate::arch::percpu::{self, PerCpu};
use crate::arch::{self, smp, time};
use crate::memory::KernelHal;
use crate::memory::heap;
use crate::memory::layout::MAX_CPUS;

/// Frames that fit a core's box.
const FRAMES: usize = 32;
/// What fits a core's box: frames leave room for what must not be lost. That is
/// one word of each core, and addresses.
const MAIL: usize = FRAMES + MAX_CPUS + 16;
/// Heap that a core with its pair takes, in bytes: sockets, rings and frame
/// buffers.
const CORE_MEMORY: u64 = 6 << 20;
/// How long the other cores may take to give their pairs back, in
/// microseconds. A turn of theirs takes much less; a host that is busy may not
/// let them run.
const RECALL_US: u64 = 2_000_000;

/// What one core tells another.
pub enum Mail {
    /// A frame that concerns every core.
    Frame(Box<[u8]>),
    /// The IPv4 address of all.
    Ipv4(Ipv4State),
    /// A core's pair broke by this, and was given back.
    Broken(QueueError),
}

/// What a core works with.
struct Assignment {
    pair: TakenPair<KernelHal>,
    info: DeviceInfo,
    rung: Rung,
    /// [`Core::generation`] when it was handed out.
    generation: u64,
}

/// What a core last told of itself.
#[derive(Default)]
struct CoreReport {
    /// What its pair has counted since the device was opened; of the first
    /// core, what the whole device has counted but for the other cores' pairs.
    device: Stats,
    /// What its pairs have counted since boot.
    pair: Stats,
    /// Its queues.
    queues: heapless::Vec<QueueSnapshot, 3>,
}

/// What the others see of a core. Between two packets the core looks at
/// `has_mail` and `generation`, which are written only when there is something
/// to say; nothing else is shared on the way of a packet. Two cores have no
/// cache line in common, nor the pair of lines that a CPU fetches at once.
#[repr(align(128))]
struct Core {
    cpu: &'static PerCpu,
    has_mail: AtomicBool,
    mail: Mutex<Deque<Mail, MAIL>>,
    mail_lost: AtomicU64,
    /// Counts up when the core is to give its pair back.
    generation: AtomicU64,
    /// Whether the core has a pair, as far as the first core knows.
    is_out: AtomicBool,
    /// For the core to take.
    assignment: Mutex<Option<Assignment>>,
    /// For the first core to take.
    returned: Mutex<Option<TakenPair<KernelHal>>>,
    report: Mutex<CoreReport>,
}

impl Core {
    fn new(cpu: &'static PerCpu) -> Self {
        Self {
            cpu,
            mail: Mutex::new(Deque::new()),
            has_mail: AtomicBool::new(false),
            mail_lost: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            is_out: AtomicBool::new(false),
            assignment: Mutex::new(None),
            returned: Mutex::new(None),
            report: Mutex::new(CoreReport::default()),
        }
    }

    fn post(&self, mail: Mail) {
        let mut queue = self.mail.lock();
        let has_room = queue.len() < FRAMES || !matches!(mail, Mail::Frame(_));
        if !has_room || queue.push_back(mail).is_err() {
            self.mail_lost.fetch_add(1, Ordering::Relaxed);
        }
        drop(queue);
        // Who has not emptied its box since then knows already.
        if !self.has_mail.swap(true, Ordering::AcqRel) {
            arch::interrupts::wake(self.cpu);
        }
    }

    #[inline]
    fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Relaxed)
    }

    /// The next mail; `None` when the box is empty.
    fn next_mail(&self) -> Option<Mail> {
        let mut queue = self.mail.lock();
        let mail = queue.pop_front();
        if mail.is_none() {
            self.has_mail.store(false, Ordering::Release);
        }
        mail
    }

    /// Waits, with interrupts disabled, until there is a pair.
    fn wait_for_pair(&self) -> Assignment {
        loop {
            if let Some(assignment) = self.assignment.lock().take() {
                return assignment;
            }
            arch::idle_until(None);
        }
    }
}

/// What all cores share, not on the way of a packet.
struct Shared {
    /// By their numbers; the first core is one of them.
    cores: Vec<Core>,
    /// The report as the first core last made it, for the parts of it that
    /// only that core knows.
    status: Mutex<Status>,
    link_up: LinkUp,
}

/// Every core looks at it between two packets, so nothing that is written more
/// often has its cache line.
#[repr(align(128))]
struct LinkUp(AtomicBool);

impl LinkUp {
    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Hands a frame that one core has received to all others.
    fn spread(&self, from: usize, frame: &[u8]) {
        for (number, core) in self.cores.iter().enumerate() {
            if number != from {
                core.post(Mail::Frame(frame.into()));
            }
        }
    }

    /// Adds what the cores have told of themselves.
    fn complete(&self, status: &mut Status) {
        let mut sum = Stats::default();
        status.pairs.clear();
        status.queues.clear();
        for (number, core) in self.cores.iter().enumerate() {
            let told = core.report.lock();
            sum.add(&told.device);
            status.pairs.push(status::Pair {
                number: number as u16,
                cpu: core.cpu.number() as u16,
                counters: report::counters(&told.pair),
                // At most all entries of the table.
                rss_entries: entries_of(status.rss.as_ref(), number) as u16,
                mail_lost: core.mail_lost.load(Ordering::Relaxed),
            });
            status.queues.extend(told.queues.iter().map(report::queue));
        }
        status.queues.sort_by_key(|queue| queue.index);
        status.counters = report::counters(&sum);
        status.cpus = cpus();
    }
}

/// Entries of the table that lead to a pair.
fn entries_of(rss: Option<&status::Rss>, number: usize) -> usize {
    let table = rss.into_iter().flat_map(|rss| &rss.table);
    table.filter(|pair| usize::from(**pair) == number).count()
}

/// What each CPU has done.
fn cpus() -> Vec<CpuLoad> {
    percpu::all()
        .iter()
        .map(|cpu| CpuLoad {
            number: cpu.number() as u16,
            apic_id: cpu.apic_id(),
            idle_cycles: cpu.idle_cycles(),
        })
        .collect()
}

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
    shared: &'static Shared,
    /// The IPv4 address that they were told.
    ipv4: Option<Ipv4State>,
    /// What the first pair counted before the device was opened again.
    past: Stats,
}

impl Cores {
    /// Starts a network stack on as many CPUs as the device has pairs. They
    /// wait for [`Self::hand_out`].
    pub fn start(pairs: usize) -> Self {
        let cores = percpu::all().iter().take(pairs);
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            cores: cores.map(|cpu| Core::new(cpu)).collect(),
            status: Mutex::default(),
            link_up: LinkUp(AtomicBool::new(true)),
        }));
        for (number, core) in shared.cores.iter().enumerate().skip(1) {
            smp::run_on(core.cpu, Box::new(move || serve(shared, core, number)));
        }
        Self {
            shared,
            ipv4: None,
            past: Stats::default(),
        }
    }

    /// Every core but the first, with its number.
    fn others(&self) -> impl Iterator<Item = (usize, &'static Core)> {
        self.shared.cores.iter().enumerate().skip(1)
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

    /// Whether the first core has mail.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.shared.cores.first().is_some_and(Core::has_mail)
    }

    /// The next mail of the first core.
    pub fn next_mail(&self) -> Option<Mail> {
        self.shared.cores.first()?.next_mail()
    }

    /// Tells the others what the first core's stack has learnt.
    pub fn share(&mut self, stack: &mut Stack) {
        for frame in stack.take_shared() {
            self.shared.spread(0, &frame);
        }
        let ipv4 = stack.ipv4();
        if self.ipv4 != Some(ipv4) {
            self.ipv4 = Some(ipv4);
            for (_, core) in self.others() {
                core.post(Mail::Ipv4(ipv4));
            }
        }
    }

    /// Tells what the first core has counted, and makes the report complete.
    pub fn complete(&self, status: &mut Status, first: Option<&Pair>, nic: &NicRest<'_>) {
        self.publish(first, nic);
        self.shared.complete(status);
    }

    /// Makes the first core's part of the report known to the others, and
    /// whether the link is up.
    pub fn publish_status(&self, status: Status, link_up: bool) {
        *self.shared.status.lock() = status;
        if self.shared.link_up.0.swap(link_up, Ordering::AcqRel) != link_up {
            for (_, core) in self.others() {
                arch::interrupts::wake(core.cpu);
            }
        }
    }

    /// Tells what the first core has counted.
    pub fn publish(&self, first: Option<&Pair>, nic: &NicRest<'_>) {
        let Some(core) = self.shared.cores.first() else {
            return;
        };
        let mut report = core.report.lock();
        report.device = nic.stats(first);
        report.pair = self.past;
        if let Some(first) = first {
            report.pair.add(&first.stats());
        }
        report.pair.interrupts = interrupts::STATE.interrupts();
        report.queues = nic.snapshots(first).take(3).collect();
    }
}

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
fn serve(shared: &'static Shared, core: &'static Core, number: usize) -> ! {
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
            if worker.is_recalled() {
                break None;
            }
            if let Err(error) = worker.assignment.pair.begin_poll() {
                break Some(error);
            }
            let time = now();
            if core.has_mail() {
                read_mail(core, stack, time);
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
            let deadline = stack
                .poll_at(time)
                .map(|at| u64::try_from(at.total_micros()).unwrap_or(0));
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

fn read_mail(core: &Core, stack: &mut Stack, time: Instant) {
    while let Some(mail) = core.next_mail() {
        match mail {
            Mail::Frame(frame) => stack.hear(time, &frame),
            Mail::Ipv4(state) => stack.follow_ipv4(time, state),
            Mail::Broken(_) => (),
        }
    }
}

impl Worker<'_> {
    /// The device as this core's network stack sees it.
    fn device(&mut self) -> PhyDevice<'_> {
        let Assignment { pair, info, .. } = &mut *self.assignment;
        PhyDevice::own(pair, info, self.own)
    }

    /// Whether the pair is to be given back.
    #[inline]
    fn is_recalled(&self) -> bool {
        self.own.core.generation.load(Ordering::Relaxed) != self.assignment.generation
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
            let Some(until) = poll_sleep_until(now, last_work) else {
                core::hint::spin_loop();
                return;
            };
            deadline = deadline.min(until);
        } else if leave > 0 {
            deadline = deadline.min(now + HOLD_US);
        }
        self.own.publish(&self.assignment.pair);
        interrupts_at_cpu::disable();
        let mut now = now;
        loop {
            // From here an interrupt waits until the CPU sleeps, and wakes it.
            let pair = &mut self.assignment.pair;
            let work = if polling {
                pair.has_work()
            } else {
                pair.enable_interrupts_after(leave)
            };
            let called = self.own.core.has_mail()
                || self.is_recalled()
                || self.own.shared.link_up.get() != link_up;
            if work || called || deadline <= now {
                break;
            }
            tracepoint_unless_repeated!(Event::Idle, NO_QUEUE);
            self.moderation.sleep();
            arch::idle_until((deadline != u64::MAX).then_some(deadline));
            if leave == 0 {
                break;
            }
            // As on the first core.
            now = time::now();
        }
        interrupts_at_cpu::enable();
    }
}
