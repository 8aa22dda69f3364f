//! Exports read back bit for bit, in every format.

use std::io::Cursor;

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};
use serde_json::Value;

use super::*;

/// Numbers that lose bits in careless formats.
const AWKWARD: [f64; 12] = [
    0.1,
    -0.0,
    1.0 / 3.0,
    f64::MIN_POSITIVE,
    5e-324,
    f64::MAX,
    1e23,
    123_456_789.123_456_79,
    2.0,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
];

fn axis(name: &str, size: u32, labels: &[&str]) -> pb::Axis {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect();
    pb::Axis { name: name.into(), size, labels }
}

fn awkward() -> pb::Series {
    pb::Series {
        metric: "grokking-progress.excluded_loss_frequency".into(),
        unit: "nats".into(),
        axes: vec![
            axis("frequency", 2, &["1", "2"]),
            axis("tensor", 3, &["W_E", "a,\"b\"", "W\nU"]),
        ],
        model_index: 1,
        model: "modular-addition-seed7".into(),
        seed: Some(7),
        experiment: "grokking-progress".into(),
        version: 3,
        params: r#"{"threshold":0.85}"#.into(),
        task: Some(pb::TaskKey {
            kind: Some(pb::task_key::Kind::Analyse(pb::AnalyseKey { step: 100, experiment: 0 })),
            ..Default::default()
        }),
        steps: vec![100, 200],
        values: AWKWARD.to_vec(),
        partner: String::new(),
        reading: Some(pb::Reading { processing: "fold_ln".into(), prepend_bos: Some(true) }),
    }
}

fn scalar() -> pb::Series {
    pb::Series {
        metric: "modular-addition.train_loss".into(),
        unit: "nats".into(),
        model: "m".into(),
        experiment: "modular-addition".into(),
        version: 1,
        params: "{}".into(),
        steps: vec![0, 10],
        values: vec![4.25, 1e-12],
        ..Default::default()
    }
}

fn columns() -> Columns {
    let mut columns = Columns::default();
    for axis in awkward().axes {
        columns.learn(&axis);
    }
    columns
}

/// Writes both series with a writer and returns the bytes.
fn written(format: ExportFormat) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let file = AtomicFile::create(&path).unwrap();
    let mut writer = new_writer(format, file.writer().unwrap(), &columns()).unwrap();
    for series in [awkward(), scalar()] {
        writer.series("sweep-1", &series).unwrap();
    }
    writer.finish().unwrap();
    assert!(!path.exists(), "the name appears with the last byte");
    file.commit().unwrap();
    fs::read(&path).unwrap()
}

fn expected() -> Vec<f64> {
    [AWKWARD.to_vec(), vec![4.25, 1e-12]].concat()
}

#[track_caller]
fn same_bits(found: &[f64]) {
    let bits = |values: &[f64]| -> Vec<Option<u64>> {
        values.iter().map(|v| (!v.is_nan()).then(|| v.to_bits())).collect()
    };
    assert_eq!(bits(found), bits(&expected()));
}

#[test]
fn csv_is_exact_and_quoted() {
    let text = String::from_utf8(written(ExportFormat::Csv)).unwrap();
    let header = "sweep,model,seed,checkpoint,step,experiment,version,params,metric,unit,processing,prepend_bos,frequency,tensor,value";
    assert_eq!(text.lines().next(), Some(header));
    let second = text.lines().nth(2).unwrap();
    assert_eq!(
        second,
        "sweep-1,modular-addition-seed7,7,step100,100,grokking-progress,3,\"{\"\"threshold\"\":0.85}\",\
         grokking-progress.excluded_loss_frequency,nats,fold_ln,true,1,\"a,\"\"b\"\"\",-0.0"
    );
    assert!(text.ends_with(
        "sweep-1,m,,train,10,modular-addition,1,{},modular-addition.train_loss,nats,,,,,1e-12\n"
    ));
    // A line break inside quotes is no row.
    let joined = text.replace("W\nU", "WU");
    let values = joined.lines().skip(1).map(|line| line.rsplit(',').next().unwrap());
    same_bits(&values.map(|value| value.parse().unwrap()).collect::<Vec<f64>>());
}

