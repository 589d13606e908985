//! crosvm (its `docs/book/src/running_crosvm/`): all on the command line, a bzImage.

use std::ffi::OsString;

use super::{Invocation, kernel, tap};
use crate::qemu::Machine;

pub(super) fn invocation(machine: &Machine) -> Invocation {
    // Its sandbox wants programs and directories that only some systems have.
    let mut arguments = ["run", "--disable-sandbox"].map(OsString::from).to_vec();
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--serial", "type=stdout,hardware=serial,num=1".into());
    option("--cpus", machine.cpus.to_string().into());
    option("--mem", machine.memory.as_mebibytes().to_string().into());
    option("--params", machine.config.to_string().into());
    if let Some((name, mac)) = tap(machine) {
        option("--net", format!("tap-name={name},mac={mac}").into());
    }
    arguments.push(kernel(machine).into());
    Invocation {
        arguments,
        file: None,
    }
}
