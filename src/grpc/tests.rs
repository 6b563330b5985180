//! The generated code beside its source, and server and client beside each other.

use std::fs;
use std::path::Path;

mod generated {
    use super::*;

    /// Regenerates it with `UPDATE_GENERATED=1`.
    #[test]
    fn the_generated_code_is_what_the_proto_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc");
        let descriptors = protox::compile(["katalogsync.proto"], [&folder]).unwrap();
        let out = tempfile::tempdir().unwrap();
        tonic_prost_build::configure()
            .out_dir(out.path())
            .emit_rerun_if_changed(false)
            .compile_fds(descriptors)
            .unwrap();
        let expected = fs::read_to_string(out.path().join("katalogsync.rs")).unwrap();
        let path = folder.join("generated.rs");
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, &expected).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        let what = "src/grpc/generated.rs is not what katalogsync.proto says";
        assert!(found == expected, "{what}: run `make generated`");
    }
}

mod both_sides {
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;
    use tonic::{Code, Status};

    use crate::domain::kube::names::ObjectKey;
    use crate::domain::sidecar::{Caller, SyncError, SyncKind};
    use crate::grpc::address::Address;
    use crate::grpc::client::Client;
    use crate::grpc::server::{BindError, Listener, QUEUE, ServeError, SyncRequest, serve};

    /// Far longer than anything here takes.
    const DEADLINE: Duration = Duration::from_secs(10);

    struct Daemon {
        address: Address,
        asked: mpsc::Receiver<SyncRequest>,
        quit: oneshot::Sender<()>,
        served: JoinHandle<Result<(), ServeError>>,
    }

    impl Daemon {
        async fn start(address: &str) -> Self {
            let listener = Listener::bind(&address.parse().unwrap()).await.unwrap();
            let address = listener.address().unwrap();
            let (requests, asked) = mpsc::channel(QUEUE);
            let (quit, quits) = oneshot::channel::<()>();
            let shutdown = async { drop(quits.await) };
            let served = tokio::spawn(serve(listener, requests, shutdown));
            Self { address, asked, quit, served }
        }

        fn call(&self, kind: SyncKind, pod: &str) -> JoinHandle<Result<(), SyncError>> {
            let client = Client::new(&self.address).unwrap();
            let caller = Caller::new("", pod, "sidecar");
            tokio::spawn(async move { client.call(kind, &caller, DEADLINE).await })
        }

        async fn next(&mut self) -> SyncRequest {
            timeout(DEADLINE, self.asked.recv()).await.unwrap().unwrap()
        }
    }

    fn socket(folder: &tempfile::TempDir) -> String {
        format!("unix://{}", folder.path().join("node.sock").display())
    }

    #[tokio::test]
    async fn a_call_is_a_request_that_the_loop_answers_over_tcp_and_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        for address in ["127.0.0.1:0".to_owned(), ":0".to_owned(), socket(&folder)] {
            let mut daemon = Daemon::start(&address).await;
            for kind in [SyncKind::Register, SyncKind::Deregister] {
                let call = daemon.call(kind, "web-0");
                let request = daemon.next().await;
                assert_eq!(request.kind, kind);
                assert_eq!(request.caller.pod, ObjectKey::new("default", "web-0"));
                assert_eq!(&*request.caller.container, "sidecar");
                assert_eq!(request.peer.is_some(), !address.starts_with("unix:"));
                assert!(request.peer.is_none_or(|peer| peer.is_loopback()), "{:?}", request.peer);
                request.reply.send(Ok(())).unwrap();
                assert_eq!(call.await.unwrap(), Ok(()));
            }
            drop(daemon.quit);
            timeout(DEADLINE, daemon.served).await.unwrap().unwrap().unwrap();
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the socket's file is left");
    }

