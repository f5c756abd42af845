"""Where an adapter reads: along what a lesson's inputs have, and what the base's own talk and earlier lessons have least of.

LoRA's A is chosen before training and stays: the directions in which the lesson stands out most from what is familiar, by the
generalised eigenvectors of both covariances; B alone is trained. On what is familiar such an adapter then says little, so it
changes little, though nothing familiar is trained on; with a dead zone it says nothing at all where A reads no more than some
times what it reads of familiar text on average (``adapter.shrunk``). InfLoRA (arXiv 2404.00228) keeps A orthogonal to what
earlier tasks read and takes the new task's principal directions; LoRA-Null (2503.02659) and AlphaEdit (2410.02355) keep it in the
null space of what the model knows; orthogonal weight modification (1810.01256) came first.

Departures: (1) no direction is shut out: each counts by how little of it is familiar, by a damped inverse square root, since a
small model's inputs fill their whole width; (2) only the largest eigenvalues of what is familiar are kept (in wide layers nearly
those), the others by their mean; (3) what earlier lessons read is taken from their adapters' A, no text of theirs is read again;
(4) of what is familiar, the places at which an answer is foretold weigh as much as all together, else what all answers have in
common would stand out; (5) the dead zone, which none of them has.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfedit.config import Settings
from selfedit.errors import DivergedError
from selfedit.lm.adapter import AdaptedLinear, Adapter, Directions, adapted_layers, install, layer_index, standing
from selfedit.lm.batch import Row
from selfedit.lm.flat import parts_of, read_flat
from selfedit.lm.load import LanguageModel, made_once
from selfedit.lm.stack import document_attention

# So many eigenvalues of what is familiar are kept; with how the file is made they name it.
KEPT, VERSION = 256, 9
# By how much more familiar than it is a direction counts that an earlier lesson reads.
EARLIER = 100.0
# Above that width so many more directions than are wanted are found in so many rounds (Halko and others, arXiv 0909.4061), not all.
WIDE, SPARE, ROUNDS = 4096, 64, 4
# Tokens in one pass, and bytes of inputs or their moments that are gathered at once.
READ_AT_ONCE, GATHERED_BYTES = 512, 2**30


@dataclass(frozen=True)
class Familiar:
    """The second moments (in, in) of a linear layer's inputs over familiar text, their mean eigenvalue taken as 1.

    Attributes:
        vectors: the largest eigenvalues' vectors (k, in).
        values: those eigenvalues (k,).
        rest: the mean of all others.
        size: that mean eigenvalue: the mean square of an input's entries.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor
    size: torch.Tensor

    def scaled(self, rows_Ni: torch.Tensor, damping: float, power: float) -> torch.Tensor:
        """Rows times (moments + damping)^power."""
        rest = (self.rest + damping) ** power
        return rows_Ni * rest + ((rows_Ni @ self.vectors.T) * ((self.values + damping) ** power - rest)) @ self.vectors

    def energy(self, down_ri: torch.Tensor) -> torch.Tensor:
        """The mean of |A x|^2 over what is familiar."""
        return self.size * self.scaled(down_ri, 0.0, 0.5).square().sum()


