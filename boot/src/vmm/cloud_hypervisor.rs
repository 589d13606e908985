//! Cloud Hypervisor (its `docs/device_model.md`): all on the command line, an ELF file by PVH.

use std::ffi::OsString;

use super::{Invocation, kernel, tap};
use crate::qemu::Machine;

pub(super) fn invocation(machine: &Machine) -> Invocation {
    // Its virtio-console, the default, is not for this guest.
    let mut arguments = ["--serial", "tty", "--console", "off"]
        .map(OsString::from)
        .to_vec();
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--cpus", format!("boot={}", machine.cpus).into());
    let memory = machine.memory.as_mebibytes();
    option("--memory", format!("size={memory}M").into());
    option("--kernel", kernel(machine).into());
    option("--cmdline", machine.config.to_string().into());
    if let Some((name, mac)) = tap(machine) {
        option("--net", format!("tap={name},mac={mac}").into());
    }
    Invocation {
        arguments,
        file: None,
    }
}
