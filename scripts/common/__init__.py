"""Code that all scripts share: data, methods, training, results, tables, plots."""
