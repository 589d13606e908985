//! What a recording lacks, and why.

use super::super::timeline::{Absent, Layer, Phase, Step, Timeline};
use super::{Builder, LONGEST_LINE};

impl Builder<'_> {
    /// Notes what the timeline could have had.
    pub(super) fn note_absent(&self, timeline: &mut Timeline) {
        let of_vmm = |step: &Step| matches!(step.layer, Layer::VmmVcpu | Layer::VmmOther);
        let is_there = timeline.steps.iter().any(of_vmm);
        timeline.absent.extend(self.vmm_absent(is_there));
        let mut absent = |what: &str, reason: String, enable: Option<&str>| {
            timeline.absent.push(Absent {
                what: what.to_owned(),
                reason,
                enable: enable.map(str::to_owned),
            });
        };
        if !self.recording.run.real_exits {
            absent(
                "KVM's events",
                "TCG translates the guest's code inside of QEMU: there is no VM exit, and the \
                 call of QEMU's device code stands for it"
                    .to_owned(),
                Some(match self.recording.is_of_linux() {
                    true => "cargo run -- trace --guest linux --accel nested",
                    false => "cargo run -- trace --accel kvm",
                }),
            );
        }
        let window = |step: &&Step| step.phase != Phase::Attach;
        let mut window = timeline.steps.iter().filter(window);
        let in_qemu = window.any(|step| matches!(step.layer, Layer::QemuMain | Layer::QemuVcpu));
        if self.recording.run.vmm.is_none() && !in_qemu {
            let reason = match (self.log.is_empty(), self.unread.is_empty()) {
                (true, true) => {
                    "QEMU logged nothing; it may be built without the trace backend 'log'"
                }
                (true, false) => "no line of QEMU's log is known",
                (false, _) => "QEMU's log does not tell of the datagram",
            };
            absent("QEMU's events", reason.to_owned(), None);
        }
        if let Some(first) = self.unread.first() {
            let line: String = first.chars().take(LONGEST_LINE).collect();
            absent(
                "lines of QEMU's log",
                format!(
                    "{} of them are not events; the first: {}",
                    self.unread.len(),
                    line.escape_debug()
                ),
                None,
            );
        }
        if in_qemu && self.context.fill_is_flush {
            absent(
                "the moment at which the device shows a used chain (virtqueue_flush)",
                "this QEMU logs none for a packed ring: virtqueue_fill, just before it, stands for it"
                    .to_owned(),
                None,
            );
        }
        if self.journey.doorbell.is_none() {
            absent(
                "the kick",
                "the device did not want to be told: it was still at work on this queue".to_owned(),
                None,
            );
        } else if self.recording.instruction.is_none() {
            absent(
                "the doorbell's instruction",
                match self.recording.is_of_linux() {
                    true => "the kernel does not tell where its iowrite16 is",
                    false => {
                        "the transport rings by a call, or the executable has no such function"
                    }
                }
                .to_owned(),
                None,
            );
        }
        let is_shown = |step: &Step| step.event == "virtio_queue_notify" && !step.stack.is_empty();
        if let Some(stack) = &self.recording.qemu_stack
            && !timeline.steps.iter().any(is_shown)
        {
            let reason = format!(
                "the next kick was of queue {}, heard by thread {} of QEMU",
                stack.queue, stack.thread
            );
            absent("QEMU's own call chain at the kick", reason, None);
        }
        if self.journey.reclaim.is_none() {
            absent(
                "the sent buffer's way back",
                "the driver did not take it back within the window".to_owned(),
                None,
            );
        }
        let queue = self.recording.guest[self.journey.start_xmit].queue;
        let window = queue.and_then(|queue| self.windows.get(&queue));
        if window.is_some_and(|window| window.flushed > 0 && window.interrupts == 0) {
            absent(
                "an interrupt for the sent frame",
                "the driver asks for none: it takes sent buffers back when it wakes for \
                 something else"
                    .to_owned(),
                None,
            );
        }
    }
}
