//! Addresses: static, DHCP with lease, loss and fallback, IPv6; ping; and that a
//! guest with nothing to do sleeps.

mod common;

use common::*;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::*;

const SERVER: Ipv4Address = Ipv4Address::new(10, 1, 0, 1);
const LEASED: Ipv4Address = Ipv4Address::new(10, 1, 0, 77);

/// A DHCP server's answer, sent from `server`.
fn dhcp_answer(
    kind: DhcpMessageType,
    transaction_id: u32,
    server: Ipv4Address,
    router: Ipv4Address,
    lease: u32,
) -> Vec<u8> {
    let dhcp = DhcpRepr {
        message_type: kind,
        transaction_id,
        secs: 0,
        client_hardware_address: EthernetAddress(GUEST_MAC),
        client_ip: Ipv4Address::UNSPECIFIED,
        your_ip: LEASED,
        server_ip: server,
        router: Some(router),
        subnet_mask: Some(Ipv4Address::new(255, 255, 0, 0)),
        relay_agent_ip: Ipv4Address::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(SERVER),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: Some(lease),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut payload = vec![0; dhcp.buffer_len()];
    dhcp.emit(&mut DhcpPacket::new_unchecked(&mut payload[..]))
        .unwrap();
    let mut frame = datagram(HOST_MAC, server, Ipv4Address::BROADCAST, [67, 68], &payload);
    frame[..6].fill(0xff);
    frame
}

/// Answers what the guest has asked of a DHCP server; returns what it was.
fn serve_dhcp(
    world: &mut World,
    server: Ipv4Address,
    router: Ipv4Address,
    lease: u32,
) -> Vec<DhcpMessageType> {
    let mut asked = vec![];
    for frame in world.sent() {
        if frame[12..14] != [8, 0] || frame[23] != 17 || frame[36..38] != 67u16.to_be_bytes() {
            continue;
        }
        let packet = DhcpPacket::new_checked(&frame[42..]).unwrap();
        let question = DhcpRepr::parse(&packet).unwrap();
        asked.push(question.message_type);
        let kind = match question.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => DhcpMessageType::Ack,
            _ => continue,
        };
        let answer = dhcp_answer(kind, question.transaction_id, server, router, lease);
        world.inject(answer);
    }
    asked
}

/// So many times, lets some milliseconds pass and answers what was asked of a server.
fn lease(world: &mut World, times: usize, milliseconds: u64, seconds: u32) {
    for _ in 0..times {
        turn(world, milliseconds);
        serve_dhcp(world, SERVER, SERVER, seconds);
    }
}

fn turn(world: &mut World, milliseconds: u64) {
    for _ in 0..milliseconds {
        world.turn_guest();
        world.now += Duration::from_millis(1);
    }
}

#[test]
fn a_lease_is_taken_and_lost_again() {
    let mut world = World::with("ip=dhcp");
    assert!(world.stack.network().ipv4.is_empty());
    lease(&mut world, 10, 1, 100);
    let network = world.stack.network();
    assert_eq!(network.ipv4, ["10.1.0.77/16"]);
    assert_eq!(network.gateway, "10.1.0.1");
    assert_eq!(network.ipv4_source, "dhcp");
    // No server any more: the lease ends, and the fallback is taken.
    turn(&mut world, 99_000);
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    turn(&mut world, 1_100);
    assert!(world.stack.network().ipv4.is_empty());
    turn(&mut world, 4_000);
    assert_eq!(world.stack.network().ipv4, ["10.0.2.15/24"]);
    assert_eq!(world.stack.network().gateway, "");
}

#[test]
fn a_lease_is_renewed() {
    let mut world = World::with("ip=dhcp");
    let mut asked = vec![];
    for _ in 0..1000 {
        // The server's address is known, so that renewing by unicast works.
        world.inject(server_asks());
        turn(&mut world, 1000);
        asked.extend(serve_dhcp(&mut world, SERVER, SERVER, 300));
    }
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    let is_discover = |kind: &&DhcpMessageType| **kind == DhcpMessageType::Discover;
    assert_eq!(asked.iter().filter(is_discover).count(), 1, "{asked:?}");
    assert!(asked.len() > 5, "{asked:?}");
}

