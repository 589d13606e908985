//! `kickpath trace --gdb`: a guest that stands before its kick, and what a debugger shows there.
//!
//! The guest is stopped by QEMU's GDB server at the one instruction that is the kick of its
//! transmit queue, in the function that the transport has for it (`vp_notify_port`,
//! `vp_notify_mmio` or `vm_notify`). Whoever connects then finds it there.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use kickpath_abi::status::Status;
use serde::Serialize;

use super::cable::{self, Cable};
use super::capture::TraceError;
use super::image::Image;
use crate::accel::AccelChoice;
use crate::command::{Progress, Sink};
use crate::guest::gdb::Debugger;
use crate::guest::memory::{self, QueueStatus};
use crate::guest::{Cause, Guest};
use crate::install::{GDB, Host};
use crate::interrupt;
use crate::qemu::{Boot, quote};
use crate::scratch::Scratch;
use crate::session::{NetChoice, Prepared, SessionError, Settings, fetch_status, require};
use crate::terminal::Story;

/// Content of a datagram, in bytes.
const BYTES: usize = 32;

/// How long the answer to the datagram that brings the guest to its kick is waited for: it
/// does not come, for the guest stands still.
const SENT: Duration = Duration::from_millis(200);

/// Headers of Ethernet, IPv4 and UDP before the content, in bytes.
const HEADERS: usize = 14 + 20 + 8;

/// Kicks of other queues and for other frames that may come before that of the answer.
const OTHER_KICKS: usize = 16;

/// Seconds that a debugger may take for all commands.
const BOUND: &str = "120";

/// Between what the debugger says to one command and to the next.
const MARK: &str = "kickpath: command";

/// `rdi` in GDB's order: the first argument of a function, which is the queue's number.
const RDI: usize = 5;

/// `AVAIL` and `USED` in a packed descriptor's flags.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The guest at its kick, for a person or a program.
#[derive(Debug, Serialize)]
pub struct Walk {
    /// The guest's executable, with its symbols.
    pub executable: PathBuf,
    /// Where QEMU serves debuggers.
    pub socket: PathBuf,
    /// The command that connects one.
    pub connect: String,
    /// The function that holds the kick.
    pub function: &'static str,
    /// The kick's virtual address.
    pub address: u64,
    /// The kick as Intel writes it, such as `out dx,ax`.
    pub instruction: String,
    /// What the guest reports of its kicks, such as `outw 1 -> port 0xc010`.
    pub doorbell: String,
    /// The ring, as QEMU's monitor tells of it.
    pub ring: Ring,
    /// What to look at, in this order.
    pub commands: Vec<Look>,
}

/// A transmit queue whose newest chain the device has not been told of.
#[derive(Debug, Serialize)]
pub struct Ring {
    /// The queue's number.
    pub queue: u16,
    /// Whether it is packed.
    pub packed: bool,
    /// Number of descriptors.
    pub size: u16,
    /// Physical address of the descriptors.
    pub descriptors: u64,
    /// That of the available ring, or of the driver event suppression structure.
    pub driver: u64,
    /// That of the used ring, or of the device event suppression structure.
    pub device: u64,
    /// Where the device goes on: an index of the available ring, or a descriptor.
    pub next: u16,
    /// Two words of the driver's area: flags and index, or position and flags.
    pub driver_words: [u16; 2],
    /// Two words of the device's area, likewise.
    pub device_words: [u16; 2],
    /// In a split ring the index at which the device wants to be told.
    pub avail_event: Option<u16>,
    /// In a split ring the newest entry: the first descriptor of a chain.
    pub head: Option<u16>,
}

/// A command of the debugger.
#[derive(Debug, Serialize)]
pub struct Look {
    /// As it is typed.
    pub command: String,
    /// What it shows.
    pub shows: String,
    /// What the debugger said, where it was asked.
    pub output: Option<String>,
}

/// A guest that stands at its kick, for as long as this value lives.
pub struct Stopped {
    /// What to look at.
    pub walk: Walk,
    guest: Guest,
    prepared: Prepared,
    _cable: Cable,
    _directory: Scratch,
}

