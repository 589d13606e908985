//! Records a run: prepares the machine, sends the datagram, reads what the
//! layers left behind.

mod access;
mod place;
mod process;
mod run;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use kickpath_trace::RING_SYMBOL;

pub(super) use place::physical;
pub(crate) use run::threads_of;
pub use run::{device_of, run_of};

use place::regions;
use process::ProcessMemory;

use super::image::{Image, ImageError};
use super::journey;
use super::kvm::{self, HostTrace, HostTraceError};
use super::linux::page::NoPage;
use super::qemu::stack::{self, StackError};
use super::qemu::{self, threads};
use super::recording::{
    Clocks, KvmRecording, Memory, Probe, Recording, Region, Sample, Threads, Window, WireFrame,
};
use super::records::{self, HEADER_LENGTH, Header, Ring, RingError};
use super::timeline::{Absent, Direction, Instruction, Run};
use crate::guest::{Failure, Guest};
use crate::install::{GDB, Host};
use crate::qemu::{Accel, Boot, Machine, Trace, Vmm};
use crate::scratch::{Scratch, ScratchError};
use crate::wire::{FarEnd, FrameLog, WireError};

/// Content of the datagram of the window, in bytes.
pub const PROBE_BYTES: usize = 64;

/// Content of the datagrams before, and of the one behind, which wakes the guest
/// once more.
const OTHER_BYTES: usize = 32;

/// Datagrams before the window: they make addresses known, and their kicks
/// show how the time of one spreads.
const WARM_UP: usize = 10;

/// Datagrams behind the window, of a guest with several CPUs.
const MOST_WAKES: u32 = 16;

/// How often the machine is looked at until it is quiet.
const LOOKS: u32 = 50;

/// Why a run could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The executable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk image has no symbols.
    #[error(
        "a disk image has no symbols to find the records by; trace the ELF file \
         (leave --image out, or name it by --kernel)"
    )]
    DiskImage,
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The guest.
    #[error(transparent)]
    Guest(#[from] Box<Failure>),
    /// The datagram.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The directory for the records.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The records do not tell of the datagram.
    #[error(
        "the guest's {recorded} records do not tell of the datagram ({lost} more were lost{})",
        unresolved_text(*unresolved)
    )]
    NoJourney {
        /// Records read.
        recorded: u64,
        /// Records for which there was no room.
        lost: u64,
        /// Records that the executable cannot explain.
        unresolved: u64,
    },
    /// A Linux guest's records.
    #[error(transparent)]
    Page(#[from] NoPage),
    /// The system refuses.
    #[error("cannot {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn unresolved_text(unresolved: u64) -> String {
    match unresolved {
        0 => String::new(),
        n => format!("; {n} are not of this executable"),
    }
}

/// Where our guest keeps its records.
#[derive(Debug)]
struct GuestRing {
    image: Image,
    address: u64,
}

/// What is needed to trace a machine.
#[derive(Debug)]
pub struct Tracer {
    /// `None` for a guest that keeps no ring of ours.
    ring: Option<GuestRing>,
    directory: Scratch,
    zero: Instant,
    first: Sample,
    accel: Accel,
    vmm: Vmm,
    /// The guest's memory in the process of a VMM without a monitor.
    memory: OnceCell<ProcessMemory>,
    /// Datagrams behind the window at most: one, or until one comes to the CPU that
    /// sent, by a hash of its port.
    wakes: u32,
}

impl Tracer {
    /// Makes a machine that is about to start record itself; `executable` is the one that it
    /// boots, or that what it boots was made of.
    ///
    /// # Errors
    /// The guest's executable cannot be read, or has no tracepoints.
    pub fn new(machine: &mut Machine, executable: &Boot) -> Result<Self, TraceError> {
        let Boot::Kernel(kernel) = executable else {
            return Err(TraceError::DiskImage);
        };
        let image = Image::read(kernel)?;
        let address = image.symbol(RING_SYMBOL)?;
        machine.config.trace = true;
        Self::of(machine, Some(GuestRing { image, address }))
    }

