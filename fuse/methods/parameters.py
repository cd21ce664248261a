"""Parameters that several merge methods take."""

from fuse.methods.method import Param

WEIGHTS = Param("the share of each member; negative ones take away", per_member=True)
DENSITY = Param("the share of a task vector that is kept", 1.0, per_member=True, low=0, high=1, low_open=True)
LAMBDA = Param("multiplies the merged task vector before it is added to the base", 1.0)
BY_SUM = "divide by the sum of the weights"
BY_AGREED = "divide by the sum of the weights that agree with the elected sign"
DARE = {
    "weights": WEIGHTS,
    "density": DENSITY,
    "lambda": LAMBDA,
    "rescale": Param("divide what is kept by the density, so that the mean stays", True, bool),
    "seed": Param("picks what is dropped; the same seed drops the same elements", 0, int, low=0),
}
