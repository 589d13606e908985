//! The guest in networks that others made: dnsmasq, radvd, Linux as a bridge that
//! snoops and as a router. Needs root.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::guest::Guest;
use kickpath::install::{CURL, DNSMASQ, IPROUTE2, PING, RADVD};
use kickpath::wire::{Plan, Tap};
use kickpath_abi::config::Ipv4Config;
use kickpath_abi::status::Status;
use kickpath_tests::{Spec, Suite, UP, setup};
use serde_json::json;
use tempfile::TempDir;

use crate::site::{BOUND, GUEST, LINK_LOCAL, Site, output};

/// The guest's address under radvd's prefix, and that prefix.
const GLOBAL: &str = "2001:db8:77:0:5054:ff:fe4b:5001";
const PREFIX: &str = "2001:db8:77::/64";
/// A host behind Linux as a router.
const FAR: &str = "192.0.2.2";
const FAR_V6: &str = "2001:db8:99::2";

pub fn add(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("networks::dnsmasq", dnsmasq);
        Site::test(suite, "networks::radvd", segments_of_one_size(), radvd);
        Site::test(
            suite,
            "networks::a_bridge_that_snoops",
            Spec::pc(),
            snooping_bridge,
        );
        Site::test(
            suite,
            "networks::linux_looks_for_duplicates",
            Spec::pc(),
            duplicates,
        );
        Site::test(
            suite,
            "networks::a_router_with_a_narrow_link",
            Spec::pc(),
            narrow_router,
        );
    });
}

/// A server that ends with the test.
struct Server {
    child: Child,
    _files: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(command: &mut Command, files: TempDir) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let _files = files;
        Ok(Self { child, _files })
    }

    /// A DHCP server that has this one address to give, with this mask.
    fn dnsmasq(tap: &Tap, address: &str, mask: &str) -> Result<Self> {
        let files = TempDir::new()?;
        let leases = files.path().join("leases");
        Self::start(
            tap.command("dnsmasq")
                .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
                .args([
                    "--interface=tap0",
                    "--except-interface=lo",
                    "--bind-interfaces",
                ])
                .args([
                    "--dhcp-authoritative",
                    "--no-ping",
                    "--user=root",
                    "--pid-file",
                ])
                .arg(format!(
                    "--dhcp-range={address},{address},255.255.255.0,120"
                ))
                .arg(format!("--dhcp-option-force=option:netmask,{mask}"))
                .arg("--dhcp-option=option:router,10.0.2.2,10.0.2.3")
                .arg(format!("--dhcp-leasefile={}", leases.display())),
            files,
        )
    }

    /// A router that advertises [`PREFIX`], a prefix that is not on the link, and a
    /// link smaller than the device's.
    fn radvd(tap: &Tap) -> Result<Self> {
        let files = TempDir::new()?;
        let config = files.path().join("radvd.conf");
        let pid = files.path().join("radvd.pid");
        std::fs::write(
            &config,
            format!(
                "interface tap0 {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; \
                 AdvLinkMTU 1400; prefix {PREFIX} {{ }}; \
                 prefix 2001:db8:78::/64 {{ AdvOnLink off; }}; }};"
            ),
        )?;
        let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
        output(
            tap.command("sh")
                .args(["-c", &format!("echo 1 > {forwarding}")]),
        )?;
        let address = "2001:db8:77::1/64";
        output(
            tap.command("ip")
                .args(["addr", "add", address, "dev", "tap0", "nodad"]),
        )?;
        let paths = [&config, &pid].map(|path| path.display().to_string());
        Self::start(
            tap.command("radvd")
                .args(["-n", "-m", "stderr", "-C", &paths[0], "-p", &paths[1]]),
            files,
        )
    }
}

