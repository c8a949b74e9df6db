//! A node while it is a member: its link, its data plane, the endpoints of its containers, and what
//! of that it keeps on disk.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Code, Status, transport::Channel};
use tracing::warn;

use super::{
    Identity,
    attachments::{Attachments, containers::ContainersTask},
    certificate::Certificate,
    dataplane::Dataplane,
    docker::Docker,
    end_watch::EndWatch,
    join::Joined,
    link::{LinkTask, LookFor},
    managers::{Managers, Standing},
    records::{MemberRecord, Records},
    renewal::RenewalTask,
    tasks::{Reports, Stopping, TasksTask},
};
use crate::{
    api::channel,
    engine::membership::Table,
    types::{EndpointId, Node, Role},
};

/// A member node.
pub struct Member {
    /// The cluster's identity.
    pub cluster: [u8; 16],
    /// The node as registered; its role may be another since.
    pub node: Node,
    /// Where its manager is.
    pub manager: Manager,
    /// Its data plane.
    pub dataplane: Arc<Dataplane>,
    /// The endpoints of its containers.
    pub attachments: Arc<Attachments>,
    record: Arc<Mutex<MemberRecord>>,
    identity: Identity,
    certificate: Arc<Certificate>,
    records: Records,
    table: watch::Receiver<Arc<Table>>,
    tasks: Mutex<JoinSet<()>>,
    reports: Arc<Reports>,
    stopping: Arc<Stopping>,
}

/// The manager that a node talks to.
#[derive(Clone)]
pub struct Manager {
    managers: Arc<Managers>,
    connected: watch::Receiver<Option<Channel>>,
    /// Stands where it began.
    standing: watch::Receiver<Standing>,
}

impl Manager {
    /// Returns its address.
    pub fn addr(&self) -> SocketAddr {
        self.managers.current()
    }

    /// Returns the channel to the manager.
    ///
    /// # Errors
    /// There is none now.
    pub fn channel(&self) -> Result<Channel, Status> {
        self.connected.borrow().clone().ok_or_else(|| {
            Status::unavailable(format!(
                "manager {} is not reachable; check that it runs, then try again",
                self.addr()
            ))
        })
    }

    /// Returns the channel to the manager; while another one that leads is looked for, it waits.
    ///
    /// # Errors
    /// None is found.
    pub async fn connected(&self) -> Result<Channel, Status> {
        let mut connected = self.connected.clone();
        // A sender that is gone, or never sends, leaves what there is.
        let _ = timeout(FOUND_WITHIN, connected.wait_for(Option::is_some)).await;
        self.channel()
    }

    /// Asks the manager something that it may be asked more than once. One that cannot answer, because it
    /// is being ended or has lost the others, is left for the next by the stream to it: that one is asked then.
    ///
    /// # Errors
    /// The manager refuses, or none answers in time.
    pub async fn ask<T>(
        &self,
        mut call: impl AsyncFnMut(Channel) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut connected = self.connected.clone();
        let until = Instant::now() + FOUND_WITHIN;
        loop {
            connected.mark_unchanged();
            let answered = call(self.connected().await?).await;
            let away = answered.as_ref().is_err_and(|status| status.code() == Code::Unavailable);
            let left = away && matches!(timeout_at(until, connected.changed()).await, Ok(Ok(())));
            if !left {
                return answered;
            }
        }
    }

    /// Talks to this manager at once, if to none now.
    pub fn hurry_to(&self, manager: SocketAddr) {
        self.managers.hurry_to(manager);
    }

    /// Returns what this node is, as a manager says last.
    pub fn role(&self) -> Role {
        self.standing.borrow().role
    }

    /// Follows what this node is, from the beginning.
    pub fn follow_standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Tells whether the stream to the manager is open.
    pub fn is_connected(&self) -> bool {
        self.connected.borrow().is_some()
    }
}

/// What a member starts with.
pub struct Parts {
    /// What the node has become, now or in an earlier process.
    pub joined: Joined,
    /// Its data plane.
    pub dataplane: Dataplane,
    /// The endpoints whose namespace ended, and where they are told.
    pub ended: (mpsc::Sender<EndpointId>, mpsc::Receiver<EndpointId>),
    /// Where the node keeps what is its own, and what it must not lose.
    pub records: Records,
    /// What is kept of the membership.
    pub record: MemberRecord,
    /// The node's key.
    pub identity: Identity,
    /// The state folder.
    pub state_dir: PathBuf,
    /// The Docker Engine of its host.
    pub docker: Docker,
}

