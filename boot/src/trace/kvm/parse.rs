//! The text of a trace buffer of the host's kernel (Linux,
//! Documentation/trace/ftrace.rst): `TASK-PID [CPU] FLAGS TIME: EVENT: VALUES`,
//! and call chains, each behind the event that it belongs to.

use crate::trace::qemu::number;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmRecord {
    /// The thread that it happened in.
    pub thread: u32,
    /// The trace clock, in its own unit.
    pub time: u64,
    /// The event.
    pub event: String,
    /// Its values, as they are.
    pub text: String,
    /// The call chain, innermost function first.
    pub stack: Vec<String>,
}

impl KvmRecord {
    /// The number behind a word, such as `gpa` in `gpa 0xfeb02e50`.
    pub fn number(&self, word: &str) -> Option<u64> {
        number(self.text(word)?)
    }

    /// The word behind a word.
    pub fn text(&self, word: &str) -> Option<&str> {
        let mut words = self.text.split_whitespace();
        words.find(|w| *w == word)?;
        words.next()
    }

    /// The address that the guest writes to and what it writes, if this is the
    /// exit of a write: by port or memory. (`kvm_fast_mmio` does not know the
    /// value.)
    pub fn write(&self) -> Option<(u64, Option<u64>)> {
        match self.event.as_str() {
            "kvm_pio" if self.text.starts_with("pio_write") => {
                Some((self.number("at")?, self.number("val")))
            }
            "kvm_mmio" if self.text.starts_with("mmio write") => {
                Some((self.number("gpa")?, self.number("val")))
            }
            // `fast mmio at gpa 0x...`
            "kvm_fast_mmio" => Some((self.number("gpa")?, None)),
            _ => None,
        }
    }

    /// Whether this is an access to a register, by port or memory. A read that KVM cannot answer
    /// is recorded twice: when it is made, and with its answer.
    pub fn is_access(&self) -> bool {
        match self.event.as_str() {
            "kvm_pio" | "kvm_fast_mmio" => true,
            "kvm_mmio" => !self.text.contains("unsatisfied"),
            _ => false,
        }
    }

    /// The vector of an interrupt: `vec 48`, `vector 48` or `IRQ 0x30`.
    pub fn vector(&self) -> Option<u64> {
        ["vec", "vector", "IRQ"]
            .iter()
            .find_map(|word| self.number(word))
    }
}

/// Reads a trace. Lines that are no events are left out.
pub fn parse(text: &str) -> Vec<KvmRecord> {
    let mut records: Vec<KvmRecord> = Vec::new();
    // The context of each, as `Head` has it.
    let mut contexts = Vec::new();
    // The event to which the lines of a call chain belong.
    let mut chain: Option<usize> = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(function) = line.trim_start().strip_prefix("=> ") {
            if let Some(record) = chain.and_then(|place| records.get_mut(place)) {
                // What records the event is no part of what led to it.
                if !function.starts_with("trace_event_raw_event_") {
                    record.stack.push(function.trim().to_owned());
                }
            }
            continue;
        }
        let Some(head) = head(line) else {
            chain = None;
            continue;
        };
        if head.rest.starts_with("<stack trace>") {
            // An interrupt may come between an event and its call chain. Its own events
            // are of the same thread.
            let context = (head.thread, head.interrupt);
            chain = contexts.iter().rposition(|other| *other == context);
            continue;
        }
        chain = None;
        let Some((event, text)) = head.rest.split_once(':') else {
            continue;
        };
        contexts.push((head.thread, head.interrupt));
        records.push(KvmRecord {
            thread: head.thread,
            time: head.time,
            event: event.to_owned(),
            text: text.trim().to_owned(),
            stack: Vec::new(),
        });
    }
    records
}

/// What a line begins with.
struct Head<'a> {
    thread: u32,
    /// `h` in an interrupt's handler, `s` in a softirq, `.` outside them: the third
    /// of the flags. `None` where a trace has none.
    interrupt: Option<char>,
    time: u64,
    rest: &'a str,
}

