//! The driver without its feature `trace` is the driver without tracepoints: the machine code
//! of the data path is the same as that of sources which have none.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use kickpath::lab;
use kickpath_tests::Suite;

use crate::compiled;

/// Every call of the data path, so that the compiler makes code of it.
const DATA_PATH: &str = r#"
pub mod data_path {
    #![allow(missing_docs)]
    use core::ptr::NonNull;
    use virtio_drivers::{BufferDirection, Hal, PhysAddr};
    use crate::net::{QueuePair, offload::Offload};

    pub struct NoMemory;
    // SAFETY: it gives none.
    unsafe impl Hal for NoMemory {
        fn dma_alloc(_: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
            (0, NonNull::dangling())
        }
        unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
            0
        }
        unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
            NonNull::dangling()
        }
        unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
            0
        }
        unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
    }

    #[inline(never)]
    pub fn receive(pair: &mut QueuePair<NoMemory>, sum: &mut u64) -> bool {
        let (rx, _) = pair.queues();
        if rx.begin_poll().is_err() {
            return false;
        }
        while let Some(frame) = rx.receive() {
            *sum += u64::from(frame[0]);
        }
        rx.receive_batch(64, |frame| {
            *sum += u64::from(frame[1]);
            true
        });
        rx.kick();
        rx.enable_interrupts_after(1)
    }

    #[inline(never)]
    pub fn send(pair: &mut QueuePair<NoMemory>, bytes: &[u8; 60], offload: Offload) -> bool {
        let (_, tx) = pair.queues();
        if tx.begin_poll().is_err() {
            return false;
        }
        tx.reclaim();
        if let Some(mut slot) = tx.reserve() {
            slot.frame_mut(60).copy_from_slice(bytes);
            slot.start_xmit(60);
        }
        if let Some(slot) = tx.reserve() {
            slot.start_xmit_offloaded(60, Some(offload));
        }
        if let Some(slot) = tx.reserve_large() {
            slot.start_xmit_offloaded(60, Some(offload));
        }
        tx.start_xmit_batch(64, |_, buffer| {
            buffer[..60].copy_from_slice(bytes);
            60
        });
        tx.kick();
        tx.enable_interrupts()
    }
}
"#;

pub fn add(suite: &mut Suite) {
    suite.test("untraced::no_tracepoint_leaves_code", no_code);
}

fn no_code() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let tree = directory.path();
    lab::copy_sources(tree)?;
    let source = tree.join("kernel/virtio-net/src");
    let root = source.join("lib.rs");
    fs::write(&root, fs::read_to_string(&root)? + DATA_PATH)?;

    let without_feature = functions(tree, "smoltcp")?;
    for name in ["data_path4send", "data_path7receive"] {
        let made = without_feature.iter().any(|code| code.contains(name));
        ensure!(made, "{name} is not there");
    }
    let traced = functions(tree, "smoltcp,trace")?;
    ensure!(traced != without_feature, "no difference is found");
    ensure!(take_out(&source)? > 20, "there are more tracepoints");
    let without_any = functions(tree, "smoltcp")?;
    let mut both = without_feature.iter().zip(&without_any);
    let differ = both.find(|(one, other)| one != other);
    ensure!(without_feature == without_any, "{differ:#?}");
    Ok(())
}

/// Takes the tracepoints out of the sources below a directory, and says how many.
fn take_out(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            count += take_out(&path)?;
        } else if path.ends_with("src/trace.rs") {
            let nothing = "macro_rules! tracepoint { ($($_:tt)*) => {{}}; }\n\
                           pub(crate) use tracepoint;\npub(crate) const NO_QUEUE: u16 = 0;\n";
            fs::write(path, nothing)?;
        } else {
            let text = fs::read_to_string(&path)?;
            let asked = "trace::is_enabled()";
            count += text.matches("tracepoint!(").count() + text.matches(asked).count();
            fs::write(
                path,
                text.replace(&format!("crate::{asked}"), asked)
                    .replace(asked, "false"),
            )?;
        }
    }
    Ok(count)
}

/// The machine code of the driver's functions, without the names that are counted by.
fn functions(tree: &Path, features: &str) -> Result<Vec<String>> {
    let config = [
        "profile.dev.opt-level=3",
        "profile.dev.debug=false",
        "profile.dev.debug-assertions=false",
    ];
    let flags = ["-Cpanic=abort", "-Ccodegen-units=1", "--cap-lints=allow"];
    let text = compiled::driver(tree, features, "asm", &config, &flags)?;
    let mut functions = Vec::new();
    let mut function: Option<String> = None;
    for line in text.lines() {
        let is_instruction = line.starts_with('\t') && !line.trim_start().starts_with('.');
        if is_function(line) {
            function = Some(alike(line) + "\n");
        } else if line.starts_with(".Lfunc_end") {
            functions.extend(function.take());
        } else if let Some(code) = &mut function
            && (is_instruction || line.starts_with(".LBB"))
        {
            *code += &alike(line);
            code.push('\n');
        }
    }
    functions.sort();
    Ok(functions)
}

/// Whether a line is the label of a function: Rust's names begin so, old and new ones.
fn is_function(line: &str) -> bool {
    (line.starts_with("_ZN") || line.starts_with("_R")) && line.ends_with(':')
}

/// A line without what is counted over the crate: hashes of names, and numbers of functions
/// and constants.
fn alike(line: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "_.$".contains(c);
    let mut alike = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_word) {
        let (before, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c| !is_word(c)).unwrap_or(word.len()));
        alike += before;
        alike += match word {
            _ if word.starts_with(".LBB") => word.split_once('_').map_or(word, |(_, label)| label),
            _ if word.starts_with(".L") => "constant",
            _ if word.starts_with("_ZN") => word.rsplit_once("17h").map_or(word, |(name, _)| name),
            _ if word.starts_with("_R") => "function",
            word => word,
        };
        rest = after;
    }
    alike + rest
}
