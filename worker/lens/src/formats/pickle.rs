//! Reads Python pickles that hold tensors, executing nothing.
//!
//! [`load`] runs the opcodes of protocols 2 to 5 on a stack of passive values ([`Pickle`]). The only
//! "calls" are the few that PyTorch writes for tensors, and they are carried out here as data: a name
//! outside [`Global::find`] is an error as soon as it is mentioned, whether it would be called or not.
//! Opcodes that make objects of arbitrary classes do not exist here.
//!
//! Work and memory are in proportion to the bytes read: every operation adds at most one value of
//! bounded size, one place on the stack and one memo; lengths are checked against the bytes that are
//! there; whatever is copied is counted ([`OPERATIONS_MAX`]); nothing recurses.

use std::collections::HashMap;

use super::{
    layout::AXES_MAX,
    pickle_value::{Global, Id, Node, Pickle, StorageRef, TensorRef},
};
use crate::error::Problem;

/// Longest module or class name.
const NAME_BYTES_MAX: usize = 256;
/// Most operations of one pickle; a checkpoint of 10 000 tensors has 400 000.
const OPERATIONS_MAX: usize = 1 << 22;
/// Longest line of digits.
const LINE_BYTES_MAX: usize = 4096;

/// Reads one pickle from the start of `bytes` and returns its values, the outermost one, and how many
/// bytes it took.
///
/// # Errors
/// [`Problem::Truncated`] when the pickle does not end within `bytes`, [`Problem::RefusedGlobal`] for a
/// name that tensors do not need, [`Problem::NotTorch`] for anything else.
pub(super) fn load(bytes: &[u8]) -> Result<(Pickle<'_>, Id, usize), Problem> {
    let mut machine = Machine {
        bytes,
        position: 0,
        pickle: Pickle::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        operations: 0,
    };
    if machine.u8()? != op::PROTO {
        return Err(bad("does not begin with a protocol number"));
    }
    let protocol = machine.u8()?;
    if !(2..=5).contains(&protocol) {
        return Err(bad(format!("pickle protocol {protocol}, expected 2 to 5")));
    }
    loop {
        machine.charge(1)?;
        let opcode = machine.u8()?;
        if opcode == op::STOP {
            let root = machine.pop()?;
            return Ok((machine.pickle, root, machine.position));
        }
        machine.step(opcode)?;
    }
}

/// The opcodes, by the names of Python's `pickletools`.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const POP: u8 = b'0';
    pub(super) const POP_MARK: u8 = b'1';
    pub(super) const DUP: u8 = b'2';
    pub(super) const FLOAT: u8 = b'F';
    pub(super) const INT: u8 = b'I';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const LONG: u8 = b'L';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINSTRING: u8 = b'T';
    pub(super) const SHORT_BINSTRING: u8 = b'U';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const DICT: u8 = b'd';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const GET: u8 = b'g';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const LIST: u8 = b'l';
    pub(super) const PUT: u8 = b'p';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const LONG4: u8 = 0x8b;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const BINBYTES8: u8 = 0x8e;
    pub(super) const EMPTY_SET: u8 = 0x8f;
    pub(super) const ADDITEMS: u8 = 0x90;
    pub(super) const FROZENSET: u8 = 0x91;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
    pub(super) const BYTEARRAY8: u8 = 0x96;
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    pickle: Pickle<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    operations: usize,
}

