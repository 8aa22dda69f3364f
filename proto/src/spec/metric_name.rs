//! Names of metrics as parameters give them: `experiment.metric` or, where a sweep lists the experiment
//! more than once, `experiment[k=8].metric` for the one that was written with `k: 8`. Several
//! parameters are separated by commas; `k=` means the one without `k`.

use serde_json::{Map, Value};

use super::label::plain;

/// A metric of one of a sweep's experiments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricName<'a> {
    /// The experiment or recipe.
    pub owner: &'a str,
    /// What tells it from others of the same name.
    selection: Vec<(&'a str, &'a str)>,
    /// Name without the owner.
    metric: &'a str,
}

impl<'a> MetricName<'a> {
    /// Reads a name; `None` if it has another form.
    pub fn parse(text: &'a str) -> Option<Self> {
        let dot = text.find('.')?;
        let (owner, selection, metric) = match text.find('[').filter(|open| *open < dot) {
            Some(open) => {
                let (inside, metric) = text[open + 1..].rsplit_once("].")?;
                let pairs: Option<Vec<_>> =
                    inside.split(',').map(|pair| pair.trim().split_once('=')).collect();
                (&text[..open], pairs?, metric)
            }
            None => (&text[..dot], Vec::new(), &text[dot + 1..]),
        };
        (!owner.is_empty() && !metric.is_empty()).then_some(Self { owner, selection, metric })
    }

    /// The metric as series are named.
    pub fn full(&self) -> String {
        format!("{}.{}", self.owner, self.metric)
    }

    /// Whether it means an experiment that was written with these parameters.
    pub fn fits(&self, written: &Map<String, Value>) -> bool {
        self.selection.iter().all(|(key, value)| match written.get(*key) {
            Some(given) => plain(given) == plain(&Value::String((*value).to_owned())),
            None => value.is_empty(),
        })
    }
}

/// How an experiment is told from others of the same name: `name[k=8].metric`.
pub(super) fn example(
    owner: &str,
    metric: &str,
    written: &Map<String, Value>,
    others: &[&Map<String, Value>],
) -> String {
    let keys = others.iter().flat_map(|other| other.keys()).chain(written.keys());
    let mut differing: Vec<&String> = keys
        .filter(|key| others.iter().any(|other| other.get(*key) != written.get(*key)))
        .collect();
    differing.sort();
    differing.dedup();
    let pair = |key: &&String| {
        let value = written.get(*key).map(plain).unwrap_or_default();
        format!("{key}={value}")
    };
    // One that tells it from all others is enough.
    let enough = differing
        .iter()
        .find(|key| others.iter().all(|other| other.get(**key) != written.get(**key)));
    let pairs: Vec<String> = match enough {
        Some(key) => vec![pair(key)],
        None => differing.iter().map(pair).collect(),
    };
    format!("{owner}[{}].{metric}", pairs.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn names_have_an_owner_a_selection_and_a_metric() {
        let plain = MetricName::parse("cka.cka").unwrap();
        assert_eq!((plain.owner, plain.full().as_str()), ("cka", "cka.cka"));
        assert!(plain.fits(&map(json!({ "k": 1 }))));
        let chosen = MetricName::parse("pca[of=weights,lr=0.1].evr").unwrap();
        assert_eq!((chosen.owner, chosen.full().as_str()), ("pca", "pca.evr"));
        assert!(chosen.fits(&map(json!({ "of": "weights", "lr": 0.1, "k": 3 }))));
        assert!(!chosen.fits(&map(json!({ "of": "logits", "lr": 0.1 }))));
        assert!(!chosen.fits(&map(json!({ "lr": 0.1 }))));
        assert!(MetricName::parse("pca[of=].evr").unwrap().fits(&Map::new()));
        for wrong in ["", "pca", ".evr", "pca.", "pca[of].evr", "pca[of=x.evr", "pca[of=x]evr"] {
            assert_eq!(MetricName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn examples_select_what_they_are_made_for() {
        let all = [json!({ "text": ["a b"] }), json!({ "k": 1 }), json!({ "k": 2 })].map(map);
        for (index, written) in all.iter().enumerate() {
            let others: Vec<_> =
                all.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, o)| o).collect();
            let text = example("e", "m", written, &others);
            let name = MetricName::parse(&text).unwrap();
            let fitting: Vec<usize> = (0..3).filter(|at| name.fits(&all[*at])).collect();
            assert_eq!(fitting, [index], "{text}");
        }
    }
}
