//! What a device, a network or a command line can say, made of bytes: each target
//! does what they say to the real code, and panics where that breaks a promise. The
//! same bytes do the same.
//!
//! `tests/brief.rs` runs every target on the committed corpus and on random bytes of
//! a fixed seed; `.ci/fuzz TARGET RUNS` lets libFuzzer look for new ways through the
//! code, under AddressSanitizer. What docs/robustness.md and docs/unsafe.md say of lies
//! and of unsafe code is made by the tests `lies` and `unsafe_blocks` ([`document`]).

mod device;
pub mod document;
mod input;
mod network;
#[cfg(feature = "runner")]
mod recordings;
mod registers;
mod ring;
#[cfg(feature = "runner")]
mod runner;
mod words;

#[path = "../../../kernel/services/tests/common/mod.rs"]
mod common;
#[allow(dead_code)] // The driver's own tests use the rest.
#[path = "../../../kernel/virtio-net/tests/driver/support/mod.rs"]
mod support;

/// What is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A ring, of commands or of frames, split or packed, whose memory the device writes.
    Ring,
    /// An open network device: its rings, headers, buffers and control queue.
    Device,
    /// The registers and the configuration space of a device that is probed and
    /// opened.
    Registers,
    /// Frames for the network stack.
    Frames,
    /// Answers of a DHCP server.
    Dhcp,
    /// What a client of the web server sends.
    Http,
    /// The kernel's command line, and the status report.
    Words,
    /// What the runner reads: logs, traces, answers, recordings.
    #[cfg(feature = "runner")]
    Runner,
    /// Recordings with faults, and the trace that is told of them.
    #[cfg(feature = "runner")]
    Recordings,
}

impl Target {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Ring,
        Self::Device,
        Self::Registers,
        Self::Frames,
        Self::Dhcp,
        Self::Http,
        Self::Words,
        #[cfg(feature = "runner")]
        Self::Runner,
        #[cfg(feature = "runner")]
        Self::Recordings,
    ];

    /// Its name on the command line and in the corpus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Device => "device",
            Self::Registers => "registers",
            Self::Frames => "frames",
            Self::Dhcp => "dhcp",
            Self::Http => "http",
            Self::Words => "words",
            #[cfg(feature = "runner")]
            Self::Runner => "runner",
            #[cfg(feature = "runner")]
            Self::Recordings => "recordings",
        }
    }

    /// Does what the bytes say.
    ///
    /// # Panics
    /// When a promise is broken.
    pub fn run(self, data: &[u8]) {
        match self {
            Self::Ring => ring::run(data),
            Self::Device => device::run(data),
            Self::Registers => registers::run(data),
            Self::Frames => network::frames(data),
            Self::Dhcp => network::dhcp(data),
            Self::Http => network::http(data),
            Self::Words => words::run(data),
            #[cfg(feature = "runner")]
            Self::Runner => runner::run(data),
            #[cfg(feature = "runner")]
            Self::Recordings => recordings::run(data),
        }
    }
}
