//! One manager: a runtime of its own whose time stands still unless it is let go on, a disk, and what
//! runs there. A process that ends is a runtime that is dropped: nothing of it goes on.

use std::{
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use overlay::{
    engine::cluster::{Event, State},
    manager::{
        log::{Log, LogFile, Member, OpenError, Snapshots, Standing, StartError, Watch},
        simulated::{Dispatcher, Trust},
    },
    types::{NodeId, Revision},
};
use tokio::{runtime, time::Instant};

use super::network::{Bus, Way};
use crate::disk::{Disk, Random};

/// A manager, whether it runs or not.
pub struct Manager {
    pub number: u128,
    pub disk: Disk,
    /// A new one, which hears from others who decides.
    pub joins: bool,
    pub running: Option<Running>,
    /// Its log was made.
    pub made: bool,
    /// It was taken out, and does not come back.
    pub retired: bool,
    /// When it is started.
    pub starts_at: Option<u64>,
    /// Its disk is to fail, so that its log may stop.
    pub disk_fails: bool,
    pub pace: Arc<Mutex<DiskPace>>,
    /// How its log stood when it was last looked at.
    pub stood: Option<Standing>,
}

/// How long a disk takes for a transaction.
pub struct DiskPace {
    random: Random,
    /// At most, until then.
    pub most_ms: u64,
    pub until: u64,
}

/// A process of a manager.
pub struct Running {
    runtime: runtime::Runtime,
    began: Instant,
    began_ms: u64,
    jumped_ms: u64,
    started: Arc<OnceLock<Result<Arc<Log>, String>>>,
    pub dispatcher: Arc<Dispatcher>,
    /// Since when it is stopped, and until when.
    pub paused: Option<(u64, u64)>,
}

impl Manager {
    /// Makes one that has never run.
    pub fn new(number: u128, joins: bool, random: &mut Random) -> Self {
        let random = Random::new(random.below(1 << 30) as u64);
        Self {
            number,
            disk: Disk::default(),
            joins,
            made: false,
            retired: false,
            running: None,
            starts_at: None,
            disk_fails: false,
            pace: Arc::new(Mutex::new(DiskPace { random, most_ms: 0, until: 0 })),
            stood: None,
        }
    }

    /// Its node.
    pub fn node(&self) -> NodeId {
        NodeId::from_u128(self.number)
    }

    /// Its log, if it runs.
    pub fn log(&self) -> Option<Arc<Log>> {
        self.running.as_ref()?.started.get()?.as_ref().ok().cloned()
    }

    /// Starts its process with what is on the disk.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn start(&mut self, bus: &Arc<Bus>, trust: &Arc<Trust>) -> Result<(), OpenError> {
        let path = Path::new("log.redb");
        let file = match self.disk.is_empty() {
            true => LogFile::create_on(self.disk.clone(), path),
            false => LogFile::open_on(self.disk.clone(), path),
        }?;
        self.made = true;
        let dispatcher = Arc::new(Dispatcher::new(trust.clone()));
        dispatcher.adopt(file.state());
        let began_ms = {
            let mut shared = bus.shared();
            shared.history.handle_state(self.number, "found on its disk", file.state());
            shared.trace.now
        };
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
        let began = runtime.block_on(async { Instant::now() });
        let told = Told { bus: bus.clone(), own: self.number, dispatcher: dispatcher.clone() };
        let member = Member {
            manager: self.node(),
            joins: self.joins,
            snapshots: Snapshots { entries: 24, bytes: 1 << 20, part: 1024 },
            transport: Arc::new(Way { own: self.number, bus: bus.clone() }),
            watcher: Box::new(told),
        };
        let (pace, paced) = (self.pace.clone(), bus.clone());
        let pace = Box::new(move || {
            let now = paced.shared().trace.now;
            let mut pace = pace.lock().unwrap();
            let most_ms = if now < pace.until { pace.most_ms } else { USUAL_PACE_MS };
            Duration::from_millis(pace.random.below(most_ms as usize + 1) as u64)
        });
        let started = Arc::new(OnceLock::new());
        let starting = started.clone();
        runtime.spawn(async move {
            let log = Log::start_inline(file, member, pace).await;
            let log = log.map(Arc::new).map_err(|error: StartError| error.to_string());
            let _ = starting.set(log);
        });
        self.running = Some(Running {
            runtime,
            began,
            began_ms,
            jumped_ms: 0,
            started,
            dispatcher,
            paused: None,
        });
        self.starts_at = None;
        Ok(())
    }

    /// Ends its process, which leaves the disk as it is.
    pub fn kill(&mut self) {
        let disk = self.disk.taken_over();
        self.end(disk);
    }

    /// Cuts its power.
    pub fn cut_power(&mut self, random: &mut Random) {
        let disk = self.disk.survivor(random);
        self.end(disk);
    }

    fn end(&mut self, disk: Disk) {
        self.disk = disk;
        self.running = None;
        self.stood = None;
    }
}

impl Running {
    /// Why its log did not start.
    pub fn failed(&self) -> Option<String> {
        self.started.get()?.as_ref().err().cloned()
    }

    /// Lets it go on until a time.
    pub fn run_until(&self, now: u64) {
        let at = Duration::from_millis(now - self.began_ms + self.jumped_ms);
        self.runtime.block_on(async { tokio::time::sleep_until(self.began + at).await });
    }

    /// Has its clock jump ahead.
    pub fn jump(&mut self, ms: u64) {
        self.jumped_ms += ms;
        self.catch_up(ms);
    }

    /// Has its clock be where it is after a time in which it stood still.
    pub fn catch_up(&self, ms: u64) {
        self.runtime.block_on(async { tokio::time::advance(Duration::from_millis(ms)).await });
    }

    /// Has something done there.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}

/// Is told what becomes of the state.
struct Told {
    bus: Arc<Bus>,
    own: u128,
    dispatcher: Arc<Dispatcher>,
}

impl Watch for Told {
    fn handle_applied(&mut self, state: &State, revision: Revision, events: &[Event]) {
        {
            let mut shared = self.bus.shared();
            shared.trace.count(&[self.own as u64, revision]);
            shared.history.handle_applied(self.own, state, events);
        }
        self.dispatcher.handle_events(state, revision, events);
    }

    fn handle_replaced(&mut self, state: &State) {
        {
            let mut shared = self.bus.shared();
            let (own, revision) = (self.own, state.revision());
            shared.trace.note(format_args!("manager {own} takes a snapshot of {revision}"));
            shared.history.handle_state(own, "was sent", state);
        }
        self.dispatcher.replace(state);
    }
}

/// What a disk takes for a transaction, at most, when nothing is wrong.
const USUAL_PACE_MS: u64 = 6;
