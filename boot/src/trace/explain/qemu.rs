//! QEMU's trace events.

use super::{Context, Explanation, value};
use crate::trace::qemu::QemuRecord;

/// Explains an event of QEMU. `accesses_are_exits` is whether the guest's
/// access came by a VM exit.
pub fn qemu(record: &QemuRecord, context: Context, accesses_are_exits: bool) -> Explanation {
    let text = |name: &str| record.text(name).unwrap_or("?").to_owned();
    let wish = match context.packed {
        true => "2.8.10 Driver and Device Event Suppression",
        false => "2.7.7 Used Buffer Notification Suppression",
    };
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
            match context.packed {
                true => "2.8.21.2 Sending Available Buffer Notifications",
                false => "2.7.13.4 Notifying The Device",
            },
            format!("QEMU hears that queue {} has new chains.", text("n")),
        ),
        "virtio_pci_notify_write" | "virtio_pci_notify_write_pio" => (
            "virtio_pci_notify_write",
            "4.1.5.2 Available Buffer Notifications",
            "The write was to the notification register.".to_owned(),
        ),
        "virtqueue_pop" => (
            "virtqueue_pop",
            match context.packed {
                true => "2.8.13 The Virtqueue Descriptor Format",
                false => "2.7.6 The Virtqueue Available Ring",
            },
            format!(
                "QEMU takes {}.",
                match (record.number("in_num"), context.packed) {
                    (Some(0), true) =>
                        "the descriptors whose flags say that they are available: the frame to send",
                    (Some(0), false) => "the chain out of the available ring: the frame to send",
                    (_, true) =>
                        "a descriptor whose flags say that it is available, for the frame to go into",
                    (_, false) => "a chain out of the available ring, for the frame to go into",
                }
            ),
        ),
        "virtqueue_fill" if context.fill_is_flush => (
            "virtqueue_fill",
            "2.8.13 The Virtqueue Descriptor Format",
            format!(
                "QEMU gives the buffer back, with {} bytes written: next it writes a used \
                 descriptor over the one that it has read first. (This QEMU logs no \
                 virtqueue_flush for a packed ring.)",
                text("len")
            ),
        ),
        "virtqueue_fill" if context.packed => (
            "virtqueue_fill",
            "2.8.13 The Virtqueue Descriptor Format",
            format!(
                "QEMU notes that the buffer goes back, with {} bytes written.",
                text("len")
            ),
        ),
        "virtqueue_fill" => (
            "virtqueue_fill",
            "2.7.8 The Virtqueue Used Ring",
            format!(
                "QEMU writes the chain into the used ring, with {} bytes written.",
                text("len")
            ),
        ),
        "virtqueue_flush" if context.packed => (
            "virtqueue_flush",
            "2.8.13 The Virtqueue Descriptor Format",
            format!(
                "QEMU writes used descriptors for {} chains: the driver may have them.",
                text("count")
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
            wish,
            "The driver wants an interrupt for this: QEMU raises it.".to_owned(),
        ),
        "virtio_notify_irqfd" | "virtio_notify_irqfd_deferred_fn" => (
            "virtio_notify_irqfd",
            wish,
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
