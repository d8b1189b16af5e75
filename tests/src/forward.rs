//! A TCP address that leads to a server, and to another one when it is told so: what a failover looks like to clients.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;

/// How often a held connection looks whether it may go on.
const HELD_FOR: Duration = Duration::from_millis(5);

/// Forwards connections until it is dropped.
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    open: Mutex<Vec<TcpStream>>,
    held: AtomicBool,
    stop: AtomicBool,
}

impl Forwarder {
    /// Leads to a port of 127.0.0.1.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let shared = Arc::new(Shared {
            target: Mutex::new((Ipv4Addr::LOCALHOST, port).into()),
            open: Mutex::default(),
            held: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let forwarder = Self { address: listener.local_addr()?, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.stop.load(Ordering::Relaxed) {
                    break;
                }
                // A client whose server is away is hung up on.
                let _ = forward(&shared, client);
            }
        });
        Ok(forwarder)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Cuts every connection; new ones lead to this port.
    pub fn point_at(&self, port: u16) {
        *lock(&self.shared.target) = (Ipv4Addr::LOCALHOST, port).into();
        self.cut();
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for connection in lock(&self.shared.open).drain(..) {
            // It may have been closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Passes nothing on from now on, or goes on.
    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Ordering::Relaxed);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the thread that accepts; that it cannot is as good.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

fn forward(shared: &Arc<Shared>, client: TcpStream) -> Result<()> {
    let target = *lock(&shared.target);
    let server = TcpStream::connect(target)?;
    lock(&shared.open).extend([client.try_clone()?, server.try_clone()?]);
    let ways = [(client.try_clone()?, server.try_clone()?), (server, client)];
    for (from, to) in ways {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || copy(&shared, from, to));
    }
    Ok(())
}

/// Copies until either side ends, which ends both.
fn copy(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        while shared.held.load(Ordering::Relaxed) && !shared.stop.load(Ordering::Relaxed) {
            std::thread::sleep(HELD_FOR);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for side in [from, to] {
        // The other way may have done it.
        let _ = side.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that greets everyone with one byte.
    fn greeter(greeting: u8) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let _ = client.write_all(&[greeting]);
            }
        });
        port
    }

    fn greeted(forwarder: &Forwarder) -> u8 {
        let mut greeting = [0];
        TcpStream::connect((Ipv4Addr::LOCALHOST, forwarder.port())).unwrap().read_exact(&mut greeting).unwrap();
        greeting[0]
    }

    #[test]
    fn it_leads_elsewhere_once_it_is_told() {
        let (first, second) = (greeter(1), greeter(2));
        let forwarder = Forwarder::to(first).unwrap();
        assert_eq!(greeted(&forwarder), 1);
        forwarder.point_at(second);
        assert_eq!(greeted(&forwarder), 2);
    }
}
