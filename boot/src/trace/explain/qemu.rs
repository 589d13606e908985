//! QEMU's trace events.

use super::{Explanation, value};
use crate::trace::qemu::QemuRecord;

/// Explains an event of QEMU. `accesses_are_exits` is whether the guest's
/// access came by a VM exit.
pub fn qemu(record: &QemuRecord, accesses_are_exits: bool) -> Explanation {
    let text = |name: &str| record.text(name).unwrap_or("?").to_owned();
    let (function, section, sentence) = match record.event.as_str() {
        "virtio_set_status" => (
            "virtio_set_status",
            "2.1 Device Status Field",
            match record.number("val") {
                Some(status) if status & 4 != 0 => {
                    "The driver has set DRIVER_OK: the device is live.".to_owned()
                }
                Some(0) => "The driver resets the device.".to_owned(),
                _ => format!("The driver sets the device's status to {}.", text("val")),
            },
        ),
        "kvm_set_ioeventfd_pio" | "kvm_set_ioeventfd_mmio" => (
            "kvm_set_ioeventfd",
            "",
            format!(
                "QEMU has KVM turn the write of {} to {} into a signal of an eventfd, without a \
                 return to QEMU.",
                text("val"),
                text("address")
            ),
        ),
        "memory_region_ops_write" => (
            "memory_region_dispatch_write",
            "",
            // Not by a virtual CPU: QEMU's own write, as a device makes one.
            if text("cpu") == "-1" {
                format!(
                    "QEMU writes {} to {} ({}), as a device does to raise an interrupt.",
                    text("value"),
                    text("addr"),
                    text("name")
                )
            } else if accesses_are_exits {
                format!(
                    "QEMU carries out the guest's write of {} to {} ({}).",
                    text("value"),
                    text("addr"),
                    text("name")
                )
            } else {
                format!(
                    "The translated instruction calls QEMU's device code: write of {} to {} ({}).",
                    text("value"),
                    text("addr"),
                    text("name")
                )
            },
        ),
        "kvm_run_exit" => (
            "kvm_cpu_exec",
            "",
            format!(
                "ioctl(KVM_RUN) returns to QEMU with exit reason {}.",
                exit_reason(record.number("reason"))
            ),
        ),
        "virtio_queue_notify" => (
            "virtio_queue_notify",
            "2.7.13.4 Notifying The Device",
            format!("QEMU hears that queue {} has new chains.", text("n")),
        ),
        "virtio_pci_notify_write" | "virtio_pci_notify_write_pio" => (
            "virtio_pci_notify_write",
            "4.1.5.2 Available Buffer Notifications",
            "The write was to the notification register.".to_owned(),
        ),
        "virtqueue_pop" => (
            "virtqueue_pop",
            "2.7.6 The Virtqueue Available Ring",
            match record.number("in_num") {
                Some(0) => "QEMU takes the chain out of the available ring: the frame to send.",
                _ => "QEMU takes a chain out of the available ring, for the frame to go into.",
            }
            .to_owned(),
        ),
        "virtqueue_fill" => (
            "virtqueue_fill",
            "2.7.8 The Virtqueue Used Ring",
            format!(
                "QEMU writes the chain into the used ring, with {} bytes written.",
                text("len")
            ),
        ),
        "virtqueue_flush" => (
            "virtqueue_flush",
            "2.7.8 The Virtqueue Used Ring",
            format!(
                "QEMU moves the used index on by {}: the driver may have the chain.",
                text("count")
            ),
        ),
        "virtio_notify" => (
            "virtio_notify",
            "2.7.7 Used Buffer Notification Suppression",
            "The driver wants an interrupt for this: QEMU raises it.".to_owned(),
        ),
        "virtio_notify_irqfd" => (
            "virtio_notify_irqfd",
            "2.7.7 Used Buffer Notification Suppression",
            "The driver wants an interrupt for this: QEMU signals the irqfd, and KVM raises it."
                .to_owned(),
        ),
        "apic_deliver_irq" => (
            "apic_deliver_irq",
            "",
            format!(
                "QEMU's local APIC delivers interrupt vector {}.",
                text("vector")
            ),
        ),
        "ioapic_set_irq" => (
            "ioapic_set_irq",
            "",
            format!(
                "QEMU sets input {} of the I/O APIC to {}.",
                text("vector"),
                text("level")
            ),
        ),
        _ => ("", "", format!("QEMU records {}.", record.event)),
    };
    let some = |text: &'static str| Some(text).filter(|text| !text.is_empty());
    let values = record.fields.iter();
    Explanation {
        function: some(function),
        linux: None,
        section: some(section),
        sentence,
        values: values.map(|(name, text)| value(name, text)).collect(),
    }
}

/// Linux, `include/uapi/linux/kvm.h`.
fn exit_reason(reason: Option<u64>) -> String {
    let name = match reason {
        Some(2) => "KVM_EXIT_IO",
        Some(5) => "KVM_EXIT_HLT",
        Some(6) => "KVM_EXIT_MMIO",
        Some(10) => "KVM_EXIT_INTR",
        Some(17) => "KVM_EXIT_INTERNAL_ERROR",
        Some(other) => return other.to_string(),
        None => return "?".to_owned(),
    };
    format!("{} ({name})", reason.unwrap_or_default())
}
