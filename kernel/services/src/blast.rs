//! Datagrams as fast as they go, from a socket of smoltcp: what sending costs.

use alloc::boxed::Box;
use alloc::vec;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, PacketMeta};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, HardwareAddress, IpCidr, Ipv4Address,
};

use crate::checksum::{Checked, Duties, ETHERNET};
use crate::fast_echo::Nowhere;
use crate::ingress::OneFrame;
use crate::udp::{buffer, opened};
use crate::{DISCARD_PORT, ECHO_PORT};

/// Addresses for documentation (RFC 5737).
const OURS: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const PEER: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);
/// A locally administered one (IEEE 802).
const PEER_MAC: EthernetAddress = EthernetAddress([0x02, 0, 0, 0, 0, 2]);
/// Bytes of an ARP packet for IPv4 on Ethernet.
const ARP: usize = 28;
/// Largest UDP payload of an unfragmented packet.
const PAYLOAD: usize = 1472;

/// A UDP socket on an interface that knows its neighbour.
pub struct Blast {
    interface: Box<Interface>,
    duties: Duties,
    set: SocketSet<'static>,
    socket: SocketHandle,
    to: udp::UdpMetadata,
}

impl Blast {
    /// `mac` is the device's address. The neighbour is good for a minute.
    ///
    /// # Panics
    /// When the device's medium is not Ethernet.
    pub fn new<D: Device + ?Sized>(mac: [u8; 6], device: &mut D, now: Instant) -> Self {
        let mac = EthernetAddress(mac);
        let duties = Duties::of(device);
        let config = Config::new(HardwareAddress::Ethernet(mac));
        let mut device = Checked::new(device, duties);
        let mut interface = Box::new(Interface::new(config, &mut device, now));
        interface.update_ip_addrs(|addresses| {
            // There is room for the first.
            let _ = addresses.push(IpCidr::new(OURS.into(), 24));
        });
        let mut set = SocketSet::new(vec![]);
        let socket = set.add(opened(buffer(0, 0), buffer(1, PAYLOAD), ECHO_PORT));
        let answer = arp_answer(mac);
        let mut answer = OneFrame::new(&answer, PacketMeta::default(), Nowhere);
        interface.poll_ingress_single(now, &mut answer, &mut set);
        Self {
            interface,
            duties,
            set,
            socket,
            to: (PEER, DISCARD_PORT).into(),
        }
    }

    /// Sends a datagram of up to 1472 bytes. Returns whether it found room.
    #[inline]
    pub fn send<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        payload: &[u8],
    ) -> bool {
        let socket = self.set.get_mut::<udp::Socket>(self.socket);
        let mut device = Checked::new(device, self.duties);
        socket.send_slice(payload, self.to).is_ok()
            && self.interface.poll_egress(now, &mut device, &mut self.set)
                == PollResult::SocketStateChanged
    }
}

/// The frame by which the peer tells its hardware address.
fn arp_answer(mac: EthernetAddress) -> [u8; ETHERNET + ARP] {
    let mut bytes = [0; ETHERNET + ARP];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    EthernetRepr {
        src_addr: PEER_MAC,
        dst_addr: mac,
        ethertype: EthernetProtocol::Arp,
    }
    .emit(&mut frame);
    ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: PEER_MAC,
        source_protocol_addr: PEER,
        target_hardware_addr: mac,
        target_protocol_addr: OURS,
    }
    .emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}
