"""What the errors of a model's weights count: input covariances and squared gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from .. import _checks
from .._arrays import Array
from ..files.save import save
from ..training.selection import Candidate, patterns
from .examples import call, examples
from .input_covariances import InputCovariances
from .squared_gradients import SquaredGradients
from .untouched import untouched

Loss = Callable[[nn.Module, Any], torch.Tensor]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Input covariances and mean squared gradients of a model, from `collect_statistics`.

    Attributes
    ----------
    input_covariance : dict of arrays
        By the name of a layer's weight, the mean of x xᵀ over the layer's inputs, in float64.
    importance : dict of arrays
        By the name of a weight, the mean squared gradient of each of its entries, in float64.
    n_inputs : dict of int
        By the name of a layer's weight, over how many inputs the mean of x xᵀ was taken.
    n_gradients : int
        Over how many gradients the mean was taken; 0 without a loss.
    """

    input_covariance: dict[str, Array]
    importance: dict[str, Array]
    n_inputs: dict[str, int]
    n_gradients: int

    def save_input_covariance(
        self,
        path: str | os.PathLike[str],
        *,
        targets: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] | None = None,
    ) -> None:
        """Write the safetensors file that ``compress_file(input_covariance=)`` reads.

        Parameters
        ----------
        path : path
            An existing file is replaced once the new one is complete.
        targets, ignore : pattern or patterns, optional
            Names of weights or of their layers to write, and to leave out. Default: all.

        Raises
        ------
        TypeError, ValueError
            For patterns that are no text, and if no weight is left.
        OSError
            If the file cannot be written.
        """
        _save(path, self.input_covariance, targets, ignore)

    def damped(self, share: float = 1.0) -> Statistics:
        """Return these statistics with importances that differ less.

        To each importance a share of the mean importance of its weight is added. Squared gradients
        of some examples say little of the weights that they leave alone, and nothing of what errors
        of several weights do together: methods that find factors of a whole matrix put much error
        where an importance is near 0. The networks in bench/experiments/convolutions lost much less
        with the mean added than without.

        Parameters
        ----------
        share : float
            At least 0.

        Returns
        -------
        Statistics
            With the same input covariances.

        Raises
        ------
        TypeError, ValueError
            For another share.

        Examples
        --------
        >>> import numpy as np
        >>> from fastfactor.torch import Statistics
        >>> Statistics({}, {"weight": np.array([[0.0, 4.0]])}, {}, 1).damped().importance
        {'weight': array([[2., 6.]])}
        """
        share = _checks.nonnegative(share, "share", finite=True)
        added = {name: each + share * each.mean() for name, each in self.importance.items()}
        return replace(self, importance=added)

    def save_importance(
        self,
        path: str | os.PathLike[str],
        *,
        targets: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] | None = None,
    ) -> None:
        """Write the safetensors file that ``compress_file(importance=)`` reads.

        Parameters
        ----------
        path : path
            An existing file is replaced once the new one is complete.
        targets, ignore : pattern or patterns, optional
            Names of weights or of their layers to write, and to leave out. Default: all. A weight
            may be in one of two files that are used together: give
            ``ignore=statistics.input_covariance`` where its file is used too.

        Raises
        ------
        TypeError, ValueError
            For patterns that are no text, and if no weight is left.
        OSError
            If the file cannot be written.
        """
        _save(path, self.importance, targets, ignore)


def collect_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    per_example: bool = True,
    max_columns: int = 4096,
) -> Statistics:
    """Collect what `compress` may weigh errors by, from data that a model is run on.

    Parameters
    ----------
    model : Module
        It is run in eval mode, and left as it was: its mode, numbers, gradients and hooks.
    batches : iterable
        Each is read once. Without a loss a batch is what the model is called with: a tensor, a
        tuple or list of all arguments, or a mapping of arguments by name.
    loss : callable, optional
        ``loss(model, batch)`` calls the model and returns its loss, one number; or several numbers
        along one axis, the squares of whose gradients are added up. Without it there are no squared
        gradients. See `wrong_class_losses` for classifiers.
    targets, ignore : pattern or patterns, optional
        Names of weights or of their layers to look at, and to leave out. Default: all parameters
        of floats with two axes or more.
    per_example : bool
        Take the gradient of each example alone: batches are cut along the first axis of all their
        tensors, which are in tuples, lists and mappings. False takes one gradient a batch.
    max_columns : int
        Inputs of a layer up to which its covariance is collected, as it takes the square of their
        number in float64: 128 MiB for 4096.

    Returns
    -------
    Statistics
        By the names of weights; save each of the two kinds to a file of its own.

    Raises
    ------
    TypeError, ValueError
        For batches that cannot be cut into examples, a loss that is not finite numbers or does
        not depend on a weight, inputs that are not finite, and if there is no batch or no weight.

    Warns
    -----
    UserWarning
        For each layer whose covariance is left out because its inputs have too many columns, by the
        name of its weight.

    Notes
    -----
    **Input covariance**: the mean of ``x xᵀ`` over all inputs x, about zero, so that
    ``trace(E Σ Eᵀ)`` is the mean squared change of the outputs under a change E of the weight. For
    a convolution the inputs are its patches, padding included, in the order of the columns of its
    weight as a matrix (out, in · height · width). Groups of channels, which have patches of their
    own, share the mean over all of them: an approximation where their inputs differ. Collected for
    Linear, Conv1d and Conv2d when they are called as modules. Left out are recurrent layers, whose
    later inputs are not seen from outside, MultiheadAttention, which does not call its projections,
    and embeddings, whose inputs are no vectors.

    **Importance**: the mean of ``g²``, where g is the gradient of the loss of one example. With the
    labels of the data this is the diagonal of the empirical Fisher information, with labels drawn
    from the model's own outputs that of the Fisher information (Kunstner, Balles and Hennig, 2019).
    With ``per_example=False`` it is the mean of the squared gradients of batches. That is another
    quantity, ``‖E g‖² + Var g / n`` for the mean loss of n examples, in which examples cancel out;
    it is n times faster or less, and serves where a rough ranking of weights is enough.

    Sums are exact to float64, and grow with the weights and not with the data. Weights with the
    same parameter have one sum over all their layers, which is returned under each of their names.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.torch import collect_statistics
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> found = collect_statistics(model, [x], lambda model, x: model(x).sum())
    >>> found.input_covariance["weight"]
    array([[5., 1.],
           [1., 2.]])
    >>> found.importance["weight"], found.n_gradients
    (array([[5., 2.]]), 2)
    """
    _checks.boolean(per_example, "per_example")
    _checks.integer(max_columns, "max_columns", 1)
    if isinstance(batches, torch.Tensor):
        raise TypeError("batches must be an iterable of batches, got one tensor; give [tensor]")
    weights = _weights(model, patterns(targets, "targets"), patterns(ignore, "ignore"))
    gradients = None if loss is None else SquaredGradients(weights, loss)
    with (
        untouched(model, weights.values()),
        InputCovariances(model, weights, max_columns) as inputs,
    ):
        n_batches = 0
        for batch in batches:
            n_batches += 1
            if gradients is None:
                with inputs.listening(), torch.no_grad():
                    call(model, batch)
                continue
            for part in examples(batch) if per_example else (batch,):
                gradients.add(model, part, inputs.listening())
    if n_batches == 0:
        raise ValueError("batches must have at least one batch, got none")
    return Statistics(
        input_covariance=_by_name(inputs.covariances()),
        importance={} if gradients is None else _by_name(gradients.means()),
        n_inputs=_by_name(inputs.counts()),
        n_gradients=0 if gradients is None else gradients.n,
    )


