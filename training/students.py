"""Students: from scratch, by Hugging Face id or path, from a GGUF file, or a bigger model cut to fewer layers."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from schemas.errors import SpecError
from schemas.hub import require_hub
from schemas.student import FromScratch, LayerCut, Scratch, TrainingData, TrainingSpec
from schemas.weights import SMOLLM2, gguf_weights
from training import shape
from training.data import files_digest

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(slots=True)
class Student:
    """A model in float32, ready to train, and its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def seq2seq(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)


def check_student(student: FromScratch | LayerCut | str, data: TrainingData | None, max_length: int = 0) -> None:
    """`SpecError` where the student cannot be made, or reads fewer tokens than `max_length`: before anything is paid
    for. Reads configurations and tokenizers, no weights."""
    if isinstance(student, FromScratch):
        if data is not None and data.template == "chat":
            raise SpecError(
                "data.template: chat, but a student from scratch has no chat template", "leave template out"
            )
        return
    name = student.source if isinstance(student, LayerCut) else student
    if Path(name).is_absolute() and not name.endswith(".gguf") and not (Path(name) / "config.json").is_file():
        raise SpecError(f"student {name}: no config.json there", "a path holds what save_pretrained wrote")
    layers, reads = shape_of(name)
    if isinstance(student, LayerCut) and layers is not None and student.layers > layers:
        raise SpecError(f"student.layers: {student.layers}, {name} has {layers}", "choose fewer")
    _require_reads(name, reads, max_length)
    if Path(name).is_dir():
        _require_whole(name)
    if data is not None and data.template == "chat" and not is_unread(name):
        require_chat_template(tokenizer_of(name, "student"))


def require_chat_template(tokenizer: Any) -> None:
    """`SpecError` where it has none."""
    if not tokenizer.chat_template:
        raise SpecError("data.template: chat, but the student's tokenizer has none", "leave template out")


def is_unread(name: str) -> bool:
    """Whether this is a GGUF file that was never converted: to learn anything of it takes long."""
    is_gguf = name == SMOLLM2 or name.endswith(".gguf")
    return is_gguf and not (kept_copy(gguf_weights(name)) / "config.json").is_file()


def check_teacher(teacher: str | None, max_length: int = 0) -> None:
    """`SpecError` where there is no such teacher, or it reads fewer tokens than `max_length`."""
    if teacher is not None:
        _require_reads(teacher, shape_of(teacher, "teacher").reads, max_length)
        if Path(teacher).is_dir():
            _require_whole(teacher, "teacher")


def _require_whole(folder: str, role: str = "student") -> None:
    """`SpecError` where a folder lacks weights or a tokenizer, or a file of weights is cut short: loading it would tell
    as much, and much later."""
    files = [path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin")]
    if not files:
        raise SpecError(f"{role} {folder}: no weights there", "a path holds what save_pretrained wrote")
    for file in files:
        try:
            if file.suffix == ".safetensors":
                safe_open(file, "np").keys()  # reads the header, and compares it with the file's length
        except (SafetensorError, OSError) as error:
            raise SpecError(f"{role} {folder}: {file.name} is damaged: {error}", "copy it or train it again") from None
    if not tokenizer_of(folder, role)("a")["input_ids"]:
        raise SpecError(f"{role} {folder}: no tokenizer there", "save the model's tokenizer beside it")


def _require_reads(name: str, reads: int | None, max_length: int) -> None:
    if reads is not None and max_length > reads:
        raise SpecError(f"max_length: {max_length}, {name} reads {reads} tokens", f"set max_length to {reads} or less")


def weights_digest(spec: TrainingSpec) -> str:
    """Names, sizes and times of the local weights that a training starts from; those of the Hub go by their id."""
    source = spec.student.source if isinstance(spec.student, LayerCut) else spec.student
    return named_weights_digest([name for name in (source, spec.teacher) if isinstance(name, str)])


def named_weights_digest(names: Iterable[str]) -> str:
    """Names, sizes and times of what of these models is on this disk."""
    local = [
        path for name in names for path in ([gguf_weights(name)] if name.endswith(".gguf") else _weights_in(Path(name)))
    ]
    return files_digest(local)


def _weights_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".json"))


