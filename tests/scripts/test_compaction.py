"""`scripts.benchmark.compaction`: its rows and its page, with a small image."""

from running import cells_of, rows_of, run

from scripts.benchmark import compaction


def test_rows_and_page(tmp_path):
    arguments = ["--models=MobileNet", "--size=32", "--rounds=3", "--calls=1", "--keep=0.25"]
    for _ in range(2):  # the second time there is nothing to do
        run(compaction, *arguments, f"--output_dir={tmp_path}")
    (row,) = rows_of(tmp_path / "compaction.csv")
    assert int(row["weights"]) < 0.4 * int(row["weights_before"])
    assert int(row["flops"]) < 0.2 * int(row["flops_before"])
    assert len(row["ms"].split()) == len(row["ms_before"].split()) == 3
    page = (tmp_path / "compaction.md").read_text()
    cells = cells_of(page, "MobileNet", "25% of the units", "after")
    assert cells[0] == f"{int(row['weights']):,}"
    assert "python -m scripts.benchmark.compaction" in page