#[test]
fn jsonl_is_exact_and_has_all_columns() {
    let text = String::from_utf8(written(ExportFormat::Jsonl)).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names = columns().names();
    for row in &rows {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys, names.iter().collect::<Vec<_>>());
    }
    assert_eq!(rows[0]["frequency"], 1);
    assert_eq!(rows[1]["tensor"], "a,\"b\"");
    assert_eq!(
        (&rows[0]["processing"], &rows[0]["prepend_bos"]),
        (&"fold_ln".into(), &true.into())
    );
    assert_eq!((&rows[12]["processing"], &rows[12]["prepend_bos"]), (&Value::Null, &Value::Null));
    assert_eq!(rows[0]["params"]["threshold"], 0.85);
    assert_eq!((&rows[12]["seed"], &rows[12]["tensor"]), (&Value::Null, &Value::Null));
    let value = |row: &Value| match &row["value"] {
        Value::String(text) => text.parse().unwrap(),
        number => number.as_f64().unwrap(),
    };
    same_bits(&rows.iter().map(value).collect::<Vec<f64>>());
    assert_eq!(rows[9]["value"], "NaN");
}

#[test]
fn parquet_is_exact_and_has_nulls() {
    let bytes = bytes::Bytes::from(written(ExportFormat::Parquet));
    let reader = SerializedFileReader::new(bytes).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr();
    let names: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
    assert_eq!(names, columns().names());
    let rows: Vec<Row> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    let get = |row: usize, name: &str| -> Field {
        rows[row].get_column_iter().find(|(known, _)| *known == name).unwrap().1.clone()
    };
    assert_eq!(get(1, "tensor"), Field::Str("a,\"b\"".into()));
    assert_eq!(get(0, "frequency"), Field::Long(1));
    assert_eq!((get(0, "seed"), get(12, "seed")), (Field::Long(7), Field::Null));
    assert_eq!(get(12, "tensor"), Field::Null);
    assert_eq!(
        (get(0, "processing"), get(12, "processing")),
        (Field::Str("fold_ln".into()), Field::Null)
    );
    assert_eq!((get(0, "prepend_bos"), get(12, "prepend_bos")), (Field::Bool(true), Field::Null));
    assert_eq!(get(6, "checkpoint"), Field::Str("step200".into()));
    let value = |row: usize| match get(row, "value") {
        Field::Double(value) => value,
        other => panic!("{other:?}"),
    };
    same_bits(&(0..rows.len()).map(value).collect::<Vec<f64>>());
}

#[test]
fn large_exports_have_several_row_groups() {
    let mut series = scalar();
    series.steps = (0..300_000).collect();
    series.values = series.steps.iter().map(|step| 1.0 / (*step as f64 + 1.0)).collect();
    let mut buffer = Vec::new();
    let mut writer = Box::new(ParquetRows::new(&mut buffer, Columns::default()).unwrap());
    writer.series("s", &series).unwrap();
    writer.finish().unwrap();
    let reader = SerializedFileReader::new(bytes::Bytes::from(buffer)).unwrap();
    assert_eq!(reader.metadata().num_row_groups(), 3);
    assert_eq!(reader.metadata().file_metadata().num_rows(), 300_000);
}

#[test]
fn an_axis_may_turn_out_to_have_names() {
    let mut columns = Columns::default();
    assert!(columns.learn(&axis("place", 2, &[])));
    assert!(!columns.learn(&axis("place", 3, &["7", "8", "9"])));
    assert!(columns.learn(&axis("place", 1, &["x"])));
    assert!(!columns.learn(&axis("place", 2, &[])));
    assert_eq!(columns.axes().next(), Some(("place", AxisKind::Text)));
    columns.learn(&axis("step", 1, &[]));
    assert!(columns.names().contains(&"axis_step".to_owned()));
}

#[test]
fn json_elements_are_an_array() {
    let mut rows = JsonRows::elements(Cursor::new(Vec::new()));
    rows.series("s", &scalar()).unwrap();
    let text = String::from_utf8(rows.into_writer().into_inner()).unwrap();
    let parsed: Vec<Value> = serde_json::from_str(&format!("[{text}]")).unwrap();
    assert_eq!(parsed.len(), 2);
    assert!(parsed[0].get("tensor").is_none());
}

#[test]
fn a_file_that_is_not_finished_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/x.csv");
    drop(AtomicFile::create(&path).unwrap());
    assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
    fs::write(&path, "old").unwrap();
    write_atomically(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}
