//! Finding the device that tensors live on.
//!
//! libtorch registers its CUDA kernels when `libtorch_cuda` is loaded. No symbol of ours refers to that
//! library, so the linker drops it; [`load_cuda`] opens it when the machine has an NVIDIA driver. The
//! same binary therefore runs with and without a GPU.

use std::{error::Error as _, sync::OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Device;

use crate::error::{Error, Result};

/// Makes CUDA available where the machine has it; later calls return what the first one found.
///
/// # Errors
/// [`Error::Device`] saying why there is no usable CUDA: no driver, no CUDA build of libtorch, no device.
pub fn load_cuda() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(open_libraries).clone().map_err(Error::Device)
}

/// Whether tensors can live on a CUDA device.
pub fn cuda_available() -> bool {
    load_cuda().is_ok()
}

/// Reads `cpu`, `cuda` (the first device) or `cuda:N`.
///
/// # Errors
/// [`Error::Device`] for any other text. Whether the device exists, [`check`] says.
pub fn parse(text: &str) -> Result<Device> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", index)) if index.len() <= 4 && index.bytes().all(|b| b.is_ascii_digit()) => {
            index
                .parse()
                .map(Device::Cuda)
                .map_err(|_| Error::Device(format!("`{text}` has no index, expected cuda:N")))
        }
        _ => Err(Error::Device(format!("`{text}` is unknown, expected cpu, cuda or cuda:N"))),
    }
}

/// Checks that a device can be used on this machine.
///
/// # Errors
/// [`Error::Device`] saying what is missing.
pub fn check(device: Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(index) => {
            load_cuda()?;
            let count = tch::Cuda::device_count();
            if (index as i64) < count {
                return Ok(());
            }
            Err(Error::Device(format!("cuda:{index} does not exist, the machine has {count}")))
        }
        Device::Mps | Device::Vulkan => {
            Err(Error::Device(format!("{device:?} is not supported, expected cpu or cuda:N")))
        }
    }
}

fn open_libraries() -> std::result::Result<(), String> {
    open("libcuda.so.1").map_err(|error| format!("cuda: no NVIDIA driver: {error}"))?;
    open("libtorch_cuda.so").map_err(|error| format!("cuda: no CUDA part of libtorch: {error}"))?;
    if tch::Cuda::is_available() {
        Ok(())
    } else {
        Err("cuda: the driver reports no usable device".to_owned())
    }
}

/// Opens a shared library for the rest of the process.
fn open(name: &str) -> std::result::Result<(), String> {
    #[expect(unsafe_code, reason = "loading a library runs its initialisers")]
    // SAFETY: both libraries are made to be loaded into any process at any time: the driver's by
    // every CUDA program, libtorch's by Python. Symbols must be global because libtorch's own
    // libraries look each other's up.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) };
    match library {
        // Kernels are registered by address: the library may never be unloaded.
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        // The source is the loader's own message, which names the file that is missing.
        Err(error) => Err(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_strictly() {
        assert_eq!(parse("cpu").unwrap(), Device::Cpu);
        assert_eq!(parse("cuda").unwrap(), Device::Cuda(0));
        assert_eq!(parse("cuda:3").unwrap(), Device::Cuda(3));
        for text in ["", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:99999", "cpu:0", "gpu"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn absence_of_a_device_is_an_error_with_a_reason() {
        check(Device::Cpu).unwrap();
        assert!(check(Device::Mps).is_err());
        match load_cuda() {
            Ok(()) => assert!(check(Device::Cuda(tch::Cuda::device_count() as usize)).is_err()),
            Err(error) => {
                assert!(!cuda_available());
                let message = error.to_string();
                assert!(message.starts_with("device cuda: "), "{message}");
                // The loader's own words, which name the missing file, or the driver's.
                assert!(message.contains(".so") || message.contains("driver reports"), "{message}");
                assert!(check(Device::Cuda(0)).is_err());
            }
        }
    }
}
