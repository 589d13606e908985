//! What happens to a frame before smoltcp sees it.
//!
//! smoltcp looks for a frame's socket by asking every UDP (or TCP) socket of a
//! set in turn, and asks every socket of a set for something to send. Sockets
//! are therefore kept in several sets, and a glance at the headers, [`classify`],
//! says which one a frame is for: an echo request from a known sender then costs
//! what it would cost with a single socket in the system.

use smoltcp::phy::{Device, DeviceCapabilities, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::{DHCP_CLIENT_PORT, ECHO_PORT};

/// Which sockets a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A whole UDP datagram to the echo port; the address is its sender's,
    /// IPv4 as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
    UdpEcho(u128),
    /// A UDP datagram to the DHCP client port.
    Dhcp,
    /// A fragment of an IPv4 packet: it may complete a packet whose answer
    /// must be fragmented too.
    Fragment,
    /// Anything else.
    Other,
}

/// Reads just enough headers to tell where a frame goes. It decides nothing
/// else: smoltcp validates every field again.
#[inline]
pub(crate) fn classify(frame: &[u8]) -> Class {
    const UDP: u8 = 17;
    const ETHERNET: usize = 14;
    let Some(ethertype) = frame.get(12..14) else {
        return Class::Other;
    };
    match [ethertype[0], ethertype[1]] {
        [0x08, 0x00] => {
            // RFC 791, 3.1: a header without options has 20 bytes.
            let Some(packet) = frame.get(ETHERNET..ETHERNET + 28) else {
                return Class::Other;
            };
            // "More fragments" or an offset.
            if (packet[6] & 0x3f) | packet[7] != 0 {
                return Class::Fragment;
            }
            if packet[0] != 0x45 || packet[9] != UDP {
                return Class::Other;
            }
            match u16::from_be_bytes([packet[22], packet[23]]) {
                ECHO_PORT => {
                    let source =
                        u32::from_be_bytes([packet[12], packet[13], packet[14], packet[15]]);
                    Class::UdpEcho(0xffff_0000_0000 | u128::from(source))
                }
                DHCP_CLIENT_PORT => Class::Dhcp,
                _ => Class::Other,
            }
        }
        [0x86, 0xdd] => {
            let Some(packet) = frame.get(ETHERNET..ETHERNET + 48) else {
                return Class::Other;
            };
            if packet[6] != UDP || u16::from_be_bytes([packet[42], packet[43]]) != ECHO_PORT {
                return Class::Other;
            }
            let mut source = [0; 16];
            source.copy_from_slice(&packet[8..24]);
            Class::UdpEcho(u128::from_be_bytes(source))
        }
        _ => Class::Other,
    }
}

/// A device that receives one frame and can send one answer: how a frame that
/// has been looked at is handed to `Interface::poll_ingress_single`.
pub(crate) struct OneFrame<'f, T> {
    frame: Option<(&'f [u8], PacketMeta)>,
    answer: Option<T>,
}

impl<'f, T: TxToken> OneFrame<'f, T> {
    pub(crate) fn new(frame: &'f [u8], meta: PacketMeta, answer: T) -> Self {
        Self {
            frame: Some((frame, meta)),
            answer: Some(answer),
        }
    }
}

impl<'f, T: TxToken> Device for OneFrame<'f, T> {
    type RxToken<'a>
        = Frame<'f>
    where
        Self: 'a;
    type TxToken<'a>
        = T
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'f>, T)> {
        let (frame, meta) = self.frame.take()?;
        Some((Frame { frame, meta }, self.answer.take()?))
    }

    fn transmit(&mut self, _now: Instant) -> Option<T> {
        self.answer.take()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The interface keeps the capabilities of the device that it was made
        // for; receiving does not ask again.
        DeviceCapabilities::default()
    }
}

/// The frame of [`OneFrame`].
pub(crate) struct Frame<'f> {
    frame: &'f [u8],
    meta: PacketMeta,
}

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }

    fn meta(&self) -> PacketMeta {
        self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_frames_have_no_class() {
        let mut frame = [0u8; 62];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[20] = 17;
        frame[57] = 7;
        for length in 0..62 {
            assert_eq!(classify(&frame[..length]), Class::Other, "{length}");
        }
        assert_eq!(classify(&frame), Class::UdpEcho(0));
    }

    #[test]
    fn fragments_and_options_leave_the_fast_path() {
        let mut frame = [0u8; 42];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = 17;
        frame[26..30].copy_from_slice(&[10, 0, 2, 2]);
        frame[37] = 7;
        assert_eq!(classify(&frame), Class::UdpEcho(0xffff_0a00_0202));
        // Don't-fragment is no fragment.
        frame[20] = 0x40;
        assert_eq!(classify(&frame), Class::UdpEcho(0xffff_0a00_0202));
        frame[20] = 0x20;
        assert_eq!(classify(&frame), Class::Fragment);
        frame[20] = 0;
        frame[21] = 1;
        assert_eq!(classify(&frame), Class::Fragment);
        frame[21] = 0;
        frame[14] = 0x46;
        assert_eq!(classify(&frame), Class::Other);
    }
}
