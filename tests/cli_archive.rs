//! Promise: `iron-exec archive` says that a file is stored only when it is, byte for byte, whatever the server and the network do, and never waits
//! without end.
#![cfg(feature = "s3")]

mod cli_tool;
mod common;
mod s3;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cli_tool::{Ran, Running, bare_tool, run, run_with_input};
use common::wait_until;
use rustix::process::Signal;
use s3::{Action, Fake, Head, Moto};
use sha2::{Digest, Sha256};

/// In the environment of every run, and never in what it says.
const SECRET: &str = "hush-this-is-the-secret-key";

/// In the files of tests that make trouble, and never in what is said.
const CONTENT: &str = "content-of-the-log";

/// A file larger than two parts.
const LARGE_BYTES: usize = 20 << 20;

/// A directory of sealed files.
struct Logs(tempfile::TempDir);

impl Logs {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("iron-exec-test-").tempdir().unwrap())
    }

    fn with(name: &str, bytes: &[u8]) -> Self {
        let logs = Self::new();
        logs.add(name, bytes);
        logs
    }

    fn add(&self, name: impl AsRef<OsStr>, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name.as_ref());
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// `iron-exec archive` of files in `logs` to a bucket of the server at `port`.
fn archive(port: u16, bucket: &str, logs: &Logs) -> Command {
    let mut command = bare_tool("archive");
    command.env_clear().env("AWS_ACCESS_KEY_ID", "someone").env("AWS_SECRET_ACCESS_KEY", SECRET).env("AWS_REGION", "us-east-1");
    command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")).env("AWS_ALLOW_HTTP", "true");
    command.arg("--to").arg(format!("s3://{bucket}/pre/fix")).arg("--directory").arg(logs.path());
    command
}

/// Runs it to its end. Whatever happens, secrets stay secret and the report has its form.
fn ran(command: &mut Command) -> Ran {
    checked(run(command))
}

fn checked(ran: Ran) -> Ran {
    for output in [ran.out(), ran.err()] {
        assert!(!output.contains(SECRET) && !output.contains(CONTENT), "{output}");
    }
    let form = regex::bytes::Regex::new(r"(?-u)^(stored\t[0-9]+\t[0-9a-f]{64}|failed\t[^\t\n]+)\t[^\n]+$").unwrap();
    for line in ran.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        assert!(form.is_match(line), "{}", String::from_utf8_lossy(line));
    }
    ran
}

/// The line of the report for a file that is stored as these bytes.
fn stored(bytes: &[u8], name: &str) -> String {
    let digits: Vec<String> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("stored\t{}\t{}\t{name}\n", bytes.len(), digits.concat())
}

/// The reason why the only file of a run failed.
fn reason(ran: &Ran) -> String {
    assert_eq!(ran.code, 1, "{ran:?}");
    let (out, err) = (ran.out(), ran.err());
    let fields: Vec<&str> = out.trim_end().split('\t').collect();
    assert!(fields.len() == 3 && fields[0] == "failed", "{out}");
    assert!(err.contains(fields[1]), "people are told, too: {err}");
    fields[1].to_owned()
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}

/// The key of a file's object in the URL of a request.
fn is_about(head: &Head, method: &str, part: &str) -> bool {
    head.method() == method && head.first.contains(part)
}

#[test]
fn what_is_stored_comes_back_byte_for_byte() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::new();
    let text: Vec<u8> = (0..300_000).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    let cases: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("one", b"x"),
        ("text", &text),
        ("part", &noise(8 << 20)),
        ("part-and-one", &noise((8 << 20) + 1)),
        ("large", &noise(LARGE_BYTES)),
    ];
    for (name, bytes) in cases {
        logs.add(name, bytes);
    }
    let plain = ran(archive(moto.port, &bucket, &logs).args(["--compress", "none"]).args(cases.map(|(name, _)| name)));
    assert_eq!((plain.code, plain.err().as_str()), (0, ""));
    let packed = ran(archive(moto.port, &bucket, &logs).args(cases.map(|(name, _)| name)));
    assert_eq!((packed.code, packed.err().as_str()), (0, ""));
    for (name, bytes) in cases {
        let object = moto.object(&bucket, &format!("pre/fix/{name}"));
        assert!(object.body == bytes, "{name}");
        assert!(plain.out().contains(&stored(bytes, name)), "{name}: {}", plain.out());
        let object = moto.object(&bucket, &format!("pre/fix/{name}.zst"));
        assert!(zstd::decode_all(object.body.as_slice()).unwrap() == bytes, "{name}");
        let line = stored(&object.body, name);
        assert!(packed.out().contains(&line), "{name}: {}", packed.out());
        assert_eq!(object.header("content-type"), Some("application/zstd"));
        assert_eq!(object.header("x-amz-meta-sha256"), line.split('\t').nth(2));
        assert_eq!(object.header("x-amz-meta-original-size"), Some(bytes.len().to_string().as_str()));
        assert_eq!(object.header("x-amz-meta-original-sha256"), stored(bytes, name).split('\t').nth(2));
        assert!(logs.path().join(name).exists(), "nothing is deleted here");
    }
    assert_eq!(moto.keys(&bucket).len(), 2 * cases.len());
}

