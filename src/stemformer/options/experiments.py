"""Options of the commands that measure: few-shot, comparison, scaling laws, benchmarks."""

from dataclasses import field

from stemformer.options.groups import (
    ARGUMENT,
    COMMAS,
    PYTHON_ARGUMENT,
    BudgetOptions,
    ConfigOptions,
    InferenceOptions,
    ModelName,
    ResumableOptions,
    SeedOptions,
    TrainSettings,
    options,
)
from stemformer.options.training import TaskTrainingOptions


@options
class ShowPromptsOptions(SeedOptions):
    """Return the prompt of the first example of each few-shot task; no model is needed.

    Attributes:
        tasks: Built-in tasks, .toml files, or synthetic:NAME; NAME=FILE sets the data of a task.
        num_shots: Numbers of demonstrations in the prompt, such as 0,1,4. Default: those of each task.
        demonstrations: TASK=FILE: take the demonstrations from this file, not from the evaluated examples.
    """

    tasks: tuple[str, ...] = field(metadata=ARGUMENT)
    num_shots: tuple[int, ...] = field(default=(), metadata=COMMAS)
    demonstrations: tuple[str, ...] = ()


@options
class FewShotOptions(ShowPromptsOptions, InferenceOptions):
    """Evaluate models zero-, one- and few-shot, without fine-tuning.

    Attributes:
        model: GPT, or masked language model for tasks with choices: model directory, run directory or hub id.
        num_questions: Maximum number of examples of a task to evaluate.
        num_draws: Number of random draws of the demonstrations; results are means over them.
        calibrate: Also report accuracy calibrated by the probability of each answer without the question.
        out: Output directory for table, plots and report.
        resume: Keep the results in the output directory and add the missing ones.
        overwrite: Replace the contents of the output directory.
    """

    model: tuple[ModelName, ...]
    num_questions: int = 200
    num_draws: int = 1
    calibrate: bool = False
    out: str | None = None
    resume: bool = False
    overwrite: bool = False


@options
class CompareOptions(TaskTrainingOptions):
    """Compare fine-tuning from pre-trained and from random weights, over training-set sizes and seeds.

    Attributes:
        epochs: Number of epochs of each size over its own examples, instead of the same number of steps for each size.
        steps: Number of optimizer steps of every run. Default: that of 3 epochs over the largest size.
        sizes: Training-set sizes, as numbers of examples or, up to 1, as fractions.
        initializations: pretrained: the model; random: the same architecture with random weights; reembedded: the model with
            random word embeddings.
        learning_rates: Peak learning rate of one initialization, such as random=3e-4. Default: random has ten times the
            learning rate of the others.
    """

    num_seeds: int = 3
    sizes: tuple[str | float, ...] = field(default=("0.01", "0.1", "1"), metadata=COMMAS)
    initializations: tuple[str, ...] = field(default=("pretrained", "random", "reembedded"), metadata=COMMAS)
    learning_rates: tuple[str, ...] = field(default=(), metadata=COMMAS)


@options
class ScalingLawsOptions(BudgetOptions, ConfigOptions, ResumableOptions):
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


@options
class BenchmarkOptions(TrainSettings, SeedOptions, ResumableOptions):
    """Options that the benchmarks share.

    Attributes:
        model: Model directory, run directory or hub id to start from.
        num_seeds: Number of runs of each task with consecutive random seeds; from two on, mean and standard deviation are
            reported.
        learning_rates: Peak learning rates to try; the best on the dev set is used. Default: those of the BERT paper.
        epochs: Number of epochs over the training data. Default: 3, for SQuAD 2.0 2.
        batch_size: Examples (for SQuAD, windows) in an optimizer step. Default: 32, for SQuAD 2.0 48.
        max_length: Maximum length of an example in tokens. Default: what the model supports, for SQuAD 384.
    """

    model: str
    num_seeds: int = 1
    learning_rates: tuple[float, ...] = field(default=(), metadata=COMMAS)
    epochs: float | None = None
    batch_size: int | None = None
    max_length: int | None = None


@options
class GlueOptions(BenchmarkOptions):
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


@options
class SquadOptions(BenchmarkOptions):
    """Fine-tune a model on SQuAD 1.1 or 2.0 and list exact match and F1 next to published ones.

    Attributes:
        train: Training files in the format of SQuAD; it is SQuAD 2.0 if some questions have no answer.
        dev: Files in the format of SQuAD for evaluation.
    """

    train: tuple[str, ...] = field(metadata=PYTHON_ARGUMENT)
    dev: tuple[str, ...]
