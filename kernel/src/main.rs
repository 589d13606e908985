//! Kickpath's guest: a unikernel around the virtio-net driver.
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod backlog;
mod config;
mod console;
mod entry;
mod fw_cfg;
mod memory;
mod net;
#[cfg(feature = "peer")]
mod other_drivers;
mod pci;
mod selftest;
mod stages;
mod virtio;
mod virtio_mmio;

use alloc::string::ToString;
use core::panic::PanicInfo;

use arch::Exit;
use arch::time::{self, Frequency};
use entry::Platform;
use kickpath_abi::config::{Config, SelfTest, SelfTestAt};
use kickpath_abi::status::Boot;
use spin::Once;

static PLATFORM: Once<Platform> = Once::new();

/// What the loader told.
///
/// # Panics
///
/// Before [`start`].
fn platform() -> &'static Platform {
    PLATFORM.get().expect("the platform is not known yet")
}

/// Every entry point ends here, on the loader's page tables.
fn start(platform: Platform) -> ! {
    arch::init_descriptors();
    console::init();
    stages::ended("entry");
    memory::take_over(PLATFORM.call_once(|| platform), run)
}

/// Continues on the kernel's own page tables and stack.
extern "C" fn run() -> ! {
    let platform = platform();
    memory::init_heap();
    stages::ended("memory");

    let tables = arch::firmware_tables(platform.rsdp);
    arch::interrupts::init(&tables);
    stages::ended("interrupts");

    time::init(tables.pm_timer);
    stages::ended("clock");

    let cpus = arch::smp::start_others(&tables);
    if cpus > 1 {
        stages::ended("other CPUs");
    }

    memory::set_iommu(tables.has_iommu);
    tables.keep();
    arch::init_power();

    let (config, source) = config::load(platform);
    report(platform, &config, source);
    if cpus > 1 {
        log::info!("{cpus} CPUs");
    }
    if config.selftest_at == SelfTestAt::Boot {
        selftest::run(config.selftest);
    }

    #[cfg(not(feature = "peer"))]
    let other = match config.selftest {
        SelfTest::Entropy | SelfTest::Block | SelfTest::Adapter => {
            Err("this kernel is built without the feature `peer`")
        }
        _ => Ok(()),
    };
    #[cfg(feature = "peer")]
    let other = other_drivers::run(&config);
    if let Err(error) = other {
        log::error!("kickpath: selftest {}: {error}", config.selftest);
        arch::exit(Exit::Failure);
    }
    if config.selftest != SelfTest::Off && config.selftest_at == SelfTestAt::Boot {
        arch::exit(Exit::Success);
    }

    match net::run(&config, boot(platform, &config)) {
        Ok(()) => arch::exit(Exit::Success),
        Err(error) => {
            log::error!("kickpath: {error}");
            arch::exit(Exit::Failure)
        }
    }
}

/// How the kernel came up, for the status report.
fn boot(platform: &Platform, config: &Config) -> Boot {
    let frequency = time::frequency();
    Boot {
        protocol: platform.protocol.to_string(),
        hypervisor: arch::cpu::hypervisor().as_str().to_string(),
        configuration: config.to_string(),
        stages: stages::report(),
        tsc_hz: frequency.map_or(0, |frequency| frequency.hz),
        tsc_source: frequency
            .map_or("", |it| it.source.unwrap_or("assumed"))
            .to_string(),
        memory_bytes: platform.memory_map.usable_bytes(),
    }
}

/// The first lines of the log.
fn report(platform: &Platform, config: &Config, source: &str) {
    let heap = memory::heap::stats();
    log::info!(
        "Kickpath {} by {}, hypervisor '{}'",
        env!("CARGO_PKG_VERSION"),
        platform.protocol,
        arch::cpu::hypervisor(),
    );
    log::info!(
        "memory: {} KiB usable, {} KiB of heap",
        platform.memory_map.usable_bytes() >> 10,
        heap.size >> 10,
    );
    let dropped = platform.memory_map.dropped;
    if dropped != 0 {
        log::warn!("the memory map is too long: {dropped} regions are not used");
    }
    if let Some(Frequency { hz, source }) = time::frequency() {
        match source {
            Some(source) => log::info!("TSC: {} kHz ({source})", hz / 1000),
            None => log::warn!("no clock tells the TSC's frequency: {hz} Hz is a guess"),
        }
    }
    log::info!("timer: local APIC, {}", arch::timer_mode());
    if platform.command_line.is_some_and(|line| line.cut) {
        log::warn!("the command line is too long, or not UTF-8: its end is lost");
    }
    log::info!("configuration ({source}): {config}");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    arch::begin_last_words();
    console::emergency(format_args!("{info}{}", arch::percpu::OnCpu));
    arch::exit(Exit::Failure)
}
