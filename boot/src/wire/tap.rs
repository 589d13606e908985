//! A tap device in a network namespace of its own: the kernel's network stack
//! at the far end. Needs root.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::namespace::{DEVICE, enter};
use super::plan::ULA_PREFIX_LEN;
use super::{HostSockets, Plan, Watch, left};
use crate::qemu::Net;

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";

/// Every namespace of ours starts with this, and the number of its process.
const PREFIX: &str = "kickpath-";

/// How long an `ip` command may take.
const COMMAND_BOUND: Duration = Duration::from_secs(20);

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not root.
    #[error(
        "--net tap needs root, for a network namespace and a tap device in it; \
         --net dgram and --net user need no rights"
    )]
    NotRoot,
    /// A command could not be run.
    #[error("cannot run '{command}': {source}")]
    Run {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// A command failed.
    #[error("'{command}' failed: {message}")]
    Command {
        /// The command.
        command: String,
        /// What it said.
        message: String,
    },
    /// The tap device could not be made.
    #[error("cannot make a tap device by /dev/net/tun: {0}")]
    Device(io::Error),
    /// Its frames could not be recorded.
    #[error("cannot record the tap's frames by a packet socket: {0}")]
    Watch(io::Error),
}

/// A namespace with one end of a cable in it. Dropping it removes both.
#[derive(Debug)]
pub struct Tap {
    namespace: String,
    /// The device, a descriptor a queue; none once it is handed over.
    queues: Vec<OwnedFd>,
}

impl Tap {
    /// Makes a namespace and a tap device in it with the host's addresses and
    /// `queues` queues (Linux allows 256), one if that is 0.
    /// What runs that were killed have left behind is removed first.
    ///
    /// # Errors
    /// No root, no `ip` command, or a kernel without namespaces or taps.
    pub fn new(plan: &Plan, queues: u16) -> Result<Self, TapError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        Self::check_rights()?;
        sweep();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace(format!("{PREFIX}{}-{number}", std::process::id()));
        let name = namespace.0.as_str();
        ip(&["netns", "add", name])?;
        let queues = open_inside(&namespace.file(), queues).map_err(TapError::Device)?;
        let v4 = format!("{}/{}", plan.host, plan.guest.prefix);
        let v6 = format!("{}/{ULA_PREFIX_LEN}", plan.host_ula());
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "addr", "add", &v4, "dev", DEVICE])?;
        // A kernel without IPv6 still has a working cable.
        if let Err(error) = ip(&["-n", name, "addr", "add", &v6, "dev", DEVICE, "nodad"]) {
            log::warn!("no IPv6 on the tap: {error}");
        }
        ip(&["-n", name, "link", "set", DEVICE, "up"])?;
        Ok(Self {
            namespace: namespace.keep(),
            queues,
        })
    }

    /// Whether this user may make a tap at all.
    ///
    /// # Errors
    /// [`TapError::NotRoot`].
    pub fn check_rights() -> Result<(), TapError> {
        if nix::unistd::geteuid().is_root() {
            Ok(())
        } else {
            Err(TapError::NotRoot)
        }
    }

    /// Sets the largest IP packet of the host's end, in bytes.
    ///
    /// # Errors
    /// The system refuses this MTU.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        let mtu = mtu.to_string();
        ip(&["-n", &self.namespace, "link", "set", DEVICE, "mtu", &mtu])
    }

    /// Gives the host's end further addresses, each the only one of its network.
    ///
    /// # Errors
    /// The system refuses one.
    pub fn add_addresses(&self, addresses: &[Ipv4Addr]) -> Result<(), TapError> {
        // One process for all of them.
        let mut batch = String::new();
        for address in addresses {
            batch += &format!("addr add {address}/32 dev {DEVICE}\n");
        }
        let mut file = tempfile::NamedTempFile::new().map_err(TapError::Device)?;
        file.write_all(batch.as_bytes()).map_err(TapError::Device)?;
        let path = file.path().to_string_lossy().into_owned();
        ip(&["-n", &self.namespace, "-batch", &path])
    }

    /// Lets the device, which has one queue, go: it stays in its namespace until that is
    /// removed, for a VMM that opens it by its name.
    ///
    /// # Errors
    /// The system refuses.
    pub fn hand_over(&mut self) -> Result<(), TapError> {
        for queue in self.queues.drain(..) {
            // SAFETY: TUNSETPERSIST takes an integer by value; the descriptor is open.
            if unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST as _, 1) } < 0 {
                return Err(TapError::Device(io::Error::last_os_error()));
            }
        }
        Ok(())
    }

    /// The VMM's half of the description of this cable: it inherits the device, or opens it
    /// after [`Tap::hand_over`].
    pub fn net(&self) -> Net {
        if self.queues.is_empty() {
            return Net::TapName {
                name: DEVICE.to_owned(),
                queues: 1,
                namespace: Some(self.file()),
            };
        }
        Net::TapFds(self.queues.iter().map(AsRawFd::as_raw_fd).collect())
    }

    /// The namespace's file.
    pub(super) fn file(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.namespace)
    }

    /// The name of the namespace, for `ip netns exec`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// This machine's sockets inside of the namespace.
    pub fn sockets(&self) -> HostSockets {
        HostSockets::in_namespace(self.file())
    }

    /// Takes note of every frame that passes from now on.
    ///
    /// # Errors
    /// [`TapError::Watch`].
    pub fn watch(&self) -> Result<Watch, TapError> {
        Watch::new(&self.file()).map_err(TapError::Watch)
    }

    /// A command that runs inside of the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace])
            .arg(program);
        command
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        remove(&self.namespace);
    }
}

