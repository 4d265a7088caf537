"""Options of each command, in the order of `stemformer --help`."""

from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Literal

from stemformer.options import groups
from stemformer.options.groups import ARGUMENT, COMMAS, PYTHON_ARGUMENT, ModelName, Options


class QuickstartOptions(groups.SeedOptions, groups.TrainComputeOptions, groups.OutputOptions):
    """Train a small ModernBERT on the built-in texts in minutes: tokenizer, data, pre-training, filled masks, report."""

    out: str = "runs/quickstart"


class SamplesOptions(groups.OutputOptions):
    """Write the built-in texts, and labelled files made from them, to try every command on.

    Attributes:
        overwrite: Replace existing files.
    """

    out: str = field(default="my_texts", metadata=ARGUMENT)


class RecipesOptions(Options):
    """List the recipes with their sizes and purpose."""


class PlanOptions(groups.TrainSettings):
    """Estimate time and memory of a recipe on this machine, from a few steps.

    Attributes:
        recipe: Recipe, such as bert_mini; see the command recipes.
        data: Directory of tokenized data (output of prepare). Default: full rows of random ids.
    """

    recipe: str = field(metadata=ARGUMENT)
    data: str | None = None


class TrainTokenizerOptions(groups.TextFileOptions, groups.SeedOptions, groups.OutputOptions):
    """Train a tokenizer on text files.

    Attributes:
        init: Model or tokenizer whose vocabulary is kept and extended with words of the files, up to the vocabulary size.
        kind: WordPiece as in BERT, or byte-level BPE as in GPT-2.
        special_tokens: Of bpe: <|endoftext|> for GPT and Llama, or those of BART, which BERT and ModernBERT can use too.
        num_sentinels: Number of sentinels <extra_id_0>, <extra_id_1>, ... of T5, for the preset t5 of a BART.
        languages: Codes of languages, such as en,fr, each with a special token, such as __en__.
        vocab_size: Vocabulary size, special tokens included.
        lowercase: Lowercase the text and strip accents.
        max_characters: Maximum number of characters to train on; more text is sampled.
    """

    init: str | None = None
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    special_tokens: Literal["gpt", "bart"] = "gpt"
    num_sentinels: int = 0
    languages: tuple[str, ...] = field(default=(), metadata=COMMAS)
    vocab_size: int = 30522
    lowercase: bool = False
    max_characters: int = 100_000_000


class PrepareOptions(groups.TextFileOptions, groups.ResumableOptions):
    """Tokenize text files into shards, with a held-out split.

    Attributes:
        tokenizer: Directory of the tokenizer.
        held_out: Fraction of the documents to hold out, chosen by a hash of their bytes. Default: 0.01, more for less
            than 10 MB of text, 0.1 at most.
        words: Word boundaries for whole-word masking: the tokenizer's, or jieba for Chinese.
        dedup: Duplicate documents to remove: exact (equal except for whitespace) or near (80 % of the word 5-grams in
            common). The first document is kept; of few documents, the held-out one.
        num_workers: Number of processes; the output does not depend on it. Default: one for each core.
    """

    tokenizer: str
    held_out: float | None = None
    words: Literal["tokenizer", "jieba"] = "tokenizer"
    dedup: Literal["none", "exact", "near"] = "none"
    num_workers: int | None = None


class MakeSyntheticOptions(groups.SeedOptions, groups.OutputOptions):
    """Write documents of synthetic in-context tasks, to mix into the pre-training text.

    Attributes:
        out: Output file (.jsonl), one document on each line.
        overwrite: Replace an existing file.
        num_documents: Number of documents; each has 8 to 40 examples of one rule.
        tasks: Names of tasks, such as copy,reverse, which take turns. Default: all.
    """

    num_documents: int = 20_000
    tasks: tuple[str, ...] = field(default=(), metadata=COMMAS)


