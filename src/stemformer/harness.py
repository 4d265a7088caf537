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

from stemformer.errors import ConfigError
from stemformer.generation.decode import DecodingConfig
from stemformer.generation.scoring import Question, score_answers
from stemformer.generation.texts import continue_ids
from stemformer.pretrained import load_with_tokenizer
from stemformer.training.compute import autocast, choose_device, choose_precision

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise ConfigError('lm-evaluation-harness is not installed: pip install "stemformer[eval]" brings it') from error

__all__ = ["HarnessModel"]

_AT_ONCE = 256
"""Questions between two moves of the bar."""


@register_model("stemformer")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A GPT as lm-evaluation-harness sees a model.

    Args:
        pretrained: A GPT-2 folder, run folder or hub id.
        dtype: `float32` or `bfloat16`; weights stay in float32.
        add_bos_token: Put the token that ends a document before each prompt, as it stands before each text that our models are trained on.
        device: `auto`, `cpu`, `cuda` ...
        max_gen_toks: Tokens that are generated at most, where the task does not say.
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
                questions = [Question(prompts[of[0]], tuple(answers[n] for n in of)) for of in part]
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
        """Returns how the model goes on with each text, up to the first of its stop strings."""
        told = []
        for number, request in enumerate(tqdm(requests, disable=disable_tqdm, desc="generating")):
            text, settings = request.args
            until = settings.get("until") or []
            most = settings.get("max_gen_toks") or self.max_gen_toks
            if most >= self.max_length:
                raise ConfigError(f"max_gen_toks is {most}, the model has {self.max_length} positions: ask for less")
            sampled = bool(settings.get("do_sample")) and settings.get("temperature", 1.0) > 0
            config = DecodingConfig(
                max_new_tokens=most,
                temperature=settings.get("temperature", 1.0) if sampled else 0.0,
                top_k=settings.get("top_k", 0) if sampled else 0,
                top_p=settings.get("top_p", 1.0) if sampled else 1.0,
                seed=number,
            )
            ids = np.array(self.tok_encode(text)[-(self.max_length - most) :], np.int64)
            with torch.inference_mode(), autocast(self._device, self._precision):
                [(written, _)] = continue_ids(
                    [ids],
                    self.model,
                    self.tokenizer,
                    config,
                    stop=[until] if isinstance(until, str) else until,
                    begin=False,
                )
            told.append(written)
            self.cache_hook.add_partial("generate_until", request.args, written)
        return told


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
