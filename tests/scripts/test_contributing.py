"""CONTRIBUTING.md: the code of its recipes runs, and the files that it names are there."""

import pathlib
import re
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
from running import rows_of, run

import rigl_tf

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE))
RECIPES = ("A new algorithm", "A new structure", "A new experiment")


def blocks(part):
    found = re.findall(r"^   ```python\n(.*?)^   ```", PARTS[part], flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def module_of(name, code, names=()):
    """A module with this code, which sees `names`."""
    module = types.ModuleType(name)
    vars(module).update(names)
    exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
    return module


@pytest.mark.parametrize("part", RECIPES)
def test_a_recipe_has_five_places_at_most(part):
    places = re.findall(r"^(\d)\. `(.*?)`", PARTS[part], flags=re.MULTILINE)
    assert [int(number) for number, _ in places] == list(range(1, len(places) + 1))
    assert 1 < len(places) <= 5
    missing = [path for _, path in places if not (ROOT / path).exists()]
    assert missing == (["scripts/rigl/seeds.py"] if part == "A new experiment" else [])
    # What a line is to be added to.
    for place in re.split(r"^\d\. ", PARTS[part], flags=re.MULTILINE)[1:]:
        path = re.match(r"`(.*?)`", place)[1]
        for name in re.findall(r"\sto\s`(\w+)`", place):
            assert re.search(rf"^{name} = ", (ROOT / path).read_text(), flags=re.MULTILINE), name


def small(**arguments):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(4)]
    return rigl_tf.sparsify(keras.Sequential(layers), 0.5, **arguments)


def test_the_algorithm():
    (code,) = blocks("A new algorithm")
    optimizer = module_of("dynamic", code, vars(rigl_tf.optimizers.dynamic)).NoisyRigL
    model = small()
    model.compile(optimizer("adam", end_step=8, update_frequency=2), "mse")
    before = rigl_tf.get_masks(model)
    x = np.random.default_rng(0).normal(size=(80, 8))
    model.fit(x, x[:, :4], batch_size=10, verbose=0)
    after = rigl_tf.get_masks(model)
    assert {name: mask.sum() for name, mask in before.items()} == {
        name: mask.sum() for name, mask in after.items()
    }
    assert any((before[name] != after[name]).any() for name in before)


def test_the_structure():
    (code,) = blocks("A new structure")
    pairs = module_of("structures", code, vars(rigl_tf.structures)).Pairs()
    masks = rigl_tf.get_masks(small(structure=pairs)).values()
    for mask in masks:
        np.testing.assert_array_equal(mask[:, ::2], mask[:, 1::2])
    assert 2 * sum(mask.sum() for mask in masks) == sum(mask.size for mask in masks)
    odd = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"Pairs\(\) needs an even number of outputs"):
        rigl_tf.sparsify(odd, 0.5, structure=pairs)


def test_the_experiment(tmp_path, monkeypatch):
    code, test = blocks("A new experiment")
    seeds = module_of("scripts.rigl.seeds", code)
    monkeypatch.setattr(sys, "argv", ["seeds"])
    module_of("test_rigl", test, {"run": run, "rows_of": rows_of, "seeds": seeds}).test_seeds(
        tmp_path
    )
