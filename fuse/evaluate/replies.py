"""What a model said to a question."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """One model's reply to one question.

    key: of the question. text: what the model said, or the choice it took. entropy: mean entropy in nats of the
    distributions that the said tokens were taken from, for a choice that of the softmax over the choices; None where
    it is not known. loss: mean negative log-likelihood in nats per token of the first right answer, teacher forced;
    None where it was not asked for.
    """

    key: str
    text: str
    entropy: float | None = None
    loss: float | None = None
