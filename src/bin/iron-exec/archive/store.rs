//! The object storage: what is asked of it, and what its answers mean.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientConfigKey, ClientOptions, GetOptions, GetRange, HeaderMap, HeaderValue, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::archive::source::{Digests, hex};
use crate::archive::target::{Packing, Target};
use crate::report::Fault;

/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// The first wait; each of the next ones is random, up to three times the one before.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// How long a request is tried again: its signature is good for 15 minutes.
const RETRY_TIMEOUT_MAX: Duration = Duration::from_mins(10);

/// How long one attempt at a request may take, with all that it sends and receives (AWS_TIMEOUT: another time).
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// How long connecting may take (AWS_CONNECT_TIMEOUT: another time).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long credentials are waited for where they have to be asked for.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long removing an unfinished upload may take.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes fetched at a time when an object is read back.
const FETCH_BYTES: u64 = 8 << 20;

/// What is said to have failed where an object was looked for.
const LOOKING: &str = "looking for the object";

/// What is asked of whoever set up the credentials.
const CREDENTIALS_ADVICE: &str = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION";

/// A bucket, and the credentials for it.
#[derive(Debug)]
pub(crate) struct Store {
    writer: AmazonS3,
    /// The same bucket; asks for checksums with everything that it asks for.
    reader: AmazonS3,
    bucket: String,
    /// Where it is, in words.
    place: String,
    /// Whether credentials have to be asked for.
    asks_for_credentials: bool,
    create_only: bool,
}

/// What went wrong with the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What happened, and what to do about it.
    pub(crate) reason: String,
    /// Whether every other file would meet the same.
    pub(crate) is_general: bool,
}

/// An object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) bytes: u64,
    /// The SHA-256 that the server holds against the bytes it has, as it writes it.
    pub(crate) attested: Option<String>,
}

/// What looking for an object found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    There(Object),
    NotThere,
    /// We may not know: S3 says so of a missing object, too, to who may not list the bucket.
    Denied(Failure),
}

/// How an upload went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    Done,
    /// There is an object with that key by now: somebody else's, or ours by an attempt whose answer was lost.
    Taken,
}

