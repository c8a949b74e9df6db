//! A file that is not as it was written: it opens as it was, or says why it does not.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

use overlay::{
    engine::cluster::{Event, State},
    manager::log::{Log, LogFile, Member, OpenError, Watch},
    types::Revision,
};
use redb::{Database, ReadableTable as _, TableDefinition};
use tokio::runtime;

use crate::{
    disk::{Disk, Random},
    workload::{History, alone, cluster, create, network, open},
};

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");
const META: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("meta");

/// A log with a snapshot and entries after it, and its state.
struct Written {
    /// After an orderly end.
    closed: Vec<u8>,
    /// After a kill: all is synced, and nothing was said to end.
    killed: Vec<u8>,
    state: State,
}

fn written() -> Written {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (disk, mut history) = (Disk::default(), History::new());
    let log = runtime.block_on(create(&disk));
    runtime.block_on(history.go_on(&log, 12, &mut Random::new(7))).unwrap();
    let killed = disk.image();
    runtime.block_on(log.close());
    let state = history.state_at(history.issued.len());
    Written { closed: disk.image(), killed, state }
}

/// Opens an image; says what is wrong with it, or checks that nothing is.
fn opened(image: Vec<u8>, state: &State, what: &str) -> Option<String> {
    match open(&Disk::holding(image)) {
        Ok(file) => {
            assert!(file.state() == state, "{what}: another state");
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn a_bent_bit_is_harmless_or_named() {
    let written = written();
    let (mut named, mut tried) = (0, 0);
    for (kind, image) in [("closed", &written.closed), ("killed", &written.killed)] {
        let head = 0..512 * 8;
        let rest = (512 * 8..image.len() * 8).step_by(997);
        for bit in head.chain(rest) {
            // After a kill this bit alone says which of the last two commits is the last.
            if kind == "killed" && bit == 9 * 8 {
                continue;
            }
            let mut bent = image.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            tried += 1;
            if let Some(error) = opened(bent, &written.state, &format!("{kind}, bit {bit}")) {
                named += 1;
                assert!(error.starts_with("the log log.redb "), "{error}");
                assert!(
                    error.ends_with("; otherwise restore a backup with overlayd --restore"),
                    "{error}"
                );
            }
        }
    }
    // The rest is in pages and fields that nothing uses.
    assert!(named > tried / 20, "{named} of {tried}");
}

#[test]
fn a_cut_file_is_named() {
    let written = written();
    for (kind, image) in [("closed", &written.closed), ("killed", &written.killed)] {
        let lens = (0..1024).step_by(61).chain((0..image.len()).step_by(1021));
        for len in lens.chain((0..image.len()).step_by(4096)) {
            let what = format!("{kind}, {len} bytes");
            match opened(image[..len].to_vec(), &written.state, &what) {
                Some(error) => {
                    assert!(error.starts_with("the log log.redb is damaged: "), "{what}: {error}");
                    assert!(
                        error.ends_with("; otherwise restore a backup with overlayd --restore"),
                        "{error}"
                    );
                }
                // After a kill the length may be one that grew for nothing yet.
                None => assert_eq!((kind, len % 4096), ("killed", 0), "{what}"),
            }
        }
    }
}

#[test]
fn a_file_of_zeros_or_of_something_else_is_named() {
    let written = written();
    for image in [vec![0; 1 << 17], vec![b'x'; 1 << 17]] {
        let error = opened(image, &written.state, "not a log").unwrap();
        assert!(error.starts_with("the log log.redb is damaged: "), "{error}");
    }
    assert_eq!(
        opened(Vec::new(), &written.state, "empty").unwrap(),
        "the log log.redb is damaged: the file is empty; where other managers go on, demote this node there, remove . and start overlayd; otherwise restore a backup with overlayd --restore"
    );
}

/// Changes the tables as a defect of a program would, all checksums of pages being right.
fn tampered(change: impl FnOnce(&Database, &redb::WriteTransaction)) -> String {
    let written = written();
    let disk = Disk::holding(written.closed);
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&database, &transaction);
    transaction.commit().unwrap();
    drop(database);
    opened(disk.image(), &written.state, "tampered").expect("it is refused")
}

/// The first and the last entry behind the snapshot.
fn ends(transaction: &redb::WriteTransaction) -> (Revision, Revision) {
    let table = transaction.open_table(ENTRIES).unwrap();
    let first = table.first().unwrap().unwrap().0.value();
    (first, table.last().unwrap().unwrap().0.value())
}

fn damaged(what: &str) -> String {
    format!(
        "the log log.redb is damaged: {what}; where other managers go on, demote this node there, remove . and start overlayd; otherwise restore a backup with overlayd --restore"
    )
}

#[test]
fn a_missing_entry_is_named() {
    let mut first = 0;
    let error = tampered(|_, transaction| {
        first = ends(transaction).0;
        transaction.open_table(ENTRIES).unwrap().remove(first + 1).unwrap();
    });
    let what = format!("entry {} is missing before entry {}", first + 1, first + 2);
    assert_eq!(error, damaged(&what));
    let error = tampered(|_, transaction| {
        transaction.open_table(ENTRIES).unwrap().remove(first).unwrap();
    });
    assert_eq!(error, damaged(&format!("entry {first} is missing before entry {}", first + 1)));
}

#[test]
fn a_record_out_of_its_place_is_named() {
    let mut last = 0;
    let error = tampered(|_, transaction| {
        let (first, end) = ends(transaction);
        last = end;
        let mut table = transaction.open_table(ENTRIES).unwrap();
        let record = table.get(first).unwrap().unwrap().value().to_vec();
        table.insert(last, record.as_slice()).unwrap();
    });
    assert_eq!(error, damaged(&format!("entry {last}: its checksum is wrong")));
}

/// What is said of a log whose last entry is of a format; and which entry that is.
fn of_format(format: u8) -> (String, Revision) {
    let mut last = 0;
    let error = tampered(|_, transaction| {
        last = ends(transaction).1;
        let mut table = transaction.open_table(ENTRIES).unwrap();
        let mut record = table.get(last).unwrap().unwrap().value().to_vec();
        record[0] = format;
        table.insert(last, record.as_slice()).unwrap();
    });
    (error, last)
}

#[test]
fn a_newer_record_asks_for_the_newer_program() {
    let (error, last) = of_format(3);
    assert_eq!(
        error,
        format!(
            "the log log.redb: entry {last} was written by a newer overlayd; start that version again"
        )
    );
}

#[test]
fn an_older_log_asks_for_a_backup_of_it() {
    let advice = "make a backup with that version, then restore it with this one";
    let (error, last) = of_format(1);
    assert_eq!(
        error,
        format!("the log log.redb: entry {last} was written by an older overlayd; {advice}")
    );
    let error = tampered(|_, transaction| {
        transaction.delete_table(META).unwrap();
    });
    assert_eq!(
        error,
        format!("the log log.redb: all of it was written by an older overlayd; {advice}")
    );
}

#[test]
fn a_snapshot_with_a_part_missing_is_named() {
    let error = tampered(|_, transaction| {
        transaction.open_table(SNAPSHOT).unwrap().remove(1).unwrap();
    });
    assert_eq!(error, damaged("part 1 of the snapshot is missing"));
    let error = tampered(|_, transaction| {
        transaction.open_table(SNAPSHOT).unwrap().remove(0).unwrap();
    });
    assert_eq!(error, damaged("the snapshot's head is missing"));
    let error = tampered(|_, transaction| {
        let mut table = transaction.open_table(SNAPSHOT).unwrap();
        let part = table.get(1).unwrap().unwrap().value().to_vec();
        table.insert(2, part.as_slice()).unwrap();
    });
    assert_eq!(error, damaged("part 2 of the snapshot is missing or too much"));
}

#[test]
fn a_database_that_is_no_log_is_named() {
    let disk = Disk::default();
    drop(Database::builder().create_with_backend(disk.clone()).unwrap());
    let error = opened(disk.image(), &State::default(), "no log").unwrap();
    assert_eq!(error, damaged("Table 'snapshot' does not exist"));
}

/// Notes of what it is told.
struct Noted(Arc<Mutex<Vec<(Revision, usize)>>>);

impl Watch for Noted {
    fn handle_applied(&mut self, state: &State, revision: Revision, events: &[Event]) {
        assert_eq!(state.revision(), revision, "the state stands right after the command");
        self.0.lock().unwrap().push((revision, events.len()));
    }

    fn handle_replaced(&mut self, _state: &State) {
        panic!("nobody is there who could replace it");
    }
}

#[tokio::test]
async fn the_file_is_its_owners_and_is_held_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.redb");
    let missing = LogFile::open(&path).err().unwrap();
    assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");
    let told = Arc::new(Mutex::new(Vec::new()));
    let watcher = Box::new(Noted(told.clone()));
    let file = LogFile::create(&path).unwrap();
    let log = Log::start(file, Member { watcher, ..alone() }).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    log.propose(cluster()).await.unwrap();
    log.propose(cluster()).await.unwrap_err();
    log.propose(network(1)).await.unwrap();
    assert_eq!(*told.lock().unwrap(), [(1, 0), (3, 1)], "a refused command tells nothing");

    let sentence = |error: OpenError| error.to_string().replace(&path.display().to_string(), "F");
    let twice = LogFile::open(&path).err().unwrap();
    assert_eq!(sentence(twice), "the log F is in use by another process; end that one");
    let exists = LogFile::create(&path).err().unwrap();
    assert_eq!(
        sentence(exists),
        format!(
            "the log F is there already: this state folder holds a cluster; remove {} to give that cluster up",
            folder.path().display()
        )
    );
    let before = log.read(|state| state.clone());
    drop(log);
    assert!(*LogFile::open(&path).unwrap().state() == before);
    let nowhere = LogFile::create(Path::new("/nonexistent/log.redb")).err().unwrap();
    assert!(matches!(nowhere, OpenError::Io { .. }), "{nowhere}");
}
