//! The page of `kickpath lab ring`: a ring worked by hand. What is checked are the words of
//! the ring as they lie in the module's memory.

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::lab::ring;
use kickpath::lang::Lang;
use kickpath_tests::{Suite, setup};
use serde_json::{Value, json};
use std::sync::OnceLock;

use crate::contrast;
use crate::support::{Page, desk, picture_name, views};

pub fn add(suite: &mut Suite) {
    suite.test("ring::a_split_ring_by_hand", split);
    suite.test("ring::a_packed_ring_by_hand", packed);
    suite.test("ring::flags_instead_of_events", flags);
    suite.test("ring::light_and_dark_at_every_width", every_width);
    suite.test("ring::in_chinese", in_chinese);
}

/// The module, built from the driver's source as it is.
fn module() -> Result<&'static [u8]> {
    static MODULE: OnceLock<std::result::Result<Vec<u8>, String>> = OnceLock::new();
    let build = || ring::module(setup::policy(), &mut setup::show);
    let module = MODULE.get_or_init(|| build().map_err(|error| error.to_string()));
    module
        .as_deref()
        .map_err(|error| anyhow!("cannot build the module: {error}"))
}

/// The page.
pub fn html() -> Result<String> {
    Ok(ring::page(module()?, "kickpath lab ring --html FILE"))
}

struct Hands(Page);

impl Hands {
    fn open() -> Result<Self> {
        Self::open_in(Lang::En)
    }

    fn open_in(lang: Lang) -> Result<Self> {
        let mut hands = Self(Page::open(&lang.page(html()?))?);
        hands.ready("split")?;
        Ok(hands)
    }

    /// Waits for a new ring of this layout.
    fn ready(&mut self, layout: &str) -> Result<()> {
        self.0.eventually(&format!(
            "document.getElementById('happened').dataset.done === '0' && \
             document.querySelector('#queue small')?.textContent.startsWith('{layout}')"
        ))
    }

    /// Takes these steps, and returns what is said of the last.
    fn steps(&mut self, names: &str) -> Result<String> {
        for name in names.split(' ') {
            self.0.click(&format!("[data-step={name}]"))?;
        }
        self.0.text("#happened h3")
    }

    /// The ring now, as the page reads it.
    fn ring(&mut self) -> Result<Value> {
        self.0.evaluate("ring()")
    }

    /// Fails if a word of the ring is another.
    fn expect(&mut self, words: &[(&str, Value)]) -> Result<()> {
        let ring = self.ring()?;
        for (pointer, expected) in words {
            let found = ring.pointer(pointer);
            let found = found.with_context(|| format!("no {pointer} in {ring}"))?;
            ensure!(found == expected, "{pointer} is {found}: {ring}");
        }
        Ok(())
    }
}

/// A frame of 60 bytes behind a header of 12.
const LENGTH: u32 = 72;

fn split() -> Result<()> {
    let mut hands = Hands::open()?;
    hands.expect(&[
        ("/avail/idx", json!(0)),
        ("/used/avail_event", json!(0)),
        ("/count/awake", json!(0)),
    ])?;
    hands.steps("add")?;
    hands.expect(&[
        ("/descriptors/0/length", json!(LENGTH)),
        ("/avail/idx", json!(0)),
        ("/count/added", json!(1)),
    ])?;
    ensure!(hands.0.count("#queue td.lit")? == 1, "the length is marked");
    let said = hands.steps("publish")?;
    ensure!(said.contains("a kick is needed"), "{said}");
    hands.expect(&[("/avail/idx", json!(1)), ("/count/kicks", json!(0))])?;
    ensure!(hands.0.count("[data-step=kick].wanted")? == 1);
    // Nobody has told the device.
    let said = hands.steps("all")?;
    ensure!(said.contains("sleeps"), "{said}");
    ensure!(hands.0.text("#happened")?.contains("lost kick"));
    hands.expect(&[("/used/idx", json!(0))])?;
    hands.steps("kick all")?;
    hands.expect(&[
        ("/used/idx", json!(1)),
        ("/used/entries/0/id", json!(0)),
        ("/used/avail_event", json!(1)),
        ("/count/kicks", json!(1)),
        ("/count/interrupts", json!(1)),
        ("/count/awake", json!(0)),
    ])?;
    hands.steps("take")?;
    hands.expect(&[("/count/back", json!(1)), ("/outstanding", json!(0))])?;
    // While it is awake no kick is wanted.
    hands.steps("add publish kick one add")?;
    let said = hands.steps("publish")?;
    ensure!(said.contains("no kick is needed"), "{said}");
    hands.expect(&[("/count/suppressed", json!(1)), ("/used/idx", json!(2))])?;
    hands.steps("all take")?;
    // The interrupt that does not come, and the second look.
    hands.steps("mask add publish kick all")?;
    hands.expect(&[("/used/idx", json!(4)), ("/avail/used_event", json!(2))])?;
    let before = hands.ring()?["count"]["interrupts"].clone();
    let said = hands.steps("enable")?;
    ensure!(said.contains("used already"), "{said}");
    hands.expect(&[
        ("/avail/used_event", json!(3)),
        ("/count/interrupts", before),
    ])?;
    hands.steps("take enable jump")?;
    hands.expect(&[("/avail/idx", json!(65_534)), ("/used/idx", json!(65_534))])?;
    for index in [65_535, 0, 1] {
        let said = hands.steps("add publish")?;
        ensure!(said.contains("a kick is needed"), "at {index}: {said}");
        hands.expect(&[("/avail/idx", json!(index))])?;
        hands.steps("kick all take")?;
        hands.expect(&[
            ("/used/idx", json!(index)),
            ("/used/avail_event", json!(index)),
        ])?;
    }
    // The ring holds eight.
    let said = hands.steps("add add add add add add add add add")?;
    ensure!(said.contains("full"), "{said}");
    hands.expect(&[("/count/added", json!(9))])?;
    hands.0.check()
}

