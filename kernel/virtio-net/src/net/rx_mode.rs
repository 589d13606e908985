//! What the device is to let through, and what it was told of that.

extern crate alloc;

use alloc::vec::Vec;

use super::control::MacAddress;
use super::features::Features;

bitflags::bitflags! {
    /// What the device lets through, beside what is addressed to the
    /// addresses of a [`RxMode`] and to all (specification 5.1.6.5.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RxFlags: u8 {
        /// Every frame.
        const PROMISCUOUS = 1 << 0;
        /// Every multicast frame.
        const ALL_MULTICAST = 1 << 1;
        /// Every unicast frame.
        const ALL_UNICAST = 1 << 2;
        /// No multicast frame.
        const NO_MULTICAST = 1 << 3;
        /// No unicast frame.
        const NO_UNICAST = 1 << 4;
        /// No broadcast frame.
        const NO_BROADCAST = 1 << 5;
    }
}

impl RxFlags {
    /// Those of `VIRTIO_NET_F_CTRL_RX_EXTRA`; a device begins with none set.
    pub(super) const EXTRA: Self = Self::ALL_UNICAST
        .union(Self::NO_MULTICAST)
        .union(Self::NO_UNICAST)
        .union(Self::NO_BROADCAST);
}

/// Which frames are wanted (Linux `dev->flags` and the address lists of a
/// `net_device`). Frames to the device's own address always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RxMode {
    /// See there.
    pub flags: RxFlags,
    /// Further unicast addresses.
    pub unicast: Vec<MacAddress>,
    /// Multicast addresses.
    pub multicast: Vec<MacAddress>,
}

/// What the device was told, and what it is to be told after a reset.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// The address that the driver asked for.
    pub(super) mac: Option<MacAddress>,
    /// The address that the device has after a reset, if any.
    pub(super) first_mac: Option<MacAddress>,
    /// The address that it has now.
    pub(super) device_mac: Option<MacAddress>,
    pub(super) mode: Option<RxMode>,
    pub(super) vlans: Vec<u16>,
    pub(super) offloads: Option<Features>,
    /// What flags the device has, as far as that is known.
    pub(super) flags: RxFlags,
    pub(super) flags_known: RxFlags,
}
