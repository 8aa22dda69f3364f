//! Edits of initial weights (D35): which places, and what is done there.
//!
//! Main function: [`apply`]. Importance is that of a reference run, the same training without the edit; its
//! top is taken per tensor (weights) or per layer (units), so that random-matched has exactly as
//! many in each. Invariant: places that were not chosen keep their bits.

use sweep_lens::{Architecture, Config, Kind, Tensor, Weights};

use super::{
    Interventions, UNUSED_SEED,
    units::{Unit, UnitKind},
};
use crate::{
    error::{Error, Result},
    random,
    value::to_vec,
};

/// What importance is measured on.
pub(crate) struct Reference {
    /// Weights of the reference run.
    pub(crate) weights: Weights,
    /// Gradient of its training loss there.
    pub(crate) gradient: Weights,
    /// How much each unit belongs to its circuit, `[layer, unit]`, if that decides.
    pub(crate) circuit: Option<Tensor>,
}

/// Whether a reference run decides what is chosen.
pub(crate) fn needs_reference(interventions: &Interventions) -> bool {
    interventions.has_edit()
        && ["magnitude", "gradient", "least-magnitude", "circuit"]
            .contains(&interventions.edit_select.as_str())
}

/// The units whose membership in the reference run's circuit decides, if it does.
pub(crate) fn circuit_of(interventions: &Interventions) -> Option<UnitKind> {
    let decides = interventions.has_edit() && interventions.edit_select == "circuit";
    unit_kind(interventions).filter(|_| decides)
}

/// Checks an edit against the architecture.
pub(crate) fn check(edit: &Interventions, config: &Config) -> Result<()> {
    let fail = |name: &str, problem: &str| Err(Error::params(name, problem));
    let kind = unit_kind(edit);
    for text in edit.edit_list.iter().chain(&edit.edit_source) {
        let Some(kind) = kind else {
            if !config.parameters().iter().any(|parameter| parameter.name == *text) {
                return fail("edit_list", &format!("the model has no tensor `{text}`"));
            }
            continue;
        };
        let unit: Unit = text.parse()?;
        if unit.kind != kind {
            return fail("edit_list", &format!("`{text}` is none of the {}", edit.edit_of));
        }
        unit.check(config)?;
    }
    if let Some(kind) = kind
        && kind.count(config) == 0
    {
        return fail("edit_of", &format!("the model has no {}", edit.edit_of));
    }
    if edit.edit_select == "listed" && edit.edit_list.is_empty() {
        return fail("edit_list", "expected what to edit, found nothing");
    }
    if kind.is_some() && edit.edit_select != "listed" && !edit.edit_list.is_empty() {
        let (of, select) = (&edit.edit_of, &edit.edit_select);
        let problem = format!(
            "{of} by edit_select: {select} are chosen among all of a layer, expected no list (or edit_select: listed)"
        );
        return fail("edit_list", &problem);
    }
    if edit.edit_select == "circuit" && kind.is_none() {
        return fail(
            "edit_of",
            "expected heads or neurons, which circuits consist of, found weights",
        );
    }
    if edit.edit == "freeze" && !edit.edit_hold {
        return fail("edit_hold", "expected true with edit: freeze, found false");
    }
    if edit.edit == "copy" {
        let is_listed = edit.edit_select == "listed" && kind.is_some() && !edit.edit_complement;
        if !is_listed || edit.edit_source.len() != edit.edit_list.len() {
            return fail("edit_source", "expected one head or neuron for each one in edit_list");
        }
        let fans = |text: &String| text.parse::<Unit>().map(|unit| fans(config, &unit));
        for (to, from) in edit.edit_list.iter().zip(&edit.edit_source) {
            if fans(to)? != fans(from)? {
                return fail(
                    "edit_source",
                    &format!("`{from}` has weights of another shape than `{to}`"),
                );
            }
        }
    }
    Ok(())
}

/// How many inputs and outputs a unit has.
fn fans(config: &Config, unit: &Unit) -> [i64; 2] {
    if config.architecture == Architecture::Transformer {
        return [config.d_model; 2];
    }
    let is_last = unit.layer + 1 == config.n_layers;
    let d_in = if unit.layer == 0 { config.d_vocab } else { config.d_mlp };
    [d_in, if is_last { config.d_vocab_out } else { config.d_mlp }]
}

