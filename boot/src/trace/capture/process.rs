//! What the host tells of the process of a VMM that has no monitor (proc(5)): its threads, its
//! files, and the guest's memory, which every VMM maps into its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::recording::Threads;

/// Below here a VMM has the guest's memory in one piece: what is above may begin anew behind
/// the addresses of devices.
const ONE_PIECE: u64 = 2 << 30;

/// The threads of a process. Every VMM tells by its name which of them runs a virtual CPU.
pub fn threads(process: u32) -> Threads {
    let names: BTreeMap<u32, String> = numbers(&format!("/proc/{process}/task"))
        .filter_map(|thread| {
            let name = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm")).ok()?;
            Some((u32::try_from(thread).ok()?, name.trim_end().to_owned()))
        })
        .collect();
    let vcpus = names.iter().filter(|(_, name)| name.contains("vcpu"));
    Threads {
        main: process,
        vcpus: vcpus.map(|(thread, _)| *thread).collect(),
        names,
    }
}

/// The open files of a process that are devices or anonymous, by their descriptors.
pub fn files(process: u32) -> BTreeMap<u64, String> {
    let files = numbers(&format!("/proc/{process}/fd"));
    files
        .filter_map(|number| {
            let file = fs::read_link(format!("/proc/{process}/fd/{number}")).ok()?;
            let name = file.to_str()?;
            let known = name.starts_with("/dev/") || name.starts_with("anon_inode:");
            known.then(|| (number, name.to_owned()))
        })
        .collect()
}

/// The system calls in which the threads of a process wait: number and arguments.
pub fn waiting(process: u32) -> BTreeMap<u32, Vec<u64>> {
    numbers(&format!("/proc/{process}/task"))
        .filter_map(|thread| {
            let file = format!("/proc/{process}/task/{thread}/syscall");
            let text = fs::read_to_string(file).ok()?;
            Some((u32::try_from(thread).ok()?, call(&text)?))
        })
        .collect()
}

/// `NUMBER ARGUMENT ... STACK PROGRAM`, where a thread waits in a call.
fn call(text: &str) -> Option<Vec<u64>> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let arguments = words.filter_map(|word| {
        let digits = word.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    });
    Some(std::iter::once(number).chain(arguments.take(6)).collect())
}

/// The entries of a directory that are numbers.
fn numbers(directory: &str) -> impl Iterator<Item = u64> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The memory of the guest that a process runs.
#[derive(Debug)]
pub struct ProcessMemory {
    memory: File,
    /// Where the process has what is at the guest's physical address 0, or would have it.
    base: u64,
    /// What it has mapped for writing.
    mapped: Vec<Range<u64>>,
}

impl ProcessMemory {
    /// Finds the memory that has `magic` at a physical address of the guest.
    ///
    /// # Errors
    /// The process may not be looked at, or has mapped no such memory.
    pub fn find(process: u32, address: u64, magic: u64) -> io::Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        let mappings: Vec<(Range<u64>, u64)> = maps.lines().filter_map(mapping).collect();
        let mut found = Self {
            memory: File::open(format!("/proc/{process}/mem"))?,
            base: 0,
            mapped: Vec::new(),
        };
        for (range, offset) in &mappings {
            // A file holds the memory from its address 0 on.
            found.base = range.start.wrapping_sub(*offset);
            found.mapped = vec![range.clone()];
            let there = found.read(address, size_of::<u64>());
            if there.is_ok_and(|bytes| bytes == magic.to_le_bytes()) {
                found.mapped = mappings.into_iter().map(|(range, _)| range).collect();
                return Ok(found);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("process {process} has no memory with the guest's records at {address:#x}"),
        ))
    }

    /// Reads at a physical address of the guest.
    ///
    /// # Errors
    /// There is no memory, or not in one piece with the first.
    pub fn read(&self, address: u64, length: usize) -> io::Result<Vec<u8>> {
        let none = || {
            let text = format!("no memory of the guest is known at {address:#x}");
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let end = address.checked_add(length as u64);
        end.filter(|end| *end <= ONE_PIECE).ok_or_else(none)?;
        let at = self.base.wrapping_add(address);
        let mut ranges = self.mapped.iter();
        if !ranges.any(|range| range.contains(&at) && range.end - at >= length as u64) {
            return Err(none());
        }
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// Addresses and offset of a line of `/proc/PID/maps`, if the process may write there. What is
/// no file has offset 0.
fn mapping(line: &str) -> Option<(Range<u64>, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let offset = number(words.next()?)?;
    (rights.starts_with("rw")).then_some((number(start)?..number(end)?, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_and_a_call_are_read() {
        let line = "7f00-8f00 rw-s 00100000 00:01 116387   /memfd:guest (deleted)";
        assert_eq!(mapping(line), Some((0x7f00..0x8f00, 0x10_0000)));
        assert_eq!(mapping("7f00-8f00 r--p 00000000 00:00 0"), None);
        for line in ["", "x", "1-", "1-2 rw-p", "1-2 rw-p x"] {
            assert_eq!(mapping(line), None, "{line}");
        }
        let waits = "19 0x9 0x7ffc 0x2 0x0 0x0 0x0 0x7ffd 0x7ffe\n";
        assert_eq!(call(waits), Some(vec![19, 9, 0x7ffc, 2, 0, 0, 0]));
        assert_eq!(call("running\n"), None);
        assert_eq!(call("-1 0x7ffd 0x7ffe\n"), None);
    }

    /// This process stands for a VMM: a memory whose first MiB it has mapped elsewhere.
    #[test]
    fn memory_is_found_by_what_it_holds() {
        const MAGIC: u64 = 0x6b69_636b_7061_7468;
        let process = std::process::id();
        let mut memory = vec![0_u64; 1 << 17];
        // A large allocation is a mapping of its own; whose offset in it the allocator chose.
        let address = memory.as_ptr() as u64;
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut mappings = maps.lines().filter_map(mapping);
        let (range, _) = mappings
            .find(|(range, _)| range.contains(&address))
            .unwrap();
        let place = address - range.start + 4096;
        memory[512] = MAGIC;
        memory[513] = 7;
        let found = ProcessMemory::find(process, place, std::hint::black_box(MAGIC)).unwrap();
        assert_eq!(found.read(place + 8, 8).unwrap(), 7_u64.to_le_bytes());
        for (address, length) in [(ONE_PIECE, 1), (u64::MAX, 8), (place, 1 << 32)] {
            assert!(found.read(address, length).is_err(), "{address:#x}");
        }
        let missing = ProcessMemory::find(process, place, !MAGIC).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(ProcessMemory::find(u32::MAX, place, MAGIC).is_err());
        let own = threads(process);
        assert!(own.names.contains_key(&process) && own.vcpus.is_empty());
        let null = File::open("/dev/null").unwrap();
        assert!(files(process).values().any(|file| file == "/dev/null"));
        drop(null);
        assert!(
            waiting(process)
                .keys()
                .all(|thread| own.names.contains_key(thread))
        );
    }
}
