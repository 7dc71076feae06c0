"""The package: what a wheel and an sdist hold, and what they say of themselves."""

import fnmatch
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from helpers import ROOT

import rigl_tf

PACKAGE = ROOT / "rigl_tf"


def other_files():
    """The files of the package that are no Python, without what was compiled or cached."""
    found = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in found
        if path.suffix not in (".py", ".pyc") and not path.match("engine-*.so")
    }


def test_only_tests_of_scripts_know_scripts():
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "scripts"]
    pattern = re.compile(r"^\s*(from|import) scripts\b", flags=re.MULTILINE)
    assert [path.name for path in tests if pattern.search(path.read_text())] == []


def test_every_file_of_the_package_is_packed():
    table = re.search(
        r"^\[tool\.setuptools\.package-data\]\n(.*?)\n\n",
        (ROOT / "pyproject.toml").read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )[1]
    patterns = [
        f"{name.replace('.', '/')}/{pattern}"
        for name, listed in re.findall(r'^"(.*?)" = (\[.*\])$', table, flags=re.MULTILINE)
        for pattern in json.loads(listed)
    ]
    files = other_files()
    assert {"py.typed", "execution/engine.cc", "artifacts/web_page/index.html"} <= files
    assert [
        file
        for file in files
        if not any(fnmatch.fnmatch(f"rigl_tf/{file}", pattern) for pattern in patterns)
    ] == []


def test_version_and_licence_are_the_same_everywhere():
    assert importlib.metadata.version("rigl_tf") == rigl_tf.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {rigl_tf.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(
        rf"^## \[{re.escape(rigl_tf.__version__)}\] - \d{{4}}-\d\d-\d\d$", changes, re.M
    )


def test_every_paper_that_the_package_quotes_is_cited():
    number = r"arxiv\.org/abs/(\d{4}\.\d{5})"
    quoted = {
        paper
        for path in PACKAGE.rglob("*.py")
        for paper in re.findall(number, path.read_text(encoding="utf-8"))
    }
    assert len(quoted) > 20
    cited = re.findall(number, (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert sorted(quoted - set(cited)) == []
    assert len(cited) == len(set(cited))


def test_pre_commit_runs_make_lint():
    configuration = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: (.*)", configuration) == ["make lint"]
    assert re.search(r"^lint:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


PROGRAM = """\
import importlib.metadata, importlib.util, pathlib, sys
import keras, numpy as np, rigl_tf, rigl_tf.execution.engine

here = pathlib.Path(rigl_tf.__file__).resolve()
assert pathlib.Path(sys.prefix).resolve() in here.parents, here
assert not importlib.util.find_spec("scripts") and not importlib.util.find_spec("models")
assert rigl_tf.__version__ == importlib.metadata.version("rigl_tf")

x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
y = (x.sum(axis=1) > 0).astype("int64")
layers = [keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(2)]
sparse = rigl_tf.sparsify(keras.Sequential(layers), 0.8, execution=sys.argv[1])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
sparse.compile(rigl_tf.RigL(keras.optimizers.Adam(0.01), end_step=12, update_frequency=3), loss)
losses = sparse.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
assert losses[-1] < losses[0]
print(rigl_tf.sparsity_summary(sparse))
sparse.save("model.keras")
np.testing.assert_array_equal(keras.saving.load_model("model.keras")(x), sparse(x))
print(rigl_tf.export(sparse, "exported"))
print("native" if rigl_tf.execution.engine.is_native() else "no compiler")
"""


def done(*command, **settings):
    settings = {"capture_output": True, "text": True, "timeout": 900, **settings}
    result = subprocess.run([str(each) for each in command], **settings)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with an sdist, the wheel that was made of it, and in `direct` `pip wheel .`'s."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"  # a copy, so that nothing is left behind in the repository
    left_out = shutil.ignore_patterns(
        ".*", "results", "runs", "demo", "build", "dist", "*.egg-info", "__pycache__", "engine-*.so"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    before = sorted(source.iterdir())
    done(sys.executable, "-m", "build", "--outdir", folder, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder / "direct"]
    done(*wheel, ".", cwd=source)
    assert {path.name for path in {*source.iterdir()} - {*before}} <= {"build", "rigl_tf.egg-info"}
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package_and_nothing_else(built):
    (wheel,), (direct,) = built.glob("*.whl"), (built / "direct").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names == set(zipfile.ZipFile(direct).namelist())
    python = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    files = python | {f"rigl_tf/{file}" for file in other_files()}
    info = f"rigl_tf-{rigl_tf.__version__}.dist-info"
    assert {name for name in names if not name.startswith(info)} == files
    assert f"{info}/licenses/LICENSE" in names
    metadata = zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode()
    for line in (
        f"Version: {rigl_tf.__version__}",
        "License-Expression: Apache-2.0",
        "Provides-Extra: all",
    ):
        assert f"\n{line}\n" in metadata
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    more = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"}
    assert files | more | {"pyproject.toml"} <= packed


@pytest.fixture(scope="module")
def environment(built):
    """A new environment with the wheel; of the others' packages it only knows the folder.

    A folder that is named in a `.pth` file is searched, but its own `.pth` files are not read: so
    the repository, which is installed there as it stands, cannot be imported.
    """
    folder = built / "environment"
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = pathlib.Path(sysconfig.get_path("purelib", "venv", paths))
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = ["--python", python, "install", "--no-deps", "--force-reinstall", wheel]
    done(sys.executable, "-m", "pip", *install)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_the_wheel_trains_saves_and_exports_outside_of_the_repository(
    environment, execution, tmp_path
):
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["XDG_CACHE_HOME"] = str(tmp_path / "cache")  # so the engine is compiled anew
    told = done(environment, "program.py", execution, cwd=tmp_path, env=variables)
    has_compiler = any(map(shutil.which, ("g++", "clang++")))
    assert told.strip().splitlines()[-1] == ("native" if has_compiler else "no compiler")
    assert bool(list(tmp_path.glob("cache/rigl_tf/engine-*.so"))) == has_compiler
    assert (tmp_path / "exported" / "saved_model.pb").exists()


@pytest.mark.slow
def test_pip_shows_the_version(environment):
    shown = done(sys.executable, "-m", "pip", "--python", environment, "show", "rigl_tf")
    assert f"Version: {rigl_tf.__version__}\n" in shown
