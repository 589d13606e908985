//! The far end of an experiment: it sends datagrams to the guest's echo service, looks
//! at every frame that comes back, and answers nothing but the question for its
//! hardware address.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, UdpPacket, UdpRepr,
};

use crate::qemu::GUEST_MAC;
use crate::wire::peer::PEER_MAC;
use crate::wire::{ECHO_PORT, Plan};

const PORT: u16 = 40_007;
const ETHERNET: usize = 14;
const CONTENT: usize = ETHERNET + 20 + 8;
/// Ethernet's shortest frame, without its checksum: some back ends fill up to it.
const SHORTEST: usize = 60;

/// What a frame from the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The answer to the datagram of this number, intact.
    Answer(u64),
    /// A question for our hardware address; this is the answer.
    Question(Vec<u8>),
    /// Something else that is whole.
    Whole,
    /// No frame that the guest wrote, and why.
    Damaged(String),
}

/// The two ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub guest: Ipv4Addr,
    pub host: Ipv4Addr,
    /// Bytes of content, 8 or more.
    pub size: usize,
}

impl Probe {
    pub fn new(plan: &Plan, size: usize) -> Self {
        Self {
            guest: plan.guest.address,
            host: plan.host,
            size,
        }
    }

    /// The content of a datagram: its number, over and over.
    fn content(&self, number: u64) -> Vec<u8> {
        let bytes = number.to_be_bytes().into_iter().cycle();
        bytes.take(self.size).collect()
    }

    /// The frame that asks for the guest's hardware address, by which the guest has ours.
    pub fn hello(&self) -> Vec<u8> {
        arp(&ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(PEER_MAC),
            source_protocol_addr: self.host,
            target_hardware_addr: EthernetAddress(GUEST_MAC),
            target_protocol_addr: self.guest,
        })
    }

    /// The frame that asks for this echo.
    pub fn request(&self, number: u64) -> Vec<u8> {
        let checksums = ChecksumCapabilities::default();
        let content = self.content(number);
        let mut bytes = vec![0; CONTENT + content.len()];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        EthernetRepr {
            src_addr: EthernetAddress(PEER_MAC),
            dst_addr: EthernetAddress(GUEST_MAC),
            ethertype: EthernetProtocol::Ipv4,
        }
        .emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        Ipv4Repr {
            src_addr: self.host,
            dst_addr: self.guest,
            next_header: IpProtocol::Udp,
            payload_len: 8 + content.len(),
            hop_limit: 64,
        }
        .emit(&mut packet, &checksums);
        let ports = UdpRepr {
            src_port: PORT,
            dst_port: ECHO_PORT,
        };
        ports.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &self.host.into(),
            &self.guest.into(),
            content.len(),
            |place| place.copy_from_slice(&content),
            &checksums,
        );
        bytes
    }

    /// Looks at a frame from the guest.
    pub fn look(&self, bytes: &[u8]) -> Seen {
        let damaged = |why: &str| Seen::Damaged(format!("{} bytes: {why}", bytes.len()));
        let Ok(frame) = EthernetFrame::new_checked(bytes) else {
            return damaged("no Ethernet frame");
        };
        if frame.src_addr() != EthernetAddress(GUEST_MAC) {
            return damaged(&format!("it says that {} sent it", frame.src_addr()));
        }
        let payload = frame.payload();
        let says = match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                Ipv4Packet::new_checked(payload).map(|packet| usize::from(packet.total_len()))
            }
            EthernetProtocol::Ipv6 => Ipv6Packet::new_checked(payload)
                .map(|packet| packet.header_len() + usize::from(packet.payload_len())),
            EthernetProtocol::Arp => ArpPacket::new_checked(payload).map(|_| 28),
            other => return damaged(&format!("of the unknown kind {other}")),
        };
        let Ok(says) = says else {
            return damaged("its packet is cut short");
        };
        if bytes.len() != (ETHERNET + says).max(SHORTEST) && bytes.len() != ETHERNET + says {
            let more = bytes.len() - ETHERNET - says;
            return damaged(&format!("{more} of them behind the end of its packet"));
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => self.question(payload).unwrap_or(Seen::Whole),
            EthernetProtocol::Ipv4 => self.answer(payload).unwrap_or(Seen::Whole),
            _ => Seen::Whole,
        }
    }

    fn question(&self, payload: &[u8]) -> Option<Seen> {
        let packet = ArpPacket::new_checked(payload).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        if target_protocol_addr != self.host {
            return None;
        }
        Some(Seen::Question(arp(&ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(PEER_MAC),
            source_protocol_addr: self.host,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        })))
    }

    fn answer(&self, payload: &[u8]) -> Option<Seen> {
        let packet = Ipv4Packet::new_checked(payload).ok()?;
        let is_ours = packet.src_addr() == self.guest && packet.next_header() == IpProtocol::Udp;
        let udp = UdpPacket::new_checked(packet.payload()).ok()?;
        if !is_ours || udp.src_port() != ECHO_PORT || udp.dst_port() != PORT {
            return None;
        }
        let number = udp
            .payload()
            .first_chunk()
            .copied()
            .map(u64::from_be_bytes)?;
        let intact = packet.verify_checksum()
            && udp.verify_checksum(&self.guest.into(), &self.host.into())
            && udp.payload() == self.content(number);
        Some(match intact {
            true => Seen::Answer(number),
            false => Seen::Damaged("an echo with another content".to_owned()),
        })
    }
}

/// A frame of ours to the guest with this question or answer.
fn arp(packet: &ArpRepr) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET + packet.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    EthernetRepr {
        src_addr: EthernetAddress(PEER_MAC),
        dst_addr: EthernetAddress(GUEST_MAC),
        ethertype: EthernetProtocol::Arp,
    }
    .emit(&mut frame);
    packet.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe = Probe {
        guest: Ipv4Addr::new(10, 0, 2, 15),
        host: Ipv4Addr::new(10, 0, 2, 2),
        size: 64,
    };

    /// What the guest's echo service makes of a request.
    fn echo(number: u64) -> Vec<u8> {
        let mut bytes = PROBE.request(number);
        let (to, from) = bytes[..12].split_at_mut(6);
        to.swap_with_slice(from);
        let (from, to) = bytes[26..34].split_at_mut(4);
        to.swap_with_slice(from);
        let (from, to) = bytes[34..38].split_at_mut(2);
        to.swap_with_slice(from);
        bytes
    }

    #[test]
    fn an_echo_is_told_from_what_is_cut_long_or_shifted() {
        let whole = echo(7);
        assert_eq!(PROBE.look(&whole), Seen::Answer(7));
        let mut long = whole.clone();
        long.extend([0; 100]);
        let mut other = whole.clone();
        other[60] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[12..], &long, &other, &[]] {
            let seen = PROBE.look(damaged);
            assert!(matches!(seen, Seen::Damaged(_)), "{seen:?}");
        }
    }

    #[test]
    fn the_question_for_our_address_is_answered() {
        let ask = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(GUEST_MAC),
            source_protocol_addr: PROBE.guest,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: PROBE.host,
        };
        let mut bytes = vec![0; 42];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_src_addr(EthernetAddress(GUEST_MAC));
        frame.set_ethertype(EthernetProtocol::Arp);
        ask.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        let Seen::Question(answer) = PROBE.look(&bytes) else {
            panic!("{:?}", PROBE.look(&bytes));
        };
        assert_eq!(answer[..6], GUEST_MAC);
        assert_eq!(answer[22..28], PEER_MAC);
        bytes.resize(60, 0);
        assert!(matches!(PROBE.look(&bytes), Seen::Question(_)));
    }
}
