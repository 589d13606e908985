//! What is recorded in a Linux guest: kprobes on functions of its virtio drivers
//! (Linux, Documentation/trace/kprobetrace.rst), and trace events that it has anyway.

/// The group of our probes in tracefs; `init.sh` names it, too.
const GROUP: &str = "kickpath";

/// How the record of a function's return is told from that of its call.
pub const RETURN: &str = "_returns";

/// Trace events of the kernel itself.
pub const EVENTS: [&str; 9] = [
    "kickpath",
    "net/net_dev_start_xmit",
    "net/netif_receive_skb",
    "irq/irq_handler_entry",
    "irq/irq_handler_exit",
    "irq_vectors/local_timer_entry",
    "irq_vectors/local_timer_exit",
    "irq_vectors/vector_config",
    "power/cpu_idle",
];

/// A function that is recorded.
struct Probe {
    module: &'static str,
    function: &'static str,
    /// What is recorded of its arguments; `None` leaves the call out. On x86-64 they
    /// are in %di, %si, %dx, %cx, %r8 and %r9.
    call: Option<&'static str>,
    /// Whether its return is recorded, with its value.
    returns: bool,
}

/// A virtqueue's index and name. Since Linux 2.6.39 they lie at these places of
/// `struct virtqueue`; the name beside the index shows that they still do.
const QUEUE: &str = "index=+40(%di):u16 name=+0(+24(%di)):string";

/// The buffer that is added: `virtqueue_add_outbuf(vq, sg, num, data, ..)`. `data` is what
/// `virtqueue_get_buf` will return for it, and the length that of the first
/// `struct scatterlist`.
const ADD: &str = "index=+40(%di):u16 name=+0(+24(%di)):string buffers=%dx:u32 \
                   length=+12(%si):u32 data=%cx:x64";

const fn probe(
    module: &'static str,
    function: &'static str,
    call: Option<&'static str>,
    returns: bool,
) -> Probe {
    Probe {
        module,
        function,
        call,
        returns,
    }
}

const PROBES: [Probe; 26] = [
    // How the hook is attached.
    probe("virtio_pci", "vp_find_vqs", None, true),
    probe(
        "virtio_pci",
        "vp_find_vqs_msix",
        Some("per_vq_vectors=%r9:u8"),
        true,
    ),
    probe(
        "virtio_pci_modern_dev",
        "vp_modern_set_queue_size",
        Some("index=%si:u16 size=%dx:u16"),
        false,
    ),
    probe(
        "virtio_pci_modern_dev",
        "vp_modern_queue_address",
        Some("index=%si:u16 desc=%dx:x64 avail=%cx:x64 used=%r8:x64"),
        false,
    ),
    probe(
        "virtio_pci_modern_dev",
        "vp_modern_map_vq_notify",
        Some("index=%si:u16"),
        true,
    ),
    probe(
        "virtio_pci_legacy_dev",
        "vp_legacy_get_queue_size",
        Some("index=%si:u16"),
        true,
    ),
    probe(
        "virtio_pci_legacy_dev",
        "vp_legacy_set_queue_address",
        Some("index=%si:u16 pfn=%dx:u32"),
        false,
    ),
    // The way out.
    probe("", "udp_sendmsg", Some("length=%dx:u64"), false),
    probe("virtio_net", "start_xmit", Some("skb=%di:x64"), false),
    probe("virtio_ring", "virtqueue_add_outbuf", Some(ADD), false),
    probe("virtio_ring", "virtqueue_kick_prepare", Some(QUEUE), true),
    probe("virtio_ring", "virtqueue_notify", Some(QUEUE), false),
    probe("virtio_pci", "vp_notify", Some(QUEUE), true),
    // The way in, and back.
    probe("virtio_pci", "vp_interrupt", Some("irq=%di:u32"), true),
    probe(
        "virtio_ring",
        "vring_interrupt",
        Some("irq=%di:u32 index=+40(%si):u16 name=+0(+24(%si)):string"),
        false,
    ),
    probe("virtio_net", "virtnet_poll", Some("budget=%si:u32"), false),
    probe(
        "virtio_net",
        "virtnet_poll_tx",
        Some("budget=%si:u32"),
        false,
    ),
    probe("virtio_ring", "virtqueue_get_buf", Some(QUEUE), true),
    probe("virtio_ring", "virtqueue_get_buf_ctx", Some(QUEUE), true),
    probe("virtio_ring", "virtqueue_add_inbuf", Some(ADD), false),
    probe("virtio_ring", "virtqueue_add_inbuf_ctx", Some(ADD), false),
    probe("virtio_ring", "virtqueue_disable_cb", Some(QUEUE), false),
    probe("virtio_ring", "virtqueue_enable_cb", Some(QUEUE), false),
    probe(
        "virtio_ring",
        "virtqueue_enable_cb_prepare",
        Some(QUEUE),
        false,
    ),
    probe(
        "virtio_ring",
        "virtqueue_enable_cb_delayed",
        Some(QUEUE),
        false,
    ),
    probe("", "udp_recvmsg", None, true),
];

/// The lines that `kprobe_events` takes.
pub fn lines() -> String {
    let mut lines = String::new();
    for probe in &PROBES {
        let function = probe.function;
        let place = match probe.module {
            "" => function.to_owned(),
            module => format!("{module}:{function}"),
        };
        if let Some(arguments) = probe.call {
            lines += &format!("p:{GROUP}/{function} {place} {arguments}\n");
        }
        if probe.returns {
            lines += &format!("r:{GROUP}/{function}{RETURN} {place} value=$retval:x64\n");
        }
    }
    lines
}

/// The function that a line which the kernel refused is about.
pub fn function_of(line: &str) -> &str {
    let place = line.split_whitespace().nth(1).unwrap_or(line);
    place.rsplit(':').next().unwrap_or(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_a_line() {
        let lines = lines();
        let notify: Vec<&str> = lines.lines().filter(|l| l.contains("vp_notify")).collect();
        assert_eq!(
            notify,
            [
                "p:kickpath/vp_notify virtio_pci:vp_notify index=+40(%di):u16 \
                 name=+0(+24(%di)):string",
                "r:kickpath/vp_notify_returns virtio_pci:vp_notify value=$retval:x64"
            ]
        );
        assert!(
            lines
                .lines()
                .any(|line| line == "p:kickpath/udp_sendmsg udp_sendmsg length=%dx:u64")
        );
        for line in notify {
            assert_eq!(function_of(line), "vp_notify");
        }
        assert_eq!(
            function_of("net/netif_receive_skb"),
            "net/netif_receive_skb"
        );
    }
}
