//! Checksums and segments that the device makes for the guest, verified by a
//! Linux that trusts none of them: between the tap and its network stack is a
//! cable whose driver has no offloads, so that the kernel computes every checksum
//! and cuts every large segment where the guest's headers say, and the far side
//! verifies the frames that come of it. With a VLAN's tag, too. Needs root.
//!
//!     guest -- tap0 -- bridge -- v0 ==== v1 -- relay -- tap0 -- Linux's stack
//!              namespace of the tap      another namespace
//!
//! The relay is the far side's interface of the VLAN: it takes the tag off and puts
//! it on, for a kernel that has no such interfaces of its own.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::guest::Cause;
use kickpath::install::{ETHTOOL, TCPDUMP};
use kickpath::session::fetch_status;
use kickpath::wire::{FarEnd, HostSockets};
use kickpath_tests::{Spec, Suite, setup};
use nix::libc;

use crate::packet_socket::PacketSocket;
use crate::site::{BOUND, LINK_LOCAL, Site, output};

const VLAN: u16 = 5;
const MIB: usize = 1 << 20;

pub fn add(suite: &mut Suite) {
    let missing = setup::lacks_tap().or_else(lacks_bridge);
    suite.needs(missing, |suite| {
        for (name, vlan) in [("are_right", None), ("are_right_behind_a_tag", Some(VLAN))] {
            let spec = Spec::pc().config(move |config| config.vlan = vlan);
            suite.test(&format!("checksums::{name}"), move || {
                let site = Site::new(spec)?;
                are_right(&site, vlan).map_err(|error| {
                    anyhow!("{}", site.guest.failure(Cause::Other(format!("{error:#}"))))
                })
            });
        }
    });
}

