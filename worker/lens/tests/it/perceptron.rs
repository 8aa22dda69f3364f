//! The perceptron: known answer, hooks as listed, populations, what it refuses.

use sweep_lens::{
    ActFn, Cache, Config, Device, Hook, Kind, Normalization, Run, Site, Tensor, Transformer,
    Weights, init,
};

fn drawn(config: &Config, seed: u64) -> Weights {
    config
        .parameters()
        .into_iter()
        .map(|p| (p.name.clone(), init::normal(seed, &p.name, &p.shape, 0.5, Device::Cpu)))
        .collect()
}

#[test]
fn known_answer() {
    let config = Config::mlp(1, 3, 2, 2, 2);
    let matrix = |data: &[f32], shape: [i64; 2]| Tensor::from_slice(data).view(shape);
    let weights: Weights = [
        ("layers.0.W".to_owned(), matrix(&[1., -1., 2., 3., -4., 5.], [3, 2])),
        ("layers.0.b".to_owned(), Tensor::from_slice(&[0.5f32, -3.0])),
        ("layers.1.W".to_owned(), matrix(&[1., 10., 100., 1000.], [2, 2])),
    ]
    .into_iter()
    .collect();
    let model = Transformer::new(config, weights).unwrap();
    // Inputs {0, 1}, {1} (3 stands for none) and 2 twice.
    let tokens = Tensor::from_slice(&[0i64, 1, 1, 3, 2, 2]).view([3, 2]);
    let logits = model.forward(&tokens, &Run::FULL, &mut ());
    assert_eq!(logits.size(), [3, 1, 2]);
    let found = Vec::<f32>::try_from(logits.reshape([-1])).unwrap();
    // Hidden: relu(3.5, -1), relu(2.5, 0), relu(-7.5, 7).
    assert_eq!(found, [3.5, 35.0, 2.5, 25.0, 700.0, 7000.0]);
    let hidden = model.forward(&tokens, &Run { skip_unembed: true, ..Run::FULL }, &mut ());
    assert_eq!(Vec::<f32>::try_from(hidden.view([-1])).unwrap(), [3.5, 0.0, 2.5, 0.0, 0.0, 7.0]);
}

#[test]
fn hooks_fire_as_listed_and_layers_can_be_left_out() {
    for normalization in [Normalization::None, Normalization::LnPre] {
        let config = Config { normalization, act_fn: ActFn::Gelu, ..Config::mlp(2, 5, 4, 3, 2) };
        let model = Transformer::new(config.clone(), drawn(&config, 1)).unwrap();
        let tokens = Tensor::from_slice(&[0i64, 4, 2, 5]).view([2, 2]);
        let mut cache = Cache::all();
        let full = model.forward(&tokens, &Run::FULL, &mut cache);
        let plain = model.forward(&tokens, &Run::LAST_POSITION, &mut ());
        assert!((full - plain).abs().max().double_value(&[]) < 1e-6);
        let (mut fired, mut listed) =
            (cache.iter().map(|(hook, _)| hook).collect::<Vec<_>>(), config.hooks());
        fired.sort();
        listed.sort();
        assert_eq!(fired, listed);
        let post = cache.get(Hook::block(0, Site::MlpPost)).unwrap();
        assert_eq!(post.size(), [2, 1, 4]);
        let stopped =
            model.forward(&tokens, &Run { stop_after_layer: Some(0), ..Run::FULL }, &mut ());
        assert!((stopped - post).abs().max().double_value(&[]) < 1e-6);
    }
}

#[test]
fn a_population_is_its_members_and_gradients_flow() {
    let config = Config::mlp(2, 6, 5, 4, 2);
    let members: Vec<Weights> =
        (0..3).map(|seed| drawn(&config, seed).to_kind(Kind::Double)).collect();
    let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
    stacked.set_requires_grad(true);
    let population = Transformer::population(config.clone(), stacked).unwrap();
    let shared = Tensor::from_slice(&[0i64, 4, 2, 5, 1, 6]).view([3, 2]);
    let own = Tensor::stack(&[&shared, &shared.flip([0]), &shared.flip([1])], 0);
    let together = population.forward(&own, &Run::FULL, &mut ());
    let of_shared = population.forward(&shared, &Run::FULL, &mut ());
    assert_eq!(together.size(), [3, 3, 1, 4]);
    together.square().sum(Kind::Double).backward();
    for (index, weights) in members.into_iter().enumerate() {
        weights.set_requires_grad(true);
        let alone = Transformer::new(config.clone(), weights).unwrap();
        let index = index as i64;
        let logits = alone.forward(&own.get(index), &Run::FULL, &mut ());
        assert!((&logits - together.get(index)).abs().max().double_value(&[]) < 1e-12);
        let logits_of_shared = alone.forward(&shared, &Run::FULL, &mut ());
        assert!((logits_of_shared - of_shared.get(index)).abs().max().double_value(&[]) < 1e-12);
        logits.square().sum(Kind::Double).backward();
        for (name, tensor) in alone.weights().iter() {
            let other = population.weights().get(name).unwrap().grad().get(index);
            let difference = (tensor.grad() - other).abs().max().double_value(&[]);
            assert!(difference < 1e-10, "{name} {difference}");
        }
    }
}

