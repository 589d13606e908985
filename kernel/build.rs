//! Gives the linker the guest's memory layout. Only the bare-metal target has
//! one: built for the host (as lints do), the crate is checked, never linked.
use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=kernel.ld");
    let target_os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if target_os == "none" {
        let script = Path::new(&directory).join("kernel.ld");
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        // Segments are page aligned in the file as in memory, because the
        // `bootloader` crate maps the pages of the file itself.
        for argument in [
            "-zmax-page-size=4096",
            "-znorelro",
            "-znognustack",
            "--no-dynamic-linker",
        ] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
