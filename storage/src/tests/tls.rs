//! A store over TLS, and one behind a proxy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use toroid_security::Role;
use toroid_security::issue::{Authority, Request};

use super::QUICK;
use crate::{Environment, Kind, Store};

/// A port behind which every object can be written, if one speaks TLS; and the certificate of its CA.
fn start(folder: &tempfile::TempDir) -> (u16, PathBuf) {
    let authority = Authority::init(&folder.path().join("ca"), &"test".parse().unwrap()).unwrap();
    let (name, hosts) = ("store".parse().unwrap(), vec!["localhost".into()]);
    let valid = Duration::from_secs(3600);
    let issued = authority.issue(&Request { name, role: Role::Coordinator, hosts, valid }).unwrap();
    let chain = CertificateDer::pem_file_iter(issued.join("cert.pem")).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(issued.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
            // One that does not trust us ends here.
            let mut piece = [0; 4096];
            if tls.read(&mut piece).is_ok_and(|num| num > 0) {
                let _ =
                    tls.write_all(b"HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        }
    });
    (port, issued.join("ca.pem"))
}

/// A proxy that makes tunnels, and what it was asked for.
fn start_proxy() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
    let log = Arc::clone(&asked);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|num| num == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let port: u16 = head.split([':', ' ']).nth(2).unwrap().parse().unwrap();
            log.lock().unwrap().push(head);
            let mut store = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), store.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let _ = std::io::copy(&mut store, &mut client);
        }
    });
    (port, asked)
}

#[test]
fn a_store_over_tls_must_be_one_that_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let (port, ca) = start(&folder);
    let put = |host: &str, more: &[(&str, &str)]| {
        let endpoint = format!("https://{host}:{port}");
        let own = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let environment: Environment = own.iter().chain(more).copied().collect();
        Store::open_with("s3://bucket", &environment, QUICK).unwrap().put("a", "content")
    };
    let bundle = ("AWS_CA_BUNDLE", ca.to_str().unwrap());
    put("localhost", &[bundle]).unwrap();

    let error = put("127.0.0.1", &[bundle]).unwrap_err();
    assert_eq!(error.kind(), Kind::Setup);
    assert!(error.to_string().contains("cannot be trusted: its certificate is not taken: NotValidForName"), "{error}");
    assert!(!error.to_string().contains("attempt"), "it is not tried again: {error}");
    let other = folder.path().join("other");
    let other = Authority::init(&other, &"other".parse().unwrap()).map(|_| other.join("ca.pem")).unwrap();
    let error = put("localhost", &[("AWS_CA_BUNDLE", other.to_str().unwrap())]).unwrap_err();
    assert!(error.to_string().contains("set AWS_CA_BUNDLE to a file"), "{error}");
    let error = put("localhost", &[("AWS_CA_BUNDLE", "/nowhere.pem")]).unwrap_err();
    assert!(error.to_string().contains("AWS_CA_BUNDLE names /nowhere.pem, and it cannot be read"), "{error}");

    let (proxy, asked) = start_proxy();
    let proxy = format!("http://user:word@127.0.0.1:{proxy}");
    put("localhost", &[bundle, ("HTTPS_PROXY", &proxy), ("NO_PROXY", "elsewhere")]).unwrap();
    let head = asked.lock().unwrap().pop().unwrap();
    assert!(head.starts_with(&format!("CONNECT localhost:{port} ")), "{head}");
    assert!(head.to_lowercase().contains("proxy-authorization: basic "), "{head}");
    put("localhost", &[bundle, ("HTTPS_PROXY", &proxy), ("NO_PROXY", "localhost")]).unwrap();
    assert!(asked.lock().unwrap().is_empty());
    let error = put("localhost", &[bundle, ("HTTPS_PROXY", "http://127.0.0.1:1")]).unwrap_err();
    assert!(error.to_string().contains("by the proxy http://127.0.0.1:1: "), "{error}");
}

#[test]
fn what_does_not_speak_tls_is_told() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for mut tcp in listener.incoming().flatten() {
            let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let variables =
        [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let store = Store::open_with("s3://bucket", &Environment::from_iter(variables), QUICK).unwrap();
    let error = store.put("a", "content").unwrap_err();
    assert_eq!(error.kind(), Kind::Setup);
    let text = error.to_string();
    assert!(text.contains("does not speak TLS; name it with http://") && !text.contains("attempt"), "{text}");
}