#[test]
fn few_active_inputs_of_many_give_what_the_product_gives() {
    let config = Config::mlp(1, 40, 6, 5, 3);
    let members: Vec<Weights> =
        (0..2).map(|seed| drawn(&config, seed).to_kind(Kind::Double)).collect();
    // 40 stands for none; input 7 is active twice in a row.
    let tokens = Tensor::from_slice(&[0i64, 39, 40, 7, 7, 3, 40, 40, 40, 12, 40, 1]).view([4, 3]);
    let product = |weights: &Weights| {
        let counts = tokens.one_hot(41).sum_dim_intlist(&[1i64][..], false, Kind::Double);
        let map = |layer: i64, part: &str| weights.get(&format!("layers.{layer}.{part}")).unwrap();
        let hidden = (counts.narrow(1, 0, 40).matmul(map(0, "W")) + map(0, "b")).relu();
        hidden.matmul(map(1, "W")) + map(1, "b")
    };
    let stacked = Weights::stack(&members.iter().collect::<Vec<_>>()).unwrap();
    stacked.set_requires_grad(true);
    let population = Transformer::population(config, stacked).unwrap();
    let together = population.forward(&tokens, &Run::FULL, &mut ());
    together.square().sum(Kind::Double).backward();
    for (index, weights) in (0i64..).zip(&members) {
        weights.set_requires_grad(true);
        let expected = product(weights);
        expected.square().sum(Kind::Double).backward();
        let difference = together.get(index).squeeze_dim(1) - expected;
        assert!(difference.abs().max().double_value(&[]) < 1e-12);
        for (name, tensor) in weights.iter() {
            let other = population.weights().get(name).unwrap().grad().get(index);
            let difference = (tensor.grad() - other).abs().max().double_value(&[]);
            assert!(difference < 1e-10, "{name} {difference}");
        }
    }
}

/// Weights in training are read in another way than weights that are parts of a vector, which alone have second derivatives.
#[test]
fn one_model_reads_few_active_inputs_either_way_and_its_parts_have_curvature() {
    let config = Config::mlp(1, 40, 6, 5, 3);
    let model = |weights: Weights| Transformer::new(config.clone(), weights).unwrap();
    let start = drawn(&config, 3).to_kind(Kind::Double);
    let shapes: Vec<_> = start.iter().map(|(name, t)| (name.to_owned(), t.size())).collect();
    let pieces: Vec<Tensor> = start.iter().map(|(_, tensor)| tensor.reshape([-1])).collect();
    let theta = Tensor::cat(&pieces, 0).set_requires_grad(true);
    let of_parts = |theta: &Tensor| {
        let mut first = 0;
        let parts = shapes.iter().map(|(name, shape)| {
            let length: i64 = shape.iter().product();
            first += length;
            (name.clone(), theta.narrow(0, first - length, length).view(shape.as_slice()))
        });
        model(parts.collect())
    };
    for tokens in [[0i64, 39, 8, 7, 7, 3], [0, 39, 40, 7, 7, 40]] {
        let tokens = Tensor::from_slice(&tokens).view([2, 3]);
        let loss = |model: &Transformer| {
            model.forward(&tokens, &Run::FULL, &mut ()).square().sum(Kind::Double)
        };
        let trained = model(start.copy());
        trained.weights().set_requires_grad(true);
        let leaves: Vec<&Tensor> = trained.weights().iter().map(|(_, tensor)| tensor).collect();
        let of_leaves = loss(&trained);
        let gradients = Tensor::run_backward(&[&of_leaves], &leaves, false, false);
        let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.reshape([-1])).collect();
        let of_theta = loss(&of_parts(&theta));
        let gradient = Tensor::run_backward(&[&of_theta], &[&theta], true, true).remove(0);
        assert_eq!(of_leaves, of_theta);
        let difference = Tensor::cat(&flat, 0) - &gradient;
        assert!(difference.abs().max().double_value(&[]) < 1e-10);

        // Along a line, the second derivative is what two gradients differ by.
        let along = init::normal(5, "direction", &theta.size(), 1.0, Device::Cpu);
        let curvature =
            Tensor::run_backward(&[(gradient * &along).sum(Kind::Double)], &[&theta], false, false);
        let at = |step: f64| {
            let moved = (theta.detach() + &along * step).set_requires_grad(true);
            Tensor::run_backward(&[loss(&of_parts(&moved))], &[&moved], false, false).remove(0)
        };
        let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
        let worst = (&curvature[0] - &expected).abs().max() / expected.abs().max();
        assert!(worst.double_value(&[]) < 1e-6, "{worst}");
    }
}

#[test]
#[should_panic(expected = "expected 1 to n_ctx 2")]
fn too_many_inputs_are_refused() {
    let config = Config::mlp(1, 3, 2, 2, 2);
    let model = Transformer::new(config.clone(), drawn(&config, 1)).unwrap();
    let _ = model.forward(&Tensor::zeros([1, 3], (Kind::Int64, Device::Cpu)), &Run::FULL, &mut ());
}
