//! Boots the guest for an experiment, has it echo datagrams, and reads what was left.

use std::time::{Duration, Instant};

use kickpath_abi::config::{Ipv4Config, Irq, LogLevel, Transport, UdpWay};

use super::evidence::{Evidence, Ring};
use super::probe::{Probe, Seen};
use super::{LabError, Options};
use crate::accel::AccelChoice;
use crate::command::{Progress, Sink};
use crate::guest::memory::{queue_status, read_physical};
use crate::guest::{Cause, Guest};
use crate::interrupt;
use crate::qemu::{Kind, Memory, Vmm};
use crate::session::{Layout, SessionError, Settings, UP};
use crate::trace;
use crate::wire::Dgram;

/// What is sent, and at which device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    /// The modern interface with queues of this size; else the legacy one with the device's.
    pub queue_size: Option<u16>,
    /// Datagrams in all.
    pub count: u64,
    /// Datagrams under way at a time.
    pub window: u64,
    /// From this datagram on it is one at a time: the device, which receives and sends by
    /// turns, has gone to sleep when the next one comes.
    pub one_by_one_from: u64,
    /// How long the far end waits before it sends a datagram: the driver has done all that it
    /// had to do by then, and is about to sleep.
    pub pause: Duration,
    /// The queue that it is about: 0 receives, 1 transmits.
    pub queue: u16,
    /// The device may be opened again so often before the run ends.
    pub may_reopen: u64,
    /// Once told of a frame to be sent, the device waits for more for [`PAUSE_NS`], and does
    /// not want to be told meanwhile. A datagram is sent when the guest has published the
    /// answer to the one before it, so that it publishes each by itself.
    pub device_pauses: bool,
}

impl Scene {
    /// So many datagrams one after the other at the legacy interface.
    pub const fn datagrams(count: u64) -> Self {
        Self {
            queue_size: None,
            count,
            window: 1,
            one_by_one_from: u64::MAX,
            pause: Duration::ZERO,
            queue: 1,
            may_reopen: 0,
            device_pauses: false,
        }
    }
}

/// A guest that neither answers nor says anything for so long hangs. The driver's watchdog
/// takes 10 s of the guest's time.
const BOUND: Duration = Duration::from_secs(180);

/// How long an answer is waited for until the queue is looked at.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long a device that pauses waits, in nanoseconds.
const PAUSE_NS: u32 = 200_000_000;

/// Content bytes of a datagram.
const SIZE: usize = 64;

/// Runs the scene in this guest; `fault` is its configuration word.
pub(super) fn run(
    scene: &Scene,
    kernel: &std::path::Path,
    fault: String,
    options: &Options,
    sink: &mut Sink<'_>,
) -> Result<Evidence, LabError> {
    let mut prepared = settings(scene, kernel, options).prepare(false, sink)?;
    prepared.machine.config.fault = fault.clone();
    let tracer = trace::tracer(&mut prepared).map_err(SessionError::from)?;
    if let Some(trace) = &mut prepared.machine.trace {
        // The others would fill every file where many datagrams are sent.
        trace.events.retain(|event| event == "virtio_queue_notify");
    }
    let wire = prepared.wire()?;
    prepared.attach(wire.net());
    if scene.device_pauses
        && let Some(nic) = &mut prepared.machine.nic
    {
        let pause = [
            ("tx", "timer".to_owned()),
            ("x-txtimer", PAUSE_NS.to_string()),
        ];
        let pause = pause.map(|(name, value)| (name.to_owned(), value));
        nic.properties.extend(pause);
    }
    let mut guest = prepared.launch()?;
    guest.attach_frames(wire.frame_log());
    let up = guest
        .wait_for_console(UP, prepared.accel().boot_bound())
        .map_err(SessionError::from)?;
    let started = format!("lab: experiment {fault}");
    let lines = guest.console_since(0);
    if !fault.is_empty() && !lines.iter().any(|line| line.text.contains(&started)) {
        return Err(LabError::NotStarted { fault });
    }
    let window = tracer.records(&guest).map_err(SessionError::from)?;
    let mut run = Run {
        guest: &guest,
        wire: &wire,
        probe: Probe::new(&prepared.plan, SIZE),
        scene,
        next_line: up.number + 1,
        evidence: Evidence::default(),
        sent: 0,
        open: Vec::new(),
        moved: Instant::now(),
    };
    for line in &lines {
        run.evidence.take_line(&line.text);
    }
    run.next_line = lines.last().map_or(0, |line| line.number + 1);
    run.exchange(sink)?;
    let mut evidence = run.evidence;
    guest.check().map_err(SessionError::from)?;
    let ring = tracer.records(&guest).map_err(SessionError::from)?;
    evidence.records = ring.ring_use.recorded;
    evidence.records_lost = ring.ring_use.lost;
    evidence.take_records(&ring.records, scene.queue, window.records.len());
    evidence.end = look(&guest);
    evidence.take_log(&tracer.log().map_err(SessionError::from)?);
    Ok(evidence)
}

/// TCG everywhere: what happens does not depend on the machine.
fn settings(scene: &Scene, kernel: &std::path::Path, options: &Options) -> Settings {
    Settings {
        vmm: Vmm::Qemu,
        vmm_path: None,
        accel: AccelChoice::Tcg,
        kind: Kind::Pc,
        transport: match scene.queue_size {
            Some(_) => Transport::Modern,
            None => Transport::Legacy,
        },
        mmio_legacy: false,
        pio_notify: false,
        ioeventfd: None,
        layout: Layout::Split,
        queue_size: scene.queue_size,
        rx_queue_size: None,
        rss: false,
        vlan: None,
        mtu: None,
        udp: UdpWay::Sockets,
        netconsole: None,
        irq: Irq::Auto,
        memory: Memory::default(),
        cpus: 1,
        qemu: options.qemu.clone(),
        ipv4: Ipv4Config::Static(Ipv4Config::FALLBACK),
        pcap: None,
        log: LogLevel::Info,
        features: None,
        kernel: Some(kernel.to_owned()),
        image: None,
        policy: options.policy,
    }
}

