//! How the C library gets memory for large tensors.
//!
//! A pass over a language model asks for hundreds of megabytes and gives them back, again and again.
//! Left to itself, the library returns such memory to the kernel and gets it again in pages of 4 KiB, each of which is
//! cleared on first use: in an analysis of GPT-2 small that is a tenth of the time. It is next to none with huge pages,
//! and if up to half a gigabyte that is free is kept for the next tensor, for all threads together. The library
//! decides when the process starts, so that the worker starts itself once more.

use std::{env, ffi::OsString, io, os::unix::process::CommandExt, process::Command};

/// Where glibc looks for its settings (glibc manual, "Tunables").
const TUNABLES: &str = "GLIBC_TUNABLES";

/// The settings; those that a version does not know are ignored by it (huge pages came with 2.35).
const SETTINGS: [(&str, &str); 4] = [
    ("glibc.malloc.hugetlb", "1"),
    ("glibc.malloc.arena_max", "1"),
    // Larger tensors come from the kernel and go back to it at once.
    ("glibc.malloc.mmap_threshold", "67108864"),
    ("glibc.malloc.trim_threshold", "536870912"),
];

/// Replaces this process by itself with the settings; returns at once if it has them, or if whoever
/// started it decided about each of them. Identity, files and arguments of the process stay.
///
/// # Errors
/// The process could not be started again; it goes on without.
pub fn ensure() -> io::Result<()> {
    let Some(tunables) = with_settings(env::var_os(TUNABLES)) else { return Ok(()) };
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).env(TUNABLES, tunables);
    if let Some(name) = env::args_os().next() {
        again.arg0(name);
    }
    Err(again.exec())
}

/// What was given, with the settings that it says nothing about; `None` if there are none.
fn with_settings(given: Option<OsString>) -> Option<OsString> {
    let mut tunables = given.unwrap_or_default();
    let known = tunables.to_string_lossy().into_owned();
    let missing = SETTINGS.into_iter().filter(|(name, _)| !known.contains(name));
    let mut is_complete = true;
    for (name, value) in missing {
        if !tunables.is_empty() {
            tunables.push(":");
        }
        tunables.push(format!("{name}={value}"));
        is_complete = false;
    }
    (!is_complete).then_some(tunables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_settings_stay_and_decisions_are_kept() {
        let all = with_settings(None).unwrap();
        let text = all.to_string_lossy().into_owned();
        assert!(text.starts_with("glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"), "{text}");
        assert_eq!(with_settings(Some(all)), None, "the second start is the last one");
        let with = |given: &str| with_settings(Some(given.into())).unwrap();
        assert_eq!(
            with("glibc.malloc.check=0"),
            OsString::from(format!("glibc.malloc.check=0:{text}"))
        );
        let decided = with("glibc.malloc.hugetlb=0").to_string_lossy().into_owned();
        assert!(decided.starts_with("glibc.malloc.hugetlb=0:glibc.malloc.arena_max=1:"));
        assert_eq!(decided.matches("hugetlb").count(), 1);
    }
}
