//! The one page of a Linux guest: what is known of its machine, and its trace.

use std::io::{self, Read};

use flate2::read::GzDecoder;

use crate::trace::timeline::RingUse;

/// Longest page that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// The page, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page<'a> {
    /// The kernel's release, such as `6.1.0-48-cloud-amd64`.
    pub release: String,
    /// The time stamp counter's frequency.
    pub hz: u64,
    /// Names of the negotiated features.
    pub features: Vec<String>,
    /// Where the device is, such as `PCI 00:02.0`.
    pub location: String,
    /// Address of the function `iowrite16`, if the kernel tells.
    pub iowrite16: Option<u64>,
    /// Probes and events that the kernel does not have.
    pub missing: Vec<&'a str>,
    /// The trace.
    pub trace: &'a str,
    /// How much of the trace there is.
    pub ring: RingUse,
}

/// Why there are no records.
#[derive(Debug, thiserror::Error)]
pub enum NoPage {
    /// It is not packed as it should be.
    #[error("the guest's page of records cannot be unpacked: {0}")]
    Packing(io::Error),
    /// It lacks something.
    #[error("the guest's page of records has no {0}")]
    Lacks(&'static str),
}

/// Unpacks the page (gzip, RFC 1952).
///
/// # Errors
/// It is something else, cut short, or not text.
pub fn unpack(bytes: &[u8]) -> Result<String, NoPage> {
    let mut text = String::new();
    let unpacked = GzDecoder::new(bytes)
        .take(LONGEST)
        .read_to_string(&mut text);
    unpacked.map_err(NoPage::Packing)?;
    Ok(text)
}

/// Reads the page.
///
/// # Errors
/// Something is not there.
pub fn parse(text: &str) -> Result<Page<'_>, NoPage> {
    let (about, trace) = text.split_once("\n\n").ok_or(NoPage::Lacks("trace"))?;
    let mut page = Page {
        trace,
        ring: ring(trace).ok_or(NoPage::Lacks("count of its records"))?,
        ..Page::default()
    };
    for line in about.lines() {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        match name {
            "release" => page.release = value.to_owned(),
            "mhz" => page.hz = hertz(value).ok_or(NoPage::Lacks("frequency of the CPU"))?,
            "features" => page.features = features(value),
            "device" => page.location = location(value),
            "iowrite16" => page.iowrite16 = u64::from_str_radix(value, 16).ok(),
            "missing" => page.missing.push(value),
            _ => {}
        }
    }
    match page.hz {
        0 => Err(NoPage::Lacks("frequency of the CPU")),
        _ => Ok(page),
    }
}

/// `2596.131` MHz in Hz.
fn hertz(mhz: &str) -> Option<u64> {
    let (whole, part) = mhz.trim().split_once('.')?;
    let part: String = format!("{part:0<6}").chars().take(6).collect();
    let (whole, part): (u64, u64) = (whole.parse().ok()?, part.parse().ok()?);
    whole.checked_mul(1_000_000)?.checked_add(part)
}

/// `# entries-in-buffer/entries-written: 762/762   #P:1`.
fn ring(trace: &str) -> Option<RingUse> {
    let mut lines = trace.lines().take_while(|line| line.starts_with('#'));
    let counts = lines
        .find_map(|line| line.split_once("entries-written:"))?
        .1;
    let (kept, written) = counts.split_whitespace().next()?.split_once('/')?;
    let (kept, written): (u64, u64) = (kept.parse().ok()?, written.parse().ok()?);
    Some(RingUse {
        capacity: 0,
        recorded: kept,
        lost: written.checked_sub(kept)?,
    })
}

/// `/sys/devices/pci0000:00/0000:00:02.0/virtio0` is `PCI 00:02.0`.
fn location(path: &str) -> String {
    let mut parts = path.rsplit('/').skip(1);
    let address = parts.next().and_then(|part| part.split_once(':'));
    address.map_or(path.to_owned(), |(_, address)| format!("PCI {address}"))
}

/// The features whose bit is 1; the first digit is bit 0.
fn features(bits: &str) -> Vec<String> {
    let set = bits.bytes().enumerate().filter(|(_, digit)| *digit == b'1');
    set.map(|(bit, _)| {
        let known = NAMES.iter().find(|(number, _)| *number == bit);
        known.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    })
    .collect()
}

/// The bits of a network device (specification 5.1.3 and 6).
const NAMES: [(usize, &str); 44] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (6, "GSO"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (24, "NOTIFY_ON_EMPTY"),
    (27, "ANY_LAYOUT"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (40, "RING_RESET"),
    (53, "NOTF_COAL"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
    (59, "GUEST_HDRLEN"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (63, "SPEED_DUPLEX"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 7/9   #P:1\n x";

    #[test]
    fn a_page_is_read() {
        let text = format!(
            "release 6.1.0\nmhz 2596.131\nfeatures 10000100000000000000000000000100\n\
             device /sys/devices/pci0000:00/0000:00:02.0/virtio0\niowrite16 ffffffff81000010\n\
             missing p:kickpath/x y\n\n{TRACE}"
        );
        let page = parse(&text).unwrap();
        assert_eq!((&*page.release, page.hz), ("6.1.0", 2_596_131_000));
        assert_eq!(page.features, ["CSUM", "MAC", "EVENT_IDX"]);
        assert_eq!(page.location, "PCI 00:02.0");
        assert_eq!(page.iowrite16, Some(0xffff_ffff_8100_0010));
        assert_eq!(page.missing, ["p:kickpath/x y"]);
        assert_eq!((page.ring.recorded, page.ring.lost), (7, 2));
        assert!(page.trace.ends_with(" x"));
    }

    #[test]
    fn a_page_is_unpacked() {
        let mut packed = flate2::read::GzEncoder::new(&b"text"[..], Default::default());
        let mut bytes = Vec::new();
        packed.read_to_end(&mut bytes).unwrap();
        assert_eq!(unpack(&bytes).unwrap(), "text");
        for length in 0..bytes.len() {
            assert!(unpack(&bytes[..length]).is_err(), "{length}");
        }
        assert!(unpack(b"404 Not Found").is_err());
    }

    #[test]
    fn what_a_page_lacks_is_said() {
        for (text, lacks) in [
            ("", "trace"),
            ("mhz 1.0\n\n# nothing", "count"),
            (&*format!("mhz x\n\n{TRACE}"), "frequency"),
            (&*format!("release 6.1\n\n{TRACE}"), "frequency"),
            (&*format!("mhz 99999999999999999.0\n\n{TRACE}"), "frequency"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(lacks), "{text}: {error}");
        }
        assert_eq!(hertz("2.5"), Some(2_500_000));
        assert_eq!(location("virtio0"), "virtio0");
        assert_eq!(features("00001"), ["bit 4"]);
    }
}