/// Reads the beginning of a line. A task's name may hold anything, so its number is what
/// stands before the CPU's.
fn head(line: &str) -> Option<Head<'_>> {
    let (task, rest) = line.match_indices(" [").find_map(|(place, _)| {
        let (cpu, rest) = line[place + 2..].split_once(']')?;
        let number = !cpu.is_empty() && cpu.bytes().all(|byte| byte.is_ascii_digit());
        number.then_some((&line[..place], rest))
    })?;
    let (_, thread) = task.trim().rsplit_once('-')?;
    let (left, rest) = rest.split_once(": ")?;
    let mut words = left.split_whitespace().rev();
    // Clocks of seconds have a point.
    let time = words.next()?.replace('.', "").parse().ok()?;
    Some(Head {
        thread: thread.parse().ok()?,
        interrupt: words.next().and_then(|flags| flags.chars().nth(2)),
        time,
        rest: rest.trim_start(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
 qemu-system-x86-21761   [001] ..... 7435150370791: kvm_msi_set_irq: dst 0 vec 48 (Fixed|physical|level)
 CPU 0/KVM [x]-21764   [000] ..... 7435159359057: kvm_mmio: mmio write len 4 gpa 0xfeb02e50 val 0x1
 CPU 0/KVM [x]-21764   [000] ..... 7435168738147: <stack trace>
 => trace_event_raw_event_kvm_mmio
 => write_mmio
 => kvm_arch_vcpu_ioctl_run
 CPU 0/KVM-21764   [000] ..... 7435168756657: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
 CPU 0/KVM-21764   [000] d.... 5.000001: kvm_pio: pio_write at 0xc010 size 2 count 1 val 0x1 
 CPU 0/KVM-21764   [000] ..... 6: kvm_fast_mmio: fast mmio at gpa 0xfebfb004
 CPU 0/KVM-21764   [000] ..... 7: kvm_inj_virq: IRQ 0x31
 CPU 0/KVM-21764   [000] ..... 8: kvm_pio: pio_read at 0xc013 size 1 count 1 val 0x1
";

    #[test]
    fn events_and_their_chains_are_read() {
        let records = parse(TEXT);
        let names: Vec<&str> = records.iter().map(|r| r.event.as_str()).collect();
        assert_eq!(
            names,
            [
                "kvm_msi_set_irq",
                "kvm_mmio",
                "kvm_userspace_exit",
                "kvm_pio",
                "kvm_fast_mmio",
                "kvm_inj_virq",
                "kvm_pio"
            ]
        );
        assert_eq!(records[0].thread, 21761);
        assert_eq!(records[0].vector(), Some(48));
        assert_eq!(records[1].thread, 21764);
        assert_eq!(records[1].time, 7_435_159_359_057);
        assert_eq!(records[1].write(), Some((0xfeb0_2e50, Some(1))));
        assert_eq!(records[1].stack, ["write_mmio", "kvm_arch_vcpu_ioctl_run"]);
        assert_eq!(records[2].text("reason"), Some("KVM_EXIT_MMIO"));
        assert_eq!(records[3].write(), Some((0xc010, Some(1))));
        assert_eq!(records[3].time, 5_000_001);
        assert_eq!(records[4].write(), Some((0xfebf_b004, None)));
        assert_eq!(records[5].vector(), Some(0x31));
        assert_eq!(records[6].write(), None, "a read is no write");
    }

    #[test]
    fn an_interrupt_before_the_call_chain_does_not_take_it() {
        let records = parse(
            " echo-99 [000] b..1. 1: virtqueue_notify: index=1
 echo-99 [000] D.h1. 2: local_timer_entry: vector=236
 echo-99 [000] D.h1. 3: local_timer_exit: vector=236
 echo-99 [000] b.s1. 4: virtnet_poll: budget=64
 echo-99 [000] b..1. 5: <stack trace>
 => virtqueue_notify
 => start_xmit
",
        );
        assert_eq!(records[0].stack, ["virtqueue_notify", "start_xmit"]);
        assert!(records[1..].iter().all(|record| record.stack.is_empty()));
    }

    #[test]
    fn other_lines_are_harmless() {
        for text in [
            "",
            " => orphan",
            "x",
            " a-1 [0",
            " a-1 [000] ... 5",
            " a-1 [000] ... x: kvm_pio: y",
            " a-b [000] ... 5: kvm_pio: y",
            " a-1 [000] ... 5: no colon",
            " a-1 [000] ..... 5: <stack trace>\n => f",
            "CPU:0 [LOST 5 EVENTS]",
        ] {
            assert_eq!(parse(text), [], "{text}");
        }
    }
}
