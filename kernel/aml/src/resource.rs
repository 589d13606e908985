//! Resource templates: the interrupts that `_CRS` tells (ACPI 6.5, section
//! 6.4).

use crate::cursor::little_endian;

/// How an interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By the level of the line.
    Level,
    /// By a change of it.
    Edge,
}

/// Which level of the line means "interrupt".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// The high one.
    High,
    /// The low one.
    Low,
}

/// Where an interrupt comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A global system interrupt.
    Gsi(u32),
    /// A line of the ISA bus, 0 to 15: the MADT's overrides apply.
    Isa(u8),
}

/// An interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Where it comes in.
    pub source: Source,
    /// How it is signalled.
    pub trigger: Trigger,
    /// Which level it has.
    pub polarity: Polarity,
}

/// Tag of the small descriptor of ISA lines, its length left out.
const SMALL_IRQ: u8 = 0x04;
/// Tag of the end.
const SMALL_END: u8 = 0x0f;
/// Tag of the extended interrupt descriptor.
const EXTENDED_INTERRUPT: u8 = 0x89;

/// The first interrupt of the interrupt descriptor with this index; `None`
/// when there is no such one, or it names no interrupt.
pub fn interrupt(template: &[u8], index: usize) -> Option<Interrupt> {
    let mut rest = template;
    let mut seen = 0;
    loop {
        let tag = *rest.first()?;
        let (header, length) = if tag & 0x80 != 0 {
            (3, little_endian(rest.get(1..3)?) as usize)
        } else {
            (1, usize::from(tag & 7))
        };
        let body = rest.get(header..header + length)?;
        let is_small = tag & 0x80 == 0;
        let found = match tag {
            _ if is_small && tag >> 3 == SMALL_END => return None,
            _ if is_small && tag >> 3 == SMALL_IRQ => Some(isa(body)),
            EXTENDED_INTERRUPT => Some(extended(body)),
            _ => None,
        };
        if let Some(found) = found {
            if seen == index {
                return found;
            }
            seen += 1;
        }
        rest = rest.get(header + length..)?;
    }
}

/// IRQ descriptor (section 6.4.2.1): a mask of lines, and flags that may be
/// missing.
fn isa(body: &[u8]) -> Option<Interrupt> {
    let lines = little_endian(body.get(..2)?) as u16;
    let line = (lines != 0).then(|| lines.trailing_zeros())?;
    // Edge and high where nothing is said.
    let flags = body.get(2).copied().unwrap_or(1);
    Some(Interrupt {
        source: Source::Isa(line as u8),
        trigger: trigger(flags & 1 != 0),
        polarity: polarity(flags & 1 << 3 != 0),
    })
}

/// Extended interrupt descriptor (section 6.4.3.6).
fn extended(body: &[u8]) -> Option<Interrupt> {
    let [flags, count, ..] = *body else {
        return None;
    };
    let gsi = little_endian(body.get(2..6)?) as u32;
    (count != 0).then_some(Interrupt {
        source: Source::Gsi(gsi),
        trigger: trigger(flags & 1 << 1 != 0),
        polarity: polarity(flags & 1 << 2 != 0),
    })
}

fn trigger(is_edge: bool) -> Trigger {
    if is_edge {
        Trigger::Edge
    } else {
        Trigger::Level
    }
}

fn polarity(is_low: bool) -> Polarity {
    if is_low {
        Polarity::Low
    } else {
        Polarity::High
    }
}