class PretrainOptions(groups.BudgetOptions, groups.ConfigOptions, groups.ResumableOptions):
    """Pre-train a model on tokenized data.

    Attributes:
        recipe: Recipe, such as bert_mini; see the command recipes. A resumed run knows its recipe.
        data: Directory of tokenized data (output of prepare).
        init: Model directory or hub id to start from, instead of random weights; its vocabulary is transferred to that
            of the data.
        epochs: Training budget in epochs over the data.
        batch_size: Sequences in an optimizer step, over all ranks. Default: from the config.
        learning_rate: Peak learning rate. Default: from the config.
    """

    recipe: str | None = field(default=None, metadata=PYTHON_ARGUMENT)
    data: str
    init: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


class FinetuneOptions(groups.TaskTrainingOptions):
    """Fine-tune a model on labelled data.

    Attributes:
        best_metric: Metric on the dev data by which the best model is found and training stops early, such as accuracy,
            macro_f1 or loss. Default: the task's main metric.
        time: Training budget in wall-clock time, such as 90s, 30m or 1h30m, of each seed. Interruptions do not count;
            the evaluation after the last step comes on top, the result names its time.
    """

    best_metric: str | None = None
    time: str | float | None = None


class FillOptions(groups.TextsOptions):
    """Predict the most probable tokens for each [MASK].

    Attributes:
        texts: Sentences with [MASK].
        model: Model directory, run directory or hub id of a masked language model.
        top_k: Number of candidates for each mask.
        candidates: Word to choose from, which may have several tokens. Default: the full words of the vocabulary.
        reduction: Score a candidate by the sum or the mean of the log-probabilities of its tokens; the sum favors words
            of few tokens.
        pieces: Also show parts of words (##ing) and special tokens such as [UNK].
    """

    top_k: int = 5
    candidates: tuple[str, ...] | None = None
    reduction: Literal["sum", "mean"] = "sum"
    pieces: bool = False


class ScoreOptions(groups.TextsOptions):
    """Score texts by their log-likelihood: under a masked language model the pseudo-log-likelihood.

    Attributes:
        texts: Sentences, without [MASK].
        pll: Pseudo-log-likelihood of a masked language model: within_word_l2r masks a token and the later ones of its
            word (Kauf and Ivanova 2023), original each token alone (Salazar et al. 2020).
    """

    pll: Literal["within_word_l2r", "original"] = "within_word_l2r"


class GenerateOptions(groups.InferenceOptions, groups.SeedOptions):
    """Generate text from prompts with a causal language model.

    Attributes:
        prompts: Prompts; an empty one starts a new document.
        model: Model directory, run directory or hub id of a GPT.
        max_new_tokens: Maximum number of tokens to generate.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_k: Sample from the k most probable tokens; 0 disables it.
        top_p: Nucleus sampling: smallest set of tokens with cumulative probability >= top_p; 1 disables it.
        min_p: Sample from tokens with at least this fraction of the highest probability; 0 disables it.
        repetition_penalty: Divide the scores of tokens that occurred before by this; 1 disables it.
        num_beams: Number of beams; above 1, beam search instead of sampling.
        length_penalty: Exponent of the length by which the log-probability of a beam is divided.
        min_new_tokens: Minimum number of tokens to generate.
        no_repeat_ngram_size: Size of n-grams of tokens that do not occur twice, in prompt and text; 0 disables it.
        stop: Stop before this string.
        sliding_window: Continue beyond the last position of the model, with the second half of the window as context.
        batch_size: Number of prompts that are decoded together.
    """

    prompts: Iterable[str] = field(metadata=ARGUMENT)
    model: ModelName
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    stop: tuple[str, ...] = ()
    sliding_window: bool = False
    batch_size: int = 32


