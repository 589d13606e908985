//! Builds the guest, boots it in QEMU and is the other end of its cable.
