//! `kickpath bench`: what a packet costs, in units that repeat.
//!
//! Under `-icount shift=0` the time stamp counter of TCG advances by one an
//! instruction, so the guest counts its instructions exactly. `ioeventfd=off`
//! makes every kick an access that QEMU handles where it is made, so that none
//! is missing from the count of register accesses. Times are not measured:
//! they would say more about the machine than about the guest.
//!
//! Where KVM runs the guest instructions are not counted, and the rest is ([`on_kvm`]).

pub mod baseline;
pub mod linux;
mod load;
pub mod on_kvm;
pub mod peer;
pub mod profile;
mod table;
pub mod tap;
mod tracepoint;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use kickpath_abi::config::{Bench, Ipv4Config, LogLevel};
use kickpath_abi::status::Status;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::accel::AccelChoice;
use crate::command::{Progress, Sink};
use crate::guest::{Cause, Exit, Guest};
use crate::qemu::Machine;
use crate::session::{Mismatch, NetChoice, Prepared, SessionError, Settings, fetch_status};
use crate::terminal::Story;
use crate::wire::Tap;
use crate::wire::peer::{Flood, FloodReport};
use baseline::Comparison;
use peer::PeerDriver;
use profile::{Counts, Profile, Profiler};

pub use table::{DRIVER_LIMITS, ECHO_LIMITS, Limit};
pub use tracepoint::Tracepoint;

/// What the guest prints before the numbers of its own measurement.
const LINE: &str = "kickpath: bench ";

/// How long a measurement inside the guest may take.
const GUEST_BOUND: Duration = Duration::from_secs(300);

/// How long the whole series of echoes may take.
const FLOOD_BOUND: Duration = Duration::from_secs(1800);

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// UDP echo requests.
    pub echoes: u64,
    /// Content bytes of each.
    pub size: usize,
    /// Requests on their way at a time.
    pub outstanding: usize,
    /// Whether to tell where the instructions go.
    pub profile: bool,
    /// A guest with the driver of `virtio-drivers`, instead of building it.
    pub peer_kernel: Option<PathBuf>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            echoes: 100_000,
            size: 64,
            outstanding: 32,
            profile: false,
            peer_kernel: None,
        }
    }
}

/// Sums over a measurement inside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Packets.
    pub packets: u64,
    /// Guest instructions, idle left out.
    pub instructions: u64,
    /// Doorbell writes.
    pub kicks: u64,
    /// Doorbell writes found unnecessary.
    #[serde(default)]
    pub kicks_suppressed: u64,
    /// Interrupts taken.
    #[serde(default)]
    pub interrupts: u64,
    /// Accesses to device registers, kicks included.
    pub register_accesses: u64,
    /// Heap allocations.
    pub heap_allocations: u64,
}

/// The guest's line about frames.
#[derive(Deserialize)]
struct GuestLine {
    tx: Sums,
    tx_each: Sums,
    tx_copied: Sums,
    tx_offloaded: Sums,
}

/// The guest's line about frames received.
#[derive(Deserialize)]
struct RxLine {
    rx: Sums,
    rx_each: Sums,
    rx_in_place: Sums,
}

/// The guest's line about datagrams.
#[derive(Deserialize)]
struct UdpLine {
    udp: Vec<SizedSums>,
}

#[derive(Deserialize)]
struct SizedSums {
    size: usize,
    #[serde(flatten)]
    sums: Sums,
}

/// Datagrams sent from a socket, the network stack included.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct UdpTx {
    /// Content bytes of each.
    pub size: usize,
    /// What the guest counted.
    pub sums: Sums,
    /// Per packet.
    pub per_packet: PerPacket,
}

