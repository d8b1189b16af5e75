//! Errors as clients see them: RFC 9457, one clear sentence each.
//!
//! Every kind has one status and one name that never change; sentences may.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use synapse_core::BrokerError;
use synapse_core::broker::BrokerErrorKind;

use super::view;

/// A request that cannot be answered as it was meant.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    kind: Kind,
    detail: String,
    lines: Option<Lines>,
}

/// What is to be said of NDJSON.
#[derive(Clone, Debug)]
struct Lines {
    reason: String,
    at: Option<u64>,
    accepted: u64,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    BadRequest,
    NotAnEvent,
    CrossSite,
    WrongHost,
    UnknownRoute,
    UnknownBroker,
    UnknownTopic,
    UnknownPipeline,
    WrongMethod,
    TooSlow,
    Fenced,
    TooLarge,
    WrongMediaType,
    Defect,
    Corrupt,
    BrokerRefused,
    BrokerUnavailable,
    BrokerUnreachable,
    Ending,
    BrokerFull,
}

impl Kind {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad-request", "The request does not make sense"),
            Self::NotAnEvent => (StatusCode::BAD_REQUEST, "not-an-event", "What was sent is no event"),
            Self::CrossSite => (StatusCode::FORBIDDEN, "cross-site", "Another web site may not do this"),
            Self::WrongHost => (StatusCode::MISDIRECTED_REQUEST, "wrong-host", "This host does not have that name"),
            Self::UnknownRoute => (StatusCode::NOT_FOUND, "unknown-route", "No such route"),
            Self::UnknownBroker => (StatusCode::NOT_FOUND, "unknown-broker", "No such broker"),
            Self::UnknownTopic => (StatusCode::NOT_FOUND, "unknown-topic", "No such topic"),
            Self::UnknownPipeline => (StatusCode::NOT_FOUND, "unknown-pipeline", "No such pipeline"),
            Self::WrongMethod => (StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "The route has no such method"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too-slow", "The request took too long to arrive"),
            Self::Fenced => (StatusCode::CONFLICT, "fenced", "Another host owns this"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large"),
            Self::WrongMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-media-type", "Not a media type that is read here")
            }
            Self::Defect => (StatusCode::INTERNAL_SERVER_ERROR, "defect", "A defect of the host"),
            Self::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt", "What is stored cannot be read"),
            Self::BrokerRefused => (StatusCode::BAD_GATEWAY, "broker-refused", "The broker refuses the host"),
            // To clients it is the same; what is different is what became of their events.
            Self::BrokerUnavailable | Self::BrokerUnreachable => {
                (StatusCode::SERVICE_UNAVAILABLE, "broker-unavailable", "The broker cannot be reached")
            }
            Self::Ending => (StatusCode::SERVICE_UNAVAILABLE, "ending", "The host is ending"),
            Self::BrokerFull => (StatusCode::INSUFFICIENT_STORAGE, "broker-full", "The broker takes no writes for now"),
        }
    }
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), lines: None }
    }

    /// Ends NDJSON. `at` is the line at fault, if one is; `accepted` events are durable all the same.
    pub(super) fn lines(kind: Kind, at: Option<u64>, reason: &str, accepted: u64) -> Self {
        let place = at.map_or_else(String::new, |line| format!("line {line}: "));
        let durable = if accepted == 1 { "event before that is durable" } else { "events before that are durable" };
        let detail = format!("{place}{reason}; {accepted} {durable}");
        Self { kind, detail, lines: Some(Lines { reason: reason.to_owned(), at, accepted }) }
    }

    /// What happened, as [`Problem::lines`] wants it.
    pub(super) fn into_parts(self) -> (Kind, String) {
        (self.kind, self.detail)
    }

    /// As it is written out.
    pub(super) fn view(&self) -> view::Problem {
        let (status, name, title) = self.kind.parts();
        view::Problem {
            kind: format!("urn:synapse:problem:{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            reason: self.lines.as_ref().map(|lines| lines.reason.clone()),
            line: self.lines.as_ref().and_then(|lines| lines.at),
            accepted: self.lines.as_ref().map(|lines| lines.accepted),
        }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        let kind = match error.kind {
            BrokerErrorKind::Unavailable => Kind::BrokerUnavailable,
            BrokerErrorKind::Unreachable => Kind::BrokerUnreachable,
            BrokerErrorKind::Full => Kind::BrokerFull,
            BrokerErrorKind::Fenced => Kind::Fenced,
            BrokerErrorKind::Refused => Kind::BrokerRefused,
            BrokerErrorKind::Invalid => Kind::BadRequest,
            BrokerErrorKind::Corrupt => Kind::Corrupt,
        };
        Self::new(kind, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, ..) = self.kind.parts();
        let json = serde_json::to_vec(&self.view()).expect("texts and numbers become JSON");
        let content_type = (CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let mut response = (status, [content_type], json).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
