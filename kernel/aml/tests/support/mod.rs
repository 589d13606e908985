//! AML, put together by hand (ACPI 6.5, section 20.2).

#![allow(dead_code)]

use kickpath_aml::{Host, Interrupt, PciPath, RouteError, Source, route};

pub const ZERO: &[u8] = &[0x00];
pub const ONE: &[u8] = &[0x01];
pub const LOCAL0: &[u8] = &[0x60];
pub const LOCAL1: &[u8] = &[0x61];
pub const LOCAL6: &[u8] = &[0x66];
pub const LOCAL7: &[u8] = &[0x67];
pub const ARG0: &[u8] = &[0x68];
pub const NOWHERE: &[u8] = ZERO;

/// The terms one after the other.
pub fn terms<T: AsRef<[u8]>>(terms: impl IntoIterator<Item = T>) -> Vec<u8> {
    terms
        .into_iter()
        .flat_map(|term| term.as_ref().to_vec())
        .collect()
}

/// An opcode and what belongs to it.
pub fn op(opcode: &[u8], operands: &[&[u8]]) -> Vec<u8> {
    terms([opcode.to_vec(), operands.concat()])
}

/// An opcode and a block with its length.
pub fn block(opcode: &[u8], body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    // The length counts itself, here always in three bytes.
    let length = body.len() + 3;
    let lead = [
        0x80 | (length & 0xf) as u8,
        (length >> 4) as u8,
        (length >> 12) as u8,
    ];
    terms([opcode, &lead, &body])
}

pub fn integer(value: u32) -> Vec<u8> {
    op(&[0x0c], &[&value.to_le_bytes()])
}

pub fn name(name: &str, value: &[u8]) -> Vec<u8> {
    op(&[0x08], &[name.as_bytes(), value])
}

pub fn device(name: &str, body: &[&[u8]]) -> Vec<u8> {
    block(&[0x5b, 0x82], &[name.as_bytes(), &body.concat()])
}

pub fn scope(name: &str, body: &[&[u8]]) -> Vec<u8> {
    block(&[0x10], &[name.as_bytes(), &body.concat()])
}

pub fn method(name: &str, arguments: u8, body: &[&[u8]]) -> Vec<u8> {
    block(&[0x14], &[name.as_bytes(), &[arguments], &body.concat()])
}

pub fn package(elements: &[&[u8]]) -> Vec<u8> {
    block(&[0x12], &[&[elements.len() as u8], &elements.concat()])
}

pub fn buffer(bytes: &[u8]) -> Vec<u8> {
    block(&[0x11], &[&integer(bytes.len() as u32), bytes])
}

pub fn store(value: &[u8], target: &[u8]) -> Vec<u8> {
    op(&[0x70], &[value, target])
}

pub fn index(source: &[u8], index: &[u8]) -> Vec<u8> {
    op(&[0x88], &[source, index, NOWHERE])
}

pub fn give(value: &[u8]) -> Vec<u8> {
    op(&[0xa4], &[value])
}

pub fn branch(condition: &[u8], then: &[u8]) -> Vec<u8> {
    block(&[0xa0], &[condition, then])
}

pub fn otherwise(then: &[u8]) -> Vec<u8> {
    block(&[0xa1], &[then])
}

pub fn repeat(condition: &[u8], body: &[u8]) -> Vec<u8> {
    block(&[0xa2], &[condition, body])
}

pub fn less(left: &[u8], right: &[u8]) -> Vec<u8> {
    op(&[0x95], &[left, right])
}

pub fn increment(place: &[u8]) -> Vec<u8> {
    op(&[0x75], &[place])
}

pub fn add(left: &[u8], right: &[u8]) -> Vec<u8> {
    op(&[0x72], &[left, right, NOWHERE])
}

/// A table with this revision.
pub fn table(revision: u8, body: &[&[u8]]) -> Vec<u8> {
    let mut table = vec![0; 36];
    table[8] = revision;
    table.extend(body.concat());
    table
}

/// `_HID` of a PCI host bridge, PNP0A03.
pub fn host_bridge() -> Vec<u8> {
    name("_HID", &integer(0x030a_d041))
}

/// A `_PRT` entry: pin A of a device, and where it leads.
pub fn entry(device: u32, source: &[u8], index: u32) -> Vec<u8> {
    package(&[
        &integer(device << 16 | 0xffff),
        ZERO,
        source,
        &integer(index),
    ])
}

/// A host whose registers have their own offset in each byte.
pub struct Registers;

impl Host for Registers {
    fn pci_config(&self, _: u8, _: u8, _: u8, register: u8) -> u32 {
        let first = u32::from(register);
        first | (first + 1) << 8 | (first + 2) << 16 | (first + 3) << 24
    }
}

/// Where pin A of device 3 leads, by the table's host bridge `PCI0`, which has
/// `body`.
pub fn route_with(revision: u8, body: &[&[u8]]) -> Result<Interrupt, RouteError> {
    let bridge = device("PCI0", &[&host_bridge(), &body.concat()]);
    let table = table(revision, &[&scope("\\_SB_", &[&bridge])]);
    let path = PciPath {
        root_bus: 0,
        hops: &[(3, 0)],
    };
    route(&[&table], &Registers, path, 1)
}

/// The value of an expression, after these statements, as 32 bits: it becomes
/// a route.
pub fn evaluate(revision: u8, before: &[&[u8]], value: &[u8]) -> Result<u32, RouteError> {
    let body = [
        before.concat(),
        store(&entry(3, ZERO, 0), LOCAL7),
        store(value, &index(LOCAL7, &integer(3))),
        store(&package(&[ZERO]), LOCAL6),
        store(LOCAL7, &index(LOCAL6, ZERO)),
        give(LOCAL6),
    ];
    match route_with(revision, &[&method("_PRT", 0, &[&body.concat()])])?.source {
        Source::Gsi(value) => Ok(value),
        Source::Isa(line) => panic!("ISA line {line}"),
    }
}
