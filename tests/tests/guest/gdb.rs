//! `kickpath trace --gdb`: what the debugger shows of a guest that stands before its kick is
//! what QEMU's monitor and the guest's own report tell of it.

use anyhow::{Context, Result, ensure};
use kickpath::install::GDB;
use kickpath_tests::program::run;
use kickpath_tests::{Suite, setup};
use serde_json::Value;

pub fn add(suite: &mut Suite) {
    let ways: [(&str, &[&str]); 3] = [
        ("by_a_port", &[]),
        (
            "by_memory_and_packed",
            &["--transport", "modern", "--layout", "packed"],
        ),
        ("by_virtio_mmio", &["--machine", "microvm"]),
    ];
    for (name, options) in ways {
        suite.test(&format!("gdb::before_the_kick_{name}"), move || {
            setup::require(&[GDB])?;
            let text = run(&[&["trace", "--gdb", "--json", "-"], options].concat())?;
            let walk: Walk = Walk(serde_json::from_str(&text)?);
            walk.stands_before_its_kick()?;
            match walk.0["ring"]["packed"].as_bool() {
                Some(true) => walk.shows_a_packed_ring(),
                _ => walk.shows_a_split_ring(),
            }
            .with_context(|| text.clone())
        });
    }
}

struct Walk(Value);

impl Walk {
    /// What the debugger said to the command that begins like this.
    fn said(&self, command: &str) -> Result<&str> {
        let mut looks = self.0["commands"].as_array().into_iter().flatten();
        let look = looks.find(|look| {
            let typed = look["command"].as_str();
            typed.is_some_and(|typed| typed.starts_with(command))
        });
        let output = look.and_then(|look| look["output"].as_str());
        output.with_context(|| format!("nothing was said to {command}: {}", self.0))
    }

    /// The numbers behind the colon of `x`.
    fn numbers(&self, command: &str) -> Result<Vec<u64>> {
        let said = self.said(command)?;
        let (_, words) = said.split_once(':').context("no address")?;
        let words = words.split_whitespace().map(|word| {
            let number = match word.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => word.parse(),
            };
            number.with_context(|| said.to_owned())
        });
        words.collect()
    }

    /// A field of the ring, as QEMU's monitor tells it.
    fn ring(&self, field: &str) -> Result<u64> {
        let value = self.0["ring"][field].as_u64();
        value.with_context(|| format!("no {field} in {}", self.0))
    }

    fn words(&self, field: &str) -> Vec<u64> {
        let words = self.0["ring"][field].as_array().into_iter().flatten();
        words.filter_map(Value::as_u64).collect()
    }

    fn stands_before_its_kick(&self) -> Result<()> {
        let doorbell = self.0["doorbell"].as_str().unwrap_or_default();
        let (function, instruction, register) = match doorbell.split(' ').next() {
            Some("outw") => ("vp_notify_port", "out    %ax,(%dx)", "print/x $dx"),
            Some("movw") => ("vp_notify_mmio", "mov    %di,(%rsi)", "print/x $rsi"),
            _ => ("vm_notify", "mov    %edi,(%rsi)", "print/x $rsi"),
        };
        let next = self.said("x/i $pc")?;
        ensure!(
            next.contains(function) && next.contains(instruction),
            "{next}"
        );
        // The guest's report names the port, or the mapped address.
        let target = doorbell.split(' ').next_back().unwrap_or_default();
        let place = self.said(register)?;
        ensure!(place.ends_with(&format!("= {target}")), "{place}");
        let queue = self.said("print $di")?;
        ensure!(
            queue.ends_with("= 1") && self.ring("queue")? == 1,
            "{queue}"
        );
        let callers = self.said("backtrace")?;
        ensure!(callers.contains("Virtqueue::kick"), "{callers}");
        // Behind the kick the function ends.
        let commands = self.0["commands"].as_array().context("commands")?;
        let last = commands.last().and_then(|look| look["output"].as_str());
        ensure!(
            last.is_some_and(|last| last.contains(function) && last.contains("ret")),
            "{last:?}"
        );
        Ok(())
    }

    /// The device has done all but the newest entry.
    fn shows_a_split_ring(&self) -> Result<()> {
        let next = self.ring("next")?;
        let driver = self.ring("driver")?;
        let device = self.ring("device")?;
        let avail = self.numbers(&format!("x/2uh {driver:#x}"))?;
        ensure!(avail == self.words("driver_words"), "{avail:?}");
        ensure!(avail[1] == next + 1, "{avail:?} where {next} comes next");
        let used = self.numbers(&format!("x/2uh {device:#x}"))?;
        ensure!(
            used == self.words("device_words") && used[1] == next,
            "{used:?}"
        );
        let size = self.ring("size")?;
        let head = self.numbers(&format!("x/1uh {:#x}", driver + 4 + 2 * (next % size)))?;
        ensure!(head == [self.ring("head")?], "{head:?}");
        let event = self.numbers(&format!("x/1uh {:#x}", device + 4 + 8 * size))?;
        ensure!(
            event == [next] && event == [self.ring("avail_event")?],
            "{event:?}"
        );
        let descriptor = self.ring("descriptors")? + 16 * head[0];
        let descriptor = self.numbers(&format!("x/4xw {descriptor:#x}"))?;
        // The datagram of 32 bytes, with the headers of UDP, IPv4, Ethernet and virtio-net.
        ensure!(
            (84..=86).contains(&descriptor[2]),
            "{descriptor:x?} of a frame"
        );
        Ok(())
    }

    /// The next descriptor is available, and that is where the device wants to be told.
    fn shows_a_packed_ring(&self) -> Result<()> {
        let next = self.ring("next")? & 0x7fff;
        let place = self.ring("descriptors")? + 16 * next;
        let descriptor = self.numbers(&format!("x/4xw {place:#x}"))?;
        let (avail, used) = (descriptor[3] >> 23 & 1, descriptor[3] >> 31 & 1);
        ensure!(avail != used, "{descriptor:x?}");
        ensure!((84..=86).contains(&descriptor[2]), "{descriptor:x?}");
        let device = self.numbers(&format!("x/2xh {:#x}", self.ring("device")?))?;
        ensure!(
            device == self.words("device_words") && device[0] & 0x7fff == next && device[1] == 2,
            "{device:x?}"
        );
        let driver = self.numbers(&format!("x/2xh {:#x}", self.ring("driver")?))?;
        ensure!(driver == self.words("driver_words"), "{driver:x?}");
        Ok(())
    }
}
