//! `trace --guest linux`: the same journey through Linux's own `virtio_net`.
//!
//! Debian's kernel is booted with a root directory of a few files. Its ftrace records
//! the functions of the way out and back with their arguments and the time stamp counter, and the
//! far end reads that by HTTP when the window has closed. From there on it is a
//! [`Recording`] like that of our guest: a function of Linux stands where our guest has the
//! event that answers to it.

pub mod page;
mod probes;
pub mod records;

use super::capture::{self, PROBE_BYTES, TraceError, Tracer};
use super::image;
use super::journey;
use super::recording::Recording;
use super::records::GuestRecord;
use super::timeline::{Absent, Device};
use crate::command::{Progress, Sink};
use crate::guest::Guest;
use crate::linux::initramfs::Entry;
use crate::linux::{GUEST, Linux};
use crate::linux_guest::{self, Service};
use crate::qemu::Accel;
use crate::scratch::Scratch;
use crate::session::{Mismatch, NetChoice, Prepared, SessionError, Settings};
use crate::wire::{FarEnd, Peer};

/// Content of the datagram behind the window, in bytes: what comes with it and after it
/// is left out.
const MARK_BYTES: usize = 16;

/// Longest `iowrite16` that is looked at, in bytes.
const IOWRITE16: usize = 128;

/// Boots Linux and records one datagram in and one out.
///
/// # Errors
/// An option is not for Linux, the kernel cannot be had, the guest does not come up or does not
/// answer, or its records cannot be read.
pub fn record(
    settings: &Settings,
    sink: &mut Sink<'_>,
) -> Result<(Prepared, Recording), SessionError> {
    check(settings, NetChoice::Dgram)?;
    let linux = Linux::get(GUEST, settings.policy, sink)?;
    let settings = Settings {
        kernel: Some(linux.kernel()),
        ..settings.clone()
    };
    let mut prepared = settings.prepare(false, sink)?;
    if let Accel::Kvm { emulated: true } = prepared.accel() {
        return Err(Mismatch::Decided {
            option: "--accel kvm",
            why: "this machine's KVM emulates every instruction, and a Linux would take most of \
                  an hour to boot (--accel tcg or --accel nested take less than a minute)",
        }
        .into());
    }
    let directory = Scratch::new("linux")?;
    linux_guest::boot(
        &mut prepared.machine,
        directory.path(),
        &linux,
        &prepared.plan,
        &[Service::Echo],
        recorders(),
    )?;
    let tracer = Tracer::of_foreign(&mut prepared.machine)?;
    let peer = prepared.connect_peer()?;
    linux_guest::tell_device(&mut prepared.machine, &settings);
    sink(Progress::Step("Booting Linux, with its functions recorded"));
    let mut guest = prepared.launch()?;
    guest.attach_frames(peer.frame_log());
    let up = prepared.wait_until_up(&guest, &peer)?;
    sink(Progress::Step("Sending one datagram in and one out"));
    let reason = &prepared.decision.reason;
    let run = capture::run_of(&prepared.machine, reason, &guest, Device::default());
    let address = up.address.address;
    let frames = peer.frame_log();
    let mut recording = tracer.record(&guest, &peer, &frames, address, run, 0)?;
    complete(&tracer, &guest, &peer, &prepared, &mut recording)?;
    sink(Progress::Step("Taking QEMU's call chain at one more kick"));
    tracer.add_qemu_stack(&guest, &peer, address, &mut recording)?;
    Ok((prepared, recording))
}

/// Refuses what a Linux guest is not told, or what is not recorded of one.
///
/// # Errors
/// The option.
pub fn check(settings: &Settings, net: NetChoice) -> Result<(), Mismatch> {
    let refuse = |option, why| Err(Mismatch::Decided { option, why });
    linux_guest::check(settings)?;
    if net != NetChoice::Dgram {
        return refuse(
            "--net",
            "--guest linux is traced at a far end of our own (dgram)",
        );
    }
    if settings.kernel.is_some() {
        return refuse(
            "--kernel or KICKPATH_KERNEL",
            "it is for our guest, not for Linux (--guest linux)",
        );
    }
    settings.check_with(net)
}

/// The files that record: how, what, and the page that tells.
fn recorders() -> [Entry; 4] {
    let how = format!(
        "EVENTS='{}'\n{}",
        probes::EVENTS.join(" "),
        include_str!("record.sh")
    );
    [
        Entry::text("record", how),
        Entry::text("probes", probes::lines()),
        Entry::directory("www/cgi-bin"),
        Entry::program("www/cgi-bin/trace", include_str!("page.sh")),
    ]
}