def bytes_on_disk(student: FromScratch | LayerCut | str) -> int:
    """About what a student takes once it is saved in float32; 0 where only the Hub knows."""
    if isinstance(student, FromScratch):
        size = student.scratch
        blocks = size.layers * (12 if size.arch == "llama" else 28) * size.hidden**2
        return 4 * (size.vocab * size.hidden + blocks)
    name = student.source if isinstance(student, LayerCut) else student
    if name == SMOLLM2 or name.endswith(".gguf"):
        return 8 * gguf_weights(name).stat().st_size
    return 2 * sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))


class Shape(NamedTuple):
    """What a model's configuration or GGUF header says, None where it does not."""

    layers: int | None
    reads: int | None  # tokens, at the most


def shape_of(name: str, role: str = "student") -> Shape:
    """The shape of a model. `SpecError` where there is no such model, or one that does not write."""
    if name == SMOLLM2 or name.endswith(".gguf"):
        return _gguf_shape(name, role)
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    if not Path(name).is_dir() and not _is_cached(name):
        require_hub(f"{role} {name}")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError, StrictDataclassError) as error:
        line = str(error).strip().splitlines()[0][:200]
        raise SpecError(f"{role} {name}: {line}", "check the id or path, and the network for an id") from None
    written = config.architectures or []
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if not any(type(config) in mapping for mapping in known) or any("MaskedLM" in name for name in written):
        kind = ", ".join(written) or config.model_type
        raise SpecError(f"{role} {name}: {kind} does not write text", "choose a decoder or an encoder-decoder")
    return Shape(getattr(shape.text_part(config), "num_hidden_layers", None), shape.positions(config))


def _gguf_shape(name: str, role: str) -> Shape:
    weights = gguf_weights(name)
    if (kept := kept_copy(weights) / "config.json").is_file():
        known = json.loads(kept.read_text())
        return Shape(known.get("num_hidden_layers"), known.get("max_position_embeddings"))
    import gguf

    try:
        fields = gguf.GGUFReader(str(weights)).fields
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError):
        raise SpecError(f"{role} {name}: a damaged GGUF file", "is it whole? fetch it again") from None

    def told(end: str) -> int | None:
        return next((int(field.contents()) for key, field in fields.items() if key.endswith(end)), None)

    return Shape(told(".block_count"), told(".context_length"))


