//! The guest's configuration: `key=value` words separated by white space, as
//! on a kernel command line.
//!
//! The guest reads them from the PVH command line, else from QEMU's fw_cfg
//! file [`FW_CFG_FILE`], else takes [`Config::default`]. A word that cannot be
//! understood is reported and leaves the default in place.

mod address;
mod mmio_device;
mod words;

pub use address::{Ipv4Cidr, Ipv4Config, parse_ipv4, parse_mac};
pub use mmio_device::{DeviceWord, NotADevice};
pub use words::{
    Bench, GuestOffload, Irq, LogLevel, RxMode, SelfTest, SelfTestAt, Transport, UdpWay,
};

use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::str::FromStr;

use alloc::string::String;
use alloc::vec::Vec;

use crate::steps::Steps;
use address::{Mac, Macs};

/// Name of the fw_cfg file that holds the configuration when there is no
/// command line (`-fw_cfg name=opt/kickpath/config,string=...`).
pub const FW_CFG_FILE: &str = "opt/kickpath/config";

/// The whole configuration, one field a key. The doc comment of a field starts
/// with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `log=LEVEL`
    pub log: LogLevel,
    /// `ip=dhcp|ADDRESS/PREFIX`
    pub ipv4: Ipv4Config,
    /// `gateway=ADDRESS`: the default IPv4 route, with a static address.
    pub gateway: Option<Ipv4Addr>,
    /// `transport=auto|legacy|modern|mmio`
    pub transport: Transport,
    /// `irq=auto|msix|msix-shared|intx|poll`
    pub irq: Irq,
    /// `features=-name,...`: virtio features not to accept, by the
    /// specification's name in lower case without prefix (`-event_idx`).
    pub features_off: String,
    /// `bench=off|tx|rx|udp|kick|trace|peer`
    pub bench: Bench,
    /// `selftest=NAME`
    pub selftest: SelfTest,
    /// `selftest-at=boot|up`
    pub selftest_at: SelfTestAt,
    /// `trace=on|off`: record the tracepoints of the kick path.
    pub trace: bool,
    /// `vlan=ID`: the guest is a host of this VLAN, 1 to 4094, and tags what
    /// it sends.
    pub vlan: Option<u16>,
    /// `mac=ADDRESS`: the hardware address that the device is to have.
    pub mac: Option<[u8; 6]>,
    /// `mtu=BYTES`: largest IP packet, 68 to 65535; what the device says or
    /// 1500 if not given.
    pub mtu: Option<u16>,
    /// `reopen=COUNT`: so often the device is stopped and opened again while
    /// it serves.
    pub reopen: u32,
    /// `reset-queues=COUNT`: so often the receive and then the transmit queue
    /// is reset alone while the device serves.
    pub reset_queues: u32,
    /// `hash-check=on|off`: verify the hashes that the device reports for
    /// received frames, and to which pair of queues it steers them.
    pub hash_check: bool,
    /// `queue-size=COUNT`: largest number of descriptors of a receive or
    /// transmit queue, where the interface leaves a choice, 1 to 32768.
    pub queue_size: Option<u16>,
    /// `netconsole=ADDRESS:PORT`: send the log there by UDP as well.
    pub netconsole: Option<SocketAddrV4>,
    /// `udp=sockets|in-place`: how datagrams reach the UDP services.
    pub udp: UdpWay,
    /// `rx-mode=MODE,.../...`: receive modes, step by step.
    pub rx_mode: Steps,
    /// `unicast=ADDRESS,...`: further unicast addresses that the device is to
    /// let through.
    pub unicast: Vec<[u8; 6]>,
    /// `groups=COUNT`: so many further multicast addresses, from
    /// 01:00:5e:7f:00:00 on (those of 239.255.0.0/16, RFC 2365).
    pub groups: u16,
    /// `vlans=ID,.../...`: VLANs, 0 to 4095, that the device is to let through
    /// beside `vlan`, step by step.
    pub vlans: Steps,
    /// `guest-offloads=NAME,.../...`: receive offloads of those negotiated, all
    /// if not said, step by step.
    pub guest_offloads: Steps,
    /// `fault=NUMBER` or `fault=NUMBER,right`: an experiment of `kickpath lab`, with
    /// what is wrong in it or without.
    pub fault: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log: LogLevel::Info,
            ipv4: Ipv4Config::Dhcp,
            gateway: None,
            transport: Transport::Auto,
            irq: Irq::Auto,
            features_off: String::new(),
            bench: Bench::Off,
            selftest: SelfTest::Off,
            selftest_at: SelfTestAt::Boot,
            trace: false,
            vlan: None,
            mac: None,
            mtu: None,
            reopen: 0,
            reset_queues: 0,
            hash_check: false,
            queue_size: None,
            netconsole: None,
            udp: UdpWay::Sockets,
            rx_mode: Steps::default(),
            unicast: Vec::new(),
            groups: 0,
            vlans: Steps::default(),
            guest_offloads: Steps::default(),
            fault: String::new(),
        }
    }
}

