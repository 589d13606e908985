//! The tables of docs/kick-path.md name code that exists, those of
//! docs/robustness.md tests; and what is cited of the specification stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kickpath::qemu::Vmm;
use kickpath_tests::documents;

/// Links of table rows: what is named, and the file that must have it.
fn links(page: &str) -> BTreeSet<(String, String)> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    rows.flat_map(|row| {
        row.split("[`").skip(1).filter_map(|rest| {
            let (name, rest) = rest.split_once("`](../")?;
            let (path, _) = rest.split_once(')')?;
            Some((name.to_owned(), path.to_owned()))
        })
    })
    .collect()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(workspace().join("docs").join(name)).unwrap()
}

#[test]
fn every_row_names_code_that_exists() {
    let links = links(&page("kick-path.md"));
    assert!(links.len() > 25, "{links:?}");
    for (name, path) in &links {
        let source = std::fs::read_to_string(workspace().join(path)).unwrap();
        let item = name.rsplit("::").next().unwrap();
        let defined = ["fn", "trait", "struct", "enum"].iter().any(|kind| {
            source
                .match_indices(&format!("{kind} {item}"))
                .any(|(at, found)| {
                    let next = source[at + found.len()..].chars().next();
                    !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
                })
        });
        assert!(defined, "{path} has no {name}");
    }
}

/// What a document and its translation must have in common, section by section, in this order.
fn skeleton(text: &str) -> Vec<Vec<String>> {
    let mut sections = vec![Vec::new()];
    let (mut block, mut told) = (Vec::new(), BTreeSet::new());
    let (mut paragraphs, mut items) = (String::new(), 0);
    for line in text.lines().chain([""]) {
        if let Some(code) = line.strip_prefix("    ") {
            // A remark behind a line is in the reader's language.
            let end = ["  (", "  #", " # "]
                .iter()
                .filter_map(|mark| code.find(mark));
            block.push(code[..end.min().unwrap_or(code.len())].trim_end());
            continue;
        }
        let section = sections
            .last_mut()
            .expect("there is one from the beginning");
        if !block.is_empty() && !line.is_empty() {
            section.push(format!(
                "the block:\n{}",
                std::mem::take(&mut block).join("\n")
            ));
        }
        if line.starts_with('#') {
            told.extend(told_of(&std::mem::take(&mut paragraphs)));
            section.extend(std::mem::take(&mut told));
            section.push(format!("{} items", std::mem::take(&mut items)));
            let level = line.chars().take_while(|c| *c == '#').count();
            sections.push(vec![format!("a heading of level {level}")]);
            continue;
        }
        for link in line.split("](").skip(1) {
            let target = link.split_once(')').map_or(link, |(target, _)| target);
            told.insert(format!("a link or picture: {target}").replace(".zh.md", ".md"));
        }
        if let Some(name) = line.strip_prefix("<!-- recorded: ") {
            section.push(name.replace(" in Chinese", ""));
        }
        if line.starts_with('|') {
            let mut cells: Vec<&str> = figures(line).chain(code(line)).collect();
            cells.sort_unstable();
            section.push(format!("a row with {}", cells.join(" and ")));
        } else {
            items += u32::from(is_item(line));
            paragraphs += line;
            paragraphs.push(' ');
        }
    }
    told.extend(told_of(&paragraphs));
    let last = sections.last_mut().expect("the same");
    last.extend(told);
    last.push(format!("{items} items"));
    sections
}

/// What paragraphs of two languages have in common.
fn told_of(paragraphs: &str) -> BTreeSet<String> {
    let code = code(paragraphs).map(|code| format!("the code {code}"));
    let figures = figures(paragraphs).map(|figure| format!("the figure {figure}"));
    code.chain(figures).collect()
}

/// Whether a line begins an item of a list.
fn is_item(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.starts_with("- ") || rest.len() < line.len() && rest.starts_with(". ")
}

/// The figures in a line, such as `1,000` and `0.05`.
fn figures(line: &str) -> impl Iterator<Item = &str> {
    let parts = line.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ',');
    let parts = parts.map(|part| part.trim_matches(['.', ',']));
    parts.filter(|part| !part.is_empty())
}

/// The code in a line.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Documents and their translations.
const TRANSLATED: [[&str; 2]; 9] = [
    ["README.md", "README.zh.md"],
    ["docs/kick-path.md", "docs/kick-path.zh.md"],
    ["docs/lab.md", "docs/lab.zh.md"],
    ["docs/performance.md", "docs/performance.zh.md"],
    ["docs/robustness.md", "docs/robustness.zh.md"],
    ["docs/vmm.md", "docs/vmm.zh.md"],
    ["docs/features.md", "docs/features.zh.md"],
    ["docs/unsafe.md", "docs/unsafe.zh.md"],
    ["SECURITY.md", "SECURITY.zh.md"],
];

