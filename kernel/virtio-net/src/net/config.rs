//! The device's configuration (specification 5.1.4) and what was learnt from
//! it.

use virtio_drivers::Hal;
use virtio_drivers::transport::DeviceStatus;

use super::{Changes, Features, NetError, VirtioNet};
use crate::transport::ConfigOps;

/// Offsets of the fields, in bytes.
mod offset {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub const MTU: usize = 10;
}

/// In the status: the link is up.
const S_LINK_UP: u16 = 1;

/// Largest IP packet when the device does not say, in bytes.
pub(super) const DEFAULT_MTU: u16 = 1500;
/// Smallest MTU that IPv4 allows, in bytes (Linux `ETH_MIN_MTU`).
const MIN_MTU: u16 = 68;

/// Queue pairs that a device has at most (specification 5.1.5).
const MAX_QUEUE_PAIRS: u16 = 0x8000;

/// How often a field is read again because the configuration changed
/// meanwhile.
const GENERATION_RETRIES: usize = 8;

/// What was learnt of the device at probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What the device offers.
    pub offered: Features,
    /// What driver and device agreed on.
    pub negotiated: Features,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, 68 to 1500.
    pub mtu: u16,
    /// Whether the link is up; `true` when the device cannot tell.
    pub link_up: bool,
    /// Queue pairs that the device has, 1 to 32768.
    pub max_queue_pairs: u16,
}

impl<H: Hal, T: ConfigOps> VirtioNet<H, T> {
    /// Reads what does not change.
    pub(super) fn read_info(&mut self) -> Result<(), NetError> {
        self.info.mac = self.read_mac()?;
        self.info.mtu = self.read_mtu()?;
        self.info.link_up = self.read_link()?;
        self.info.max_queue_pairs = self.read_max_queue_pairs()?;
        Ok(())
    }

    /// Looks at what the device says of itself (Linux
    /// `virtnet_config_changed_work`). [`Self::poll`] does after an interrupt;
    /// an embedder without interrupts calls this now and then. Returns what
    /// has changed.
    ///
    /// # Errors
    ///
    /// [`NetError::NeedsReset`], [`NetError::Config`].
    #[cold]
    #[doc(alias = "virtnet_config_changed_work")]
    pub fn look_at_config(&mut self) -> Result<Changes, NetError> {
        if self
            .transport
            .get_status()
            .contains(DeviceStatus::DEVICE_NEEDS_RESET)
        {
            return Err(NetError::NeedsReset);
        }
        let mut changes = Changes::empty();
        let link_up = self.read_link()?;
        changes.set(Changes::LINK, link_up != self.info.link_up);
        self.info.link_up = link_up;
        Ok(changes)
    }

    fn read_mac(&self) -> Result<[u8; 6], NetError> {
        if self.info.negotiated.contains(Features::MAC) {
            let mac: [u8; 6] = self.read(offset::MAC)?;
            // A multicast or zero address cannot be a station's (Linux
            // `is_valid_ether_addr`).
            if mac[0] & 1 == 0 && mac != [0; 6] {
                return Ok(mac);
            }
            log::warn!("the device's hardware address {mac:02x?} cannot be one; using our own");
        }
        // Locally administered (IEEE 802), fixed: there is no randomness
        // here, and two such devices on a wire are not this project's case.
        Ok([0x02, 0x00, 0x00, 0x6b, 0x69, 0x63])
    }

    fn read_mtu(&self) -> Result<u16, NetError> {
        if !self.info.negotiated.contains(Features::MTU) {
            return Ok(DEFAULT_MTU);
        }
        let mtu: u16 = self.read(offset::MTU)?;
        let usable = mtu.clamp(MIN_MTU, DEFAULT_MTU);
        if usable != mtu {
            log::warn!("the device's MTU is {mtu}; using {usable}");
        }
        Ok(usable)
    }

    fn read_link(&self) -> Result<bool, NetError> {
        if !self.info.negotiated.contains(Features::STATUS) {
            return Ok(true);
        }
        let status: u16 = self.read(offset::STATUS)?;
        Ok(status & S_LINK_UP != 0)
    }

    /// May be read before the feature is agreed on, to see whether it should
    /// be (specification 3.1.1, step 4).
    fn read_max_queue_pairs(&self) -> Result<u16, NetError> {
        if !self.info.offered.contains(Features::MQ) {
            return Ok(1);
        }
        let pairs: u16 = self.read(offset::MAX_VIRTQUEUE_PAIRS)?;
        if (1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return Ok(pairs);
        }
        log::warn!("the device says that it has {pairs} queue pairs; using one");
        Ok(1)
    }

    /// Reads a field in one piece: again, if the configuration changed
    /// meanwhile (specification 2.5.1).
    fn read<V: zerocopy::FromBytes + zerocopy::IntoBytes>(
        &self,
        offset: usize,
    ) -> Result<V, NetError> {
        let error = NetError::Config { offset };
        let mut before = self.transport.read_config_generation();
        for _ in 0..GENERATION_RETRIES {
            let value = self
                .transport
                .read_config_space(offset)
                .map_err(|_| error)?;
            let after = self.transport.read_config_generation();
            if after == before {
                return Ok(value);
            }
            before = after;
        }
        Err(error)
    }
}
