"""Tests of `rigl_tf.report`: what is on the page, in a headless Chromium where there is one."""

import html
import math
import os
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part, half, mlp, numbers, sequential
from pages import HISTORY, lenet

import rigl_tf
from rigl_tf.reports import moves, pictures
from rigl_tf.reports.curves import Curves
from rigl_tf.reports.kernels import as_image, kernels_of
from rigl_tf.reports.pictures import at_most, shortened

layers = keras.layers
pytestmark = covers_part


def text_of(path):
    """The words of a page, those beside pictures too."""
    page = path.read_text(encoding="utf-8")
    alts = " ".join(re.findall(r'alt="([^"]*)"', page))
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)) + alts)


def write(tmp_path, model, history=None, **arguments):
    return text_of(rigl_tf.report(model, history, tmp_path / "report.html", **arguments))


def test_what_the_page_tells(tmp_path):
    model = lenet()
    text = write(tmp_path, model, HISTORY, command="python train.py --epochs=3")
    assert "loss over the epochs; at the end training 1.25, validation 1.5" in text
    assert "seconds per update over the epochs; at the end training 0.5" in text
    assert "unknown" not in text
    # 288 of 2880 connections, 100 of 200; 30 biases.
    assert "Sparsity of each kernel: first 90.0%, last 50.0%" in text
    assert "Moves for each active connection: first 0.50, last 0.25" in text
    assert "FLOPs for one example 6,160 776 0.126" in text
    assert "weights 3,110 418 0.134" in text
    assert f"bytes stored, values and a bit mask 12,440 {4 * 418 + 360 + 25:,}" in text
    # 3110 float32 weights, and a byte of a mask for each of 3080.
    assert "memory of the weights now, in bytes 12,440 15,520" in text
    assert "python train.py --epochs=3" in text
    assert f"Keras {keras.__version__}" in text
    counts = rigl_tf.get_masks(model)["first/kernel"].sum(axis=1)
    assert f"Active connections of each input pixel: {counts.min()} to {counts.max()}" in text
    mask = rigl_tf.get_masks(model)["first/kernel"]
    assert f"{(~mask.any(axis=1)).sum()} of 144" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_dead_units(tmp_path):
    model = half(mlp(6, 8, 3, names=("one", "two")))
    mask = np.ones((6, 8), bool)
    mask[:, :3] = False
    mask[5] = False
    rigl_tf.set_masks(model, {"sequential/one/kernel": mask})
    text = write(tmp_path, model)
    assert "Units without an active connection: one 3 of 8, two 0 of 3" in text
    assert "3 of 8 1 of 6" in text
    live = rigl_tf.live_units(model)
    assert f"{sum(map(len, live[1:]))} units have a way from the inputs" in text


def test_an_export(tmp_path):
    model = lenet()
    report = rigl_tf.export(model, tmp_path / "lenet")
    text = write(tmp_path, model, export=[report])
    assert f"bytes on disk {report.file_bytes:,}" in text
    assert f"largest difference to the outputs of the model {report.max_difference:.2g}" in text
    assert report.latencies
    for latency in report.latencies:
        assert f"time of a call, {latency.batch_size} examples {latency}" in text
    assert report.kernels
    for each in report.kernels:
        assert f"{each.path} {each.sparsity:.1%} {each.structure} {each.kernel}" in text


def trained_csr():
    model = half(mlp(), execution="csr")
    model.compile(rigl_tf.SET("adam", end_step=4, update_frequency=2), "mse")
    logger = rigl_tf.callbacks.SparsityLogger()
    x, y = numbers((16, 6)), numbers((16, 3))
    return model, model.fit(x, y, batch_size=4, verbose=0, callbacks=[logger])


