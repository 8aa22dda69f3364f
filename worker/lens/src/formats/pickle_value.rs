//! What a pickle of tensors can hold, as nodes of an arena.
//!
//! Values refer to each other by index, so that a value may be shared or contain itself (both are
//! possible in a pickle), and so that dropping a deeply nested one needs no recursion.

use tch::Kind;

use crate::error::Problem;

/// The names that a pickle may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.Size`
    Size,
    /// `torch.FloatStorage` and its like
    Storage(Kind),
}

impl Global {
    /// Looks a name up; every name that is not listed here is refused.
    pub(super) fn find(module: &str, name: &str) -> Result<Self, Problem> {
        let storage = |kind| Ok(Global::Storage(kind));
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
            ("torch", "Size") => Ok(Global::Size),
            ("torch", "FloatStorage") => storage(Kind::Float),
            ("torch", "HalfStorage") => storage(Kind::Half),
            ("torch", "BFloat16Storage") => storage(Kind::BFloat16),
            ("torch", "DoubleStorage") => storage(Kind::Double),
            ("torch", "ByteStorage") => storage(Kind::Uint8),
            ("torch", "BoolStorage") => storage(Kind::Bool),
            ("torch", "IntStorage") => storage(Kind::Int),
            ("torch", "LongStorage") => storage(Kind::Int64),
            ("torch", "ShortStorage") => storage(Kind::Int16),
            ("torch", "CharStorage") => storage(Kind::Int8),
            _ => Err(Problem::RefusedGlobal(format!("{module}.{name}"))),
        }
    }
}

/// A storage as a pickle names it. Where it once lived (`cpu`, `cuda:0`) does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub(super) kind: Kind,
    /// Name among the file's storages.
    pub(super) key: String,
    /// Number of elements.
    pub(super) numel: i64,
    /// First element within the storage of that name; not 0 in some files of the first PyTorch versions.
    pub(super) base: i64,
}

/// A tensor as a pickle describes it; nothing is checked against the storage yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorRef {
    /// Index into [`Pickle::storages`].
    pub(super) storage: usize,
    /// First element within the storage.
    pub(super) start: i64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// Index of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A value. Texts are borrowed from the pickle's bytes.
#[derive(Debug)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 8 bytes: two's complement, little endian.
    Long(&'a [u8]),
    Text(&'a str),
    /// A number or bytes that nobody asks for.
    Opaque,
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// Keys and values in the order in which they were set; of equal keys the last counts.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// Index into [`Pickle::storages`].
    Storage(usize),
    /// Index into [`Pickle::tensors`].
    Tensor(usize),
}

impl Node<'_> {
    /// The word for the kind of value, for messages.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::Long(_) => "an int",
            Node::Text(_) => "a string",
            Node::Opaque => "a float or bytes",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dict",
            Node::Global(_) => "a class or function",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
        }
    }
}

/// The value of a whole pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    /// Storages in the order in which the pickle names them.
    pub(super) storages: Vec<StorageRef>,
    /// Tensors in the order in which they are built.
    pub(super) tensors: Vec<TensorRef>,
}

impl<'a> Pickle<'a> {
    pub(super) fn new() -> Self {
        // One node for each of the constants, whose indices are fixed below.
        let nodes = vec![Node::None, Node::Bool(false), Node::Bool(true), Node::Opaque];
        Pickle { nodes, storages: Vec::new(), tensors: Vec::new() }
    }

    pub(super) const NONE: Id = Id(0);
    pub(super) const OPAQUE: Id = Id(3);

    pub(super) fn bool(value: bool) -> Id {
        Id(1 + u32::from(value))
    }

    pub(super) fn add(&mut self, node: Node<'a>) -> Id {
        let id = u32::try_from(self.nodes.len()).expect("fewer nodes than operations are allowed");
        self.nodes.push(node);
        Id(id)
    }

    /// Number of values, the four constants included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn get(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Node<'a> {
        &mut self.nodes[id.0 as usize]
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The members of a tuple or list.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::Tuple(members) | Node::List(members) => Some(members),
            _ => None,
        }
    }

    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of a key of a dict.
    pub(super) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let entries = self.dict(dict)?;
        entries.iter().rev().find(|(name, _)| self.text(*name) == Some(key)).map(|entry| entry.1)
    }

    /// A tuple of at most so many integers.
    pub(super) fn ints(&self, id: Id, n_max: usize) -> Option<Vec<i64>> {
        let members = self.sequence(id).filter(|members| members.len() <= n_max)?;
        members.iter().map(|&member| self.int(member)).collect()
    }
}
