"""The way from RigL to int8, in a process of its own: TFMOT turns `tf.keras` into Keras 2."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None, reason="needs TFMOT"
)
def test_quantize(tmp_path):
    command = [sys.executable, "-m", "scripts.quantize", "--epochs=2", "--fine_tuning_epochs=1"]
    subprocess.run(
        [*command, f"--output_dir={tmp_path}"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    text = (tmp_path / "quantize.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    accuracies = [float(row[1]) for row in rows[2:]]
    zeros = [float(row[2].strip("%")) for row in rows[2:]]
    assert len(rows) == 8
    assert min(accuracies) > 80
    # Rounding makes more zeros, never fewer.
    assert min(zeros) >= 89.9
    assert accuracies[0] == accuracies[1] == accuracies[3]
    assert re.fullmatch(r"[\d,]+", rows[-1][3])