/// A namespace that is removed unless it is kept.
struct Namespace(String);

impl Namespace {
    fn file(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.0)
    }

    fn keep(mut self) -> String {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            remove(&self.0);
        }
    }
}

fn remove(namespace: &str) {
    if Path::new(NAMESPACES).join(namespace).exists()
        && let Err(error) = ip(&["netns", "del", namespace])
    {
        log::warn!("{error}");
    }
}

/// Removes the namespaces of runs that are no more.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str()
            && let Some(pid) = owner(name)
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            log::info!("removing {name}, left behind by a run that was killed");
            remove(name);
        }
    }
}

/// The process that made a namespace of ours.
fn owner(namespace: &str) -> Option<u32> {
    let (pid, number) = namespace.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// Runs `ip`. Not by [`crate::command`], which ends programs on Ctrl-C: what
/// was made must then still be removed.
fn ip(arguments: &[&str]) -> Result<(), TapError> {
    let command = || format!("ip {}", arguments.join(" "));
    let attempt = || -> io::Result<(ExitStatus, String)> {
        let mut child = Command::new("ip")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Not to be ended by the terminal's Ctrl-C either.
            .process_group(0)
            .spawn()?;
        let deadline = Instant::now() + COMMAND_BOUND;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if left(deadline).is_zero() => {
                    child.kill()?;
                    child.wait()?;
                    return Err(io::ErrorKind::TimedOut.into());
                }
                None => thread::sleep(Duration::from_millis(2)),
            }
        };
        let mut message = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut message)?;
        }
        Ok((status, message))
    };
    match attempt() {
        Ok((status, _)) if status.success() => Ok(()),
        Ok((status, message)) => Err(TapError::Command {
            command: command(),
            message: match message.trim() {
                "" => status.to_string(),
                message => message.to_owned(),
            },
        }),
        Err(source) => Err(TapError::Run {
            command: command(),
            source,
        }),
    }
}

/// Opens a tap device from a thread that has entered the namespace: a device
/// is born in the namespace of the thread that asks for it.
fn open_inside(namespace: &Path, queues: u16) -> io::Result<Vec<OwnedFd>> {
    thread::scope(|scope| {
        let opener = scope.spawn(|| {
            enter(namespace)?;
            let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
            let queues = (0..queues.max(1)).map(|_| open_tap(several)).collect();
            // Nobody else is on this cable: the kernel's own link-local address
            // needs no probing for duplicates, and is there at once. (A kernel
            // without IPv6 has no such file.)
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/accept_dad"), "0");
            queues
        });
        opener
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Linux, Documentation/networking/tuntap.rst. With `IFF_VNET_HDR` frames
/// carry virtio-net's header between kernel and QEMU, so that offloads that a
/// guest negotiates reach the kernel. With `IFF_MULTI_QUEUE` every descriptor
/// opened for the same name is one more queue of the device.
fn open_tap(several: libc::c_int) -> io::Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: an `ifreq` is plain data; all zeroes is an empty name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{self, Policy};
    use kickpath_abi::config::Ipv4Config;

    #[test]
    fn a_namespace_names_its_process() {
        assert_eq!(owner("kickpath-123-0"), Some(123));
        for other in [
            "kickpath-",
            "kickpath-12",
            "kickpath-x-0",
            "kickpath-1-y",
            "123-0",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_tap_comes_and_goes_and_leftovers_are_swept() {
        let plan = Plan::new(Ipv4Config::Dhcp).unwrap();
        if !nix::unistd::geteuid().is_root() {
            assert!(matches!(Tap::new(&plan, 1), Err(TapError::NotRoot)));
            return;
        }
        install::ensure(&[install::IPROUTE2], Policy::Install, &mut |_| ()).unwrap();
        // A process that has ended, and whose number is free again.
        let mut child = Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let leftover = format!("{PREFIX}{dead}-0");
        ip(&["netns", "add", &leftover]).unwrap();

        let tap = Tap::new(&plan, 2).unwrap();
        assert_eq!(tap.net().queue_pairs(), 2);
        assert!(!Path::new(NAMESPACES).join(&leftover).exists());
        let file = Path::new(NAMESPACES).join(tap.namespace());
        assert!(file.exists());
        let output = tap
            .command("ip")
            .args(["addr", "show", DEVICE])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("inet 10.0.2.2/24"), "{text}");
        drop(tap);
        assert!(!file.exists());
    }
}
