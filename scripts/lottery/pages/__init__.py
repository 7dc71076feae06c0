"""The pages of the protocols: what the papers claim, asked of the rows; tables and plots.

Each module has `lines(rows)`, the lines of the page, and `plot(rows, path)`.
"""
