"""The settings of a training run: flags, a dataclass, and checks."""

import dataclasses
import math
import pathlib

from absl import flags

import models
import rigl_tf
from rigl_tf.layers.storage import EXECUTIONS, check_execution
from scripts.common import methods
from scripts.train import strategies

# Settings that do not change the result.
MAY_DIFFER = ("data_dir",)


def _setting(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that determine the result of a run. Each field is a flag."""

    model: str = _setting("lenet_300_100", "A builder of `models`.")
    dataset: str = _setting("digits", "digits, mnist, fashion_mnist, cifar10 or an .npz file.")
    method: str = _setting("rigl", f"One of {', '.join(methods.METHODS)}.")
    sparsity: float = _setting(0.9, "Share of zeros over all sparse kernels, in [0, 1).")
    distribution: str = _setting("erk", "How kernels share it: uniform, erdos_renyi or erk.")
    execution: str = _setting("masked", f"How they are stored: {', '.join(EXECUTIONS)}.")
    epochs: int = _setting(30, "Epochs.")
    batch_size: int = _setting(32, "Examples in a batch.")
    learning_rate: float = _setting(0.1, "The first learning rate; a cosine takes it to 0.")
    momentum: float = _setting(0.9, "Nesterov momentum of SGD, in [0, 1].")
    l2: float = _setting(5e-5, "Adds l2 * sum(kernel ** 2) to the loss.")
    update_frequency: int = _setting(20, "Steps from one update of the masks to the next.")
    drop_fraction: float = _setting(0.3, "Share of connections that the first update moves.")
    end_fraction: float = _setting(0.75, "Share of training after which masks stay, in (0, 1].")
    seed: int = _setting(0, "Decides the weights, the masks and the order of the examples.")
    strategy: str = _setting("none", f"One of {', '.join(strategies.STRATEGIES)}.")
    jit_compile: bool | None = _setting(
        None, "Whether XLA compiles the steps; by default with masked kernels and no strategy."
    )
    data_dir: str | None = _setting(None, "Directory with mnist.npz and the like.")

    def __post_init__(self):
        if self.jit_compile is None:
            is_plain = self.strategy == "none" and self.execution == "masked"
            object.__setattr__(self, "jit_compile", is_plain)


NAMES = {field.name for field in dataclasses.fields(Settings)}


def define_flags(flag_values):
    """Defines a flag for each setting."""
    kinds = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(Settings):
        if field.type == bool | None:
            define = flags.DEFINE_bool
        else:
            define = kinds.get(field.type, flags.DEFINE_string)
        define(field.name, field.default, field.metadata["help"], flag_values=flag_values)


def default_directory(settings):
    """The run directory that is used if none is given."""
    data = pathlib.Path(settings.dataset).stem
    name = f"{data}-{settings.model}-{settings.method}-{settings.sparsity:g}-seed{settings.seed}"
    return pathlib.Path("runs", name)


def check_settings(settings):
    """Raises a `ValueError` that names the first setting that is out of its range."""
    if settings.model not in models.BUILDERS:
        raise ValueError(
            f"`model` must be one of {list(models.BUILDERS)}. Received: model={settings.model!r}"
        )
    methods.check_method(settings.method)
    strategies.check_strategy(settings.strategy, settings.jit_compile)
    rigl_tf.distributions.get(settings.distribution)
    rigl_tf.distributions.check_sparsity(settings.sparsity)
    _check_execution(settings)
    rules = {
        "epochs": (settings.epochs >= 1, "at least 1"),
        "batch_size": (settings.batch_size >= 1, "at least 1"),
        "learning_rate": (0 < settings.learning_rate < math.inf, "a finite number above 0"),
        "momentum": (0 <= settings.momentum <= 1, "in [0, 1]"),
        "l2": (0 <= settings.l2 < math.inf, "a finite number of at least 0"),
        "update_frequency": (settings.update_frequency >= 1, "at least 1"),
        "drop_fraction": (0 <= settings.drop_fraction <= 1, "in [0, 1]"),
        "end_fraction": (0 < settings.end_fraction <= 1, "in (0, 1]"),
        "seed": (0 <= settings.seed < 2**31, "in [0, 2**31)"),
    }
    for name, (is_kept, rule) in rules.items():
        if not is_kept:
            raise ValueError(f"`{name}` must be {rule}. Received: {getattr(settings, name)}")


def _check_execution(settings):
    check_execution(settings.execution)
    if settings.execution == "masked":
        return
    optimizer = methods.wrap_optimizer(settings.method, "sgd", total_steps=1000, sparsity=0.5)
    if not getattr(optimizer, "supports_csr", False):  # the dense methods have no optimizer of ours
        raise ValueError(
            "`execution` must be masked with a method that cannot train CSR kernels. "
            f"Received: execution={settings.execution!r}, method={settings.method!r}"
        )
    if settings.jit_compile:
        raise ValueError(
            "`jit_compile` must be false with CSR kernels, which XLA does not know. "
            f"Received: execution={settings.execution!r}, jit_compile=True"
        )
