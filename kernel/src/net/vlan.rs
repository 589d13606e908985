//! The device as the host of a VLAN sees it: what it sends gets a tag (IEEE
//! 802.1Q), and of what comes it gets the frames with that tag, without it.

use kickpath_abi::status::Status;
use kickpath_services::StatusSource;
use smoltcp::phy::{self, Device, DeviceCapabilities, PacketMeta};
use smoltcp::time::Instant;

use super::device::{PhyDevice, RxToken, TxToken};

/// Length of both addresses at the beginning of a frame, behind which the tag
/// is, in bytes.
pub const ADDRESSES: usize = 12;
/// Length of a tag in bytes.
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

/// See the module.
pub struct VlanDevice<'n> {
    /// The device.
    pub device: PhyDevice<'n>,
    /// The VLAN, 1 to 4094.
    pub id: u16,
}

impl StatusSource for VlanDevice<'_> {
    fn status(&self) -> Status {
        self.device.status()
    }
}

impl Device for VlanDevice<'_> {
    type RxToken<'a>
        = Untagged<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tagged<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Untagged<'_>, Tagged<'_>)> {
        let id = self.id;
        let (rx, tx) = self.device.queues()?;
        if !tx.has_room() {
            return None;
        }
        let frame = loop {
            let mut frame = rx.receive()?;
            if is_of(rx.frame(&frame), id) {
                // The addresses move behind the tag.
                let bytes = rx.frame_mut(&mut frame);
                bytes.copy_within(..ADDRESSES, TAG);
                let verify = rx.verifies_checksums() && !frame.is_checksum_valid();
                let untagged = rx.frame(&frame).get(TAG..).unwrap_or_default();
                if !verify || kickpath_services::has_right_checksums(untagged) {
                    break Some(frame);
                }
            }
            rx.recycle(frame);
        };
        let token = TxToken {
            tx,
            segment_size: None,
        };
        Some((Untagged(RxToken { rx, frame }), Tagged { token, id }))
    }

    fn transmit(&mut self, now: Instant) -> Option<Tagged<'_>> {
        let id = self.id;
        let token = self.device.transmit(now)?;
        Some(Tagged { token, id })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The tag does not count, here as anywhere (IEEE 802.3as).
        self.device.capabilities()
    }
}

/// A received frame without its tag.
pub struct Untagged<'a>(RxToken<'a>);

impl phy::RxToken for Untagged<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        self.0
            .consume(|frame| f(frame.get(TAG..).unwrap_or_default()))
    }
}

/// Room for one frame that gets a tag.
pub struct Tagged<'a> {
    token: TxToken<'a>,
    id: u16,
}

impl phy::TxToken for Tagged<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let tag = tag(self.id);
        self.token.consume(TAG + length, |frame| {
            // Written where it will stay, but for the addresses.
            let result = f(frame.get_mut(TAG..).unwrap_or_default());
            if let Some(head) = frame.first_chunk_mut::<{ ADDRESSES + TAG }>() {
                head.copy_within(TAG.., 0);
                if let Some(place) = head.last_chunk_mut() {
                    *place = tag;
                }
            }
            result
        })
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.token.set_meta(meta);
    }
}