/// Boots the guest, and stops it where it is about to kick its transmit queue; `net` is the
/// far end. The accelerator is TCG if none is asked for: it stops at any instruction.
///
/// # Errors
/// The guest does not come up, or not to its kick.
pub fn stop(
    settings: &Settings,
    net: NetChoice,
    sink: &mut Sink<'_>,
) -> Result<Stopped, SessionError> {
    let mut settings = settings.clone();
    if settings.accel == AccelChoice::Auto {
        settings.accel = AccelChoice::Tcg;
    }
    cable::require_for(net, &settings, sink)?;
    let mut prepared = settings.prepare(false, sink)?;
    let Boot::Kernel(executable) = &prepared.machine.boot else {
        return Err(TraceError::DiskImage.into());
    };
    let executable = executable.clone();
    let image = Image::read(&executable).map_err(TraceError::from)?;
    let directory = Scratch::new("gdb")?;
    let socket = directory.socket("gdb.sock")?;
    let cable = Cable::connect(&mut prepared, net)?;
    let guest = cable.launch(&mut prepared)?;
    let far = cable.far_end();
    let up = prepared.wait_until_up(&guest, far)?;
    let bound = prepared.accel().reply_bound();
    let failed = |error: String| SessionError::from(guest.failure(Cause::Other(error)));
    let status = fetch_status(far, up.ip(), bound).map_err(|error| failed(error.to_string()))?;
    // Addresses are known then.
    let echo = far.udp_echo(up.ip(), BYTES, bound);
    echo.map_err(|error| failed(error.to_string()))?;
    let kind = match status.device.doorbell.split(' ').next() {
        Some("outw") => 0,
        Some("movw") => 1,
        _ => 2,
    };
    let kick = image.doorbell(kind);
    let kick = kick.ok_or_else(|| failed("the executable has no function for a kick".into()))?;
    sink(Progress::Step(&format!(
        "Sending a datagram, and stopping the guest at {}",
        kick.symbol
    )));
    let stopped = (|| {
        let mut debugger = Debugger::attach(&guest, &socket)?;
        let breakpoint = format!("1,{:x},1", kick.address);
        debugger.command(&format!("Z{breakpoint}"))?;
        for _ in 0..OTHER_KICKS {
            debugger.go()?;
            // Its answer does not come. Another is sent each time: the one before may have
            // gone out by the kick of another frame.
            let _ = far.udp_echo(up.ip(), BYTES, SENT);
            debugger.stopped()?;
            // The breakpoint would stop it before this very instruction again.
            debugger.command(&format!("z{breakpoint}"))?;
            let queue = debugger.register(RDI)? as u16;
            if queue % 2 == 1 {
                let ring = Ring::of(&guest, queue, &status)?;
                // The guest reports its multicast groups as well, when it likes.
                if ring.has_answer(&guest)? {
                    return Ok(ring);
                }
            }
            debugger.step()?;
            debugger.command(&format!("Z{breakpoint}"))?;
        }
        Err(anyhow::anyhow!("no kick was for the answer"))
    })();
    let ring = stopped.map_err(|error| failed(format!("cannot stop it at its kick: {error:#}")))?;
    let connect = format!(
        "gdb -q {} -ex 'target remote {}'",
        quote(executable.as_os_str()),
        socket.display()
    );
    let walk = Walk {
        executable,
        socket,
        connect,
        function: kick.symbol,
        address: kick.address,
        instruction: kick.text,
        commands: looks(&ring, kind == 0, &status),
        doorbell: status.device.doorbell,
        ring,
    };
    Ok(Stopped {
        walk,
        guest,
        prepared,
        _cable: cable,
        _directory: directory,
    })
}

impl Ring {
    fn of(guest: &Guest, queue: u16, status: &Status) -> anyhow::Result<Self> {
        let QueueStatus {
            vring_num: size,
            vring_desc: descriptors,
            vring_avail: driver,
            vring_used: device,
            last_avail_idx: next,
            ..
        } = memory::queue_status(guest, queue)?;
        let words = |address| {
            let bytes = memory::read_physical(guest, address, 4)?;
            let word = |at| {
                bytes
                    .get(at..at + 2)
                    .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
            };
            anyhow::Ok([word(0), word(2)])
        };
        let packed = has(status, "RING_PACKED");
        let driver_words = words(driver)?;
        let (event, head) = if packed {
            (None, None)
        } else {
            let [event, _] = words(avail_event(device, size))?;
            let [head, _] = words(driver + 4 + 2 * newest(driver_words[1], size))?;
            (Some(event), Some(head))
        };
        Ok(Self {
            queue,
            packed,
            size,
            descriptors,
            driver,
            device,
            next,
            driver_words,
            device_words: words(device)?,
            avail_event: event,
            head,
        })
    }

