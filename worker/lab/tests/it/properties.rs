//! Properties that hold for any input: curve statistics, Fourier measures, parameters.

use proptest::{collection::vec, prelude::*};
use serde_json::{Value as Json, json};
use sweep_lab::{
    EXPERIMENTS, RECIPES,
    curve::{
        abruptness::{abruptness, isotonic},
        fit::Points,
        transition::{Options, Transition},
    },
    fourier::{Basis, gini},
    lens::{Device, Kind, Tensor},
    random,
};

/// Any JSON of modest size, wrong kinds and names included.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i32>().prop_map(Json::from),
        any::<f64>().prop_map(|x| json!(x)),
        "[a-z_.]{0,9}".prop_map(Json::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| vec(inner, 0..4).prop_map(Json::from))
}

/// Curves with gaps, infinities and huge values among ordinary numbers.
fn any_curve() -> impl Strategy<Value = Vec<f64>> {
    let number = prop_oneof![
        8 => -10.0..10.0f64,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => prop_oneof![Just(0.0), Just(1e300), Just(-1e-300)],
    ];
    vec(number, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_curve_gets_a_verdict(values in any_curve(), log_x: bool, log_y: Option<bool>) {
        let steps: Vec<u64> = (0..values.len() as u64).map(|step| step * step).collect();
        let options = Options { log_x, log_y, n_bootstrap: 3 };
        let test = || Transition::test(&steps, &values, options, &mut random::stream(1, "any"));
        let found = test();
        prop_assert_eq!(found.is_transition, test().is_transition);
        if found.is_transition {
            prop_assert!(found.onset <= found.midpoint && found.midpoint <= found.end);
            prop_assert!(found.bracket[0] < found.bracket[1]);
        }
        prop_assert!(serde_json::to_string(&found).is_ok());
    }

    #[test]
    fn shape_measures_are_bounded_and_invariant(y in vec(-5.0..5.0f64, 8..40), scale in 0.1..10.0f64, shift in -3.0..3.0f64) {
        let x: Vec<f64> = (0..y.len()).map(|i| (i as f64 + 1.0).ln()).collect();
        let share = abruptness(Points { x: &x, y: &y });
        prop_assert!(share > 0.09 && share <= 1.0 + 1e-12, "{}", share);
        let moved: Vec<f64> = y.iter().map(|y| shift - scale * y).collect();
        let of_moved = abruptness(Points { x: &x, y: &moved });
        prop_assert!((of_moved - share).abs() < 1e-9, "{} {}", of_moved, share);
        let fit = isotonic(&y);
        let is_monotone = |sign: f64| fit.windows(2).all(|w| sign * (w[1] - w[0]) >= -1e-12);
        prop_assert!(is_monotone(1.0) || is_monotone(-1.0));
        prop_assert!((fit.iter().sum::<f64>() - y.iter().sum::<f64>()).abs() < 1e-9, "keeps the mean");
        prop_assert!(isotonic(&fit).iter().zip(&fit).all(|(a, b)| (a - b).abs() < 1e-12), "idempotent");
    }

    #[test]
    fn gini_is_bounded_and_ignores_scale_and_order(mut x in vec(0.001..10.0f64, 1..30), scale in 0.01..100.0f64) {
        let value = gini(&x);
        prop_assert!((-1e-12..=1.0 - 1.0 / x.len() as f64 + 1e-12).contains(&value));
        x.reverse();
        let scaled: Vec<f64> = x.iter().map(|x| x * scale).collect();
        prop_assert!((gini(&scaled) - value).abs() < 1e-9);
    }

    #[test]
    fn energy_of_any_function_splits_over_frequencies(p in prop_oneof![Just(3i64), Just(7), Just(15)], seed in 0..1000i64) {
        let basis = Basis::new(p, Device::Cpu).unwrap();
        let x = (Tensor::arange(p * 4, (Kind::Double, Device::Cpu)) * (seed as f64 + 0.5)).sin().view([p, 4]);
        let total = x.square().sum(Kind::Double).double_value(&[]);
        let constant = x.sum_dim_intlist(&[0i64][..], false, Kind::Double).square().sum(Kind::Double) / p as f64;
        let rest = basis.norms(&x).square().sum(Kind::Double).double_value(&[]);
        prop_assert!((rest + constant.double_value(&[]) - total).abs() < 1e-9 * total.max(1.0));
        // No neuron is explained to more than 1, in all.
        let fractions = basis.variance_explained(&x.repeat([p, 1]));
        let largest = fractions.sum_dim_intlist(&[0i64][..], false, Kind::Double).max().double_value(&[]);
        prop_assert!(largest <= 1.0 + 1e-9, "{}", largest);
    }

    #[test]
    fn any_parameters_are_accepted_or_refused(name_index in 0..40usize, value in any_json(), whole: bool) {
        let check = |names: Vec<&str>, check: &dyn Fn(&Json) -> sweep_lab::Result<Json>| {
            let name = names.get(name_index % (names.len() + 1)).copied().unwrap_or("unknown");
            let params = if whole { value.clone() } else { json!({ name: value.clone() }) };
            if let Ok(canonical) = check(&params) {
                assert_eq!(check(&canonical).unwrap(), canonical, "canonical form is stable");
            }
        };
        for experiment in EXPERIMENTS {
            let names = experiment.card().params.iter().map(|def| def.name).collect();
            check(names, &|params| experiment.canonical_params(params));
        }
        for recipe in RECIPES {
            let defs = recipe.param_defs();
            let names = defs.iter().map(|def| def.name).collect();
            check(names, &|params| recipe.canonical_params(params));
        }
    }
}