impl Store {
    /// The bucket of `target`, with the credentials and the endpoint of the environment.
    ///
    /// # Errors
    /// The environment does not say enough, or contradicts itself.
    pub(crate) fn from_env(target: &Target, retries: u32, file_timeout: Duration) -> Result<Self, Fault> {
        // It fails if there is one already: then this was called before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let from_env = AmazonS3Builder::from_env();
        let value = |key: AmazonS3ConfigKey| from_env.get_config_value(&key).filter(|value| !value.is_empty());
        let place = place(value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint)).as_deref(), &value)?;
        let is_true = |value: Option<String>| {
            value.is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "on" | "yes" | "y"))
        };
        let create_only = value(AmazonS3ConfigKey::ConditionalPut).as_deref() != Some("disabled");
        let asks_for_credentials = !is_true(value(AmazonS3ConfigKey::SkipSignature))
            && value(AmazonS3ConfigKey::AccessKeyId).is_none()
            && value(AmazonS3ConfigKey::SecretAccessKey).is_none();
        let options = ClientOptions::new().with_allow_http(allows_http(&value));
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: BACKOFF_FIRST, max_backoff: BACKOFF_MAX, base: 3.0 },
            max_retries: usize::try_from(retries).unwrap_or(usize::MAX),
            retry_timeout: file_timeout.min(RETRY_TIMEOUT_MAX),
        };
        let builder =
            from_env.with_bucket_name(target.bucket()).with_checksum_algorithm(Checksum::SHA256).with_retry(retry).with_http_connector(
                Connector {
                    create_only,
                    request_timeout: time_of_env("AWS_TIMEOUT", REQUEST_TIMEOUT)?,
                    connect_timeout: time_of_env("AWS_CONNECT_TIMEOUT", CONNECT_TIMEOUT)?,
                },
            );
        let refused = |error: object_store::Error| {
            Fault::new(format!("setting up the S3 client failed: {}: {CREDENTIALS_ADVICE}", brief(&error.to_string())))
        };
        let writer = builder.clone().with_client_options(options.clone()).build().map_err(refused)?;
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        // One provider of credentials for both: it may have to ask for them.
        let credentials = Arc::clone(writer.credentials());
        let reader =
            builder.with_client_options(options.with_default_headers(headers)).with_credentials(credentials).build().map_err(refused)?;
        Ok(Self { writer, reader, bucket: target.bucket().to_owned(), place, asks_for_credentials, create_only })
    }

    /// Whether the server is asked to store nothing in place of something else.
    pub(crate) fn never_replaces(&self) -> bool {
        self.create_only
    }

    /// Gets credentials, where they have to be asked for, so that their want is told once and soon.
    ///
    /// # Errors
    /// There are none.
    pub(crate) async fn check_credentials(&self) -> Result<(), Fault> {
        if !self.asks_for_credentials {
            return Ok(());
        }
        let problem = match timeout(CREDENTIALS_TIMEOUT, self.writer.credentials().get_credential()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => brief(&root_cause(&error)),
            Err(_) => format!("no answer within {} s", CREDENTIALS_TIMEOUT.as_secs()),
        };
        Err(Fault::new(format!(
            "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN); without \
             them the instance's or container's metadata service was asked: {problem}"
        )))
    }

    /// Looks for an object.
    pub(crate) async fn look(&self, key: &Path) -> Result<Look, Failure> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.reader.get_opts(key, options).await {
            Ok(found) => {
                let attested = found.extensions.get::<Attested>().map(|attested| attested.0.clone());
                Ok(Look::There(Object { bytes: found.meta.size, attested }))
            }
            // The answer to a HEAD has no body: that there is no such bucket is told when something is sent.
            Err(object_store::Error::NotFound { .. }) => Ok(Look::NotThere),
            Err(error) if matches!(Answer::of(&error).status, Some(400..=499)) => self.ask_why(key, &error).await,
            Err(error) => Err(self.failure(LOOKING, &error)),
        }
    }

    /// Asks once more, for a byte, because the answer to that says why.
    async fn ask_why(&self, key: &Path, first: &object_store::Error) -> Result<Look, Failure> {
        let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
        let second = match self.reader.get_opts(key, options).await {
            Err(error) if Answer::of(&error).code.as_deref() == Some("NoSuchKey") => return Ok(Look::NotThere),
            Err(error) if Answer::of(&error).status.is_some() => Some(error),
            Ok(_) | Err(_) => None,
        };
        let error = second.as_ref().unwrap_or(first);
        let failure = self.failure(LOOKING, error);
        if Answer::of(error).status == Some(403) && !failure.is_general { Ok(Look::Denied(failure)) } else { Err(failure) }
    }

    /// Stores a small object with one request.
    pub(crate) async fn put(&self, key: &Path, payload: PutPayload, packing: Packing, digests: &Digests) -> Result<Upload, Failure> {
        let options = PutOptions { attributes: attributes(packing, digests), ..PutOptions::default() };
        match self.writer.put_opts(key, payload, options).await {
            Ok(_) => Ok(Upload::Done),
            Err(error) if is_taken(&error) => Ok(Upload::Taken),
            Err(error) => Err(self.failure("sending it", &error)),
        }
    }

    /// Begins to store an object in parts; returns the upload's id.
    pub(crate) async fn begin_parts(&self, key: &Path, packing: Packing, digests: &Digests) -> Result<String, Failure> {
        let options = PutMultipartOptions { attributes: attributes(packing, digests), ..PutMultipartOptions::default() };
        self.writer.create_multipart_opts(key, options).await.map_err(|error| self.failure("beginning to send it", &error))
    }

    /// Sends one part.
    pub(crate) async fn put_part(&self, key: &Path, upload: &String, index: usize, bytes: Vec<u8>) -> Result<PartId, Failure> {
        let sent = self.writer.put_part(key, upload, index, PutPayload::from(bytes)).await;
        sent.map_err(|error| self.failure(&format!("sending part {}", index + 1), &error))
    }

    /// Makes an object of its parts.
    pub(crate) async fn end_parts(&self, key: &Path, upload: &String, parts: Vec<PartId>) -> Result<Upload, Failure> {
        match self.writer.complete_multipart(key, upload, parts).await {
            Ok(_) => Ok(Upload::Done),
            // NoSuchUpload: an attempt whose answer was lost has completed it.
            Err(error) if is_taken(&error) || Answer::of(&error).code.as_deref() == Some("NoSuchUpload") => Ok(Upload::Taken),
            Err(error) => Err(self.failure("putting its parts together", &error)),
        }
    }

    /// Removes an unfinished upload.
    pub(crate) async fn abort_parts(&self, key: &Path, upload: &String) -> Result<(), ()> {
        match timeout(ABORT_TIMEOUT, self.writer.abort_multipart(key, upload)).await {
            Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(()),
        }
    }

    /// Reads an object of `bytes` back; returns its SHA-256 in hex. `None`: it does not have so many bytes.
    pub(crate) async fn read_back(&self, key: &Path, bytes: u64) -> Result<Option<String>, Failure> {
        let mut hash = Sha256::new();
        let mut offset = 0;
        loop {
            let end = bytes.min(offset + FETCH_BYTES);
            // An object without bytes has no range.
            let range = (bytes > FETCH_BYTES).then_some(GetRange::Bounded(offset..end));
            let fetched = self.reader.get_opts(key, GetOptions { range, ..GetOptions::default() }).await;
            let fetched = fetched.map_err(|error| self.failure("reading it back", &error))?;
            if fetched.range != (offset..end) {
                return Ok(None);
            }
            let chunk = fetched.bytes().await.map_err(|error| self.failure("reading it back", &error))?;
            if chunk.len() as u64 != end - offset {
                return Ok(None);
            }
            hash.update(&chunk);
            offset = end;
            if offset == bytes {
                return Ok(Some(hex(&hash.finalize())));
            }
        }
    }

    /// What an error means for whoever has to do something about it. Of what the server said, only its code is repeated.
    fn failure(&self, doing: &str, error: &object_store::Error) -> Failure {
        let (bucket, place) = (&self.bucket, &self.place);
        let answer = Answer::of(error);
        let code = answer.code.as_deref().unwrap_or_default();
        let said = [answer.status.map(|status| status.to_string()).unwrap_or_default().as_str(), code].join(" ").trim().to_owned();
        let attempts = if answer.attempts > 1 { format!(" ({} attempts)", answer.attempts) } else { String::new() };
        let general = |reason: String| Failure { reason, is_general: true };
        match (answer.status, code) {
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" | "TokenRefreshRequired")
            | (Some(401), _) => general(format!("{doing} failed: {place} does not accept the credentials ({said}): {CREDENTIALS_ADVICE}")),
            (_, "RequestTimeTooSkewed" | "RequestExpired") => {
                general(format!("{doing} failed: the clocks of this machine and of {place} disagree ({said}): set this machine's clock"))
            }
            (_, "NoSuchBucket") => general(format!(
                "{doing} failed: there is no bucket {bucket} at {place} ({said}): create it, or check --to, AWS_REGION and AWS_ENDPOINT_URL"
            )),
            (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") | (Some(300..=399), _) => {
                general(format!(
                    "{doing} failed: the bucket {bucket} is not where it was looked for, {place} ({said}): check AWS_REGION and AWS_ENDPOINT_URL"
                ))
            }
            (Some(403), _) => Failure::new(format!(
                "{doing} failed: access to bucket {bucket} at {place} is denied ({said}): {CREDENTIALS_ADVICE}, and that they allow s3:PutObject, \
                 s3:GetObject, s3:ListBucket and s3:AbortMultipartUpload"
            )),
            (Some(501), _) => Failure::new(format!(
                "{doing} failed: {place} cannot do what was asked ({said}){attempts}: if it knows no conditional writes, set AWS_CONDITIONAL_PUT=disabled"
            )),
            (Some(429 | 500..=599), _) => Failure::new(format!("{doing} failed: {place} answered {said}{attempts}: try again later")),
            (Some(_), _) => Failure::new(format!("{doing} failed: {place} answered {said}{attempts}")),
            (None, "") => self.transport_failure(doing, error, &attempts),
            (None, code) => Failure::new(format!("{doing} failed: {place} answered {code}{attempts}: try again later")),
        }
    }

    fn transport_failure(&self, doing: &str, error: &object_store::Error, attempts: &str) -> Failure {
        let place = &self.place;
        let cause = brief(&root_cause(error));
        match http_error(error).map(HttpError::kind) {
            Some(HttpErrorKind::Connect) if cause.contains("certificate") => Failure {
                reason: format!(
                    "{doing} failed: {place} has no certificate that is trusted here{attempts}: {cause}: check AWS_ENDPOINT_URL, or name its authority's with SSL_CERT_FILE"
                ),
                is_general: true,
            },
            Some(HttpErrorKind::Connect) => Failure {
                reason: format!(
                    "{doing} failed: {place} cannot be reached{attempts}: {cause}: check AWS_ENDPOINT_URL and AWS_REGION, and that the server runs"
                ),
                is_general: true,
            },
            Some(HttpErrorKind::Timeout) => {
                Failure::new(format!("{doing} failed: {place} did not answer in time{attempts}: try again later, or set AWS_TIMEOUT"))
            }
            Some(_) => Failure::new(format!("{doing} failed: the connection to {place} broke{attempts}: {cause}: try again later")),
            None => Failure::new(format!("{doing} failed: {cause}")),
        }
    }
}

