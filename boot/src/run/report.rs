//! The story of a run, in words.

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use kickpath_abi::status::{Counters, Interrupts, Status};

use super::{Report, UdpResult};
use crate::qemu::{Boot, Vmm};
use crate::session::Prepared;
use crate::terminal::{Story, thousands};
use crate::wire::PingReport;

pub(super) fn machine<W: Write>(story: &mut Story<W>, prepared: &Prepared) -> io::Result<()> {
    let machine = &prepared.machine;
    story.section("Machine")?;
    story.row("Accelerator", &prepared.decision.to_string())?;
    let cpus = match machine.cpus {
        1 => "1 CPU".to_owned(),
        n => format!("{n} CPUs"),
    };
    let nic = "virtio-net";
    let what = match machine.vmm {
        Vmm::Qemu => machine.kind.to_string(),
        vmm => vmm.to_string(),
    };
    story.row(
        "Hardware",
        &format!("{what}, {cpus}, {} of memory, {nic}", machine.memory),
    )?;
    let boot = match &machine.boot {
        Boot::Kernel(kernel) => kernel.display(),
        Boot::Disk(image) => image.file.display(),
        Boot::Linux(linux) => linux.kernel.display(),
    };
    story.row("Guest", &boot.to_string())
}

pub(super) fn boot<W: Write>(
    story: &mut Story<W>,
    status: &Status,
    report: &Report,
) -> io::Result<()> {
    let boot = &status.boot;
    let vmm = &report.vmm;
    story.section("Boot")?;
    story.columns(
        "stage",
        "     took     ended, since the guest's first instruction",
    )?;
    let mut before = 0;
    for stage in &boot.stages {
        let took = micros(stage.end_us.saturating_sub(before));
        before = stage.end_us;
        let end = micros(before);
        story.columns(&stage.name, &format!("{took:>12} {end:>12}"))?;
    }
    story.row(
        "Up",
        &format!(
            "{} ms after the start of {vmm} {}, by {}; the rest was firmware and {vmm} itself",
            thousands(report.up_after_ms.round() as u64),
            report.vmm_version,
            if boot.protocol.is_empty() {
                "an unknown entry"
            } else {
                &boot.protocol
            },
        ),
    )?;
    story.row(
        "Clock",
        &format!(
            "TSC at {:.3} MHz, said by {}",
            boot.tsc_hz as f64 / 1e6,
            boot.tsc_source
        ),
    )?;
    let network = &status.network;
    let addresses: Vec<&str> = network
        .ipv4
        .iter()
        .chain(&network.ipv6)
        .map(String::as_str)
        .collect();
    story.row(
        "Addresses",
        &format!("{} (IPv4: {})", addresses.join(", "), network.ipv4_source),
    )
}

/// What the guest found wrong, if anything.
pub(super) fn warnings<W: Write>(story: &mut Story<W>, warnings: &[String]) -> io::Result<()> {
    let mut label = "Guest says";
    for warning in warnings {
        story.verdict(label, false, warning)?;
        label = "";
    }
    Ok(())
}

pub(super) fn device<W: Write>(story: &mut Story<W>, status: &Status) -> io::Result<()> {
    let device = &status.device;
    story.section("Device")?;
    let link = if device.link_up { "up" } else { "down" };
    story.row(
        "Found",
        &format!(
            "{}, id {}, MAC {}, MTU {}, link {link}",
            device.location, device.id, device.mac, device.mtu
        ),
    )?;
    story.row("Offers", &list(&device.features_offered))?;
    story.row("Negotiated", &list(&device.features_negotiated))?;
    let transport = match device.transport.as_str() {
        "legacy" => "legacy virtio-pci",
        "modern" => "modern virtio-pci",
        "mmio" => "virtio-mmio, no PCI",
        other => other,
    };
    story.row(
        "Transport",
        &format!("{transport}; registers: {}", device.transport_place),
    )?;
    let others = match device.alternative_kicks.as_slice() {
        [] => "the device offers no other transport".to_owned(),
        kicks => format!("{} (--transport takes it)", kicks.join(", ")),
    };
    story.row("Others", &others)?;
    story.row(
        "Kick",
        &format!("{} (one instruction, one VM exit)", device.doorbell),
    )?;
    let queues: Vec<String> = status
        .queues
        .iter()
        .map(|queue| format!("{} {}", queue.name, queue.size))
        .collect();
    story.row("Queues", &format!("{} descriptors", queues.join(", ")))?;
    story.row("Interrupts", &ladder(&status.interrupts))
}

