//! One test of every cell of a metric, side by side on the threads that the task may use.
//!
//! Main item: [`each_cell`]. Invariant: results are in the order of the cells and the same for any number of threads, as
//! long as a test depends on its cell alone.

use std::{
    panic,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use crate::{error::Result, sink::Context, trajectory::Cell};

/// What `test` finds of each cell. A thread hands the same `S`, what it remembers, to one test after the other.
///
/// # Errors
/// Those of [`Context::progress`], which is told of every cell that is done. A panic of a test goes on here.
pub(crate) fn each_cell<S: Default, T: Send>(
    cells: &[Cell],
    cx: &mut Context<'_>,
    test: impl Fn(&mut S, &Cell) -> T + Sync,
) -> Result<Vec<T>> {
    let n_threads =
        usize::try_from(tch::get_num_threads()).unwrap_or(1).clamp(1, cells.len().max(1));
    on_threads(n_threads, cells, &mut |done, total| cx.progress(done, total), test)
}

fn on_threads<S: Default, T: Send>(
    n_threads: usize,
    cells: &[Cell],
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    test: impl Fn(&mut S, &Cell) -> T + Sync,
) -> Result<Vec<T>> {
    let mut found: Vec<Option<T>> = cells.iter().map(|_| None).collect();
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let work = |sender: mpsc::Sender<(usize, T)>| {
        let mut known = S::default();
        while let Some((index, cell)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            cells.get(index).map(|cell| (index, cell))
        } {
            // Nobody listens any more after an error.
            if sender.send((index, test(&mut known, cell))).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..n_threads)
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(move || work(sender))
            })
            .collect();
        drop(sender);
        let mut outcome = Ok(());
        for (done, (index, result)) in (1..).zip(&receiver) {
            found[index] = Some(result);
            outcome = progress(done, cells.len() as u64);
            if outcome.is_err() {
                break;
            }
        }
        drop(receiver);
        for thread in running {
            if let Err(panic) = thread.join() {
                panic::resume_unwind(panic);
            }
        }
        outcome
    })?;
    Ok(found.into_iter().map(|result| result.expect("every cell was tested")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn cells(n: usize) -> Vec<Cell> {
        let cell = |i: usize| Cell { label: format!("head={i}"), values: vec![i as f64] };
        (0..n).map(cell).collect()
    }

    #[test]
    fn results_are_in_order_on_any_number_of_threads() {
        for n_threads in [1, 2, 5] {
            for n in [0, 1, 40] {
                let mut told = Vec::new();
                let mut progress = |done, total| {
                    told.push((done, total));
                    Ok(())
                };
                let test = |count: &mut usize, cell: &Cell| {
                    *count += 1;
                    // Later cells are done sooner.
                    thread::sleep(std::time::Duration::from_micros(
                        400 - 10 * cell.values[0] as u64,
                    ));
                    cell.values[0] * 2.0
                };
                let found = on_threads(n_threads, &cells(n), &mut progress, test).unwrap();
                assert_eq!(found, (0..n).map(|i| 2.0 * i as f64).collect::<Vec<_>>());
                assert_eq!(told, (1..=n as u64).map(|i| (i, n as u64)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn an_error_ends_the_work_and_a_panic_keeps_its_message() {
        let tested = AtomicUsize::new(0);
        let test = |(): &mut (), _: &Cell| {
            tested.fetch_add(1, Ordering::Relaxed);
            thread::sleep(std::time::Duration::from_millis(1));
        };
        let mut stop = |done, _| if done < 3 { Ok(()) } else { Err(Error::Cancelled) };
        let result = on_threads(2, &cells(1000), &mut stop, test);
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(tested.into_inner() < 50);

        let result = panic::catch_unwind(|| {
            let test =
                |(): &mut (), cell: &Cell| assert!(cell.values[0] < 5.0, "cell {}", cell.label);
            on_threads(2, &cells(9), &mut |_, _| Ok(()), test)
        });
        let message = result.unwrap_err();
        let message = message.downcast_ref::<String>().expect("a formatted message");
        assert!(message.starts_with("cell head="), "{message}");
    }
}
