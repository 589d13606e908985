//! Several stacks with one address, each behind a queue of the same device: what
//! one of them hears and all must know, or another one must.

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::phy;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpEndpoint, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

/// Frames that are kept between two looks at them.
const MAX_FRAMES: usize = 16;
/// Longest frame that is kept, in bytes: no message of address resolution or
/// configuration is longer than what every Ethernet carries.
const MAX_LENGTH: usize = 1514;
/// Longest stray segment that is kept, in bytes: an Ethernet header and an IP
/// packet as large as segmentation offloads make it.
const MAX_STRAY_LENGTH: usize = 14 + 65_535;

/// The frames that a stack keeps for others.
#[derive(Default)]
pub(crate) struct Shared {
    on: bool,
    frames: Vec<Box<[u8]>>,
    strays: Vec<Box<[u8]>>,
}

impl Shared {
    /// Begins to keep frames.
    pub(crate) fn start(&mut self) {
        self.on = true;
    }

    /// Keeps a frame that concerns all.
    #[cold]
    pub(crate) fn keep(&mut self, frame: &[u8]) {
        if self.on && self.frames.len() < MAX_FRAMES && frame.len() <= MAX_LENGTH {
            self.frames.push(frame.into());
        }
    }

    /// Takes what was kept for all.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        core::mem::take(&mut self.frames).into_iter()
    }

    /// Whether there are other stacks.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Keeps a segment of a connection that this stack does not have. Without
    /// room or memory it is lost, and its sender will send it again.
    #[cold]
    pub(crate) fn keep_stray(&mut self, frame: &[u8]) {
        let mut copy = Vec::new();
        if self.strays.len() < MAX_FRAMES
            && frame.len() <= MAX_STRAY_LENGTH
            && copy.try_reserve_exact(frame.len()).is_ok()
        {
            copy.extend_from_slice(frame);
            self.strays.push(copy.into_boxed_slice());
        }
    }

    /// Takes the segments that were kept.
    pub(crate) fn take_strays(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        core::mem::take(&mut self.strays).into_iter()
    }
}

/// The sender's end and ours of a TCP segment, but for one that is to open a
/// connection.
pub(crate) fn ends_of_segment(frame: &[u8]) -> Option<(IpEndpoint, IpEndpoint)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let (from, to, protocol, payload) = match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
            (from, to, packet.next_header(), packet.payload())
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
            let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
            (from, to, packet.next_header(), packet.payload())
        }
        _ => return None,
    };
    if protocol != IpProtocol::Tcp {
        return None;
    }
    let segment = TcpPacket::new_checked(payload).ok()?;
    let ends = (
        IpEndpoint::new(from, segment.src_port()),
        IpEndpoint::new(to, segment.dst_port()),
    );
    (!segment.syn()).then_some(ends)
}

/// Whether every stack must know of a frame: ARP; neighbour and router
/// advertisements and neighbour solicitations of IPv6; what a DHCP server says.
pub(crate) fn concerns_all(frame: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x06, ..] => true,
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..] => {
            packet.get(6) == Some(&ICMPV6) && matches!(packet.get(40), Some(134..=136))
        }
        _ => is_for_dhcp_client(frame),
    }
}

/// Whether a frame is for the port of DHCP clients. Such a message has no IP
/// options.
pub(crate) fn is_for_dhcp_client(frame: &[u8]) -> bool {
    const UDP: u8 = 17;
    const PORT: [u8; 2] = crate::DHCP_CLIENT_PORT.to_be_bytes();
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, packet @ ..] => {
            packet.get(9) == Some(&UDP) && packet.get(22..24) == Some(&PORT)
        }
        _ => false,
    }
}

/// Where the answer to a frame goes that another stack answers.
pub(crate) struct NoAnswer;

impl phy::TxToken for NoAnswer {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        f(&mut alloc::vec![0; length])
    }
}
