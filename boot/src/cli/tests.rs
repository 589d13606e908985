//! The command line, read.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(format!("kickpath {line}").split_whitespace())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn no_command_is_run() {
    let cli = parse("--irq intx --features=-event_idx,-mac --net tap --json").unwrap();
    assert!(cli.command.is_none());
    let settings = cli.run.machine.settings();
    assert_eq!(settings.irq, Irq::Intx);
    assert_eq!(settings.features.as_deref(), Some("-event_idx,-mac"));
    assert_eq!(cli.run.net(), NetChoice::Tap);
    assert!(cli.run.json);
    let Some(Command::Run(run)) = parse("run --machine q35").unwrap().command else {
        panic!("run is a command");
    };
    assert_eq!(run.machine.settings().kind, Kind::Q35);
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let settings = parse("").unwrap().run.machine.settings();
    assert_eq!(settings.ipv4, Ipv4Config::Static(Ipv4Config::FALLBACK));
    assert_eq!(settings.policy, Policy::Install);
    let dhcp = parse("--ip dhcp --no-install")
        .unwrap()
        .run
        .machine
        .settings();
    assert_eq!(dhcp.ipv4, Ipv4Config::Dhcp);
    assert_eq!(dhcp.policy, Policy::Forbid);
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (line, expected) in [
        ("--machine microvm --transport legacy", "virtio-mmio only"),
        ("--machine microvm --transport modern", "virtio-mmio only"),
        ("--transport mmio", "--machine microvm"),
        ("--machine q35 --transport mmio", "--machine microvm"),
        ("--machine microvm --image x", "--machine pc or q35"),
        ("--machine microvm --pio-notify", "has no PCI"),
        ("--mmio-legacy", "pc has no virtio-mmio"),
        ("--layout packed", "--transport modern"),
        ("--transport legacy --layout packed", "--transport modern"),
        (
            "--machine microvm --mmio-legacy --layout packed",
            "without --mmio-legacy",
        ),
        ("--queue-size 64", "--transport modern"),
        ("--rss", "--transport modern"),
        ("--machine microvm --mmio-legacy --rss", "--mmio-legacy"),
    ] {
        let error = parse(line).unwrap().run.machine.settings().check();
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    for line in [
        "--transport legacy",
        "--transport modern --pio-notify",
        "--machine q35 --transport modern",
        "--machine microvm",
        "--machine microvm --transport mmio --mmio-legacy",
        "--transport modern --layout packed --queue-size 100",
        "--machine microvm --layout packed --queue-size 1",
        "--machine microvm --mmio-legacy --queue-size 32768",
        "--rx-queue-size 1024 --mtu 9000 --vlan 4094",
    ] {
        let settings = parse(line).unwrap().run.machine.settings();
        assert_eq!(settings.check(), Ok(()), "{line}");
    }
}

#[test]
fn a_vlan_is_for_a_far_end_of_ours() {
    let settings = parse("--vlan 5").unwrap().run.machine.settings();
    assert_eq!(settings.check_with(NetChoice::Dgram), Ok(()));
    for net in [NetChoice::User, NetChoice::Tap] {
        let error = settings.check_with(net).unwrap_err().to_string();
        assert!(error.contains("--net dgram"), "{error}");
    }
}

