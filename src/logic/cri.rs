//! The log format of Kubernetes' container runtime interface (CRI): one record a line, readable by every log collector.
//!
//! ```text
//! 2026-11-23T03:26:58.123456789Z stdout F a whole line
//! 2026-11-23T03:26:58.123456789Z stderr P the start of a line that goes on in the next record of stderr
//! ```
//!
//! A record is the time (UTC, RFC 3339 with nanoseconds), the stream, a tag, the content and a line feed, with one space between. The tag
//! is `F` (full) if the content's line ends here, in a line feed of its own; it is `P` (partial) if the line goes on in that stream's next
//! record, or if the stream ended without a line feed. So the exact bytes of a stream are the contents of its records, with a line feed
//! after each `F`.
//!
//! [`encode`] writes a [`Piece`] of a line as a record, [`Decoder`] reads records back.
//!
//! ```
//! use iron_exec::framing::cri::{self, Decoded, Decoder, Stamp};
//! use iron_exec::framing::LineSplitter;
//! use iron_exec::{OutputStream, Timestamp};
//!
//! let time = Timestamp::from_unix_nanos(1_795_404_418_123_456_789);
//! let (mut splitter, mut stamp, mut log) = (LineSplitter::new(16 * 1024), Stamp::new(), Vec::new());
//! splitter.push(b"hello\nworld\n", |piece| cri::encode(&mut log, stamp.at(time), OutputStream::Stdout, piece));
//! assert_eq!(
//!     log,
//!     b"2026-11-23T03:26:58.123456789Z stdout F hello\n\
//!       2026-11-23T03:26:58.123456789Z stdout F world\n"
//! );
//!
//! let (mut decoder, mut input, mut bytes) = (Decoder::new(), log.as_slice(), Vec::new());
//! loop {
//!     match decoder.decode(input) {
//!         Decoded::Record { partial, content, len, .. } => {
//!             bytes.extend_from_slice(content);
//!             if !partial {
//!                 bytes.push(b'\n');
//!             }
//!             input = &input[len..];
//!         }
//!         Decoded::Dropped { len, .. } => input = &input[len..], // says that output is missing
//!         Decoded::Malformed { len } => input = &input[len..],   // not a record: skip the line
//!         Decoded::Incomplete => break,                          // read more
//!     }
//! }
//! assert_eq!(bytes, b"hello\nworld\n");
//! ```

use memchr::memchr;

use crate::logic::lines::{Ending, Piece};
use crate::model::output::{OutputStream, Timestamp};

/// The length of a [`Stamp`] in bytes: `2026-11-23T03:26:58.123456789Z`.
pub const STAMP_BYTES: usize = 30;

/// How many bytes stand before the content of every record [`encode`] writes: the stamp, the stream, the tag and a space after each.
pub const HEADER_BYTES: usize = STAMP_BYTES + TAGS_BYTES;

/// How many bytes longer than its content a record of [`encode`] is: the header and the line feed.
pub const RECORD_OVERHEAD_BYTES: usize = HEADER_BYTES + 1;

/// The part of the header after the stamp: ` stdout F `.
const TAGS_BYTES: usize = 10;

/// The part of a stamp before the fraction: `2026-11-23T03:26:58`.
const CALENDAR_BYTES: usize = 19;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 86_400;

/// 1970-01-01 00:00:00 UTC.
const EPOCH: [u8; STAMP_BYTES] = *b"1970-01-01T00:00:00.000000000Z";

/// Writes times the way records carry them. Keeps the last one: within a second only the fraction is written anew.
///
/// ```
/// use iron_exec::{Timestamp, framing::cri::Stamp};
///
/// let mut stamp = Stamp::new();
/// assert_eq!(stamp.at(Timestamp::from_unix_nanos(0)), b"1970-01-01T00:00:00.000000000Z");
/// assert_eq!(stamp.at(Timestamp::from_unix_nanos(u64::MAX)), b"2554-07-21T23:34:33.709551615Z");
/// ```
#[derive(Clone, Debug)]
pub struct Stamp {
    time: Timestamp,
    text: [u8; STAMP_BYTES],
}

impl Stamp {
    /// A formatter that has formatted nothing yet.
    pub fn new() -> Self {
        Self { time: Timestamp::from_unix_nanos(0), text: EPOCH }
    }

