//! What a benchmark found: figures by table, row, column and round, and the goals they are held against.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Pace, Result};

/// All that one run of one benchmark found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Results {
    /// The benchmark's name, as `--bench` takes it.
    pub bench: String,
    /// What the figures depend on.
    pub machine: Machine,
    /// How much was measured.
    pub pace: Pace,
    /// In the order in which they are to be read.
    pub tables: Vec<Table>,
    /// What was to be reached.
    pub goals: Vec<Goal>,
    /// Why cells are empty, and what a reader has to know.
    pub notes: Vec<String>,
    /// What went wrong that must not: with iron-exec, the floor, or the benchmark itself. What cannot be had on a machine, and a peer that fails, are notes.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// What the figures depend on.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor, as /proc/cpuinfo names it.
    pub processor: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The load average before the first round: who else runs is most of the noise.
    pub load: f64,
    /// Seconds since 1970 at the begin of the run.
    pub began_unix: u64,
}

/// Figures of one kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Table {
    /// A short name, for files and links: `spawn-64`.
    pub id: String,
    /// What the figures are, with their unit: `From start to reaped, 64 in flight, µs a program`.
    pub title: String,
    /// The columns, from left to right.
    pub columns: Vec<String>,
    /// The rows, from top to bottom.
    pub rows: Vec<Row>,
    /// The row that the others are divided by, if any.
    pub reference: Option<String>,
}

/// One contender's figures.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// The contender.
    pub name: String,
    /// One for each column, the figures of all rounds; none where nothing was measured.
    pub cells: Vec<Vec<f64>>,
    /// Why it is there, if that has to be said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A bound on a ratio or figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Goal {
    /// What is compared, in words: `spawn, 64 in flight: time, times the floor's`.
    pub what: String,
    /// Which side of the bound is good.
    pub relation: Relation,
    /// The bound.
    pub bound: f64,
    /// What was found; `None` if it could not be measured.
    pub found: Option<f64>,
}

/// Which side of a bound is good.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Relation {
    /// The bound or less.
    AtMost,
    /// The bound or more.
    AtLeast,
}

impl Results {
    /// Of a benchmark that begins now.
    ///
    /// # Errors
    /// If /proc does not say what the machine is.
    pub fn begin(bench: &str, pace: Pace) -> Result<Self> {
        Ok(Self {
            bench: bench.to_owned(),
            machine: Machine::look()?,
            pace,
            tables: Vec::new(),
            goals: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
        })
    }

    /// The table of that id.
    pub fn table(&self, id: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.id == id)
    }

    /// The ratio of two cells; see [`Table::ratio`].
    pub fn ratio(&self, table: &str, of: (&str, &str), to: (&str, &str)) -> Option<f64> {
        self.table(table)?.ratio(of, to)
    }

    /// Notes something once, however often it is said.
    pub fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.notes.contains(&what) {
            self.notes.push(what);
        }
    }

    /// Notes that something went wrong that must not: the benchmark fails, once it has told what it has found.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    /// Notes a goal, and what was found.
    pub fn goal(&mut self, what: impl Into<String>, relation: Relation, bound: f64, found: Option<f64>) {
        self.goals.push(Goal { what: what.into(), relation, bound, found });
    }

    /// Prints everything, and keeps it for the report if this was the whole benchmark: no word among the arguments has asked for a part of it. Where
    /// `IRON_EXEC_BENCH_RESULTS` names a directory it is kept there, whatever was asked for.
    ///
    /// # Errors
    /// If the file cannot be written; if something has [failed](Results::fail).
    pub fn end(&self) -> Result<()> {
        print!("{}", self.text());
        match std::env::var_os("IRON_EXEC_BENCH_RESULTS") {
            Some(directory) => self.save(Path::new(&directory))?,
            None if self.pace == Pace::Full && std::env::args().skip(1).all(|arg| arg.starts_with('-')) => self.save(&directory())?,
            None => {}
        }
        if self.failures.is_empty() { Ok(()) } else { Err(self.failures.join("; ").into()) }
    }

    fn save(&self, directory: &Path) -> Result<()> {
        let path = path(directory, &self.bench);
        let text = serde_json::to_string_pretty(self)? + "\n";
        let write = || fs::create_dir_all(directory).and_then(|()| fs::write(&path, text));
        write().map_err(|error| named(&path, &error))
    }

    /// What [`Results::end`] has kept in that directory for that benchmark; `None` if there is nothing.
    ///
    /// # Errors
    /// If it cannot be read or is not of this version.
    pub fn load(directory: &Path, bench: &str) -> Result<Option<Self>> {
        let path = path(directory, bench);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(&path, &error)),
        }
    }

    /// As people read it in a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n\n", self.machine.text());
        for table in &self.tables {
            text += &table.text();
            text.push('\n');
        }
        for goal in &self.goals {
            let _ = writeln!(text, "{}", goal.text());
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED: {failure}");
        }
        text
    }
}

