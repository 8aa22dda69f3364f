//! A text's tokens, cut into a part to train on and a part to measure on, and random windows of it.
//!
//! Main type: [`Text`], whatever its tokens are (bytes, `bpe`, or those of a model's tokenizer). [`SHAKESPEARE`] ships with
//! the crate; `text/make.py` wrote it. Invariant: the two parts do not overlap, and no window leaves its part.

use std::sync::LazyLock;

use sweep_lens::{Device, Kind, Tensor};

use crate::{
    error::{Error, Result},
    random::counter::Counter,
    sequence::first_rows,
    subject::TextCodec,
};

/// The first 458 624 bytes of a collection of Shakespeare's plays (public domain).
pub static SHAKESPEARE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    zstd::decode_all(&include_bytes!("text/shakespeare.txt.zst")[..])
        .expect("the file was compressed by the script beside it")
});

/// Tokens that are bytes.
#[derive(Debug)]
pub(crate) struct Bytes;

impl TextCodec for Bytes {
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        if prepend_bos {
            let problem = "`prepend_bos` needs a BOS token, a model of bytes has none";
            return Err(Error::Unsupported(problem.to_owned()));
        }
        Ok(text.bytes().map(i64::from).collect())
    }

    fn decode_token(&self, id: i64) -> String {
        match u8::try_from(id) {
            Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
            _ => format!("<{id:#04x}>"),
        }
    }

    fn bos(&self) -> Option<i64> {
        None
    }

    fn hash(&self) -> &'static str {
        "bytes"
    }
}

/// A text on a device.
#[derive(Debug)]
pub struct Text {
    /// i64 `[n_train]`
    train: Tensor,
    /// i64 `[n_test]`
    test: Tensor,
    n_ctx: i64,
    /// What every window begins with, in place of the token that stands there.
    bos: Option<i64>,
}

/// The part of a text to train on, and the last `frac_test` of it.
pub fn split<T>(text: &[T], frac_test: f64) -> (&[T], &[T]) {
    let n_test = (text.len() as f64 * frac_test).round() as usize;
    text.split_at(text.len() - n_test.min(text.len()))
}

impl Text {
    /// Windows of `n_ctx` tokens, the first one of each `bos` if there is one.
    ///
    /// # Errors
    /// [`Error::Params`] if a part is shorter than one window.
    pub fn new(
        train: &[i64],
        test: &[i64],
        n_ctx: i64,
        bos: Option<i64>,
        device: Device,
    ) -> Result<Self> {
        for (part, name) in [(train, "training"), (test, "test")] {
            if (part.len() as i64) < n_ctx {
                return Err(Error::params(
                    "text",
                    format!(
                        "{} tokens in the {name} part, expected at least n_ctx {n_ctx}",
                        part.len()
                    ),
                ));
            }
        }
        let tensor = |part| Tensor::from_slice(part).to_device(device);
        Ok(Self { train: tensor(train), test: tensor(test), n_ctx, bos })
    }

    /// Windows of the training part at random places, i64 `[(n_models,) n_rows, n_ctx]`.
    pub fn random_windows(&self, places: &Counter, rows: &Tensor) -> Tensor {
        let n_places = self.train.size()[0] - self.n_ctx + 1;
        self.windows(&self.train, &places.below(rows, 1, n_places))
    }

    /// `n` windows at equal distances of the training part, i64 `[n, n_ctx]`.
    pub fn train_windows(&self, n: u64) -> Tensor {
        self.windows(&self.train, &self.spread(&self.train, n))
    }

    /// `n` windows at equal distances of the test part, i64 `[n, n_ctx]`.
    pub fn test_windows(&self, n: u64) -> Tensor {
        self.windows(&self.test, &self.spread(&self.test, n))
    }

    /// First tokens of `n` windows from the beginning to the end of a part, i64 `[n, 1]`.
    fn spread(&self, part: &Tensor, n: u64) -> Tensor {
        let last = part.size()[0] - self.n_ctx;
        let index = first_rows(n, part.device()).unsqueeze(-1);
        (index * last).divide_scalar_mode((n.max(2) - 1) as i64, "floor")
    }

    /// `places`: i64 `[(n_models,) n_rows, 1]`.
    fn windows(&self, part: &Tensor, places: &Tensor) -> Tensor {
        let index = places + Tensor::arange(self.n_ctx, (Kind::Int64, part.device()));
        let windows = part.index_select(0, &index.reshape([-1])).view_as(&index);
        if let Some(bos) = self.bos {
            let _ = windows.select(-1, 0).fill_(bos);
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stay_in_their_part() {
        let tokens: Vec<i64> = (0..100).collect();
        let (train, test) = split(&tokens, 0.2);
        let text = Text::new(train, test, 5, None, Device::Cpu).unwrap();
        let ends = |windows: &Tensor| {
            let gaps = windows.diff(1, -1, None::<Tensor>, None::<Tensor>);
            assert!(gaps.eq(1).all().int64_value(&[]) == 1, "consecutive tokens");
            (windows.min().int64_value(&[]), windows.max().int64_value(&[]))
        };
        let places = Counter::new(&[1, 2], "test", Device::Cpu);
        let random = text.random_windows(&places, &first_rows(500, Device::Cpu));
        assert_eq!(random.size(), [2, 500, 5]);
        assert_eq!(ends(&random), (0, 79), "every place is met, none beyond");
        assert_eq!(ends(&text.train_windows(7)), (0, 79));
        assert_eq!(ends(&text.test_windows(7)), (80, 99));
        assert_eq!(ends(&text.test_windows(1)), (80, 84));
        assert!(Text::new(&tokens[..9], &tokens[9..10], 5, None, Device::Cpu).is_err());
        let led = Text::new(train, test, 5, Some(7), Device::Cpu).unwrap();
        let row = Vec::<i64>::try_from(led.test_windows(1).get(0)).unwrap();
        assert_eq!(row, [7, 81, 82, 83, 84]);
    }

    #[test]
    fn the_built_in_text_is_whole() {
        assert_eq!(SHAKESPEARE.len(), 458_624);
        assert!(SHAKESPEARE.starts_with(b"First Citizen:\nBefore we proceed"));
        assert!(SHAKESPEARE.iter().all(u8::is_ascii) && SHAKESPEARE.ends_with(b"\n"));
    }
}