def wrong_class_losses(
    logits: torch.Tensor, labels: torch.Tensor, n_classes: int = 3
) -> torch.Tensor:
    """Return a classifier's losses towards its most probable wrong classes.

    As the loss of `collect_statistics` they give the importances of Denton, Zaremba, Bruna, LeCun
    and Fergus, 2014: the sum of d² over the gradients d towards each of these classes.

    Parameters
    ----------
    logits : Tensor of shape (batch, classes)
        The model's outputs.
    labels : int Tensor of shape (batch,)
        The right classes.
    n_classes : int
        How many wrong classes, at least 1; the paper takes 3.

    Returns
    -------
    Tensor of shape (n_classes,)
        The cross entropy with the most probable wrong class, with the next one, and so on, each
        summed over the batch. Its gradient by the logits is softmax − 1 for that class, and
        softmax for the others.

    Raises
    ------
    TypeError, ValueError
        For other shapes, and unless there are more classes than n_classes.

    Notes
    -----
    Each of these losses takes a backward pass, so that statistics of h classes take h of them for
    each example.

    Examples
    --------
    >>> import torch
    >>> from fastfactor.torch import collect_statistics, wrong_class_losses
    >>> model, batch = torch.nn.Linear(8, 5), (torch.randn(20, 8), torch.randint(0, 5, (20,)))
    >>> def loss(model, batch):
    ...     return wrong_class_losses(model(batch[0]), batch[1])
    >>> collect_statistics(model, [batch], loss).importance["weight"].shape
    (5, 8)
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            "logits must have shape (batch, classes) and labels (batch,), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    _checks.integer(n_classes, "n_classes", 1, logits.shape[1] - 1)
    logs = torch.log_softmax(logits, dim=1)
    right = torch.zeros_like(logs, dtype=torch.bool).scatter_(1, labels.long()[:, None], True)
    wrong = logs.detach().masked_fill(right, -torch.inf).topk(n_classes, dim=1).indices
    return -logs.gather(1, wrong).sum(dim=0)


def _weights(
    model: nn.Module, targets: tuple[str, ...] | None, ignore: tuple[str, ...] | None
) -> dict[tuple[str, ...], nn.Parameter]:
    """Return the weights to look at by all their names; tied layers give a weight several."""
    names: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point() and parameter.ndim > 1:
            names[parameter] = (*names.get(parameter, ()), name)
    known = [name for group in names.values() for name in group]
    for pattern in (*(targets or ()), *(ignore or ())):
        if not any(_is_meant(name, (pattern,)) for name in known):
            raise ValueError(f"patterns must match names of layers or weights, got {pattern!r}")
    chosen = {
        group: parameter
        for parameter, group in names.items()
        if (targets is None or any(_is_meant(name, targets) for name in group))
        and not any(_is_meant(name, ignore or ()) for name in group)
    }
    if not chosen:
        raise ValueError("at least one weight must be looked at, got none")
    return chosen


def _is_meant(name: str, patterns: tuple[str, ...]) -> bool:
    weight = Candidate(name, layers=(name.rpartition(".")[0],))
    return any(map(weight.is_meant_by, patterns))


def _by_name(found: Mapping[tuple[str, ...], T]) -> dict[str, T]:
    return {name: value for group, value in found.items() for name in group}


def _save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    targets: str | Iterable[str] | None,
    ignore: str | Iterable[str] | None,
) -> None:
    wanted, unwanted = patterns(targets, "targets"), patterns(ignore, "ignore") or ()
    chosen = {
        name: array
        for name, array in arrays.items()
        if (wanted is None or _is_meant(name, wanted)) and not _is_meant(name, unwanted)
    }
    if not chosen:
        raise ValueError(f"at least one weight must be written, got none of {len(arrays)}")
    save(path, chosen)