/// Where [`Results::end`] keeps what it found: in cargo's target directory, also in another one if `CARGO_TARGET_DIR` is its whole path.
pub fn directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|target| target.is_absolute());
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("bench-results")
}

/// The file in that directory of that benchmark.
pub fn path(directory: &Path, bench: &str) -> PathBuf {
    directory.join(format!("{bench}.json"))
}

fn named(path: &Path, error: &io::Error) -> Error {
    format!("{}: {error}", path.display()).into()
}

impl Machine {
    fn look() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| named(Path::new(path), &error));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let load = read("/proc/loadavg")?;
        let memory = field(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
        let kibibytes: u64 = memory.split(' ').next().unwrap_or_default().parse()?;
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processor: field(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism()?.get(),
            memory_bytes: kibibytes << 10,
            load: load.split(' ').next().unwrap_or_default().parse()?,
            began_unix: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs(),
        })
    }

    /// In one line.
    pub fn text(&self) -> String {
        let Self { kernel, processor, cpus, memory_bytes, load, .. } = self;
        format!("Linux {kernel}, {cpus} CPUs ({processor}), {} GiB; load average before the first round {load}", memory_bytes >> 30)
    }
}

impl Table {
    /// Without rows as yet.
    pub fn new(id: &str, title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { id: id.to_owned(), title: title.into(), columns, rows: Vec::new(), reference: None }
    }

    /// With a row that the others are divided by.
    #[must_use]
    pub fn reference(mut self, row: &str) -> Self {
        self.reference = Some(row.to_owned());
        self
    }

    /// Takes in the figure of one round. A row, or column, that is not there yet is added as the last.
    pub fn add(&mut self, row: &str, column: &str, figure: f64) {
        let column = self.columns.iter().position(|known| known == column).unwrap_or_else(|| {
            self.columns.push(column.to_owned());
            self.columns.len() - 1
        });
        let row = self.row(row);
        let cells = &mut self.rows[row].cells;
        cells.resize(cells.len().max(column + 1), Vec::new());
        cells[column].push(figure);
    }

    /// Says why a row is there.
    pub fn why(&mut self, row: &str, why: &str) {
        let row = self.row(row);
        why.clone_into(&mut self.rows[row].why);
    }