impl Failure {
    /// A failure that is one file's own.
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_general: false }
    }
}

/// What a server said, as far as it says what to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: Option<u16>,
    /// The code of S3's XML.
    code: Option<String>,
    attempts: u32,
}

impl Answer {
    /// The client keeps these to itself but for its message. That of the cause has the key in a URL only, which cannot look like an answer.
    fn of(error: &object_store::Error) -> Self {
        Self::in_text(&error.source().map_or_else(|| error.to_string(), ToString::to_string))
    }

    fn in_text(text: &str) -> Self {
        let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
        let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<u32>().ok());
        // Servers say all sorts of things; what is repeated must be a code.
        let is_code = |code: &&str| (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let code = after("<Code>").and_then(|rest| rest.split_once("</Code>")).map(|(code, _)| code).filter(is_code);
        let redirect = text.contains("redirect without LOCATION").then_some(301);
        Self {
            status: after("status code: ").and_then(number).and_then(|status| u16::try_from(status).ok()).or(redirect),
            code: code.map(str::to_owned),
            attempts: after(", after ").and_then(number).map_or(1, |retries| retries.saturating_add(1)),
        }
    }
}

/// What the server says that it holds, on its way through the client.
#[derive(Clone, Debug)]
struct Attested(String);

/// Makes clients of [`Service`].
#[derive(Debug)]
struct Connector {
    create_only: bool,
    request_timeout: Duration,
    connect_timeout: Duration,
}

