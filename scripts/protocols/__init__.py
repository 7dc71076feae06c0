"""The protocols of the lottery-ticket papers, for `scripts.lottery`.

Each module has `NAME`, of its files in `results/`; `KEY`, the columns that make a run; `CASES`, a
dictionary of what can be chosen by `--cases`; `wanted(case, seed)`, the runs as dictionaries;
`run(run)`, which gives the other columns of a row; `seconds(run)`, what it takes on two cores; and
`report(rows)`, which writes the page and its plots.
"""
