//! The driver's queues, explored.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Mutex;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::device::{FIRST_LENGTH, FIRST_WRITTEN, Queue, serve_packed, serve_split};
use super::memory::{Barrier, Side};
use super::search::{Fault, World, explore};
use crate::doorbell::Doorbell;
use crate::interrupt::{InterruptState, IsrRegister};
use crate::mmio;
use crate::queue::{
    Buffer, CommandRing, EventMode, PositionalRing, QueueError, QueueRing, RingLayout, RingShape,
    SlotBuffers, Virtqueue,
};

/// Chains that go through the queue, and descriptors that it has.
const CHAINS: u32 = 3;
const SIZE: u16 = 2;

/// The process's memory.
struct ModelHal;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap()
}

// SAFETY: it is memory of the heap, zeroed and by pages.
unsafe impl Hal for ModelHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the size is not 0.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).unwrap();
        (memory.addr().get() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: it came from `dma_alloc`.
        unsafe { dealloc(memory.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("no transport is here")
    }

    unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        unreachable!("the driver has memory of its own to share")
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Where the driver writes and reads registers.
static REGISTER: AtomicU32 = AtomicU32::new(0);
/// The interrupt status: a queue has used buffers.
static ISR: AtomicU32 = AtomicU32::new(1);

/// What is done with either kind of ring.
trait Chains: QueueRing {
    /// Before anything is added.
    fn prepare(&mut self) {}

    /// Adds a buffer of `length` bytes; returns its head, or id.
    fn add_one(queue: &mut Virtqueue<Self>, length: u32) -> u16;

    /// How many bytes were written into the next one that was used.
    fn pop_one(queue: &mut Virtqueue<Self>) -> Result<Option<u32>, QueueError>;
}

impl Chains for CommandRing<ModelHal> {
    fn add_one(queue: &mut Virtqueue<Self>, length: u32) -> u16 {
        let head = queue.ring().avail_idx() % SIZE;
        // SAFETY: this device touches no buffer.
        unsafe { queue.ring_mut().add(&[Buffer::new(0x1000, length, true)]) }.unwrap();
        head
    }

    fn pop_one(queue: &mut Virtqueue<Self>) -> Result<Option<u32>, QueueError> {
        queue.ring_mut().pop_used()
    }
}

impl Chains for PositionalRing<ModelHal> {
    fn prepare(&mut self) {
        let buffers = SlotBuffers {
            capacity: FIRST_LENGTH + CHAINS,
            writable: true,
            ..SlotBuffers::default()
        };
        // SAFETY: this device touches no buffer.
        unsafe { self.prepare(SIZE, buffers, |slot| 0x1000 * u64::from(slot + 1)) };
    }

    fn add_one(queue: &mut Virtqueue<Self>, length: u32) -> u16 {
        let slot = queue.ring().next_slot().unwrap();
        queue.ring_mut().add(length);
        slot
    }

    fn pop_one(queue: &mut Virtqueue<Self>) -> Result<Option<u32>, QueueError> {
        Ok(queue.ring_mut().pop_used()?.map(|used| used.length))
    }
}

/// Has [`CHAINS`] chains used, as the driver's queues do: filled, emptied by polls,
/// refilled, and asleep until an interrupt when nothing is to be done.
fn drive<R: Chains>(world: &World, ring: R, filled: bool) {
    let register = NonNull::from(&REGISTER).cast::<u32>();
    let isr = NonNull::from(&ISR).cast::<u8>();
    // SAFETY: both are memory that only takes it, for as long as the program runs.
    let (doorbell, isr) = unsafe { (Doorbell::mmio32(register, 0), IsrRegister::mmio(isr)) };
    let interrupts = InterruptState::new();
    let mut queue = Virtqueue::new(ring, doorbell);
    let (mut sent, mut popped) = (0, 0);
    let go_live = || {
        // SAFETY: it is memory that only takes it.
        unsafe { mmio::write(register, 4) };
        world.driver_ok();
    };
    if !filled {
        go_live();
    }
    let mut is_live = !filled;
    let mut owed = 0;
    loop {
        let before = sent;
        while sent < CHAINS && queue.ring().free() > 0 {
            world.note_added(R::add_one(&mut queue, FIRST_LENGTH + sent));
            sent += 1;
        }
        if sent > before {
            world.note_publishing(true);
            let wanted = queue.kick_prepare();
            world.note_publishing(false);
            if !core::mem::replace(&mut is_live, true) {
                go_live();
            }
            if wanted {
                queue.notify();
                world.signal(Side::Driver);
            }
        }
        queue.disable_interrupts();
        let before = popped;
        while let Some(written) =
            R::pop_one(&mut queue).unwrap_or_else(|_| world.fail(Fault::Stale))
        {
            if written != FIRST_WRITTEN + popped {
                world.fail(Fault::Stale);
            }
            popped += 1;
        }
        if popped == before && owed > popped as usize {
            world.fail(Fault::EarlyInterrupt);
        }
        owed = 0;
        if popped == CHAINS {
            return;
        }
        if (sent == CHAINS || queue.ring().free() == 0) && !queue.enable_interrupts() {
            world.wait(Side::Driver);
            interrupts.vp_interrupt(isr);
            owed = world.announced();
        }
    }
}

/// What may be explored.
#[derive(Clone, Copy, Debug)]
struct Form {
    layout: RingLayout,
    mode: EventMode,
    /// A [`PositionalRing`], else a [`CommandRing`].
    positional: bool,
    /// Filled before the device lives, as a receive queue; else empty until then, as
    /// a transmit queue.
    filled: bool,
}

impl Form {
    /// As [`explore`].
    fn explore(self, without: Option<(Barrier, Fault)>) -> (Option<Fault>, usize) {
        match self.positional {
            true => self.explore_ring::<PositionalRing<ModelHal>>(without),
            false => self.explore_ring::<CommandRing<ModelHal>>(without),
        }
    }

    fn explore_ring<R: Chains>(self, without: Option<(Barrier, Fault)>) -> (Option<Fault>, usize) {
        let shape = match self.layout {
            RingLayout::Split => RingShape::split(1, self.mode),
            RingLayout::Packed => RingShape::packed(1, self.mode),
        };
        let place = Mutex::new(None);
        let driver = |world: &World| {
            let mut ring = R::new(0, SIZE.into(), shape).unwrap();
            ring.prepare();
            *place.lock().unwrap() = Some(Queue {
                size: SIZE,
                areas: ring.areas(),
                event_idx: self.mode == EventMode::EventIdx,
            });
            drive(world, ring, self.filled);
        };
        let device = |world: &World| {
            // After DRIVER_OK, and so after the driver's first steps.
            if world.wait(Side::Device) {
                let queue = place.lock().unwrap().take().unwrap();
                match self.layout {
                    RingLayout::Split => serve_split(world, &queue),
                    RingLayout::Packed => serve_packed(world, &queue),
                }
            }
        };
        explore(without, driver, device)
    }

    fn all() -> impl Iterator<Item = [Self; 2]> {
        (0..8).map(|bits| {
            [false, true].map(|filled| Self {
                layout: [RingLayout::Split, RingLayout::Packed][bits & 1],
                mode: [EventMode::Flags, EventMode::EventIdx][bits >> 1 & 1],
                positional: bits >> 2 == 1,
                filled,
            })
        })
    }
}

#[test]
fn no_kick_and_no_interrupt_is_lost_and_nothing_old_is_read() {
    for form in Form::all().flatten() {
        let (fault, runs) = form.explore(None);
        std::println!("{form:?}: {runs} runs");
        assert_eq!(fault, None, "{form:?}, run {runs}");
        assert!(runs > 1000, "{form:?}: {runs} runs only");
    }
}

/// What goes wrong without each barrier is found in every layout and way to tell of
/// events.
#[test]
fn without_any_barrier_there_is_a_fault() {
    for forms in Form::all() {
        for without in [
            (Barrier::Publish, Fault::Stale),
            (Barrier::Consume, Fault::Stale),
            (Barrier::StoreLoad, Fault::LostKick),
            (Barrier::StoreLoad, Fault::LostInterrupt),
            (Barrier::BeforeRegister, Fault::Stale),
            (Barrier::AfterRegister, Fault::EarlyInterrupt),
        ] {
            // There the ring is looked at twice, with a barrier in between.
            let Form {
                layout, positional, ..
            } = forms[0];
            if positional && layout == RingLayout::Packed && without.0 == Barrier::AfterRegister {
                continue;
            }
            let found = forms.iter().any(|form| {
                let (fault, runs) = form.explore(Some(without));
                std::println!("{form:?} without {without:?}: {fault:?}, run {runs}");
                fault == Some(without.1)
            });
            assert!(found, "{forms:?} without {without:?}");
        }
    }
}
