//! Gives the linker the memory layout: where QEMU's `virt` machines expect a
//! kernel that brings no header.
use std::env;

fn main() {
    println!("cargo::rerun-if-changed=bare.ld");
    let base = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        // The device tree lies at the beginning of the memory.
        Ok("aarch64") => "0x40200000",
        Ok("riscv64") => "0x80000000",
        _ => return,
    };
    let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-T{directory}/bare.ld");
    println!("cargo::rustc-link-arg-bins=--defsym=BASE={base}");
}
