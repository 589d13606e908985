//! Feature bits of the network device, by name.

use core::fmt;

bitflags::bitflags! {
    /// Feature bits (specification 5.1.3 and 6; those that are not in version 1.2,
    /// of 1.4). Some are here only to be called by their name.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u128 {
        /// Device checksums what the driver sends.
        const CSUM = 1 << 0;
        /// Driver takes frames with a partial checksum.
        const GUEST_CSUM = 1 << 1;
        /// Offloads can be changed while running.
        const CTRL_GUEST_OFFLOADS = 1 << 2;
        /// Device tells its largest packet.
        const MTU = 1 << 3;
        /// Device has a hardware address.
        const MAC = 1 << 5;
        /// Legacy: any segmentation.
        const GSO = 1 << 6;
        /// Driver takes TCP over IPv4 in large pieces.
        const GUEST_TSO4 = 1 << 7;
        /// Driver takes TCP over IPv6 in large pieces.
        const GUEST_TSO6 = 1 << 8;
        /// Driver takes TCP with ECN in large pieces.
        const GUEST_ECN = 1 << 9;
        /// Driver takes UDP in large pieces.
        const GUEST_UFO = 1 << 10;
        /// Device segments TCP over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// Device segments TCP over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// Device segments TCP with ECN.
        const HOST_ECN = 1 << 13;
        /// Device segments UDP.
        const HOST_UFO = 1 << 14;
        /// A received frame may lie in several buffers.
        const MRG_RXBUF = 1 << 15;
        /// Device tells whether the link is up.
        const STATUS = 1 << 16;
        /// There is a control queue.
        const CTRL_VQ = 1 << 17;
        /// Receive modes by the control queue.
        const CTRL_RX = 1 << 18;
        /// VLAN filter by the control queue.
        const CTRL_VLAN = 1 << 19;
        /// More receive modes by the control queue.
        const CTRL_RX_EXTRA = 1 << 20;
        /// Driver can announce itself.
        const GUEST_ANNOUNCE = 1 << 21;
        /// Several queue pairs.
        const MQ = 1 << 22;
        /// Hardware address by the control queue.
        const CTRL_MAC_ADDR = 1 << 23;
        /// Legacy: interrupt when a queue runs empty, even if masked.
        const NOTIFY_ON_EMPTY = 1 << 24;
        /// Device takes buffers in any layout.
        const ANY_LAYOUT = 1 << 27;
        /// Descriptors may lie in a table of their own.
        const INDIRECT_DESC = 1 << 28;
        /// Both sides name the index at which they want to hear.
        const EVENT_IDX = 1 << 29;
        /// QEMU's mark of a transitional device that must not be negotiated
        /// (`VIRTIO_F_BAD_FEATURE`).
        const BAD_FEATURE = 1 << 30;
        /// The device follows version 1 of the specification.
        const VERSION_1 = 1 << 32;
        /// The device's memory accesses are translated or restricted.
        const ACCESS_PLATFORM = 1 << 33;
        /// Packed virtqueues.
        const RING_PACKED = 1 << 34;
        /// Buffers are used in order.
        const IN_ORDER = 1 << 35;
        /// Device orders memory as the platform does.
        const ORDER_PLATFORM = 1 << 36;
        /// Single root I/O virtualization.
        const SR_IOV = 1 << 37;
        /// Notifications carry data.
        const NOTIFICATION_DATA = 1 << 38;
        /// Notifications carry a number that the device chooses.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// A queue can be reset alone.
        const RING_RESET = 1 << 40;
        /// There are queues to administer a group of devices by.
        const ADMIN_VQ = 1 << 41;
        /// Device can be suspended.
        const SUSPEND = 1 << 43;
        /// Device gives its statistics.
        const DEVICE_STATS = 1 << 50;
        /// Device hashes what is in a tunnel.
        const HASH_TUNNEL = 1 << 51;
        /// Device delays interrupts, each queue's by a time of its own.
        const VQ_NOTF_COAL = 1 << 52;
        /// Device delays interrupts.
        const NOTF_COAL = 1 << 53;
        /// Driver takes UDP over IPv4 in large pieces of equal segments.
        const GUEST_USO4 = 1 << 54;
        /// Driver takes UDP over IPv6 in large pieces of equal segments.
        const GUEST_USO6 = 1 << 55;
        /// Device segments UDP into datagrams.
        const HOST_USO = 1 << 56;
        /// Device reports hashes.
        const HASH_REPORT = 1 << 57;
        /// Driver gives the exact length of a segmented frame's header.
        const GUEST_HDRLEN = 1 << 59;
        /// Receive-side scaling.
        const RSS = 1 << 60;
        /// Device tells how many segments it has put together.
        const RSC_EXT = 1 << 61;
        /// Standby for another device.
        const STANDBY = 1 << 62;
        /// Device tells speed and duplex.
        const SPEED_DUPLEX = 1 << 63;
        /// Receive-side scaling with several tables.
        const RSS_CONTEXT = 1 << 64;
        /// Driver takes large pieces in a UDP tunnel.
        const GUEST_UDP_TUNNEL_GSO = 1 << 65;
        /// The same, with a partial checksum of the outer header.
        const GUEST_UDP_TUNNEL_GSO_CSUM = 1 << 66;
        /// Device segments what is in a UDP tunnel.
        const HOST_UDP_TUNNEL_GSO = 1 << 67;
        /// The same, and fills in the checksum of the outer header.
        const HOST_UDP_TUNNEL_GSO_CSUM = 1 << 68;
    }
}

/// Several features in one.
macro_rules! all {
    ($($name:ident)*) => { Self::empty()$(.union(Self::$name))* };
}

