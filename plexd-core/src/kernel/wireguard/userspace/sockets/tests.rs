//! The receiving end on the loopback interface, without a device behind its gate.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use gotatun::udp::socket::SockOpt;

use super::super::caller::{Caller, forged};
use super::super::initiation::Responder;
use super::*;
use crate::kernel::{PeerChange, PeerConfig};
use crate::types::{AllowedIps, PrivateKey, PublicKey};

/// How long an answer that is to come may take.
const PATIENCE: Duration = Duration::from_secs(5);

struct Rig {
    responder: Arc<Responder>,
    key: PublicKey,
    address: SocketAddr,
    passed: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
    /// The initiations of the peer that were sent: only they may pass.
    called: Vec<Vec<u8>>,
}

/// A receiver that knows one peer, which is asleep, and passes on what gotatun would get.
fn receiver(peer: PublicKey) -> Rig {
    let key = PrivateKey::generate().unwrap();
    let gate = Arc::new(Gate::new());
    gate.answer_to(&key);
    let config = PeerConfig {
        public_key: peer,
        preshared_key: None,
        endpoint: None,
        allowed_ips: AllowedIps::default(),
        persistent_keepalive: None,
    };
    gate.change(|roster| roster.edits(&PeerChange::Set(config), Instant::now()));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into(), SockOpt::default()).unwrap();
    let address = socket.local_addr().unwrap();
    let responder = gate.responder().unwrap();
    let mut receiver = Receiver::new(socket, gate);
    let (sender, passed) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut pool = PacketBufPool::new(64);
        let (mut buffers, mut packets) = (<UdpSocket as UdpRecv>::RecvManyBuf::default(), vec![]);
        while receiver.recv_many_from(&mut buffers, &mut pool, &mut packets).await.is_ok() {
            for (packet, _) in packets.drain(..) {
                let _ = sender.send(packet.to_vec());
            }
        }
    });
    Rig { responder, key: key.public(), address, passed, called: vec![] }
}

async fn socket(address: [u8; 4]) -> tokio::net::UdpSocket {
    tokio::net::UdpSocket::bind((Ipv4Addr::from(address), 0)).await.unwrap()
}

/// Sends `datagrams` from addresses of their own, without end.
async fn flood(to: SocketAddr, mut datagram: impl FnMut(u32) -> Vec<u8>) {
    let mut sockets = Vec::new();
    for number in 0..200 {
        sockets.push(socket([127, 1, number, 1]).await);
    }
    for number in 0.. {
        let from = &sockets[usize::try_from(number).unwrap() % sockets.len()];
        let _ = from.send_to(&datagram(number), to).await;
        if number % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Calls from `from` until `rig` lets it pass, and returns how many demands for a cookie came back.
async fn calls(rig: &mut Rig, caller: &mut Caller, from: &tokio::net::UdpSocket) -> u32 {
    let mut demands = 0;
    let mut answer = [0; 200];
    while let Ok(late) = rig.passed.try_recv() {
        assert!(rig.called.contains(&late), "only who is authentic passes");
    }
    for _ in 0..100 {
        rig.called.push(caller.call());
        from.send_to(rig.called.last().unwrap(), rig.address).await.unwrap();
        let answered = async {
            tokio::select! {
                Some(passed) = rig.passed.recv() => Some(passed),
                Ok((length, _)) = from.recv_from(&mut answer) => {
                    caller.takes(&answer[..length]);
                    None
                }
            }
        };
        // What the kernel dropped, as the flood fills the buffer, is not answered.
        let Ok(answered) = tokio::time::timeout(Duration::from_millis(200), answered).await else { continue };
        let Some(passed) = answered else {
            demands += 1;
            continue;
        };
        assert!(rig.called.contains(&passed), "only who is authentic passes");
        return demands;
    }
    panic!("never heard, after {demands} demands");
}

#[tokio::test]
async fn in_a_flood_of_forged_initiations_who_calls_is_heard_and_few_key_exchanges_are_made() {
    let private_key = PrivateKey::generate().unwrap();
    let mut rig = receiver(private_key.public());
    let (start, key, address) = (Instant::now(), rig.key, rig.address);
    let flood = tokio::spawn(async move { flood(address, |number| forged(number, key)).await });
    // Once it is a flood.
    let watcher = socket([127, 2, 0, 1]).await;
    let demanded = async {
        let (mut answer, mut number) = ([0; 200], 1_000_000);
        loop {
            number += 1;
            watcher.send_to(&forged(number, key), address).await.unwrap();
            if let Some(Ok((length, _))) = watcher.recv_from(&mut answer).now_or_never() {
                break assert_eq!((length, answer[0]), (64, 3), "a demand for a cookie");
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, demanded).await.unwrap();
    let mut caller = Caller::new(&private_key, rig.key);
    let home = socket([127, 3, 0, 1]).await;
    for _ in 0..5 {
        calls(&mut rig, &mut caller, &home).await;
    }
    flood.abort();
    let seconds = start.elapsed().as_secs_f64();
    let exchanges = f64::from(rig.responder.exchanges.load(Ordering::Relaxed));
    assert!(exchanges <= 200.0 + 200.0 * seconds + 20.0, "{exchanges} in {seconds} s");
}

#[tokio::test]
async fn a_flood_of_copies_costs_next_to_nothing_and_hinders_nobody() {
    let private_key = PrivateKey::generate().unwrap();
    let mut rig = receiver(private_key.public());
    let (start, key, address) = (Instant::now(), rig.key, rig.address);
    let mut caller = Caller::new(&private_key, key);
    let home = socket([127, 3, 0, 1]).await;
    let recorded = caller.call();
    home.send_to(&recorded, address).await.unwrap();
    let passed = tokio::time::timeout(PATIENCE, rig.passed.recv()).await.unwrap();
    assert_eq!(passed.as_ref(), Some(&recorded));
    let flood = tokio::spawn(async move { flood(address, |_| recorded.clone()).await });
    for _ in 0..5 {
        assert_eq!(calls(&mut rig, &mut caller, &home).await, 0);
    }
    flood.abort();
    let calls = f64::from(u32::try_from(rig.called.len()).unwrap());
    let seconds = start.elapsed().as_secs_f64();
    let exchanges = f64::from(rig.responder.exchanges.load(Ordering::Relaxed));
    assert!(exchanges <= 2.0 + calls + 1.0 + seconds, "{exchanges} in {seconds} s");
}
