//! kvmtool (its `Documentation/kvmtool.1`): all on the command line, a bzImage.

use std::ffi::OsString;

use kickpath_abi::config::Transport;

use super::{Invocation, kernel, tap};
use crate::qemu::Machine;

pub(super) fn invocation(machine: &Machine) -> Invocation {
    let mut arguments = ["run", "--console", "serial"].map(OsString::from).to_vec();
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--cpus", machine.cpus.to_string().into());
    option("--mem", machine.memory.as_mebibytes().to_string().into());
    option("--kernel", kernel(machine).into());
    option("--params", machine.config.to_string().into());
    if let Some((name, mac)) = tap(machine) {
        option(
            "--network",
            format!("mode=tap,tapif={name},guest_mac={mac}").into(),
        );
    }
    if machine.config.transport == Transport::Legacy {
        option("--virtio-transport", "pci-legacy".into());
    }
    Invocation {
        arguments,
        file: None,
    }
}
