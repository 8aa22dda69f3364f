//! Memory for large tensors in huge pages.
//!
//! A pass over a language model asks for hundreds of megabytes and gives them back, again and again.
//! The C library gets them from the kernel in pages of 4 KiB, each of which is cleared on first use: in an
//! analysis of GPT-2 small that is a tenth of the time. With huge pages it is a hundredth. The
//! library decides when the process starts, so that the worker starts itself once more.

use std::{env, ffi::OsString, io, os::unix::process::CommandExt, process::Command};

/// Where glibc looks for its settings (glibc manual, "Tunables").
const TUNABLES: &str = "GLIBC_TUNABLES";

/// The setting; from version 2.35 on, ignored by others.
const HUGE_PAGES: &str = "glibc.malloc.hugetlb";

/// Replaces this process by itself with huge pages switched on; returns at once if they are, or if whoever
/// started it decided about them. Identity, files and arguments of the process stay.
///
/// # Errors
/// The process could not be started again; it goes on without.
pub fn ensure() -> io::Result<()> {
    let Some(tunables) = with_huge_pages(env::var_os(TUNABLES)) else { return Ok(()) };
    let mut again = Command::new(env::current_exe()?);
    again.args(env::args_os().skip(1)).env(TUNABLES, tunables);
    if let Some(name) = env::args_os().next() {
        again.arg0(name);
    }
    Err(again.exec())
}

/// The settings with huge pages; `None` if they say something about them already.
fn with_huge_pages(given: Option<OsString>) -> Option<OsString> {
    let given = given.unwrap_or_default();
    if given.to_string_lossy().contains(HUGE_PAGES) {
        return None;
    }
    let mut tunables = given;
    if !tunables.is_empty() {
        tunables.push(":");
    }
    tunables.push(format!("{HUGE_PAGES}=1"));
    Some(tunables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_settings_stay_and_a_decision_is_kept() {
        let with = |text: &str| with_huge_pages(Some(text.into()));
        assert_eq!(with_huge_pages(None).unwrap(), "glibc.malloc.hugetlb=1");
        let both = "glibc.malloc.check=0:glibc.malloc.hugetlb=1";
        assert_eq!(with("glibc.malloc.check=0").unwrap(), both);
        assert_eq!(with(both), None);
        assert_eq!(with("glibc.malloc.hugetlb=0"), None);
    }
}
