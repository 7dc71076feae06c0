"""The style of each method, the same in all plots: colour, marker and line.

The colours are those of Okabe and Ito, which can also be distinguished with colour blindness. Each
method also has its own marker, so a plot can be read without colours.
"""

import itertools

_BLACK, _GREY, _BROWN = "#000000", "#7F7F7F", "#7A4B14"
_BLUE, _SKY, _GREEN = "#0072B2", "#56B4E9", "#009E73"
_ORANGE, _RED, _PINK, _VIOLET = "#E69F00", "#D55E00", "#CC79A7", "#5D3A9B"

# name: label of the papers, colour, marker, line.
_TABLE = {
    "dense": ("Dense", _BLACK, "", "--"),
    "static": ("Static", _BROWN, "v", "--"),
    "static_reinit": ("Static, restarted", _BROWN, "<", ":"),
    "snip": ("SNIP", _SKY, "s", "-."),
    "grasp": ("GraSP", _BLUE, "P", ":"),
    "set": ("SET", _ORANGE, "^", "-"),
    "snfs": ("SNFS", _GREEN, "D", "-"),
    "snfs_redistributed": ("SNFS, redistributed", _GREEN, "d", "--"),
    "rigl_inverted": ("RigL inverted", _RED, "X", ":"),
    "rigl": ("RigL", _RED, "o", "-"),
    "pruning": ("Pruning", _PINK, "p", "-"),
    "dnw": ("DNW", _VIOLET, "*", "-."),
    "small_dense": ("Small-Dense", _GREY, "h", ":"),
    # Tickets of the lottery papers.
    "lt_imp": ("LT-IMP", _PINK, "o", "-"),
    "lt_omp": ("LT-OMP", _VIOLET, "s", "--"),
    "lt": ("LT", _PINK, "o", "-"),
    "rr_imp": ("RR-IMP", _RED, "^", "-"),
    "rr_omp": ("RR-OMP", _ORANGE, "v", "--"),
    "random": ("Random", _GREEN, "D", "-."),
}
# The colours, markers and lines of other names, in this order.
_COLOURS = (_BLUE, _RED, _GREEN, _ORANGE, _PINK, _SKY, _BROWN, _VIOLET)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "H")
_LINES = ("-", "--", "-.", ":")


def of(names):
    """`{name: style}`, all different. A style has keyword arguments of `Axes.plot` and `errorbar`.

    `"small dense"` means `"small_dense"`. Names such as `"rigl 5x"` or `"static again"` are
    variants of the name before the space. They get its colour, and another marker and line. If the
    name itself is not in the plot, its first variant gets its style. Other names get unused
    colours.

    Example:

    >>> styles = of(["rigl", "rigl 5x", "shuffled"])
    >>> styles["rigl"]
    {'color': '#D55E00', 'marker': 'o', 'linestyle': '-'}
    >>> styles["rigl 5x"]["color"], styles["rigl 5x"]["linestyle"]
    ('#D55E00', '--')
    """
    families = {}
    for name in names:
        families.setdefault(_family(name, families), []).append(name)
    taken = [_of_table(family) for family in families if family in _TABLE]
    found = {}
    for family, members in families.items():
        if family in _TABLE:
            first = _of_table(family)
        else:
            first = _free(taken)
            taken.append(first)
        own = next((name for name in members if _key(name) == family), members[0])
        found[own] = first
        others = (
            style
            for style in map(numbered, itertools.count())
            if style["marker"] != first["marker"] and style["linestyle"] != first["linestyle"]
        )
        for name in members:
            if name != own:
                kind = {"color": first["color"], "markerfacecolor": "white"}
                found[name] = next(others) | kind
    return {name: found[name] for name in names}


def _of_table(method):
    _, color, marker, linestyle = _TABLE[method]
    return {"color": color, "marker": marker, "linestyle": linestyle}


def _free(taken):
    """The first style with an unused colour, or else with an unused marker and line."""
    styles = list(map(numbered, range(len(_COLOURS) * len(_LINES))))
    colors = {style["color"] for style in taken}
    markers = {style["marker"] for style in taken}
    lines = {(style["color"], style["linestyle"]) for style in taken}
    free = [style for style in styles if style["color"] not in colors] or [
        style
        for style in styles
        if style["marker"] not in markers and (style["color"], style["linestyle"]) not in lines
    ]
    return free[0] if free else numbered(len(taken))


def numbered(number):
    """The style of line number `number`, for plots whose lines are not methods.

    Example:

    >>> numbered(1)
    {'color': '#D55E00', 'marker': 's', 'linestyle': '--'}
    """
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[(number + number // len(_COLOURS)) % len(_LINES)],
    }


def line(style):
    """The style without a marker, for lines with many points."""
    return {name: style[name] for name in ("color", "linestyle")}


def label(name):
    """The name of a method in the papers. Other names are not changed.

    Example:

    >>> label("small_dense"), label("rigl 5x"), label("shuffled")
    ('Small-Dense', 'RigL 5×', 'shuffled')
    """
    if _key(name) in _TABLE:
        return _TABLE[_key(name)][0]
    family = _family(name, {})
    if family not in _TABLE:
        return name
    rest = name[len(family) :]
    number = rest.strip().removesuffix("x")
    if rest.endswith("x") and number.replace(".", "").isdigit():
        rest = f" {number}×"
    return f"{_TABLE[family][0]}{rest}".replace("erk", "ERK")


def _key(name):
    return name.lower().replace(" ", "_").replace("-", "_")


def _family(name, families):
    """The name of which this one is a variant, or the name itself."""
    if _key(name) in _TABLE:
        return _key(name)
    bases = [
        base
        for base in (*_TABLE, *families)
        if _key(name).startswith(base) and name[len(base) :][:1] in " ,"
    ]
    return max(bases, key=len, default=_key(name))
