//! How much stack the driver needs: a kernel's may have few pages.
//!
//! The device is one that does nothing and needs hardly any stack itself. What is
//! measured has to be optimised, as it is in a kernel; `.ci/run` does that.

#[path = "driver/support/inert.rs"]
mod inert;

use std::alloc::{GlobalAlloc, Layout, alloc_zeroed, dealloc};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use inert::{InertTransport, Notes};
use kickpath_virtio_net::interrupt::InterruptState;
use kickpath_virtio_net::net::{Features, NetError, Options, VirtioNet};
use kickpath_virtio_net::transport::adapter::Adapter;
use kickpath_virtio_net::vectors::{NoInterrupts, Rung};
use kickpath_virtio_net::virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Bytes that `open` may take.
const MOST: usize = 2048;

/// A heap that gives nothing away twice and needs hardly any stack: the C
/// library's takes more than the driver.
struct Bump;

static MEMORY: Memory = Memory(UnsafeCell::new([0; 256 << 20]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

struct Memory(UnsafeCell<[u8; 256 << 20]>);

// SAFETY: every part is handed out once.
unsafe impl Sync for Memory {}

// SAFETY: parts do not overlap, and are aligned as asked for.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let wanted = layout.size() + layout.align();
        let at = TAKEN.fetch_add(wanted, Ordering::Relaxed);
        let memory = MEMORY.0.get().cast::<u8>();
        if at + wanted > size_of::<Memory>() {
            return ptr::null_mut();
        }
        let first = memory.wrapping_add(at);
        first.wrapping_add(first.align_offset(layout.align()))
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Bump = Bump;

/// The heap of this process; a device would not find it.
struct HeapHal;

fn pages(count: usize) -> Layout {
    Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).unwrap()
}

// SAFETY: `dma_alloc` gives zeroed pages that nothing else has.
unsafe impl Hal for HeapHal {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the driver asks for one page at least.
        let memory = NonNull::new(unsafe { alloc_zeroed(pages(count)) }).unwrap();
        (memory.as_ptr().expose_provenance() as PhysAddr, memory)
    }
    unsafe fn dma_dealloc(_: PhysAddr, memory: NonNull<u8>, count: usize) -> i32 {
        // SAFETY: the caller got it from `dma_alloc`.
        unsafe { dealloc(memory.as_ptr(), pages(count)) };
        0
    }
    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("there are no registers")
    }
    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().expose_provenance() as PhysAddr
    }
    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Bytes of stack that `work` takes in a thread of its own, the thread's
/// beginning included: a stack of ours is painted before and looked at afterwards.
fn stack_of(work: impl FnOnce() + Send) -> usize {
    const SIZE: usize = 512 << 10;
    const PAINT: u8 = 0xa5;
    extern "C" fn run<F: FnOnce()>(work: *mut c_void) -> *mut c_void {
        // SAFETY: `stack_of` passes this, and waits.
        if let Some(work) = unsafe { (*work.cast::<Option<F>>()).take() } {
            work();
        }
        ptr::null_mut()
    }
    fn start<F: FnOnce()>(_: &Option<F>) -> extern "C" fn(*mut c_void) -> *mut c_void {
        run::<F>
    }
    let layout = Layout::from_size_align(SIZE, PAGE_SIZE).unwrap();
    let mut work = Some(work);
    let run = start(&work);
    // SAFETY: the stack is a fresh allocation, which is looked at and given back
    // only when the thread has ended; so is `work`. The attributes are
    // initialised before they are used.
    unsafe {
        let stack = alloc_zeroed(layout);
        stack.write_bytes(PAINT, SIZE);
        let mut attributes = std::mem::zeroed();
        let mut thread = std::mem::zeroed();
        assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
        let set = libc::pthread_attr_setstack(&mut attributes, stack.cast(), SIZE);
        assert_eq!(set, 0);
        let argument = ptr::from_mut(&mut work).cast();
        let created = libc::pthread_create(&mut thread, &attributes, run, argument);
        assert_eq!(created, 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        libc::pthread_attr_destroy(&mut attributes);
        let untouched = (0..SIZE).take_while(|&at| stack.add(at).read() == PAINT);
        let untouched = untouched.count();
        dealloc(stack, layout);
        SIZE - untouched
    }
}

/// The measure is one: what a thread puts on its stack is seen.
#[test]
fn what_is_on_the_stack_is_counted() {
    let nothing = stack_of(|| ());
    for size in [1000, 30_000] {
        let used = match size {
            1000 => stack_of(|| _ = std::hint::black_box([1_u8; 1000])),
            _ => stack_of(|| _ = std::hint::black_box([1_u8; 30_000])),
        };
        assert!(used >= nothing + size / 2, "{used}, {nothing} without");
        assert!(
            used <= nothing + 2 * size + 4096,
            "{used}, {nothing} without"
        );
    }
}

/// Over both forms of rings, with and without all that a caller can serve.
#[test]
#[cfg_attr(debug_assertions, ignore = "not optimised: see .ci/run")]
fn open_takes_little_stack() {
    let packed = Features::RING_PACKED;
    let all = Features::IMPLEMENTED - Features::ACCESS_PLATFORM - packed;
    for offered in [
        Features::VERSION_1,
        packed | Features::VERSION_1,
        all,
        all | packed,
    ] {
        let notes = Notes::default();
        let transport = InertTransport {
            offered: offered.bits() as u64,
            notes: &notes,
        };
        let transport = Adapter::new(transport);
        let options = Options::serving(Features::all());
        let state = Box::new(InterruptState::new());
        let net = VirtioNet::<HeapHal, _, _>::probe(transport, options, state);
        let mut net = net.unwrap_or_else(|error| panic!("{offered}: {error}"));
        // Nobody answers its commands.
        net.set_control_patience(1);
        let mut opened = Err(NetError::NotOpen);
        let used = stack_of(|| opened = net.open(&mut NoInterrupts, Rung::Polling));
        let used = used - stack_of(|| ());
        opened.unwrap_or_else(|error| panic!("{offered}: {error}"));
        println!("open takes {used} bytes of stack: {offered}");
        assert!(used <= MOST, "{used} bytes of stack: {offered}");
    }
}
