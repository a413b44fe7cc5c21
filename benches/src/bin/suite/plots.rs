//! Which plots there are, and of which tables they are made.

use std::fs;
use std::path::Path;

use iron_exec_benches::{Result, Results, Table};

use crate::draw::{Axis, BarPanel, Bars, Figure, Line, LinePanel, Row};

/// A plot, and the file that it is in.
struct Plot {
    name: &'static str,
    title: &'static str,
    /// What is better.
    subtitle: &'static str,
    parts: Parts,
}

enum Parts {
    /// A row of panels for each.
    Bars(&'static [BarPart]),
    /// Rows of panels.
    Lines(&'static [&'static [LinePart]]),
}

/// A table as bars, with a panel for each of its columns.
struct BarPart {
    table: &'static str,
    title: &'static str,
    /// The columns, and what they are called; if empty all, as they are called in the table.
    columns: &'static [(&'static str, &'static str)],
    /// The unit of all columns, which share an axis then. If there is none, each column names its own.
    unit: Option<&'static str>,
    is_log: bool,
    figures: Figures,
}

/// Columns of a table as lines, over the numbers that they stand for.
struct LinePart {
    table: &'static str,
    title: &'static str,
    /// For each point its number, how that is written, and the column.
    points: &'static [(f64, &'static str, &'static str)],
    x: &'static str,
    y: &'static str,
    figures: Figures,
    /// Whether all rows of ours are drawn, or only that of the best rung, unconfirmed and [`CONFIRMED`].
    has_all: bool,
    /// What stands before the names of its rows.
    prefix: &'static str,
}

/// What is drawn of a table's figures.
#[derive(Clone, Copy)]
enum Figures {
    AsTheyAre,
    /// How many a second, of microseconds for one.
    PerSecond,
}

/// The row of iron-exec that waits in `start` until the program is executed, as it does by default and the peers do.
const CONFIRMED: &str = "iron-exec, confirmed";

const FDS: &[(&str, &str)] = &[("plain", "few open fds"), ("5k fds later", "5,000 opened later"), ("15k fds later", "15,000 opened later")];

const BUSY: &[(&str, &str)] = &[("busy p50", "p50"), ("busy p99", "p99"), ("busy max", "maximum")];

const fn bars_of(table: &'static str, title: &'static str, unit: &'static str) -> BarPart {
    BarPart { table, title, columns: &[], unit: Some(unit), is_log: false, figures: Figures::AsTheyAre }
}

const fn job(table: &'static str, title: &'static str) -> BarPart {
    BarPart { columns: FDS, figures: Figures::PerSecond, ..bars_of(table, title, "jobs a second") }
}

const fn log(table: &'static str, title: &'static str) -> BarPart {
    BarPart { unit: None, ..bars_of(table, title, "") }
}

const fn latency(table: &'static str, title: &'static str) -> BarPart {
    BarPart { is_log: true, ..bars_of(table, title, "µs") }
}

const SPAWN: LinePart = LinePart {
    table: "spawn-64",
    title: "The more files the host has open",
    points: &[(0.0, "0", "plain"), (5_000.0, "5,000", "5k fds later"), (15_000.0, "15,000", "15k fds later")],
    x: "file descriptors opened after the worker was built",
    y: "programs a second",
    figures: Figures::PerSecond,
    has_all: false,
    prefix: "",
};

const fn density(table: &'static str, title: &'static str, unit: &'static str) -> LinePart {
    LinePart {
        table,
        title,
        // The last is as many as there can be under the limit of descriptors.
        points: &[(100.0, "100", "100"), (1_000.0, "1k", "1,000"), (4_900.0, "4.9k", "4,900"), (6_366.0, "most", "most")],
        x: "idle jobs",
        y: unit,
        figures: Figures::AsTheyAre,
        has_all: true,
        prefix: "",
    }
}