    /// Whether a frame waits for the device that is as long as the answer to the datagram. Of
    /// one whose header has a descriptor of its own it is not known.
    fn has_answer(&self, guest: &Guest) -> anyhow::Result<bool> {
        let newest = u64::from(self.head.unwrap_or(self.next & 0x7fff));
        let place = self.descriptors + 16 * newest + 8;
        let bytes = memory::read_physical(guest, place, 8)?;
        let [a, b, c, d, _, _, low, high] = *bytes.as_slice() else {
            return Ok(false);
        };
        // A device that was still awake has taken it before the kick.
        let waits = if self.packed {
            let flags = u16::from_le_bytes([low, high]);
            // Specification 2.8.1: of one that was used, AVAIL and USED are the same.
            flags >> 7 & 1 != flags >> 15
        } else {
            self.driver_words[1] == self.next.wrapping_add(1)
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        // `struct virtio_net_hdr` with and without `num_buffers`.
        let is_long = |header| [header, header + HEADERS + BYTES].contains(&length);
        Ok(waits && [10, 12].into_iter().any(is_long))
    }
}

/// Where a split ring's newest entry is, below a published index.
fn newest(index: u16, size: u16) -> u64 {
    u64::from(index.wrapping_sub(1) % size.max(1))
}

/// Where `avail_event` is, behind the elements of a used ring.
fn avail_event(used: u64, size: u16) -> u64 {
    used + 4 + 8 * u64::from(size)
}

fn has(status: &Status, feature: &str) -> bool {
    let mut features = status.device.features_negotiated.iter();
    features.any(|name| name == feature)
}

/// What there is to look at.
fn looks(ring: &Ring, port: bool, status: &Status) -> Vec<Look> {
    let event_idx = has(status, "EVENT_IDX");
    let mut looks = Vec::new();
    let mut look = |command: String, shows: String| {
        looks.push(Look {
            command,
            shows,
            output: None,
        });
    };
    look(
        "x/i $pc".into(),
        "the next instruction: the kick, not yet executed".into(),
    );
    let (register, place) = match port {
        true => (
            "$dx",
            "the port that it writes to, the device's notify register",
        ),
        false => (
            "$rsi",
            "the address that it writes to, the device's notify register",
        ),
    };
    look(format!("print/x {register}"), place.into());
    look(
        "print $di".into(),
        "the queue's number, which it writes".into(),
    );
    look(
        "backtrace 12".into(),
        "who called: from the poll loop to the doorbell".into(),
    );
    look(
        "maintenance packet Qqemu.PhyMemMode:1".into(),
        "from here on addresses are physical, as the device has them".into(),
    );
    match ring.packed {
        false => split(ring, event_idx, &mut look),
        true => packed(ring, event_idx, &mut look),
    }
    look(
        "maintenance packet Qqemu.PhyMemMode:0".into(),
        "from here on they are the CPU's again".into(),
    );
    look(
        "stepi".into(),
        "executes the kick: the VM exit; when it returns, QEMU knows".into(),
    );
    look("x/i $pc".into(), "the instruction behind it".into());
    looks
}

fn split(ring: &Ring, event_idx: bool, look: &mut impl FnMut(String, String)) {
    let Ring {
        size,
        descriptors,
        driver,
        device,
        ..
    } = *ring;
    let [_, index] = ring.driver_words;
    let newest = newest(index, size);
    look(
        format!("x/2uh {driver:#x}"),
        "the available ring's flags and idx, which are published (2.7.6)".into(),
    );
    look(
        format!("x/1uh {:#x}", driver + 4 + 2 * newest),
        format!("its newest entry, number {newest}: the head of a chain"),
    );
    let head = ring.head.unwrap_or_default();
    look(
        format!("x/4xw {:#x}", descriptors + 16 * u64::from(head)),
        format!("descriptor {head}: address (low, high), length, flags and next (2.7.5)"),
    );
    look(
        format!("x/2uh {device:#x}"),
        "the used ring's flags and idx: how far the device is (2.7.8)".into(),
    );
    if event_idx {
        look(
            format!("x/1uh {:#x}", avail_event(device, size)),
            "avail_event: once idx goes past it the device wants to be told (2.7.10)".into(),
        );
    }
}

fn packed(ring: &Ring, event_idx: bool, look: &mut impl FnMut(String, String)) {
    let next = ring.next & 0x7fff;
    look(
        format!("x/4xw {:#x}", ring.descriptors + 16 * u64::from(next)),
        format!(
            "descriptor {next}, the next for the device: address (low, high), length, and id with \
             flags above it; AVAIL ({AVAIL:#x}) and USED ({USED:#x}) differ: it is available (2.8.1)"
        ),
    );
    look(
        format!("x/2xh {:#x}", ring.driver),
        "the driver event suppression structure: position and flags (2.8.10)".into(),
    );
    let wish = match event_idx {
        true => {
            "the device event suppression structure: at which position it wants to be told \
                 (flags 2), or always (0), or never (1) (2.8.10)"
        }
        false => {
            "the device event suppression structure, without EVENT_IDX its flags: 0, always, \
                  or 1, never (2.8.10)"
        }
    };
    look(format!("x/2xh {:#x}", ring.device), wish.into());
}

impl Stopped {
    /// The debugger, if it is installed or can be.
    ///
    /// # Errors
    /// It may not, or cannot, be installed; the message says how to.
    pub fn debugger(
        &self,
        settings: &Settings,
        sink: &mut Sink<'_>,
    ) -> Result<Command, SessionError> {
        require(&[GDB], settings.policy, sink)?;
        let gdb = Host::detect().find(&GDB).unwrap_or_else(|| "gdb".into());
        let mut command = Command::new(gdb);
        command
            .args(["-nx", "-q", "-iex", "set auto-load off"])
            .args(["-iex", "set debuginfod enabled off"])
            .args(["-ex", "set width 0", "-ex", "set pagination off"])
            .args(["-ex", "set confirm off"])
            .arg("-ex")
            .arg(format!("target remote {}", self.walk.socket.display()))
            .arg(&self.walk.executable);
        Ok(command)
    }

