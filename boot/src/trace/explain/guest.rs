//! Records of the guest.

use kickpath_trace::Event;

use super::place::{of_mmio, of_packed, place};
use super::{Context, Explanation, buffer, hex, value};
use crate::trace::records::GuestRecord;
use crate::trace::timeline::NamedValue;

/// Explains a record of the guest.
pub fn guest(record: &GuestRecord, context: Context) -> Explanation {
    let queue = context.queue_text(record);
    let mut explanation = common(record, &queue);
    if context.packed {
        explanation.function = explanation.function.map(of_packed);
        explanation.linux = explanation.linux.map(of_packed);
        explanation.section = explanation.section.map(of_packed);
        if let Some((sentence, values)) = packed(record, &queue) {
            explanation.sentence = sentence;
            explanation.values = values;
        }
    }
    if context.mmio {
        if matches!(record.event, Event::FindVqsTry | Event::FindVqsResult) {
            // Linux's has no ladder: it takes the one line.
            explanation.linux = (record.a == INTX).then_some("vm_find_vqs");
            if record.a != INTX {
                explanation.sentence += " Virtio-mmio has one line and no MSI-X. That it is tried all the same is our \
                     driver's way: Linux's vm_find_vqs asks for the line at once.";
            }
        }
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
        Event::OtherInterrupt => {
            add("vector", a.to_string());
            format!(
                "While it runs, the CPU takes interrupt vector {a}, which is no device's: its \
                 timer's, or the message of another CPU."
            )
        }
        Event::OtherInterruptEnd => {
            add("vector", a.to_string());
            format!("The handler of vector {a} has ended: what it had interrupted goes on.")
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

/// The rung of the INTx line.
const INTX: u64 = 2;

/// The rungs of the interrupt ladder, by their number.
pub(super) fn rung(number: u64) -> &'static str {
    match number {
        0 => "MSI-X with a vector a queue",
        1 => "MSI-X with one vector for all queues",
        2 => "the INTx line",
        3 => "polling without interrupts",
        _ => "an unknown rung",
    }
}

/// Position and wrap counter in a word of a packed ring (specification 2.8.1).
fn wrapped(word: u64) -> String {
    format!("{} (wrap counter {})", word & 0x7fff, word >> 15 & 1)
}

/// What differs for a packed ring: sentence and values. `None` for what does
/// not.
fn packed(record: &GuestRecord, queue: &str) -> Option<(String, Vec<NamedValue>)> {
    let (a, b) = (record.a, record.b);
    let (address, device_writes) = buffer(b);
    let (id, place) = (a as u16, (a >> 16) as u16);
    Some(match record.event {
        Event::Add => (
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
            match record.event {
                Event::EnableInterrupts => format!(
                    "The driver asks for interrupts of {queue} in its event suppression structure."
                ),
                _ => format!("The driver asks for no interrupts of {queue}: it is polling."),
            },
            vec![match a >> 48 & 1 {
                1 => value("driver's event", wrapped(a & 0xffff)),
                _ => value("driver's flags", a & 0xffff),
            }],
        ),
        _ => return None,
    })
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

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// What kind of doorbell, and where.
pub(super) fn doorbell(kind: u64, target: u64) -> (&'static str, Option<String>) {
    let what = match kind {
        0 => "a 16-bit write to an I/O port",
        1 => "a 16-bit write to device memory",
        2 => "a 32-bit write to device memory",
        _ => return ("a call of the transport", None),
    };
    (what, Some(hex(target)))
}