#[test]
fn a_translation_has_the_sections_blocks_pictures_links_code_and_figures_of_its_document() {
    for [name, translation] in TRANSLATED {
        let text = |name| std::fs::read_to_string(workspace().join(name)).unwrap();
        let (document, translated) = (text(name), text(translation));
        assert!(document.contains(&format!(
            "[中文]({})",
            translation.trim_start_matches("docs/")
        )));
        assert!(translated.contains(&format!("[English]({})", name.trim_start_matches("docs/"))));
        let titles = document.lines().filter(|line| line.starts_with('#'));
        let (document, translated) = (skeleton(&document), skeleton(&translated));
        for ((section, other), title) in document
            .iter()
            .zip(&translated)
            .zip([""].into_iter().chain(titles))
        {
            assert_eq!(
                section, other,
                "{translation} at the section \"{title}\" of {name}"
            );
        }
        assert_eq!(
            document.len(),
            translated.len(),
            "sections of {translation}"
        );
    }
}

/// A translation leads to translations, at places that are there; to an English document only
/// where it says so, or where there is no other.
#[test]
fn a_translation_leads_to_translations() {
    let mut followed = 0;
    for [_, translation] in TRANSLATED {
        let text = std::fs::read_to_string(workspace().join(translation)).unwrap();
        let directory = Path::new(translation).parent().unwrap();
        for (before, after) in text.match_indices("](").map(|(at, _)| text.split_at(at)) {
            let target = after[2..].split(')').next().unwrap();
            let (file, place) = target.split_once('#').unwrap_or((target, ""));
            if !file.ends_with(".md") && !file.is_empty() {
                continue;
            }
            let path = match file {
                "" => workspace().join(translation),
                file => workspace().join(directory).join(file),
            };
            let led = std::fs::read_to_string(&path);
            let led = led.unwrap_or_else(|error| panic!("{translation} leads to {file}: {error}"));
            let other = path.to_string_lossy().replace(".md", ".zh.md");
            let is_other = before.ends_with("[English") || file.ends_with(".zh.md");
            assert!(
                is_other || file.is_empty() || !Path::new(&other).exists(),
                "{translation} leads to {file}, which has a translation"
            );
            let anchor = format!("<a id=\"{place}\"></a>");
            assert!(
                place.is_empty()
                    || !(file.is_empty() || file.ends_with(".zh.md"))
                    || led.contains(&anchor),
                "{translation} leads to {target}, which has no {anchor}"
            );
            followed += 1;
        }
    }
    assert!(followed > 12, "{followed} links were followed");
}

#[test]
fn a_skeleton_tells_of_what_differs() {
    let text = "# A\n\nWords of 30 `b`, [a link](x.md).\n- one\n\n    cargo run  # a remark\n\n\
                | 1,000 of 20 | `--x` |\n";
    let same = "# 甲\n\n30 个 `b`，[链接](x.zh.md)。\n- 一\n\n    cargo run  # 注释\n\n\
                | 20 个中的 1,000 个 | `--x` |\n";
    assert_eq!(skeleton(text), skeleton(same));
    for (was, is) in [
        ("# 甲", "甲"),
        ("x.zh.md", "y.md"),
        ("30", "31"),
        ("`b`", "`c`"),
        ("- 一", "一"),
        ("cargo run", "cargo test"),
        ("1,000", "1,001"),
        ("--x", "--y"),
        ("| 20", "20"),
    ] {
        assert_ne!(skeleton(text), skeleton(&same.replacen(was, is, 1)), "{is}");
    }
}

#[test]
fn the_translation_has_the_same_rows() {
    assert_eq!(
        links(&page("kick-path.md")),
        links(&page("kick-path.zh.md"))
    );
}

/// Lines of the code block that begins with `first`.
fn block<'a>(page: &'a str, first: &str) -> Vec<&'a str> {
    let lines = page.lines().skip_while(|line| !line.starts_with(first));
    lines.take_while(|line| !line.is_empty()).collect()
}

