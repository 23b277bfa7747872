//! A core for tests of the streams to it: the real gRPC service on a real socket, whose streams the test serves itself.

use std::os::unix::net::UnixStream;

use plexd_proto::node::v1::node_state_server::{NodeState, NodeStateServer};
use plexd_proto::node::v1::{
    CountReportsRequest, CountReportsResponse, NoteDenialsRequest, NoteDenialsResponse, ReadSecretsRequest,
    ReadSecretsResponse, WatchRequest, WatchResponse, WriteReportsRequest, WriteReportsResponse,
};
use plexd_proto::proof::Ticket;
use plexd_proto::settings::CoreSockets;
use plexd_proto::transport::{self, Incoming, SocketOwner};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A stream as core gets it.
pub(super) struct Stream<Q, A> {
    pub(super) messages: Streaming<Q>,
    pub(super) answers: mpsc::UnboundedSender<Result<A, Status>>,
}

impl<Q, A> Stream<Q, A> {
    pub(super) async fn message(&mut self) -> Q {
        self.messages.message().await.unwrap().unwrap()
    }
}

/// The streams, as they are asked for.
pub(super) struct Streams {
    pub(super) reads: mpsc::UnboundedReceiver<Stream<ReadSecretsRequest, ReadSecretsResponse>>,
    pub(super) writes: mpsc::UnboundedReceiver<Stream<WriteReportsRequest, WriteReportsResponse>>,
    /// The connections to `proof.sock`, each greeted with [`TICKET`].
    pub(super) proofs: mpsc::UnboundedReceiver<UnixStream>,
}

/// The ticket of every connection.
pub(super) const TICKET: [u8; 16] = *b"one for all here";

struct Puppet {
    reads: mpsc::UnboundedSender<Stream<ReadSecretsRequest, ReadSecretsResponse>>,
    writes: mpsc::UnboundedSender<Stream<WriteReportsRequest, WriteReportsResponse>>,
}

/// Serves at `sockets`.
pub(super) fn serve(sockets: &CoreSockets) -> Streams {
    let (reads, reads_seen) = mpsc::unbounded_channel();
    let (writes, writes_seen) = mpsc::unbounded_channel();
    let (proofs, proofs_seen) = mpsc::unbounded_channel();
    let owner = SocketOwner { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), mode: 0o600 };
    let listen = |path| transport::bind(path, owner).unwrap();
    let incoming = Incoming::new(listen(&sockets.socket)).unwrap();
    let service = NodeStateServer::new(Puppet { reads, writes }).max_decoding_message_size(usize::MAX);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let mut incoming = Incoming::with_descriptors(listen(&sockets.proof_socket)).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = incoming.accept().await;
            stream.write_all(&Ticket::new(TICKET).greeting()).await.unwrap();
            // Nobody may want it.
            let _ = proofs.send(stream.into_std().unwrap());
        }
    });
    Streams { reads: reads_seen, writes: writes_seen, proofs: proofs_seen }
}

type Answers<A> = UnboundedReceiverStream<Result<A, Status>>;

fn taken<Q, A>(
    request: Request<Streaming<Q>>,
    streams: &mpsc::UnboundedSender<Stream<Q, A>>,
) -> Response<Answers<A>> {
    let (answers, receiver) = mpsc::unbounded_channel();
    assert!(streams.send(Stream { messages: request.into_inner(), answers }).is_ok());
    Response::new(UnboundedReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl NodeState for Puppet {
    type WatchStream = Answers<WatchResponse>;
    type ReadSecretsStream = Answers<ReadSecretsResponse>;
    type WriteReportsStream = Answers<WriteReportsResponse>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn read_secrets(
        &self,
        request: Request<Streaming<ReadSecretsRequest>>,
    ) -> Result<Response<Self::ReadSecretsStream>, Status> {
        Ok(taken(request, &self.reads))
    }

    async fn note_denials(
        &self,
        _: Request<NoteDenialsRequest>,
    ) -> Result<Response<NoteDenialsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn write_reports(
        &self,
        request: Request<Streaming<WriteReportsRequest>>,
    ) -> Result<Response<Self::WriteReportsStream>, Status> {
        Ok(taken(request, &self.writes))
    }

    async fn count_reports(
        &self,
        _: Request<CountReportsRequest>,
    ) -> Result<Response<CountReportsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
