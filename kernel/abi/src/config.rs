//! The guest's configuration: `key=value` words separated by white space, as
//! on a kernel command line.
//!
//! The guest reads them from the PVH command line, else from QEMU's fw_cfg
//! file [`FW_CFG_FILE`], else takes [`Config::default`]. A word that cannot be
//! understood is reported and leaves the default in place.

mod address;
mod mmio_device;
mod words;

pub use address::{Ipv4Cidr, Ipv4Config, Mac, parse_ipv4, parse_mac};
pub use mmio_device::{DeviceWord, NotADevice};
pub use words::{
    Bench, GuestOffload, Irq, LogLevel, RxMode, SelfTest, SelfTestAt, Transport, UdpWay,
};

use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};
use core::ops::RangeInclusive;
use core::str::FromStr;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::steps::Steps;

/// Name of the fw_cfg file that holds the configuration when there is no
/// command line (`-fw_cfg name=opt/kickpath/config,string=...`).
pub const FW_CFG_FILE: &str = "opt/kickpath/config";

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
}

/// Generates the configuration, and how it is read and written. A row is a key, its field,
/// the type, what the value can be, and two functions: the one that reads a value, and the
/// one that writes it.
macro_rules! keys {
    ($($(#[$meta:meta])* $key:literal $field:ident: $type:ty, $expected:literal,
        $read:expr, $write:expr;)+) => {
        /// The whole configuration, one field a key. The doc comment of a field starts
        /// with its key.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Config { $($(#[$meta])* pub $field: $type,)+ }

        impl Config {
            fn set<'a>(&mut self, word: &'a str) -> Result<(), ConfigError<'a>> {
                let unknown = ConfigError::UnknownKey(word);
                let (key, value) = word.split_once('=').ok_or(unknown)?;
                let bad = |expected| ConfigError::BadValue { key, value, expected };
                match key {
                    $($key => self.$field = $read(value).ok_or(bad($expected))?,)+
                    _ => return Err(unknown),
                }
                Ok(())
            }
        }

        /// Writes the words that [`Config::parse`] reads back to the same value;
        /// keys at their default are left out.
        impl fmt::Display for Config {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let default = Self::default();
                let mut separator = "";
                $(if self.$field != default.$field {
                    write!(f, "{separator}{}={}", $key, $write(&self.$field))?;
                    separator = " ";
                })+
                let _ = separator;
                Ok(())
            }
        }
    };
}

