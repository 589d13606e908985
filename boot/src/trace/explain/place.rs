//! Where an event of the guest is: our function, Linux's, and the section.

use kickpath_trace::Event;

/// Function, Linux function and section of an event of the guest.
pub(super) fn place(
    event: Event,
) -> (
    Option<&'static str>,
    Option<&'static str>,
    Option<&'static str>,
) {
    let (function, linux, section) = match event {
        Event::FindVqsTry => (
            "find_vqs",
            "vp_find_vqs",
            "3.1.1 Driver Requirements: Device Initialization",
        ),
        Event::FindVqsResult => (
            "try_find_vqs",
            "vp_try_to_find_vqs",
            "4.1.5.1.2 MSI-X Vector Configuration",
        ),
        Event::SetupQueue => (
            "setup_queue",
            "setup_vq",
            "4.1.5.1.3 Virtqueue Configuration",
        ),
        Event::AttachDoorbell => (
            "Virtqueue::new",
            "vring_new_virtqueue(.., vp_notify, ..)",
            "4.1.5.2 Available Buffer Notifications",
        ),
        Event::SocketSend => ("udp::Socket::send_slice", "udp_sendmsg", ""),
        Event::TxTokenConsume => (
            "TxToken::consume",
            "dev_hard_start_xmit, which calls net_device_ops.ndo_start_xmit",
            "",
        ),
        Event::StartXmit => (
            "TxSlot::start_xmit",
            "start_xmit, the ndo_start_xmit of virtio_net",
            "5.1.6.2 Packet Transmission",
        ),
        Event::Descriptor => (
            "PositionalRing::add",
            "virtqueue_add_split",
            "2.7.13.1 Placing Buffers Into The Descriptor Table",
        ),
        Event::Add => (
            "PositionalRing::add",
            "virtqueue_add_split",
            "2.7.13.2 Updating The Available Ring",
        ),
        Event::Publish => (
            "SplitMemory::publish",
            "virtqueue_add_split, at its end",
            "2.7.13.3 Updating idx",
        ),
        Event::KickPrepare => (
            "Virtqueue::kick_prepare",
            "virtqueue_kick_prepare",
            "2.7.10 Available Buffer Notification Suppression",
        ),
        Event::Notify => (
            "Virtqueue::notify",
            "virtqueue_notify, which calls vq->notify",
            "2.7.13.4 Notifying The Device",
        ),
        Event::DoorbellRing => (
            "Doorbell::ring",
            "vp_notify",
            "4.1.5.2 Available Buffer Notifications",
        ),
        Event::DoorbellRang => ("Doorbell::ring", "vp_notify", ""),
        Event::OtherInterrupt | Event::OtherInterruptEnd => {
            ("interrupts::dispatch", "sysvec_apic_timer_interrupt", "")
        }
        Event::InterruptVector => ("interrupts::dispatch", "common_interrupt", ""),
        Event::VringInterrupt => (
            "InterruptState::vring_interrupt",
            "vring_interrupt",
            "4.1.5.3 Used Buffer Notifications",
        ),
        Event::IntxInterrupt => (
            "InterruptState::vp_interrupt",
            "vp_interrupt",
            "4.1.4.5 ISR status capability",
        ),
        Event::ConfigInterrupt => (
            "InterruptState::vp_config_changed",
            "vp_config_changed",
            "4.1.5.4 Notification of Device Configuration Changes",
        ),
        Event::Poll => ("VirtioNet::poll", "virtnet_poll", ""),
        Event::PopUsed => (
            "PositionalRing::pop_used",
            "virtqueue_get_buf",
            "2.7.14 Receiving Used Buffers From The Device",
        ),
        Event::RxTokenConsume => (
            "RxToken::consume",
            "receive_buf",
            "5.1.6.4 Processing of Incoming Packets",
        ),
        Event::SocketReceive => ("udp::Socket::recv", "udp_recvmsg", ""),
        Event::EnableInterrupts => (
            "Virtqueue::enable_interrupts",
            "virtqueue_enable_cb",
            "2.7.7 Used Buffer Notification Suppression",
        ),
        Event::DisableInterrupts => (
            "Virtqueue::disable_interrupts",
            "virtqueue_disable_cb",
            "2.7.7 Used Buffer Notification Suppression",
        ),
        Event::Idle => ("idle_until", "default_idle", ""),
    };
    let some = |text: &'static str| Some(text).filter(|text| !text.is_empty());
    (some(function), some(linux), some(section))
}

/// The same for a packed ring: Linux's functions and the sections are others.
pub(super) fn of_packed(text: &'static str) -> &'static str {
    match text {
        "SplitMemory::publish" => "PackedMemory::publish",
        "virtqueue_kick_prepare" => "virtqueue_kick_prepare_packed",
        "virtqueue_get_buf" => "virtqueue_get_buf_ctx_packed",
        "virtqueue_enable_cb" => "virtqueue_enable_cb_packed",
        "virtqueue_disable_cb" => "virtqueue_disable_cb_packed",
        "2.7.13.1 Placing Buffers Into The Descriptor Table"
        | "2.7.13.2 Updating The Available Ring"
        | "2.7.13.3 Updating idx" => "2.8.21.1 Placing Available Buffers Into The Descriptor Ring",
        "2.7.13.4 Notifying The Device" => "2.8.21.2 Sending Available Buffer Notifications",
        "2.7.10 Available Buffer Notification Suppression"
        | "2.7.7 Used Buffer Notification Suppression" => {
            "2.8.10 Driver and Device Event Suppression"
        }
        "2.7.14 Receiving Used Buffers From The Device" => {
            "2.8.22 Receiving Used Buffers From The Device"
        }
        "virtqueue_add_split" => "virtqueue_add_packed",
        "virtqueue_add_split, at its end" => "virtqueue_add_packed, at its end",
        other => other,
    }
}

/// The same for virtio-mmio: Linux's functions and the sections are others.
pub(super) fn of_mmio(text: &'static str) -> &'static str {
    match text {
        "setup_vq" => "vm_setup_vq",
        "vring_new_virtqueue(.., vp_notify, ..)" => "vring_create_virtqueue(.., vm_notify, ..)",
        "vp_notify" => "vm_notify",
        "vp_interrupt" => "vm_interrupt",
        "4.1.5.1.2 MSI-X Vector Configuration" => "4.2.3.4 Notifications From The Device",
        "4.1.5.1.3 Virtqueue Configuration" => "4.2.3.2 Virtqueue Configuration",
        "4.1.5.2 Available Buffer Notifications" => "4.2.3.3 Available Buffer Notifications",
        "4.1.4.5 ISR status capability" => "4.2.2 MMIO Device Register Layout",
        other => other,
    }
}
