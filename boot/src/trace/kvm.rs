//! What the host's kernel records of KVM: its trace events, in a tracefs
//! instance of our own, of the threads of one VMM only; of a VMM that has no trace of its own
//! its system calls too.
//!
//! Nothing of the machine's own tracing is touched, and nothing is left
//! behind. The file systems are mounted nowhere (`fsmount` gives a descriptor
//! that ends with the process), and the instance is removed when it is dropped,
//! or, after a crash, by the next trace.

pub mod calls;
pub mod parse;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::recording::{KvmRecording, Threads};
use super::records::GuestRecord;
use parse::KvmRecord;

/// Events that are recorded, where the kernel has them.
const EVENTS: &[&str] = &[
    "kvm_exit",
    "kvm_entry",
    "kvm_pio",
    "kvm_mmio",
    "kvm_fast_mmio",
    "kvm_userspace_exit",
    "kvm_set_irq",
    "kvm_msi_set_irq",
    "kvm_pic_set_irq",
    "kvm_ioapic_set_irq",
    "kvm_apic_accept_irq",
    "kvm_inj_virq",
    "kvm_eoi",
];

/// Those of them that are counted ([`Exits`]).
const COUNTED: &[&str] = &["kvm_pio", "kvm_mmio", "kvm_fast_mmio", "kvm_userspace_exit"];

/// System calls by which a VMM learns of a kick, moves a frame and raises an interrupt
/// (`arch/x86/entry/syscalls/syscall_64.tbl`): read, write, ioctl, readv, writev, epoll_wait,
/// epoll_pwait.
const CALLS: &str =
    "id == 0 || id == 1 || id == 16 || id == 19 || id == 20 || id == 232 || id == 281";

/// Events whose call chain in the host's kernel is recorded.
const STACKS: &[&str] = &["kvm_pio", "kvm_mmio", "kvm_fast_mmio"];

/// The trace clock that a guest's time stamp counter can be compared with.
const CLOCK: &str = "x86-tsc";

/// Kibibytes of records a CPU.
const BUFFER: &str = "1024";

/// Every instance of ours starts with this, and the number of its process.
const PREFIX: &str = "kickpath-";

/// Why the host's kernel does not record.
#[derive(Debug, thiserror::Error)]
pub enum HostTraceError {
    /// No tracefs.
    #[error("tracefs cannot be opened: {0}")]
    TraceFs(io::Error),
    /// The kernel has no events of KVM.
    #[error("the host's kernel has no trace events of KVM")]
    NoEvents,
    /// A file of tracefs.
    #[error("cannot {what} {}: {source}", file.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file, from tracefs's top.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A file system, at its place or at none.
#[derive(Debug)]
struct FileSystem {
    root: PathBuf,
    /// Keeps a mount that is at no place.
    _mount: Option<OwnedFd>,
}

impl FileSystem {
    /// Where it is mounted already, or as a mount of our own at no place.
    fn open(name: &str, place: &Path, sign: &str) -> io::Result<Self> {
        if fs::read_dir(place.join(sign)).is_ok() {
            return Ok(Self {
                root: place.to_owned(),
                _mount: None,
            });
        }
        let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self {
            root: PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
            _mount: Some(mount),
        })
    }
}

/// A tracefs instance that records one VMM. Dropping it removes it.
#[derive(Debug)]
pub struct HostTrace {
    instance: PathBuf,
    events: Vec<String>,
    tsc_clock: bool,
    tsc_offset: Option<i64>,
    /// Dropped last: the instance is on it.
    _tracefs: FileSystem,
}

impl HostTrace {
    /// Begins to record the threads of a VMM; of those that have names here, their system calls
    /// as well.
    ///
    /// # Errors
    /// No rights, or no such events: the trace is then without them.
    pub fn start(threads: &Threads) -> Result<Self, HostTraceError> {
        Self::start_with(threads, true)
    }

    /// Begins to record what [`Exits`] are counted of, and nothing else.
    ///
    /// # Errors
    /// As [`HostTrace::start`].
    pub fn counting(threads: &Threads) -> Result<Self, HostTraceError> {
        Self::start_with(threads, false)
    }

