"""Options are the same on the command line and in Python: names, defaults and descriptions."""

import dataclasses
import inspect
import warnings

import pytest

import stemformer
from stemformer import options as o
from stemformer.cli.app import FewShotDisplay, app
from stemformer.cli.display import DisplayOptions, StdinOptions
from stemformer.cli.parameters import OLD_COMMANDS
from stemformer.options import OLD_NAMES, Options, accepts

FUNCTIONS = {
    "runs": "list_runs",
    "recipes": "list_recipes",
    "benchmark glue": "benchmark_glue",
    "benchmark squad": "benchmark_squad",
    "benchmark blimp": "benchmark_blimp",
}
"""Function of a command, where it has another name."""

CLI_ONLY = {DisplayOptions, StdinOptions, FewShotDisplay}
# Functions that a command calls with an option (--list, --dry-run), and those without a command.
OTHERS = {"list_tasks", "show_prompts", "load"}


def _commands():
    for name in [*app]:
        if name.startswith("-"):
            continue
        for inner in [*app[name]] if name == "benchmark" else [""]:
            if not inner.startswith("-"):
                yield f"{name} {inner}".strip()


def commands():
    return list(_commands())


def command_app(name):
    found = app
    for part in name.split():
        found = found[part]
    return found


def function_of(command):
    return getattr(stemformer, FUNCTIONS.get(command, command.replace("-", "_")))


def options_class(command):
    first = command_app(command).default_command.classes[0]
    return getattr(function_of(command), "options_class", first)


def arguments(command):
    found = command_app(command).assemble_argument_collection(parse_docstring=True)
    return {argument.field_info.name: argument for argument in found}


@pytest.mark.parametrize("command", commands())
def test_command_has_the_options_of_its_function(command):
    cls = options_class(command)
    assert set(command_app(command).default_command.classes) - CLI_ONLY == {cls}
    only_here = {item.name for extra in CLI_ONLY for item in dataclasses.fields(extra)}
    parameters = inspect.signature(function_of(command)).parameters
    found = arguments(command)
    fields = {item.name: item for item in dataclasses.fields(cls)}
    # Read from standard input, or not needed with --list.
    optional = command_app(command).default_command.optional
    assert set(optional) <= {"texts", "prompts", "files", "tasks", "model"}
    assert set(found) - only_here == set(fields)
    assert set(fields) <= set(parameters)
    for name, item in fields.items():
        default = parameters[name].default
        on_command_line = found[name].field_info.default
        if default is inspect.Parameter.empty or default == ():
            on_command_line = default if on_command_line in (None, inspect.Parameter.empty) else on_command_line
        assert (name, on_command_line) == (name, default)
        is_required = default is inspect.Parameter.empty and name not in optional
        assert found[name].required == is_required, name
        flag = item.metadata.get("flag", "--" + name.replace("_", "-"))
        assert "is_argument" in item.metadata or found[name].name == flag


@pytest.mark.parametrize("command", commands())
def test_help_is_that_of_the_function(command):
    function, cls = function_of(command), options_class(command)
    assert inspect.getdoc(function).splitlines()[0] == cls.summary()
    assert command_app(command).help == cls.summary()
    docs = cls.docs()
    for item in dataclasses.fields(cls):
        assert arguments(command)[item.name].parameter.help.startswith(docs[item.name])
        assert f"    {item.name}: {docs[item.name]}" in inspect.getdoc(function)


def test_every_command_is_a_function_of_the_package():
    functions = {name for name in stemformer.__all__ if name[0].islower() and name != "__version__"}
    functions = {name for name in functions if inspect.isfunction(getattr(stemformer, name))}
    assert {function_of(command).__name__ for command in commands()} | OTHERS == functions


def option_classes(base=Options):
    return [base, *(cls for inner in base.__subclasses__() for cls in option_classes(inner))]


@pytest.mark.parametrize("cls", option_classes())
def test_every_option_is_described(cls):
    assert set(cls.docs()) == {item.name for item in dataclasses.fields(cls)}


def test_an_option_of_one_name_has_one_default_but_where_it_is_meant():
    defaults = {}
    for command in commands():
        for item in dataclasses.fields(options_class(command)):
            if item.default is not dataclasses.MISSING:
                defaults.setdefault(item.name, set()).add(item.default)
    several = {name for name, found in defaults.items() if len(found) > 1}
    assert several == {
        *("device", "precision", "seed"),  # None in training: the value of the config
        *("batch_size", "top_k", "num_seeds", "sizes", "num_shots", "num_beams"),  # another usual value
        *("max_new_tokens", "length_penalty"),  # None in rewriting: by the length of the text, and as in fine-tuning
        "long_sources",  # None in rewriting: an error
        *("kind", "text_column", "out"),  # another meaning
    }


