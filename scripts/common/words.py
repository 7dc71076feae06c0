"""Sentences that several pages of results have, so that their words mean the same."""

# The coefficient of the papers: TF1 halves the sum of squares, Keras does not.
L2 = "L2 of c adds c/2 times the sum of the squared kernel weights to the loss."

VERDICTS = (
    "Each verdict is that of a 95 % interval, a paired t interval of the mean difference over the "
    "seeds. Confirmed: the whole interval is as claimed. Contradicted: none of it is. Else "
    "undecided, as with a single seed. There is no correction for the number of claims."
)