    /// The place of a row, which is made if need be: so that also those of whom nothing could be measured are seen.
    pub fn row(&mut self, name: &str) -> usize {
        self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), cells: Vec::new(), why: String::new() });
            self.rows.len() - 1
        })
    }

    /// The figures of all rounds of a cell; empty if there are none.
    pub fn rounds(&self, row: &str, column: &str) -> &[f64] {
        let column = self.columns.iter().position(|known| known == column);
        let row = self.rows.iter().find(|known| known.name == row);
        row.zip(column).and_then(|(row, column)| row.cells.get(column)).map_or(&[], Vec::as_slice)
    }

    /// The median of a cell.
    pub fn median(&self, row: &str, column: &str) -> Option<f64> {
        median(self.rounds(row, column))
    }

    /// The median over the rounds of one cell, divided by that of another.
    pub fn ratio(&self, of: (&str, &str), to: (&str, &str)) -> Option<f64> {
        Some(self.median(of.0, of.1)? / self.median(to.0, to.1)?)
    }

    /// The parts of a cell: median, spread, and the ratio to the reference; `None` if nothing was measured.
    pub fn parts(&self, row: &str, column: &str) -> Option<[String; 3]> {
        let rounds = self.rounds(row, column);
        let middle = median(rounds)?;
        let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let spread = if rounds.len() > 1 { format!("{}..{}", digits(least), digits(most)) } else { String::new() };
        let reference = self.reference.as_ref().and_then(|reference| self.median(reference, column));
        let ratio = reference.filter(|reference| *reference > 0.0).map_or(String::new(), |reference| format!("x{:.2}", middle / reference));
        Some([digits(middle), spread, ratio])
    }

    /// As people read it in a terminal.
    pub fn text(&self) -> String {
        let most = self.rows.iter().flat_map(|row| &row.cells).map(Vec::len).max().unwrap_or_default();
        let reference = self.reference.as_ref().map_or(String::new(), |reference| format!(", times {reference}"));
        let rounds = if most > 1 { format!(": median of {most} rounds, min..max") } else { String::new() };
        let mut text = format!("{}{rounds}{reference}\n", self.title);
        let name_width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default();
        let mut lines: Vec<String> = vec![" ".repeat(name_width)];
        lines.extend(self.rows.iter().map(|row| format!("{:name_width$}", row.name)));
        for column in &self.columns {
            let cells: Vec<[String; 3]> = self
                .rows
                .iter()
                .map(|row| self.parts(&row.name, column).unwrap_or_else(|| ["-".to_owned(), String::new(), String::new()]))
                .collect();
            let widths = [0, 1, 2].map(|part| cells.iter().map(|cell| cell[part].chars().count()).max().unwrap_or_default());
            let width = (widths.iter().sum::<usize>() + 2).max(column.chars().count());
            let _ = write!(lines[0], "  | {column:width$}");
            for (line, [middle, spread, ratio]) in lines[1..].iter_mut().zip(&cells) {
                let cell = format!("{middle:>0$} {spread:>1$} {ratio:>2$}", widths[0], widths[1], widths[2]);
                let _ = write!(line, "  | {cell:width$}");
            }
        }
        for (line, row) in lines[1..].iter_mut().zip(&self.rows).filter(|(_, row)| !row.why.is_empty()) {
            let _ = write!(line, "  | {}", row.why);
        }
        for line in lines {
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

impl Goal {
    /// Whether it was reached; `None` if nothing was measured.
    pub fn is_met(&self) -> Option<bool> {
        self.found.map(|found| match self.relation {
            Relation::AtMost => found <= self.bound,
            Relation::AtLeast => found >= self.bound,
        })
    }

    /// The bound in signs: `≤ 1.25`.
    pub fn bound_text(&self) -> String {
        let sign = if self.relation == Relation::AtMost { '≤' } else { '≥' };
        format!("{sign} {}", self.bound)
    }

    /// In one line.
    pub fn text(&self) -> String {
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        };
        let found = self.found.map_or_else(|| "-".to_owned(), digits);
        format!("goal {verdict}: {}: {found} (goal {})", self.what, self.bound_text())
    }
}

/// The median, the lower one of an even number.
pub fn median(figures: &[f64]) -> Option<f64> {
    percentile(figures, 50)
}

/// The least figure that so many of a hundred are not above (the nearest rank): that of 99 needs more than a hundred figures to be another than the greatest.
pub fn percentile(figures: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

/// A figure in about three digits.
pub fn digits(figure: f64) -> String {
    match figure.abs() {
        0.0 => "0".to_owned(),
        size if size < 1.0 => format!("{figure:.3}"),
        size if size < 10.0 => format!("{figure:.2}"),
        size if size < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Goal, Relation, Table, digits, median, percentile};

    #[test]
    fn a_table_gives_medians_spreads_and_ratios() {
        let mut table = Table::new("spawn", "µs a program", &["plain"]).reference("floor");
        for figure in [30.0, 10.0, 20.0] {
            table.add("floor", "plain", figure);
            table.add("peer", "plain", 2.0 * figure);
        }
        table.add("peer", "busy", 1.0);
        assert_eq!(table.median("peer", "plain"), Some(40.0));
        assert_eq!(table.ratio(("peer", "plain"), ("floor", "plain")), Some(2.0));
        assert_eq!(table.ratio(("peer", "plain"), ("floor", "busy")), None);
        assert_eq!(table.parts("peer", "plain"), Some(["40.0".into(), "20.0..60.0".into(), "x2.00".into()]));
        assert!(table.text().contains("median of 3 rounds"), "{}", table.text());
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let goal = |relation, found| Goal { what: String::new(), relation, bound: 2.0, found };
        assert_eq!(goal(Relation::AtMost, None).is_met(), None);
        assert_eq!(goal(Relation::AtMost, Some(2.1)).is_met(), Some(false));
        assert_eq!(goal(Relation::AtLeast, Some(2.1)).is_met(), Some(true));
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([0.0, 0.1234, 1.234, 12.34, 1234.5].map(digits), ["0", "0.123", "1.23", "12.3", "1234"]);
        assert_eq!((median(&[]), percentile(&[1.0, 2.0], 99)), (None, Some(2.0)));
    }
}
