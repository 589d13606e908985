//! The I/O APICs: lines of devices in, interrupt messages out. (Intel 82093AA
//! data sheet.)

use core::ptr::NonNull;

use heapless::Vec;
use spin::Mutex;

use super::acpi::{self, Gsi, Input, Polarity, Tables, Trigger};
use crate::memory::map_mmio;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no I/O APIC has an input {}", .0.0)]
pub struct NoInput(pub Gsi);

/// Index of the version register, which holds the number of inputs.
const VERSION: u32 = 0x01;
/// Index of the first redirection entry; each has two registers.
const REDIRECTION: u32 = 0x10;
const ENTRY_MASKED: u32 = 1 << 16;
const ENTRY_LEVEL: u32 = 1 << 15;
const ENTRY_ACTIVE_LOW: u32 = 1 << 13;
/// Offset of the window behind the index register, in bytes.
const WINDOW: usize = 0x10;
/// Length of the registers in bytes.
const REGISTERS_SIZE: u64 = 0x20;
/// Most inputs that an I/O APIC can have.
const MAX_INPUTS: u32 = 240;

struct IoApic {
    registers: NonNull<u8>,
    first: u32,
    inputs: u32,
}

// SAFETY: the registers are the same from everywhere; a lock is around them.
unsafe impl Send for IoApic {}

impl IoApic {
    fn select(&mut self, index: u32) -> *mut u32 {
        let base = self.registers.as_ptr();
        // SAFETY: the registers are mapped; the index register is the first.
        unsafe { base.cast::<u32>().write_volatile(index) };
        base.wrapping_add(WINDOW).cast()
    }

    fn read(&mut self, index: u32) -> u32 {
        let window = self.select(index);
        // SAFETY: the window is within the mapped registers.
        unsafe { window.read_volatile() }
    }

    fn write(&mut self, index: u32, value: u32) {
        let window = self.select(index);
        // SAFETY: the window is within the mapped registers.
        unsafe { window.write_volatile(value) };
    }

    /// Writes a redirection entry, masked until both halves are in place.
    fn redirect(&mut self, input: u32, low: u32, destination: u8) {
        let index = REDIRECTION + 2 * input;
        self.write(index, ENTRY_MASKED);
        self.write(index + 1, u32::from(destination) << 24);
        self.write(index, low);
    }
}

static IO_APICS: Mutex<Vec<IoApic, 4>> = Mutex::new(Vec::new());

/// Finds the I/O APICs and masks every input.
pub fn init(tables: &Tables) {
    for description in &tables.io_apics {
        let registers = match map_mmio(description.address, REGISTERS_SIZE) {
            Ok(registers) => registers,
            Err(error) => {
                log::warn!("I/O APIC ignored: {error}");
                continue;
            }
        };
        let mut io_apic = IoApic {
            registers,
            first: description.first_gsi,
            inputs: 0,
        };
        let version = io_apic.read(VERSION);
        if version == u32::MAX || version == 0 {
            log::warn!("no I/O APIC answers at {:#x}", description.address);
            continue;
        }
        io_apic.inputs = ((version >> 16 & 0xff) + 1).min(MAX_INPUTS);
        for input in 0..io_apic.inputs {
            io_apic.write(REDIRECTION + 2 * input, ENTRY_MASKED);
        }
        if IO_APICS.lock().push(io_apic).is_err() {
            log::warn!("I/O APIC at {:#x} ignored: too many", description.address);
        }
    }
}

/// What a line of the 8259 controllers, 0 to 15, is to the I/O APICs when a PCI
/// pin is connected to it: a level, low unless ACPI says otherwise.
pub fn isa_line(line: u8) -> Input {
    let tables = acpi::tables();
    let source = tables.and_then(|tables| tables.overrides.iter().rfind(|it| it.irq == line));
    Input {
        gsi: Gsi(source.map_or(line.into(), |source| source.gsi)),
        trigger: Trigger::Level,
        polarity: source
            .and_then(|source| source.polarity)
            .unwrap_or(Polarity::Low),
    }
}

fn with_input<R>(gsi: Gsi, action: impl FnOnce(&mut IoApic, u32) -> R) -> Option<R> {
    let mut io_apics = IO_APICS.lock();
    let (io_apic, input) = io_apics.iter_mut().find_map(|io_apic| {
        let input = gsi.0.checked_sub(io_apic.first)?;
        (input < io_apic.inputs).then_some((io_apic, input))
    })?;
    Some(action(io_apic, input))
}

/// Sends `input` to the CPU with APIC id `destination` as `vector`.
pub fn route(input: Input, vector: u8, destination: u8) -> Result<(), NoInput> {
    let trigger = match input.trigger {
        Trigger::Level => ENTRY_LEVEL,
        Trigger::Edge => 0,
    };
    let polarity = match input.polarity {
        Polarity::High => 0,
        Polarity::Low => ENTRY_ACTIVE_LOW,
    };
    let entry = trigger | polarity | u32::from(vector);
    with_input(input.gsi, |io_apic, input| {
        io_apic.redirect(input, entry, destination)
    })
    .ok_or(NoInput(input.gsi))
}

/// Masks `gsi`; one that no I/O APIC has is masked already.
pub fn mask(gsi: Gsi) {
    with_input(gsi, |io_apic, input| {
        io_apic.write(REDIRECTION + 2 * input, ENTRY_MASKED);
    });
}
