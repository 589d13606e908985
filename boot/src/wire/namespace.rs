//! What is known of the network namespace of a tap from both sides: its maker's and its
//! user's.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// Name of the tap device inside.
pub(super) const DEVICE: &str = "tap0";

/// Moves this thread into the namespace of this file. Threads are not given back.
pub(super) fn enter(file: &Path) -> io::Result<()> {
    setns(File::open(file)?, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
