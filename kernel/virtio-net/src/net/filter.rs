//! What the device lets through to the driver: addresses, receive modes,
//! VLANs. The device is told by the control queue, and told again whenever it
//! was reset.

use virtio_drivers::Hal;

use super::control::{Command, ControlError, MAC_TABLE_ENTRIES, MacAddress};
use super::rx_mode::{RxFlags, RxMode};
use super::{Features, NetError, VirtioNet};
use crate::interrupt::StateRef;
use crate::transport::ConfigOps;

/// Number of VLAN ids (IEEE 802.1Q; Linux `VLAN_N_VID`).
const VLAN_IDS: u16 = 4096;

impl<H: Hal, T: ConfigOps, S: StateRef> VirtioNet<H, T, S> {
    /// Has the device let through what is wanted and, as far as it can, drop
    /// everything else (Linux `virtnet_set_rx_mode`). More addresses than fit
    /// the device's tables become all of their kind.
    ///
    /// Needs `VIRTIO_NET_F_CTRL_RX`, and for the flags from
    /// [`RxFlags::ALL_UNICAST`] on `VIRTIO_NET_F_CTRL_RX_EXTRA`; `ALL_UNICAST`
    /// without it becomes `PROMISCUOUS`.
    ///
    /// # Errors
    ///
    /// [`NetError::Control`]. The mode is kept all the same, for the next
    /// [`Self::open`]. [`NetError::NotOpen`] likewise.
    #[doc(alias = "ndo_set_rx_mode")]
    #[doc(alias = "virtnet_set_rx_mode")]
    pub fn set_rx_mode(&mut self, mode: RxMode) -> Result<(), NetError> {
        let result = self.apply_rx_mode(&mode);
        self.filter.mode = Some(mode);
        result
    }

    fn apply_rx_mode(&mut self, mode: &RxMode) -> Result<(), NetError> {
        let mut flags = mode.flags;
        let mut unicast: &[_] = &mode.unicast;
        let mut multicast: &[_] = &mode.multicast;
        // An address that the device does not know as its own.
        let with_own;
        if self.filter.device_mac != Some(self.info.mac) {
            with_own = [&[self.info.mac], unicast].concat();
            unicast = &with_own;
        }
        if unicast.len() + multicast.len() > MAC_TABLE_ENTRIES {
            // The longer list is the one that overflows.
            if multicast.len() >= unicast.len() || multicast.len() > MAC_TABLE_ENTRIES {
                flags |= RxFlags::ALL_MULTICAST;
                multicast = &[];
            }
            if unicast.len() + multicast.len() > MAC_TABLE_ENTRIES {
                flags |= RxFlags::ALL_UNICAST;
                unicast = &[];
            }
        }
        let tables = Command::MacTables { unicast, multicast };
        match self.command(&tables) {
            Err(NetError::Control(error @ ControlError::Refused { .. })) => {
                log::warn!("{error}; receiving all that are of their kind");
                if !multicast.is_empty() {
                    flags |= RxFlags::ALL_MULTICAST;
                }
                if !unicast.is_empty() {
                    flags |= RxFlags::ALL_UNICAST;
                }
            }
            result => result?,
        }
        if flags.contains(RxFlags::ALL_UNICAST)
            && !self.info.negotiated.contains(Features::CTRL_RX_EXTRA)
        {
            flags.remove(RxFlags::ALL_UNICAST);
            flags.insert(RxFlags::PROMISCUOUS);
        }
        // The tables come first and promiscuity, with which a device begins,
        // goes last: nothing that is wanted is lost in between.
        self.set_flag(flags, RxFlags::ALL_MULTICAST, Command::AllMulticast)?;
        self.set_flag(flags, RxFlags::ALL_UNICAST, Command::AllUnicast)?;
        self.set_flag(flags, RxFlags::NO_MULTICAST, Command::NoMulticast)?;
        self.set_flag(flags, RxFlags::NO_UNICAST, Command::NoUnicast)?;
        self.set_flag(flags, RxFlags::NO_BROADCAST, Command::NoBroadcast)?;
        self.set_flag(flags, RxFlags::PROMISCUOUS, Command::Promiscuous)
    }

    /// Tells the device of a flag, unless it knows.
    fn set_flag(
        &mut self,
        flags: RxFlags,
        flag: RxFlags,
        command: impl Fn(bool) -> Command<'static>,
    ) -> Result<(), NetError> {
        let filter = &self.filter;
        if filter.flags_known.contains(flag) && filter.flags & flag == flags & flag {
            return Ok(());
        }
        let on = flags.contains(flag);
        self.command(&command(on))?;
        self.filter.flags_known.insert(flag);
        self.filter.flags.set(flag, on);
        Ok(())
    }

    /// Gives the device another address (Linux `virtnet_set_mac_address`), by
    /// the control queue or, a legacy device without `VIRTIO_NET_F_CTRL_MAC_ADDR`,
    /// by its configuration. Where neither is possible the address is the
    /// driver's alone, and the receive filter lets it through.
    ///
    /// # Errors
    ///
    /// [`NetError::InvalidMac`] for a multicast address and for zero (Linux
    /// `ndo_validate_addr`), [`NetError::Control`], [`NetError::Config`]; the
    /// address stays as it was then. Only when a receive mode was set and the
    /// device refuses to let the new address through, it has changed all the
    /// same: [`DeviceInfo::mac`](super::DeviceInfo::mac) is the one that counts.
    #[doc(alias = "ndo_set_mac_address")]
    #[doc(alias = "ndo_validate_addr")]
    pub fn set_mac_address(&mut self, mac: MacAddress) -> Result<(), NetError> {
        if !is_valid_ether_addr(&mac) {
            return Err(NetError::InvalidMac { mac });
        }
        self.apply_mac(mac)?;
        self.filter.mac = Some(mac);
        self.info.mac = mac;
        // The filter may have to let another address through.
        self.set_rx_mode_again()
    }

