//! The interface with its sockets, and the turn that moves everything on.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use kickpath_abi::config::Config;
use kickpath_abi::status;
use smoltcp::iface::{self, Interface, PollResult, SocketSet};
use smoltcp::phy::{Device, PacketMeta, RxToken, TxToken};
use smoltcp::socket::Socket;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::address::{Ipv4, Ipv4State};
use crate::address_book::AddressBook;
use crate::chargen::Pattern;
use crate::checksum::{Checked, Duties, ETHERNET, Fragments, Token};
use crate::fast_echo::FastEcho;
use crate::ingress::{self, Class, OneFrame};
use crate::neighbor::{self, Waiting};
use crate::netconsole::{self, Netconsole};
use crate::pool::{Limits, Pool, earlier};
use crate::shared::{self, NoAnswer, Shared};
use crate::slaac::{self, Slaac};
use crate::{CHARGEN_PORT, DISCARD_PORT, ECHO_PORT, HTTP_PORT, announce, http, tcp, udp};

/// Frames that one turn receives at most, so that a flood does not keep the
/// answers from going out.
const INGRESS_BATCH: usize = 64;
/// Passes over the TCP sockets, each sending at most a segment a socket, in one
/// turn.
const EGRESS_PASSES: usize = 64;
/// When to try again if frames wait for the device and it has not called.
const DEVICE_RETRY: Duration = Duration::from_millis(1);
/// When to try again if lines of the log wait for room or for ARP.
const LOG_RETRY: Duration = Duration::from_millis(20);
/// How long fragments wait for the rest of their packet.
const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(3);

const ECHO: Limits = Limits {
    port: ECHO_PORT,
    sockets: 8,
    receive: 32 * 1024,
    transmit: 32 * 1024,
    idle: Duration::from_secs(60),
};
const DISCARD: Limits = Limits {
    port: DISCARD_PORT,
    sockets: 4,
    receive: Limits::MAX_RECEIVE,
    transmit: 64,
    idle: Duration::from_secs(60),
};
const CHARGEN: Limits = Limits {
    port: CHARGEN_PORT,
    sockets: 4,
    receive: 512,
    transmit: 32 * 1024,
    idle: Duration::from_secs(60),
};
const HTTP: Limits = Limits {
    port: HTTP_PORT,
    sockets: 12,
    receive: 4 * 1024,
    transmit: 16 * 1024,
    idle: Duration::from_secs(30),
};

/// What the report says of everything but the network.
pub trait StatusSource {
    /// The report as of now; [`Stack`] fills in [`status::Status::network`].
    fn status(&self) -> status::Status;
}

/// The guest's network. See the crate for an example.
pub struct Stack {
    interface: Box<Interface>,
    duties: Duties,
    fragments: Fragments,
    address_book: AddressBook,
    ipv4: Ipv4,
    ipv6: Slaac,
    fast_echo: FastEcho,
    udp_echo: udp::Echo,
    udp_chargen: udp::Chargen,
    /// Every socket that has no set of its own.
    sockets: SocketSet<'static>,
    echo: (tcp::Echo, Pool<()>),
    discard: Pool<()>,
    chargen: Pool<Pattern>,
    http: Pool<http::Connection>,
    /// Pings that cannot be answered yet.
    waiting: Waiting,
    /// What other stacks with this address must hear.
    shared: Shared,
    /// When something other than a frame needs a turn.
    deadline: Option<Instant>,
    /// Since the last [`Self::take_addresses_changed`].
    addresses_changed: bool,
}

impl Stack {
    /// Makes the interface and its services, and allocates all their buffers
    /// (about 2 MiB).
    ///
    /// `mac` is the device's address, `seed` should differ from boot to boot: it
    /// decides TCP's sequence numbers.
    ///
    /// # Panics
    /// When the device's medium is not Ethernet.
    pub fn new<D: Device + ?Sized>(
        config: &Config,
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        Self::build(Some(config), mac, device, now, seed)
    }