class RewriteOptions(groups.LanguageOptions, groups.InferenceOptions, groups.FileOutputOptions):
    """Rewrite texts with an encoder-decoder, by beam search.

    Attributes:
        texts: Texts to rewrite. A model that is only pre-trained repairs texts with masks.
        model: Model directory, run directory or hub id of a BART.
        num_beams: Number of beams; 1 is greedy decoding. Default: 4, or that of the fine-tuning.
        max_new_tokens: Maximum number of tokens to write. Default: twice the tokens of the text, rounded up;
            of a fine-tuned model as much as in nearly all of its training pairs.
        length_penalty: Exponent of the length by which the log-probability of a beam is divided. Default:
            1, or that of the fine-tuning.
        num_return_sequences: Number of candidates for each text, at most as many as beams.
        min_new_tokens: Minimum number of tokens to write; of each piece with --long-sources split, as is the maximum.
        no_repeat_ngram_size: Size of n-grams of tokens that do not occur twice; 0 disables it.
        out: Output file, .jsonl. Default: standard output.
        resume: Continue the output file of a command that was interrupted; its texts are in OUT.partial.
        batch_size: Number of texts that are decoded together.
        long_sources: Texts of more tokens than the model was trained on: cut them, or split them at sentence ends
            into pieces that are rewritten each, as are texts of more sentences than in the fine-tuning. Default: an
            error.
    """

    texts: Iterable[str] = field(metadata=ARGUMENT)
    model: ModelName
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    num_return_sequences: int = 1
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    resume: bool = False
    batch_size: int = 32
    long_sources: Literal["cut", "split"] | None = None


class EmbedOptions(groups.TextsOptions, groups.FileOutputOptions):
    """Compute an embedding for each text.

    Attributes:
        out: Output file: .npy for an array with a row for each text, .jsonl for JSON lines.
        pooling: Mean of the last hidden states, or the state of [CLS] (of the last token in a causal model).
        normalize: Scale each embedding to length 1, so that dot products are cosine similarities.
        max_length: Maximum length of a text in tokens; longer ones are truncated. Default: the longest that the model
            was trained on.
    """

    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_length: int | None = None


class PredictOptions(groups.LanguageColumnOptions, groups.ComputeOptions, groups.FileOutputOptions):
    """Predict with a fine-tuned model on files.

    Attributes:
        files: Files in the formats that finetune reads, labels not needed; - is standard input.
        model: Directory of the fine-tuned model or of its run.
        out: Output file: .jsonl, .csv or .tsv; .conll for tags; .json for answers in the format of SQuAD. Default: JSON
            lines on standard output.
        text_column: Column of the text; two columns for pair. Default: as in the training data.
        label_map: Other names for labels of the model, such as LABEL_0=negative,LABEL_1=positive.
        long_sources: Of seq2seq, sources of more tokens than the maximum length: cut them, or split them at sentence
            ends into pieces that are rewritten each, as are sources of more sentences than in training.
    """

    files: Sequence[str] = field(metadata=ARGUMENT)
    model: ModelName
    text_column: tuple[str, ...] = ()
    label_map: tuple[str, ...] = ()
    long_sources: Literal["cut", "split"] = "cut"


class EvaluateOptions(PredictOptions):
    """Evaluate a fine-tuned model on labelled files.

    Attributes:
        files: Labelled files in the formats that finetune reads; - is standard input.
        out: Output file for all results as JSON.
        label_column: Column of the label, or several columns of 0 and 1. Default: as in the training data.
        report: Output directory for an HTML report with confusion matrix and examples.
        num_worst: Number of wrong predictions to show, those with the lowest probability of the label first.
    """

    label_column: tuple[str, ...] = ()
    report: str | None = None
    num_worst: int = 20


class ShowPromptsOptions(groups.SeedOptions):
    """Return the prompt of the first example of each few-shot task; no model is needed.

    Attributes:
        tasks: Built-in tasks, .toml files, or synthetic:NAME; NAME=FILE sets the data of a task.
        num_shots: Numbers of demonstrations in the prompt, such as 0,1,4. Default: those of each task.
        demonstrations: TASK=FILE: take the demonstrations from this file, not from the evaluated examples.
    """

    tasks: tuple[str, ...] = field(metadata=ARGUMENT)
    num_shots: tuple[int, ...] = field(default=(), metadata=COMMAS)
    demonstrations: tuple[str, ...] = ()


