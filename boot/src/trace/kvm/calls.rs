//! The system calls of a VMM among the events of the host's kernel: `sys_enter: NR 0 (9, 7ffc, 8,
//! 0, 0, 0)` with arguments in hexadecimal, and `sys_exit: NR 0 = 8`
//! (Linux, `include/trace/events/syscalls.h`).

use std::collections::BTreeMap;

use super::parse::KvmRecord;
use crate::trace::recording::KvmRecording;

/// A system call that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The thread.
    pub thread: u32,
    /// When it began, on the trace's clock; `None` when it had begun before the trace.
    pub entered: Option<u64>,
    /// When it came back.
    pub returned: u64,
    /// What it did.
    pub what: What,
    /// The call as text, such as `read(9 = anon_inode:[eventfd]) = 8`.
    pub text: String,
}

/// What a call did, as far as a kick is about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It took a frame of so many bytes from the tap device, its header before it.
    TakesFrame(u64),
    /// It gave such a frame to the tap device.
    GivesFrame(u64),
    /// Something came of what it waited for.
    Wakes,
    /// It found an eventfd signalled.
    Hears,
    /// It signalled an eventfd.
    Signals,
    /// It had KVM raise an interrupt, by this call.
    Interrupts(&'static str),
    /// `ioctl(KVM_RUN)` came back: the VMM has to do something for the guest.
    Leaves,
}

impl What {
    /// The function of the system that was called.
    pub const fn function(self) -> &'static str {
        match self {
            Self::TakesFrame(_) => "read(tap)",
            Self::GivesFrame(_) => "write(tap)",
            Self::Wakes => "epoll_wait",
            Self::Hears => "read(eventfd)",
            Self::Signals => "write(eventfd)",
            Self::Interrupts(call) => call,
            Self::Leaves => "ioctl(KVM_RUN)",
        }
    }
}

/// The calls that matter, in the order of their ends. `records` are of [`KvmRecording::text`].
pub fn calls(records: &[KvmRecord], recording: &KvmRecording) -> Vec<Call> {
    let mut open: BTreeMap<u32, (Option<u64>, Vec<u64>)> = BTreeMap::new();
    for (thread, call) in &recording.waiting {
        open.insert(*thread, (None, call.clone()));
    }
    let mut calls = Vec::new();
    for record in records {
        match record.event.as_str() {
            "sys_enter" => {
                if let Some(call) = entered(&record.text) {
                    open.insert(record.thread, (Some(record.time), call));
                }
            }
            "sys_exit" => {
                let opened = open.remove(&record.thread);
                if let Some((entered, call)) = opened
                    && let Some((number, result)) = returned(&record.text)
                    && call.first() == Some(&number)
                    && let Ok(result) = u64::try_from(result)
                    && let Some((what, text)) = meaning(&call, result, &recording.files)
                {
                    calls.push(Call {
                        thread: record.thread,
                        entered,
                        returned: record.time,
                        what,
                        text,
                    });
                }
            }
            _ => {}
        }
    }
    calls
}

/// Number and arguments of `NR 0 (9, 7ffc, 8, 0, 0, 0)`.
fn entered(text: &str) -> Option<Vec<u64>> {
    let (number, arguments) = text.strip_prefix("NR ")?.split_once(" (")?;
    let arguments = arguments.strip_suffix(')')?.split(", ");
    let arguments = arguments.map(|word| u64::from_str_radix(word, 16));
    let call = std::iter::once(number.parse()).chain(arguments);
    call.collect::<Result<Vec<u64>, _>>().ok()
}

/// Number and result of `NR 0 = 8`.
fn returned(text: &str) -> Option<(u64, i64)> {
    let (number, result) = text.strip_prefix("NR ")?.split_once(" = ")?;
    Some((number.parse().ok()?, result.trim().parse().ok()?))
}

/// Numbers of system calls (`arch/x86/entry/syscalls/syscall_64.tbl`).
const READ: u64 = 0;
const WRITE: u64 = 1;
const IOCTL: u64 = 16;
const READV: u64 = 19;
const WRITEV: u64 = 20;
const EPOLL_WAIT: u64 = 232;
const EPOLL_PWAIT: u64 = 281;

/// Requests of KVM (`include/uapi/linux/kvm.h`).
const KVM_RUN: u64 = 0xae80;
const RAISES: [(u64, &str); 3] = [
    (0x4020_aea5, "ioctl(KVM_SIGNAL_MSI)"),
    (0x4008_ae61, "ioctl(KVM_IRQ_LINE)"),
    (0xc008_ae67, "ioctl(KVM_IRQ_LINE_STATUS)"),
];

