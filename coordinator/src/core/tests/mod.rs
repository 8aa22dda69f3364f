//! Scenarios of the core: a script in, what happened out.

mod faults;
mod imports;
mod pairs;
mod plans;
mod scheduling;

use super::scenario::{World, small};

#[track_caller]
fn check_in(world: &mut World, script: &str, expected: &str) {
    let told = world.run(script);
    let lines = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    };
    assert_eq!(lines(&told), lines(expected), "\n--- told:\n{told}");
}

#[track_caller]
fn check(seeds: u32, script: &str, expected: &str) {
    check_in(&mut World::new(&small(seeds)), script, expected);
}
