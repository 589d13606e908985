//! The catalogues of other languages have every text that explains, and no more.
//!
//! A text is a string of the sources below that reads as prose. One that is a name, a
//! command or a style stands in `lang/names.txt` instead.

mod lang {
    pub mod html;
    pub mod javascript;
    pub mod rust;
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kickpath::lab::{self, EXPERIMENTS, Evidence, Outcome, Ring};
use kickpath::lang::{Lang, ZH};
use kickpath::terminal::{Story, WIDTH};
use kickpath::trace;

/// What explains, below `src`: directories and files.
const SOURCES: [&str; 10] = [
    "accel.rs",
    "compare",
    "doctor/probe.rs",
    "gallery/files.rs",
    "gallery/index.html",
    "gallery/index.rs",
    "gallery/ways.rs",
    "lab",
    "soak",
    "trace",
];

/// What is tests only, or says nothing but names and errors.
const SILENT: [&str; 12] = [
    "tests.rs",
    "sample.rs",
    "damaged.rs",
    "lab/build.rs",
    "lab/scene.rs",
    "soak/malformed.rs",
    "perfetto.rs",
    "trace/cable.rs",
    "trace/gdb.rs",
    "trace/image.rs",
    "linux/page.rs",
    "linux/probes.rs",
];

/// Strings that are shown as they are in every language.
const NAMES: &str = include_str!("lang/names.txt");

/// Files below `path`, itself included.
fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        return found.push(path.to_owned());
    }
    for entry in std::fs::read_dir(path).unwrap() {
        files(&entry.unwrap().path(), found);
    }
}

/// Every string of the sources, as a key of a catalogue, and a file that has it.
fn strings() -> BTreeMap<String, PathBuf> {
    let mut paths = Vec::new();
    for source in SOURCES {
        let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        files(&below.join(source), &mut paths);
    }
    let is_silent = |path: &PathBuf| SILENT.iter().any(|silent| path.ends_with(silent));
    paths.retain(|path| !is_silent(path));
    let mut strings = BTreeMap::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let found = match extension {
            Some("rs") => rust::strings(&text),
            Some("js") => javascript::strings(&text),
            Some("html") => html::strings(&text),
            _ => Vec::new(),
        };
        strings.extend(found.into_iter().map(|string| (string, path.clone())));
    }
    strings
}

use lang::{html, javascript, rust};

/// Whether people read a string as words of a language: two words, or one beside a hole, or
/// a label.
fn is_prose(string: &str) -> bool {
    // Titles of the specification are cited.
    if string.starts_with(|c: char| c.is_ascii_digit()) && string.contains('.') {
        return false;
    }
    let apart = string.replace('{', " {").replace('}', "} ");
    let words: Vec<&str> = apart
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| ".,:;!?()\"'“”".contains(c)))
        .collect();
    let length = |word: &str| {
        let is_word = word.chars().all(|c| c.is_alphabetic() || "'-".contains(c));
        if is_word { word.len() } else { 0 }
    };
    let is_hole = |word: &str| word.starts_with('{') && word.ends_with('}');
    words.windows(2).any(|pair| {
        let [one, two] = [length(pair[0]), length(pair[1])];
        (one > 1 && two > 1) || (one > 2 && is_hole(pair[1])) || (two > 2 && is_hole(pair[0]))
    }) || is_label(string)
}

/// A word with a capital letter.
fn is_label(string: &str) -> bool {
    let mut letters = string.chars();
    letters
        .next()
        .is_some_and(|first| first.is_ascii_uppercase())
        && !letters.as_str().is_empty()
        && letters.all(|letter| letter.is_ascii_lowercase())
}

/// The holes of a text.
fn holes(text: &str) -> BTreeSet<usize> {
    let parts = text.split('{').skip(1);
    let numbers = parts.filter_map(|part| part.split_once('}')?.0.parse().ok());
    numbers.collect()
}

