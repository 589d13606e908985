//! The console: where the log goes, and where a panic's or exception's last words
//! go whatever state the kernel is in. It is the serial port, or on a machine
//! without one the debug port of Bochs, QEMU and Cloud Hypervisor.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::{Mutex, Once};
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};
use virtio_net::net::NetError;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

use crate::arch::{percpu, time};
use crate::backlog;

/// The first serial port.
const PORT: u16 = 0x3f8;
/// Times that a full transmit FIFO is looked at before its bytes are dropped.
/// At 115200 baud it drains in 1.4 ms.
const MAX_POLLS: u32 = 200_000;
/// Bytes gathered before they go to the UART, a multiple of its FIFO's 16.
const CHUNK: usize = 64;

/// How long a CPU waits for another one's line, in TSC cycles: seconds. Then
/// its own is lost.
const PATIENCE: u64 = 10_000_000_000;

/// The UART; `None` before [`init`] and where there is none.
static UART: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);

/// A port that prints each byte, and reads as its own number where it is.
const DEBUG_PORT: u16 = 0xe9;
static HAS_DEBUG_PORT: AtomicBool = AtomicBool::new(false);

/// Prints by the debug port, where that is the console.
struct DebugPort;

impl Write for DebugPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if HAS_DEBUG_PORT.load(Ordering::Relaxed) {
            for byte in text.bytes() {
                // SAFETY: `init` found the port.
                unsafe { Port::new(DEBUG_PORT).write(byte) };
            }
        }
        Ok(())
    }
}

struct Console;

static CONSOLE: Console = Console;

/// Starts the console at level "info". Where neither port answers, the log goes
/// nowhere.
pub fn init() {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        ..Config::DEFAULT
    };
    let uart = open().and_then(|mut uart| uart.init(config).is_ok().then_some(uart));
    if uart.is_some() {
        *UART.lock() = uart;
    } else {
        // SAFETY: reading has no effect; the port says its own number.
        let is_there = unsafe { Port::<u8>::new(DEBUG_PORT).read() } == DEBUG_PORT as u8;
        HAS_DEBUG_PORT.store(is_there, Ordering::Relaxed);
    }
    // Fails only if a logger is set already, and this is the only place.
    let _ = log::set_logger(&CONSOLE);
    log::set_max_level(LevelFilter::Info);
}

fn open() -> Option<Uart16550<PioBackend>> {
    // SAFETY: the port is the first serial port, or nothing; nobody else in
    // this kernel uses it.
    unsafe { Uart16550::new_port(PORT) }.ok()
}

/// Gathers bytes so that each look at the UART's state is followed by a full
/// FIFO: every access is an exit.
struct Writer<'a> {
    uart: &'a mut Uart16550<PioBackend>,
    chunk: heapless::Vec<u8, CHUNK>,
}

impl Writer<'_> {
    fn flush(&mut self) {
        let mut rest = self.chunk.as_slice();
        let mut polls = 0;
        while !rest.is_empty() && polls < MAX_POLLS {
            match self.uart.send_bytes(rest) {
                0 => polls += 1,
                sent => {
                    rest = rest.get(sent..).unwrap_or_default();
                    polls = 0;
                }
            }
        }
        self.chunk.clear();
    }

    fn push(&mut self, byte: u8) {
        if self.chunk.is_full() {
            self.flush();
        }
        // Not full any more.
        let _ = self.chunk.push(byte);
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

/// The time since boot as a line of the log has it, `seconds.microseconds`.
#[derive(Clone, Copy)]
struct Stamp(u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:5}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Writes one line.
fn write_line(uart: Option<&mut Uart16550<PioBackend>>, line: fmt::Arguments<'_>) {
    let chunk = heapless::Vec::new();
    // The writers take everything.
    let _ = match uart {
        Some(uart) => writeln!(Writer { uart, chunk }, "{line}"),
        None => writeln!(DebugPort, "{line}"),
    };
}

/// Sends a line, or says why it could not.
type SendLastWords = fn(fmt::Arguments<'_>) -> Result<(), NetError>;

/// What sends last words to elsewhere as well, after they were printed. It is
/// called at the end of the kernel only, with interrupts off and all other
/// CPUs stopped.
pub static LAST_WORDS: Once<SendLastWords> = Once::new();

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        let (stamp, message) = (Stamp(time::now()), record.args());
        backlog::push(format_args!("[{stamp}] {level}{message}"));
        // An interrupt handler that logs finds the lock free, or with another
        // CPU.
        without_interrupts(|| {
            if let Some(mut guard) = lock() {
                let me = percpu::this().number();
                WRITER.store(me, Ordering::Relaxed);
                write_line(guard.as_mut(), format_args!("[{stamp}] {level}{message}"));
                WRITER.store(NOBODY, Ordering::Relaxed);
            }
        });
    }

    fn flush(&self) {}
}

/// The number of the CPU that writes a line of the log.
static WRITER: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = usize::MAX;

/// Waits while another CPU has the UART. `None` when it is this one, whose
/// message logs while it is written, or when the other does not end.
fn lock() -> Option<spin::MutexGuard<'static, Option<Uart16550<PioBackend>>>> {
    let start = time::cycles();
    loop {
        if let Some(guard) = UART.try_lock() {
            return Some(guard);
        }
        let own = WRITER.load(Ordering::Relaxed) == percpu::this().number();
        if own || time::cycles().wrapping_sub(start) > PATIENCE {
            return None;
        }
        core::hint::spin_loop();
    }
}

/// Prints a line whatever the log level and whoever holds the UART. Only for
/// the end of the kernel, after `arch::begin_last_words`.
pub fn emergency(message: fmt::Arguments<'_>) {
    let stamp = Stamp(time::now());
    let line = format_args!("[{stamp}] fatal: {message}");
    print_last_words(line);
    if let Some(function) = LAST_WORDS.get()
        && let Err(error) = function(line)
    {
        print_last_words(format_args!("[{stamp}] netconsole: {error}"));
    }
}

/// Prints how the guest ended, its last line.
pub fn print_verdict(verdict: &str) {
    let stamp = Stamp(time::now());
    print_last_words(format_args!("[{stamp}] verdict: {verdict}"));
}

fn print_last_words(line: fmt::Arguments<'_>) {
    match UART.try_lock() {
        Some(mut guard) => write_line(guard.as_mut(), line),
        // Interrupted in the middle of a line: end it and start over.
        None => {
            let mut uart = open();
            write_line(uart.as_mut(), format_args!(""));
            write_line(uart.as_mut(), line);
        }
    }
}