fn server_asks() -> Vec<u8> {
    arp(1, HOST_MAC, SERVER.octets(), LEASED.octets())
}

#[test]
fn without_an_answer_the_fallback_is_taken_and_a_later_lease_replaces_it() {
    let mut world = World::with("ip=dhcp");
    turn(&mut world, 3_990);
    assert!(world.stack.network().ipv4.is_empty());
    turn(&mut world, 20);
    assert_eq!(world.stack.network().ipv4, ["10.0.2.15/24"]);
    assert_eq!(world.stack.network().ipv4_source, "fallback");
    world.host.inbox.borrow_mut().clear();
    world.assert_echo();
    lease(&mut world, 30, 500, 100);
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
}

#[test]
fn a_gateway_or_server_that_cannot_be_is_not_taken() {
    for router in [[0, 0, 0, 0], [255, 255, 255, 255], [224, 0, 0, 1]] {
        let mut world = World::with("ip=dhcp");
        for _ in 0..10 {
            turn(&mut world, 1);
            serve_dhcp(&mut world, SERVER, router.into(), 100);
        }
        assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
        assert_eq!(world.stack.network().gateway, "");
        // Something must go off the network to meet it.
        world.inject(datagram(HOST_MAC, [192, 0, 2, 1], LEASED, [1000, 7], b"x"));
        turn(&mut world, 10);
    }
    // A lease from 0.0.0.0 would be renewed there.
    let mut world = World::with("ip=dhcp");
    for _ in 0..300 {
        turn(&mut world, 100);
        serve_dhcp(&mut world, Ipv4Address::UNSPECIFIED, SERVER, 20);
    }
    assert_eq!(world.stack.network().ipv4_source, "fallback");

    let mut world = World::with("ip=10.0.2.15/24 gateway=255.255.255.255");
    assert_eq!(world.stack.network().gateway, "");
    world.assert_echo();
}

const ON_LINK: NdiscPrefixInfoFlags =
    NdiscPrefixInfoFlags::ADDRCONF.union(NdiscPrefixInfoFlags::ON_LINK);

/// A router advertisement for `prefix`, of this many bits and seconds.
fn advertisement(
    prefix: Ipv6Address,
    prefix_len: u8,
    lifetime: u64,
    flags: NdiscPrefixInfoFlags,
) -> Vec<u8> {
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: Duration::from_secs(lifetime),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(RawHardwareAddress::from_bytes(&HOST_MAC)),
        mtu: None,
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len,
            flags,
            valid_lifetime: Duration::from_secs(lifetime),
            preferred_lifetime: Duration::from_secs(lifetime),
            prefix,
        }),
    });
    let all_nodes = Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let macs = [HOST_MAC, [0x33, 0x33, 0, 0, 0, 1]];
    icmpv6(255, [HOST6, all_nodes], macs, &icmp)
}

#[test]
fn an_advertised_prefix_gives_an_address_until_it_expires() {
    let mut world = World::new();
    let prefix = Ipv6Address::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0);
    world.inject(advertisement(prefix, 64, 60, ON_LINK));
    world.run(2);
    let link_local = "fe80::5054:ff:fe12:3456/64";
    let ipv6 = world.stack.network().ipv6;
    assert_eq!(ipv6, [link_local, "2001:db8:1:0:5054:ff:fe12:3456/64"]);
    let host = IpCidr::new(IpAddress::v6(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1), 64);
    let interface = &mut world.interface;
    interface.update_ip_addrs(|addresses| addresses.push(host).unwrap());
    let guest = IpAddress::v6(0x2001, 0xdb8, 1, 0, 0x5054, 0xff, 0xfe12, 0x3456);
    let socket = world.udp();
    assert_eq!(world.udp_ask(socket, (guest, 7), b"global"), b"global");
    world.run(61_000);
    assert_eq!(world.stack.network().ipv6, [link_local]);
    world.assert_echo();
}

