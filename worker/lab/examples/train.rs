//! Trains one recipe without the cluster and prints its metrics as they come, arrays as their cells:
//! `cargo run --release -p sweep-lab --example train induction '{"steps": 1500}' 0 1 2`
//! (recipe, parameters, seeds; the seeds train one after the other).

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{collections::BTreeMap, time::Instant};

use sweep_lab::{
    AnyRecipe, CheckpointPlan, Error, RECIPES, Result, Signal, TrainSink, Value, lens::Device,
    train,
};

/// Prints the metrics of a step as one line.
#[derive(Default)]
struct Print {
    step: u64,
    line: BTreeMap<String, Value>,
}

impl Print {
    fn flush(&mut self) {
        let line: Vec<String> = std::mem::take(&mut self.line)
            .into_iter()
            .map(|(name, value)| match value.as_scalar() {
                Some(number) => format!("{name} {number:.3}"),
                None => format!("{name} {:.2?}", value.data),
            })
            .collect();
        println!("{:6} {}", self.step, line.join("  "));
    }
}

impl TrainSink for Print {
    fn metric(&mut self, _: usize, name: &str, step: u64, value: Value) -> Result<()> {
        if step != self.step {
            self.flush();
            self.step = step;
        }
        self.line.insert(name.to_owned(), value);
        Ok(())
    }

    fn checkpoint(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn trainer_state(&mut self, _: usize, _: u64, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn failed(&mut self, _: usize, _: u64, error: Error) -> Result<()> {
        Err(error)
    }

    fn signal(&mut self, _: u64, _: u64) -> Signal {
        Signal::Continue
    }
}

fn recipe(name: &str) -> Result<&'static dyn AnyRecipe> {
    let found = RECIPES.iter().copied().find(|recipe| recipe.card().name == name);
    found.ok_or_else(|| Error::Input(format!("expected the name of a recipe, found `{name}`")))
}

fn main() -> Result<()> {
    tch::set_num_threads(1);
    let mut arguments = std::env::args().skip(1);
    let recipe = recipe(&arguments.next().unwrap_or_default())?;
    let params = arguments.next().unwrap_or_else(|| "null".to_owned());
    let params = serde_json::from_str(&params).map_err(|error| Error::Input(error.to_string()))?;
    for seed in arguments.filter_map(|seed| seed.parse().ok()) {
        println!("seed {seed}");
        let (start, mut sink) = (Instant::now(), Print::default());
        let plan = CheckpointPlan::default();
        train(recipe, &params, &[seed], &[], &plan, Device::Cpu, &mut sink)?;
        sink.flush();
        println!("{:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