    /// Makes a machine record itself whose guest is none of ours: a recording has no
    /// records of the guest, and its window ends where QEMU logs nothing more.
    ///
    /// # Errors
    /// There is no place for QEMU's logs.
    pub fn of_foreign(machine: &mut Machine) -> Result<Self, TraceError> {
        Self::of(machine, None)
    }

    fn of(machine: &mut Machine, ring: Option<GuestRing>) -> Result<Self, TraceError> {
        let directory = Scratch::new("trace")?;
        machine.trace = Some(Trace {
            events: qemu::EVENTS
                .iter()
                .map(|event| (*event).to_owned())
                .collect(),
            directory: directory.path().to_owned(),
        });
        let zero = Instant::now();
        Ok(Self {
            ring,
            directory,
            zero,
            first: Sample::take(zero),
            accel: machine.accel,
            vmm: machine.vmm,
            memory: OnceCell::new(),
            wakes: if machine.cpus > 1 { MOST_WAKES } else { 1 },
        })
    }

    /// Sends one datagram in from the far end, whose `frames` are recorded, has its echo
    /// come out, and reads what was recorded of it. The machine runs on.
    ///
    /// # Errors
    /// The echo does not come, or the records cannot be read.
    pub fn record(
        &self,
        guest: &Guest,
        far: &dyn FarEnd,
        frames: &FrameLog,
        address: Ipv4Addr,
        run: Run,
        guest_hz: u64,
    ) -> Result<Recording, TraceError> {
        let recording = self.record_all(guest, far, frames, address, run, guest_hz);
        // What did not fit into it QEMU leaves out of its log and of what it saves of the
        // memory, whatever came of that.
        self.directory.check_room()?;
        recording
    }

    fn record_all(
        &self,
        guest: &Guest,
        far: &dyn FarEnd,
        frames: &FrameLog,
        address: Ipv4Addr,
        run: Run,
        guest_hz: u64,
    ) -> Result<Recording, TraceError> {
        let bound = self.accel.reply_bound();
        let echo = |bytes| far.udp_echo(address.into(), bytes, bound);
        for _ in 0..WARM_UP {
            echo(OTHER_BYTES)?;
        }
        let known = threads_of(guest, self.vmm);
        let host_trace = match self.accel {
            Accel::Kvm { .. } => Some(HostTrace::start(&known)),
            Accel::Tcg => None,
        };
        self.switch_window_events(guest, true);
        let mut begin = self.begin(guest, host_trace.as_ref())?;
        let waiting = match self.vmm {
            Vmm::Qemu => BTreeMap::new(),
            _ => process::waiting(guest.pid()),
        };
        let outcome = (|| {
            echo(PROBE_BYTES)?;
            begin.quiet &= self.quiet(guest)?.quiet;
            let memory = self.buffers(guest, begin.guest)?;
            // Those of the window: later ones may push them out of the log.
            let passed = frames.frames();
            // The guest takes the sent buffer back when it wakes next.
            for _ in 0..self.wakes {
                echo(OTHER_BYTES)?;
                begin.quiet &= self.quiet(guest)?.quiet;
                if self.is_taken_back(guest, begin.guest)? {
                    break;
                }
            }
            Ok::<_, TraceError>((memory, passed))
        })();
        self.switch_window_events(guest, false);
        let (memory, mut passed) = outcome?;
        // Nothing moves while it is read; what KVM records ends no earlier than what
        // the guest does.
        self.stop(guest)?;
        let host_trace = host_trace.map(|started| started.and_then(HostTrace::stop));
        for frame in frames.frames() {
            if !passed.contains(&frame) {
                passed.push(frame);
            }
        }
        let frames = passed.into_iter().map(|frame| {
            let early = self.zero.saturating_duration_since(frame.at).as_nanos() as i64;
            let late = frame.at.saturating_duration_since(self.zero).as_nanos() as i64;
            WireFrame {
                direction: match frame.from_guest {
                    true => Direction::Out,
                    false => Direction::In,
                },
                at: late - early,
                bytes: frame.bytes,
            }
        });
        let mut recording = Recording {
            run,
            frames: frames.collect(),
            window: Window {
                guest: begin.guest,
                quiet: begin.quiet,
                ..Window::default()
            },
            memory,
            probe: Probe { bytes: PROBE_BYTES },
            threads: known,
            regions: regions(guest),
            clocks: Clocks {
                guest_hz,
                samples: vec![self.first, Sample::take(self.zero)],
            },
            ..Recording::default()
        };
        match host_trace {
            Some(Ok(kvm)) => {
                let files = match self.vmm {
                    Vmm::Qemu => BTreeMap::new(),
                    _ => process::files(guest.pid()),
                };
                recording.kvm = Some(KvmRecording {
                    files,
                    waiting,
                    ..kvm
                });
            }
            Some(Err(error)) => recording.absent.push(no_host_trace(&error)),
            None => {}
        }
        let read = self.read(guest, &mut recording, &begin.log);
        self.go_on(guest)?;
        read?;
        recording.absent.extend(clock_set(&recording.clocks));
        if self.vmm == Vmm::Qemu && recording.threads == Threads::default() {
            recording.absent.push(Absent {
                what: "which thread of QEMU took a step".into(),
                reason: "QEMU does not tell the numbers of its threads".into(),
                enable: None,
            });
        }
        Ok(recording)
    }

