//! The driver's device and memory for this benchmark: a vhost-user back end
//! reached over a Unix socket, and memory that both processes map.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use virtio_net::doorbell::Notify;
use virtio_net::interrupt::IsrRegister;
use virtio_net::net::Features;
use virtio_net::transport::{ConfigOps, RingAddresses, TransportError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// First address of the shared memory as the device sees it. Not 0, which a
/// `Hal` gives when it has no memory.
const BASE: u64 = 0x10_0000;
/// Shared memory in bytes.
const SIZE: usize = 64 << 20;
/// Queues of a device without a control queue.
const QUEUES: usize = 2;
/// Largest queue, as QEMU's default.
const QUEUE_SIZE: u32 = 256;

/// Features that the device end of the protocol, which is this file and the back
/// end together, can serve. The control queue and the link's state are a front
/// end's part, which is not here.
const SERVED: Features = Features::MRG_RXBUF
    .union(Features::CSUM)
    .union(Features::GUEST_CSUM)
    .union(Features::VERSION_1)
    .union(Features::ANY_LAYOUT)
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX)
    .union(Features::IN_ORDER)
    .union(Features::RING_PACKED);

/// The memory that the back end maps too.
struct Shared {
    memory: GuestMemoryMmap<()>,
    /// Which pages are in use.
    pages: Mutex<Vec<bool>>,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let file = File::from(
            memfd_create(c"kickpath-rings", MFdFlags::MFD_CLOEXEC).expect("memfd_create"),
        );
        file.set_len(SIZE as u64).expect("no memory to share");
        let range = (GuestAddress(BASE), SIZE, Some(FileOffset::new(file, 0)));
        Shared {
            memory: GuestMemoryMmap::from_ranges_with_files([range])
                .expect("the shared memory cannot be mapped"),
            pages: Mutex::new(vec![false; SIZE / PAGE_SIZE]),
        }
    })
}

/// Memory that the back end maps too.
pub struct SharedHal;