    /// Applies the mode that was set last, as far as that is possible: a device
    /// that is not open is told of it when it is.
    fn set_rx_mode_again(&mut self) -> Result<(), NetError> {
        let Some(mode) = self.filter.mode.take() else {
            return Ok(());
        };
        match self.set_rx_mode(mode) {
            Err(NetError::NotOpen | NetError::Control(ControlError::NotNegotiated { .. })) => {
                Ok(())
            }
            result => result,
        }
    }

    fn apply_mac(&mut self, mac: MacAddress) -> Result<(), NetError> {
        let negotiated = self.info.negotiated;
        if negotiated.contains(Features::CTRL_MAC_ADDR) {
            if self.open.is_none() {
                // `restore` does it.
                return Ok(());
            }
            self.command(&Command::MacAddress(mac))?;
        } else if negotiated.contains(Features::MAC) && !negotiated.contains(Features::VERSION_1) {
            // Specification 5.1.4.3.
            self.write_mac(mac)?;
        } else {
            return Ok(());
        }
        self.filter.device_mac = Some(mac);
        Ok(())
    }

    /// Lets frames of a VLAN through, by its id of 0 to 4095 (Linux
    /// `virtnet_vlan_rx_add_vid`). A device without `VIRTIO_NET_F_CTRL_VLAN`
    /// does not look at tags.
    ///
    /// # Errors
    ///
    /// [`NetError::InvalidVlan`], [`NetError::Control`], [`NetError::NotOpen`].
    #[doc(alias = "ndo_vlan_rx_add_vid")]
    pub fn vlan_add(&mut self, id: u16) -> Result<(), NetError> {
        if id >= VLAN_IDS {
            return Err(NetError::InvalidVlan { id });
        }
        self.command(&Command::VlanAdd(id))?;
        if !self.filter.vlans.contains(&id) {
            self.filter.vlans.push(id);
        }
        Ok(())
    }

    /// No longer lets frames of a VLAN through (Linux
    /// `virtnet_vlan_rx_kill_vid`).
    ///
    /// # Errors
    ///
    /// As for [`Self::vlan_add`].
    #[doc(alias = "ndo_vlan_rx_kill_vid")]
    pub fn vlan_remove(&mut self, id: u16) -> Result<(), NetError> {
        if id >= VLAN_IDS {
            return Err(NetError::InvalidVlan { id });
        }
        self.command(&Command::VlanRemove(id))?;
        self.filter.vlans.retain(|kept| *kept != id);
        Ok(())
    }

    /// Tells the device which of the negotiated receive offloads the driver
    /// wants from now on (Linux `virtnet_set_guest_offloads`). One that needs
    /// another which is not among them (specification 5.1.3.1) is left out.
    ///
    /// # Errors
    ///
    /// [`NetError::Control`]: among others for an offload that was not
    /// negotiated. [`NetError::NotOpen`].
    #[doc(alias = "virtnet_set_guest_offloads")]
    pub fn set_guest_offloads(&mut self, offloads: Features) -> Result<(), NetError> {
        let offloads = offloads.without_dangling();
        let command = Command::GuestOffloads(offloads);
        let feature = offloads - (self.info.negotiated & Features::GUEST_OFFLOADS);
        if !feature.is_empty() {
            let command = command.name();
            return Err(ControlError::NotNegotiated { command, feature }.into());
        }
        self.command(&command)?;
        self.filter.offloads = Some(offloads);
        Ok(())
    }

    /// Tells a device that was reset again what it was told before.
    #[inline(never)]
    pub(super) fn restore(&mut self) {
        self.filter.flags = RxFlags::empty();
        self.filter.flags_known = RxFlags::EXTRA;
        self.filter.device_mac = self.filter.first_mac;
        if let Err(error) = self.try_restore() {
            log_not_restored(&error);
        }
    }

    fn try_restore(&mut self) -> Result<(), NetError> {
        if let Some(mac) = self.filter.mac {
            unless_refused(self.apply_mac(mac))?;
        }
        for at in 0.. {
            let Some(&id) = self.filter.vlans.get(at) else {
                break;
            };
            unless_refused(self.command(&Command::VlanAdd(id)))?;
        }
        if let Some(offloads) = self.filter.offloads {
            unless_refused(self.command(&Command::GuestOffloads(offloads)))?;
        }
        self.set_rx_mode_again()
    }
}

/// A device that refuses one thing may do the next one; with one that does not
/// answer there is no point in going on.
fn unless_refused(result: Result<(), NetError>) -> Result<(), NetError> {
    match result {
        Err(error @ NetError::Control(ControlError::Refused { .. })) => {
            log_not_restored(&error);
            Ok(())
        }
        result => result,
    }
}

fn log_not_restored(error: &NetError) {
    log::error!("{error}; the device may receive more or less than it should");
}

/// Whether this can be a station's address (Linux `is_valid_ether_addr`):
/// neither multicast nor zero.
pub(super) fn is_valid_ether_addr(mac: &MacAddress) -> bool {
    let [first, ..] = mac;
    first & 1 == 0 && *mac != [0; 6]
}
