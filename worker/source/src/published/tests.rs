use std::collections::BTreeSet;

use super::*;

#[track_caller]
fn steps(name: &str) -> Vec<u64> {
    get(name).unwrap().schedule.labels().unwrap()
}

/// Check 23 of the experiments' list.
#[test]
fn schedules_are_those_that_were_published() {
    let crfm = steps("stanford-gpt2-small-a");
    assert_eq!(crfm.len(), 609);
    assert_eq!((crfm[9], crfm[10], crfm[48], crfm[228]), (90, 100, 2000, 20_000));
    assert_eq!((crfm[0], crfm[608]), (0, 400_000));

    let pythia = steps("pythia-70m");
    assert_eq!(pythia.len(), 154);
    assert_eq!(pythia[..12], [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]);
    assert_eq!(pythia[153], 143_000);

    let v0 = steps("pythia-70m-v0");
    assert_eq!((v0.len(), v0[0], v0[142]), (143, 1000, 143_000));

    let toy = steps("gelu-2l");
    assert_eq!(toy.len(), 164);
    assert_eq!((toy[10], toy[25], toy[35]), (22_000_000, 187_000_000, 528_000_000));
    assert_eq!((toy[60], toy[163]), (1_628_000_000, 22_000_000_000));
    let large = steps("solu-12l");
    assert_eq!((large.len(), large[163]), (164, 30_000_000_000));

    assert_eq!(steps("gpt2-xl"), [0]);
    assert_eq!(get("olmo-2-7b").unwrap().schedule.labels(), None);
    assert_eq!(get("solu-1l-old").unwrap().schedule.labels(), None);
}

#[test]
fn labels_rise_and_names_are_unique() {
    let mut names = BTreeSet::new();
    for model in models() {
        if let Some(labels) = model.schedule.labels() {
            assert!(labels.is_sorted_by(|a, b| a < b), "{}", model.name);
            if let Some(listing) = model.listing() {
                for found in &listing.checkpoints {
                    assert!(listing.location(found).is_ok());
                }
            }
        }
        let own: BTreeSet<String> = [&model.name, &model.repo]
            .into_iter()
            .chain(&model.aliases)
            .map(|name| name.to_lowercase())
            .collect();
        for name in own {
            assert!(names.insert(name.clone()), "`{name}` is used twice");
        }
    }
    assert_eq!(models().iter().filter(|m| m.collection == "Stanford CRFM").count(), 10);
    assert_eq!(models().iter().filter(|m| m.collection == "Pythia").count(), 20 + 16);
    assert_eq!(models().iter().filter(|m| m.collection == "PolyPythias").count(), 45 + 6);
    assert_eq!(models().iter().filter(|m| m.collection == "Neel Nanda").count(), 16 + 2 + 7 + 1);
}

#[test]
fn models_are_found_by_all_their_names() {
    for (name, repo) in [
        ("pythia-160m", "EleutherAI/pythia-160m"),
        ("EleutherAI/pythia-125m-deduped", "EleutherAI/pythia-160m-deduped"),
        ("pythia", "EleutherAI/pythia-70m"),
        ("pythia-1.3b-v0", "EleutherAI/pythia-1.4b-v0"),
        ("pythia-410m-seed9", "EleutherAI/pythia-410m-seed9"),
        ("pythia-160m-data-seed2", "EleutherAI/pythia-160m-data-seed2"),
        ("stanford-gpt2-medium-e", "stanford-crfm/eowyn-gpt2-medium-x777"),
        ("Alias-GPT2-small-x21", "stanford-crfm/alias-gpt2-small-x21"),
        ("attn-only-3l", "NeelNanda/Attn_Only_3L512W_C4_Code"),
        ("solu-8l-old", "NeelNanda/SoLU_8L_v21_old"),
        ("solu-4l-wiki", "NeelNanda/SoLU_4L512W_Wiki_Finetune"),
        ("gpt2-small", "openai-community/gpt2"),
        ("tiny-stories-instruct-1L-21M", "roneneldan/TinyStories-Instuct-1Layer-21M"),
        ("olmo-1b", "allenai/OLMo-1B-hf"),
    ] {
        assert_eq!(find(name).map(|model| model.repo.as_str()), Some(repo), "{name}");
    }
    assert_eq!(of_repo("pythia-70m").map(|m| &m.name), None, "an alias is no repository");
    assert!(of_repo("EleutherAI/pythia-19m").is_some());
    let error = get("pythia-170m").unwrap_err();
    assert_eq!(error.hint().as_deref(), Some("did you mean `pythia-160m`?"));
    assert!(get("something-else-entirely").unwrap_err().hint().unwrap().contains("hub:"));
}

