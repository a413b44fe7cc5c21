//! The mark of a log file: which worker writes it, in which format, and where in its log it stands.

use uuid::Uuid;

use crate::model::output::LogFormat;

/// What a log file's extended attribute, or a line of its worker's table, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) worker: Uuid,
    pub(crate) format: LogFormat,
    pub(crate) place: Place,
}

/// Where in its log a file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number that it has, or gets when it is rotated: 1 for the first.
    pub(crate) number: u64,
    /// The bytes of the log before it.
    pub(crate) start: u64,
}

impl Place {
    /// The place of a log's first file.
    pub(crate) const FIRST: Self = Self { number: 1, start: 0 };
}

impl Mark {
    /// `WORKER FORMAT NUMBER START`; for a first file the first two say it all.
    pub(crate) fn encode(self) -> String {
        let format = match self.format {
            LogFormat::Cri => "cri",
            LogFormat::Raw => "raw",
        };
        match self.place {
            Place::FIRST => format!("{} {format}", self.worker),
            Place { number, start } => format!("{} {format} {number} {start}", self.worker),
        }
    }

    pub(crate) fn decode(text: &str) -> Option<Self> {
        let mut words = text.trim_end().split(' ');
        let worker = words.next()?.parse().ok()?;
        let format = match words.next()? {
            "cri" => LogFormat::Cri,
            "raw" => LogFormat::Raw,
            _ => return None,
        };
        let place = match (words.next(), words.next(), words.next()) {
            (None, None, None) => Place::FIRST,
            (Some(number), Some(start), None) => Place { number: number.parse().ok()?, start: start.parse().ok()? },
            _ => return None,
        };
        Some(Self { worker, format, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for format in [LogFormat::Cri, LogFormat::Raw] {
            for place in [Place::FIRST, Place { number: 17, start: u64::MAX }] {
                let mark = Mark { worker: Uuid::from_u128(7), format, place };
                assert_eq!(Mark::decode(&mark.encode()), Some(mark));
            }
        }
        for text in [
            "",
            "x",
            "x cri",
            "00000000-0000-0000-0000-000000000000 tar",
            "00000000-0000-0000-0000-000000000000 raw 1",
            "00000000-0000-0000-0000-000000000000 raw 1 2 3",
        ] {
            assert_eq!(Mark::decode(text), None, "{text:?}");
        }
    }
}