/// The driver's transmit path alone.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DriverTx {
    /// What the guest counted of frames that lie ready, in batches.
    pub sums: Sums,
    /// The same per packet.
    pub per_packet: PerPacket,
    /// Per packet of those, one by one.
    pub each: PerPacket,
    /// The same, and the device fills in a checksum if it has agreed to.
    pub offloaded: PerPacket,
    /// Per packet of 60 bytes that are copied in, in batches.
    pub copied: PerPacket,
    /// Per packet of 60 bytes received, checked and copied out, in batches.
    pub received: PerPacket,
    /// The same, one by one.
    pub received_each: PerPacket,
    /// One by one without a copy: looked at where the device wrote them.
    pub received_in_place: PerPacket,
}

impl DriverTx {
    /// What is done with a frame, and what that costs.
    fn ways(&self) -> [(&'static str, PerPacket); 7] {
        [
            ("sent", self.per_packet),
            ("sent, one by one", self.each),
            ("sent, checksum asked for", self.offloaded),
            ("copied in and sent", self.copied),
            ("received and copied out", self.received),
            ("received, one by one", self.received_each),
            ("received in place, one by one", self.received_in_place),
        ]
    }
}

/// UDP echoes from end to end.
#[derive(Clone, Debug, Serialize)]
pub struct UdpEcho {
    /// Content bytes of each request.
    pub size: usize,
    /// Requests on their way at a time.
    pub outstanding: usize,
    /// What the far end saw.
    pub flood: FloodReport,
    /// The difference of the guest's counters.
    pub sums: Sums,
    /// Per request.
    pub per_packet: PerPacket,
    /// Where the instructions went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// Sums divided by packets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerPacket {
    /// Guest instructions, idle left out.
    pub instructions: f64,
    /// Doorbell writes.
    pub kicks: f64,
    /// Interrupts taken.
    pub interrupts: f64,
    /// Accesses to device registers.
    pub register_accesses: f64,
    /// Heap allocations.
    pub heap_allocations: f64,
}

impl Sums {
    /// Per packet; of no packets everything costs nothing.
    fn per_packet(&self) -> PerPacket {
        let packets = self.packets.max(1) as f64;
        PerPacket {
            instructions: self.instructions as f64 / packets,
            kicks: self.kicks as f64 / packets,
            interrupts: self.interrupts as f64 / packets,
            register_accesses: self.register_accesses as f64 / packets,
            heap_allocations: self.heap_allocations as f64 / packets,
        }
    }

    /// What is left when that much has another cause.
    fn without(&self, other: &Self) -> Self {
        let less = u64::saturating_sub;
        Self {
            packets: self.packets,
            instructions: less(self.instructions, other.instructions),
            kicks: less(self.kicks, other.kicks),
            kicks_suppressed: less(self.kicks_suppressed, other.kicks_suppressed),
            interrupts: less(self.interrupts, other.interrupts),
            register_accesses: less(self.register_accesses, other.register_accesses),
            heap_allocations: less(self.heap_allocations, other.heap_allocations),
        }
    }

