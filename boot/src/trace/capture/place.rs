//! Where the network device is in the machine, as QEMU tells.

use serde_json::{Value, json};

use crate::guest::Guest;
use crate::trace::qemu;
use crate::trace::recording::Region;

/// The address ranges of the network device, if it is on PCI.
pub(super) fn regions(guest: &Guest) -> Vec<Region> {
    const VIRTIO: u64 = 0x1af4;
    let buses = guest.qmp("query-pci", Value::Null).unwrap_or_default();
    let devices = buses.as_array().into_iter().flatten();
    let devices = devices.flat_map(|bus| bus["devices"].as_array().into_iter().flatten());
    let nics = devices.filter(|device| {
        let id = &device["id"];
        id["vendor"].as_u64() == Some(VIRTIO)
            && matches!(id["device"].as_u64(), Some(0x1000 | 0x1041))
    });
    let regions = nics.flat_map(|nic| nic["regions"].as_array().into_iter().flatten());
    regions
        .filter_map(|region| {
            Some(Region {
                name: format!("BAR{}", region["bar"].as_u64()?),
                address: region["address"].as_u64()?,
                size: region["size"].as_u64()?,
                ports: region["type"] == "io",
            })
        })
        .collect()
}

/// What a virtual address of the guest's CPU is to its devices.
pub(in crate::trace) fn physical(guest: &Guest, address: u64) -> Option<u64> {
    let line = format!("gva2gpa {address:#x}");
    let arguments = json!({ "command-line": line });
    let answer = guest.qmp("human-monitor-command", arguments).ok()?;
    let (_, number) = answer.as_str()?.split_once("gpa:")?;
    qemu::number(number.trim())
}
