//! Where the instructions go: a plugin of QEMU (boot/profile) counts how often each
//! block of the guest's code runs, and the executable says whose code that is.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use addr2line::Loader;
use iced_x86::{Decoder, DecoderOptions};
use object::{Object, ObjectSegment};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::command::{self, Progress, Sink};
use crate::doctor;
use crate::install::Policy;
use crate::qemu::{Boot, Machine};
use crate::session::SessionError;
use crate::toolchain::{self, BuildOptions};

/// Blocks that the file of counts has room for; our guest has some 20,000, Linux ten times as
/// many.
const BLOCKS: usize = 1 << 20;
/// Bytes of a number in that file.
const WORD: usize = size_of::<u64>();
/// Functions that are named.
const FUNCTIONS: usize = 24;
/// Who code belongs to: its crate, and the layer that this is.
const LAYERS: [(&str, &str); 10] = [
    ("virtio_net", "driver"),
    ("kickpath_virtio_net", "driver"),
    ("virtio_drivers", "driver"),
    ("kickpath_trace", "driver"),
    ("smoltcp", "smoltcp"),
    ("kickpath_services", "services"),
    ("kickpath_abi", "services"),
    ("serde_json", "services"),
    ("kickpath_kernel", "kernel"),
    ("compiler_builtins", "copies of memory"),
];

/// Counts in a machine of this kind.
pub struct Profiler {
    plugin: PathBuf,
    counts: NamedTempFile,
}

/// How often each block has run, by its address and its number of instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(u64, u64), u64>);

/// Where the instructions of one measurement went.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// Executed instructions of each layer, per packet, the most first.
    pub layers: Vec<Share>,
    /// The same of the hottest functions.
    pub functions: Vec<Share>,
}

/// A part of the instructions.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// The layer.
    pub layer: &'static str,
    /// The function, as the source names it; of a layer its name.
    pub name: String,
    /// Executed instructions per packet.
    pub instructions: f64,
}

impl Profiler {
    /// One, if `wanted`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn if_wanted(
        wanted: bool,
        policy: Policy,
        qemu: &Path,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Self>, SessionError> {
        wanted.then(|| Self::new(policy, qemu, sink)).transpose()
    }

    /// Builds the plugin for this QEMU.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn new(policy: Policy, qemu: &Path, sink: &mut Sink<'_>) -> Result<Self, SessionError> {
        let workspace = toolchain::workspace()?;
        let toolchain = toolchain::complete(&BuildOptions::from_env(policy)?, sink)?;
        sink(Progress::Step("Building the plugin that counts"));
        let directory = toolchain::target_directory(&workspace).join("profile");
        let mut build = toolchain.cargo(&workspace.join("boot/profile"));
        build.args(["build", "--release", "--target-dir"]);
        build.arg(&directory);
        let version = doctor::qemu_version(qemu).map(|version| (version.major, version.minor));
        let interface = match version {
            Some((..9, _)) => Some("version-1"),
            Some((11, 1..) | (12.., _)) => Some("version-7"),
            _ => None,
        };
        build.args(interface.into_iter().flat_map(|name| ["--features", name]));
        command::run(&mut build, None, sink).map_err(failed("build the plugin"))?;
        let counts = NamedTempFile::new()?;
        counts.as_file().set_len(((1 + 3 * BLOCKS) * WORD) as u64)?;
        Ok(Self {
            plugin: directory.join("release/libkickpath_profile.so"),
            counts,
        })
    }

    /// Has QEMU count.
    pub fn attach(&self, machine: &mut Machine) {
        let mut words = OsString::from(&self.plugin);
        words.push(",counts=");
        words.push(self.counts.path());
        machine.extra.extend(["-plugin".into(), words]);
    }

    /// What has been counted until now.
    ///
    /// # Errors
    /// The file cannot be read, or is full: what has no room in it is not counted.
    pub fn read(&self) -> Result<Counts, SessionError> {
        let counts = Counts::parse(self.counts.as_file())?;
        match counts.0.len() {
            BLOCKS.. => Err(failed("count blocks of code")(io::Error::other(format!(
                "the guest has more than {BLOCKS}"
            )))),
            _ => Ok(counts),
        }
    }
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl Fn(E) -> SessionError {
    move |error| SessionError::System {
        what: what.to_owned(),
        source: io::Error::other(error),
    }
}

impl Counts {
    /// Reads as much of the plugin's file as is in use.
    fn parse(mut file: impl Read + Seek) -> io::Result<Self> {
        let mut head = [0; WORD];
        file.rewind()?;
        file.read_exact(&mut head)?;
        let length = u64::from_ne_bytes(head).saturating_mul(3 * WORD as u64);
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes)?;
        let (words, _) = bytes.as_chunks();
        let (blocks, _) = words.as_chunks();
        let counts = blocks.iter().map(|block| {
            let [address, length, runs] = block.map(u64::from_ne_bytes);
            ((address, length), runs)
        });
        Ok(Self(counts.collect()))
    }

    /// How many instructions were executed.
    pub fn instructions(&self) -> u64 {
        let blocks = self.0.iter();
        blocks.map(|((_, length), runs)| length * runs).sum()
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |(block, runs): (&(u64, u64), &u64)| {
            let before = earlier.0.get(block).copied().unwrap_or_default();
            (*block, runs.saturating_sub(before))
        };
        Self(self.0.iter().map(since).collect())
    }
}