/// Both pages tell the way from `ndo_start_xmit` to `main_loop_wait`, as a
/// trace does.
#[test]
fn the_chain_of_the_sources_is_the_one_that_a_trace_tells() {
    let chain = "    guest   udp_sendmsg";
    let (page, translation) = (page("kick-path.md"), page("kick-path.zh.md"));
    let told = block(&page, chain);
    assert!(told.len() > 10, "{told:?}");
    assert_eq!(told, block(&translation, chain));
    let source = workspace().join("boot/src/trace/explain/calls.rs");
    let source = std::fs::read_to_string(source).unwrap();
    for line in told {
        let calls = line[12..].split([' ', ',', '(']);
        for call in calls.filter(|call| call.contains('_')) {
            assert!(source.contains(call), "{call} is not told by a trace");
        }
    }
}

/// The lines that a page shows of a recorded run under this name.
fn recorded<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!("<!-- recorded: {name} -->");
    let lines = page.lines().skip_while(|line| *line != begin).skip(1);
    let lines = lines.take_while(|line| *line != "<!-- end -->");
    lines.filter(|line| !line.is_empty()).collect()
}

/// The names of what a page shows of recorded runs.
fn blocks(page: &str) -> impl Iterator<Item = &str> {
    let marks = page
        .lines()
        .filter_map(|line| line.strip_prefix("<!-- recorded: "));
    marks.filter_map(|mark| mark.strip_suffix(" -->"))
}

/// Listings that are no output of a program, by their first line, and why they may stand there.
const DRAWN: [(&str, &str); 3] = [
    (
        "guest   udp_sendmsg",
        "functions of other sources: tested above",
    ),
    ("guest     socket -> smoltcp", "a drawing"),
    ("(new - event - 1) mod 65536", "a formula"),
];

/// Whatever looks like a program's output is of a recorded run: all else in a listing is a command.
#[test]
fn every_listing_is_recorded_or_a_command() {
    let mut documents: Vec<_> = ["README.md", "README.zh.md"]
        .map(|name| (name.to_owned(), workspace().join(name)))
        .into();
    for entry in std::fs::read_dir(workspace().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Their listings are of other VMMs, each by a command that few can run.
        if name.ends_with(".md") && !name.starts_with("vmm.") {
            documents.push((name, path));
        }
    }
    assert!(documents.len() > 8, "{documents:?}");
    let mut commands = 0;
    for (name, path) in documents {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(!text.contains("```"), "{name}: a listing is indented");
        let mut is_recorded = false;
        let mut drawn = false;
        for line in text.lines() {
            is_recorded |= line.starts_with("<!-- recorded: ");
            is_recorded &= line != "<!-- end -->";
            let listed = line.strip_prefix("    ").filter(|_| !is_recorded);
            let Some(listed) = listed else {
                drawn &= !line.is_empty();
                continue;
            };
            drawn |= DRAWN.iter().any(|(first, _)| listed.starts_with(first));
            let mut words = listed
                .split(' ')
                .skip_while(|word| word.starts_with("KICKPATH_"));
            let is_command = matches!(words.next(), Some("cargo" | "kickpath"));
            commands += u32::from(is_command);
            assert!(drawn || is_command, "{name}: of which run is this? {line}");
        }
    }
    assert!(commands > 15, "{commands} commands were found");
}

/// What both pages show of a run is what was recorded, and its steps are steps that a
/// trace still tells: its functions, and files that leave records.
#[test]
fn the_steps_of_the_run_are_those_of_a_trace() {
    let explained = workspace().join("boot/src/trace/explain/place.rs");
    let explained = std::fs::read_to_string(explained).unwrap();
    let (page, translation) = (page("kick-path.md"), page("kick-path.zh.md"));
    let names: BTreeSet<_> = blocks(&page).collect();
    assert!(names.len() > 12, "{names:?}");
    for name in blocks(&translation).filter(|name| *name != "run in Chinese") {
        let shown = recorded(&page, name);
        assert!(shown.len() > 1, "{name}: {shown:?}");
        assert_eq!(shown, recorded(&translation, name));
    }
    let shown = recorded(&page, "guest");
    let steps = shown.iter().filter_map(|line| {
        let mut words = line.split_whitespace().rev();
        let file = words.next().filter(|file| file.starts_with("kernel/"))?;
        Some((words.next()?, file))
    });
    let steps: Vec<_> = steps.collect();
    assert_eq!(steps.len(), 8, "{shown:?}");
    for (function, file) in steps {
        assert!(
            explained.contains(&format!("\"{function}\"")),
            "a trace tells of no {function}"
        );
        let source = std::fs::read_to_string(workspace().join(file)).unwrap();
        assert!(source.contains("tracepoint!"), "{file} leaves no records");
    }
}