#[test]
fn running_it_twice_stores_nothing_twice() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::with("small", b"text");
    logs.add("large", &noise(LARGE_BYTES));
    let fake = Fake::start(|_| Action::Forward);
    let first = ran(archive(fake.port, &bucket, &logs).args(["small", "large"]));
    let sent = fake.count(&["PUT", "POST"]);
    assert_eq!((first.code, sent), (0, 1 + 1 + 3 + 1));
    let second = ran(archive(fake.port, &bucket, &logs).args(["small", "large", "small"]));
    assert_eq!((second.code, fake.count(&["PUT", "POST"])), (0, sent));
    let lines = |ran: &Ran| ran.out().lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lines(&first), lines(&second));
    assert_eq!(moto.keys(&bucket), ["pre/fix/large.zst", "pre/fix/small.zst"]);
}

#[test]
fn another_object_is_never_replaced() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    for (name, bytes) in [("small", b"text".to_vec()), ("large", noise(LARGE_BYTES))] {
        let logs = Logs::with(name, &bytes);
        // Also one of the same size.
        for other in [b"other".to_vec(), vec![b'x'; bytes.len()]] {
            let key = format!("pre/fix/{name}");
            moto.put(&bucket, &key, &other);
            let ran = ran(archive(moto.port, &bucket, &logs).args(["--compress", "none", name]));
            assert_eq!((ran.code, ran.out()), (0, stored(&bytes, name)));
            let suffix: String = ran.out().split('\t').nth(2).unwrap().chars().take(16).collect();
            assert!(ran.err().contains(&format!("{key}.{suffix}")), "{}", ran.err());
            assert!(moto.object(&bucket, &key).body == other);
            assert!(moto.object(&bucket, &format!("{key}.{suffix}")).body == bytes);
        }
        let second = moto.keys(&bucket).into_iter().find(|key| key.starts_with(&format!("pre/fix/{name}."))).unwrap();
        moto.put(&bucket, &second, b"taken as well");
        let reason = reason(&ran(archive(moto.port, &bucket, &logs).args(["--compress", "none", name])));
        assert!(reason.contains("other objects have its key"), "{reason}");
    }
}

#[test]
fn an_object_that_appears_in_the_middle_is_not_replaced_either() {
    let Some(moto) = Moto::get() else { return };
    for (name, bytes, last_request) in [("small", b"text".to_vec(), "PUT"), ("large", noise(LARGE_BYTES), "POST")] {
        let bucket = moto.bucket();
        let logs = Logs::with(name, &bytes);
        let (key, rival) = (format!("pre/fix/{name}"), AtomicUsize::new(0));
        let (own_bucket, own_key) = (bucket.clone(), key.clone());
        let fake = Fake::start(move |head| {
            // The last request before there is an object.
            if head.method() == last_request && !head.first.contains("uploads=") && rival.fetch_add(1, Ordering::Relaxed) == 0 {
                moto.put(&own_bucket, &own_key, b"the rival's");
            }
            Action::Forward
        });
        let ran = ran(archive(fake.port, &bucket, &logs).args(["--compress", "none", name]));
        let asked = fake.seen().iter().any(|head| head.method() == last_request && head.header("if-none-match") == Some("*"));
        assert!(asked, "the server is asked not to replace anything");
        assert_eq!(moto.object(&bucket, &key).body, b"the rival's", "{ran:?}");
        assert_eq!((ran.code, ran.out()), (0, stored(&bytes, name)));
        assert_eq!(moto.unfinished(&bucket), 0);
    }
}

#[test]
fn a_server_that_is_down_is_given_up_soon_and_the_rest_not_tried() {
    let logs = Logs::new();
    let names: Vec<String> = (0..50).map(|number| format!("log-{number}")).collect();
    for name in &names {
        logs.add(name, CONTENT.as_bytes());
    }
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let ran = ran(archive(port, "logs", &logs).args(["--retries", "2"]).args(&names));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(ran.code, 1);
    assert_eq!(ran.out().lines().count(), names.len());
    for part in ["cannot be reached (3 attempts)", "refused", "AWS_ENDPOINT_URL"] {
        assert!(ran.out().lines().all(|line| line.starts_with("failed\t") && line.contains(part)), "{part}: {}", ran.out());
    }
    assert_eq!(ran.out().matches("not tried: ").count(), names.len() - 4);
    assert!(ran.err().lines().count() == 2 && ran.err().contains("not tried: 46"), "{}", ran.err());
}