/// The client below the client: never replaces an object, and keeps the checksums that the server says.
#[derive(Debug)]
struct Service {
    client: HttpClient,
    create_only: bool,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        // Logs go where we were told, and nowhere else: the client's own connector would follow a redirection, with the log and a session's token.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .https_only(!allows_http)
            .http1_only()
            .timeout(self.request_timeout)
            .connect_timeout(self.connect_timeout)
            .user_agent(concat!("iron-exec/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| object_store::Error::Generic { store: "HTTP", source: Box::new(error) })?;
        Ok(HttpClient::new(Service { client: HttpClient::new(client), create_only: self.create_only }))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // What makes an object: the one PUT of a small one, which has our metadata, and the POST that ends an upload. The client could ask for this
        // for the former only, and would then not try again when a connection breaks.
        let makes_object = match request.method().as_str() {
            "PUT" => request.headers().contains_key("x-amz-meta-sha256"),
            "POST" => request.uri().query().is_some_and(|query| query.contains("uploadId=")),
            _ => false,
        };
        if makes_object && self.create_only {
            request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        }
        let mut response = self.client.execute(request).await?;
        let attested = response.headers().get("x-amz-checksum-sha256").and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let Some(attested) = attested {
            response.extensions_mut().insert(Attested(attested));
        }
        Ok(response)
    }
}

/// The endpoint in words.
fn place(endpoint: Option<&str>, value: &dyn Fn(AmazonS3ConfigKey) -> Option<String>) -> Result<String, Fault> {
    let Some(endpoint) = endpoint else {
        return Ok(format!(
            "AWS in {}",
            value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1 (AWS_REGION is not set)".to_owned())
        ));
    };
    if endpoint.contains('@') {
        return Err(Fault::new(
            "the endpoint (AWS_ENDPOINT_URL) holds a user or a password: leave them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ));
    }
    match endpoint.split_once("://").map(|(scheme, _)| scheme) {
        Some("http") if !allows_http(value) => Err(Fault::new(format!(
            "the endpoint {endpoint} (AWS_ENDPOINT_URL) has no TLS: use https://, or set AWS_ALLOW_HTTP=true if everything on the way to it can be trusted"
        ))),
        Some("http" | "https") => Ok(endpoint.to_owned()),
        _ => Err(Fault::new(format!("the endpoint {endpoint:?} (AWS_ENDPOINT_URL) is no URL: give https://HOST[:PORT]"))),
    }
}

fn allows_http(value: &dyn Fn(AmazonS3ConfigKey) -> Option<String>) -> bool {
    value(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// A time that the environment may set; the default.
fn time_of_env(name: &str, default: Duration) -> Result<Duration, Fault> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            humantime::parse_duration(&text).map_err(|error| Fault::new(format!("{name} is no time: {error}: give one as `30s` or `2m`")))
        }
        Ok(_) | Err(_) => Ok(default),
    }
}

fn attributes(packing: Packing, digests: &Digests) -> Attributes {
    let metadata = |name: &'static str| Attribute::Metadata(name.into());
    Attributes::from_iter([
        (Attribute::ContentType, packing.content_type().to_owned()),
        (metadata("sha256"), digests.stored_sha256.clone()),
        (metadata("original-size"), digests.original_bytes.to_string()),
        (metadata("original-sha256"), digests.original_sha256.clone()),
    ])
}

/// Whether the condition that there be no such object yet did not hold.
fn is_taken(error: &object_store::Error) -> bool {
    use object_store::Error::{AlreadyExists, NotModified, Precondition};
    matches!(error, AlreadyExists { .. } | NotModified { .. } | Precondition { .. })
}

/// The client's own error, if it is one of the connection.
fn http_error<'error>(error: &'error (dyn Error + 'static)) -> Option<&'error HttpError> {
    chain(error).find_map(|error| error.downcast_ref::<HttpError>())
}

/// What was at the bottom of it.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// An error, what caused it, and so on.
fn chain<'error>(error: &'error (dyn Error + 'static)) -> impl Iterator<Item = &'error (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// A message of the client's, without what a server may have put into it.
fn brief(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    if let Some(status) = Answer::in_text(text).status {
        return format!("the answer was {status}");
    }
    let own = text.split(['<', '{']).next().unwrap_or_default();
    own.chars().take(CHARACTERS_MAX).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_a_code_and_a_number_of_attempts() {
        let text = "Generic S3 error: Error performing PUT http://h/b/k in 3s, after 2 retries, max_retries: 2, retry_timeout: 60s  - Server returned \
                    non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code><Message>secret</Message></Error>";
        assert_eq!(Answer::in_text(text), Answer { status: Some(503), code: Some("SlowDown".to_owned()), attempts: 3 });
        assert_eq!(Answer::in_text("connection refused"), Answer { status: None, code: None, attempts: 1 });
        assert_eq!(Answer::in_text("<Code>two words\n</Code>").code, None);
        assert_eq!(Answer::in_text("Received redirect without LOCATION, this").status, Some(301));
        assert_eq!(Answer::in_text("status code: 99999999999 x").status, None);
    }

    #[test]
    fn what_a_server_says_is_not_repeated() {
        assert_eq!(brief("Server returned non-2xx status code: 403 Forbidden: hidden"), "the answer was 403");
        assert_eq!(brief("unexpected answer: <Error>hidden</Error>"), "unexpected answer:");
        assert_eq!(brief("Connection refused (os error 111)"), "Connection refused (os error 111)");
    }

    #[test]
    fn an_endpoint_has_tls_unless_it_was_allowed_not_to() {
        let none = |_: AmazonS3ConfigKey| None;
        let allowed = |_: AmazonS3ConfigKey| Some("true".to_owned());
        assert_eq!(place(Some("https://h:1"), &none).unwrap(), "https://h:1");
        assert_eq!(place(Some("http://h:1"), &allowed).unwrap(), "http://h:1");
        assert!(place(None, &none).unwrap().contains("AWS_REGION"));
        assert!(place(Some("http://h:1"), &none).is_err_and(|fault| fault.to_string().contains("AWS_ALLOW_HTTP=true")));
        assert!(place(Some("h:1"), &none).is_err());
        assert!(place(Some("https://user:hidden@h"), &none).is_err_and(|fault| !fault.to_string().contains("hidden")));
    }
}
