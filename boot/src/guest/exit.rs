//! How a VMM ended, decoded.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::qemu::Vmm;

/// How a VMM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest wrote this byte to QEMU's isa-debug-exit, which makes the status
    /// `(value << 1) | 1`; of a byte above 127 the top bit is lost.
    Guest(u8),
    /// It ended in good order: the guest shut down or was reset, or somebody
    /// asked it to quit.
    Orderly,
    /// It gave up: bad command line, missing file, taken port.
    Failed(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// What our guest leaves with when it has done all that was asked for.
    pub const SUCCESS: Self = Self::Guest(0x10);

    /// What our guest leaves with after a panic or an exception.
    pub const FAILURE: Self = Self::Guest(0x11);

    /// Decodes a status. Of QEMU, status 1 is ambiguous: it is a guest that wrote
    /// 0, or QEMU that gave up, which it does with an error `message`.
    pub fn decode(vmm: Vmm, status: ExitStatus, message: bool) -> Self {
        let qemu = vmm == Vmm::Qemu;
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Orderly,
            (Some(1), _) if message && qemu => Self::Failed(1),
            (Some(code @ 1..=255), _) if code & 1 == 1 && qemu => Self::Guest((code >> 1) as u8),
            (Some(code), _) => Self::Failed(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Failed(status.into_raw()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Guest(value) => write!(
                f,
                "the guest left by isa-debug-exit with {value:#04x} (QEMU's status {})",
                u32::from(value) << 1 | 1
            ),
            Self::Orderly => f.write_str("the VMM ended in good order (status 0)"),
            Self::Failed(code) => write!(f, "the VMM failed with status {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(name) => write!(f, "the VMM was ended by {name}"),
                Err(_) => write!(f, "the VMM was ended by signal {signal}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn isa_debug_exit_shifts_its_byte() {
        for value in 0..=127u8 {
            let status = code(i32::from(value) << 1 | 1);
            assert_eq!(Exit::decode(Vmm::Qemu, status, false), Exit::Guest(value));
        }
    }

    #[test]
    fn what_is_not_from_the_guest() {
        assert_eq!(Exit::decode(Vmm::Qemu, code(0), false), Exit::Orderly);
        assert_eq!(Exit::decode(Vmm::Qemu, code(1), true), Exit::Failed(1));
        assert_eq!(Exit::decode(Vmm::Qemu, code(2), false), Exit::Failed(2));
        let other = Exit::decode(Vmm::Firecracker, code(33), false);
        assert_eq!(other, Exit::Failed(33));
        assert_eq!(
            Exit::decode(Vmm::Qemu, ExitStatus::from_raw(9), true),
            Exit::Signal(9)
        );
        assert_eq!(Exit::Signal(9).to_string(), "the VMM was ended by SIGKILL");
        assert_eq!(
            Exit::Guest(0x10).to_string(),
            "the guest left by isa-debug-exit with 0x10 (QEMU's status 33)"
        );
    }
}
