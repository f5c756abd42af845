"""From a state to the model that answers: the one place that decides how adapters are composed.

The way is ``stack``: the frozen sum of the state's adapters, oldest first, merged into dense weights above rank 256.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from selfedit.errors import MemoryStoreError
from selfedit.lm.adapter import install_stack, load_adapter, save_adapter, save_merged, summed
from selfedit.lm.load import LanguageModel, identify, load_model
from selfedit.memory.ledger import Base, Memory


def answering_model(memory: Memory, device: str = "auto", dtype: str = "auto", model: str | None = None) -> LanguageModel:
    """The base with the memory's current state on top.

    Args:
        model: load this model instead of the one named in the ledger (the same base under another name).

    Raises:
        MemoryStoreError: the model is not the memory's base.
    """
    lm = load_model(model or memory.base.name, device, dtype)
    memory.check_base(Base(lm.name, lm.fingerprint))
    install_stack(lm, [load_adapter(folder) for folder in memory.adapter_folders()])
    return lm


def export(memory: Memory, folder: Path, merged: bool, model: str | None = None) -> None:
    """Writes the current state as one merged model folder, or as one PEFT adapter of summed rank; whole or not at all.

    Args:
        memory: an open memory.
        folder: where to write; must not exist.
        merged: a whole model in the precision of the base's own files, or an adapter.
        model: the memory's base under another name.

    Raises:
        MemoryStoreError: the target exists, the memory is empty, the model isn't the memory's base, or the disk is full.
    """
    if folder.exists():
        raise MemoryStoreError(f"{folder}: exists; give a folder that doesn't")
    adapters = [load_adapter(path) for path in memory.adapter_folders()]
    if not adapters:
        raise MemoryStoreError(f"{memory.folder}: nothing learnt yet, so there is nothing to export")
    known = identify(model or memory.base.name)
    memory.check_base(Base(known.name, known.fingerprint))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
            made = Path(scratch) / "model"
            if merged:
                save_merged(known, adapters, made)
            else:
                save_adapter(summed(adapters), made, known.name)
            shutil.move(made, folder)
    except (OSError, SafetensorError) as error:
        raise MemoryStoreError(f"{folder}: could not be written ({error}); free space and try again") from error