struct Run<'a> {
    guest: &'a Guest,
    wire: &'a Dgram,
    probe: Probe,
    scene: &'a Scene,
    next_line: u64,
    evidence: Evidence,
    sent: u64,
    /// Numbers of the datagrams without an answer.
    open: Vec<u64>,
    /// When something last came.
    moved: Instant,
}

impl Run<'_> {
    /// Sends the datagrams and waits for their answers, until all are there or the
    /// outcome is known.
    fn exchange(&mut self, sink: &mut Sink<'_>) -> Result<(), LabError> {
        let (mut told, mut looked) = (Instant::now(), Instant::now());
        let mut seen = None;
        self.wire.send(&self.probe.hello());
        loop {
            // It is known then; what is under way is waited for.
            let is_known = self.evidence.prods > 0 && self.scene.may_reopen == 0;
            let more = self.sent < self.scene.count && !is_known;
            if self.open.is_empty() && !more {
                break;
            }
            while more && self.open.len() < self.window() && self.sent < self.scene.count {
                std::thread::sleep(self.scene.pause);
                let published = self.avail_idx();
                self.wire.send(&self.probe.request(self.sent));
                self.open.push(self.sent);
                self.sent += 1;
                self.wait_for_publish(published);
            }
            self.evidence.asked = self.sent;
            let mut wait = Duration::from_millis(20);
            while let Some(frame) = self.wire.receive(wait) {
                self.take(&frame.bytes);
                wait = Duration::ZERO;
                if self.open.is_empty() {
                    break;
                }
            }
            self.read_console();
            if self.evidence.damaged > 0 || self.evidence.reopened > self.scene.may_reopen {
                break;
            }
            let still = self.moved.elapsed();
            // The last look that shows the same as the one before it counts: another may have
            // come while the watchdog stepped in, half before and half behind.
            if still > PATIENCE && self.evidence.prods == 0 && looked.elapsed() > PATIENCE / 3 {
                let now = look(self.guest);
                if now == seen {
                    self.evidence.stalled = now;
                }
                (seen, looked) = (now, Instant::now());
            }
            if interrupt::requested() || still > BOUND {
                let cause = match interrupt::requested() {
                    true => Cause::Interrupted,
                    false => Cause::Other(format!("nothing moved for {} s", BOUND.as_secs())),
                };
                return Err(SessionError::from(self.guest.failure(cause)).into());
            }
            self.guest.check().map_err(SessionError::from)?;
            if told.elapsed() > Duration::from_secs(1) {
                told = Instant::now();
                let (answered, count) = (self.evidence.answered, self.scene.count);
                sink(Progress::Line(&format!(
                    "{answered} of {count} datagrams answered"
                )));
            }
        }
        Ok(())
    }

    /// How far the guest has published, where that is waited for.
    fn avail_idx(&self) -> Option<u16> {
        let is_waited_for = self.scene.device_pauses;
        Some(is_waited_for.then(|| look(self.guest))??.avail_idx)
    }

    /// Waits until the guest has published more than that; for some time, because it may
    /// have been interrupted, or be gone.
    fn wait_for_publish(&self, before: Option<u16>) {
        let start = Instant::now();
        while before.is_some() && self.avail_idx() == before && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Datagrams that may be under way now.
    fn window(&self) -> usize {
        match self.sent >= self.scene.one_by_one_from {
            true => 1,
            false => self.scene.window as usize,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.evidence.frames += 1;
        match self.probe.look(bytes) {
            Seen::Answer(number) => {
                if let Some(place) = self.open.iter().position(|open| *open == number) {
                    self.open.swap_remove(place);
                    self.evidence.answered += 1;
                    self.moved = Instant::now();
                }
            }
            Seen::Question(answer) => self.wire.send(&answer),
            Seen::Whole => {}
            Seen::Damaged(what) => {
                self.evidence.damaged += 1;
                self.evidence.damage.get_or_insert(what);
            }
        }
    }

    fn read_console(&mut self) {
        let before = self.evidence.reopened;
        for line in self.guest.console_since(self.next_line) {
            self.next_line = line.number + 1;
            self.evidence.take_line(&line.text);
            self.moved = Instant::now();
        }
        if self.evidence.reopened > before && self.evidence.reopened <= self.scene.may_reopen {
            // What was under way is lost; that is no fault of what comes now.
            for number in &self.open {
                self.wire.send(&self.probe.request(*number));
                self.evidence.asked_again += 1;
            }
        }
    }
}

/// Looks at the transmit queue; `None` where this QEMU does not tell of it.
fn look(guest: &Guest) -> Option<Ring> {
    let queue = queue_status(guest, 1).ok()?;
    let read = |address, length| read_physical(guest, address, length).ok();
    let word = |address| Some(u16::from_le_bytes(*read(address, 2)?.first_chunk()?));
    let avail_idx = word(queue.vring_avail + 2)?;
    let size = queue.vring_num;
    let last = u64::from(avail_idx.wrapping_sub(1) & size.checked_sub(1)?);
    let length = read(queue.vring_desc + 16 * last + 8, 4)?;
    Some(Ring {
        size,
        avail_idx,
        last_avail_idx: queue.last_avail_idx,
        used_idx: word(queue.vring_used + 2)?,
        avail_event: word(queue.vring_used + 4 + 8 * u64::from(size))?,
        last_length: u32::from_le_bytes(*length.first_chunk()?),
    })
}
