//! What the loader left in memory, read through the page tables of the [stub](super::stub).

use core::alloc::Layout;
use core::ptr;

use spin::Once;

/// How much physical memory the stub's page tables map, at address 0.
const MAPPED: usize = 1 << 30;
/// Longest command line that is read, in bytes.
const MAX_COMMAND_LINE: usize = 4096;

/// The loader's memory: physical addresses in the stub's page tables.
pub(super) struct BootMapping;

impl BootMapping {
    /// Where `address` is mapped for a value of this layout; null where the tables do
    /// not reach, or the value is not aligned.
    pub(super) fn pointer(&self, address: usize, layout: Layout) -> *const u8 {
        let reachable = address != 0
            && address.is_multiple_of(layout.align())
            && address
                .checked_add(layout.size())
                .is_some_and(|end| end <= MAPPED);
        if reachable {
            ptr::with_exposed_provenance(address)
        } else {
            ptr::null()
        }
    }

    /// A number in the loader's memory; `None` where the tables do not reach.
    pub(super) fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let address = usize::try_from(address).ok()?;
        let source = self.pointer(address, Layout::new::<[u8; N]>());
        // SAFETY: `source` is not null, so the stub's tables map `N` bytes there, and
        // nothing writes to the loader's memory meanwhile.
        (!source.is_null()).then(|| unsafe { source.cast::<[u8; N]>().read() })
    }
}

/// A copy of the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommandLine {
    pub text: &'static str,
    /// Its end was lost: it was too long, or not UTF-8.
    pub cut: bool,
}

impl CommandLine {
    /// Copies the command line out of memory that the loader may have put
    /// anywhere. It ends at a NUL; it is cut at [`MAX_COMMAND_LINE`], where memory
    /// is not mapped, and at the first byte that is not UTF-8.
    pub(super) fn copy(address: u64) -> Self {
        static COPY: Once<heapless::Vec<u8, MAX_COMMAND_LINE>> = Once::new();
        if address == 0 {
            return Self::default();
        }
        let mut cut = true;
        let copy = COPY.call_once(|| {
            let mut copy = heapless::Vec::new();
            for address in address..address.saturating_add(MAX_COMMAND_LINE as u64 + 1) {
                let Some([byte]) = BootMapping.read(address) else {
                    break;
                };
                if byte == 0 {
                    cut = false;
                    break;
                }
                if copy.push(byte).is_err() {
                    break;
                }
            }
            copy
        });
        // The first chunk ends where the text is not UTF-8 any more.
        let text = copy.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        cut |= text.len() < copy.len();
        Self { text, cut }
    }
}