    /// With a configuration the stack finds its addresses, without one it
    /// follows another.
    fn build<D: Device + ?Sized>(
        config: Option<&Config>,
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mac = EthernetAddress(mac);
        let mut settings = iface::Config::new(HardwareAddress::Ethernet(mac));
        settings.random_seed = seed;
        let duties = Duties::of(device);
        let ip_mtu = device.capabilities().ip_mtu();
        let mut device = Checked::new(device, duties);
        let mut interface = Box::new(Interface::new(settings, &mut device, now));
        interface.set_reassembly_timeout(REASSEMBLY_TIMEOUT);
        let mut ipv6 = Slaac::new(mac, &mut interface, now);
        let ipv4 = match config {
            Some(config) => Ipv4::new(config, &mut interface, now),
            None => {
                ipv6.only_listen();
                Ipv4::following()
            }
        };

        let sockets = ECHO.sockets + DISCARD.sockets + CHARGEN.sockets + HTTP.sockets;
        let mut sockets = SocketSet::new(Vec::with_capacity(sockets + 3));
        // The UDP sockets first: a datagram is offered to them in this order.
        let udp_echo = udp::Echo::new(&mut sockets, ip_mtu);
        let udp_chargen = udp::Chargen::new(&mut sockets, ip_mtu);
        let mut stack = Self {
            interface,
            duties,
            fragments: Fragments::default(),
            address_book: AddressBook::new(mac),
            ipv4,
            ipv6,
            fast_echo: FastEcho::new(mac, ip_mtu, now),
            udp_echo,
            udp_chargen,
            sockets,
            echo: (tcp::Echo::new(), Pool::new(ECHO)),
            discard: Pool::new(DISCARD),
            chargen: Pool::new(CHARGEN),
            http: Pool::new(HTTP),
            waiting: Waiting::new(ETHERNET + ip_mtu),
            shared: Shared::default(),
            deadline: Some(now),
            addresses_changed: true,
        };
        stack.listen(now);
        stack
    }

    /// As [`Self::new`], for a further queue of a device that has a stack
    /// already: the two have the same addresses. This one asks neither for an
    /// IPv4 address ([`Self::follow_ipv4`] tells it) nor for routers, and both
    /// tell each other by [`Self::take_shared`] and [`Self::hear`], by
    /// [`Self::take_strays`] and [`Self::hear_stray`].
    ///
    /// # Panics
    /// When the device's medium is not Ethernet.
    pub fn following<D: Device + ?Sized>(
        mac: [u8; 6],
        device: &mut D,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mut stack = Self::build(None, mac, device, now, seed);
        stack.share_frames();
        stack
    }

    /// Has this stack keep the frames that concern every stack of the device.
    pub fn share_frames(&mut self) {
        self.shared.start();
    }

    /// The frames that came since the last call and that every other stack of
    /// the device must [`Self::hear`]; nothing without [`Self::share_frames`].
    /// More than 16 between two calls are lost.
    pub fn take_shared(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        self.shared.take()
    }

    /// Takes in a frame that another stack of the device has received, found
    /// intact, and answers.
    #[cold]
    pub fn hear(&mut self, now: Instant, frame: &[u8]) {
        self.meet(now, frame);
        let interface = &mut *self.interface;
        if slaac::is_advertisement(frame) {
            if self.ipv6.hear(now, interface, frame) {
                self.fast_echo.flows.clear();
                self.addresses_changed = true;
            }
        } else {
            let sockets = match self.ipv4.dhcp_sockets() {
                Some(sockets) if shared::is_for_dhcp_client(frame) => sockets,
                _ => &mut self.sockets,
            };
            let mut device = OneFrame::new(frame, PacketMeta::default(), NoAnswer);
            interface.poll_ingress_single(now, &mut device, sockets);
        }
        // Packets may have waited for what it says.
        self.waiting.hear();
        self.deadline = Some(now);
    }

