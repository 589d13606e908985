//! The guest in QEMU, and a host at the other end of its cable.
//!
//! `cargo test -p kickpath-tests --test guest` runs all of it, `... -- NAME` the
//! tests whose name contains NAME. Nothing has to be installed before: see
//! `kickpath_tests::setup`. What a test needs and this machine has not is said
//! for each test that was skipped.

mod boot;
mod connections;
mod control;
mod devices;
mod dhcp;
mod faults;
mod features;
mod hostile;
mod http;
mod images;
mod interrupts;
mod kvm;
mod link;
mod linux;
mod mtu;
mod netconsole;
mod offloads;
mod other_drivers;
mod queues;
mod reopen;
mod runner;
mod services;
mod site;
mod smp;
mod trace;
mod transmit_queue;
mod transports;

use std::process::ExitCode;

use kickpath_tests::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    // The longest first, so that the two that run at a time end together.
    images::add(&mut suite);
    kvm::add(&mut suite);
    services::add(&mut suite);
    http::add(&mut suite);
    interrupts::add(&mut suite);
    transports::add(&mut suite);
    features::add(&mut suite);
    devices::add(&mut suite);
    hostile::add(&mut suite);
    connections::add(&mut suite);
    control::add(&mut suite);
    trace::add(&mut suite);
    transmit_queue::add(&mut suite);
    queues::add(&mut suite);
    link::add(&mut suite);
    netconsole::add(&mut suite);
    reopen::add(&mut suite);
    mtu::add(&mut suite);
    dhcp::add(&mut suite);
    boot::add(&mut suite);
    faults::add(&mut suite);
    smp::add(&mut suite);
    other_drivers::add(&mut suite);
    linux::add(&mut suite);
    offloads::add(&mut suite);
    runner::add(&mut suite);
    suite.run()
}
