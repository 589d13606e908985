//! The embedder's interrupt controller.

use virtio_net::interrupt::{InterruptState, IsrRegister};
use virtio_net::transport::MsiMessage;
use virtio_net::vectors::{InterruptController, InterruptUnavailable, VectorUse};

use super::device::{Interrupt, LegacyDevice};
use super::faults::{self, Step};
use super::transport::isr_byte;

/// Address of a local APIC, where messages go. Above 4 GiB, so that both
/// words of the table's address count.
const MESSAGE_ADDRESS: u64 = 0x1_fee0_0000;

/// Connects handlers and calls them.
pub struct FakeController {
    /// What is connected to messages.
    pub messages: Vec<(MsiMessage, VectorUse)>,
    /// Most messages that can be connected.
    pub limit: usize,
    /// What is connected to INTx.
    pub line: Option<IsrRegister>,
    /// Why INTx cannot be connected.
    pub line_error: Option<InterruptUnavailable>,
    next: u32,
}

impl FakeController {
    pub fn new() -> Self {
        Self {
            messages: Vec::new(),
            limit: usize::MAX,
            line: None,
            line_error: None,
            next: 0x30,
        }
    }

    /// Whether nothing is connected.
    pub fn is_idle(&self) -> bool {
        self.messages.is_empty() && self.line.is_none()
    }

    /// What is connected to messages, in the order in which it was.
    pub fn purposes(&self) -> Vec<VectorUse> {
        self.messages.iter().map(|(_, purpose)| *purpose).collect()
    }

    /// Calls the handlers of the interrupts that the device has sent. An
    /// interrupt that nothing is connected to panics.
    pub fn deliver(&self, device: &mut LegacyDevice, state: &InterruptState) {
        for interrupt in std::mem::take(&mut device.interrupts) {
            let message = match interrupt {
                Interrupt::Intx => {
                    let register = self.line.expect("INTx is not connected");
                    isr_byte(std::mem::take(&mut device.isr));
                    state.vp_interrupt(register);
                    continue;
                }
                Interrupt::Msi(message) => message,
            };
            let (_, purpose) = self
                .messages
                .iter()
                .find(|(connected, _)| *connected == message)
                .unwrap_or_else(|| panic!("{message:?} is not connected"));
            match purpose {
                VectorUse::Config => state.vp_config_changed(),
                VectorUse::Queue(_) => state.vring_interrupt(),
                VectorUse::AllQueues => state.vp_vring_interrupt(),
            }
        }
    }
}

impl InterruptController for FakeController {
    fn attach_msi(&mut self, purpose: VectorUse) -> Result<MsiMessage, InterruptUnavailable> {
        if faults::strikes(Step::AttachMsi) || self.messages.len() >= self.limit {
            return Err(InterruptUnavailable::NoVector);
        }
        let message = MsiMessage {
            address: MESSAGE_ADDRESS,
            data: self.next,
        };
        self.next += 1;
        self.messages.push((message, purpose));
        Ok(message)
    }

    fn detach_msi(&mut self) {
        self.messages.clear();
    }

    fn attach_intx(&mut self, isr: IsrRegister) -> Result<(), InterruptUnavailable> {
        assert_eq!(self.line, None, "the line is connected already");
        if faults::strikes(Step::AttachIntx) {
            return Err(InterruptUnavailable::NoRoute);
        }
        match self.line_error {
            Some(error) => Err(error),
            None => {
                self.line = Some(isr);
                Ok(())
            }
        }
    }

    fn detach_intx(&mut self) {
        self.line = None;
    }
}