#[test]
fn a_connection_that_breaks_once_is_tried_again() {
    let Some(moto) = Moto::get() else { return };
    for (name, bytes, method, part) in [
        ("small", noise(1 << 20), "PUT", "small"),
        ("large", noise(LARGE_BYTES), "PUT", "partNumber=2"),
        ("large", noise(LARGE_BYTES), "GET", "large"),
    ] {
        let bucket = moto.bucket();
        let logs = Logs::with(name, &bytes);
        let broken = AtomicUsize::new(0);
        let fake = Fake::start(move |head| {
            if is_about(head, method, part) && broken.fetch_add(1, Ordering::Relaxed) == 0 {
                Action::CutAfter(100_000)
            } else {
                Action::Forward
            }
        });
        let ran = ran(archive(fake.port, &bucket, &logs).args(["--compress", "none", name]));
        assert_eq!((ran.code, ran.out(), ran.err().as_str()), (0, stored(&bytes, name), ""), "{method} {part}");
        assert!(moto.object(&bucket, &format!("pre/fix/{name}")).body == bytes);
    }
}

#[test]
fn a_connection_that_always_breaks_fails_and_leaves_no_unfinished_upload() {
    let Some(moto) = Moto::get() else { return };
    for (name, bytes, method, part) in [
        ("small", noise(1 << 20), "PUT", "small"),
        ("large", noise(LARGE_BYTES), "PUT", "partNumber=2"),
        ("large", noise(LARGE_BYTES), "POST", "uploadId="),
        ("small", noise(1 << 20), "GET", "small"),
        ("small", noise(1 << 20), "HEAD", "small"),
    ] {
        let bucket = moto.bucket();
        let logs = Logs::with(name, &bytes);
        let fake = Fake::start(move |head| if is_about(head, method, part) { Action::CutAfter(100_000) } else { Action::Forward });
        let reason = reason(&ran(archive(fake.port, &bucket, &logs).args(["--retries", "1", name])));
        assert!(reason.contains("broke (2 attempts)"), "{method} {part}: {reason}");
        assert_eq!(fake.seen().iter().filter(|head| is_about(head, method, part)).count(), 2, "{method} {part}");
        assert_eq!(moto.unfinished(&bucket), 0);
    }
}

#[test]
fn an_answer_that_is_lost_does_not_lose_the_object() {
    let Some(moto) = Moto::get() else { return };
    for (name, bytes, method, part) in [("small", noise(1 << 20), "PUT", "small"), ("large", noise(LARGE_BYTES), "POST", "uploadId=")] {
        let bucket = moto.bucket();
        let logs = Logs::with(name, &bytes);
        let lost = AtomicUsize::new(0);
        let fake = Fake::start(move |head| {
            if is_about(head, method, part) && lost.fetch_add(1, Ordering::Relaxed) == 0 { Action::ForwardAndCut } else { Action::Forward }
        });
        let ran = ran(archive(fake.port, &bucket, &logs).args(["--compress", "none", name]));
        assert_eq!((ran.code, ran.out()), (0, stored(&bytes, name)), "{ran:?}");
        assert_eq!(moto.keys(&bucket), [format!("pre/fix/{name}")], "and stored once");
    }
}

#[test]
fn a_server_that_fails_for_a_while_is_tried_again() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::with("log", b"text");
    let failures = AtomicUsize::new(0);
    let fake = Fake::start(move |_| match failures.fetch_add(1, Ordering::Relaxed) {
        // The first two of every three requests.
        count if count % 3 == 0 => Action::error(500, "InternalError", ""),
        count if count % 3 == 1 => Action::error(503, "SlowDown", ""),
        _ => Action::Forward,
    });
    let ran = ran(archive(fake.port, &bucket, &logs).args(["--compress", "none", "log"]));
    assert_eq!((ran.code, ran.out(), ran.err().as_str()), (0, stored(b"text", "log"), ""));
    assert_eq!(fake.seen().len(), 3 * 4);
}

#[test]
fn a_server_that_goes_on_failing_is_given_up_and_its_words_are_not_repeated() {
    let logs = Logs::with("log", CONTENT.as_bytes());
    for (status, code) in [(500, "InternalError"), (503, "SlowDown"), (507, "")] {
        let fake = Fake::start(move |_| Action::error(status, code, CONTENT));
        let reason = reason(&ran(archive(fake.port, "logs", &logs).args(["--retries", "2", "log"])));
        assert!(reason.contains(&format!("answered {status}")) && reason.contains("(3 attempts)"), "{reason}");
        assert_eq!(fake.seen().len(), 3);
    }
}

