//! What is known of the machine that is traced, and of its process.

use std::fs;

use kickpath_abi::status::Status;
use serde_json::Value;

use super::process;
use crate::guest::Guest;
use crate::qemu::{Accel, Machine, Vmm};
use crate::trace::recording::Threads;
use crate::trace::timeline::{Device, OtherVmm, Run};

/// What is known of the machine before it is traced; `reason` is why it has its accelerator,
/// and `device` is what [`device_of`] makes of the guest's report.
pub fn run_of(machine: &Machine, reason: &str, guest: &Guest, device: Device) -> Run {
    let (accel, vmm) = (machine.accel, machine.vmm);
    let release = nix::sys::utsname::uname();
    Run {
        accelerator: accel.word().to_owned(),
        accelerator_reason: reason.to_owned(),
        real_exits: matches!(accel, Accel::Kvm { .. }),
        // Of another VMM there is one type, which has no name.
        machine: match vmm {
            Vmm::Qemu => machine.kind.word().to_owned(),
            _ => String::new(),
        },
        qemu: match vmm {
            Vmm::Qemu => qemu_version(guest),
            _ => String::new(),
        },
        vmm: (vmm != Vmm::Qemu).then(|| OtherVmm {
            name: vmm.to_string(),
            version: vmm
                .version(&machine.program)
                .unwrap_or_else(|| "of unknown version".to_owned()),
        }),
        command_line: guest.command_line().to_owned(),
        host_kernel: release
            .map(|names| names.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        guest: None,
        device: Device {
            ioeventfd: machine.nic.as_ref().and_then(|nic| nic.ioeventfd),
            ..device
        },
    }
}

fn qemu_version(guest: &Guest) -> String {
    let version = guest.qmp("query-version", Value::Null).unwrap_or_default();
    let part = |name: &str| version["qemu"][name].as_u64().unwrap_or_default();
    format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
}

/// What our guest reports of its device.
pub fn device_of(status: &Status) -> Device {
    Device {
        transport: status.device.transport.clone(),
        location: status.device.location.clone(),
        doorbell: status.device.doorbell.clone(),
        interrupts: status.interrupts.rung.clone(),
        features: status.device.features_negotiated.clone(),
        ioeventfd: None,
    }
}

/// The VMM's threads; the default where they cannot be told.
pub(crate) fn threads_of(guest: &Guest, vmm: Vmm) -> Threads {
    match vmm {
        Vmm::Qemu => threads_of_qemu(guest),
        _ => process::threads(guest.pid()),
    }
}

fn threads_of_qemu(guest: &Guest) -> Threads {
    let cpus = guest
        .qmp("query-cpus-fast", Value::Null)
        .unwrap_or_default();
    let ids = cpus.as_array().into_iter().flatten();
    let vcpus: Vec<u32> = ids
        .filter_map(|cpu| u32::try_from(cpu["thread-id"].as_u64()?).ok())
        .collect();
    // Not `Guest::pid`: that may be a script around QEMU.
    let main = vcpus.first().and_then(|thread| {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let mut lines = status.lines();
        let group = lines.find_map(|line| line.strip_prefix("Tgid:"))?;
        group.trim().parse().ok()
    });
    match main {
        Some(main) => Threads {
            main,
            vcpus,
            ..Threads::default()
        },
        None => Threads::default(),
    }
}
