//! The stream of the table as text. Compiled anew from the policy in force, into a table that nft's language can say and that
//! decides as the one in force, and written as fast as it is taken: a slow reader holds nobody up.

use std::fmt::Write;
use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::unfold;
use plexd_proto::admin::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use crate::policy::{self, export};
use crate::reconcile::InForce;
use crate::supervisor::Shutdown;

/// What the RPC answers with.
pub(in crate::admin) type ExportStream =
    Pin<Box<dyn Stream<Item = Result<v1::ExportPolicyResponse, Status>> + Send>>;

/// Bytes of text from which a message is sent.
const PIECE: usize = 64 * 1024;

/// Messages that may wait for the reader.
const WAITING: usize = 4;

/// Streams the table, or until core stops; `permit` is held until all of it is taken.
pub(super) fn stream(
    in_force: InForce,
    state: &v1::PolicyState,
    shutdown: Shutdown,
    permit: OwnedSemaphorePermit,
) -> ExportStream {
    let head = head(&in_force, state);
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        // A reader that has gone needs nothing more.
        let _ = write(&in_force, head, &sender);
    });
    Box::pin(unfold(Some((receiver, shutdown)), |state| async move {
        let (mut receiver, shutdown) = state?;
        // Cancel safe: what is not received stays where it is, and nobody asks for it after a stop.
        tokio::select! {
            () = shutdown.cancelled() => Some((Err(Status::unavailable("plexd-core is stopping")), None)),
            piece = receiver.recv() => Some((piece?, Some((receiver, shutdown)))),
        }
    }))
}

/// Says what the text is.
fn head(in_force: &InForce, state: &v1::PolicyState) -> String {
    let context = &in_force.context;
    let (version, node, interface) = (env!("CARGO_PKG_VERSION"), &context.node, &context.interface);
    let mut head = format!(
        "# The policy of node {node} for {interface}, as plexd-core {version} means it: {} policies, {} rules, default {}.\n\
         # nft -f replaces the table inet plexd by it; a plexd-core that runs puts its own back within a second.\n\
         # Counters begin at zero. It decides as plexd's own table, which asks fewer maps in ways that nft 1.0.6 cannot\n\
         # load: the output of nft list cannot be loaded.\n",
        state.policies, state.rules, context.default
    );
    if !state.rejected.is_empty() {
        // One line: what is refused may be of any length and form, and must not end the comment.
        let rejected: String = state.rejected.escape_debug().collect();
        let _ = writeln!(head, "# A newer set of policies is refused and not in force: {rejected}");
    }
    if !context.enabled {
        head += "# Policy is disabled: there is no table, and every packet may pass.\n";
    }
    head
}

type Sender = mpsc::Sender<Result<v1::ExportPolicyResponse, Status>>;

/// Sends the text piece by piece. The error means that nobody reads any more.
fn write(in_force: &InForce, head: String, sender: &Sender) -> Result<(), ()> {
    let send = |part: Result<String, Status>| {
        let part = part.map(|text| v1::ExportPolicyResponse { text });
        sender.blocking_send(part).map_err(drop)
    };
    let table = match policy::compile_plainly(&in_force.policies, &in_force.context) {
        Ok(Some(table)) => table,
        Ok(None) => return send(Ok(head)),
        Err(error) => return send(Err(Status::internal(error.to_string()))),
    };
    let mut piece = head + "\n";
    for lines in export::text(&table, &in_force.policies) {
        piece += &lines;
        if piece.len() >= PIECE {
            send(Ok(std::mem::take(&mut piece)))?;
        }
    }
    send(Ok(piece))
}
