//! How much main memory this process may still take. A checkpoint that does not fit is refused before
//! it is loaded: the kernel would otherwise kill the whole worker, and everything that it runs, without
//! a word. Memory of a GPU is libtorch's to refuse.

use std::fs;

use tikv_jemalloc_ctl::{epoch, stats};

/// Bytes that can be allocated without swapping: what the kernel calls available, and no more than
/// the control group of this process has left, and what the allocator keeps for the next tensor. None where the kernel tells
/// neither of the first two.
pub fn available() -> Option<u64> {
    Some(of_kernel()?.saturating_add(kept().unwrap_or(0)))
}

/// Pages that hold nothing and still belong to this process: a model that was just freed, for a minute.
fn kept() -> Option<u64> {
    epoch::advance().ok()?;
    let used = stats::active::read().ok()?.saturating_add(stats::metadata::read().ok()?);
    Some(stats::resident::read().ok()?.saturating_sub(used) as u64)
}

fn of_kernel() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok();
    let machine = meminfo.as_deref().and_then(mem_available);
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let group = match (read("memory.max"), read("memory.current")) {
        (Some(limit), Some(used)) => {
            let cached = read("memory.stat").as_deref().and_then(reclaimable).unwrap_or(0);
            headroom(&limit, &used, cached)
        }
        _ => None,
    };
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// `MemAvailable:  123 kB` in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Pages of files that the kernel gives up when memory is short.
fn reclaimable(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse().ok()
}

/// What a control group has left; none when it has no limit.
fn headroom(limit: &str, used: &str, cached: u64) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let used: u64 = used.trim().parse().ok()?;
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_tables_are_understood() {
        assert_eq!(mem_available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
        assert_eq!(reclaimable("anon 5\ninactive_file 40\n"), Some(40));
        assert_eq!(headroom("100\n", "70\n", 40), Some(70));
        assert_eq!(headroom("max\n", "70\n", 0), None);
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn what_was_just_freed_is_available() {
        let block = std::hint::black_box(vec![1u8; 256 << 20]);
        let before = kept().unwrap();
        drop(block);
        assert!(kept().unwrap() > before + (200 << 20), "{before} {:?}", kept());
    }
}