    /// Has the guest kick once more, and adds QEMU's call chain at that kick to a recording, or
    /// why there is none.
    ///
    /// # Errors
    /// QEMU's log cannot be read.
    pub fn add_qemu_stack(
        &self,
        guest: &Guest,
        far: &dyn FarEnd,
        address: Ipv4Addr,
        recording: &mut Recording,
    ) -> Result<(), TraceError> {
        let process = recording.threads.main;
        let absent = |reason: String, enable| Absent {
            what: "QEMU's own call chain at the kick".into(),
            reason,
            enable,
        };
        if process == 0 {
            let reason = "QEMU does not tell the number of its process".into();
            recording.absent.push(absent(reason, None));
            return Ok(());
        }
        let before = self.look(guest)?.log;
        let taken = stack::take(process, || {
            // Whether its answer comes is of no interest; a debugger may take its time.
            let _ = far.udp_echo(address.into(), OTHER_BYTES, self.accel.reply_bound());
        });
        let mut taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                let enable = match error {
                    StackError::NoGdb => Host::detect().command(&[GDB]),
                    _ => None,
                };
                recording.absent.push(absent(error.to_string(), enable));
                return Ok(());
            }
        };
        let mut logs = threads::read(self.directory.path()).map_err(system("read QEMU's log"))?;
        for (thread, log) in &mut logs {
            log.window = before.get(thread).copied().unwrap_or(0);
        }
        let (log, window) = threads::merge(&logs);
        let later = qemu::parse(log.get(window..).unwrap_or_default()).records;
        let mut heard = later.iter().filter(|record| {
            record.thread == taken.thread && record.event == "virtio_queue_notify"
        });
        match heard.next().and_then(|record| record.number("n")) {
            Some(queue) => {
                taken.queue = u16::try_from(queue).unwrap_or(u16::MAX);
                recording.qemu_stack = Some(taken);
            }
            None => {
                let reason = "QEMU's log does not tell which queue it was".into();
                recording.absent.push(absent(reason, None));
            }
        }
        Ok(())
    }

    fn ring(&self, guest: &Guest, ring: &GuestRing) -> Result<Ring, TraceError> {
        let header = self.memory(guest, "memsave", ring.address, HEADER_LENGTH)?;
        let length = Header::parse(&header)?.length();
        let mut bytes = self.memory(guest, "memsave", ring.address, length)?;
        // A guest that runs may have recorded more between the two readings.
        if let Some(later) = bytes.get_mut(..header.len()) {
            later.copy_from_slice(&header);
        }
        Ok(records::parse(&bytes, &ring.image)?)
    }

    /// The records so far of a guest of ours; of another one none.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn records(&self, guest: &Guest) -> Result<Ring, TraceError> {
        match &self.ring {
            Some(ring) => self.ring(guest, ring),
            None => Ok(Ring::default()),
        }
    }

    /// QEMU's events so far, as they are in its log.
    ///
    /// # Errors
    /// It cannot be read, or there was no room for it.
    pub fn log(&self) -> Result<String, TraceError> {
        self.directory.check_room()?;
        let logs = threads::read(self.directory.path()).map_err(system("read QEMU's log"))?;
        Ok(threads::merge(&logs).0)
    }

    /// Whether the guest has the sent buffer back, as far as it records that.
    fn is_taken_back(&self, guest: &Guest, window: usize) -> Result<bool, TraceError> {
        let records = self.records(guest)?.records;
        let journey = journey::find(&records, window, PROBE_BYTES);
        Ok(journey.is_none_or(|journey| journey.reclaim.is_some()))
    }

    /// Reads the buffers of the window's two frames, before others get them.
    /// What cannot be found is left out.
    fn buffers(&self, guest: &Guest, window: usize) -> Result<Vec<Memory>, TraceError> {
        let Some(ring) = &self.ring else {
            return Ok(Vec::new());
        };
        let records = self.ring(guest, ring)?.records;
        let Some(journey) = journey::find(&records, window, PROBE_BYTES) else {
            return Ok(Vec::new());
        };
        let mut buffers = Vec::new();
        if let Some(frame) = journey.sent_frame(&records)
            && !journey.sent_buffer_used_again(&records)
        {
            buffers.push(frame);
        }
        if let Some(header) = journey.receive_header(&records)
            && let Some(buffer) = journey.receive_buffer(&records)
            && let Some(frame) = buffer.checked_add(header)
            && !journey.received_buffer_used_again(&records)
        {
            buffers.push((frame, records[journey.rx_token].a));
        }
        let mut memory = Vec::new();
        for (address, length) in buffers {
            // No frame is longer; the records come from the guest.
            let length = length.min(crate::wire::MAX_FRAME as u64) as usize;
            let bytes = self.memory(guest, "pmemsave", address, length)?;
            memory.push(Memory { address, bytes });
        }
        Ok(memory)
    }

    /// Reads the guest's ring and QEMU's logs; in those the window begins behind `before` bytes.
    fn read(
        &self,
        guest: &Guest,
        recording: &mut Recording,
        before: &BTreeMap<u32, usize>,
    ) -> Result<(), TraceError> {
        let mut logs = threads::read(self.directory.path()).map_err(system("read QEMU's log"))?;
        for (thread, log) in &mut logs {
            log.window = before.get(thread).copied().unwrap_or(0);
        }
        (recording.qemu_log, recording.window.qemu) = threads::merge(&logs);
        let Some(own) = &self.ring else {
            return Ok(());
        };
        let ring = self.ring(guest, own)?;
        recording.ring = ring.ring_use;
        let no_journey = TraceError::NoJourney {
            recorded: ring.ring_use.recorded,
            lost: ring.ring_use.lost,
            unresolved: ring.unresolved,
        };
        recording.guest = ring.records;
        let records = &recording.guest;
        let journey = journey::find(records, recording.window.guest, recording.probe.bytes);
        let journey = journey.ok_or(no_journey)?;
        if let Some(doorbell) = journey.doorbell {
            let record = &records[doorbell];
            let address = match (record.a, self.vmm) {
                (0, _) => record.b,
                (_, Vmm::Qemu) => physical(guest, record.b).unwrap_or(record.b),
                _ => kvm::written(recording.kvm.as_ref(), record).unwrap_or(record.b),
            };
            recording.doorbell_address = Some(address);
            recording.instruction = own
                .image
                .doorbell(record.a)
                .map(|found| describe(&found, record, address, &recording.regions));
        }
        Ok(())
    }

    /// Waits for a moment from which on every layer records the same.
    fn begin(
        &self,
        guest: &Guest,
        host_trace: Option<&Result<HostTrace, HostTraceError>>,
    ) -> Result<Begin, TraceError> {
        let mut begin = self.quiet(guest)?;
        let Some(Ok(host_trace)) = host_trace else {
            return Ok(begin);
        };
        for _ in 0..LOOKS {
            host_trace.clear();
            // A frame that the VMM has taken before may reach the guest only now.
            thread::sleep(self.patience());
            // Nothing came between: the guest's timers run on.
            if !begin.quiet || self.look(guest)? == begin {
                break;
            }
            begin = self.quiet(guest)?;
        }
        Ok(begin)
    }

    /// Where the records of the guest and of QEMU end.
    fn look(&self, guest: &Guest) -> Result<Begin, TraceError> {
        Ok(Begin {
            guest: match &self.ring {
                Some(ring) => self.header(guest, ring)?.recorded() as usize,
                None => 0,
            },
            log: threads::lengths(self.directory.path()).map_err(system("look at QEMU's log"))?,
            quiet: true,
        })
    }

    /// How long nothing must be recorded for a machine to be quiet.
    fn patience(&self) -> Duration {
        match self.accel {
            Accel::Kvm { emulated: true } => Duration::from_millis(300),
            _ => Duration::from_millis(20),
        }
    }

    /// Waits until neither the guest nor QEMU records anything, and says where
    /// their records end.
    fn quiet(&self, guest: &Guest) -> Result<Begin, TraceError> {
        let mut last = self.look(guest)?;
        for _ in 0..LOOKS {
            thread::sleep(self.patience());
            let now = self.look(guest)?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        Ok(Begin {
            quiet: false,
            ..last
        })
    }

    fn header(&self, guest: &Guest, ring: &GuestRing) -> Result<Header, TraceError> {
        let bytes = self.memory(guest, "memsave", ring.address, HEADER_LENGTH)?;
        Ok(Header::parse(&bytes)?)
    }
}