    /// TCP segments that came since the last call and whose connection this
    /// stack does not have; nothing without [`Self::share_frames`]. Another
    /// stack must [`Self::hear_stray`] each: a device may move a flow to
    /// another queue at any time. More than 16 between two calls are lost.
    pub fn take_strays(&mut self) -> impl Iterator<Item = Box<[u8]>> + use<> {
        self.shared.take_strays()
    }

    /// Takes in a TCP segment that another stack of the device has received,
    /// found intact, and does not know; returns whether this one knows it. The
    /// last one that is asked answers what nobody knows, with RST.
    #[cold]
    pub fn hear_stray<D: Device>(
        &mut self,
        now: Instant,
        frame: &[u8],
        is_last: bool,
        device: &mut D,
    ) -> bool {
        let is_known = !self.is_stray(frame);
        if is_known || is_last {
            let device = &mut Checked::new(device, self.duties);
            // Where there is no room to answer, the sender will ask again.
            if let Some(answer) = device.transmit(now) {
                self.meet(now, frame);
                let mut device = OneFrame::new(frame, PacketMeta::default(), answer);
                self.interface
                    .poll_ingress_single(now, &mut device, &mut self.sockets);
                self.listen(now);
                self.deadline = Some(now);
            }
        }
        is_known
    }

    /// Whether a frame is a TCP segment to this host of a connection that is
    /// not here.
    fn is_stray(&self, frame: &[u8]) -> bool {
        let Some((from, to)) = shared::ends_of_segment(frame) else {
            return false;
        };
        self.interface.has_ip_addr(to.addr)
            && !self.sockets.iter().any(|(_, socket)| {
                matches!(socket, Socket::Tcp(socket)
                    if socket.remote_endpoint() == Some(from) && socket.local_endpoint() == Some(to))
            })
    }

    /// The IPv4 address and where it comes from, for
    /// [`Self::follow_ipv4`].
    pub fn ipv4(&self) -> Ipv4State {
        self.ipv4.state()
    }

    /// Takes the IPv4 address of another stack of the device.
    pub fn follow_ipv4(&mut self, now: Instant, state: Ipv4State) {
        if self.ipv4.take_over(&mut self.interface, state) {
            self.fast_echo.flows.clear();
            self.addresses_changed = true;
        }
        self.deadline = Some(now);
    }

    /// One turn: receives up to 64 frames, lets the services answer them, sends
    /// what they have to say. Returns whether another turn at once may find more
    /// to do: not after echoes alone, whose answers are sent.
    ///
    /// `now` must not go back. The device's tokens may be dropped unused.
    pub fn poll<D: Device + StatusSource>(&mut self, now: Instant, device: &mut D) -> bool {
        let device = &mut Checked::new(device, self.duties);
        let mut busy = true;
        let due = self.deadline.is_some_and(|deadline| now >= deadline);
        let mut others_received = false;
        for _ in 0..INGRESS_BATCH {
            let Some((receive, answer)) = device.receive(now) else {
                busy = others_received;
                break;
            };
            let meta = receive.meta();
            let stack = &mut *self;
            match receive.consume(move |frame| stack.ingest(now, frame, meta, answer)) {
                Class::Echoed | Class::Corrupt => {}
                class => {
                    others_received = true;
                    // A packet that came in fragments may be answered in
                    // fragments, and the next one would overwrite them.
                    if class == Class::Fragment
                        && !drain_fragments(now, &mut self.interface, device)
                    {
                        break;
                    }
                }
            }
        }
        if due || others_received {
            busy |= self.serve_others(now, device);
        }
        busy
    }

    /// When [`Self::poll`] wants its next turn if no frame comes; `None` for
    /// never. A time that is not after `now` means at once.
    pub fn poll_at(&mut self, _now: Instant) -> Option<Instant> {
        self.deadline
    }

    /// Whether addresses came or went since the last call, so that
    /// [`Self::multicast_groups`] are others.
    #[inline]
    pub fn take_addresses_changed(&mut self) -> bool {
        core::mem::take(&mut self.addresses_changed)
    }

