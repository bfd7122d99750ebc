"""Which weights of a model are compressed, and how: patterns on names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..methods.convolution.base import ConvMethod
from .compressors import Compressor, check_compressor


@dataclass(frozen=True)
class Candidate:
    """A weight that might be compressed.

    Attributes
    ----------
    name : str
        The weight's own name, such as ``encoder.rnn.weight_hh_l0``.
    layers : tuple of str
        Names of layers that stand for the weight, such as ``encoder.rnn``.
    owner : str
        The layer that holds the weight, where no layer stands for it: a pattern that matches the
        owner does not mean the weight.
    refusal : str
        Why it cannot be compressed; "" if it can.
    by_default : bool
        Whether it is chosen where no ``targets`` are given.
    is_kernel : bool
        Whether it is the kernel of a convolution, which the methods for convolutions can compress.
    """

    name: str
    layers: tuple[str, ...] = ()
    owner: str | None = None
    refusal: str = ""
    by_default: bool = True
    is_kernel: bool = False

    def is_meant_by(self, pattern: str) -> bool:
        """Return whether a pattern stands for this weight."""
        if any(fnmatchcase(layer, pattern) for layer in self.layers):
            return True
        means_owner = self.owner is not None and fnmatchcase(self.owner, pattern)
        return fnmatchcase(self.name, pattern) and not means_owner

    def is_within(self, pattern: str) -> bool:
        """Return whether a pattern matches this weight, a layer that stands for it or its owner."""
        owner = () if self.owner is None else (self.owner,)
        return any(fnmatchcase(name, pattern) for name in (self.name, *self.layers, *owner))

    def is_named_by(self, pattern: str) -> bool:
        """Return whether a pattern is the name of this weight, or of its layer."""
        return pattern in (self.name, *self.layers)


def choose(
    candidates: Iterable[Candidate],
    compressor: Compressor | Mapping[str, Compressor],
    targets: str | Iterable[str] | None,
    ignore: str | Iterable[str] | None,
) -> dict[str, Compressor]:
    """Return the compressors of the weights to compress, by the weights' names.

    Parameters
    ----------
    candidates : iterable of Candidate
        All weights and layers of a model, in its order.
    compressor : Compressor, or mapping of patterns to Compressors
        The last pattern that matches a weight, its layer or its owner decides. Weights that none
        matches are left out.
    targets : pattern or patterns, optional
        Which weights. Default: those that are meant by default, and those that the mapping's
        patterns stand for.
    ignore : pattern or patterns, optional
        Which weights not.

    Returns
    -------
    dict of str to Compressor
        In the order of the candidates, at least one.

    Raises
    ------
    TypeError
        For what is no pattern or no compressor, and for a weight that cannot be compressed and that
        is chosen by default or by its full name. Other patterns pass over such weights. Methods for
        convolutions pass over all else unless it is chosen by its full name.
    ValueError
        For a pattern that stands for no weight, and if no weight is chosen.
    """
    candidates = tuple(candidates)
    rules = dict(compressor) if isinstance(compressor, Mapping) else {"*": compressor}
    patterns(rules, "compressor")
    for each in rules.values():
        check_compressor(each)
    wanted, unwanted = patterns(targets, "targets"), patterns(ignore, "ignore") or ()
    for pattern in (*rules, *(wanted or ()), *unwanted):
        if pattern != "*" and not any(each.is_meant_by(pattern) for each in candidates):
            raise ValueError(f"patterns must match names of layers or weights, got {pattern!r}")
    chosen = {}
    for candidate in candidates:
        fitting = [own for pattern, own in rules.items() if candidate.is_within(pattern)]
        if not fitting or any(map(candidate.is_meant_by, unwanted)):
            continue
        deciding = tuple(rules) if wanted is None else wanted
        by_default = wanted is None and candidate.by_default
        if not by_default and not any(map(candidate.is_meant_by, deciding)):
            continue
        refusal = candidate.refusal
        if isinstance(fitting[-1], ConvMethod) and not candidate.is_kernel:
            if by_default:  # such a method means the convolutions of a model
                continue
            name = type(fitting[-1]).__name__
            refusal = f"must be a convolution over one axis or two for {name}"
        if not refusal:
            chosen[candidate.name] = fitting[-1]
        elif by_default or any(map(candidate.is_named_by, (*rules, *deciding))):
            layer = next(filter(None, (*candidate.layers, candidate.name)))
            raise TypeError(f"layer {layer!r} {refusal}; leave it out by ignore=[{layer!r}]")
    if not chosen:
        raise ValueError("at least one layer must be compressed, got none")
    return chosen


def patterns(given: str | Iterable[str] | None, name: str) -> tuple[str, ...] | None:
    """Return the patterns of an argument; None if it was left out.

    Raises
    ------
    TypeError
        If one is no text.
    """
    if given is None:
        return None
    found = (given,) if isinstance(given, str) else tuple(given)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must be patterns of names, got {pattern!r}")
    return found