#[test]
fn an_advertised_prefix_that_cannot_be_is_not_taken() {
    let mut world = World::new();
    let prefixes = [
        (Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 64),
        (Ipv6Address::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 129),
        (Ipv6Address::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 255),
        (Ipv6Address::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 48),
        (Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64),
    ];
    for (prefix, length) in prefixes {
        let mut frame = advertisement(prefix, 0, 1000, ON_LINK);
        // The length, behind the link-layer address option; smoltcp would not
        // write it. The checksum makes up for it.
        let at = 14 + 40 + 16 + 8 + 2;
        frame[at] = length;
        let mut packet = Ipv6Packet::new_unchecked(&mut frame[14..]);
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        Icmpv6Packet::new_unchecked(packet.payload_mut()).fill_checksum(&source, &destination);
        world.inject(frame);
        world.run(5);
        assert_eq!(world.stack.network().ipv6.len(), 1, "{prefix}/{length}");
    }
    // Many that can be leave room for IPv4, in addresses and routes.
    for n in 0..20 {
        let prefix = Ipv6Address::new(0x2001, 0xdb8, n, 0, 0, 0, 0, 0);
        world.inject(advertisement(prefix, 64, 1000, ON_LINK));
        world.run(5);
    }
    assert!(world.stack.network().ipv6.len() > 1);
    world.assert_echo();
}

#[test]
fn pings_come_back() {
    let mut world = World::greeted();
    let socket = world.udp();
    world.udp_ask(socket, (GUEST_V6, 7), b"resolve");
    for size in [0, 56, 1000] {
        let data = vec![0x5a; size];
        let ends: [[std::net::IpAddr; 2]; 2] =
            [[HOST4.into(), GUEST4.into()], [HOST6.into(), GUEST6.into()]];
        for ([from, to], (kind, at)) in ends.into_iter().zip([(0, 34), (129, 54)]) {
            let answers = world.answers_to(ping(HOST_MAC, from, to, 2, &data));
            let answer = answers.last().unwrap();
            assert_eq!(answer[at], kind);
            assert_eq!(answer[at + 4..at + 8], [0, 1, 0, 2]);
            assert_eq!(answer[at + 8..], data);
        }
    }
}

/// Obeys [`Stack::poll_at`] as a kernel does; returns the number of turns until
/// `end`.
fn sleep(world: &mut World, end: Instant) -> u32 {
    let mut turns = 0;
    while world.now < end {
        world.turn_guest();
        turns += 1;
        // A kernel's clock moves on while it works.
        world.now += Duration::from_micros(10);
        let next = world.stack.poll_at().unwrap_or(end);
        world.now = world.now.max(next);
        assert!(turns < 100_000, "awake at {} until {next}", world.now);
    }
    turns
}

#[test]
fn who_has_nothing_to_do_sleeps() {
    // No router, no DHCP server.
    for config in ["ip=10.0.2.15/24", "ip=dhcp"] {
        let mut world = World::with(config);
        let start = world.now;
        let turns = sleep(&mut world, start + Duration::from_secs(30));
        assert!(turns < 50, "{config}: {turns} turns in the first 30 s");
        let turns = sleep(&mut world, start + Duration::from_secs(130));
        assert!(turns < 30, "{config}: {turns} turns in 100 s");
        world.host.inbox.borrow_mut().clear();
        world.assert_echo();
        // Open connections change little.
        for port in [7, 9, 80] {
            world.connect((GUEST, port));
        }
        let now = world.now;
        let turns = sleep(&mut world, now + Duration::from_secs(10));
        assert!(turns < 50, "{config}: {turns} turns in 10 s, connected");
    }
}

#[test]
fn routers_are_solicited_three_times() {
    let mut world = World::new();
    let start = world.now;
    sleep(&mut world, start + Duration::from_secs(60));
    let frames = world.sent();
    let is_solicitation = |f: &&Vec<u8>| f[12..14] == [0x86, 0xdd] && f[54] == 133;
    // RFC 4861, 10: MAX_RTR_SOLICITATIONS.
    assert_eq!(frames.iter().filter(is_solicitation).count(), 3);
}

#[test]
fn what_is_no_hosts_address_is_not_taken() {
    for address in [[127, 0, 0, 1], [255; 4], [224, 0, 0, 1], [0; 4]] {
        let mut world = World::with("ip=dhcp");
        for _ in 0..300 {
            turn(&mut world, 10);
            serve_dhcp(&mut world, SERVER, SERVER, 100);
            for frame in world.guest.inbox.borrow_mut().iter_mut() {
                // No checksum, and another address.
                frame[40..42].fill(0);
                frame[58..62].copy_from_slice(&address);
            }
        }
        assert!(world.stack.network().ipv4.is_empty());
        lease(&mut world, 300, 10, 100);
        assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    }
}

