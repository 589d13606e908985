//! The UDP services together: which has which port, and which way a datagram comes
//! to it.

use smoltcp::iface::Interface;
use smoltcp::phy::TxToken;

use crate::checksum::ETHERNET;
use crate::datagram::{self, Chargen, Discard, Echo};
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

    /// Hands a datagram to its service, and answers. Returns whether fragments of the
    /// answer may be left to be sent; gives the token back if there is no such service.
    #[inline(always)]
    pub(crate) fn receive<T: TxToken>(
        &mut self,
        interface: &mut Interface,
        packet: &Packet<'_>,
        datagram: &Datagram<'_>,
        outgoing: &mut Outgoing,
        token: T,
    ) -> Result<bool, T> {
        let mut token = token;
        if self.in_place {
            if datagram::is_answerer(datagram.from)
                || !outgoing.neighbors.is_ours(packet.destination)
            {
                return Err(token);
            }
            let max_frame = self.max_frame;
            let answered = match datagram.to {
                ECHO_PORT => {
                    let service = &mut self.echo.service;
                    in_place::answer(service, packet, datagram, max_frame, outgoing, token)
                }
                DISCARD_PORT => return Ok(false),
                CHARGEN_PORT => {
                    let service = &mut self.chargen.service;
                    in_place::answer(service, packet, datagram, max_frame, outgoing, token)
                }
                _ => return Err(token),
            };
            token = match answered {
                Ok(()) => return Ok(false),
                Err(token) => token,
            };
        }
        self.receive_by_socket(interface, packet, datagram.to, outgoing, token)
    }

    /// Hands a datagram to the sockets of its service.
    #[inline]
    fn receive_by_socket<T: TxToken>(
        &mut self,
        interface: &mut Interface,
        packet: &Packet<'_>,
        port: u16,
        outgoing: &mut Outgoing,
        token: T,
    ) -> Result<bool, T> {
        Ok(match port {
            ECHO_PORT => self.echo.ingest(interface, packet, outgoing, token),
            DISCARD_PORT => self.discard.ingest(interface, packet, outgoing, token),
            CHARGEN_PORT => self.chargen.ingest(interface, packet, outgoing, token),
            _ => return Err(token),
        })
    }
}
