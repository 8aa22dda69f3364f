//! Observing and editing a pass.

use sweep_lens::{Ablate, Cache, Config, FnHook, Hook, Hooks, Kind, Patch, Run, Site, Tensor};

use crate::models::{architectures, assert_close, distance, random_model, tokens};

/// Patching any activation with that of the same run changes nothing; with that of another run, the
/// downstream of the patch is the other run's.
#[test]
fn patches_restore_and_replace() {
    for (name, config) in architectures() {
        let model = random_model(&config, 1);
        let clean = tokens(&config, 2, 5);
        let corrupted = (&clean + 3).remainder(config.d_vocab);
        let mut cache = Cache::all();
        let clean_logits = model.forward(&clean, &Run::FULL, &mut cache);
        let corrupted_logits = model.forward(&corrupted, &Run::FULL, &mut ());
        assert!(distance(&clean_logits, &corrupted_logits) > 0.1);
        for hook in config.hooks() {
            let mut patch = Patch::new(hook, cache[hook].shallow_clone());
            let same = model.forward(&clean, &Run::FULL, &mut patch);
            assert_close(&format!("{name}: {hook}"), &same, &clean_logits, 1e-10);
        }
        for layer in 0..config.n_layers as u32 {
            for site in [Site::ResidPre, Site::ResidPost] {
                let hook = Hook::block(layer, site);
                let mut patch = Patch::new(hook, cache[hook].shallow_clone());
                let patched = model.forward(&corrupted, &Run::FULL, &mut patch);
                // Shortformer positions and rotations do not differ between the two runs.
                assert_close(&format!("{name}: {hook}"), &patched, &clean_logits, 1e-10);
            }
        }
    }
}

#[test]
fn every_hook_edits_the_pass() {
    for (name, config) in architectures() {
        let model = random_model(&config, 2);
        let tokens = tokens(&config, 2, 5);
        let plain = model.forward(&tokens, &Run::FULL, &mut ());
        for hook in config.hooks() {
            // Scaling one part of the activation: adding a constant to scores would change nothing.
            let mut edit = FnHook::new(hook, |_, x: Tensor| {
                let factor =
                    Tensor::linspace(0.5, 1.5, x.size()[x.dim() - 1], (Kind::Double, x.device()));
                x * (factor + 0.2)
            });
            let edited = model.forward(&tokens, &Run::FULL, &mut edit);
            assert!(distance(&plain, &edited) > 1e-6, "{name}: `{hook}` is not read");
        }
    }
}

#[test]
fn patches_of_one_head_or_position_touch_nothing_else() {
    let config = Config::toy(2, 12, 3, 11, 7);
    let model = random_model(&config, 3);
    let tokens = tokens(&config, 2, 5);
    let at = Hook::block(0, Site::Z);
    let zero = || Tensor::from(0.0);
    let mut cache = Cache::of(&[at]);
    let one_head =
        model.forward(&tokens, &Run::FULL, &mut (Patch::new(at, zero()).head(1), &mut cache));
    let ablated = model.forward(&tokens, &Run::FULL, &mut Ablate::heads([(0, 1)]));
    assert_close("zero patch is ablation", &one_head, &ablated, 1e-12);
    let mut plain = Cache::of(&[at]);
    let _logits = model.forward(&tokens, &Run::FULL, &mut plain);
    let changed = cache[at].ne_tensor(&plain[at]); // [batch, pos, head, d_head]
    let by_head = changed.sum_dim_intlist(&[0i64, 1, 3][..], false, Kind::Int64);
    assert_eq!(Vec::<i64>::try_from(by_head).unwrap(), [0, 2 * 5 * 4, 0]);

    let mut cache = Cache::of(&[at]);
    let patch = Patch::new(at, zero()).head(2).position(3);
    let _logits = model.forward(&tokens, &Run::FULL, &mut (patch, &mut cache));
    let changed =
        cache[at].ne_tensor(&plain[at]).sum_dim_intlist(&[0i64, 3][..], false, Kind::Int64);
    assert_eq!(changed.sum(Kind::Int64).int64_value(&[]), 2 * 4);
    assert_eq!(changed.int64_value(&[3, 2]), 2 * 4);

    // The pattern of one head, for one query.
    let at = Hook::block(1, Site::Pattern);
    let mut plain = Cache::of(&[at]);
    let _logits = model.forward(&tokens, &Run::FULL, &mut plain);
    let mut cache = Cache::of(&[at]);
    let patch = Patch::new(at, zero()).head(0).position(4);
    let _logits = model.forward(&tokens, &Run::FULL, &mut (patch, &mut cache));
    let changed =
        cache[at].ne_tensor(&plain[at]).sum_dim_intlist(&[0i64, 3][..], false, Kind::Int64);
    assert_eq!(changed.sum(Kind::Int64).int64_value(&[]), 2 * 5);
    assert_eq!(changed.int64_value(&[0, 4]), 2 * 5); // [head, query]
}

/// Counts what the model makes because of it.
struct Spy {
    visited: Vec<Hook>,
    wants: fn(Hook) -> bool,
}

impl Hooks for Spy {
    fn wants(&self, hook: Hook) -> bool {
        (self.wants)(hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        self.visited.push(hook);
        activation
    }
}

#[test]
fn hooks_are_visited_once_each_in_order_and_compose() {
    for (name, config) in architectures() {
        let model = random_model(&config, 4);
        let tokens = tokens(&config, 2, 5);
        let mut spy = Spy { visited: Vec::new(), wants: |_| true };
        let _logits = model.forward(&tokens, &Run::FULL, &mut spy);
        assert_eq!(spy.visited, config.hooks(), "{name}");
    }
    let config = Config::toy(1, 12, 3, 11, 7);
    let model = random_model(&config, 4);
    let tokens = tokens(&config, 2, 5);
    let mut spy = Spy { visited: Vec::new(), wants: |hook| hook.site() == Some(Site::Z) };
    let double = || FnHook::matching(|hook| hook.site() == Some(Site::Z), |_, x: Tensor| x * 2.0);
    let twice = model.forward(&tokens, &Run::FULL, &mut vec![double(), double()]);
    let tuple = model.forward(&tokens, &Run::FULL, &mut (double(), (&mut spy, double())));
    assert_eq!(twice, tuple);
    assert_eq!(spy.visited, [Hook::block(0, Site::Z)]);
    // The second sees what the first made of it.
    let mut cache = Cache::of(&[Hook::block(0, Site::Z)]);
    let ablate: Box<dyn Hooks> = Box::new(Ablate::heads([(0, 0), (0, 1), (0, 2)]));
    let _logits = model.forward(&tokens, &Run::FULL, &mut (ablate, &mut cache));
    assert_eq!(cache[Hook::block(0, Site::Z)].abs().max().double_value(&[]), 0.0);
}

#[test]
fn a_hook_that_changes_the_shape_is_named() {
    let config = Config::toy(1, 12, 3, 11, 7);
    let model = random_model(&config, 5);
    let tokens = tokens(&config, 2, 5);
    let mut cut = FnHook::new(Hook::block(0, Site::MlpPost), |_, x: Tensor| x.narrow(1, 0, 2));
    let pass = || model.forward(&tokens, &Run::FULL, &mut cut);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert_eq!(
        message,
        "hook at `blocks.0.mlp.hook_post` returned shape [2, 2, 48], expected [2, 5, 48]"
    );
}
