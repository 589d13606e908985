//! KVM's trace events.

use super::{Explanation, value};
use crate::trace::kvm::parse::KvmRecord;
use crate::trace::timeline::Run;

/// Explains an event of KVM. `kick` is whether it is the write to the device's
/// doorbell, and then whether KVM went back to the VMM because of it, where that
/// is known.
pub fn kvm(record: &KvmRecord, kick: Option<Option<bool>>, run: &Run) -> Explanation {
    let vmm = run.vmm_name();
    let word = |name: &str| record.text(name).unwrap_or("?").to_owned();
    let vector = || match record.vector() {
        Some(vector) => vector.to_string(),
        None => "?".to_owned(),
    };
    let mut sentence = match record.event.as_str() {
        "kvm_exit" => {
            let reason = word("reason");
            match in_words(&reason) {
                Some(words) => format!("The CPU leaves the guest ({reason}): {words}."),
                None => format!("The CPU leaves the guest: {reason}."),
            }
        }
        "kvm_entry" => "The CPU enters the guest again.".to_owned(),
        "kvm_userspace_exit" => format!(
            "KVM cannot finish this in the kernel and returns to {vmm}: {}.",
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
        // Not always when the guest says so: with some kinds of APIC as soon as
        // it is injected.
        "kvm_eoi" => match record.vector() {
            Some(vector) => format!(
                "KVM notes the end of vector {vector} in the local APIC that it keeps. The guest's \
                 own end of interrupt comes at the end of its handler."
            ),
            None => "An end of interrupt comes to KVM's local APIC when it has none in service."
                .to_owned(),
        },
        _ => format!("KVM records {}.", record.event),
    };
    match kick {
        Some(Some(true)) => {
            sentence += &format!(" This is the kick, and KVM hands it to {vmm}.");
        }
        Some(Some(false)) => {
            let who = match run.vmm {
                None => "QEMU's main loop".to_owned(),
                Some(_) => format!("another thread of {vmm}"),
            };
            sentence += &format!(
                " This is the kick, and KVM does not return to {vmm} for it: an eventfd tells \
                 {who}."
            );
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

/// The reason of an exit in words, by the names that KVM prints for SVM and for
/// VMX (Linux, `arch/x86/include/uapi/asm/svm.h` and `vmx.h`).
fn in_words(reason: &str) -> Option<&'static str> {
    let name = reason
        .trim_start_matches("EXIT_")
        .trim_start_matches("REASON_");
    Some(match name.to_ascii_lowercase().as_str() {
        "io" | "io_instruction" => "it reads or writes an I/O port",
        "npf" | "ept_violation" => {
            "it touched a page that no memory stands behind, as a device's registers are"
        }
        "ept_misconfig" => {
            "it touched a page that KVM has marked as a device's, to be recognized at once"
        }
        "msr" | "msr_read" | "msr_write" => "it reads or writes a model-specific register",
        "hlt" => "it has nothing to do and sleeps until an interrupt",
        "interrupt" | "external_interrupt" | "intr" => {
            "an interrupt of the host came, which has nothing to do with the guest"
        }
        "vintr" | "interrupt_window" | "pending_interrupt" => {
            "it can take interrupts again, and one waits for it"
        }
        "cpuid" => "it asks what the CPU can do",
        "preemption_timer" => "the time that KVM set for it is over",
        "apic_access" | "apic_write" | "eoi_induced" | "avic_incomplete_ipi" => {
            "it uses its local APIC"
        }
        "pause" | "pause_instruction" => "it spins",
        "vmmcall" | "vmcall" => "it calls the hypervisor",
        _ => return None,
    })
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
            "The guest writes {} to {kind} at {place}, {bytes} bytes.",
            record.text("val").unwrap_or("?")
        ),
        (false, true) => format!("The guest reads {bytes} bytes of {kind} at {place}."),
        (false, false) => format!(
            "The guest's read of {kind} at {place} gave {}.",
            record.text("val").unwrap_or("?")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It comes before the guest has taken the interrupt, or with none at all.
    #[test]
    fn an_end_of_interrupt_is_not_told_as_the_guests() {
        for (text, vector) in [("apicid 0 vector 48", "48"), ("apicid 0 vector -1", "none")] {
            let record = KvmRecord {
                thread: 1,
                time: 0,
                event: "kvm_eoi".into(),
                text: text.into(),
                stack: Vec::new(),
            };
            let sentence = kvm(&record, None, &Run::default()).sentence;
            assert!(sentence.contains(vector), "{sentence}");
            assert!(!sentence.contains("acknowledge"), "{sentence}");
            assert!(!sentence.starts_with("The guest"), "{sentence}");
        }
    }

    #[test]
    fn reasons_of_both_makers_are_told_in_words() {
        let exit = |reason: &str| KvmRecord {
            thread: 1,
            time: 0,
            event: "kvm_exit".into(),
            text: format!("vcpu 0 reason {reason} rip 0xffffffff80100000 info1 0x10"),
            stack: Vec::new(),
        };
        for (names, words) in [
            (["io", "IO_INSTRUCTION"], "I/O port"),
            (["npf", "EPT_VIOLATION"], "no memory stands behind"),
            (["msr", "MSR_WRITE"], "model-specific register"),
            (["hlt", "HLT"], "sleeps until an interrupt"),
        ] {
            for name in names {
                let sentence = kvm(&exit(name), None, &Run::default()).sentence;
                assert!(
                    sentence.contains(words) && sentence.contains(name),
                    "{sentence}"
                );
            }
        }
        assert!(
            kvm(&exit("other"), None, &Run::default())
                .sentence
                .ends_with("guest: other.")
        );
    }
}
