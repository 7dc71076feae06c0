import zipfile

import keras
import numpy as np
import pytest

from scripts.common import datasets


def arrays(**changes):
    """Twelve 4x4 images, eight to train on, of three classes, with `changes` made."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (8, 4, 4), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2, 0, 1]),
        "x_test": rng.integers(0, 256, (4, 4, 4), dtype=np.uint8),
        "y_test": np.array([2, 1, 0, 2]),
        **changes,
    }


@pytest.fixture
def save(tmp_path):
    def save(name="own", **changes):
        content = {key: value for key, value in arrays(**changes).items() if value is not None}
        np.savez(tmp_path / f"{name}.npz", **content)
        return tmp_path / f"{name}.npz"

    return save


@pytest.fixture
def no_network(monkeypatch):
    def fail():
        raise Exception("URL fetch failure: None --\nName or service not known")

    for name in ("mnist", "fashion_mnist", "cifar10"):
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", fail)


def check_message(info):
    """One sentence in Keras's style: the rule, then what was received; on one line."""
    message = str(info.value)
    assert message.count(". Received: ") == 1
    assert "\n" not in message


def test_digits():
    digits = datasets.load("digits")
    assert digits.x_train.shape == (1437, 8, 8, 1)
    assert digits.x_test.shape == (360, 8, 8, 1)
    assert digits.x_train.dtype == digits.x_test.dtype == np.float32
    assert digits.y_train.dtype == digits.y_test.dtype == np.int32
    assert (digits.num_classes, digits.name) == (10, "digits")
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 1)
    # Each of the ten classes has 174 to 183 of the 1,797 images, a fifth of them to test on.
    assert set(np.bincount(digits.y_test)) <= {35, 36, 37}


def test_digits_are_split_the_same_way_every_time():
    first, second = datasets.load("digits"), datasets.load("digits")
    np.testing.assert_array_equal(first.x_train, second.x_train)
    np.testing.assert_array_equal(first.y_test, second.y_test)


def test_digits_pixels_stay_with_their_labels():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    digits = datasets.load("digits")
    for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test)):
        found = [label_of[(image * 16).astype(np.float64).tobytes()] for image in x]
        np.testing.assert_array_equal(found, y)


