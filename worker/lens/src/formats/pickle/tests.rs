//! Pickles written by hand, and arbitrary ones: values, refusals, bounds.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Loads `body` between the protocol and the end, and returns the text of the outermost value.
fn shown(body: &[u8]) -> Result<String, Problem> {
    let bytes = [&[0x80, 2], body, b"."].concat();
    let (pickle, root, n_bytes) = load(&bytes)?;
    assert_eq!(n_bytes, bytes.len());
    Ok(show(&pickle, root, 8))
}

fn show(pickle: &Pickle<'_>, id: Id, depth: usize) -> String {
    if depth == 0 {
        return "…".to_owned();
    }
    let list = |members: &[Id]| {
        members.iter().map(|&id| show(pickle, id, depth - 1)).collect::<Vec<_>>().join(", ")
    };
    match pickle.get(id) {
        Node::Tuple(members) => format!("({})", list(members)),
        Node::List(members) => format!("[{}]", list(members)),
        Node::Dict(entries) => {
            let flat: Vec<Id> = entries.iter().flat_map(|&(key, value)| [key, value]).collect();
            format!("{{{}}}", list(&flat))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn plain_values() {
    for (body, expected) in [
        (&b"N"[..], "None"),
        (b"\x88", "Bool(true)"),
        (b"\x89", "Bool(false)"),
        (b"I01\n", "Bool(true)"),
        (b"I-7\n", "Int(-7)"),
        (b"L12345678901L\n", "Int(12345678901)"),
        (b"J\xff\xff\xff\xff", "Int(-1)"),
        (b"K\xff", "Int(255)"),
        (b"M\x01\x02", "Int(513)"),
        (b"\x8a\x00", "Int(0)"),
        (b"\x8a\x02\x00\x80", "Int(-32768)"),
        (b"\x8a\x09123456789", "Long([49, 50, 51, 52, 53, 54, 55, 56, 57])"),
        (b"F1.5\n", "Opaque"),
        (b"G\0\0\0\0\0\0\0\0", "Opaque"),
        (b"C\x02ab", "Opaque"),
        (b"U\x02ab", "Text(\"ab\")"),
        (b"U\x01\xff", "Opaque"),
        (b"X\x02\0\0\0\xc3\xa4", "Text(\"ä\")"),
        (b"(K\x01K\x02t", "(Int(1), Int(2))"),
        (b"K\x01K\x02K\x03\x87", "(Int(1), Int(2), Int(3))"),
        (b"](K\x01K\x02e", "[Int(1), Int(2)]"),
        (b"}(K\x01K\x02K\x03K\x04u", "{Int(1), Int(2), Int(3), Int(4)}"),
        (b"\x8f(K\x01\x90", "[Int(1)]"),
        (b"]q\x05h\x05a", "[[[[[[[[…]]]]]]]]"),
        (b"]\x94j\0\0\0\0a0K\x01", "Int(1)"),
        (b"(K\x01K\x021K\x03", "Int(3)"),
        (b"K\x01(0", "Int(1)"),
        (b"K\x012\x86", "(Int(1), Int(1))"),
        (b"ctorch\nSize\n(K\x02K\x03t\x85R", "(Int(2), Int(3))"),
        (b"ccollections\nOrderedDict\n)R}b", "{}"),
        (b"ccollections\nOrderedDict\n](]K\x01aK\x02ae\x85R", "{Int(1), Int(2)}"),
        (b"ccollections\nOrderedDict\n]](K\x01K\x02ea\x85R", "{Int(1), Int(2)}"),
        (b"\x8c\x05torch\x8c\x0cFloatStorage\x93", "Global(Storage(Float))"),
    ] {
        assert_eq!(shown(body), Ok(expected.to_owned()), "{body:?}");
    }
}

#[test]
fn a_tensor_is_its_description() {
    let storage = b"(X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\x007X\x06\0\0\0cuda:0K\x09tQ";
    let call = |tail: &[u8]| [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], tail].concat();
    let bytes = [&[0x80, 2], &call(b"K\x03K\x02K\x01\x86K\x01K\x02\x86\x89}tR")[..], b"."].concat();
    let (pickle, root, _) = load(&bytes).unwrap();
    assert!(matches!(pickle.get(root), Node::Tensor(0)));
    let expected = TensorRef { storage: 0, start: 3, shape: vec![2, 1], strides: vec![1, 2] };
    assert_eq!(pickle.tensors, [expected]);
    let key = "7".to_owned();
    let expected = StorageRef { kind: tch::Kind::Half, key, numel: 9, base: 0 };
    assert_eq!(pickle.storages, [expected]);
    for wrong in
        [&b"K\x03K\x02K\x01\x86tR"[..], b"K\x03K\x02K\x02\x89}tR", b"NK\x02\x85K\x01\x85\x89}tR"]
    {
        let problem = shown(&call(wrong)).unwrap_err();
        assert!(
            matches!(&problem, Problem::NotTorch(text) if text.contains("arguments")),
            "{problem}"
        );
    }
}

#[test]
fn every_name_but_those_of_tensors_is_refused() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch", "load"),
        ("torch", "FloatTensor"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch.nn.modules.linear", "Linear"),
        ("collections", "OrderedDict.fromkeys"),
        ("transformers.training_args", "TrainingArguments"),
    ] {
        let expected = Problem::RefusedGlobal(format!("{module}.{name}"));
        let old = format!("c{module}\n{name}\n");
        assert_eq!(shown(old.as_bytes()).unwrap_err(), expected);
        let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
        let new = [text(module), text(name), vec![0x93]].concat();
        assert_eq!(shown(&new).unwrap_err(), expected);
    }
    // Ways to make objects without naming them where a name is looked for.
    for body in
        [&b"(ios\nsystem\n"[..], b"(cos\nsystem\no", b"\x81", b"\x92", b"\x82\x01", b"Pid\n"]
    {
        assert!(shown(body).is_err(), "{body:?}");
    }
}

/// The list is exactly this one: every other pair of these modules and names is refused.
#[test]
fn no_name_more_and_none_less() {
    let storages = "Float Half BFloat16 Double Byte Bool Int Long Short Char".split(' ');
    let mut known: Vec<(&str, String)> =
        storages.map(|kind| ("torch", format!("{kind}Storage"))).collect();
    known.push(("torch", "Size".to_owned()));
    known.push(("collections", "OrderedDict".to_owned()));
    let rebuilders = ["_rebuild_tensor_v2", "_rebuild_parameter"];
    known.extend(rebuilders.map(|name| ("torch._utils", name.to_owned())));
    let others = "UntypedStorage TypedStorage QInt8Storage QUInt8Storage QInt32Storage ComplexFloatStorage \
                  ComplexDoubleStorage FloatTensor Tensor device dtype float32 _load_from_bytes \
                  _rebuild_tensor _rebuild_tensor_v3 _rebuild_qtensor _rebuild_sparse_tensor \
                  _rebuild_meta_tensor_no_storage _rebuild_parameter_with_state defaultdict Counter deque \
                  set frozenset list dict bytearray complex getattr setattr eval exec compile __import__ \
                  globals print open type system popen _reconstruct scalar ndarray partial encode";
    let names: BTreeSet<&str> =
        known.iter().map(|(_, name)| name.as_str()).chain(others.split_whitespace()).collect();
    let modules = "torch torch._utils torch.storage torch.serialization torch._tensor torch.cuda collections \
                   builtins __builtin__ os posix nt sys subprocess pickle copyreg copy_reg functools _codecs \
                   numpy numpy.core.multiarray numpy._core.multiarray";
    for module in modules.split_whitespace() {
        for &name in &names {
            let is_known = known.iter().any(|(m, n)| *m == module && n == name);
            assert_eq!(Global::find(module, name).is_ok(), is_known, "{module}.{name}");
        }
    }
    assert_eq!(known.len(), 14);
}

#[test]
fn nonsense_is_refused() {
    for body in [
        &b""[..],
        b"0",
        b"2",
        b"K\x01(2",
        b"K\x01(\x85",
        b"t",
        b"u",
        b"K\x01K\x02a",
        b"}(K\x01u",
        b"]K\x01K\x02s",
        b"h\x00",
        b"q\x00",
        b"gx\n",
        b"NQ",
        b"N)R",
        b"ctorch\nFloatStorage\n)R",
        b"ctorch\nSize\nN\x85R",
        b"NNb",
        b"Ix\n",
        b"\xff",
    ] {
        let problem = shown(body).unwrap_err();
        assert!(matches!(problem, Problem::NotTorch(_)), "{body:?}: {problem}");
    }
    for bytes in [&b""[..], b"\x80", b"\x80\x02", b"\x80\x02X\xff\xff\xff\xff", b"\x80\x02K\x01"] {
        assert!(matches!(load(bytes).unwrap_err(), Problem::Truncated { .. }), "{bytes:?}");
    }
    assert!(matches!(load(b"\x80\x06N.").unwrap_err(), Problem::NotTorch(_)));
    assert!(matches!(load(b"N.").unwrap_err(), Problem::NotTorch(_)));
    let long = [b"c", "x".repeat(300).as_bytes(), b"\ny\n"].concat();
    assert!(matches!(shown(&long).unwrap_err(), Problem::NotTorch(_)));
}

#[test]
fn depth_and_length_are_no_problem() {
    // A million lists in each other, and as many references to one value.
    let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999]].concat();
    assert!(shown(&deep).is_ok());
    let wide = [b"(K\x01".to_vec(), vec![b'2'; 1_000_000], b"t".to_vec()].concat();
    assert!(shown(&wide).is_ok());
    let endless = vec![b'N'; OPERATIONS_MAX + 1];
    assert!(matches!(shown(&endless).unwrap_err(), Problem::NotTorch(_)));
    // What is copied counts: a short pickle cannot make a long list many times over.
    let mut copies = b"ccollections\nOrderedDict\nq\x000](".to_vec();
    for _ in 0..3000 {
        copies.extend(b"NN\x86");
    }
    copies.extend(b"e\x85q\x01");
    for _ in 0..3000 {
        copies.extend(b"h\x00h\x01R");
    }
    let problem = shown(&copies).unwrap_err();
    assert!(
        matches!(&problem, Problem::NotTorch(text) if text.contains("operations")),
        "{problem}"
    );
}

