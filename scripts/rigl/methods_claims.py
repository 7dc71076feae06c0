"""What is claimed of the methods on small data, fixed before the runs of the tables.

Each claim is about every sparsity of a table. Those with a margin say that there is no difference
of more than so many percentage points.
"""

from scripts.common.claims import Claim

_PAPER = "Evci et al. 2020"
_FIGURE_2 = f"{_PAPER}, figure 2 and table 4"
_HERE = "fixed for this table"
_SPARSE = (0.9, 0.95, 0.98, 0.99)

ON_LENET = (
    Claim("SET is better than static masks", _FIGURE_2, ("set", 1), ("static", 1)),
    Claim("RigL is better than SET", _FIGURE_2, ("rigl", 1), ("set", 1)),
    Claim("RigL is better than SNIP", _FIGURE_2, ("rigl", 1), ("snip", 1)),
    Claim(
        "RigL is better than a small dense network of as many weights",
        _FIGURE_2,
        ("rigl", 1),
        ("small_dense", 1),
    ),
    Claim(
        "the same if both train five times as long",
        _FIGURE_2,
        ("rigl", 5),
        ("small_dense", 5),
    ),
    Claim(
        "RigL and SNFS do not differ by more than 0.3 points",
        _FIGURE_2,
        ("rigl", 1),
        ("snfs", 1),
        margin=0.3,
    ),
    Claim("pruning is better than RigL of the same steps", _FIGURE_2, ("pruning", 1), ("rigl", 1)),
    Claim("RigL 5x is better than pruning", _FIGURE_2, ("rigl", 5), ("pruning", 1)),
    Claim("RigL 5x is better than RigL", _FIGURE_2, ("rigl", 5), ("rigl", 1)),
    Claim(
        "RigL 5x does not differ from the dense network by more than 0.3 points",
        _FIGURE_2,
        ("rigl", 5),
        ("dense", 1),
        margin=0.3,
        sparsities=(0.8, 0.9),
    ),
    Claim(
        "RigL is better than RigL inverted", "Evci et al. 2022", ("rigl", 1), ("rigl_inverted", 1)
    ),
    Claim(
        "SET 5x and RigL 5x do not differ by more than 0.3 points",
        "an independent program, at 98 %",
        ("set", 5),
        ("rigl", 5),
        margin=0.3,
        sparsities=_SPARSE,
    ),
)

_KINDS = {"": "uniform", " (erk)": "ERK"}
ON_CIFAR10 = (
    *(
        Claim(f"{text}, {distribution}", _FIGURE_2, (f"{first}{kind}", 1), (f"{second}{kind}", 1))
        for kind, distribution in _KINDS.items()
        for text, first, second in (
            ("SET is better than static masks", "set", "static"),
            ("RigL is better than SET", "rigl", "set"),
        )
    ),
    *(
        Claim(f"{text} is better with ERK than uniform", _FIGURE_2, (f"{name} (erk)", 1), (name, 1))
        for name, text in (("static", "static training"), ("set", "SET"), ("rigl", "RigL"))
    ),
    Claim("pruning is better than RigL of the same steps", _FIGURE_2, ("pruning", 1), ("rigl", 1)),
    Claim(
        "RigL 5x (ERK) does not differ from the dense network by more than 0.3 points",
        _HERE,
        ("rigl (erk)", 5),
        ("dense", 1),
        margin=0.3,
    ),
    Claim("RigL 5x is better than SET 5x (ERK)", _HERE, ("rigl (erk)", 5), ("set (erk)", 5)),
)
