//! What QEMU records of a tap device (`filter-dump`), made readable.
//!
//! A tap device hands QEMU each frame behind a `virtio_net_hdr`, and up to
//! version 8.0 QEMU's record has that header as the frame's first bytes, which
//! nobody who reads the file expects.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use pcap_file::PcapError;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

use super::MAX_FRAME;

/// Lengths of the header (virtio 1.2, section 5.1.6): none, the legacy
/// interface's, with a number of buffers, with a hash.
const HEADERS: [usize; 4] = [0, 10, 12, 20];

/// Length of a pcap file's header in bytes.
pub(super) const FILE_HEADER: usize = 24;

/// Bytes before a frame in a pcap file.
const RECORD_HEADER: usize = 16;

/// Makes QEMU's record a file of whole frames; `tap` is the guest's hardware address, which every
/// frame of a tap device has in one place or the other. QEMU has ended by then.
///
/// # Errors
/// The record misses frames: QEMU ends it in silence when the disk is full. Or it is none.
pub(super) fn complete(file: &Path, tap: Option<[u8; 6]>) -> io::Result<()> {
    let mut header = None;
    let whole = each(file, |packet| {
        header = header.or_else(|| header_length(&packet.data, tap?));
        Ok(())
    })?;
    let mut record = OpenOptions::new().append(true).open(file)?;
    // QEMU is killed when its work is done, also while it writes.
    record.set_len(whole)?;
    record.write_all(&[0; RECORD_HEADER + MAX_FRAME])?;
    record.set_len(whole)?;
    match header {
        Some(header @ 1..) => strip(file, header),
        _ => Ok(()),
    }
}

/// Takes the first `header` bytes out of each frame.
fn strip(file: &Path, header: usize) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let stripped = tempfile::NamedTempFile::new_in(directory)?;
    let old = PcapReader::new(File::open(file)?).map_err(io::Error::other)?;
    let writer = BufWriter::new(stripped.as_file());
    let mut writer = PcapWriter::with_header(writer, old.header()).map_err(into_io)?;
    each(file, |packet| {
        let frame = packet.data.get(header..).unwrap_or_default();
        let length = packet.orig_len.saturating_sub(header as u32);
        let frame = PcapPacket::new(packet.timestamp, length, frame);
        writer.write_packet(&frame).map(drop)
    })?;
    let mut writer = writer.into_writer();
    writer.flush()?;
    drop(writer);
    // The file keeps its permissions.
    std::fs::set_permissions(stripped.path(), std::fs::metadata(file)?.permissions())?;
    stripped.persist(file)?;
    Ok(())
}

/// What is behind an error of the pcap crate.
fn into_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(source) => source,
        other => io::Error::other(other),
    }
}

/// Calls `use_packet` for each packet of a file, up to where it was cut; returns the length of
/// what is whole.
fn each(
    file: &Path,
    mut use_packet: impl FnMut(&PcapPacket<'_>) -> Result<(), PcapError>,
) -> io::Result<u64> {
    let reader = BufReader::new(File::open(file)?);
    let mut reader = PcapReader::new(reader).map_err(into_io)?;
    let mut whole = FILE_HEADER;
    while let Some(Ok(packet)) = reader.next_packet() {
        use_packet(&packet).map_err(into_io)?;
        whole += RECORD_HEADER + packet.data.len();
    }
    Ok(whole as u64)
}

/// How many bytes there are before the Ethernet header, whose destination or
/// source is `mac`.
fn header_length(bytes: &[u8], mac: [u8; 6]) -> Option<usize> {
    HEADERS.into_iter().find(|&start| {
        [start, start + mac.len()]
            .iter()
            .any(|&at| bytes.get(at..at + mac.len()) == Some(mac.as_slice()))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pcap_file::pcap::PcapHeader;

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x4b, 0x50, 1];

    /// A frame from a host, to the guest or to all.
    fn frame(to_guest: bool, number: u8) -> Vec<u8> {
        let to = if to_guest { MAC } else { [0xff; 6] };
        let rest = [2, 2, 2, 2, 2, 2, 8, 0, number, number];
        [to.as_slice(), &rest].concat()
    }

    fn write(file: &Path, header: usize) -> Vec<Vec<u8>> {
        let frames: Vec<_> = (0..5).map(|n| frame(n % 2 == 1, n)).collect();
        let file = File::create(file).unwrap();
        let mut writer = PcapWriter::with_header(file, PcapHeader::default()).unwrap();
        for (second, frame) in (1..).zip(&frames) {
            let bytes = [vec![1; header], frame.clone()].concat();
            let time = Duration::from_secs(second);
            let packet = PcapPacket::new(time, bytes.len() as u32, &bytes);
            writer.write_packet(&packet).unwrap();
        }
        frames
    }

    fn read(file: &Path) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        each(file, |packet| {
            assert_eq!(packet.orig_len as usize, packet.data.len());
            frames.push(packet.data.to_vec());
            Ok(())
        })
        .unwrap();
        frames
    }

    #[test]
    fn headers_go_and_frames_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.pcap");
        for header in HEADERS {
            let frames = write(&path, header);
            complete(&path, Some(MAC)).unwrap();
            assert_eq!(read(&path), frames, "{header}");
        }
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.pcap");
        write(&path, 7);
        let before = std::fs::read(&path).unwrap();
        complete(&path, Some(MAC)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        // QEMU was killed while it wrote.
        let frames = write(&path, 12);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        complete(&path, Some(MAC)).unwrap();
        assert_eq!(read(&path), frames[..4]);
        for bytes in [&b""[..], b"nothing of the kind, but long enough"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(complete(&path, Some(MAC)).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }
}
