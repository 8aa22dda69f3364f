//! Times the loading of one checkpoint from disk; `make bench-load` compares it with other loaders.
//!
//! `cargo run --release -p sweep-lens --example load_speed FILE`
//!
//! Prints one JSON object: seconds to open the file and get every tensor as it lies there (`views`), and
//! to have every tensor as float32 in memory of its own (`float32`). Start of the process and of libtorch
//! are not counted, as the others' imports are not. One thread, as `cp` has: copying is bound by memory, and
//! on a busy machine threads wait for each other at every tensor.
#![expect(clippy::print_stdout, reason = "a report for the program that runs it")]

use std::{collections::BTreeMap, env, path::PathBuf, time::Instant};

use sweep_lens::{
    Device, Error, Kind, Tensor, Weights,
    formats::{TensorFiles, TensorSource},
};

fn main() -> Result<(), Error> {
    let usage = || Error::Unsupported("expected one argument, a file of tensors".to_owned());
    let path = PathBuf::from(env::args().nth(1).ok_or_else(usage)?);
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(usage)?;
    let files = BTreeMap::from([(name.to_owned(), path.clone())]);
    tch::set_num_threads(1);
    // libtorch's first operation sets it up.
    drop(Tensor::ones([1], (Kind::Float, Device::Cpu)) + 1);

    let begun = Instant::now();
    let source = TensorFiles::open(&files)?;
    let views = every_tensor(&source, |tensor| tensor)?;
    let view_seconds = begun.elapsed().as_secs_f64();
    let n_bytes: usize =
        views.iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum();
    drop((views, source));

    let begun = Instant::now();
    let loaded = load(&files)?;
    let float_seconds = begun.elapsed().as_secs_f64();
    let report = serde_json::json!({
        "views": view_seconds,
        "float32": float_seconds,
        "n_tensors": loaded.len(),
        "n_bytes": n_bytes,
    });
    println!("{report}");
    Ok(())
}

/// What is measured as loading: the one place to change when a model is to be built as well.
fn load(files: &BTreeMap<String, PathBuf>) -> Result<Weights, Error> {
    // A tensor that is float32 already would stay a view of the file: copied, so that it counts.
    every_tensor(&TensorFiles::open(files)?, |tensor| match tensor.kind() {
        Kind::Float => {
            let mut copy = tensor.empty_like();
            copy.copy_(&tensor);
            copy
        }
        _ => tensor.to_kind(Kind::Float),
    })
}

fn every_tensor(
    source: &dyn TensorSource,
    convert: impl Fn(Tensor) -> Tensor,
) -> Result<Weights, Error> {
    let names = source.names().into_iter();
    names.map(|name| Ok((name.to_owned(), convert(source.tensor(name)?)))).collect()
}