/// Tries until it is so.
fn until<T>(what: &str, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + BOUND;
    loop {
        match attempt() {
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(what.to_owned()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            done => return done,
        }
    }
}

fn ip(tap: &Tap, arguments: &str) -> Result<()> {
    output(tap.command("ip").args(arguments.split(' '))).map(drop)
}

fn status_at(tap: &Tap, address: &str) -> Result<Status> {
    let url = format!("http://{address}/stats.json");
    let report = output(tap.command("curl").args(["-sS", "-f", "-m", "5", &url]))?;
    Ok(serde_json::from_str(&report)?)
}

fn set_link(guest: &Guest, up: bool) -> Result<()> {
    guest.qmp("set_link", json!({"name": "net0", "up": up}))?;
    let line = if up {
        "the link is up"
    } else {
        "the link is down"
    };
    guest.wait_for_console(line, BOUND)?;
    Ok(())
}

fn dnsmasq() -> Result<()> {
    setup::setup()?;
    setup::require(&[IPROUTE2, PING, CURL, DNSMASQ])?;
    let tap = Tap::new(&Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?, 1)?;
    // A lease of an address and no network, so that the router is outside.
    let server = Server::dnsmasq(&tap, GUEST, "255.255.255.255")?;
    let (guest, _) = Spec::pc().ipv4(Ipv4Config::Dhcp).launch_on(tap.net())?;
    let check = || {
        guest.wait_for_console(UP, BOUND)?;
        let network = until("the first lease", || Ok(status_at(&tap, GUEST)?.network))?;
        ensure!(network.ipv4 == [format!("{GUEST}/32")], "{network:?}");
        ensure!(network.ipv4_source == "dhcp", "{network:?}");
        ensure!(network.gateway == "10.0.2.2", "{network:?}");
        // Another network, with the same cable.
        set_link(&guest, false)?;
        drop(server);
        let _server = Server::dnsmasq(&tap, "10.0.2.77", "255.255.255.0")?;
        set_link(&guest, true)?;
        let network = until("the second lease", || {
            Ok(status_at(&tap, "10.0.2.77")?.network)
        })?;
        ensure!(network.ipv4 == ["10.0.2.77/24"], "{network:?}");
        ensure!(network.ipv4_source == "dhcp", "{network:?}");
        Ok(())
    };
    check().map_err(|error: anyhow::Error| {
        anyhow!(
            "{}",
            guest.failure(kickpath::guest::Cause::Other(format!("{error:#}")))
        )
    })
}

/// No segment is larger than the path, because the device cuts none.
fn segments_of_one_size() -> Spec {
    Spec::pc().config(|config| config.features_off = "host_tso4,host_tso6".into())
}

fn radvd(site: &Site) -> Result<()> {
    setup::require(&[RADVD])?;
    let _server = Server::radvd(&site.tap)?;
    let network = until("addresses under the prefixes", || {
        let network = site.status()?.network;
        ensure!(network.ipv6.len() == 3, "{network:?}");
        Ok(network)
    })?;
    let other = "2001:db8:78:0:5054:ff:fe4b:5001/128".to_owned();
    ensure!(
        network.ipv6.contains(&format!("{GLOBAL}/64")),
        "{network:?}"
    );
    ensure!(network.ipv6.contains(&other), "{network:?}");
    site.ping(&["-6", "-c", "3", GLOBAL])?;
    let largest = largest_segment(site)?;
    // Headers of IPv6 and TCP take 60 bytes of the link's MTU.
    ensure!(
        (1300..=1340).contains(&largest),
        "segments of {largest} bytes"
    );
    Ok(())
}

/// The largest segment that a connection to the character generator brought, as
/// Linux tells it.
fn largest_segment(site: &Site) -> Result<usize> {
    site.inside(|| {
        let address = format!("[{GLOBAL}]:19").parse()?;
        let mut stream = TcpStream::connect_timeout(&address, BOUND)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.read_exact(&mut vec![0; 200_000])?;
        let sockets = output(Command::new("ss").args(["-6tinH", "dst", &format!("[{GLOBAL}]")]))?;
        let size = sockets
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("rcvmss:"));
        let size = size.filter_map(|size| size.parse().ok()).max();
        size.with_context(|| format!("no connection in: {sockets}"))
    })
}

/// A bridge that sends a group's frames only to those who report it.
fn snooping_bridge(site: &Site) -> Result<()> {
    let tap = &site.tap;
    ip(
        tap,
        "link add br0 type bridge mcast_snooping 1 mcast_querier 1 \
         mcast_query_response_interval 100 mcast_startup_query_interval 100",
    )?;
    ip(tap, "link set tap0 master br0")?;
    ip(tap, "link set br0 up")?;
    let group = "ff02::1:ff4b:5001";
    until("the guest's report", || {
        let groups = output(tap.command("bridge").args(["mdb", "show", "dev", "br0"]))?;
        ensure!(groups.contains(group), "{groups}");
        Ok(())
    })?;
    // By then the bridge trusts its own queries, too, and floods nothing.
    std::thread::sleep(Duration::from_millis(1500));
    let target = format!("{LINK_LOCAL}%br0");
    until("an address on the bridge", || {
        site.ping(&["-6", "-c", "1", &target])
    })?;
    ip(tap, "neigh flush dev br0")?;
    site.ping(&["-6", "-c", "3", "-i", "0.1", &target])?;
    ip(tap, "link set tap0 nomaster")
}