class FewShotOptions(ShowPromptsOptions, groups.InferenceOptions, groups.FileOutputOptions):
    """Evaluate models zero-, one- and few-shot, without fine-tuning.

    Attributes:
        model: GPT, or masked language model for tasks with choices: model directory, run directory or hub id.
        num_questions: Maximum number of examples of a task to evaluate.
        num_draws: Number of random draws of the demonstrations; results are means over them.
        calibrate: Also report accuracy calibrated by the probability of each answer without the question.
        out: Output directory for table, plots and report.
        overwrite: Replace the contents of the output directory.
        resume: Keep the results in the output directory and add the missing ones.
    """

    model: tuple[ModelName, ...]
    num_questions: int = 200
    num_draws: int = 1
    calibrate: bool = False
    resume: bool = False


class CompareOptions(groups.TaskTrainingOptions):
    """Compare fine-tuning from pre-trained and from random weights, over training-set sizes and seeds.

    Attributes:
        epochs: Number of epochs of each size over its own examples, instead of the same number of steps for each size.
        steps: Number of optimizer steps of every run. Default: that of 3 epochs over the largest size.
        sizes: Training-set sizes, as numbers of examples or, up to 1, as fractions.
        initializations: pretrained: the model; random: the same architecture with random weights; reembedded: the model
            with random word embeddings.
        learning_rates: Peak learning rate of one initialization, such as random=3e-4. Default: random has ten times the
            learning rate of the others if one is set, else theirs or at least 3e-4.
        num_maps: Number of random maps of symbols to words (symbols=draw), each combined with each seed. Default: each
            seed has its own map.
    """

    num_seeds: int = 3
    sizes: tuple[str | float, ...] = field(default=("0.01", "0.1", "1"), metadata=COMMAS)
    initializations: tuple[str, ...] = field(default=("pretrained", "random", "reembedded"), metadata=COMMAS)
    learning_rates: tuple[str, ...] = field(default=(), metadata=COMMAS)
    num_maps: int = 1


class ScalingLawsOptions(groups.BudgetOptions, groups.ConfigOptions, groups.ResumableOptions):
    """Pre-train a recipe at several model sizes and fit scaling laws to the validation loss.

    Attributes:
        recipe: Recipe, such as gpt_mini; see the command recipes.
        data: Directory of tokenized data (output of prepare) with a held-out split.
        sizes: Model sizes: number of layers x hidden size.
        tokens_per_parameter: Training budget of each size in tokens for each parameter, embeddings included.
        lr_width_exponent: The learning rate is scaled by (hidden size of the recipe / hidden size) to this power.
        fewshot_tasks: Task as for fewshot; its accuracy is plotted against model size.
        num_shots: Numbers of demonstrations in the prompts of these tasks.
    """

    recipe: str = field(metadata=PYTHON_ARGUMENT)
    data: str
    sizes: tuple[str, ...] = field(default=("2x64", "2x128", "4x128", "4x256"), metadata=COMMAS)
    tokens_per_parameter: float | None = None
    lr_width_exponent: float = 0.5
    fewshot_tasks: tuple[str, ...] = ()
    num_shots: tuple[int, ...] = field(default=(0, 1, 8), metadata=COMMAS)


