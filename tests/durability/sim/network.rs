//! The ways between managers: what is sent takes a while, is lost, cut off or held, as the faults of the
//! run have it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use overlay::{
    manager::log::{Answering, NotReached, Request, Response, Transport},
    types::NodeId,
};
use tokio::sync::oneshot;

use super::{
    history::History,
    stream::{FromAgent, Hello, ToAgent},
    trace::Trace,
};
use crate::disk::Random;

/// What the managers' tasks and the run have in common.
pub struct Bus(Mutex<Shared>);

/// See [`Bus`].
pub struct Shared {
    pub trace: Trace,
    pub history: History,
    /// What managers sent and the network has not taken yet.
    sent: Vec<Parcel>,
}

impl Bus {
    /// Makes one on which nothing has happened.
    pub fn new() -> Arc<Self> {
        let (trace, history, sent) = (Trace::new(), History::default(), Vec::new());
        Arc::new(Self(Mutex::new(Shared { trace, history, sent })))
    }

    /// Has a look at it, which nobody else has meanwhile.
    pub fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends something.
    pub fn send(&self, parcel: Parcel) {
        self.shared().sent.push(parcel);
    }
}

/// Whose answer is waited for.
pub type Reply = oneshot::Sender<Result<Response, NotReached>>;

/// Something on its way from one host to another.
pub struct Parcel {
    pub from: u128,
    pub to: u128,
    pub what: What,
}

/// See [`Parcel`].
pub enum What {
    Request(Request, Reply),
    Answer(Result<Response, NotReached>, Reply),
    /// Of a stream of that number.
    Hello(u64, Hello),
    ToManager(u64, FromAgent),
    ToAgent(u64, ToAgent),
}

/// The way from one manager to the others.
pub struct Way {
    pub own: u128,
    pub bus: Arc<Bus>,
}

impl Transport for Way {
    fn call(&self, member: NodeId, request: Request) -> Answering<'_> {
        let (reply, answer) = oneshot::channel();
        let what = What::Request(request, reply);
        self.bus.send(Parcel { from: self.own, to: number(member), what });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(not_reached("it is gone"))) })
    }
}

/// Says that there was no answer.
pub fn not_reached(why: &str) -> NotReached {
    NotReached(why.to_owned())
}

/// The number of a manager.
pub fn number(manager: NodeId) -> u128 {
    u128::from_be_bytes(manager.to_bytes())
}

/// See the module.
pub struct Network {
    /// By when they arrive, and in the order in which they were sent.
    flying: BTreeMap<(u64, u64), Parcel>,
    count: u64,
    /// When the newest of a stream arrives.
    streams: BTreeMap<(u64, u128), u64>,
    /// Until when ways are not as usual.
    ill: BTreeMap<(u128, u128), (u64, Illness)>,
}

/// What is wrong with a way.
#[derive(Clone, Copy, Debug)]
pub enum Illness {
    /// Nothing comes through.
    Cut,
    /// It takes up to so long, and so many of a hundred are lost.
    Slow(u64, usize),
}

impl Network {
    /// Makes one that is whole.
    pub fn new() -> Self {
        let (flying, streams, ill) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { flying, count: 0, streams, ill }
    }

    /// Has something be wrong with the way from one to another until a time.
    pub fn fall_ill(&mut self, from: u128, to: u128, until: u64, illness: Illness) {
        self.ill.insert((from, to), (until, illness));
    }

    /// Makes all ways as usual.
    pub fn heal(&mut self) {
        self.ill.clear();
    }

    /// Takes what was sent.
    pub fn take_sent(&mut self, bus: &Bus, random: &mut Random) {
        let mut shared = bus.shared();
        let now = shared.trace.now;
        for parcel in std::mem::take(&mut shared.sent) {
            let way = (parcel.from, parcel.to);
            let ill = self.ill.get(&way).copied().filter(|(until, _)| now < *until);
            let (until, cut, more, lost) = match ill {
                None => (now, false, 0, 0),
                Some((until, Illness::Cut)) => (until, true, 0, 100),
                Some((until, Illness::Slow(ms, lost))) => (until, false, ms, lost),
            };
            let delay = 1 + random.below(USUAL_MS) as u64 + random.below(more as usize + 1) as u64;
            let lost = random.below(100) < lost;
            shared.trace.count(&[way.0 as u64, way.1 as u64, delay, u64::from(lost)]);
            let mut at = now + delay;
            match &parcel.what {
                What::Request(..) | What::Answer(..) if lost => {
                    self.lose(parcel, now);
                    continue;
                }
                What::Request(..) | What::Answer(..) => {}
                // What is said on a stream is said again until it arrives, in order.
                What::Hello(stream, _) | What::ToManager(stream, _) | What::ToAgent(stream, _) => {
                    let through = if cut { until } else { now + AGAIN_MS };
                    at += if lost { through - now } else { 0 };
                    let last = self.streams.entry((*stream, parcel.to)).or_default();
                    at = at.max(*last);
                    *last = at;
                }
            }
            self.put(at, parcel);
        }
    }

    /// Who waits for the answer hears after a while that the connection is gone.
    fn lose(&mut self, parcel: Parcel, now: u64) {
        let Parcel { from, to, what } = parcel;
        let lost = Err(not_reached("the connection is gone"));
        let (waits, reply) = match what {
            What::Request(_, reply) => (from, reply),
            What::Answer(_, reply) => (to, reply),
            What::Hello(..) | What::ToManager(..) | What::ToAgent(..) => return,
        };
        self.put(
            now + GIVEN_UP_MS,
            Parcel { from: waits, to: waits, what: What::Answer(lost, reply) },
        );
    }

    /// Has something arrive at a time.
    pub fn put(&mut self, at: u64, parcel: Parcel) {
        self.count += 1;
        self.flying.insert((at, self.count), parcel);
    }

    /// Takes what has arrived.
    pub fn arrived(&mut self, now: u64) -> Vec<Parcel> {
        let flying = self.flying.split_off(&(now + 1, 0));
        std::mem::replace(&mut self.flying, flying).into_values().collect()
    }
}

/// What a parcel takes at most when nothing is wrong, beside the first millisecond.
const USUAL_MS: usize = 4;
/// After so long a host says something again that was lost.
const AGAIN_MS: u64 = 200;
/// After so long a connection without an answer is given up.
const GIVEN_UP_MS: u64 = 3000;
