//! Whether the device is in its place: it may be asked for, taken out, and another
//! one put there.

use crate::pci::slot::{Saved, Slot};
use crate::virtio::Device;

/// Looks without a received frame after which the device is asked whether it is
/// there.
const QUIET: u8 = 5;

/// What has become of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is to be stopped: somebody wants to take it out, or has.
    Leaves,
    /// There is one again, which may be opened.
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Here,
    /// Its slot has no power; it is still in it.
    Leaving,
    Away,
    /// The slot has power again.
    Coming,
}

pub struct Presence {
    slot: Option<(Slot, Saved)>,
    state: State,
    /// Frames that had been received at the last look, and looks since more were.
    received: u64,
    quiet: u8,
}

impl Presence {
    /// That of a device that is there, with a transport for it.
    pub fn of(device: &Device) -> Self {
        let mut slot = match device {
            Device::Pci(found) => {
                Slot::of(&found.function).map(|slot| (slot, Saved::of(found.function.location)))
            }
            Device::Mmio(..) => None,
        };
        // As QEMU does if not told otherwise: its port says that nothing is in the slot.
        if let Some((slot, _)) = slot.take_if(|(slot, _)| !slot.look().is_present) {
            log::info!("what is in {slot} is plugged by ACPI, and stays");
        }
        Self {
            slot,
            state: State::Here,
            received: 0,
            quiet: 0,
        }
    }

    /// Whether the device is to be used.
    pub fn is_here(&self) -> bool {
        self.state == State::Here
    }

    /// Looks at the slot, now and then.
    pub fn look(&mut self) -> Option<Change> {
        let (slot, saved) = self.slot.as_ref()?;
        let now = slot.look();
        match self.state {
            State::Here if !now.is_present || now.has_changed => {
                self.state = State::Away;
                log::warn!("the device was taken out of {slot}");
                Some(Change::Leaves)
            }
            State::Here if now.is_asked_for => {
                self.state = State::Leaving;
                log::info!("the device is asked for: {slot} is turned off");
                Some(Change::Leaves)
            }
            State::Here => None,
            State::Leaving if now.is_present && !now.has_changed => None,
            _ if !now.is_present => {
                self.state = State::Away;
                None
            }
            State::Leaving | State::Away => {
                slot.set_power(true);
                self.state = State::Coming;
                None
            }
            // It may take a moment, or be of another kind.
            State::Coming if !saved.restore() => None,
            State::Coming => {
                self.state = State::Here;
                log::info!("a device is in {slot} again");
                Some(Change::Returned)
            }
        }
    }

    /// Whether so little comes that the device is to be asked whether it is there,
    /// which is an access to its registers; asked at each look, with the number of
    /// frames received.
    pub fn is_doubtful(&mut self, received: u64) -> bool {
        let is_quiet = core::mem::replace(&mut self.received, received) == received;
        self.quiet = if is_quiet { self.quiet + 1 } else { 0 } % QUIET;
        is_quiet && self.quiet == 0
    }

    /// The device is stopped: it may be taken out.
    pub fn release(&self) {
        if let (State::Leaving, Some((slot, _))) = (self.state, &self.slot) {
            slot.set_power(false);
        }
    }
}
