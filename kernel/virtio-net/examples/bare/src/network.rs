//! smoltcp over the driver: ping, and UDP and TCP echo at port 7.

use alloc::vec;

use log::info;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};
use spin::Mutex;
use virtio_net::interrupt::{InterruptState, IsrRegister};
use virtio_net::net::watchdog::LOOK_US;
use virtio_net::net::{NetError, Options, VirtioNet};
use virtio_net::smoltcp::{Phy, SERVED};
use virtio_net::transport::{BusName, MsiMessage};
use virtio_net::vectors::{InterruptController, InterruptUnavailable, Rung, VectorUse};

use crate::Machine;
use crate::devices::{AnyDevice, Found};
use crate::memory::BareHal;

const ADDRESS: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const ECHO: u16 = 7;
/// Connections at a time.
const CONNECTIONS: usize = 4;

/// What the handlers tell the driver.
static INTERRUPTS: InterruptState = InterruptState::new();
/// The line that is connected, and the register that lowers it.
static LINE: Mutex<Option<(u32, IsrRegister)>> = Mutex::new(None);

/// To be called when an interrupt has come that was enabled.
pub fn line_interrupt(interrupt: u32) {
    // Never contended: interrupts come while the kernel sleeps.
    if let Some((line, isr)) = *LINE.lock()
        && line == interrupt
    {
        INTERRUPTS.vp_interrupt(isr);
    }
}

/// Connects the device's line; messages (MSI-X) are left to larger kernels.
struct Line<M> {
    interrupt: Option<u32>,
    machine: core::marker::PhantomData<M>,
}

impl<M: Machine> InterruptController for Line<M> {
    fn attach_msi(&mut self, _: VectorUse) -> Result<MsiMessage, InterruptUnavailable> {
        Err(InterruptUnavailable::Unsupported)
    }

    fn detach_msi(&mut self) {}

    fn attach_intx(&mut self, isr: IsrRegister) -> Result<(), InterruptUnavailable> {
        let interrupt = self.interrupt.ok_or(InterruptUnavailable::Unsupported)?;
        *LINE.lock() = Some((interrupt, isr));
        M::enable(interrupt, true);
        Ok(())
    }

    fn detach_intx(&mut self) {
        if let Some((interrupt, _)) = LINE.lock().take() {
            M::enable(interrupt, false);
        }
    }
}

type Nic = VirtioNet<BareHal, AnyDevice>;

/// Serves for ever.
pub fn serve<M: Machine>(found: Found, polls: bool) -> ! {
    let Found {
        transport,
        interrupt,
    } = found;
    let mut line = Line::<M> {
        interrupt,
        machine: core::marker::PhantomData,
    };
    let rung = if polls { Rung::Polling } else { Rung::Intx };
    let mut nic = open(transport, &mut line, rung).expect("a network device that works");

    let now = || Instant::from_micros(M::micros() as i64);
    let mut config = Config::new(EthernetAddress(nic.info().mac).into());
    config.random_seed = M::micros();
    let mut interface = Interface::new(config, &mut Phy::of(&mut nic), now());
    interface.update_ip_addrs(|all| {
        let _ = all.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 24));
    });
    let _ = interface.routes_mut().add_default_ipv4_route(GATEWAY);
    let mut sockets = SocketSet::new(vec![]);
    let datagrams = sockets.add(udp_socket());
    let connections = [(); CONNECTIONS].map(|()| sockets.add(tcp_socket()));
    info!("up");

    let mut told = false;
    let (mut look_at, mut asleep_since) = (0, None);
    loop {
        let (time, slept) = (M::micros(), asleep_since.take());
        // What gets lost between the two sides is found once a second.
        if time >= look_at {
            look_at = time + LOOK_US;
            for pair in nic.pairs() {
                pair.watch(slept, INTERRUPTS.interrupts());
            }
        }
        if let Err(error) = nic.poll() {
            info!("the device broke down: {error}");
            nic.stop(&mut line);
            nic.open(&mut line, rung).expect("a device that comes back");
        }
        interface.poll(now(), &mut Phy::of(&mut nic), &mut sockets);
        let mut busy = echo_datagrams(sockets.get_mut(datagrams));
        for connection in connections {
            busy |= echo_stream(&mut sockets, connection);
        }
        nic.kick();
        if !told && INTERRUPTS.interrupts() > 0 {
            told = true;
            info!("interrupts come");
        }
        // Interrupts are asked for only when nothing is left to do.
        if nic.rung() != Some(Rung::Polling) && !busy && !nic.enable_interrupts() {
            let delay = interface.poll_delay(now(), &sockets);
            let until = delay.map_or(look_at, |delay| {
                look_at.min(M::micros() + delay.total_micros())
            });
            asleep_since = Some(INTERRUPTS.interrupts());
            M::sleep(until);
        }
    }
}

/// The device, as far as it can be driven with these interrupts.
fn open<M: Machine>(transport: AnyDevice, line: &mut Line<M>, rung: Rung) -> Result<Nic, NetError> {
    let mut net = VirtioNet::probe(transport, Options::serving(SERVED), &INTERRUPTS)?;
    net.set_clock(M::micros);
    net.open(line, rung)?;
    let taken = net.rung().unwrap_or(Rung::Polling);
    let mac = EthernetAddress(net.info().mac);
    info!(
        "{} with {taken}, {mac}, {ADDRESS}",
        BusName(net.transport())
    );
    Ok(net)
}

fn udp_socket() -> udp::Socket<'static> {
    let buffer =
        || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 128], vec![0; 128 << 10]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(ECHO).expect("a port");
    socket
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
    tcp::Socket::new(buffer(), buffer())
}

/// Sends back what was received; whether there was anything.
fn echo_datagrams(socket: &mut udp::Socket) -> bool {
    let mut any = false;
    let mut content = [0; 1500];
    while socket.can_send()
        && let Ok((length, from)) = socket.recv_slice(&mut content)
    {
        any = true;
        let _ = socket.send_slice(&content[..length], from);
    }
    any
}

/// Sends back what was received, and listens again when all is said.
fn echo_stream(sockets: &mut SocketSet, handle: SocketHandle) -> bool {
    let socket = sockets.get_mut::<tcp::Socket>(handle);
    if !socket.is_open() {
        let _ = socket.listen(ECHO);
    }
    let mut any = false;
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let mut content = [0; 4096];
        let take = room.min(content.len());
        let Ok(length) = socket.recv_slice(&mut content[..take]) else {
            break;
        };
        any = true;
        let _ = socket.send_slice(&content[..length]);
    }
    // The other end has sent all, and all is queued to go back.
    if !socket.may_recv() && !socket.can_recv() && socket.may_send() {
        socket.close();
        any = true;
    }
    any
}