    /// The text of `time`: RFC 3339 in UTC with nine fraction digits. Every [`Timestamp`] (the years 1970 to 2554) has one.
    pub fn at(&mut self, time: Timestamp) -> &[u8; STAMP_BYTES] {
        if time != self.time {
            let nanos = time.as_unix_nanos();
            let seconds = nanos / NANOS_PER_SECOND;
            if seconds != self.time.as_unix_nanos() / NANOS_PER_SECOND {
                let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY);
                let second = seconds % SECONDS_PER_DAY;
                write_digits(&mut self.text[0..4], year);
                write_digits(&mut self.text[5..7], month);
                write_digits(&mut self.text[8..10], day);
                write_digits(&mut self.text[11..13], second / 3600);
                write_digits(&mut self.text[14..16], second / 60 % 60);
                write_digits(&mut self.text[17..19], second % 60);
            }
            write_digits(&mut self.text[20..29], nanos % NANOS_PER_SECOND);
            self.time = time;
        }
        &self.text
    }
}

impl Default for Stamp {
    fn default() -> Self {
        Self::new()
    }
}

/// Appends one record to `out`: `piece`, which came from `stream` at the time of which `stamp` is the text (see [`Stamp::at`]).
///
/// The record is [`RECORD_OVERHEAD_BYTES`] longer than the piece. The format has no escapes: the piece must not hold a line feed, or what
/// follows it will be taken for a record of its own. The pieces of a [`LineSplitter`](crate::framing::LineSplitter) never do.
pub fn encode(out: &mut Vec<u8>, stamp: &[u8; STAMP_BYTES], stream: OutputStream, piece: Piece<'_>) {
    let tags: &[u8; TAGS_BYTES] = match (stream, piece.ending) {
        (OutputStream::Stdout, Ending::Newline) => b" stdout F ",
        (OutputStream::Stdout, Ending::Partial) => b" stdout P ",
        (OutputStream::Stderr, Ending::Newline) => b" stderr F ",
        (OutputStream::Stderr, Ending::Partial) => b" stderr P ",
    };
    let mut header = [0; HEADER_BYTES];
    header[..STAMP_BYTES].copy_from_slice(stamp);
    header[STAMP_BYTES..].copy_from_slice(tags);
    out.reserve(piece.bytes.len().saturating_add(RECORD_OVERHEAD_BYTES));
    out.extend_from_slice(&header);
    out.extend_from_slice(piece.bytes);
    out.push(b'\n');
}

/// What stands in place of the `Z` in the time of a record that tells of missing output: the same to every reader of RFC 3339, but no job can
/// make its output look like that.
const DROPPED_ZONE: &[u8] = b"+00:00";

/// The content of such a record is this, the number of bytes, and what follows.
const DROPPED_START: &[u8] = b"[iron-exec: ";
const DROPPED_MIDDLE: &[u8] = b" bytes of output are missing here: ";

/// The most digits of that number.
const DROPPED_DIGITS: usize = 20;

/// Appends a record that says that `bytes` bytes of the job's output are missing here, and why: a line for other readers, and
/// [`Decoded::Dropped`] for a [`Decoder`]. `reason` must hold no line feed.
///
/// ```
/// use iron_exec::Timestamp;
/// use iron_exec::framing::cri::{self, Stamp};
///
/// let (mut log, mut stamp) = (Vec::new(), Stamp::new());
/// cri::encode_dropped(&mut log, stamp.at(Timestamp::from_unix_nanos(0)), 1234, "no space left on device");
/// let record = "1970-01-01T00:00:00.000000000+00:00 stdout F \
///               [iron-exec: 1234 bytes of output are missing here: no space left on device]";
/// assert_eq!(std::str::from_utf8(&log)?.trim_end(), record);
/// # Ok::<(), std::str::Utf8Error>(())
/// ```
///
/// The length of the record does not depend on the number: with another one, for the same reason, it can be overwritten in its place.
pub fn encode_dropped(out: &mut Vec<u8>, stamp: &[u8; STAMP_BYTES], bytes: u64, reason: &str) {
    let number = bytes.to_string();
    let (time, _) = stamp.split_at(STAMP_BYTES - 1);
    for part in [time, DROPPED_ZONE, b" stdout F ", DROPPED_START, number.as_bytes(), DROPPED_MIDDLE, reason.as_bytes(), b"]"] {
        out.extend_from_slice(part);
    }
    out.extend(std::iter::repeat_n(b' ', DROPPED_DIGITS.saturating_sub(number.len())));
    out.push(b'\n');
}

