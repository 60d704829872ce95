"""The other way round from FSRP: keep the filters that can stand in for the rest in the low frequencies.

FSRP ranks each filter by itself, so the filters that it keeps resemble one another, and what only the others carried
is gone. This criterion takes its finding, that a robust network attends to the low frequencies of adversarial examples'
maps, as what has to be preserved: the next filter to keep is the one that adds most to what those before it explain, by
least squares, of the low-frequency variance that the reading layers make of all of them. With readers whose weights are
the identity that would be a Cholesky factorization with complete pivoting (Higham, *Accuracy and Stability of Numerical
Algorithms*, 2002, 10.3) of the covariance matrix; a variance that the readers' weights cancel counts for nothing here.
What a reader makes counts as batch norm lets it through: the weights before a batch norm can be of any size.

In a wide network few filters explain nearly all of it, and what the others would add tells nothing, another sample of
images chooses others. They are ranked by the size of their weights (L1, as torch-pruning has it), which the training
of the dense network has made: a recovery can draw on what no layer reads yet.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.batch_norms import BatchNorm, batch_norms_behind
from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, Member, PruningGraph, find_layer
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.records import Record
from fsrp_edge.scoring.adversarial import my_adversarial_batches
from fsrp_edge.scoring.fourier import extent
from fsrp_edge.scoring.moments import InputMoments, by_position, read_input_moments, readers
from fsrp_edge.scoring.scores import FilterScores, LayerScores

RIDGE = 1e-4
"""Of the mean variance: more than what rounding leaves of a covariance from fewer samples than channels."""
PANEL = 64
"""Choices after which what is left of a covariance is written anew."""


class Reconstruction(Record):
    """Options of the criterion; `benchmarks/compensation.py` chose the defaults (see ARCHITECTURE.md)."""

    name: Literal["fsrp-reconstruction"] = "fsrp-reconstruction"
    radius: float = Field(0.5, gt=0, le=1)
    """Of the low-frequency region, as a fraction of the band (0 is DC, 1 is Nyquist)."""
    through_batch_norm: bool = True
    """Whether a reader's outputs count as the batch norm behind it scales them, or as they are."""
    explained: float = Field(0.9, gt=0, le=1)
    """Share of that variance which filters are chosen for; those beyond it follow by the size of their weights."""
    attack: PGD = PGD(steps=10)
    """The attack that makes the examples; eps 0 scores on clean images."""
    batch_size: int = Field(128, ge=1)


def score_reconstruction(
    classifier: Classifier, images: ImageSet, options: Reconstruction, *, seed: int
) -> FilterScores:
    """Score every group of coupled channels, under the name of its root, by what the layers read that take them.

    The adversarial examples are made against the classifier as it is, and read with the attack's steps towards them.
    Under `torchrun` every process works on a part of the images and all return the scores of the whole.

    Args:
        classifier: the network to score, on the device to compute on.
        images: examples with labels; all of them are used.
        options: of the criterion.
        seed: of the attack's random starts.

    Returns:
        For each channel the share, 0 to 1, of the low-frequency variance in what the group's readers make of it, a mean
        over readers, that it explains beyond the channels with higher scores; where `options.explained` is reached,
        these shares go to the largest filters in place of those that would explain them. Groups that no layer reads
        as a module are left out.

    Raises:
        BadInputError: a layer reads NaN or infinity; the one before it is named.
    """
    from torch_pruning import importance

    graph = PruningGraph(classifier)
    groups, sizes = graph.groups(), graph.ranked_by(importance.MagnitudeImportance(p=1))
    examples = my_adversarial_batches(classifier, images, options.attack, options.batch_size, seed=seed)
    moments = read_input_moments(classifier, examples, readers(groups), radius=options.radius)
    norms = batch_norms_behind(classifier) if options.through_batch_norm else {}
    scales = {layer: _scale(classifier.network.get_submodule(norm)) for layer, norm in norms.items()}
    layers = {}
    for group in groups:
        if reading := _reading(group, moments):
            shares = _shares(classifier, group, reading, scales)
            scores = rest_by_size(shares, sizes[group.root].to(shares), options.explained)
            map_size = max((seen.size for _, seen in reading), key=extent)
            layers[group.root] = LayerScores.of(group.root, scores, map_size)
    return FilterScores.of(classifier, options, images, layers, seed)


