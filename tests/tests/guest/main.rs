//! The guest in QEMU, and a host at the other end of its cable.
//!
//! `cargo test -p kickpath-tests --test guest` runs all of it, `... -- NAME` the
//! tests whose name contains NAME. What does not depend on the transport runs
//! over each of them: `... -- legacy::`, `modern::`, `modern_port_notify::`,
//! `mmio_v1::` and `mmio_v2::` run what belongs to one. Nothing has to be installed before: see
//! `kickpath_tests::setup`. What a test needs and this machine has not is said
//! for each test that was skipped.

mod any_cpu;
mod bench;
mod boot;
mod bzimage;
mod checksums;
mod compiled;
mod connections;
mod control;
mod devices;
mod dhcp;
mod disks;
mod endings;
mod evidence;
mod experiments;
mod far_ends;
mod faults;
mod features;
mod gdb;
mod host;
mod hostile;
mod hosts;
mod hotplug;
mod http;
mod idle;
mod images;
mod interrupts;
mod kvm;
mod link;
mod linux;
mod linux_guest;
mod loader;
mod mtu;
mod multiqueue;
mod nested;
mod netconsole;
mod networks;
mod offloads;
mod other_drivers;
mod packet_socket;
mod queues;
mod receive_filter;
mod recovery;
mod reopen;
mod rss;
mod runner;
mod services;
mod site;
mod smp;
mod super_frames;
mod trace;
mod transmit_queue;
mod transports;
mod untraced;
mod vmm;
mod watchdog;

use std::process::ExitCode;

use kickpath_tests::{Suite, Way};

fn main() -> ExitCode {
    let mut suite = Suite::default();
    // The longest first, so that those that run at a time end together.
    suite.over_every_transport(kvm::add);
    kvm::add_clock_and_line(&mut suite);
    nested::add(&mut suite);
    linux_guest::add(&mut suite);
    bench::add(&mut suite);
    images::add(&mut suite);
    any_cpu::add(&mut suite);
    experiments::add(&mut suite);
    bzimage::add(&mut suite);
    suite.over_every_transport(|suite| {
        connections::add(suite);
        services::add(suite);
        hostile::add(suite);
        reopen::add(suite);
        link::add(suite);
        transmit_queue::add(suite);
        watchdog::add(suite);
        http::add(suite);
        interrupts::add(suite);
        control::add(suite);
        receive_filter::add(suite);
        queues::add(suite);
        features::add(suite);
        if suite.way().is_pci() {
            devices::add_places(suite);
        }
        netconsole::add(suite);
        mtu::add(suite);
        dhcp::add(suite);
        boot::add(suite);
        smp::add(suite);
        multiqueue::add(suite);
        linux::add(suite);
        offloads::add(suite);
        super_frames::add(suite);
    });
    for way in [Way::Legacy, Way::Modern, Way::MmioV1, Way::MmioV2] {
        suite.over(way, host::add);
        suite.over(way, recovery::add);
    }
    hostile::add_floods(&mut suite);
    // What has one transport of its own, or nothing to do with any.
    trace::add(&mut suite);
    gdb::add(&mut suite);
    runner::add(&mut suite);
    disks::add(&mut suite);
    endings::add(&mut suite);
    transports::add(&mut suite);
    untraced::add(&mut suite);
    idle::add(&mut suite);
    boot::add_clocks(&mut suite);
    devices::add(&mut suite);
    hosts::add(&mut suite);
    hotplug::add(&mut suite);
    boot::add_words(&mut suite);
    far_ends::add(&mut suite);
    vmm::add(&mut suite);
    faults::add(&mut suite);
    smp::add_faults(&mut suite);
    multiqueue::add_faults(&mut suite);
    rss::add(&mut suite);
    other_drivers::add(&mut suite);
    offloads::add_costs(&mut suite);
    checksums::add(&mut suite);
    networks::add(&mut suite);
    suite.run()
}
