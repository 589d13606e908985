//! What the evaluator understands.

mod support;

use kickpath_aml::{AmlError, Interrupt, PciPath, Polarity, RouteError, Source, Trigger, route};
use support::*;

#[test]
fn integers_have_32_bits_in_tables_of_revision_1() {
    for (revision, wide) in [(1, 0), (2, 1)] {
        // (1 << 32) >> 32
        let value = op(
            &[0x7a],
            &[
                &op(&[0x79], &[ONE, &integer(32), NOWHERE]),
                &integer(32),
                NOWHERE,
            ],
        );
        assert_eq!(evaluate(revision, &[], &value), Ok(wide));
    }
}

#[test]
fn arithmetic() {
    let (a, b) = (&integer(100)[..], &integer(7)[..]);
    for (opcode, value) in [
        (0x72, 107),
        (0x74, 93),
        (0x77, 700),
        (0x79, 12800),
        (0x7a, 0),
        (0x7b, 4),
        (0x7d, 103),
        (0x7f, 99),
        (0x85, 2),
    ] {
        let expression = op(&[opcode], &[a, b, LOCAL1]);
        assert_eq!(evaluate(2, &[], &expression), Ok(value), "{opcode:#x}");
        // The target has it, too.
        assert_eq!(
            evaluate(2, &[&expression], LOCAL1),
            Ok(value),
            "{opcode:#x}"
        );
    }
    let divide = op(&[0x78], &[a, b, LOCAL0, LOCAL1]);
    assert_eq!(
        evaluate(
            2,
            &[&divide],
            &add(LOCAL0, &op(&[0x77], &[LOCAL1, &integer(10), ZERO]))
        ),
        Ok(142)
    );
    for opcode in [0x78, 0x85] {
        let by_zero = op(&[opcode], &[a, ZERO, NOWHERE, NOWHERE]);
        assert!(matches!(
            evaluate(2, &[&by_zero], ONE),
            Err(RouteError::Aml(AmlError::DivisionByZero { .. }))
        ));
    }
}

#[test]
fn comparisons_and_logic() {
    let (small, large) = (&integer(3)[..], &integer(4)[..]);
    let cases = [
        (op(&[0x93], &[small, small]), true),
        (op(&[0x94], &[small, large]), false),
        (op(&[0x95], &[small, large]), true),
        (op(&[0x90], &[small, ZERO]), false),
        (op(&[0x91], &[small, ZERO]), true),
        (op(&[0x92], &[ZERO]), true),
        (op(&[0x93], &[b"\x0dab\0", b"\x0dab\0"]), true),
        (op(&[0x95], &[b"\x0dab\0", b"\x0dac\0"]), true),
    ];
    for (index, (expression, truth)) in cases.iter().enumerate() {
        let value = if *truth { u32::MAX } else { 0 };
        assert_eq!(evaluate(1, &[], expression), Ok(value), "case {index}");
    }
}

#[test]
fn loops_branches_and_calls() {
    // The sum of 1 to 10, leaving out 5, ending at 8.
    let body = [
        increment(LOCAL0),
        branch(&op(&[0x93], &[LOCAL0, &integer(5)]), &[0x9f]),
        branch(&op(&[0x94], &[LOCAL0, &integer(8)]), &[0xa5]),
        store(&add(LOCAL0, LOCAL1), LOCAL1),
    ];
    let before = [
        store(ZERO, LOCAL0),
        store(ZERO, LOCAL1),
        repeat(&less(LOCAL0, &integer(10)), &body.concat()),
    ];
    assert_eq!(evaluate(2, &[&before.concat()], LOCAL1), Ok(31));

    let choose = [
        branch(ARG0, &give(&integer(11))),
        otherwise(&give(&integer(22))),
    ];
    let choose = method("PICK", 1, &[&choose.concat()]);
    let prt = |argument: &[u8]| {
        let call = op(b"PICK", &[argument]);
        method(
            "_PRT",
            0,
            &[
                &store(&entry(3, ZERO, 0), LOCAL7),
                &store(&call, &index(LOCAL7, &integer(3))),
                &store(&package(&[ZERO]), LOCAL6),
                &store(LOCAL7, &index(LOCAL6, ZERO)),
                &give(LOCAL6),
            ],
        )
    };
    for (argument, gsi) in [(ONE, 11), (ZERO, 22)] {
        let interrupt = route_with(2, &[&choose, &prt(argument)]).unwrap();
        assert_eq!(interrupt.source, Source::Gsi(gsi));
    }
}