#[test]
fn a_name_cannot_pass_for_an_answer() {
    let name = "status code: 401 <Code>InvalidAccessKeyId";
    let logs = Logs::with(name, b"text");
    let fake = Fake::start(|_| Action::error(500, "InternalError", ""));
    let reason = reason(&ran(archive(fake.port, "logs", &logs).args(["--retries", "0", name])));
    assert!(reason.contains("answered 500"), "{reason}");
}

#[test]
fn a_server_that_never_answers_is_given_up_in_time() {
    let Some(moto) = Moto::get() else { return };
    for (name, method, part) in [("small", "HEAD", "small"), ("small", "PUT", "small"), ("large", "PUT", "partNumber=2")] {
        let bucket = moto.bucket();
        let logs = Logs::with("small", b"text");
        logs.add("large", &noise(LARGE_BYTES));
        let fake = Fake::start(move |head| if is_about(head, method, part) { Action::Silence } else { Action::Forward });
        let began = Instant::now();
        let reason = reason(&ran(archive(fake.port, &bucket, &logs).args(["--timeout", "5s", name])));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert!(reason.contains("the time was up"), "{reason}");
        assert_eq!(moto.unfinished(&bucket), 0);
    }
}

/// A server that takes everything, says that it has `bytes`, and gives back `body`.
fn liar(bytes: usize, attested: Option<&'static str>, body: &'static [u8]) -> Fake {
    let heads = AtomicUsize::new(0);
    Fake::start(move |head| match head.method() {
        "HEAD" if heads.fetch_add(1, Ordering::Relaxed) == 0 => Action::empty(404),
        "HEAD" => {
            let attested = attested.map(|attested| format!("x-amz-checksum-sha256: {attested}"));
            let lines = [format!("content-length: {bytes}"), "etag: \"0\"".to_owned()];
            Action::Reply(200, lines.into_iter().chain(attested).collect(), Vec::new())
        }
        "GET" => Action::Reply(200, vec!["etag: \"0\"".to_owned()], body.to_vec()),
        _ => Action::Reply(200, vec!["etag: \"0\"".to_owned()], Vec::new()),
    })
}

#[test]
fn a_server_that_holds_other_bytes_is_not_believed() {
    let logs = Logs::with("log", b"text");
    let wrong_size = liar(5, None, b"text");
    let wrong_bytes = liar(4, None, b"tent");
    // The SHA-256 of "text", which it does not hold: whoever can be asked for the bytes is.
    let lying = liar(4, Some("mC2ePrmW9VnmM/TRlN7zdh2Qn1o7ZH0ahR/q1nwyydE="), b"tent");
    let short = liar(4, None, b"te");
    for fake in [wrong_size, wrong_bytes, lying, short] {
        let reason = reason(&ran(archive(fake.port, "logs", &logs).args(["--compress", "none", "--retries", "1", "log"])));
        assert!(reason.contains("do not trust it"), "{reason}");
    }
    let forgetful = Fake::start(|head| {
        if head.method() == "HEAD" { Action::empty(404) } else { Action::Reply(200, vec!["etag: \"0\"".to_owned()], Vec::new()) }
    });
    let reason = reason(&ran(archive(forgetful.port, "logs", &logs).args(["--compress", "none", "log"])));
    assert!(reason.contains("does not have it"), "{reason}");
}

#[test]
fn of_a_large_object_the_servers_own_checksum_will_do() {
    let logs = Logs::with("log", b"text");
    let arguments = ["--compress", "none", "--read-back-max", "3", "log"];
    let good = liar(4, Some("mC2ePrmW9VnmM/TRlN7zdh2Qn1o7ZH0ahR/q1nwyydE="), b"text");
    assert_eq!(ran(archive(good.port, "logs", &logs).args(arguments)).out(), stored(b"text", "log"));
    let head = good.seen().into_iter().find(|head| head.method() == "PUT").unwrap();
    assert_eq!(head.header("x-amz-checksum-sha256"), Some("mC2ePrmW9VnmM/TRlN7zdh2Qn1o7ZH0ahR/q1nwyydE="));
    let last = good.seen().pop().unwrap();
    assert_eq!((last.method(), last.header("x-amz-checksum-mode")), ("HEAD", Some("ENABLED")));
    for other in [liar(4, None, b"text"), liar(4, Some("AAAA"), b"text")] {
        assert_eq!(ran(archive(other.port, "logs", &logs).args(arguments)).out(), stored(b"text", "log"));
        assert_eq!(other.seen().pop().unwrap().method(), "GET", "where there is none, or not the same, the bytes are asked for");
    }
    let larger = liar(5, Some("mC2ePrmW9VnmM/TRlN7zdh2Qn1o7ZH0ahR/q1nwyydE="), b"texts");
    assert!(reason(&ran(archive(larger.port, "logs", &logs).args(arguments))).contains("do not trust it"));
}