class AblateOptions(groups.BudgetOptions, groups.ConfigOptions, groups.ResumableOptions):
    """Pre-train variants of a recipe with one budget, fine-tune each on tasks over seeds, and tabulate the scores.

    Attributes:
        recipe: Recipe, such as bart_mini; see the command recipes.
        data: Directory of tokenized data (output of prepare).
        tasks: Labelled file to fine-tune on, with its task in front unless that is clear from the file:
            classify:sst2.tsv, seq2seq:train.en,train.fr; NAME= before it names its column. Or a .toml file of a
            fine-tuning, as finetune --show-config prints it, with dev data and settings of its own.
        variants: Variant as NAME:KEY=VALUE,KEY=VALUE, settings of pre-training as for --set, or the name of a preset of
            denoising. A preset's name before settings chooses that preset, which they change; NAME: alone is the recipe
            as it is. Default: every preset.
        flops: Training budget of each variant in floating-point operations, as the log counts them, rounded to full
            steps; a note says so if they differ by more than 5 %.
        num_seeds: Number of fine-tunings of each variant on each task with consecutive random seeds.
        num_pretraining_seeds: Number of pre-training runs of each variant with consecutive random seeds; the
            fine-tunings take turns with them. On resume, more of them need more fine-tunings.
        finetune_settings: Override a config value of every fine-tuning, for example budget.epochs=5.
    """

    recipe: str = field(metadata=PYTHON_ARGUMENT)
    data: str
    tasks: tuple[str, ...] = field(metadata={"flag": "--task"})
    variants: tuple[str, ...] = field(default=(), metadata={"flag": "--variant"})
    flops: float | None = None
    num_seeds: int = 3
    num_pretraining_seeds: int = 1
    finetune_settings: tuple[str, ...] = field(default=(), metadata={"flag": "--finetune-set"})


class GlueOptions(groups.BenchmarkOptions):
    """Fine-tune a model on each task of GLUE and list the results next to published ones.

    Attributes:
        folder: Directory of GLUE as it is published (CoLA/train.tsv, ...), or hub:nyu-mll/glue.
        tasks: Names of tasks, such as CoLA,RTE; SWAG is accepted too. Default: all of GLUE.
        from_task: Start the small tasks (RTE, MRPC, STS-B) from the model of this task, such as MNLI, or from a
            fine-tuned model.
        submission: Write the files for a submission to the leaderboard.
    """

    folder: str = field(metadata=ARGUMENT)
    tasks: tuple[str, ...] = field(default=(), metadata=COMMAS)
    from_task: str | None = None
    submission: bool = False


class SquadOptions(groups.BenchmarkOptions):
    """Fine-tune a model on SQuAD 1.1 or 2.0 and list exact match and F1 next to published ones.

    Attributes:
        train: Training files in the format of SQuAD; it is SQuAD 2.0 if some questions have no answer.
        dev: Files in the format of SQuAD for evaluation.
    """

    train: tuple[str, ...] = field(metadata=PYTHON_ARGUMENT)
    dev: tuple[str, ...]


class BlimpOptions(groups.InferenceOptions, groups.ResumableOptions):
    """Score the minimal pairs of BLiMP and list the accuracy next to published results.

    Attributes:
        data: Directory of BLiMP as it is published (adjunct_island.jsonl, ...), or of other sets in its format.
        model: Model directory, run directory or hub id of a GPT or of a masked language model.
        pll: Pseudo-log-likelihood of a masked language model: within_word_l2r masks a token and the later ones of its
            word (Kauf and Ivanova 2023), original each token alone (Salazar et al. 2020); both reports both.
        limit: Maximum number of pairs of each set, the first ones. Default: all.
    """

    data: str = field(metadata=PYTHON_ARGUMENT)
    model: str
    pll: Literal["within_word_l2r", "original", "both"] = "within_word_l2r"
    limit: int | None = None


class InspectOptions(Options):
    """Describe a directory: model, tokenizer, tokenized data or run.

    Attributes:
        path: Directory, or hub id of a model.
    """

    path: str = field(metadata=ARGUMENT)


class ReportOptions(Options):
    """Write the report of a run again, also while it is running.

    Attributes:
        path: Run directory.
    """

    path: str = field(metadata=ARGUMENT)


class RunsOptions(Options):
    """List the runs below a directory with their kind, state and best metric.

    Attributes:
        folder: Directory to search.
    """

    folder: str = field(default="runs", metadata=ARGUMENT)


class EnvOptions(Options):
    """Describe the environment: versions, processor, threads, bf16 units and GPUs."""


class LoadOptions(groups.InferenceOptions):
    """Load a model with its tokenizer and task, ready to predict.

    Attributes:
        path: Model directory, run directory or hub id.
    """

    path: str = field(metadata=ARGUMENT)
