"""The pages of the protocols: claims of the papers, tested with the results; tables and plots.

Each module has `lines(rows)`, the lines of the page, and `plot(rows, path)`.
"""