impl Profile {
    /// Names what was counted in a guest of this executable, per packet.
    ///
    /// # Errors
    /// The executable cannot be read.
    pub fn of(counts: &Counts, boot: &Boot, packets: u64) -> Result<Self, SessionError> {
        let Boot::Kernel(kernel) = boot else {
            return Err(failed("profile a disk image")(io::Error::other(
                "it has no symbols",
            )));
        };
        let mut code = Code::read(kernel)?;
        let mut layers: HashMap<&'static str, u64> = HashMap::new();
        let mut functions: HashMap<(&'static str, String), u64> = HashMap::new();
        for (&(address, length), &runs) in counts.0.iter().filter(|(_, runs)| **runs > 0) {
            for at in code.instructions(address, length) {
                let (layer, name) = code.owner(at);
                *layers.entry(layer).or_default() += runs;
                *functions.entry((layer, name)).or_default() += runs;
            }
        }
        let share = |layer, name, sum| Share {
            layer,
            name,
            instructions: sum as f64 / packets.max(1) as f64,
        };
        let layers = layers
            .into_iter()
            .map(|(layer, sum)| share(layer, layer.to_owned(), sum));
        let functions = functions
            .into_iter()
            .map(|((layer, name), sum)| share(layer, name, sum));
        let mut functions = hottest(functions.collect());
        functions.truncate(FUNCTIONS);
        Ok(Self {
            layers: hottest(layers.collect()),
            functions,
        })
    }
}

fn hottest(mut shares: Vec<Share>) -> Vec<Share> {
    shares.sort_by(|a, b| {
        let by_count = b.instructions.total_cmp(&a.instructions);
        by_count.then_with(|| a.name.cmp(&b.name))
    });
    shares
}

/// The guest's executable.
struct Code {
    segments: Vec<(u64, Vec<u8>)>,
    lines: Loader,
    owners: HashMap<u64, (&'static str, String)>,
}

impl Code {
    fn read(file: &Path) -> Result<Self, SessionError> {
        let bytes = fs::read(file)?;
        let elf = object::File::parse(&*bytes).map_err(failed("read the executable"))?;
        let segments = elf.segments().filter_map(|segment| {
            let data = segment.data().ok()?;
            Some((segment.address(), data.to_vec()))
        });
        Ok(Self {
            segments: segments.collect(),
            lines: Loader::new(file).map_err(|error| {
                failed("read the executable's lines")(io::Error::other(error.to_string()))
            })?,
            owners: HashMap::new(),
        })
    }

    /// Where each of so many instructions begins; of code that is not in the
    /// executable, such as firmware's, all are said to be where the first one is.
    fn instructions(&self, address: u64, length: u64) -> Vec<u64> {
        let code = self.segments.iter().find_map(|(start, bytes)| {
            let offset = address.checked_sub(*start)?;
            bytes.get(usize::try_from(offset).ok()?..)
        });
        let mut decoder =
            Decoder::with_ip(64, code.unwrap_or_default(), address, DecoderOptions::NONE);
        let next = || match decoder.can_decode() {
            true => decoder.decode().ip(),
            false => address,
        };
        std::iter::repeat_with(next)
            .take(usize::try_from(length).unwrap_or_default())
            .collect()
    }

    /// Whose code is at an address: the innermost function that the compiler has put
    /// there, the standard library's helpers left out.
    fn owner(&mut self, address: u64) -> (&'static str, String) {
        let Self { lines, owners, .. } = self;
        let owner = owners.entry(address).or_insert_with(|| {
            let mut outermost = None;
            let mut frames = lines.find_frames(address).ok();
            while let Some(Ok(Some(frame))) = frames.as_mut().map(|frames| frames.next()) {
                let Some(function) = frame.function else {
                    continue;
                };
                let Ok(name) = function.demangle() else {
                    continue;
                };
                let name = short(&name);
                if let Some(layer) = layer(&name) {
                    return (layer, name);
                }
                outermost = Some(name);
            }
            let symbol = || lines.find_symbol(address).map(str::to_owned);
            match outermost.or_else(symbol) {
                Some(name) => ("libraries", name),
                None => ("outside the guest's executable", String::new()),
            }
        });
        owner.clone()
    }
}

/// A name without what tells two functions of one name apart.
fn short(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 => path.to_owned(),
        _ => name.to_owned(),
    }
}

/// The layer of the crate that a function is of.
fn layer(name: &str) -> Option<&'static str> {
    let path = name.trim_start_matches(['<', '&']);
    let path = path.strip_prefix("mut ").unwrap_or(path);
    let (first, _) = path.split_once("::")?;
    let known = LAYERS.iter().find(|(of, _)| *of == first);
    known.map(|(_, layer)| *layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_plugin_wrote_is_read() {
        let words: [u64; 8] = [2, 0x1000, 3, 7, 0x2000, 1, 5, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let parse = |bytes: &[u8]| Counts::parse(io::Cursor::new(bytes));
        let counts = parse(&bytes).unwrap();
        let expected = BTreeMap::from([((0x1000, 3), 7), ((0x2000, 1), 5)]);
        assert_eq!(counts, Counts(expected));
        assert_eq!(counts.instructions(), 3 * 7 + 5);
        let later = Counts(BTreeMap::from([((0x1000, 3), 9), ((0x3000, 2), 1)]));
        let since = BTreeMap::from([((0x1000, 3), 2), ((0x3000, 2), 1)]);
        assert_eq!(later.since(&counts), Counts(since));
        // More than there are, or none at all.
        assert_eq!(parse(&bytes[..24]).unwrap(), Counts::default());
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn the_crate_tells_the_layer() {
        for (name, expected) in [
            (
                "smoltcp::iface::interface::Interface::poll",
                Some("smoltcp"),
            ),
            ("<&mut smoltcp::phy::Tracer as x::Y>::z", Some("smoltcp")),
            ("kickpath_services::stack::Stack::poll", Some("services")),
            ("core::slice::copy", None),
            ("memcpy", None),
        ] {
            assert_eq!(layer(name), expected, "{name}");
        }
        assert_eq!(short("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(short("a::hello"), "a::hello");
    }
}