/// Edits initial weights in place of the old ones. Returns them with the mask of the chosen places, 1
/// where chosen, shaped like the weights.
///
/// `seed` is that of the run; `fresh` draws initial weights for a seed.
pub(crate) fn apply(
    edit: &Interventions,
    config: &Config,
    initial: &Weights,
    seed: u64,
    reference: Option<&Reference>,
    fresh: &dyn Fn(u64) -> Result<Weights>,
) -> Result<(Weights, Weights)> {
    let own_seed = u64::try_from(edit.edit_seed).ok();
    // A new draw must differ from the first one.
    let redraw = own_seed.unwrap_or(seed) ^ UNUSED_SEED;
    let chosen = choose(edit, config, initial, own_seed.unwrap_or(seed), reference)?;
    let edited = match edit.edit.as_str() {
        "zero" => combine(initial, &chosen, |w, m| Ok(w.masked_fill(&m.to_kind(Kind::Bool), 0.0)))?,
        "scale" => combine(initial, &chosen, |w, m| {
            Ok((w * edit.edit_factor).to_kind(w.kind()).where_self(&m.to_kind(Kind::Bool), w))
        })?,
        "reinitialise" => {
            let fresh = fresh(redraw)?;
            let named = initial.iter().map(|(name, w)| {
                let mask = chosen.require(name)?.to_kind(Kind::Bool);
                Ok((name.to_owned(), fresh.require(name)?.where_self(&mask, w)))
            });
            named.collect::<Result<Weights>>()?
        }
        "copy" => copied(edit, config, initial)?,
        _ => initial.copy(),
    };
    Ok((edited, chosen))
}

