//! Feature bits of the network device, by name.

use core::fmt;

bitflags::bitflags! {
    /// Feature bits (specification 5.1.3 and 6; those that are not in version 1.2,
    /// of 1.4). Some are here only to be called by their name.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
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
    }
}

impl Features {
    /// What this driver implements; no other bit is ever acknowledged.
    pub const IMPLEMENTED: Self = Self::MAC
        .union(Self::CSUM)
        .union(Self::GUEST_CSUM)
        .union(Self::GUEST_TSO4)
        .union(Self::GUEST_TSO6)
        .union(Self::HOST_TSO4)
        .union(Self::HOST_TSO6)
        .union(Self::MRG_RXBUF)
        .union(Self::MTU)
        .union(Self::STATUS)
        .union(Self::CTRL_VQ)
        .union(Self::CTRL_RX)
        .union(Self::CTRL_RX_EXTRA)
        .union(Self::CTRL_VLAN)
        .union(Self::CTRL_MAC_ADDR)
        .union(Self::CTRL_GUEST_OFFLOADS)
        .union(Self::GUEST_ANNOUNCE)
        .union(Self::MQ)
        .union(Self::RSS)
        .union(Self::HASH_REPORT)
        .union(Self::SPEED_DUPLEX)
        .union(Self::ANY_LAYOUT)
        .union(Self::INDIRECT_DESC)
        .union(Self::EVENT_IDX)
        .union(Self::RING_PACKED)
        .union(Self::IN_ORDER)
        .union(Self::NOTIFICATION_DATA)
        .union(Self::RING_RESET)
        .union(Self::ACCESS_PLATFORM)
        .union(Self::VERSION_1);

    /// What [`Self::CTRL_GUEST_OFFLOADS`] is about (specification 5.1.6.5.8).
    pub const GUEST_OFFLOADS: Self = Self::GUEST_CSUM
        .union(Self::GUEST_TSO4)
        .union(Self::GUEST_TSO6)
        .union(Self::GUEST_ECN)
        .union(Self::GUEST_UFO);

    /// Who does which checksums and segments, which a network stack learns once.
    pub const OFFLOADS: Self = Self::GUEST_OFFLOADS
        .union(Self::CSUM)
        .union(Self::HOST_TSO4)
        .union(Self::HOST_TSO6)
        .union(Self::HOST_ECN)
        .union(Self::HOST_UFO);

    /// Each gives the device several queue pairs, as many as its configuration
    /// says (specification 5.1.2).
    pub const SEVERAL_PAIRS: Self = Self::MQ.union(Self::RSS);

    /// Features with what each needs, of several any one (specification
    /// 5.1.3.1; and forms of rings that the legacy interface does not know).
    const NEEDS: [(Self, Self); 22] = [
        (Self::GUEST_TSO4, Self::GUEST_CSUM),
        (Self::GUEST_TSO6, Self::GUEST_CSUM),
        (Self::GUEST_ECN, Self::GUEST_TSO4.union(Self::GUEST_TSO6)),
        (Self::GUEST_UFO, Self::GUEST_CSUM),
        (Self::HOST_TSO4, Self::CSUM),
        (Self::HOST_TSO6, Self::CSUM),
        (Self::HOST_ECN, Self::HOST_TSO4.union(Self::HOST_TSO6)),
        (Self::HOST_UFO, Self::CSUM),
        (Self::CTRL_RX, Self::CTRL_VQ),
        (Self::CTRL_VLAN, Self::CTRL_VQ),
        (Self::CTRL_RX_EXTRA, Self::CTRL_VQ),
        (Self::GUEST_ANNOUNCE, Self::CTRL_VQ),
        (Self::CTRL_MAC_ADDR, Self::CTRL_VQ),
        (Self::CTRL_GUEST_OFFLOADS, Self::CTRL_VQ),
        (Self::MQ, Self::CTRL_VQ),
        (Self::RSS, Self::CTRL_VQ),
        (Self::HASH_REPORT, Self::CTRL_VQ),
        (Self::RING_PACKED, Self::VERSION_1),
        (Self::IN_ORDER, Self::VERSION_1),
        (Self::NOTIFICATION_DATA, Self::VERSION_1),
        (Self::RING_RESET, Self::VERSION_1),
        (Self::ACCESS_PLATFORM, Self::VERSION_1),
    ];

    /// Without the features that need others that are not there (Linux
    /// `virtnet_validate_features`), and without `IN_ORDER` where this driver
    /// would not keep to it.
    #[doc(alias = "virtnet_validate_features")]
    pub fn without_dangling(mut self) -> Self {
        // In the order of the table, so that what is removed is missed by
        // what needs it further down.
        for (feature, needed) in Self::NEEDS {
            if !self.intersects(needed) {
                self.remove(feature);
            }
        }
        // Descriptors of a split ring are used in its order then (specification
        // 2.7.9). A frame has one, but a command has two to four in a slot of
        // four, and would leave gaps.
        if self.contains(Self::CTRL_VQ) && !self.intersects(Self::INDIRECT_DESC | Self::RING_PACKED)
        {
            self.remove(Self::IN_ORDER);
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

/// The names with spaces between, and unknown bits as `bit N`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for name in self.names() {
            write!(f, "{separator}{name}")?;
            separator = " ";
        }
        let unknown = self.bits() & !Self::all().bits();
        for bit in (0..64).filter(|bit| unknown >> bit & 1 != 0) {
            write!(f, "{separator}bit {bit}")?;
            separator = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_read_back() {
        for flag in <Features as bitflags::Flags>::FLAGS {
            assert_eq!(Features::by_name(flag.name()), Some(*flag.value()));
        }
        assert_eq!(Features::by_name("event_idx"), Some(Features::EVENT_IDX));
        assert_eq!(Features::by_name("colour"), None);
        let features = Features::from_bits_retain(1 << 29 | 1 << 45 | 1 << 5);
        assert_eq!(features.to_string(), "MAC EVENT_IDX bit 45");
    }
}
