//! Firecracker (its `docs/getting-started.md`, `src/firecracker/swagger/firecracker.yaml`): a
//! JSON file instead of requests to its API, an ELF file by PVH.

use std::path::Path;

use kickpath_abi::config::Transport;
use serde_json::json;

use super::{Invocation, kernel, tap};
use crate::qemu::Machine;

const FILE: &str = "kickpath.json";

pub(super) fn invocation(machine: &Machine, directory: &Path) -> Invocation {
    let interfaces = tap(machine)
        .map(|(name, mac)| json!({ "iface_id": "net0", "guest_mac": mac, "host_dev_name": name }));
    let config = json!({
        "boot-source": {
            "kernel_image_path": kernel(machine),
            "boot_args": machine.config.to_string(),
        },
        "drives": [],
        "machine-config": {
            "vcpu_count": machine.cpus,
            "mem_size_mib": machine.memory.as_mebibytes(),
        },
        "network-interfaces": Vec::from_iter(interfaces),
    });
    let file = directory.join(FILE);
    let mut arguments = vec![
        "--no-api".into(),
        "--config-file".into(),
        file.clone().into(),
    ];
    // Its devices are on virtio-mmio otherwise.
    if machine.config.transport == Transport::Modern {
        arguments.push("--enable-pci".into());
    }
    Invocation {
        arguments,
        file: Some((file, format!("{config:#}"))),
    }
}
