"""README and site: their Python blocks run, page by page, and what they link to and name exists."""

import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import covers_part, ends_early

import rigl_tf

pytestmark = pytest.mark.built_in_fit

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
}
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))
# Most parts of these take long to trace, and run elsewhere, too.
SLOW = (
    "docs/recipes/",
    "docs/guides/fine_tuning.md",
    "docs/guides/lottery.md",
    "docs/guides/watching.md",
)


def blocks(name, language="python"):
    text = PAGES[name]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def prose(name):
    return re.sub(r"^```.*?^```", "", PAGES[name], flags=re.DOTALL | re.MULTILINE)


def check_invariant(model):
    """What is inactive is zero."""
    weights = {weight.path: weight.numpy() for weight in model.weights}
    for path, mask in rigl_tf.get_masks(model).items():
        if path in weights:  # a CSR kernel has no inactive weights
            np.testing.assert_array_equal(weights[path], np.where(mask, weights[path], 0))


def run_blocks(name):
    namespace = {"__name__": "page"}
    for number, block in enumerate(blocks(name), 1):
        exec(compile(block, f"{name}, Python block {number}", "exec"), namespace)
        for value in namespace.values():
            if isinstance(value, keras.Model) and value.built:
                check_invariant(value)
    return namespace


def with_code(slow):
    return [name for name in PAGES if blocks(name) and name.startswith(SLOW) == slow]


@ends_early
@covers_part
@pytest.mark.parametrize("name", with_code(slow=False))
def test_python_blocks_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(name)


# KerasTuner itself calls what Python advises against.
@pytest.mark.filterwarnings("ignore:(currentThread|getName|setName):DeprecationWarning")
@pytest.mark.slow
@ends_early
@covers_part
@pytest.mark.parametrize("name", with_code(slow=True))
def test_longer_python_blocks_run_in_order(name, tmp_path, monkeypatch):
    if name.endswith("keras_tuner.md"):
        pytest.importorskip("keras_tuner")
    monkeypatch.chdir(tmp_path)
    run_blocks(name)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    """As a notebook that jupytext makes of it, one cell after the other."""
    jupytext = pytest.importorskip("jupytext")
    cells = jupytext.read(path).cells
    assert {cell.cell_type for cell in cells} == {"code", "markdown"}
    program = tmp_path / "program.py"
    code = "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")
    program.write_text(f"import matplotlib\nmatplotlib.use('agg')\n{code}", encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, str(program)], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("name", list(PAGES))
def test_relative_links_exist(name):
    """In the repository; that they are pages of the site, and their anchors, `make docs` checks."""
    links = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    folder = (ROOT / name).parent
    missing = [
        link
        for link in links
        if not re.match(r"[a-z]+:|#", link) and not (folder / link.partition("#")[0]).exists()
    ]
    assert missing == []


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        target
        for text in PAGES.values()
        for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE)
    }
    assert {"demo", "test", "docs", "setup"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_names_to_use_instead_exist():
    """In the tables of `coming_from.md`: names of `rigl_tf`, their arguments, or attributes."""
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]), 0.5)
    known = {**vars(rigl_tf), "optimizer": rigl_tf.RigL("sgd", end_step=200)}
    known["optimizer"].build(model.trainable_variables)
    known["level"] = rigl_tf.lottery.Level(0, 1, 0.0, {}, None, [])
    rooms = [rigl_tf, *(value for value in vars(rigl_tf).values() if hasattr(value, "__path__"))]
    public = [getattr(room, name) for room in rooms for name in getattr(room, "__all__", ())]
    arguments = {name for each in public if callable(each) for name in parameters(each)}
    cells = re.findall(r"^\| .* \| (.*) \|$", PAGES["docs/coming_from.md"], flags=re.MULTILINE)
    spans = {span for cell in cells for span in re.findall(r"`([^`]+)`", cell)}
    names = {span: re.match(r"([a-zA-Z_][\w.]*)(?:=|\(|$)", span) for span in spans}
    assert sum(map(bool, names.values())) > 60
    for span, match in names.items():
        if match is None or span == "fit":
            continue
        first, *rest = match[1].split(".")
        if not rest and first in arguments and first not in known:
            continue
        value = known[first]
        for name in rest:
            value = getattr(value, name)
        if match[0].endswith("("):
            keywords = re.findall(r"(\w+)=", span[len(match[0]) :])
            assert set(keywords) <= parameters(value), span


def parameters(function):
    return set(inspect.signature(function).parameters)


def numbers(text):
    """Decimal numbers, as accuracies and speed-ups are."""
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text))


@pytest.mark.parametrize("name", list(PAGES))
def test_numbers_are_those_of_the_results(name):
    """Each line's numbers are, rounded as it may be, on the pages that it links to."""
    for paragraph in re.split(r"\n\n|\n(?=- )", prose(name)):
        pages = re.findall(r"\]\(((?:\.\./)*results/\w+\.md)\)", paragraph)
        if not pages:
            continue
        folder = (ROOT / name).parent
        there = {
            float(each)
            for page in pages
            for each in re.findall(r"\d+\.\d+|\d+", (folder / page).read_text("utf-8"))
        }
        for number in numbers(re.sub(r"\]\([^)]*\)|`[^`]*`", "", paragraph)):
            digits = len(number.partition(".")[2])
            assert any(round(each, digits) == float(number) for each in there), (number, pages)


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_must_stand_in_the_reference():
    """`make docs` looks for these names on the built pages."""
    pytest.importorskip("griffe")
    hooks = load_hooks()
    names = {name for name, _ in hooks.public_names(hooks.load_package())}
    modules = {name for name in rigl_tf.__all__ if hasattr(getattr(rigl_tf, name), "__file__")}
    assert {f"rigl_tf.{name}" for name in rigl_tf.__all__ if name not in modules} <= names
    for module in modules:
        for name in getattr(getattr(rigl_tf, module), "__all__", ()):
            if callable(getattr(getattr(rigl_tf, module), name)):
                assert f"rigl_tf.{module}.{name}" in names


def test_the_page_of_a_notebook():
    source = "# ---\n# jupyter\n# ---\n\n# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n"
    pytest.importorskip("griffe")
    assert load_hooks().page_of_notebook(source) == "# Title\n\nText.\n\n```python\nx = 1\n```\n"


def test_what_a_function_returns_is_text_in_the_reference():
    """Not a name and a text, into which the colon of `{path: sparsity}` would divide it."""
    griffe, yaml = pytest.importorskip("griffe"), pytest.importorskip("yaml")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    plugins = yaml.safe_load(text)["plugins"]
    python = plugins[1]["mkdocstrings"]["handlers"]["python"]["options"]
    returns = []
    for path in sorted((ROOT / "rigl_tf").rglob("*.py")):
        module = griffe.visit(path.stem, path, path.read_text(encoding="utf-8"))
        members = [module, *module.classes.values()]
        for function in (each for member in members for each in member.functions.values()):
            if function.docstring:
                sections = function.docstring.parse("google", **python["docstring_options"])
                returns += [each for each in sections if each.kind.value == "returns"]
    values = [value for section in returns for value in section.value]
    assert sum(value.description.startswith("`{path: sparsity}`") for value in values) > 5
    assert [value.description for value in values if value.name] == []
    assert [value.description for value in values if value.description.count("`") % 2] == []
