//! Which accelerator is taken, and why.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::doctor::KvmState;
use crate::qemu::Accel;

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
}

impl FromStr for AccelChoice {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err("expected auto, kvm or tcg".into()),
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
#[error("--accel kvm: {reason}; --accel tcg works everywhere")]
pub struct NoKvm {
    reason: String,
}

impl Decision {
    /// Decides for this machine.
    ///
    /// # Errors
    /// KVM was asked for and is not there.
    pub fn new(choice: AccelChoice, kvm: &KvmState) -> Result<Self, NoKvm> {
        let (accel, reason) = match (choice, kvm) {
            (AccelChoice::Tcg, _) => (Accel::Tcg, "asked for by --accel tcg".to_owned()),
            (_, KvmState::Hardware) => (Accel::Kvm { emulated: false }, kvm.to_string()),
            (AccelChoice::Kvm, KvmState::Software) => (
                Accel::Kvm { emulated: true },
                format!("asked for by --accel kvm; {kvm}, so have patience"),
            ),
            (AccelChoice::Auto, KvmState::Software) => (
                Accel::Tcg,
                format!("{kvm} (--accel kvm takes it all the same)"),
            ),
            (AccelChoice::Kvm, _) => {
                let reason = kvm.to_string();
                return Err(NoKvm { reason });
            }
            (AccelChoice::Auto, _) => (
                Accel::Tcg,
                format!("{kvm}, so QEMU translates the guest's code"),
            ),
        };
        Ok(Self { accel, reason })
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
            Self::Kvm { emulated: false } | Self::Tcg => 60,
        })
    }

    /// How long a guest may take for one answer.
    pub fn reply_bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Kvm { emulated: true } => 30,
            Self::Kvm { emulated: false } | Self::Tcg => 5,
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
        }
        let emulated = Accel::Kvm { emulated: true };
        assert_eq!(
            decide(AccelChoice::Kvm, &KvmState::Software).unwrap(),
            emulated
        );
        for kvm in &others {
            let error = decide(AccelChoice::Kvm, kvm).unwrap_err().to_string();
            assert!(error.contains("/dev/kvm"), "{error}");
        }
    }
}