fn names() -> BTreeSet<&'static str> {
    let lines = NAMES.lines();
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn each_text_has_an_entry_and_each_entry_a_text() {
    let entries: BTreeMap<String, String> = serde_json::from_str(ZH).unwrap();
    let (strings, names) = (strings(), names());
    let lacking: Vec<String> = strings
        .iter()
        .filter(|(string, _)| is_prose(string))
        .filter(|(string, _)| !entries.contains_key(*string) && !names.contains(string.as_str()))
        .map(|(string, path)| format!("{}  ({})", serde_json::json!(string), path.display()))
        .collect();
    assert!(
        lacking.is_empty(),
        "translate in src/lang/zh.json, or name in tests/lang/names.txt:\n{}",
        lacking.join("\n")
    );
    let known = entries
        .keys()
        .map(String::as_str)
        .chain(names.iter().copied());
    let of_nothing: Vec<&str> = known.filter(|key| !strings.contains_key(*key)).collect();
    assert!(
        of_nothing.is_empty(),
        "no source has these strings any more:\n{}",
        of_nothing.join("\n")
    );
}

/// Too short for prose, and all the same read as a part of a sentence: `" at "`.
#[test]
fn each_word_that_stands_between_others_has_an_entry() {
    let entries: BTreeMap<String, String> = serde_json::from_str(ZH).unwrap();
    let mut paths = Vec::new();
    files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut paths,
    );
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "js"));
    let mut found = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in text
            .split('"')
            .filter_map(|part| part.strip_prefix(' ')?.strip_suffix(' '))
        {
            if !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase()) {
                assert!(entries.contains_key(word), "{word}  ({})", path.display());
                found += 1;
            }
        }
    }
    assert!(found > 0, "the sources are read");
}

#[test]
fn each_entry_is_found_and_has_the_holes_of_its_text() {
    let entries: BTreeMap<String, String> = serde_json::from_str(ZH).unwrap();
    assert_eq!(
        ZH.lines().filter(|line| line.starts_with("  \"")).count(),
        entries.len(),
        "a line an entry, and none twice"
    );
    for (key, text) in &entries {
        assert_eq!(holes(key), holes(text), "{key}\n{text}");
        let filled = |text: &str| {
            let holes = holes(text).into_iter();
            holes.fold(text.to_owned(), |text, hole| {
                text.replace(&format!("{{{hole}}}"), ["§", "¶", "†", "‡", "◆", "◇"][hole])
            })
        };
        assert_eq!(
            Lang::Zh.say(&filled(key)),
            filled(text),
            "another entry is as good for: {key}"
        );
    }
}

/// Three words in a row, outside of a title of the specification.
fn english(line: &str) -> bool {
    let is_title =
        |word: &str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    let words: Vec<&str> = line.split(' ').take_while(|word| !is_title(word)).collect();
    let is_word = |word: &&str| word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase());
    words.windows(3).any(|three| three.iter().all(is_word))
}

#[test]
fn a_trace_is_told_in_chinese_and_fits_a_terminal() {
    for recording in [
        include_str!("../src/trace/fixtures/tcg.json"),
        include_str!("../src/trace/fixtures/intx.json"),
        include_str!("../src/trace/fixtures/kvm.json"),
        include_str!("../src/trace/fixtures/linux.json"),
    ] {
        let recording = serde_json::from_str(recording).unwrap();
        let timeline = trace::build::build(&recording).unwrap();
        let text = in_chinese(|story| trace::text::print(story, &timeline));
        assert!(text.contains("一个数据报出去"), "{text}");
        for line in text.lines() {
            assert!(!english(line), "in English: {line}");
        }
    }
}

#[test]
fn two_traces_are_told_in_chinese() {
    let [a, b] = [
        include_str!("../src/trace/fixtures/tcg.json"),
        include_str!("../src/trace/fixtures/kvm.json"),
    ]
    .map(|text| trace::build::build(&serde_json::from_str(text).unwrap()).unwrap());
    let files = ["a.json", "b.json"].map(Path::new);
    let diff = trace::diff::diff((files[0], &a), (files[1], &b)).unwrap();
    let text = in_chinese(|story| trace::diff::print(story, &diff, &a, &b));
    for line in text.lines() {
        assert!(!english(line), "in English: {line}");
    }
}