def test_a_csr_model_and_what_fit_returned(tmp_path):
    model, history = trained_csr()
    text = write(tmp_path, model, history)
    assert "Sparsity of each kernel: dense 50.0%, dense_1 50.0%" in text
    first = history.history["moved/sequential/dense/kernel"][0] / 24
    assert f"Moves for each active connection: dense {first:.2f}" in text
    assert "memory of the optimizer's state" in text
    (mask, _), (kernel, _) = rigl_tf.get_masks(model).values(), kernels_of(model)[0]
    np.testing.assert_array_equal(kernel.inputs, mask.sum(axis=1))


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.one, self.two = layers.Dense(8), layers.Dense(3)

        def call(self, inputs):
            return self.two(self.one(inputs))

    model = half(Own())
    model(np.zeros((2, 6)))
    return model


def recurrent():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(200, 4, name="embedding")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GRU(5, name="gru")(x)))
    return rigl_tf.sparsify(model, 0.5, sparse_layers=("embedding",))


def convolutions():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Conv2DTranspose(4, 3)(x)
    x = layers.EinsumDense("abcd,de->abce", output_shape=(6, 6, 5))(x)
    return half(keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))))


def nested():
    inner = mlp(6, 8, 5, name="inner")
    return half(keras.Sequential([keras.Input((6,)), inner, layers.Dense(3)]))


def pruned():
    return rigl_tf.sparsify(mlp(), 0.0)


@pytest.mark.parametrize(
    "make", [subclassed, recurrent, convolutions, nested, pruned, lambda: rigl_tf.strip(lenet())]
)
def test_any_model(make, tmp_path):
    model = make()
    text = write(tmp_path, model)
    found, has_masks = kernels_of(model)
    if has_masks:
        active = [int(mask.sum()) for mask in rigl_tf.get_masks(model).values()]
        assert [each.num_active for each in found] == active
    assert len(found) >= 2
    assert all(int(each.inputs.sum()) == each.num_active for each in found)
    assert f"All {len(found)} sparse kernels" in text
    assert has_masks or "zeros are counted" in text


def test_flops_of_a_model_that_does_not_know_its_inputs(tmp_path):
    model = subclassed()
    assert "FLOPs and stored bytes are not counted: " in write(tmp_path, model)
    text = write(tmp_path, model, inputs=tf.TensorSpec((1, 6)))
    assert "FLOPs for one example 144 72 0.500" in text


def test_a_dense_model(tmp_path):
    text = write(tmp_path, mlp(), {"loss": [1.0]})
    assert "No kernel of this model is sparse." in text
    assert "FLOPs for one example 144 144 1.000" in text


def test_the_picture_of_the_inputs():
    model = lenet()
    mask = np.zeros((144, 20), bool)
    mask[25, :7] = True  # the second pixel of the third row
    rigl_tf.set_masks(model, {"first/kernel": mask})
    matrix, what = as_image(kernels_of(model)[0][0], model)
    assert what == "each input pixel"
    assert matrix.shape == (12, 12)
    assert matrix[2, 1] == 7 == matrix.sum()
    found, _ = kernels_of(convolutions())
    matrix, _ = as_image(found[0], None)
    assert matrix.shape == (9, 3)


IMAGE = (4, 4, 2)


def what_it_reads(*before, execution="masked"):
    """What the picture of a sparse Dense layer shows, with other layers before it."""
    model = sequential(IMAGE, *before, layers.Dense(3, name="first"))
    model = rigl_tf.sparsify(model, {"first": 0.5}, execution=execution)
    (kernel,), _ = kernels_of(model)
    assert kernel.inputs.shape == (32,)
    return as_image(kernel, model)[1]


@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_pixels_are_shown_where_their_order_is_kept(execution):
    noise, scale = layers.GaussianNoise(0.1), layers.Rescaling(0.1)
    before = scale, noise, layers.Flatten(), layers.Dropout(0.1), layers.ReLU()
    assert what_it_reads(*before, execution=execution) == "each input pixel"
    assert what_it_reads(keras.Sequential([scale, layers.Reshape((32,))])) == "each input pixel"


