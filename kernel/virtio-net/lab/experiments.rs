//! What is wrong in the experiments of `kickpath lab`: a few lines each, to be put
//! right. `kickpath lab run N` shows what they do, `kickpath lab check N` whether
//! they still do it. The numbers are those of the experiments.

/// Experiment 1: whether the doorbell is rung for new buffers. `wanted`: the device asked to be
/// told of them.
pub(super) fn rings(_wanted: bool) -> bool {
    false
}

/// Experiment 2: the number that is written into the notification register. `queue`: the number
/// of the queue that has new buffers.
pub(super) fn number_to_write(queue: u16) -> u16 {
    queue & !1
}

/// A step on a frame's way to the device.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Step {
    /// The descriptor and the entry of the available ring are written.
    WriteEntry,
    /// The available index is moved: the entry is the device's.
    PublishIndex,
    /// The doorbell is rung.
    Kick,
}

/// Experiment 3: the order of the steps.
pub(crate) const STEPS: [Step; 3] = [Step::PublishIndex, Step::Kick, Step::WriteEntry];

/// What a driver does before it decides about a kick.
#[derive(PartialEq)]
pub(super) enum Access {
    /// The available index is stored.
    StoreIndex,
    /// `avail_event` is read: the index at which the device wants to be told.
    ReadEvent,
}

/// Experiment 4: the order in which the two take effect. A CPU without a barrier may change it.
pub(super) const ORDER: [Access; 2] = [Access::ReadEvent, Access::StoreIndex];

/// Experiment 5: whether the device wants to be told, at `event`, that the available index moved
/// from `old` to `new`. All three are 16 bits wide: 0 follows 65535.
pub(super) fn need_event(event: u16, new: u16, old: u16) -> bool {
    old <= event && event < new
}

/// Experiment 6: whether the doorbell is rung. `wanted`: `avail_event` lies in what was added.
pub(super) fn obeys(_wanted: bool) -> bool {
    true
}

/// Experiment 7: whether to poll again instead of going to sleep, once interrupts are enabled.
/// `used`: the device has used something by now.
pub(super) fn polls_again(_used: bool) -> bool {
    false
}

/// Experiment 8: whether used buffers are taken back. `used`: there are some.
pub(super) fn takes_back(_used: bool) -> bool {
    false
}

/// Experiment 9: bytes that the descriptor of a frame has, of a header of `header` and a frame of
/// `frame` bytes.
pub(super) fn descriptor_length(_header: u32, frame: u32) -> u32 {
    frame
}

/// Experiment 10: where a buffer begins for the device, in bytes before the frame. `header`: so
/// long is `struct virtio_net_hdr`, which lies there.
pub(super) fn header_before_frame(_header: u32) -> u32 {
    0
}

/// Experiment 11: whether the id of a used entry is believed. `outstanding`: it is one that the
/// device has.
pub(super) fn believes(_outstanding: bool) -> bool {
    true
}