/// What a [`Decoder`] found at the start of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A record.
    Record {
        /// When the content was read from the job.
        time: Timestamp,
        /// Where the content came from.
        stream: OutputStream,
        /// Whether the content's line goes on in the stream's next record (or has no end, if there is none). Otherwise a line feed
        /// belongs after the content.
        partial: bool,
        /// What was written: any bytes but a line feed, also none at all.
        content: &'a [u8],
        /// The length in bytes of the whole record, its final line feed included.
        len: usize,
    },
    /// No output, but the word of [`encode_dropped`] that some is missing here.
    Dropped {
        /// When that was written.
        time: Timestamp,
        /// How many bytes of the job's output are missing.
        bytes: u64,
        /// The length in bytes of the whole record, its final line feed included.
        len: usize,
    },
    /// No line feed yet: more bytes are needed. It is for the caller to bound how many.
    Incomplete,
    /// A line that is no record.
    Malformed {
        /// The length in bytes of the line, its line feed included: what to skip. The next record, if there is one, starts behind it.
        len: usize,
    },
}

/// Reads records, those of [`encode`] and those of other writers; the [module](self) shows how.
///
/// What is taken is what Kubernetes takes: a time in RFC 3339 with up to nine fraction digits and `Z` or an offset (`+01:00`); tags after
/// the first (`F:a:b`) mean nothing. A time that is not in the calendar, or not in the range of [`Timestamp`] (1970 to 2554), and a first
/// tag other than `P` and `F` make a record malformed.
///
/// The input may be cut anywhere, and may be hostile: nothing is allocated, and a line that is no record costs that line. All the decoder
/// remembers is the last time: records that were read at once share it, and others still share the second. It changes nothing in what is
/// decoded, so one decoder may be used for any number of logs.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// The last time of a stamp's form, as it was written.
    text: [u8; STAMP_BYTES],
    /// The whole seconds of `text`, from the Unix epoch.
    seconds: i64,
    /// What `text` says.
    time: Timestamp,
}

impl Decoder {
    /// A decoder that has decoded nothing yet.
    pub fn new() -> Self {
        Self { text: EPOCH, seconds: 0, time: Timestamp::from_unix_nanos(0) }
    }

    /// Decodes what stands at the start of `input`, up to the first line feed. An empty input is [`Decoded::Incomplete`].
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Decoded<'a> {
        if let Some((header, rest)) = input.split_first_chunk::<HEADER_BYTES>()
            && let Some((time, stream, partial)) = self.decode_header(header)
        {
            return match memchr(b'\n', rest) {
                Some(end) => Decoded::Record { time, stream, partial, content: &rest[..end], len: HEADER_BYTES + end + 1 },
                None => Decoded::Incomplete,
            };
        }
        let Some(end) = memchr(b'\n', input) else { return Decoded::Incomplete };
        decode_line(&input[..end]).unwrap_or(Decoded::Malformed { len: end + 1 })
    }

    /// The fast way: the header of a record of [`encode`]. A header that holds a line feed is none.
    fn decode_header(&mut self, header: &[u8; HEADER_BYTES]) -> Option<(Timestamp, OutputStream, bool)> {
        let (text, tags) = header.split_first_chunk::<STAMP_BYTES>()?;
        let (stream, partial) = match tags {
            b" stdout F " => (OutputStream::Stdout, false),
            b" stdout P " => (OutputStream::Stdout, true),
            b" stderr F " => (OutputStream::Stderr, false),
            b" stderr P " => (OutputStream::Stderr, true),
            _ => return None,
        };
        if *text != self.text {
            let (calendar, rest) = text.split_first_chunk::<CALENDAR_BYTES>()?;
            let [b'.', fraction @ .., b'Z'] = rest else { return None };
            let seconds = if self.text.starts_with(calendar) { self.seconds } else { seconds_of_calendar(calendar)? };
            let time = timestamp(seconds, nanos_of_fraction(fraction)?)?;
            (self.text, self.seconds, self.time) = (*text, seconds, time);
        }
        Some((self.time, stream, partial))
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// The general way: a whole line without its line feed.
fn decode_line(line: &[u8]) -> Option<Decoded<'_>> {
    let (time, rest) = split_at_space(line)?;
    let (stream, rest) = split_at_space(rest)?;
    let (tags, content) = split_at_space(rest)?;
    let stream = match stream {
        b"stdout" => OutputStream::Stdout,
        b"stderr" => OutputStream::Stderr,
        _ => return None,
    };
    let partial = match tags {
        [b'P'] | [b'P', b':', ..] => true,
        [b'F'] | [b'F', b':', ..] => false,
        _ => return None,
    };
    let (dropped, time, len) = (dropped_bytes(time, content), decode_time(time)?, line.len() + 1);
    Some(match dropped {
        Some(bytes) => Decoded::Dropped { time, bytes, len },
        None => Decoded::Record { time, stream, partial, content, len },
    })
}

