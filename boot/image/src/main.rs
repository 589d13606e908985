//! Makes disk images: `kickpath-image KERNEL [--bios FILE] [--uefi FILE]`.
//!
//! Called by the runner (`boot/src/image.rs`), which builds this program with
//! the feature of each kind of image that is asked for.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bootloader::{BootConfig, DiskImageBuilder};
use bootloader_boot_config::LevelFilter;

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let kernel = arguments
        .next()
        .map(PathBuf::from)
        .context("no kernel given")?;

    let mut config = BootConfig::default();
    // The serial port is the guest's console: leave it to the guest, but for
    // what would explain why the guest does not come up.
    config.log_level = LevelFilter::Error;
    config.frame_buffer_logging = false;
    let mut builder = DiskImageBuilder::new(kernel);
    builder.set_boot_config(&config);

    while let Some(option) = arguments.next() {
        let file = arguments.next().map(PathBuf::from);
        let file = file.with_context(|| format!("{} needs a file", option.display()))?;
        create(&builder, &option, &file)
            .with_context(|| format!("cannot make the image {}", file.display()))?;
    }
    Ok(())
}

fn create(builder: &DiskImageBuilder, option: &OsString, file: &Path) -> Result<()> {
    match option.to_str() {
        #[cfg(feature = "bios")]
        Some("--bios") => builder.create_bios_image(file),
        #[cfg(feature = "uefi")]
        Some("--uefi") => builder.create_uefi_image(file),
        _ => bail!("this build does not know {}", option.display()),
    }
}
