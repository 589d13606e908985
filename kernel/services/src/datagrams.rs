//! The UDP services together: which has which port, and which way a datagram comes
//! to it.

use smoltcp::iface::Interface;
use smoltcp::phy::TxToken;

use crate::checksum::ETHERNET;
use crate::datagram::{Chargen, DatagramService, Discard, Echo, is_answerer};
use crate::in_place;
use crate::link::Outgoing;
use crate::packet::{Datagram, Packet};
use crate::udp::{MAX_DATAGRAM, Sockets};
use crate::{CHARGEN_PORT, DISCARD_PORT, ECHO_PORT};

pub(crate) struct Datagrams {
    echo: Sockets<Echo>,
    discard: Sockets<Discard>,
    chargen: Sockets<Chargen>,
    /// Without sockets, where that is possible.
    pub(crate) in_place: bool,
    /// Of a frame that goes out in one.
    max_frame: usize,
}

impl Datagrams {
    /// `ip_mtu` is the link's, in bytes.
    pub(crate) fn new(ip_mtu: usize) -> Self {
        Self {
            echo: Sockets::new(Echo, MAX_DATAGRAM, ip_mtu),
            discard: Sockets::new(Discard, ip_mtu, ip_mtu),
            chargen: Sockets::new(Chargen::default(), ip_mtu, ip_mtu),
            in_place: false,
            max_frame: ETHERNET + ip_mtu,
        }
    }

    /// Hands a datagram of the neighbour in a place to its service, and answers. Returns
    /// whether fragments of the answer may be left to be sent; gives the token back if
    /// there is no such service.
    #[inline(always)]
    pub(crate) fn receive<T: TxToken>(
        &mut self,
        interface: &mut Interface,
        packet: &Packet<'_>,
        datagram: &Datagram<'_>,
        place: usize,
        outgoing: &mut Outgoing,
        token: T,
    ) -> Result<bool, T> {
        if !matches!(datagram.to, ECHO_PORT | DISCARD_PORT | CHARGEN_PORT) {
            return Err(token);
        }
        // RFC 1122, 3.2.1.3: a broadcast or multicast address is no source.
        if is_answerer(datagram.from) || !outgoing.neighbors.is_ours(packet.destination) {
            return Ok(false);
        }
        let in_place = self.in_place.then_some((place, self.max_frame));
        let (service, asked) = (datagram.to, (packet, datagram, in_place));
        Ok(match service {
            ECHO_PORT => serve(&mut self.echo, interface, asked, outgoing, token),
            DISCARD_PORT => serve(&mut self.discard, interface, asked, outgoing, token),
            _ => serve(&mut self.chargen, interface, asked, outgoing, token),
        })
    }
}

/// Answers a datagram to an address of ours: in place where that is said with what it
/// takes, if possible, else by the service's sockets.
#[inline(always)]
fn serve<S: DatagramService, T: TxToken>(
    sockets: &mut Sockets<S>,
    interface: &mut Interface,
    (packet, datagram, in_place): (&Packet<'_>, &Datagram<'_>, Option<(usize, usize)>),
    outgoing: &mut Outgoing,
    mut token: T,
) -> bool {
    if let Some(to) = in_place {
        let service = &mut sockets.service;
        token = match in_place::answer(service, packet, datagram, to, outgoing, token) {
            Ok(()) => return false,
            Err(token) => token,
        };
    }
    sockets.ingest(interface, packet.frame, outgoing, token)
}
