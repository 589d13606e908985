//! Where the guest's addresses come from.

use anyhow::ensure;
use kickpath_abi::config::{Ipv4Cidr, Ipv4Config};
use kickpath_tests::{Spec, Suite};

pub fn add(suite: &mut Suite) {
    for &kind in suite.way().kinds() {
        let spec = Spec::new(kind).dhcp(true);
        suite.guest(
            &format!("dhcp::{kind}_takes_what_the_server_offers"),
            spec,
            |lab| {
                let network = lab.status()?.network;
                ensure!(network.ipv4_source == "dhcp", "{network:?}");
                ensure!(network.ipv4 == ["10.0.2.15/24"], "{network:?}");
                ensure!(network.gateway == "10.0.2.2", "{network:?}");
                lab.check_services()
            },
        );
    }
    suite.guest(
        "dhcp::without_a_server_the_fallback",
        Spec::pc().dhcp(false),
        |lab| {
            let network = lab.status()?.network;
            ensure!(network.ipv4_source == "fallback", "{network:?}");
            ensure!(network.ipv4 == ["10.0.2.15/24"], "{network:?}");
            lab.check_services()
        },
    );
    let spec = Spec::pc().ipv4(Ipv4Config::Static(Ipv4Cidr {
        address: [192, 168, 77, 200].into(),
        prefix: 26,
    }));
    suite.guest("dhcp::a_static_address_of_another_network", spec, |lab| {
        let network = lab.status()?.network;
        ensure!(network.ipv4_source == "static", "{network:?}");
        ensure!(network.ipv4 == ["192.168.77.200/26"], "{network:?}");
        lab.check_services()
    });
    suite.guest(
        "dhcp::without_a_router_only_a_link_local_ipv6_address",
        Spec::pc().no_router(),
        |lab| {
            let addresses = lab.ipv6()?;
            ensure!(addresses.len() == 1, "{addresses:?}");
            lab.ping(addresses[0], 5, 56)
        },
    );
}
