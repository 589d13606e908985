//! The kick trace: what the guest, QEMU, KVM and the wire recorded while one
//! datagram went into the guest and one came out, joined into one
//! [`Timeline`].
//!
//! A value of a timeline was recorded in the run that it tells of, or it is
//! absent; nothing is filled in from expectation. What explains a step (the
//! sentence, the Linux function, the section of the specification) is ours.

pub mod build;
pub mod cable;
pub mod capture;
pub mod clock;
#[cfg(test)]
mod damaged;
pub mod diff;
pub mod explain;
pub mod gdb;
pub mod glossary;
pub mod html;
pub mod image;
pub mod join;
pub mod journey;
pub mod kvm;
pub mod linux;
pub mod perfetto;
pub mod qemu;
pub mod queues;
pub mod recording;
pub mod records;
#[cfg(test)]
mod sample;
mod sources;
pub mod text;
pub mod timeline;

pub use timeline::Timeline;

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::command::{Progress, Sink};
use crate::guest::Guest;
use crate::publish;
use crate::qemu::{Boot, Vmm};
use crate::session::{NetChoice, Prepared, SessionError, Settings, fetch_status};
use crate::wire::FarEnd;
use cable::Cable;
use capture::{TraceError, Tracer};
use recording::Recording;

/// Has the machine record itself.
///
/// # Errors
/// The guest's executable cannot be read, or has no tracepoints.
pub fn tracer(prepared: &mut Prepared) -> Result<Tracer, TraceError> {
    let executable = prepared.executable();
    Tracer::new(&mut prepared.machine, &executable)
}

/// Boots the guest and records one datagram in and one out; `net` is the far end.
///
/// # Errors
/// The guest does not come up or does not answer, or its records cannot be
/// read.
pub fn record(
    settings: &Settings,
    net: NetChoice,
    sink: &mut Sink<'_>,
) -> Result<(Prepared, Recording), SessionError> {
    record_and(settings, net, sink, |_| Ok(()))
}

/// A guest that was traced and runs on.
pub struct Traced<'a> {
    /// What traced it.
    pub tracer: &'a Tracer,
    /// The guest.
    pub guest: &'a Guest,
    /// The far end.
    pub far: &'a dyn FarEnd,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// How long it may take to answer.
    pub bound: Duration,
}

/// As [`record`], and then does something else with the guest.
///
/// # Errors
/// As [`record`], and those of `then`.
pub fn record_and(
    settings: &Settings,
    net: NetChoice,
    sink: &mut Sink<'_>,
    then: impl FnOnce(Traced<'_>) -> Result<(), SessionError>,
) -> Result<(Prepared, Recording), SessionError> {
    cable::require_for(net, settings, sink)?;
    let mut prepared = settings.prepare(false, sink)?;
    let tracer = tracer(&mut prepared)?;
    let cable = Cable::connect(&mut prepared, net)?;
    let guest = cable.launch(&mut prepared)?;
    let far = cable.far_end();
    let up = prepared.wait_until_up(&guest, far)?;
    sink(Progress::Step("Sending one datagram in and one out"));
    let bound = prepared.accel().reply_bound();
    let status = fetch_status(far, up.ip(), bound);
    let status = status.map_err(|error| {
        let stopped = guest.check().err();
        stopped.unwrap_or_else(|| guest.failure(crate::guest::Cause::Other(error.to_string())))
    })?;
    let reason = &prepared.decision.reason;
    let device = capture::device_of(&status);
    let run = capture::run_of(&prepared.machine, reason, &guest, device);
    let hz = status.boot.tsc_hz;
    let address = up.address.address;
    let mut recording = tracer.record(&guest, far, &cable.frame_log(), address, run, hz)?;
    if prepared.machine.vmm == Vmm::Qemu {
        sink(Progress::Step("Taking QEMU's call chain at one more kick"));
        tracer.add_qemu_stack(&guest, far, address, &mut recording)?;
    }
    then(Traced {
        tracer: &tracer,
        guest: &guest,
        far,
        address,
        bound,
    })?;
    Ok((prepared, recording))
}

/// The timeline of a recording, with the source lines of the guest that was
/// recorded, for others to see: this machine's directories are shortened.
///
/// # Errors
/// The records do not tell of the datagram.
pub fn timeline(boot: &Boot, recording: &Recording) -> Result<Timeline, TraceError> {
    let mut timeline = build::build(recording).map_err(|_| TraceError::NoJourney {
        recorded: recording.ring.recorded,
        lost: recording.ring.lost,
        unresolved: 0,
    })?;
    sources::attach(&mut timeline, boot);
    let run = &mut timeline.run;
    run.command_line = publish::shorten(&run.command_line);
    for absent in &mut timeline.absent {
        absent.reason = publish::shorten(&absent.reason);
    }
    Ok(timeline)
}
