//! Splits a stream of bytes into lines; those that lie whole in one chunk are lent out of it, never copied.

use memchr::{memchr, memchr_iter, memrchr};

/// A buffer larger than this many bytes is given back when the line it then has to hold is far shorter.
const ROOMY_BYTES: usize = 8 * 1024;

/// Whether a [`Piece`] ends its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// A line feed followed: the line ends with this piece.
    Newline,
    /// No line feed followed: the line goes on in the next piece, or the stream ended in the middle of it.
    Partial,
}

/// A line, or a part of one that was too long or was [flushed](LineSplitter::flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece<'a> {
    /// The bytes, without the line feed; the pieces of a [`LineSplitter`] hold none.
    pub bytes: &'a [u8],
    /// Whether a line feed followed.
    pub ending: Ending,
}

/// Cuts the chunks read from one output stream into lines.
///
/// What comes out is what went in: the bytes of all pieces, with a line feed after each [`Ending::Newline`], are the input. Between two
/// calls the splitter holds nothing but an unfinished line of at most `line_bytes_max` bytes, and no memory when there is none.
///
/// ```
/// use iron_exec::framing::{Ending, LineSplitter};
///
/// let mut lines = Vec::new();
/// let mut splitter = LineSplitter::new(8); // bytes, without the line feed
/// for chunk in [&b"one\ntw"[..], b"o\n0123456789\n$ "] {
///     splitter.push(chunk, |piece| lines.push((piece.bytes.to_vec(), piece.ending)));
/// }
/// assert_eq!(splitter.held(), 2);
/// splitter.flush(|piece| lines.push((piece.bytes.to_vec(), piece.ending)));
///
/// let lines: Vec<(&[u8], Ending)> = lines.iter().map(|(bytes, ending)| (bytes.as_slice(), *ending)).collect();
/// assert_eq!(
///     lines,
///     [
///         (&b"one"[..], Ending::Newline),
///         (b"two", Ending::Newline),
///         (b"01234567", Ending::Partial), // longer than eight bytes: cut
///         (b"89", Ending::Newline),
///         (b"$ ", Ending::Partial), // flushed: its line has not ended yet
///     ]
/// );
/// ```
#[derive(Clone, Debug)]
pub struct LineSplitter {
    line_bytes_max: usize,
    /// The unfinished line. Not longer than `line_bytes_max`; without capacity when empty.
    held: Vec<u8>,
}

impl LineSplitter {
    /// A splitter that cuts lines of more than `line_bytes_max` bytes (the line feed not counted). 0 counts as 1.
    pub fn new(line_bytes_max: usize) -> Self {
        Self { line_bytes_max: line_bytes_max.max(1), held: Vec::new() }
    }

