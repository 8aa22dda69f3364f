//! Build script of the crates that link libtorch (`lens`, `lab`, `worker`): tells the linker where
//! the CUDA runtime libraries lie that libtorch itself needs, and gives the binary an rpath, so
//! that it runs without `LD_LIBRARY_PATH`. torch-sys finds libtorch by `LIBTORCH` on its own.

#![expect(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else { return };
    let libtorch = libtorch.canonicalize().unwrap_or(libtorch);
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
    // In the PyPI layout the CUDA runtime lies beside the `torch` folder, under `nvidia/`.
    let Some(site) = libtorch.parent() else { return };
    for folder in ["cu13", "cuda_runtime", "cuda_cupti"] {
        let lib = site.join("nvidia").join(folder).join("lib");
        if lib.is_dir() {
            println!("cargo::rustc-link-arg=-Wl,-rpath-link,{}", lib.display());
            println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
        }
    }
}
