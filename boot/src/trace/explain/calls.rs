//! The way of a kick in the words of Linux's and QEMU's source, for a reader
//! who comes from there. Which of these calls ran here, the steps tell; the
//! others are what the source has in between.

use crate::trace::timeline::{Layer, Phase, Run, SourceCall, Step};

/// A row: where it is, the words, and the record that tells of it.
type Row = (Layer, &'static str, Option<&'static str>);

/// The rows, with the number of the step that recorded each.
pub fn calls(run: &Run, steps: &[Step]) -> Vec<SourceCall> {
    let mut sent = steps.iter().filter(|step| step.phase == Phase::Transmit);
    let notify = sent.find(|step| step.event == "virtio_queue_notify");
    let by_vcpu = match run.vmm {
        None => notify.is_some_and(|step| step.layer == Layer::QemuVcpu),
        Some(_) => steps.iter().any(|step| {
            step.phase == Phase::Transmit && step.event == "kvm_userspace_exit" && !step.aside
        }),
    };
    // Other VMMs' sources are not told of.
    let is_told = |layer| run.layers().any(|told| told == layer);
    rows(run, by_vcpu)
        .into_iter()
        .filter(|(layer, _, _)| is_told(*layer))
        .map(|(layer, words, event)| SourceCall {
            layer,
            words: words.to_owned(),
            step: event.and_then(|event| {
                let mut steps = steps.iter();
                let found = steps.find(|step| {
                    step.phase == Phase::Transmit && step.event == event && !step.aside
                });
                found.map(|step| step.number)
            }),
        })
        .collect()
}

fn rows(run: &Run, by_vcpu: bool) -> Vec<Row> {
    let packed = run.device.features.iter().any(|f| f == "RING_PACKED");
    let mmio = run.device.transport == "mmio";
    let legacy = run.device.transport == "legacy";
    let port = legacy || run.device.doorbell.starts_with("outw");
    let guest = |words, event| (Layer::Guest, words, Some(event));
    let mut rows = vec![
        guest("udp_sendmsg", "SocketSend"),
        guest("dev_hard_start_xmit", "TxTokenConsume"),
        guest(
            "net_device_ops.ndo_start_xmit = start_xmit (drivers/net/virtio_net.c)",
            "StartXmit",
        ),
        guest(
            match packed {
                true => "xmit_skb -> virtqueue_add_outbuf -> virtqueue_add_packed",
                false => "xmit_skb -> virtqueue_add_outbuf -> virtqueue_add_split",
            },
            "Add",
        ),
        guest("virtqueue_kick -> virtqueue_kick_prepare", "KickPrepare"),
        guest("virtqueue_notify: vq->notify(vq)", "Notify"),
        guest(
            match (mmio, legacy) {
                (true, _) => "vm_notify: writel(vq->index, base + VIRTIO_MMIO_QUEUE_NOTIFY)",
                (_, true) => {
                    "vp_notify: iowrite16(vq->index, vq->priv), with vq->priv = ioaddr + \
                     VIRTIO_PCI_QUEUE_NOTIFY"
                }
                _ => {
                    "vp_notify: iowrite16(vq->index, vq->priv), with vq->priv from \
                     vp_modern_map_vq_notify"
                }
            },
            "DoorbellRing",
        ),
    ];
    if run.real_exits {
        let event = if port { "kvm_pio" } else { "kvm_mmio" };
        rows.push((
            Layer::Kvm,
            match (port, by_vcpu) {
                (true, false) => {
                    "kvm_fast_pio -> emulator_pio_in_out -> kvm_io_bus_write -> ioeventfd_write -> \
                     eventfd_signal"
                }
                (true, true) => "kvm_fast_pio -> KVM_EXIT_IO, back to user space",
                (false, false) => {
                    "kvm_mmu_page_fault -> x86_emulate_instruction -> write_mmio -> \
                     kvm_io_bus_write -> ioeventfd_write -> eventfd_signal (Intel, without data \
                     match: handle_ept_misconfig)"
                }
                (false, true) => {
                    "kvm_mmu_page_fault -> x86_emulate_instruction -> KVM_EXIT_MMIO, back to user \
                     space"
                }
            },
            Some(event),
        ));
    }
    if by_vcpu {
        let entry = match (run.real_exits, port) {
            (true, true) => "kvm_cpu_exec: ioctl(KVM_RUN) returns -> kvm_handle_io",
            (true, false) => "kvm_cpu_exec: ioctl(KVM_RUN) returns -> address_space_rw",
            (false, true) => "tcg_cpu_exec -> helper_outw -> address_space_stw",
            (false, false) => "tcg_cpu_exec -> the store's slow path of the softmmu",
        };
        rows.push((
            Layer::QemuVcpu,
            entry,
            run.real_exits.then_some("kvm_run_exit"),
        ));
        let write = match (mmio, legacy) {
            (true, _) => "memory_region_dispatch_write -> virtio_mmio_write",
            (_, true) => {
                "memory_region_dispatch_write -> virtio_pci_config_write -> virtio_ioport_write"
            }
            _ => "memory_region_dispatch_write -> virtio_pci_notify_write",
        };
        rows.push((Layer::QemuVcpu, write, Some("memory_region_ops_write")));
        rows.push((
            Layer::QemuVcpu,
            "virtio_queue_notify -> virtio_net_handle_tx_bh -> qemu_bh_schedule",
            Some("virtio_queue_notify"),
        ));
        rows.push((
            Layer::QemuMain,
            "main_loop_wait -> aio_bh_poll -> virtio_net_tx_bh -> virtio_net_flush_tx",
            None,
        ));
    } else {
        rows.extend([
            (
                Layer::QemuMain,
                "main_loop_wait -> os_host_main_loop_wait -> g_main_context_dispatch -> \
                 aio_dispatch",
                None,
            ),
            (
                Layer::QemuMain,
                "virtio_queue_host_notifier_read -> virtio_queue_notify_vq",
                Some("virtio_queue_notify"),
            ),
            (
                Layer::QemuMain,
                "virtio_net_handle_tx_bh -> virtio_net_tx_bh -> virtio_net_flush_tx",
                None,
            ),
        ]);
    }
    rows.extend([
        (Layer::QemuMain, "virtqueue_pop", Some("virtqueue_pop")),
        (
            Layer::QemuMain,
            "qemu_sendv_packet_async -> the network's back end",
            None,
        ),
        (
            Layer::QemuMain,
            "virtqueue_push: virtqueue_fill, virtqueue_flush",
            Some("virtqueue_fill"),
        ),
        (
            Layer::QemuMain,
            "virtio_notify, if the driver asked for an interrupt",
            None,
        ),
    ]);
    rows
}
