//! VMMs: which are there, and what each gives on this machine (`docs/vmm.md`).

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Qemu;
use crate::install::Host;
use crate::qemu::Vmm;

/// The commands that take a VMM.
const COMMANDS: [&str; 5] = ["run", "serve", "bench", "trace", "compare"];

/// A VMM that the guest boots on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FoundVmm {
    /// Its name.
    pub name: String,
    /// The word of `--vmm`.
    pub word: &'static str,
    /// Its program, if it is on the path.
    pub program: Option<PathBuf>,
    /// Its version, where it tells one.
    pub version: Option<String>,
    /// The commands that it can be taken for, here and now.
    pub gives: Vec<&'static str>,
    /// What it needs besides, and this machine or this user has not.
    pub needs: Vec<&'static str>,
    /// Its transports, the first by default.
    pub transports: &'static str,
    /// What its device or machine has not.
    pub lacks: &'static str,
}

/// All of them. `needs` is what others than QEMU need and is not there.
pub(super) fn vmms(host: &Host, qemu: Option<&Qemu>, needs: &[&'static str]) -> Vec<FoundVmm> {
    let each = Vmm::ALL.into_iter().map(|vmm| {
        let (program, version, needs) = match vmm {
            Vmm::Qemu => (
                qemu.map(|qemu| qemu.path.clone()),
                qemu.and_then(|qemu| Some(qemu.version?.to_string())),
                Vec::new(),
            ),
            _ => {
                let program = vmm.find(host);
                let version = program.as_deref().and_then(|program| vmm.version(program));
                (program, version, needs.to_vec())
            }
        };
        let is_ready = program.is_some() && needs.is_empty();
        FoundVmm {
            name: vmm.to_string(),
            word: vmm.word(),
            program,
            version,
            gives: match is_ready {
                true => COMMANDS.to_vec(),
                false => Vec::new(),
            },
            needs,
            transports: vmm.transports(),
            lacks: vmm.lacks(),
        }
    });
    each.collect()
}

impl fmt::Display for FoundVmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, version, gives) = match (&self.program, self.needs.as_slice()) {
            (None, _) => (
                "-- ",
                "not found",
                "its program belongs on the path, or --vmm-path names it".to_owned(),
            ),
            (Some(_), []) => ("ok ", self.told_version(), self.gives.join(" ")),
            (Some(_), needs) => (
                " ~ ",
                self.told_version(),
                format!("nothing yet: it needs {}", needs.join(", and ")),
            ),
        };
        writeln!(f, "{mark} {:<16} {version:<14} {gives}", self.name)?;
        writeln!(f, "{:3} {}; {}", "", self.transports, self.lacks)
    }
}

impl FoundVmm {
    fn told_version(&self) -> &str {
        self.version.as_deref().unwrap_or("of no version")
    }
}
