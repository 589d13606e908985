//! What the device is told by the control queue while it serves, because the
//! configuration says so: receive modes and addresses, VLANs, receive offloads.

use alloc::vec::Vec;

use kickpath_abi::config::{Config, GuestOffload, RxMode as Mode, VlanId};
use kickpath_abi::steps::Steps;
use virtio_net::net::{Features, NetError, RxFlags, RxMode};

use super::device::Nic;

/// The first of the addresses that `groups=COUNT` asks for.
const FIRST_GROUP: [u8; 4] = [0x01, 0x00, 0x5e, 0x7f];

/// What the configuration wants of the device, beside what the network stack
/// does.
pub struct ControlSteps {
    config: Config,
    /// The receive mode, but for the network stack's groups.
    receive: RxMode,
    vlans_now: Vec<u16>,
    next: usize,
    /// A step is to be taken now.
    pub is_due: bool,
}

impl ControlSteps {
    pub fn new(config: &Config) -> Self {
        let [a, b, c, d] = FIRST_GROUP;
        let group = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [a, b, c, d, high, low]
        };
        let steps = [&config.rx_mode, &config.vlans, &config.guest_offloads];
        Self {
            config: config.clone(),
            receive: RxMode {
                flags: RxFlags::empty(),
                unicast: config.unicast.clone(),
                multicast: (0..config.groups).map(group).collect(),
            },
            vlans_now: Vec::new(),
            next: 0,
            is_due: !steps.into_iter().all(Steps::is_empty),
        }
    }

    pub fn has_steps(&self) -> bool {
        self.next > 0 || self.is_due
    }

    /// Has the next step taken, if there are any.
    pub fn advance(&mut self) {
        self.is_due = self.has_steps();
    }

    /// The receive mode with these groups added.
    pub fn receive(&self, groups: impl Iterator<Item = [u8; 6]>) -> RxMode {
        let mut mode = self.receive.clone();
        for group in groups {
            if !mode.multicast.contains(&group) {
                mode.multicast.push(group);
            }
        }
        mode
    }

    /// Takes a step. Returns the flags of the receive mode if the step names
    /// them; they are for [`Self::receive`].
    pub fn take_step(&mut self, nic: &mut Nic) -> Option<RxFlags> {
        let number = self.next;
        self.is_due = false;
        self.next += 1;
        if let Some(vlans) = self.config.vlans.step::<VlanId>(number) {
            let vlans: Vec<u16> = vlans.into_iter().map(|VlanId(id)| id).collect();
            match self.change_vlans(nic, &vlans) {
                Ok(()) => log::info!("VLANs beside the host's own: {vlans:?}"),
                Err(error) => log::error!("VLANs: {error}"),
            }
        }
        if let Some(offloads) = self.config.guest_offloads.step::<GuestOffload>(number) {
            let names = offloads.into_iter().map(GuestOffload::word);
            let offloads: Features = names.filter_map(Features::by_name).collect();
            match nic.set_guest_offloads(offloads) {
                Ok(()) => log::info!("receive offloads: '{offloads}'"),
                Err(error) => log::error!("receive offloads: {error}"),
            }
        }
        let modes = self.config.rx_mode.step(number)?;
        self.receive.flags = modes.into_iter().map(flag).collect();
        Some(self.receive.flags)
    }

    fn change_vlans(&mut self, nic: &mut Nic, vlans: &[u16]) -> Result<(), NetError> {
        for id in &self.vlans_now {
            if !vlans.contains(id) {
                nic.vlan_remove(*id)?;
            }
        }
        self.vlans_now.retain(|id| vlans.contains(id));
        for id in vlans {
            if !self.vlans_now.contains(id) {
                nic.vlan_add(*id)?;
                self.vlans_now.push(*id);
            }
        }
        Ok(())
    }
}

const fn flag(mode: Mode) -> RxFlags {
    match mode {
        Mode::Promiscuous => RxFlags::PROMISCUOUS,
        Mode::AllMulticast => RxFlags::ALL_MULTICAST,
        Mode::AllUnicast => RxFlags::ALL_UNICAST,
        Mode::NoMulticast => RxFlags::NO_MULTICAST,
        Mode::NoUnicast => RxFlags::NO_UNICAST,
        Mode::NoBroadcast => RxFlags::NO_BROADCAST,
    }
}