#[test]
fn known_defects_are_data() {
    let model = get("pythia-2.8b").unwrap();
    let wrong = model.defects.iter().find(|d| d.kind == DefectKind::Wrong).unwrap();
    assert_eq!(wrong.steps.len(), 86);
    assert_eq!(wrong.steps.iter().collect::<BTreeSet<_>>().len(), 86);
    let all = steps("pythia-2.8b");
    assert!(wrong.steps.iter().all(|step| all.contains(step)));
    let genuine: Vec<&u64> = all.iter().filter(|step| !wrong.steps.contains(step)).collect();
    assert_eq!((genuine.len(), *genuine[0]), (68, 66_000));

    let warned = model.warnings(&[0, 1000, 66_000]);
    assert_eq!(
        warned,
        ["pythia-2.8b: 86 of 154 revisions serve weights of the end of training \
          (EleutherAI/pythia#205); here: 0, 1000"]
    );
    assert!(model.warnings(&[66_000, 142_000]).is_empty());

    let pythia = get("pythia-70m").unwrap();
    assert!(pythia.warnings(&[0, 2, 1000]).is_empty(), "either of the two is right");
    assert!(pythia.warnings(&[0, 1])[0].contains("bit-identical"));
    assert!(get("pythia-12b").unwrap().warnings(&[58_000])[0].contains("first shard"));
    assert!(get("pythia-12b").unwrap().warnings(&[4000]).is_empty(), "it was mended");
    assert!(get("olmo-2-7b").unwrap().warnings(&[175_000])[0].contains("OLMo#915"));
}

#[test]
fn checkpoints_that_are_missing_are_left_out_and_named() {
    let listing = get("pythia-410m-seed9").unwrap().listing().unwrap();
    assert_eq!(listing.checkpoints.len(), 153);
    assert!(listing.checkpoints.iter().all(|found| found.step != 40_000));
    assert!(listing.notes[0].contains("EleutherAI/pythia#202"), "{:?}", listing.notes);
    let listing = get("stanford-gpt2-small-b").unwrap().listing().unwrap();
    assert_eq!(listing.at, "hub:stanford-crfm/battlestar-gpt2-small-x49@{}");
    assert_eq!(listing.checkpoints[1], Found { step: 10, name: "checkpoint-10".into() });
}

#[test]
fn what_a_family_needs_is_recorded() {
    let seed = get("pythia-14m-seed3").unwrap();
    assert_eq!((seed.tokenizer, seed.prepend_bos), (Some("EleutherAI/pythia-70m"), false));
    assert_eq!((seed.trained_vocab, seed.tokens_per_step), (Some(50_277), Some(2_097_152)));
    let neel = get("solu-1l").unwrap();
    assert_eq!(neel.tokenizer, Some("NeelNanda/gpt-neox-tokenizer-digits"));
    assert!(neel.prepend_bos && neel.unit() == Unit::Token);
    assert_eq!(get("solu-6l-old").unwrap().tokenizer, Some("EleutherAI/gpt-neox-20b"));
    assert_eq!(get("stanford-gpt2-small-a").unwrap().tokens_per_step, Some(524_288));
}