impl Member {
    /// Starts a new member, and waits until the manager's first snapshot is in use.
    ///
    /// # Errors
    /// The manager does not take the node; all that was started has ended.
    pub async fn start(parts: Parts) -> anyhow::Result<Arc<Self>> {
        let table = Table::empty(parts.joined.node.id);
        let (home, state_dir) = (parts.record.manager, parts.state_dir.clone());
        let (member, link) = Self::assemble(parts, table, home)?;
        member.tasks().spawn(link);
        let mut connected = member.manager.connected.clone();
        let first = timeout(FIRST_SNAPSHOT, connected.wait_for(Option::is_some));
        if first.await.is_err() {
            let manager = member.manager.addr();
            member.shutdown().await;
            anyhow::bail!("manager {manager} sends nothing; check it, and try again");
        }
        member.keep_certificate();
        member.drive_tasks(state_dir);
        Ok(member)
    }

    /// Goes on as the member that the process before was: forwards by the last good table, whether
    /// or not a manager is there.
    ///
    /// # Errors
    /// What was kept cannot be read.
    pub async fn resume(parts: Parts) -> anyhow::Result<Arc<Self>> {
        let node = parts.joined.node.id;
        let table = parts.records.table().unwrap_or_else(|error| {
            warn!(error = format!("{error:#}"), "no last table; the manager has it");
            None
        });
        let table = table.filter(|table| table.node == node);
        let table = table.unwrap_or_else(|| Table::empty(node));
        // Its own manager goes on, and need not be looked for.
        let home = parts.record.own_manager().unwrap_or(parts.record.manager);
        let state_dir = parts.state_dir.clone();
        let (member, link) = Self::assemble(parts, table.clone(), home)?;
        member.dataplane.publish(Arc::new(table));
        let restored = member.attachments.restore().await;
        if let Err(error) = restored.context("take the endpoints over") {
            member.shutdown().await;
            return Err(error);
        }
        let dataplane = member.dataplane.clone();
        member.tasks().spawn(async move { dataplane.greet_peers().await });
        member.tasks().spawn(link);
        member.keep_certificate();
        member.drive_tasks(state_dir);
        Ok(member)
    }

