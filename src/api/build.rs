//! Generates the stream contracts' types from the `.proto` files, without a `protoc` on the machine.

use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new("src/api/proto");
    let files = ["objects.proto", "cluster.proto", "local.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={}", folder.join(file).display());
    }
    let descriptors = protox::compile(files, [folder])?;
    tonic_prost_build::configure()
        .build_transport(true)
        .btree_map(".")
        .skip_debug([
            "JoinRequest",
            "ManagerGift",
            "JoinTokenResponse",
            "Psk",
            "InitResponse",
            "JoinClusterRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
