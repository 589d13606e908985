//! `kickpath compare --vmm`: what a kick comes to on each VMM that is there.
//!
//! One packet is traced on each, which tells who takes the kick and who sends the frame; then
//! some UDP echoes follow, one at a time, of which the guest's own records and KVM's events are
//! counted. Instructions are not: only QEMU's TCG counts them.

use std::io::Write;

use kickpath_abi::config::{LogLevel, Transport};
use kickpath_trace::Event;

use super::table;
pub use super::vmm_row::{ECHOES, Taken, VmmReport, VmmRow};
use crate::accel::AccelChoice;
use crate::command::{Progress, Sink};
use crate::install::Host;
use crate::qemu::{Kind, Vmm};
use crate::session::{Mismatch, NetChoice, SessionError, Settings};
use crate::terminal::Story;
use crate::trace::capture;
use crate::trace::kvm::{Exits, HostTrace};
use crate::trace::timeline::{Layer, Phase, Step, Timeline};
use crate::trace::{self, Traced, records};

/// Content of each echo, in bytes.
const BYTES: usize = 64;

/// The transports of a VMM, with the machine of QEMU's that has each.
fn transports(vmm: Vmm) -> &'static [(Transport, Kind)] {
    match vmm {
        Vmm::Qemu => &[
            (Transport::Legacy, Kind::Pc),
            (Transport::Modern, Kind::Pc),
            (Transport::Mmio, Kind::Microvm),
        ],
        Vmm::Firecracker => &[(Transport::Mmio, Kind::Pc), (Transport::Modern, Kind::Pc)],
        Vmm::Kvmtool => &[(Transport::Modern, Kind::Pc), (Transport::Legacy, Kind::Pc)],
        Vmm::CloudHypervisor | Vmm::Alioth | Vmm::Crosvm => &[(Transport::Modern, Kind::Pc)],
    }
}

/// Compares these VMMs; one that is not there, or does not do it, is told of in the report.
///
/// # Errors
/// The options do not leave the comparison what it compares, or nobody takes the story.
pub fn compare<W: Write>(
    settings: &Settings,
    vmms: &[Vmm],
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<VmmReport, SessionError> {
    super::check(settings)?;
    if settings.accel == AccelChoice::Tcg {
        let (option, why) = ("--accel tcg", "other VMMs than QEMU have KVM only");
        return Err(Mismatch::Decided { option, why }.into());
    }
    let mut report = VmmReport {
        echoes: ECHOES,
        ..VmmReport::default()
    };
    if let Some(story) = &mut story {
        table::vmm_introduction(story)?;
    }
    for &vmm in vmms {
        if vmm != Vmm::Qemu && vmm.find(&Host::detect()).is_none() {
            report.absent.push(format!("{vmm}: it is not on the path"));
            continue;
        }
        for &(transport, kind) in transports(vmm) {
            sink(Progress::Step(&format!("Measuring {vmm}, {transport}")));
            let settings = Settings {
                vmm,
                kind,
                transport,
                accel: AccelChoice::Kvm,
                log: LogLevel::Info,
                ..settings.clone()
            };
            match measure(&settings, sink) {
                Ok(row) => {
                    if let Some(story) = &mut story {
                        table::vmm_row(story, &row)?;
                    }
                    report.rows.push(row);
                }
                Err(_) if crate::interrupt::requested() => break,
                Err(error) => report.absent.push(format!("{vmm}, {transport}: {error}")),
            }
        }
    }
    if let Some(story) = &mut story {
        table::vmm_conclusion(story, &report)?;
    }
    Ok(report)
}

/// What was counted of the echoes.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    kicks: u64,
    interrupts: u64,
    exits: Option<Exits>,
}

