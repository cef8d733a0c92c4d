"""Models with random weights, small enough to be trained in seconds."""

from __future__ import annotations

import string
from pathlib import Path

CHARACTERS = string.ascii_letters + string.digits + " :\n.,?+=-"


def write_tiny_model(
    folder: Path, layers: int = 2, size: int = 64, seed: int = 0, characters: str = CHARACTERS
) -> Path:
    """Write a causal model with single characters as tokens, and its tokenizer. Equal arguments give equal weights."""
    import torch
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(["<end>", "<unknown>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=None,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(folder)
    return folder


def write_random_models(folder: Path, packaged: Path, layers: int, spread: float) -> dict[str, Path]:
    """Write a causal model and an encoder, by architecture, with the tokenizers of the packaged models.

    `spread` is the standard deviation of their weights.
    """
    import torch
    import transformers

    from distill_dagster.core.models import resolve_model

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
    folders = {}
    for architecture, tokenizer_of, config, auto in (
        ("causal_lm", "smollm2-135m-instruct", transformers.LlamaConfig, transformers.AutoModelForCausalLM),
        ("encoder", "all-minilm-l6-v2", transformers.BertConfig, transformers.AutoModel),
    ):
        source = resolve_model(tokenizer_of, packaged).location
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        torch.manual_seed(0)
        model = auto.from_config(config(**sizes, vocab_size=len(tokenizer), initializer_range=spread))
        folders[architecture] = folder / architecture
        model.save_pretrained(folders[architecture])
        tokenizer.save_pretrained(folders[architecture])
    return folders


def teach_texts(folder: Path, texts: list[str], steps: int = 300) -> None:
    """Train all weights of the model in a folder on texts of one length, each with the end token behind it."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = ids[torch.randint(len(ids), (32,), generator=order)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
