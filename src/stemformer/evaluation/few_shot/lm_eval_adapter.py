"""Our GPTs in lm-evaluation-harness: its tasks, prompts and figures, with answers scored here.

From its command line, which this module starts with our model in its list (extra `eval`):

    python -m stemformer.harness --model stemformer --model_args pretrained=FOLDER --tasks lambada_openai

Source: Gao et al. 2024, lm-evaluation-harness, for what its own Hugging Face model does, which is followed here: how texts are cut, and
that nothing stands before a prompt unless `add_bos_token` says so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stemformer.device import autocast, choose_device, choose_precision
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.scoring import ScoringRequest, score_answers
from stemformer.generation.decoding import DecodingConfig
from stemformer.generation.text import continue_ids
from stemformer.huggingface.load import load_with_tokenizer
from stemformer.models.inference.cached_gpt import GptDecoder

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from tqdm import tqdm
except ImportError as error:
    raise ConfigError('lm-evaluation-harness is not installed: pip install "stemformer[eval]" brings it') from error


_AT_ONCE = 256
"""Questions between two moves of the bar."""

_WRITTEN_AT_ONCE = 32
"""Texts that are generated together."""

_SETTINGS = ("top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty")
"""What a task may say of generation beside its length, where it stops, and whether and how warm it is drawn."""


@register_model("stemformer")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A GPT as lm-evaluation-harness sees a model.

    Args:
        pretrained: A GPT-2 folder, run folder or hub id.
        dtype: `float32` or `bfloat16`; weights stay in float32.
        add_bos_token: Put the token that ends a document before each prompt, as it stands before each text that our models are trained on.
        device: `auto`, `cpu`, `cuda` ...
        max_gen_toks: Tokens that are generated at most, where the task does not say. What is drawn depends on a text's place among those
            with the same settings.
        batch_size: Not looked at, like the next: tokens are batched, not texts.
        max_batch_size: Not looked at.

    Example:
        >>> from lm_eval import simple_evaluate  # doctest: +SKIP
        >>> simple_evaluate(model=HarnessModel("run"), tasks=["lambada_openai"])  # doctest: +SKIP
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str,
        dtype: str = "float32",
        add_bos_token: bool = False,
        device: str = "auto",
        max_gen_toks: int = 256,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        model, self.tokenizer = load_with_tokenizer(pretrained)
        if "causal_lm" not in model.heads:
            raise ConfigError(
                f"{pretrained} was not trained on the next word: the harness scores texts from left to right"
            )
        # Without a GPU, what the harness says if nobody named a device.
        is_default = device in (None, "cuda", "cuda:0") and not torch.cuda.is_available()
        where = choose_device("auto" if is_default else device)
        self._device = where
        self.model = model.to(where).eval()
        self._precision = choose_precision({"float32": "fp32", "bfloat16": "bf16"}.get(dtype, dtype), where)
        self._begin = [self.eot_token_id] if add_bos_token else []
        self.max_length = model.config.max_position_embeddings
        self.max_gen_toks = max_gen_toks
        self._reader: GptDecoder | None = None

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a document."""
        end: int = self.model.config.eos_token_id  # type: ignore[union-attr]
        return end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the ids of a text."""
        ids: list[int] = self.tokenizer.encode_ids([string])[0].tolist()
        return self._begin + ids if add_special_tokens is not False else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns log-probability and greediness of each continuation; those of one context share its reading."""
        groups: dict[bytes, list[int]] = {}
        prompts, answers = [], []
        for number, (_, context, continuation) in enumerate(requests):
            answer = np.array(continuation[-self.max_length :], np.int64)
            prompt = np.array(context[-max(1, self.max_length + 1 - len(answer)) :], np.int64)
            prompts.append(prompt)
            answers.append(answer)
            groups.setdefault(prompt.tobytes(), []).append(number)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(prompts)
        members = list(groups.values())
        with tqdm(total=len(prompts), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for begin in range(0, len(members), _AT_ONCE):
                part = members[begin : begin + _AT_ONCE]
                questions = [ScoringRequest(prompts[of[0]], tuple(answers[n] for n in of)) for of in part]
                with autocast(self._device, self._precision):
                    scored = score_answers(self.model, questions)
                for of, row in zip(part, scored, strict=True):
                    for number, score in zip(of, row, strict=True):
                        found[number] = (score.log_probability, score.is_greedy)
                    bar.update(len(of))
        for request, told in zip(requests, found, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], told)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-probability of each whole text, in windows that are as long as the model's positions."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, cut):
                windows.append((None, *window))
                owners.append(number)
        sums = np.zeros(len(requests))
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        np.add.at(sums, np.array(owners, np.int64), np.array([total for total, _ in scored]))
        told: list[float] = sums.tolist()
        return told

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns how the model goes on with each text, up to the first of its stop strings.

        Raises:
            ConfigError: A setting of generation that ours has not, or more tokens than the model has positions.
        """
        groups: dict[tuple[DecodingConfig, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._decoding(request.args[1]), []).append(number)
        told = [""] * len(requests)
        if self._reader is None:
            self._reader = GptDecoder(self.model, rows=_WRITTEN_AT_ONCE)  # for all tasks
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generating") as bar:
            for (config, stop), members in groups.items():
                room = self.max_length - config.max_new_tokens
                ids = [np.array(self.tok_encode(requests[n].args[0])[-room:], np.int64) for n in members]
                with torch.inference_mode(), autocast(self._device, self._precision):
                    found = continue_ids(
                        ids, self._reader, self.tokenizer, config, batch_size=_WRITTEN_AT_ONCE, stop=stop, begin=False
                    )
                    for number, (written, _) in zip(members, found, strict=True):
                        told[number] = written
                        self.cache_hook.add_partial("generate_until", requests[number].args, written)
                        bar.update(1)
        return told

    def _decoding(self, settings: dict[str, Any]) -> tuple[DecodingConfig, tuple[str, ...]]:
        """Returns what the harness's settings of generation mean here, and the stop strings."""
        given = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        most, stop = given.pop("max_gen_toks"), tuple(filter(None, given.pop("until")))
        is_drawn, warmth = given.pop("do_sample"), given.pop("temperature", 1.0)
        temperature = float(warmth) if is_drawn else 0.0
        if temperature:
            given.setdefault("top_k", 50)  # as transformers has it where nobody says
            if given.get("num_beams", 1) > 1:
                raise ConfigError("beams draw nothing: leave do_sample and temperature, or num_beams, out")
        given.pop("use_cache", None)  # there is no other way
        if unknown := sorted(set(given) - set(_SETTINGS)):
            raise ConfigError(f"generation with {unknown[0]} is not there: expected some of {', '.join(_SETTINGS)}")
        if most >= self.max_length:
            raise ConfigError(
                f"{most} new tokens for a model of {self.max_length} positions: give --gen_kwargs max_gen_toks=N with less"
            )
        without_effect = [] if temperature else ["top_k", "top_p", "min_p"]
        without_effect += [] if given.get("num_beams", 1) > 1 else ["length_penalty"]
        kept = {key: value for key, value in given.items() if key not in without_effect}
        return DecodingConfig(max_new_tokens=most, temperature=temperature, **kept), stop


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
