//! KVM's trace events.

use super::{Explanation, value};
use crate::trace::kvm::parse::KvmRecord;

/// Explains an event of KVM. `kick` is whether it is the write to the device's
/// doorbell, and then whether KVM went back to QEMU because of it, where that
/// is known.
pub fn kvm(record: &KvmRecord, kick: Option<Option<bool>>) -> Explanation {
    let word = |name: &str| record.text(name).unwrap_or("?").to_owned();
    let vector = || match record.vector() {
        Some(vector) => vector.to_string(),
        None => "?".to_owned(),
    };
    let mut sentence = match record.event.as_str() {
        "kvm_exit" => format!("The CPU leaves the guest: {}.", word("reason")),
        "kvm_entry" => "The CPU enters the guest again.".to_owned(),
        "kvm_userspace_exit" => format!(
            "KVM cannot finish this in the kernel and returns to QEMU: {}.",
            word("reason")
        ),
        "kvm_fast_mmio" => format!(
            "KVM knows the address {} by the fault alone and signals its eventfd.",
            word("gpa")
        ),
        "kvm_pio" | "kvm_mmio" => access(record),
        "kvm_msi_set_irq" => format!("An interrupt message comes in, for vector {}.", vector()),
        "kvm_set_irq" => format!("Interrupt line {} goes to {}.", word("gsi"), word("level")),
        "kvm_pic_set_irq" => "The 8259 sees the interrupt line.".to_owned(),
        "kvm_ioapic_set_irq" => "The I/O APIC sees the interrupt line.".to_owned(),
        "kvm_apic_accept_irq" => {
            format!("The virtual CPU's local APIC accepts vector {}.", vector())
        }
        "kvm_inj_virq" => format!("KVM injects vector {} into the guest.", vector()),
        "kvm_eoi" => "The guest acknowledges the interrupt.".to_owned(),
        _ => format!("KVM records {}.", record.event),
    };
    match kick {
        Some(Some(true)) => sentence += " This is the kick, and KVM hands it to QEMU.",
        Some(Some(false)) => {
            sentence += " This is the kick, and KVM does not return to QEMU for it: an eventfd \
                         tells QEMU's main loop.";
        }
        Some(None) => sentence += " This is the kick.",
        None => {}
    }
    Explanation {
        function: None,
        linux: None,
        section: None,
        sentence,
        values: vec![value("record", &record.text)],
    }
}

fn access(record: &KvmRecord) -> String {
    let (port, write) = (record.event == "kvm_pio", record.text.contains("write"));
    let place = match port {
        true => record.text("at"),
        false => record.text("gpa"),
    };
    let place = place.unwrap_or("?");
    let kind = if port { "port" } else { "device memory" };
    let bytes = record.text("size").or(record.text("len")).unwrap_or("?");
    match (write, record.text.contains("unsatisfied")) {
        (true, _) => format!(
            "The guest writes {} to {kind} {place}, {bytes} bytes.",
            record.text("val").unwrap_or("?")
        ),
        (false, true) => format!("The guest reads {bytes} bytes of {kind} at {place}."),
        (false, false) => format!(
            "The guest's read of {kind} at {place} gave {}.",
            record.text("val").unwrap_or("?")
        ),
    }
}