fn combine(
    weights: &Weights,
    masks: &Weights,
    change: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Weights> {
    weights
        .iter()
        .map(|(name, w)| Ok((name.to_owned(), change(w, masks.require(name)?)?)))
        .collect()
}

/// Puts the weights of each source into its target; all are read before any is written, so that two
/// units can change places.
fn copied(edit: &Interventions, config: &Config, initial: &Weights) -> Result<Weights> {
    let edited = initial.copy();
    for (target, source) in edit.edit_list.iter().zip(&edit.edit_source) {
        let (target, source): (Unit, Unit) = (target.parse()?, source.parse()?);
        for (to, from) in target.places(config).iter().zip(source.places(config)) {
            if let (Some(to_tensor), Some(from_tensor)) =
                (edited.get(&to.tensor), initial.get(&from.tensor))
            {
                to.of(to_tensor).copy_(&from.of(from_tensor));
            }
        }
    }
    Ok(edited)
}

fn unit_kind(edit: &Interventions) -> Option<UnitKind> {
    match edit.edit_of.as_str() {
        "heads" => Some(UnitKind::Head),
        "neurons" => Some(UnitKind::Neuron),
        _ => None,
    }
}

fn choose(
    edit: &Interventions,
    config: &Config,
    initial: &Weights,
    seed: u64,
    reference: Option<&Reference>,
) -> Result<Weights> {
    let chosen = match unit_kind(edit) {
        Some(kind) => {
            let units = choose_units(edit, kind, config, seed, reference)?;
            let masks: Weights =
                initial.iter().map(|(name, w)| (name.to_owned(), w.zeros_like())).collect();
            for place in units.iter().flat_map(|unit| unit.places(config)) {
                if let Some(mask) = masks.get(&place.tensor) {
                    let _ = place.of(mask).fill_(1.0);
                }
            }
            masks
        }
        None => choose_weights(edit, initial, seed, reference)?,
    };
    if !edit.edit_complement {
        return Ok(chosen);
    }
    // The complement of units is the other units: what belongs to none stays.
    let domain = match unit_kind(edit) {
        Some(kind) => {
            let all = (0..config.n_layers).flat_map(|layer| kind.of_layer(config, layer));
            let names: Vec<String> =
                all.flat_map(|unit| unit.places(config)).map(|place| place.tensor).collect();
            initial
                .names()
                .filter(|name| names.iter().any(|n| n == name))
                .map(str::to_owned)
                .collect()
        }
        None => domain(edit, initial),
    };
    chosen
        .iter()
        .map(|(name, mask)| {
            let is_in = domain.iter().any(|other| other == name);
            Ok((name.to_owned(), if is_in { 1.0 - mask } else { mask.zeros_like() }))
        })
        .collect()
}

/// Tensors whose weights may be chosen.
fn domain(edit: &Interventions, initial: &Weights) -> Vec<String> {
    let names = initial.names().filter(|name| {
        edit.edit_list.is_empty() || edit.edit_list.iter().any(|listed| listed == name)
    });
    names.map(str::to_owned).collect()
}

fn missing() -> Error {
    Error::Input("expected the weights of a reference run, found none".to_owned())
}

fn choose_weights(
    edit: &Interventions,
    initial: &Weights,
    seed: u64,
    reference: Option<&Reference>,
) -> Result<Weights> {
    let domain = domain(edit, initial);
    let sizes: Vec<usize> =
        domain.iter().map(|name| Ok(initial.require(name)?.numel())).collect::<Result<_>>()?;
    let counts: Vec<usize> = sizes.iter().map(|&size| share(edit, size)).collect();
    let mut pooled = vec![Vec::new(); sizes.len()];
    if edit.edit_select == "random" {
        let total = sizes.iter().sum();
        let order = random::permutation(&mut random::stream(seed, "edit/weights"), total);
        for place in &order[..counts.iter().sum()] {
            let (mut tensor, mut place) = (0, *place as usize);
            while place >= sizes[tensor] {
                place -= sizes[tensor];
                tensor += 1;
            }
            pooled[tensor].push(place as i64);
        }
    }
    let mut masks = Weights::new();
    for (name, w) in initial.iter() {
        let Some(index) = domain.iter().position(|other| other == name) else {
            masks.insert(name, w.zeros_like());
            continue;
        };
        let score = |score: &dyn Fn(&Reference) -> Result<Tensor>| -> Result<Tensor> {
            score(reference.ok_or_else(missing)?)
        };
        let count = counts[index];
        let places: Vec<i64> = match edit.edit_select.as_str() {
            "listed" => (0..sizes[index] as i64).collect(),
            "random" => std::mem::take(&mut pooled[index]),
            "random-matched" => {
                let mut rng = random::stream(seed, &format!("edit/weights/{name}"));
                random::permutation(&mut rng, sizes[index])[..count].to_vec()
            }
            "gradient" => top(
                &score(&|r| Ok((r.weights.require(name)? * r.gradient.require(name)?).abs()))?,
                count,
            ),
            "least-magnitude" => top(&score(&|r| Ok(-r.weights.require(name)?.abs()))?, count),
            _ => top(&score(&|r| Ok(r.weights.require(name)?.abs()))?, count),
        };
        let index = Tensor::from_slice(&places).to_device(w.device());
        let mask = w.zeros_like().reshape([-1]).index_fill(0, &index, 1.0);
        masks.insert(name, mask.view(w.size().as_slice()));
    }
    Ok(masks)
}

fn choose_units(
    edit: &Interventions,
    kind: UnitKind,
    config: &Config,
    seed: u64,
    reference: Option<&Reference>,
) -> Result<Vec<Unit>> {
    if edit.edit_select == "listed" {
        return edit.edit_list.iter().map(|text| text.parse()).collect();
    }
    let layers: Vec<Vec<Unit>> =
        (0..config.n_layers).map(|layer| kind.of_layer(config, layer)).collect();
    let count: usize = layers.iter().map(|units| share(edit, units.len())).sum();
    let draw = |units: &[Unit], purpose: &str, count: usize| -> Vec<Unit> {
        let order = random::permutation(&mut random::stream(seed, purpose), units.len());
        order[..count].iter().map(|&place| units[place as usize]).collect()
    };
    if edit.edit_select == "random" {
        return Ok(draw(&layers.concat(), "edit/units", count));
    }
    let mut chosen = Vec::new();
    for (layer, units) in layers.iter().enumerate() {
        let count = share(edit, units.len());
        if edit.edit_select == "random-matched" {
            chosen.extend(draw(units, &format!("edit/units/{layer}"), count));
            continue;
        }
        let Reference { weights, gradient, circuit } = reference.ok_or_else(missing)?;
        let score = |unit: &Unit| match edit.edit_select.as_str() {
            "gradient" => Ok(unit.sensitivity(config, weights, gradient)),
            "circuit" => {
                let scores = circuit.as_ref().ok_or_else(missing)?;
                Ok(scores.double_value(&[unit.layer, unit.index]))
            }
            "least-magnitude" => unit.magnitude(config, weights).map(|norm| -norm),
            _ => unit.magnitude(config, weights),
        };
        let scores: Vec<f64> = units.iter().map(score).collect::<Result<_>>()?;
        let best = top(&Tensor::from_slice(&scores), count);
        chosen.extend(best.iter().map(|&place| units[place as usize]));
    }
    Ok(chosen)
}

/// How many of `n` are chosen.
fn share(edit: &Interventions, n: usize) -> usize {
    ((edit.edit_fraction * n as f64).round() as usize).min(n)
}

/// Places of the `count` largest scores; among equals the first ones.
fn top(scores: &Tensor, count: usize) -> Vec<i64> {
    let order = scores.reshape([-1]).argsort_stable(true, 0, true);
    to_vec(&order.narrow(0, 0, count as i64)).into_iter().map(|place| place as i64).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};
    use sweep_lens::{Device, init};

    use super::*;

    fn weights(config: &Config, seed: u64) -> Weights {
        init::weights(config, seed, |_| 1.0, Device::Cpu)
    }

    fn decode(json: &Json) -> Interventions {
        Interventions::decode(json).unwrap()
    }

    fn edit(config: &Config, json: &Json) -> (Weights, Weights) {
        let edit = decode(json);
        check(&edit, config).unwrap();
        let (trained, gradient) = (weights(config, 8), weights(config, 9));
        let circuit = Some(Tensor::from_slice(&[0.5, 3.0, 2.0, 0.0]).view([2, 2]));
        let reference = Reference { weights: trained, gradient, circuit };
        let fresh = |seed| Ok(weights(config, seed));
        apply(&edit, config, &weights(config, 1), 1, Some(&reference), &fresh).unwrap()
    }

    fn total(masks: &Weights) -> Vec<f64> {
        masks.iter().map(|(_, mask)| mask.sum(Kind::Double).double_value(&[])).collect()
    }

    #[test]
    fn units_of_other_shapes_cannot_be_copied() {
        let copy = |from: &str, to: &str, config: &Config| {
            let json = json!({"edit": "copy", "edit_of": "neurons", "edit_list": [to], "edit_source": [from]});
            check(&decode(&json), config)
        };
        let config = Config::mlp(3, 6, 10, 4, 2);
        copy("L1N3", "L1N0", &config).unwrap();
        let problem = copy("L0N0", "L1N0", &config).unwrap_err().to_string();
        assert!(problem.contains("edit_source") && problem.contains("`L0N0`"), "{problem}");
        assert!(copy("L1N0", "L2N0", &config).is_err());
        copy("L0N0", "L1N0", &Config::toy(2, 8, 2, 6, 4)).unwrap();
    }

    /// A seed that is asked for may be the one of the run, whose weights would be drawn again.
    #[test]
    fn what_is_drawn_anew_is_never_what_was_there() {
        let config = Config::mlp(1, 6, 10, 4, 2);
        let json = json!({"edit": "reinitialise", "edit_select": "random", "edit_fraction": 1.0, "edit_seed": 1});
        let (edited, _) = edit(&config, &json);
        assert_ne!(edited.get("layers.0.W"), weights(&config, 1).get("layers.0.W"));
        assert_ne!(decode(&json!({"branch_step": 3})).branch(), Some((3, 0)));
    }

    #[test]
    fn weights_are_chosen_by_importance_and_matched_controls_have_equal_counts() {
        let config = Config::mlp(1, 6, 10, 4, 2);
        let setting =
            |select: &str| json!({"edit": "zero", "edit_select": select, "edit_fraction": 0.2});
        let (edited, top) = edit(&config, &setting("magnitude"));
        assert_eq!(total(&top), [12.0, 8.0], "a fifth of each tensor");
        let trained = weights(&config, 8);
        for (name, mask) in top.iter() {
            let size = trained.get(name).unwrap().abs();
            let least = size.masked_fill(&mask.lt(0.5), f64::INFINITY).min().double_value(&[]);
            let most = size.masked_fill(&mask.gt(0.5), 0.0).max().double_value(&[]);
            assert!(least >= most, "{name}");
            let initial = weights(&config, 1);
            let expected = initial.get(name).unwrap() * (1.0 - mask);
            assert!(
                edited.get(name).unwrap().equal(&expected),
                "zero there, the old bits elsewhere"
            );
        }
        assert_eq!(total(&edit(&config, &setting("random-matched")).1), [12.0, 8.0]);
        assert_eq!(total(&edit(&config, &setting("random")).1).iter().sum::<f64>(), 20.0);
        assert_eq!(total(&edit(&config, &setting("gradient")).1), [12.0, 8.0]);
        let mut keep = setting("magnitude");
        keep["edit_complement"] = true.into();
        assert_eq!(total(&edit(&config, &keep).1), [48.0, 32.0], "the ticket's complement");
        let one = json!({"edit": "scale", "edit_factor": 2.0, "edit_list": ["layers.1.W"]});
        let (edited, _) = edit(&config, &one);
        let initial = weights(&config, 1);
        assert!(
            edited.get("layers.1.W").unwrap().equal(&(initial.get("layers.1.W").unwrap() * 2.0))
        );
        assert!(edited.get("layers.0.W").unwrap().equal(initial.get("layers.0.W").unwrap()));
    }

    #[test]
    fn units_are_edited_whole() {
        let config = Config::mlp(1, 6, 10, 4, 2);
        let (_, masks) = edit(
            &config,
            &json!({"edit": "zero", "edit_of": "neurons", "edit_select": "magnitude", "edit_fraction": 0.3}),
        );
        assert_eq!(total(&masks), [3.0 * 6.0, 3.0 * 4.0]);
        // The strongest neuron of the reference is among them.
        let trained = weights(&config, 8);
        let norm = |name: &str, axis: i64| {
            trained.get(name).unwrap().square().sum_dim_intlist(&[axis][..], false, Kind::Double)
        };
        let best =
            (norm("layers.0.W", 0) * norm("layers.1.W", 1)).argmax(0, false).int64_value(&[]);
        assert_eq!(masks.get("layers.1.W").unwrap().double_value(&[best, 0]), 1.0);
        let config = Config::toy(2, 8, 2, 5, 3);
        let initial = weights(&config, 1);
        let swap = json!({
            "edit": "copy", "edit_of": "heads", "edit_list": ["L0H0", "L0H1"], "edit_source": ["L0H1", "L0H0"],
        });
        let (edited, masks) = edit(&config, &swap);
        let name = "blocks.0.attn.W_K";
        assert!(edited.get(name).unwrap().equal(&initial.get(name).unwrap().flip([0])));
        assert_eq!(masks.get(name).unwrap().min().double_value(&[]), 1.0);
        let untouched = "blocks.1.attn.W_O";
        assert!(edited.get(untouched).unwrap().equal(initial.get(untouched).unwrap()));
        let circuit = json!({
            "edit": "zero", "edit_of": "heads", "edit_select": "circuit", "edit_fraction": 0.5,
        });
        let (_, masks) = edit(&config, &circuit);
        let chosen = |layer: i64| {
            let mask = masks.get(&format!("blocks.{layer}.attn.W_O")).unwrap();
            [0, 1].map(|head| mask.double_value(&[head, 0, 0]))
        };
        assert_eq!((chosen(0), chosen(1)), ([0.0, 1.0], [1.0, 0.0]), "the best head of each layer");
        let redraw = json!({"edit": "reinitialise", "edit_of": "heads", "edit_list": ["L1H1"]});
        let (edited, _) = edit(&config, &redraw);
        let (new, old) = (edited.get(untouched).unwrap(), initial.get(untouched).unwrap());
        assert!(new.get(0).equal(&old.get(0)) && !new.get(1).equal(&old.get(1)));
    }

    #[test]
    fn edits_that_make_no_sense_are_refused() {
        let (mlp, toy) = (Config::mlp(1, 6, 10, 4, 2), Config::toy(2, 8, 2, 5, 3));
        for (config, json, name) in [
            (&mlp, json!({"edit": "zero"}), "edit_list"),
            (&mlp, json!({"edit": "zero", "edit_of": "heads", "edit_select": "random"}), "edit_of"),
            (&mlp, json!({"edit": "zero", "edit_list": ["embed.W_E"]}), "edit_list"),
            (&mlp, json!({"edit": "freeze", "edit_select": "random"}), "edit_hold"),
            (&mlp, json!({"edit": "zero", "edit_select": "circuit"}), "edit_of"),
            (&toy, json!({"edit": "zero", "edit_of": "heads", "edit_list": ["L0N1"]}), "edit_list"),
            (&toy, json!({"edit": "zero", "edit_of": "heads", "edit_list": ["L5H1"]}), "edit_list"),
            (
                &toy,
                json!({"edit": "copy", "edit_of": "heads", "edit_list": ["L0H1"]}),
                "edit_source",
            ),
        ] {
            let error = check(&decode(&json), config).unwrap_err();
            let Error::Params { name: named, .. } = &error else { panic!("{error}") };
            assert_eq!(named, name, "{json}");
        }
    }
}