    fn start_with(threads: &Threads, everything: bool) -> Result<Self, HostTraceError> {
        let tracefs = FileSystem::open("tracefs", Path::new("/sys/kernel/tracing"), "instances")
            .map_err(HostTraceError::TraceFs)?;
        let instance = Instance::new(&tracefs.root)?;
        let (tsc_clock, events) = instance.configure(threads, everything)?;
        let tsc_offset = tsc_offset(threads);
        Ok(Self {
            instance: instance.keep(),
            events,
            tsc_clock,
            tsc_offset,
            _tracefs: tracefs,
        })
    }

    /// Forgets what has been recorded so far.
    pub fn clear(&self) {
        // Whatever is written empties the buffers. What stays if it cannot be done
        // is found by those who count.
        let _ = write(&self.instance, "trace", "\n");
    }

    /// Ends recording and returns what there is.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn stop(mut self) -> Result<KvmRecording, HostTraceError> {
        write(&self.instance, "tracing_on", "0")?;
        let text = read(&self.instance, "trace")?;
        Ok(KvmRecording {
            events: std::mem::take(&mut self.events),
            lost: lost(&self.instance),
            text,
            tsc_offset: self.tsc_offset,
            tsc_clock: self.tsc_clock,
            ..KvmRecording::default()
        })
    }
}

/// How often a guest left the CPU, by KVM's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Reads and writes of device registers that did.
    pub accesses: u64,
    /// Returns of KVM to the VMM.
    pub to_vmm: u64,
}

impl Exits {
    /// Counts them; `None` where some were lost.
    pub fn of(recorded: &KvmRecording) -> Option<Self> {
        let records = parse::parse(&recorded.text);
        let count = |is: fn(&KvmRecord) -> bool| records.iter().filter(|r| is(r)).count() as u64;
        (recorded.lost == 0).then(|| Self {
            accesses: count(KvmRecord::is_access),
            to_vmm: count(|record| record.event == "kvm_userspace_exit"),
        })
    }
}

/// Where a doorbell wrote, as the device sees it, by what KVM recorded: a page of the guest keeps
/// the low bits of an address, and the value is the queue's number. `None` where several
/// addresses are like that.
pub(super) fn written(trace: Option<&KvmRecording>, doorbell: &GuestRecord) -> Option<u64> {
    const PAGE: u64 = 4096;
    let records = parse::parse(&trace?.text);
    let queue = doorbell.queue.map(u64::from);
    let writes = records.iter().filter_map(KvmRecord::write);
    let mut alike = writes.filter(|(address, value)| {
        address % PAGE == doorbell.b % PAGE && (value.is_none() || *value == queue)
    });
    let (address, _) = alike.next()?;
    alike.all(|(other, _)| other == address).then_some(address)
}

impl Drop for HostTrace {
    fn drop(&mut self) {
        remove(&self.instance);
    }
}

/// A directory in `instances` that is removed unless it is kept.
struct Instance(PathBuf);

impl Instance {
    /// Makes one, after those that crashes have left are removed.
    fn new(tracefs: &Path) -> Result<Self, HostTraceError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let instances = tracefs.join("instances");
        sweep(&instances);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let instance = instances.join(&name);
        fs::create_dir(&instance).map_err(|source| HostTraceError::File {
            what: "make",
            file: Path::new("instances").join(name),
            source,
        })?;
        Ok(Self(instance))
    }

    /// Chooses clock, threads and events, `everything` or what is counted, and starts. Returns
    /// whether the clock is the time stamp counter, and the events that there are.
    fn configure(
        &self,
        threads: &Threads,
        everything: bool,
    ) -> Result<(bool, Vec<String>), HostTraceError> {
        write(&self.0, "tracing_on", "0")?;
        write(&self.0, "buffer_size_kb", BUFFER)?;
        let tsc_clock = write(&self.0, "trace_clock", CLOCK).is_ok();
        let ids: Vec<String> = [threads.main]
            .iter()
            .chain(&threads.vcpus)
            .chain(threads.names.keys())
            .map(u32::to_string)
            .collect();
        write(&self.0, "set_event_pid", &ids.join(" "))?;
        let mut events = Vec::new();
        for event in if everything { EVENTS } else { COUNTED } {
            let file = format!("events/kvm/{event}/enable");
            if self.0.join(&file).exists() {
                write(&self.0, &file, "1")?;
                events.push((*event).to_owned());
            }
        }
        if events.is_empty() {
            return Err(HostTraceError::NoEvents);
        }
        if everything && !threads.names.is_empty() {
            for event in ["sys_enter", "sys_exit"] {
                let file = |name: &str| format!("events/raw_syscalls/{event}/{name}");
                // A kernel without them, or without filters, records the rest all the same.
                if write(&self.0, &file("filter"), CALLS).is_ok()
                    && write(&self.0, &file("enable"), "1").is_ok()
                {
                    events.push(event.to_owned());
                }
            }
        }
        for event in if everything { STACKS } else { &[] } {
            // A kernel without stack traces records the events all the same.
            let _ = write(
                &self.0,
                &format!("events/kvm/{event}/trigger"),
                "stacktrace",
            );
        }
        write(&self.0, "tracing_on", "1")?;
        Ok((tsc_clock, events))
    }

    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            remove(&self.0);
        }
    }
}