fn bad(text: impl Into<String>) -> Problem {
    Problem::NotTorch(text.into())
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<(), Problem> {
        match opcode {
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => self.pop_or_unmark()?,
            op::POP_MARK => drop(self.pop_to_mark()?),
            op::DUP => self.stack.push(self.top()?),
            op::NONE => self.stack.push(Pickle::NONE),
            op::NEWTRUE | op::NEWFALSE => self.stack.push(Pickle::bool(opcode == op::NEWTRUE)),
            op::INT | op::LONG | op::BININT..=op::BININT1 | op::BININT2 => self.integer(opcode)?,
            op::LONG1 | op::LONG4 => self.long(opcode)?,
            op::FLOAT => {
                self.line(LINE_BYTES_MAX)?;
                self.stack.push(Pickle::OPAQUE);
            }
            op::BINFLOAT => {
                self.take(8)?;
                self.stack.push(Pickle::OPAQUE);
            }
            op::SHORT_BINSTRING
            | op::BINSTRING
            | op::SHORT_BINUNICODE
            | op::BINUNICODE
            | op::BINUNICODE8 => self.text(opcode)?,
            op::SHORT_BINBYTES | op::BINBYTES | op::BINBYTES8 | op::BYTEARRAY8 => {
                self.counted(opcode)?;
                self.stack.push(Pickle::OPAQUE);
            }
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::EMPTY_LIST | op::EMPTY_SET => self.push(Node::List(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::TUPLE1..=op::TUPLE3 => {
                let members = self.pop_many(usize::from(opcode - op::TUPLE1) + 1)?;
                self.push(Node::Tuple(members));
            }
            op::TUPLE => {
                let members = self.pop_to_mark()?;
                self.push(Node::Tuple(members));
            }
            op::LIST | op::FROZENSET => {
                let members = self.pop_to_mark()?;
                self.push(Node::List(members));
            }
            op::DICT => {
                let entries = pairs(&self.pop_to_mark()?)?;
                self.push(Node::Dict(entries));
            }
            op::APPEND => {
                let members = self.pop_many(1)?;
                self.extend_list(members)?;
            }
            op::APPENDS | op::ADDITEMS => {
                let members = self.pop_to_mark()?;
                self.extend_list(members)?;
            }
            op::SETITEM => {
                let entries = self.pop_many(2)?;
                self.extend_dict(&entries)?;
            }
            op::SETITEMS => {
                let entries = self.pop_to_mark()?;
                self.extend_dict(&entries)?;
            }
            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.put(opcode)?,
            op::GET | op::BINGET | op::LONG_BINGET => self.get(opcode)?,
            op::GLOBAL | op::STACK_GLOBAL => self.global(opcode)?,
            op::REDUCE => self.reduce()?,
            op::BUILD => self.build()?,
            op::BINPERSID => self.persistent()?,
            // Frames are a hint for readers of streams.
            op::FRAME => drop(self.take(8)?),
            other => {
                let text = format!("pickle opcode 0x{other:02x}, which tensors do not need");
                return Err(bad(text));
            }
        }
        Ok(())
    }

    fn charge(&mut self, operations: usize) -> Result<(), Problem> {
        self.operations += operations;
        if self.operations <= OPERATIONS_MAX {
            return Ok(());
        }
        Err(bad(format!("a pickle of more than {OPERATIONS_MAX} operations")))
    }

    // ---- bytes ----

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Problem> {
        let rest = &self.bytes[self.position..];
        let Some(taken) = rest.get(..n_bytes) else {
            let expected = (self.position as u64).saturating_add(n_bytes as u64);
            return Err(Problem::Truncated { expected, actual: self.bytes.len() as u64 });
        };
        self.position += n_bytes;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of `n_bytes` bytes, at most 8.
    fn number(&mut self, n_bytes: usize) -> Result<u64, Problem> {
        let mut wide = [0; 8];
        wide[..n_bytes].copy_from_slice(self.take(n_bytes)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Text up to a line break.
    fn line(&mut self, n_bytes_max: usize) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.position..];
        let searched = &rest[..rest.len().min(n_bytes_max + 1)];
        let Some(length) = searched.iter().position(|&byte| byte == b'\n') else {
            if searched.len() > n_bytes_max {
                return Err(bad(format!("a line of more than {n_bytes_max} bytes")));
            }
            let actual = self.bytes.len() as u64;
            return Err(Problem::Truncated { expected: actual + 1, actual });
        };
        self.position += length + 1;
        let line = rest[..length].strip_suffix(b"\r").unwrap_or(&rest[..length]);
        std::str::from_utf8(line).map_err(|_| bad("a name that is no UTF-8"))
    }

    /// The bytes of an opcode that carries their number.
    fn counted(&mut self, opcode: u8) -> Result<&'a [u8], Problem> {
        let width = match opcode {
            op::SHORT_BINSTRING | op::SHORT_BINUNICODE | op::SHORT_BINBYTES | op::LONG1 => 1,
            op::BINUNICODE8 | op::BINBYTES8 | op::BYTEARRAY8 => 8,
            _ => 4,
        };
        let n_bytes = self.number(width)?;
        self.take(usize::try_from(n_bytes).unwrap_or(usize::MAX))
    }

    // ---- stack ----

    /// Height below which the current operation may not reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn push(&mut self, node: Node<'a>) {
        let id = self.pickle.add(node);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>, Problem> {
        match self.stack.len().checked_sub(n).filter(|&height| height >= self.floor()) {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(bad("an operation on an empty stack")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let height = self.marks.pop().ok_or_else(|| bad("no mark on the stack"))?;
        Ok(self.stack.split_off(height))
    }

    fn pop_or_unmark(&mut self) -> Result<(), Problem> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn top(&self) -> Result<Id, Problem> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| bad("an operation on an empty stack"))
    }

    // ---- values ----

    fn integer(&mut self, opcode: u8) -> Result<(), Problem> {
        let value = match opcode {
            op::BININT => i64::from(self.number(4)? as u32 as i32),
            op::BININT1 => self.number(1)? as i64,
            op::BININT2 => self.number(2)? as i64,
            _ => {
                let line = self.line(LINE_BYTES_MAX)?;
                match (opcode, line) {
                    (op::INT, "00" | "01") => {
                        self.stack.push(Pickle::bool(line == "01"));
                        return Ok(());
                    }
                    _ => line
                        .strip_suffix('L')
                        .unwrap_or(line)
                        .parse()
                        .map_err(|_| bad(format!("the integer `{}`", line.escape_debug())))?,
                }
            }
        };
        self.push(Node::Int(value));
        Ok(())
    }

    /// Two's complement of any length.
    fn long(&mut self, opcode: u8) -> Result<(), Problem> {
        let bytes = self.counted(opcode)?;
        if bytes.len() > 8 {
            self.push(Node::Long(bytes));
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Result<(), Problem> {
        let bytes = self.counted(opcode)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Node::Text(text)),
            // Python 2 wrote bytes and text alike; Python 3 text may hold lone surrogates.
            Err(_) => self.stack.push(Pickle::OPAQUE),
        }
        Ok(())
    }

    fn extend_list(&mut self, members: Vec<Id>) -> Result<(), Problem> {
        let target = self.top()?;
        match self.pickle.get_mut(target) {
            Node::List(list) => {
                list.extend(members);
                Ok(())
            }
            other => Err(bad(format!("an item appended to {}", other.describe()))),
        }
    }

    fn extend_dict(&mut self, entries: &[Id]) -> Result<(), Problem> {
        let target = self.top()?;
        let entries = pairs(entries)?;
        match self.pickle.get_mut(target) {
            Node::Dict(dict) => {
                dict.extend(entries);
                Ok(())
            }
            other => Err(bad(format!("an entry set in {}", other.describe()))),
        }
    }

    fn put(&mut self, opcode: u8) -> Result<(), Problem> {
        let index = match opcode {
            op::MEMOIZE => self.memo.len() as u32,
            _ => self.memo_index(opcode)?,
        };
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn get(&mut self, opcode: u8) -> Result<(), Problem> {
        let index = self.memo_index(opcode)?;
        let id = self.memo.get(&index).copied();
        self.stack.push(id.ok_or_else(|| bad(format!("no value memorised as {index}")))?);
        Ok(())
    }

    fn memo_index(&mut self, opcode: u8) -> Result<u32, Problem> {
        match opcode {
            op::BINPUT | op::BINGET => Ok(self.number(1)? as u32),
            op::LONG_BINPUT | op::LONG_BINGET => Ok(self.number(4)? as u32),
            _ => {
                let line = self.line(LINE_BYTES_MAX)?;
                line.parse().map_err(|_| bad(format!("the memo `{}`", line.escape_debug())))
            }
        }
    }

    // ---- what would be calls ----

    fn global(&mut self, opcode: u8) -> Result<(), Problem> {
        let (module, name) = if opcode == op::GLOBAL {
            (self.line(NAME_BYTES_MAX)?, self.line(NAME_BYTES_MAX)?)
        } else {
            let names = self.pop_many(2)?;
            let text = |id| {
                let text = self.pickle.text(id).filter(|text| text.len() <= NAME_BYTES_MAX);
                text.ok_or_else(|| bad("a class or function without a name"))
            };
            (text(names[0])?, text(names[1])?)
        };
        let global = Global::find(module, name)?;
        self.push(Node::Global(global));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), Problem> {
        let operands = self.pop_many(2)?;
        let Node::Global(global) = *self.pickle.get(operands[0]) else {
            let what = self.pickle.get(operands[0]).describe();
            return Err(bad(format!("a call of {what}")));
        };
        let Node::Tuple(arguments) = self.pickle.get(operands[1]) else {
            return Err(bad("a call without a tuple of arguments"));
        };
        let wrong = || bad(format!("a call of {global:?} with wrong arguments"));
        let result = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.pickle.add(Node::Dict(Vec::new())),
            (Global::OrderedDict, &[items]) => {
                let entries = self.ordered_items(items).ok_or_else(wrong)?;
                self.charge(entries.len())?;
                self.pickle.add(Node::Dict(entries))
            }
            (Global::Size, &[sizes]) if self.pickle.sequence(sizes).is_some() => sizes,
            // requires_grad, hooks and, in newer files, metadata follow.
            (Global::RebuildTensor, &[storage, start, shape, strides, _, _, ..])
                if arguments.len() <= 7 =>
            {
                let tensor = self.tensor([storage, start, shape, strides]).ok_or_else(wrong)?;
                self.pickle.tensors.push(tensor);
                self.pickle.add(Node::Tensor(self.pickle.tensors.len() - 1))
            }
            (Global::RebuildParameter, &[tensor, _, _])
                if matches!(self.pickle.get(tensor), Node::Tensor(_)) =>
            {
                tensor
            }
            _ => return Err(wrong()),
        };
        self.stack.push(result);
        Ok(())
    }

    /// The entries of `OrderedDict([[key, value], …])`, which is how Python 2 wrote it.
    fn ordered_items(&self, items: Id) -> Option<Vec<(Id, Id)>> {
        let entry = |&item| match self.pickle.sequence(item)? {
            &[key, value] => Some((key, value)),
            _ => None,
        };
        self.pickle.sequence(items)?.iter().map(entry).collect()
    }

    fn tensor(&self, [storage, start, shape, strides]: [Id; 4]) -> Option<TensorRef> {
        let Node::Storage(storage) = *self.pickle.get(storage) else { return None };
        Some(TensorRef {
            storage,
            start: self.pickle.int(start)?,
            shape: self.pickle.ints(shape, AXES_MAX)?,
            strides: self.pickle.ints(strides, AXES_MAX)?,
        })
    }

    /// Sets attributes of a dict, which is how `state_dict()` attaches `_metadata`: dropped.
    fn build(&mut self) -> Result<(), Problem> {
        self.pop()?;
        match self.pickle.get(self.top()?) {
            Node::Dict(_) => Ok(()),
            other => Err(bad(format!("attributes of {}", other.describe()))),
        }
    }

    /// Takes a storage's description from the stack.
    fn persistent(&mut self) -> Result<(), Problem> {
        let id = self.pop()?;
        let storage = self.storage(id).ok_or_else(|| bad("a reference that names no storage"))?;
        self.pickle.storages.push(storage);
        self.push(Node::Storage(self.pickle.storages.len() - 1));
        Ok(())
    }

    /// Reads `("storage", type, key, location, numel[, None | (view key, offset, numel)])`.
    fn storage(&self, id: Id) -> Option<StorageRef> {
        let Node::Tuple(parts) = self.pickle.get(id) else { return None };
        let (&[word, class, key, _location, numel], rest) = parts.split_first_chunk()?;
        if self.pickle.text(word) != Some("storage") {
            return None;
        }
        let Node::Global(Global::Storage(kind)) = *self.pickle.get(class) else { return None };
        let key = match self.pickle.get(key) {
            Node::Text(key) if key.len() <= NAME_BYTES_MAX => (*key).to_owned(),
            Node::Int(key) => key.to_string(),
            _ => return None,
        };
        let numel = self.pickle.int(numel).filter(|&numel| numel >= 0)?;
        let whole = StorageRef { kind, key, numel, base: 0 };
        match *rest {
            [] => Some(whole),
            [view] if matches!(self.pickle.get(view), Node::None) => Some(whole),
            [view] => match *self.pickle.sequence(view)? {
                [_, base, numel] => {
                    let base = self.pickle.int(base).filter(|&base| base >= 0)?;
                    let numel = self.pickle.int(numel).filter(|&numel| numel >= 0)?;
                    Some(StorageRef { numel, base, ..whole })
                }
                _ => None,
            },
            _ => None,
        }
    }
}

fn pairs(members: &[Id]) -> Result<Vec<(Id, Id)>, Problem> {
    let (pairs, rest) = members.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad("a dict key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

#[cfg(test)]
mod tests;
