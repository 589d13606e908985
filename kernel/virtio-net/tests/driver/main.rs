//! The driver against the other side of its interface.
//!
//! - Rings: rust-vmm's `virtio-queue` is the device. It shares nothing with
//!   the driver but the specification.
//! - Registers: a model of a legacy virtio-pci network device, ports and
//!   configuration space, whose queues are `virtio-queue`'s; and models of the
//!   registers of a modern one and of virtio-mmio.
//!
//! Both share a guest's memory with the driver, whose `Hal` is
//! [`support::memory::GuestHal`].

mod support;

mod find_vqs;
mod legacy_pci;
mod mmio;
mod modern_ladder;
mod modern_pci;
mod modern_structures;
mod msix;
mod net_control;
mod net_faults;
mod net_filter;
mod net_lifecycle;
mod net_merge;
mod net_netpoll;
mod net_offload;
mod net_pairs;
mod net_rss;
mod net_smoltcp;
mod net_super_frames;
mod net_traffic;
mod ring;
mod ring_events;
mod ring_in_order;
mod ring_malicious;
mod ring_packed;
mod ring_packed_malicious;
mod ring_threads;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86_ports;
