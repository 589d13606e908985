//! What a record means: the function that left it, the Linux function that
//! does the same, the section of the specification, and one plain sentence
//! with the values that were recorded.

mod calls;
mod guest;
mod kvm;
mod linux;
mod place;
mod qemu;
mod vmm;

pub use calls::calls;
pub use guest::guest;
pub use kvm::kvm;
pub use linux::linux;
pub use qemu::qemu;
pub use vmm::vmm;

use kickpath_trace::Event;

use super::qemu::QemuRecord;
use super::records::GuestRecord;
use super::timeline::{Device, NamedValue};

/// Sections are those of this version, as in the driver's own comments.
pub const SPECIFICATION: &str = "virtio 1.2";

/// A record explained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The function.
    pub function: Option<&'static str>,
    /// The Linux function.
    pub linux: Option<&'static str>,
    /// The section.
    pub section: Option<&'static str>,
    /// The sentence.
    pub sentence: String,
    /// The values.
    pub values: Vec<NamedValue>,
}

/// A value by name.
pub fn value(name: &str, value: impl ToString) -> NamedValue {
    NamedValue {
        name: name.to_owned(),
        value: value.to_string(),
    }
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

/// What is known of the whole device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Its transport is virtio-mmio.
    pub mmio: bool,
    /// The control queue's index, if it has one.
    pub control: Option<u16>,
    /// Its rings are packed.
    pub packed: bool,
    /// It uses chains in order.
    pub in_order: bool,
    /// A chain of several buffers is a table of descriptors.
    pub indirect: bool,
    /// Its QEMU logs no `virtqueue_flush` for its layout: each chain that is
    /// filled is shown at once.
    pub fill_is_flush: bool,
}

impl Context {
    /// Of the device that left these records.
    pub fn new(records: &[GuestRecord], log: &[QemuRecord], device: &Device) -> Self {
        let setups = records.iter().filter(|r| r.event == Event::SetupQueue);
        let last = setups.filter_map(|record| record.queue).max();
        let has = |name: &str| device.features.iter().any(|feature| feature == name);
        let packed = has("RING_PACKED");
        Self {
            packed,
            in_order: has("IN_ORDER"),
            indirect: has("INDIRECT_DESC"),
            fill_is_flush: packed && log.iter().all(|record| record.event != "virtqueue_flush"),
            mmio: device.transport == "mmio",
            // Receive and transmit queues come in pairs, the control queue
            // behind them (specification 5.1.2).
            control: last.filter(|last| last.is_multiple_of(2)),
        }
    }

    /// What a queue is for.
    pub fn queue_name(self, queue: u16) -> &'static str {
        match queue % 2 {
            _ if Some(queue) == self.control => "control",
            0 => "receive",
            _ => "transmit",
        }
    }

    /// Whether the device fills the queue's buffers.
    pub fn is_receive(self, queue: u16) -> bool {
        self.queue_name(queue) == "receive"
    }

    fn queue_text(self, record: &GuestRecord) -> String {
        match record.queue {
            Some(queue) => format!("the {} queue", self.queue_name(queue)),
            None => "a queue".to_owned(),
        }
    }
}

/// The address of a descriptor's buffer, and whether the device writes it.
pub fn buffer(word: u64) -> (u64, bool) {
    (word & !(1 << 63), word >> 63 != 0)
}
