//! Tensors of a checkpoint while a converter reads them.
//!
//! [`StateDict`] hands out each tensor as an own copy in the wanted element type on the wanted device,
//! checks its shape, and remembers what was never asked for. The layout helpers return views of that
//! one copy, in the layout in which the forward pass multiplies without copying again.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use crate::{
    error::{Error, Result},
    formats::TensorSource,
};

/// Tensors of a checkpoint, each to be taken once.
pub struct StateDict<'a> {
    source: &'a dyn TensorSource,
    unread: BTreeSet<&'a str>,
    /// Name and sum of each tensor taken: NaN and infinities survive summation, so one look at the end
    /// tells whether all values are finite.
    sums: Vec<(String, Tensor)>,
    kind: Kind,
    device: Device,
}

impl<'a> StateDict<'a> {
    /// Begins to read `source`; tensors are handed out in this element type, on this device.
    pub fn new(source: &'a dyn TensorSource, kind: Kind, device: Device) -> Self {
        let unread = source.names().into_iter().collect();
        StateDict { source, unread, sums: Vec::new(), kind, device }
    }

    /// The checkpoint itself, for questions that read nothing.
    pub fn source(&self) -> &'a dyn TensorSource {
        self.source
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.source.info(name).is_some()
    }

    /// Takes a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Shape`] with the expected and the actual shape; an element type
    /// that is not floating point; [`Error::OutOfMemory`].
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let stored = self.stored(name, shape)?;
        self.own(name, &stored)
    }

    /// Takes a tensor if it is there.
    ///
    /// # Errors
    /// As [`StateDict::take`], but for a missing tensor.
    pub fn take_optional(&mut self, name: &str, shape: &[i64]) -> Result<Option<Tensor>> {
        if self.contains(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// Takes a tensor whose elements stand in another order in the result: `arrange` returns a view of
    /// the stored tensor, and the copy is contiguous in that view's order.
    ///
    /// # Errors
    /// As [`StateDict::take`].
    pub fn take_arranged(
        &mut self,
        name: &str,
        shape: &[i64],
        arrange: impl FnOnce(&Tensor) -> Tensor,
    ) -> Result<Tensor> {
        let stored = self.stored(name, shape)?;
        self.own(name, &arrange(&stored))
    }

    /// Takes a PyTorch `Linear` weight `[d_out, d_in]` as `[d_in, d_out]`.
    ///
    /// # Errors
    /// As [`StateDict::take`].
    pub fn take_linear(&mut self, name: &str, d_in: i64, d_out: i64) -> Result<Tensor> {
        Ok(self.take(name, &[d_out, d_in])?.transpose(0, 1))
    }

    /// Takes a `Linear` weight whose rows are heads, `[head * d_head, d_model]`, as
    /// `[head, d_model, d_head]`.
    ///
    /// # Errors
    /// As [`StateDict::take`].
    pub fn take_heads_in(
        &mut self,
        name: &str,
        [heads, d_head, d_model]: [i64; 3],
    ) -> Result<Tensor> {
        let rows = self.take(name, &[heads * d_head, d_model])?;
        Ok(rows.view([heads, d_head, d_model]).transpose(1, 2))
    }

    /// Takes a `Linear` weight whose columns are heads, `[d_model, head * d_head]`, as
    /// `[head, d_head, d_model]`.
    ///
    /// # Errors
    /// As [`StateDict::take`].
    pub fn take_heads_out(
        &mut self,
        name: &str,
        [heads, d_head, d_model]: [i64; 3],
    ) -> Result<Tensor> {
        let rows = self.take(name, &[d_model, heads * d_head])?;
        Ok(rows.view([d_model, heads, d_head]).permute([1, 2, 0]))
    }

    /// Marks `name` as read if it is the very same memory as `other`, as tied tensors of a pickle are.
    pub(crate) fn read_alias(&mut self, name: &str, other: &str) -> Result<bool> {
        if !(self.contains(name) && self.contains(other)) {
            return Ok(false);
        }
        let same = is_same_memory(&self.source.tensor(name)?, &self.source.tensor(other)?);
        if same {
            self.unread.remove(name);
        }
        Ok(same)
    }

    /// Ends the reading; gives [`Error::NonFinite`] when a tensor holds NaN or an infinity.
    ///
    /// # Errors
    /// [`Error::UnexpectedTensor`] when a tensor was never taken, unless `ignores` says that it holds no
    /// information.
    pub fn finish(self, ignores: impl Fn(&str) -> bool) -> Result<Option<Error>> {
        if let Some(name) = self.unread.into_iter().find(|name| !ignores(name)) {
            return Err(Error::UnexpectedTensor { name: name.to_owned() });
        }
        let sums: Vec<&Tensor> = self.sums.iter().map(|(_, sum)| sum).collect();
        if sums.is_empty() || Tensor::f_stack(&sums, 0)?.isfinite().all().int64_value(&[]) == 1 {
            return Ok(None);
        }
        // A sum may also overflow, so the stored values decide.
        for (name, sum) in &self.sums {
            if sum.isfinite().int64_value(&[]) == 1 {
                continue;
            }
            let finite = self.source.tensor(name)?.to_kind(self.kind).isfinite();
            let count = finite.logical_not().sum(Kind::Int64).int64_value(&[]);
            if count > 0 {
                return Ok(Some(Error::NonFinite { name: name.clone(), count }));
            }
        }
        Ok(None)
    }

    /// Returns a tensor as it is stored, and marks it as read.
    fn stored(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let info =
            self.source.info(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
        if info.shape != shape {
            return Err(Error::Shape {
                name: name.to_owned(),
                expected: shape.to_vec(),
                actual: info.shape.clone(),
            });
        }
        if !matches!(info.kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) {
            return Err(Error::element_type(name, info.kind));
        }
        self.unread.remove(name);
        self.source.tensor(name)
    }

    /// Copies a stored tensor once, into the wanted element type on the wanted device.
    fn own(&mut self, name: &str, stored: &Tensor) -> Result<Tensor> {
        let mut own = Tensor::f_empty(stored.size(), (self.kind, self.device))?;
        own.f_copy_(stored)?;
        let precision = if self.kind == Kind::Double { Kind::Double } else { Kind::Float };
        self.sums.push((name.to_owned(), own.f_sum(precision)?));
        Ok(own)
    }
}

/// Whether two tensors are the same elements in the same memory.
pub(crate) fn is_same_memory(a: &Tensor, b: &Tensor) -> bool {
    a.data_ptr() == b.data_ptr()
        && a.kind() == b.kind()
        && a.size() == b.size()
        && a.stride() == b.stride()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::TensorSet;

    fn source() -> TensorSet {
        let range = |shape: &[i64]| {
            let n: i64 = shape.iter().product();
            Tensor::arange(n, (Kind::Half, Device::Cpu)).view(shape)
        };
        let mut source = TensorSet::default();
        source.insert("w", range(&[6, 4]));
        source.insert("mask", Tensor::ones([2, 2], (Kind::Bool, Device::Cpu)));
        source
    }

    #[test]
    fn tensors_are_checked_converted_and_accounted_for() {
        let source = source();
        let mut state = StateDict::new(&source, Kind::Float, Device::Cpu);
        let error = state.take("v", &[1]).unwrap_err().to_string();
        assert_eq!(error, "tensor `v` is missing");
        let error = state.take("w", &[4, 6]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w` has shape [6, 4], expected [4, 6]");
        let error = state.take("mask", &[2, 2]).unwrap_err().to_string();
        assert_eq!(error, "unsupported: tensor `mask` has element type Bool");
        assert!(state.take_optional("v", &[1]).unwrap().is_none());
        let error = StateDict::new(&source, Kind::Float, Device::Cpu).finish(|name| name == "mask");
        assert_eq!(error.unwrap_err().to_string(), "tensor `w` is not a parameter of this model");
        let w = state.take("w", &[6, 4]).unwrap();
        assert_eq!((w.kind(), w.double_value(&[2, 1])), (Kind::Float, 9.0));
        assert_ne!(w.data_ptr(), source.tensor("w").unwrap().data_ptr());
        assert!(state.finish(|name| name == "mask").unwrap().is_none());
    }

    #[test]
    fn layouts_are_those_of_the_names() {
        let source = source();
        let mut state = StateDict::new(&source, Kind::Float, Device::Cpu);
        // Row 3 of the file is component 1 of head 1.
        let heads = state.take_heads_in("w", [3, 2, 4]).unwrap();
        assert_eq!((heads.size(), heads.double_value(&[1, 2, 1])), (vec![3, 4, 2], 14.0));
        let heads = state.take_heads_out("w", [2, 2, 6]).unwrap();
        assert_eq!((heads.size(), heads.double_value(&[1, 0, 5])), (vec![2, 2, 6], 22.0));
        let linear = state.take_linear("w", 4, 6).unwrap();
        assert_eq!((linear.size(), linear.double_value(&[1, 2])), (vec![4, 6], 9.0));
        let arranged = state.take_arranged("w", &[6, 4], |w| w.flip([0])).unwrap();
        assert_eq!(arranged.double_value(&[0, 0]), 20.0);
    }

    #[test]
    fn non_finite_values_are_named_and_large_ones_are_not() {
        let mut source = TensorSet::default();
        source.insert("large", Tensor::full([8], 3e38, (Kind::Float, Device::Cpu)));
        let mut state = StateDict::new(&source, Kind::Float, Device::Cpu);
        let _large = state.take("large", &[8]).unwrap();
        assert!(state.finish(|_| false).unwrap().is_none());
        source.insert("w", Tensor::from_slice(&[1.0, f32::NAN, f32::INFINITY]));
        let mut state = StateDict::new(&source, Kind::Float, Device::Cpu);
        let _large = state.take("large", &[8]).unwrap();
        let _w = state.take("w", &[3]).unwrap();
        let error = state.finish(|_| false).unwrap().unwrap();
        assert!(matches!(&error, Error::NonFinite { name, count: 2 } if name == "w"), "{error}");
    }
}
