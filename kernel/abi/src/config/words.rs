//! Values that are one word of a few.

use core::fmt;
use core::str::FromStr;

/// Generates enumerations whose variants have one word each, with `FromStr` and
/// `Display` that agree.
macro_rules! words {
    ($($(#[$meta:meta])* $name:ident {
        $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+
    })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every value, in the order of preference.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word that stands for this value.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = ();
            fn from_str(word: &str) -> Result<Self, ()> {
                match word { $($word => Ok(Self::$variant),)+ _ => Err(()) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }
    )+};
}

words! {
    /// How the guest reaches the device's registers.
    #[derive(Default)]
    Transport {
        /// Legacy port I/O where the device offers it, else what it has.
        #[default]
        Auto = "auto",
        /// virtio-pci, legacy interface (specification 4.1.4.10): port I/O.
        Legacy = "legacy",
        /// virtio-pci, modern interface (specification 4.1).
        Modern = "modern",
        /// virtio-mmio (specification 4.2).
        Mmio = "mmio",
    }

    /// Which rung of the interrupt ladder to take (Linux `vp_find_vqs`).
    #[derive(Default)]
    Irq {
        /// The first rung that works, from the top.
        #[default]
        Auto = "auto",
        /// MSI-X, a vector a queue.
        Msix = "msix",
        /// MSI-X, one vector for all queues.
        MsixShared = "msix-shared",
        /// The INTx line.
        Intx = "intx",
        /// No interrupt: the guest polls.
        Poll = "poll",
    }

    /// How datagrams reach the UDP services (echo, discard, chargen).
    #[derive(Default)]
    UdpWay {
        /// By a socket of the network stack.
        #[default]
        Sockets = "sockets",
        /// They are answered where they lie, without a socket: no queue, no
        /// fragments, nothing of the way through the network stack to be seen.
        InPlace = "in-place",
    }

    /// What the device is to let through beside what is addressed to the guest,
    /// or not to (specification 5.1.6.5.1).
    RxMode {
        /// Every frame.
        Promiscuous = "promisc",
        /// Every multicast frame.
        AllMulticast = "allmulti",
        /// Every unicast frame.
        AllUnicast = "alluni",
        /// No multicast frame.
        NoMulticast = "nomulti",
        /// No unicast frame.
        NoUnicast = "nouni",
        /// No broadcast frame.
        NoBroadcast = "nobcast",
    }

    /// Receive offloads that can be turned off and on (specification
    /// 5.1.6.5.6).
    GuestOffload {
        /// Frames with a partial checksum.
        Csum = "guest_csum",
        /// TCP over IPv4 in large pieces.
        Tso4 = "guest_tso4",
        /// TCP over IPv6 in large pieces.
        Tso6 = "guest_tso6",
    }

    /// How much the guest prints.
    #[derive(Default)]
    LogLevel {
        /// Nothing.
        Off = "off",
        /// What failed.
        Error = "error",
        /// What is likely to be wrong.
        Warn = "warn",
        /// The story of the boot.
        #[default]
        Info = "info",
        /// Every decision.
        Debug = "debug",
        /// Every packet.
        Trace = "trace",
    }

    /// A measurement that the guest makes alone, instead of serving.
    #[derive(Default)]
    Bench {
        /// None: serve the network.
        #[default]
        Off = "off",
        /// The driver's transmit path alone: prebuilt frames, 64 outstanding.
        Tx = "tx",
        /// The driver's receive path alone: what the gateway answers to pings of 60
        /// bytes.
        Rx = "rx",
        /// Datagrams of 64 and of 1400 bytes from a socket.
        Udp = "udp",
        /// The kick itself, after one frame and after a burst.
        Kick = "kick",
        /// A tracepoint, while tracing is off and while it is on.
        Trace = "trace",
        /// As `tx` and `rx`, by the network driver of `virtio-drivers`, in a kernel that
        /// is built with the feature `peer`.
        Peer = "peer",
    }

    /// A deliberate fault (or another driver over our transport), so that a
    /// test can see how the guest reports it.
    #[derive(Default)]
    SelfTest {
        /// None.
        #[default]
        Off = "off",
        /// `panic!`.
        Panic = "panic",
        /// A read of an address that is not mapped.
        PageFault = "page-fault",
        /// Recursion until the guard page under the stack is hit.
        StackOverflow = "stack-overflow",
        /// A write to the kernel's code.
        WriteCode = "write-code",
        /// A write to that code's address in the mapping of all memory.
        WriteCodeAlias = "write-code-alias",
        /// A write to the kernel's constants.
        WriteConstant = "write-constant",
        /// A jump into the kernel's data.
        ExecuteData = "execute-data",
        /// A jump into the heap.
        ExecuteHeap = "execute-heap",
        /// A jump into the stack.
        ExecuteStack = "execute-stack",
        /// An undefined instruction (`ud2`).
        InvalidOpcode = "invalid-opcode",
        /// A segment selector that the table does not have.
        GeneralProtection = "general-protection",
        /// A division by zero.
        DivideError = "divide-error",
        /// Recursion on the stack for non-maskable interrupts.
        NmiStackOverflow = "nmi-stack-overflow",
        /// Recursion on the stack for double faults.
        DoubleFaultStackOverflow = "double-fault-stack-overflow",
        /// `panic!` on a CPU that did not boot (needs `-smp 2`).
        PanicOther = "panic-other-cpu",
        /// A page fault there.
        PageFaultOther = "page-fault-other-cpu",
        /// A stack overflow there.
        StackOverflowOther = "stack-overflow-other-cpu",
        /// `panic!` between two frames that are being sent, in a full queue
        /// (at `up` only).
        PanicInTransmit = "panic-in-transmit",
        /// `panic!` with the heap locked, as in the middle of an allocation.
        PanicInAllocator = "panic-in-allocator",
        /// A reset of one queue for which there is no memory (at `up` only,
        /// needs `RING_RESET`): the device must be opened again.
        QueueReset = "queue-reset",
        /// An endless loop with interrupts off: the runner must notice.
        Hang = "hang",
        /// `virtio-drivers`' entropy driver over our transports.
        Entropy = "entropy",
        /// `virtio-drivers`' block driver over our transports.
        Block = "block",
        /// Our network driver over `virtio-drivers`' transports.
        Adapter = "adapter",
    }

    /// When the self-test is made.
    #[derive(Default)]
    SelfTestAt {
        /// While the guest boots.
        #[default]
        Boot = "boot",
        /// Once it serves the network and, with `netconsole`, has sent its log.
        Up = "up",
    }
}