    /// Hardware addresses of the multicast groups whose frames this host must
    /// hear; some may come twice.
    pub fn multicast_groups(&self) -> impl Iterator<Item = [u8; 6]> {
        announce::multicast_groups(&self.interface)
    }

    /// Tells the network of every address of this host unasked: gratuitous ARP
    /// and unsolicited neighbour advertisements. Returns whether all found
    /// room in the device; if not, the whole is to be repeated.
    pub fn announce<D: Device>(&self, now: Instant, device: &mut D) -> bool {
        announce::announce(now, &self.interface, device)
    }

    /// Sends lines of the log, as far as there is room, each a datagram;
    /// `next_line` writes one into a buffer and returns its length. Returns
    /// how a frame gets there without this stack, once there is an address.
    pub fn send_log<D: Device>(
        &mut self,
        now: Instant,
        device: &mut D,
        netconsole: &mut Netconsole,
        next_line: impl FnMut(&mut [u8]) -> Option<usize>,
    ) -> Option<netconsole::Template> {
        let device = &mut Checked::new(device, self.duties);
        netconsole.poll(now, &mut self.interface, device, next_line);
        if netconsole.is_waiting() {
            self.deadline = earlier(self.deadline, Some(now + LOG_RETRY));
        }
        netconsole.template(&self.interface)
    }

    /// The IP configuration.
    pub fn network(&self) -> status::Network {
        self.ipv4.report(&self.interface)
    }