fn ladder(interrupts: &Interrupts) -> String {
    let tried: Vec<String> = interrupts
        .attempts
        .iter()
        .map(|attempt| format!("{} ({})", attempt.rung, attempt.outcome))
        .collect();
    let rung = match interrupts.rung.as_str() {
        "msix" => "MSI-X, a vector a queue",
        "msix-shared" => "MSI-X, one vector for all queues",
        "intx" => "the INTx line",
        "poll" => "none: the guest polls",
        other => other,
    };
    format!("{rung}; rungs tried: {}", tried.join(", "))
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(" ")
    }
}

pub(super) fn ping(report: &PingReport) -> String {
    let mut text = format!("{} of {} replies", report.received, report.sent);
    if report.received > 0 {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        text += &format!(
            ", round trip min {:.3} avg {:.3} max {:.3} ms",
            ms(report.min),
            ms(report.average()),
            ms(report.max)
        );
    }
    if report.corrupted > 0 {
        text += &format!(", {} damaged", report.corrupted);
    }
    text
}

pub(super) fn udp(results: &[UdpResult]) -> String {
    let words: Vec<String> = results
        .iter()
        .map(|result| match &result.error {
            None => format!("{} B intact", result.bytes),
            Some(error) => error.clone(),
        })
        .collect();
    words.join(", ")
}

pub(super) fn http(ip: IpAddr, status: u16, bytes: usize, content_type: &str) -> String {
    let bytes = thousands(bytes as u64);
    format!("GET http://{ip}/ gave {status}, {bytes} bytes of {content_type}")
}

pub(super) fn counters<W: Write>(story: &mut Story<W>, counters: &Counters) -> io::Result<()> {
    story.section("What it took")?;
    story.row(
        "Packets",
        &format!(
            "{} out, {} in",
            thousands(counters.tx_packets),
            thousands(counters.rx_packets)
        ),
    )?;
    story.row(
        "Kicks",
        &format!(
            "{} (each one VM exit), {} more suppressed: the device was busy already",
            thousands(counters.kicks),
            thousands(counters.kicks_suppressed)
        ),
    )?;
    story.row(
        "Interrupts",
        &format!(
            "{}, and {} with ISR status 0",
            thousands(counters.interrupts),
            thousands(counters.interrupts_spurious)
        ),
    )?;
    story.row(
        "Registers",
        &format!(
            "{} accesses to the device since boot, kicks included",
            thousands(counters.register_accesses)
        ),
    )
}

pub(super) fn end<W: Write>(story: &mut Story<W>) -> io::Result<()> {
    story.conclusion(true, "Every reply came back intact.")?;
    story.section("Next")?;
    for (command, what) in [
        (
            "cargo run -- serve",
            "keep the guest up: its page in your browser",
        ),
        (
            "cargo run -- --pcap run.pcap",
            "record every frame for Wireshark",
        ),
        (
            "cargo run -- --irq intx",
            "take another rung of the interrupt ladder",
        ),
        (
            "cargo run -- trace",
            "one packet, step by step, through every layer",
        ),
        ("cargo run -- bench", "count what a packet costs"),
        ("cargo run -- --help", "all the rest"),
    ] {
        story.line(&format!("  {command:30} {what}"))?;
    }
    Ok(())
}

fn micros(us: u64) -> String {
    format!("{}.{:03} ms", thousands(us / 1000), us % 1000)
}