def _is_cached(name: str) -> bool:
    """Whether a model of the Hub was fetched before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def load_student(student: FromScratch | LayerCut | str, tokenizer: Any, seed: int, max_length: int = 0) -> Student:
    """Make or load a student that reads and writes in the tokens of `tokenizer_for` it, `max_length` of them where its
    length is for us to choose."""
    import torch

    torch.manual_seed(seed)
    if isinstance(student, FromScratch):
        return from_scratch(student.scratch, tokenizer, max_length)
    found = pretrained(student.source if isinstance(student, LayerCut) else student)
    if isinstance(student, LayerCut):
        cut_layers(found.model, student.layers)
    if shape.text_part(found.model.config) is not found.model.config and not found.seq2seq:
        _freeze_all_but_text(found.model)
    return found


def _freeze_all_but_text(model: Any) -> None:
    """Of a model that also sees: no text reaches what reads pictures."""
    text = [*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()]
    learned = {id(weight) for weight in text}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in learned)


def tokenizer_for(student: FromScratch | LayerCut | str, texts: Iterable[str], teacher: str | None) -> Any:
    """A student's tokenizer. One from scratch has its teacher's, or else one that is trained on `texts`."""
    if not isinstance(student, FromScratch):
        return tokenizer_of(student.source if isinstance(student, LayerCut) else student, "student")
    return train_tokenizer(texts, student.scratch.vocab) if teacher is None else tokenizer_of(teacher)


def is_seq2seq(student: FromScratch | LayerCut | str) -> bool:
    """Whether a student is an encoder-decoder; by its configuration."""
    if isinstance(student, FromScratch):
        return student.scratch.arch == "t5"
    return bool(config_of(student.source if isinstance(student, LayerCut) else student).is_encoder_decoder)


def pretrained(name: str, role: str = "student") -> Student:
    """A Hugging Face id or path, a .gguf file, or smollm2-135m. `SpecError` where it cannot be loaded."""
    import torch
    import transformers

    with _told(f"{role} {name}"):
        config = config_of(name)
        tokenizer = tokenizer_of(name, role)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model, told = kind.from_pretrained(_place(name), dtype=torch.float32, output_loading_info=True)
        _require_weights(model, told["missing_keys"], told["unexpected_keys"], f"{role} {name}")
        # BART's are told to write some tokens whatever they think: no response that is learned here has them.
        model.generation_config.update(forced_bos_token_id=None, forced_eos_token_id=None)
        return Student(model, tokenizer)


@contextmanager
def plainly(model: Any) -> Iterator[None]:
    """Within it a model writes what it thinks: the lengths, beams and forbidden tokens do not hold that came with it,
    as with many a BART."""
    import transformers

    own = model.generation_config
    starts = {name: getattr(own, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
    model.generation_config = transformers.GenerationConfig(**starts)
    try:
        yield
    finally:
        model.generation_config = own


def _require_weights(model: Any, missing: Iterable[str], unknown: Iterable[str], what: str) -> None:
    """`SpecError` where a model would have random weights for some that its files lack, or lack layers that they hold,
    or holds what is no number."""
    if lacking := sorted(missing):
        raise SpecError(f"{what}: its files lack {len(lacking)} weights, as {lacking[0]}", "download or save it again")
    known = {_unnumbered(name) for name, _ in model.named_parameters()}
    if dropped := sorted(name for name in unknown if _unnumbered(name) in known):
        raise SpecError(f"{what}: {dropped[0]} is not in the layers of its config.json", "download or save it again")
    if odd := next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None):
        raise SpecError(f"{what}: {odd} holds what is no number", "its training went astray: choose another")


def _unnumbered(name: str) -> str:
    """A weight's name, alike in all layers."""
    return re.sub(r"\.\d+\.", ".#.", name)


def _place(name: str) -> str:
    return str(converted(gguf_weights(name))) if name == SMOLLM2 or name.endswith(".gguf") else name