/// What a call with this result did to one of these files, and its text.
fn meaning(call: &[u64], result: u64, files: &BTreeMap<u64, String>) -> Option<(What, String)> {
    let [number, descriptor, request, ..] = call else {
        return None;
    };
    let file = files.get(descriptor)?;
    let (is_tap, is_event) = (file == "/dev/net/tun", file.ends_with("[eventfd]"));
    let (name, what) = match *number {
        READ if is_event => ("read", What::Hears),
        WRITE if is_event => ("write", What::Signals),
        READ if is_tap => ("read", What::TakesFrame(result)),
        READV if is_tap => ("readv", What::TakesFrame(result)),
        WRITE if is_tap => ("write", What::GivesFrame(result)),
        WRITEV if is_tap => ("writev", What::GivesFrame(result)),
        EPOLL_WAIT | EPOLL_PWAIT if result > 0 => ("epoll_wait", What::Wakes),
        IOCTL if *request == KVM_RUN => {
            return Some((
                What::Leaves,
                format!("ioctl(KVM_RUN) of {descriptor} = {file}"),
            ));
        }
        IOCTL => {
            let (_, call) = RAISES.iter().find(|(known, _)| known == request)?;
            let text = format!("{call} of {descriptor} = {file}");
            return Some((What::Interrupts(call), text));
        }
        _ => return None,
    };
    Some((what, format!("{name}({descriptor} = {file}) = {result}")))
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    #[test]
    fn calls_are_read_with_those_that_waited_before() {
        let text = "\
 virtio-net-rx-7   [000] ..... 100: sys_exit: NR 19 = 118
 fc_vcpu 0-8   [000] ..... 110: sys_exit: NR 16 = 0
 fc-9   [000] ..... 120: sys_enter: NR 0 (9, 7ffc00, 8, 0, 0, 0)
 fc_vcpu 0-8   [000] ..... 121: sys_enter: NR 16 (c, ae80, 0, 0, 0, 0)
 fc-9   [000] ..... 122: sys_exit: NR 0 = 8
 fc-9   [000] ..... 123: sys_enter: NR 20 (8, 7ffc00, 2, 0, 0, 0)
 fc-9   [000] ..... 125: sys_exit: NR 20 = 118
 fc-9   [000] ..... 126: sys_enter: NR 19 (8, 7ffc00, 2, 0, 0, 0)
 fc-9   [000] ..... 127: sys_exit: NR 19 = -11
 fc-9   [000] ..... 128: sys_enter: NR 16 (4, 4020aea5, 7ffc00, 0, 0, 0)
 fc-9   [000] ..... 129: sys_exit: NR 16 = 1
 fc-9   [000] ..... 130: sys_enter: NR 0 (3, 7ffc00, 8, 0, 0, 0)
 fc-9   [000] ..... 131: sys_exit: NR 0 = 8
 fc-9   [000] ..... 132: sys_exit: NR 1 = 8
 fc-9   [000] ..... 133: sys_enter: NR x (1)
 fc-9   [000] ..... 134: sys_exit: NR 1
";
        let files = [
            (4, "anon_inode:kvm-vm"),
            (8, "/dev/net/tun"),
            (9, "anon_inode:[eventfd]"),
            (12, "anon_inode:kvm-vcpu:0"),
        ];
        let recording = KvmRecording {
            files: files.map(|(number, file)| (number, file.to_owned())).into(),
            waiting: [
                (7, vec![19, 8, 0x7ffc, 2, 0, 0, 0]),
                (8, vec![16, 12, KVM_RUN, 0, 0, 0, 0]),
            ]
            .into(),
            ..KvmRecording::default()
        };
        let calls = calls(&parse(text), &recording);
        let told: Vec<_> = calls
            .iter()
            .map(|call| (call.thread, call.entered, call.returned, call.what))
            .collect();
        let expected = [
            (7, None, 100, What::TakesFrame(118)),
            (8, None, 110, What::Leaves),
            (9, Some(120), 122, What::Hears),
            (9, Some(123), 125, What::GivesFrame(118)),
            (9, Some(128), 129, What::Interrupts("ioctl(KVM_SIGNAL_MSI)")),
        ];
        assert_eq!(told, expected);
        assert_eq!(calls[2].text, "read(9 = anon_inode:[eventfd]) = 8");
        assert_eq!(
            calls[4].text,
            "ioctl(KVM_SIGNAL_MSI) of 4 = anon_inode:kvm-vm"
        );
    }
}
