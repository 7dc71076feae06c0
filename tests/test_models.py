import keras
import numpy as np
import pytest

import models

SMALL = {
    "lenet_300_100": {"width": 0.05},
    "lenet5": {"width": 0.3},
    "resnet20": {"width": 0.2, "input_shape": (8, 8, 3)},
    "resnet50": {"width": 0.1, "input_shape": (32, 32, 3)},
    "vgg16": {"width": 0.1},
    "wide_resnet": {"depth": 10, "width": 0.5, "input_shape": (8, 8, 3)},
}


@pytest.fixture(scope="module")
def resnet20():
    return models.resnet20()


def trainable_parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def shapes(model):
    return {w.path: tuple(w.shape) for w in model.trainable_weights if w.path.endswith("kernel")}


def test_lenet_300_100_parameters():
    # 784*300 + 300 + 300*100 + 100 + 100*10 + 10 = 235,500 + 30,100 + 1,010
    assert models.lenet_300_100().count_params() == 266_610


@pytest.mark.parametrize("input_shape", [(784,), (28, 28), (28, 28, 1)])
def test_lenet_300_100_flattens_any_input(input_shape):
    model = models.lenet_300_100(input_shape)
    assert model(np.zeros((2, *input_shape), "float32")).shape == (2, 10)
    assert model.count_params() == 266_610


def test_lenet_300_100_takes_digits():
    # 64*300 + 300 + 300*100 + 100 + 100*10 + 10 = 19,500 + 30,100 + 1,010
    assert models.lenet_300_100((8, 8)).count_params() == 50_610


def test_lenet5_parameters():
    # conv 25*6 + 6 = 156; conv 25*6*16 + 16 = 2,416; 28 -> 24 -> 12 -> 8 -> 4, so
    # 256*120 + 120 = 30,840; 120*84 + 84 = 10,164; 84*10 + 10 = 850
    assert models.lenet5().count_params() == 44_426


def test_lenet5_refuses_inputs_that_would_vanish():
    assert models.lenet5((16, 16, 1)).output_shape == (None, 10)
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels. Received: .*\(15, 28, 1\)"):
        models.lenet5((15, 28, 1))
    with pytest.raises(ValueError, match="height, width, channels"):
        models.lenet5((28, 28))


def test_resnet20_parameters(resnet20):
    # n = 3 blocks per stage. Convolutions: 27*16 = 432; stage 1: 6 * 9*16*16 = 13,824;
    # stage 2: 9*16*32 + 5 * 9*32*32 = 50,688; stage 3: 9*32*64 + 5 * 9*64*64 = 202,752.
    # Batch normalisation, scale and offset: 2 * (7*16 + 6*32 + 6*64) = 1,376. Logits: 650.
    assert trainable_parameters(resnet20) == 432 + 13_824 + 50_688 + 202_752 + 1_376 + 650
    assert trainable_parameters(resnet20) == 269_722
    # The moving means and variances are as many as the scales and offsets.
    assert resnet20.count_params() == 269_722 + 1_376


def test_resnet32_parameters():
    # Two more blocks per stage: 4 * 9*(16*16 + 32*32 + 64*64) + 2 * 4*(16 + 32 + 64)
    assert trainable_parameters(models.resnet32()) == 269_722 + 4 * 48_384 + 896 == 464_154


def test_resnet56_parameters():
    # Six more blocks per stage than ResNet-20: 12 * 48,384 + 6 * 448
    assert trainable_parameters(models.resnet56()) == 269_722 + 12 * 48_384 + 2_688 == 853_018


def test_resnet_layers_have_stable_names(resnet20):
    names = [layer.name for layer in resnet20.layers]
    assert len(names) == len(set(names))
    convolutions = [x.name for x in resnet20.layers if isinstance(x, keras.layers.Conv2D)]
    assert convolutions == ["conv_1"] + [
        f"stage{s}_block{b}_conv{c}" for s in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2)
    ]
    assert names[-1] == "classifier"
    assert not any(layer.use_bias for layer in resnet20.layers if layer.name in convolutions)


def test_resnet_stages_halve_the_image(resnet20):
    for stage, shape in ((1, (32, 32, 16)), (2, (16, 16, 32)), (3, (8, 8, 64))):
        assert resnet20.get_layer(f"stage{stage}_block3_relu").output.shape[1:] == shape


