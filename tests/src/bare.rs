//! The driver's example kernels for other CPUs (`kernel/virtio-net/examples/bare`),
//! each in QEMU with a host at the far end of its cable.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use command_fds::{CommandFdExt, FdMapping};
use kickpath::guest::qmp::{self, Message, Monitored};
use kickpath::install::{self, Requirement};
use kickpath::qemu::{self, Net};
use kickpath::toolchain::{self, BuildOptions, ToolchainError};
use kickpath::wire::peer::{Flood, Peer, PeerOptions};
use kickpath::wire::{Dgram, FarEnd, Plan, Recorder};
use kickpath_abi::config::{Ipv4Cidr, Ipv4Config};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::memory::{queue_status, read_physical};
use crate::setup::{policy, require, show};
use crate::suite::Skip;

/// The address that the kernels have.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The bound for a boot, on a machine that emulates other guests as well.
const BOOT: Duration = Duration::from_secs(60);
/// The bound for one answer.
const ANSWER: Duration = Duration::from_secs(20);

/// A CPU that there is a kernel for.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// The name of the example.
    pub name: &'static str,
    target: &'static str,
    qemu: Requirement,
    machine: &'static [&'static str],
}

impl Cpu {
    /// Every one.
    pub const ALL: [Self; 2] = [
        Self {
            name: "aarch64",
            target: "aarch64-unknown-none-softfloat",
            qemu: install::QEMU_AARCH64,
            machine: &["-machine", "virt", "-cpu", "cortex-a57"],
        },
        Self {
            name: "riscv64",
            target: "riscv64imac-unknown-none-elf",
            qemu: install::QEMU_RISCV64,
            machine: &["-machine", "virt", "-bios", "none"],
        },
    ];

    /// Builds the kernel.
    fn build(self) -> Result<PathBuf> {
        let arguments = ["build", "--locked", "--release", "--bin", self.name];
        let directory = "kernel/virtio-net/examples/bare";
        let built = build(self.target, directory, &arguments, "-Dwarnings")?;
        Ok(built.join("release").join(self.name))
    }
}

/// As [`toolchain::build_for`], one at a time; a machine that has no toolchain for
/// it and can get none skips the test.
///
/// # Errors
/// What the compiler has to say.
pub fn build(target: &str, directory: &str, arguments: &[&str], flags: &str) -> Result<PathBuf> {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let options = BuildOptions::from_env(policy())?;
    let built = toolchain::build_for(target, directory, arguments, flags, &options, &mut show);
    built.map_err(|error| match error {
        ToolchainError::Build { .. } => error.into(),
        other => Skip(format!("{target}: {}", reason(&other))).into(),
    })
}

/// What an error says, as a reason that stands in a list.
fn reason(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.join(" ")
}

/// QEMU's monitor in this process.
const MONITOR: i32 = 3;

/// A running kernel and the host at the far end of its cable.
pub struct Bare {
    /// The host.
    pub peer: Peer,
    qemu: Child,
    monitor: UnixStream,
    lines: Receiver<String>,
    /// What it has printed.
    seen: Vec<String>,
}