/// Removes an instance; its events and triggers go with it.
fn remove(instance: &Path) {
    if let Err(error) = fs::remove_dir(instance) {
        let name = instance.file_name().unwrap_or_default();
        log::warn!(
            "cannot remove the tracefs instance {}: {error}",
            name.display()
        );
    }
}

/// Removes the instances of processes that are no more.
fn sweep(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(pid) = name.to_str().and_then(owner)
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            log::info!(
                "removing {}, left behind by a trace that was killed",
                name.display()
            );
            remove(&entry.path());
        }
    }
}

/// The process that made an instance of ours.
fn owner(instance: &str) -> Option<u32> {
    let (pid, number) = instance.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

fn write(instance: &Path, file: &str, text: &str) -> Result<(), HostTraceError> {
    fs::write(instance.join(file), text).map_err(|source| HostTraceError::File {
        what: "write",
        file: file.into(),
        source,
    })
}

fn read(instance: &Path, file: &str) -> Result<String, HostTraceError> {
    let bytes = fs::read(instance.join(file)).map_err(|source| HostTraceError::File {
        what: "read",
        file: file.into(),
        source,
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Events for which the buffers of all CPUs had no room.
fn lost(instance: &Path) -> u64 {
    let cpus = fs::read_dir(instance.join("per_cpu")).into_iter().flatten();
    cpus.flatten()
        .filter_map(|cpu| fs::read_to_string(cpu.path().join("stats")).ok())
        .map(|stats| overruns(&stats))
        .sum()
}

fn overruns(stats: &str) -> u64 {
    let lines = stats.lines().filter_map(|line| line.split_once(':'));
    let lost = lines.filter(|(name, _)| matches!(*name, "overrun" | "dropped events"));
    lost.filter_map(|(_, number)| number.trim().parse::<u64>().ok())
        .sum()
}

/// What KVM adds to the host's time stamp counter for the first virtual CPU of
/// this VMM: `kvm/PID-FD/vcpu0/tsc-offset` in debugfs. `None` where that
/// cannot be read, or the counter is scaled as well.
fn tsc_offset(threads: &Threads) -> Option<i64> {
    let debugfs = FileSystem::open("debugfs", Path::new("/sys/kernel/debug"), "kvm").ok()?;
    let machines = fs::read_dir(debugfs.root.join("kvm")).ok()?;
    let mut machines = machines.flatten().filter(|machine| {
        let name = machine.file_name();
        name.to_str().is_some_and(|name| is_made_by(name, threads))
    });
    let vcpu = machines.next()?.path().join("vcpu0");
    let number = |file: &str| {
        let text = fs::read_to_string(vcpu.join(file)).ok()?;
        text.trim().parse::<i64>().ok()
    };
    // A ratio of one is 1 followed by as many bits as `frac_bits` says.
    if let (Some(ratio), Some(bits)) = (
        number("tsc-scaling-ratio"),
        number("tsc-scaling-ratio-frac-bits"),
    ) && 1i64.checked_shl(u32::try_from(bits).ok()?) != Some(ratio)
    {
        return None;
    }
    number("tsc-offset")
}

/// Whether KVM's directory of this name, `PID-FD`, is of a machine of this VMM. The number is
/// that of the thread that made the machine (Linux, `kvm_create_vm_debugfs`), which need not be
/// the main one.
fn is_made_by(name: &str, threads: &Threads) -> bool {
    let thread = name.split_once('-').and_then(|(id, _)| id.parse().ok());
    thread.is_some_and(|id| {
        id == threads.main || threads.names.contains_key(&id) || threads.vcpus.contains(&id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_names_its_process() {
        assert_eq!(owner("kickpath-123-0"), Some(123));
        for other in ["kickpath-", "kickpath-12", "kickpath-x-0", "mine", "123-0"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_machine_belongs_to_the_vmm_whose_thread_made_it() {
        let threads = Threads {
            main: 7,
            vcpus: vec![9],
            names: [(8, "vmm".to_owned())].into(),
        };
        for name in ["7-12", "8-12", "9-1"] {
            assert!(is_made_by(name, &threads), "{name}");
        }
        for name in ["77-12", "12-7", "7", "vcpu0", ""] {
            assert!(!is_made_by(name, &threads), "{name}");
        }
    }

    #[test]
    fn exits_are_counted_unless_some_were_lost() {
        let text = "a-7 [0] d... 1: kvm_mmio: mmio unsatisfied-read len 4 gpa 0x8 val 0x0\n\
                    a-7 [0] d... 2: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)\n\
                    a-7 [0] d... 3: kvm_mmio: mmio read len 4 gpa 0x8 val 0x1\n\
                    a-7 [0] d... 4: kvm_fast_mmio: fast mmio at gpa 0x50\n";
        let mut recorded = KvmRecording {
            text: text.to_owned(),
            ..KvmRecording::default()
        };
        let exits = Exits {
            accesses: 2,
            to_vmm: 1,
        };
        assert_eq!(Exits::of(&recorded), Some(exits));
        recorded.lost = 1;
        assert_eq!(Exits::of(&recorded), None);
    }

    #[test]
    fn overruns_are_added_up() {
        let stats = "entries: 26\noverrun: 3\ncommit overrun: 9\nbytes: 1388\ndropped events: 4\n";
        assert_eq!(overruns(stats), 7);
        assert_eq!(overruns("overrun: x\nnothing"), 0);
    }

    /// A directory with the files of an instance in place of tracefs.
    #[test]
    fn an_instance_is_configured_and_leftovers_are_swept() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let tracefs = tempfile::tempdir().unwrap();
        let instances = tracefs.path().join("instances");
        let leftover = instances.join(format!("{PREFIX}{dead}-0"));
        let other = instances.join("somebody-elses");
        for directory in [&leftover, &other] {
            fs::create_dir_all(directory).unwrap();
        }
        let instance = Instance::new(tracefs.path()).unwrap();
        assert!(!leftover.exists() && other.exists());
        let threads = Threads {
            main: 7,
            vcpus: vec![8, 9],
            ..Threads::default()
        };
        // Nothing there is no tracefs: no event can be switched on.
        let error = instance.configure(&threads, true).unwrap_err();
        assert!(matches!(error, HostTraceError::NoEvents), "{error}");
        let event = instance.0.join("events/kvm/kvm_pio");
        fs::create_dir_all(&event).unwrap();
        fs::write(event.join("enable"), "0").unwrap();
        let exit = instance.0.join("events/kvm/kvm_exit");
        fs::create_dir_all(&exit).unwrap();
        fs::write(exit.join("enable"), "0").unwrap();
        let (_, events) = instance.configure(&threads, false).unwrap();
        assert_eq!(events, ["kvm_pio"]);
        assert!(!event.join("trigger").exists());
        let (tsc_clock, events) = instance.configure(&threads, true).unwrap();
        assert!(tsc_clock);
        assert_eq!(events, ["kvm_exit", "kvm_pio"]);
        let written = |file: &str| read(&instance.0, file).unwrap();
        assert_eq!(written("set_event_pid"), "7 8 9");
        assert_eq!(written("trace_clock"), CLOCK);
        assert_eq!(written("tracing_on"), "1");
        assert_eq!(written("events/kvm/kvm_pio/enable"), "1");
        assert_eq!(written("events/kvm/kvm_pio/trigger"), "stacktrace");
    }

    /// The real one, where this user may.
    #[test]
    fn a_real_instance_comes_and_goes() {
        let own = Threads {
            main: std::process::id(),
            ..Threads::default()
        };
        let trace = match HostTrace::start(&own) {
            Ok(trace) => trace,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        let instance = trace.instance.clone();
        assert!(instance.join("trace").exists());
        // Another process would not see the mount, nor this one after it.
        let recording = trace.stop().unwrap();
        assert!(recording.text.starts_with("# tracer: nop"));
        assert_eq!(recording.tsc_offset, None);
        assert!(!instance.exists());
    }
}