/// A second server refuses whatever the first one grants.
#[test]
fn a_refusal_does_not_start_it_all_over_again_for_ever() {
    let mut world = World::with("ip=dhcp");
    for _ in 0..300 {
        turn(&mut world, 10);
        serve_dhcp(&mut world, SERVER, SERVER, 100);
        let mut inbox = world.guest.inbox.borrow_mut();
        let answers: Vec<_> = inbox.drain(..).collect();
        for answer in answers {
            let id = u32::from_be_bytes(answer[46..50].try_into().unwrap());
            let nak = dhcp_answer(DhcpMessageType::Nak, id, SERVER, SERVER, 0);
            inbox.extend([nak, answer]);
        }
    }
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
}

#[test]
fn a_prefix_without_the_on_link_flag_is_not_on_link() {
    let mut world = World::new();
    let prefix = Ipv6Address::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0);
    let flags = NdiscPrefixInfoFlags::ADDRCONF;
    world.inject(advertisement(prefix, 64, 60, flags));
    world.run(2);
    let ipv6 = &world.stack.network().ipv6[1];
    assert_eq!(ipv6, "2001:db8:1:0:5054:ff:fe12:3456/128");
}

/// As [`serve_dhcp`], with a network of the guest alone.
fn serve_single_address(world: &mut World) {
    serve_dhcp(world, SERVER, SERVER, 300);
    for frame in world.guest.inbox.borrow_mut().iter_mut() {
        let mut options = frame.windows(6);
        if let Some(at) = options.position(|option| option == [1, 4, 255, 255, 0, 0]) {
            frame[at + 2..at + 6].fill(255);
            // No checksum.
            frame[40..42].fill(0);
        }
    }
}

#[test]
fn a_lease_of_32_bits_has_its_gateway_outside() {
    let mut world = World::with("ip=dhcp");
    for _ in 0..10 {
        turn(&mut world, 100);
        serve_single_address(&mut world);
    }
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/32"]);
    assert_eq!(world.stack.network().gateway, "10.1.0.1");
    world.guest.outbox.borrow_mut().clear();
    // Somebody far away, by the gateway, which is to be asked for.
    world.inject(ping(HOST_MAC, [192, 0, 2, 1], LEASED, 1, b"a ping"));
    turn(&mut world, 1);
    let question = world.guest.outbox.borrow_mut().pop_front().unwrap();
    assert_eq!(question[12..14], [8, 6]);
    assert_eq!(question[38..42], SERVER.octets());
    world.inject(server_asks());
    turn(&mut world, 1);
    let answers = world.sent();
    let is_there = answers.iter().any(|frame| frame[20..22] == [0, 2]);
    assert!(is_there, "no answer to ARP: {answers:x?}");
    let reply = answers.iter().find(|frame| frame[12..14] == [8, 0]);
    let reply = reply.expect("no echo reply");
    assert_eq!(reply[..6], HOST_MAC);
    assert_eq!(reply[30..34], [192, 0, 2, 1]);
}

#[test]
fn when_the_link_comes_up_the_address_is_asked_for_anew_and_kept_meanwhile() {
    let mut world = World::with("ip=dhcp");
    lease(&mut world, 10, 100, 300);
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    world.stack.link_came_up(world.now);
    turn(&mut world, 100);
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    let mut asked = vec![];
    for _ in 0..30 {
        asked.extend(serve_dhcp(&mut world, SERVER, SERVER, 300));
        turn(&mut world, 100);
    }
    let expected = [DhcpMessageType::Discover, DhcpMessageType::Request];
    assert_eq!(asked, expected);
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    // Nobody there: it is ours until the lease ends.
    world.stack.link_came_up(world.now);
    turn(&mut world, 290_000);
    assert_eq!(world.stack.network().ipv4, ["10.1.0.77/16"]);
    turn(&mut world, 20_000);
    assert_eq!(world.stack.network().ipv4_source, "fallback");
}