/// Why a word of the configuration was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError<'a> {
    /// The key is not one of [`Config`]'s.
    #[error("unknown configuration key in '{0}'")]
    UnknownKey(&'a str),
    /// The key's value is not one that it can have.
    #[error("configuration {key}='{value}': expected {expected}")]
    BadValue {
        /// The key.
        key: &'a str,
        /// The value that was given.
        value: &'a str,
        /// What could have been given.
        expected: &'static str,
    },
}

impl Config {
    /// Reads the words of `text`; `report` is told of each that is not taken.
    /// When a key comes twice the last good value counts.
    pub fn parse<'a>(text: &'a str, mut report: impl FnMut(ConfigError<'a>)) -> Self {
        let mut config = Self::default();
        for word in text.split_ascii_whitespace() {
            if let Err(error) = config.set(word) {
                report(error);
            }
        }
        config
    }

    fn set<'a>(&mut self, word: &'a str) -> Result<(), ConfigError<'a>> {
        let Some((key, value)) = word.split_once('=') else {
            return Err(ConfigError::UnknownKey(word));
        };
        let bad = |expected| ConfigError::BadValue {
            key,
            value,
            expected,
        };
        match key {
            "log" => {
                self.log = value
                    .parse()
                    .map_err(|()| bad("off, error, warn, info, debug or trace"))?
            }
            "ip" => {
                self.ipv4 = parse_ipv4(value).ok_or(bad("dhcp or ADDRESS/PREFIX"))?;
            }
            "gateway" => {
                self.gateway = Some(value.parse().map_err(|_| bad("an IPv4 address"))?);
            }
            "transport" => {
                self.transport = value
                    .parse()
                    .map_err(|()| bad("auto, legacy, modern or mmio"))?;
            }
            "irq" => {
                self.irq = value
                    .parse()
                    .map_err(|()| bad("auto, msix, msix-shared, intx or poll"))?;
            }
            "features" => {
                if !value.split(',').all(|f| f.len() > 1 && f.starts_with('-')) {
                    return Err(bad("-NAME,-NAME,..."));
                }
                let names: Vec<&str> = value.split(',').filter_map(|f| f.get(1..)).collect();
                self.features_off = names.join(",");
            }
            "bench" => {
                self.bench = value
                    .parse()
                    .map_err(|()| bad("off, tx, rx, udp, kick, trace or peer"))?;
            }
            "selftest" => {
                self.selftest = value.parse().map_err(|()| bad("the name of a self-test"))?;
            }
            "selftest-at" => {
                self.selftest_at = value.parse().map_err(|()| bad("boot or up"))?;
            }
            "trace" => self.trace = parse_on_off(value).ok_or(bad("on or off"))?,
            "hash-check" => self.hash_check = parse_on_off(value).ok_or(bad("on or off"))?,
            "vlan" => {
                let id = value.parse().ok().filter(|id| (1..=4094).contains(id));
                self.vlan = Some(id.ok_or(bad("1 to 4094"))?);
            }
            "mac" => {
                self.mac = Some(parse_mac(value).ok_or(bad("xx:xx:xx:xx:xx:xx"))?);
            }
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| *mtu >= 68);
                self.mtu = Some(mtu.ok_or(bad("68 to 65535"))?);
            }
            "reset-queues" => {
                self.reset_queues = value.parse().map_err(|_| bad("a number"))?;
            }
            "queue-size" => {
                let size = value
                    .parse()
                    .ok()
                    .filter(|size| (1..=1 << 15).contains(size));
                self.queue_size = Some(size.ok_or(bad("1 to 32768"))?);
            }
            "reopen" => self.reopen = value.parse().map_err(|_| bad("a number"))?,
            "netconsole" => {
                self.netconsole = Some(value.parse().map_err(|_| bad("ADDRESS:PORT"))?);
            }
            "udp" => self.udp = value.parse().map_err(|()| bad("sockets or in-place"))?,
            "rx-mode" => {
                let expected = "lists of promisc, allmulti, alluni, nomulti, nouni, nobcast";
                self.rx_mode = Steps::parse::<RxMode>(value).ok_or(bad(expected))?;
            }
            "unicast" => {
                let addresses: Option<Vec<_>> = value.split(',').map(parse_mac).collect();
                let unicast = addresses.filter(|all| all.iter().all(|[first, ..]| first & 1 == 0));
                self.unicast = unicast.ok_or(bad("unicast addresses xx:xx:xx:xx:xx:xx,..."))?;
            }
            "groups" => self.groups = value.parse().map_err(|_| bad("0 to 65535"))?,
            "vlans" => {
                self.vlans = Steps::parse::<VlanId>(value).ok_or(bad("lists of 0 to 4095"))?;
            }
            "guest-offloads" => {
                let expected = "lists of guest_csum, guest_tso4, guest_tso6";
                self.guest_offloads = Steps::parse::<GuestOffload>(value).ok_or(bad(expected))?;
            }
            "fault" => self.fault = value.into(),
            _ => return Err(ConfigError::UnknownKey(word)),
        }
        Ok(())
    }
}

