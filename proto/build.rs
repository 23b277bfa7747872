//! Generates the gRPC code from the proto files with `protox`, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["plexd/node/v1/node_state.proto", "plexd/admin/v1/admin.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .skip_debug([".plexd.node.v1.Secret", ".plexd.node.v1.TcpCaller", ".plexd.admin.v1.JoinRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}