/// Whether this kernel lacks what the cable is made of.
fn lacks_bridge() -> Option<String> {
    let scratch = Namespace::new().ok()?;
    for kind in ["bridge", "veth"] {
        let made = ip(&["-n", &scratch.0, "link", "add", "x", "type", kind]);
        if let Err(error) = made {
            return Some(format!("this kernel makes no {kind}: {error:#}"));
        }
        ip(&["-n", &scratch.0, "link", "del", "x"]).ok()?;
    }
    None
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

/// A network namespace, swept like those of taps should this process be killed.
struct Namespace(String);

impl Namespace {
    fn new() -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(10_000);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kickpath-{}-{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        Ok(Self(name))
    }

    fn file(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left is swept by the next run.
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn are_right(site: &Site, vlan: Option<u16>) -> Result<()> {
    setup::require(&[ETHTOOL, TCPDUMP])?;
    let near = site.tap.namespace();
    let far = Namespace::new()?;
    ip(&["-n", near, "addr", "flush", "dev", "tap0"])?;
    ip(&["-n", near, "link", "add", "br0", "type", "bridge"])?;
    ip(&[
        "-n", near, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", &far.0,
    ])?;
    for device in ["tap0", "v0"] {
        ip(&["-n", near, "link", "set", device, "master", "br0"])?;
    }
    for device in ["v0", "br0"] {
        ip(&["-n", near, "link", "set", device, "up"])?;
    }
    let off = ["-K", "v0", "tx", "off", "txvlan", "off"];
    output(site.tap.command("ethtool").args(off))?;
    ip(&["-n", &far.0, "link", "set", "v1", "up"])?;
    let relay = Relay::start(&far, vlan)?;
    ip(&["-n", &far.0, "link", "set", "lo", "up"])?;
    ip(&["-n", &far.0, "addr", "add", "10.0.2.2/24", "dev", "tap0"])?;
    ip(&["-n", &far.0, "link", "set", "tap0", "up"])?;

    let mut filter = String::from("ether src 52:54:00:4b:50:01");
    if let Some(id) = vlan {
        filter = format!("{filter} and vlan {id}");
    }
    let mut dump = far.command("tcpdump");
    dump.args([
        "-i",
        "v1",
        "-Z",
        "root",
        "-nn",
        "-e",
        "-vv",
        "-l",
        "--immediate-mode",
    ]);
    dump.arg(filter)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut dump = dump.spawn()?;
    let mut stdout = dump.stdout.take().context("no stdout")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let mut said = [0; 1];
    dump.stderr
        .as_mut()
        .context("no stderr")?
        .read_exact(&mut said)?;

    let traffic = traffic(site, &HostSockets::in_namespace(far.file()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(dump.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT)?;
    dump.wait()?;
    let text = reader
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    drop(relay);
    traffic?;
    let count = |what: &str| text.matches(what).count();
    let (tcp, udp) = (count("(correct)"), count("udp sum ok"));
    eprintln!("checksums: tcpdump found those of {tcp} TCP segments and {udp} datagrams correct");
    for wrong in ["incorrect", "bad udp cksum", "bad-cksum"] {
        ensure!(count(wrong) == 0, "{wrong}: {text:.3000}");
    }
    ensure!(tcp > 1000 && udp >= 10, "{text:.3000}");
    Ok(())
}

/// TCP and UDP over IPv4 and IPv6, all content compared. No segment that Linux
/// got had a wrong checksum.
fn traffic(site: &Site, sockets: &HostSockets) -> Result<()> {
    let both: [IpAddr; 2] = [site.address(), LINK_LOCAL.parse()?];
    for address in both {
        for size in [1, 2, 63, 64, 999, 1440] {
            sockets.udp_echo(address, size, BOUND)?;
        }
        sockets.tcp_echo(address, 2 * MIB, BOUND)?;
    }
    let status = fetch_status(sockets, site.address(), BOUND)?;
    let counters = status.counters;
    ensure!(
        counters.tx_checksum_offloaded > 100
            && counters.tx_coalesced > 20
            && counters.tx_segmented > counters.tx_coalesced + 20
            && counters.rx_errors + counters.tx_errors == 0,
        "{counters:?}"
    );
    Ok(())
}

/// Carries frames between the cable's end and a tap of the far side.
struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Relay {
    fn start(far: &Namespace, vlan: Option<u16>) -> Result<Self> {
        let file = File::open(far.file())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let made = PacketSocket::bind(c"v1").and_then(|cable| Ok((cable, tap()?)));
            let (cable, tap) = match made {
                Ok(made) => made,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let _ = ready.send(Ok(()));
            while !stopped.load(Ordering::Relaxed) {
                relay(cable.as_fd(), tap.as_fd(), vlan)?;
            }
            Ok(())
        });
        is_ready.recv().context("the relay ended")??;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            eprintln!("checksums: the relay failed: {error}");
        }
    }
}

/// A tap without offloads: what comes from it is verified.
fn tap() -> io::Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: an `ifreq` is plain data; all zeroes is an empty name. TUNSETIFF
    // reads and writes one, which outlives the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        if libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // Nobody else has its address.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/tap0/accept_dad", "0");
    Ok(file.into())
}

/// Waits for frames, for a short time, and carries one each way.
fn relay(cable: BorrowedFd<'_>, tap: BorrowedFd<'_>, vlan: Option<u16>) -> io::Result<()> {
    let poll = |fd: BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls = [poll(cable), poll(tap)];
    // SAFETY: two `pollfd`s, which outlive the call.
    if unsafe { libc::poll(polls.as_mut_ptr(), 2, 50) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut frame = vec![0; 66_000];
    if polls[0].revents & libc::POLLIN != 0 {
        // SAFETY: buffer and address are as long as said and outlive the call.
        let (length, kind) = unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            let length = libc::recvfrom(
                cable.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            );
            (length, from.sll_pkttype)
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        // The kernel has taken a tag off already (`skb_vlan_untag`); `tcpdump`
        // says that it was there.
        if kind != libc::PACKET_OUTGOING {
            // While the tap is down, nothing goes in.
            let _ = nix::unistd::write(tap, &frame[..length]);
        }
    }
    if polls[1].revents & libc::POLLIN != 0 {
        let length = nix::unistd::read(tap, &mut frame)?;
        frame.truncate(length);
        if let Some(id) = vlan {
            let [a, b] = id.to_be_bytes();
            frame.splice(12..12, [0x81, 0x00, a, b]);
        }
        nix::unistd::write(cable, &frame)?;
    }
    Ok(())
}