def _with_ends(tokenizer: Any, name: str, role: str) -> Any:
    if tokenizer.eos_token_id is None:
        raise SpecError(f"{role} {name}: its tokenizer has no end-of-sequence token", f"choose another {role}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_of(name: str, role: str = "teacher") -> Any:
    """The tokenizer of a model by name. `SpecError` where it cannot be loaded."""
    import transformers

    with _told(f"{role} {name}"):
        return _with_ends(transformers.AutoTokenizer.from_pretrained(_place(name)), name, role)


def tokenizer_in(folder: Path) -> Any:
    """A tokenizer that was saved by us."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A model that cannot be loaded is a `SpecError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if "ignore_mismatched_sizes" in line:  # what transformers says where a table on its log tells more
            line = "its weights are of other shapes than its config.json says"
        raise SpecError(f"{what}: {line}", "check the id or path, and the network for an id") from None


def config_of(name: str) -> Any:
    """The configuration of a model by name."""
    import transformers

    return transformers.AutoConfig.from_pretrained(_place(name))


def kept_copy(weights: Path) -> Path:
    """Where the converted weights of a GGUF file are kept once they were."""
    size = weights.stat().st_size
    name = hashlib.sha256(f"{weights}:{size}:{weights.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return home / "limbeck" / "gguf" / f"{weights.stem}-{name}"


def converted(weights: Path) -> Path:
    """A folder with the weights of a GGUF file in bfloat16. Reading GGUF takes about 25 s, so the copy is kept."""
    place = kept_copy(weights)
    if not (place / "config.json").is_file():
        _convert(weights, place)
    return place


def _convert(weights: Path, place: Path) -> None:
    import shutil
    import tempfile

    import torch
    import transformers

    folder, file = str(weights.parent), weights.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # The GGUF quantizer stays attached after dequantising, and then refuses both training and saving.
    model.hf_quantizer, model.is_quantized = None, False
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    built = Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent))
    model.to(torch.bfloat16).save_pretrained(built)
    tokenizer.save_pretrained(built)
    try:
        built.rename(place)
    except OSError:
        shutil.rmtree(built)  # another process was faster; its copy is the same


def cut_layers(model: Any, keep: int) -> None:
    """Keep `keep` evenly spaced layers, the first and the last among them; of an encoder-decoder on each side."""
    if not model.config.is_encoder_decoder:
        config = shape.text_part(model.config)
        _cut(model, list(model.modules()), config.num_hidden_layers, keep)
        config.num_hidden_layers = keep
        return
    sides = ((model.get_encoder(), ("num_layers", "encoder_layers")),
             (model.get_decoder(), ("num_decoder_layers", "decoder_layers")))  # fmt: skip
    for stack, names in sides:
        name = next((name for name in names if hasattr(model.config, name)), None)
        if name is None:
            raise SpecError("student.from: how many layers it has is not known", "choose another model")
        _cut(model, [stack], getattr(model.config, name), keep)
        setattr(model.config, name, keep)


def _cut(model: Any, owners: Sequence[Any], total: int, keep: int) -> None:
    """Leave `keep` of the `total` layers that one of `owners` lists."""
    import torch

    if keep > total:
        raise SpecError(f"student.layers: {keep}, the model has {total}", "choose fewer")
    lists = [
        (owner, name, child)
        for owner in owners
        for name, child in owner.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == total
    ]
    if len(lists) != 1:
        raise SpecError("student.from: its layers are not one list", "choose another model")
    owner, name, layers = lists[0]
    chosen = [round(i * (total - 1) / max(1, keep - 1)) for i in range(keep)]
    setattr(owner, name, torch.nn.ModuleList([layers[i] for i in chosen]))
    for number, layer in enumerate(getattr(owner, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    config = shape.text_part(model.config)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in chosen]


def train_tokenizer(texts: Iterable[str], vocab: int) -> Any:
    """A byte-level BPE tokenizer of at most `vocab` entries: it can write any text."""
    import tokenizers
    import transformers

    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIAL["unk_token"]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL.values()), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **SPECIAL)


MOST_READ = 2048  # tokens, as a Llama by default


def from_scratch(spec: Scratch, tokenizer: Any, max_length: int = 0) -> Student:
    """A Llama or T5 of the given size with random weights, which reads `max_length` tokens or more."""
    import transformers

    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if spec.arch == "llama":
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=spec.hidden, intermediate_size=4 * spec.hidden,
            num_hidden_layers=spec.layers, num_attention_heads=spec.heads, bos_token_id=None,
            max_position_embeddings=max(MOST_READ, max_length),
            tie_word_embeddings=True, **ids,
        )  # fmt: skip
        return Student(transformers.LlamaForCausalLM(config), tokenizer)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=spec.hidden, d_ff=4 * spec.hidden, d_kv=spec.hidden // spec.heads,
        num_layers=spec.layers, num_heads=spec.heads, decoder_start_token_id=tokenizer.pad_token_id, **ids,
    )  # fmt: skip
    return Student(transformers.T5ForConditionalGeneration(config), tokenizer)
