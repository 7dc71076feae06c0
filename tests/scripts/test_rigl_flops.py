"""The numbers of `flops_tables` are those of the paper, README and notebooks."""

import pytest
from running import run

import models
import rigl_tf
from scripts.rigl import flops_counting, flops_tables


@pytest.fixture(scope="module")
def networks():
    return {name: flops_tables.Network(name) for name in ("resnet50", "mobilenet_v1")}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    run(flops_tables, f"--output_dir={directory}/new")
    return (directory / "new" / "flops.md").read_text()


def rows_of(text, title):
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


# Method, sparsity, layers, steps; then (published, authors' count, ours) of training, inference
# and megabytes.


@pytest.mark.parametrize(
    ("sparsity", "layers", "steps", "training", "inference", "megabytes"),
    [
        ("0.8", "ERK", "5x", "2.09", "0.42", "23.683"),
        ("0.9", "ERK", "5x", "1.23", "0.24", "13.499"),
        ("0.9", "uniform", "5x", "0.66", "0.13", "13.532"),
        ("0.95", "ERK", "5x", "0.63", "0.12", "8.399"),
        ("0.95", "uniform", "5x", "0.42", "0.08", "8.433"),
        ("0.965", "uniform", "5x", "0.34", "0.07", "6.904"),
        ("0.99", "ERK, first layer dense", "40x", "2.32", "0.05", "4.354"),
        ("0.8", "ERK", "1x", "0.42", "0.42", "23.683"),
        ("0.9", "uniform", "1x", "0.13", "0.13", "13.532"),
    ],
)
def test_the_readme(text, sparsity, layers, steps, training, inference, megabytes):
    (row,) = [
        row
        for row in rows_of(text, "ResNet-50, README")
        if row[:4] == ["RigL", sparsity, layers, steps]
    ]
    assert [row[4], row[7], row[10]] == [training, inference, megabytes]
    for published, cell in zip((training, inference, megabytes), row[5:12:3], strict=True):
        assert f"{float(cell):.{len(published) - published.index('.') - 1}f}" == published
    # Ours differ by what the page says: first layer, one FLOP for each output, normalisation.
    assert float(row[6]) == pytest.approx(float(row[5]), rel=0.06)
    assert float(row[9]) == pytest.approx(float(row[8]), rel=0.06)
    # Ours have four vectors for each of the 26,560 channels that are normalised, and the 1000
    # biases of the last layer; theirs a bias for each of the 27,560 outputs.
    num_more = 4 * (4 * 26_560 + 1000 - 27_560)
    assert float(row[12]) == pytest.approx(float(row[11]) + num_more / 1e6, abs=2e-3)


def test_what_is_not_reproduced_has_a_note(text):
    num_bold = 0
    for title in ("ResNet-50, README", "ResNet-50, figure 2", "MobileNet-v1, README"):
        for row in rows_of(text, title):
            bold = sum(cell.startswith("**") for cell in row)
            num_bold += bold
            assert not bold or row[-1]
    for title in ("ResNet-50, table 3", "ResNet-50, table 4", "MobileNet-v1, paper"):
        for row in rows_of(text, title):
            num_bold += sum(cell.startswith("**") for cell in row)
            assert "**" not in "".join(row) or row[-1] == "b"
    assert f"Of 146 published numbers the authors' count gives {146 - num_bold} to" in text
    assert num_bold == 30


def test_figure_2(text):
    rows = {tuple(row[:4]): row for row in rows_of(text, "ResNet-50, figure 2") if row[0][0] != "*"}
    assert len(rows) == 28
    for method, sparsity, layers, steps, training in (
        ("SNFS", "0.8", "ERK", "1x", "0.61"),
        ("SNFS", "0.9", "ERK", "1x", "0.50"),
        ("Pruning", "0.8", "uniform", "1x", "0.56"),
        ("Pruning", "0.9", "uniform", "1.5x", "0.76"),
        ("DSR", "0.8", "DSR", "1x", "0.40"),
        ("Small-Dense", "0.9", "dense, width 0.34", "5x", "0.60"),
    ):
        row = rows[method, sparsity, layers, steps]
        assert row[4] == training
        assert f"{float(row[5]):.2f}" == training


def test_the_dense_networks(text):
    rows = {(row[0], row[1]): row[2:] for row in rows_of(text, "Dense networks")}
    # 25,610,152 weights of ResNet-50, and 25,502,912 kernel weights with 27,560 biases.
    assert rows["resnet50", "MB"] == ["102.122", "102.122", "102.441"]
    # The multiply-adds of ResNet-50 are known: 4.089e9.
    assert rows["resnet50", "FLOPs of inference"] == ["8.2e9", "8.202e9", "8.178e9"]
    assert rows["mobilenet_v1", "MB"][:2] == ["16.864", "16.864"]
    assert rows["mobilenet_v1", "FLOPs of training"][:2] == ["4.5e17", "4.489e17"]


