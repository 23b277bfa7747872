//! plexd-api as somebody wrote it who has taken it over: it has the sidecar's user, its groups and its `api.sock`, and does
//! to plexd-core what it is told on its standard input, a command per line. It says in one line what came of each.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexd_proto::node::v1::node_state_client::NodeStateClient;
use plexd_proto::node::v1::secret_answer::Result as Answered;
use plexd_proto::node::v1::secret_read::Caller;
use plexd_proto::node::v1::{
    LocalCaller, ReadSecretsRequest, ReadSecretsResponse, ReportPut, ReportWrite, SecretRead, SecretRefusal,
    ShownCaller, WatchRequest, WriteReportsRequest, report_write,
};
use plexd_proto::privilege::{self, ServiceUser};
use plexd_proto::proof::Prover;
use plexd_proto::transport::{SocketOwner, bind, connect};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Failure = Box<dyn Error>;

/// The folder of the sockets.
const FOLDER: &str = "/run/plexd";

/// How long core has for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A read as it could be asked for by a sidecar that says who reads.
#[derive(Clone, PartialEq, prost::Message)]
struct ClaimingRead {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(message, optional, tag = "3")]
    local: Option<LocalCaller>,
}

/// A message of such reads.
#[derive(Clone, PartialEq, prost::Message)]
struct ClaimingReads {
    #[prost(message, repeated, tag = "1")]
    reads: Vec<ClaimingRead>,
    #[prost(bytes = "vec", tag = "3")]
    ticket: Vec<u8>,
}

/// What it has.
struct Hostile {
    api: UnixListener,
    /// Connections of clients.
    clients: Vec<UnixStream>,
    /// What core is burdened with.
    burden: Burden,
}

#[derive(Default)]
struct Burden {
    sockets: Vec<UnixStream>,
    channels: Vec<Channel>,
    answers: Vec<Box<dyn std::any::Any>>,
}

fn main() -> Result<(), Failure> {
    let user = ServiceUser::lookup("plexd-api")?;
    let owner = SocketOwner { uid: user.uid, gid: privilege::group("plexd")?, mode: 0o660 };
    let api = bind(&socket("api.sock"), owner)?;
    api.set_nonblocking(false)?;
    privilege::drop_to(&user, &[])?;
    say("ready")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut hostile = Hostile { api, clients: Vec::new(), burden: Burden::default() };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let came = runtime.block_on(hostile.act(&words)).unwrap_or_else(|error| format!("failed {error}"));
        say(&came)?;
    }
    Ok(())
}

