//! What a task's command says, line by line, in two files of bounded size: the older goes when the newer
//! is full.
//!
//! ```text
//! 1764327900123 1 a line of standard output
//! 1764327900124 2 a line of standard error
//! 1764327900125 1+the first part of a long line, or one that has not ended
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Which of the command's outputs it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A line, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it came, in milliseconds since 1970.
    pub at_ms: u64,
    /// Where.
    pub stream: Stream,
    /// What, without the end of the line.
    pub text: Vec<u8>,
    /// Whether the line ends with it.
    pub is_whole: bool,
}

/// The files, to be written.
pub struct Output {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    most: u64,
    /// Why lines are lost.
    pub lost: Option<String>,
}

impl Output {
    /// Goes on after what is there.
    pub fn open(path: PathBuf) -> Self {
        let mut output = Self { path, file: None, written: 0, most: MAX_FILE_BYTES, lost: None };
        output.reopen();
        output
    }

    fn reopen(&mut self) {
        let options = OpenOptions::new().append(true).create(true).mode(0o600).clone();
        match options.open(&self.path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((written, file)) => (self.written, self.file) = (written, Some(file)),
            Err(error) => self.lost = Some(error.to_string()),
        }
    }

    /// Writes a line. What the disk does not take is lost, and the command goes on.
    pub fn write(&mut self, line: &Line) {
        if self.written >= self.most {
            self.file = None;
            if let Err(error) = fs::rename(&self.path, older(&self.path)) {
                self.lost = Some(error.to_string());
                return;
            }
            self.reopen();
        }
        let Some(file) = &mut self.file else { return };
        let stream = match line.stream {
            Stream::Out => '1',
            Stream::Err => '2',
        };
        let end = if line.is_whole { ' ' } else { '+' };
        let mut bytes = format!("{} {stream}{end}", line.at_ms).into_bytes();
        bytes.extend_from_slice(&line.text);
        bytes.push(b'\n');
        match file.write_all(&bytes) {
            Ok(()) => {
                self.written += bytes.len() as u64;
                self.lost = None;
            }
            Err(error) => self.lost = Some(error.to_string()),
        }
    }
}

/// Cuts bytes into lines.
#[derive(Default)]
pub struct Cutter {
    rest: Vec<u8>,
}

impl Cutter {
    /// Takes bytes; gives each line that ended in them, and what is too long to wait for its end.
    pub fn cut(&mut self, mut bytes: &[u8], mut line: impl FnMut(Vec<u8>, bool)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&bytes[..end]);
            line(std::mem::take(&mut self.rest), true);
            bytes = &bytes[end + 1..];
        }
        self.rest.extend_from_slice(bytes);
        while self.rest.len() >= MAX_LINE_BYTES {
            let rest = self.rest.split_off(MAX_LINE_BYTES);
            line(std::mem::replace(&mut self.rest, rest), false);
        }
    }

    /// Gives what is left at the end.
    pub fn finish(self, line: impl FnOnce(Vec<u8>, bool)) {
        if !self.rest.is_empty() {
            line(self.rest, false);
        }
    }
}

/// Reads the last lines of a task, the oldest first; all of them unless `last` says how many.
///
/// # Errors
/// A file cannot be read; one that is not there is empty.
pub fn read_lines(path: &Path, last: Option<usize>) -> io::Result<Vec<Line>> {
    let mut lines = std::collections::VecDeque::new();
    for path in [older(path), path.to_owned()] {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            // A line that is bent was cut off by the end of a disk.
            lines.extend(parse(&line?));
            if last.is_some_and(|last| lines.len() > last) {
                lines.pop_front();
            }
        }
    }
    Ok(lines.into())
}

/// Reads a line of the file.
pub fn parse(line: &[u8]) -> Option<Line> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let at_ms = std::str::from_utf8(&line[..space]).ok()?.parse().ok()?;
    let rest = line.get(space + 1..)?;
    let stream = match rest.first()? {
        b'1' => Stream::Out,
        b'2' => Stream::Err,
        _ => return None,
    };
    let is_whole = match rest.get(1)? {
        b' ' => true,
        b'+' => false,
        _ => return None,
    };
    Some(Line { at_ms, stream, text: rest[2..].to_vec(), is_whole })
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1")
}

/// A task keeps twice this at most.
const MAX_FILE_BYTES: u64 = 10 << 20;
/// As Docker cuts lines.
const MAX_LINE_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ms: u64, text: &str) -> Line {
        Line { at_ms, stream: Stream::Out, text: text.into(), is_whole: true }
    }

    #[test]
    fn lines_are_cut_and_long_ones_come_in_parts() {
        let cut = |parts: &[&[u8]]| {
            let (mut cutter, mut lines) = (Cutter::default(), Vec::new());
            for part in parts {
                cutter.cut(part, |text, whole| lines.push((text.len(), whole)));
            }
            cutter.finish(|text, whole| lines.push((text.len(), whole)));
            lines
        };
        assert_eq!(cut(&[b"a\nbc", b"d\n\n", b"e"]), [(1, true), (3, true), (0, true), (1, false)]);
        let long = vec![b'x'; 2 * MAX_LINE_BYTES + 5];
        let max = MAX_LINE_BYTES;
        assert_eq!(cut(&[&long, b"\n"]), [(max, false), (max, false), (5, true)]);
    }

    #[test]
    fn what_is_written_is_read_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut output = Output { most: 1000, ..Output::open(path.clone()) };
        let all: Vec<Line> = (0..300).map(|n| line(n, &format!("line {n}"))).collect();
        all.iter().for_each(|line| output.write(line));
        let read = read_lines(&path, None).unwrap();
        assert!(read.len() < 300 && all.ends_with(&read), "{} lines", read.len());
        assert_eq!(read_lines(&path, Some(3)).unwrap(), all[297..]);
        // The next process goes on where this one was.
        let mut output = Output::open(path.clone());
        let bent = Line { stream: Stream::Err, is_whole: false, ..line(300, "\u{fffd} x") };
        output.write(&bent);
        assert_eq!(read_lines(&path, Some(1)).unwrap(), [bent]);
        assert_eq!(read_lines(&folder.path().join("none"), None).unwrap(), []);
    }

    #[test]
    fn a_line_that_is_none_is_left_out() {
        for text in ["", "1", "1 1", "x 1 a", "1 3 a", "1 1-a"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
