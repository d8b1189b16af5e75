//! The command line's side of the HTTP API: a connection to a running host, and the commands that need one.
//!
//! Every error is one sentence that says what to do. Nothing here knows brokers, engines or plugins: only what the API
//! answers ([`crate::http::view`]).

pub mod output;
pub mod pipeline;
pub mod publish;
mod sse;
pub mod tail;
pub mod topic;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use synapse_core::topic::{BrokerName, NameError, TopicName};

use crate::http::view::Problem;

pub use self::output::Output;

/// Where a host listens unless it is told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// How long a host may take to take a connection, and to begin an answer.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// How long a host that does not listen yet is waited for, and how often it is tried.
const START_WAIT: Duration = Duration::from_secs(2);
const CONNECT_AGAIN: Duration = Duration::from_millis(50);

/// Size in bytes of an answer that is taken in as a whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Which host a command speaks to, and with what key.
#[derive(Clone, Debug, clap::Args)]
pub struct Connection {
    /// The host's address.
    #[arg(long, value_name = "URL", env = "SYNAPSE_URL", default_value = DEFAULT_URL, global = true)]
    pub url: String,
    /// The key to show to the host, if it wants one.
    #[arg(long, value_name = "KEY", env = "SYNAPSE_KEY", hide_env_values = true, global = true)]
    pub key: Option<String>,
}

impl Connection {
    /// A client for that host.
    ///
    /// # Errors
    /// A URL that is none.
    pub fn client(&self) -> Result<Client, Error> {
        Client::new(&self.url, self.key.clone())
    }
}

/// Speaks to one host.
#[derive(Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    /// Without a slash at its end.
    url: String,
    authorization: Option<HeaderValue>,
}

/// Why a host did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none.
    #[error("`{url}` is no address of a host: {reason}; give one such as {DEFAULT_URL} with --url or SYNAPSE_URL")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key cannot be sent.
    #[error("the key holds characters that no header can carry; copy it again")]
    Key,
    /// No connection.
    #[error("nothing answers at {url}; start a host with `synapse run`, or give --url")]
    Nobody {
        /// Where.
        url: String,
    },
    /// The host says no.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// The connection broke off, or the answer did not come.
    #[error("the connection to {url} broke off: {reason}")]
    Broken {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Whatever answers is no host.
    #[error("what answers at {url} is no Synapse host ({reason}); give the host's address with --url")]
    Foreign {
        /// Where.
        url: String,
        /// Why we think so.
        reason: String,
    },
}

impl Error {
    /// Whether trying again may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Nobody { .. } | Self::Broken { .. } => true,
            Self::Refused(problem) => problem.status >= 500,
            Self::Address { .. } | Self::Key | Self::Foreign { .. } => false,
        }
    }
}

