//! Several stacks with one address, each behind a queue of the same device: what
//! one of them hears and all must know, or another one must.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Frames that are kept between two looks at them.
const MAX_FRAMES: usize = 16;
/// Longest frame that is kept, in bytes: no message of address resolution or
/// configuration is longer than what every Ethernet carries.
const MAX_LENGTH: usize = 1514;
/// Longest stray segment that is kept, in bytes: an Ethernet header and an IP
/// packet as large as segmentation offloads make it.
const MAX_STRAY_LENGTH: usize = 14 + 65_535;

#[derive(Default)]
pub(crate) struct ForOthers {
    /// There are other stacks.
    pub(crate) on: bool,
    frames: Vec<Box<[u8]>>,
    strays: Vec<Box<[u8]>>,
}

impl ForOthers {
    /// Keeps a frame that concerns all.
    #[cold]
    pub(crate) fn keep(&mut self, frame: &[u8]) {
        if self.on && self.frames.len() < MAX_FRAMES && frame.len() <= MAX_LENGTH {
            self.frames.push(frame.into());
        }
    }

    pub(crate) fn take(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        core::mem::take(&mut self.frames).into_iter()
    }

    /// Keeps a segment of a connection that this stack does not have. Without
    /// room or memory it is lost, and its sender will send it again.
    #[cold]
    pub(crate) fn keep_stray(&mut self, frame: &[u8]) {
        let mut copy = Vec::new();
        if self.strays.len() < MAX_FRAMES
            && frame.len() <= MAX_STRAY_LENGTH
            && copy.try_reserve_exact(frame.len()).is_ok()
        {
            copy.extend_from_slice(frame);
            self.strays.push(copy.into_boxed_slice());
        }
    }

    pub(crate) fn take_strays(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        core::mem::take(&mut self.strays).into_iter()
    }
}