const PLOTS: [Plot; 7] = [
    Plot {
        name: "spawn",
        title: "Programs started and reaped in a second",
        subtitle: "Higher is better. A tiny static program, 64 in flight. Logarithmic scale",
        parts: Parts::Lines(&[&[
            SPAWN,
            LinePart {
                title: "The more memory the host has",
                points: &[(10.0, "10 MB", "plain"), (1024.0, "1 GiB", "1 GiB"), (4096.0, "4 GiB", "4 GiB")],
                x: "resident memory of the host",
                ..SPAWN
            },
        ]]),
    },
    Plot {
        name: "stall",
        title: "How long a start holds the caller up while all CPUs are busy",
        subtitle: "Lower is better. Logarithmic scale",
        parts: Parts::Bars(&[BarPart { columns: BUSY, ..latency("stall", "Time inside the starting call") }]),
    },
    Plot {
        name: "job",
        title: "Whole jobs in a second",
        subtitle: "Higher is better. A job has a cgroup, a log, two pipes, and a status",
        parts: Parts::Bars(&[job("job-1", "1 in flight"), job("job-64", "64 in flight"), job("job-512", "512 in flight")]),
    },
    Plot {
        name: "logs",
        title: "Log throughput of one job",
        subtitle: "GB/s: higher is better. CPU seconds of the sink for a GB: lower is better",
        parts: Parts::Bars(&[
            log("logs-chunks", "Written in chunks of 64 KiB"),
            log("logs-lines", "Lines through stdio"),
            log("logs-unbuffered", "Each line by a write of its own"),
        ]),
    },
    Plot {
        name: "fanin",
        title: "Lines of many jobs into as many logs",
        subtitle: "Higher is better",
        parts: Parts::Bars(&[
            bars_of("fanin-lines", "Single lines", "million lines a second"),
            bars_of("fanin-bursts", "Bursts of ten lines", "million lines a second"),
        ]),
    },
    Plot {
        name: "density",
        title: "Thousands of idle jobs in one process",
        subtitle: "Lower is better. Logarithmic scale",
        parts: Parts::Lines(&[
            &[density("density-start", "Start", "µs a job"), density("density-memory", "Own memory of the host", "bytes a job")],
            &[
                LinePart { prefix: "iron-exec, ", ..density("density-turn", "A turn with a line of some jobs", "µs") },
                density("density-end", "Kill all and reap", "µs a job"),
            ],
        ]),
    },
    Plot {
        name: "latency",
        title: "Latency: how soon the waiting code knows",
        subtitle: "Lower is better. Logarithmic scale",
        parts: Parts::Bars(&[
            latency("latency-exit", "A process has ended"),
            latency("latency-line", "A job has written a line"),
            latency("latency-stop", "The whole tree of a stopped job is gone"),
        ]),
    },
];

/// Draws all plots whose tables are there; what has to be known about the others.
pub(crate) fn write(directory: &Path, found: &[Results]) -> Result<Vec<String>> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let mut warnings = Vec::new();
    for plot in &PLOTS {
        let path = directory.join(format!("{}.svg", plot.name));
        match figure(plot, found) {
            Ok(figure) => fs::write(&path, figure.svg()?).map_err(|error| failed(&path, error))?,
            Err(missing) => warnings.push(format!("{}: not drawn anew: {missing}", path.display())),
        }
    }
    Ok(warnings)
}

/// What is drawn, or what is missing.
type Found<T> = std::result::Result<T, String>;

/// A plot with its figures, or what is missing.
fn figure(plot: &Plot, found: &[Results]) -> Found<Figure> {
    let table = |id: &str| found.iter().find_map(|results| results.table(id)).ok_or_else(|| format!("there is no table {id}"));
    let rows: Found<Vec<Row>> = match &plot.parts {
        Parts::Bars(parts) => parts.iter().map(|part| Ok(Row::Bars(bars(part, table(part.table)?)?))).collect(),
        Parts::Lines(rows) => {
            let panels =
                |parts: &[LinePart]| -> Found<Vec<LinePanel>> { parts.iter().map(|part| lines(part, table(part.table)?)).collect() };
            rows.iter().map(|parts| Ok(Row::Lines(panels(parts)?))).collect()
        }
    };
    Ok(Figure { title: plot.title.to_owned(), subtitle: plot.subtitle.to_owned(), rows: rows? })
}

fn bars(part: &BarPart, table: &Table) -> Found<Bars> {
    let names: Vec<String> = table.rows.iter().map(|row| row.name.clone()).filter(|name| !is_other_floor(name)).collect();
    let cell = |row: &str, column: &str| {
        let rounds: Vec<f64> = table.rounds(row, column).iter().map(|figure| part.figures.of(*figure)).collect();
        let middle = part.figures.of(table.median(row, column)?);
        Some([middle, rounds.iter().copied().fold(f64::INFINITY, f64::min), rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max)])
    };
    let panel = |(column, title): (&str, &str)| BarPanel {
        title: title.to_owned(),
        axis: Axis { label: part.unit.unwrap_or(title).to_owned(), is_log: part.is_log },
        bars: names.iter().map(|row| cell(row, column)).collect(),
    };
    if let Some((missing, _)) = part.columns.iter().find(|(column, _)| !table.columns.iter().any(|known| known == column)) {
        return Err(format!("the table {} has no column {missing}", table.id));
    }
    let panels: Vec<BarPanel> = match part.columns {
        [] => table.columns.iter().map(|column| panel((column, column))).collect(),
        columns => columns.iter().copied().map(panel).collect(),
    };
    if panels.iter().all(|panel| panel.bars.iter().all(Option::is_none)) {
        return Err(format!("the table {} has nothing of it", table.id));
    }
    Ok(Bars { title: part.title.to_owned(), names, panels, is_common: part.unit.is_some() })
}

