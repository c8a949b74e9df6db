//! The tasks of this node. Each has a driver that brings it as far as the table says, and says how far it
//! is; the supervisors outlive this process, and the next one's drivers find them.
//!
//! ```text
//! table --> TasksTask --one a task--> driver: prepare -> attach -> start -> stop
//!                                       |  `- executor::Process <--> supervisor
//!                                       '-> Reports --> link --> manager
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tracing::{info, warn};

use super::attachments::Attachments;
use crate::{
    engine::membership::Table,
    executor::{Definition, Found, Process, TaskFolder, forget, kept},
    io::clock,
    types::{Desired, NodeTask, TaskId, TaskState, TaskStatus},
};

/// How far each task of this node is, as it says last.
#[derive(Default)]
pub struct Reports {
    newest: Mutex<BTreeMap<TaskId, TaskStatus>>,
    /// Those of which there is something new.
    news: watch::Sender<BTreeSet<TaskId>>,
}

impl Reports {
    /// Returns all of them.
    pub fn all(&self) -> Vec<(TaskId, TaskStatus)> {
        self.news.send_if_modified(|news| {
            news.clear();
            false
        });
        self.newest().iter().map(|(task, report)| (*task, report.clone())).collect()
    }

    /// Takes those of which there is something new.
    pub fn take_news(&self) -> Vec<(TaskId, TaskStatus)> {
        let mut news = BTreeSet::new();
        self.news.send_if_modified(|waiting| {
            news = std::mem::take(waiting);
            false
        });
        let newest = self.newest();
        let report = |task: TaskId| newest.get(&task).map(|report| (task, report.clone()));
        news.into_iter().filter_map(report).collect()
    }

    /// Follows whether there is something new.
    pub fn news(&self) -> watch::Receiver<BTreeSet<TaskId>> {
        self.news.subscribe()
    }

    fn put(&self, task: TaskId, report: TaskStatus) {
        self.newest().insert(task, report);
        self.news.send_modify(|news| {
            news.insert(task);
        });
    }

    fn forget(&self, task: TaskId) {
        self.newest().remove(&task);
    }

    fn newest(&self) -> MutexGuard<'_, BTreeMap<TaskId, TaskStatus>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drives all tasks; may be aborted, and leaves them as they are.
pub struct TasksTask {
    state_dir: PathBuf,
    attachments: Arc<Attachments>,
    table: watch::Receiver<Arc<Table>>,
    reports: Arc<Reports>,
    drivers: BTreeMap<TaskId, watch::Sender<NodeTask>>,
    driving: JoinSet<()>,
    children: Arc<Mutex<Vec<Child>>>,
    stopping: Arc<Stopping>,
}

/// Stops all tasks of a node that leaves.
#[derive(Default)]
pub struct Stopping {
    asked: watch::Sender<bool>,
    done: watch::Sender<bool>,
}

impl Stopping {
    /// Has all of them stopped as their definitions say, and waits for that.
    pub async fn stop_all(&self) {
        self.asked.send_replace(true);
        let mut done = self.done.subscribe();
        // The sender is here.
        let _ = done.wait_for(|done| *done).await;
    }
}

impl TasksTask {
    /// Makes the task.
    pub fn new(
        state_dir: PathBuf,
        attachments: Arc<Attachments>,
        table: watch::Receiver<Arc<Table>>,
        reports: Arc<Reports>,
        stopping: Arc<Stopping>,
    ) -> Self {
        Self {
            state_dir,
            attachments,
            table,
            reports,
            drivers: BTreeMap::new(),
            driving: JoinSet::new(),
            children: Arc::default(),
            stopping,
        }
    }

    /// Drives for as long as it is polled.
    pub async fn run(mut self) {
        let Ok(mut children) = signal(SignalKind::child()) else {
            self.stopping.done.send_replace(true);
            return warn!("the system tells of no children that end; no task runs here");
        };
        let stopping = self.stopping.clone();
        let mut asked = stopping.asked.subscribe();
        let mut cleaned = false;
        self.follow();
        loop {
            tokio::select! {
                changed = self.table.changed() => match changed {
                    Ok(()) => {
                        self.follow();
                        // Only a manager says what is not the node's any more.
                        if !std::mem::replace(&mut cleaned, true) {
                            self.end_strays();
                        }
                    }
                    Err(_) => return,
                },
                _ = children.recv() => {
                    let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
                    let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
                    children.retain_mut(|child| !ended(child));
                }
                Some(_) = self.driving.join_next() => {}
                _ = asked.wait_for(|asked| *asked) => break,
            }
        }
        self.drivers.clear();
        while self.driving.join_next().await.is_some() {}
        stopping.done.send_replace(true);
    }

    /// Tells the drivers what the table says, and makes those that lack.
    fn follow(&mut self) {
        let table = self.table.borrow_and_update().clone();
        if table.revision == 0 {
            return;
        }
        self.drivers.retain(|task, _| table.tasks.contains_key(task));
        for task in table.tasks.values() {
            match self.drivers.get(&task.id) {
                Some(driver) => drop(driver.send_if_modified(|told| {
                    let differs = told != task;
                    if differs {
                        told.clone_from(task);
                    }
                    differs
                })),
                None => self.drive(task.clone()),
            }
        }
    }

