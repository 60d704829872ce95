"""The forward and backward passes of a training step."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fsrp_edge import compute, progress
from fsrp_edge.errors import BadInputError, first_line
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.training.adversarial import training_images
from fsrp_edge.training.augmentation import augment, cutmix
from fsrp_edge.training.losses import training_loss
from fsrp_edge.training.recipe import Recipe

MOSTLY = 0.5
"""With a larger share of frozen parameters than this, a recovery is not what its user is likely to expect."""
WARM_UP = 3
"""Steps before a step is recorded, in which libraries choose their algorithms and take their memory."""


def require_trainable(classifier: Classifier) -> None:
    """Refuse a network that puts out something else than logits while it trains, or that learns nothing.

    Nothing of it is changed.

    Raises:
        BadInputError: such as a tuple with the outputs of auxiliary heads, or parameters that are all frozen.
    """
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise BadInputError(
            f"all parameters of {classifier.spec.architecture} are frozen: it would learn nothing; name a factory that "
            "leaves requires_grad on, or do without recovery"
        )
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in classifier.parameters()]
    frozen = sum(size for size, learns in sizes if not learns) / sum(size for size, _ in sizes)
    if frozen > MOSTLY:
        progress.log(
            f"{frozen:.0%} of the parameters of {classifier.spec.architecture} are frozen and will not be trained; a "
            "factory that leaves requires_grad on has all of them trained"
        )
    try:
        with torch.no_grad(), compute.own_draws():
            logits = copy.deepcopy(classifier).train()(classifier.example_pixels(2))
    except Exception as error:  # whatever a user's network raises
        raise BadInputError(f"{classifier.spec.architecture} fails in training mode: {first_line(error)}") from None
    if not isinstance(logits, Tensor):
        raise BadInputError(
            f"{classifier.spec.architecture} returns {type(logits).__name__} in training mode; to be trained it has to "
            "return logits (N, classes) there, too: name a factory that builds it so, or do without recovery"
        )


class Passes:
    """From a batch to its loss, and to the gradients of it in the parameters.

    On CUDA a step is recorded as a graph and replayed from then on: launching its hundreds of kernels one by one takes
    several times as long as running them where images are small.

    Args:
        classifier: network to train, on its device, in training mode whenever `loss` is called.
        recipe: method, augmentation and loss.
        teacher: in evaluation mode, for a recipe that needs one.
    """

    def __init__(self, classifier: Classifier, recipe: Recipe, teacher: Classifier | None) -> None:
        self._classifier, self._recipe, self._teacher = classifier, recipe, teacher
        self._device = compute.device_of(classifier)
        self._generator = compute.generator(0, self._device)
        self._before_recording: float = WARM_UP if self._device.type == "cuda" else math.inf
        self._recording: _Recording | None = None

    def loss(self, pixels: Tensor, labels: Tensor, seed: int) -> Tensor:
        """A scalar; the gradients are left in the parameters, those of the step before are gone.

        Args:
            pixels: (N, C, H, W) in [0, 1]; of the same shape in every call.
            labels: (N,) int64.
            seed: of every random draw of the step.
        """
        compute.seed_global_draws(seed, self._device)  # dropout and CutMix draw from the global generators
        self._generator.manual_seed(seed)
        pixels, labels = (compute.sent(part, self._device) for part in (pixels, labels))
        if self._recipe.cutmix:  # its boxes are drawn in Python, which cannot be recorded
            pixels, labels = cutmix(self._augmented(pixels), labels, self._classifier.spec.classes)
        if self._before_recording == 0:
            self._record(pixels, labels)
        self._before_recording -= 1
        if self._recording is not None:
            return self._recording.replay(pixels, labels)
        return self._backward(pixels, labels)

    def _augmented(self, pixels: Tensor) -> Tensor:
        recipe = self._recipe
        return augment(pixels, flip=recipe.flip, crop_padding=recipe.crop_padding, generator=self._generator)

    def _backward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        classifier = self._classifier
        classifier.zero_grad(set_to_none=True)
        pixels = pixels if self._recipe.cutmix else self._augmented(pixels)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        method = self._recipe.method
        taught_on_clean = self._taught(pixels) if method == "rslad" else None
        images = training_images(
            classifier, pixels, labels, self._recipe, self._generator, teacher_logits=taught_on_clean
        )
        with compute.autocast(self._device):
            teacher_logits = taught_on_clean if method == "rslad" else self._taught(images)
            clean_logits = classifier(pixels).float() if method in ("trades", "rslad") else None
            logits = classifier(images).float()
        loss = training_loss(logits, labels, self._recipe, teacher_logits=teacher_logits, clean_logits=clean_logits)
        loss.backward()
        return loss.detach()

    def _taught(self, images: Tensor) -> Tensor | None:
        """The teacher's logits, where there is one."""
        if self._teacher is None:
            return None
        with torch.no_grad(), compute.autocast(self._device):
            logits: Tensor = self._teacher(images).float()
        return logits

    def _record(self, pixels: Tensor, labels: Tensor) -> None:
        """Nothing is computed meanwhile; a network that cannot be recorded goes on step by step."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        pixels, labels = pixels.clone(), labels.clone()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph):  # under torchrun it is not the first
                loss = self._backward(pixels, labels)
        except RuntimeError as error:
            progress.log(f"training goes on without CUDA graphs: {first_line(error)}")
            self._generator = compute.generator(self._generator.initial_seed(), self._device)
        else:
            self._recording = _Recording(graph, pixels, labels, loss)


@dataclass(frozen=True)
class _Recording:
    """A step on CUDA, its inputs and its output, each at the place in memory where the kernels expect them."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor
    labels: Tensor
    loss: Tensor

    def replay(self, pixels: Tensor, labels: Tensor) -> Tensor:
        self.pixels.copy_(pixels)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.loss
