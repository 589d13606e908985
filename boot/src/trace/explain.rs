//! What a record means: the function that left it, the Linux function that
//! does the same, the section of the specification, and one plain sentence
//! with the values that were recorded.

use kickpath_trace::Event;

use super::kvm::parse::KvmRecord;
use super::qemu::QemuRecord;
use super::records::GuestRecord;
use super::timeline::NamedValue;

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
}

impl Context {
    /// Of the device that left these records, on this transport.
    pub fn new(records: &[GuestRecord], transport: &str) -> Self {
        let setups = records.iter().filter(|r| r.event == Event::SetupQueue);
        let last = setups.filter_map(|record| record.queue).max();
        Self {
            mmio: transport == "mmio",
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

/// The rungs of the interrupt ladder, by their number.
fn rung(number: u64) -> &'static str {
    match number {
        0 => "MSI-X with a vector a queue",
        1 => "MSI-X with one vector for all queues",
        2 => "the INTx line",
        3 => "polling without interrupts",
        _ => "an unknown rung",
    }
}

/// The address of a descriptor's buffer, and whether the device writes it.
pub fn buffer(word: u64) -> (u64, bool) {
    (word & !(1 << 63), word >> 63 != 0)
}

/// Whether the record is about a packed ring.
pub fn is_packed(record: &GuestRecord) -> bool {
    record.module.ends_with("::packed")
}

/// Position and wrap counter in a word of a packed ring (specification 2.8.1).
fn wrapped(word: u64) -> String {
    format!("{} (wrap counter {})", word & 0x7fff, word >> 15 & 1)
}

/// What differs for a packed ring: section, sentence and values. `None` for
/// what does not.
fn packed(record: &GuestRecord, queue: &str) -> Option<(&'static str, String, Vec<NamedValue>)> {
    let (a, b) = (record.a, record.b);
    let (address, device_writes) = buffer(b);
    let (id, place) = (a as u16, (a >> 16) as u16);
    Some(match record.event {
        Event::Add => (
            "2.8.21 Supplying Buffers to The Device",
            format!(
                "Descriptor {place} of {queue} names buffer {id}, which the device {}.",
                writes_or_reads(device_writes)
            ),
            vec![
                value("buffer id", id),
                value("descriptor", place),
                value("bytes", a >> 32),
                value("address", hex(address)),
            ],
        ),
        Event::Publish => (
            "2.8.21 Supplying Buffers to The Device",
            format!(
                "The flags of the first descriptor are written: {queue} is available up to \
                 descriptor {}.",
                wrapped(a & 0xffff)
            ),
            vec![
                value("next", wrapped(a & 0xffff)),
                value("before", wrapped(b & 0xffff)),
            ],
        ),
        Event::KickPrepare => (
            "2.8.7 Driver and Device Event Suppression",
            format!(
                "The device's event suppression structure is read: the kick of {queue} is {}.",
                match b {
                    1 => "needed",
                    _ => "saved",
                }
            ),
            vec![
                value("next", wrapped(a & 0xffff)),
                value("before", wrapped(a >> 16 & 0xffff)),
                match a >> 48 & 1 {
                    1 => value("device's event", wrapped(a >> 32 & 0xffff)),
                    _ => value("device's flags", a >> 32 & 0xffff),
                },
                value("kick", if b == 1 { "yes" } else { "no" }),
            ],
        ),
        Event::PopUsed => (
            "2.8.22 Receiving Used Buffers From The Device",
            format!(
                "Descriptor {place} of {queue} is used: buffer {id} is back, {} bytes written.",
                a >> 32
            ),
            vec![
                value("buffer id", id),
                value("descriptor", place),
                value("bytes written", a >> 32),
            ],
        ),
        Event::EnableInterrupts | Event::DisableInterrupts => (
            "2.8.7 Driver and Device Event Suppression",
            match record.event {
                Event::EnableInterrupts => format!(
                    "The driver asks for interrupts of {queue} in its event suppression structure."
                ),
                _ => format!("The driver asks for no interrupts of {queue}: it is polling."),
            },
            vec![value("event or flags", a & 0xffff)],
        ),
        _ => return None,
    })
}

/// The same for virtio-mmio: Linux's functions and the sections are others.
fn of_mmio(text: &'static str) -> &'static str {
    match text {
        "vp_find_vqs" | "vp_try_to_find_vqs" => "vm_find_vqs",
        "setup_vq" => "vm_setup_vq",
        "vring_new_virtqueue(.., vp_notify, ..)" => "vring_create_virtqueue(.., vm_notify, ..)",
        "vp_notify" => "vm_notify",
        "vp_interrupt" => "vm_interrupt",
        "4.1.5.1.2 MSI-X Vector Configuration" => "4.2.3.4 Notifications From The Device",
        "4.1.5.1.3 Virtqueue Configuration" => "4.2.3.2 Virtqueue Configuration",
        "4.1.5.2 Available Buffer Notifications" => "4.2.3.3 Available Buffer Notifications",
        "4.1.4.5 ISR status capability" => "4.2.2 MMIO Device Register Layout",
        other => other,
    }
}

/// Explains a record of the guest.
pub fn guest(record: &GuestRecord, context: Context) -> Explanation {
    let queue = context.queue_text(record);
    let mut explanation = common(record, &queue);
    if is_packed(record)
        && let Some((section, sentence, values)) = packed(record, &queue)
    {
        explanation.section = Some(section);
        explanation.sentence = sentence;
        explanation.values = values;
        explanation.linux = explanation.linux.map(|name| match name {
            "virtqueue_add_split" => "virtqueue_add_packed",
            "virtqueue_add_split, at its end" => "virtqueue_add_packed, at its end",
            other => other,
        });
    }
    if context.mmio {
        explanation.linux = explanation.linux.map(of_mmio);
        explanation.section = explanation.section.map(of_mmio);
    }
    explanation
}

fn common(record: &GuestRecord, queue: &str) -> Explanation {
    let (a, b) = (record.a, record.b);
    let (function, linux, section) = place(record.event);
    let mut values = Vec::new();
    let mut add = |name: &str, text: String| values.push(value(name, text));
    let sentence = match record.event {
        Event::FindVqsTry => format!("The driver tries {}.", rung(a)),
        Event::FindVqsResult => match b {
            1 => format!("The device accepts {}: this rung is taken.", rung(a)),
            _ => format!(
                "{} does not work here; all of it is undone and the next rung is tried.",
                capital(rung(a))
            ),
        },
        Event::SetupQueue => {
            add("descriptors", a.to_string());
            add("descriptor table", hex(b));
            format!("The rings of {queue} are made, {a} descriptors, and the device is told where.")
        }
        Event::AttachDoorbell => {
            let (what, target) = doorbell(a, b);
            add("kind", what.to_owned());
            if let Some(target) = target {
                add("address", target);
            }
            format!("The notify hook of {queue} is set: from now on a kick is {what}.")
        }
        Event::SocketSend => {
            add("bytes", a.to_string());
            add("to port", b.to_string());
            format!("A service gives {a} bytes to its UDP socket.")
        }
        Event::TxTokenConsume => {
            add("bytes", a.to_string());
            format!("smoltcp asks the device for room and writes a frame of {a} bytes there.")
        }
        Event::StartXmit => {
            add("bytes", a.to_string());
            add("header at", hex(b));
            format!("The driver takes the frame of {a} bytes, with a virtio header before it.")
        }
        Event::Descriptor => {
            let (address, device_writes) = buffer(b);
            add("descriptor", (a as u16).to_string());
            add("bytes", (a >> 32).to_string());
            add("address", hex(address));
            format!(
                "Descriptor {} of {queue} names a buffer that the device {}.",
                a as u16,
                writes_or_reads(device_writes)
            )
        }
        Event::Add => {
            let (address, device_writes) = buffer(b);
            let (head, slot) = (a as u16, (a >> 16) as u16);
            add("head", head.to_string());
            add("ring entry", slot.to_string());
            add("bytes", (a >> 32).to_string());
            add("address", hex(address));
            format!(
                "Descriptor {head} of {queue} names the buffer that the device {}, and entry {slot} \
                 of the available ring names the descriptor.",
                writes_or_reads(device_writes)
            )
        }
        Event::Publish => {
            add("new index", (a as u16).to_string());
            add("old index", (b as u16).to_string());
            format!(
                "The available index of {queue} goes from {b} to {a}: from now on the device may \
                 take the chain."
            )
        }
        Event::KickPrepare => kick_prepare(record, queue, &mut add),
        Event::Notify => format!("The driver decides to tell the device about {queue}."),
        Event::DoorbellRing => {
            let (what, target) = doorbell(a, b);
            if let Some(target) = target {
                add("address", target);
            }
            format!("The next instruction is {what}: it stops the guest, and the host takes over.")
        }
        Event::DoorbellRang => {
            "The guest runs again, one instruction further; it was told nothing and waits for \
             nothing."
                .to_owned()
        }
        Event::InterruptVector => {
            add("vector", a.to_string());
            format!("The CPU takes interrupt vector {a}.")
        }
        Event::VringInterrupt => {
            "The handler notes that a queue has used buffers, and does nothing else.".to_owned()
        }
        Event::IntxInterrupt => {
            add("ISR status", hex(a));
            match a & 3 {
                0 => "The interrupt status is 0: this interrupt is not the device's.".to_owned(),
                _ => "The handler reads the interrupt status, which lowers the line.".to_owned(),
            }
        }
        Event::ConfigInterrupt => {
            "The handler notes that the device's configuration changed.".to_owned()
        }
        Event::Poll => "The poll begins: received frames wait.".to_owned(),
        Event::PopUsed => {
            let (head, slot) = (a as u16, (a >> 16) as u16);
            add("head", head.to_string());
            add("ring entry", slot.to_string());
            add("bytes written", (a >> 32).to_string());
            add("device's used index", (b as u16).to_string());
            match record.queue.is_some_and(|queue| queue % 2 == 1) {
                true => format!(
                    "Entry {slot} of the used ring gives the sent buffer of chain {head} back."
                ),
                false => format!(
                    "Entry {slot} of the used ring gives chain {head} back, with {} bytes in it.",
                    a >> 32
                ),
            }
        }
        Event::RxTokenConsume => {
            add("bytes", a.to_string());
            format!("smoltcp reads the frame of {a} bytes where the device wrote it.")
        }
        Event::SocketReceive => {
            add("bytes", a.to_string());
            add("from port", b.to_string());
            format!("The service takes {a} bytes out of its UDP socket.")
        }
        Event::EnableInterrupts => {
            wish(a, &mut add);
            match b {
                0 => format!("The driver asks for an interrupt at the next used chain of {queue}."),
                _ => format!(
                    "The driver asks for an interrupt of {queue} and finds that there is work \
                     already."
                ),
            }
        }
        Event::DisableInterrupts => {
            wish(a, &mut add);
            format!("The driver asks for no interrupts of {queue}: it is polling.")
        }
        Event::Idle => "Nothing is left to do: the CPU sleeps until an interrupt.".to_owned(),
    };
    Explanation {
        function,
        linux,
        section,
        sentence,
        values,
    }
}

fn kick_prepare(record: &GuestRecord, queue: &str, add: &mut impl FnMut(&str, String)) -> String {
    let [new, old, wish] = [0, 16, 32].map(|shift| (record.a >> shift) as u16);
    let by_event = record.a >> 48 & 1 == 1;
    let wanted = record.b == 1;
    add("new index", new.to_string());
    add("old index", old.to_string());
    add(
        if by_event {
            "avail_event"
        } else {
            "used flags"
        },
        wish.to_string(),
    );
    add("kick", if wanted { "yes" } else { "no" }.to_owned());
    match (by_event, wanted) {
        (true, true) => format!(
            "The device asked to be told at index {wish} of {queue}, which lies in {old}..{new}: \
             a kick is needed."
        ),
        (true, false) => format!(
            "The device asked to be told at index {wish} of {queue}, which does not lie in \
             {old}..{new}: the kick is saved."
        ),
        (false, true) => format!("The device's flags do not forbid it: {queue} is kicked."),
        (false, false) => {
            format!("The device's flags ask for no kick of {queue}: the kick is saved.")
        }
    }
}

fn wish(a: u64, add: &mut impl FnMut(&str, String)) {
    let name = match a >> 48 & 1 {
        1 => "used_event",
        _ => "avail flags",
    };
    add(name, (a as u16).to_string());
}

fn writes_or_reads(device_writes: bool) -> &'static str {
    if device_writes { "writes" } else { "reads" }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// What kind of doorbell, and where.
fn doorbell(kind: u64, target: u64) -> (&'static str, Option<String>) {
    let what = match kind {
        0 => "a 16-bit write to an I/O port",
        1 => "a 16-bit write to device memory",
        2 => "a 32-bit write to device memory",
        _ => return ("a call of the transport", None),
    };
    (what, Some(hex(target)))
}

/// Function, Linux function and section of an event of the guest.
fn place(
    event: Event,
) -> (
    Option<&'static str>,
    Option<&'static str>,
    Option<&'static str>,
) {
    let (function, linux, section) = match event {
        Event::FindVqsTry => ("find_vqs", "vp_find_vqs", "3.1.1 Device Initialization"),
        Event::FindVqsResult => (
            "try_find_vqs",
            "vp_try_to_find_vqs",
            "4.1.5.1.2 MSI-X Vector Configuration",
        ),
        Event::SetupQueue => (
            "setup_queue",
            "setup_vq",
            "4.1.5.1.3 Virtqueue Configuration",
        ),
        Event::AttachDoorbell => (
            "Virtqueue::new",
            "vring_new_virtqueue(.., vp_notify, ..)",
            "4.1.5.2 Available Buffer Notifications",
        ),
        Event::SocketSend => ("udp::Socket::send_slice", "udp_sendmsg", ""),
        Event::TxTokenConsume => ("TxToken::consume", "dev_hard_start_xmit", ""),
        Event::StartXmit => (
            "TxSlot::start_xmit",
            "start_xmit",
            "5.1.6.2 Packet Transmission",
        ),
        Event::Descriptor => (
            "Virtqueue::add",
            "virtqueue_add_split",
            "2.7.13.1 Placing Buffers Into The Descriptor Table",
        ),
        Event::Add => (
            "Virtqueue::add",
            "virtqueue_add_split",
            "2.7.13.2 Updating The Available Ring",
        ),
        Event::Publish => (
            "SplitRing::publish",
            "virtqueue_add_split, at its end",
            "2.7.13.3 Updating idx",
        ),
        Event::KickPrepare => (
            "Virtqueue::kick_prepare",
            "virtqueue_kick_prepare",
            "2.7.10 Available Buffer Notification Suppression",
        ),
        Event::Notify => (
            "Virtqueue::notify",
            "virtqueue_notify",
            "2.7.13.4 Notifying The Device",
        ),
        Event::DoorbellRing => (
            "Doorbell::ring",
            "vp_notify",
            "4.1.5.2 Available Buffer Notifications",
        ),
        Event::DoorbellRang => ("Doorbell::ring", "vp_notify", ""),
        Event::InterruptVector => ("interrupts::dispatch", "common_interrupt", ""),
        Event::VringInterrupt => (
            "InterruptState::vring_interrupt",
            "vring_interrupt",
            "4.1.5.3 Used Buffer Notifications",
        ),
        Event::IntxInterrupt => (
            "InterruptState::vp_interrupt",
            "vp_interrupt",
            "4.1.4.5 ISR status capability",
        ),
        Event::ConfigInterrupt => (
            "InterruptState::vp_config_changed",
            "vp_config_changed",
            "4.1.5.4 Notification of Device Configuration Changes",
        ),
        Event::Poll => ("VirtioNet::poll", "virtnet_poll", ""),
        Event::PopUsed => (
            "Virtqueue::pop_used",
            "virtqueue_get_buf",
            "2.7.14 Receiving Used Buffers From The Device",
        ),
        Event::RxTokenConsume => (
            "RxToken::consume",
            "receive_buf",
            "5.1.6.4 Processing of Incoming Packets",
        ),
        Event::SocketReceive => ("udp::Socket::recv", "udp_recvmsg", ""),
        Event::EnableInterrupts => (
            "Virtqueue::enable_interrupts",
            "virtqueue_enable_cb",
            "2.7.7 Used Buffer Notification Suppression",
        ),
        Event::DisableInterrupts => (
            "Virtqueue::disable_interrupts",
            "virtqueue_disable_cb",
            "2.7.7 Used Buffer Notification Suppression",
        ),
        Event::Idle => ("idle_until", "default_idle", ""),
    };
    let some = |text: &'static str| Some(text).filter(|text| !text.is_empty());
    (some(function), some(linux), some(section))
}

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
