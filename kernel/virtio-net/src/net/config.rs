//! The device's configuration (specification 5.1.4).

use virtio_drivers::Hal;
use virtio_drivers::transport::DeviceStatus;

use super::control::MacAddress;
use super::filter::is_valid_ether_addr;
use super::info::Duplex;
use super::rss::{HashLimits, HashTypes};
use super::{Changes, Features, NetError, VirtioNet};
use crate::interrupt::StateRef;
use crate::transport::{ConfigOps, TransportError, is_gone};

/// Offsets of the fields, in bytes.
mod offset {
    pub const MAC: usize = 0;
    pub const STATUS: usize = 6;
    pub const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub const MTU: usize = 10;
    pub const SPEED: usize = 12;
    pub const DUPLEX: usize = 16;
    pub const RSS_MAX_KEY_SIZE: usize = 17;
    pub const RSS_MAX_INDIRECTION_TABLE_LENGTH: usize = 18;
    pub const SUPPORTED_HASH_TYPES: usize = 20;
}

/// In the status: the link is up.
const S_LINK_UP: u16 = 1;
/// In the status: the driver is to announce itself.
const S_ANNOUNCE: u16 = 2;

/// Largest speed that is one, in Mbit/s (specification 5.1.4).
const MAX_SPEED: u32 = 0x7fff_ffff;

/// Largest IP packet when the device does not say, in bytes.
pub(super) const DEFAULT_MTU: u16 = 1500;
/// Smallest MTU that IPv4 allows, in bytes (Linux `ETH_MIN_MTU`).
const MIN_MTU: u16 = 68;

/// See [`VirtioNet::check_status`].
pub(super) fn check_status(transport: &impl ConfigOps) -> Result<(), NetError> {
    let status = transport.get_status();
    if is_gone(status) {
        return Err(TransportError::Gone.into());
    }
    match status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
        true => Err(NetError::NeedsReset),
        false => Ok(()),
    }
}

/// Queue pairs that a device has at most (specification 5.1.5).
const MAX_QUEUE_PAIRS: u16 = 0x8000;

