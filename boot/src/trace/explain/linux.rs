//! Records of a Linux guest: its own functions, with what was recorded of their arguments.

use kickpath_trace::Event;

use super::guest::{capital, doorbell, rung};
use super::place::{of_packed, place};
use super::{Context, Explanation};
use crate::trace::records::{GuestRecord, LinuxRecord};

/// Explains a record of a Linux guest; the function itself is in `linux`.
pub fn linux(record: &GuestRecord, linux: &LinuxRecord, context: Context) -> Explanation {
    let (_, _, section) = place(record.event);
    let section = match context.packed {
        true => section.map(of_packed),
        false => section,
    };
    Explanation {
        function: None,
        linux: None,
        // No rule of the specification is about the functions around the driver.
        section: section.filter(|_| record.event != Event::DoorbellRang),
        sentence: sentence(record, &linux.function, context),
        values: linux.values.clone(),
    }
}

fn sentence(record: &GuestRecord, function: &str, context: Context) -> String {
    let (a, b) = (record.a, record.b);
    let queue = context.queue_text(record);
    match record.event {
        Event::FindVqsTry => format!("Linux tries {}.", rung(a)),
        Event::FindVqsResult => match b {
            1 => format!("The device accepts {}: this rung is taken.", rung(a)),
            _ => format!("{} does not work here.", capital(rung(a))),
        },
        Event::SetupQueue => {
            format!("The rings of {queue} are made, {a} descriptors, and the device is told where.")
        }
        Event::AttachDoorbell => format!(
            "The notify hook of {queue} is set: from now on a kick is {}.",
            doorbell(a, b).0
        ),
        Event::SocketSend => format!("A program gives {a} bytes to its UDP socket (sendto)."),
        Event::TxTokenConsume => format!(
            "dev_hard_start_xmit hands the frame of {a} bytes to the driver: next it calls \
             net_device_ops.ndo_start_xmit."
        ),
        Event::StartXmit => {
            format!("The driver has the frame of {a} bytes, in an sk_buff.")
        }
        Event::Add => {
            let length = a >> 32;
            match context.is_receive(record.queue.unwrap_or_default()) {
                true => format!(
                    "A buffer of {length} bytes is put into {queue} for the device to fill."
                ),
                false => format!(
                    "The frame is put into {queue}: the first buffer has {length} bytes, the \
                     virtio header with it where there is room before the frame."
                ),
            }
        }
        Event::KickPrepare => match b {
            1 => format!("The device wants to be told of what is new in {queue}: it is kicked."),
            _ => format!("The device did not ask to be told of {queue}: the kick is saved."),
        },
        Event::Notify => format!("{} is going to be kicked: vq->notify(vq).", capital(&queue)),
        Event::DoorbellRing => format!(
            "vp_notify is called: its iowrite16 is {}, which stops the guest, and the host takes \
             over.",
            doorbell(a, b).0
        ),
        Event::DoorbellRang => "vp_notify returns: the guest runs again.".to_owned(),
        Event::OtherInterrupt => {
            "While it runs, the CPU takes an interrupt that is not the device's.".to_owned()
        }
        Event::OtherInterruptEnd => "The handler of that other interrupt has ended.".to_owned(),
        Event::InterruptVector => format!("The CPU takes interrupt vector {a}."),
        Event::VringInterrupt => format!(
            "The handler of {queue} calls the driver's callback, which masks further interrupts \
             and schedules a poll (NAPI)."
        ),
        Event::IntxInterrupt => match a & 1 {
            0 => "The interrupt status is 0: this interrupt is not the device's.".to_owned(),
            _ => "The handler reads the interrupt status, which lowers the line.".to_owned(),
        },
        Event::Poll if function == "virtnet_poll_tx" => {
            "The poll of the transmit queue begins: sent buffers are freed.".to_owned()
        }
        Event::Poll => "The poll of the receive queue begins.".to_owned(),
        Event::PopUsed => match context.is_receive(record.queue.unwrap_or_default()) {
            true => format!("{} gives a filled buffer back.", capital(&queue)),
            false => format!("{} gives the sent sk_buff back.", capital(&queue)),
        },
        Event::RxTokenConsume => {
            format!("The frame goes up to the network stack: {a} bytes behind its Ethernet header.")
        }
        Event::SocketReceive => {
            format!("The program has {a} bytes out of its UDP socket (recvfrom).")
        }
        Event::EnableInterrupts => format!("The driver asks for interrupts of {queue} again."),
        Event::DisableInterrupts => format!("The driver asks for no interrupts of {queue}."),
        Event::Idle => "Nothing is left to do: the CPU sleeps until an interrupt.".to_owned(),
        Event::Descriptor | Event::Publish | Event::ConfigInterrupt => format!("{function} ran."),
    }
}
