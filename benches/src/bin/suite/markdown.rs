//! Tables as Markdown, and the regions of a text that are replaced.

use std::fmt::Write;

use iron_exec_benches::{Result, Results, Table, results};

/// One bench's tables, failures and notes.
pub(crate) fn section(results: &Results) -> String {
    let mut text = format!("<sub>{} UTC. {}</sub>\n", began(results), results.machine.text());
    for part in results.tables.iter().map(table) {
        let _ = write!(text, "\n{part}");
    }
    if !results.failures.is_empty() || !results.notes.is_empty() {
        text.push('\n');
    }
    for failure in &results.failures {
        let _ = writeln!(text, "- **FAILED: {}**", escaped(failure));
    }
    for note in &results.notes {
        let _ = writeln!(text, "- {}", escaped(note));
    }
    text
}

/// When a run began, and if it was not a full one.
fn began(results: &Results) -> String {
    let began = std::time::UNIX_EPOCH + std::time::Duration::from_secs(results.machine.began_unix);
    let began = humantime::format_rfc3339_seconds(began).to_string();
    let date = began.get(..16).unwrap_or(&began).replace('T', " ");
    if results.pace == iron_exec_benches::Pace::Full { date } else { format!("**{:?} run, not a full one** of {date}", results.pace) }
}

/// A table: in a cell the median, how many times the reference row's it is, and below them the spread.
pub(crate) fn table(table: &Table) -> String {
    let rounds = table.rows.iter().flat_map(|row| &row.cells).map(Vec::len).max().unwrap_or_default();
    let mut title = table.title.clone();
    if rounds > 1 {
        let _ = write!(title, "; median of {rounds} rounds, min..max");
    }
    if let Some(reference) = &table.reference {
        let _ = write!(title, "; × {reference}");
    }
    let has_why = table.rows.iter().any(|row| !row.why.is_empty());
    let why = |text: &str| if has_why { vec![escaped(text)] } else { Vec::new() };
    let head = [String::new()].into_iter().chain(table.columns.iter().map(|column| escaped(column))).chain(why("why")).collect();
    let mut lines = vec![head];
    for row in &table.rows {
        let cells = table.columns.iter().map(|column| table.parts(&row.name, column).map_or_else(|| "–".to_owned(), cell));
        let is_ours = row.name.starts_with("iron-exec");
        let name = if is_ours { format!("**{}**", escaped(&row.name)) } else { escaped(&row.name) };
        lines.push([name].into_iter().chain(cells).chain(why(&row.why)).collect());
    }
    format!("**{}**\n\n{}", escaped(&title), aligned(&lines, table.columns.len()))
}

fn cell([median, spread, ratio]: [String; 3]) -> String {
    // Three digits are enough for it, too.
    let ratio = match ratio.trim_start_matches('x').parse() {
        Ok(times) if times >= 10.0 => format!("×{}", results::digits(times)),
        _ => ratio.replace('x', "×"),
    };
    let text = if ratio.is_empty() { median } else { format!("{median} ({ratio})") };
    if spread.is_empty() { text } else { format!("{text}<br><sub>{spread}</sub>") }
}

const MET: &str = "met";
const NOT_MET: &str = "**NOT MET**";
const NOT_MEASURED: &str = "not measured";

/// The head of the table of goals.
pub(crate) const GOALS_HEAD: &str = "| bench | what | goal | found | |\n|---|---|---|---:|---|\n";

/// The lines of a bench in the table of goals.
pub(crate) fn goals(results: &Results) -> String {
    let mut text = String::new();
    for goal in &results.goals {
        let verdict = match goal.is_met() {
            Some(true) => MET,
            Some(false) => NOT_MET,
            None => NOT_MEASURED,
        };
        let found = goal.found.map_or_else(|| "–".to_owned(), results::digits);
        let what = [": ", ", "].iter().find_map(|sign| goal.what.strip_prefix(&format!("{}{sign}", results.bench))).unwrap_or(&goal.what);
        let _ = writeln!(text, "{}{} | {} | {found} | {verdict} |", line_of(&results.bench), escaped(what), goal.bound_text());
    }
    text
}

/// How many goals of that table are met, in a sentence.
pub(crate) fn verdicts(table: &str) -> String {
    let [met, not_met, not_measured] =
        [MET, NOT_MET, NOT_MEASURED].map(|verdict| table.lines().filter(|line| line.ends_with(&format!("| {verdict} |"))).count());
    let is = |count: usize| if count == 1 { "is" } else { "are" };
    let was = if not_measured == 1 { "was" } else { "were" };
    match met + not_met + not_measured {
        0 => String::new(),
        all => {
            format!("Of {all} goals {met} {} met, {not_met} {} not met, and {not_measured} {was} not measured.\n\n", is(met), is(not_met))
        }
    }
}

/// The head of the table of machines.
pub(crate) const MACHINE_HEAD: &str = "| bench | begun (UTC) | machine |\n|---|---|---|\n";

/// The line of a bench in the table of machines.
pub(crate) fn machine(results: &Results) -> String {
    format!("{}{} | {} |\n", line_of(&results.bench), began(results), escaped(&results.machine.text()))
}