/// The number in a record of [`encode_dropped`].
fn dropped_bytes(time: &[u8], content: &[u8]) -> Option<u64> {
    let rest = content.strip_prefix(DROPPED_START).filter(|_| time.ends_with(DROPPED_ZONE))?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = rest.split_at(digits);
    let is_one = rest.starts_with(DROPPED_MIDDLE) && rest.trim_ascii_end().ends_with(b"]");
    std::str::from_utf8(number).ok()?.parse().ok().filter(|_| is_one)
}

fn split_at_space(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr(b' ', bytes)?;
    Some((&bytes[..space], &bytes[space + 1..]))
}

/// An RFC 3339 time as Go's `2006-01-02T15:04:05.999999999Z07:00` reads it: no leap seconds, `T` and `Z` in upper case.
fn decode_time(text: &[u8]) -> Option<Timestamp> {
    let (calendar, rest) = text.split_first_chunk::<CALENDAR_BYTES>()?;
    let (nanos, zone) = match rest {
        [b'.', fraction @ ..] => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (fraction, zone) = fraction.split_at(digits);
            (nanos_of_fraction(fraction)?, zone)
        }
        zone => (0, zone),
    };
    let offset = match *zone {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let seconds = number(&[h1, h2], 23)? * 3600 + number(&[m1, m2], 59)? * 60;
            if sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };

    timestamp(seconds_of_calendar(calendar)? - offset, nanos)
}

/// The seconds since the Unix epoch of `2026-11-23T03:26:58`.
fn seconds_of_calendar(calendar: &[u8; CALENDAR_BYTES]) -> Option<i64> {
    let &[y1, y2, y3, y4, b'-', mo1, mo2, b'-', d1, d2, b'T', h1, h2, b':', mi1, mi2, b':', s1, s2] = calendar else { return None };
    let year = number(&[y1, y2, y3, y4], 9999)?;
    let month = number(&[mo1, mo2], 12)?;
    let day = number(&[d1, d2], 31)?;
    if month == 0 || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    let second = number(&[h1, h2], 23)? * 3600 + number(&[mi1, mi2], 59)? * 60 + number(&[s1, s2], 59)?;
    Some(days_from_civil(year, month, day) * SECONDS_PER_DAY as i64 + second)
}

fn timestamp(seconds: i64, nanos: u64) -> Option<Timestamp> {
    let nanos = u64::try_from(seconds).ok()?.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)?;
    Some(Timestamp::from_unix_nanos(nanos))
}

/// The number that these digits, nine at most, write, if they are digits and it is at most `max`.
fn number(digits: &[u8], max: i64) -> Option<i64> {
    let mut number = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + i64::from(digit);
    }
    (number <= max).then_some(number)
}

/// The nanoseconds of one to nine fraction digits.
fn nanos_of_fraction(digits: &[u8]) -> Option<u64> {
    if !(1..=9).contains(&digits.len()) {
        return None;
    }
    let nanos = number(digits, 999_999_999)?;
    Some((digits.len()..9).fold(nanos as u64, |nanos, _| nanos * 10))
}

/// Fills `text` with the last decimal digits of `number`, with leading zeros.
fn write_digits(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8; // 0 to 9
        number /= 10;
    }
}

