"""The report of `jackpot_protocol`: accuracies, verdicts, the paper's guideline."""

import keras
import numpy as np

from rigl_tf.transforms.rebuild import is_clonable
from rigl_tf.walk import all_layers


def has_residual(model):
    """Whether a network has residual connections: it adds the outputs of two layers.

    Returns:
        `True`, `False`, or `None` if it is unknown: for subclassed models, `Lambda` layers, and
        layers of classes that are not part of Keras.
    """
    if not is_clonable(model):
        return None
    # Each operation, with what wrappers and cells hold.
    operations = getattr(model, "operations", model.layers)
    parts = [each for operation in operations for each in all_layers(operation)]
    found = [has_residual(part) if isinstance(part, keras.Model) else _adds(part) for part in parts]
    if True in found:
        return True
    return None if None in found else False


def _adds(operation):
    kind = type(operation)
    package = kind.__module__.split(".")[0]
    if package == "rigl_tf":
        return False  # the layer inside a wrapper is checked by itself
    if package != "keras" or kind is keras.layers.Lambda:
        return None
    # `keras.layers.Add`, and the operation of `x + y`. (`x + 1.0` has only one tensor.)
    tensors = keras.tree.flatten(getattr(operation, "input", []))  # none if it was never called
    return kind.__name__ == "Add" and len(set(map(id, tensors))) > 1


def report(rows, facts):
    """The report, in Markdown.

    Args:
        rows: See `jackpot_protocol`.
        facts: Dictionary about the network and the settings.
    """
    parts = [
        "# Does the ticket win the jackpot?",
        _overall(rows),
        _settings(facts),
        "## Accuracies\n\n" + _accuracy_table(rows),
        "## Verdicts",
        *_verdicts(rows),
        "## The paper's guideline, and this network",
        guideline_table(rows, facts),
    ]
    return "\n\n".join(parts) + "\n"


def _overall(rows):
    wins = {name: _sparsities(rows, name) for name in ("jackpot", "secondary")}
    for name, text in (("jackpot", "a jackpot ticket"), ("secondary", "a secondary prize")):
        if wins[name]:
            return f"There is {text}, at sparsity {', '.join(map(_percent, wins[name]))}."
    return "No winning ticket was found."


def _sparsities(rows, name):
    return [
        row["sparsity"]
        for row in rows
        if name in [verdict.verdict for verdict in row["verdicts"].values()]
    ]


def _settings(facts):
    seeds = facts["seeds"]
    if len(seeds) == 1:
        spread = f"one (seed {seeds[0]}): there is no spread, and no telling a margin from chance"
    else:
        spread = f"{len(seeds)} ({', '.join(map(str, seeds))}): mean ± standard deviation"
    residual = {True: "yes", False: "no", None: "unknown"}[facts["residual"]]
    lines = [
        f"- Network: {facts['name']}, {facts['size']:,} weights in sparse kernels; residual "
        f"connections: {residual}",
        f"- Data: {'large' if facts['large_dataset'] else 'small'}",
        f"- Pruning: {_listed(facts['pruning'])}",
        f"- Thresholds: {_listed(facts['thresholds'])}",
        f"- Seeds: {spread}",
    ]
    if facts["rewind_step"]:
        lines.append(f"- Rewinding: to step {facts['rewind_step']}, no part of the verdicts")
    return "\n".join(lines)


def _listed(values):
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _accuracy_table(rows):
    kinds = list(rows[0]["accuracies"])
    table = [["sparsity", "learning rate", *kinds, "parameters: ticket", "small dense"]]
    for row in rows:
        for rate in row["accuracies"]["dense"]:
            cells = [_with_spread(row["accuracies"][kind][rate]) for kind in kinds]
            sizes = [f"{size:,}" for size in row["num_parameters"]]
            table.append([_percent(row["sparsity"]), str(rate), *cells, *sizes])
    return _markdown(table)


def _with_spread(values):
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def _verdicts(rows):
    for row in rows:
        ticket, small = row["num_parameters"]
        for way, verdict in row["verdicts"].items():
            text = f"### {way}, {_percent(verdict.sparsity)}\n\n```\n{verdict}\n```"
            if small > ticket:
                text += "\n\nEven the narrowest dense network has more parameters than the ticket."
            yield text


