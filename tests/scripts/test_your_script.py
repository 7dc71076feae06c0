"""Training scripts as their users write them: two lines make each of them sparse."""

import ast
import difflib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import app
from running import given

import rigl_tf
from scripts.checks import your_script
from scripts.checks.your_script import run

pytestmark = pytest.mark.built_in_fit

# The most unusual layers and habits; the others run with `pytest -m slow`.
QUICK = {
    "collaborative_filtering",  # a subclassed model of embeddings only
    "deep_q",  # a target network that copies weights
    "distillation",  # a trained model in another one
    "fine_tuning",  # a frozen base, unfrozen later
    "gan",  # two networks, two optimizers
    "graph_attention",  # weights of the layers' own, lists of layers
    "message_passing",  # layers made in a layer's build
    "mixed_precision",
    "model_build",  # layers made in a model's build
    "no_config",  # layers without a usable config
    "nested_models",  # a subclassed model inside a Functional one
    "siamese",  # a shared encoder that the script goes on with
    "tied_weights",  # a layer passed to another one's constructor
    "transfer_learning",
    "first_call",  # layers made at the first call
}

# Their second model mixes `layer.output` of wrapped layers and of others, which are two graphs: the
# guide "Any model" says what to write in place of it.
TWO_GRAPHS = ("functional_resnet", "grad_cam")


def lines_that_differ(old, new):
    """The lines that are only in the old text, and those that are only in the new one."""
    diff = list(difflib.ndiff(old.splitlines(), new.splitlines()))
    return [[line[2:] for line in diff if line.startswith(sign)] for sign in ("- ", "+ ")]


@pytest.mark.parametrize("name", your_script.NAMES)
def test_two_lines_change(name):
    dense, sparse = your_script.dense(name), your_script.sparse(name)
    taken, put = lines_that_differ(dense, sparse)
    assert len(taken) == 2
    put.remove("import rigl_tf")
    assert len(put) == 2
    for old, new in zip(taken, put, strict=True):
        assert len(old) - len(old.lstrip()) == len(new) - len(new.lstrip())
    text = " ".join(put)
    assert text.count("rigl_tf.sparsify(") == 1
    assert "rigl_tf.RigL(" in text
    ast.parse(sparse)


def test_there_are_many_scripts_and_each_is_a_plain_one():
    assert len(your_script.NAMES) >= 28
    assert set(your_script.NAMES) > QUICK
    for name in your_script.NAMES:
        _, code = your_script.dense(name)[3:].split('"""\n', 1)
        assert "rigl" not in code, name
        assert "sparse_layers" not in code, name


SCRIPT = '''"""A script.

- model = build()
+ model = rigl_tf.sparsify(build(), 0.5)
- f(optimizer="sgd")
+ f(optimizer=rigl_tf.RigL("sgd", 10))
"""
import keras
model = build()
if model:
    f(optimizer="sgd")
'''


def test_changed():
    assert your_script.changed(SCRIPT).endswith(
        '''"""
import keras
import rigl_tf
model = rigl_tf.sparsify(build(), 0.5)
if model:
    f(optimizer=rigl_tf.RigL("sgd", 10))
'''
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("if model:", "model = build()", "once. Received: 'model = build.*', 2 times"),
        ("\nmodel = build()", "", "once. Received: 'model = build.*', 0 times"),
        ("import keras", "from keras import layers", "'import keras', 0 times"),
        ("- model = build()", "", "two lines. Received: 1 changes"),
    ],
)
def test_changed_refuses(old, new, message):
    with pytest.raises(ValueError, match=message):
        your_script.changed(SCRIPT.replace(old, new))


def tiny():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])


def trained(watch, steps=8, update_frequency=2):
    """A model that was trained, and its optimizer, while `watch` took notes."""
    model = rigl_tf.sparsify(tiny(), 0.5)
    optimizer = rigl_tf.RigL("sgd", end_step=100, update_frequency=update_frequency)
    model.compile(optimizer, "mse", run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(4 * steps, 6)).astype("float32")
    with watch.watching():
        model.fit(x, x[:, :3], batch_size=4, verbose=0)
    return model


def test_watch_counts_updates_and_moves():
    watch = run.Watch()
    build = rigl_tf.SparseOptimizer.build
    trained(watch, steps=8, update_frequency=2)
    assert rigl_tf.SparseOptimizer.build is build
    assert watch.num_updates == 3  # at steps 2, 4 and 6
    assert watch.check() == (2, 2)


