//! Tables that are wrong, endless or too large: each ends in an answer.

mod support;

use kickpath_aml::{AmlError, PciPath, RouteError, route};
use proptest::prelude::*;
use support::*;

fn error(result: Result<u32, RouteError>) -> AmlError {
    match result {
        Err(RouteError::Aml(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn endless_loops_end() {
    for body in [&[0xa3][..], &[]] {
        let endless = repeat(ONE, body);
        assert_eq!(error(evaluate(2, &[&endless], ONE)), AmlError::TooLong);
    }
}

#[test]
fn endless_calls_end() {
    let prt = method("_PRT", 0, &[&give(b"_PRT")]);
    assert_eq!(
        route_with(2, &[&prt]),
        Err(RouteError::Aml(AmlError::TooDeep))
    );
}

#[test]
fn endless_nesting_ends() {
    // ((((...
    let mut expression = ONE.to_vec();
    for _ in 0..1000 {
        expression = op(&[0x92], &[&expression]);
    }
    assert_eq!(error(evaluate(2, &[], &expression)), AmlError::TooDeep);
    let mut conditions = vec![0xa3];
    for _ in 0..1000 {
        conditions = branch(ONE, &conditions);
    }
    assert_eq!(error(evaluate(2, &[&conditions], ONE)), AmlError::TooDeep);
    let mut packages = package(&[ONE]);
    for _ in 0..40 {
        packages = package(&[&packages]);
    }
    assert_eq!(
        error(evaluate(2, &[&store(&packages, LOCAL0)], ONE)),
        AmlError::TooDeep
    );
}

/// A package in a package in a package, one a turn.
#[test]
fn packages_do_not_nest_endlessly() {
    // By a reference, so that nothing is copied by a store.
    let value = op(&[0x83], &[&op(&[0x71], &[b"DEEP"])]);
    let body = [
        name("DEEP", ONE),
        store(&package(&[ONE]), LOCAL0),
        repeat(ONE, &name("DEEP", &op(&[0x83], &[&package(&[&value])]))),
    ];
    assert_eq!(
        error(evaluate(2, &[&body.concat()], ONE)),
        AmlError::TooDeep
    );
    // In itself.
    let before = [
        store(&package(&[ZERO]), LOCAL0),
        repeat(ONE, &store(LOCAL0, &index(LOCAL0, ZERO))),
    ];
    assert_eq!(
        error(evaluate(2, &[&before.concat()], ONE)),
        AmlError::TooDeep
    );
    // By the target of an index.
    let target = op(&[0x88], &[LOCAL0, ZERO, &index(LOCAL0, ZERO)]);
    let before = [store(&package(&[ZERO]), LOCAL0), target];
    assert_eq!(evaluate(2, &[&before.concat()], ONE), Ok(1));
}

#[test]
fn memory_is_bounded() {
    let huge = block(&[0x11], &[&integer(u32::MAX)]);
    assert_eq!(
        error(evaluate(2, &[&store(&huge, LOCAL0)], ONE)),
        AmlError::TooLarge
    );
    let huge = block(&[0x13], &[&integer(u32::MAX)]);
    assert_eq!(
        error(evaluate(2, &[&store(&huge, LOCAL0)], ONE)),
        AmlError::TooLarge
    );
    let often = repeat(ONE, &store(&buffer(&[0; 1000]), LOCAL0));
    assert_eq!(error(evaluate(2, &[&often], ONE)), AmlError::TooLarge);
    let names = repeat(ONE, &name("AGAI", ONE));
    assert_eq!(error(evaluate(2, &[&names], ONE)), AmlError::TooLarge);
}

/// Looking for a name among thousands, thousands of times.
#[test]
fn searching_is_bounded() {
    let before = [
        store(ZERO, LOCAL0),
        repeat(
            &less(LOCAL0, &integer(8000)),
            &[name("AGAI", ONE), increment(LOCAL0)].concat(),
        ),
        repeat(ONE, &store(b"_GL_", LOCAL1)),
    ];
    let error = error(evaluate(2, &[&before.concat()], ONE));
    assert!(
        matches!(error, AmlError::TooLong | AmlError::WrongType { .. }),
        "{error:?}"
    );
}

#[test]
fn what_is_not_known_is_said() {
    assert!(matches!(
        error(evaluate(2, &[], &[0x5b, 0x20])),
        AmlError::Opcode {
            opcode: 0x5b20,
            at: 36..
        }
    ));
    assert!(matches!(
        error(evaluate(2, &[], &[0x9e])),
        AmlError::Opcode { opcode: 0x9e, .. }
    ));
}

const TABLES: [&[u8]; 2] = [
    include_bytes!("tables/pc.dsdt"),
    include_bytes!("tables/q35.dsdt"),
];

fn survives(table: &[u8]) {
    let path = PciPath {
        root_bus: 0,
        hops: &[(3, 0), (1, 0)],
    };
    // Whatever it says.
    let _ = route(&[table], &Registers, path, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A real table with some bytes changed.
    #[test]
    fn changed_tables_are_survived(
        which in 0..2usize,
        changes in prop::collection::vec((36..8505usize, any::<u8>()), 1..20),
    ) {
        let mut table = TABLES[which].to_vec();
        let length = table.len();
        for (at, byte) in changes {
            table[at.min(length - 1)] = byte;
        }
        survives(&table);
    }

    /// A method of opcodes in no order.
    #[test]
    fn nonsense_is_survived(
        body in prop::collection::vec(
            prop_oneof![
                4 => prop::sample::select(vec![
                    0x00, 0x01, 0x0a, 0x11, 0x12, 0x60, 0x61, 0x68, 0x70, 0x71, 0x72, 0x75, 0x83,
                    0x87, 0x88, 0x8a, 0x93, 0xa0, 0xa1, 0xa2, 0xa4,
                ]),
                1 => any::<u8>(),
            ],
            0..200,
        ),
    ) {
        let prt = method("_PRT", 2, &[&body]);
        let _ = route_with(1, &[&prt]);
    }
}
