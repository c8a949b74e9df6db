//! A disk in memory that keeps what is synced apart from what is merely written, and that cuts power
//! or fails at a chosen operation.
//!
//! ```text
//! write, set_len -> unsynced --sync_data--> durable
//!                      '-- at a power cut: each sector of 512 bytes is as of any write, or none
//! ```

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::StorageBackend;

/// A disk; its clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    durable: Vec<u8>,
    /// What is read.
    visible: Vec<u8>,
    unsynced: Vec<Change>,
    /// Writes, syncs and changes of the length.
    operations: u64,
    fault: Option<(u64, Fault)>,
    off: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

/// What a disk does at a chosen operation.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The operation has begun; nothing works any more.
    PowerCut,
    /// The operation fails with this error of the system; those after it work again.
    Error(i32),
}

impl Disk {
    /// Makes a disk with this on it, synced.
    pub fn holding(image: Vec<u8>) -> Self {
        let inner = Inner { durable: image.clone(), visible: image, ..Inner::default() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Returns how many operations that change the disk were begun.
    pub fn operations(&self) -> u64 {
        self.locked().operations
    }

    /// Chooses what happens at the operation that comes after so many more.
    pub fn plan(&self, after: u64, fault: Fault) {
        let mut inner = self.locked();
        inner.fault = Some((inner.operations + after, fault));
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.locked().visible.is_empty()
    }

    /// Whether the power is cut.
    pub fn is_off(&self) -> bool {
        self.locked().off
    }

    /// Takes the disk from whoever has it, as it can be read: that process ended, and the power is on.
    pub fn taken_over(&self) -> Self {
        let mut inner = self.locked();
        inner.off = true;
        let Inner { durable, visible, unsynced, .. } = &*inner;
        let (durable, visible) = (durable.clone(), visible.clone());
        let taken = Inner { durable, visible, unsynced: unsynced.clone(), ..Inner::default() };
        Self(Arc::new(Mutex::new(taken)))
    }

    /// Has nothing go wrong that was planned.
    pub fn heal(&self) {
        self.locked().fault = None;
    }

    /// Returns what can be read.
    pub fn image(&self) -> Vec<u8> {
        self.locked().visible.clone()
    }

    /// Cuts the power if it is on, and returns the disk as it may be found afterwards.
    pub fn survivor(&self, random: &mut Random) -> Self {
        let mut inner = self.locked();
        inner.off = true;
        let keep = match random.below(4) {
            0 => Keep::None,
            1 => Keep::All,
            _ => Keep::Some,
        };
        let mut lens = vec![inner.durable.len()];
        let mut sectors: BTreeMap<usize, Vec<(usize, &[u8])>> = BTreeMap::new();
        for change in &inner.unsynced {
            match change {
                Change::Len(len) => lens.push(*len),
                Change::Write(offset, bytes) => {
                    let mut at = *offset;
                    let mut rest = bytes.as_slice();
                    while !rest.is_empty() {
                        let (part, after) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                        sectors.entry(at / SECTOR).or_default().push((at, part));
                        at += part.len();
                        rest = after;
                    }
                }
            }
        }
        let mut image = inner.durable.clone();
        image.resize(lens[keep.of(lens.len() - 1, random)], 0);
        for writes in sectors.values() {
            for (at, part) in &writes[..keep.of(writes.len(), random)] {
                // What lies beyond a length that was lost is lost with it.
                if let Some(place) = image.get_mut(*at..*at + part.len()) {
                    place.copy_from_slice(part);
                }
            }
        }
        Self::holding(image)
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

/// How much of what is not synced a power cut leaves.
#[derive(Clone, Copy)]
enum Keep {
    None,
    All,
    Some,
}

impl Keep {
    /// How many of `all` changes of one place are kept, the first ones.
    fn of(self, all: usize, random: &mut Random) -> usize {
        match self {
            Self::None => 0,
            Self::All => all,
            Self::Some => random.below(all + 1),
        }
    }
}

impl Inner {
    /// Counts an operation; tells what is wrong with it, and whether it is begun at all.
    fn begin(&mut self) -> Result<(), (io::Error, bool)> {
        if self.off {
            return Err((dead(), false));
        }
        let now = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, Fault::PowerCut)) if at == now => {
                self.off = true;
                Err((dead(), true))
            }
            Some((at, Fault::Error(errno))) if at == now => {
                Err((io::Error::from_raw_os_error(errno), false))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        let begun = self.begin();
        if matches!(begun, Ok(()) | Err((_, true))) {
            match &change {
                Change::Len(len) => self.visible.resize(*len, 0),
                Change::Write(at, bytes) => {
                    let place = self.visible.get_mut(*at..at + bytes.len());
                    place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
                }
            }
            self.unsynced.push(change);
        }
        begun.map_err(|(error, _)| error)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let inner = self.locked();
        if inner.off { Err(dead()) } else { Ok(inner.visible.len() as u64) }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.locked();
        if inner.off {
            return Err(dead());
        }
        let at = usize::try_from(offset).unwrap();
        let bytes = inner.visible.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.locked().change(Change::Len(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.locked();
        inner.begin().map_err(|(error, _)| error)?;
        for change in std::mem::take(&mut inner.unsynced) {
            match change {
                Change::Len(len) => inner.durable.resize(len, 0),
                Change::Write(at, bytes) => {
                    inner.durable[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.locked().change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}

fn dead() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// Numbers from a seed (SplitMix64).
pub struct Random(u64);

impl Random {
    /// Starts with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws a number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// What disks promise to write whole.
const SECTOR: usize = 512;