#[test]
fn buffers_have_fields_and_bytes() {
    let before = [
        name("BUFF", &buffer(&[1, 2, 3, 4, 5, 6])),
        // CreateDWordField (BUFF, 1, WIDE), CreateField (BUFF, 4, 8, MIDD)
        op(&[0x8a], &[b"BUFF", ONE, b"WIDE"]),
        op(&[0x5b, 0x13], &[b"BUFF", &integer(4), &integer(8), b"MIDD"]),
    ]
    .concat();
    assert_eq!(evaluate(2, &[&before], b"WIDE"), Ok(0x0504_0302));
    assert_eq!(evaluate(2, &[&before], b"MIDD"), Ok(0x20));
    let set = store(&integer(0xaabb_ccdd), b"WIDE");
    assert_eq!(
        evaluate(
            2,
            &[&before, &set],
            &op(&[0x83], &[&index(b"BUFF", &integer(2))])
        ),
        Ok(0xcc)
    );
    assert_eq!(evaluate(2, &[&before], &op(&[0x87], &[b"BUFF"])), Ok(6));
    let outside = op(&[0x8a], &[b"BUFF", &integer(3), b"OUTS"]);
    assert!(matches!(
        evaluate(2, &[&before, &outside], ONE),
        Err(RouteError::Aml(AmlError::OutOfBounds { .. }))
    ));
}

/// A store copies: what is changed afterwards is not what was stored.
#[test]
fn packages_own_their_elements() {
    let before = [
        store(&package(&[&integer(7)]), LOCAL0),
        store(&package(&[ZERO]), LOCAL1),
        store(LOCAL0, &index(LOCAL1, ZERO)),
        store(&integer(8), &index(LOCAL0, ZERO)),
    ];
    let inner = index(&index(LOCAL1, ZERO), ZERO);
    assert_eq!(
        evaluate(2, &[&before.concat()], &op(&[0x83], &[&inner])),
        Ok(7)
    );
}

#[test]
fn names_are_found_from_the_inside_out() {
    let outer = name("\\_SB_VALU", &integer(1));
    let outer = terms([&[0x08][..], b"\\\x2e_SB_VALU", &outer[10..]]);
    assert_eq!(evaluate(2, &[&outer], b"VALU"), Ok(1));
    let inner = name("VALU", &integer(2));
    assert_eq!(evaluate(2, &[&outer, &inner], b"VALU"), Ok(2));
    assert_eq!(evaluate(2, &[&outer, &inner], b"\\\x2e_SB_VALU"), Ok(1));
    assert!(matches!(
        evaluate(2, &[], b"VALU"),
        Err(RouteError::Aml(AmlError::NoObject { .. }))
    ));
    // CondRefOf of what is there, and of what is not.
    for (name, there) in [(b"PCI0", u32::MAX), (b"NONE", 0)] {
        let condition = op(&[0x5b, 0x12], &[name, NOWHERE]);
        assert_eq!(evaluate(1, &[], &condition), Ok(there));
    }
}

/// A device on the bus whose configuration AML reads.
fn reader(space: u8, uses: &[u8]) -> Result<Interrupt, RouteError> {
    let region = op(
        &[0x5b, 0x80],
        &[b"REGI", &[space], &integer(0x40), &integer(16)],
    );
    let fields = block(
        &[0x5b, 0x81],
        // Byte access; 4 bits left out, 8 bits, 12 bits.
        &[b"REGI", &[1, 0, 4], b"FLDA", &[8], b"FLDB", &[12]],
    );
    let chip = device(
        "CHIP",
        &[&name("_ADR", &integer(0x1_0000)), &region, &fields],
    );
    route_with(2, &[&chip, uses])
}

