"""What a training run does, as data."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fsrp_edge.attacks import DEFAULT_EPS
from fsrp_edge.errors import BadInputError
from fsrp_edge.records import Record


class Recipe(Record):
    """How a network is trained or, after pruning, recovered.

    Attributes:
        method: the images that are learnt. `natural`: as they are. `n-fgsm`: one gradient step from doubled
            noise (de Jorge et al., arXiv 2202.01181), twice the cost of natural training. `pgd`: projected
            gradient descent of `attack_steps` steps (Madry et al., arXiv 1706.06083), 1 + attack_steps times
            the cost. `trades`: clean images, and pull the predictions on `attack_steps` steps' worth of adversarial
            ones to theirs (Zhang et al., arXiv 1901.08573). `rslad`: the same with a robust teacher's predictions on
            the clean images in place of the network's own and of the labels (Zi et al., arXiv 2108.07969).
        eps: L∞ radius in units of pixels in [0, 1]; for `natural` it is only what the held-out check attacks
            with.
        attack_steps: gradient steps of `pgd`, `trades` and `rslad`.
        trades_beta: weight of the pull; 6 is the paper's.
        epochs: passes over the training images; 0 only where there are `int8_epochs`.
        int8_epochs: passes after those in which weights and activations are rounded as in int8 files, at 1/10 of the
            learning rate; recovery only. They are undone where they do not help on held-out images.
        batch_size: images a step.
        learning_rate: peak learning rate of SGD.
        momentum: Nesterov momentum.
        weight_decay: L2 decay of weights; never of biases and normalization parameters.
        schedule: `one-cycle` (cosine up from 1/25 of the peak over the first 30 %, cosine down to 0) for
            training from scratch; `cosine` (from the peak down to 0) for fine-tuning.
        label_smoothing: mass moved from the label to the uniform distribution.
        distillation: weight of the divergence from a teacher's soft labels on the same (adversarial) images;
            the rest is cross-entropy with the labels. 1 uses no labels but to attack. Above 0 a teacher is
            needed.
        flip: mirror images left to right at random. Wrong for digits, letters and traffic signs.
        crop_padding: pixels of zero padding before a random crop of the original size; 0 means no crop.
        ema_decay: decay of the exponential moving average of the weights, which is then what is judged and
            kept.
        cutmix: paste a random box of another image of the batch into each, and mix the labels by its area (Yun et al.,
            arXiv 1905.04899).
        patience: stop after so many epochs without a better one on held-out images; None trains all epochs.
    """

    method: Literal["natural", "n-fgsm", "pgd", "trades", "rslad"] = "n-fgsm"
    eps: float = Field(DEFAULT_EPS, ge=0, le=1)
    attack_steps: int = Field(7, ge=1)
    trades_beta: float = Field(6.0, gt=0)
    epochs: int = Field(10, ge=0)
    int8_epochs: int = Field(0, ge=0)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, gt=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    distillation: float = Field(0.0, ge=0, le=1)
    flip: bool = False
    crop_padding: int = Field(0, ge=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    cutmix: bool = False
    patience: int | None = Field(None, ge=1)

    @property
    def needs_teacher(self) -> bool:
        """Whether soft labels of another network are learnt."""
        return self.method == "rslad" or self.distillation > 0

    def check_teacher(self, *, given: bool) -> None:
        """Raise BadInputError where a teacher is needed and not given, or the other way round."""
        if self.needs_teacher and not given:
            asked = "method rslad" if self.method == "rslad" else f"distillation {self.distillation:g}"
            raise BadInputError(
                f"{asked} needs a teacher network; give one (`recover --teacher`), or another method without "
                "distillation"
            )
        if given and not self.needs_teacher:
            if self.method == "trades":
                raise BadInputError("method trades learns from no teacher; leave it out, or use another method")
            raise BadInputError(
                "a teacher was given, but the recipe's distillation is 0; set it between 0 and 1, or use method rslad"
            )

    def distilling(self, weight: float) -> "Recipe":
        """The recipe with this weight of distillation; as it is where the method says what is learnt of a teacher.

        RSLAD learns from nothing else, TRADES from none.
        """
        return self if self.method in ("rslad", "trades") else self.model_copy(update={"distillation": weight})

    def for_int8(self) -> "Recipe":
        """The recipe of the passes for int8."""
        return self.model_copy(
            update={
                "epochs": self.int8_epochs,
                "int8_epochs": 0,
                "learning_rate": self.learning_rate / 10,
                "schedule": "cosine",
                "ema_decay": None,
            }
        )

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.epochs + self.int8_epochs:
            raise ValueError("a recipe needs at least 1 epoch")
        return self

    @model_validator(mode="after")
    def _adversarial_needs_a_radius(self) -> Self:
        if self.method != "natural" and self.eps == 0:
            raise ValueError(f"method {self.method!r} with eps 0 is natural training at a higher cost: use 'natural'")
        if self.method == "trades" and self.distillation > 0:
            raise ValueError(
                "TRADES pulls to the network's own predictions; distillation to another's needs rslad, pgd or n-fgsm"
            )
        if self.method == "rslad" and self.distillation > 0:
            raise ValueError("RSLAD learns a teacher's soft labels and nothing else: leave distillation at 0")
        return self
