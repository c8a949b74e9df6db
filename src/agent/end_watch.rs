//! Tells when the namespaces of devices end that this process holds from inside. Such a queue keeps
//! its namespace alive and never shows an end, so what led to the namespace is watched: the process
//! by its pidfd, the path by inotify on its folder. When that is gone and no process is in the
//! namespace any more, it has ended for everybody but us.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use tokio::{sync::mpsc, task::JoinSet};
use tracing::warn;

use super::namespace::Target;
use crate::{
    io::{
        end::{Folders, process_ends},
        netns::NamespaceId,
    },
    types::EndpointId,
};

/// The watch over all such namespaces of a node. Dropping it ends it.
pub struct EndWatch {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    ended: mpsc::Sender<EndpointId>,
    folders: Folders,
    paths: Mutex<BTreeMap<EndpointId, (Target, NamespaceId)>>,
}

impl EndWatch {
    /// Starts the watch; endpoints whose namespace ended are sent to `ended`.
    ///
    /// # Errors
    /// The kernel gives no inotify instance.
    pub fn start(ended: mpsc::Sender<EndpointId>) -> anyhow::Result<Arc<Self>> {
        let folders = Folders::new().context("watch folders for namespaces that end")?;
        let shared = Arc::new(Shared { ended, folders, paths: Mutex::default() });
        let watch = Arc::new(Self { shared: shared.clone(), tasks: Mutex::default() });
        let keeper = Arc::downgrade(&watch);
        watch.tasks().spawn(async move {
            while shared.folders.changed().await.is_ok() {
                let Some(watch) = keeper.upgrade() else { return };
                watch.look_at_paths();
            }
        });
        Ok(watch)
    }

    /// Watches a namespace until it has ended or the endpoint is forgotten.
    pub fn watch(self: &Arc<Self>, endpoint: EndpointId, target: Target, namespace: NamespaceId) {
        match target {
            Target::Netns(path) => self.watch_path(endpoint, path, namespace),
            Target::Pid(process) | Target::Container { process, .. } => {
                self.watch_process(endpoint, process, target, namespace);
            }
            // It ends with this process.
            Target::Host => {}
        }
    }

    /// Forgets an endpoint; what was on its way to say that it ended is said of nothing.
    pub fn forget(&self, endpoint: EndpointId) {
        self.shared.paths().remove(&endpoint);
    }

    fn watch_path(self: &Arc<Self>, endpoint: EndpointId, path: PathBuf, namespace: NamespaceId) {
        if let Some(folder) = path.parent()
            && let Err(error) = self.shared.folders.add(folder)
        {
            warn!(%error, folder = %folder.display(), "the end of namespaces is not seen");
        }
        self.shared.paths().insert(endpoint, (Target::Netns(path), namespace));
        // It may have gone before the folder was watched.
        self.look_at_paths();
    }

    /// Finds the paths that lead to their namespace no more. A named namespace that was deleted lives
    /// on while a process is in it.
    fn look_at_paths(self: &Arc<Self>) {
        let leads = |target: &Target, to| target.find().is_ok_and(|found| found == to);
        let mut gone = Vec::new();
        self.shared.paths().retain(|endpoint, (target, namespace)| {
            let stays = leads(target, *namespace);
            if !stays {
                gone.push((*endpoint, target.clone(), *namespace));
            }
            stays
        });
        for (endpoint, target, namespace) in gone {
            self.go_on(endpoint, &target, namespace);
        }
    }

    fn watch_process(
        self: &Arc<Self>,
        endpoint: EndpointId,
        pid: u32,
        target: Target,
        namespace: NamespaceId,
    ) {
        let keeper = Arc::downgrade(self);
        self.tasks().spawn(async move {
            if let Err(error) = process_ends(pid).await {
                warn!(%error, pid, "the end of a process is not seen");
                return;
            }
            if let Some(watch) = keeper.upgrade() {
                watch.go_on(endpoint, &target, namespace);
            }
        });
    }

    /// Watches what else leads to the namespace, or tells that it has ended.
    fn go_on(self: &Arc<Self>, endpoint: EndpointId, target: &Target, namespace: NamespaceId) {
        match target.still(namespace) {
            Some(other) => self.watch(endpoint, other, namespace),
            None => {
                let ended = self.shared.ended.clone();
                self.tasks().spawn(async move {
                    // Nobody takes it any more when the node ends.
                    let _ = ended.send(endpoint).await;
                });
            }
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks
    }
}

impl Shared {
    fn paths(&self) -> MutexGuard<'_, BTreeMap<EndpointId, (Target, NamespaceId)>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_told_once_it_was_the_last() {
        let (ended, mut told) = mpsc::channel(4);
        let watch = EndWatch::start(ended).unwrap();
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = EndpointId::from_u128(1);
        // A namespace that no process is in.
        let nowhere = NamespaceId::of(&fs::metadata("/dev/null").unwrap());
        watch.watch(id, Target::Pid(sleeper.id()), nowhere);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(told.recv().await, Some(id));
    }

    #[tokio::test]
    async fn the_end_of_a_path_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blue");
        fs::write(&path, "").unwrap();
        let (ended, mut told) = mpsc::channel(4);
        let watch = EndWatch::start(ended).unwrap();
        let id = EndpointId::from_u128(1);
        let nowhere = NamespaceId::of(&fs::metadata("/dev/null").unwrap());
        watch.watch(id, Target::Netns(path), nowhere);
        assert_eq!(told.recv().await, Some(id), "it leads elsewhere from the start");
    }
}