/// Opcodes with plausible operands, so that random sequences get further than random bytes.
fn operation() -> impl Strategy<Value = Vec<u8>> {
    let fixed: Vec<&'static [u8]> = vec![
        b"(",
        b"0",
        b"1",
        b"2",
        b"N",
        b"\x88",
        b"\x89",
        b")",
        b"]",
        b"}",
        b"t",
        b"l",
        b"d",
        b"a",
        b"e",
        b"s",
        b"u",
        b"R",
        b"b",
        b"Q",
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x93",
        b"\x94",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"h\0",
        b"h\x01",
        b"q\0",
        b"q\x01",
        b"r\xff\xff\xff\xff",
        b"K\x07",
        b"\x8a\x01\x80",
        b"X\x07\0\0\0storage",
        b"X\x01\0\0\0k",
        b"X\x03\0\0\0cpu",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"(X\x07\0\0\0storagectorch\nLongStorage\nX\x01\0\0\0kNK\x07tQ",
    ];
    prop_oneof![
        8 => proptest::sample::select(fixed).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the bytes: no panic, and no more values than bytes (the constants aside).
    #[test]
    fn arbitrary_programs_end_well(operations in proptest::collection::vec(operation(), 0..60)) {
        let body = operations.concat();
        let bytes = [&[0x80, 4], body.as_slice(), b"."].concat();
        if let Ok((pickle, root, n_bytes)) = load(&bytes) {
            prop_assert!(n_bytes <= bytes.len());
            prop_assert!(pickle.len() <= bytes.len() + 4);
            show(&pickle, root, 4);
        }
    }

    #[test]
    fn arbitrary_bytes_end_well(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&[0x80, 2], bytes.as_slice()].concat();
        if let Ok((pickle, _, n_bytes)) = load(&bytes) {
            prop_assert!(n_bytes <= bytes.len() && pickle.len() <= bytes.len() + 4);
        }
    }
}