def guideline_table(rows, facts):
    """A table of the paper's five rules and of the results here."""
    best = {kind: _best_rates(rows, kind) for kind in ("dense", "LT-IMP")}
    table = [
        ["rule", "for this network", "seen here", "agrees"],
        _way_of_pruning(rows, facts),
        _learning_rate(rows, best, facts),
        _redundancy(rows, facts),
        _initialisation(rows, best, facts),
    ]
    return _markdown(table)


def _way_of_pruning(rows, facts):
    gaps = [_top(row, "LT-IMP") - _top(row, "LT-OMP") for row in rows]
    gap, clear = np.mean(gaps), facts["thresholds"]["clear"]
    seen = f"LT-IMP − LT-OMP = {gap:+.2f}, the mean over {len(gaps)} sparsities"
    if facts["large_dataset"]:
        return ["5. Iterative or one-shot", "OMP is better than IMP", seen, _yes(gap < 0)]
    if facts["residual"] is None:
        return ["1. Iterative or one-shot", "unknown: is it residual?", seen, "not testable"]
    if facts["residual"]:
        return ["1. Iterative or one-shot", "IMP is better than OMP", seen, _yes(gap > clear)]
    return ["1. Iterative or one-shot", "IMP has no advantage", seen, _yes(gap <= clear)]


def _learning_rate(rows, best, facts):
    number = "5" if facts["large_dataset"] else "2"
    rule = f"{number}. Learning rate"
    seen = f"best for the ticket {best['LT-IMP']}, for the dense network {best['dense']}"
    is_small = best["LT-IMP"] < best["dense"]
    if facts["residual"] is None and not facts["large_dataset"]:
        return [rule, "unknown: is it residual?", seen, "not testable"]
    if _num_rates(rows) == 1:
        return [rule, "depends on the learning rate", seen, "not testable with one"]
    prefers_small = facts["residual"] and not facts["large_dataset"]
    expected = "a relatively small one" if prefers_small else "not a small one"
    return [rule, expected, seen, _yes(is_small == prefers_small)]


def _redundancy(rows, facts):
    prizes = _sparsities(rows, "jackpot") + _sparsities(rows, "secondary")
    similar = facts["thresholds"]["similar"]
    kept = [
        row["sparsity"] for row in rows if _top(row, "small dense") >= _top(row, "dense") - similar
    ]
    highest = _percent(max(prizes)) if prizes else "none"
    narrow = f"up to {_percent(max(kept))}" if kept else "at no sparsity"
    seen = (
        f"highest sparsity with a prize: {highest}; a narrower dense network of the ticket's size "
        f"is similar to the dense one {narrow}"
    )
    return [
        "3. Redundancy",
        "the more redundant, the higher the sparsity that keeps the prize",
        seen,
        "not testable with one network",
    ]


def _initialisation(rows, best, facts):
    rule = "4. Initialisation"
    rate = best["LT-IMP"]
    gap = np.mean(
        [
            np.mean(row["accuracies"]["LT-IMP"][rate]) - np.mean(row["accuracies"]["RR-IMP"][rate])
            for row in rows
        ]
    )
    seen = f"LT-IMP − RR-IMP = {gap:+.2f} at learning rate {rate}"
    if _num_rates(rows) == 1:
        return [rule, "depends on the learning rate", seen, "not testable with one"]
    if rate < best["dense"]:
        return [rule, "no statement: the ticket prefers a small rate", seen, "not testable"]
    agrees = _yes(gap <= facts["thresholds"]["clear"])
    return [rule, "does not matter: the ticket prefers a large rate", seen, agrees]


def _top(row, kind):
    """The accuracy at the best learning rate."""
    return max(np.mean(values) for values in row["accuracies"][kind].values())


def _best_rates(rows, kind):
    rates = list(rows[0]["accuracies"][kind])
    means = [np.mean([np.mean(row["accuracies"][kind][rate]) for row in rows]) for rate in rates]
    return rates[int(np.argmax(means))]


def _num_rates(rows):
    return len(rows[0]["accuracies"]["dense"])


def _yes(holds):
    return "yes" if holds else "no"


def _percent(share):
    return f"{100 * share:.1f} %"


def _markdown(table):
    head, *rows = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([head, "|" + " --- |" * len(table[0]), *rows])
