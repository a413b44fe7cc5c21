//! What the tests of archiving share: an S3 server, and one that stands before it, or alone, and behaves badly.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{self, Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use crate::common::{DEADLINE, cannot_run, wait_until};

/// moto's S3 server (see `.ci/moto`): one for all tests of a process, gone when that ends.
pub struct Moto {
    pub port: u16,
    /// Its stdin: at its end, the shell that holds the server kills it.
    _shell: Child,
    _log: tempfile::TempDir,
}

impl Moto {
    /// The server; `None`, and said loudly, if it is not installed.
    pub fn get() -> Option<&'static Self> {
        static MOTO: OnceLock<Option<Moto>> = OnceLock::new();
        let moto = MOTO.get_or_init(|| server_path().map(|path| Self::start(&path))).as_ref();
        if moto.is_none() {
            assert!(cannot_run("it needs moto, an S3 server: `.ci/moto install` gets it"));
        }
        moto
    }

    fn start(server: &PathBuf) -> Self {
        let log = tempfile::tempdir().expect("a temporary directory");
        let path = log.path().join("log");
        let file = fs::File::create(&path).expect("a log");
        let script = r#""$0" -H 127.0.0.1 -p 0 & read -r _; kill $!"#;
        let shell = process::Command::new("sh")
            .args(["-c", script])
            .arg(server)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file)
            .spawn()
            .expect("a shell");
        let mut port = None;
        wait_until("moto runs", || {
            let text = fs::read_to_string(&path).expect("its log");
            let after = text.split_once("Running on http://127.0.0.1:").map(|(_, rest)| rest.to_owned());
            // Its last digit has come if more has.
            port = after.and_then(|rest| rest.split_once(|c: char| !c.is_ascii_digit())?.0.parse().ok());
            port.is_some()
        });
        Self { port: port.expect("it was found"), _shell: shell, _log: log }
    }

    /// Makes a bucket of a test's own; returns its name.
    pub fn bucket(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bucket-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let answer = self.ask("PUT", &format!("/{name}"), b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        name
    }

    /// An object's bytes and headers; the key as it is in a URL.
    pub fn object(&self, bucket: &str, key: &str) -> Answer {
        self.ask("GET", &format!("/{bucket}/{key}"), b"")
    }

    /// The keys in a bucket, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let listing = self.ask("GET", &format!("/{bucket}?list-type=2"), b"");
        assert_eq!(listing.status, 200);
        let text = String::from_utf8(listing.body).expect("XML is UTF-8");
        let keys = text.split("<Key>").skip(1).map(|rest| rest.split_once("</Key>").expect("it ends").0);
        keys.map(|key| key.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#x27;", "'").replace("&amp;", "&"))
            .collect()
    }

    /// How many uploads of a bucket were neither finished nor removed.
    pub fn unfinished(&self, bucket: &str) -> usize {
        let listing = self.ask("GET", &format!("/{bucket}?uploads"), b"");
        assert_eq!(listing.status, 200);
        String::from_utf8_lossy(&listing.body).matches("<UploadId>").count()
    }

    /// Makes an object.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) {
        assert_eq!(self.ask("PUT", &format!("/{bucket}/{key}"), bytes).status, 200);
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let credentials = "AWS4-HMAC-SHA256 Credential=a/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let lines = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nauthorization: {credentials}\r\n");
        let head = format!("{lines}content-length: {}\r\n\r\n", body.len());
        let mut stream = connect(self.port);
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("moto takes a request");
        let mut stream = BufReader::new(stream);
        let head = Head::read(&mut stream).expect("moto answers");
        let mut body = Vec::new();
        stream.read_to_end(&mut body).expect("moto answers to the end");
        let status = head.first.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, headers: head.headers, body }
    }
}

fn server_path() -> Option<PathBuf> {
    let output = process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/moto")).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }
}

