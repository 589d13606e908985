//! The words of this subject: one sentence each, where the specification says it, and
//! what it is in Linux. The page of a trace shows them where they are met, and
//! docs/glossary.md is made of them.

use serde::Serialize;

use crate::lang::Lang;

/// A word.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Term {
    /// As it is said here.
    pub name: &'static str,
    /// How it appears in a text, in any case of letters.
    pub words: &'static [&'static str],
    /// What it is, in one sentence.
    pub sentence: &'static str,
    /// Sections of the virtio specification 1.2; none for what is the host's alone.
    pub sections: &'static [&'static str],
    /// Its name in Linux's source, or in KVM's and QEMU's.
    pub linux: &'static str,
}

/// Every word, in the order in which a packet meets them.
pub const TERMS: &[Term] = &[
    Term {
        name: "virtqueue",
        words: &["virtqueue", "virtqueues"],
        sentence: "The memory and the rules by which a driver gives buffers to a device and gets them back; a network device has one for each direction, and often one for control.",
        sections: &["2.6 Virtqueues"],
        linux: "struct virtqueue, inside of a struct vring_virtqueue",
    },
    Term {
        name: "vring",
        words: &["vring"],
        sentence: "Linux's name for the memory of a virtqueue with its descriptors and rings, older than the specification, which says virtqueue for both.",
        sections: &["2.7 Split Virtqueues"],
        linux: "struct vring in include/uapi/linux/virtio_ring.h; vring_virtqueue_split and vring_virtqueue_packed in drivers/virtio/virtio_ring.c",
    },
    Term {
        name: "split ring",
        words: &["split ring", "split rings"],
        sentence: "The first layout of a virtqueue: a table of descriptors, an available ring that the driver writes, and a used ring that the device writes.",
        sections: &["2.7 Split Virtqueues"],
        linux: "virtqueue_add_split",
    },
    Term {
        name: "packed ring",
        words: &["packed ring", "packed rings", "descriptor ring"],
        sentence: "The second layout of a virtqueue: one ring of descriptors that both sides write, and two flags in each that say whose it is.",
        sections: &["2.8 Packed Virtqueues"],
        linux: "virtqueue_add_packed",
    },
    Term {
        name: "descriptor",
        words: &["descriptor", "descriptors", "descriptor table"],
        sentence: "An entry that describes one buffer: where it lies, how long it is, and whether the device reads it or writes it.",
        sections: &[
            "2.7.5 The Virtqueue Descriptor Table",
            "2.8.13 The Virtqueue Descriptor Format",
        ],
        linux: "struct vring_desc, struct vring_packed_desc",
    },
    Term {
        name: "chain",
        words: &["chain", "chains"],
        sentence: "Descriptors that are linked, so that the device takes their buffers together and gives them back as one; a single descriptor is a chain too.",
        sections: &[
            "2.7.5 The Virtqueue Descriptor Table",
            "2.8.6 Next Flag: Descriptor Chaining",
        ],
        linux: "VRING_DESC_F_NEXT",
    },
    Term {
        name: "head",
        words: &["head"],
        sentence: "The number of the first descriptor of a chain, by which both rings name the whole of it.",
        sections: &["2.7.6 The Virtqueue Available Ring"],
        linux: "avail->ring[], used->ring[].id",
    },
    Term {
        name: "buffer id",
        words: &["buffer id"],
        sentence: "The number that the driver gives a chain in a packed ring, and that the device writes back when it has used it.",
        sections: &["2.8.13 The Virtqueue Descriptor Format"],
        linux: "id of struct vring_packed_desc",
    },
    Term {
        name: "available ring",
        words: &["available ring", "available index"],
        sentence: "What the driver writes and the device reads: the heads of the chains that the device may take, and an index that counts them modulo 65536.",
        sections: &[
            "2.7.6 The Virtqueue Available Ring",
            "2.7.13.3 Updating idx",
        ],
        linux: "struct vring_avail",
    },
    Term {
        name: "used ring",
        words: &["used ring", "used index"],
        sentence: "What the device writes and the driver reads: the heads of the chains that it gives back, how many bytes it wrote into each, and an index that counts them.",
        sections: &["2.7.8 The Virtqueue Used Ring"],
        linux: "struct vring_used",
    },
    Term {
        name: "wrap counter",
        words: &["wrap counter", "wrap counters"],
        sentence: "A bit that each side keeps for itself and turns over at each lap of a packed ring, so that old flags can be told from new ones.",
        sections: &["2.8.1 Driver and Device Ring Wrap Counters"],
        linux: "avail_wrap_counter, packed_used_wrap_counter",
    },
    Term {
        name: "kick",
        words: &["kick", "kicks", "kicked"],
        sentence: "The driver tells the device that there is something new in a queue, which the specification calls an available buffer notification.",
        sections: &["2.3 Notifications", "2.7.13.4 Notifying The Device"],
        linux: "virtqueue_kick, that is virtqueue_kick_prepare and virtqueue_notify",
    },
    Term {
        name: "notification suppression",
        words: &["notification suppression"],
        sentence: "Each side writes into memory when it wants to be told, and the other reads that and saves the kick or the interrupt where it is not wanted.",
        sections: &[
            "2.7.10 Available Buffer Notification Suppression",
            "2.7.7 Used Buffer Notification Suppression",
        ],
        linux: "virtqueue_kick_prepare, virtqueue_disable_cb",
    },
    Term {
        name: "EVENT_IDX",
        words: &["EVENT_IDX", "VIRTIO_F_EVENT_IDX"],
        sentence: "A feature by which a side asks to be told when the other comes past a certain entry, instead of always or never.",
        sections: &[
            "2.7.10 Available Buffer Notification Suppression",
            "2.8.10 Driver and Device Event Suppression",
        ],
        linux: "VIRTIO_RING_F_EVENT_IDX, vring_need_event",
    },
    Term {
        name: "avail_event",
        words: &["avail_event"],
        sentence: "Written by the device behind the used ring: it wants a kick once the available index passes this value.",
        sections: &["2.7.10 Available Buffer Notification Suppression"],
        linux: "vring_avail_event",
    },
    Term {
        name: "used_event",
        words: &["used_event"],
        sentence: "Written by the driver behind the available ring: it wants an interrupt once the used index passes this value.",
        sections: &["2.7.7 Used Buffer Notification Suppression"],
        linux: "vring_used_event",
    },
    Term {
        name: "event suppression structure",
        words: &["event suppression structure", "event suppression"],
        sentence: "How a side of a packed ring says when it wants to be told: always, never, or at the descriptor that the structure names.",
        sections: &["2.8.14 Event Suppression Structure Format"],
        linux: "struct vring_packed_desc_event",
    },
    Term {
        name: "doorbell",
        words: &["doorbell", "doorbells"],
        sentence: "The register of a queue whose write is the kick: it carries the queue's number and asks for no answer.",
        sections: &[
            "4.1.5.2 Available Buffer Notifications",
            "4.2.3.3 Available Buffer Notifications",
        ],
        linux: "vp_notify and vm_notify write it; VIRTIO_PCI_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NOTIFY",
    },
    Term {
        name: "notify hook",
        words: &["notify hook", "vq->notify"],
        sentence: "The function that a transport gives each queue when it makes it, and through which every kick of that queue goes.",
        sections: &["2.9 Driver Notifications"],
        linux: "vq->notify, set by setup_vq",
    },
    Term {
        name: "VM exit",
        words: &["VM exit", "VM exits"],
        sentence: "The CPU leaves the guest and goes on in the hypervisor, because the guest did what it may not do alone, such as writing to a device.",
        sections: &[],
        linux: "KVM's kvm_exit and kvm_entry, around vcpu_enter_guest",
    },
    Term {
        name: "ioeventfd",
        words: &["ioeventfd", "ioeventfds"],
        sentence: "An eventfd that KVM signals when the guest writes to a certain address: the guest goes on at once, and another thread takes the kick.",
        sections: &[],
        linux: "KVM_IOEVENTFD, ioeventfd_write; QEMU's virtio_queue_host_notifier_read",
    },
    Term {
        name: "irqfd",
        words: &["irqfd", "irqfds"],
        sentence: "The way back: an eventfd that QEMU signals, upon which KVM raises an interrupt of the guest by itself.",
        sections: &[],
        linux: "KVM_IRQFD, irqfd_wakeup",
    },
    Term {
        name: "MSI-X",
        words: &["MSI-X"],
        sentence: "Interrupts that are writes to memory, of which a PCI device has a table, so that each queue can have a vector of its own.",
        sections: &["4.1.5.1.2 MSI-X Vector Configuration"],
        linux: "vp_find_vqs_msix, vring_interrupt",
    },
    Term {
        name: "INTx",
        words: &["INTx", "INTx line"],
        sentence: "The one interrupt line of a PCI function, which others may share: the driver reads a status register to learn whether the interrupt is its device's, and that lowers the line.",
        sections: &["4.1.4.5 ISR status capability"],
        linux: "vp_find_vqs_intx, vp_interrupt",
    },
    Term {
        name: "interrupt of a queue",
        words: &[],
        sentence: "The device tells the driver that it has given buffers back, which the specification calls a used buffer notification.",
        sections: &["2.3 Notifications", "4.1.5.3 Used Buffer Notifications"],
        linux: "vring_interrupt, which calls the queue's callback",
    },
    Term {
        name: "polling",
        words: &["poll", "polling"],
        sentence: "The driver takes what has come in a loop with the device's interrupts off, and asks for them again when it finds nothing more.",
        sections: &["2.7.7 Used Buffer Notification Suppression"],
        linux: "NAPI: virtnet_poll, napi_schedule",
    },
    Term {
        name: "virtio-net header",
        words: &["virtio-net header"],
        sentence: "What stands before every frame in its buffer: whether a checksum is still to be filled in, and how a large packet is to be cut.",
        sections: &["5.1.6 Device Operation"],
        linux: "struct virtio_net_hdr",
    },
];

