"""Adapter for lm-evaluation-harness: its tasks, prompts and metrics with our GPT models.

Run its command line with our model registered (extra `eval`):

    python -m stemformer.evaluation.few_shot.lm_eval_adapter --model stemformer --model_args pretrained=FOLDER --tasks lambada_openai

Source: Gao et al. 2024, lm-evaluation-harness. Truncation, and no token before the prompt unless
`add_bos_token` is set, follow its Hugging Face model.
"""

import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from stemformer.device import autocast, choose_device, choose_precision
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.scoring import ScoringRequest, score_answers
from stemformer.generation.decoding import DecodingConfig
from stemformer.generation.text import generate_from_ids
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.models.inference.cached_gpt import GptDecoder

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from tqdm import tqdm
except ImportError as error:
    raise ConfigError(
        'The package lm-evaluation-harness is not installed. Run: pip install "stemformer[eval]"'
    ) from error


# Prompts between progress updates.
_PROGRESS_STEP = 256
# Texts that are generated together.
_GENERATE_BATCH = 32
# Supported generation settings besides length, stop strings, sampling and temperature.
_SETTINGS = ("top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty")


@register_model("stemformer")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """GPT as a model of lm-evaluation-harness.

    Args:
        pretrained: GPT-2 folder, run folder or hub id.
        dtype: `float32` or `bfloat16`; weights stay in float32.
        add_bos_token: Put the end-of-document token before each prompt; None as the saved tokenizer does.
        max_gen_toks: Default maximum number of generated tokens. Sampled texts depend on their
            index among the requests with the same settings.
        batch_size, max_batch_size: Ignored: batches are limited by tokens.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str,
        dtype: str = "float32",
        add_bos_token: bool | None = None,
        device: str = "auto",
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        model, self.tokenizer = load_model_and_tokenizer(pretrained)
        if "causal_lm" not in model.heads:
            raise ConfigError(f"{pretrained} has no causal-LM head, which lm-evaluation-harness needs. Pass a GPT.")
        # The default of the harness, on a machine without a GPU.
        is_default = device in (None, "cuda", "cuda:0") and not torch.cuda.is_available()
        self._device = choose_device("auto" if is_default else device)
        self.model = model.to(self._device).eval()
        self._precision = choose_precision({"float32": "fp32", "bfloat16": "bf16"}.get(dtype, dtype), self._device)
        bos = [self.eot_token_id]
        saved = bos if self.tokenizer.prompt_prefix is None else list(self.tokenizer.prompt_prefix)
        self._bos = saved if add_bos_token is None else bos if add_bos_token else []
        self.max_length = model.max_length
        self.max_gen_toks = max_gen_toks
        self._decoder: GptDecoder | None = None

    @property
    def eot_token_id(self) -> int:
        assert self.model.config.eos_token_id is not None, "a GPT has an end token"
        return self.model.config.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids: list[int] = self.tokenizer.encode_ids([string])[0].tolist()
        return self._bos + ids if add_special_tokens is not False else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return log-probability and greediness of continuations; equal contexts run once."""
        self._warn_of_unknown_words()
        groups: dict[bytes, list[int]] = {}
        prompts, answers = [], []
        for number, (_, context, continuation) in enumerate(requests):
            answers.append(np.array(continuation[-self.max_length :], np.int64))
            prompts.append(np.array(context[-max(1, self.max_length + 1 - len(answers[-1])) :], np.int64))
            groups.setdefault(prompts[-1].tobytes(), []).append(number)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(prompts)
        members = list(groups.values())
        with tqdm(total=len(prompts), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for begin in range(0, len(members), _PROGRESS_STEP):
                part = members[begin : begin + _PROGRESS_STEP]
                queries = [ScoringRequest(prompts[group[0]], tuple(answers[n] for n in group)) for group in part]
                with autocast(self._device, self._precision):
                    scored = score_answers(self.model, queries)
                for number, score in zip(chain(*part), chain(*scored), strict=True):
                    results[number] = (score.log_probability, score.is_greedy)
                    bar.update(1)
        for request, result in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each full text, in windows of the model's maximum length."""
        windows: list[tuple[Any, ...]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            cut = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *utils.make_disjoint_window(window)) for window in cut]
            owners += [number] * (len(windows) - len(owners))
        sums = [0.0] * len(requests)
        for number, (total, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[number] += total
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate a continuation of each text, up to the first stop string."""
        groups: dict[tuple[DecodingConfig, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._decoding(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        if self._decoder is None:
            # Shared by all tasks.
            self._decoder = GptDecoder(self.model, rows=_GENERATE_BATCH)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generating") as bar:
            for (config, stop), members in groups.items():
                room = self.max_length - config.max_new_tokens
                ids = [np.array(self.tok_encode(requests[n].args[0])[-room:], np.int64) for n in members]
                self._warn_of_unknown_words()
                with torch.inference_mode(), autocast(self._device, self._precision):
                    generated = generate_from_ids(
                        ids,
                        self._decoder,
                        self.tokenizer,
                        config,
                        batch_size=_GENERATE_BATCH,
                        stop=stop,
                        add_prefix=False,
                    )
                    for number, (text, _) in zip(members, generated, strict=True):
                        texts[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                        bar.update(1)
        return texts

    def _warn_of_unknown_words(self) -> None:
        """Warn if the vocabulary cannot write many words of the texts encoded since the last call."""
        if note := self.tokenizer.unknown.note():
            warnings.warn(note, stacklevel=3)
        self.tokenizer.unknown.clear()

    def _decoding(self, settings: dict[str, Any]) -> tuple[DecodingConfig, tuple[str, ...]]:
        """Convert generation settings of the harness; also return the stop strings."""
        options = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        max_new_tokens, stop = options.pop("max_gen_toks"), tuple(filter(None, options.pop("until")))
        do_sample, value = options.pop("do_sample"), options.pop("temperature", 1.0)
        temperature = float(value) if do_sample else 0.0
        is_beam_search = options.get("num_beams", 1) > 1
        if temperature and is_beam_search:
            raise ConfigError("Beam search does not sample. Remove do_sample and temperature, or num_beams.")
        if temperature:
            # Default of transformers.
            options.setdefault("top_k", 50)
        # Always cached.
        options.pop("use_cache", None)
        if unknown := sorted(set(options) - set(_SETTINGS)):
            expected = f"Expected some of {', '.join(_SETTINGS)}."
            raise ConfigError(f"Generation setting {unknown[0]!r} is not supported. {expected}")
        if max_new_tokens >= self.max_length:
            advice = "Pass a smaller max_gen_toks, such as --gen_kwargs max_gen_toks=16."
            raise ConfigError(f"{max_new_tokens} new tokens; the model reads at most {self.max_length}. {advice}")
        # Settings without effect on this decoding.
        ignored = {
            *(() if temperature else ("top_k", "top_p", "min_p")),
            *(() if is_beam_search else ("length_penalty",)),
        }
        used = {key: value for key, value in options.items() if key not in ignored}
        return DecodingConfig(max_new_tokens=max_new_tokens, temperature=temperature, **used), stop


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