impl Client {
    /// A client for the host at `url`, such as `http://127.0.0.1:8080`. Connects when it has to.
    ///
    /// # Errors
    /// A URL that is none, or a key that cannot be sent.
    pub fn new(url: &str, key: Option<String>) -> Result<Self, Error> {
        let wrong = |reason| Error::Address { url: url.to_owned(), reason };
        let parsed: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        match parsed.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("only http:// is spoken; TLS ends at a proxy")),
            _ => return Err(wrong("it does not begin with http://")),
        }
        if parsed.query().is_some() {
            return Err(wrong("it has parameters"));
        }
        let authorization = key.map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| Error::Key)?;
            value.set_sensitive(true);
            Ok(value)
        });
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_WAIT));
        connector.set_nodelay(true);
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { pool, url: url.trim_end_matches('/').to_owned(), authorization: authorization.transpose()? })
    }

    /// The host's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Reads a JSON answer.
    ///
    /// # Errors
    /// As the kinds of [`Error`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let response = self.send(Method::GET, path, [(ACCEPT, "application/json".to_owned())], Bytes::new()).await?;
        self.json(response).await
    }

    /// Sends a body and reads a JSON answer.
    ///
    /// # Errors
    /// As the kinds of [`Error`]; after [`Error::Broken`] the host may or may not have done what was asked for.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, media: &str, body: Bytes) -> Result<T, Error> {
        let response = self.send(Method::POST, path, [(CONTENT_TYPE, media.to_owned())], body).await?;
        self.json(response).await
    }

    /// Asks for an answer that is read piece by piece.
    ///
    /// # Errors
    /// As the kinds of [`Error`].
    pub(crate) async fn stream(
        &self,
        path: &str,
        headers: impl IntoIterator<Item = (HeaderName, String)>,
    ) -> Result<Response<Incoming>, Error> {
        self.send(Method::GET, path, headers, Bytes::new()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: impl IntoIterator<Item = (HeaderName, String)>,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        request = request.header(USER_AGENT, concat!("synapse/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| Error::Address { url: self.url.clone(), reason: "a request cannot be made of it" })?;
        let started = Instant::now();
        let response = loop {
            let answer = tokio::time::timeout(ANSWER_WAIT, self.pool.request(request.clone())).await;
            match answer.map_err(|_| self.broken(format!("no answer within {} s", ANSWER_WAIT.as_secs())))? {
                Ok(response) => break response,
                // Nothing was sent. A host that was started a moment ago is about to listen.
                Err(error) if error.is_connect() && started.elapsed() < START_WAIT => {
                    tokio::time::sleep(CONNECT_AGAIN).await;
                }
                Err(error) if error.is_connect() => return Err(Error::Nobody { url: self.url.clone() }),
                Err(error) => return Err(self.broken(causes(&error))),
            }
        };
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }

    async fn refused(&self, response: Response<Incoming>) -> Error {
        let status = response.status();
        match self.body(response).await {
            Ok(body) => match serde_json::from_slice(&body) {
                Ok(problem) => Error::Refused(Box::new(problem)),
                Err(_) => Error::Foreign { url: self.url.clone(), reason: format!("it says {status}") },
            },
            Err(error) => error,
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Error> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::Foreign { url: self.url.clone(), reason: format!("its answer is odd: {error}") })
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        match tokio::time::timeout(ANSWER_WAIT, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.broken(error.to_string())),
            Err(_) => Err(self.broken("the answer does not end".to_owned())),
        }
    }

    pub(crate) fn broken(&self, reason: String) -> Error {
        Error::Broken { url: self.url.clone(), reason }
    }
}

/// An error and what led to it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A topic as people write it: `broker/topic`, or `topic` on the host's default broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicArg {
    broker: Option<BrokerName>,
    topic: TopicName,
}

impl FromStr for TopicArg {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((broker, topic)) => Ok(Self { broker: Some(broker.parse()?), topic: topic.parse()? }),
            None => Ok(Self { broker: None, topic: text.parse()? }),
        }
    }
}

impl fmt::Display for TopicArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.broker {
            Some(broker) => write!(f, "{broker}/{}", self.topic),
            None => self.topic.fmt(f),
        }
    }
}

impl TopicArg {
    /// The topic's route; `below` is what follows its name.
    fn route(&self, below: &str, parameters: &[(&str, &str)]) -> String {
        let broker = self.broker.iter().map(|broker| ("broker", broker.as_str()));
        let mut route = format!("/v1/topics/{}{below}", self.topic);
        for (index, (name, value)) in broker.chain(parameters.iter().copied()).enumerate() {
            let between = if index == 0 { '?' } else { '&' };
            route.push_str(&format!("{between}{name}={}", encoded(value)));
        }
        route
    }
}

/// A text as it may stand in a URL.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'@' | b',' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_become_routes() {
        let route = |topic: &str| topic.parse::<TopicArg>().unwrap().route("/events", &[("from", "a+b &*@1")]);
        assert_eq!(route("flights"), "/v1/topics/flights/events?from=a%2Bb%20%26%2A@1");
        assert_eq!(route("bus/a:b"), "/v1/topics/a:b/events?broker=bus&from=a%2Bb%20%26%2A@1");
        assert_eq!("bus/flights".parse::<TopicArg>().unwrap().route("", &[]), "/v1/topics/flights?broker=bus");
        assert!("a/b/c".parse::<TopicArg>().is_err());
    }

    #[test]
    fn addresses_are_checked() {
        let refused = |url: &str| Client::new(url, None).err().expect("no address").to_string();
        insta::assert_snapshot!(refused("https://example.com"), @"`https://example.com` is no address of a host: only http:// is spoken; TLS ends at a proxy; give one such as http://127.0.0.1:8080 with --url or SYNAPSE_URL");
        insta::assert_snapshot!(refused("localhost:8080"), @"`localhost:8080` is no address of a host: it does not begin with http://; give one such as http://127.0.0.1:8080 with --url or SYNAPSE_URL");
        insta::assert_snapshot!(refused("http://a b"), @"`http://a b` is no address of a host: not a URL; give one such as http://127.0.0.1:8080 with --url or SYNAPSE_URL");
        assert_eq!(Client::new("http://localhost:1/base/", None).unwrap().url(), "http://localhost:1/base");
        assert!(matches!(Client::new(DEFAULT_URL, Some("a\nb".to_owned())), Err(Error::Key)));
    }
}
