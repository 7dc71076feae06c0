"""The protocols of the lottery-ticket papers: they train networks and measure them.

Each module has:

- `NAME`, the name of its files in `results/`;
- `KEY`, the columns that identify a run;
- `CASES`, a dictionary of the cases that `--cases` can choose;
- `wanted(case, seed)`, which returns the runs as dictionaries;
- `run(run)`, which does a run and returns the other columns of its row;
- `seconds(run)`, the approximate time of a run on two cores.

The module of the same name in `pages` makes the page from the rows.
"""