    fn drive(&mut self, task: NodeTask) {
        let folder = TaskFolder::of(&self.state_dir, task.id);
        let (told, tells) = watch::channel(task.clone());
        let driver = Driver {
            folder,
            volumes: self.state_dir.join("volumes"),
            attachments: self.attachments.clone(),
            reports: self.reports.clone(),
            children: self.children.clone(),
            told: tells,
        };
        self.drivers.insert(task.id, told);
        self.driving.spawn(driver.run());
    }

    /// Ends what is kept here of tasks that the table does not have, and no driver ends already.
    fn end_strays(&mut self) {
        let table = self.table.borrow().clone();
        let kept = match kept(&self.state_dir) {
            Ok(kept) => kept,
            Err(error) => return warn!(%error, "the tasks that are kept here are not known"),
        };
        for task in kept.into_iter().filter(|task| !table.tasks.contains_key(task)) {
            let folder = TaskFolder::of(&self.state_dir, task);
            if !self.reports.newest().contains_key(&task) {
                self.driving.spawn(end_stray(folder));
            }
        }
    }
}

/// Ends a task that nobody wants.
async fn end_stray(folder: TaskFolder) {
    if let Found::Runs(mut process) = Process::find(&folder).await {
        let _ = process.stop().await;
        while !process.next().await.state.has_ended() {}
    }
    forget_folder(&folder);
}

/// Drives one task, from what is there of it to its end, and until it is forgotten.
struct Driver {
    folder: TaskFolder,
    volumes: PathBuf,
    attachments: Arc<Attachments>,
    reports: Arc<Reports>,
    children: Arc<Mutex<Vec<Child>>>,
    told: watch::Receiver<NodeTask>,
}

impl Driver {
    async fn run(mut self) {
        let task = self.told.borrow_and_update().clone();
        if let Some(process) = self.begin(&task).await {
            self.follow(process, &task).await;
        }
        // What it said is kept for as long as the cluster remembers it.
        while self.told.changed().await.is_ok() {}
        self.attachments.detach_task(&task.endpoints).await;
        forget_folder(&self.folder);
        self.reports.forget(task.id);
    }

    /// Finds the task's supervisor, or starts it; `None` if the task has ended.
    async fn begin(&self, task: &NodeTask) -> Option<Process> {
        if self.folder.path().exists() {
            match Process::find(&self.folder).await {
                Found::Runs(process) => return self.attach(task, process).await,
                Found::Ended(report) => return self.end(task, report).await,
            }
        }
        match task.desired {
            Desired::Shutdown | Desired::Remove => {
                return self.end(task, report(TaskState::Shutdown, None)).await;
            }
            Desired::Ready | Desired::Running => {}
        }
        self.reports.put(task.id, report(TaskState::Preparing, None));
        let definition = Definition {
            id: task.id,
            name: task.name(),
            spec: task.spec.clone(),
            volumes: self.volumes.clone(),
        };
        let program = PathBuf::from("/proc/self/exe");
        match Process::start(program, &self.folder, &definition).await {
            Ok((process, child)) => {
                self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
                self.attach(task, process).await
            }
            Err(error) => {
                self.end(task, report(TaskState::Rejected, Some(error.to_string()))).await
            }
        }
    }

    async fn attach(&self, task: &NodeTask, mut process: Process) -> Option<Process> {
        let attached = self.attachments.attach_task(task, process.supervisor()).await;
        if let Err(error) = attached {
            let _ = process.stop().await;
            while !process.next().await.state.has_ended() {}
            return self.end(task, report(TaskState::Rejected, Some(format!("{error:#}")))).await;
        }
        Some(process)
    }

    /// Brings the task as far as it is told until it has ended.
    async fn follow(&mut self, mut process: Process, task: &NodeTask) {
        let (mut started, mut stopped, mut forgotten) = (false, false, false);
        loop {
            let desired = match forgotten {
                true => Desired::Remove,
                false => self.told.borrow_and_update().desired,
            };
            match desired {
                // One that ends meanwhile says so next.
                Desired::Running if !started => {
                    started = true;
                    let _ = process.start_command().await;
                }
                Desired::Shutdown | Desired::Remove if !stopped => {
                    stopped = true;
                    let _ = process.stop().await;
                }
                Desired::Ready | Desired::Running | Desired::Shutdown | Desired::Remove => {}
            }
            tokio::select! {
                changed = self.told.changed(), if !forgotten => forgotten = changed.is_err(),
                report = process.next() => {
                    if report.state.has_ended() {
                        self.end(task, report).await;
                        return;
                    }
                    self.reports.put(task.id, report);
                }
            }
        }
    }

    async fn end(&self, task: &NodeTask, report: TaskStatus) -> Option<Process> {
        self.attachments.detach_task(&task.endpoints).await;
        info!(task = task.name(), id = %task.id, state = %report.state, "task ended");
        self.reports.put(task.id, report);
        None
    }
}

fn forget_folder(folder: &TaskFolder) {
    if let Err(error) = forget(folder) {
        warn!(%error, folder = %folder.path().display(), "what is kept of a task stays");
    }
}

fn report(state: TaskState, message: Option<String>) -> TaskStatus {
    TaskStatus { state, since_ms: clock::now_ms(), message, exit: None }
}
