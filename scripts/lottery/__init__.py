"""The protocols of the lottery-ticket papers: they train networks and measure them.

Each module has `NAME`, of its files in `results/`; `KEY`, the columns that make a run; `CASES`, a
dictionary of what can be chosen by `--cases`; `wanted(case, seed)`, the runs as dictionaries;
`run(run)`, which gives the other columns of a row; and `seconds(run)`, what it takes on two cores.
The module of the same name in `pages` makes the page of the rows.
"""
