//! The report: a text by hand, with regions that are written anew.

use std::fs;
use std::path::Path;

use iron_exec_benches::{Result, Results};

use crate::BENCHES;
use crate::markdown::{self, Piece, Region};

/// Writes the regions of a report anew; what has to be known about it.
pub(crate) fn write(path: &Path, found: &[Results]) -> Result<Vec<String>> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
    let (text, warnings) = rendered(&text, found).map_err(|error| failed(&error))?;
    fs::write(path, text).map_err(|error| failed(&error))?;
    Ok(warnings.iter().map(|warning| failed(warning)).collect())
}

/// The text with its regions written anew. Those of whom nothing was found stay as they are, and that is among the warnings.
fn rendered(text: &str, found: &[Results]) -> Result<(String, Vec<String>)> {
    let (mut rendered, mut warnings, mut names) = (String::new(), Vec::new(), Vec::new());
    for piece in markdown::pieces(text)? {
        match piece {
            Piece::Prose(text) => rendered += text,
            Piece::Region(region) => {
                names.push(region.name);
                rendered += &content(&region, found).unwrap_or_else(|| {
                    let why = if BENCHES.contains(&region.name) { "there are no results of it" } else { "there is no such benchmark" };
                    warnings.push(format!("the region {} stays as it was: {why}", region.name));
                    region.content.to_owned()
                });
            }
        }
    }
    let lost = found.iter().map(|results| results.bench.as_str()).filter(|bench| !names.contains(bench));
    warnings.extend(lost.map(|bench| format!("there are results of {bench}, and no region for them")));
    Ok((rendered, warnings))
}

fn content(region: &Region, found: &[Results]) -> Option<String> {
    Some(match region.name {
        "goals" => {
            let table = lines(region.content, found, markdown::GOALS_HEAD, markdown::goals);
            markdown::verdicts(&table) + &table
        }
        "machine" => lines(region.content, found, markdown::MACHINE_HEAD, markdown::machine),
        bench => markdown::section(found.iter().find(|results| results.bench == bench)?),
    })
}

/// A table of all benchmarks; the lines of those without results stay as they are.
fn lines(old: &str, found: &[Results], head: &str, new: impl Fn(&Results) -> String) -> String {
    let of = |bench: &&str| match found.iter().find(|results| results.bench == *bench) {
        Some(results) => new(results),
        None => old.split_inclusive('\n').filter(|line| line.starts_with(&markdown::line_of(bench))).collect(),
    };
    let body: String = BENCHES.iter().map(of).collect();
    if body.is_empty() { body } else { format!("{head}{body}") }
}

#[cfg(test)]
mod tests {
    use iron_exec_benches::{Pace, Relation, Results, Table};

    use super::rendered;

    fn results(bench: &str) -> Results {
        let mut results = Results::begin(bench, Pace::Full).unwrap();
        results.machine.began_unix = 1_795_404_418;
        let mut table = Table::new("t", "µs", &["all"]);
        table.add("iron-exec", "all", 3.0);
        results.tables.push(table);
        results.note("a peer is missing");
        results.fail("a row is");
        results.goal("speed", Relation::AtMost, 2.0, Some(3.0));
        results.goal("ease", Relation::AtMost, 2.0, None);
        results
    }

    #[test]
    fn regions_are_written_anew_and_all_else_stays() {
        let text = "A\n<!-- begin: spawn -->\nold\n<!-- end: spawn -->\nB\n<!-- begin: job -->\nkept\n<!-- end: job -->\nC\n";
        let (rendered, warnings) = rendered(text, &[results("spawn"), results("logs")]).unwrap();
        assert!(rendered.starts_with("A\n<!-- begin: spawn -->\n<sub>2026-11-23 03:26 UTC. Linux "), "{rendered}");
        assert!(
            rendered.contains("| **iron-exec** | 3.00 |\n\n- **FAILED: a row is**\n- a peer is missing\n<!-- end: spawn -->\nB\n"),
            "{rendered}"
        );
        assert!(rendered.ends_with("B\n<!-- begin: job -->\nkept\n<!-- end: job -->\nC\n"), "{rendered}");
        assert_eq!(
            warnings,
            ["the region job stays as it was: there are no results of it", "there are results of logs, and no region for them"]
        );
    }

    #[test]
    fn a_region_of_no_benchmark_is_told() {
        let text = "<!-- begin: spwan -->\nkept\n<!-- end: spwan -->\n";
        let (rendered, warnings) = rendered(text, &[]).unwrap();
        assert_eq!((rendered.as_str(), warnings.len()), (text, 1));
    }

    #[test]
    fn goals_of_a_benchmark_that_was_not_run_stay() {
        let old = "| job | full job | ≤ 1.25 | 1.20 | met |\n| spawn | old | ≤ 1 | 1 | met |\n";
        let text = format!("<!-- begin: goals -->\n{old}<!-- end: goals -->\n");
        let (rendered, _) = rendered(&text, &[results("spawn")]).unwrap();
        let expected = "| spawn | speed | ≤ 2 | 3.00 | **NOT MET** |\n\
            | spawn | ease | ≤ 2 | – | not measured |\n\
            | job | full job | ≤ 1.25 | 1.20 | met |\n<!-- end: goals -->\n";
        assert!(rendered.ends_with(expected), "{rendered}");
        assert!(rendered.contains("-->\nOf 3 goals 1 is met, 1 is not met, and 1 was not measured.\n\n| bench |"), "{rendered}");
    }
}
