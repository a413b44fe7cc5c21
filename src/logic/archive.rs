//! What an archiving command is told, and what it reports: one line for each file, and none of it taken on trust.

/// The length to which the reason of a failure is cut, in characters.
const REASON_CHARS_MAX: usize = 200;

/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is stored, as an object of so many bytes.
    Stored { object_bytes: u64 },
    /// It is not, for this reason.
    Failed { reason: String },
    /// Nothing was said of it.
    Unsaid,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// What became of each file, in the order in which they were asked for.
    pub(crate) outcomes: Vec<Outcome>,
    /// Lines that are no report of a file that was asked for.
    pub(crate) strange_lines: usize,
    /// Whether it ends in the middle of a line, as it may where the command was killed.
    pub(crate) is_torn: bool,
}

/// The names as the command reads them: each with a NUL byte behind it.
pub(crate) fn names_list<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    names.into_iter().flat_map(|name| name.bytes().chain([0])).collect()
}

/// Reads a report about the files `names`. It ends at the first NUL byte; a last line without its line feed is torn, and counts for nothing. A file that is
/// reported twice is stored only if both say exactly the same.
pub(crate) fn parse_report(report: &[u8], names: &[&str]) -> Report {
    let report = report.split(|byte| *byte == 0).next().unwrap_or_default();
    let whole = memchr::memrchr(b'\n', report).map_or(0, |end| end + 1);
    let (lines, torn) = report.split_at(whole);
    let mut outcomes = vec![Outcome::Unsaid; names.len()];
    let mut strange_lines = 0;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let said = parse_line(line).and_then(|(name, outcome)| {
            let place = names.iter().position(|asked| asked.as_bytes() == name)?;
            Some((outcomes.get_mut(place)?, outcome))
        });
        match said {
            Some((place @ Outcome::Unsaid, outcome)) => *place = outcome,
            Some((place, outcome)) if *place == outcome => {}
            Some((place, _)) => *place = Outcome::Failed { reason: "it was reported twice, in different ways".to_owned() },
            None => strange_lines += 1,
        }
    }
    Report { outcomes, strange_lines, is_torn: !torn.is_empty() }
}

/// Whom a line is about, and what it says.
fn parse_line(line: &[u8]) -> Option<(&[u8], Outcome)> {
    let mut fields = line.split(|byte| *byte == b'\t');
    match fields.next()? {
        b"stored" => {
            let (bytes, sha256, name) = (fields.next()?, fields.next()?, fields.next()?);
            let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
            let is_hash = sha256.len() == SHA256_DIGITS && sha256.iter().all(u8::is_ascii_hexdigit);
            let object_bytes = std::str::from_utf8(bytes).ok()?.parse().ok()?;
            (is_number && is_hash && fields.next().is_none()).then_some((name, Outcome::Stored { object_bytes }))
        }
        b"failed" => {
            let name = fields.next_back()?;
            let reason = fields.next()?;
            Some((name, Outcome::Failed { reason: readable(reason) }))
        }
        _ => None,
    }
}

/// A text of somebody else's in a message: short, and without control characters.
pub(crate) fn readable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().take(REASON_CHARS_MAX).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(report: impl AsRef<[u8]>) -> Report {
        parse_report(report.as_ref(), &["a.log", "b.log"])
    }

    fn failed(reason: &str) -> Outcome {
        Outcome::Failed { reason: reason.to_owned() }
    }

    #[test]
    fn names_are_ended_by_nul_bytes() {
        assert_eq!(names_list(["a.log", "b.log"]), b"a.log\0b.log\0");
        assert_eq!(names_list([]), b"");
    }

    #[test]
    fn what_was_stored_and_what_failed_is_told_by_name() {
        let report = parse(format!("failed\tno such bucket\tb.log\nstored\t17\t{SHA}\ta.log\n"));
        assert_eq!(report.outcomes, [Outcome::Stored { object_bytes: 17 }, failed("no such bucket")]);
        assert_eq!((report.strange_lines, report.is_torn), (0, false));
        let padded = parse(format!("stored\t0\t{SHA}\tb.log\n\0\0\0"));
        assert_eq!(padded.outcomes, [Outcome::Unsaid, Outcome::Stored { object_bytes: 0 }]);
    }

    #[test]
    fn a_line_that_is_not_quite_right_stores_nothing() {
        for line in [
            String::new(),
            "stored".to_owned(),
            format!("stored\t1\t{SHA}"),
            format!("stored\t1\t{SHA}\ta.log\tmore"),
            format!("stored\t-1\t{SHA}\ta.log"),
            format!("stored\t+1\t{SHA}\ta.log"),
            format!("stored\t99999999999999999999\t{SHA}\ta.log"),
            format!("stored\t\t{SHA}\ta.log"),
            format!("stored\t1\t{}\ta.log", &SHA[1..]),
            format!("stored\t1\t{}x\ta.log", &SHA[1..]),
            format!("stored\t1\t{SHA}\tc.log"),
            format!("stored\t1\t{SHA}\t../a.log"),
            format!("Stored\t1\t{SHA}\ta.log"),
            format!("stored 1 {SHA} a.log"),
            "failed\ta.log".to_owned(),
        ] {
            let report = parse(format!("{line}\n"));
            assert_eq!((report.outcomes, report.strange_lines), (vec![Outcome::Unsaid; 2], 1), "{line:?}");
        }
        let torn = parse(format!("stored\t1\t{SHA}\ta.log"));
        assert_eq!((torn.outcomes, torn.strange_lines, torn.is_torn), (vec![Outcome::Unsaid; 2], 0, true));
    }

    #[test]
    fn a_report_that_contradicts_itself_stores_nothing() {
        let stored = format!("stored\t1\t{SHA}\ta.log\n");
        assert_eq!(parse(format!("{stored}{stored}")).outcomes[0], Outcome::Stored { object_bytes: 1 });
        for other in ["failed\tx\ta.log\n".to_owned(), format!("stored\t2\t{SHA}\ta.log\n")] {
            assert!(matches!(parse(format!("{stored}{other}")).outcomes[0], Outcome::Failed { .. }));
            assert!(matches!(parse(format!("{other}{stored}")).outcomes[0], Outcome::Failed { .. }));
        }
    }

    #[test]
    fn a_reason_is_short_and_cannot_steer_a_terminal() {
        let report = parse(format!("failed\t\x1b[31m{}\ta.log\n", "x".repeat(1000)));
        assert_eq!(report.outcomes[0], failed(&format!(" [31m{}", "x".repeat(195))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_and_store_only_what_was_asked_for(report in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert_eq!(parse(&report).outcomes.len(), 2);
        }

        #[test]
        fn any_lines_of_likely_words_are_taken(
            words in prop::collection::vec(prop_oneof![
                Just("stored"), Just("failed"), Just("\t"), Just("\n"), Just("1"), Just(SHA), Just("a.log"), Just("b.log"), Just("\0")
            ], 0..60)
        ) {
            let text = words.concat();
            let report = parse(&text);
            for (outcome, name) in report.outcomes.iter().zip(["a.log", "b.log"]) {
                if let Outcome::Stored { object_bytes } = outcome {
                    let line = format!("\t{SHA}\t{name}\n");
                    prop_assert!(text.contains(&line), "{}", object_bytes);
                }
            }
        }
    }
}
