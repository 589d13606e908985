//! The two frames, compared byte for byte.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, PrettyPrinter, UdpPacket,
};

use super::super::journey::Journey;
use super::super::recording::{Probe, Recording, hex};
use super::super::timeline::{Comparison, Direction, Frame, Layer, Step};
use super::PROBE_PORT;

/// Whether this frame has the datagram of the window.
pub fn is_probe(bytes: &[u8], probe: Probe, direction: Direction) -> bool {
    let datagram = || {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
        if packet.next_header() != IpProtocol::Udp {
            return None;
        }
        let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
        let port = match direction {
            Direction::In => datagram.dst_port(),
            Direction::Out => datagram.src_port(),
        };
        Some((port, datagram.payload().len()))
    };
    datagram() == Some((PROBE_PORT, probe.bytes))
}

/// Both frames of the window.
pub fn frames(recording: &Recording, journey: &Journey, steps: &[Step]) -> Vec<Frame> {
    let records = &recording.guest;
    let received = || {
        let header = journey.receive_header(records)?;
        let address = journey.receive_buffer(records)?.checked_add(header)?;
        Some((address, journey.received_buffer_used_again(records)))
    };
    let sent = || {
        let (address, _) = journey.sent_frame(records)?;
        Some((address, journey.sent_buffer_used_again(records)))
    };
    let mut frames = Vec::new();
    for (direction, place) in [(Direction::In, received()), (Direction::Out, sent())] {
        let wire = recording.frames.iter().rev().find(|frame| {
            frame.direction == direction && is_probe(&frame.bytes, recording.probe, direction)
        });
        let Some(wire) = wire else {
            continue;
        };
        let name = match direction {
            Direction::In => "frame sent",
            Direction::Out => "frame received",
        };
        let wire_step = steps
            .iter()
            .find(|step| step.layer == Layer::Wire && step.event == name);
        let memory = place.and_then(|(address, _)| {
            let mut memory = recording.memory.iter();
            memory.find(|memory| memory.address == address)
        });
        let comparison = match (memory, place) {
            _ if recording.is_of_linux() => Comparison::NotCompared {
                reason: "Linux frees a buffer before it could be read".to_owned(),
            },
            (Some(memory), _) => compare(&memory.bytes, &wire.bytes),
            (None, Some((_, true))) => Comparison::NotCompared {
                reason: "the guest's buffer held another frame when it was read".to_owned(),
            },
            (None, Some((address, false))) => Comparison::NotCompared {
                reason: format!("the guest's memory at {address:#x} was not read"),
            },
            (None, None) => Comparison::NotCompared {
                reason: "the guest's records do not tell where its buffer is".to_owned(),
            },
        };
        let headers = PrettyPrinter::<EthernetFrame<&'static [u8]>>::new("", &wire.bytes);
        frames.push(Frame {
            direction,
            wire_step: wire_step.map(|step| step.number),
            wire: hex::encode(&wire.bytes),
            guest: memory.map(|memory| hex::encode(&memory.bytes)),
            guest_address: memory.map(|memory| memory.address),
            headers: headers.to_string().lines().map(str::to_owned).collect(),
            comparison,
        });
    }
    frames
}

fn compare(guest: &[u8], wire: &[u8]) -> Comparison {
    if let Some(at) = guest.iter().zip(wire).position(|(g, w)| g != w) {
        return Comparison::Differs {
            at,
            how: format!(
                "byte {at} is {:#04x} in the guest and {:#04x} on the wire",
                guest[at], wire[at]
            ),
        };
    }
    if guest.len() == wire.len() {
        return Comparison::Equal;
    }
    Comparison::Differs {
        at: guest.len().min(wire.len()),
        how: format!(
            "{} bytes in the guest, {} on the wire",
            guest.len(),
            wire.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_compared_to_the_last_byte() {
        assert_eq!(compare(&[1, 2, 3], &[1, 2, 3]), Comparison::Equal);
        assert!(matches!(
            compare(&[1, 2, 3], &[1, 9, 3]),
            Comparison::Differs { at: 1, .. }
        ));
        assert!(matches!(
            compare(&[1, 2, 3], &[1, 2]),
            Comparison::Differs { at: 2, .. }
        ));
        assert!(matches!(
            compare(&[], &[1]),
            Comparison::Differs { at: 0, .. }
        ));
    }
}
