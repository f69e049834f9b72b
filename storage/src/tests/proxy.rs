//! What may be between us and a store: it looks at each request, and does with it what a test says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What becomes of one request. Afterwards the connection ends.
#[derive(Debug, Clone)]
pub enum Turn {
    /// The store gets it, and we get its answer.
    Forward,
    /// The store gets it, and its answer is lost.
    LoseAnswer,
    /// The store gets it, and of its answer so many bytes come.
    CutAnswer(usize),
    /// So many bytes a second, in either direction.
    Slowly(usize),
    /// Instead of the store's.
    Answer(String),
    /// Nothing more is read, and nothing said.
    Silence,
}

/// An answer of a store with a body of XML.
pub fn refusal(status: &str, code: &str) -> Turn {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>As the test says</Message></Error>");
    Turn::Answer(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}

pub struct Proxy {
    port: u16,
    /// Method and path with query of each request, in their order.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Before the store at `upstream`, a port of this machine. `rule` is asked with method and path of each request, and its number from 0.
    pub fn before(upstream: u16, rule: impl Fn(&str, usize) -> Turn + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // What the kernel holds of a request has not been seen by a slow store.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, rule) = (Arc::new(Mutex::new(Vec::new())), Arc::new(rule));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (log, rule) = (Arc::clone(&log), Arc::clone(&rule));
                // A connection that fails is a test's own doing.
                thread::spawn(move || client.and_then(|client| serve(client, upstream, &log, &*rule)));
            }
        });
        Proxy { port, seen }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    seen: &Mutex<Vec<String>>,
    rule: &(dyn Fn(&str, usize) -> Turn + Send + Sync),
) -> std::io::Result<()> {
    let Some((head, rest)) = read_head(&mut client)? else { return Ok(()) };
    let what = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_string();
    let turn = {
        let mut seen = seen.lock().unwrap();
        seen.push(what.clone());
        rule(&what, seen.len() - 1)
    };
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let missing = length.unwrap_or(0usize).saturating_sub(rest.len());
    match turn {
        Turn::Silence => {
            // Until the other side gives up: the socket's buffer is small, and what is in it may not be read.
            while !is_closed(&client)? {
                thread::park_timeout(Duration::from_millis(20));
            }
            return Ok(());
        }
        Turn::Answer(answer) => {
            copy(&mut client, &mut std::io::sink(), missing, None)?;
            client.write_all(answer.as_bytes())?;
            return client.shutdown(Shutdown::Write);
        }
        _ => {}
    }
    let rate = match turn {
        Turn::Slowly(rate) => Some(rate),
        _ => None,
    };
    let mut store = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream))?;
    let (first, headers) = head.split_once("\r\n").unwrap_or_default();
    store.write_all(format!("{first}\r\nConnection: close\r\n{headers}").as_bytes())?;
    store.write_all(&rest)?;
    copy(&mut client, &mut store, missing, rate)?;
    let answered = match turn {
        Turn::LoseAnswer => {
            // It is done when the store has said so.
            let mut answer = Vec::new();
            store.read_to_end(&mut answer)?;
            Ok(())
        }
        Turn::CutAnswer(num_bytes) => copy(&mut store, &mut client, num_bytes, None),
        _ => copy(&mut store, &mut client, usize::MAX, rate),
    };
    client.shutdown(Shutdown::Both).and(answered)
}

/// Up to the empty line, and what came behind it.
fn read_head(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), rest)));
        }
        let mut piece = [0; 4096];
        match client.read(&mut piece)? {
            0 => return Ok(None),
            num => bytes.extend_from_slice(&piece[..num]),
        }
    }
}

/// Up to `num` bytes, at `rate` bytes a second.
fn copy(from: &mut TcpStream, to: &mut impl Write, mut num: usize, rate: Option<usize>) -> std::io::Result<()> {
    let mut piece = [0; 16 << 10];
    while num > 0 {
        let wanted = piece.len().min(num);
        let read = from.read(&mut piece[..wanted])?;
        if read == 0 {
            break;
        }
        to.write_all(&piece[..read])?;
        num -= read;
        if let Some(rate) = rate {
            thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
        }
    }
    Ok(())
}

fn is_closed(stream: &TcpStream) -> std::io::Result<bool> {
    let fd = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::RDHUP)];
    let mut fds = fd;
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0]
        .revents()
        .intersects(rustix::event::PollFlags::RDHUP | rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR))
}
