//! Receive-side scaling: the device hashes the addresses and ports of what it
//! receives, and a table that the driver has given it says which pair each hash
//! leads to (`VIRTIO_NET_F_RSS`, specification 5.1.6.5.7). It may report the
//! hashes, too (`VIRTIO_NET_F_HASH_REPORT`, 5.1.6.5.6.4).
//!
//! By the table the driver knows where a flow's packets arrive before the first
//! one does, which it cannot with automatic receive steering (see
//! [`super::flow`]).

use super::flow::{Flow, KEY_LENGTH, Protocol};

/// Most entries of the table that this driver makes use of; every device with
/// RSS has as many (specification 5.1.4.1).
pub const MAX_TABLE: usize = 128;

bitflags::bitflags! {
    /// Of which packets a device can compute the hash
    /// (`VIRTIO_NET_HASH_TYPE_*`, specification 5.1.6.4.3.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HashTypes: u32 {
        /// IPv4, by its addresses.
        const IPV4 = 1 << 0;
        /// TCP over IPv4, by addresses and ports.
        const TCPV4 = 1 << 1;
        /// UDP over IPv4, by addresses and ports.
        const UDPV4 = 1 << 2;
        /// IPv6, by its addresses.
        const IPV6 = 1 << 3;
        /// TCP over IPv6, by addresses and ports.
        const TCPV6 = 1 << 4;
        /// UDP over IPv6, by addresses and ports.
        const UDPV6 = 1 << 5;
        /// IPv6, by the addresses of its extension headers.
        const IP_EX = 1 << 6;
        /// TCP over IPv6, by the addresses of its extension headers.
        const TCP_EX = 1 << 7;
        /// UDP over IPv6, by the addresses of its extension headers.
        const UDP_EX = 1 << 8;
    }
}

impl HashTypes {
    /// Those that this driver computes as well. The others tell apart what
    /// differs in a home address or a routing header, which nobody here has.
    pub const IMPLEMENTED: Self = Self::IPV4
        .union(Self::TCPV4)
        .union(Self::UDPV4)
        .union(Self::IPV6)
        .union(Self::TCPV6)
        .union(Self::UDPV6);

    /// The specification's names of the types, without prefix; unknown ones
    /// are left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.iter_names().map(|(name, _)| name)
    }
}

/// What a hash was computed of: `VIRTIO_NET_HASH_REPORT_*`, in the header of a
/// received frame (specification 5.1.6.4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// Addresses of IPv4.
    Ipv4 = 1,
    /// Addresses of IPv4, ports of TCP.
    Tcpv4 = 2,
    /// Addresses of IPv4, ports of UDP.
    Udpv4 = 3,
    /// Addresses of IPv6.
    Ipv6 = 4,
    /// Addresses of IPv6, ports of TCP.
    Tcpv6 = 5,
    /// Addresses of IPv6, ports of UDP.
    Udpv6 = 6,
    /// Addresses of IPv6 or its extension headers.
    Ipv6Ex = 7,
    /// The same and ports of TCP.
    Tcpv6Ex = 8,
    /// The same and ports of UDP.
    Udpv6Ex = 9,
}

impl HashKind {
    /// What a header says; `None` for "no hash", and for what nobody has
    /// defined.
    pub const fn from_report(report: u16) -> Option<Self> {
        Some(match report {
            1 => Self::Ipv4,
            2 => Self::Tcpv4,
            3 => Self::Udpv4,
            4 => Self::Ipv6,
            5 => Self::Tcpv6,
            6 => Self::Udpv6,
            7 => Self::Ipv6Ex,
            8 => Self::Tcpv6Ex,
            9 => Self::Udpv6Ex,
            _ => return None,
        })
    }
}

/// The hash of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash {
    /// The hash.
    pub value: u32,
    /// What it was computed of.
    pub kind: HashKind,
}

/// What a device with RSS or hash reports can do (specification 5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashLimits {
    /// Longest key in bytes (`rss_max_key_size`).
    pub max_key_size: u8,
    /// Most entries of the table (`rss_max_indirection_table_length`); 0
    /// without RSS.
    pub max_table_length: u16,
    /// Of which packets it can compute the hash (`supported_hash_types`).
    pub types: HashTypes,
}

impl HashLimits {
    /// Whether they are of use: the device takes a key for the longest input,
    /// and has a hash that this driver computes as well.
    pub(crate) fn is_usable(&self) -> bool {
        usize::from(self.max_key_size) >= KEY_LENGTH
            && self.types.intersects(HashTypes::IMPLEMENTED)
    }