/// How often a field is read again because the configuration changed meanwhile.
const GENERATION_RETRIES: usize = 8;

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Reads what does not change.
    pub(super) fn read_info(&mut self) -> Result<(), NetError> {
        self.info.mac = self.read_mac()?;
        self.read_mtu()?;
        self.info.link_up = self.read_status()? & S_LINK_UP != 0;
        self.read_speed()?;
        self.info.max_queue_pairs = self.read_max_queue_pairs()?;
        self.info.hash_limits = self.read_hash_limits();
        Ok(())
    }

    /// Looks at what the device says of itself (Linux
    /// `virtnet_config_changed_work`). [`Self::poll`] does after an interrupt;
    /// an embedder without interrupts calls this now and then. Returns what
    /// has changed.
    ///
    /// # Errors
    ///
    /// [`NetError::NeedsReset`], [`NetError::Config`]; [`NetError::Transport`]
    /// with [`TransportError::Gone`].
    #[cold]
    #[doc(alias = "virtnet_config_changed_work")]
    pub fn look_at_config(&mut self) -> Result<Changes, NetError> {
        self.check_status()?;
        let mut changes = Changes::empty();
        let status = self.read_status()?;
        let link_up = status & S_LINK_UP != 0;
        changes.set(Changes::LINK, link_up != self.info.link_up);
        self.info.link_up = link_up;
        let announce = self.info.negotiated.contains(Features::GUEST_ANNOUNCE);
        changes.set(Changes::ANNOUNCE, announce && status & S_ANNOUNCE != 0);
        if link_up {
            // It may be another link (Linux `virtnet_update_settings`).
            self.read_speed()?;
        }
        Ok(changes)
    }

    /// Whether the device is there and does not ask for a reset: one read of its
    /// status, now and then, tells of one that was taken out.
    ///
    /// # Errors
    ///
    /// [`NetError::NeedsReset`]; [`NetError::Transport`] with
    /// [`TransportError::Gone`].
    pub fn check_status(&self) -> Result<(), NetError> {
        check_status(&self.transport)
    }

    fn read_mac(&mut self) -> Result<[u8; 6], NetError> {
        if self.info.negotiated.contains(Features::MAC) {
            let mac: [u8; 6] = self.read(offset::MAC)?;
            self.filter.first_mac = Some(mac);
            if is_valid_ether_addr(&mac) {
                return Ok(mac);
            }
            log::warn!("the device's hardware address {mac:02x?} cannot be one; using our own");
        }
        // Locally administered (IEEE 802), fixed: there is no randomness
        // here, and two such devices on a wire are not this project's case.
        Ok([0x02, 0x00, 0x00, 0x6b, 0x69, 0x63])
    }

    fn read_mtu(&mut self) -> Result<(), NetError> {
        if !self.info.negotiated.contains(Features::MTU) {
            return Ok(());
        }
        let mtu: u16 = self.read(offset::MTU)?;
        let usable = mtu.max(MIN_MTU);
        if usable != mtu {
            log::warn!("the device's MTU is {mtu}; using {usable}");
        }
        (self.info.mtu, self.info.max_mtu) = (usable, usable);
        Ok(())
    }

    /// Changes the largest IP packet (Linux `ndo_change_mtu`). An open device
    /// keeps its buffers, so that it can have no more than at
    /// [`VirtioNet::open`]: to raise it, stop the device first.
    ///
    /// # Errors
    ///
    /// [`NetError::InvalidMtu`] for less than 68 bytes, or more than the device
    /// (`VIRTIO_NET_F_MTU`) or its buffers allow; it stays as it was then.
    #[doc(alias = "ndo_change_mtu")]
    pub fn change_mtu(&mut self, mtu: u16) -> Result<(), NetError> {
        let most = match &self.open {
            Some(open) => open.mtu,
            None => self.info.max_mtu,
        };
        let least = MIN_MTU;
        if !(least..=most).contains(&mtu) {
            return Err(NetError::InvalidMtu { mtu, least, most });
        }
        self.info.mtu = mtu;
        Ok(())
    }

    fn read_status(&self) -> Result<u16, NetError> {
        if self.info.negotiated.contains(Features::STATUS) {
            self.read(offset::STATUS)
        } else {
            Ok(S_LINK_UP)
        }
    }

    fn read_speed(&mut self) -> Result<(), NetError> {
        if self.info.negotiated.contains(Features::SPEED_DUPLEX) {
            let speed: u32 = self.read(offset::SPEED)?;
            self.info.speed = (speed <= MAX_SPEED).then_some(speed);
            self.info.duplex = match self.read(offset::DUPLEX)? {
                0u8 => Some(Duplex::Half),
                1 => Some(Duplex::Full),
                _ => None,
            };
        }
        Ok(())
    }

    /// Writes the address of a legacy device (specification 5.1.4.3).
    pub(super) fn write_mac(&mut self, mac: MacAddress) -> Result<(), NetError> {
        let offset = offset::MAC;
        self.transport
            .write_config_space(offset, mac)
            .map_err(|_| NetError::Config { offset })
    }

    /// May be read before the feature is agreed on, to see whether it should
    /// be (specification 3.1.1, step 4).
    pub(super) fn read_max_queue_pairs(&self) -> Result<u16, NetError> {
        if !self.info.offered.intersects(Features::SEVERAL_PAIRS) {
            return Ok(1);
        }
        let pairs: u16 = self.read(offset::MAX_VIRTQUEUE_PAIRS)?;
        if (1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return Ok(pairs);
        }
        log::warn!("the device says that it has {pairs} queue pairs; using one");
        Ok(1)
    }

    /// As [`Self::read_max_queue_pairs`]. What is wrong here costs the features
    /// that it is for, and no more.
    fn read_hash_limits(&self) -> Option<HashLimits> {
        let offered = self.info.offered;
        if !offered.intersects(Features::RSS | Features::HASH_REPORT) {
            return None;
        }
        let read = || -> Result<_, NetError> {
            let types: u32 = self.read(offset::SUPPORTED_HASH_TYPES)?;
            Ok(HashLimits {
                max_key_size: self.read(offset::RSS_MAX_KEY_SIZE)?,
                max_table_length: if offered.contains(Features::RSS) {
                    self.read(offset::RSS_MAX_INDIRECTION_TABLE_LENGTH)?
                } else {
                    0
                },
                types: HashTypes::from_bits_retain(types),
            })
        };
        match read() {
            Ok(limits) if limits.is_usable() => Some(limits),
            Ok(limits) => {
                log::warn!(
                    "the device says that it hashes with keys of up to {} bytes and types {:#x}; \
                     keys have 40 bytes and types are among {:#x}: no RSS and no hash reports",
                    limits.max_key_size,
                    limits.types,
                    HashTypes::IMPLEMENTED,
                );
                None
            }
            Err(error) => {
                log::warn!("{error}: no RSS and no hash reports");
                None
            }
        }
    }

    /// Reads a field in one piece: again, if the configuration changed
    /// meanwhile (specification 2.5.1). The legacy interface does not tell;
    /// there, a field that takes several accesses is read until it comes twice
    /// the same (specification 2.5.4).
    fn read<V>(&self, offset: usize) -> Result<V, NetError>
    where
        V: zerocopy::FromBytes + zerocopy::IntoBytes + PartialEq,
    {
        let error = NetError::Config { offset };
        let is_twice = size_of::<V>() > size_of::<u32>() && self.transport.requires_legacy_layout();
        let mut last = None;
        let mut before = self.transport.read_config_generation();
        for _ in 0..GENERATION_RETRIES {
            let value: V = self
                .transport
                .read_config_space(offset)
                .map_err(|_| error)?;
            let after = self.transport.read_config_generation();
            if after == before && (!is_twice || last.as_ref() == Some(&value)) {
                return Ok(value);
            }
            (before, last) = (after, Some(value));
        }
        Err(error)
    }
}
