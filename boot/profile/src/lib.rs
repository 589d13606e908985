//! Counts how often each block of guest code runs: a plugin of QEMU's translator
//! (QEMU `docs/devel/tcg-plugins.rst`, `include/qemu/qemu-plugin.h`).
//!
//! The counts are in a file that the plugin maps and that others may read at any
//! time. It consists of numbers of 64 bits in the order of this machine: how many
//! blocks there are, then of each block its virtual address, how many instructions
//! it has, and how often it ran.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

/// The version of the interface. What is used of it is the same in all of them, but
/// for [`translated`], which gets the plugin's number before version 7, and a word of
/// its own behind the block since.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = if cfg!(feature = "version-1") {
    1
} else if cfg!(feature = "version-7") {
    7
} else {
    2
};

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback reads no registers.
const NO_REGISTERS: c_int = 0;
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;

unsafe extern "C" {
    #[cfg(not(feature = "version-7"))]
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: u64,
        callback: unsafe extern "C" fn(u64, *mut c_void),
    );
    #[cfg(feature = "version-7")]
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: u64,
        callback: unsafe extern "C" fn(*mut c_void, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const c_void) -> u64;
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut c_void,
        callback: unsafe extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
}

/// The file.
static COUNTS: OnceLock<&[AtomicU64]> = OnceLock::new();

/// Which block has which place in the file. QEMU translates a block again whenever
/// it has forgotten it.
static PLACES: Mutex<Option<HashMap<(u64, u64), usize>>> = Mutex::new(None);

/// Maps the file that `counts=FILE` names. Anything but 0 ends QEMU.
///
/// # Safety
/// QEMU calls it, with `argc` strings at `argv`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    if argc != 1 {
        return 1;
    }
    // SAFETY: there is one string, says QEMU.
    let argument = unsafe { CStr::from_ptr(*argv) }.to_str();
    let name = argument.ok().and_then(|text| text.strip_prefix("counts="));
    let Some(counts) = name.and_then(map) else {
        return 1;
    };
    let _ = COUNTS.set(counts);
    // SAFETY: it is this plugin's number, and the callback is the one of its version.
    unsafe {
        #[cfg(not(feature = "version-7"))]
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated_by_number);
        #[cfg(feature = "version-7")]
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated, null_mut());
    }
    0
}

fn map(name: &str) -> Option<&'static [AtomicU64]> {
    let file = OpenOptions::new().read(true).write(true).open(name).ok()?;
    let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
    // SAFETY: a new mapping harms nobody.
    let place = unsafe {
        mmap(
            null_mut(),
            length,
            PROT_READ_WRITE,
            MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if place.addr() == usize::MAX {
        return None;
    }
    // SAFETY: it is mapped for ever, on a boundary of a page, and as long as the
    // file, which nobody cuts; every bit pattern is a number.
    Some(unsafe { slice::from_raw_parts(place.cast(), length / size_of::<AtomicU64>()) })
}

/// [`translated`], as it was called before version 7.
#[cfg(not(feature = "version-7"))]
unsafe extern "C" fn translated_by_number(_id: u64, block: *mut c_void) {
    // SAFETY: as for this function.
    unsafe { translated(block, null_mut()) };
}

/// A block was translated: its runs are counted from now on.
unsafe extern "C" fn translated(block: *mut c_void, _data: *mut c_void) {
    // SAFETY: the block is QEMU's, and valid during this call.
    let (address, length) = unsafe {
        (
            qemu_plugin_tb_vaddr(block),
            qemu_plugin_tb_n_insns(block) as u64,
        )
    };
    let (Some(counts), Ok(mut places)) = (COUNTS.get(), PLACES.lock()) else {
        return;
    };
    let places = places.get_or_insert_default();
    let next = places.len();
    let place = *places.entry((address, length)).or_insert(next);
    let Some([known_address, known_length, runs]) = counts.get(1 + 3 * place..4 + 3 * place) else {
        // The file is full. What is not counted is seen by its sum.
        return;
    };
    known_address.store(address, Ordering::Relaxed);
    known_length.store(length, Ordering::Relaxed);
    counts[0].store(places.len() as u64, Ordering::Release);
    let data = std::ptr::from_ref(runs).cast_mut().cast();
    // SAFETY: as above; the counter stays where it is.
    unsafe { qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, data) };
}

/// A block is about to run.
unsafe extern "C" fn executed(_cpu: c_uint, data: *mut c_void) {
    // SAFETY: it is the counter that `translated` gave.
    unsafe { &*data.cast::<AtomicU64>() }.fetch_add(1, Ordering::Relaxed);
}