fn measure(settings: &Settings, sink: &mut Sink<'_>) -> Result<VmmRow, SessionError> {
    let mut counted = Counted::default();
    let (prepared, recording) = trace::record_and(settings, NetChoice::Tap, sink, |traced| {
        counted = count(settings.vmm, &traced)?;
        Ok(())
    })?;
    let timeline = trace::timeline(&prepared.executable(), &recording)?;
    let an_echo = |count: u64| count as f64 / ECHOES as f64;
    let run = &timeline.run;
    let names = &recording.threads;
    let thread = |step: &Step| {
        let told = step.values.iter().find(|value| value.name == "thread");
        told.map(|value| value.value.clone()).or_else(|| {
            let thread = step.thread?;
            Some(if names.vcpus.contains(&thread) {
                "vCPU thread".to_owned()
            } else {
                "main loop".to_owned()
            })
        })
    };
    let step = |events: &[&str], phase: Phase| {
        let steps = timeline.steps.iter();
        let mut own = steps.filter(|step| step.phase == phase && !step.aside);
        own.find(|step| {
            !matches!(step.layer, Layer::Guest | Layer::Kvm | Layer::Wire)
                && events.contains(&step.event.as_str())
        })
    };
    let hears = [
        "virtio_queue_notify",
        "read(eventfd)",
        "epoll_wait",
        "ioctl(KVM_RUN)",
    ];
    let raises = [
        "virtio_notify_irqfd",
        "virtio_notify",
        "write(eventfd)",
        "ioctl(KVM_SIGNAL_MSI)",
        "ioctl(KVM_IRQ_LINE)",
        "ioctl(KVM_IRQ_LINE_STATUS)",
    ];
    let raised = step(&raises, Phase::Receive);
    Ok(VmmRow {
        vmm: settings.vmm.to_string(),
        version: match &run.vmm {
            Some(vmm) => vmm.version.clone(),
            None => run.qemu.clone(),
        },
        transport: run.device.transport.clone(),
        access: run.device.doorbell.clone(),
        interrupts: run.device.interrupts.clone(),
        taken: taken(&timeline),
        heard_by: step(&hears, Phase::Transmit).and_then(thread),
        sent_by: step(&["virtqueue_pop", "write(tap)"], Phase::Transmit).and_then(thread),
        raised_by: raised.map(|step| step.event.clone()),
        kicks_per_echo: an_echo(counted.kicks),
        interrupts_per_echo: an_echo(counted.interrupts),
        accesses_per_echo: counted.exits.map(|exits| an_echo(exits.accesses)),
        userspace_exits_per_echo: counted.exits.map(|exits| an_echo(exits.to_vmm)),
    })
}

/// What KVM did with the kick, as the timeline has it: no event of KVM but the kick names a queue.
fn taken(timeline: &Timeline) -> Option<Taken> {
    let mut steps = timeline.steps.iter();
    let kick = steps.find(|step| step.layer == Layer::Kvm && step.queue.is_some())?;
    match kick.sentence.contains("does not return") {
        true => Some(Taken::Eventfd),
        false => kick
            .sentence
            .contains("hands it to")
            .then_some(Taken::UserSpace),
    }
}

/// Sends the echoes and counts.
fn count(vmm: Vmm, traced: &Traced<'_>) -> Result<Counted, SessionError> {
    let Traced { tracer, guest, .. } = traced;
    let before = tracer.records(guest)?;
    let trace = HostTrace::counting(&capture::threads_of(guest, vmm));
    for _ in 0..ECHOES {
        let echo = traced
            .far
            .udp_echo(traced.address.into(), BYTES, traced.bound);
        echo.map_err(capture::TraceError::from)?;
    }
    let recorded = trace.and_then(HostTrace::stop);
    let after = tracer.records(guest)?;
    let exits = recorded.ok().as_ref().and_then(Exits::of);
    Ok(Counted {
        exits,
        ..of_guest(&before, &after)
    })
}

/// The guest's own records between two looks.
fn of_guest(before: &records::Ring, after: &records::Ring) -> Counted {
    let later = after.records.iter().skip(before.records.len());
    let mut counted = Counted::default();
    for record in later {
        match record.event {
            Event::DoorbellRing => counted.kicks += 1,
            Event::VringInterrupt => counted.interrupts += 1,
            Event::IntxInterrupt if record.a & 1 != 0 => counted.interrupts += 1,
            _ => {}
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::build::build;

    #[test]
    fn a_recorded_kick_is_told_as_it_was_taken() {
        for text in [
            include_str!("../trace/fixtures/firecracker.json"),
            include_str!("../trace/fixtures/kvm.json"),
        ] {
            let timeline = build(&serde_json::from_str(text).unwrap()).unwrap();
            assert_eq!(taken(&timeline), Some(Taken::Eventfd));
        }
        let text = include_str!("../trace/fixtures/tcg.json");
        let timeline = build(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(taken(&timeline), None);
    }
}