impl Bare {
    /// Builds and starts the kernel on a machine with this device, given as
    /// QEMU's arguments without the `netdev`. `words` are its command line.
    ///
    /// # Errors
    /// The kernel does not compile, or QEMU does not start; [`Skip`] where this
    /// machine has neither and can get none.
    pub fn launch(cpu: Cpu, device: &str, more: &[&str], words: &str) -> Result<Self> {
        require(&[cpu.qemu]).map_err(|error| Skip(reason(&*error.into_boxed_dyn_error())))?;
        let kernel = cpu.build()?;
        let wire = Dgram::new(Recorder::new(None)?)?;
        let Net::Dgram { qemu: near, host } = wire.net() else {
            return Err(anyhow!("the cable is another"));
        };
        let mut netdev = OsString::from("dgram,id=net,local.type=unix,local.path=");
        netdev.push(near);
        netdev.push(",remote.type=unix,remote.path=");
        netdev.push(host);
        let plan = Plan::new(Ipv4Config::Static(Ipv4Cidr {
            address: ADDRESS,
            prefix: 24,
        }))?;
        let peer = Peer::new(wire, plan, PeerOptions::of(&plan))?;
        let (monitor, theirs) = UnixStream::pair()?;
        let mut command = Command::new(format!("qemu-system-{}", cpu.name));
        command
            .args(cpu.machine)
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio", "-m", "128M"])
            .args(["-smp", &qemu::tcg_cpus(1)])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", words])
            .args(more)
            .args(["-chardev", &format!("socket,id=qmp,fd={MONITOR}")])
            .args(["-qmp", "chardev:qmp"])
            .arg("-netdev")
            .arg(netdev)
            .args(["-device", &format!("{device},netdev=net")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .fd_mappings(vec![FdMapping {
                parent_fd: theirs.into(),
                child_fd: MONITOR,
            }])?;
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe {
            // It ends with this thread, which is the test's, if that is killed.
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut qemu = command.spawn().context("QEMU does not start")?;
        // With it goes our copy of QEMU's end.
        drop(command);
        let output = qemu.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        // Ends with QEMU.
        thread::spawn(move || {
            let lines = BufReader::new(output).lines();
            lines
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok())
        });
        let kernel = Self {
            peer,
            qemu,
            monitor,
            lines,
            seen: Vec::new(),
        };
        kernel.monitor.set_read_timeout(Some(BOOT))?;
        kernel.qmp("qmp_capabilities", Value::Null)?;
        Ok(kernel)
    }

    /// Waits until the kernel prints a line with this in it, or has; returns that
    /// line.
    ///
    /// # Errors
    /// It does not, in a minute.
    pub fn wait_for(&mut self, what: &str) -> Result<String> {
        let deadline = Instant::now() + BOOT;
        loop {
            if let Some(line) = self.seen.iter().find(|line| line.contains(what)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(anyhow!("no line with {what:?}: {}", self.said()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(anyhow!("QEMU ended before {what:?}: {}", self.said()));
                }
            }
        }
    }

    /// Everything that it has printed.
    pub fn said(&mut self) -> String {
        self.seen.extend(self.lines.try_iter());
        self.seen.join("\n")
    }

    /// Has it answer pings, 20,000 UDP echoes with none lost, and TCP with its
    /// content compared.
    ///
    /// # Errors
    /// An answer is missing or wrong; with what the kernel said, and where both sides
    /// are in the queues.
    pub fn check(&mut self) -> Result<()> {
        self.serves().map_err(|error| {
            let queues = [0, 1].map(|queue| match self.queue(queue) {
                Ok(state) => state,
                Err(error) => format!("queue {queue}: {error:#}"),
            });
            error.context(format!("{}\n{}", self.said(), queues.join("\n")))
        })
    }

    /// How far driver and device are in a split queue, and where each wants to be told.
    fn queue(&self, queue: u16) -> Result<String> {
        let status = queue_status(self, queue)?;
        let size = u64::from(status.vring_num);
        let word = |address| match read_physical(self, address, 2)?[..] {
            [low, high] => Ok(u16::from_le_bytes([low, high])),
            _ => Err(anyhow!("not 2 bytes at {address:#x}")),
        };
        Ok(format!(
            "queue {queue}: driver's index {}, device to be told at {}; device has taken {}, \
             its index {}, driver to be told at {}",
            word(status.vring_avail + 2)?,
            word(status.vring_used + 4 + 8 * size)?,
            status.last_avail_idx,
            word(status.vring_used + 2)?,
            word(status.vring_avail + 4 + 2 * size)?,
        ))
    }

    /// Has it answer so many pings of this size.
    ///
    /// # Errors
    /// One is lost, or damaged.
    pub fn ping(&self, count: u32, size: usize) -> Result<()> {
        let report = self.peer.ping(ADDRESS.into(), count, size, ANSWER)?;
        ensure!(report.lost() == 0 && report.corrupted == 0, "{report:?}");
        Ok(())
    }

    fn serves(&self) -> Result<()> {
        for size in [0, 56, 1472] {
            self.ping(5, size)?;
        }
        for (count, size) in [(20_000, 64), (1_000, 1472)] {
            let flood = Flood {
                count,
                size,
                outstanding: 32,
                patience: ANSWER,
                bound: 4 * BOOT,
            };
            let report = self.peer.udp_echo_flood(ADDRESS, flood)?;
            ensure!(
                report.received == count && report.corrupted == 0 && report.unexpected == 0,
                "{report:?}"
            );
        }
        for bytes in [1, 1 << 20] {
            self.peer.tcp_echo(ADDRESS.into(), bytes, BOOT)?;
        }
        Ok(())
    }
}

impl Monitored for Bare {
    fn qmp(&self, name: &str, arguments: Value) -> Result<Value> {
        let mut monitor = &self.monitor;
        monitor.write_all(qmp::command(0, name, arguments).as_bytes())?;
        // A byte at a time, so that nothing is left between two commands.
        let mut lines = BufReader::with_capacity(1, monitor).lines();
        loop {
            let line = lines.next().context("QEMU's monitor is closed")??;
            if let Message::Reply(_, reply) = Message::parse(&line)? {
                return Ok(reply?);
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