/// The year, month and day (from 1) of a day, given as days since 1970-01-01, in the proleptic Gregorian calendar.
///
/// After Howard Hinnant's "chrono-compatible low-level date algorithms": years start in March, so that a leap day is a year's last, and
/// come in eras of 400 with the same number of days each.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let since_year_0 = days + 719_468;
    let era = since_year_0 / 146_097;
    let day_of_era = since_year_0 % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`], for the years 0 to 9999: negative before 1970.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use memchr::memchr_iter;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use regex::bytes::Regex;

    use super::*;
    use crate::logic::lines::LineSplitter;

    const NOON: Timestamp = Timestamp::from_unix_nanos(1_795_404_418_123_456_789);
    const NOON_TEXT: &[u8; STAMP_BYTES] = b"2026-11-23T03:26:58.123456789Z";

    /// A record as a test compares it: time, stream, partial, content.
    type Parts = (Timestamp, OutputStream, bool, Vec<u8>);

    /// The records of a whole log, the lines that are none, and what is left behind the last line feed.
    fn decode_all(mut input: &[u8]) -> (Vec<Parts>, usize, &[u8]) {
        let (mut decoder, mut records, mut malformed) = (Decoder::new(), Vec::new(), 0);
        loop {
            let len = match decoder.decode(input) {
                Decoded::Record { time, stream, partial, content, len } => {
                    records.push((time, stream, partial, content.to_vec()));
                    len
                }
                Decoded::Dropped { .. } => panic!("no output is missing in these tests"),
                Decoded::Malformed { len } => {
                    malformed += 1;
                    len
                }
                Decoded::Incomplete => return (records, malformed, input),
            };
            input = &input[len..];
        }
    }

    fn decode_one(line: &str) -> Option<Parts> {
        let (mut records, malformed, rest) = decode_all(line.as_bytes());
        assert!(records.len() + malformed == 1 && rest.is_empty(), "{line:?}");
        records.pop()
    }

    fn time_of(text: &str) -> Option<u64> {
        decode_one(&format!("{text} stdout F x\n")).map(|(time, ..)| time.as_unix_nanos())
    }

    #[test]
    fn a_record_is_time_stream_tag_and_content() {
        let mut out = Vec::new();
        encode(&mut out, NOON_TEXT, OutputStream::Stdout, Piece { bytes: b"a line", ending: Ending::Newline });
        encode(&mut out, NOON_TEXT, OutputStream::Stderr, Piece { bytes: b"", ending: Ending::Partial });
        assert_eq!(out, b"2026-11-23T03:26:58.123456789Z stdout F a line\n2026-11-23T03:26:58.123456789Z stderr P \n");
        assert_eq!(out.len(), b"a line".len() + 2 * RECORD_OVERHEAD_BYTES);
        assert_eq!(
            decode_all(&out).0,
            [(NOON, OutputStream::Stdout, false, b"a line".to_vec()), (NOON, OutputStream::Stderr, true, Vec::new())]
        );
    }

    #[test]
    fn a_stamp_is_right_at_the_ends_of_days_months_and_years() {
        let mut stamp = Stamp::new();
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (86_399, "1970-01-01T23:59:59"),
            (86_400, "1970-01-02T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (18_446_744_073, "2554-07-21T23:34:33"),
        ] {
            let time = Timestamp::from_unix_nanos(seconds * NANOS_PER_SECOND);
            let expected = format!("{text}.000000000Z");
            assert_eq!(str::from_utf8(stamp.at(time)), Ok(expected.as_str()));
            assert_eq!(time_of(&expected), Some(time.as_unix_nanos()));
        }
    }

    #[test]
    fn every_day_of_the_range_has_its_date() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..=u64::MAX / NANOS_PER_SECOND / SECONDS_PER_DAY {
            assert_eq!(civil_from_days(days), (year, month, day));
            assert_eq!(days_from_civil(year as i64, month as i64, day as i64), days as i64);
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            let last = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize - 1];
            assert_eq!(days_in_month(year as i64, month as i64), last as i64);
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (2554, 7, 22));
    }

    #[test]
    fn a_time_may_have_up_to_nine_fraction_digits() {
        let whole = 1_795_404_418_000_000_000;
        assert_eq!(time_of("2026-11-23T03:26:58Z"), Some(whole));
        assert_eq!(time_of("2026-11-23T03:26:58.5Z"), Some(whole + 500_000_000));
        assert_eq!(time_of("2026-11-23T03:26:58.000001Z"), Some(whole + 1000));
        assert_eq!(time_of("2026-11-23T03:26:58.000000001Z"), Some(whole + 1));
        assert_eq!(time_of("2026-11-23T03:26:58.Z"), None);
        assert_eq!(time_of("2026-11-23T03:26:58.0000000001Z"), None);
    }

    #[test]
    fn a_time_may_have_an_offset() {
        let utc = time_of("2026-11-23T03:26:58.5Z");
        assert_eq!(time_of("2026-11-23T03:26:58.5+00:00"), utc);
        assert_eq!(time_of("2026-11-23T09:11:58.5+05:45"), utc);
        assert_eq!(time_of("2026-11-22T19:26:58.500000000-08:00"), utc);
        assert_eq!(time_of("2026-11-22T19:26:58.5000-08:00"), utc); // 30 bytes, like a stamp
        assert_eq!(time_of("1969-12-31T19:00:00-05:00"), Some(0));
    }

    #[test]
    fn a_time_out_of_calendar_or_range_is_malformed() {
        for text in [
            "",
            "x",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-02-30T00:00:00.000000000Z",
            "2026-04-31T00:00:00Z",
            "2026-01-32T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T25:00:00.000000000Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01t00:00:00Z",
            "2026-01-01T00:00:00z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+00:60",
            "2026-01-01T00:00:00+0000",
            "2026-01-01T00:00:00ZZ",
            "2026-01-01T00:00:0:Z",
            "+026-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "1969-12-31T23:59:59.999999999Z",
            "1970-01-01T00:00:00+00:01",
            "0000-01-01T00:00:00Z",
            "2554-07-21T23:34:33.709551616Z",
            "2554-07-21T23:34:34Z",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(time_of(text), None, "{text}");
        }
        assert_eq!(time_of("2554-07-21T23:34:33.709551615Z"), Some(u64::MAX));
    }

    #[test]
    fn further_tags_mean_nothing() {
        let time = "2026-11-23T03:26:58.123456789Z";
        assert_eq!(decode_one(&format!("{time} stdout F:a:b x y\n")), Some((NOON, OutputStream::Stdout, false, b"x y".to_vec())));
        assert_eq!(decode_one(&format!("{time} stderr P: x\n")), Some((NOON, OutputStream::Stderr, true, b"x".to_vec())));
    }

    #[test]
    fn the_word_of_missing_output_is_a_record_to_others_and_cannot_be_forged_by_a_job() {
        let (mut log, mut length) = (Vec::new(), None);
        for bytes in [0, 7, 1_234_567, u64::MAX] {
            log.clear();
            encode_dropped(&mut log, NOON_TEXT, bytes, "no space left on device");
            assert_eq!(Decoder::new().decode(&log), Decoded::Dropped { time: NOON, bytes, len: log.len() });
            assert_eq!(*length.get_or_insert(log.len()), log.len(), "it is overwritten in its place");
            let line = log.strip_suffix(b"\n").unwrap();
            let (time, stream, partial, content) = fluent_bit(line).unwrap();
            assert_eq!((time, stream, partial), (&b"2026-11-23T03:26:58.123456789+00:00"[..], OutputStream::Stdout, false));
            assert_eq!(kubelet(line), Some([time, b"stdout", b"F", content]));
            let mut forged = Vec::new();
            encode(&mut forged, NOON_TEXT, OutputStream::Stdout, Piece { bytes: content, ending: Ending::Newline });
            assert!(matches!(Decoder::new().decode(&forged), Decoded::Record { content: found, .. } if found == content));
        }
        for content in
            ["", "[iron-exec: ", "[iron-exec: 1 bytes of output are missing here: ", "[iron-exec: x bytes of output are missing here: y]"]
        {
            let line = format!("2026-11-23T03:26:58+00:00 stdout F {content}\n");
            assert!(matches!(Decoder::new().decode(line.as_bytes()), Decoded::Record { .. }), "{content:?}");
        }
    }

    #[test]
    fn a_line_that_is_no_record_is_malformed() {
        let time = "2026-11-23T03:26:58.123456789Z";
        for rest in [
            "",
            " ",
            " stdout",
            " stdout ",
            " stdout F",
            " stdout  F x",
            "  stdout F x",
            " stdin F x",
            " STDOUT F x",
            " stdoutt F x",
            " stdout X x",
            " stdout  x",
            " stdout FF x",
            " stdout PP x",
            " stdout f x",
            " stdout :F x",
            "\tstdout\tF\tx",
        ] {
            assert_eq!(decode_one(&format!("{time}{rest}\n")), None, "{rest:?}");
        }
    }

    #[test]
    fn content_may_be_any_bytes_but_a_line_feed() {
        for content in [&b""[..], b" ", b"\r", b"\0", b"\xff\xfe", b" stdout F x", NOON_TEXT] {
            let line = [&NOON_TEXT[..], b" stdout F ", content, b"\n"].concat();
            let record = Decoded::Record { time: NOON, stream: OutputStream::Stdout, partial: false, content, len: line.len() };
            assert_eq!(Decoder::new().decode(&line), record);
        }
    }

    #[test]
    fn a_header_cut_by_a_line_feed_does_not_reach_into_the_next_line() {
        let (records, malformed, rest) =
            decode_all(b"2026-11-23T03:26:58.123456789Z stdout F\n2026-11-23T03:26:58.123456789Z stdout F x\n\n");
        assert_eq!(records, [(NOON, OutputStream::Stdout, false, b"x".to_vec())]);
        assert_eq!((malformed, rest), (2, &b""[..]));
    }

    /// What kubelet's `parseCRILog` makes of a line: time, stream, tag, content.
    fn kubelet(line: &[u8]) -> Option<[&[u8]; 4]> {
        static TIME: LazyLock<Regex> = LazyLock::new(|| {
            // `time.RFC3339Nano`, as Go parses it.
            Regex::new(r"(?-u)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$").unwrap()
        });
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tags, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let tag = tags.split(|byte| *byte == b':').next()?;
        let is_record = TIME.is_match(time) && [&b"stdout"[..], b"stderr"].contains(&stream) && [&b"P"[..], b"F"].contains(&tag);
        is_record.then_some([time, stream, tag, content])
    }

    /// What fluent-bit reads records with. Its time is greedy: content with ` stdout F ` in it leads it astray, so the tests leave that out.
    static FLUENT_BIT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?-u)^(?<time>.+) (?<stream>stdout|stderr) (?<logtag>F|P) (?<message>.*)$").expect("the rule is an expression")
    });

    /// A whole line's record according to fluent-bit, its time still a text.
    fn fluent_bit(line: &[u8]) -> Option<(&[u8], OutputStream, bool, &[u8])> {
        let parts = FLUENT_BIT.captures(line)?;
        let part = |name| parts.name(name).map(|part| part.as_bytes());
        let stream = if part("stream")? == b"stdout" { OutputStream::Stdout } else { OutputStream::Stderr };
        Some((part("time")?, stream, part("logtag")? == b"P", part("message")?))
    }

    fn any_time() -> impl Strategy<Value = Timestamp> {
        prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), NOON.as_unix_nanos()..NOON.as_unix_nanos() + 3 * NANOS_PER_SECOND]
            .prop_map(Timestamp::from_unix_nanos)
    }

    fn any_stream() -> impl Strategy<Value = OutputStream> {
        prop_oneof![Just(OutputStream::Stdout), Just(OutputStream::Stderr)]
    }

    fn any_content() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_map(|byte| if byte == b'\n' { b' ' } else { byte });
        prop_oneof![vec(byte, 0..60), vec(prop::sample::select(&b" FPstdoutr:Z"[..]), 0..60)]
    }

    fn any_record() -> impl Strategy<Value = Parts> {
        (any_time(), any_stream(), any::<bool>(), any_content())
    }

    fn encode_all(records: &[Parts]) -> Vec<u8> {
        let (mut stamp, mut out) = (Stamp::new(), Vec::new());
        for (time, stream, partial, content) in records {
            let ending = if *partial { Ending::Partial } else { Ending::Newline };
            encode(&mut out, stamp.at(*time), *stream, Piece { bytes: content, ending });
        }
        out
    }

    proptest! {
        #[test]
        fn records_survive_any_cuts(records in vec(any_record(), 0..8), steps in vec(1..100_usize, 1..20)) {
            let log = encode_all(&records);
            let (mut decoder, mut decoded, mut start, mut end) = (Decoder::new(), Vec::new(), 0, 0);
            let mut steps = steps.iter().cycle();
            while end < log.len() {
                end = (end + steps.next().copied().unwrap_or(1)).min(log.len());
                loop {
                    match decoder.decode(&log[start..end]) {
                        Decoded::Record { time, stream, partial, content, len } => {
                            decoded.push((time, stream, partial, content.to_vec()));
                            start += len;
                        }
                        Decoded::Incomplete => break,
                        Decoded::Malformed { .. } | Decoded::Dropped { .. } => prop_assert!(false, "a record at {} was not seen", start),
                    }
                }
            }
            prop_assert_eq!(start, log.len());
            prop_assert_eq!(decoded, records);
        }

        #[test]
        fn the_streams_of_a_log_are_the_bytes_that_were_written(
            chunks in vec((any_time(), any_stream(), vec(prop_oneof![1 => Just(b'\n'), 3 => any::<u8>()], 0..30)), 0..20),
            line_bytes_max in 1..12_usize,
        ) {
            let (mut stamp, mut log, mut written) = (Stamp::new(), Vec::new(), [Vec::new(), Vec::new()]);
            let mut splitters = [LineSplitter::new(line_bytes_max), LineSplitter::new(line_bytes_max)];
            for (time, stream, chunk) in &chunks {
                splitters[*stream as usize].push(chunk, |piece| encode(&mut log, stamp.at(*time), *stream, piece));
                written[*stream as usize].extend_from_slice(chunk);
            }
            for (splitter, stream) in splitters.iter_mut().zip([OutputStream::Stdout, OutputStream::Stderr]) {
                splitter.flush(|piece| encode(&mut log, stamp.at(NOON), stream, piece));
            }
            let (records, malformed, rest) = decode_all(&log);
            prop_assert_eq!((malformed, rest), (0, &b""[..]));
            let mut read = [Vec::new(), Vec::new()];
            for (_, stream, partial, content) in records {
                read[stream as usize].extend_from_slice(&content);
                read[stream as usize].extend_from_slice(if partial { b"" } else { b"\n" });
            }
            prop_assert_eq!(read, written);
        }

        #[test]
        fn damage_costs_only_the_lines_it_touches(before in vec(any_record(), 0..4), after in vec(any_record(), 0..4), damage in vec(any::<u8>(), 0..120)) {
            let log = [&encode_all(&before)[..], &damage, b"\n", &encode_all(&after)].concat();
            let (records, malformed, rest) = decode_all(&log);
            prop_assert!(rest.is_empty());
            prop_assert!(records.starts_with(&before) && records.ends_with(&after));
            let lines = memchr_iter(b'\n', &log).count();
            prop_assert_eq!(records.len() + malformed, lines);
        }

        #[test]
        fn the_decoder_agrees_with_fluent_bit_on_every_record_we_write(record in any_record()) {
            let (time, stream, partial, content) = &record;
            prop_assume!(!content.windows(8).any(|bytes| matches!(bytes, b" stdout " | b" stderr ")));
            let line = encode_all(std::slice::from_ref(&record));
            let (text, ..) = line.split_at(STAMP_BYTES);
            prop_assert_eq!(fluent_bit(&line[..line.len() - 1]), Some((text, *stream, *partial, &content[..])));
            prop_assert_eq!(decode_all(&line).0, [(*time, *stream, *partial, content.clone())]);
        }

        #[test]
        fn the_decoder_agrees_with_fluent_bit_on_what_is_a_record(
            content in any_content(),
            damage in (0..HEADER_BYTES + 4, prop_oneof![any::<u8>(), prop::sample::select(&b" FPZ:.0\n"[..])]),
        ) {
            prop_assume!(!content.windows(8).any(|bytes| matches!(bytes, b" stdout " | b" stderr ")));
            let mut log = encode_all(&[(NOON, OutputStream::Stdout, false, content)]);
            if let Some(byte) = log.get_mut(damage.0) {
                *byte = damage.1;
            }
            for line in log.split_inclusive(|&byte| byte == b'\n') {
                let ours = Decoder::new().decode(line);
                let theirs = line.strip_suffix(b"\n").and_then(fluent_bit).filter(|(time, ..)| decode_time(time).is_some());
                match ours {
                    Decoded::Record { stream, partial, content, len, .. } => {
                        prop_assert_eq!(len, line.len());
                        // Of `F:tag` fluent-bit's rule makes nothing.
                        if line.get(HEADER_BYTES - 1) == Some(&b' ') || theirs.is_some() {
                            prop_assert_eq!(theirs.map(|(_, stream, partial, message)| (stream, partial, message)), Some((stream, partial, content)));
                        }
                    }
                    Decoded::Dropped { .. } => prop_assert!(false, "no output is missing"),
                    Decoded::Malformed { len } => {
                        prop_assert_eq!(len, line.len());
                        prop_assert_eq!(theirs, None);
                    }
                    Decoded::Incomplete => prop_assert!(!line.ends_with(b"\n")),
                }
            }
        }

        #[test]
        fn any_input_is_decoded_line_by_line(input in vec(prop_oneof![1 => Just(b'\n'), 4 => prop::sample::select(&b"stdouerFP: 0123456789-TZ.+"[..]), 1 => any::<u8>()], 0..300)) {
            let (records, malformed, rest) = decode_all(&input);
            prop_assert_eq!(records.len() + malformed, memchr_iter(b'\n', &input).count());
            prop_assert!(!rest.contains(&b'\n'));
        }

        #[test]
        fn what_a_decoder_has_seen_changes_nothing(log in vec((any_record(), 0..45_usize, any::<u8>(), any::<bool>()), 1..6)) {
            let mut used = Decoder::new();
            for (record, at, byte, damaged) in log {
                let mut line = encode_all(&[record]);
                if let Some(target) = line.get_mut(at) && damaged {
                    *target = byte;
                }
                prop_assert_eq!(used.decode(&line), Decoder::new().decode(&line));
            }
        }
    }
}