    #[tokio::test]
    async fn each_refusal_arrives_as_what_it_is() {
        let mut daemon = Daemon::start("127.0.0.1:0").await;
        let why = || "because of it".to_owned();
        for (error, code) in [
            (SyncError::UnknownPod(why()), Code::NotFound),
            (SyncError::NoSidecar(why()), Code::FailedPrecondition),
            (SyncError::NotReady(why()), Code::Unknown),
            (SyncError::Unavailable(why()), Code::Unavailable),
            (SyncError::Exhausted(why()), Code::ResourceExhausted),
            (SyncError::DeadlineExceeded(why()), Code::DeadlineExceeded),
            (SyncError::Other(why()), Code::Unknown),
        ] {
            assert_eq!(Status::from(error.clone()).code(), code);
            let call = daemon.call(SyncKind::Register, "web-0");
            daemon.next().await.reply.send(Err(error.clone())).unwrap();
            assert_eq!(call.await.unwrap(), Err(error));
        }
        // What katalog-sync's daemon says.
        let theirs = Status::unknown("not ready!: <nil>");
        assert!(matches!(SyncError::from(theirs), SyncError::NotReady(_)));
        let wrong_server = SyncError::from(Status::unimplemented("unknown service"));
        assert_eq!(wrong_server, SyncError::Other("Unimplemented: unknown service".to_owned()));
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_its_request_back() {
        let mut daemon = Daemon::start("127.0.0.1:0").await;
        let call = daemon.call(SyncKind::Register, "web-0");
        let mut request = daemon.next().await;
        assert!(!request.reply.is_closed());
        call.abort();
        timeout(DEADLINE, request.reply.closed()).await.expect("nobody waits any more");
    }

    #[tokio::test]
    async fn the_deadline_of_the_client_reaches_the_daemon() {
        let mut daemon = Daemon::start("127.0.0.1:0").await;
        let client = Client::new(&daemon.address).unwrap();
        let caller = Caller::new("shop", "web-0", "");
        let call = client.call(SyncKind::Deregister, &caller, Duration::from_millis(100));
        let (answer, mut request) = tokio::join!(call, daemon.next());
        assert!(matches!(answer, Err(SyncError::DeadlineExceeded(_))), "{answer:?}");
        timeout(DEADLINE, request.reply.closed()).await.expect("nobody waits any more");
    }

    #[tokio::test]
    async fn a_daemon_that_ends_says_so_and_one_that_is_away_is_unavailable() {
        let mut daemon = Daemon::start("127.0.0.1:0").await;
        let call = daemon.call(SyncKind::Register, "web-0");
        drop(daemon.next().await);
        assert!(matches!(call.await.unwrap(), Err(SyncError::Unavailable(_))));
        // Its loop has ended, the server not yet.
        let (_, closed) = mpsc::channel(1);
        drop(std::mem::replace(&mut daemon.asked, closed));
        let call = daemon.call(SyncKind::Register, "web-0");
        assert!(matches!(call.await.unwrap(), Err(SyncError::Unavailable(_))));
        drop(daemon.quit);
        daemon.served.await.unwrap().unwrap();
        let client = Client::new(&daemon.address).unwrap();
        let caller = Caller::new("shop", "web-0", "");
        let answer = client.call(SyncKind::Register, &caller, DEADLINE).await;
        assert!(
            matches!(&answer, Err(SyncError::Unavailable(why)) if why.contains("refused")),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn p13_a_dead_socket_is_replaced_a_live_one_and_another_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (address, path) = (socket(&folder), folder.path().join("node.sock"));
        // Killed: its file is left.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let daemon = Daemon::start(&address).await;
        let second = Listener::bind(&daemon.address).await;
        assert!(matches!(&second, Err(BindError::Taken(_))), "{second:?}");
        // The one that runs is not disturbed.
        let mut daemon = daemon;
        let call = daemon.call(SyncKind::Register, "web-0");
        daemon.next().await.reply.send(Ok(())).unwrap();
        assert_eq!(call.await.unwrap(), Ok(()));
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        let no_socket = Listener::bind(&Address::Unix(file.clone())).await;
        assert!(matches!(&no_socket, Err(BindError::NoSocket(_))), "{no_socket:?}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "mine");
        let nowhere = Listener::bind(&Address::Unix("/nonexistent/a.sock".into())).await;
        assert!(matches!(&nowhere, Err(BindError::Refused { .. })), "{nowhere:?}");
        // A daemon that was replaced leaves the socket of its successor alone.
        std::fs::remove_file(&path).unwrap();
        let _successor = Daemon::start(&address).await;
        drop(daemon.quit);
        daemon.served.await.unwrap().unwrap();
        assert!(path.exists());
    }
}
