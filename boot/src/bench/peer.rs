//! The network driver of `virtio-drivers`, `VirtIONetRaw`, in the same kernel and the same
//! run: a second build of the guest has it as well (cargo feature `peer`).

use std::path::{Path, PathBuf};

use kickpath_abi::config::Bench;
use serde::{Deserialize, Serialize};

use super::{by_guest, parse_line, wrong};
use crate::command::Sink;
use crate::qemu::{Boot, Kind};
use crate::session::{Prepared, SessionError, Settings};
use crate::toolchain::{self, BuildOptions, Kernel};

/// What that driver costs, in its smallest frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerDriver {
    /// Frames that lie ready, sent.
    #[serde(rename = "tx")]
    pub sent: PeerSums,
    /// Frames received: looked at where the device wrote them, and their buffers given
    /// back.
    #[serde(rename = "rx")]
    pub received: PeerSums,
}

/// Sums over a measurement of that driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSums {
    /// Frames, not 0.
    pub packets: u64,
    /// Guest instructions, waits left out.
    pub instructions: u64,
    /// Heap allocations.
    pub heap_allocations: u64,
}

impl PeerSums {
    /// Instructions a frame.
    pub fn each(&self) -> f64 {
        self.instructions as f64 / self.packets as f64
    }
}

/// The guest's line.
#[derive(Deserialize)]
struct Line {
    peer: PeerDriver,
}

/// The guest with that driver: the one that is `named`, else a build. Or why it is not
/// measured.
///
/// # Errors
/// It is not there, or cannot be built.
pub(super) fn kernel(
    settings: &Settings,
    named: Option<&Path>,
    sink: &mut Sink<'_>,
) -> Result<Result<PathBuf, &'static str>, SessionError> {
    if settings.kind == Kind::Microvm {
        return Ok(Err("it is measured by PCI, which microvm has not"));
    }
    if let Some(named) = named {
        SessionError::check_file("--peer-kernel", named)?;
        return Ok(Ok(named.to_owned()));
    }
    if settings.kernel.is_some() || settings.image.is_some() {
        return Ok(Err("nothing is built (--peer-kernel names one that is)"));
    }
    let options = BuildOptions::from_env(settings.policy)?;
    Ok(Ok(toolchain::build_kernel(
        Kernel::WithPeer,
        &options,
        sink,
    )?))
}

/// Measures it.
///
/// # Errors
/// The guest does not come up, stops, or reports no numbers.
pub(super) fn measure(mut prepared: Prepared, kernel: PathBuf) -> Result<PeerDriver, SessionError> {
    prepared.machine.boot = Boot::Kernel(kernel);
    let (line, guest) = by_guest(prepared, Bench::Peer, Prepared::connect_peer)?;
    read(&line).map_err(|error| wrong(&guest, &error))
}

fn read(line: &str) -> Result<PeerDriver, String> {
    let Line { peer } = parse_line(line)?;
    for sums in [peer.sent, peer.received] {
        if sums.packets == 0 || sums.instructions == 0 {
            return Err(format!("the guest measured nothing: '{line}'"));
        }
    }
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_line_is_read() {
        let line = "kickpath: bench {\"peer\":\
                    {\"tx\":{\"packets\":10,\"instructions\":3855,\"heap_allocations\":0},\
                    \"rx\":{\"packets\":5,\"instructions\":1660,\"heap_allocations\":1}}}";
        let peer = read(line).unwrap();
        assert_eq!((peer.sent.each(), peer.received.each()), (385.5, 332.0));
        for bad in ["", "kickpath: bench {}", &line.replace(":10,", ":0,")] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
