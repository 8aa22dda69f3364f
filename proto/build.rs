//! Compiles the `.proto` files without a `protoc` on the machine: protox parses them, tonic-prost
//! generates the code. The descriptor set is kept for the reflection service.

use std::{env, fs, path::PathBuf};

const FILES: &[&str] = &["common", "catalog", "metrics", "sweeps", "workers"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<String> = FILES.iter().map(|file| format!("sweep/v1/{file}.proto")).collect();
    println!("cargo::rerun-if-changed=sweep/v1");
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), encode(&descriptors))?;
    let mut config = tonic_prost_build::configure();
    // The catalogue is also a JSON document (`sweep-worker catalog`, `sweep catalog --output json`).
    for message in ["Catalog", "Experiment", "Recipe", "Param", "Metric", "Axis", "Figure"] {
        config = config.type_attribute(
            format!("sweep.v1.{message}"),
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        );
    }
    config.compile_fds(descriptors)?;
    Ok(())
}

fn encode(descriptors: &impl protox::prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