@pytest.mark.parametrize(("size", "width"), [(8, 0.2), (7, 0.25), (8, 0.01)])
def test_shortcut_is_every_second_pixel_between_channels_of_zeros(size, width):
    model = models.resnet20((size, size, 3), width=width)
    before = model.get_layer("stage1_block3_relu").output
    add = model.get_layer("stage2_block1_add")
    branch = model.get_layer("stage2_block1_conv2_bn").output
    probe = keras.Model(model.input, [before, branch, add.output])
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
    before, branch, added = (t.numpy() for t in probe(x))
    missing = branch.shape[-1] - before.shape[-1]
    assert missing == {0.2: 3, 0.25: 4, 0.01: 0}[width]
    shortcut = np.zeros_like(branch)
    start = missing // 2
    shortcut[..., start : start + before.shape[-1]] = before[:, ::2, ::2]
    np.testing.assert_allclose(added, branch + shortcut, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "want"),
    [
        # Those of the usual implementations in PyTorch, which count the same parameters.
        (lambda: models.resnet50(), 25_557_032),
        (lambda: models.wide_resnet(16, 4), 2_748_890),
        (lambda: models.wide_resnet(28, 2), 1_467_610),
        (lambda: models.vgg16(), 14_728_266),
        (lambda: models.vgg19(), 20_040_522),
        (lambda: models.mobilenet_v1(), 4_231_976),
        (lambda: models.vision_transformer(), 22_050_664),
        (lambda: models.mobilenet_v2(), 3_504_872),
    ],
)
def test_parameters_of_the_papers_networks(build, want):
    assert trainable_parameters(build()) == want


def test_wide_resnet_22_2_parameters():
    # n = 3 blocks a stage. Convolutions: 27*16; stage 1: 9*16*32 + 5 * 9*32*32 + 16*32;
    # stage 2: 9*32*64 + 5 * 9*64*64 + 32*64; stage 3: 9*64*128 + 5 * 9*128*128 + 64*128.
    convolutions = 432 + 51_200 + 204_800 + 819_200
    # Two numbers a channel for each normalisation, one before each convolution of a block: 16 and
    # five times 32, 32 and five times 64, 64 and five times 128; 128 at the end; then the logits.
    others = 2 * (16 + 5 * 32 + 32 + 5 * 64 + 64 + 5 * 128 + 128) + 1_280 + 10
    model = models.wide_resnet(22, 2)
    assert trainable_parameters(model) == convolutions + others == 1_079_642
    assert model.output_shape == (None, 10)
    with pytest.raises(ValueError, match="Received: depth=20"):
        models.wide_resnet(20, 2)


def test_wide_networks():
    # Big-Sparse: about four times the weights at twice the width.
    narrow, wide = models.mobilenet_v1(width=1.0), models.mobilenet_v1(width=1.98)
    assert 3 < wide.count_params() / narrow.count_params() < 4
    assert models.resnet50((64, 64, 3), width=0.5).get_layer("stage4_block3_conv3").filters == 1024


def test_width_scales_the_hidden_layers_only():
    assert shapes(models.lenet_300_100((784,), num_classes=7, width=0.1)) == {
        "dense_1/kernel": (784, 30),
        "dense_2/kernel": (30, 10),
        "classifier/kernel": (10, 7),
    }
    # (3, 8, 60, 42): 78 + 608 + (16*8*60 + 60) + (60*42 + 42) + 430
    assert models.lenet5(width=0.5).count_params() == 11_418
    assert set(shapes(models.resnet20((8, 8, 1), width=0.5)).values()) == {
        (3, 3, 1, 8),
        (3, 3, 8, 8),
        (3, 3, 8, 16),
        (3, 3, 16, 16),
        (3, 3, 16, 32),
        (3, 3, 32, 32),
        (32, 10),
    }
    assert shapes(models.lenet_300_100((4,), width=1e-6))["dense_1/kernel"] == (4, 1)


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_width_must_be_positive(width):
    with pytest.raises(ValueError, match=r"`width` must be greater than 0. Received: width="):
        models.lenet_300_100(width=width)


@pytest.mark.parametrize("name", SMALL)
def test_l2_penalises_every_kernel(name):
    assert models.build(name, **SMALL[name]).losses == []
    model = models.build(name, l2=0.01, **SMALL[name])
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    expected = [0.01 * np.sum(np.square(kernel.numpy())) for kernel in kernels]
    np.testing.assert_allclose([float(loss) for loss in model.losses], expected, rtol=1e-5)