    /// Hands a frame to smoltcp with the sockets that it is for. What it returns
    /// is [`Class::UdpEcho`] only for the fast path.
    #[inline]
    fn ingest<T: TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        meta: PacketMeta,
        answer: Token<'_, T>,
    ) -> Class {
        if let Some((header, checksum)) = self.fast_echo.recognize(frame, &self.duties, now) {
            self.fast_echo.answer(now, frame, &header, checksum, answer);
            return Class::Echoed;
        }
        self.ingest_other(now, frame, meta, answer)
    }

    /// [`Self::ingest`] for all but the plainest frames of the fast path.
    #[inline(never)]
    fn ingest_other<T: TxToken>(
        &mut self,
        now: Instant,
        frame: &[u8],
        meta: PacketMeta,
        answer: Token<'_, T>,
    ) -> Class {
        let class = ingress::classify(frame, &self.duties);
        match class {
            Class::UdpEcho { port, checksum } if !udp::is_answerer(port) => {
                if let Some(header) = self.fast_echo.header(frame, now) {
                    self.fast_echo
                        .answer_apart(now, frame, &header, checksum, answer);
                    return Class::Echoed;
                }
            }
            Class::Corrupt => return class,
            Class::Fragment => {
                let end = now + REASSEMBLY_TIMEOUT;
                if !self.fragments.admit(frame, &self.duties, end, now) {
                    return Class::Corrupt;
                }
            }
            _ => {}
        }
        self.meet(now, frame);
        let interface = &mut *self.interface;
        if neighbor::is_echo_request(frame) && class == Class::Other {
            self.waiting.answer(now, interface, frame, meta, answer);
            return class;
        }
        let mut device = OneFrame::new(frame, meta, answer);
        if class == Class::Dhcp
            && let Some(sockets) = self.ipv4.dhcp_sockets()
        {
            interface.poll_ingress_single(now, &mut device, sockets);
            return class;
        }
        if shared::concerns_all(frame) {
            self.shared.keep(frame);
            self.waiting.hear();
        }
        if slaac::is_advertisement(frame) {
            if self.ipv6.hear(now, interface, frame) {
                self.fast_echo.flows.clear();
                self.addresses_changed = true;
            }
            return class;
        }
        if self.shared.is_on() && class == Class::Other && self.is_stray(frame) {
            self.shared.keep_stray(frame);
            return class;
        }
        self.interface
            .poll_ingress_single(now, &mut device, &mut self.sockets);
        self.listen(now);
        class
    }

    /// Has the interface know whoever sent this frame, if ARP or discovery has
    /// told us of it.
    #[inline]
    fn meet(&mut self, now: Instant, frame: &[u8]) {
        if let Some(lesson) = self.address_book.missing(&self.interface, frame, now) {
            let mut device = OneFrame::new(lesson.frame(), PacketMeta::default(), NoAnswer);
            self.interface
                .poll_ingress_single(now, &mut device, &mut self.sockets);
        }
    }

    /// Sees to it that every TCP service listens, if it can.
    fn listen(&mut self, now: Instant) {
        let sockets = &mut self.sockets;
        self.echo.1.listen(now, sockets);
        self.discard.listen(now, sockets);
        self.chargen.listen(now, sockets);
        self.http.listen(now, sockets);
    }

    /// Everything but the UDP echo's fast path.
    fn serve_others<D: Device + StatusSource>(
        &mut self,
        now: Instant,
        device: &mut Checked<'_, D>,
    ) -> bool {
        let interface = &mut *self.interface;
        interface.poll_maintenance(now);
        if self.ipv4.poll(now, interface, device) | self.ipv6.poll(now, interface, device) {
            self.fast_echo.flows.clear();
            self.addresses_changed = true;
        }
        let mut context = udp::Context {
            now,
            interface,
            device,
            sockets: &mut self.sockets,
        };
        let flows = &mut self.fast_echo.flows;
        let mut busy = self.udp_echo.serve(&mut context, flows);
        busy |= self.udp_chargen.serve(&mut context, flows);
        busy |= self.waiting.serve(now, interface, device);

        let sockets = &mut self.sockets;
        let mut deadline = self.echo.1.serve(now, &mut self.echo.0, sockets);
        let due = self.discard.serve(now, &mut tcp::Discard, sockets);
        deadline = earlier(deadline, due);
        let due = self.chargen.serve(now, &mut tcp::Chargen, sockets);
        deadline = earlier(deadline, due);
        let due = {
            let report = || status::Status {
                network: self.ipv4.report(interface),
                ..device.device.status()
            };
            self.http
                .serve(now, &mut http::Server::new(&report), sockets)
        };
        deadline = earlier(deadline, due);

        let mut passes = 0;
        while passes < EGRESS_PASSES
            && interface.poll_egress(now, device, sockets) != PollResult::None
        {
            passes += 1;
        }
        busy |= passes > 0;

        deadline = earlier(deadline, self.ipv4.poll_at(now, interface));
        deadline = earlier(deadline, self.ipv6.poll_at());
        let mut due = interface.poll_at(now, sockets);
        if due.is_some_and(|at| at <= now) && device.transmit(now).is_none() {
            due = Some(now + DEVICE_RETRY);
        }
        deadline = earlier(deadline, due);
        deadline = earlier(deadline, self.waiting.poll_at());
        if self.udp_echo.is_waiting() || self.udp_chargen.is_waiting() {
            deadline = earlier(deadline, Some(now + DEVICE_RETRY));
        }
        self.deadline = deadline;
        busy
    }
}

/// Sends what is left of a packet that goes out in fragments. Returns whether
/// nothing is left.
///
/// smoltcp has one buffer for this and does not look whether it is in use.
pub(crate) fn drain_fragments<D: Device + ?Sized>(
    now: Instant,
    interface: &mut Interface,
    device: &mut D,
) -> bool {
    let none = &mut SocketSet::new(vec![]);
    // More than the fragments of its buffer's 16 KiB at the smallest MTU that
    // virtio-net has (68 bytes: 48 of payload).
    for _ in 0..400 {
        // With no socket, only fragments can be due.
        if interface.poll_at(now, none).is_none() {
            return true;
        }
        if device.transmit(now).is_none() {
            return false;
        }
        interface.poll_egress(now, device, none);
    }
    false
}