// SAFETY: every allocation is a run of pages of the mapping that no other one
// has, zeroed; the mapping stays as long as the program.
unsafe impl Hal for SharedHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let shared = shared();
        let mut used = shared.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let free = used
            .windows(pages)
            .position(|run| run.iter().all(|used| !used));
        let Some(first) = free else {
            return (0, NonNull::dangling());
        };
        used[first..first + pages].fill(true);
        let address = BASE + (first * PAGE_SIZE) as u64;
        let pointer = shared.memory.get_host_address(GuestAddress(address));
        let Some(pointer) = pointer.ok().and_then(NonNull::new) else {
            return (0, NonNull::dangling());
        };
        // SAFETY: the pages are in the mapping, and nobody else has them.
        unsafe { pointer.write_bytes(0, pages * PAGE_SIZE) };
        (address, pointer)
    }

    unsafe fn dma_dealloc(physical: PhysAddr, _pointer: NonNull<u8>, pages: usize) -> i32 {
        let first = (physical - BASE) as usize / PAGE_SIZE;
        let mut used = shared()
            .pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        used[first..first + pages].fill(false);
        0
    }

    unsafe fn mmio_phys_to_virt(_physical: PhysAddr, _size: usize) -> NonNull<u8> {
        // No transport here has registers in memory.
        NonNull::dangling()
    }

    unsafe fn share(_buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        0
    }

    unsafe fn unshare(_physical: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// The back end as the driver's transport.
pub struct VhostUser {
    back_end: Frontend,
    kicks: [EventFd; QUEUES],
    calls: [EventFd; QUEUES],
    /// What the back end offers and this front end can serve with it.
    offered: Features,
    status: DeviceStatus,
    /// Queues whose rings the back end has.
    started: [bool; QUEUES],
}

impl VhostUser {
    /// Connects to the back end that listens at `socket`, and offers nothing
    /// outside `allowed`.
    ///
    /// # Errors
    /// It does not answer, or not by the protocol.
    pub fn connect(socket: &Path, allowed: Features) -> Result<Self> {
        let back_end = Frontend::connect(socket, QUEUES as u64)
            .with_context(|| format!("no vhost-user back end at {}", socket.display()))?;
        let offered = back_end.get_features()?;
        back_end.set_owner()?;
        let event = || EventFd::new(EFD_NONBLOCK);
        Ok(Self {
            back_end,
            kicks: [event()?, event()?],
            calls: [event()?, event()?],
            offered: Features::from_bits_truncate(offered.into()) & SERVED & allowed,
            status: DeviceStatus::empty(),
            started: [false; QUEUES],
        })
    }

    /// Gives the back end one queue; its first kick starts it.
    fn start(&mut self, queue: usize, rings: RingAddresses) -> Result<(), vhost::Error> {
        let region = shared().memory.find_region(GuestAddress(BASE));
        let region = region.ok_or(vhost::Error::InvalidGuestMemoryRegion)?;
        if self.started == [false; QUEUES] {
            let info = VhostUserMemoryRegionInfo::from_guest_region(region)?;
            self.back_end.set_mem_table(&[info])?;
        }
        // The rings go by this process's addresses.
        let own = |address: PhysAddr| region.as_ptr() as u64 + (address - BASE);
        self.back_end.set_vring_num(queue, rings.size)?;
        // In the packed layout bit 15 is the wrap counter, which begins as 1.
        let packed = self.offered.contains(Features::RING_PACKED);
        self.back_end
            .set_vring_base(queue, u16::from(packed) << 15)?;
        self.back_end.set_vring_addr(
            queue,
            &VringConfigData {
                queue_max_size: QUEUE_SIZE as u16,
                queue_size: rings.size,
                flags: 0,
                desc_table_addr: own(rings.descriptors),
                used_ring_addr: own(rings.device),
                avail_ring_addr: own(rings.driver),
                log_addr: None,
            },
        )?;
        self.back_end.set_vring_call(queue, &self.calls[queue])?;
        self.back_end.set_vring_kick(queue, &self.kicks[queue])?;
        self.started[queue] = true;
        Ok(())
    }
}

impl Transport for VhostUser {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }
    fn read_device_features(&mut self) -> u64 {
        self.offered.bits() as u64
    }
    fn write_driver_features(&mut self, _driver_features: u64) {}
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        if usize::from(queue) < QUEUES {
            QUEUE_SIZE
        } else {
            0
        }
    }
    fn notify(&mut self, queue: u16) {
        // The counter of an eventfd is full at 2^64 - 1 only.
        let _ = self.kicks[usize::from(queue)].write(1);
    }
    fn get_status(&self) -> DeviceStatus {
        self.status
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.status = status;
    }
    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, _: u16, _: u32, _: PhysAddr, _: PhysAddr, _: PhysAddr) {}
    fn queue_unset(&mut self, _queue: u16) {}
    fn queue_used(&mut self, queue: u16) -> bool {
        self.started.get(usize::from(queue)) == Some(&true)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, _offset: usize) -> Result<T, Error> {
        // No feature that has a field in it is served.
        Err(Error::ConfigSpaceMissing)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> Result<(), Error> {
        Err(Error::ConfigSpaceMissing)
    }
}

/// The notify hook of a queue at a back end that polls.
#[derive(Clone, Copy)]
pub struct NoBell(u16);

impl Notify for NoBell {
    fn queue(&self) -> u16 {
        self.0
    }
    fn ring(&self) {}
}

impl fmt::Display for NoBell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing: the back end polls")
    }
}

impl ConfigOps for VhostUser {
    type Notify = NoBell;

    fn bus_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vhost-user")
    }
    fn reset(&mut self) -> Result<(), TransportError> {
        for (queue, started) in self.started.iter_mut().enumerate() {
            if core::mem::take(started) {
                // It stops the queue; the answer comes when it has.
                let _ = self.back_end.get_vring_base(queue);
            }
        }
        self.status = DeviceStatus::empty();
        Ok(())
    }
    fn finalize_features(&mut self, features: u64) -> Result<(), TransportError> {
        self.back_end
            .set_features(features)
            .map_err(|_| TransportError::FeaturesRefused { features })
    }
    fn setup_queue(&mut self, queue: u16, rings: RingAddresses) -> Result<NoBell, TransportError> {
        self.start(usize::from(queue), rings)
            .map_err(|_| TransportError::QueueNotEnabled { queue })?;
        Ok(NoBell(queue))
    }
    fn isr(&self) -> Option<IsrRegister> {
        None
    }
    fn register_accesses(&self) -> u64 {
        0
    }
}