def test_own_file(save):
    data = arrays()
    own = datasets.load(save())
    assert (own.num_classes, own.name) == (3, "own")
    assert own.x_train.shape == (8, 4, 4, 1)
    assert own.x_train.dtype == np.float32
    np.testing.assert_allclose(own.x_test[..., 0], data["x_test"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(own.y_train, data["y_train"])
    assert own.y_train.dtype == np.int32


def test_path_may_be_a_string(save):
    assert datasets.load(str(save())).name == "own"


def test_floats_are_taken_as_they_are_and_vectors_stay_flat(save):
    x = np.array([[-2.0, 300.0], [0.5, 0.0]])
    own = datasets.load(
        save(x_train=x, y_train=np.array([0, 1]), x_test=x[:1], y_test=np.array([4]))
    )
    np.testing.assert_array_equal(own.x_train, x.astype(np.float32))
    assert own.num_classes == 5  # a class that only the test set has counts


@pytest.mark.parametrize("dtype", ["int64", ">i2", "uint32", "int8"])
def test_every_integer_type_is_scaled(save, dtype):
    x = np.full((8, 4, 4), 51 if dtype != "int8" else 102, dtype=dtype)
    own = datasets.load(save(x_train=x))
    np.testing.assert_allclose(own.x_train, 0.2 if dtype != "int8" else 0.4, rtol=1e-6)


def test_column_of_labels(save):
    column = datasets.load(save(y_train=arrays()["y_train"][:, np.newaxis].astype(np.uint8)))
    np.testing.assert_array_equal(column.y_train, arrays()["y_train"])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_named_set_from_data_dir(save, no_network, name):
    path = save(name)
    mnist = datasets.load(name, data_dir=path.parent)
    assert mnist.name == name
    np.testing.assert_allclose(mnist.x_train[..., 0], arrays()["x_train"] / 255, rtol=1e-6)


def test_named_set_from_keras(monkeypatch, tmp_path):
    data = arrays()
    pairs = ((data["x_train"], data["y_train"][:, np.newaxis]), (data["x_test"], data["y_test"]))
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: pairs)
    for data_dir in (None, tmp_path):
        mnist = datasets.load("mnist", data_dir)
        np.testing.assert_allclose(mnist.x_test[..., 0], data["x_test"] / 255, rtol=1e-6)
        np.testing.assert_array_equal(mnist.y_train, data["y_train"])


def test_cifar10_is_standardised_by_the_training_images(save, no_network):
    rng = np.random.default_rng(1)
    train = rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    train[..., 2] = 7  # a constant channel becomes 0, not NaN
    test = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    cifar = datasets.load("cifar10", save("cifar10", x_train=train, x_test=test).parent)
    mean, std = train[..., :2].mean((0, 1, 2)), train[..., :2].std((0, 1, 2))
    np.testing.assert_allclose(cifar.x_train[..., :2], (train[..., :2] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(cifar.x_test[..., :2], (test[..., :2] - mean) / std, atol=1e-5)
    np.testing.assert_allclose(cifar.x_train[..., 2], 0, atol=1e-6)
    assert cifar.x_train.dtype == cifar.x_test.dtype == np.float32


def test_no_network_names_the_file_to_provide(no_network, tmp_path):
    with pytest.raises(ValueError, match=r"Name or service not known") as info:
        datasets.load("cifar10", data_dir=tmp_path)
    assert str(tmp_path / "cifar10.npz") in str(info.value)
    check_message(info)
    with pytest.raises(ValueError, match=r"<data_dir>/mnist\.npz") as info:
        datasets.load("mnist")
    check_message(info)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"digits, mnist, .*Received: name='svhn'") as info:
        datasets.load("svhn")
    check_message(info)


def test_missing_file(tmp_path):
    (tmp_path / "directory.npz").mkdir()
    for name in ("absent.npz", "directory.npz"):
        with pytest.raises(ValueError, match=f"existing .npz file.*{name}") as info:
            datasets.load(tmp_path / name)
        check_message(info)


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_array(save, missing):
    with pytest.raises(ValueError, match=f"own.npz without {missing}$") as info:
        datasets.load(save(**{missing: None}))
    check_message(info)


IMAGES = arrays()["x_train"]
BAD = {
    "x and y differ in length": ({"y_train": np.zeros(7, int)}, "same length.*8 and 7"),
    "test lengths differ": ({"x_test": IMAGES[:3]}, "`x_test` and `y_test`.*3 and 4"),
    "shapes differ": ({"x_test": IMAGES[:4, :2]}, r"same shape.*\(4, 4, 1\) and \(2, 4, 1\)"),
    "no examples": ({"x_train": IMAGES[:0], "y_train": np.zeros(0, int)}, "`x_train`.*non-empty"),
    "no pixels": ({"x_train": IMAGES[:, :0]}, "`x_train`.*non-empty"),
    "no labels": ({"y_test": np.zeros(0, int)}, "`y_test`.*non-empty"),
    "scalar": ({"x_train": np.array(1)}, r"2 to 4 axes.*\(\)"),
    "video": ({"x_train": np.zeros((8, 2, 2, 2, 2))}, "2 to 4 axes"),
    "text": ({"x_train": np.full((8, 4), "one")}, "`x_train` must be integers or floating.*<U3"),
    "complex": ({"x_train": np.zeros((8, 4), complex)}, "`x_train`.*complex128"),
    "negative pixels": ({"x_test": -IMAGES[:4].astype(int)}, "`x_test`.*between 0 and 255"),
    "16-bit pixels": ({"x_train": IMAGES.astype(int) + 256}, "`x_train`.*between 0 and 255"),
    "NaN": ({"x_train": np.full((8, 4), np.nan)}, "`x_train` must be finite"),
    "beyond float32": ({"x_train": np.full((8, 4), 1e300)}, "`x_train` must be finite"),
    "one-hot": ({"y_train": np.eye(8, dtype=int)}, r"`y_train`.*\(n,\) or \(n, 1\).*\(8, 8\)"),
    "float labels": ({"y_train": np.zeros(8)}, "`y_train` must be integer.*float64"),
    "boolean labels": ({"y_train": np.zeros(8, bool)}, "`y_train` must be integer.*bool"),
    "negative labels": ({"y_test": np.array([0, 1, -1, 2])}, "`y_test`.*from 0 upwards.*-1 to 2"),
    "huge labels": ({"y_train": np.full(8, 2**40)}, "`y_train`.*in int32"),
    "pickled": ({"y_train": np.array([0] * 8, dtype=object)}, "not pickled"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_unusable_arrays(save, changes, message):
    path = save(**changes)
    with pytest.raises(ValueError, match=message) as info:
        datasets.load(path)
    check_message(info)
    assert str(path) in str(info.value)


def test_damaged_files(save):
    path = save()
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"not an archive",
        "pickle": b"\x80\x04N.",
        "half": content[: len(content) // 2],
        "end cut off": content[:-1],
        "flipped": content[:200] + bytes([content[200] ^ 255]) + content[201:],
    }
    for damage, changed in damaged.items():
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"undamaged \.npz file") as info:
            datasets.load(path)
        check_message(info)
        assert str(path) in str(info.value), damage


def test_archive_of_something_else(save):
    path = save()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(name, "text")
    with pytest.raises(ValueError, match="not a NumPy array") as info:
        datasets.load(path)
    check_message(info)


def test_single_array_in_disguise(save):
    path = save()
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match=r"undamaged \.npz file") as info:
        datasets.load(path)
    check_message(info)
