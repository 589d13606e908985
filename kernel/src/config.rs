//! The guest's configuration: from the command line, else from fw_cfg, else
//! the defaults.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use kickpath_abi::config::{Config, ConfigError, FW_CFG_FILE};
use log::LevelFilter;

use crate::entry::Platform;
use crate::fw_cfg::{self, FwCfgError};

/// Longest fw_cfg file that is read, in bytes.
const MAX_FILE: usize = 4096;
/// How QEMU's microvm announces its virtio-mmio devices on the command line,
/// as Linux's `virtio_mmio.device=SIZE@ADDRESS:IRQ`.
const VIRTIO_MMIO: &str = "virtio_mmio.device=";

/// Reads the configuration and sets the log level. What is not understood is
/// reported, and its default used. Returns also where it came from.
pub fn load(platform: &Platform) -> (Config, &'static str) {
    let words = words(platform.command_line.unwrap_or_default().text);
    let (text, source) = if !words.is_empty() {
        (words, "command line")
    } else {
        match fw_cfg::read_file(FW_CFG_FILE, MAX_FILE) {
            Ok(bytes) => (String::from_utf8_lossy(&bytes).to_string(), "fw_cfg"),
            Err(FwCfgError::NoDevice | FwCfgError::NoFile) => (String::new(), "defaults"),
            Err(error) => {
                log::warn!("configuration {FW_CFG_FILE} ignored: {error}");
                (String::new(), "defaults")
            }
        }
    };
    let mut foreign = Vec::new();
    let config = Config::parse(&text, |error| match error {
        ConfigError::UnknownKey(word) => foreign.push(word),
        ConfigError::BadValue { .. } => log::warn!("{error}; the default is used"),
    });
    if !foreign.is_empty() {
        // Firecracker adds Linux's words, for instance.
        log::warn!("unknown configuration keys in: {}", foreign.join(" "));
    }
    // The words are those of that crate.
    log::set_max_level(config.log.word().parse().unwrap_or(LevelFilter::Info));
    (config, source)
}

/// The command line without what is not ours.
fn words(command_line: &str) -> String {
    let words = command_line.split_ascii_whitespace();
    let ours: Vec<_> = words
        .filter(|word| !word.starts_with(VIRTIO_MMIO))
        .collect();
    ours.join(" ")
}

/// What the command line says about virtio-mmio devices, one
/// `SIZE@ADDRESS:IRQ` each.
pub fn virtio_mmio_devices(platform: &Platform) -> impl Iterator<Item = &'static str> {
    let words = platform.command_line.unwrap_or_default().text;
    let words = words.split_ascii_whitespace();
    words.filter_map(|word| word.strip_prefix(VIRTIO_MMIO))
}
