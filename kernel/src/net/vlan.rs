//! IEEE 802.1Q tags.

/// Length of both addresses at the beginning of a frame, behind which the tag
/// is, in bytes.
pub const ADDRESSES: usize = 12;
/// Length of a tag in bytes.
pub const TAG: usize = 4;
/// Tag protocol identifier of a VLAN tag.
const TPID: [u8; 2] = [0x81, 0x00];

/// The tag of a VLAN, with priority 0.
pub fn tag(id: u16) -> [u8; TAG] {
    let [a, b] = TPID;
    let [c, d] = (id & 0xfff).to_be_bytes();
    [a, b, c, d]
}