#[test]
fn of_an_object_in_parts_the_servers_checksum_of_their_checksums_will_do() {
    use base64::prelude::{BASE64_STANDARD, Engine};
    let bytes = noise(LARGE_BYTES);
    let logs = Logs::with("log", &bytes);
    let parts = std::sync::Mutex::new(Vec::new());
    let fake = Fake::start(move |head| {
        let mut parts = parts.lock().unwrap();
        match head.method() {
            "HEAD" if parts.is_empty() => Action::empty(404),
            "HEAD" => {
                let attested = format!("x-amz-checksum-sha256: {}-3", BASE64_STANDARD.encode(Sha256::digest(parts.concat())));
                Action::Reply(200, vec![format!("content-length: {LARGE_BYTES}"), "etag: \"0\"".to_owned(), attested], Vec::new())
            }
            "POST" if head.first.contains("uploads=") => {
                let body = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>";
                Action::Reply(200, Vec::new(), body.as_bytes().to_vec())
            }
            "POST" => {
                let body = "<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>";
                Action::Reply(200, Vec::new(), body.as_bytes().to_vec())
            }
            "PUT" => {
                let checksum = head.header("x-amz-checksum-sha256").unwrap();
                parts.push(BASE64_STANDARD.decode(checksum).unwrap());
                Action::Reply(200, vec!["etag: \"0\"".to_owned(), format!("x-amz-checksum-sha256: {checksum}")], Vec::new())
            }
            _ => Action::empty(500),
        }
    });
    let ran = ran(archive(fake.port, "logs", &logs).args(["--compress", "none", "--read-back-max", "0", "log"]));
    assert_eq!((ran.code, ran.out()), (0, stored(&bytes, "log")), "{}", ran.err());
    assert_eq!(fake.count(&["GET"]), 0);
}

#[test]
fn wrong_credentials_are_named_and_not_shown() {
    let logs = Logs::with("log", CONTENT.as_bytes());
    for (status, code) in
        [(403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (400, "ExpiredToken"), (403, "AccessDenied"), (401, "")]
    {
        // As a server that tells what it was sent.
        let fake = Fake::start(move |head| match head.method() {
            "HEAD" => Action::empty(status),
            _ => Action::error(status, code, &format!("{SECRET} {CONTENT}")),
        });
        let reason = reason(&ran(archive(fake.port, "logs", &logs).arg("log")));
        assert!(reason.contains("check AWS_ACCESS_KEY_ID") && reason.contains(code), "{status} {code}: {reason}");
    }
}

#[test]
fn who_may_not_list_the_bucket_may_store_what_is_small() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::with("small", b"text");
    let stored_once = AtomicUsize::new(0);
    // As S3 does: what is not there is forbidden.
    let fake = Fake::start(move |head| match head.method() {
        "HEAD" if stored_once.load(Ordering::Relaxed) == 0 => Action::empty(403),
        "GET" if stored_once.load(Ordering::Relaxed) == 0 => Action::error(403, "AccessDenied", ""),
        "PUT" => {
            stored_once.fetch_add(1, Ordering::Relaxed);
            Action::Forward
        }
        _ => Action::Forward,
    });
    let stored_line = stored(b"text", "small");
    assert_eq!(ran(archive(fake.port, &bucket, &logs).args(["--compress", "none", "small"])).out(), stored_line);
    // Not where the server does not know how not to replace something.
    let fake = Fake::start(|_| Action::error(403, "AccessDenied", ""));
    let reason = reason(&ran(archive(fake.port, &bucket, &logs).env("AWS_CONDITIONAL_PUT", "disabled").arg("small")));
    assert!(reason.contains("s3:ListBucket"), "{reason}");
    assert_eq!(fake.count(&["PUT", "POST"]), 0);
}