/// What a story says in Chinese, which fits a terminal.
fn in_chinese(tell: impl FnOnce(&mut Story<&mut Vec<u8>>) -> std::io::Result<()>) -> String {
    let mut bytes = Vec::new();
    tell(&mut Story::new(&mut bytes).in_language(Lang::Zh)).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let text = anstream::adapter::strip_str(&text).to_string();
    if std::env::var_os("KICKPATH_SHOW").is_some() {
        println!("{text}");
    }
    for line in text.lines() {
        // A word that is longer has a line of its own.
        let is_wide = textwrap::core::display_width(line) > WIDTH;
        assert!(
            !is_wide || line.trim().split(' ').count() < 3,
            "too wide: {line}"
        );
    }
    text
}

#[test]
fn the_laboratory_is_told_in_chinese() {
    #[expect(
        clippy::redundant_closure,
        reason = "the function itself has one lifetime"
    )]
    let list = in_chinese(|story| lab::list(story));
    for line in list.lines() {
        assert!(!english(line), "in English: {line}");
    }
    let evidence = || {
        Evidence {
        asked: 1_000,
        records: 70,
        records_lost: 3,
        steps: vec![
            "KickPrepare: The device asked to be told at index 7; the driver finds a kick not needed."
                .into(),
            "Idle: Nothing is left to do: the CPU sleeps until an interrupt.".into(),
        ],
        damage: Some("60 bytes: its packet is cut short".into()),
        stalled: Some(Ring::default()),
        end: Some(Ring::default()),
        ..Evidence::default()
    }
    };
    let outcomes = Outcome::ALL.into_iter().cycle();
    for (experiment, outcome) in EXPERIMENTS.iter().zip(outcomes) {
        let report = lab::Report {
            experiment,
            predicted: Some(Outcome::Late),
            outcome,
            right: evidence(),
            wrong: evidence(),
        };
        let text = in_chinese(|story| lab::tell(story, &report));
        // The change of the sources is one of a program in English.
        let (before, _) = text.split_once("改正\n").unwrap();
        for line in before.lines() {
            assert!(!english(line), "in English: {line}");
        }
    }
}

#[test]
fn what_reads_as_prose() {
    for string in [
        "Two words",
        "step {0}",
        "{0} more",
        "Guest",
        "; {0} are lost",
    ] {
        assert!(is_prose(string), "{string}");
    }
    for string in [
        "virtqueue_pop",
        "kvm",
        "{0}: {1}",
        "2.7.13.3 Updating idx",
        "KickPrepare",
        "",
    ] {
        assert!(!is_prose(string), "{string}");
    }
}

#[test]
fn the_strings_of_a_source_are_found() {
    let source = r##"
        //! No text.
        #[error("nor this: {0}")]
        const A: &str = r#"a "raw" one"#;
        fn f() { g(&format!("the {queue} of {:#x} in {{}}", "inner")); h("<b>one</b> two {x}") }
        #[cfg(test)] mod tests { const B: &str = "a test's"; }
        fn i() { sink(Progress::Step("progress")); x.expect("a reason"); assert!(true, "why"); j("last\
            one") }
    "##;
    let found = rust::strings(source);
    let expected = [
        "a \"raw\" one",
        "the {0} of {1} in {}",
        "inner",
        "one",
        "two {0}",
        "lastone",
    ];
    assert_eq!(found, expected);
    let source = r#"
        // "a comment's"
        const a = "one", b = /["'`]/g, c = 4 / 2 / 1;
        f(`two ${x ? `three ${y}` : 'fo\'ur'} of {} ${z.map(q => { return "five"; })}`);
    "#;
    let found = javascript::strings(source);
    assert_eq!(
        found,
        ["one", "three {0}", "fo'ur", "five", "two {0} of {} {1}"]
    );
    let page = "<p title=\"a title\">one <b>two</b><code>no</code> &lt; three</p><script>f(\"four\")</script>\
        <script type=\"application/json\">\"no\"</script>";
    assert_eq!(
        html::strings(page),
        ["a title", "one", "two", "< three", "four"]
    );
}
