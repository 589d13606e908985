//! Datagrams as fast as they go, from a socket of smoltcp: what sending costs.

use alloc::boxed::Box;

use smoltcp::iface::{Config, Interface, PollResult};
use smoltcp::phy::Device;
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

use crate::link::{Fill, Link, Outgoing, ip_capabilities};
use crate::neighbors::Neighbors;
use crate::stand_in::Described;
use crate::udp::{Alone, alone, buffer};
use crate::{DISCARD_PORT, ECHO_PORT};

/// Addresses for documentation (RFC 5737).
const OURS: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);
const PEER: Ipv4Address = Ipv4Address::new(192, 0, 2, 2);
/// A locally administered one (IEEE 802).
const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
/// Largest UDP payload of an unfragmented packet.
const PAYLOAD: usize = 1472;

/// A UDP socket on an interface that knows its neighbour.
pub struct Blast {
    interface: Box<Interface>,
    outgoing: Outgoing,
    socket: Alone,
    to: udp::UdpMetadata,
}

impl Blast {
    /// `mac` is the device's address. The neighbour is good for a minute.
    ///
    /// # Panics
    /// When the device's medium is not Ethernet.
    pub fn new<D: Device + ?Sized>(mac: [u8; 6], device: &mut D, now: Instant) -> Self {
        let capabilities = device.capabilities();
        let fill = Fill::of(&capabilities);
        let config = Config::new(HardwareAddress::Ip);
        let mut device = Described(ip_capabilities(capabilities));
        let mut interface = Box::new(Interface::new(config, &mut device, now));
        interface.update_ip_addrs(|addresses| {
            // There is room for the first.
            let _ = addresses.push(IpCidr::new(OURS.into(), 24));
        });
        let mut neighbors = Neighbors::new(EthernetAddress(mac), 0, 0);
        neighbors.set_routes(&interface);
        neighbors.note(PEER.into(), PEER_MAC, true, true, now);
        Self {
            interface,
            outgoing: Outgoing {
                neighbors,
                fill,
                of_fragments: [0, 0],
                now,
            },
            socket: alone(buffer(0, 0), buffer(1, PAYLOAD), ECHO_PORT),
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
        let (set, handle) = &mut self.socket;
        let socket = set.get_mut::<udp::Socket>(*handle);
        let outgoing = &mut self.outgoing;
        outgoing.now = now;
        let mut link = Link { device, outgoing };
        socket.send_slice(payload, self.to).is_ok()
            && self.interface.poll_egress(now, &mut link, set) == PollResult::SocketStateChanged
    }
}