#[test]
fn a_bucket_somewhere_else_is_not_followed() {
    let logs = Logs::with("log", CONTENT.as_bytes());
    let elsewhere = Fake::start(|_| Action::empty(200));
    let port = elsewhere.port;
    for status in [301, 307] {
        let fake = Fake::start(move |_| Action::Reply(status, vec![format!("location: http://127.0.0.1:{port}/logs/log")], Vec::new()));
        let reason = reason(&ran(archive(fake.port, "logs", &logs).arg("log")));
        assert!(reason.contains("not where it was looked for") && reason.contains("AWS_REGION"), "{reason}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[test]
fn without_credentials_it_says_so_and_does_not_wait_for_ever() {
    let logs = Logs::with("log", b"text");
    // A metadata service that never answers.
    let fake = Fake::start(|_| Action::Silence);
    let began = Instant::now();
    let mut command = archive(fake.port, "logs", &logs);
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    command.env("AWS_METADATA_ENDPOINT", format!("http://127.0.0.1:{}", fake.port));
    let ran = ran(command.arg("log"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((ran.code, ran.out().as_str()), (125, ""));
    assert!(ran.err().contains("no credentials: set AWS_ACCESS_KEY_ID"), "{}", ran.err());
    let half = checked(run(archive(fake.port, "logs", &logs).env_remove("AWS_ACCESS_KEY_ID").arg("log")));
    assert!(half.code == 125 && half.err().contains("AWS_ACCESS_KEY_ID"), "{half:?}");
}

#[test]
fn a_bucket_that_is_not_there_is_named() {
    let Some(moto) = Moto::get() else { return };
    let logs = Logs::with("small", b"text");
    logs.add("large", &noise(LARGE_BYTES));
    for name in ["small", "large"] {
        let reason = reason(&ran(archive(moto.port, "no-such-bucket", &logs).arg(name)));
        assert!(reason.contains("no bucket no-such-bucket") && reason.contains("AWS_REGION"), "{reason}");
    }
}

#[test]
fn what_is_no_sealed_log_of_ours_is_refused_and_not_waited_for() {
    let logs = Logs::new();
    let add = |name: &str| logs.add(name, CONTENT.as_bytes());
    fs::set_permissions(add("unsealed"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(add("group"), fs::Permissions::from_mode(0o420)).unwrap();
    symlink(add("target"), logs.path().join("symlink")).unwrap();
    fs::hard_link(add("linked"), logs.path().join("hardlink")).unwrap();
    fs::create_dir(logs.path().join("directory")).unwrap();
    let fifo = logs.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o400)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(logs.path().join("socket")).unwrap();
    symlink("nowhere", logs.path().join("dangling")).unwrap();
    let mut cases = vec![
        ("unsealed", "not sealed"),
        ("group", "not sealed"),
        ("symlink", "symbolic link"),
        ("dangling", "symbolic link"),
        ("linked", "2 names"),
        ("hardlink", "2 names"),
        ("directory", "no regular file"),
        ("fifo", "no regular file"),
        ("socket", "no regular file"),
        ("missing", "No such file"),
        ("no/such/directory", "opening its directory failed"),
        ("line\nfeed", "line feed"),
    ];
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(add("foreign"), Some(12345), None).unwrap();
        cases.push(("foreign", "belongs to user 12345"));
    }
    // Nobody is asked anything.
    let fake = Fake::start(|_| Action::empty(500));
    for (name, expected) in &cases {
        let reason = reason(&ran(archive(fake.port, "logs", &logs).arg("--").arg(name)));
        assert!(reason.contains(expected), "{name}: {reason}");
    }
    assert!(fake.seen().is_empty());
    let all = ran(archive(fake.port, "logs", &logs).args(cases.iter().map(|(name, _)| name)));
    assert_eq!((all.code, all.out().lines().count()), (1, cases.len()));
}

/// What happens to a file while it is stored.
type Change = fn(&Path);

#[test]
fn a_file_that_changes_during_the_upload_is_not_stored() {
    let Some(moto) = Moto::get() else { return };
    let changes: [(&str, Change); 4] = [
        ("written", |path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            let file = fs::File::options().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_at(&file, b"changed", 19 << 20).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
        }),
        ("cut", |path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            fs::File::options().write(true).open(path).unwrap().set_len(10 << 20).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
        }),
        ("replaced", |path| {
            let other = path.with_extension("other");
            fs::copy(path, &other).unwrap();
            fs::rename(&other, path).unwrap();
        }),
        ("removed", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, change) in changes {
        // While it is sent, and when it is there.
        for (method, part) in [("PUT", "partNumber=1"), ("GET", "log")] {
            let bucket = moto.bucket();
            let logs = Logs::new();
            let path = logs.add("log", &noise(LARGE_BYTES));
            let changed = AtomicUsize::new(0);
            let fake = Fake::start(move |head| {
                if is_about(head, method, part) && changed.fetch_add(1, Ordering::Relaxed) == 0 {
                    change(&path);
                }
                Action::Forward
            });
            let reason = reason(&ran(archive(fake.port, &bucket, &logs).args(["--compress", "none", "log"])));
            assert!(reason.starts_with("changed"), "{what}, {method}: {reason}");
            assert_eq!(moto.unfinished(&bucket), 0);
            assert_eq!(moto.keys(&bucket).len(), usize::from(method == "GET"), "{what}, {method}");
        }
    }
}

#[test]
fn the_report_goes_to_its_descriptor_and_nothing_else_does() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::with("good", b"text");
    fs::write(logs.path().join("bad"), b"not sealed").unwrap();
    let report = tempfile::NamedTempFile::new().unwrap();
    for descriptor in ["3", "17"] {
        let tool = archive(moto.port, &bucket, &logs);
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec \"$@\" {descriptor}>\"$REPORT\""), "bash"]).arg(tool.get_program()).args(tool.get_args());
        shell.args(["--compress", "none", "--report-fd", descriptor, "good", "bad"]).env_clear().env("REPORT", report.path());
        shell.envs(tool.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ran = ran(shell.stdin(Stdio::null()));
        assert_eq!((ran.code, ran.out().as_str()), (1, ""));
        assert!(ran.err().starts_with("iron-exec: storing bad failed: it is not sealed"), "{}", ran.err());
        let lines = fs::read_to_string(report.path()).unwrap();
        let (failed, good) = lines.split_once('\n').unwrap();
        assert!(failed.starts_with("failed\tit is not sealed") && failed.ends_with("\tbad"), "{lines}");
        assert_eq!(good, stored(b"text", "good"));
    }
}

#[test]
fn names_of_all_kinds_have_keys_from_which_they_can_be_had_back() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::new();
    let names: [&[u8]; 12] = [
        b"a b",
        b"100%",
        b"%41",
        b"tab\there",
        b"\xff\xfe",
        "grüße 日本".as_bytes(),
        b"a+b&c=d?e#f",
        b"<x>\"'",
        b"-q",
        b"back\\slash",
        b"*",
        b"...",
    ];
    let mut list = Vec::new();
    for name in names {
        logs.add(OsStr::from_bytes(name), name);
        list.extend_from_slice(name);
        list.push(0);
    }
    let ran = checked(run_with_input(archive(moto.port, &bucket, &logs).args(["--compress", "none", "--files0-from", "-"]), &list));
    assert_eq!((ran.code, ran.err().as_str()), (0, ""));
    let mut reported: Vec<Vec<u8>> = ran
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| line.splitn(4, |byte| *byte == b'\t').nth(3).unwrap().to_vec())
        .collect();
    let mut keys: Vec<Vec<u8>> = moto.keys(&bucket).iter().map(|key| unescaped(key.strip_prefix("pre/fix/").unwrap())).collect();
    let mut expected: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).to_vec();
    for list in [&mut reported, &mut keys, &mut expected] {
        list.sort();
    }
    assert_eq!(reported, expected);
    assert_eq!(keys, expected);
    // The key is `100%25`; in a URL its own `%` is escaped.
    assert_eq!(moto.object(&bucket, "pre/fix/100%2525").body, b"100%");
}

