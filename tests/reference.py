"""Slow, obvious NumPy versions of what `rigl_tf` computes, written from the papers.

Tests compare the fast code with these. Nothing here imports `rigl_tf` or TensorFlow, and
every loop is spelled out, so that each function can be checked against its source by eye.
"""

import math

import numpy as np


def erk(shapes, sparsity, power=1.0, custom=None):
    """Erdős-Rényi-Kernel (Evci et al., 2020, section 3), as the authors' public code does it.

    Repeats: scale the densities of the layers that are not dense so that the number of
    active weights equals that of a uniform `sparsity`; if the largest density exceeds 1,
    make every layer that has it dense. Layers in `custom` take no part.
    """
    custom = custom or {}
    dense = set()
    while True:
        right_hand_side = 0
        divisor = 0.0
        raw = {}
        for path, shape in shapes.items():
            size = int(np.prod(shape))
            zeros = math.floor(sparsity * size)
            if path in dense:
                right_hand_side -= zeros
            elif path not in custom:
                right_hand_side += size - zeros
                raw[path] = (sum(shape) / size) ** power
                divisor += raw[path] * size
        if not raw:  # all are dense or custom: nothing is left to scale
            epsilon = None
            break
        epsilon = right_hand_side / divisor
        largest = max(raw.values())
        if not largest * epsilon > 1:
            break
        for path in raw:
            if raw[path] == largest:
                dense.add(path)
    result = {}
    for path in shapes:
        if path in custom:
            result[path] = custom[path]
        elif path in dense:
            result[path] = 0.0
        else:
            result[path] = 1 - epsilon * raw[path]
    return result


def top_k_mask(scores, k):
    """True at the `k` largest scores, `k` clipped to `[0, size]`; ties go to the lower index.

    Indices count in C order, whatever the number of dimensions.
    """
    scores = np.asarray(scores)
    k = min(max(int(k), 0), scores.size)
    chosen = _best(scores, range(scores.size), k)
    mask = np.zeros(scores.size, dtype=bool)
    mask[chosen] = True
    return mask.reshape(scores.shape)


def drop_and_grow(mask, drop_scores, grow_scores, num_drop):
    """One mask update (Evci et al., 2020, Algorithm 1): `(new_mask, grown)`.

    Of the active connections the `num_drop` with the lowest drop scores go. As many come
    from everything that was not kept, by the highest grow scores: a connection dropped in
    this very update may come back, and is then not counted as grown. Inactive connections
    are never kept and kept ones never grown, whatever their scores.
    """
    mask = np.asarray(mask, dtype=bool)
    num_drop = int(num_drop)
    active = np.flatnonzero(mask)
    kept = _best(drop_scores, active, len(active) - num_drop)
    kept_set = set(kept)
    candidates = [index for index in range(mask.size) if index not in kept_set]
    new_mask = np.zeros(mask.size, dtype=bool)
    new_mask[kept] = True
    new_mask[_best(grow_scores, candidates, num_drop)] = True
    new_mask = new_mask.reshape(mask.shape)
    return new_mask, new_mask & ~mask


def cosine_drop_fraction(step, begin, end, alpha):
    """`alpha / 2 * (1 + cos(pi * (step - begin) / (end - begin)))`: alpha at begin, 0 at end."""
    return alpha / 2 * (1 + math.cos(math.pi * (step - begin) / (end - begin)))


def is_update_step(step, begin, end, frequency):
    """Whether connections change at `step`, the number of steps taken before it."""
    return step > 0 and begin <= step < end and (step - begin) % frequency == 0


def _best(scores, candidates, k):
    """The `k` candidates, flat indices, with the highest scores; ties go to the lower index."""
    flat = np.asarray(scores).reshape(-1).tolist()
    return sorted(candidates, key=lambda index: (-flat[index], index))[:k]
