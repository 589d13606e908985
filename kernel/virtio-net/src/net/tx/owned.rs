//! Frames in memory apart from the slots' own: buffers that are filled now and
//! sent later, from another function or CPU, and memory of the caller's, which
//! goes through [`Hal::share`](virtio_drivers::Hal::share).

extern crate alloc;

use alloc::boxed::Box;
use core::mem;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::TxQueue;
use super::elsewhere::{FRAME_OFFSET, Memory, TxBuffer};
use crate::doorbell::Notify;
use crate::hal::{DmaRegion, Shared};
use crate::net::header::Header;
use crate::net::offload::Offload;

impl<H: Hal, N: Notify> TxQueue<H, N> {
    /// A buffer for a frame of up to [`Self::capacity`] bytes, to be filled and
    /// sent by [`Self::xmit_buffer`] whenever its owner likes; `None` when there
    /// is no memory. It is the owner's alone, and takes no room in the queue.
    pub fn take_buffer(&mut self) -> Option<TxBuffer<H>> {
        if let Some(buffer) = self.elsewhere.as_mut().and_then(|all| all.spare.pop()) {
            return Some(buffer);
        }
        let bytes = FRAME_OFFSET + self.capacity();
        let memory = DmaRegion::new(bytes, BufferDirection::DriverToDevice)?;
        Some(TxBuffer { memory })
    }

    /// Puts the frame of `length` bytes in a buffer into the queue; the rest is as
    /// for [`TxSlot::start_xmit_offloaded`](super::TxSlot::start_xmit_offloaded).
    ///
    /// # Errors
    ///
    /// The buffer, when there is no room; see [`Self::has_room`].
    pub fn xmit_buffer(
        &mut self,
        buffer: TxBuffer<H>,
        length: usize,
        offload: Option<Offload>,
    ) -> Result<(), TxBuffer<H>> {
        if !self.has_room() {
            return Err(buffer);
        }
        let header_length = self.buffers.header_length() as usize;
        let length = length
            .min(buffer.memory.size() - FRAME_OFFSET)
            .min(self.capacity());
        let header = self.request(offload);
        // SAFETY: the offset lies within the buffer, and its owner is here.
        let before = unsafe { buffer.memory.pointer().add(FRAME_OFFSET - header_length) };
        // SAFETY: the header ends where the frame begins.
        unsafe { write_header(before, header_length, header) };
        let address = buffer.memory.physical() + (FRAME_OFFSET - header_length) as PhysAddr;
        self.add_elsewhere(address, length, Memory::Buffer(buffer));
        Ok(())
    }

    /// Bytes before the frame that [`Self::xmit_shared`] wants for the header.
    pub fn headroom(&self) -> usize {
        self.buffers.header_length() as usize
    }

    /// Puts the frame in the caller's memory into the queue without a copy:
    /// [`Self::headroom`] bytes, which are written, and behind them the frame, of at most
    /// [`Self::capacity`] bytes. The memory is given up when the device has sent it.
    ///
    /// # Errors
    ///
    /// The memory, when there is no room, or no frame in it that can be sent.
    pub fn xmit_shared(
        &mut self,
        mut memory: Box<[u8]>,
        offload: Option<Offload>,
    ) -> Result<(), Box<[u8]>> {
        let length = memory.len().saturating_sub(self.headroom());
        if length == 0 || length > self.capacity() || !self.has_room() {
            return Err(memory);
        }
        let header = self.request(offload);
        let start = NonNull::from(&mut *memory).cast();
        // SAFETY: it is longer than the header.
        unsafe { write_header(start, self.headroom(), header) };
        let shared = Shared::new(memory);
        self.add_elsewhere(shared.physical(), length, Memory::Shared(shared));
        Ok(())
    }

    /// Adds a frame behind its header at `address`, in memory that is kept until
    /// its slot is free again. There is room.
    fn add_elsewhere(&mut self, address: PhysAddr, length: usize, memory: Memory<H>) {
        let Some(slot) = self.queue.ring().next_slot() else {
            return;
        };
        let elsewhere = self.elsewhere.get_or_insert_default();
        elsewhere.sent.push_back((slot, memory));
        // SAFETY: the memory is kept until the slot is free, and then the slot
        // gets its own back (`Elsewhere::reclaim`), or as long as the device
        // may use it (`TxQueue::lease`). At most the capacity.
        unsafe { self.add_at(address, length as u32) };
    }
}

/// Writes a header of `length` bytes, what is longer than [`Header`] with zeros.
///
/// # Safety
///
/// So many bytes can be written there.
unsafe fn write_header(at: NonNull<u8>, length: usize, header: Header) {
    debug_assert!(length >= mem::size_of::<Header>());
    // SAFETY: the caller's promise; every header is at least this long, and
    // needs no alignment.
    unsafe {
        at.write_bytes(0, length);
        at.cast::<Header>().write(header);
    }
}