keys! {
    /// `log=LEVEL`
    "log" log: LogLevel, "off, error, warn, info, debug or trace", word, text;
    /// `ip=dhcp|ADDRESS/PREFIX`
    "ip" ipv4: Ipv4Config, "dhcp or ADDRESS/PREFIX", parse_ipv4, text;
    /// `gateway=ADDRESS`: the default IPv4 route, with a static address.
    "gateway" gateway: Option<Ipv4Addr>, "an IPv4 address", some, option;
    /// `transport=auto|legacy|modern|mmio`
    "transport" transport: Transport, "auto, legacy, modern or mmio", word, text;
    /// `irq=auto|msix|msix-shared|intx|poll`
    "irq" irq: Irq, "auto, msix, msix-shared, intx or poll", word, text;
    /// `features=-name,...`: virtio features not to accept, by the
    /// specification's name in lower case without prefix (`-event_idx`).
    "features" features_off: String, "-NAME,-NAME,...", parse_features, write_features;
    /// `bench=off|tx|rx|udp|kick|trace|peer`
    "bench" bench: Bench, "off, tx, rx, udp, kick, trace or peer", word, text;
    /// `selftest=NAME`
    "selftest" selftest: SelfTest, "the name of a self-test", word, text;
    /// `selftest-at=boot|up`
    "selftest-at" selftest_at: SelfTestAt, "boot or up", word, text;
    /// `trace=on|off`: record the tracepoints of the kick path.
    "trace" trace: bool, "on or off", parse_on_off, write_on_off;
    /// `vlan=ID`: the guest is a host of this VLAN, 1 to 4094, and tags what
    /// it sends.
    "vlan" vlan: Option<u16>, "1 to 4094", |value| within(value, 1..=4094), option;
    /// `mac=ADDRESS`: the hardware address that the device is to have.
    "mac" mac: Option<[u8; 6]>, "xx:xx:xx:xx:xx:xx", |value| parse_mac(value).map(Some),
        |mac: &Option<_>| option(&mac.map(Mac));
    /// `mtu=BYTES`: largest IP packet, 68 to 65535; what the device says or
    /// 1500 if not given.
    "mtu" mtu: Option<u16>, "68 to 65535", |value| within(value, 68..=u16::MAX), option;
    /// `reopen=COUNT`: so often the device is stopped and opened again while
    /// it serves.
    "reopen" reopen: u32, "a number", word, text;
    /// `reset-queues=COUNT`: so often the receive and then the transmit queue
    /// is reset alone while the device serves.
    "reset-queues" reset_queues: u32, "a number", word, text;
    /// `hash-check=on|off`: verify the hashes that the device reports for
    /// received frames, and to which pair of queues it steers them.
    "hash-check" hash_check: bool, "on or off", parse_on_off, write_on_off;
    /// `queue-size=COUNT`: largest number of descriptors of a receive or
    /// transmit queue, where the interface leaves a choice, 1 to 32768. Without it, as many as
    /// the device has and the memory has buffers for.
    "queue-size" queue_size: Option<u16>, "1 to 32768", |value| within(value, 1..=1 << 15), option;
    /// `netconsole=ADDRESS:PORT`: send the log there by UDP as well.
    "netconsole" netconsole: Option<SocketAddrV4>, "ADDRESS:PORT", some, option;
    /// `udp=sockets|in-place`: how datagrams reach the UDP services.
    "udp" udp: UdpWay, "sockets or in-place", word, text;
    /// `rx-mode=MODE,.../...`: receive modes, step by step.
    "rx-mode" rx_mode: Steps, "lists of promisc, allmulti, alluni, nomulti, nouni, nobcast",
        Steps::parse::<RxMode>, text;
    /// `unicast=ADDRESS,...`: further unicast addresses that the device is to
    /// let through.
    "unicast" unicast: Vec<[u8; 6]>, "unicast addresses xx:xx:xx:xx:xx:xx,...", parse_unicast,
        |all: &Vec<_>| all.iter().map(|mac| text(&Mac(*mac))).collect::<Vec<_>>().join(",");
    /// `groups=COUNT`: so many further multicast addresses, from
    /// 01:00:5e:7f:00:00 on (those of 239.255.0.0/16, RFC 2365).
    "groups" groups: u16, "0 to 65535", word, text;
    /// `vlans=ID,.../...`: VLANs, 0 to 4095, that the device is to let through
    /// beside `vlan`, step by step.
    "vlans" vlans: Steps, "lists of 0 to 4095", Steps::parse::<VlanId>, text;
    /// `guest-offloads=NAME,.../...`: receive offloads of those negotiated, all
    /// if not said, step by step.
    "guest-offloads" guest_offloads: Steps, "lists of guest_csum, guest_tso4, guest_tso6",
        Steps::parse::<GuestOffload>, text;
    /// `fault=NUMBER` or `fault=NUMBER,right`: an experiment of `kickpath lab`, with
    /// what is wrong in it or without.
    "fault" fault: String, "an experiment", word, text;
}

fn word<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

fn text(value: &impl ToString) -> String {
    value.to_string()
}

fn some<T: FromStr>(value: &str) -> Option<Option<T>> {
    word(value).map(Some)
}

fn option(value: &Option<impl ToString>) -> String {
    value.as_ref().map(text).unwrap_or_default()
}

fn within(value: &str, range: RangeInclusive<u16>) -> Option<Option<u16>> {
    word(value)
        .filter(|number| range.contains(number))
        .map(Some)
}

fn parse_on_off(word: &str) -> Option<bool> {
    match word {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn write_on_off(is_on: &bool) -> &'static str {
    if *is_on { "on" } else { "off" }
}

fn parse_features(value: &str) -> Option<String> {
    let names = value.split(',').map(|name| name.strip_prefix('-'));
    let names: Option<Vec<&str>> = names.map(|name| name.filter(|n| !n.is_empty())).collect();
    Some(names?.join(","))
}

fn write_features(names: &str) -> String {
    ["-", &names.replace(',', ",-")].concat()
}

fn parse_unicast(value: &str) -> Option<Vec<[u8; 6]>> {
    let addresses: Option<Vec<_>> = value.split(',').map(parse_mac).collect();
    addresses.filter(|all| all.iter().all(|[first, ..]| first & 1 == 0))
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

#[cfg(test)]
mod tests {
    use super::*;

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
