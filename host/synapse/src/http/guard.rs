//! What every request passes: a look at who may have sent it, and a count of how it was answered.
//!
//! Browsers send requests on behalf of any web page. Two things are refused: a change that a page of another origin
//! asks for, and, on a listener that only this machine reaches, a request for a name that is not this machine's (a page
//! whose name was pointed at us later). Other clients notice nothing of this.

use std::net::IpAddr;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Host;
use super::problem::{Kind, Problem};

/// The middleware around all routes.
pub(super) async fn guard(State(host): State<Host>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = known_method(request.method());
    let checked = check(&host, &request);
    let response = match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let status = response.status();
    let labels = [method, route.as_deref().unwrap_or("unknown"), status.as_str()];
    host.api.0.metrics.requests.with_label_values(&labels).inc();
    response
}

/// A method's name; anyone may invent others, so they are one label.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn check(host: &Host, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let name = host_name(request.uri(), headers);
    if host.loopback
        && let Some(name) = name
        && !is_this_machine(name)
    {
        let detail = format!(
            "this host only serves its own machine, which is not called `{}`; ask for 127.0.0.1 or localhost",
            name.escape_debug()
        );
        return Err(Problem::new(Kind::WrongHost, detail));
    }
    if matches!(*request.method(), Method::GET | Method::HEAD) || same_origin(headers, name) {
        return Ok(());
    }
    Err(Problem::new(Kind::CrossSite, "a web page of another origin may not change anything here"))
}

/// The name and perhaps the port that the client believes to speak to.
fn host_name<'r>(uri: &'r Uri, headers: &'r HeaderMap) -> Option<&'r str> {
    let header = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    header.or_else(|| uri.authority().map(|authority| authority.as_str()))
}

fn is_this_machine(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, port)) => (name, port.strip_prefix(':')),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let port = port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.to_ascii_lowercase();
    port && (name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost"))
}

/// Whether a change comes from a page of ours, or from no page at all.
fn same_origin(headers: &HeaderMap, host: Option<&str>) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let origin = origin.to_str().unwrap_or_default();
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_some_and(|authority| host.is_some_and(|host| authority.eq_ignore_ascii_case(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_few_names() {
        for host in ["127.0.0.1:8080", "[::1]:8080", "localhost", "LOCALHOST:80", "a.localhost:1", "10.1.2.3"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8080", "localhost.evil.example", "localhost:80@evil.example"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_told_apart() {
        let same = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            same_origin(&headers, Some("127.0.0.1:8080"))
        };
        assert!(same(&[]));
        assert!(same(&[("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:8080")]));
        assert!(same(&[("sec-fetch-site", "none")]));
        assert!(same(&[("origin", "http://127.0.0.1:8080")]));
        assert!(!same(&[("sec-fetch-site", "cross-site")]));
        assert!(!same(&[("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:3000")]));
        assert!(!same(&[("origin", "http://127.0.0.1:3000")]));
        assert!(!same(&[("origin", "null")]));
    }
}