/// Documents and pictures are of the runs in `docs/recorded` and of the pages as they are.
#[test]
fn documents_and_pictures_are_of_what_was_recorded() {
    let runs = documents::Runs::read().unwrap();
    let mut stale = Vec::new();
    for (name, made) in documents::documents(&runs).unwrap() {
        let text = documents::document(name).unwrap();
        let differs = text.lines().zip(made.lines()).find(|(is, new)| is != new);
        let (is, new) = differs.unwrap_or(("", "more, or fewer, lines"));
        if text != made {
            stale.push(format!("{name} has\n{is}\nand should have\n{new}"));
        }
    }
    let pictures = documents::pictures(&runs).unwrap();
    assert!(!pictures.is_empty());
    for picture in pictures {
        let png = std::fs::read(documents::picture_path(&picture)).unwrap_or_default();
        stale.extend(picture.stale(&png));
        assert!(png.len() < 400_000, "{} has {}", picture.file, png.len());
    }
    assert!(
        stale.is_empty(),
        "{}\nMake them anew: {} -- --keep",
        stale.join("\n"),
        documents::COMMAND
    );
}

/// Every VMM was seen, and `kickpath doctor` says of each what its recorded runs lack. (QEMU's
/// device has packed rings when it is told so.)
#[test]
fn what_doctor_says_of_vmms_is_what_was_recorded() {
    let runs = documents::Runs::read().unwrap();
    for vmm in Vmm::ALL {
        let seen: Vec<_> = { runs.vmms.iter() }
            .filter(|run| run.vmm() == vmm.to_string())
            .collect();
        assert!(!seen.is_empty(), "{vmm} was never recorded");
        let recorded: BTreeSet<&str> = seen.iter().flat_map(|run| run.absent()).collect();
        let told = vmm.lacks().split([' ', ',']);
        let told: BTreeSet<&str> = told
            .filter(|word| documents::FEATURES.contains(word))
            .collect();
        if vmm != Vmm::Qemu {
            assert_eq!(told, recorded, "{vmm}: {}", vmm.lacks());
        }
    }
}

/// The run of Linux that both pages show names what is recorded there, or of QEMU.
#[test]
fn the_steps_in_linux_are_those_that_are_recorded() {
    let shown = page("kick-path.md");
    let shown = recorded(&shown, "Linux");
    // A call chain stands below its step.
    let shown: Vec<_> = shown
        .iter()
        .filter(|line| line[4..6].trim().parse::<u32>().is_ok())
        .collect();
    let files = ["linux/probes.rs", "explain/qemu.rs"];
    let told = files.map(|file| {
        let file = workspace().join("boot/src/trace").join(file);
        std::fs::read_to_string(file).unwrap()
    });
    let mut count = 0;
    for line in shown.iter().filter(|line| !line.contains(" wire ")) {
        let name = line[27..].split_whitespace().next().unwrap();
        let quoted = [format!("\"{name}\""), format!("/{name}\"")];
        let known = told
            .iter()
            .any(|file| quoted.iter().any(|name| file.contains(name)));
        assert!(known, "a trace tells of no {name}");
        count += 1;
    }
    assert_eq!(count, 14, "{shown:?}");
}

/// The specification's sections, by number.
fn sections() -> BTreeMap<&'static str, &'static str> {
    let table = include_str!("virtio-1.2-sections.txt");
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).collect()
}

/// Every file below `directory` whose text may cite; what was built is none.
fn texts(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                texts(&path, found);
            }
        } else if matches!(extension, Some("rs" | "md" | "js" | "html")) {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

/// A section's number at the beginning of `text`: at least one dot.
fn number(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let number = text[..end.unwrap_or(text.len())].trim_end_matches('.');
    (number.contains('.') && !number.contains("..")).then_some(number)
}

/// A title behind its number: in a string, or in a comment of its own.
fn titles(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices(['"', '/', ' ']).filter_map(|(at, _)| {
        let rest = &line[at + 1..];
        let number = number(rest)?;
        let title = rest[number.len()..].strip_prefix(' ')?;
        let title = title.split(['"', '.', ':', ',', '。']).next()?;
        let is_title = title.starts_with(|c: char| c.is_ascii_uppercase());
        is_title.then_some((number, title))
    })
}

/// Specifications of others, by the word before.
const OTHERS: [&str; 7] = [
    "UEFI",
    "Bus",
    "Base",
    "ACPI",
    "Firmware",
    "Multiboot",
    "MultiProcessor",
];

/// The numbers that follow the word "specification", with what joins them:
/// `specification 2.7.7 and 2.7.10, packed 2.8.10`.
fn numbers(text: &str) -> Vec<&str> {
    let words = text.split_whitespace();
    let words = words.filter(|word| !word.starts_with("//"));
    let words: Vec<&str> = words.collect();
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let word = word.trim_start_matches('(').trim_end_matches(',');
        let others = at > 0 && OTHERS.contains(&words[at - 1].trim_start_matches('('));
        if !word.eq_ignore_ascii_case("specification") || others {
            continue;
        }
        // An edition comes first: `specification 1.2, section 4.1.4`.
        let rest = &words[at + 1..];
        let parts = ["section", "sections", "chapter", "table"];
        let edition = rest.get(1).is_some_and(|next| parts.contains(next));
        let ours = rest.first().is_some_and(|first| first.starts_with("1.2"));
        for word in &rest[usize::from(ours).min(rest.len())..] {
            const JOINING: [&str; 8] = [
                "and", "to", "for", "packed", "section", "sections", "INTx,", "MSI-X,",
            ];
            match number(word) {
                Some(_) if edition && !ours => break,
                Some(number) => found.push(number),
                None if JOINING.contains(word) => {}
                None => break,
            }
        }
    }
    found
}