def test_l2_must_not_be_negative():
    with pytest.raises(ValueError, match=r"`l2` must be at least 0. Received: l2=-0.1"):
        models.lenet_300_100(l2=-0.1)


@pytest.mark.parametrize("name", SMALL)
def test_saved_model_loads_without_custom_objects(name, tmp_path):
    model = models.build(name, l2=1e-4, num_classes=3, **SMALL[name])
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert model(x).shape == (2, 3)
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_array_equal(keras.models.clone_model(model)(x).shape, (2, 3))


def test_logits_are_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.lenet_300_100((4,), width=0.1)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("dense_2").compute_dtype == "bfloat16"
    logits = model(np.ones((1, 4), "float32"))
    assert logits.dtype == "float32"
    assert float(keras.ops.sum(logits)) != pytest.approx(1.0)  # not probabilities


def test_build_knows_every_builder_by_its_name():
    assert {name: builder.__name__ for name, builder in models.BUILDERS.items()} == {
        name: name for name in models.BUILDERS
    }
    assert {"lenet_300_100", "lenet5", "resnet20", "resnet50", "vgg19", "wide_resnet"} < set(
        models.BUILDERS
    )
    assert models.build("lenet5", num_classes=4).name == "lenet5"
    with pytest.raises(
        ValueError,
        match=r"lenet_300_100, lenet5, resnet20, .*, wide_resnet. Received: name='vgg'",
    ):
        models.build("vgg")


def test_count_kernel_weights_leaves_biases_and_normalisation_out(resnet20):
    assert models.count_kernel_weights(models.lenet_300_100()) == 266_610 - 410
    assert models.count_kernel_weights(resnet20) == 269_722 - 1_376 - 10


@pytest.mark.parametrize(
    ("builder", "kwargs", "target"),
    [
        ("lenet_300_100", {}, 26_620),  # 90 % sparse
        ("lenet_300_100", {}, 5_324),  # 98 %
        ("lenet_300_100", {"input_shape": (2,)}, 266_200),  # wider than 1
        ("lenet5", {}, 2_210),  # 95 %
    ],
)
def test_small_dense_twin_is_the_widest_that_fits(builder, kwargs, target):
    built = []

    def counted(**kwargs):
        built.append(kwargs["width"])
        return models.build(builder, **kwargs)

    def weights(width):
        return models.count_kernel_weights(models.build(builder, width=width, **kwargs))

    width = models.small_dense_width(counted, target, **kwargs)
    assert weights(width) <= target < weights(width + 1 / 2048)
    assert len(built) == 12 if width < 1 else len(built) < 20


def test_small_dense_twin_by_hand():
    # (30, 10) units have 784*30 + 30*10 + 10*10 = 23,920 weights. With one less allowed, the first
    # layer gives one up; the second drops to 9 units only below width 9.5/100 (28 or 29 units).
    for target, units in ((23_920, [30, 10]), (23_919, [29, 10])):
        width = models.small_dense_width(models.lenet_300_100, target)
        twin = models.lenet_300_100(width=width)
        assert [twin.get_layer(f"dense_{i}").units for i in (1, 2)] == units


def test_small_dense_twin_that_cannot_exist():
    # One unit in each hidden layer: 784 + 1 + 10 weights.
    assert 0 < models.small_dense_width(models.lenet_300_100, 795) < 0.005
    with pytest.raises(ValueError, match=r"narrowest model, 795. Received: target_parameters=794"):
        models.small_dense_width(models.lenet_300_100, 794)


def test_vision_transformer(tmp_path):
    small = {"input_shape": (8, 12, 3), "num_classes": 5, "patch": 4, "units": 6, "heads": 2}
    model = models.vision_transformer(depth=1, **small)
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype("float32")
    y = model(x)
    assert y.shape == (2, 5)
    # Positions are learned: patches that change places change the logits.
    assert np.abs(y - model(x[:, ::-1])).max() > 1e-4
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), y)
    with pytest.raises(ValueError, match="multiples of `patch`"):
        models.vision_transformer(**{**small, "patch": 5})
    with pytest.raises(ValueError, match="multiple of `heads`"):
        models.vision_transformer(**{**small, "heads": 4})
