"""Warns when `get_config` leaves out sparse layers, which a `.keras` file would then lose."""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from rigl_tf.layers.wrapper import SparseWrapper
from rigl_tf.walk import all_layers


def watch_config(model: keras.Model) -> None:
    """Lets `model.get_config` warn if sparse layers are missing in what it returns.

    A class of models with a `get_config` of its own usually stores the arguments of its
    constructor, which makes dense layers. The config of other models contains each of their layers.
    """
    get_config = model.get_config

    @functools.wraps(get_config)
    def told():
        config = get_config()
        sparse = {each.name for each in all_layers(model) if isinstance(each, SparseWrapper)}
        missing = sorted(sparse - set(_sparse_in(config)))
        if missing:
            warnings.warn(
                f"The config of a {type(model).__name__!r} does not contain its sparse layers: its "
                "class decides what is in it. So a model that is loaded from a `.keras` file, or "
                "cloned, is dense (with CSR kernels, the file cannot be loaded). For a sparse one, "
                "make the model and use `rigl_tf.sparsify` as before, then `load_weights`, which "
                f"takes the same file. Received: model={model.name!r} with {len(missing)} sparse "
                f"layers that are missing, such as {missing[0]!r}",
                stacklevel=2,
            )
        return config

    vars(model)["get_config"] = told


def _sparse_in(config: Any) -> Iterator[str]:
    """The names of the sparse layers in a config."""
    if isinstance(config, dict):
        if config.get("registered_name") == keras.saving.get_registered_name(SparseWrapper):
            yield config["config"]["name"]
        for value in config.values():
            yield from _sparse_in(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _sparse_in(value)