class Moments:
    """What is needed of a layer's inputs: the rows (N, in) while they are few, then their second moments (in, in)."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []
        self.square: torch.Tensor | None = None
        self.count = 0

    def add(self, rows_Ni: torch.Tensor) -> None:
        """More inputs, in float32."""
        self.count += len(rows_Ni)
        if self.square is None and self.count <= rows_Ni.shape[1]:
            self.rows.append(rows_Ni)
            return
        for rows in (*self.rows, rows_Ni):
            self.square = rows.T @ rows if self.square is None else self.square.addmm_(rows.T, rows)
        self.rows = []

    def mean_square(self, down_ri: torch.Tensor | None = None) -> torch.Tensor:
        """Of an input's entries, or (with A) of the length of what A makes of an input."""
        if self.square is None:
            rows_Ni = torch.cat(self.rows)
            return rows_Ni.square().mean() if down_ri is None else (rows_Ni @ down_ri.T).square().sum(1).mean()
        if down_ri is None:
            return self.square.trace() / (self.count * len(self.square))
        return ((down_ri @ self.square) * down_ri).sum() / self.count

    def principal(self, count: int, seen: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows) -> Spectrum:
        """The largest eigenvalues and their directions after a symmetric map of the inputs, ``seen``."""
        if self.square is None:
            return principal(seen(torch.cat(self.rows)), count)
        return _spectrum(seen(seen(self.square).T), count)


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (count,), the largest first, and their vectors (count, in); both 0 where there are fewer."""

    values: torch.Tensor
    vectors: torch.Tensor


def principal(rows_Ni: torch.Tensor, count: int) -> Spectrum:
    """Of the second moments of rows, not centred."""
    if len(rows_Ni) >= rows_Ni.shape[1]:
        return _spectrum(rows_Ni.T @ rows_Ni, count)
    found = _spectrum(rows_Ni @ rows_Ni.T, count)
    vectors = (found.vectors @ rows_Ni) / found.values.clamp(min=1e-30).sqrt()[:, None]
    return Spectrum(found.values, vectors * (found.values > 0)[:, None])


def _spectrum(square: torch.Tensor, count: int) -> Spectrum:
    if len(square) > WIDE and count + SPARE < len(square) // 2:
        with torch.random.fork_rng([square.device] if square.is_cuda else []):
            torch.manual_seed(0)
            _, values, vectors = torch.svd_lowrank(square, count + SPARE, ROUNDS)
    else:
        values, vectors = (found.flip(-1) for found in torch.linalg.eigh(square))
    values, vectors = values[:count], vectors[:, :count].T
    there = values > 1e-6 * values[0]
    missing = count - len(values)
    return Spectrum(
        torch.nn.functional.pad(values * there, (0, missing)), torch.nn.functional.pad(vectors * there[:, None], (0, 0, 0, missing))
    )


def directions_of(
    lm: LanguageModel, rows: Iterable[Row], settings: Settings, familiar: Mapping[str, Familiar], earlier: Sequence[Adapter] = ()
) -> Directions:
    """A (r, in) of each adapted layer for a training on rows, and its floor; modules of one input have equal ones.

    Each direction is as long as its neighbours where nothing is familiar, and all together give the rows' inputs the mean square
    that a fresh LoRA's A gives them. Rows that bring fewer directions than the rank leave the last ones 0.

    Args:
        lm: the model that is trained on, with whatever stands.
        rows: what is trained on; counted are the inputs that a labelled token is foretold from, but for a sequence's first.
        settings: rank, targets, layers, ``null_space``, the damping, and ``dead_zone``.
        familiar: for each linear layer.
        earlier: adapters whose directions count as familiar.

    Raises:
        DivergedError: the model's states are no finite numbers.
    """
    damping = settings.null_space
    found: dict[str, torch.Tensor] = {}
    floors: dict[str, float] = {}
    for group, inputs in _inputs(lm, rows, adapted_layers(lm, settings.targets, settings.layers)).items():
        known = familiar[group[0]]
        size = inputs.mean_square()
        if not torch.isfinite(size):
            raise DivergedError(f"what stands has no finite states at {group[0]}; take the newest entry out with memory undo")
        # Layers that read the same input have the same, whichever of them an earlier adapter sits on.
        alike = [name for name, other in familiar.items() if other is known]
        reads = [
            known.scaled(torch.cat([one.weights[name][0].to(size) for name in alike if name in one.weights]), damping, 0.5)
            for one in earlier
            if any(name in one.weights for name in alike)
        ]
        avoiding = _avoiding(reads)
        top = inputs.principal(settings.rank, lambda x, known=known, avoiding=avoiding: avoiding(known.scaled(x, damping, -0.5)))  # type: ignore[misc]
        down_ri = known.scaled(avoiding(top.vectors), damping, -0.5)
        wanted = settings.rank * size / 3  # of A uniform in +-1/sqrt(in)
        down_ri = down_ri * (wanted / inputs.mean_square(down_ri)).sqrt()
        found |= {name: down_ri.clone() for name in group}
        if settings.dead_zone:
            floors |= dict.fromkeys(group, settings.dead_zone * known.energy(down_ri).item())
    return Directions(found, floors)


def _avoiding(reads: Sequence[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What takes rows (N, in) less far along what earlier adapters read, each by its A (r, in), the more of them read it."""
    if not reads:
        return lambda rows: rows
    bases = []
    for read in reads:
        own = principal(read, min(read.shape))
        bases.append(own.vectors[own.values > 0])
    every = torch.cat(bases)
    all_read = principal(every, min(every.shape))
    shares = (1 + EARLIER * all_read.values) ** -0.5 - 1
    return lambda rows: rows + ((rows @ all_read.vectors.T) * shares) @ all_read.vectors


def familiar_of(lm: LanguageModel, rows: Callable[[], Sequence[Row]], digest: str) -> dict[str, Familiar]:
    """What is familiar to every linear layer of the base alone; made once for a base, kept in the cache.

    Args:
        lm: whatever stands or is installed doesn't count.
        rows: makes familiar text; called if it isn't in the cache. Every token counts but a sequence's first, at which models
            leave states of hundreds of times the others' size; those that an answer to a request is foretold from, which is where
            a lesson is taught, count as much as all together.
        digest: names the rows.

    Raises:
        ModelError: the cache can't be written, or what was written can't be read.
    """
    digest = f"{digest}-{KEPT}-{VERSION}"
    return made_once(lm, "familiar", digest, lambda file: _read(lm, file), lambda file: _write(_make(lm, rows()), file))