fn socket(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

impl Hostile {
    async fn act(&mut self, words: &[&str]) -> Result<String, Failure> {
        match words {
            ["accept"] => {
                let (client, _) = self.api.accept()?;
                self.clients.push(client);
                Ok(format!("{}", self.clients.len() - 1))
            }
            ["forget"] => {
                self.clients.clear();
                Ok("forgotten".into())
            }
            ["read", key, "claiming"] => claim(key).await,
            ["read", key, "nothing"] => ask(key, None).await,
            ["read", key, what @ ..] => ask(key, Some(self.socket_of(what)?)).await,
            ["connections", name, count] => {
                for _ in 0..count.parse()? {
                    let stream = UnixStream::connect(socket(name))?;
                    // The beginning of what HTTP/2 begins with.
                    let _ = (&stream).write_all(b"PRI * HTTP/2.0\r\n");
                    self.burden.sockets.push(stream);
                }
                Ok("held".into())
            }
            ["streams", count] => self.streams(count.parse()?).await,
            ["giant"] => Ok(giant().await),
            ["proofs", count] => proofs(count.parse()?).await,
            ["let", "go"] => {
                self.burden = Burden::default();
                Ok("gone".into())
            }
            _ => Err("no such command".into()),
        }
    }

    /// Returns a socket that is to pass for a client's.
    fn socket_of(&self, what: &[&str]) -> Result<OwnedFd, Failure> {
        Ok(match what {
            ["client", number] => {
                let client = self.clients.get(number.parse::<usize>()?).ok_or("no such client")?;
                client.try_clone()?.into()
            }
            ["listener"] => self.api.try_clone()?.into(),
            ["pair"] => UnixStream::pair()?.0.into(),
            ["connected", path] => UnixStream::connect(path)?.into(),
            ["accepted"] => {
                // The other end goes on living: it is not who left that is refused.
                let end = UnixStream::connect(socket("api.sock"))?;
                std::mem::forget(end);
                self.api.accept()?.0.into()
            }
            ["file", path] => File::open(path)?.into(),
            _ => return Err("no such socket".into()),
        })
    }

    /// Opens more streams than there may be, on more connections than there may be, and keeps them.
    async fn streams(&mut self, count: usize) -> Result<String, Failure> {
        let (mut opened, mut refused) = (0, 0);
        for _ in 0..count {
            let channel = connect(&socket("core.sock"));
            let mut client = NodeStateClient::new(channel.clone());
            for _ in 0..6 {
                match timeout(Duration::from_millis(200), client.watch(WatchRequest {})).await {
                    Ok(Ok(stream)) => {
                        opened += 1;
                        self.burden.answers.push(Box::new(stream));
                    }
                    _ => refused += 1,
                }
            }
            self.burden.channels.push(channel);
        }
        Ok(format!("{opened} opened {refused} refused"))
    }
}

/// Says that root reads.
async fn claim(key: &str) -> Result<String, Failure> {
    let root = LocalCaller { uid: 0, gid: 0, pid: 1, groups: vec![0] };
    let read = ClaimingRead { id: 1, key: key.into(), local: Some(root) };
    let prover = Prover::connect(&socket("proof.sock")).await?;
    let reads = ClaimingReads { reads: vec![read], ticket: prover.ticket().as_bytes().to_vec() };
    let mut client = tonic::client::Grpc::new(connect(&socket("core.sock")));
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/plexd.node.v1.NodeState/ReadSecrets");
    let codec = tonic_prost::ProstCodec::<ClaimingReads, ReadSecretsResponse>::default();
    let request = tonic::Request::new(tokio_stream::once(reads));
    let streaming = timeout(PATIENCE, client.streaming(request, path, codec)).await?;
    Ok(match streaming {
        Ok(response) => told(timeout(PATIENCE, response.into_inner().message()).await?),
        Err(status) => told(Err(status)),
    })
}

/// Asks for a secret, and shows `socket` for who reads it.
async fn ask(key: &str, socket_shown: Option<OwnedFd>) -> Result<String, Failure> {
    let prover = Prover::connect(&socket("proof.sock")).await?;
    if let Some(shown) = &socket_shown {
        prover.send(1, &shown.as_fd())?;
    }
    let read = SecretRead { id: 1, key: key.into(), caller: Some(Caller::Shown(ShownCaller {})) };
    let ticket = prover.ticket().as_bytes().to_vec().into();
    let message = ReadSecretsRequest { reads: vec![read], ticket, ..Default::default() };
    let mut client = NodeStateClient::new(connect(&socket("core.sock")));
    Ok(match timeout(PATIENCE, client.read_secrets(tokio_stream::once(message))).await? {
        Ok(response) => told(timeout(PATIENCE, response.into_inner().message()).await?),
        Err(status) => told(Err(status)),
    })
}

/// Returns what core said.
fn told(answer: Result<Option<ReadSecretsResponse>, Status>) -> String {
    let answer = match answer {
        Ok(Some(response)) => response.answers.into_iter().next().and_then(|answer| answer.result),
        Ok(None) => None,
        Err(status) => return format!("ended {:?}", status.code()),
    };
    match answer {
        Some(Answered::Secret(secret)) => format!("secret {}", String::from_utf8_lossy(&secret.value)),
        Some(Answered::Refusal(number)) => match SecretRefusal::try_from(number) {
            Ok(refusal) => format!("refused {refusal:?}"),
            Err(_) => format!("refused {number}"),
        },
        None => "nothing".into(),
    }
}

/// Sends a message of 100 MiB.
async fn giant() -> String {
    let put = ReportPut {
        key: "giant".into(),
        content_type: "t".into(),
        payload: vec![b'1'; 100 * 1024 * 1024].into(),
        if_match: None,
    };
    let write = ReportWrite { write: Some(report_write::Write::Put(put)) };
    let message = WriteReportsRequest { writes: vec![write] };
    let mut client =
        NodeStateClient::new(connect(&socket("core.sock"))).max_encoding_message_size(usize::MAX);
    let answered = async {
        let mut answers = client.write_reports(tokio_stream::once(message)).await?.into_inner();
        answers.message().await
    };
    match timeout(PATIENCE, answered).await {
        Ok(Ok(_)) => "taken".into(),
        Ok(Err(status)) if status.code() == Code::Unknown => "ended".into(),
        Ok(Err(status)) => format!("ended {:?}", status.code()),
        Err(_) => "silence".into(),
    }
}

/// Shows far more sockets than reads, in conversations that are begun and in some that never are.
async fn proofs(count: usize) -> Result<String, Failure> {
    let (one, _two) = UnixStream::pair()?;
    let mut sent = 0;
    for number in 0..count {
        let prover = Prover::connect(&socket("proof.sock")).await?;
        for id in 0..2_000 {
            match prover.send(id, &one) {
                Ok(true) => sent += 1,
                Ok(false) | Err(_) => break,
            }
        }
        if number % 2 == 0 {
            let reads = (0..200).map(|id| SecretRead {
                id,
                key: "k".into(),
                caller: Some(Caller::Shown(ShownCaller {})),
            });
            let ticket = prover.ticket().as_bytes().to_vec().into();
            let message = ReadSecretsRequest { reads: reads.collect(), ticket, ..Default::default() };
            let mut client = NodeStateClient::new(connect(&socket("core.sock")));
            // Whatever it says.
            let _ = timeout(Duration::from_secs(1), client.read_secrets(tokio_stream::once(message))).await;
        }
    }
    Ok(if sent > 0 { "sent".into() } else { "nothing sent".into() })
}