def explained_shares(read: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(C,) the share that each variable explains beyond those that were chosen before it, a mean over readers.

    The variable that explains most of what is left is chosen next; a share is never above the one before.

    Args:
        read: for each reader the covariance (C, C) of the variables and the Gram matrix (C, C) of its weights on them,
            float64, positive semidefinite up to rounding.
    """
    shares = read[0][0].new_zeros(len(read[0][0]))
    open_ = torch.ones(len(shares), dtype=torch.bool, device=shares.device)
    readers = [reader for pair in read if (reader := _Reader(*pair)).total > 0]
    last = 1.0
    for _ in range(len(shares) if readers else 0):
        gains = torch.stack([reader.gains() for reader in readers]).mean(0)
        chosen = int(torch.where(open_, gains, -1.0).argmax())
        if gains[chosen] <= 1e-12:
            break
        last = min(float(gains[chosen]), math.nextafter(last, 0))  # the order is not to be lost
        shares[chosen], open_[chosen] = last, False
        for reader in readers:
            reader.choose(chosen)
    return shares


class _Reader:
    """What the chosen variables leave of a covariance, and of the variance that a reader makes of it.

    What is left, S, loses l l^T / d with each choice, where l is its column of the variable and d the variance there.
    So the diagonals of S and of S G S, where G is the reader's Gram matrix, can be carried along. S, S G and S G S
    themselves are written anew only after a panel of choices, by products of matrices, as in blocked factorizations;
    until then their columns are those of the panel's start less what its choices took.
    """

    def __init__(self, covariance: Tensor, gram: Tensor) -> None:
        self._floor = RIDGE * float(covariance.diagonal().mean())
        self._variance = covariance.diagonal().clone()
        made = gram @ covariance
        self._left, self._made = covariance.clone(), made.T.contiguous()
        self._remade = covariance @ made
        self._squares = self._remade.diagonal().clone()
        # Of the panel's choices, rows: l / sqrt(d), G of it, and S of that, with the S of the panel's start.
        self._taken, self._taken_made, self._taken_remade = covariance.new_zeros(3, PANEL, len(covariance))
        self._count = 0
        total = float(made.trace())
        self.total = total if total > 1e-12 * float(covariance.trace() * gram.trace()) else 0.0

    def gains(self) -> Tensor:
        """(C,) share that each variable would explain."""
        return self._squares / (self._variance.clamp_min(0) + self._floor) / self.total

    def choose(self, chosen: int) -> None:
        """Take away what a variable explains."""
        taken, taken_made, taken_remade = (
            rows[: self._count] for rows in (self._taken, self._taken_made, self._taken_remade)
        )
        before = taken[:, chosen]
        column = self._left[chosen] - before @ taken
        made = self._made[chosen] - before @ taken_made
        remade = self._remade[chosen] - before @ taken_remade
        variance = column[chosen].clamp_min(0) + self._floor
        share, root = column / variance, variance.sqrt()
        self._squares += share * (share * (column @ made) - 2 * (remade - (taken @ made) @ taken))
        self._variance -= share * column
        for rows, new in ((self._taken, column), (self._taken_made, made), (self._taken_remade, remade)):
            rows[self._count] = new / root
        self._count += 1
        if self._count == PANEL:
            self._finish_panel()

    def _finish_panel(self) -> None:
        taken = self._taken
        self._left -= taken.T @ taken
        self._made -= taken.T @ self._taken_made
        self._remade -= taken.T @ self._taken_remade + (self._made @ taken.T) @ taken
        self._count = 0


def rest_by_size(shares: Tensor, sizes: Tensor, explained: float) -> Tensor:
    """(C,) shares of which those beyond `explained` of their sum are handed out anew, the larger to the larger size.

    What explains nothing at all, being dead or a copy, stays last however large it is.
    """
    order = shares.argsort(descending=True, stable=True)
    sums = shares[order].cumsum(0)
    within = sums < explained * sums[-1]
    rest = order[int(within.sum()) + 1 :]
    rest = rest[shares[rest] > 0]
    found = shares.clone()
    found[rest[sizes[rest].argsort(descending=True)]] = shares[rest]
    return found


def _reading(group: ChannelGroup, moments: Mapping[str, InputMoments]) -> list[tuple[Member, InputMoments]]:
    """Where layers read a group's channels, and what was seen there."""
    return [(part, moments[part.layer]) for part in group.slices if part.side == "input" and part.layer in moments]


def _shares(
    classifier: Classifier,
    group: ChannelGroup,
    reading: Sequence[tuple[Member, InputMoments]],
    scales: Mapping[str, Tensor],
) -> Tensor:
    """(C,) of a group's channels, at all places where layers read them."""
    read = []
    for part, seen in reading:
        weights = _gram(find_layer(classifier.network, part.layer), seen.covariance, scales.get(part.layer))
        for channels, roots in by_position(part.channels, part.root_channels):
            mine, theirs = (torch.tensor(each, device=weights.device) for each in (channels, roots))
            whole = weights.new_zeros(2, group.channels, group.channels)
            for place, matrix in enumerate((seen.covariance, weights)):
                whole[place, theirs[:, None], theirs] = matrix[mine[:, None], mine]
            read.append((whole[0], whole[1]))
    if not all(torch.isfinite(covariance).all() for covariance, _ in read):
        raise BadInputError(
            f"layer {group.root} responds with NaN or infinity; check the checkpoint's weights and the normalization"
        )
    return explained_shares(read)


def _scale(norm: nn.Module) -> Tensor:
    """(C,) what batch norm in evaluation multiplies its inputs by, but for the sign."""
    assert isinstance(norm, BatchNorm) and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else (norm.weight.abs() * scale).detach()


def _gram(reader: nn.Module | None, like: Tensor, scale: Tensor | None) -> Tensor:
    """(C, C) of a reader's weights on its input channels, over outputs and taps, where outputs are scaled.

    The identity for grouped convolutions, whose weights do not see all channels.
    """
    if not isinstance(reader, nn.Linear | Convolution) or getattr(reader, "groups", 1) > 1:
        return torch.eye(len(like), dtype=like.dtype, device=like.device)
    weight = reader.weight.detach().to(like)
    weight = weight.transpose(0, 1) if not getattr(reader, "transposed", False) else weight
    by_input = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
    if scale is not None:
        by_input = by_input * scale.to(like)[:, None]
    by_input = by_input.flatten(1)
    return by_input @ by_input.T