    /// What happened between two reports of the guest.
    fn between(before: &Status, after: &Status, packets: u64) -> Self {
        let busy = |status: &Status| status.cpu.cycles.saturating_sub(status.cpu.idle_cycles);
        let since = |f: fn(&Status) -> u64| f(after).saturating_sub(f(before));
        Self {
            packets,
            instructions: busy(after).saturating_sub(busy(before)),
            kicks: since(|s| s.counters.kicks),
            kicks_suppressed: since(|s| s.counters.kicks_suppressed),
            interrupts: since(|s| s.counters.interrupts),
            register_accesses: since(|s| s.counters.register_accesses),
            heap_allocations: since(|s| s.cpu.heap_allocations),
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every limit is kept.
    pub ok: bool,
    /// The limits that are missed.
    pub missed: Vec<String>,
    /// The command lines of QEMU.
    pub command_lines: Vec<String>,
    /// The driver's transmit path alone.
    pub driver_tx: DriverTx,
    /// The same by the driver of `virtio-drivers`, unless there is no guest that has it.
    pub peer: Option<PeerDriver>,
    /// Datagrams from a socket, one entry a size.
    pub udp_tx: Vec<UdpTx>,
    /// UDP echoes.
    pub udp_echo: UdpEcho,
    /// Tracepoints.
    pub tracepoint: Tracepoint,
    /// At a tap, where this user may make one.
    pub tap: Vec<tap::Row>,
    /// Beside another build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Comparison>,
}

/// Describes the machine of a measurement, without its network.
///
/// # Errors
/// As [`Settings::prepare`].
pub fn prepare(
    settings: &Settings,
    dry_run: bool,
    sink: &mut Sink<'_>,
) -> Result<Prepared, SessionError> {
    let counts_instructions = !settings.asks_for_kvm();
    match counts_instructions {
        true => check(settings)?,
        false => on_kvm::check(settings)?,
    }
    // Instructions can be counted under TCG only, and the guest's own results
    // come by its log.
    let settings = Settings {
        accel: match counts_instructions {
            true => AccelChoice::Tcg,
            false => AccelChoice::Kvm,
        },
        log: LogLevel::Info,
        ..settings.clone()
    };
    let mut prepared = settings.prepare(dry_run, sink)?;
    prepared.machine.icount = counts_instructions.then_some(0);
    Ok(prepared)
}

/// Whether the options leave what is measured as it is.
fn check(settings: &Settings) -> Result<(), Mismatch> {
    let decided = |option, why| Err(Mismatch::Decided { option, why });
    if settings.accel == AccelChoice::Nested {
        let why = "bench counts instructions, which TCG alone can";
        return decided("--accel nested", why);
    }
    if settings.ioeventfd == Some(true) {
        let why = "bench counts every kick where it is made, without an ioeventfd";
        return decided("--ioeventfd on", why);
    }
    settings.check_with(NetChoice::Dgram)
}

/// Makes kicks count, see the module.
pub fn without_ioeventfd(machine: &mut Machine) {
    if let Some(nic) = &mut machine.nic {
        nic.ioeventfd = Some(false);
    }
}

/// Measures; tells `story`, where there is one, the results.
///
/// # Errors
/// The guest does not come up, stops, or reports no numbers. A missed limit is
/// not an error here but in the report.
pub fn bench<W: Write>(
    settings: &Settings,
    options: &BenchOptions,
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<Report, SessionError> {
    let prepared = prepare(settings, false, sink)?;
    let peer_kernel = peer::kernel(settings, options.peer_kernel.as_deref(), sink)?;
    if let Some(story) = &mut story {
        table::introduction(story)?;
    }
    sink(Progress::Step("Measuring the driver alone"));
    let (driver_tx, driver_line) = driver_tx(&prepared, Prepared::connect_peer)?;
    if let Some(story) = &mut story {
        table::driver(story, &driver_tx)?;
    }
    let peer = match peer_kernel {
        Ok(kernel) => Ok(peer::measure(prepared.clone(), kernel)?),
        Err(why) => Err(why),
    };
    if let Some(story) = &mut story {
        table::peer(story, peer)?;
    }
    sink(Progress::Step("Measuring datagrams from a socket"));
    let udp_tx = udp_tx(&prepared, Prepared::connect_peer)?;
    if let Some(story) = &mut story {
        table::udp_tx(story, &udp_tx)?;
    }
    sink(Progress::Step("Measuring UDP echoes"));
    let tracing = prepared.clone();
    let program = &prepared.machine.program;
    let profiler = Profiler::if_wanted(options.profile, settings.policy, program, sink)?;
    let (udp_echo, echo_line, _) =
        counted_echo(prepared, options, profiler.as_ref(), without_ioeventfd)?;
    if let Some(story) = &mut story {
        table::echo(story, &udp_echo)?;
        table::peers(story, &driver_tx, &udp_echo)?;
    }
    sink(Progress::Step("Measuring a tracepoint"));
    let tracepoint = tracepoint::measure(tracing)?;
    if let Some(story) = &mut story {
        table::tracepoint(story, &tracepoint)?;
    }
    let tap = match Tap::check_rights() {
        Ok(()) => {
            sink(Progress::Step("Measuring at a tap"));
            let echoes = (options.echoes / 10).max(1_000);
            tap::measure(settings, echoes, options.profile, sink)?
        }
        Err(_) => Vec::new(),
    };
    if let Some(story) = &mut story {
        table::tap(story, &tap)?;
    }
    let mut missed = table::missed(&driver_tx, &udp_echo);
    missed.extend(tracepoint.missed());
    if let Some(story) = &mut story {
        table::conclusion(story, &missed)?;
    }
    Ok(Report {
        ok: missed.is_empty(),
        missed,
        command_lines: vec![driver_line, echo_line],
        driver_tx,
        peer: peer.ok(),
        udp_tx,
        udp_echo,
        tracepoint,
        tap,
        baseline: None,
    })
}

/// Datagrams from a socket, with a far end of this kind.
pub(crate) fn udp_tx<F>(
    prepared: &Prepared,
    connect: impl Fn(&mut Prepared) -> Result<F, SessionError>,
) -> Result<Vec<UdpTx>, SessionError> {
    let (line, guest) = by_guest(prepared.clone(), Bench::Udp, connect)?;
    udp_sums(&line).map_err(|error| wrong(&guest, &error))
}

fn udp_sums(line: &str) -> Result<Vec<UdpTx>, String> {
    let UdpLine { udp } = parse_line(line)?;
    if udp.is_empty() || udp.iter().any(|sized| sized.sums.packets == 0) {
        return Err(format!("the guest measured nothing: '{line}'"));
    }
    let results = udp.into_iter().map(|SizedSums { size, sums }| UdpTx {
        size,
        sums,
        per_packet: sums.per_packet(),
    });
    Ok(results.collect())
}

/// The driver alone, with a far end of this kind.
pub(crate) fn driver_tx<F>(
    prepared: &Prepared,
    connect: impl Fn(&mut Prepared) -> Result<F, SessionError>,
) -> Result<(DriverTx, String), SessionError> {
    let measure = |what| by_guest(prepared.clone(), what, &connect);
    let (sent, guest) = measure(Bench::Tx)?;
    let (received, _) = measure(Bench::Rx)?;
    let driver = driver_lines(&sent, &received).map_err(|error| wrong(&guest, &error))?;
    Ok((driver, guest.command_line().to_owned()))
}

/// Has the guest measure `what` with a far end of this kind, and returns its line and the
/// guest, which has ended.
fn by_guest<F>(
    mut prepared: Prepared,
    what: Bench,
    connect: impl Fn(&mut Prepared) -> Result<F, SessionError>,
) -> Result<(String, Guest), SessionError> {
    // Held until the guest has ended.
    let _far_end = connect(&mut prepared)?;
    without_ioeventfd(&mut prepared.machine);
    let config = &mut prepared.machine.config;
    config.bench = what;
    config.ipv4 = Ipv4Config::Static(prepared.plan.guest);
    config.gateway = Some(prepared.plan.host);
    end(prepared.launch()?)
}

/// Reads `... kickpath: bench {json}`.
pub(crate) fn parse_line<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    let (_, json) = line.split_once(LINE).unwrap_or_default();
    serde_json::from_str(json).map_err(|e| format!("the guest's line '{line}': {e}"))
}

fn driver_lines(sent: &str, received: &str) -> Result<DriverTx, String> {
    let GuestLine {
        tx,
        tx_each,
        tx_copied,
        tx_offloaded,
    } = parse_line(sent)?;
    let RxLine {
        rx,
        rx_each,
        rx_in_place,
    } = parse_line(received)?;
    for (sums, line) in [
        (tx, sent),
        (tx_each, sent),
        (tx_copied, sent),
        (tx_offloaded, sent),
        (rx, received),
        (rx_each, received),
        (rx_in_place, received),
    ] {
        if sums.packets == 0 || sums.instructions == 0 {
            return Err(format!("the guest measured nothing: '{line}'"));
        }
    }
    Ok(DriverTx {
        sums: tx,
        per_packet: tx.per_packet(),
        each: tx_each.per_packet(),
        offloaded: tx_offloaded.per_packet(),
        copied: tx_copied.per_packet(),
        received: rx.per_packet(),
        received_each: rx_each.per_packet(),
        received_in_place: rx_in_place.per_packet(),
    })
}

/// Has the guest answer UDP echoes, on a machine that `edit` changes when it
/// has its network device. Returns the command line and the guest's last report
/// as well.
pub(crate) fn echo(
    prepared: Prepared,
    options: &BenchOptions,
    edit: impl FnOnce(&mut Machine),
) -> Result<(UdpEcho, String, Status), SessionError> {
    counted_echo(prepared, options, None, edit)
}

/// As [`echo`], with the instructions told by `profiler`.
fn counted_echo(
    mut prepared: Prepared,
    options: &BenchOptions,
    profiler: Option<&Profiler>,
    edit: impl FnOnce(&mut Machine),
) -> Result<(UdpEcho, String, Status), SessionError> {
    let peer = prepared.connect_peer()?;
    edit(&mut prepared.machine);
    if let Some(profiler) = profiler {
        profiler.attach(&mut prepared.machine);
    }
    let counts = || profiler.map_or_else(|| Ok(Counts::default()), Profiler::read);
    let mut guest = prepared.launch()?;
    guest.attach_frames(peer.frame_log());
    let up = prepared.wait_until_up(&guest, &peer)?;
    let bound = prepared.accel().reply_bound();
    let status = || {
        fetch_status(&peer, up.ip(), bound).map_err(|error| {
            // A guest that stopped is the better explanation.
            let stopped = guest.check().err();
            stopped.map_or_else(|| wrong(&guest, &error.to_string()), SessionError::from)
        })
    };
    let flood = |count| Flood {
        count,
        size: options.size,
        outstanding: options.outstanding,
        patience: Duration::from_secs(5),
        bound: FLOOD_BOUND,
    };
    let send = |count| {
        let report = peer.udp_echo_flood(up.address.address, flood(count));
        report.map_err(|error| wrong(&guest, &error.to_string()))
    };
    // Fills caches of addresses.
    send(options.outstanding as u64 * 4)?;
    // What it costs to ask for a report, and to send it, is not the echo's.
    let first = status()?;
    let before = status()?;
    let asking = Sums::between(&first, &before, 0);
    let counted_before = counts()?;
    let report = send(options.echoes)?;
    let counted = counts()?.since(&counted_before);
    let after = status()?;
    guest.check()?;
    let name = |_| Profile::of(&counted, &prepared.machine.boot, report.sent);
    let profile = profiler.map(name).transpose()?;
    let sums = Sums::between(&before, &after, report.sent).without(&asking);
    let echo = UdpEcho {
        size: options.size,
        outstanding: options.outstanding,
        flood: report,
        sums,
        per_packet: sums.per_packet(),
        profile,
    };
    Ok((echo, guest.command_line().to_owned(), after))
}

/// Runs a measurement that the guest makes alone, on a machine that `edit`
/// changes when it has its network device, and returns the guest's line and
/// the guest, which has ended. `launched` is called when QEMU runs.
pub(crate) fn alone(
    mut prepared: Prepared,
    what: Bench,
    edit: impl FnOnce(&mut Machine),
    launched: impl FnOnce(&Guest) -> crate::guest::Result<()>,
) -> Result<(String, Guest), SessionError> {
    // Nobody is at the far end: the frames are read, counted and forgotten.
    let wire = prepared.wire()?;
    prepared.attach(wire.net());
    edit(&mut prepared.machine);
    prepared.machine.config.bench = what;
    let mut guest = prepared.launch()?;
    guest.attach_frames(wire.frame_log());
    launched(&guest)?;
    end(guest)
}

/// Waits for the guest's line and its end.
fn end(guest: Guest) -> Result<(String, Guest), SessionError> {
    let line = guest.wait_for_console(LINE, GUEST_BOUND)?;
    match guest.wait_for_exit(Duration::from_secs(30))? {
        Exit::SUCCESS => Ok((line.text, guest)),
        other => Err(wrong(&guest, &format!("after its measurement, {other}"))),
    }
}

pub(crate) fn wrong(guest: &Guest, text: &str) -> SessionError {
    let cause = if crate::interrupt::requested() {
        Cause::Interrupted
    } else {
        Cause::Other(text.to_owned())
    };
    guest.failure(cause).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_line_is_read() {
        let sums = "{\"packets\":6400,\"instructions\":243200,\"kicks\":100,\
                    \"register_accesses\":100,\"heap_allocations\":0,\"new\":1}";
        let line = format!(
            "[ 0.12] INFO kickpath: bench {{\"tx\":{sums},\"tx_each\":{sums},\"tx_copied\":{sums},\
             \"tx_offloaded\":{sums}}}"
        );
        let rx =
            format!("kickpath: bench {{\"rx\":{sums},\"rx_each\":{sums},\"rx_in_place\":{sums}}}");
        let DriverTx {
            per_packet,
            each,
            offloaded,
            copied,
            received,
            received_each,
            received_in_place,
            ..
        } = driver_lines(&line, &rx).unwrap();
        assert_eq!(per_packet.instructions, 38.0);
        assert_eq!(per_packet.kicks, 100.0 / 6400.0);
        let ways = [each, offloaded, copied, received, received_each];
        assert_eq!(ways, [per_packet; 5]);
        assert_eq!(received_in_place, per_packet);
        for bad in [
            "",
            "kickpath: bench ",
            "kickpath: bench {}",
            "kickpath: bench {\"tx\":{\"packets\":0,\"instructions\":0,\"kicks\":0,\
             \"register_accesses\":0,\"heap_allocations\":0}}",
        ] {
            assert!(driver_lines(bad, &rx).is_err(), "{bad}");
            assert!(driver_lines(&line, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_guests_line_about_datagrams_is_read() {
        let line = "kickpath: bench {\"udp\":[{\"size\":64,\"packets\":10,\"instructions\":7000,\
                    \"kicks\":1,\"register_accesses\":1,\"heap_allocations\":0}]}";
        let [result] = udp_sums(line).unwrap()[..] else {
            panic!("one size");
        };
        assert_eq!((result.size, result.per_packet.instructions), (64, 700.0));
        for bad in ["", "kickpath: bench {\"udp\":[]}"] {
            assert!(udp_sums(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn idle_cycles_are_left_out() {
        let mut before = Status::default();
        before.cpu.cycles = 1000;
        before.cpu.idle_cycles = 400;
        before.counters.kicks = 5;
        let mut after = before.clone();
        after.cpu.cycles = 9000;
        after.cpu.idle_cycles = 6400;
        after.counters.kicks = 8;
        let sums = Sums::between(&before, &after, 4);
        assert_eq!(sums.instructions, 2000);
        assert_eq!(sums.per_packet().instructions, 500.0);
        assert_eq!(sums.per_packet().kicks, 0.75);
        let half = Sums {
            instructions: 500,
            ..sums
        };
        assert_eq!(sums.without(&half).instructions, 1500);
        assert_eq!(sums.without(&half).packets, 4);
        // Counters that went back (another guest) are no huge numbers.
        assert_eq!(Sums::between(&after, &before, 4).instructions, 0);
    }
}