impl Features {
    /// What this driver implements; no other bit is ever acknowledged.
    pub const IMPLEMENTED: Self = all! {
        MAC CSUM GUEST_CSUM GUEST_TSO4 GUEST_TSO6 HOST_TSO4 HOST_TSO6 MRG_RXBUF MTU STATUS CTRL_VQ
        CTRL_RX CTRL_RX_EXTRA CTRL_VLAN CTRL_MAC_ADDR CTRL_GUEST_OFFLOADS GUEST_ANNOUNCE MQ RSS
        HASH_REPORT SPEED_DUPLEX ANY_LAYOUT INDIRECT_DESC EVENT_IDX RING_PACKED IN_ORDER
        NOTIFICATION_DATA RING_RESET ACCESS_PLATFORM ORDER_PLATFORM VERSION_1
    };

    /// What a driver's caller has a part in, so that it is taken only where
    /// [`Options`] say so: unfinished checksums, frames of 64 KiB, an
    /// announcement to be sent, hashes that nobody else asks for.
    pub const OPT_IN: Self = all!(OFFLOADS CTRL_GUEST_OFFLOADS GUEST_ANNOUNCE HASH_REPORT);

    /// What [`Self::CTRL_GUEST_OFFLOADS`] is about (specification 5.1.6.5.8).
    pub const GUEST_OFFLOADS: Self = all!(GUEST_CSUM GUEST_TSO4 GUEST_TSO6 GUEST_ECN GUEST_UFO);

    /// Who does which checksums and segments, which a network stack learns once.
    pub const OFFLOADS: Self = all!(GUEST_OFFLOADS CSUM HOST_TSO4 HOST_TSO6 HOST_ECN HOST_UFO);

    /// Each gives the device several queue pairs, as many as its configuration
    /// says (specification 5.1.2).
    pub const SEVERAL_PAIRS: Self = Self::MQ.union(Self::RSS);

    /// Features with what each needs, of several any one (specification
    /// 5.1.3.1; and forms of rings that the legacy interface does not know).
    const NEEDS: [(Self, Self); 6] = [
        (all!(GUEST_TSO4 GUEST_TSO6 GUEST_UFO), Self::GUEST_CSUM),
        (Self::GUEST_ECN, all!(GUEST_TSO4 GUEST_TSO6)),
        (all!(HOST_TSO4 HOST_TSO6 HOST_UFO), Self::CSUM),
        (Self::HOST_ECN, all!(HOST_TSO4 HOST_TSO6)),
        (Self::NEED_CTRL_VQ, Self::CTRL_VQ),
        (Self::NEED_VERSION_1, Self::VERSION_1),
    ];
    const NEED_CTRL_VQ: Self = all! {
        CTRL_RX CTRL_VLAN CTRL_RX_EXTRA GUEST_ANNOUNCE CTRL_MAC_ADDR CTRL_GUEST_OFFLOADS MQ RSS
        HASH_REPORT
    };
    const NEED_VERSION_1: Self = all! {
        RING_PACKED IN_ORDER NOTIFICATION_DATA RING_RESET ACCESS_PLATFORM
    };

    /// Without the features that need others that are not there (Linux
    /// `virtnet_validate_features`).
    #[doc(alias = "virtnet_validate_features")]
    pub fn without_dangling(mut self) -> Self {
        // In the order of the table, so that what is removed is missed by
        // what needs it further down.
        for &(features, needed) in &Self::NEEDS {
            if !self.intersects(needed) {
                self.remove(features);
            }
        }
        self
    }

    /// Whether a header may share a descriptor with its frame (specification
    /// 2.7.4.3; 5.1.6.6 for the legacy interface).
    pub const fn any_layout(self) -> bool {
        self.intersects(Self::ANY_LAYOUT.union(Self::VERSION_1))
    }

    /// The feature with this name: the specification's without its prefix, in
    /// either case (`event_idx`).
    pub fn by_name(name: &str) -> Option<Self> {
        <Self as bitflags::Flags>::FLAGS
            .iter()
            .find(|flag| flag.name().eq_ignore_ascii_case(name))
            .map(|flag| *flag.value())
    }

    /// The specification's names of the bits that are set, without prefix;
    /// unknown bits are left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        <Self as bitflags::Flags>::FLAGS
            .iter()
            .filter(move |flag| self.contains(*flag.value()))
            .map(|flag| flag.name())
    }
}

/// What the caller of [`VirtioNet::probe`] can serve. By default that is frames
/// of at most the MTU with whole checksums, which any network stack can, over any
/// device.
///
/// [`VirtioNet::probe`]: super::VirtioNet::probe
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Features that are not taken, whoever offers them.
    pub(super) refused: Features,
}

impl Options {
    /// The caller can serve these of [`Features::OPT_IN`], such as
    /// [`Features::CSUM`]; all others need nothing of it.
    pub const fn serving(features: Features) -> Self {
        Self {
            refused: Features::OPT_IN.difference(features),
        }
    }

    /// The same without these features, of whatever kind.
    #[must_use]
    pub const fn refusing(self, features: Features) -> Self {
        Self {
            refused: self.refused.union(features),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::serving(Features::empty())
    }
}

/// The names with spaces between, and unknown bits as `bit N`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for name in self.names() {
            write!(f, "{separator}{name}")?;
            separator = " ";
        }
        let unknown = self.bits() & !Self::all().bits();
        for bit in (0..u128::BITS).filter(|bit| unknown >> bit & 1 != 0) {
            write!(f, "{separator}bit {bit}")?;
            separator = " ";
        }
        Ok(())
    }
}
