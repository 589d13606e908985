//! The far end of a trace.

use kickpath_abi::config::UdpWay;

use crate::command::Sink;
use crate::guest::Guest;
use crate::install::IPROUTE2;
use crate::session::{Mismatch, NetChoice, Prepared, SessionError, Settings, require};
use crate::wire::{FarEnd, FrameLog, HostSockets, Peer, Tap, Watch};

/// Whether a trace can be had of this guest at this far end.
///
/// # Errors
/// Its frames cannot be recorded, or its guest has no records of the datagram.
pub fn check(settings: &Settings, net: NetChoice) -> Result<(), Mismatch> {
    let refuse = |option, why| Err(Mismatch::Decided { option, why });
    if settings.udp == UdpWay::InPlace {
        return refuse(
            "--udp in-place",
            "a trace follows the datagram to a socket and out of one, and there is none",
        );
    }
    match net {
        NetChoice::Dgram | NetChoice::Tap => settings.check_with(net),
        NetChoice::User => refuse(
            "--net user",
            "QEMU's user network shows nobody the frames that it makes of what sockets send \
             (--net dgram or tap)",
        ),
    }
}

/// What the far end needs, before anything is started.
///
/// # Errors
/// The options do not go together, or rights or a program are missing.
pub(super) fn require_for(
    net: NetChoice,
    settings: &Settings,
    sink: &mut Sink<'_>,
) -> Result<(), SessionError> {
    check(settings, net)?;
    if net == NetChoice::Tap {
        Tap::check_rights()?;
        require(&[IPROUTE2], settings.policy, sink)?;
    }
    Ok(())
}

/// A far end whose frames are recorded.
pub(super) enum Cable {
    /// A host of our own.
    Peer(Peer),
    /// Linux behind a tap device, which goes last.
    Tap {
        sockets: HostSockets,
        watch: Watch,
        _tap: Tap,
    },
}

impl Cable {
    /// Makes it, before the guest is started.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn connect(prepared: &mut Prepared, net: NetChoice) -> Result<Self, SessionError> {
        Ok(match net {
            NetChoice::Tap => {
                let tap = prepared.connect_tap()?;
                Self::Tap {
                    sockets: tap.sockets(),
                    watch: tap.watch()?,
                    _tap: tap,
                }
            }
            _ => Self::Peer(prepared.connect_peer()?),
        })
    }

    pub(super) fn far_end(&self) -> &dyn FarEnd {
        match self {
            Self::Peer(peer) => peer,
            Self::Tap { sockets, .. } => sockets,
        }
    }

    pub(super) fn frame_log(&self) -> FrameLog {
        match self {
            Self::Peer(peer) => peer.frame_log(),
            Self::Tap { watch, .. } => watch.frame_log(),
        }
    }

    /// Starts the guest at the other end.
    ///
    /// # Errors
    /// QEMU does not start.
    pub(super) fn launch(&self, prepared: &mut Prepared) -> Result<Guest, SessionError> {
        let mut guest = prepared.launch()?;
        guest.attach_frames(self.frame_log());
        Ok(guest)
    }
}
