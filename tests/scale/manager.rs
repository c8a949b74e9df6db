//! A manager's process, and the agent of its node: founds a cluster in a folder, joins one, or serves
//! it again.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use overlay::{
    agent::{
        certificate::Certificate,
        join,
        link::{LinkTask, LookFor},
        managers::Managers,
    },
    api::{CERTIFICATE_LIFE, Founding, HEARTBEAT, Joining, Opened, Reopening},
    engine::membership::Table,
    manager::Manager,
    types::Role,
};
use tokio::{
    io::{AsyncReadExt as _, stdin},
    sync::watch,
    task::JoinHandle,
};

use super::wire::{self, Serving, say};

/// Serves until standard input ends. `join` is where and with which token, and as whom.
pub async fn run(folder: &str, join: Option<[&str; 3]>) -> anyhow::Result<()> {
    let folder = Path::new(folder);
    let kept_path = folder.join("kept.json");
    let (manager, serving) = match (std::fs::read(&kept_path), join) {
        (Ok(kept), _) => open(folder, serde_json::from_slice(&kept)?).await?,
        (Err(_), None) => found(folder).await?,
        (Err(_), Some([addr, token, name])) => join_in(folder, addr, token, name).await?,
    };
    std::fs::write(&kept_path, serde_json::to_vec(&serving)?)?;
    let agent = agent(&serving)?;
    say(&serving).await?;
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest).await?;
    agent.abort();
    manager.shutdown().await;
    Ok(())
}

async fn open(folder: &Path, kept: Serving) -> anyhow::Result<(Manager, Serving)> {
    let opened = Manager::open(Reopening {
        has_others: true,
        alone: false,
        state_dir: folder.to_owned(),
        listen_addr: kept.addr,
        node: kept.node,
        credentials: kept.credentials(),
    });
    match opened.await? {
        Opened::Serves(manager, _) => Ok((manager, kept)),
        Opened::Gone => bail!("its node is no manager"),
    }
}

async fn found(folder: &Path) -> anyhow::Result<(Manager, Serving)> {
    let identity = wire::identity(folder)?;
    let listen_addr = "127.0.0.1:0".parse()?;
    let introduction = wire::introduction(&identity, "m0", listen_addr)?;
    let (node, certificate_key) = introduction.request()?;
    let founding = Founding {
        state_dir: folder.to_owned(),
        listen_addr,
        address_pool: "172.16.0.0/12".parse()?,
        mask_length: 24,
        data_port: 7790,
        certificate_life: CERTIFICATE_LIFE,
        heartbeat: HEARTBEAT,
        node,
        certificate_key,
    };
    let (manager, founded) = Manager::found(founding).await?;
    let (node, addr) = (founded.node.id, founded.listen_addr);
    Ok((manager, Serving::new(node, addr, &founded.credentials)))
}

async fn join_in(
    folder: &Path,
    addr: &str,
    token: &str,
    name: &str,
) -> anyhow::Result<(Manager, Serving)> {
    let identity = wire::identity(folder)?;
    // One that is free now.
    let listen_addr = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let introduction = wire::introduction(&identity, name, listen_addr)?;
    let admitted = join::join(addr.parse()?, &token.parse()?, &introduction).await;
    let admitted = admitted.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let joined = admitted.joined;
    let joining = Joining {
        state_dir: folder.to_owned(),
        listen_addr,
        cluster: joined.cluster,
        node: joined.node.clone(),
        gift: admitted.manager.context("the token makes no manager")?,
        anew: false,
    };
    let (manager, addr) = Manager::join(joining).await?;
    Ok((manager, Serving::new(joined.node.id, addr, &joined.credentials)))
}

/// The agent of the manager's node, which hears of every node.
fn agent(serving: &Serving) -> anyhow::Result<JoinHandle<()>> {
    let certificate = Arc::new(Certificate::new(serving.credentials())?);
    let home: SocketAddr = serving.addr;
    let managers = Arc::new(Managers::new(home, Vec::new(), Role::Manager));
    let look_for: LookFor = Arc::new(|_, _| Box::pin(async { true }));
    let (channels, _) = watch::channel(None);
    let table = Table::empty(serving.node);
    let link = LinkTask::new(managers, certificate, table, |_: &Table| {}, look_for, channels);
    Ok(tokio::spawn(link.run()))
}