@pytest.mark.parametrize(
    "before",
    [
        (layers.Conv2D(2, 1), layers.Flatten()),
        (layers.Conv2D(8, 2, 2), layers.Flatten()),
        (layers.Permute((2, 1, 3)), layers.Flatten()),
        (layers.Flatten(data_format="channels_first"),),
        (layers.Flatten(), layers.Dense(32)),
        (keras.Sequential([layers.Conv2D(2, 1), layers.Flatten()]),),
        (layers.Lambda(lambda x: x[:, ::-1]), layers.Flatten()),
    ],
)
def test_features_are_not_called_pixels(before):
    assert what_it_reads(*before) == "each input, row by row"


def test_pixels_of_nested_shared_and_subclassed_models():
    def what(model):
        model = rigl_tf.sparsify(model, {"first": 0.5})
        return as_image(kernels_of(model)[0][0], model)[1]

    def inner():
        return sequential(IMAGE, layers.Flatten(), layers.Dense(3, name="first"))

    assert what(sequential(IMAGE, layers.Rescaling(0.1), inner())) == "each input pixel"
    assert what(sequential(IMAGE, layers.Conv2D(2, 1), inner())) == "each input, row by row"
    inputs, shared = keras.Input(IMAGE), layers.Dense(3, name="first")
    features = layers.Flatten()(layers.Conv2D(2, 1)(inputs))
    outputs = [shared(layers.Flatten()(inputs)), shared(features)]
    assert what(keras.Model(inputs, outputs)) == "each input, row by row"

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(3, name="first")

        def call(self, inputs):
            return self.first(keras.ops.reshape(inputs[:, ::-1], (-1, 32)))

    own = Own()
    own(np.zeros((1, *IMAGE)))
    assert what(own) == "each input, row by row"


def test_large_matrices_become_means():
    matrix = np.arange(512.0 * 3).reshape(512, 3)
    small = at_most(matrix)
    assert small.shape == (256, 3)
    np.testing.assert_array_equal(small[0], [1.5, 2.5, 3.5])


def test_labels_that_are_long():
    labels = [f"a_very_long_name_of_a_block_{n}_of_the_network" for n in range(12)]
    assert shortened(labels)[:2] == ["…0…", "…1…"]
    labels = ["x" * 30 + "_a_" + "y" * 30, "x" * 30 + "_b_" + "y" * 30, "z" * 70]
    assert len(set(shortened(labels))) == 3
    assert all(len(each) < 30 for each in shortened(labels))
    assert shortened(["dense"]) == ["dense"]


def test_names_are_text(tmp_path):
    """What looks like HTML, TeX or another script is written as it is."""
    model = half(mlp(6, 8, 3, names=("$x_1$ <b>", "日本\u202e")))
    path = rigl_tf.report(model, {"<script>": [1.0, 2.0]}, tmp_path / "r.html", command="a <b> & c")
    page = path.read_text()
    assert "<script>" not in page
    assert "<b>&" not in page
    assert "a &lt;b&gt; &amp; c" in page
    assert "$x_1$ <b>" in text_of(path)


@pytest.mark.parametrize(("first", "expected"), [(0, [1, 2]), (1, [1, 2]), (3, [4, 5])])
def test_a_csv_file(tmp_path, first, expected):
    path = tmp_path / "log.csv"
    path.write_text(f"epoch,loss,other\n{first},2.0,\n{first + 1},1.0,nan\n")
    assert Curves(path).epochs == expected
    text = write(tmp_path, lenet(), str(path))
    assert "loss over the epochs; at the end training 1" in text