#[test]
fn fields_of_pci_configuration_are_read() {
    for (field, value) in [("FLDA", 0x14), ("FLDB", 0x424)] {
        let way = terms([b"^\x2eCHIP", field.as_bytes()]);
        let body = [
            store(&entry(3, ZERO, 0), LOCAL7),
            store(&way, &index(LOCAL7, &integer(3))),
            store(&package(&[ZERO]), LOCAL6),
            store(LOCAL7, &index(LOCAL6, ZERO)),
            give(LOCAL6),
        ];
        let interrupt = reader(2, &method("_PRT", 0, &[&body.concat()])).unwrap();
        assert_eq!(interrupt.source, Source::Gsi(value), "{field}");
    }
}

#[test]
fn nothing_else_is_accessed() {
    let prt = name("_PRT", &package(&[&entry(3, ZERO, 20)]));
    assert!(reader(1, &prt).is_ok(), "a region that nobody uses");
    let using = |term: &[u8]| method("_PRT", 0, &[term, &give(&package(&[&entry(3, ZERO, 20)]))]);
    for (space, term) in [
        (0, store(b"^\x2eCHIPFLDA", LOCAL0)),
        (1, store(b"^\x2eCHIPFLDA", LOCAL0)),
        (1, store(ONE, b"^\x2eCHIPFLDA")),
        (2, store(ONE, b"^\x2eCHIPFLDA")),
    ] {
        match reader(space, &using(&term)) {
            Err(RouteError::Aml(AmlError::Forbidden { space: told, .. })) => {
                assert_eq!(told, space);
            }
            other => panic!("{space}: {other:?}"),
        }
    }
}

#[test]
fn a_static_entry_is_pcis_own_kind_of_line() {
    let interrupt = route_with(2, &[&name("_PRT", &package(&[&entry(3, ZERO, 20)]))]);
    assert_eq!(
        interrupt,
        Ok(Interrupt {
            source: Source::Gsi(20),
            trigger: Trigger::Level,
            polarity: Polarity::Low,
        })
    );
    let other = route_with(2, &[&name("_PRT", &package(&[&entry(4, ZERO, 20)]))]);
    assert_eq!(other, Err(RouteError::NoEntry));
    assert_eq!(route_with(2, &[]), Err(RouteError::NoEntry));
}

/// A link device with this resource template.
fn linked(template: &[u8], source_index: u32) -> Result<Interrupt, RouteError> {
    let link = device("LNKX", &[&name("_CRS", &buffer(template))]);
    let prt = name("_PRT", &package(&[&entry(3, b"LNKX", source_index)]));
    route_with(2, &[&link, &prt])
}

#[test]
fn a_link_device_says_where_and_how() {
    const END: [u8; 2] = [0x79, 0];
    let extended = |flags: u8, gsi: u8| [0x89, 6, 0, flags, 1, gsi, 0, 0, 0];
    for (flags, trigger, polarity) in [
        (0b1001, Trigger::Level, Polarity::High),
        (0b1101, Trigger::Level, Polarity::Low),
        (0b0011, Trigger::Edge, Polarity::High),
    ] {
        let template = [&extended(flags, 17)[..], &END].concat();
        let source = Source::Gsi(17);
        let expected = Interrupt {
            source,
            trigger,
            polarity,
        };
        assert_eq!(linked(&template, 0), Ok(expected));
    }
    // The second interrupt descriptor, something else in between.
    let template = [&extended(9, 17)[..], &[0x22, 0, 0], &extended(9, 18), &END].concat();
    assert_eq!(linked(&template, 2).unwrap().source, Source::Gsi(18));
    assert_eq!(linked(&template, 1), Err(RouteError::Unconnected));
    assert_eq!(linked(&template, 3), Err(RouteError::Unconnected));
    // ISA lines, with flags and without.
    let isa = [&[0x23, 0, 0x08, 0x18][..], &END].concat();
    assert_eq!(
        linked(&isa, 0),
        Ok(Interrupt {
            source: Source::Isa(11),
            trigger: Trigger::Level,
            polarity: Polarity::Low,
        })
    );
    let isa = [&[0x22, 0x20, 0][..], &END].concat();
    assert_eq!(linked(&isa, 0).unwrap().trigger, Trigger::Edge);
    // Cut off.
    assert_eq!(
        linked(&extended(9, 17)[..8], 0),
        Err(RouteError::Unconnected)
    );
    assert_eq!(linked(&[], 0), Err(RouteError::Unconnected));
}

