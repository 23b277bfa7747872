//! The receiving end on the loopback interface, without a device behind its gate.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use gotatun::udp::socket::SockOpt;

use super::super::caller::{Caller, forged};
use super::super::initiation::Responder;
use super::*;
use crate::kernel::{PeerChange, PeerConfig};
use crate::types::{AllowedIps, PrivateKey, PublicKey};

struct Rig {
    responder: Arc<Responder>,
    key: PublicKey,
    address: SocketAddr,
    passed: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
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
    Rig { responder, key: key.public(), address, passed }
}

async fn socket(address: [u8; 4]) -> tokio::net::UdpSocket {
    tokio::net::UdpSocket::bind((Ipv4Addr::from(address), 0)).await.unwrap()
}

impl Rig {
    /// Has `many` datagrams judged, from addresses of their own. None of them may pass.
    async fn flood(&mut self, many: u32, datagram: impl Fn(u32) -> Vec<u8>) {
        let mut sockets = Vec::new();
        for number in 0..100 {
            sockets.push(socket([127, 1, number, 1]).await);
        }
        for number in 0..many {
            let from = &sockets[usize::try_from(number).unwrap() % sockets.len()];
            from.send_to(&datagram(number), self.address).await.unwrap();
            if number % 50 == 49 {
                // No handshake message: it passes, once those before it have been judged.
                from.send_to(&[4; 32], self.address).await.unwrap();
                assert_eq!(self.passed.recv().await.unwrap(), [4; 32]);
            }
        }
    }

    fn exchanges(&self) -> u32 {
        self.responder.exchanges.load(Ordering::Relaxed)
    }

    /// Calls from `from`, and returns whether that passed; if not, a cookie was demanded.
    async fn calls(&mut self, caller: &mut Caller, from: &tokio::net::UdpSocket) -> bool {
        let call = caller.call();
        from.send_to(&call, self.address).await.unwrap();
        let mut answer = [0; 200];
        tokio::select! {
            passed = self.passed.recv() => {
                assert!(passed.unwrap() == call);
                true
            }
            answered = from.recv_from(&mut answer) => {
                let length = answered.unwrap().0;
                assert_eq!((length, answer[0]), (64, 3), "a demand for a cookie");
                caller.takes(&answer[..length]);
                false
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_flood_of_forged_initiations_who_calls_is_heard_and_few_key_exchanges_are_made() {
    let private_key = PrivateKey::generate().unwrap();
    let mut rig = receiver(private_key.public());
    let key = rig.key;
    rig.flood(500, |number| forged(number, key)).await;
    assert_eq!(rig.exchanges(), 200);
    let mut caller = Caller::new(&private_key, key);
    let home = socket([127, 3, 0, 1]).await;
    assert!(!rig.calls(&mut caller, &home).await);
    for round in 1..4_u32 {
        tokio::time::advance(Duration::from_secs(5)).await;
        let before = rig.exchanges();
        rig.flood(500, |number| forged(number + round * 500, key)).await;
        assert_eq!(rig.exchanges() - before, 200);
        assert!(rig.calls(&mut caller, &home).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_copies_costs_next_to_nothing_and_hinders_nobody() {
    let private_key = PrivateKey::generate().unwrap();
    let mut rig = receiver(private_key.public());
    let mut caller = Caller::new(&private_key, rig.key);
    let home = socket([127, 3, 0, 1]).await;
    let recorded = caller.call();
    home.send_to(&recorded, rig.address).await.unwrap();
    assert_eq!(rig.passed.recv().await.as_ref(), Some(&recorded));
    for round in 0..3 {
        assert_eq!(rig.exchanges(), 2 + 2 * round);
        rig.flood(500, |_| recorded.clone()).await;
        assert!(rig.calls(&mut caller, &home).await);
        // What was heard is forgotten after a second: then one copy costs another key exchange.
        tokio::time::advance(Duration::from_secs(2)).await;
        rig.flood(50, |_| recorded.clone()).await;
    }
}