    /// Takes the next chunk of the stream and emits every line that ends in it.
    ///
    /// A line of more than `line_bytes_max` bytes is emitted as [`Ending::Partial`] pieces of exactly that many, and what is left of it
    /// like any line. At most one line, the last one, is copied to be held for the next call.
    pub fn push(&mut self, chunk: &[u8], mut emit: impl FnMut(Piece<'_>)) {
        let mut rest = chunk;
        if !self.held.is_empty() {
            let line_feed = memchr(b'\n', chunk);
            let more = line_feed.unwrap_or(chunk.len());
            let room = self.line_bytes_max - self.held.len();
            if more <= room {
                self.hold_more(&chunk[..more]);
                let Some(end) = line_feed else { return };
                emit(Piece { bytes: &self.held, ending: Ending::Newline });
                rest = &chunk[end + 1..];
            } else {
                self.hold_more(&chunk[..room]);
                emit(Piece { bytes: &self.held, ending: Ending::Partial });
                rest = &chunk[room..];
            }
        }
        let mut start = 0;
        for end in memchr_iter(b'\n', rest) {
            let bytes = emit_excess(&rest[start..end], self.line_bytes_max, &mut emit);
            emit(Piece { bytes, ending: Ending::Newline });
            start = end + 1;
        }
        let unfinished = emit_excess(&rest[start..], self.line_bytes_max, &mut emit);
        self.hold_instead(unfinished);
    }

    /// Takes the next chunk of the stream and emits the same bytes in as few slices as possible, line feeds included: for an output that
    /// keeps no record of the single line.
    ///
    /// At most two slices are emitted: the line held so far, completed, and then all that ends with the chunk's last line feed. What
    /// follows that is held, like in [`push`](Self::push); but a line that is longer than `line_bytes_max` is passed on as it comes, so
    /// only then does a slice not end with a line feed.
    pub fn push_bulk(&mut self, chunk: &[u8], mut emit: impl FnMut(&[u8])) {
        let run = self.run_of_bulk(chunk);
        if run == 0 {
            self.hold_more(chunk);
            return;
        }
        let mut rest = &chunk[..run];
        if !self.held.is_empty() {
            if let Some(end) = memchr(b'\n', rest)
                && end <= self.line_bytes_max - self.held.len()
            {
                self.hold_more(&rest[..=end]);
                rest = &rest[end + 1..];
            }
            emit(&self.held);
        }
        if !rest.is_empty() {
            emit(rest);
        }
        self.hold_instead(&chunk[run..]);
    }

    /// As [`push_bulk`](Self::push_bulk), for a caller that has put a copy of the [held line](Self::held_line) in front of the chunk already: returns how many
    /// bytes of the two together go out now. The rest, which is all or comes last, is held.
    pub(crate) fn push_bulk_in_place(&mut self, chunk: &[u8]) -> usize {
        let (held, run) = (self.held.len(), self.run_of_bulk(chunk));
        if run == 0 {
            self.hold_more(chunk);
            return 0;
        }
        self.hold_instead(&chunk[run..]);
        held + run
    }

    /// How many bytes of the next chunk are not to be held; with them goes what is held.
    fn run_of_bulk(&self, chunk: &[u8]) -> usize {
        let lines = memrchr(b'\n', chunk).map_or(0, |last| last + 1);
        let room = self.line_bytes_max - if lines == 0 { self.held.len() } else { 0 };
        if chunk.len() - lines <= room { lines } else { chunk.len() }
    }

    /// Emits the unfinished line, if there is one, as [`Ending::Partial`] and gives its memory back: at the end of the stream, or when a
    /// prompt should not wait for its line feed any longer.
    pub fn flush(&mut self, mut emit: impl FnMut(Piece<'_>)) {
        if !self.held.is_empty() {
            emit(Piece { bytes: &self.held, ending: Ending::Partial });
            self.held = Vec::new();
        }
    }

    /// The unfinished line that is held.
    pub(crate) fn held_line(&self) -> &[u8] {
        &self.held
    }

    /// How many bytes of an unfinished line are held: 0 to `line_bytes_max`.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Appends to what is held. Doubles the capacity when it must grow, so that a line that comes in drops is not copied over and over,
    /// but not past what a line (and its line feed) can need.
    fn hold_more(&mut self, bytes: &[u8]) {
        let needed = self.held.len() + bytes.len();
        if needed > self.held.capacity() {
            let roomy = self.held.capacity().saturating_mul(2).min(self.line_bytes_max);
            self.held.reserve_exact(needed.max(roomy) - self.held.len());
        }
        self.held.extend_from_slice(bytes);
    }

    /// Replaces what is held. Keeps the buffer only if there is something to hold and the buffer is not far too large for it.
    fn hold_instead(&mut self, bytes: &[u8]) {
        self.held.clear();
        let capacity = self.held.capacity();
        if bytes.is_empty() || (capacity > ROOMY_BYTES && bytes.len() < capacity / 8) {
            self.held = Vec::new();
        }
        self.hold_more(bytes);
    }
}

/// Emits what of a line is in excess of `line_bytes_max`, from its start, and returns the rest: empty only if the line was.
#[inline]
fn emit_excess<'a>(mut line: &'a [u8], line_bytes_max: usize, emit: &mut impl FnMut(Piece<'_>)) -> &'a [u8] {
    while line.len() > line_bytes_max {
        let (bytes, rest) = line.split_at(line_bytes_max);
        emit(Piece { bytes, ending: Ending::Partial });
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    type Pieces = Vec<(Vec<u8>, Ending)>;

    fn push(splitter: &mut LineSplitter, chunk: &[u8]) -> Pieces {
        let mut pieces = Pieces::new();
        splitter.push(chunk, |piece| pieces.push((piece.bytes.to_vec(), piece.ending)));
        pieces
    }

    fn push_bulk(splitter: &mut LineSplitter, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut slices = Vec::new();
        splitter.push_bulk(chunk, |bytes| slices.push(bytes.to_vec()));
        slices
    }

    fn flush(splitter: &mut LineSplitter) -> Pieces {
        let mut pieces = Pieces::new();
        splitter.flush(|piece| pieces.push((piece.bytes.to_vec(), piece.ending)));
        pieces
    }

    fn full(bytes: &[u8]) -> (Vec<u8>, Ending) {
        (bytes.to_vec(), Ending::Newline)
    }

    fn part(bytes: &[u8]) -> (Vec<u8>, Ending) {
        (bytes.to_vec(), Ending::Partial)
    }

    #[test]
    fn lines_that_lie_in_one_chunk_are_lent_out_of_it() {
        let chunk = b"one\n\ntwo\n";
        let mut pieces = 0;
        LineSplitter::new(80).push(chunk, |piece| {
            assert!(chunk.as_ptr_range().contains(&piece.bytes.as_ptr()));
            pieces += 1;
        });
        assert_eq!(pieces, 3);
    }

    #[test]
    fn an_empty_line_is_a_piece() {
        assert_eq!(push(&mut LineSplitter::new(80), b"\n\n"), [full(b""), full(b"")]);
    }

    #[test]
    fn a_line_in_several_chunks_is_one_piece() {
        let mut splitter = LineSplitter::new(80);
        assert_eq!(push(&mut splitter, b"a"), []);
        assert_eq!(push(&mut splitter, b""), []);
        assert_eq!(push(&mut splitter, b"bc"), []);
        assert_eq!(splitter.held(), 3);
        assert_eq!(push(&mut splitter, b"\nd"), [full(b"abc")]);
        assert_eq!(splitter.held(), 1);
    }

    #[test]
    fn a_line_of_exactly_the_maximum_is_one_piece() {
        assert_eq!(push(&mut LineSplitter::new(4), b"1234\n"), [full(b"1234")]);
        let mut splitter = LineSplitter::new(4);
        assert_eq!(push(&mut splitter, b"1234"), []);
        assert_eq!(splitter.held(), 4);
        assert_eq!(push(&mut splitter, b"\n"), [full(b"1234")]);
    }

    #[test]
    fn a_longer_line_is_cut_into_pieces_of_exactly_the_maximum() {
        assert_eq!(push(&mut LineSplitter::new(4), b"12345\n"), [part(b"1234"), full(b"5")]);
        assert_eq!(push(&mut LineSplitter::new(4), b"12345678\n"), [part(b"1234"), full(b"5678")]);
        let mut splitter = LineSplitter::new(4);
        assert_eq!(push(&mut splitter, b"123456789"), [part(b"1234"), part(b"5678")]);
        assert_eq!(push(&mut splitter, b"0123"), [part(b"9012")]);
        assert_eq!(push(&mut splitter, b"\n"), [full(b"3")]);
    }

    #[test]
    fn a_maximum_of_zero_counts_as_one() {
        assert_eq!(push(&mut LineSplitter::new(0), b"ab\n"), [part(b"a"), full(b"b")]);
    }

    #[test]
    fn a_maximum_without_end_reserves_nothing() {
        let mut splitter = LineSplitter::new(usize::MAX);
        assert_eq!(push(&mut splitter, b"ab"), []);
        assert_eq!(push_bulk(&mut splitter, b"cd"), Vec::<Vec<u8>>::new());
        assert_eq!(splitter.held(), 4);
        assert!(splitter.held.capacity() < 100);
    }

    #[test]
    fn a_flush_emits_what_is_held_and_the_line_goes_on_behind_it() {
        let mut splitter = LineSplitter::new(80);
        assert_eq!(flush(&mut splitter), []);
        push(&mut splitter, b"$ ");
        assert_eq!(flush(&mut splitter), [part(b"$ ")]);
        assert_eq!(flush(&mut splitter), []);
        assert_eq!(push(&mut splitter, b"\n"), [full(b"")]);
    }

    #[test]
    fn in_bulk_whole_lines_come_as_one_slice_lent_out_of_the_chunk() {
        let chunk = b"one\n\ntwo\nrest";
        let mut slices = Vec::new();
        let mut splitter = LineSplitter::new(80);
        splitter.push_bulk(chunk, |bytes| slices.push((bytes.as_ptr(), bytes.len())));
        assert_eq!(slices, [(chunk.as_ptr(), 9)]);
        assert_eq!(splitter.held(), 4);
    }

    #[test]
    fn in_bulk_a_held_line_is_completed_before_the_others() {
        let mut splitter = LineSplitter::new(80);
        assert!(push_bulk(&mut splitter, b"on").is_empty());
        assert_eq!(push_bulk(&mut splitter, b"e\ntwo\nthree\nfo"), [&b"one\n"[..], b"two\nthree\n"]);
        assert_eq!(push_bulk(&mut splitter, b"ur\n"), [b"four\n"]);
        assert_eq!(splitter.held.capacity(), 0);
        let mut splitter = LineSplitter::new(4);
        assert!(push_bulk(&mut splitter, b"12").is_empty());
        assert_eq!(push_bulk(&mut splitter, b"34\n5\n"), [&b"1234\n"[..], b"5\n"]);
    }

    #[test]
    fn in_bulk_a_line_that_is_too_long_is_passed_on_as_it_comes() {
        let mut splitter = LineSplitter::new(4);
        assert_eq!(push_bulk(&mut splitter, b"1\n2345"), [b"1\n"]);
        assert_eq!(push_bulk(&mut splitter, b"6"), [&b"2345"[..], b"6"]);
        assert_eq!(push_bulk(&mut splitter, b"7\n12345"), [b"7\n12345"]);
        assert!(push_bulk(&mut splitter, b"1234").is_empty());
        assert_eq!(push_bulk(&mut splitter, b"5\n6"), [&b"1234"[..], b"5\n"]);
        assert_eq!(splitter.held(), 1);
    }

    #[test]
    fn no_memory_is_held_without_an_unfinished_line() {
        let mut splitter = LineSplitter::new(80);
        push(&mut splitter, b"some line");
        push(&mut splitter, b"\n");
        assert_eq!(splitter.held.capacity(), 0);
        push(&mut splitter, b"some line");
        flush(&mut splitter);
        assert_eq!(splitter.held.capacity(), 0);
    }

    #[test]
    fn no_more_memory_is_held_than_a_line_may_be_long() {
        let mut splitter = LineSplitter::new(1000);
        for _ in 0..5000 {
            push(&mut splitter, b"x");
            assert!(splitter.held.capacity() <= 1000);
        }
    }

    #[test]
    fn the_buffer_of_a_long_line_is_not_kept_for_a_short_one() {
        let mut splitter = LineSplitter::new(1 << 20);
        push(&mut splitter, &b"x".repeat(500_000));
        push(&mut splitter, b"\nx");
        assert!(splitter.held.capacity() < 100);
    }

    #[test]
    fn chunks_that_end_in_the_middle_of_a_line_share_one_buffer() {
        let mut splitter = LineSplitter::new(1000);
        push(&mut splitter, b"a line of some length");
        push(&mut splitter, b", completed\nand one");
        let buffer = splitter.held.as_ptr();
        for _ in 0..100 {
            push(&mut splitter, b" more\nand one");
        }
        assert_eq!(splitter.held.as_ptr(), buffer);
    }

    /// What the documentation promises, one byte at a time.
    #[derive(Default)]
    struct Model {
        held: Vec<u8>,
    }

    impl Model {
        fn push(&mut self, line_bytes_max: usize, chunk: &[u8]) -> Pieces {
            let mut pieces = Pieces::new();
            for &byte in chunk {
                if byte == b'\n' {
                    pieces.push((std::mem::take(&mut self.held), Ending::Newline));
                    continue;
                }
                if self.held.len() == line_bytes_max {
                    pieces.push((std::mem::take(&mut self.held), Ending::Partial));
                }
                self.held.push(byte);
            }
            pieces
        }

        fn push_bulk(&mut self, line_bytes_max: usize, chunk: &[u8]) -> Vec<u8> {
            self.held.extend_from_slice(chunk);
            let lines = self.held.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
            let kept = if self.held.len() - lines > line_bytes_max { Vec::new() } else { self.held.split_off(lines) };
            std::mem::replace(&mut self.held, kept)
        }
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Push(Vec<u8>),
        PushBulk(Vec<u8>),
        Flush,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let chunk = || vec(prop_oneof![2 => Just(b'\n'), 6 => b'a'..=b'z', 1 => any::<u8>()], 0..30);
        prop_oneof![4 => chunk().prop_map(Operation::Push), 3 => chunk().prop_map(Operation::PushBulk), 1 => Just(Operation::Flush)]
    }

    proptest! {
        #[test]
        fn any_sequence_of_operations_gives_the_bytes_back_cut_as_promised(line_bytes_max in 1..20_usize, operations in vec(operation(), 0..30)) {
            let (mut splitter, mut model) = (LineSplitter::new(line_bytes_max), Model::default());
            let (mut input, mut output) = (Vec::new(), Vec::new());
            for operation in operations {
                let pieces = match operation {
                    Operation::Push(chunk) => {
                        input.extend_from_slice(&chunk);
                        let pieces = push(&mut splitter, &chunk);
                        prop_assert_eq!(&pieces, &model.push(line_bytes_max, &chunk));
                        pieces
                    }
                    Operation::PushBulk(chunk) => {
                        input.extend_from_slice(&chunk);
                        let (mut in_place, mut bytes) = (splitter.clone(), [splitter.held_line(), &chunk].concat());
                        bytes.truncate(in_place.push_bulk_in_place(&chunk));
                        let slices = push_bulk(&mut splitter, &chunk);
                        prop_assert_eq!((bytes, in_place.held_line()), (slices.concat(), splitter.held_line()));
                        prop_assert!(in_place.held() > 0 || in_place.held.capacity() == 0);
                        prop_assert!(slices.len() <= 2 && slices.iter().all(|slice| !slice.is_empty()));
                        prop_assert_eq!(slices.concat(), model.push_bulk(line_bytes_max, &chunk));
                        slices.into_iter().map(|slice| (slice, Ending::Partial)).collect()
                    }
                    Operation::Flush => {
                        let expected: Pieces = Some(std::mem::take(&mut model.held)).filter(|held| !held.is_empty()).map(|held| part(&held)).into_iter().collect();
                        let pieces = flush(&mut splitter);
                        prop_assert_eq!(&pieces, &expected);
                        pieces
                    }
                };
                for (bytes, ending) in pieces {
                    output.extend_from_slice(&bytes);
                    if ending == Ending::Newline {
                        output.push(b'\n');
                    }
                }
                prop_assert_eq!(&splitter.held, &model.held);
                prop_assert!(splitter.held() <= line_bytes_max);
                prop_assert!(splitter.held() > 0 || splitter.held.capacity() == 0);
                prop_assert_eq!([&output[..], &model.held].concat(), &input[..]);
            }
        }
    }
}
