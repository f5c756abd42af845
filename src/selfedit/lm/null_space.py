"""Where an adapter reads: along what a lesson's inputs have, and what the base's own talk and earlier lessons have least of.

LoRA's A is chosen before training and stays: the directions in which the lesson stands out most from what is familiar, by the
generalised eigenvectors of both covariances; B alone is trained. On what is familiar such an adapter then says next to nothing, so
it changes little, though nothing familiar is trained on. InfLoRA (arXiv 2404.00228) keeps A orthogonal to what earlier tasks read
and takes the new task's principal directions; LoRA-Null (2503.02659) and AlphaEdit (2410.02355) keep it in the null space of what
the model knows; orthogonal weight modification (1810.01256) came first.

Departures: (1) no direction is shut out: each counts by how little of it is familiar, by a damped inverse square root, since a
small model's inputs fill their whole width; (2) only the largest eigenvalues of what is familiar are kept, the others by their
mean; (3) what earlier lessons read is taken from their adapters' A, no text of theirs is read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfedit.config import Settings
from selfedit.errors import ModelError
from selfedit.lm.adapter import Adapter, adapted_layers, install, standing
from selfedit.lm.batch import Row
from selfedit.lm.flat import parts_of, read_flat
from selfedit.lm.load import LanguageModel, cache_folder, writing_cache
from selfedit.lm.stack import document_attention

# So many eigenvalues of what is familiar are kept. By how much a direction that an earlier lesson reads counts, where the mean
# direction of what is familiar counts 1.
KEPT, EARLIER = 128, 100.0
# Tokens in one pass: bounds the inputs that are held.
READ_AT_ONCE = 512


@dataclass(frozen=True)
class Familiar:
    """The covariance (in, in) of a linear layer's inputs over familiar text, its mean eigenvalue taken as 1.

    Attributes:
        vectors: the largest eigenvalues' vectors (k, in).
        values: those eigenvalues (k,).
        rest: the mean of all others.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor

    def scaled(self, rows_Ni: torch.Tensor, damping: float, power: float) -> torch.Tensor:
        """Rows times (covariance + damping)^power."""
        rest = (self.rest + damping) ** power
        return rows_Ni * rest + ((rows_Ni @ self.vectors.T) * ((self.values + damping) ** power - rest)) @ self.vectors


def fixed_downs(
    lm: LanguageModel, rows: Iterable[Row], settings: Settings, familiar: Mapping[str, Familiar], earlier: Sequence[Adapter] = ()
) -> dict[str, torch.Tensor]:
    """A (r, in) of each adapted layer for a training on rows; modules of one input have one and the same.

    Each direction is as long as its neighbours where nothing is familiar, and all together give the rows' inputs the mean square
    that a fresh LoRA's A gives them. Rows that bring fewer directions than the rank leave the last ones 0.

    Args:
        lm: the model that is trained on, with whatever stands.
        rows: what is trained on; counted are the inputs that a labelled token is foretold from.
        settings: rank, targets, layers, and ``null_space``, the damping.
        familiar: for each adapted layer.
        earlier: adapters whose directions count as familiar.
    """
    damping = settings.null_space
    found: dict[str, torch.Tensor] = {}
    for group, inputs_Ni in _inputs(lm, rows, settings).items():
        known = familiar[group[0]]
        size_i = inputs_Ni.square().mean()
        plain = known.scaled(inputs_Ni / size_i.sqrt(), damping, -0.5)
        reads = [known.scaled(one.weights[group[0]][0].to(plain), damping, 0.5) for one in earlier if group[0] in one.weights]
        seen = _seen(reads, plain.shape[1])
        top_ri = _principal(seen(plain), settings.rank)
        down_ri = known.scaled(seen(top_ri), damping, -0.5)
        wanted = settings.rank * size_i / 3  # of A uniform in +-1/sqrt(in)
        down_ri = down_ri * (wanted / (inputs_Ni @ down_ri.T).square().sum(1).mean()).sqrt()
        found |= dict.fromkeys(group, down_ri)
    return found


def _seen(reads: Sequence[torch.Tensor], width: int) -> Any:
    """What takes rows (N, in) less far along what earlier adapters read, by how many of them read it."""
    if not reads:
        return lambda rows: rows
    bases = [torch.linalg.qr(read[read.any(1)].T)[0].T for read in reads]
    _, sizes, vectors = torch.linalg.svd(torch.cat(bases), full_matrices=False)
    shares = (1 + EARLIER * sizes.square()) ** -0.5
    return lambda rows: rows + ((rows @ vectors.T) * (shares - 1)) @ vectors