    /// Entries of the table that it is given: a power of two, as its last
    /// index is a mask (specification 5.1.6.5.7.2); 0 for none.
    pub fn table_length(&self) -> u16 {
        let most = self.max_table_length.min(MAX_TABLE as u16);
        most.checked_ilog2().map_or(0, |bits| 1 << bits)
    }
}

/// How the device hashes what it receives, and where each hash leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rss {
    types: HashTypes,
    key: [u8; KEY_LENGTH],
    /// Pairs by the last bits of the hash; as many of them count as
    /// `table_length` says.
    table: [u16; MAX_TABLE],
    /// A power of two, or 0.
    table_length: u16,
    pairs: u16,
}

impl Rss {
    /// Spreads the hashes evenly over `pairs` pairs, from 1 to the table's
    /// length (Linux `ethtool_rxfh_indir_default`).
    #[doc(alias = "ethtool_rxfh_indir_default")]
    #[doc(alias = "virtnet_init_default_rss")]
    pub fn new(limits: &HashLimits, key: [u8; KEY_LENGTH], pairs: u16) -> Self {
        let mut rss = Self {
            table_length: limits.table_length(),
            ..Self::reports_only(limits, key)
        };
        rss.pairs = pairs.clamp(1, rss.table_length.max(1));
        for (entry, pair) in rss.table.iter_mut().zip((0..rss.pairs).cycle()) {
            *entry = pair;
        }
        rss
    }

    /// No table: the device only reports the hashes.
    pub fn reports_only(limits: &HashLimits, key: [u8; KEY_LENGTH]) -> Self {
        Self {
            types: limits.types & HashTypes::IMPLEMENTED,
            key,
            table: [0; MAX_TABLE],
            table_length: 0,
            pairs: 1,
        }
    }

    /// Of which packets the device computes the hash.
    pub fn types(&self) -> HashTypes {
        self.types
    }

    /// The key of the hash.
    pub fn key(&self) -> &[u8; KEY_LENGTH] {
        &self.key
    }

    /// The pair for each value of the hash's last bits; empty when the hash
    /// decides about nothing.
    pub fn table(&self) -> &[u16] {
        self.table
            .get(..usize::from(self.table_length))
            .unwrap_or_default()
    }

    /// Pairs that the device may use.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// The hash that the device computes for a packet of this flow; `None`
    /// when it computes none (specification 5.1.6.4.3.1).
    pub fn hash(&self, flow: &Flow) -> Option<FlowHash> {
        let is_ipv4 = flow.addresses.iter().all(|address| address.is_ipv4());
        let of_ports = flow.ports.map(|(protocol, _)| match (protocol, is_ipv4) {
            (Protocol::Tcp, true) => (HashTypes::TCPV4, HashKind::Tcpv4),
            (Protocol::Udp, true) => (HashTypes::UDPV4, HashKind::Udpv4),
            (Protocol::Tcp, false) => (HashTypes::TCPV6, HashKind::Tcpv6),
            (Protocol::Udp, false) => (HashTypes::UDPV6, HashKind::Udpv6),
        });
        let of_addresses = if is_ipv4 {
            (HashTypes::IPV4, HashKind::Ipv4)
        } else {
            (HashTypes::IPV6, HashKind::Ipv6)
        };
        if let Some((types, kind)) = of_ports
            && self.types.contains(types)
        {
            let value = flow.hash(&self.key);
            Some(FlowHash { value, kind })
        } else if self.types.contains(of_addresses.0) {
            let value = flow.without_ports().hash(&self.key);
            let kind = of_addresses.1;
            Some(FlowHash { value, kind })
        } else {
            None
        }
    }

    /// The pair, from 0, at which a packet with this hash arrives; without one
    /// it is the first.
    pub fn pair_of(&self, hash: Option<FlowHash>) -> u16 {
        let mask = usize::from(self.table_length).wrapping_sub(1);
        hash.and_then(|hash| self.table().get(hash.value as usize & mask))
            .copied()
            .unwrap_or(0)
    }

    /// The pair that a flow is sent by which this host begins: the one at which
    /// the answers will arrive.
    #[doc(alias = "ndo_select_queue")]
    pub fn select_queue(&self, sent: &Flow) -> u16 {
        self.pair_of(self.hash(&sent.reversed()))
    }
}