def _make(lm: LanguageModel, rows: Sequence[Row]) -> dict[tuple[str, ...], Familiar]:
    threads, read = torch.get_num_threads(), lm.read
    torch.set_num_threads(1)
    found = {}
    try:
        with standing(lm, [], alone=True):
            for layers in _few_at_once(adapted_layers(lm, "all-linear", "all"), sum(len(row.ids) for row in rows)):
                for group, inputs in _inputs(lm, rows, layers, everywhere=True).items():
                    size = inputs.mean_square()
                    width = layers[group[0]].base.in_features
                    kept = min(KEPT, width - 1)
                    top = inputs.principal(kept)
                    values = top.values / (inputs.count * size)
                    rest = ((width - values.sum()) / (width - kept)).clamp(min=0.0)
                    found[group] = Familiar(top.vectors.contiguous(), values, rest, size)
    finally:
        torch.set_num_threads(threads)
        lm.read = read
    return found


def _few_at_once(layers: dict[str, AdaptedLinear], tokens: int) -> Iterator[dict[str, AdaptedLinear]]:
    """Whole decoder layers, as many as ``GATHERED_BYTES`` have room for."""
    part: dict[str, AdaptedLinear] = {}
    used = 0
    for _, own in itertools.groupby(layers.items(), key=lambda item: layer_index(item[0])):
        block = dict(own)
        widths = [layer.base.in_features for layer in block.values()]
        size = sum(4 * width * min(width, tokens) for width in widths)
        if part and used + size > GATHERED_BYTES:
            yield part
            part, used = {}, 0
        part |= block
        used += size
    yield part


def _write(found: Mapping[tuple[str, ...], Familiar], file: Path) -> None:
    tensors = {}
    for group, known in found.items():
        for part, tensor in vars(known).items():
            tensors[f"{','.join(group)}/{part}"] = tensor.cpu()
    scratch = file.with_suffix(f".{os.getpid()}")
    save_file(tensors, scratch)
    scratch.replace(file)


def _read(lm: LanguageModel, file: Path) -> dict[str, Familiar] | None:
    """None: there is none yet, or the file is damaged."""
    try:
        tensors = load_file(file)
        found: dict[str, Familiar] = {}
        for key in tensors:
            names, _, part = key.partition("/")
            if part == "vectors":
                parts = [tensors[f"{names}/{one.name}"].to(lm.device) for one in fields(Familiar)]
                found |= dict.fromkeys(names.split(","), Familiar(*parts))
        return found or None
    except (OSError, KeyError, ValueError, SafetensorError):
        return None


def _inputs(
    lm: LanguageModel, rows: Iterable[Row], layers: Mapping[str, AdaptedLinear], everywhere: bool = False
) -> dict[tuple[str, ...], Moments]:
    """Of each distinct input in the places that a labelled token is foretold from, but for a sequence's first.

    ``everywhere``: of all places, and of those of answers to a request once more with as much weight as all together.
    """
    rows = list(dict.fromkeys(rows))
    answers = [row for row in rows if row.unlabelled > 1]
    weight = sum(len(row.ids) - 2 for row in rows) / max(1, sum(row.labelled for row in answers))
    found: dict[tuple[str, ...], Moments] = {}
    for inputs, paths in _read_by(lm, rows, layers):
        places = torch.cat([path[(1 if everywhere else max(2, row.unlabelled) - 1) : -1] for row, path in paths])
        taught = [path[row.unlabelled - 1 : -1] for row, path in paths if row.unlabelled > 1]
        for group, inputs_Ti in inputs.items():
            moments = found.setdefault(group, Moments())
            moments.add(inputs_Ti[places])
            if everywhere and taught:
                moments.add(inputs_Ti[torch.cat(taught)] * weight**0.5)
    return found


def _read_by(
    lm: LanguageModel, rows: Iterable[Row], layers: Mapping[str, AdaptedLinear]
) -> Iterator[tuple[dict[tuple[str, ...], torch.Tensor], list[tuple[Row, torch.Tensor]]]]:
    """Distinct rows a few at a time: what layers read (T, in), in float32, and the places of each row's tokens in it.

    Layers that read the same tensor are one group.
    """
    install(lm, None)
    groups: list[tuple[list[str], torch.Tensor]] = []

    def look(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            same = next((names for names, known in groups if known is inputs[0]), None)
            if same is None:
                groups.append(([name], inputs[0]))
            else:
                same.append(name)

        return hook

    ordered = sorted(dict.fromkeys(rows), key=lambda row: row.ids)
    for part in parts_of([(0, row) for row in ordered], laid_out=True, most=READ_AT_ONCE):
        hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
        try:
            # Compiled layers don't call hooks that came later.
            with document_attention(lm), torch.compiler.set_stance("force_eager"):
                paths = read_flat(lm, part)
        finally:
            for hook in hooks:
                hook.remove()
        inputs = {tuple(names): found.reshape(-1, found.shape[-1]).float() for names, found in groups}
        groups.clear()
        yield inputs, [(row, path) for (_, row), path in zip(part, paths, strict=True)]