fn parse_on_off(word: &str) -> Option<bool> {
    match word {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// The number of a VLAN, 0 to 4095 (IEEE 802.1Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanId(pub u16);

impl FromStr for VlanId {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        let id = word.parse().ok().filter(|id| *id < 4096);
        id.map(Self).ok_or(())
    }
}

/// Writes the words that [`Config::parse`] reads back to the same value;
/// keys at their default are left out.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default();
        let mut separator = "";
        let mut word = |key: &str, value: fmt::Arguments<'_>| {
            write!(f, "{separator}{key}={value}")?;
            separator = " ";
            Ok(())
        };
        if self.log != default.log {
            word("log", format_args!("{}", self.log))?;
        }
        if let Ipv4Config::Static(Ipv4Cidr { address, prefix }) = self.ipv4 {
            word("ip", format_args!("{address}/{prefix}"))?;
        }
        if let Some(gateway) = self.gateway {
            word("gateway", format_args!("{gateway}"))?;
        }
        if self.transport != default.transport {
            word("transport", format_args!("{}", self.transport))?;
        }
        if self.irq != default.irq {
            word("irq", format_args!("{}", self.irq))?;
        }
        if !self.features_off.is_empty() {
            word(
                "features",
                format_args!("-{}", self.features_off.replace(',', ",-")),
            )?;
        }
        if self.bench != default.bench {
            word("bench", format_args!("{}", self.bench))?;
        }
        if self.selftest != default.selftest {
            word("selftest", format_args!("{}", self.selftest))?;
        }
        if self.selftest_at != default.selftest_at {
            word("selftest-at", format_args!("{}", self.selftest_at))?;
        }
        if self.trace {
            word("trace", format_args!("on"))?;
        }
        if let Some(vlan) = self.vlan {
            word("vlan", format_args!("{vlan}"))?;
        }
        if let Some(mac) = self.mac {
            word("mac", format_args!("{}", Mac(mac)))?;
        }
        if let Some(mtu) = self.mtu {
            word("mtu", format_args!("{mtu}"))?;
        }
        if self.reopen != default.reopen {
            word("reopen", format_args!("{}", self.reopen))?;
        }
        if self.reset_queues != default.reset_queues {
            word("reset-queues", format_args!("{}", self.reset_queues))?;
        }
        if self.hash_check {
            word("hash-check", format_args!("on"))?;
        }
        if let Some(size) = self.queue_size {
            word("queue-size", format_args!("{size}"))?;
        }
        if let Some(netconsole) = self.netconsole {
            word("netconsole", format_args!("{netconsole}"))?;
        }
        if self.udp != default.udp {
            word("udp", format_args!("{}", self.udp))?;
        }
        if !self.rx_mode.is_empty() {
            word("rx-mode", format_args!("{}", self.rx_mode))?;
        }
        if !self.unicast.is_empty() {
            word("unicast", format_args!("{}", Macs(&self.unicast)))?;
        }
        if self.groups != default.groups {
            word("groups", format_args!("{}", self.groups))?;
        }
        if !self.vlans.is_empty() {
            word("vlans", format_args!("{}", self.vlans))?;
        }
        if !self.guest_offloads.is_empty() {
            word("guest-offloads", format_args!("{}", self.guest_offloads))?;
        }
        if !self.fault.is_empty() {
            word("fault", format_args!("{}", self.fault))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn parse(text: &str) -> (Config, Vec<String>) {
        let mut errors = Vec::new();
        let config = Config::parse(text, |e| errors.push(e.to_string()));
        (config, errors)
    }

    #[test]
    fn what_is_written_reads_back() {
        let text = "log=debug ip=192.0.2.7/28 gateway=192.0.2.1 transport=legacy irq=intx \
                    features=-event_idx,-mac bench=tx selftest=panic selftest-at=up trace=on vlan=5 \
                    mac=02:00:5e:10:00:ff mtu=9000 reopen=7 reset-queues=8 \
                    hash-check=on queue-size=100 netconsole=192.0.2.1:6666 \
                    udp=in-place \
                    rx-mode=promisc/none/allmulti,nobcast \
                    unicast=02:00:5e:10:00:01,02:00:5e:10:00:02 groups=70 vlans=5,6/4095 \
                    guest-offloads=guest_csum,guest_tso6/none fault=5,right";
        let (config, errors) = parse(text);
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(config.to_string(), text);
        assert_eq!(parse(&config.to_string()).0, config);
        assert_eq!(Config::default().to_string(), "");
    }

    #[test]
    fn a_feature_that_is_spelt_wrong_keeps_its_name() {
        let (config, errors) = parse("features=-event-idx,-mac");
        assert_eq!((&*config.features_off, errors.len()), ("event-idx,mac", 0));
        assert_eq!(config.to_string(), "features=-event-idx,-mac");
    }

    #[test]
    fn a_bad_word_is_reported_and_the_default_stays() {
        let (config, errors) = parse(
            "colour=red log=loud ip=10.0.0.1/33 ip=224.0.0.1/4 irq features=mac vlan=0 vlan=4095 mac=1:2:3:4:5:6 mtu=67 mtu=65536 \
             rx-mode=loud unicast=01:00:5e:00:00:01 groups=65536 vlans=5/4096 guest-offloads=csum",
        );
        assert_eq!(config, Config::default());
        assert_eq!(errors.len(), 16);
        assert!(errors[1].contains("log='loud'"), "{}", errors[1]);
    }
}
