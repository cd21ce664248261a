"""How alike the parts of models are: measures of features, and what collects their inputs."""


class Unmeasurable(ValueError):
    """What was given cannot be measured: too few samples, or features that do not vary. One sentence says which."""
