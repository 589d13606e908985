//! Which accelerator is taken, and why.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::doctor::{self, KvmState};
use crate::qemu::{Accel, Vmm};

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelChoice {
    /// KVM where the CPU runs guests itself, else TCG.
    #[default]
    Auto,
    /// KVM, also where it has to emulate every instruction.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// A real KVM, in a Linux on a CPU with SVM that QEMU's translator emulates
    /// ([`crate::nested`]).
    Nested,
}

impl FromStr for AccelChoice {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            "nested" => Ok(Self::Nested),
            _ => Err("expected auto, kvm, tcg or nested".into()),
        }
    }
}

/// The accelerator that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which one.
    pub accel: Accel,
    /// Why, for a person.
    pub reason: String,
}

/// KVM was asked for and is not there.
#[derive(Debug, thiserror::Error)]
pub enum NoKvm {
    /// By `--accel kvm`.
    #[error("--accel kvm: {0}; --accel tcg works everywhere")]
    Asked(String),
    /// By a VMM that has nothing else.
    #[error("--vmm {}: {vmm} needs KVM, and {reason}", vmm.word())]
    Needed {
        /// The VMM.
        vmm: Vmm,
        /// Why there is none.
        reason: String,
    },
    /// A command that does not start the Linux that has it.
    #[error("--accel nested is for `run` and `trace`; --accel tcg works everywhere")]
    Nested,
}

impl Decision {
    /// Decides for this machine.
    ///
    /// # Errors
    /// KVM was asked for and is not there.
    pub fn new(choice: AccelChoice, kvm: &KvmState) -> Result<Self, NoKvm> {
        let (accel, reason) = match (choice, kvm) {
            (AccelChoice::Nested, _) => return Err(NoKvm::Nested),
            (AccelChoice::Tcg, _) => (Accel::Tcg, "asked for by --accel tcg".to_owned()),
            (_, KvmState::Hardware) => {
                let mut reason = kvm.to_string();
                if doctor::cpu_is_emulated() {
                    reason += "; that CPU is emulated by QEMU's TCG";
                }
                (Accel::Kvm { emulated: false }, reason)
            }
            (AccelChoice::Kvm, KvmState::Software) => (
                Accel::Kvm { emulated: true },
                format!("asked for by --accel kvm; {kvm}, so have patience"),
            ),
            (AccelChoice::Auto, KvmState::Software) => (
                Accel::Tcg,
                format!("{kvm} (--accel kvm takes it all the same)"),
            ),
            (AccelChoice::Kvm, _) => {
                return Err(NoKvm::Asked(kvm.to_string()));
            }
            (AccelChoice::Auto, _) => (
                Accel::Tcg,
                format!("{kvm}, so QEMU translates the guest's code"),
            ),
        };
        Ok(Self { accel, reason })
    }

    /// For a VMM that has nothing but KVM.
    ///
    /// # Errors
    /// There is none.
    pub fn for_vmm(vmm: Vmm, kvm: &KvmState) -> Result<Self, NoKvm> {
        if !kvm.opens() {
            let reason = kvm.to_string();
            return Err(NoKvm::Needed { vmm, reason });
        }
        Ok(Self {
            accel: Accel::Kvm {
                emulated: !kvm.is_hardware(),
            },
            reason: format!("{vmm} has nothing else; {kvm}"),
        })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.accel.word().to_uppercase(), self.reason)
    }
}

impl Accel {
    /// How long a guest may take from QEMU's start until it serves. Generous:
    /// a bound is for guests that hang, not for slow machines.
    pub fn boot_bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Kvm { emulated: true } => 300,
            // The CPU itself may be emulated (`--accel nested`).
            Self::Kvm { emulated: false } => 180,
            Self::Tcg => 60,
        })
    }

    /// How long a guest may take for one answer, on a host that is busy with other things.
    pub fn reply_bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Kvm { .. } => 30,
            Self::Tcg => 20,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(choice: AccelChoice, kvm: &KvmState) -> Result<Accel, NoKvm> {
        Decision::new(choice, kvm).map(|decision| decision.accel)
    }

    #[test]
    fn auto_takes_kvm_only_where_it_is_real() {
        let unusable = KvmState::Unusable {
            reason: "/dev/kvm is a joke".into(),
        };
        let hardware = Accel::Kvm { emulated: false };
        let auto = AccelChoice::Auto;
        assert_eq!(decide(auto, &KvmState::Hardware).unwrap(), hardware);
        let others = [KvmState::Absent, KvmState::NoPermission, unusable];
        for kvm in others.iter().chain([&KvmState::Software]) {
            assert_eq!(decide(auto, kvm).unwrap(), Accel::Tcg);
            assert_eq!(decide(AccelChoice::Tcg, kvm).unwrap(), Accel::Tcg);
            let error = decide(AccelChoice::Nested, kvm).unwrap_err();
            assert!(matches!(error, NoKvm::Nested), "{error}");
        }
        let emulated = Accel::Kvm { emulated: true };
        assert_eq!(
            decide(AccelChoice::Kvm, &KvmState::Software).unwrap(),
            emulated
        );
        for kvm in &others {
            let error = decide(AccelChoice::Kvm, kvm).unwrap_err().to_string();
            assert!(error.contains("/dev/kvm"), "{error}");
            let error = Decision::for_vmm(Vmm::Kvmtool, kvm)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("--vmm kvmtool: kvmtool needs KVM"),
                "{error}"
            );
        }
        let decision = Decision::for_vmm(Vmm::Kvmtool, &KvmState::Software);
        assert_eq!(decision.unwrap().accel, emulated);
    }
}