/// Reads what the guest recorded, and puts it to what was recorded of it.
fn complete(
    tracer: &Tracer,
    guest: &Guest,
    peer: &Peer,
    prepared: &Prepared,
    recording: &mut Recording,
) -> Result<(), TraceError> {
    let address = prepared.plan.guest.address.into();
    peer.udp_echo(address, MARK_BYTES, prepared.accel().reply_bound())?;
    // The guest makes text of its records first.
    let bound = prepared.accel().boot_bound();
    let answer = peer.http_get(address, "/cgi-bin/trace", bound)?;
    let text = page::unpack(&answer.body)?;
    let page = page::parse(&text)?;
    let ports = recording.regions.iter().find(|region| region.ports);
    let mut guest_records = records::read(page.trace, ports.map(|region| region.address));
    let no_journey = || TraceError::NoJourney {
        recorded: page.ring.recorded,
        lost: page.ring.lost,
        unresolved: 0,
    };
    let end = records::woken_for(&guest_records, MARK_BYTES).ok_or_else(no_journey)?;
    guest_records.truncate(end);
    recording.window.guest =
        records::woken_for(&guest_records, PROBE_BYTES).ok_or_else(no_journey)?;
    recording.guest = guest_records;
    recording.ring = page.ring;
    recording.clocks.guest_hz = page.hz;
    let journey = journey::find(
        &recording.guest,
        recording.window.guest,
        recording.probe.bytes,
    );
    let journey = journey.ok_or_else(no_journey)?;
    let mut doorbell = None;
    if let Some(place) = journey.doorbell {
        let record = &recording.guest[place];
        let address = match record.a {
            0 => record.b,
            _ => capture::physical(guest, record.b).unwrap_or(record.b),
        };
        doorbell = Some(doorbell_text(record, address));
        recording.doorbell_address = Some(address);
        let code = page.iowrite16.and_then(|start| {
            let code = tracer.memory(guest, "memsave", start, IOWRITE16).ok()?;
            image::iowrite16(start, &code, record.a)
        });
        recording.instruction =
            code.map(|found| capture::describe(&found, record, address, &recording.regions));
    }
    let run = &mut recording.run;
    run.guest = Some(format!("Linux {}", page.release));
    run.device = Device {
        transport: transport(&recording.guest).to_owned(),
        location: page.location,
        doorbell: doorbell.unwrap_or_default(),
        interrupts: rung(&recording.guest).to_owned(),
        features: page.features,
        ioeventfd: run.device.ioeventfd,
    };
    recording.absent.push(Absent {
        what: "what Linux's rings hold".to_owned(),
        reason: "its functions' arguments were recorded, and those are no indices or \
                 descriptors; its memory was not read"
            .to_owned(),
        enable: None,
    });
    let missing: Vec<&str> = page
        .missing
        .iter()
        .map(|line| probes::function_of(line))
        .collect();
    if !missing.is_empty() {
        recording.absent.push(Absent {
            what: format!("calls of {}", missing.join(", ")),
            reason: "this kernel has no such functions, or refuses to record them".to_owned(),
            enable: None,
        });
    }
    Ok(())
}

/// What a kick is, as our guest says it.
fn doorbell_text(record: &GuestRecord, address: u64) -> String {
    let queue = record.queue.unwrap_or_default();
    match record.a {
        0 => format!("outw {queue} -> port {address:#x}"),
        1 => format!("movw {queue} -> {address:#x}"),
        _ => "vp_notify".to_owned(),
    }
}

/// Which of its two drivers Linux took.
fn transport(records: &[GuestRecord]) -> &'static str {
    let mut functions = records.iter().filter_map(|record| record.linux.as_ref());
    match functions.any(|linux| linux.function.starts_with("vp_modern_")) {
        true => "modern",
        false => "legacy",
    }
}

/// The rung of the ladder that was taken last.
fn rung(records: &[GuestRecord]) -> &'static str {
    let results = records.iter().rev();
    let mut taken = results
        .filter(|record| record.event == kickpath_trace::Event::FindVqsResult && record.b == 1);
    match taken.next().map(|record| record.a) {
        Some(0) => "msix",
        Some(1) => "msix-shared",
        Some(2) => "intx",
        _ => "not recorded",
    }
}
