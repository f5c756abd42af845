"""LoRA adapters on a frozen model: made, installed, stacked, saved in PEFT's format and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from selfedit.config import Settings
from selfedit.errors import MemoryStoreError, ModelError
from selfedit.lm.load import Identity, LanguageModel, load_model

# Above this rank a frozen sum of adapters costs more than a dense copy of the weights.
LARGEST_STACK_RANK = 256
# What an adapter with floors calls itself where PEFT's have LORA.
FLOORED = "SELFEDIT_FLOORED_LORA"


@dataclass
class Adapter:
    """One LoRA: for each adapted linear layer a pair of float32 tensors.

    Attributes:
        weights: module name -> (A (r, in), B (out, r)).
        alpha: the update is (alpha / rank) * B @ A.
        dropout: share of the input dropped while training.
        floors: module name -> the squared length of A x up to which the adapter adds nothing there (``shrunk``); without them it is
            plain LoRA.
    """

    weights: dict[str, tuple[torch.Tensor, torch.Tensor]]
    alpha: float
    dropout: float = 0.0
    floors: dict[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """LoRA rank."""
        return next(iter(self.weights.values()))[0].shape[0]

    @property
    def scale(self) -> float:
        """Factor on B @ A."""
        return self.alpha / self.rank

    @property
    def parameters(self) -> list[torch.Tensor]:
        """A and B of every module, in order."""
        return [tensor for pair in self.weights.values() for tensor in pair]


@dataclass(frozen=True)
class Directions:
    """Where an adapter reads, chosen before its training.

    Attributes:
        downs: each module's A (r, in), which stays as it is.
        floors: as an adapter's.
    """

    downs: Mapping[str, torch.Tensor]
    floors: Mapping[str, float] = field(default_factory=dict)


def shrunk(z: torch.Tensor, floors: torch.Tensor) -> torch.Tensor:
    """What passes of z = A x (..., r): z times max(0, 1 - floor / |z|^2), the non-negative garrote (Breiman 1995) of a block.

    Nothing passes up to the floor, everything where the floor is 0; it is continuous, so rounding switches nothing on.

    Args:
        z: of one adapter, or of several in a dimension of their own.
        floors: one for each, (..., 1), in float32.
    """
    return z * (1.0 - floors / _energy(z)).clamp(min=0.0).to(z.dtype)


def shrunk_gradient(dy: torch.Tensor, z: torch.Tensor, floors: torch.Tensor) -> torch.Tensor:
    """The gradient of ``shrunk`` in z, given that of its result."""
    energy = _energy(z)
    passing = (1.0 - floors / energy).clamp(min=0.0)
    slope = torch.where(passing > 0, 2.0 * floors / energy / energy, 0.0)
    return dy * passing.to(z.dtype) + z * ((dy * z).sum(-1, keepdim=True) * slope.to(z.dtype))


def _energy(z: torch.Tensor) -> torch.Tensor:
    return z.float().square().sum(-1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class FrozenSum:
    """A frozen sum of J adapters in one layer.

    Attributes:
        down, up: (J * r, in) and (out, J * r), B times its scale; with floors those of lower rank are padded with zeros.
        floors: (J, 1) in float32; None: none has any.
    """

    down: torch.Tensor
    up: torch.Tensor
    floors: torch.Tensor | None = None

    @classmethod
    def of(cls, adapters: Sequence[Adapter], name: str, lm: LanguageModel) -> FrozenSum:
        """The sum of those adapters that have the module, one at least, on the model's device and in its precision."""
        present = [adapter for adapter in adapters if name in adapter.weights]
        # Those just read from a folder are on the CPU.
        pairs = [
            (down.to(lm.device), up.to(lm.device) * adapter.scale) for adapter in present for down, up in (adapter.weights[name],)
        ]
        floors = [adapter.floors.get(name, 0.0) for adapter in present]
        if any(floors):
            rank = max(len(down) for down, _ in pairs)
            pairs = [(F.pad(down, (0, 0, 0, rank - len(down))), F.pad(up, (0, rank - len(down)))) for down, up in pairs]
        return cls(
            torch.cat([down for down, _ in pairs]).to(lm.dtype),
            torch.cat([up for _, up in pairs], dim=1).to(lm.dtype),
            torch.tensor(floors, device=lm.device)[:, None] if any(floors) else None,
        )

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> what B gets, (..., J * r)."""
        z = F.linear(x, self.down)
        return z if self.floors is None else shrunk(self.apart(z), self.floors).flatten(-2)

    def apart(self, z: torch.Tensor) -> torch.Tensor:
        """(..., J * r) -> (..., J, r), of adapters with floors."""
        assert self.floors is not None
        return z.reshape(*z.shape[:-1], len(self.floors), -1)


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus frozen sums (earlier adapters) plus at most one adapter that may be in training."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        # The weights as they were loaded; in a list, so that they are no parameter of their own.
        self.original = [base.weight]
        self.frozen: tuple[FrozenSum, ...] = ()
        self.active: tuple[torch.Tensor, torch.Tensor] | None = None  # (r, in), (out, r)
        self.floor: torch.Tensor | None = None  # (1,), the active one's
        self.scale = 1.0
        self.dropout = 0.0
        # K adapters at once (lm/stack.py), each on its own rows; then none is active.
        self.slots: Callable[[AdaptedLinear, torch.Tensor], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        if self.slots is not None:
            return self.slots(self, x)
        y: torch.Tensor = self.base(x)
        for beneath in self.frozen:
            y = y + F.linear(beneath.read(x), beneath.up)
        if self.active is not None:
            down, up = self.active
            x = x.to(down.dtype)
            if self.dropout and self.training:
                x = F.dropout(x, self.dropout)
            z = F.linear(x, down)
            if self.floor is not None:
                z = shrunk(z, self.floor)
            y = y + (F.linear(z, up) * self.scale).to(y.dtype)
        return y


def new_adapter(lm: LanguageModel, settings: Settings, seed: int, directions: Directions | None = None) -> Adapter:
    """A fresh adapter: A as given, or uniform in +-1/sqrt(in) (PEFT's default); B zero.

    It has a generator of its own, so neighbours don't matter.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in adapted_layers(lm, settings.targets, settings.layers).items():
        base = layer.base
        if directions is not None:
            down = directions.downs[name].clone()
        else:
            bound = 1.0 / math.sqrt(base.in_features)
            down = torch.empty(settings.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        weights[name] = (down.to(lm.device), torch.zeros(base.out_features, settings.rank, device=lm.device))
    return Adapter(weights, settings.alpha, settings.dropout, dict(directions.floors) if directions is not None else {})


def target_names(targets: str) -> set[str]:
    """The linear layers' own names, without those of the modules above; none for ``all-linear``, which is whatever a model has."""
    return set() if targets == "all-linear" else {"qv": {"q_proj", "v_proj"}}.get(targets, set(targets.split(",")))


def adapted_layers(lm: LanguageModel, targets: str, layers: str) -> dict[str, AdaptedLinear]:
    """The linear layers that settings name, in the model's order; ``last:N`` of a model with fewer layers is all of them.

    Raises:
        ModelError: no linear layer has such a name.
    """
    everything = _wrapped(lm)
    count = int(lm.model.config.get_text_config().num_hidden_layers)
    first = 0 if layers == "all" else max(0, count - int(layers.removeprefix("last:")))
    wanted = target_names(targets)
    chosen = {
        name: layer
        for name, layer in everything.items()
        if layer_index(name) >= first and (not wanted or name.rsplit(".", 1)[-1] in wanted)
    }
    unknown = wanted - {name.rsplit(".", 1)[-1] for name in chosen}
    if unknown or not chosen:
        known = sorted({name.rsplit(".", 1)[-1] for name in everything})
        raise ModelError(
            f"targets={targets}: {lm.name} has no linear layer {', '.join(sorted(unknown))}; it has {', '.join(known)}"
        )
    return chosen


def first_layer(adapter: Adapter) -> int:
    """Index of the lowest decoder layer that the adapter touches; everything below it stays as it was."""
    return min(layer_index(name) for name in adapter.weights)


def install(lm: LanguageModel, adapter: Adapter | None) -> None:
    """Makes ``adapter`` the active one (None: only the frozen stack answers)."""
    for layer in _wrapped(lm).values():
        layer.active = None
    if adapter is not None:
        layers = _wrapped(lm)
        for name, pair in adapter.weights.items():
            layers[name].active = (pair[0].to(lm.device), pair[1].to(lm.device))
            layers[name].scale, layers[name].dropout = adapter.scale, adapter.dropout
            floor = adapter.floors.get(name)
            layers[name].floor = torch.tensor([floor], device=lm.device) if floor else None


def install_stack(lm: LanguageModel, adapters: Sequence[Adapter]) -> None:
    """Adds a frozen sum of adapters beneath the active one.

    Those without floors are merged into dense copies if their ranks come to more than ``LARGEST_STACK_RANK``.

    May be called once on a freshly loaded model.
    """
    layers = _wrapped(lm)
    plain, floored = _by_floors(adapters)
    for part in (plain, floored):
        for name in {name: None for adapter in part for name in adapter.weights}:
            layer, rank = layers[name], sum(adapter.rank for adapter in part if name in adapter.weights)
            if part is plain and rank > LARGEST_STACK_RANK:
                _merge(lm, layer, part, name)
            else:
                layer.frozen = (*layer.frozen, FrozenSum.of(part, name, lm))


def _refuse_floors(adapters: Sequence[Adapter]) -> None:
    if any(adapter.floors for adapter in adapters):
        raise ValueError("adapters with floors are no sum of weights")


def _by_floors(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[Adapter]]:
    """Those that are plain LoRA, and the others."""
    return [one for one in adapters if not one.floors], [one for one in adapters if one.floors]


def _merge(lm: LanguageModel, layer: AdaptedLinear, adapters: Sequence[Adapter], name: str) -> None:
    """A dense copy of a layer's weights with what adapters without floors add to it."""
    dense = layer.base.weight.float()
    # One after the other, so that they are the same whether they are merged at once or in turn.
    for adapter in (adapter for adapter in adapters if name in adapter.weights):
        down, up = (tensor.to(lm.device) for tensor in adapter.weights[name])
        dense = dense + adapter.scale * (up @ down)
    layer.base.weight = nn.Parameter(dense.to(lm.dtype), requires_grad=False)


def install_saved_stack(lm: LanguageModel, folders: Sequence[str]) -> None:
    """``install_stack`` of saved adapters, whose folders the model then names."""
    install_stack(lm, [load_adapter(Path(folder)) for folder in folders])
    lm.stack = tuple(folders)


@contextmanager
def standing(lm: LanguageModel, adapters: Sequence[Adapter], alone: bool = False) -> Iterator[None]:
    """Adds adapters to the base for a while: a policy.

    On a CPU those without floors as dense copies, since a low-rank sum costs time at every step.

    Args:
        alone: whether the frozen stack is left out meanwhile.
    """
    layers = _wrapped(lm)
    before = {name: (layer.frozen, layer.base.weight) for name, layer in layers.items()}
    try:
        if alone:
            for layer in layers.values():
                layer.frozen, layer.base.weight = (), layer.original[0]
        plain, floored = _by_floors(adapters)
        for part in (plain, floored):
            for name in {name: None for adapter in part for name in adapter.weights}:
                if part is plain and lm.device.type == "cpu":
                    _merge(lm, layers[name], part, name)
                else:
                    layers[name].frozen = (*layers[name].frozen, FrozenSum.of(part, name, lm))
        yield
    finally:
        for name, layer in layers.items():
            layer.frozen, layer.base.weight = before[name]


def policy_standing(lm: LanguageModel, folder: str | None, alone: bool = False) -> AbstractContextManager[None]:
    """A saved policy's weights, or (None) what is there without it, for a while; ``alone`` as in ``standing``."""
    return standing(lm, [load_adapter(Path(folder))] if folder else [], alone)


def summed(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of them add; its rank is the sum of theirs; none has floors."""
    _refuse_floors(adapters)
    weights = {}
    rank = sum(adapter.rank for adapter in adapters)
    for name in {name: None for adapter in adapters for name in adapter.weights}:
        present = [adapter for adapter in adapters if name in adapter.weights]
        # One may come from the disk and one from a GPU.
        down = torch.cat([adapter.weights[name][0].cpu() for adapter in present])
        up = torch.cat([adapter.weights[name][1].cpu() * adapter.scale for adapter in present], dim=1)
        missing = rank - down.shape[0]
        weights[name] = (
            torch.nn.functional.pad(down, (0, 0, 0, missing)),
            torch.nn.functional.pad(up, (0, missing)),
        )
    return Adapter(weights, float(rank))


def save_adapter(adapter: Adapter, folder: Path, base_model: str) -> None:
    """Writes PEFT's two files, ``adapter_model.safetensors`` and ``adapter_config.json``.

    An adapter with floors is of a kind that PEFT doesn't know, so that PEFT refuses it rather than answer by it as by plain LoRA.

    Raises:
        MemoryStoreError: no space left, or another fault of the disk.
    """
    tensors = {}
    for name, (down, up) in adapter.weights.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in adapter.weights}),
        "layers_to_transform": sorted({layer_index(name) for name in adapter.weights}),
        "bias": "none",
        "inference_mode": True,
    }
    if adapter.floors:
        config |= {"peft_type": FLOORED, "floors": adapter.floors}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    except (OSError, SafetensorError) as error:
        raise MemoryStoreError(
            f"{folder}: the adapter could not be written ({error}); free space on the disk and try again"
        ) from error


def load_adapter(folder: Path) -> Adapter:
    """Reads an adapter in PEFT's format.

    Raises:
        MemoryStoreError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        weights = {}
        for key, down in tensors.items():
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                weights[name] = (down.float(), tensors[key.replace(".lora_A.", ".lora_B.")].float())
        floors = {str(name): float(floor) for name, floor in config.get("floors", {}).items()}
        return Adapter(weights, float(config["lora_alpha"]), float(config.get("lora_dropout", 0.0)), floors)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise MemoryStoreError(
            f"{folder}: the adapter can't be read ({error}); put its two files back, or take the entry out with memory undo"
        ) from error


def merged_state(lm: LanguageModel, adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """The base's state dict under its original names with the adapters added to its weights, in float32 sums; none has floors."""
    _refuse_floors(adapters)
    state = {name.replace(".base.", "."): tensor for name, tensor in lm.model.state_dict().items()}
    for adapter in adapters:
        for name, (down, up) in adapter.weights.items():
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = (weight.float() + adapter.scale * (up @ down).to(weight.device)).to(weight.dtype)
    return state


def save_merged(known: Identity, adapters: Sequence[Adapter], folder: Path) -> None:
    """Writes a model folder in Hugging Face's format, the adapters added to the weights, in the precision of its own files."""
    stored = str(known.config.get_text_config().dtype or "float32").removeprefix("torch.")
    lm = load_model(known.name, "cpu", stored)
    folder.mkdir(parents=True)
    state = merged_state(lm, adapters)
    if getattr(lm.model.config.get_text_config(), "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    lm.model.config.save_pretrained(folder)
    lm.model.generation_config.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _wrapped(lm: LanguageModel) -> dict[str, AdaptedLinear]:
    """Every linear layer inside the decoder layers, wrapped on the first call, by its original module name."""
    known: dict[str, AdaptedLinear] | None = getattr(lm.model, "_selfedit_layers", None)
    if known is None:
        known = {}
        for name, module in list(lm.model.named_modules()):
            if isinstance(module, nn.Linear) and ".layers." in f".{name}":
                parent: Any = lm.model.get_submodule(name.rsplit(".", 1)[0])
                known[name] = AdaptedLinear(module)
                setattr(parent, name.rsplit(".", 1)[-1], known[name])
        object.__setattr__(lm.model, "_selfedit_layers", known)
    return known


def layer_index(name: str) -> int:
    """Which decoder layer a module's name lies in."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1])
