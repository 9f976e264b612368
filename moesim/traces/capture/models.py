"""Models to capture from: a local folder, or a small random one of any class of transformers.

Nothing is downloaded, unpickled or executed from a model's folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from moesim.errors import InputError, Problem, did_you_mean
from moesim.traces.capture.settings import Subject
from moesim.traces.capture.tiny import ByteTokenizer, tiny_values

DTYPES = ("auto", "float32", "bfloat16", "float16")
INSTALL = "pip install moesim[capture]"
_HEADER_BYTES = 4096


def load_model(folder: Path, *, dtype: str = "auto", device: str = "cpu", name: str = "") -> Subject:
    """Model and tokenizer of a local folder; safetensors only, no code from the folder.

    Parameters
    ----------
    folder : Path
        Holds ``config.json``, ``*.safetensors`` and a tokenizer.
    dtype : str
        ``auto`` for the type of the weights, or ``float32``, ``bfloat16``, ``float16``. Rounding
        may turn near ties of the router, so a trace is of the type it was captured with.
    device : str
        A torch device, ``cpu`` or ``cuda``.
    name : str
        Model name for the trace; default: the folder's.

    Raises
    ------
    InputError
        Not a folder with ``config.json``, no safetensors, or something transformers cannot load.
    """
    if dtype not in DTYPES:
        raise InputError.at("dtype", dtype, ", ".join(DTYPES))
    torch, transformers = import_torch(), import_transformers()
    problems = [
        Problem("", f"no {what} in it; accepted: {accepted}", str(folder))
        for what, accepted in (
            ("config.json", "a Hugging Face model folder"),
            ("*.safetensors", "safetensors weights"),
        )
        if not any(folder.glob(what))
    ]
    if problems:
        raise InputError(problems, source="capture")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
        config = transformers.AutoConfig.from_pretrained(str(folder), **local)
        kind = transformers.AutoModelForCausalLM
        if config.is_encoder_decoder:
            kind = transformers.AutoModelForSeq2SeqLM
        model = kind.from_pretrained(str(folder), use_safetensors=True, dtype=dtype, **local)
        model = model.to(torch.device(device)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise InputError([Problem("", f"cannot be loaded: {_first_line(error)}", str(folder))]) from None
    return Subject(model, tokenizer, name or folder.resolve().name, _fingerprint(folder))


def random_model(
    class_name: str, *, seed: int = 0, device: str = "cpu", name: str = "", experts: int | None = None
) -> Subject:
    """Small randomly initialised model of a class of transformers, which reads bytes.

    Its routers are the class's own code with its own number of experts and choices, on weights that
    nobody trained: real in shape, made up in skew. Evidence therefore is ``assumed``.

    Parameters
    ----------
    class_name : str
        For instance ``OlmoeForCausalLM``.
    seed : int
        Of the weights.
    experts : int, optional
        Another number of experts, with three choices a token; for tests.

    Raises
    ------
    InputError
        No such class, or one that cannot be built this small.
    """
    torch, transformers = import_torch(), import_transformers()
    known = _model_classes(transformers)
    if class_name not in known:
        message = f"unknown class {class_name!r}{did_you_mean(class_name, known)}; accepted: a folder, or one"
        raise InputError([Problem("model", f"{message} of transformers' {len(known)} language models")])
    kind = getattr(transformers, class_name)
    try:
        torch.manual_seed(seed)
        model = kind(_tiny_config(kind.config_class, experts)).to(torch.device(device)).eval()
    except Exception as error:  # noqa: BLE001 - whatever the checks of a configuration raise
        message = f"cannot be built this small: {_first_line(error)}"
        raise InputError([Problem("model", message, class_name)]) from None
    return Subject(model, ByteTokenizer(), name or f"tiny {class_name}", f"random, seed {seed}", "assumed")


def use_one_thread() -> None:
    """Compute on one CPU thread: operations of a tiny model are too small to share."""
    import_torch().set_num_threads(1)


def import_torch() -> Any:
    """The package torch.

    Raises
    ------
    InputError
        Not installed; says how.
    """
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        raise _missing("torch") from None
    return torch


def import_transformers() -> Any:
    """The package transformers.

    Raises
    ------
    InputError
        Not installed; says how.
    """
    try:
        import transformers  # noqa: PLC0415
    except ImportError:
        raise _missing("transformers") from None
    return transformers


def _model_classes(transformers: Any) -> list[str]:
    """Names of the language model classes that transformers has."""
    tables = transformers.models.auto.modeling_auto
    found: set[str] = set()
    for table in (
        tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        tables.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for names in table.values():
            found |= {names} if isinstance(names, str) else set(names)
    return sorted(found)


def _tiny_config(config_class: Any, experts: int | None) -> Any:
    """Configuration with small sizes wherever the class has such a field, also of its parts."""
    values = tiny_values(config_class, experts)
    for field, part in getattr(config_class, "sub_configs", {}).items():
        if hasattr(part, "model_type") and part.model_type:
            values[field] = _tiny_config(part, experts)
    return config_class(**values)


def _fingerprint(folder: Path) -> str:
    """Digest of the configuration, and of names, sizes and headers of the weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(_HEADER_BYTES))
    return digest.hexdigest()


def _missing(package: str) -> InputError:
    return InputError([Problem("capture", f"needs {package}, which is not installed; run: {INSTALL}")])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
