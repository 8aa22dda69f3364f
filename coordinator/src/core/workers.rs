//! The workers that have introduced themselves. Main types: [`Workers`], [`Worker`].
//!
//! A worker process is known by its `instance`, the machine it runs on by its `name`: the same
//! name with a new instance means that the old process is dead. Workers that stay silent are kept
//! for a while, so that listings can show them as lost.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use sweep_proto::id::Attempt;

use super::event::Hello;

/// Seeds of one lease, whatever a worker says.
const MAX_POPULATION: u32 = 1024;

/// A registered worker process.
#[derive(Debug)]
pub struct Worker {
    /// Its id on the wire.
    pub id: String,
    /// What it said about itself; the catalogue is in `experiments` and `recipes`.
    pub hello: Hello,
    experiments: HashSet<(String, u32)>,
    /// With the number of seeds that its device trains well together.
    recipes: HashMap<(String, u32), u32>,
    /// When it was heard of last.
    pub last_seen: Duration,
    /// Results that it could not deliver yet.
    pub spool_bytes: u64,
    /// Whether it takes no more work.
    pub draining: bool,
    /// Whether it reported a broken device: it gets no more work.
    pub poisoned: bool,
    /// Leases that it holds.
    pub leases: BTreeSet<Attempt>,
    /// Tasks that it finished.
    pub tasks_done: u64,
}

impl Worker {
    /// Whether it has that version of an experiment.
    pub fn offers(&self, name: &str, version: u32) -> bool {
        // Owned keys: the set is asked a handful of times per grant.
        self.experiments.contains(&(name.to_owned(), version))
    }

    /// How many seeds of that version of a recipe it takes in one lease, if it has the recipe. This
    /// is a matter of its device: what was pinned at submission came from another machine.
    pub fn population(&self, recipe: &str, version: u32) -> Option<usize> {
        let population = self.recipes.get(&(recipe.to_owned(), version))?;
        Some((*population).clamp(1, MAX_POPULATION) as usize)
    }

    /// Whether it may get work at all.
    pub fn takes_work(&self) -> bool {
        !self.draining && !self.poisoned
    }
}

/// All known workers.
#[derive(Debug, Default)]
pub struct Workers {
    by_number: BTreeMap<u64, Worker>,
    by_id: HashMap<String, u64>,
    by_name: HashMap<String, u64>,
    next: u64,
}

impl Workers {
    /// Adds a process; the caller has removed the former one of the same name.
    pub fn insert(&mut self, incarnation: u32, mut hello: Hello, now: Duration) -> u64 {
        self.next += 1;
        let number = self.next;
        let id = format!("w{incarnation}.{number}");
        let catalog = std::mem::take(&mut hello.catalog);
        self.by_id.insert(id.clone(), number);
        self.by_name.insert(hello.name.clone(), number);
        let recipes = catalog.recipes.into_iter();
        let worker = Worker {
            id,
            hello,
            experiments: catalog.experiments.into_iter().map(|e| (e.name, e.version)).collect(),
            recipes: recipes.map(|r| ((r.name, r.version), r.population)).collect(),
            last_seen: now,
            spool_bytes: 0,
            draining: false,
            poisoned: false,
            leases: BTreeSet::new(),
            tasks_done: 0,
        };
        self.by_number.insert(number, worker);
        number
    }

    /// The number of the worker with that id.
    pub fn number(&self, id: &str) -> Option<u64> {
        self.by_id.get(id).copied()
    }

    /// The number of the worker with that name.
    pub fn named(&self, name: &str) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// A worker by number.
    pub fn get(&self, number: u64) -> Option<&Worker> {
        self.by_number.get(&number)
    }

    /// A worker by number.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Worker> {
        self.by_number.get_mut(&number)
    }

    /// Removes a worker.
    pub fn remove(&mut self, number: u64) -> Option<Worker> {
        let worker = self.by_number.remove(&number)?;
        self.by_id.remove(&worker.id);
        self.by_name.remove(&worker.hello.name);
        Some(worker)
    }

    /// All workers, oldest registration first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Worker)> {
        self.by_number.iter().map(|(number, worker)| (*number, worker))
    }

    /// Whether there are `limit` or more.
    pub fn is_full(&self, limit: usize) -> bool {
        self.by_number.len() >= limit
    }

    /// How many were heard of after `since`.
    pub fn alive(&self, since: Duration) -> usize {
        self.by_number.values().filter(|worker| worker.last_seen >= since).count()
    }
}