def test_watch_sees_what_is_wrong():
    with pytest.raises(AssertionError, match="no sparse optimizer"):
        run.Watch().check()
    watch = run.Watch()
    trained(watch, steps=2, update_frequency=2)
    with pytest.raises(AssertionError, match="no mask update"):
        watch.check()

    watch = run.Watch()
    model = trained(watch)
    kernel = next(iter(rigl_tf.masks.sparse_kernels(model).values()))
    trained_value = np.asarray(kernel)
    kernel.assign(np.ones(kernel.shape))
    with pytest.raises(AssertionError, match="kernel"):
        watch.check()
    kernel.assign(np.where(trained_value, np.nan, 0))
    with pytest.raises(AssertionError, match="kernel"):
        watch.check()
    kernel.assign(trained_value)
    watch.check()
    masks = rigl_tf.get_masks(model)
    path, mask = next(iter(masks.items()))
    mask.flat[np.flatnonzero(mask)[0]] = False
    rigl_tf.set_masks(model, {path: mask})
    with pytest.raises(AssertionError, match="another number of connections"):
        watch.check()


def test_execute():
    """AutoGraph finds the source, and Keras the classes that are registered nowhere."""
    text = """
import keras
import tensorflow as tf

class Double(keras.layers.Layer):
    def call(self, x):
        return 2 * x

@tf.function
def positive(x):
    if x > 0:
        return x
    else:
        return 0 * x

keras.config.set_dtype_policy("mixed_float16")
inputs = keras.Input((2,), dtype="float32")
model = keras.Model(inputs, Double(dtype="float32")(inputs))
"""
    with run.execute("made_up", text) as script:
        assert float(script.positive(tf.constant(-2.0))) == 0
        loaded = run._loaded(script.model)
    np.testing.assert_array_equal(loaded(np.ones((1, 2))), [[2, 2]])
    assert keras.config.dtype_policy().name == "float32"
    assert "a_users_made_up" not in sys.modules
    with pytest.raises(TypeError, match="Could not locate class 'Double'"):
        run._loaded(script.model)


def test_main(tmp_path, monkeypatch, capsys):
    """What fails is told in its row, and the others go on."""
    texts = {"broken": SCRIPT, "loop": your_script.sparse("custom_training_loop")}
    monkeypatch.setattr(your_script, "NAMES", list(texts))
    monkeypatch.setattr(your_script, "sparse", texts.get)
    with given(run._define_flags, f"--output={tmp_path}/table.md"):
        assert run.main(["run"])  # the exit code
        with pytest.raises(app.UsageError, match="no such scripts"):
            run.main(["run", "loop", "nowhere"])
    page = (tmp_path / "table.md").read_text()
    assert "1 of 2 scripts" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| script", "| ---", "| broken", "| loop"]
    assert "**fails**: NameError: name 'build' is not defined" in " ".join(rows[2])
    # Three kernels; 40 steps, of which those from 5 to 25 in steps of 5 update the masks.
    assert rows[3][1:6] == ["3", "0.850", "5", "3 of 3", "model"]
    assert "broken" in capsys.readouterr().out


# Of Keras, on the dense script, too.
@pytest.mark.filterwarnings("ignore:Layer '.*' .* was passed an input with a mask attached to it")
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in your_script.NAMES
        if name not in TWO_GRAPHS
    ],
)
def test_script(name):
    row = run.check(name)
    moved, could = map(int, row["moved"].split(" of "))
    assert 0 < moved <= could
    assert row["updates"] >= 2
    assert 0.2 < float(row["sparsity"]) < 0.95


@pytest.mark.parametrize("name", TWO_GRAPHS)
def test_a_script_that_mixes_two_graphs(name):
    with pytest.raises(ValueError, match="All operation names should be unique"):
        run.check(name)


def test_grad_cam_of_the_given_model():
    """What the guide advises for such scripts: the given model has the same weights."""
    dense, mixed = your_script.sparse("grad_cam"), "make_gradcam_heatmap(sample, model, name)"
    assert mixed in dense
    text = dense.replace("rigl_tf.sparsify(make_model(), 0.8)", "rigl_tf.sparsify(given, 0.8)")
    text = text.replace("model = rigl_tf", "given = make_model()\nmodel = rigl_tf")
    text = text.split("# The same features")[0].replace(mixed, mixed.replace("model", "given"))
    with run.execute("grad_cam_of_the_given", text) as script:
        np.testing.assert_allclose(
            script.given.predict(script.sample, verbose=0), script.preds, atol=1e-5
        )
