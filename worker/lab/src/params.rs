//! Parameters declared once: the `params!` macro yields the struct (strict serde), its defaults
//! and the documentation table that `sweep catalog` shows and submissions are checked against.
//!
//! Main items: [`ParamDef`], [`ParamSet`], [`decode`], [`canonical`]. Invariant: a value accepted by
//! [`decode`] always builds the struct, and the error for any other value names the parameter.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a parameter's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// Integer.
    Int,
    /// Number.
    Float,
    /// `true` or `false`.
    Bool,
    /// Text, possibly one of [`ParamDef::choices`].
    Text,
    /// List of integers.
    IntList,
    /// List of numbers.
    FloatList,
    /// List of texts.
    TextList,
    /// List of lists of integers.
    IntLists,
    /// Full name of a metric, `experiment.metric`.
    Metric,
    /// List of such names.
    MetricList,
}

impl ParamKind {
    /// Stable lowercase name, as the catalogue shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::Text => "text",
            Self::IntList => "int-list",
            Self::FloatList => "float-list",
            Self::TextList => "text-list",
            Self::IntLists => "int-lists",
            Self::Metric => "metric",
            Self::MetricList => "metric-list",
        }
    }

    fn accepts(self, value: &Value) -> bool {
        let list = |accept: fn(&Value) -> bool| {
            value.as_array().is_some_and(|items| items.iter().all(accept))
        };
        let is_whole = |item: &Value| item.is_i64() || item.is_u64();
        match self {
            Self::Int => is_whole(value),
            Self::Float => value.is_number(),
            Self::Bool => value.is_boolean(),
            Self::Text | Self::Metric => value.is_string(),
            Self::IntList => list(is_whole),
            Self::IntLists => list(|item| Self::IntList.accepts(item)),
            Self::FloatList => list(Value::is_number),
            Self::TextList | Self::MetricList => list(Value::is_string),
        }
    }
}

/// One parameter: its kind, default, limits and meaning.
#[derive(Debug, Clone, Copy)]
pub struct ParamDef {
    /// Name in the sweep file.
    pub name: &'static str,
    /// Kind of value.
    pub kind: ParamKind,
    /// The default, computed.
    pub default: fn() -> Value,
    /// Smallest accepted number (each element of a list), inclusive.
    pub min: Option<f64>,
    /// Largest accepted number (each element of a list), inclusive.
    pub max: Option<f64>,
    /// Accepted texts; empty means any.
    pub choices: &'static [&'static str],
    /// Of the parameters of one group exactly one has to be given, and not be empty.
    pub group: Option<&'static str>,
    /// Another parameter that this one must not exceed.
    pub at_most: Option<&'static str>,
    /// Another parameter that this one must divide.
    pub divides: Option<&'static str>,
    /// One sentence.
    pub doc: &'static str,
}

impl ParamDef {
    /// True if the user has to give a value: a metric to analyse has no sensible default.
    pub fn is_required(&self) -> bool {
        let default = (self.default)();
        matches!(self.kind, ParamKind::Metric | ParamKind::MetricList) && !is_given(&default)
    }

    /// True if `null` may be given: the experiment decides, as it does by default.
    fn is_optional(&self) -> bool {
        (self.default)().is_null()
    }

