//! Several stacks with one address, each behind a queue of the same device: what
//! one of them hears and all must know.

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::phy;

/// Frames that are kept between two looks at them.
const MAX_FRAMES: usize = 16;
/// Longest frame that is kept, in bytes: no message of address resolution or
/// configuration is longer than what every Ethernet carries.
const MAX_LENGTH: usize = 1514;

/// The frames that a stack keeps for others.
#[derive(Default)]
pub(crate) struct Shared {
    on: bool,
    frames: Vec<Box<[u8]>>,
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

    /// Takes what was kept.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        core::mem::take(&mut self.frames).into_iter()
    }
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
