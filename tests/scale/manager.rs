//! The manager's process: founds a cluster in a folder, or serves it again.

use std::path::Path;

use anyhow::{Context as _, bail};
use overlay::{
    api::{CERTIFICATE_LIFE, Founding, HEARTBEAT, Opened, Reopening, tls::Credentials},
    manager::Manager,
    types::NodeId,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, stdin};

use super::wire::{self, Serving, say};

#[derive(Serialize, Deserialize)]
struct Kept {
    node: NodeId,
    serving: Serving,
}

/// Serves until standard input ends.
pub async fn run(folder: &str) -> anyhow::Result<()> {
    let folder = Path::new(folder);
    let kept_path = folder.join("kept.json");
    let manager = match std::fs::read(&kept_path) {
        Ok(kept) => {
            let kept: Kept = serde_json::from_slice(&kept)?;
            let opened = Manager::open(Reopening {
                has_others: false,
                alone: false,
                state_dir: folder.to_owned(),
                listen_addr: kept.serving.addr,
                node: kept.node,
                credentials: kept.serving.credentials(),
            })
            .await?;
            let Opened::Serves(manager, _) = opened else { bail!("its node is no manager") };
            say(&kept.serving).await?;
            manager
        }
        Err(_) => {
            let identity = wire::identity(folder)?;
            let (node, certificate_key) = wire::introduction(&identity, "manager")?.request()?;
            let founding = Founding {
                state_dir: folder.to_owned(),
                listen_addr: "127.0.0.1:0".parse()?,
                address_pool: "10.0.0.0/8".parse()?,
                mask_length: 16,
                data_port: 7790,
                certificate_life: CERTIFICATE_LIFE,
                heartbeat: HEARTBEAT,
                node,
                certificate_key,
            };
            let (manager, founded) = Manager::found(founding).await?;
            let Credentials { certificate, key, roots } = founded.credentials;
            let serving = Serving {
                addr: founded.listen_addr,
                token: founded.worker_token.to_string(),
                certificate: certificate.to_vec(),
                key: key.secret_der().to_vec(),
                root: roots.first().context("no root")?.to_vec(),
            };
            say(&serving).await?;
            let kept = Kept { node: founded.node.id, serving };
            std::fs::write(&kept_path, serde_json::to_vec(&kept)?)?;
            manager
        }
    };
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest).await?;
    manager.shutdown().await;
    Ok(())
}
