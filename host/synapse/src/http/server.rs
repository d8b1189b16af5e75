//! The accept loop: connections with bounds, and an orderly end.
//!
//! hyper cuts off slow headers only with a timer of its own, so it is driven here by hand. Every connection is a task of
//! one set; none outlives [`serve`].

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Api, Counted, Host, Limits, router};

/// How long to wait after an accept failed: most likely file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// When a connection that says nothing is asked whether it is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Answers on `listener` until `ending` is cancelled; then requests under way may end, for at most
/// [`Limits::grace`].
///
/// # Errors
/// A listener that has no address. A connection that fails is none.
pub async fn serve(listener: TcpListener, api: Api, ending: CancellationToken) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    let limits = api.0.limits;
    let gauge = api.0.metrics.connections.clone();
    let router = router(Host { api, ending: ending.clone(), loopback });
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(done) = connections.join_next() => {
                look_at(done);
                continue;
            }
            () = ending.cancelled() => break,
        };
        match accepted {
            Ok((stream, permit)) => {
                let place = Place { _permit: permit, _counted: Counted::new(&gauge) };
                connections.spawn(connection(stream, router.clone(), limits, ending.clone(), place));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async {
        while let Some(done) = connections.join_next().await {
            look_at(done);
        }
    };
    if tokio::time::timeout(limits.grace, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not end in time and are cut off");
    }
    Ok(())
}

/// Takes a connection once there is a place for one.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

fn look_at(done: Result<(), JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        tracing::error!(%error, "a request ended by a defect of the host");
    }
}

/// A connection's place among those there may be; counted while it is held.
struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, ending: CancellationToken, _place: Place) {
    // Small answers do not wait for acknowledgements, and peers that vanished give their places free. A socket that
    // refuses either works all the same.
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_tcp_keepidle(&stream, KEEPALIVE_AFTER);
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers_wait_max)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}
