//! What the hosts tell, and the tables that are made of it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::condition::IN_FLIGHT;

/// What the others are compared with, where it can be had.
const REFERENCE: &str = "iron-exec detached";

/// One line of what a host tells; its fields are separated by tabs, its times in nanoseconds.
#[derive(Debug)]
pub(crate) enum Record {
    /// It is still at it.
    Alive,
    /// There is such a contender.
    Row { contender: String },
    /// The time for one program, in one round.
    Time { contender: String, in_flight: usize, time: Duration },
    /// The median, the 99th percentile and the maximum of the time that a start took.
    Stall { contender: String, in_flight: usize, ranks: [Duration; 3] },
    /// A contender, or all of them, cannot be had.
    Missing { who: String, reason: String },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive => write!(f, "alive"),
            Self::Row { contender } => write!(f, "row\t{contender}"),
            Self::Time { contender, in_flight, time } => write!(f, "time\t{contender}\t{in_flight}\t{}", time.as_nanos()),
            Self::Stall { contender, in_flight, ranks: [p50, p99, max] } => {
                write!(f, "stall\t{contender}\t{in_flight}\t{}\t{}\t{}", p50.as_nanos(), p99.as_nanos(), max.as_nanos())
            }
            Self::Missing { who, reason } => write!(f, "missing\t{who}\t{}", reason.replace(['\n', '\t'], " ")),
        }
    }
}

impl Record {
    /// Reads a line; `None` if it is not one of ours.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let nanos = |field: &str| field.parse().ok().map(Duration::from_nanos);
        Some(match fields[..] {
            ["alive"] => Self::Alive,
            ["row", contender] => Self::Row { contender: contender.to_owned() },
            ["time", contender, in_flight, time] => {
                Self::Time { contender: contender.to_owned(), in_flight: in_flight.parse().ok()?, time: nanos(time)? }
            }
            ["stall", contender, in_flight, p50, p99, max] => {
                let ranks = [nanos(p50)?, nanos(p99)?, nanos(max)?];
                Self::Stall { contender: contender.to_owned(), in_flight: in_flight.parse().ok()?, ranks }
            }
            ["missing", who, reason] => Self::Missing { who: who.to_owned(), reason: reason.to_owned() },
            _ => return None,
        })
    }
}

/// Everything that all hosts have told.
#[derive(Default)]
pub(crate) struct Report {
    columns: Vec<&'static str>,
    /// The contenders, in the order of their appearance.
    rows: Vec<String>,
    /// By column, row and number in flight.
    times: BTreeMap<(usize, usize, usize), Vec<Duration>>,
    stalls: BTreeMap<(usize, usize, usize), [Duration; 3]>,
    notes: Vec<String>,
}

impl Report {
    /// Begins a column.
    pub(crate) fn begin(&mut self, column: &'static str) {
        self.columns.push(column);
    }

    /// Takes in what the host of the last column has told.
    pub(crate) fn add(&mut self, record: Record) {
        let column = self.columns.len().saturating_sub(1);
        match record {
            Record::Alive => {}
            Record::Row { contender } => drop(self.row(contender)),
            Record::Time { contender, in_flight, time } => {
                let row = self.row(contender);
                self.times.entry((column, row, in_flight)).or_default().push(time);
            }
            Record::Stall { contender, in_flight, ranks } => {
                let row = self.row(contender);
                self.stalls.insert((column, row, in_flight), ranks);
            }
            Record::Missing { who, reason } => self.note(&who, &reason),
        }
    }

    /// Notes why cells of the last column stay empty.
    pub(crate) fn note(&mut self, who: &str, reason: &str) {
        let column = self.columns.last().copied().unwrap_or_default();
        self.notes.push(format!("- {column}, {who}: {reason}"));
    }

    /// The tables, as text.
    pub(crate) fn tables(&self, rounds: usize) -> String {
        let mut text = String::new();
        for in_flight in IN_FLIGHT {
            let _ = writeln!(
                text,
                "From start to reaped, {in_flight} in flight, µs a program: median of {rounds} rounds, min..max{}",
                if self.rows.iter().any(|row| row == REFERENCE) { format!(", times {REFERENCE}") } else { String::new() }
            );
            text += &self.table(|column, row| self.time_cell(column, row, in_flight));
        }
        let in_flight = IN_FLIGHT[0];
        let _ = writeln!(text, "Stall: the time inside the starting call, {in_flight} in flight, µs: p50 p99 max of all rounds");
        text += &self.table(|column, row| {
            let ranks = self.stalls.get(&(column, row, in_flight))?;
            Some(ranks.iter().copied().map(micros).collect())
        });
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    fn row(&mut self, contender: String) -> usize {
        self.rows.iter().position(|row| *row == contender).unwrap_or_else(|| {
            self.rows.push(contender);
            self.rows.len() - 1
        })
    }

    fn time_cell(&self, column: usize, row: usize, in_flight: usize) -> Option<Vec<String>> {
        let times = self.times.get(&(column, row, in_flight))?;
        let (median, [min, max]) = (median(times), [times.iter().min()?, times.iter().max()?]);
        let mut cell = vec![micros(median), format!("{}..{}", micros(*min), micros(*max))];
        let reference = self.rows.iter().position(|row| row == REFERENCE);
        if let Some(reference) = reference.and_then(|row| self.times.get(&(column, row, in_flight))) {
            cell.push(format!("x{:.1}", median.as_secs_f64() / self::median(reference).as_secs_f64()));
        }
        Some(cell)
    }

    /// Lays the parts of all cells out below each other.
    fn table(&self, cell: impl Fn(usize, usize) -> Option<Vec<String>>) -> String {
        let name_width = self.rows.iter().map(String::len).max().unwrap_or_default();
        let mut lines: Vec<String> = vec![" ".repeat(name_width)];
        lines.extend(self.rows.iter().map(|row| format!("{row:name_width$}")));
        for (column, name) in self.columns.iter().enumerate() {
            let cells: Vec<Vec<String>> =
                (0..self.rows.len()).map(|row| cell(column, row).unwrap_or_else(|| vec!["-".to_owned()])).collect();
            let parts = cells.iter().map(Vec::len).max().unwrap_or_default();
            let widths: Vec<usize> =
                (0..parts).map(|part| cells.iter().filter_map(|cell| cell.get(part)).map(String::len).max().unwrap_or_default()).collect();
            let width = (widths.iter().sum::<usize>() + parts.saturating_sub(1)).max(name.len());
            let _ = write!(lines[0], "  | {name:width$}");
            for (line, cell) in lines[1..].iter_mut().zip(cells) {
                let padded = |(part, width): (usize, &usize)| format!("{:>width$}", cell.get(part).map_or("", String::as_str));
                let text: Vec<String> = widths.iter().enumerate().map(padded).collect();
                let _ = write!(line, "  | {:width$}", text.join(" "));
            }
        }
        lines.iter().map(|line| line.trim_end().to_owned() + "\n").chain(["\n".to_owned()]).collect()
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Microseconds, in about three digits.
fn micros(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 10.0 { format!("{micros:.1}") } else { format!("{micros:.0}") }
}
