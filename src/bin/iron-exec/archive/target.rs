//! Where files go: the bucket, and the key of each of them. Pure text, no network.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// The longest key that S3 takes, in bytes of UTF-8.
const KEY_BYTES_MAX: usize = 1024;

/// Digits of its SHA-256 in the key of a file whose own key is taken.
const SUFFIX_DIGITS: usize = 16;

/// What `--to` says.
const URL_ADVICE: &str = "give s3://BUCKET or s3://BUCKET/PREFIX";

/// A bucket, and what the keys in it begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    bucket: String,
    /// Without slashes at its ends; may be empty.
    prefix: String,
}

/// How objects differ from the files that they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// A zstd frame, with a checksum of its own.
    Zstd,
    /// The file's bytes.
    Plain,
}

impl Target {
    /// The bucket's name.
    pub(crate) fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key of a file: the prefix, its name, and `.zst` if it is compressed. With the file's `sha256` (in hex), the key that it gets when that
    /// one holds something else.
    ///
    /// Every name has a key of its own: `%`, control characters and what is no UTF-8 appear as `%` and two hex digits for each byte.
    ///
    /// # Errors
    /// There can be no such key; the message says why.
    pub(crate) fn key(&self, name: &OsStr, packing: Packing, sha256: Option<&str>) -> Result<String, String> {
        let name = name.as_bytes();
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err("it is no plain name of a file".to_owned());
        }
        let mut key = self.prefix.clone();
        if !key.is_empty() {
            key.push('/');
        }
        push_encoded(&mut key, name);
        if let Some(sha256) = sha256 {
            key.push('.');
            key.push_str(sha256.get(..SUFFIX_DIGITS).unwrap_or(sha256));
        }
        key.push_str(packing.extension());
        if key.len() > KEY_BYTES_MAX {
            return Err(format!(
                "its key would have {} bytes, more than the {KEY_BYTES_MAX} that S3 allows: use a shorter PREFIX",
                key.len()
            ));
        }
        Ok(key)
    }
}

impl FromStr for Target {
    type Err = String;

    /// Reads `s3://BUCKET/PREFIX`. The prefix is taken as it is: nothing in it is decoded.
    fn from_str(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("s3://").ok_or_else(|| format!("it does not begin with s3://: {URL_ADVICE}"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // What buckets are called anywhere: today's rules of AWS, and the older ones, which other servers still have.
        let is_bucket = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_bucket) || bucket.starts_with(['.', '-']) {
            // It is not repeated: somebody may have written a password in front of it.
            return Err(format!("its bucket is no name of 3 to 63 letters, digits, `.`, `-` and `_`: {URL_ADVICE}"));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("a part of its PREFIX is empty, `.` or `..`".to_owned());
        }
        if prefix.chars().any(is_unfit) {
            return Err("its PREFIX holds a control character".to_owned());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl Packing {
    /// What a key ends with.
    fn extension(self) -> &'static str {
        match self {
            Packing::Zstd => ".zst",
            Packing::Plain => "",
        }
    }

    /// The object's media type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Packing::Zstd => "application/zstd",
            Packing::Plain => "application/octet-stream",
        }
    }
}

/// Whether a character cannot be in a key: XML, in which servers list keys, does not have it.
fn is_unfit(character: char) -> bool {
    character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}')
}

fn push_encoded(key: &mut String, name: &[u8]) {
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '%' || is_unfit(character) {
                push_hex(key, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                key.push(character);
            }
        }
        push_hex(key, chunk.invalid());
    }
}

fn push_hex(key: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(key, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(url: &str) -> Target {
        url.parse().unwrap_or_else(|error| panic!("{url:?}: {error}"))
    }

    /// The name that a key of a target without prefix was made of.
    fn decoded(key: &str) -> Vec<u8> {
        let mut name = Vec::new();
        let mut rest = key.as_bytes();
        while let Some((first, tail)) = rest.split_first() {
            if *first == b'%' {
                name.push(u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
                rest = &tail[2..];
            } else {
                name.push(*first);
                rest = tail;
            }
        }
        name
    }

    #[test]
    fn a_url_names_a_bucket_and_may_name_a_prefix() {
        for (url, bucket, prefix) in [
            ("s3://logs", "logs", ""),
            ("s3://logs/", "logs", ""),
            ("s3://my.logs-1/a", "my.logs-1", "a"),
            ("s3://logs/a/b c/%20/", "logs", "a/b c/%20"),
            ("s3://logs/a?b#c", "logs", "a?b#c"),
        ] {
            assert_eq!(target(url), Target { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_and_nothing_of_it_repeated() {
        for url in [
            "",
            "logs",
            "s3:/logs",
            "http://logs/a",
            "s3://",
            "s3:///a",
            "s3://ab",
            "s3://a:secret@logs/x",
            "s3://.logs",
            "s3://-ab",
            "s3://lögs",
            "s3://logs//a",
            "s3://logs/a//b",
            "s3://logs/a//",
            "s3://logs/../a",
            "s3://logs/./a",
            "s3://logs/a\nb",
            "S3://logs",
        ] {
            let error = url.parse::<Target>().expect_err(url);
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_key_is_the_prefix_the_name_and_the_packing() {
        let name = OsStr::new("make 1%_x.log");
        assert_eq!(target("s3://logs").key(name, Packing::Plain, None).unwrap(), "make 1%25_x.log");
        assert_eq!(target("s3://logs/a/b/").key(name, Packing::Zstd, None).unwrap(), "a/b/make 1%25_x.log.zst");
        let sha256 = "0123456789abcdef0123456789abcdef";
        assert_eq!(target("s3://logs").key(OsStr::new("x"), Packing::Zstd, Some(sha256)).unwrap(), "x.0123456789abcdef.zst");
        assert_eq!(
            target("s3://logs").key(OsStr::from_bytes(b"\xff\x01\n\xc3\xbc\xef\xbf\xbf"), Packing::Plain, None).unwrap(),
            "%FF%01%0Aü%EF%BF%BF"
        );
    }

    #[test]
    fn what_is_no_plain_name_or_too_long_has_no_key() {
        for name in ["", ".", "..", "a/b", "/"] {
            assert!(target("s3://logs").key(OsStr::new(name), Packing::Plain, None).is_err(), "{name:?}");
        }
        let long = "x".repeat(1000);
        let url = format!("s3://logs/{long}");
        assert!(target(&url).key(OsStr::new("short"), Packing::Plain, None).is_ok());
        assert!(target(&url).key(OsStr::new(&long), Packing::Plain, None).is_err_and(|error| error.contains("1024")));
    }

    proptest! {
        #[test]
        fn every_name_can_be_had_back_from_its_key(name in prop::collection::vec(any::<u8>().prop_filter("no slash", |byte| *byte != b'/'), 3..100)) {
            let key = target("s3://logs").key(OsStr::from_bytes(&name), Packing::Plain, None).unwrap();
            prop_assert_eq!(decoded(&key), name);
        }
    }
}
