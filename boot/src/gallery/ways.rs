//! The ways to kick that the gallery shows, each a command line that a reader can type.

use kickpath_abi::config::{Irq, Transport};

use crate::accel::AccelChoice;
use crate::qemu::Kind;
use crate::session::{Layout, Settings};

/// One way.
pub struct Way {
    /// Names its files.
    pub name: &'static str,
    /// For a person.
    pub title: &'static str,
    /// What is to be seen.
    pub text: &'static str,
    /// Options of `trace`.
    pub words: &'static str,
    /// The same, as the library takes them.
    pub(super) change: fn(&mut Settings),
    /// Whether the guest is Linux.
    pub is_linux: bool,
}

/// All of them.
pub const WAYS: [Way; 13] = [
    Way {
        name: "legacy-port",
        title: "Legacy: a port",
        text: "One outw to the device's QUEUE_NOTIFY port. An ioeventfd takes it in the kernel, \
               and QEMU's main loop does the work.",
        words: "",
        change: |_| {},
        is_linux: false,
    },
    Way {
        name: "modern-memory",
        title: "Modern: memory",
        text: "The same 16 bits, written to a page that no memory stands behind.",
        words: "--transport modern",
        change: |settings| settings.transport = Transport::Modern,
        is_linux: false,
    },
    Way {
        name: "modern-port",
        title: "Modern: a port",
        text: "Modern registers in memory, but a port for the kick.",
        words: "--transport modern --pio-notify",
        change: |settings| {
            settings.transport = Transport::Modern;
            settings.pio_notify = true;
        },
        is_linux: false,
    },
    Way {
        name: "mmio",
        title: "virtio-mmio",
        text: "No PCI at all: the QueueNotify register of a microvm, and one interrupt line.",
        words: "--machine microvm",
        change: |settings| settings.kind = Kind::Microvm,
        is_linux: false,
    },
    Way {
        name: "mmio-legacy",
        title: "virtio-mmio, version 1",
        text: "The legacy interface of virtio-mmio: the same register, other set-up.",
        words: "--machine microvm --mmio-legacy",
        change: |settings| {
            settings.kind = Kind::Microvm;
            settings.mmio_legacy = true;
        },
        is_linux: false,
    },
    Way {
        name: "packed",
        title: "Packed rings",
        text: "One ring for both sides: flags and wrap counters instead of two indexes.",
        words: "--transport modern --layout packed",
        change: |settings| {
            settings.transport = Transport::Modern;
            settings.layout = Layout::Packed;
        },
        is_linux: false,
    },
    Way {
        name: "vcpu-thread",
        title: "Without ioeventfd",
        text: "Nobody in the kernel takes the kick: the thread of the virtual CPU does the \
               device's work while the guest waits.",
        words: "--ioeventfd off",
        change: |settings| settings.ioeventfd = Some(false),
        is_linux: false,
    },
    Way {
        name: "no-event-idx",
        title: "Without EVENT_IDX",
        text: "The device can only say \u{201c}never\u{201d} or \u{201c}always\u{201d}: see which \
               kicks were saved before.",
        words: "--features=-event_idx",
        change: |settings| settings.features = Some("-event_idx".into()),
        is_linux: false,
    },
    Way {
        name: "intx",
        title: "Back by INTx",
        text: "A line instead of a message: the handler reads the ISR register, an exit more.",
        words: "--irq intx",
        change: |settings| settings.irq = Irq::Intx,
        is_linux: false,
    },
    Way {
        name: "polling",
        title: "Back by polling",
        text: "No interrupt at all: the guest looks by itself.",
        words: "--irq poll",
        change: |settings| settings.irq = Irq::Poll,
        is_linux: false,
    },
    Way {
        name: "kvm",
        title: "On KVM",
        text: "The host kernel's own events, on the clock of the guest.",
        words: "--accel kvm",
        change: |settings| settings.accel = AccelChoice::Kvm,
        is_linux: false,
    },
    Way {
        name: "nested",
        title: "On KVM, with its exits",
        text: "A real kvm_exit with its reason, on a CPU with SVM that QEMU emulates.",
        words: "--accel nested",
        change: |settings| settings.accel = AccelChoice::Nested,
        is_linux: false,
    },
    Way {
        name: "linux",
        title: "Linux's own virtio_net",
        text: "The same datagram out of Debian's kernel, its functions recorded with ftrace.",
        words: "--guest linux",
        change: |_| {},
        is_linux: true,
    },
];

/// Pairs that are worth being laid side by side, and why.
pub(super) const PAIRS: [(&str, &str, &str); 4] = [
    ("legacy-port", "vcpu-thread", "With ioeventfd and without"),
    ("modern-memory", "packed", "Split rings and packed ones"),
    ("legacy-port", "no-event-idx", "With EVENT_IDX and without"),
    ("modern-memory", "linux", "This driver and Linux's"),
];

impl Way {
    /// What a reader types.
    pub fn command(&self) -> String {
        format!("cargo run -- trace {}", self.words)
            .trim_end()
            .to_owned()
    }

    /// The settings, where `base` has what the user asked for.
    pub fn settings(&self, base: &Settings) -> Settings {
        let mut settings = base.clone();
        (self.change)(&mut settings);
        settings
    }
}