/// The head of a request or of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// `GET /bucket/key HTTP/1.1`
    pub first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(stream: &mut impl BufRead) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut lines = lines.into_iter();
        let first = lines.next()?;
        let pair = |line: String| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Some(Self { first, headers: lines.filter_map(pair).collect() })
    }

    pub fn method(&self) -> &str {
        self.first.split(' ').next().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }

    fn body_bytes(&self) -> u64 {
        self.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

fn value<'headers>(headers: &'headers [(String, String)], name: &str) -> Option<&'headers str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// What a [`Fake`] does with a request.
pub enum Action {
    /// Passes it on to moto, and its answer back.
    Forward,
    /// Passes it on to moto, and keeps the answer to itself.
    ForwardAndCut,
    /// Takes so many bytes of its body and breaks the connection.
    CutAfter(u64),
    /// Takes it and never answers.
    Silence,
    /// Takes it and answers: a status, more lines of the head, a body.
    Reply(u16, Vec<String>, Vec<u8>),
}

impl Action {
    /// An error as S3 tells it; `message` is what some servers say besides.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
        Action::Reply(status, Vec::new(), body.into_bytes())
    }

    pub fn empty(status: u16) -> Self {
        Action::Reply(status, Vec::new(), Vec::new())
    }
}

/// A server that does with each request what a test says.
pub struct Fake {
    pub port: u16,
    seen: Arc<Mutex<Vec<Head>>>,
}

impl Fake {
    /// `action` is asked for each request, once its head has come; it may do something to the world meanwhile.
    pub fn start(action: impl Fn(&Head) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (action, known) = (Arc::new(action), Arc::clone(&seen));
        // It ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (action, known) = (Arc::clone(&action), Arc::clone(&known));
                // Whoever breaks a connection knows it.
                thread::spawn(move || serve(stream, &*action, &known).ok());
            }
        });
        Self { port, seen }
    }

    /// The requests so far with one of these methods.
    pub fn count(&self, methods: &[&str]) -> usize {
        self.seen().iter().filter(|head| methods.contains(&head.method())).count()
    }

    pub fn seen(&self) -> Vec<Head> {
        self.seen.lock().expect("nobody has panicked").clone()
    }
}

fn serve(stream: TcpStream, action: &(impl Fn(&Head) -> Action + ?Sized), seen: &Mutex<Vec<Head>>) -> io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut client = BufReader::new(stream);
    let Some(head) = Head::read(&mut client) else { return Ok(()) };
    seen.lock().expect("nobody has panicked").push(head.clone());
    let mut body = (&mut client).take(head.body_bytes());
    let action = action(&head);
    match action {
        Action::CutAfter(bytes) => {
            io::copy(&mut body.take(bytes), &mut io::sink())?;
            return Ok(());
        }
        Action::Silence => {
            io::copy(&mut body, &mut io::sink())?;
            thread::sleep(DEADLINE);
        }
        Action::Reply(status, lines, reply) => {
            io::copy(&mut body, &mut io::sink())?;
            let mut head = vec![format!("HTTP/1.1 {status} Status"), "connection: close".to_owned()];
            if !lines.iter().any(|line| line.starts_with("content-length:")) {
                head.push(format!("content-length: {}", reply.len()));
            }
            head.extend(lines);
            client.get_mut().write_all(format!("{}\r\n\r\n", head.join("\r\n")).as_bytes())?;
            client.get_mut().write_all(&reply)?;
        }
        Action::Forward | Action::ForwardAndCut => {
            let mut upstream = connect(Moto::get().expect("the test has asked for moto").port);
            upstream.write_all(format!("{}\r\nconnection: close\r\n", head.first).as_bytes())?;
            for (name, value) in head.headers.iter().filter(|(name, _)| name != "connection") {
                upstream.write_all(format!("{name}: {value}\r\n").as_bytes())?;
            }
            upstream.write_all(b"\r\n")?;
            io::copy(&mut body, &mut upstream)?;
            let mut answer = Vec::new();
            upstream.read_to_end(&mut answer)?;
            if matches!(action, Action::Forward) {
                client.get_mut().write_all(&answer)?;
            }
        }
    }
    Ok(())
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}
