//! The end of the story: the kick of one datagram, as it was recorded.

use std::io::{self, Write};
use std::net::Ipv4Addr;

use kickpath_abi::status::Status;

use crate::guest::Guest;
use crate::session::Prepared;
use crate::terminal::Story;
use crate::trace::capture::{TraceError, Tracer, device_of, run_of};
use crate::trace::timeline::{Layer, Phase, Step};
use crate::trace::{self, Timeline};
use crate::wire::Peer;

/// Sends one datagram more, and tells how it left. Whatever goes wrong here is
/// told and does not spoil the run.
pub(super) fn tell<W: Write>(
    story: &mut Story<W>,
    tracer: &Tracer,
    prepared: &Prepared,
    guest: &Guest,
    peer: &Peer,
    address: Ipv4Addr,
    status: &Status,
) -> io::Result<()> {
    let timeline = || -> Result<Timeline, TraceError> {
        let reason = &prepared.decision.reason;
        let run = run_of(&prepared.machine, reason, guest, device_of(status));
        let recording = tracer.record(
            guest,
            peer,
            &peer.frame_log(),
            address,
            run,
            status.boot.tsc_hz,
        )?;
        trace::timeline(&prepared.machine.boot, &recording)
    };
    story.section("How the last datagram left")?;
    match timeline() {
        Ok(timeline) => {
            for step in kick(&timeline) {
                trace::text::print_step(story, step)?;
            }
            story.faint("  All of it, from the wire to the socket and back: cargo run -- trace")
        }
        Err(TraceError::Guest(failure)) => story.row("Not traced", &failure.cause.to_string()),
        Err(error) => story.row("Not traced", &error.to_string()),
    }
}

/// The steps of the kick: from the index that shows the frame to the device
/// until the frame is on the wire.
fn kick(timeline: &Timeline) -> impl Iterator<Item = &Step> {
    let queue = timeline
        .phase(Phase::Transmit)
        .find(|step| step.event == "StartXmit")
        .and_then(|step| step.queue);
    let last = timeline
        .phase(Phase::Transmit)
        .filter(|step| step.layer == Layer::Wire)
        .last()
        .map_or(usize::MAX, |step| step.number);
    timeline
        .phase(Phase::Transmit)
        .skip_while(move |step| !(step.event == "Publish" && step.queue == queue))
        .filter(move |step| step.layer != Layer::Guest || step.queue == queue)
        .take_while(move |step| step.number <= last)
}
