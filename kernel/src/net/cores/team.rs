//! What the cores share, none of it on the way of a packet.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heapless::Deque;
use kickpath_abi::config::UdpWay;
use kickpath_abi::status::{self, CpuLoad, Status};
use kickpath_services::{Ipv4State, Stack};
use smoltcp::phy::Device;
use spin::Mutex;
use virtio_net::net::{DeviceInfo, QueueSnapshot, Stats, TakenPair};
use virtio_net::queue::QueueError;
use virtio_net::vectors::Rung;

use crate::arch;
use crate::arch::percpu::{self, PerCpu};
use crate::memory::KernelHal;
use crate::memory::layout::MAX_CPUS;
use crate::net::idle::now;
use crate::net::report;

/// Frames that fit a core's box.
const FRAMES: usize = 32;
/// Stray segments, which anybody can send, leave room for the other frames.
const STRAYS: usize = FRAMES / 2;
/// What fits a core's box: frames leave room for what must not be lost. That is
/// one word of each core, and addresses.
const MAIL: usize = FRAMES + MAX_CPUS + 16;

/// What one core tells another.
pub enum Mail {
    /// A frame that concerns every core.
    Frame(Box<[u8]>),
    Stray(Stray),
    /// The IPv4 address of all; from another core to the first one, that it has it.
    Ipv4(Ipv4State),
    /// A core's pair broke by this, and was given back.
    Broken(QueueError),
}

/// A TCP segment that came to a core which does not have its connection.
pub struct Stray {
    frame: Box<[u8]>,
    /// Cores that have not looked for it yet, but for the one that has it now.
    others: usize,
}

pub struct Assignment {
    pub pair: TakenPair<KernelHal>,
    pub info: DeviceInfo,
    pub rung: Rung,
    /// [`Core::generation`] when it was handed out.
    pub generation: u64,
}

/// What a core last told of itself.
#[derive(Default)]
pub struct CoreReport {
    /// What its pair has counted since the device was opened; of the first
    /// core, what the whole device has counted but for the other cores' pairs.
    pub device: Stats,
    /// What its pairs have counted since boot.
    pub pair: Stats,
    pub queues: heapless::Vec<QueueSnapshot, 3>,
}

/// What the others see of a core. Between two packets the core looks at
/// `has_mail` and `generation`, which are written only when there is something
/// to say; nothing else is shared on the way of a packet. Two cores have no
/// cache line in common, nor the pair of lines that a CPU fetches at once.
#[repr(align(128))]
pub struct Core {
    pub cpu: &'static PerCpu,
    pub has_mail: AtomicBool,
    pub mail: Mutex<Deque<Mail, MAIL>>,
    pub mail_lost: AtomicU64,
    /// Counts up when the core is to give its pair back.
    pub generation: AtomicU64,
    /// Whether the core has a pair, as far as the first core knows.
    pub is_out: AtomicBool,
    /// For the core to take.
    pub assignment: Mutex<Option<Assignment>>,
    /// For the first core to take.
    pub returned: Mutex<Option<TakenPair<KernelHal>>>,
    pub report: Mutex<CoreReport>,
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

    pub fn post(&self, mail: Mail) {
        let mut queue = self.mail.lock();
        let room = match mail {
            Mail::Stray(_) => STRAYS,
            Mail::Frame(_) => FRAMES,
            Mail::Ipv4(_) | Mail::Broken(_) => MAIL,
        };
        if queue.len() >= room || queue.push_back(mail).is_err() {
            self.mail_lost.fetch_add(1, Ordering::Relaxed);
        }
        drop(queue);
        // Who has not emptied its box since then knows already.
        if !self.has_mail.swap(true, Ordering::AcqRel) {
            arch::interrupts::wake(self.cpu);
        }
    }

    /// Whether it has a pair, as far as the first core knows; of the first core
    /// itself nothing is said.
    pub fn has_pair(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Relaxed)
    }

    /// The next mail; `None` when the box is empty.
    pub fn next_mail(&self) -> Option<Mail> {
        let mut queue = self.mail.lock();
        let mail = queue.pop_front();
        if mail.is_none() {
            self.has_mail.store(false, Ordering::Release);
        }
        mail
    }

    /// Waits, with interrupts disabled, until there is a pair.
    pub fn wait_for_pair(&self) -> Assignment {
        loop {
            if let Some(assignment) = self.assignment.lock().take() {
                return assignment;
            }
            arch::idle_until(None);
        }
    }
}

/// What all cores share, not on the way of a packet.
pub struct Team {
    /// By their numbers; the first core is one of them.
    pub cores: Vec<Core>,
    /// The report as the first core last made it, for the parts of it that
    /// only that core knows.
    pub status: Mutex<Status>,
    pub link_up: LinkUp,
    /// How datagrams reach the UDP services.
    pub udp: UdpWay,
}

/// Every core looks at it between two packets, so nothing that is written more
/// often has its cache line.
#[repr(align(128))]
pub struct LinkUp(pub AtomicBool);

impl LinkUp {
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Team {
    /// Of the first cores, as many as there are pairs.
    pub fn new(pairs: usize, udp: UdpWay) -> Self {
        let cores = percpu::all().iter().take(pairs);
        Self {
            cores: cores.map(|cpu| Core::new(cpu)).collect(),
            status: Mutex::default(),
            link_up: LinkUp(AtomicBool::new(true)),
            udp,
        }
    }

    /// Hands a frame that one core has received to all others.
    pub fn spread(&self, from: usize, frame: &[u8]) {
        for (number, core) in self.cores.iter().enumerate() {
            if number != from {
                core.post(Mail::Frame(frame.into()));
            }
        }
    }

    /// Has a core look for the connections of the segments that came to it and
    /// are strays there.
    #[inline]
    pub fn look_up_strays<D: Device>(&self, number: usize, stack: &mut Stack, device: &mut D) {
        for frame in stack.take_strays() {
            let others = self.cores.iter().skip(1).filter(|core| core.has_pair());
            let others = others.count();
            self.look_up(number, Stray { frame, others }, stack, device);
        }
    }

    /// Has a core look for the connection of a stray. Where it is not, the next
    /// core that has a pair is to look, and the last one answers.
    #[cold]
    pub fn look_up<D: Device>(
        &self,
        number: usize,
        stray: Stray,
        stack: &mut Stack,
        device: &mut D,
    ) {
        let Stray { frame, others } = stray;
        if stack.receive_stray(now(), &frame, others == 0, device) {
            return;
        }
        let Some(others) = others.checked_sub(1) else {
            return;
        };
        let mut after = self.cores.iter().skip(number + 1);
        let next = after.find(|core| core.has_pair());
        if let Some(next) = next.or(self.cores.first()) {
            next.post(Mail::Stray(Stray { frame, others }));
        }
    }

    /// Adds what the cores have told of themselves.
    pub fn complete(&self, status: &mut Status) {
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
        let cpus = percpu::all().iter().map(|cpu| CpuLoad {
            number: cpu.number() as u16,
            apic_id: cpu.apic_id(),
            idle_cycles: arch::idle_cycles(cpu),
        });
        status.cpus = cpus.collect();
    }
}

/// Entries of the table that lead to a pair.
fn entries_of(rss: Option<&status::Rss>, number: usize) -> usize {
    let table = rss.into_iter().flat_map(|rss| &rss.table);
    table.filter(|pair| usize::from(**pair) == number).count()
}
