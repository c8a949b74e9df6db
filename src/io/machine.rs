//! What this machine has for tasks.

use std::{fs, thread};

/// Returns thousandths of a processor, as many as this process may use.
pub fn cpu_milli() -> u64 {
    thread::available_parallelism().map_or(1, usize::from) as u64 * 1000
}

/// Returns all of the memory, if the kernel tells of it.
pub fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_processor_and_memory() {
        assert!(cpu_milli() >= 1000);
        assert!(memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
