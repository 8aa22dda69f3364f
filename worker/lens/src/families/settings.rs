//! Typed access to a `config.json` in which nothing is silently ignored.
//!
//! [`Settings`] reads values by key; a value of the wrong type, or one that the transformer does not
//! implement, is an error that names the key and the value. `null` counts as absent, as it does for the
//! libraries that write these files.

use serde_json::{Map, Value};

use crate::{
    config::{ActFn, MAX_LAYERS, MAX_SIZE},
    error::{Error, Result},
};

/// The settings of one JSON object.
pub(super) struct Settings<'a> {
    values: &'a Map<String, Value>,
    /// Keys that lead to the object, each followed by a dot.
    place: String,
}

/// A value that changes nothing, beside being absent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    /// No value at all does.
    Absent,
    False,
    Number(f64),
}

impl<'a> Settings<'a> {
    /// Wraps a whole file.
    pub(super) fn new(config: &'a Value) -> Result<Self> {
        let values = config.as_object().ok_or_else(|| {
            Error::Config(format!("config.json is {}, expected an object", brief(config)))
        })?;
        Ok(Settings { values, place: String::new() })
    }

    /// Returns the value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there, be it with `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Returns the settings under a key, if there are any.
    pub(super) fn section(&self, key: &str) -> Result<Option<Settings<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let values = value.as_object().ok_or_else(|| self.malformed(key, "an object"))?;
        Ok(Some(Settings { values, place: format!("{}{key}.", self.place) }))
    }

    /// Returns the size of an axis.
    pub(super) fn size(&self, key: &str) -> Result<i64> {
        self.size_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn size_or_none(&self, key: &str) -> Result<Option<i64>> {
        self.integer(key, 1, MAX_SIZE)
    }

    /// Returns a number of layers.
    pub(super) fn layers(&self, key: &str) -> Result<i64> {
        self.integer(key, 0, MAX_LAYERS)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn number(&self, key: &str) -> Result<f64> {
        self.number_or_none(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_or_none(key)?.unwrap_or(default))
    }

    pub(super) fn number_or_none(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.malformed(key, "a number"))
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.malformed(key, "true or false"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.malformed(key, "a text"))
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.malformed(key, "a list"))?;
        Ok(Some(list.as_slice()))
    }

    /// Returns the non-linearity under the name that Hugging Face or TransformerLens gives it.
    pub(super) fn act_fn(&self, key: &str, default: ActFn) -> Result<ActFn> {
        Ok(match self.text(key)? {
            None => default,
            Some("relu") => ActFn::Relu,
            Some("gelu" | "gelu_python") => ActFn::Gelu,
            // One function under four names, which differ in how they round.
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh") => {
                ActFn::GeluNew
            }
            Some("silu" | "swish") => ActFn::Silu,
            Some("solu_ln") => ActFn::SoluLn,
            Some(_) => return Err(self.unsupported(key)),
        })
    }

    /// Refuses keys whose value is another than the neutral one: they change the computation in a way
    /// that the transformer does not implement.
    pub(super) fn refuse(&self, keys: &[(&str, Neutral)]) -> Result<()> {
        for &(key, neutral) in keys {
            let Some(value) = self.get(key) else { continue };
            let is_neutral = match neutral {
                Neutral::Absent => false,
                Neutral::False => value == false,
                Neutral::Number(number) => value.as_f64() == Some(number),
            };
            if !is_neutral {
                return Err(self.unsupported(key));
            }
        }
        Ok(())
    }

    /// The error about a value that the transformer does not implement.
    pub(super) fn unsupported(&self, key: &str) -> Error {
        let value = self.values.get(key).map_or_else(|| "absent".to_owned(), brief);
        Error::Unsupported(format!("`{}{key}` is {value} in config.json", self.place))
    }

    /// The error about a value of another form.
    pub(super) fn malformed(&self, key: &str, expected: &str) -> Error {
        let value = self.values.get(key).map_or_else(|| "absent".to_owned(), brief);
        Error::Config(format!("`{}{key}` is {value}, expected {expected}", self.place))
    }

    fn missing(&self, key: &str) -> Error {
        Error::Config(format!("`{}{key}` is missing in config.json", self.place))
    }

    fn integer(&self, key: &str, min: i64, max: i64) -> Result<Option<i64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_i64().filter(|number| (min..=max).contains(number));
        let expected = || self.malformed(key, &format!("an integer from {min} to {max}"));
        number.map(Some).ok_or_else(expected)
    }
}

/// A value as messages show it: long ones are cut.
fn brief(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= CHARS_MAX {
        return text;
    }
    text.chars().take(CHARS_MAX).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_typed_and_errors_name_key_and_value() {
        let config = json!({
            "n_embd": 48, "n_layer": -1, "eps": "1e-5", "tied": 1, "act": "mish", "rope": {"type": "yarn"},
            "big": 99_999_999_999_i64, "none": null, "half": 1.5, "text": "x".repeat(500),
        });
        let settings = Settings::new(&config).unwrap();
        assert_eq!(settings.size("n_embd").unwrap(), 48);
        assert_eq!(settings.size_or_none("none").unwrap(), None);
        assert!(settings.has("none") && settings.get("none").is_none());
        let message = |error: Error| error.to_string();
        assert_eq!(
            message(settings.size("n_head").unwrap_err()),
            "model configuration: `n_head` is missing in config.json"
        );
        assert!(message(settings.layers("n_layer").unwrap_err()).contains("`n_layer` is -1"));
        assert!(message(settings.size("big").unwrap_err()).contains("99999999999"));
        assert!(message(settings.size("half").unwrap_err()).contains("`half` is 1.5"));
        assert!(message(settings.number_or("eps", 1.0).unwrap_err()).contains("\"1e-5\""));
        assert!(message(settings.flag_or("tied", true).unwrap_err()).contains("`tied` is 1"));
        let error = message(settings.act_fn("act", ActFn::Relu).unwrap_err());
        assert_eq!(error, "unsupported: `act` is \"mish\" in config.json");
        let rope = settings.section("rope").unwrap().unwrap();
        assert!(message(rope.unsupported("type")).contains("`rope.type` is \"yarn\""));
        assert!(settings.section("n_embd").is_err());
        assert!(message(settings.size("text").unwrap_err()).len() < 200);
        assert!(Settings::new(&json!([])).is_err());
    }

    #[test]
    fn neutral_values_pass_and_others_are_refused() {
        let config = json!({"a": false, "b": true, "c": 1, "d": null, "e": 2.0});
        let settings = Settings::new(&config).unwrap();
        let neutral = [
            ("a", Neutral::False),
            ("c", Neutral::Number(1.0)),
            ("d", Neutral::Absent),
            ("z", Neutral::Absent),
        ];
        settings.refuse(&neutral).unwrap();
        assert!(settings.refuse(&[("b", Neutral::Number(1.0))]).is_err());
        for key in ["a", "b", "c", "e"] {
            let error = settings.refuse(&[(key, Neutral::Absent)]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        assert!(settings.refuse(&[("e", Neutral::Number(1.0))]).is_err());
        assert!(settings.refuse(&[("b", Neutral::False)]).is_err());
    }
}
