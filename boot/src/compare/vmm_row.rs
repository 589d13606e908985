//! A kick on one VMM, as `kickpath compare --vmm` tells of it.

use serde::{Deserialize, Serialize};

/// Echoes that are counted on each: the guest's ring of records has room for more.
pub const ECHOES: usize = 32;

/// Who is told of a kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Taken {
    /// An eventfd, signalled in the host's kernel: the guest goes on at once.
    Eventfd,
    /// The VMM, to which KVM returns while the guest waits.
    UserSpace,
}

impl Taken {
    /// For a table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Eventfd => "eventfd",
            Self::UserSpace => "user space",
        }
    }
}

/// A VMM with one of its transports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmmRow {
    /// The VMM.
    pub vmm: String,
    /// Its version.
    pub version: String,
    /// `legacy`, `modern` or `mmio`.
    pub transport: String,
    /// The access, such as `outw 1 -> port 0xc010`, as the guest reports it.
    pub access: String,
    /// The rung of the interrupt ladder.
    pub interrupts: String,
    /// What KVM did with the traced kick; `None` where KVM's clock could not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<Taken>,
    /// The thread that learnt of it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_by: Option<String>,
    /// The thread that sent the frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_by: Option<String>,
    /// The call by which the VMM had the interrupt for the received frame raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raised_by: Option<String>,
    /// Kicks an echo, of all queues, by the guest's records.
    pub kicks_per_echo: f64,
    /// Interrupts of the device an echo that the guest's handlers took, by its records.
    pub interrupts_per_echo: f64,
    /// Reads and writes of device registers that left the guest an echo, by KVM's events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accesses_per_echo: Option<f64>,
    /// Returns of KVM to the VMM an echo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace_exits_per_echo: Option<f64>,
}

/// What `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VmmReport {
    /// Echoes that were counted on each.
    pub echoes: usize,
    /// The rows.
    pub rows: Vec<VmmRow>,
    /// What is absent, and why.
    pub absent: Vec<String>,
}
