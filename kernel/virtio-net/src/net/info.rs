//! What was learnt of the device.

use super::features::Features;
use super::rss::HashLimits;

/// What was learnt of the device at probe: its features (specification 5.1.3)
/// and its configuration (5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// What the device offers.
    pub offered: Features,
    /// What driver and device agreed on.
    pub negotiated: Features,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, from 68 on: what the device says, 1500, or
    /// what [`VirtioNet::change_mtu`](super::VirtioNet::change_mtu) was told.
    pub mtu: u16,
    /// What that can be at most: what the device says, or 65535.
    pub max_mtu: u16,
    /// Whether the link is up; `true` when the device cannot tell.
    pub link_up: bool,
    /// Queue pairs that the device has, 1 to 32768.
    pub max_queue_pairs: u16,
    /// Speed of the link in Mbit/s; `None` when the device does not tell or
    /// know.
    pub speed: Option<u32>,
    /// Whether the link goes both ways at once; `None` as for the speed.
    pub duplex: Option<Duplex>,
    /// How the device can hash what it receives; `None` when it does not, or in
    /// no way that is of use.
    pub hash_limits: Option<HashLimits>,
}

impl DeviceInfo {
    /// Largest IP packet in bytes that receive buffers must hold when those that
    /// are sent have up to `mtu`: a device that tells its MTU may deliver packets
    /// of that size, whatever the driver sends (specification 5.1.4.2).
    pub(super) fn receive_mtu(&self, mtu: u16) -> u16 {
        if self.negotiated.contains(Features::MTU) {
            mtu.max(self.max_mtu)
        } else {
            mtu
        }
    }
}

/// Whether both ends of the link may send at once: the field `duplex`
/// (specification 5.1.4, `VIRTIO_NET_F_SPEED_DUPLEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both.
    Full,
}