#[test]
fn numbers_are_found_with_what_joins_them() {
    let text = "(specification 2.7.7 and\n/// 2.7.10, packed 2.8.10), the Local Bus specification 3.0, \
                section 6.2.5; specification 1.2, section 4.1.4.";
    assert_eq!(numbers(text), ["2.7.7", "2.7.10", "2.8.10", "4.1.4"]);
    let line = r#""2.8.7 Indirect Flag: Scatter-Gather Support", "3.1.1 Driver Requirements""#;
    let found: Vec<_> = titles(line).collect();
    assert_eq!(
        found,
        [("2.8.7", "Indirect Flag"), ("3.1.1", "Driver Requirements")]
    );
}

#[test]
fn cited_sections_have_these_numbers_and_titles() {
    let sections = sections();
    assert!(sections.len() > 200, "{} sections", sections.len());
    let mut found = Vec::new();
    for directory in ["boot", "docs", "kernel", "tests"] {
        texts(&workspace().join(directory), &mut found);
    }
    for file in ["README.md", "SECURITY.md"] {
        let path = workspace().join(file);
        found.push((path.clone(), std::fs::read_to_string(path).unwrap()));
    }
    let (mut told, mut alone) = (0, 0);
    let this = Path::new(file!()).file_name();
    for (path, text) in found.iter().filter(|(path, _)| path.file_name() != this) {
        let path = path.display();
        for line in text.lines() {
            for (number, title) in titles(line) {
                let Some(known) = sections.get(number) else {
                    // A version before a name: `Linux 6.1 Debian`.
                    assert!(
                        number.matches('.').count() < 2,
                        "{path}: no section {number}: {line}"
                    );
                    continue;
                };
                // What is behind a colon is a part of some titles.
                let known = known.split([':', ',', '.']).next().unwrap();
                assert_eq!(title, known, "{path}: {line}");
                told += 1;
            }
        }
        for number in numbers(text) {
            assert!(sections.contains_key(number), "{path}: no section {number}");
            alone += 1;
        }
    }
    assert!(told > 25, "{told} titles were found");
    assert!(alone > 180, "{alone} numbers were found");
}

/// Tests as `file::name` in code spans of tables.
#[test]
fn every_line_of_robustness_names_tests_that_exist() {
    let page = page("robustness.md");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let shown = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once('|'));
    let names: BTreeSet<&str> = shown
        .flat_map(|(_, shown)| shown.split('`'))
        .filter(|name| name.contains("::"))
        .collect();
    assert!(names.len() > 35, "{names:?}");
    let mut sources = Vec::new();
    for directory in [
        "kernel/virtio-net/tests",
        "kernel/services/tests",
        "tests/tests/guest",
    ] {
        texts(&workspace().join(directory), &mut sources);
    }
    for name in names {
        let (file, test) = name.split_once("::").unwrap();
        let exists = sources.iter().any(|(path, text)| {
            // `scribble` is a directory.
            let is_it = path.iter().any(|part| part == file) || path.file_stem().unwrap() == file;
            let as_function = format!("fn {test}(");
            // Tests in QEMU have their names in strings, or as the arguments of `add`.
            let as_text = [
                format!("\"{name}\""),
                format!("\"{name}{{"),
                format!("(\"{test}\""),
            ];
            is_it
                && (text.contains(&as_function)
                    || as_text.iter().any(|as_text| text.contains(as_text)))
        });
        assert!(exists, "there is no test {name}");
    }
}
