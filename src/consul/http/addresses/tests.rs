use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::consul::http::config::{Address, Config};
use crate::consul::http::transport::Transport;

/// Somebody at an address who answers each request in the same way.
struct Server {
    address: String,
    /// Method and path of each request but those for the agent itself.
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

/// What is answered: the datacenter that the agent tells (a 403 without one), and status and body of
/// everything else.
#[derive(Clone, Copy)]
struct Says(Option<&'static str>, u16, &'static str);

const NO_LEADER: Says = Says(Some("dc1"), 500, "No cluster leader");
const FINE: Says = Says(Some("dc1"), 200, "\"10.0.0.1:8300\"");

impl Server {
    async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream, says, &noted).await;
            }
        });
        Self { address, asked, task }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Nobody is at the address any more.
    async fn stop(&self) {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}

async fn serve(mut stream: TcpStream, says: Says, noted: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|it| it == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(read) => head.extend_from_slice(&piece[..read]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let request = head.split(" HTTP/").next().unwrap_or_default().to_owned();
    let Says(datacenter, status, body) = says;
    let (status, body) = match datacenter {
        _ if !request.ends_with("/v1/agent/self") => {
            noted.lock().unwrap().push(request);
            (status, body.to_owned())
        }
        Some(name) => (200, format!("{{\"Config\": {{\"Datacenter\": \"{name}\"}}}}")),
        None => (403, "Permission denied".to_owned()),
    };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn transport(servers: &[&Server]) -> Transport {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let addresses = servers.iter().map(|it| it.address.parse::<Address>().unwrap());
    let mut addresses = addresses.collect::<Vec<_>>().into_iter();
    let address = addresses.next().unwrap();
    let config = Config { address, further: addresses.collect(), ..Config::default() };
    Transport::new(&config).unwrap()
}

async fn read(transport: &Transport) -> Result<String, Error> {
    transport.send(&Request::get("/v1/status/leader"), None).await?.json().await
}

#[tokio::test]
async fn a_server_that_knows_no_leader_is_left_and_what_may_have_been_written_is_not_sent_again() {
    let (sick, well) = (Server::start(NO_LEADER).await, Server::start(FINE).await);
    let transport = transport(&[&sick, &well]);
    let write = Request::put("/v1/kv/key").text("value");
    let error = transport.send(&write, None).await.unwrap_err();
    assert!(error.lacks_quorum(), "{error}");
    assert!(well.asked().is_empty(), "it may have been applied");
    transport.send(&write, None).await.unwrap();
    assert_eq!((sick.asked().len(), well.asked().len()), (1, 1));

    let other = self::transport(&[&sick, &well]);
    read(&other).await.unwrap();
    read(&other).await.unwrap();
    assert_eq!((sick.asked().len(), well.asked().len()), (1, 2), "a read is asked at the next");
    assert_eq!((transport.moves(), other.moves()), (1, 1));
    // Every server may be without one.
    let worse = Server::start(NO_LEADER).await;
    let hopeless = self::transport(&[&sick, &worse]);
    assert!(read(&hopeless).await.unwrap_err().lacks_quorum());
    assert_eq!((sick.asked().len(), worse.asked().len()), (1, 1), "each once");
}

#[tokio::test]
async fn a_datacenter_that_the_request_names_tells_nothing_of_the_address() {
    let away = Says(Some("dc1"), 500, "No path to datacenter");
    let (first, second) = (Server::start(away).await, Server::start(FINE).await);
    let transport = transport(&[&first, &second]);
    let request = Request::get("/v1/health/service/web").parameter("dc", "dc9");
    transport.send(&request, None).await.unwrap_err();
    assert!(second.asked().is_empty());
}

#[tokio::test]
async fn an_address_of_another_datacenter_is_passed_over() {
    let first = Server::start(FINE).await;
    let other = Server::start(Says(Some("dc2"), 200, "\"\"")).await;
    let third = Server::start(FINE).await;
    let all = transport(&[&first, &other, &third]);
    let two = transport(&[&first, &other]);
    read(&all).await.unwrap();
    read(&two).await.unwrap();
    first.stop().await;
    assert_eq!(read(&all).await.unwrap(), "10.0.0.1:8300");
    let mut said = Vec::new();
    for _ in 0..2 {
        said.push(read(&two).await.unwrap_err().to_string());
        let write = Request::put("/v1/kv/key").text("value");
        said.push(two.send(&write, None).await.unwrap_err().to_string());
    }
    let other_said = |it: &String| it.contains(r#"expected datacenter "dc1", found "dc2""#);
    let nobody = format!("no connection to Consul at http://{}", first.address);
    assert!(said.iter().all(|it| it.contains(&nobody) || other_said(it)), "{said:?}");
    assert!(other.asked().is_empty(), "nothing is asked there");
}

#[tokio::test]
async fn where_nobody_may_ask_for_the_datacenter_the_address_is_taken() {
    let dark = |status| Says(None, status, "\"10.0.0.1:8300\"");
    let (first, second) = (Server::start(dark(500)).await, Server::start(dark(200)).await);
    let transport = transport(&[&first, &second]);
    first.stop().await;
    read(&transport).await.unwrap();
    assert_eq!(second.asked().len(), 1);
}

#[test]
fn a_request_goes_to_each_address_once_whoever_else_moves_on() {
    let addresses = Addresses::new(["a", "b", "c"].map(str::to_owned).into());
    let error = || Error::Token(crate::consul::http::error::TokenError::TooSoon);
    let mut turn = addresses.turn();
    assert_eq!(turn.next(), Some(0));
    addresses.leave(0, &error());
    // Others leave the next two meanwhile.
    addresses.leave(1, &error());
    addresses.leave(2, &error());
    assert_eq!(turn.collect::<Vec<_>>(), [1, 2]);
    addresses.answered(2, true);
    assert_eq!(addresses.turn().collect::<Vec<_>>(), [2, 0, 1]);
    assert_eq!(addresses.moves(), 1);
    // One that was asked before is late: it is not gone back to.
    addresses.answered(0, false);
    assert_eq!((addresses.turn().next(), addresses.moves()), (Some(2), 1));
}

#[test]
fn an_address_is_asked_again_with_another_token() {
    let addresses = Addresses::new(["a", "b"].map(str::to_owned).into());
    let denied = |message: &str| {
        let (request, message) = ("GET /v1/agent/self".to_owned(), message.to_owned());
        Err(Error::Denied { request, message })
    };
    let asks = |has_token| addresses.is_unknown(0, has_token);
    addresses.introduced(0, true, denied("ACL not found")).unwrap();
    assert!(asks(true), "the token is renewed");
    addresses.introduced(0, false, denied("Permission denied")).unwrap();
    assert_eq!([asks(false), asks(true)], [false, true]);
    addresses.introduced(0, true, denied("Permission denied")).unwrap();
    assert_eq!([asks(false), asks(true)], [false, false]);
    addresses.leave(0, &Error::Token(crate::consul::http::error::TokenError::TooSoon));
    assert!(asks(true), "somebody else may be there by then");
}

#[test]
fn an_outage_is_told_once_and_so_is_its_end() {
    let text: Arc<Mutex<Vec<u8>>> = Arc::default();
    let writer = Arc::clone(&text);
    let subscriber = tracing_subscriber::fmt().with_writer(move || Text(Arc::clone(&writer)));
    tracing::subscriber::with_default(subscriber.finish(), || {
        let addresses = Addresses::new(["a", "b"].map(str::to_owned).into());
        let error = || Error::Token(crate::consul::http::error::TokenError::TooSoon);
        for _ in 0..10 {
            addresses.leave(0, &error());
            addresses.leave(1, &error());
        }
        addresses.answered(0, false);
        addresses.answered(0, false);
    });
    let told = String::from_utf8(text.lock().unwrap().clone()).unwrap();
    assert_eq!(told.lines().count(), 2, "{told}");
}

struct Text(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
