//! What the plexd processes share: the gRPC services between them, the Unix-socket transport both ends use, the
//! settings both daemons read, and how a daemon gives up root. Depends on nothing else of plexd.

pub mod node {
    //! `plexd.node.v1`: what plexd-core serves to plexd-api.

    /// Most writes in one message of `WriteReports`.
    pub const MAX_WRITES: usize = 256;

    /// Most bytes of keys, content types and payloads in one message of `WriteReports`, unless it is a single write.
    pub const MAX_WRITES_BYTES: usize = 1024 * 1024;

    /// Most reads in one message of `ReadSecrets`.
    pub const MAX_READS: usize = 256;

    /// Most reads of one stream of `ReadSecrets` that are not answered yet.
    pub const MAX_READS_UNDER_WAY: usize = 1024;

    #[expect(
        missing_docs,
        clippy::pedantic,
        reason = "generated; documented in the proto file, whose comments prost carries over where there are any"
    )]
    pub mod v1 {
        tonic::include_proto!("plexd.node.v1");
    }
}

pub mod admin {
    //! `plexd.admin.v1`: what plexd-core serves to plexd-ctl.

    #[expect(
        missing_docs,
        clippy::pedantic,
        reason = "generated; documented in the proto file, whose comments prost carries over where there are any"
    )]
    pub mod v1 {
        tonic::include_proto!("plexd.admin.v1");
    }
}

pub mod access;
mod explain;
pub mod memory;
pub mod privilege;
pub mod proof;
mod redact;
pub mod settings;
pub mod transport;

pub use explain::explain;