#[test]
fn a_bridge_with_a_prt_of_its_own_is_asked_first() {
    let bridge =
        |body: &[&[u8]]| device("BRDG", &[&name("_ADR", &integer(0x2_0001)), &body.concat()]);
    let own = name("_PRT", &package(&[&entry(5, ZERO, 40)]));
    let roots = name(
        "_PRT",
        &package(&[&entry(2, ZERO, 50), &entry(5, ZERO, 60)]),
    );
    let route_behind = |bridge: &[u8], hops: &[(u8, u8)]| {
        let host = device("PCI0", &[&host_bridge(), bridge, &roots]);
        let table = table(2, &[&scope("\\_SB_", &[&host])]);
        let path = PciPath { root_bus: 0, hops };
        route(&[&table], &Registers, path, 1).map(|interrupt| interrupt.source)
    };
    let with = bridge(&[&own]);
    assert_eq!(route_behind(&with, &[(2, 1), (5, 0)]), Ok(Source::Gsi(40)));
    // Another bridge, of which nothing is said; pin A of slot 4 stays pin A.
    assert_eq!(route_behind(&with, &[(2, 0), (4, 0)]), Ok(Source::Gsi(50)));
    // No entry of its own: on to the root, by turns.
    assert_eq!(route_behind(&with, &[(2, 1), (4, 0)]), Ok(Source::Gsi(50)));
    assert_eq!(
        route_behind(&bridge(&[]), &[(2, 1), (8, 0)]),
        Ok(Source::Gsi(50))
    );
    // Pin A of slot 5 becomes pin B, of which nothing is said.
    assert_eq!(
        route_behind(&bridge(&[]), &[(2, 1), (5, 0)]),
        Err(RouteError::NoEntry)
    );
}

#[test]
fn several_tables_and_several_root_buses() {
    let first = device(
        "PCI0",
        &[
            &host_bridge(),
            &name("_PRT", &package(&[&entry(3, ZERO, 20)])),
        ],
    );
    let dsdt = table(2, &[&scope("\\_SB_", &[&first])]);
    let second = device(
        "PC80",
        &[
            &name("_HID", b"\x0dPNP0A08\0"),
            &name("_BBN", &integer(0x80)),
            &name("_PRT", &package(&[&entry(3, ZERO, 30)])),
        ],
    );
    let ssdt = table(2, &[&scope("\\_SB_", &[&second])]);
    for (root_bus, gsi) in [(0, 20), (0x80, 30)] {
        let path = PciPath {
            root_bus,
            hops: &[(3, 0)],
        };
        let interrupt = route(&[&dsdt, &ssdt], &Registers, path, 1).unwrap();
        assert_eq!(interrupt.source, Source::Gsi(gsi));
    }
}

#[test]
fn pic_is_told_that_there_are_io_apics() {
    let pic = method("\\_PIC", 1, &[&store(ARG0, b"MODE")]);
    let prt = [
        branch(b"MODE", &give(&package(&[&entry(3, ZERO, 20)]))),
        give(&package(&[&entry(3, ZERO, 11)])),
    ];
    let host = device(
        "PCI0",
        &[&host_bridge(), &method("_PRT", 0, &[&prt.concat()])],
    );
    let table = table(2, &[&name("MODE", ZERO), &pic, &scope("\\_SB_", &[&host])]);
    let path = PciPath {
        root_bus: 0,
        hops: &[(3, 0)],
    };
    let interrupt = route(&[&table], &Registers, path, 1).unwrap();
    assert_eq!(interrupt.source, Source::Gsi(20));
}