def test_a_csv_file_of_a_training_that_was_resumed(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,4\n1,3\n10,2\n11,1\n")
    assert Curves(path).epochs == [1, 2, 11, 12]
    path.write_text("epoch,loss\n0,4\n1,3\n0,2\n1,1\n")  # begun anew
    assert Curves(path).epochs == [1, 2, 3, 4]


def inputs_of(model, path):
    """For each kernel the number of inputs without a connection and of all, also on the page."""
    found, _ = kernels_of(model)
    text = write(path, model)
    assert all(f"{each.num_unread} of {each.inputs.shape[-1]}" in text for each in found)
    return [(each.num_unread, each.inputs.shape[-1]) for each in found]


@pytest.mark.parametrize("equation", ["abc,bcd->ad", "abc,cbd->ad", "abc,cd->abd"])
def test_inputs_of_csr_kernels_are_those_of_masked_ones(equation, tmp_path):
    inputs = keras.Input((4, 6))
    axes = {"b": 4, "c": 6, "d": 5}
    shape = tuple(axes[letter] for letter in equation.partition(",")[2].partition("-")[0])
    outputs = (4, 5) if equation.endswith("abd") else (5,)
    model = keras.Model(inputs, keras.layers.EinsumDense(equation, outputs)(inputs))
    model = rigl_tf.sparsify(model, 0.5)
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 == 0
    mask[0] = False
    rigl_tf.set_masks(model, dict.fromkeys(rigl_tf.get_masks(model), mask))
    rows = mask.reshape(-1, 5).any(axis=1)
    expected = [(int((~rows).sum()), rows.size)]
    assert inputs_of(model, tmp_path) == expected
    assert inputs_of(rigl_tf.with_execution(model, "csr"), tmp_path) == expected


def test_inputs_of_groups_and_of_depthwise_kernels(tmp_path):
    inputs = keras.Input((5, 5, 4))
    grouped = keras.layers.Conv2D(6, 1, groups=2)(inputs)
    depthwise = keras.layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    model = keras.Model(inputs, [grouped, depthwise])
    model = rigl_tf.sparsify(model, 0.5, sparse_layers=["depthwise"])
    chosen = {path: np.ones_like(mask) for path, mask in rigl_tf.get_masks(model).items()}
    of_groups, of_depthwise = chosen
    chosen[of_groups][:, :, 0, 3:] = False  # input channel 2, which only the second group reads
    chosen[of_depthwise][:, :, 0] = False
    rigl_tf.set_masks(model, chosen)
    assert inputs_of(model, tmp_path) == [(1, 4), (1, 4)]
    unread = [each.inputs.reshape(-1, 4).sum(axis=0) == 0 for each in kernels_of(model)[0]]
    assert [list(np.flatnonzero(each)) for each in unread] == [[2], [0]]


def test_other_layers_may_have_groups(tmp_path):
    class Grouped(keras.layers.Layer):
        groups = 4

        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 7))

        def call(self, x):
            return x @ self.kernel

    model = rigl_tf.sparsify(keras.Sequential([keras.Input((6,)), Grouped()]), 0.5)
    assert inputs_of(model, tmp_path)[0][1] == 6


def test_a_kernel_of_zeros_is_shown(tmp_path):
    model = half(mlp(6, 8, 3))
    first, last = rigl_tf.get_masks(model).items()
    rigl_tf.set_masks(model, {last[0]: np.zeros_like(last[1])})
    found, has_masks = kernels_of(rigl_tf.strip(model))
    assert not has_masks
    assert [each.num_active for each in found] == [first[1].sum(), 0]


def test_moves_are_not_those_of_another_model(tmp_path):
    model = half(mlp(6, 8, 3))
    model.compile(rigl_tf.SET("sgd", end_step=4, update_frequency=2), "mse")
    logger = rigl_tf.callbacks.SparsityLogger()
    arguments = {"batch_size": 4, "verbose": 0, "epochs": 2, "callbacks": [logger]}
    history = model.fit(numbers((16, 6)), numbers((16, 3)), **arguments)
    assert "How often connections moved is not shown" not in write(tmp_path, model, history)
    path, mask = next(iter(rigl_tf.get_masks(model).items()))
    mask[:, :4] = False
    rigl_tf.set_masks(model, {path: mask})
    assert "How often connections moved is not shown" in write(tmp_path, model, history)