/// What `%XX` in a key stands for.
fn unescaped(key: &str) -> Vec<u8> {
    let mut parts = key.split('%');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    bytes
}

#[test]
fn files_may_be_given_with_their_paths() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let (logs, elsewhere) = (Logs::new(), Logs::with("absolute", b"1"));
    fs::create_dir(logs.path().join("sub")).unwrap();
    logs.add("sub/relative", b"2");
    let path = elsewhere.path().join("absolute");
    let ran = ran(archive(moto.port, &bucket, &logs).args(["--compress", "none", "sub/relative"]).arg(&path));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out().contains(&stored(b"1", path.to_str().unwrap())) && ran.out().contains(&stored(b"2", "sub/relative")),
        "{}",
        ran.out()
    );
    assert_eq!(moto.keys(&bucket), ["pre/fix/absolute", "pre/fix/relative"]);
    let list = checked(run_with_input(archive(moto.port, &bucket, &logs).args(["--files0-from", "-"]), b"sub/relative\0"));
    assert_eq!((list.code, list.out().as_str()), (125, ""), "a list holds plain names");
    let empty = checked(run_with_input(archive(moto.port, &bucket, &logs).args(["--files0-from", "-"]), b""));
    assert_eq!((empty.code, empty.out().as_str(), empty.err().as_str()), (0, "", ""));
}

/// Arguments, variables, and what the message says.
type Case = (&'static [&'static str], &'static [(&'static str, &'static str)], &'static str);

#[test]
fn where_nothing_can_be_done_that_is_125_and_the_message_says_what_to_do() {
    let logs = Logs::with("log", b"text");
    let cases: [Case; 12] = [
        (&[], &[], "FILE"),
        (&["log", "--to", "http://logs"], &[], "s3://BUCKET"),
        (&["log", "--compress", "lz4"], &[], "zstd"),
        (&["log", "--retries", "101"], &[], "retries"),
        (&["log", "--timeout", "0"], &[], "give more"),
        (&["log", "--report-fd", "99"], &[], "3>report"),
        (&["log", "--report-fd", "0"], &[], "reading only"),
        (&["log", "--directory", "/no/such"], &[], "/no/such"),
        (&["log"], &[("AWS_ALLOW_HTTP", "false")], "AWS_ALLOW_HTTP=true"),
        (&["log"], &[("AWS_ENDPOINT_URL", "localhost:1")], "https://HOST"),
        (&["log"], &[("AWS_ENDPOINT_URL", "https://a:hush-this-is-the-secret-key@host")], "leave them out"),
        (&["log"], &[("AWS_TIMEOUT", "soon")], "AWS_TIMEOUT is no time"),
    ];
    for (arguments, variables, expected) in cases {
        let mut command = bare_tool("archive");
        command.env_clear().env("AWS_ACCESS_KEY_ID", "someone").env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:1").env("AWS_ALLOW_HTTP", "true").envs(variables.iter().copied());
        if !arguments.contains(&"--to") {
            command.args(["--to", "s3://logs"]);
        }
        if !arguments.contains(&"--directory") {
            command.arg("--directory").arg(logs.path());
        }
        let ran = ran(command.args(arguments));
        assert_eq!((ran.code, ran.out().as_str()), (125, ""), "{arguments:?}: {}", ran.err());
        assert!(ran.err().contains(expected), "{arguments:?}: {}", ran.err());
    }
}

