//! The system calls of a VMM that has no trace of its own.

use super::{Explanation, value};
use crate::trace::kvm::calls::{Call, What};

/// Explains a call of a thread of this name; `own` is whether it was made for the packet, by its
/// time.
pub fn vmm(call: &Call, vmm: &str, thread: &str, own: bool) -> Explanation {
    let mut sentence = match call.what {
        What::TakesFrame(bytes) => format!(
            "{vmm}'s thread '{thread}' takes a frame from the tap device: {bytes} bytes, the \
             virtio-net header before it included."
        ),
        What::GivesFrame(bytes) => format!(
            "{vmm}'s thread '{thread}' gives a frame to the tap device: {bytes} bytes, the \
             virtio-net header before it included."
        ),
        What::Wakes => format!(
            "{vmm}'s thread '{thread}' wakes: one of the files that it waits for has something."
        ),
        What::Hears => {
            format!("{vmm}'s thread '{thread}' reads an eventfd that was signalled.")
        }
        What::Signals => format!("{vmm}'s thread '{thread}' signals an eventfd."),
        What::Interrupts(_) => {
            format!("{vmm}'s thread '{thread}' has KVM raise an interrupt of the guest.")
        }
        What::Leaves => format!(
            "ioctl(KVM_RUN) comes back in {vmm}'s thread '{thread}': it has to do something for \
             the guest, which waits."
        ),
    };
    if own {
        sentence += match call.what {
            What::Wakes | What::Hears | What::Leaves => " By its time this is for the kick.",
            What::Signals | What::Interrupts(_) => {
                " By its time this is the interrupt for the received frame."
            }
            What::TakesFrame(_) | What::GivesFrame(_) => "",
        };
    }
    Explanation {
        sentence,
        values: vec![value("thread", thread), value("call", &call.text)],
        ..Explanation::default()
    }
}
