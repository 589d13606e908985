//! The driver's view of this kernel's interrupt controllers, and the handlers
//! that they call.

use alloc::vec::Vec;

use virtio_net::interrupt::{InterruptState, IsrRegister};
use virtio_net::transport::MsiMessage;
use virtio_net::vectors::{InterruptController, InterruptUnavailable, VectorUse};

use crate::arch::interrupts::{self, Line, Vector};
use crate::arch::percpu::{self, PerCpu};
use crate::memory::layout::MAX_CPUS;
use crate::virtio::Device;

/// What the handlers below tell the driver.
pub static STATE: InterruptState = InterruptState::new();

/// The register that the INTx handler reads: that of the device that was opened
/// last. Set before the line is routed.
static INTX_ISR: spin::Mutex<Option<IsrRegister>> = spin::Mutex::new(None);

/// What the handlers of the other cores' pairs tell.
static OTHERS: [InterruptState; MAX_CPUS] = [const { InterruptState::new() }; MAX_CPUS];

/// What the handlers on another CPU than the first tell.
pub fn of_other(cpu: &PerCpu) -> &'static InterruptState {
    OTHERS.get(cpu.number()).unwrap_or(&STATE)
}

/// The CPU that works with a queue: each has one pair (specification 5.1.2).
/// The first has all that nobody else has.
fn cpu_of_queue(queue: u16) -> &'static PerCpu {
    let pair = usize::from(queue / 2);
    percpu::all().get(pair).unwrap_or(&percpu::this())
}

/// Looks at the status on a line where a change counts: nothing tells there of what the
/// device adds while it is read, so it is read until it is empty, but not for ever.
const LOOKS_BY_EDGE: u32 = 8;

fn intx(looks: u32) {
    // Free: it is set by this CPU, with interrupts disabled.
    let Some(isr) = INTX_ISR.try_lock().and_then(|isr| *isr) else {
        return;
    };
    for _ in 0..looks {
        let before = STATE.not_ours();
        STATE.vp_interrupt(isr);
        if STATE.not_ours() != before {
            break;
        }
    }
}

/// The vectors that this kernel has given to the network device.
pub struct Controller {
    msi: Vec<Vector>,
    device: Device,
    /// Where the device's interrupt line leads, once somebody wanted to know.
    line: Option<Line>,
    intx: Option<Vector>,
}

impl Controller {
    /// A device with no vector yet.
    pub fn new(device: Device) -> Self {
        Self {
            msi: Vec::new(),
            device,
            line: None,
            intx: None,
        }
    }
}

impl InterruptController for Controller {
    fn attach_msi(&mut self, purpose: VectorUse) -> Result<MsiMessage, InterruptUnavailable> {
        let handler: fn() = match purpose {
            VectorUse::Config => || STATE.vp_config_changed(),
            VectorUse::Queue(queue) if cpu_of_queue(queue).number() != 0 => {
                || of_other(percpu::this()).vring_interrupt()
            }
            VectorUse::Queue(_) => || STATE.vring_interrupt(),
            VectorUse::AllQueues => || STATE.vp_vring_interrupt(),
        };
        let cpu = match purpose {
            VectorUse::Queue(queue) => cpu_of_queue(queue),
            VectorUse::Config | VectorUse::AllQueues => percpu::this(),
        };
        let vector = interrupts::allocate_vector(handler).ok_or(InterruptUnavailable::NoVector)?;
        let (address, data) = interrupts::msi_message(&vector, cpu);
        self.msi.push(vector);
        Ok(MsiMessage { address, data })
    }

    fn detach_msi(&mut self) {
        self.msi.drain(..).for_each(interrupts::free_vector);
    }

    fn attach_intx(&mut self, isr: IsrRegister) -> Result<(), InterruptUnavailable> {
        self.line = self.line.or_else(|| self.device.line());
        let line = self.line.ok_or(InterruptUnavailable::NoRoute)?;
        *INTX_ISR.lock() = Some(isr);
        let handler: fn() = match line.is_edge() {
            true => || intx(LOOKS_BY_EDGE),
            false => || intx(1),
        };
        let vector = interrupts::allocate_vector(handler).ok_or(InterruptUnavailable::NoVector)?;
        if let Err(error) = interrupts::route(line, &vector) {
            log::warn!("{error}");
            interrupts::free_vector(vector);
            return Err(InterruptUnavailable::NoRoute);
        }
        self.intx = Some(vector);
        Ok(())
    }

    fn detach_intx(&mut self) {
        if let Some(vector) = self.intx.take() {
            if let Some(line) = self.line {
                interrupts::mask(line);
            }
            interrupts::free_vector(vector);
        }
    }
}