/// How the lines of a bench begin in the tables of goals and machines.
pub(crate) fn line_of(bench: &str) -> String {
    format!("| {bench} | ")
}

/// Lines of cells; so many of them after the first are figures.
fn aligned(lines: &[Vec<String>], figures: usize) -> String {
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if index == 0 {
            let marks: Vec<&str> = (0..line.len()).map(|column| if (1..=figures).contains(&column) { "---:" } else { "---" }).collect();
            let _ = writeln!(text, "|{}|", marks.join("|"));
        }
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// A part of a text between two marks, each a line of its own.
#[derive(Debug)]
pub(crate) struct Region<'a> {
    pub(crate) name: &'a str,
    pub(crate) content: &'a str,
}

/// A text in pieces: what stands between the regions, with their marks, and the regions.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    Prose(&'a str),
    Region(Region<'a>),
}

/// Takes a text apart.
///
/// # Errors
/// If the marks do not pair, or a region is there twice.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>> {
    let (mut pieces, mut names, mut from, mut at) = (Vec::new(), Vec::new(), 0, 0);
    let mut open: Option<&str> = None;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let wrong = |what: &str, name: &str| format!("line {}: {what}: {name}", index + 1);
        if let Some(name) = mark(line, "begin") {
            if let Some(open) = open {
                return Err(wrong("a region begins in another one", &format!("{name} in {open}")).into());
            }
            if names.contains(&name) {
                return Err(wrong("a region is there twice", name).into());
            }
            pieces.push(Piece::Prose(&text[from..at + line.len()]));
            names.push(name);
            (open, from) = (Some(name), at + line.len());
        } else if let Some(name) = mark(line, "end") {
            if open.take() != Some(name) {
                return Err(wrong("a region ends that has not begun", name).into());
            }
            pieces.push(Piece::Region(Region { name, content: &text[from..at] }));
            from = at;
        }
        at += line.len();
    }
    if let Some(open) = open {
        return Err(format!("a region does not end: {open}").into());
    }
    pieces.push(Piece::Prose(&text[from..]));
    Ok(pieces)
}

/// The name in a line `<!-- begin: NAME -->`.
fn mark<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    let inside = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    Some(inside.trim().strip_prefix(kind)?.trim_start().strip_prefix(':')?.trim())
}

#[cfg(test)]
mod tests {
    use iron_exec_benches::Table;

    use super::{Piece, pieces, table};

    const TEXT: &str = "Prose.\n<!-- begin: a -->\nold\n<!-- end: a -->\nMore.\n<!-- begin: b -->\n<!-- end: b -->\n";

    #[test]
    fn a_text_comes_apart_and_together_again() {
        let pieces = pieces(TEXT).unwrap();
        let again: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Prose(text) => *text,
                Piece::Region(region) => region.content,
            })
            .collect();
        assert_eq!(again, TEXT);
        let regions: Vec<_> = pieces
            .iter()
            .filter_map(|piece| if let Piece::Region(region) = piece { Some((region.name, region.content)) } else { None })
            .collect();
        assert_eq!(regions, [("a", "old\n"), ("b", "")]);
    }

    #[test]
    fn marks_that_do_not_pair_are_told() {
        for (text, says) in [
            ("<!-- begin: a -->\n", "does not end: a"),
            ("<!-- end: a -->\n", "line 1: a region ends that has not begun"),
            ("<!-- begin: a -->\n<!-- end: b -->\n", "line 2: a region ends that has not begun: b"),
            ("<!-- begin: a -->\n<!-- begin: b -->\n", "line 2: a region begins in another one: b in a"),
            ("<!-- begin: a -->\n<!-- end: a -->\n<!-- begin: a -->\n", "line 3: a region is there twice: a"),
        ] {
            let error = pieces(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_table_has_medians_ratios_and_spreads() {
        let mut spawn = Table::new("spawn", "µs a program", &["10 fds", "5,000 fds"]).reference("floor");
        for figure in [30.0, 10.0, 20.0] {
            spawn.add("floor", "10 fds", figure);
            spawn.add("iron-exec", "10 fds", 2.0 * figure);
        }
        spawn.add("a|b", "5,000 fds", 1.0);
        let expected = "**µs a program; median of 3 rounds, min..max; × floor**\n\n\
            |  | 10 fds | 5,000 fds |\n|---|---:|---:|\n\
            | floor | 20.0 (×1.00)<br><sub>10.0..30.0</sub> | – |\n\
            | **iron-exec** | 40.0 (×2.00)<br><sub>20.0..60.0</sub> | – |\n\
            | a\\|b | – | 1.00 |\n";
        assert_eq!(table(&spawn), expected);
    }

    #[test]
    fn reasons_are_a_column() {
        let mut calls = Table::new("calls", "calls a job", &["plain"]);
        calls.add("clone3", "plain", 1.0);
        calls.why("clone3", "makes the process");
        assert!(
            table(&calls).ends_with("|  | plain | why |\n|---|---:|---|\n| clone3 | 1.00 | makes the process |\n"),
            "{}",
            table(&calls)
        );
    }
}