def _principal(rows_Ni: torch.Tensor, count: int) -> torch.Tensor:
    """The first principal directions (count, in) of rows, not centred; 0 where there are fewer."""
    few = rows_Ni.shape[0] < rows_Ni.shape[1]
    squares, vectors = torch.linalg.eigh(rows_Ni @ rows_Ni.T if few else rows_Ni.T @ rows_Ni)
    squares, vectors = squares.flip(0)[:count], vectors.flip(1)[:, :count]
    found = (vectors.T @ rows_Ni / squares.clamp(min=1e-12).sqrt()[:, None]) if few else vectors.T
    found = found * (squares > 1e-6 * squares[0])[:, None]
    return torch.nn.functional.pad(found, (0, 0, 0, count - len(found)))


def familiar_of(lm: LanguageModel, rows: Callable[[], Sequence[Row]], digest: str) -> dict[str, Familiar]:
    """What is familiar to every linear layer of the base alone; made once for a base, kept in the cache.

    Args:
        lm: whatever stands or is installed doesn't count.
        rows: makes familiar text, of which every token counts; called if it isn't in the cache.
        digest: names the rows.

    Raises:
        ModelError: the cache can't be written, or what was written can't be read.
    """
    if "familiar" not in lm.made:
        name = f"{lm.fingerprint}-{str(lm.dtype).removeprefix('torch.')}-{lm.device.type}-{digest}.safetensors"
        file = cache_folder() / "familiar" / name
        found = _read(lm, file)
        if found is None:
            with writing_cache():
                file.parent.mkdir(parents=True, exist_ok=True)
                # One process makes it, the others wait and read.
                with FileLock(f"{file}.lock"):
                    if _read(lm, file) is None:
                        _write(_make(lm, rows()), file)
            found = _read(lm, file)
        if found is None:
            raise ModelError(f"{file}: what is familiar was written there and can't be read; delete the file and try again")
        lm.made["familiar"] = found
    return dict(lm.made["familiar"])


def _make(lm: LanguageModel, rows: Sequence[Row]) -> dict[tuple[str, ...], Familiar]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with standing(lm, [], alone=True):
            found = {}
            every = Settings(layers="all", targets="all-linear")
            for group, square in _squares(lm, rows, every).items():
                values, vectors = torch.linalg.eigh(square / (square.trace() / len(square)))
                kept = min(KEPT, len(values) - 1)
                top = values.flip(0)[:kept].clamp(min=0)
                rest = values[: len(values) - kept].clamp(min=0).mean()
                found[group] = Familiar(vectors.flip(1)[:, :kept].T.contiguous(), top, rest)
    finally:
        torch.set_num_threads(threads)
    return found


def _write(found: Mapping[tuple[str, ...], Familiar], file: Path) -> None:
    tensors = {}
    for group, known in found.items():
        for part in ("vectors", "values", "rest"):
            tensors[f"{','.join(group)}/{part}"] = getattr(known, part).cpu()
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
                parts = [tensors[f"{names}/{one}"].to(lm.device) for one in ("vectors", "values", "rest")]
                found |= dict.fromkeys(names.split(","), Familiar(*parts))
        return found
    except (OSError, KeyError, ValueError, SafetensorError):
        return None


def _squares(lm: LanguageModel, rows: Iterable[Row], settings: Settings) -> dict[tuple[str, ...], torch.Tensor]:
    """Sum of the outer squares (in, in) of each distinct input over all tokens of rows."""
    sums: dict[tuple[str, ...], torch.Tensor] = {}
    for inputs, paths in _read_by(lm, rows, settings):
        places = torch.cat([path for _, path in paths])
        for group, inputs_Ti in inputs.items():
            square = inputs_Ti[places].T @ inputs_Ti[places]
            sums[group] = sums[group] + square if group in sums else square
    return sums


def _inputs(lm: LanguageModel, rows: Iterable[Row], settings: Settings) -> dict[tuple[str, ...], torch.Tensor]:
    """Each distinct input (N, in) in the places that a labelled token is foretold from."""
    found: dict[tuple[str, ...], list[torch.Tensor]] = {}
    for inputs, paths in _read_by(lm, rows, settings):
        places = torch.cat([path[max(1, row.unlabelled) - 1 : -1] for row, path in paths])
        for group, inputs_Ti in inputs.items():
            found.setdefault(group, []).append(inputs_Ti[places])
    return {group: torch.cat(parts) for group, parts in found.items()}


def _read_by(
    lm: LanguageModel, rows: Iterable[Row], settings: Settings
) -> Iterator[tuple[dict[tuple[str, ...], torch.Tensor], list[tuple[Row, torch.Tensor]]]]:
    """Distinct rows a few at a time: what the adapted layers read (T, in), in float32, and the places of each row's tokens in it.

    Layers that read the same tensor are one group.
    """
    layers = adapted_layers(lm, settings.targets, settings.layers)
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
            with document_attention(lm):
                paths = read_flat(lm, part)
        finally:
            for hook in hooks:
                hook.remove()
        inputs = {tuple(names): found.reshape(-1, found.shape[-1]).float() for names, found in groups}
        groups.clear()
        yield inputs, [(row, path) for (_, row), path in zip(part, paths, strict=True)]