fn lines(part: &LinePart, table: &Table) -> Found<LinePanel> {
    // Of ours the rung that is the default.
    let ours = ["iron-exec", "iron-exec detached"].into_iter().find(|ours| table.rows.iter().any(|row| row.name == *ours));
    let is_drawn =
        |name: &str| !is_other_floor(name) && (part.has_all || ours == Some(name) || name == CONFIRMED || !name.starts_with("iron-exec"));
    let rows: Vec<&str> = table.rows.iter().map(|row| row.name.as_str()).filter(|name| is_drawn(name)).collect();
    // A machine may have too little memory for a host, or too few descriptors.
    let is_measured = |column: &str| rows.iter().any(|row| table.median(row, column).is_some());
    let points: Vec<_> = part.points.iter().filter(|(_, _, column)| is_measured(column)).collect();
    if points.len() < 2 {
        return Err(format!("the table {} has too little for \"{}\"", table.id, part.title));
    }
    let line = |row: &&str| {
        let name = if !part.has_all && ours == Some(row) { "iron-exec" } else { row };
        let value = |(_, _, column): &&(f64, &str, &str)| table.median(row, column).map(|figure| part.figures.of(figure));
        Line { name: format!("{}{name}", part.prefix), values: points.iter().map(value).collect() }
    };
    Ok(LinePanel {
        title: part.title.to_owned(),
        points: points.iter().map(|(at, text, _)| (*at, (*text).to_owned())).collect(),
        x: Axis { label: part.x.to_owned(), is_log: false },
        y: Axis { label: part.y.to_owned(), is_log: true },
        lines: rows.iter().map(line).collect(),
    })
}

/// Floors that are there to tell what makes the difference are in the tables only.
fn is_other_floor(name: &str) -> bool {
    name.starts_with("floor") && name != "floor"
}

impl Figures {
    fn of(self, figure: f64) -> f64 {
        match self {
            Self::AsTheyAre => figure,
            Self::PerSecond => 1e6 / figure,
        }
    }
}

#[cfg(test)]
mod tests {
    use iron_exec_benches::{Pace, Results, Table};

    use super::{PLOTS, figure};

    fn spawn() -> Results {
        let mut results = Results::begin("spawn", Pace::Full).unwrap();
        let mut table = Table::new("spawn-64", "µs", &[]);
        for column in ["plain", "5k fds later", "15k fds later", "1 GiB", "4 GiB"] {
            table.add("floor", column, 50.0);
            table.add("iron-exec detached", column, 60.0);
            table.add("iron-exec fork", column, 600.0);
            table.add("iron-exec, confirmed", column, 70.0);
        }
        table.add("tokio", "plain", 100.0);
        results.tables.push(table);
        results
    }

    #[test]
    fn the_headline_has_ours_and_the_peers() {
        let svg = figure(&PLOTS[0], &[spawn()]).unwrap().svg().unwrap();
        for text in ["iron-exec", "iron-exec, confirmed", "floor", "tokio", "15,000", "4 GiB"] {
            assert!(svg.contains(&format!("\n{text}\n")), "{text} is missing in {svg}");
        }
        assert!(!svg.contains("fork"), "{svg}");
    }

    #[test]
    fn a_plot_without_one_of_its_columns_says_so() {
        let mut results = Results::begin("spawn", Pace::Full).unwrap();
        results.tables.push(Table::new("stall", "µs", &["busy p50", "busy max"]));
        assert_eq!(figure(&PLOTS[1], &[results]).unwrap_err(), "the table stall has no column busy p99");
    }

    #[test]
    fn a_plot_without_its_table_says_so() {
        assert_eq!(figure(&PLOTS[1], &[spawn()]).unwrap_err(), "there is no table stall");
    }
}