def test_the_networks_of_mnist(text):
    rows = rows_of(text, "MNIST, the networks of table 2")
    # 2 * (245 * 160 + 160 * 55 + 55 * 10), and four bytes for these 48,550 and 225 biases.
    assert rows[0] == ["SBP", "245-160-55", "0", "97.1", "97.10", "195100", "195100"]
    assert [row[5] == row[6] for row in rows[:3]] == [True] * 3
    for row, tolerance in zip(rows[3:], (97, 54), strict=True):
        assert abs(int(row[5]) - int(row[6])) <= tolerance


def test_the_training_of_table_2(text):
    rows = rows_of(text, "MNIST, training in table 2")
    assert [row[3] for row in rows] == [row[4] for row in rows]
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("scheme", "sparsity", "width", "megaflops", "megabytes"),
    [
        # As the authors' notebook for MobileNet-v1 prints them.
        ("dense", 0.0, 1.0, 1141.544, 16.864),
        ("ERK, depthwise dense", 0.75, 1.0, 599.144, 4.888),
        ("uniform, depthwise dense", 0.75, 1.0, 330.769, 4.894),
        ("ERK, depthwise dense", 0.85, 1.0, 439.152, 3.224),
        ("uniform, depthwise dense", 0.85, 1.0, 222.666, 3.229),
        ("ERK, depthwise dense", 0.9, 1.0, 334.134, 2.392),
        ("uniform, depthwise dense", 0.9, 1.0, 168.614, 2.396),
        ("ERK, depthwise dense", 0.95, 1.0, 205.281, 1.560),
        ("uniform, depthwise dense", 0.95, 1.0, 114.563, 1.563),
        ("dense", 0.0, 0.47, 266.539, 4.789),
        ("dense", 0.0, 0.285, 103.825, 2.236),
        ("ERK, first layer dense", 0.9, 1.0, 312.956, 2.235),
        ("ERK, first layer dense", 0.75, 1.98, 2180.140, 16.723),
        ("ERK, first layer dense", 0.9, 3.0, 2452.785, 16.664),
    ],
)
def test_the_notebook(networks, scheme, sparsity, width, megaflops, megabytes):
    count = networks["mobilenet_v1"].authors
    num_flops, size = count(scheme, sparsity, width)
    assert num_flops / 1e6 == pytest.approx(megaflops, abs=6e-4)
    assert size == pytest.approx(megabytes, abs=6e-4)


@pytest.mark.parametrize(("scheme", "name"), [("ERK", "erk"), ("uniform", "uniform")])
def test_our_count_is_that_of_the_masks(scheme, name):
    cost = rigl_tf.flops.count(rigl_tf.sparsify(models.lenet5(), 0.9, name))
    ours = flops_counting.Ours(models.lenet5)
    assert ours(scheme, 0.9) == (cost.flops, cost.num_bytes / 1e6)


def test_the_kernels_of_mobilenet(networks):
    # 4,253,864 weights, of which are 4 * 10,944 of normalisations and 1000 biases.
    cost = networks["mobilenet_v1"].ours.dense()
    assert len(cost.kernels) == 28
    assert (cost.num_weights, cost.num_other_weights) == (4_253_864, 4 * 10_944 + 1000)
    # The 568.7 million multiply-adds that the MobileNet paper rounds to 569.
    assert round(cost.multiply_adds / 1e6) == 569


def test_a_wide_network_has_the_kernels_that_the_authors_count(networks):
    # Big-Sparse: 63, 126, 253, 506, 1013 and 2027 channels.
    ours, authors = networks["mobilenet_v1"].ours, networks["mobilenet_v1"].authors
    shapes = {kernel.path: kernel.shape for kernel in ours.dense(1.98).kernels}
    assert shapes == {path: authors._scaled(path, 1.98) for path in shapes}
    assert shapes["conv1/kernel"] == (3, 3, 3, 63)
    assert shapes["conv_dw_2/kernel"] == (3, 3, 126, 1)
    assert shapes["conv_pw_6/kernel"] == (1, 1, 506, 1013)
    assert shapes["conv_preds/kernel"] == (1, 1, 2027, 1000)


def test_gradual_pruning():
    steps = (0, 9_999, 10_000, 17_500, 25_000, 32_000)
    shares = [flops_counting.pruning_sparsity(0.8, step) for step in steps]
    assert shares == pytest.approx([0, 0, 0, 0.8 * 7 / 8, 0.8, 0.8])
    # At 0 and half-way: 0 and 0.7 zeros, each step as dear as what is left.
    assert flops_counting.pruning_flops(
        lambda scheme, sparsity: (100 * (1 - sparsity), None), "uniform", 0.8, (0, 17_500)
    ) == pytest.approx((100 + 30) / 2)
