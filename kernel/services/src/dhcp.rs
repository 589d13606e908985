//! What a DHCP server says, before smoltcp's client hears it (RFC 2131, 2132).
//!
//! Each fault of smoltcp 0.14's client is worked around in a step of its own in
//! [`Filter::admit`].

use alloc::vec::Vec;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, Ipv4Address};

use crate::checksum::ETHERNET;

/// RFC 2131, 3.1.5: how long a client waits before it begins again.
const RESTART_INTERVAL: Duration = Duration::from_secs(10);
const OPTION_ROUTER: u8 = 3;
const PAD: u8 = 0;
/// Bytes of the fixed part with the magic cookie (RFC 2131, 2 and 3).
const OPTIONS: usize = 240;

#[derive(Default)]
pub(crate) struct Filter {
    /// Until then a NAK is not believed.
    no_nak_before: Option<Instant>,
    /// When the lease ends that was granted last.
    pub(crate) lease_ends_at: Option<Instant>,
}

impl Filter {
    /// The frame as the client is to see it, if it is.
    #[cold]
    pub(crate) fn admit(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let first = frame.get(ETHERNET)?;
        let at = ETHERNET + usize::from(first & 0xf) * 4 + 8;
        let mut frame = frame.to_vec();
        keep_first_router(frame.get_mut(at + OPTIONS..)?);
        let message = DhcpPacket::new_checked(frame.get(at..)?).ok()?;
        let message = DhcpRepr::parse(&message).ok()?;
        match message.message_type {
            // The client begins again at once, also when a server says no that it
            // did not choose. When it has done so, it listens to nobody else.
            DhcpMessageType::Nak => {
                if self.no_nak_before.is_some_and(|time| now < time) {
                    return None;
                }
                self.no_nak_before = Some(now + RESTART_INTERVAL);
            }
            // It takes any address, and any mask.
            DhcpMessageType::Offer | DhcpMessageType::Ack => {
                let is_wrong_mask = message.subnet_mask.is_some_and(|mask| {
                    let mask = mask.to_bits();
                    mask == 0 || mask.leading_ones() + mask.trailing_zeros() != 32
                });
                if is_wrong_mask || !is_host(message.your_ip) {
                    log::debug!("DHCP: {} is not a host's address", message.your_ip);
                    return None;
                }
                if message.message_type == DhcpMessageType::Ack {
                    let seconds = message.lease_duration.map_or(0, u64::from);
                    self.lease_ends_at = Some(now + Duration::from_secs(seconds));
                }
            }
            _ => {}
        }
        Some(frame)
    }
}

/// The client overlooks an option with more than one router (RFC 2132, 3.5: the
/// best comes first).
fn keep_first_router(mut options: &mut [u8]) {
    loop {
        match options {
            [PAD, rest @ ..] => options = rest,
            [kind, length, rest @ ..] => {
                let Some((data, rest)) = rest.split_at_mut_checked(usize::from(*length)) else {
                    return;
                };
                if *kind == OPTION_ROUTER && data.len() > 4 && data.len() % 4 == 0 {
                    *length = 4;
                    data[4..].fill(PAD);
                }
                options = rest;
            }
            _ => return,
        }
    }
}

pub(crate) fn is_host(address: Ipv4Address) -> bool {
    let [first, ..] = address.octets();
    // RFC 1122, 3.2.1.3; RFC 6890: 240.0.0.0/4 is reserved.
    !matches!(first, 0 | 127 | 224..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_router_is_left() {
        let mut options = [
            53, 1, 2, 0, 3, 8, 10, 0, 0, 1, 10, 0, 0, 2, 1, 4, 255, 0, 0, 0, 255,
        ];
        keep_first_router(&mut options);
        let kept = [
            53, 1, 2, 0, 3, 4, 10, 0, 0, 1, 0, 0, 0, 0, 1, 4, 255, 0, 0, 0, 255,
        ];
        assert_eq!(options, kept);
        for length in 0..options.len() {
            keep_first_router(&mut options[..length]);
        }
    }
}