    fn check(&self, value: &Value) -> Result<()> {
        let fail = |problem: String| Err(Error::params(self.name, problem));
        if self.is_required() && value.as_array().is_some_and(Vec::is_empty) {
            return fail(format!("expected a {} that is not empty", self.kind.name()));
        }
        if value.is_null() && self.is_optional() {
            return Ok(());
        }
        if !self.kind.accepts(value) {
            return fail(format!("expected {}, found {value}", self.kind.name()));
        }
        for item in leaves(value) {
            if let Some(number) = item.as_f64() {
                if self.min.is_some_and(|min| number < min) {
                    return fail(format!(
                        "{item} is below the minimum {}",
                        self.min.unwrap_or(0.0)
                    ));
                }
                if self.max.is_some_and(|max| number > max) {
                    return fail(format!(
                        "{item} is above the maximum {}",
                        self.max.unwrap_or(0.0)
                    ));
                }
            }
            if let Some(text) = item.as_str() {
                if !self.choices.is_empty() && !self.choices.contains(&text) {
                    return fail(format!(
                        "expected one of {}, found `{text}`",
                        self.choices.join(", ")
                    ));
                }
                let is_name =
                    text.split_once('.').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
                let is_metric = matches!(self.kind, ParamKind::Metric | ParamKind::MetricList);
                if is_metric && !is_name {
                    return fail(format!(
                        "expected a metric name `experiment.metric`, found `{text}`"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The numbers, texts and truth values in `value`, however deep its lists.
fn leaves(value: &Value) -> Vec<&Value> {
    match value.as_array() {
        Some(items) => items.iter().flat_map(leaves).collect(),
        None => vec![value],
    }
}

/// Whether a value of a group's parameter counts as given.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => true,
    }
}

/// Checks that of each group exactly one parameter is given.
fn check_groups(defs: &[ParamDef], given: &Map<String, Value>) -> Result<()> {
    for group in defs.iter().filter_map(|def| def.group) {
        let members: Vec<&str> =
            defs.iter().filter(|def| def.group == Some(group)).map(|def| def.name).collect();
        let found: Vec<&str> =
            members.iter().copied().filter(|name| given.get(*name).is_some_and(is_given)).collect();
        if found.len() != 1 {
            let found = if found.is_empty() { "none".to_owned() } else { found.join(" and ") };
            let problem = format!("expected exactly one of them, found {found}");
            return Err(Error::params(&members.join(" or "), problem));
        }
    }
    Ok(())
}

/// Checks what parameters declare about each other, defaults filled in.
fn check_relations(defs: &[ParamDef], given: &Map<String, Value>) -> Result<()> {
    let value = |name: &str| {
        let def = defs.iter().find(|def| def.name == name)?;
        let value = given.get(name).cloned().unwrap_or_else(def.default);
        Some((value.as_f64()?, value))
    };
    for def in defs {
        let Some((number, own)) = value(def.name) else { continue };
        let fail = |words: &str, other: &str, bound: &Value| {
            Err(Error::params(def.name, format!("{own} {words} {other} {bound}")))
        };
        if let Some((other, (bound, shown))) =
            def.at_most.and_then(|name| Some((name, value(name)?)))
            && number > bound
        {
            return fail("is more than", other, &shown);
        }
        if let Some((other, (whole, shown))) =
            def.divides.and_then(|name| Some((name, value(name)?)))
            && whole % number != 0.0
        {
            return fail("does not divide", other, &shown);
        }
    }
    Ok(())
}

/// A parameter struct made by `params!`.
pub trait ParamSet: Serialize + DeserializeOwned + Default + Clone {
    /// One entry per field, in order.
    const DEFS: &'static [ParamDef];
}

/// Parameters of an experiment that has none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

impl ParamSet for NoParams {
    const DEFS: &'static [ParamDef] = &[];
}

/// Full name of a metric, `experiment.metric`; empty only as the default of a required parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MetricName(pub String);

/// Rust type of a parameter → its [`ParamKind`].
pub trait ParamType {
    /// Kind of this type.
    const KIND: ParamKind;
}

macro_rules! kinds {
    ($($ty:ty => $kind:ident),* $(,)?) => {
        $(impl ParamType for $ty { const KIND: ParamKind = ParamKind::$kind; })*
    };
}
kinds! {
    i64 => Int, u64 => Int, f64 => Float, bool => Bool, String => Text, MetricName => Metric,
    Vec<i64> => IntList, Vec<u64> => IntList, Vec<f64> => FloatList, Vec<String> => TextList,
    Vec<Vec<i64>> => IntLists, Vec<MetricName> => MetricList, Option<bool> => Bool, Option<u64> => Int,
    Option<f64> => Float,
}

/// Strictly decodes `value` (an object; `null` means all defaults): unknown names, wrong kinds and
/// values out of range are errors that name the parameter.
pub(crate) fn decode<P: ParamSet>(value: &Value) -> Result<P> {
    let given = match value {
        Value::Null => Map::new(),
        Value::Object(given) => given.clone(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(Error::params("(all)", format!("expected an object, found {value}")));
        }
    };
    for (name, item) in &given {
        let Some(def) = P::DEFS.iter().find(|def| def.name == name) else {
            let known: Vec<_> = P::DEFS.iter().map(|def| def.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::params(name, format!("unknown, expected one of: {known}")));
        };
        def.check(item)?;
    }
    if let Some(def) = P::DEFS.iter().find(|def| def.is_required() && !given.contains_key(def.name))
    {
        return Err(Error::params(
            def.name,
            format!("expected {}, found nothing", def.kind.name()),
        ));
    }
    check_groups(P::DEFS, &given)?;
    check_relations(P::DEFS, &given)?;
    serde_json::from_value(Value::Object(given))
        .map_err(|error| Error::params("(all)", error.to_string()))
}

/// All parameters with defaults filled in and numbers in the field's own type: equal settings give
/// equal values, whatever the user left out. Used as part of the result key.
pub(crate) fn canonical<P: ParamSet>(value: &Value) -> Result<Value> {
    let params: P = decode(value)?;
    serde_json::to_value(params).map_err(|error| Error::params("(all)", error.to_string()))
}

/// All defaults as JSON, in declaration order.
pub(crate) fn defaults(defs: &[ParamDef]) -> Value {
    Value::Object(defs.iter().map(|def| (def.name.to_owned(), (def.default)())).collect())
}

/// Declares a parameter struct: name, type, default, optional `min`, `max`, `choices`, `group`, `at_most`
/// and `divides` (another parameter of the same set), and docs. An `Option` is decided by the experiment
/// unless given.
///
/// ```ignore
/// params! {
///     /// Knobs of the analysis.
///     pub struct Params {
///         /// Number of components to keep.
///         components: u64 = 3, min = 1.0, max = 64.0;
///     }
/// }
/// ```
macro_rules! params {
    (
        $(#[doc = $struct_doc:literal])+
        pub struct $struct:ident {
            $(
                $(#[doc = $doc:literal])+
                $name:ident : $ty:ty = $default:expr
                    $(, min = $min:expr)? $(, max = $max:expr)? $(, choices = $choices:expr)?
                    $(, group = $group:expr)? $(, at_most = $at_most:ident)?
                    $(, divides = $divides:ident)? ;
            )+
        }
    ) => {
        $(#[doc = $struct_doc])+
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $struct {
            $( $(#[doc = $doc])+ pub $name: $ty, )+
        }
        impl Default for $struct {
            fn default() -> Self {
                Self { $( $name: $default, )+ }
            }
        }
        impl $crate::params::ParamSet for $struct {
            const DEFS: &'static [$crate::params::ParamDef] = &[
                $( $crate::params::ParamDef {
                    name: stringify!($name),
                    kind: <$ty as $crate::params::ParamType>::KIND,
                    default: || {
                        let default: $ty = $default;
                        serde_json::json!(default)
                    },
                    min: $crate::params::params!(@optional $($min)?),
                    max: $crate::params::params!(@optional $($max)?),
                    choices: $crate::params::params!(@list $($choices)?),
                    group: $crate::params::params!(@optional $($group)?),
                    at_most: $crate::params::params!(@name $($at_most)?),
                    divides: $crate::params::params!(@name $($divides)?),
                    doc: concat!($($doc,)+).trim_ascii(),
                }, )+
            ];
        }
    };
    (@optional) => { None };
    (@optional $value:expr) => { Some($value) };
    (@name) => { None };
    (@name $name:ident) => { Some(stringify!($name)) };
    (@list) => { &[] };
    (@list $value:expr) => { &$value };
}
pub(crate) use params;

#[cfg(test)]
#[expect(
    unreachable_pub,
    reason = "the macro declares public structs, here inside a private module"
)]
mod tests {
    use serde_json::json;

    use super::*;

    params! {
        /// Test knobs.
        pub struct Knobs {
            /// How many.
            count: u64 = 3, min = 1.0, max = 9.0;
            /// Rates
            /// of things.
            rates: Vec<f64> = vec![0.5], min = 0.0;
            /// Which one.
            of: String = "a".to_owned(), choices = ["a", "b"];
            /// What to look at.
            metric: MetricName = MetricName::default();
        }
    }

    params! {
        /// One of two, and one that may be left open.
        pub struct Either {
            /// Rows.
            rows: Vec<Vec<i64>> = Vec::new(), min = 0.0, group = "input";
            /// Texts.
            text: Vec<String> = Vec::new(), group = "input";
            /// Whether.
            flag: Option<bool> = None;
        }
    }

    params! {
        /// Numbers that know each other.
        pub struct Related {
            /// Heads.
            n_heads: i64 = 4, min = 1.0, divides = d_model;
            /// Width.
            d_model: i64 = 64, min = 1.0;
            /// Shortest.
            shortest: f64 = 1.0, at_most = longest;
            /// Longest.
            longest: f64 = 2.5;
            /// Not known here.
            step: i64 = 7, at_most = steps;
        }
    }

    #[test]
    fn relations_hold_with_defaults_filled_in() {
        assert!(decode::<Related>(&json!({"n_heads": 8, "shortest": 2.5})).is_ok());
        for (bad, name, words) in [
            (json!({"n_heads": 5}), "n_heads", "5 does not divide d_model 64"),
            (json!({"d_model": 6}), "n_heads", "4 does not divide d_model 6"),
            (json!({"shortest": 3}), "shortest", "3 is more than longest 2.5"),
            (json!({"longest": 0.5}), "shortest", "1.0 is more than longest 0.5"),
        ] {
            check_refused::<Related>(&bad, name, words);
        }
    }

    params! {
        /// Several metrics.
        pub struct Several {
            /// What to look at.
            metrics: Vec<MetricName> = Vec::new();
        }
    }

    #[test]
    fn table_describes_the_struct() {
        let names: Vec<_> = Knobs::DEFS.iter().map(|def| (def.name, def.kind)).collect();
        assert_eq!(
            names,
            [
                ("count", ParamKind::Int),
                ("rates", ParamKind::FloatList),
                ("of", ParamKind::Text),
                ("metric", ParamKind::Metric)
            ]
        );
        assert_eq!(Knobs::DEFS[1].doc, "Rates of things.");
        assert_eq!((Knobs::DEFS[0].min, Knobs::DEFS[0].max), (Some(1.0), Some(9.0)));
        assert_eq!(defaults(Knobs::DEFS), json!({"count":3,"rates":[0.5],"of":"a","metric":""}));
        assert!(Knobs::DEFS[3].is_required() && !Knobs::DEFS[2].is_required());
    }

    #[test]
    fn canonical_form_fills_defaults_and_normalises_numbers() {
        let a = canonical::<Knobs>(&json!({"metric": "x.y", "rates": [1]})).unwrap();
        let b = canonical::<Knobs>(&json!({"rates": [1.0], "count": 3, "metric": "x.y"})).unwrap();
        assert_eq!(a.to_string(), b.to_string());
        assert_eq!(a.to_string(), r#"{"count":3,"rates":[1.0],"of":"a","metric":"x.y"}"#);
        assert!(canonical::<NoParams>(&Value::Null).is_ok());
    }

    #[test]
    fn every_bad_value_names_its_parameter() {
        for (bad, name, words) in [
            (json!({"metric": "x.y", "cuont": 1}), "cuont", "count, rates, of, metric"),
            (json!({"metric": "x.y", "count": 1.5}), "count", "expected int, found 1.5"),
            (json!({"metric": "x.y", "count": 0}), "count", "minimum 1"),
            (json!({"metric": "x.y", "count": 10}), "count", "maximum 9"),
            (json!({"metric": "x.y", "rates": [0.1, -1.0]}), "rates", "below"),
            (json!({"metric": "x.y", "rates": [0.1, "x"]}), "rates", "float-list"),
            (json!({"metric": "x.y", "of": "c"}), "of", "a, b"),
            (json!({"metric": "nodot"}), "metric", "experiment.metric"),
            (json!({}), "metric", "found nothing"),
            (json!([1]), "(all)", "object"),
        ] {
            check_refused::<Knobs>(&bad, name, words);
        }
        for (bad, name, words) in [
            (json!({}), "metrics", "found nothing"),
            (json!({"metrics": "x.y"}), "metrics", "expected metric-list"),
            (json!({"metrics": ["x.y", "z"]}), "metrics", "experiment.metric"),
        ] {
            check_refused::<Several>(&bad, name, words);
        }
        for (bad, name, words) in [
            (json!({}), "rows or text", "exactly one of them, found none"),
            (json!({"rows": [], "text": []}), "rows or text", "found none"),
            (json!({"rows": [[1]], "text": ["a"]}), "rows or text", "found rows and text"),
            (json!({"rows": [1, 2]}), "rows", "expected int-lists"),
            (json!({"rows": [[1, 2.5]]}), "rows", "expected int-lists"),
            (json!({"rows": [[1], [2, -1]]}), "rows", "below the minimum 0"),
            (json!({"rows": null}), "rows", "found null"),
            (json!({"rows": [[1]], "flag": 1}), "flag", "expected bool"),
        ] {
            check_refused::<Either>(&bad, name, words);
        }
    }

    #[track_caller]
    fn check_refused<P: ParamSet + std::fmt::Debug>(bad: &Value, name: &str, words: &str) {
        let error = decode::<P>(bad).unwrap_err();
        let Error::Params { name: named, problem } = &error else { panic!("{error}") };
        assert_eq!(named, name, "{bad}");
        assert!(problem.contains(words), "{problem} lacks {words}");
    }

    #[test]
    fn options_stay_open_and_lists_nest() {
        let canonical = canonical::<Either>(&json!({"rows": [[1, 2], [3]]})).unwrap();
        assert_eq!(canonical, json!({"rows": [[1, 2], [3]], "text": [], "flag": null}));
        let decoded: Either = decode(&canonical).unwrap();
        assert_eq!((decoded.rows, decoded.flag), (vec![vec![1, 2], vec![3]], None));
        let decoded: Either = decode(&json!({"text": ["a"], "flag": false})).unwrap();
        assert_eq!((decoded.text.len(), decoded.flag), (1, Some(false)));
    }
}