/// Linux wants an address that the guest has.
fn duplicates(site: &Site) -> Result<()> {
    // Who wants it while the guest is not yet sure gets it (RFC 4429, 3.3).
    until("an address that is the guest's own", || {
        let uptime = site.status()?.cpu.uptime_us;
        ensure!(uptime > 5_000_000, "up for {uptime} us only");
        Ok(())
    })?;
    let dad = "/proc/sys/net/ipv6/conf/tap0/accept_dad";
    output(
        site.tap
            .command("sh")
            .args(["-c", &format!("echo 1 > {dad}")]),
    )?;
    ip(&site.tap, &format!("addr add {LINK_LOCAL}/64 dev tap0"))?;
    until("the address found to be in use", || {
        let addresses = output(site.tap.command("ip").args(["addr", "show", "dev", "tap0"]))?;
        ensure!(addresses.contains("dadfailed"), "{addresses}");
        Ok(())
    })?;
    ip(&site.tap, &format!("addr del {LINK_LOCAL}/64 dev tap0"))
}

/// A host behind the namespace of the tap, in one of its own.
struct FarHost(String);

impl Drop for FarHost {
    fn drop(&mut self) {
        // What is left is removed by the next run.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl FarHost {
    /// Joins it by a link that carries `mtu` bytes on the router's side only, so
    /// that nobody but the router knows.
    fn join(tap: &Tap, mtu: u16) -> Result<Self> {
        let name = format!("kickpath-{}-999{mtu}", std::process::id());
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let far = Self(name);
        ip(
            tap,
            &format!(
                "link add r0 mtu {mtu} type veth peer name r1 netns {}",
                far.0
            ),
        )?;
        for (file, value) in [("ipv4/ip_forward", 1), ("ipv6/conf/all/forwarding", 1)] {
            let write = format!("echo {value} > /proc/sys/net/{file}");
            output(tap.command("sh").args(["-c", &write]))?;
        }
        for address in ["192.0.2.1/24", "2001:db8:99::1/64"] {
            ip(tap, &format!("addr add {address} dev r0"))?;
        }
        ip(tap, "link set r0 up")?;
        for line in [
            "link set lo up",
            "link set r1 mtu 1500",
            "link set r1 up",
            &format!("addr add {FAR}/24 dev r1"),
            &format!("addr add {FAR_V6}/64 dev r1 nodad"),
            "route add default via 192.0.2.1",
            "route add default via 2001:db8:99::1",
        ] {
            let line = line.split(' ');
            output(Command::new("ip").args(["-n", &far.0]).args(line))?;
        }
        Ok(far)
    }

    fn curl(&self, url: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args([
            "netns", "exec", &self.0, "curl", "-sS", "-f", "-g", "-m", "20", url,
        ]);
        output(&mut command)
    }
}

fn narrow_router(site: &Site) -> Result<()> {
    setup::require(&[RADVD])?;
    ensure!(Path::new("/run/netns").is_dir(), "no network namespaces");
    let _server = Server::radvd(&site.tap)?;
    let far = FarHost::join(&site.tap, 1280)?;
    let page = site.curl(&format!("http://{GUEST}/"))?;
    ensure!(page.len() > 10_000, "the page has {} bytes", page.len());
    ensure!(
        far.curl(&format!("http://{GUEST}/"))? == page,
        "another page"
    );
    until("an address under the prefix", || {
        let network = site.status()?.network;
        ensure!(network.ipv6.len() == 3, "{network:?}");
        Ok(())
    })?;
    let url = format!("http://[{GLOBAL}]/");
    ensure!(
        until("IPv6", || far.curl(&url))? == page,
        "another page by IPv6"
    );
    // Linux has sent what the guest went by.
    let snmp = output(site.tap.command("cat").arg("/proc/net/snmp6"))?;
    let too_big = snmp
        .lines()
        .find(|line| line.starts_with("Icmp6OutPktTooBigs"));
    let count = too_big.and_then(|line| line.split_whitespace().last());
    ensure!(
        count.is_some_and(|count| count != "0"),
        "no packet was too big: {snmp}"
    );
    Ok(())
}
