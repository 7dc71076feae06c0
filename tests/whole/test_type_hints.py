"""Every public function, method and property says what it takes and what it returns."""

import dataclasses
import inspect
import pathlib
import types

import models
import rigl_tf
import rigl_tf.layers
import rigl_tf.optimizers
import rigl_tf.transforms

PUBLIC = (
    rigl_tf,
    rigl_tf.artifacts,
    rigl_tf.layers,
    rigl_tf.optimizers,
    rigl_tf.transforms,
    models,
)


def members_of(cls):
    """The functions of a class and its bases in `rigl_tf`: public ones, and those of Python."""
    for base in inspect.getmro(cls):
        if not base.__module__.startswith(("rigl_tf", "models")):
            continue
        for name, member in vars(base).items():
            is_public = not name.startswith("_") or name in ("__init__", "__call__", "__enter__")
            if not is_public:
                continue
            if isinstance(member, property):
                yield from filter(None, (member.fget, member.fset))
            elif isinstance(member, (classmethod, staticmethod)):
                yield member.__func__
            elif inspect.isfunction(member):
                yield member


def functions_of(value, seen):
    """The public functions in a module, a class or a function, each once."""
    if isinstance(value, types.ModuleType):
        own = [
            name
            for name, each in vars(value).items()
            if not name.startswith("_") and getattr(each, "__module__", "") == value.__name__
        ]
        parts = [getattr(value, name) for name in getattr(value, "__all__", own)]
    else:
        parts = members_of(value) if inspect.isclass(value) else [value]
    for part in parts:
        part = inspect.unwrap(part) if inspect.isfunction(part) else part
        is_ours = getattr(part, "__module__", part.__name__ if inspect.ismodule(part) else "")
        if id(part) in seen or not str(is_ours).startswith(("rigl_tf", "models")):
            continue
        seen.add(id(part))
        if inspect.isfunction(part):
            yield part
        elif inspect.ismodule(part) or inspect.isclass(part):
            yield from functions_of(part, seen)


def missing_hints(function):
    signature = inspect.signature(function)
    names = [
        name
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls") and parameter.annotation is parameter.empty
    ]
    return names + ["return"] * (signature.return_annotation is signature.empty)


def test_every_public_function_has_type_hints():
    seen = set()
    functions = [each for room in PUBLIC for each in functions_of(room, seen)]
    names = {f"{each.__module__}.{each.__qualname__}" for each in functions}
    # It finds functions, methods, inherited ones and properties.
    assert "rigl_tf.transforms.sparsify.sparsify" in names
    assert "rigl_tf.optimizers.scheduled.ScheduledUpdates.drop_scores" in names
    assert "rigl_tf.flops.counting.Cost.flops" in names
    assert len(functions) > 250
    missing = {each.__qualname__: missing_hints(each) for each in functions}
    assert {name: hints for name, hints in missing.items() if hints} == {}


def test_the_package_says_that_it_has_type_hints():
    assert pathlib.Path(rigl_tf.__file__).with_name("py.typed").exists()


def test_a_missing_hint_is_found():
    @dataclasses.dataclass
    class Half:
        size: int

        def area(self, times: int):
            return times * self.size

    assert missing_hints(Half.area) == ["return"]
    assert missing_hints(lambda size: size) == ["size", "return"]
