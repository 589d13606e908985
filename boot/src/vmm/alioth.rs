//! Alioth (its `alioth boot --help`): all on the command line, an ELF file by PVH.

use std::ffi::OsString;

use super::{Invocation, kernel, tap};
use crate::qemu::Machine;

/// Of a tap device that nobody has changed, in bytes; Alioth wants to be told.
const MTU: u16 = 1500;

pub(super) fn invocation(machine: &Machine) -> Invocation {
    let mut arguments = vec![OsString::from("boot")];
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    // Its console wants a terminal otherwise.
    option("--console", "log,path=/dev/stdout".into());
    option("--cpu", format!("count={}", machine.cpus).into());
    let memory = machine.memory.as_mebibytes();
    option("--memory", format!("size={memory}M").into());
    option("--pvh", kernel(machine).into());
    option("--cmdline", machine.config.to_string().into());
    if let Some((name, mac)) = tap(machine) {
        let net = format!("tap,if={name},mac={mac},mtu={MTU}");
        option("--net", net.into());
    }
    Invocation {
        arguments,
        file: None,
    }
}
