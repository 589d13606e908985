//! VMMs other than QEMU, which boot the same guest (`docs/vmm.md`).

use super::{Finding, State};
use crate::install::Host;
use crate::qemu::Vmm;
use crate::vmm;

/// A VMM that the runner has no back end for: name, program, what has it tell its version.
const UNKNOWN: [(&str, &str, &str); 1] = [("crosvm", "crosvm", "version")];

/// Which of them are there.
pub(super) fn vmms(host: &Host) -> Finding {
    let known = Vmm::ALL.into_iter().filter(|vmm| *vmm != Vmm::Qemu);
    let known = known.map(|vmm| {
        let program = vmm.find(host);
        let version = program.as_deref().and_then(|program| vmm.version(program));
        let gives = format!(" (--vmm {}: {})", vmm.word(), vmm.transports());
        (vmm.to_string(), program, version, gives)
    });
    let unknown = UNKNOWN.map(|(name, program, argument)| {
        let program = host.find_program(program);
        let version = program.as_deref();
        let version = version.and_then(|program| vmm::version(program, argument));
        (name.to_owned(), program, version, " (by hand)".to_owned())
    });
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for (name, program, version, gives) in known.into_iter().chain(unknown) {
        let Some(program) = program else {
            missing.push(name);
            continue;
        };
        let version = version.as_deref().unwrap_or("of unknown version");
        found.push(format!("{name} {version}, {}{gives}", program.display()));
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
        gives: "boot the same guest, with KVM and a tap (docs/vmm.md); tests take them",
        required: false,
        remedy: None,
    }
}
