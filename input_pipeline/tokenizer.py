"""Text -> token ids with the Rust tokenizers, on whole batches, outside the tf.data graph.

The ids equal those of Hugging Face's BERT tokenizer for the same files: it is the same code.
"""

import functools
import hashlib
import html
import json
import re
from collections.abc import Sequence

import ftfy
import numpy as np
import tokenizers

from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath, PathLike, to_path, write_text_atomically

FILE_NAMES = ("tokenizer.json", "vocab.txt")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@functools.lru_cache(maxsize=100_000)
def clean(text: str) -> str:
    """Repairs mojibake, un-escapes HTML twice, collapses white space, as open_clip does."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class Tokenizer:
    """A WordPiece tokenizer with a fixed context length.

    Attributes:
      vocab_size: number of entries of the vocabulary.
      pad_id: id of the padding.
      sha256: of the tokenizer's canonical JSON; equal hashes give equal ids.
    """

    def __init__(self, directory: PathLike, context_length: int) -> None:
        """Reads ``tokenizer.json``, else ``vocab.txt`` (BERT), from a directory or file.

        The ``tokenizer_config.json`` beside it says whether BERT keeps case and accents. Without
        one, a ``vocab.txt`` keeps them if a word in it has a capital letter.

        Raises:
          ConfigError: there is no such file, it cannot be read, or BERT's special tokens are
          missing.
        """
        path = to_path(directory)
        if path.is_dir():
            candidates = [path / name for name in FILE_NAMES if (path / name).is_file()]
            if not candidates:
                raise ConfigError(f"no tokenizer in {path}: expected {' or '.join(FILE_NAMES)}")
            path = candidates[0]
        try:
            if path.suffix == ".json":
                tokenizer = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
            else:
                tokenizer = _bert_tokenizer(path)
            _follow_config(tokenizer, path.parent / "tokenizer_config.json")
        except ConfigError:
            raise
        except Exception as error:  # the Rust library raises bare Exception
            raise ConfigError(f"cannot read the tokenizer {path}: {error}") from error
        pad_id = tokenizer.token_to_id("[PAD]")
        absent = [t for t in SPECIAL_TOKENS if t != "[MASK]" and tokenizer.token_to_id(t) is None]
        if pad_id is None or absent:
            raise ConfigError(f"{path} is no BERT vocabulary: {', '.join(absent)} missing")
        tokenizer.enable_truncation(context_length)
        tokenizer.enable_padding(pad_id=pad_id, pad_token="[PAD]", length=context_length)
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        self.pad_id: int = pad_id
        self.sha256 = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Cleaned, tokenised, truncated, padded: int32 (len(texts), context_length)."""
        encodings = self._tokenizer.encode_batch([clean(text) for text in texts])
        return np.array([encoding.ids for encoding in encodings], np.int32)

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text before truncation, with [CLS] and [SEP]: int64 (len(texts),)."""
        whole = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        whole.no_truncation()
        whole.no_padding()
        encodings = whole.encode_batch([clean(text) for text in texts])
        return np.array([len(encoding.ids) for encoding in encodings], np.int64)

    def save(self, directory: PathLike) -> None:
        """Writes ``tokenizer.json``, which makes a run independent of its tokenizer's source."""
        content = self._tokenizer.to_str(pretty=True)
        write_text_atomically(to_path(directory) / "tokenizer.json", content)


def _bert_tokenizer(vocab_file: AnyPath) -> tokenizers.Tokenizer:
    """The BERT tokenizer of a ``vocab.txt``: one token per line, ids by line number."""
    tokens = vocab_file.read_text(encoding="utf-8").splitlines()
    vocab = {token: index for index, token in enumerate(tokens)}
    if "[UNK]" not in vocab or "[CLS]" not in vocab or "[SEP]" not in vocab:
        raise ConfigError(f"{vocab_file} is no BERT vocabulary: [UNK], [CLS] or [SEP] missing")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    # an uncased vocabulary has no words with capitals, only special tokens and perhaps letters
    words = (token.removeprefix("##") for token in tokens if not token.startswith("["))
    cased = any(len(word) > 1 and word != word.lower() for word in words)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"])
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    # as transformers: such a token in a text is that token, and is not spelt in pieces
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocab])
    return tokenizer


def _follow_config(tokenizer: tokenizers.Tokenizer, config_file: AnyPath) -> None:
    """Applies transformers' settings of BERT's normalizer, if the file has them."""
    normalizer = json.loads(tokenizer.to_str())["normalizer"]
    if not config_file.is_file() or not normalizer or normalizer["type"] != "BertNormalizer":
        return
    config = json.loads(config_file.read_text("utf-8"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=normalizer["clean_text"],
        handle_chinese_chars=config.get(
            "tokenize_chinese_chars", normalizer["handle_chinese_chars"]
        ),
        strip_accents=config.get("strip_accents", normalizer["strip_accents"]),
        lowercase=config.get("do_lower_case", normalizer["lowercase"]),
    )
