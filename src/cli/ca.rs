//! `ca rotate`: another root certificate for the cluster.

use std::fmt::Write as _;

use clap::Subcommand;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::show,
};
use crate::api::proto::{RotateRootRequest, RotateRootResponse};

/// `overlayctl ca`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new root certificate; every node renews its own under it, and tokens change
    Rotate,
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        match self {
            Self::Rotate => rotate(client, format).await,
        }
    }
}

async fn rotate(client: &Client, format: Format) -> Result<(), Failure> {
    let what = "ca rotate";
    let rotated = answer(what, client.control().await?.rotate_root(RotateRootRequest {})).await?;
    let view = RotationView::new(rotated);
    if let Some(warning) = view.warning() {
        eprintln!("overlayctl: warning: {warning}");
    }
    show(format, &view, || view.text())
}

#[derive(Debug, Serialize)]
struct RotationView {
    digest: String,
    lagging: Vec<String>,
}

impl RotationView {
    fn new(rotated: RotateRootResponse) -> Self {
        let digest = rotated.digest.iter().fold(String::new(), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { digest, lagging: rotated.lagging }
    }

    fn warning(&self) -> Option<String> {
        let nodes = self.lagging.join(", ");
        (!self.lagging.is_empty()).then(|| {
            format!("the root before is trusted until these have renewed or are down: {nodes}; see 'overlayctl node ls'")
        })
    }

    fn text(&self) -> String {
        format!(
            "The cluster has a new root certificate ({}).\n\
             Tokens made before join no node any more; print new ones with 'overlayctl join-token worker'.\n",
            self.digest
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::golden;

    #[test]
    fn a_rotation_keeps_its_json_and_names_who_lags() {
        let done = RotateRootResponse { digest: vec![0xab; 32], lagging: Vec::new() };
        let view = RotationView::new(done.clone());
        assert_eq!(view.warning(), None);
        assert!(view.text().contains(&"ab".repeat(32)), "{}", view.text());
        let lagging = vec!["n2".to_owned(), "n3".to_owned()];
        let view = RotationView::new(RotateRootResponse { lagging, ..done });
        golden("ca-rotate", &view);
        assert_eq!(
            view.warning().unwrap(),
            "the root before is trusted until these have renewed or are down: n2, n3; see 'overlayctl node ls'"
        );
    }
}
