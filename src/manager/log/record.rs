//! Records: how an entry and a part of a snapshot stand in the log's file.
//!
//! ```text
//!  0         1                   9
//! +---------+-------------------+------------- - -
//! | version | checksum          | body
//! +---------+-------------------+------------- - -
//! ```
//! The checksum is the start of the SHA-256 of the version, the kind, the position and the body; so
//! a record that stands where it was not written is as wrong as a bent one. A field that an older
//! overlayd must not overlook raises the version.

use aws_lc_rs::digest::{Context, SHA256};

/// What a record is, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// The entry of an index.
    Entry(u64),
    /// The head of a snapshot.
    Head,
    /// A part of the snapshot as of a revision, from 1.
    Part(u64, u64),
    /// What a number stands for beside the entries.
    Meta(u64),
}

/// Why bytes are not the record that should stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// A later program wrote it.
    #[error("it is of format {0}, which is newer")]
    Newer(u8),
    /// An earlier program wrote it.
    #[error("it is of format {0}, which is older")]
    Older(u8),
    /// The checksum is not its own.
    #[error("its checksum is wrong")]
    Checksum,
    /// There are fewer bytes than any record has.
    #[error("it is cut")]
    Cut,
}

/// Makes a record.
pub(super) fn seal(position: Position, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD + body.len());
    record.push(VERSION);
    record.extend_from_slice(&checksum(position, body));
    record.extend_from_slice(body);
    record
}

/// Returns the body of a record.
///
/// # Errors
/// It is not one that [`seal`] made for this position.
pub(super) fn open(position: Position, record: &[u8]) -> Result<&[u8], RecordError> {
    match record {
        [] => Err(RecordError::Cut),
        // A bent version byte looks so too; either way this program cannot read it.
        [version, ..] if *version > VERSION => Err(RecordError::Newer(*version)),
        [version, ..] if *version < VERSION => Err(RecordError::Older(*version)),
        _ => {
            let (head, body) = record.split_at_checked(HEAD).ok_or(RecordError::Cut)?;
            let right = head[1..] == checksum(position, body);
            right.then_some(body).ok_or(RecordError::Checksum)
        }
    }
}

fn checksum(position: Position, body: &[u8]) -> [u8; CHECKSUM] {
    let (kind, numbers) = match position {
        Position::Entry(index) => (1, [index, 0]),
        Position::Head => (2, [0, 0]),
        Position::Part(revision, number) => (3, [revision, number]),
        Position::Meta(number) => (4, [number, 0]),
    };
    let mut context = Context::new(&SHA256);
    context.update(&[VERSION, kind]);
    context.update(&numbers.map(u64::to_be_bytes).concat());
    context.update(body);
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&context.finish().as_ref()[..CHECKSUM]);
    checksum
}

const VERSION: u8 = 2;
/// One wrong record in 2^64 is not found: enough against chance, which is all that it is against.
const CHECKSUM: usize = 8;
const HEAD: usize = 1 + CHECKSUM;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_only_where_it_was_written() {
        let record = seal(Position::Entry(7), b"body");
        assert_eq!(open(Position::Entry(7), &record), Ok(b"body".as_slice()));
        for position in
            [Position::Entry(8), Position::Head, Position::Part(7, 0), Position::Meta(7)]
        {
            assert_eq!(open(position, &record), Err(RecordError::Checksum), "{position:?}");
        }
    }

    #[test]
    fn every_bent_bit_and_every_cut_is_found() {
        let record = seal(Position::Part(3, 1), b"body");
        for bit in 0..record.len() * 8 {
            let mut bent = record.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(open(Position::Part(3, 1), &bent).is_err(), "bit {bit}");
        }
        for len in 0..record.len() {
            assert!(open(Position::Part(3, 1), &record[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_newer_or_older_record_is_told_from_a_bent_one() {
        let mut record = seal(Position::Head, b"body");
        record[0] = 3;
        assert_eq!(open(Position::Head, &record), Err(RecordError::Newer(3)));
        record[0] = 1;
        assert_eq!(open(Position::Head, &record), Err(RecordError::Older(1)));
    }
}
