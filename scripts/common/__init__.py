"""What the rooms share: data, methods, training, rows, tables, plots."""
