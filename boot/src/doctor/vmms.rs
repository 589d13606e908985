//! VMMs other than QEMU, which boot the same guest (`docs/vmm.md`).

use super::{Finding, State};
use crate::install::Host;
use crate::qemu::Vmm;

/// Which of them are there.
pub(super) fn vmms(host: &Host) -> Finding {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for vmm in Vmm::ALL.into_iter().filter(|vmm| *vmm != Vmm::Qemu) {
        let Some(program) = vmm.find(host) else {
            missing.push(vmm.to_string());
            continue;
        };
        let version = vmm.version(&program);
        let version = version.as_deref().unwrap_or("of unknown version");
        found.push(format!(
            "{vmm} {version}, {} (--vmm {}: {})",
            program.display(),
            vmm.word(),
            vmm.transports()
        ));
    }
    let state = if found.is_empty() {
        State::Missing
    } else {
        State::Good
    };
    if !missing.is_empty() {
        found.push(format!("not found: {}", missing.join(", ")));
    }
    Finding {
        name: "other VMMs",
        state,
        detail: found.join("; "),
        gives: "run, serve, trace and compare take them, with KVM and a tap (docs/vmm.md); so do tests",
        required: false,
        remedy: None,
    }
}