#[test]
fn a_large_file_is_never_whole_in_memory() {
    let logs = Logs::new();
    let path = logs.path().join("log");
    fs::File::create(&path).unwrap().set_len(256 << 20).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    // It takes all parts, and breaks when it should put them together.
    let fake = Fake::start(|head| match head.method() {
        "HEAD" => Action::empty(404),
        "POST" if head.first.contains("uploads=") => {
            let body = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>";
            Action::Reply(200, Vec::new(), body.as_bytes().to_vec())
        }
        "PUT" => Action::Reply(200, vec!["etag: \"0\"".to_owned()], Vec::new()),
        "DELETE" => Action::empty(204),
        _ => Action::error(400, "Enough", ""),
    });
    let tool = archive(fake.port, "logs", &logs);
    let mut shell = Command::new("sh");
    // 96 MiB of data of all kinds, stacks included.
    shell.args(["-c", "ulimit -d 98304; exec \"$@\"", "sh"]).arg(tool.get_program()).args(tool.get_args()).args([
        "--compress",
        "none",
        "log",
    ]);
    shell.env_clear().envs(tool.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let reason = reason(&ran(shell.stdin(Stdio::null())));
    assert!(reason.contains("putting its parts together") && reason.contains("Enough"), "{reason}");
    assert_eq!((fake.count(&["PUT"]), fake.count(&["DELETE"])), (32, 1));
}

#[test]
fn whoever_is_told_to_stop_leaves_no_unfinished_upload() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::new();
    let names = ["1", "2", "3", "4", "5", "6"];
    for name in names {
        logs.add(name, &noise(LARGE_BYTES));
    }
    let fake = Fake::start(|head| if is_about(head, "PUT", "partNumber=2") { Action::Silence } else { Action::Forward });
    let running = Running::start(archive(fake.port, &bucket, &logs).args(names).stdout(Stdio::piped()).stderr(Stdio::piped()));
    wait_until("the second parts are on their way", || {
        fake.seen().iter().filter(|head| is_about(head, "PUT", "partNumber=2")).count() == 4
    });
    assert!(moto.unfinished(&bucket) > 0);
    running.signal(Signal::TERM);
    let ran = checked(running.finish());
    assert_eq!((ran.code, ran.out().lines().count()), (1, names.len()), "{}", ran.err());
    assert!(ran.out().lines().all(|line| line.starts_with("failed\t") && line.contains("stopped by a signal")), "{}", ran.out());
    assert_eq!((moto.unfinished(&bucket), moto.keys(&bucket).len()), (0, 0));
}

#[test]
fn whoever_is_told_twice_to_stop_ends_at_once() {
    let logs = Logs::with("log", &noise(LARGE_BYTES));
    let fake = Fake::start(|head| match head.method() {
        "HEAD" => Action::empty(404),
        "POST" => {
            let body = "<InitiateMultipartUploadResult><UploadId>id</UploadId></InitiateMultipartUploadResult>";
            Action::Reply(200, Vec::new(), body.as_bytes().to_vec())
        }
        // Also when it should remove what was sent.
        _ => Action::Silence,
    });
    let mut running = Running::start(archive(fake.port, "logs", &logs).arg("log").stdout(Stdio::piped()).stderr(Stdio::piped()));
    for method in ["PUT", "DELETE"] {
        wait_until("it has come so far", || fake.count(&[method]) > 0);
        running.signal(Signal::INT);
    }
    let began = Instant::now();
    assert_eq!(running.wait(), 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn when_the_reader_of_the_report_goes_it_ends() {
    let Some(moto) = Moto::get() else { return };
    let bucket = moto.bucket();
    let logs = Logs::new();
    let names: Vec<OsString> = (0..20).map(|number| OsString::from_vec(format!("log-{number}").into_bytes())).collect();
    for name in &names {
        logs.add(name, b"text");
    }
    let mut running = Running::start(archive(moto.port, &bucket, &logs).args(&names).stdout(Stdio::piped()).stderr(Stdio::piped()));
    running.read_until("stored\t");
    running.close_stdout();
    let code = running.wait();
    assert!(code == 141 || moto.keys(&bucket).len() == names.len(), "{code}");
}