    /// Gives the terminal to the debugger, until its user leaves it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn hand_over(&self, mut debugger: Command) -> Result<(), SessionError> {
        let ended = interrupt::left_to(|| debugger.status());
        ended.map(drop).map_err(system("start gdb"))
    }

    /// Has the debugger carry out all commands, and keeps what it says. The guest runs on
    /// then.
    ///
    /// # Errors
    /// The debugger fails.
    pub fn ask(&mut self, debugger: &Command) -> Result<(), SessionError> {
        let mut command = Command::new("timeout");
        command.arg(BOUND).arg(debugger.get_program()).arg("-batch");
        command.args(debugger.get_args());
        for look in &self.walk.commands {
            command.arg("-ex").arg(format!("echo \\n{MARK}\\n"));
            command.arg("-ex").arg(&look.command);
        }
        command.arg("-ex").arg(format!("echo \\n{MARK}\\n"));
        command.args(["-ex", "detach"]);
        let said = command.output().map_err(system("run gdb"))?;
        let text = String::from_utf8_lossy(&said.stdout);
        let mut parts = text.split(MARK).skip(1);
        for look in &mut self.walk.commands {
            let part = parts.next().map(|part| part.trim().to_owned());
            look.output = part.filter(|part| !part.is_empty());
        }
        if parts.next().is_some() {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&said.stderr);
        let text = format!("gdb ended before all was looked at: {}", error.trim());
        Err(self.guest.failure(Cause::Other(text)).into())
    }

    /// Keeps the guest where it is until Ctrl-C, or QEMU's end.
    pub fn hold(&self) {
        while !interrupt::requested() && self.guest.exit().is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Tells where the guest stands, and what to look at.
///
/// # Errors
/// The output is closed.
pub fn print<W: io::Write>(story: &mut Story<W>, stopped: &Stopped) -> io::Result<()> {
    let walk = &stopped.walk;
    let name = if walk.ring.packed { "packed" } else { "split" };
    story.section("The guest stands before its kick")?;
    let accel = stopped.prepared.accel().word();
    story.row("Accelerator", accel)?;
    story.row("Function", walk.function)?;
    story.row(
        "Instruction",
        &format!(
            "{} at {:#x}, not yet executed",
            walk.instruction, walk.address
        ),
    )?;
    story.row("Kick", &walk.doorbell)?;
    story.row(
        "Queue",
        &format!(
            "{}, {name}, {} descriptors",
            walk.ring.queue, walk.ring.size
        ),
    )?;
    story.section("In gdb")?;
    for look in &walk.commands {
        story.line(&format!("  (gdb) {}", look.command))?;
        story.row("", &look.shows)?;
        for line in look.output.iter().flat_map(|output| output.lines()) {
            story.faint(&format!("    {line}"))?;
        }
    }
    Ok(())
}

fn system(what: &'static str) -> impl Fn(io::Error) -> SessionError {
    move |source| SessionError::System {
        what: what.to_owned(),
        source,
    }
}