def test_a_model_without_outputs(tmp_path):
    class Parts(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator = half(mlp())

    model = Parts()
    with pytest.raises(ValueError, match="has no `call`, so no outputs of its own"):
        write(tmp_path, model)
    with pytest.raises(ValueError, match="has no `call`, so no outputs of its own"):
        rigl_tf.flops.count(model)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_file_of_csv_logger(tmp_path, separator):
    model = half(mlp())
    model.compile(rigl_tf.SET("sgd", end_step=4, update_frequency=2), "mse")
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv", separator=separator)
    x, y = numbers((16, 6)), numbers((16, 3))
    arguments = {"batch_size": 4, "verbose": 0, "validation_data": (x, y), "epochs": 4}
    logger = rigl_tf.callbacks.SparsityLogger()
    history = model.fit(x, y, validation_freq=2, callbacks=[logger, table], **arguments)
    for curves in (Curves(tmp_path / "log.csv"), Curves(history)):
        assert curves.of_all["loss"] == pytest.approx(history.history["loss"])
        second, fourth = history.history["val_loss"]
        expected = [math.nan, second, math.nan, fourth]
        assert curves.of_all["val_loss"] == pytest.approx(expected, nan_ok=True)
        assert curves.of_kernels["moved"].keys() == rigl_tf.get_masks(model).keys()


def frequent(number, epochs, first=1, name="val_loss"):
    """The epochs of a list with so many numbers, and what the page says of them."""
    history = keras.callbacks.History()
    history.epoch = list(range(first - 1, first - 1 + epochs))
    history.history = {"loss": [1.0] * epochs, name: [2.0] * number}
    curves = Curves(history)
    assert curves.epochs[0] == first
    known = zip(curves.epochs, curves.of_all[name], strict=True)
    return [epoch for epoch, x in known if x == 2], " ".join(curves.estimates)


def test_validation_that_is_not_in_every_epoch(tmp_path):
    assert frequent(2, 6) == ([3, 6], "")
    assert frequent(2, 5) == ([2, 4], "")
    assert frequent(3, 6, first=5) == ([6, 8, 10], "")
    assert frequent(6, 6) == ([1, 2, 3, 4, 5, 6], "")
    # 3 and 6, or 4 and 8.
    epochs, says = frequent(2, 8)
    assert epochs == [4, 8]
    assert "val_loss: the history has 2 numbers for 8 epochs and does not say for which." in says
    assert "as of fit(validation_freq=4), though other frequencies would fit" in says
    # A list of epochs, and a number that is not of validation.
    assert frequent(4, 6)[0] == [3, 4, 5, 6]
    epochs, says = frequent(2, 6, name="own")
    assert epochs == [5, 6]
    assert "own: the history has 2 numbers for 6 epochs" in says
    assert says.endswith("They are drawn at the last ones.")
    assert says in write(tmp_path, lenet(), {"loss": [1.0] * 6, "own": [2.0] * 2})


def test_numbers_with_gaps_are_joined_by_a_line():
    """Many epochs have no dots, so a number between two gaps could not be seen."""
    epochs, gaps = range(1, 52), [2.0, math.nan] * 25 + [2.0]
    drawn = [pictures.curves("loss", epochs, {"all": each}) for each in (gaps, [2.0] * 51)]
    assert drawn[0].images == drawn[1].images


def test_the_epochs_of_a_history_of_several_calls_of_fit():
    model = mlp()
    model.compile("sgd", "mse")
    history = keras.callbacks.History()
    x, y = numbers((4, 6)), numbers((4, 3))
    for begin, end in ((0, 2), (2, 5)):
        model.fit(x, y, epochs=end, initial_epoch=begin, callbacks=[history], verbose=0)
    assert Curves(history).epochs == [1, 2, 3, 4, 5]


def test_numbers_of_the_whole_range(tmp_path):
    text = write(tmp_path, lenet(), {"loss": [1e308, -1e308, math.inf, -1e308]})
    assert "at the end training -1e+308" in text


def moves_in(tmp_path, model, moved):
    """The moves of each kernel from the sorted columns of a file, and from a dictionary."""
    columns = {"sparsity": [0.5], **{f"moved/{path}": [each] for path, each in moved.items()}}
    names = sorted(columns)
    cells = (str(columns[name][0]) for name in names)
    (tmp_path / "log.csv").write_text(f"{','.join(names)}\n{','.join(cells)}\n")
    found, _ = kernels_of(model)
    return tuple(moves.of_kernels(found, Curves(each)) for each in (tmp_path / "log.csv", columns))


def test_moves_of_a_model_with_other_paths(tmp_path):
    def four(*names, name="new"):  # with 8 active connections in each kernel
        return half(mlp(4, *[4] * len(names), names=names, name=name))

    # Another name of the model, or other numbers after the names.
    certain = [1.0, 2.0, 3.0]
    model = four("one", "a", "two")
    moved = {"old/one/kernel": 8, "old/a/kernel": 16, "old/two/kernel": 24}
    assert moves_in(tmp_path, model, moved) == (certain, certain)
    moved = {"old_3/one_2/kernel": 8, "old_3/a_10/kernel": 16, "old_3/two/kernel": 24}
    assert moves_in(tmp_path, model, moved) == (certain, certain)
    # Numbers count where only the name of the model differs.
    model = four("dense_2", "dense", "dense_1")
    moved = {"old/dense_2/kernel": 8, "old/dense/kernel": 16, "old/dense_1/kernel": 24}
    assert moves_in(tmp_path, model, moved) == (certain, certain)
    # Only the order tells which is which, and a file does not have it.
    model = four("dense_9", "dense_10", "dense_11")
    moved = {"old/dense/kernel": 8, "old/dense_1/kernel": 16, "old/dense_2/kernel": 24}
    assert moves_in(tmp_path, model, moved) == (None, certain)
    moved = {"in/dense/kernel": 8, "out/dense_1/kernel": 16, "mid/dense_2/kernel": 24}
    assert moves_in(tmp_path, model, moved) == (None, certain)
    # Not as many kernels; and one alone.
    assert moves_in(tmp_path, model, {"old/dense/kernel": 8}) == (None, None)
    assert moves_in(tmp_path, four("new"), {"old/dense/kernel": 8}) == ([1.0], [1.0])
    # A dictionary of such a file is sorted, too.
    found, _ = kernels_of(four("b", "a"))
    assert moves.of_kernels(found, Curves({"moved/x": [8], "moved/y": [16]})) is None


def test_the_page_says_why_there_are_no_moves(tmp_path):
    model = half(mlp(4, 4, 4, names=("one", "two")))
    (tmp_path / "log.csv").write_text("moved/a/kernel,moved/b/kernel\n8,16\n")
    assert "not certain which belong together" in write(tmp_path, model, tmp_path / "log.csv")
    assert "known if the history is of a training with" in write(tmp_path, model, {"loss": [1.0]})


def test_every_number_of_the_logger_is_under_sparsity(tmp_path):
    names = [f"drop_fraction{end}" for end in ("", "_2", "_3")]
    history = {"loss": [1.0], **{name: [0.5] for name in names}}
    page = rigl_tf.report(lenet(), history, tmp_path / "report.html").read_text()
    begin = page.index("<h2>Sparsity</h2>")
    assert all(page.index(f">{name.replace('_', ' ')}<") > begin for name in names)
    assert page.index(">loss<") < begin


def test_an_earlier_page_is_replaced_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    rigl_tf.report(lenet(), path=path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            rigl_tf.report(half(mlp()), path=path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    rigl_tf.report(half(mlp()), path=path)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "report.pdf"}, "must be a file that ends with '.html'"),
        ({"history": 3}, "`history` must be what `fit` returns"),
        ({"history": {"loss": 3.0}}, "`history` must be what `fit` returns"),
        ({"history": "missing.csv"}, "`history` must be what `fit` returns.*missing.csv"),
        ({"history": __file__}, "`history` must be what `fit` returns.*without numbers"),
        ({"export": "folder"}, "`export` must be what `rigl_tf.export` returned"),
        ({"export": ["folder"]}, "`export` must be what `rigl_tf.export` returned"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        rigl_tf.report(lenet(), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make", [lambda: "model", lambda: keras.Sequential([layers.Dense(3)]), lambda: layers.Dense(3)]
)
def test_wrong_models(make):
    with pytest.raises(ValueError, match=r"needs a built `keras\.Model`"):
        rigl_tf.report(make())


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="needs the package 'matplotlib': `pip install"):
        rigl_tf.report(lenet(), path=tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