/// Where a window begins: at a moment when nothing was on its way.
#[derive(PartialEq)]
struct Begin {
    /// Number of the first record of the guest.
    guest: usize,
    /// What each thread of QEMU had logged before, in bytes.
    log: BTreeMap<u32, usize>,
    /// Whether the machine was quiet.
    quiet: bool,
}

/// What is lost when somebody set the host's calendar, by which QEMU logs.
fn clock_set(clocks: &Clocks) -> Option<Absent> {
    /// More than a clock that is only steered goes wrong meanwhile.
    const BOUND: i64 = 5_000_000;
    let (first, last) = (clocks.samples.first()?, clocks.samples.last()?);
    let by = (last.calendar - last.steady) - (first.calendar - first.steady);
    (by.abs() > BOUND).then(|| Absent {
        what: "the true times of some events of QEMU".into(),
        reason: format!(
            "the host's clock was set by {} ms while it was recorded",
            by / 1_000_000
        ),
        enable: None,
    })
}

fn system(what: &'static str) -> impl Fn(io::Error) -> TraceError {
    move |source| TraceError::System { what, source }
}

fn no_host_trace(error: &HostTraceError) -> Absent {
    let root = nix::unistd::geteuid().is_root();
    Absent {
        what: "KVM's events, and the host kernel's call chain".into(),
        reason: error.to_string(),
        enable: match error {
            HostTraceError::NoEvents => None,
            _ if root => Some("mount -t tracefs tracefs /sys/kernel/tracing".into()),
            _ => Some("sudo $(which cargo) run -- trace --accel kvm".into()),
        },
    }
}

/// The doorbell's instruction with the values of this run; `address` is where
/// it writes, as the device sees it.
pub(super) fn describe(
    found: &super::image::Instruction,
    record: &records::GuestRecord,
    address: u64,
    regions: &[Region],
) -> Instruction {
    let ports = record.a == 0;
    let place = regions
        .iter()
        .find(|region| {
            region.ports == ports
                && address >= region.address
                && address - region.address < region.size
        })
        .map(|region| format!("{}+{:#x}", region.name, address - region.address));
    let target = match &place {
        Some(place) => format!("{place} = {address:#x}"),
        None => format!("{address:#x}"),
    };
    let queue = record.queue.unwrap_or_default();
    let verb = match record.a {
        0 => "outw",
        1 => "movw",
        _ => "movl",
    };
    let bytes: Vec<String> = found.bytes.iter().map(|b| format!("{b:02x}")).collect();
    Instruction {
        address: found.address,
        bytes: bytes.join(" "),
        text: found.text.clone(),
        meaning: format!("{verb} ${queue}, {target}"),
        symbol: found.symbol.to_owned(),
        source: None,
    }
}