@pytest.mark.parametrize("new", list(OLD_NAMES))
def test_old_names_lead_to_options_that_exist(new):
    names = [{item.name for item in dataclasses.fields(options_class(command))} for command in commands()]
    names.append({item.name for item in dataclasses.fields(FewShotDisplay)})
    assert any(new in found for found in names)


@pytest.mark.parametrize("words", list(OLD_COMMANDS.values()))
def test_old_commands_lead_to_commands_that_exist(words):
    assert " ".join(words) in set(commands())


class MadeUpOptions(Options):
    """Do something.

    Attributes:
        files: Input files,
            more than one.
        text_column: Column of the text.
        model: Model.
        num_seeds: Number of seeds.
    """

    files: tuple[str, ...] = dataclasses.field(metadata={"is_positional": True})
    text_column: tuple[str, ...] = ()
    model: str
    num_seeds: int = 3


@accepts(MadeUpOptions)
def made_up(options, *, progress=None, on_text=None):
    """Do something.

    Args:
        on_text: Called with text.

    Returns:
        All of it.
    """
    return options, progress, on_text


def test_keywords_become_an_options_object():
    expected = MadeUpOptions(files=("a", "b"), model="m", text_column=("t",))
    assert made_up(["a", "b"], model="m", text_column="t", progress=1) == (expected, 1, None)
    assert made_up(files="a", model="m")[0].files == ("a",)


def test_home_is_expanded_in_names_but_not_in_texts(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    options = o.PrepareOptions.make(files=["~/a.txt", "b~/c"], tokenizer="~/tok", out="~/data")
    assert (list(options.files), options.tokenizer) == (["/home/ada/a.txt", "b~/c"], "/home/ada/tok")
    assert o.GenerateOptions.make(prompts=["~/x"], model="m").prompts == ["~/x"]


def test_keywords_override_an_options_object():
    options = MadeUpOptions(files=("a",), model="m")
    assert made_up(options=options)[0] == options
    assert made_up(options=options, num_seeds=5)[0] == dataclasses.replace(options, num_seeds=5)


def test_signature_and_docstring_list_all_options():
    signature = inspect.signature(made_up)
    assert list(signature.parameters) == [
        *("files", "model", "text_column", "num_seeds", "options", "progress", "on_text")
    ]
    assert signature.parameters["num_seeds"].default == 3
    assert inspect.getdoc(made_up) == (
        "Do something.\n\nArgs:\n    files: Input files, more than one.\n    text_column: Column of the text.\n"
        "    model: Model.\n    num_seeds: Number of seeds.\n"
        "    options: All of the above as one MadeUpOptions; other keywords override its fields.\n"
        "    progress: Progress reporter; silent by default.\n    on_text: Called with text.\n\n"
        "Returns:\n    All of it."
    )


@pytest.mark.parametrize(
    ("positional", "keywords", "message"),
    [
        (["a"], {"modle": "m"}, r"made_up\(\) has no option 'modle'\. Did you mean 'model'\?"),
        (["a"], {"xyz": "m"}, r"made_up\(\) has no option 'xyz'\.$"),
        ([], {}, r"made_up\(\) lacks files= and model="),
        (["a", "b"], {"model": "m"}, r"made_up\(\) takes 1 arguments without a name, got 2"),
        (["a"], {"files": "b", "model": "m"}, r"made_up\(\) got several values for 'files'"),
    ],
)
def test_wrong_keywords_are_type_errors(positional, keywords, message):
    with pytest.raises(TypeError, match=message):
        made_up(*positional, **keywords)


def test_old_keywords_work_with_a_warning():
    with pytest.warns(FutureWarning, match=r"^made_up\(\): seeds is now num_seeds\.$"):
        assert made_up("a", model="m", seeds=7)[0].num_seeds == 7


def test_old_functions_work_with_a_warning():
    with pytest.warns(FutureWarning, match=r"^stemformer\.scale is now stemformer\.scaling_laws\.$"):
        assert stemformer.scale is stemformer.scaling_laws


def test_sliding_window_has_an_old_value():
    @accepts(o.GenerateOptions)
    def made(options):
        return options

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert made(["a"], model="m", overflow="slide").sliding_window
        assert not made(["a"], model="m", overflow="error").sliding_window


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("45", 45), (7.5, 7.5)]
)
def test_duration_is_read(text, seconds):
    assert o.read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1h30", "5x", "m", "1..5s"])
def test_wrong_duration_is_an_error(text):
    with pytest.raises(stemformer.ConfigError, match=r"expected a duration such as 90s, 30m, 1h30m or 2d"):
        o.read_duration(text)


def test_decoding_has_the_defaults_of_the_options():
    from stemformer.generation.decoding import DecodingConfig

    defaults = {item.name: item.default for item in dataclasses.fields(o.GenerateOptions)}
    for item in dataclasses.fields(DecodingConfig):
        assert item.name == "overflow" or item.default == defaults[item.name], item.name