    /// Puts a member together, its link not running yet.
    fn assemble(
        parts: Parts,
        table: Table,
        home: SocketAddr,
    ) -> anyhow::Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static)> {
        let Parts { joined, dataplane, ended, records, record, identity, state_dir, docker } =
            parts;
        let record = Arc::new(Mutex::new(record));
        let managers = {
            let record = locked(&record);
            let role = if record.listen_addr.is_some() { Role::Manager } else { Role::Worker };
            Arc::new(Managers::new(home, record.managers.clone(), role))
        };
        let dataplane = Arc::new(dataplane);
        let certificate = Arc::new(Certificate::new(joined.credentials)?);
        let (tables, current) = watch::channel(Arc::new(table.clone()));
        let (channels, connected) = watch::channel(None);
        let publish = {
            let dataplane = dataplane.clone();
            move |table: &Table| {
                let table = Arc::new(table.clone());
                dataplane.publish(table.clone());
                tables.send_replace(table);
            }
        };
        let look_for: LookFor = {
            let dataplane = dataplane.clone();
            Arc::new(move |node, within| {
                let dataplane = dataplane.clone();
                Box::pin(async move { dataplane.look_for(node, within).await })
            })
        };
        let reports: Arc<Reports> = Arc::default();
        let link = LinkTask::new(
            managers.clone(),
            certificate.clone(),
            table,
            publish,
            look_for,
            channels,
        )
        .telling(reports.clone());
        let standing = managers.standing();
        let manager = Manager { managers, connected, standing };
        let (ended_sender, ended) = ended;
        let attachments = Attachments::new(
            joined.node.clone(),
            manager.clone(),
            dataplane.clone(),
            records.clone(),
            EndWatch::start(ended_sender)?,
            current.clone(),
            docker,
        );
        let member = Arc::new(Self {
            cluster: joined.cluster,
            node: joined.node,
            manager,
            dataplane,
            attachments: Arc::new(attachments),
            record,
            identity,
            certificate,
            records,
            table: current,
            tasks: Mutex::default(),
            reports,
            stopping: Arc::default(),
        });
        member.keep(state_dir, ended);
        Ok((member, link.run()))
    }

    /// Returns where the manager of this process is, if there is one.
    pub fn own_manager(&self) -> Option<SocketAddr> {
        locked(&self.record).own_manager()
    }

    /// Returns the node as registered, with the role that it has now.
    pub fn registered(&self) -> Node {
        Node { role: self.manager.role(), ..self.node.clone() }
    }

    /// Returns what is kept of the membership.
    pub fn record(&self) -> MemberRecord {
        locked(&self.record).clone()
    }

    /// Keeps this of the membership from now on.
    ///
    /// # Errors
    /// It cannot be written; what was kept stays.
    pub fn put_record(&self, changed: MemberRecord) -> anyhow::Result<()> {
        let mut record = locked(&self.record);
        // Where the others are is the other task's to say.
        let changed = MemberRecord { managers: record.managers.clone(), ..changed };
        tokio::task::block_in_place(|| self.records.put_record(&changed))?;
        *record = changed;
        Ok(())
    }

    /// Opens a channel to this node's own manager, whether or not it leads.
    ///
    /// # Errors
    /// It has none, or that is not reached.
    pub async fn to_own_manager(&self) -> Result<Channel, Status> {
        let addr = self.own_manager();
        let addr = addr.ok_or_else(|| Status::failed_precondition("this node has no manager"))?;
        let opened = channel::to_manager(addr, self.certificate.config()).await;
        opened.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Starts to drive the node's tasks; their endpoints were taken over.
    fn drive_tasks(&self, state_dir: PathBuf) {
        let (attachments, table) = (self.attachments.clone(), self.table.clone());
        let (reports, stopping) = (self.reports.clone(), self.stopping.clone());
        let driving = TasksTask::new(state_dir, attachments, table, reports, stopping);
        self.tasks().spawn(driving.run());
    }

    /// Stops all tasks of the node, for it leaves.
    pub async fn stop_tasks(&self) {
        self.stopping.stop_all().await;
    }

    /// Starts to keep the certificate valid. The membership is on disk already.
    fn keep_certificate(&self) {
        let records = self.records.clone();
        let renewal = RenewalTask::new(
            self.manager.managers.clone(),
            self.node.id,
            self.identity.clone(),
            self.certificate.clone(),
            self.manager.connected.clone(),
            move |credentials: &_| {
                tokio::task::block_in_place(|| records.put_credentials(credentials))
            },
        );
        self.tasks().spawn(renewal.run());
    }

    /// Starts the tasks that keep endpoints and records as they must be.
    fn keep(&self, state_dir: PathBuf, mut ended: mpsc::Receiver<EndpointId>) {
        let (attachments, mut connected) =
            (self.attachments.clone(), self.manager.connected.clone());
        self.tasks().spawn(async move {
            while connected.changed().await.is_ok() {
                let back = connected.borrow_and_update().is_some();
                if back {
                    attachments.reconcile().await;
                }
            }
        });
        let attachments = self.attachments.clone();
        self.tasks().spawn(async move {
            while let Some(endpoint) = ended.recv().await {
                attachments.handle_ended(endpoint).await;
            }
        });
        self.tasks().spawn(ContainersTask::new(self.attachments.clone()).run());
        let (records, mut table) = (self.records.clone(), self.table.clone());
        let (attachments, dataplane) = (self.attachments.clone(), self.dataplane.clone());
        let (identity, certificate) = (self.identity.clone(), self.certificate.clone());
        let kept = Kept { record: self.record.clone(), identity, state_dir, certificate };
        let (mut known, others) = (self.manager.managers.known(), self.records.clone());
        let record = self.record.clone();
        self.tasks().spawn(async move {
            while known.changed().await.is_ok() {
                save_managers(&others, &record, known.borrow_and_update().clone());
            }
        });
        self.tasks().spawn(async move {
            let mut saved = false;
            loop {
                // A table that does not change is looked after too, though rarely.
                let changed = timeout(BETWEEN_LOOKS, table.changed()).await;
                if matches!(changed, Ok(Err(_))) {
                    return;
                }
                let emptied = mend(&records, &kept, &attachments, &dataplane);
                let lost = saved && !records.has_table();
                if changed.is_ok() || emptied || lost {
                    saved = true;
                    let newest = table.borrow_and_update().clone();
                    save_table(&records, &newest);
                    sleep(BETWEEN_SAVES).await;
                }
            }
        });
    }

    /// Ends the link and saves the newest table. Containers keep their interfaces, and the next
    /// process takes them. The data plane ends when the last user drops it.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
        let newest = self.table();
        if newest.revision > 0 {
            save_table(&self.records, &newest);
        }
    }

    /// Returns the table that is in use.
    pub fn table(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        locked(&self.tasks)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a member's node must not lose, beside its table and endpoints.
struct Kept {
    record: Arc<Mutex<MemberRecord>>,
    identity: Identity,
    certificate: Arc<Certificate>,
    state_dir: PathBuf,
}

/// Writes again what a state folder has lost under a running node, which is all that it needs to go
/// on as the same node after its next start.
fn mend(records: &Records, kept: &Kept, attachments: &Attachments, dataplane: &Dataplane) -> bool {
    if attachments.are_kept() {
        return false;
    }
    let Kept { record, identity, certificate, state_dir } = kept;
    let mended = tokio::task::block_in_place(|| {
        records.put_again(&locked(record), &certificate.credentials(), identity)?;
        dataplane.keep_start_count(state_dir)?;
        attachments.put_all()
    });
    match mended {
        Ok(()) => warn!("the state folder was emptied; what this node keeps is there again"),
        Err(error) => warn!(error = format!("{error:#}"), "the state folder is lost"),
    }
    true
}

/// Keeps where the managers are for the next start.
fn save_managers(records: &Records, record: &Mutex<MemberRecord>, managers: Vec<SocketAddr>) {
    let mut record = locked(record);
    record.managers = managers;
    if let Err(error) = tokio::task::block_in_place(|| records.put_record(&record)) {
        warn!(error = format!("{error:#}"), "where the managers are is not kept");
    }
}

/// Keeps a table for the next start. Without it that one waits for a manager; forwarding goes on.
fn save_table(records: &Records, table: &Table) {
    if let Err(error) = tokio::task::block_in_place(|| records.put_table(table)) {
        warn!(error = format!("{error:#}"), "the table is not kept");
    }
}

/// Longer than it takes to find another manager that leads.
const FOUND_WITHIN: Duration = Duration::from_secs(4);
/// How long a manager that took the node may take for the first snapshot.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(10);
/// The whole table is written each time; what a start lacks of it comes with the stream.
const BETWEEN_SAVES: Duration = Duration::from_secs(1);
/// How soon an emptied state folder is noticed where nothing changes.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tonic::transport::Endpoint;

    use super::*;

    fn channel() -> Channel {
        Endpoint::from_static("http://192.0.2.1:1").connect_lazy()
    }

    fn manager() -> (watch::Sender<Option<Channel>>, Manager) {
        let (link, connected) = watch::channel(Some(channel()));
        let home = ([192, 0, 2, 1], 1).into();
        let managers = Arc::new(Managers::new(home, Vec::new(), Role::Worker));
        let standing = managers.standing();
        (link, Manager { managers, connected, standing })
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ends_while_it_is_asked_leaves_the_answer_to_the_next() {
        let (link, manager) = manager();
        let asked = AtomicUsize::new(0);
        let answer = manager.ask(async |_| match asked.fetch_add(1, Relaxed) {
            0 => {
                link.send_replace(None);
                link.send_replace(Some(channel()));
                Err(Status::unavailable("this manager is ending"))
            }
            _ => Ok(()),
        });
        assert!(answer.await.is_ok());
        assert_eq!(asked.into_inner(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_not_asked_again_and_one_that_stays_away_is_waited_for_no_longer() {
        let (_link, manager) = manager();
        for (code, longest) in
            [(Code::FailedPrecondition, Duration::ZERO), (Code::Unavailable, FOUND_WITHIN)]
        {
            let (started, asked) = (Instant::now(), AtomicUsize::new(0));
            let answer = manager.ask::<()>(async |_| {
                asked.fetch_add(1, Relaxed);
                Err(Status::new(code, "no"))
            });
            assert_eq!(
                answer.await.map_err(|status| status.message().to_owned()),
                Err("no".into())
            );
            assert_eq!(asked.into_inner(), 1);
            assert!(started.elapsed() <= longest + Duration::from_millis(1), "{code:?}");
        }
    }
}
