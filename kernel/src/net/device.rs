//! The device as the network stack sees it, for the length of a poll. For the host of
//! a VLAN, what is sent gets a tag (IEEE 802.1Q), and of what comes it gets the frames
//! with that tag, without it. One type for all cores, with and without a VLAN, so that
//! the stack is compiled once: with several the compiler makes each core's path longer.

use core::num::NonZeroU16;

use kickpath_services::NetworkDevice;
use smoltcp::phy::{self, Device, DeviceCapabilities, PacketMeta};
use smoltcp::time::Instant;
use virtio_net::net::tx::TxQueue;
use virtio_net::net::{DeviceInfo, QueuePair, VirtioNet};
use virtio_net::smoltcp::{Phy, RxToken, TxToken};

use crate::memory::KernelHal;
use crate::virtio::KernelTransport;

pub type Nic = VirtioNet<KernelHal, KernelTransport>;

/// Length of both addresses at the beginning of a frame, behind which the tag
/// is, in bytes.
pub const ADDRESSES: usize = 12;
const TAG: usize = 4;
/// Tag protocol identifier of a VLAN tag.
const TPID: [u8; 2] = [0x81, 0x00];
/// The VLAN's id in the tag; beside it are priority and drop eligibility.
const ID: u16 = 0xfff;

/// The tag of a VLAN, with priority 0.
pub fn tag(id: u16) -> [u8; TAG] {
    let [a, b] = TPID;
    let [c, d] = (id & ID).to_be_bytes();
    [a, b, c, d]
}

/// Whether a frame is of this VLAN.
fn is_of(frame: &[u8], id: u16) -> bool {
    match frame.get(ADDRESSES..ADDRESSES + TAG) {
        Some(&[a, b, c, d]) => [a, b] == TPID && u16::from_be_bytes([c, d]) & ID == id,
        _ => false,
    }
}

pub struct NetDevice<'n> {
    /// Checksums are left to the network stack.
    phy: Phy<'n, KernelHal>,
    vlan: Option<NonZeroU16>,
}

impl<'n> NetDevice<'n> {
    /// The first pair of the device, in a VLAN, 1 to 4094, if the host is of one.
    #[inline]
    pub fn first(nic: &'n mut Nic, vlan: Option<NonZeroU16>) -> Self {
        let phy = Phy::of(nic).unverified();
        Self { phy, vlan }
    }

    /// Another core's pair.
    #[inline]
    pub fn own(pair: &'n mut QueuePair<KernelHal>, info: &'n DeviceInfo) -> Self {
        let phy = Phy::new(Some(pair), info).unverified();
        // A host of a VLAN has one pair (`wanted_pairs`).
        Self { phy, vlan: None }
    }
}

impl NetworkDevice for NetDevice<'_> {
    fn is_verified(token: &Untagged<'_>) -> bool {
        token.token.is_verified()
    }
}

impl Device for NetDevice<'_> {
    type RxToken<'a>
        = Untagged<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tagged<'a>
    where
        Self: 'a;

    #[inline]
    fn receive(&mut self, now: Instant) -> Option<(Untagged<'_>, Tagged<'_>)> {
        let vlan = self.vlan;
        let (token, TxToken { tx, segment_size }, skipped) = match vlan {
            None => {
                let (token, answer) = self.phy.receive(now)?;
                (token, answer, 0)
            }
            Some(id) => {
                let (token, answer) = self.receive_of(id.get())?;
                (token, answer, TAG)
            }
        };
        let answer = Tagged {
            tx,
            segment_size,
            vlan,
        };
        Some((Untagged { token, skipped }, answer))
    }

    #[inline]
    fn transmit(&mut self, now: Instant) -> Option<Tagged<'_>> {
        let vlan = self.vlan;
        let TxToken { tx, segment_size } = self.phy.transmit(now)?;
        Some(Tagged {
            tx,
            segment_size,
            vlan,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The tag does not count, here as anywhere (IEEE 802.3as).
        self.phy.capabilities()
    }
}

impl NetDevice<'_> {
    /// The next frame of a VLAN.
    #[cold]
    fn receive_of(&mut self, id: u16) -> Option<(RxToken<'_>, TxToken<'_, KernelHal>)> {
        self.phy.receive_if(|frame| {
            let is_mine = is_of(frame, id);
            if is_mine {
                // The addresses move behind the tag.
                frame.copy_within(..ADDRESSES, TAG);
            }
            is_mine
        })
    }
}

/// A received frame without its tag.
pub struct Untagged<'a> {
    token: RxToken<'a>,
    /// Bytes at its beginning that are none of the frame.
    skipped: usize,
}

impl phy::RxToken for Untagged<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let skipped = self.skipped;
        self.token
            .consume(|frame| f(frame.get(skipped..).unwrap_or_default()))
    }
}

/// Room for one frame that gets a tag if the host is of a VLAN. Not around a
/// [`TxToken`]: so it fits two registers.
pub struct Tagged<'a> {
    tx: &'a mut TxQueue<KernelHal>,
    segment_size: Option<NonZeroU16>,
    vlan: Option<NonZeroU16>,
}

impl phy::TxToken for Tagged<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let Self {
            tx,
            segment_size,
            vlan,
        } = self;
        let added = if vlan.is_some() { TAG } else { 0 };
        TxToken { tx, segment_size }.consume(added + length, |frame| {
            // Written where it will stay, but for the addresses.
            let result = f(frame.get_mut(added..).unwrap_or_default());
            if let Some(id) = vlan {
                write_tag(frame, id.get());
            }
            result
        })
    }

    #[inline]
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size;
    }
}

/// Moves the addresses in front of the tag, and writes that.
#[cold]
fn write_tag(frame: &mut [u8], id: u16) {
    if let Some(head) = frame.first_chunk_mut::<{ ADDRESSES + TAG }>() {
        head.copy_within(TAG.., 0);
        if let Some(place) = head.last_chunk_mut() {
            *place = tag(id);
        }
    }
}