#[test]
fn other_vmms_say_what_they_cannot_do() {
    let check = |line: &str| {
        let run = parse(line).unwrap().run;
        let settings = run.vmm.settings(&run.machine);
        settings.check_with(run.net())
    };
    for line in [
        "--vmm firecracker",
        "--vmm firecracker --transport modern --smp 2",
        "--vmm alioth --layout packed",
        "--vmm cloud-hypervisor --transport modern --queue-size 64",
        "--vmm kvmtool --transport legacy --accel kvm",
    ] {
        assert_eq!(check(line), Ok(()), "{line}");
    }
    for (line, expected) in [
        ("--vmm firecracker --net user", "--net tap"),
        ("--vmm firecracker --transport legacy", "virtio-mmio and"),
        ("--vmm cloud-hypervisor --transport mmio", "virtio-pci only"),
        ("--vmm kvmtool --transport mmio", "modern and legacy"),
        (
            "--vmm kvmtool --transport legacy --queue-size 64",
            "dictates",
        ),
        ("--vmm kvmtool --image x", "--kernel"),
        ("--vmm kvmtool --accel tcg", "KVM only"),
        ("--vmm kvmtool --machine q35", "one type"),
        ("--vmm kvmtool --rss", "QEMU's device"),
        ("--vmm firecracker --pcap x", "tcpdump"),
    ] {
        let error = check(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn a_trace_takes_a_tap_where_the_vmm_does() {
    let net = |line: &str| {
        let cli = Cli::try_parse_from(["kickpath", "trace"].into_iter().chain(line.split(' ')));
        match cli.unwrap().command {
            Some(Command::Trace(trace)) => trace.net(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(net("--vmm firecracker"), NetChoice::Tap);
    assert_eq!(net("--vmm qemu"), NetChoice::Dgram);
    assert_eq!(net("--net tap"), NetChoice::Tap);
}

#[test]
fn vmms_to_compare_are_all_or_named() {
    let vmms = |words: &str| words.parse::<Vmms>().map(|vmms| vmms.0);
    assert_eq!(vmms("all").unwrap().len(), Vmm::ALL.len());
    let named = vmms("qemu,kvmtool").unwrap();
    assert_eq!(named, [Vmm::Qemu, Vmm::Kvmtool]);
    for words in ["", "all,qemu", "qemu,", "bhyve"] {
        assert!(vmms(words).is_err(), "{words}");
    }
}

#[test]
fn rss_is_for_a_tap() {
    for line in ["--transport modern --rss", "--machine microvm --rss"] {
        let settings = parse(line).unwrap().run.machine.settings();
        assert_eq!(settings.check_with(NetChoice::Tap), Ok(()));
        for net in [NetChoice::User, NetChoice::Dgram] {
            let error = settings.check_with(net).unwrap_err().to_string();
            assert!(error.contains("--net tap"), "{error}");
        }
    }
}

#[test]
fn a_wrong_value_names_the_right_ones() {
    for (line, expected) in [
        ("--irq inty", "msix-shared"),
        ("--ip 10.0.0.1", "10.0.2.15/24"),
        ("--memory 1X", "64M"),
        ("--smp 0", "1.."),
        ("--net vpn", "dgram, user or tap"),
        ("--accel hvf", "auto, kvm, tcg or nested"),
        ("--vmm bhyve", "cloud-hypervisor, kvmtool"),
        ("--layout ring", "split, packed"),
        ("--queue-size 0", "1.."),
        ("--queue-size 32769", "32768"),
        ("--rx-queue-size 300", "256, 512 or 1024"),
        ("--vlan 0", "1.."),
        ("--vlan 4095", "4094"),
        ("--mtu 67", "68.."),
        ("--mtu 65536", "65535"),
        ("--netconsole 10.0.2.2", "10.0.2.2:6666"),
        ("--netconsole 10.0.2.2:0", "10.0.2.2:6666"),
        ("--netconsole 224.0.0.1:6666", "a host's address"),
        ("--kernel a --image b", "cannot be used with"),
        ("--pcap x serve", ""),
        ("image", "--bios"),
        ("trace --diff a.json", "2 values"),
        (
            "trace --diff a.json b.json --irq intx",
            "cannot be used with",
        ),
        (
            "trace --diff a.json b.json --guest linux",
            "cannot be used with",
        ),
        ("trace --gdb --html x", "cannot be used with"),
        ("bench --echoes 0", "1.."),
        ("bench --rounds 0", "1.."),
        ("bench --tolerance nan", "from 0 to 1000"),
        ("bench --tolerance=-1", "from 0 to 1000"),
        ("serve --http-port 0", "1.."),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn what_is_for_our_guest_alone_is_refused_beside_linux() {
    for option in ["--save x", "--baseline x", "--profile", "--dry-run", ""] {
        let line = format!("bench --guest linux {option}");
        let Some(Command::Bench(bench)) = parse(&line).unwrap().command else {
            panic!("bench is a command");
        };
        match bench.linux_options() {
            Ok(options) => assert_eq!((option, options.rounds), ("", 9)),
            Err(error) => {
                let (word, _) = option.split_once(' ').unwrap_or((option, ""));
                assert!(!word.is_empty() && error.to_string().contains(word));
            }
        }
    }
}

#[test]
fn what_the_gallery_says_of_a_way_is_what_it_does() {
    let base = parse("gallery site").unwrap();
    let Some(Command::Gallery(gallery)) = base.command else {
        panic!("gallery is a command");
    };
    for way in kickpath::gallery::WAYS {
        let parsed = parse(&format!("trace {}", way.words)).unwrap();
        let Some(Command::Trace(trace)) = parsed.command else {
            panic!("trace is a command");
        };
        let (shown, done) = (trace.machine.settings(), way.settings(&gallery.settings()));
        assert_eq!(format!("{shown:?}"), format!("{done:?}"), "{}", way.name);
        assert_eq!(trace.guest == GuestArg::Linux, way.is_linux);
    }
}
