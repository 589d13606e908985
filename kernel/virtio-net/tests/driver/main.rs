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

// As the rest of the workspace calls it.
extern crate kickpath_virtio_net as virtio_net;

mod support;

mod adapter;
mod doorbell;
mod features;
mod flow;
mod hashes;
mod legacy_pci;
mod mapping;
mod mmio;
mod moderation;
mod modern_pci;
mod modern_structures;
mod msix;
mod net_control;
mod net_faults;
mod net_filter;
mod net_halves;
mod net_lifecycle;
mod net_merge;
mod net_netpoll;
mod net_offload;
mod net_owned;
mod net_pairs;
mod net_rss;
mod net_smoltcp;
mod net_super_frames;
mod net_swapped;
mod net_traffic;
mod net_watchdog;
mod ring;
mod ring_command;
mod ring_events;
mod ring_malicious;
mod ring_packed;
mod ring_positional;
mod ring_positional_malicious;
mod ring_threads;
mod trace_symbols;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86_ports;