fn packed() -> Result<()> {
    let mut hands = Hands::open()?;
    hands.0.click("#layouts button:nth-child(2)")?;
    hands.ready("packed")?;
    hands.steps("add add")?;
    let marks = |slot: u32, avail: bool, used: bool| {
        [
            (format!("/descriptors/{slot}/avail"), json!(avail)),
            (format!("/descriptors/{slot}/used"), json!(used)),
        ]
    };
    let check = |hands: &mut Hands, words: &[(String, Value)]| {
        let words: Vec<_> = words
            .iter()
            .map(|(pointer, value)| (pointer.as_str(), value.clone()))
            .collect();
        hands.expect(&words)
    };
    // The first waits for the publish, the second is ready behind it.
    check(&mut hands, &marks(0, false, false))?;
    check(&mut hands, &marks(1, true, false))?;
    let said = hands.steps("publish")?;
    ensure!(said.contains("a kick is needed"), "{said}");
    check(&mut hands, &marks(0, true, false))?;
    hands.expect(&[
        ("/descriptors/0/length", json!(LENGTH)),
        ("/device_event/flags", json!(2)),
        ("/device_event/place/index", json!(0)),
    ])?;
    hands.steps("kick one")?;
    check(&mut hands, &marks(0, true, true))?;
    check(&mut hands, &marks(1, true, false))?;
    hands.expect(&[("/device_event/flags", json!(1))])?;
    hands.steps("all")?;
    hands.expect(&[
        ("/device_event/flags", json!(2)),
        ("/device_event/place/index", json!(2)),
        ("/device_event/place/wrap", json!(1)),
        ("/count/interrupts", json!(1)),
    ])?;
    hands.steps("take mask")?;
    hands.expect(&[("/driver_event/flags", json!(1)), ("/count/back", json!(2))])?;
    hands.steps("jump")?;
    hands.expect(&[
        ("/next_avail/index", json!(6)),
        ("/next_avail/wrap", json!(0)),
    ])?;
    let said = hands.steps("add add add publish")?;
    ensure!(said.contains("a kick is needed"), "{said}");
    // In the lap behind the wrap the marks are the other way round.
    check(&mut hands, &marks(7, false, true))?;
    check(&mut hands, &marks(0, true, false))?;
    hands.expect(&[
        ("/next_avail/index", json!(1)),
        ("/next_avail/wrap", json!(1)),
    ])?;
    hands.steps("kick all")?;
    check(&mut hands, &marks(7, false, false))?;
    check(&mut hands, &marks(0, true, true))?;
    hands.expect(&[("/count/interrupts", json!(1))])?;
    hands.0.check()
}

fn flags() -> Result<()> {
    let mut hands = Hands::open()?;
    hands.0.click("#modes button:nth-child(2)")?;
    hands
        .0
        .eventually("ring().used.avail_event === undefined")?;
    hands.ready("split")?;
    hands.steps("add publish kick one add")?;
    hands.expect(&[("/used/flags", json!(1)), ("/used/idx", json!(1))])?;
    let said = hands.steps("publish")?;
    ensure!(said.contains("no kick is needed"), "{said}");
    hands.steps("mask all")?;
    hands.expect(&[
        ("/used/flags", json!(0)),
        ("/avail/flags", json!(1)),
        ("/used/idx", json!(2)),
        ("/count/interrupts", json!(1)),
    ])?;
    hands.steps("enable")?;
    hands.expect(&[("/avail/flags", json!(0))])?;
    hands.steps("fresh")?;
    hands.0.eventually("ring().count.kicks === 0")?;
    hands.expect(&[("/used/idx", json!(0)), ("/avail/flags", json!(0))])?;
    hands.0.check()
}

fn every_width() -> Result<()> {
    let mut hands = Hands::open()?;
    for (layout, button) in [("split", 1), ("packed", 2)] {
        hands
            .0
            .click(&format!("#layouts button:nth-child({button})"))?;
        hands.ready(layout)?;
        hands.steps("add add publish kick one add publish")?;
        for view in views() {
            hands.0.view(view)?;
            hands.0.check()?;
            contrast::check(&mut hands.0)?;
            let name = picture_name(&format!("ring-{layout}"), view);
            hands.0.picture(&name, view, true)?;
        }
        hands.0.view(desk(false))?;
    }
    Ok(())
}

/// What is said of every step, in each layout and with each kind of wish.
fn in_chinese() -> Result<()> {
    let mut hands = Hands::open_in(Lang::Zh)?;
    for (layout, button) in [("split", 1), ("packed", 2)] {
        for mode in [1, 2] {
            hands
                .0
                .click(&format!("#layouts button:nth-child({button})"))?;
            hands.0.click(&format!("#modes button:nth-child({mode})"))?;
            hands.ready(layout)?;
            for step in "all publish add add publish all kick one kick add publish all kick take take \
                         mask enable delayed add publish kick all enable later jump add add add publish \
                         kick all add add add add add add add add add"
                .split_whitespace()
            {
                hands.steps(step)?;
                let english = hands.0.english(0)?;
                ensure!(english.is_empty(), "in English after {step}: {english:#?}");
            }
            hands.0.check()?;
            let name = picture_name(&format!("ring-zh-{layout}-{mode}"), desk(false));
            hands.0.picture(&name, desk(false), true)?;
        }
    }
    Ok(())
}