/// The document docs/glossary.md, or its translation.
pub fn document(lang: Lang) -> String {
    let say = |text| lang.say(text);
    let mut text = format!(
        "# {}\n\n{}\n\n",
        say("The words of the kick path"),
        say(
            "The page of a trace (`cargo run -- trace --html FILE`) shows each of these where it is \
             met: point at it, or reach it by Tab. This list is made from the same source, \
             [glossary.rs](../boot/src/trace/glossary.rs)."
        )
    );
    for term in TERMS {
        let name = match say(term.name) {
            said if said == term.name => format!("**{said}**"),
            said => format!("**{said}**（{}）", term.name),
        };
        let sections = match term.sections {
            [] => "The specification does not speak of it.".to_owned(),
            sections => format!("Specification 1.2: {}.", sections.join(", ")),
        };
        text += &format!(
            "{name}{}{}{}{}{}{}\n\n",
            say(": "),
            lang.say(&format!("{} ", term.sentence)),
            lang.say(&format!("{sections} ")),
            say("In Linux: "),
            say(term.linux),
            say(".")
        );
    }
    text.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_word_is_told_once_and_in_one_sentence() {
        let mut names = BTreeSet::new();
        let mut words = BTreeSet::new();
        for term in TERMS {
            assert!(names.insert(term.name), "{} twice", term.name);
            for word in term.words {
                assert!(words.insert(word.to_lowercase()), "{word} is of two terms");
            }
            let sentence = term.sentence;
            assert!(sentence.ends_with('.'), "{sentence}");
            assert!(!sentence.contains(". "), "two sentences: {sentence}");
            assert!(!term.linux.is_empty());
        }
    }
}
