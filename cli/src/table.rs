//! Tables for terminals: one look for all commands, numbers to the right, as wide as the terminal
//! at most. Off a terminal a table is never wrapped, so that `grep` and `awk` see whole rows.

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table,
    TableStyle, Width,
};

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with these columns and no rows.
pub fn new(columns: &[(&str, Align)]) -> Table {
    let mut table = Table::new();
    let rule = LineStyle::none().fill('─').junction('─');
    table.load_style(TableStyle::new().header_separator(rule));
    let header = columns.iter().map(|(name, _)| Cell::new(name).add_attribute(Attribute::Bold));
    table.set_header(header.collect::<Vec<_>>());
    for (column, (_, align)) in table.column_iter_mut().zip(columns) {
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
        column.set_padding((0, 2));
    }
    // The first column names the row; a narrow terminal wraps the others.
    if let Some(first) = table.column_mut(0) {
        first.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

/// A cell in the colour of a state word.
pub fn state(word: &str) -> Cell {
    let cell = Cell::new(word);
    match word {
        "done" | "ready" => cell.fg(Color::Green),
        "failed" | "lost" => cell.fg(Color::Red),
        "running" => cell.fg(Color::Cyan),
        "cancelled" | "skipped" | "draining" => cell.fg(Color::Yellow),
        _ => cell,
    }
}

/// Makes columns at least this wide, so that tables below each other line up. Only where there is
/// room: a narrow terminal wraps cells instead.
pub fn set_widths(table: &mut Table, characters: &[usize]) {
    for (column, width) in table.column_iter_mut().zip(characters) {
        let padded = u16::try_from(*width).unwrap_or(u16::MAX).saturating_add(2);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(padded)));
    }
}

/// Adapts a table to where it is written to.
pub fn finish(table: &mut Table, terminal: bool, color: bool) {
    table.set_content_arrangement(if terminal {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
}
