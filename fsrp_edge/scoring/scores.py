"""FilterScores: what scoring hands to planning, one number a filter, readable and diffable."""

from typing import Any, Literal, Self

from pydantic import FiniteFloat
from torch import Tensor

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.records import Document, Record
from fsrp_edge.scoring.fourier import has_bands


class LayerScores(Record):
    """Scores of one layer's output channels: the lowest is pruned first."""

    scores: tuple[FiniteFloat, ...]
    map_size: tuple[int, int] | None = None
    """(height, width) of the feature map, for criteria that read one."""

    @property
    def has_bands(self) -> bool:
        """Whether the scores were read off maps with a low and a high band."""
        return self.map_size is not None and has_bands(self.map_size)

    @classmethod
    def of(cls, name: str, scores: Tensor, map_size: tuple[int, int] | None = None) -> Self:
        """The scores (C,) of the layer `name`.

        Raises:
            BadInputError: some are NaN or infinite.
        """
        bad = int((~scores.isfinite()).sum())
        if bad:
            raise BadInputError(
                f"layer {name}: {bad} of {len(scores)} channels score NaN or infinity; "
                "check the checkpoint's weights and the normalization"
            )
        return cls(scores=tuple(scores.tolist()), map_size=map_size)

    def worst_and_best(self, count: int) -> list[int]:
        """So many filters with the lowest scores, then as many with the highest; each once."""
        order = sorted(range(len(self.scores)), key=self.scores.__getitem__)
        return list(dict.fromkeys([*order[:count], *order[-count:]]))


class FilterScores(Document):
    """Scores of every scored layer of one network, and what they were made from."""

    called = "a file of filter scores"

    schema_version: Literal[1] = 1
    criterion: str
    options: dict[str, str | int | float | bool | None]
    architecture: str
    model_sha256: str
    """Digest of the scored network's weights (`models.saved.weights_sha256`)."""
    data_sha256: str | None
    images: int
    seed: int
    layers: dict[str, LayerScores]
    """By the layer's name in the network, in the order of execution."""

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        criterion: Any,
        images: ImageSet | None,
        layers: dict[str, LayerScores],
        seed: int,
    ) -> Self:
        """Scores with what they were made from; `images` are None where the criterion looks at none."""
        options = {} if images is None else criterion.model_dump(mode="json", exclude={"name"})
        attack = options.pop("attack", {})  # as one level of keys: `attack.steps` beside `radius`
        return cls(
            criterion=criterion.name,
            options=options | {f"attack.{key}": value for key, value in attack.items()},
            architecture=classifier.spec.architecture,
            model_sha256=weights_sha256(classifier.network),
            data_sha256=None if images is None else images.digest,
            images=0 if images is None else len(images),
            seed=seed,
            layers=layers,
        )
