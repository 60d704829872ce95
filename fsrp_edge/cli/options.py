"""Options that several commands share. Imports nothing heavy: `--help` goes through here."""

import math
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from fsrp_edge.cli.errors import traceback_option
from fsrp_edge.errors import BadInputError
from fsrp_edge.wording import nearest

Command = TypeVar("Command", bound=Callable[..., object])
Value = TypeVar("Value")


def from_home(text: str) -> str:
    """`~/net.pt` as a shell would give it, which does so neither in files nor behind an equals sign."""
    return str(Path(text).expanduser()) if text.startswith("~/") else text


class _New(click.Path):
    """A path to write to, refused before the work where it, or the folder it is for, can't be made or written into."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):  # a variable that was not set; as a path it would mean the current folder
            self.fail("it is empty; give a name", param, ctx)
        path = Path(os.fsdecode(super().convert(from_home(os.fsdecode(value)), param, ctx)))
        places = (path.absolute(), *path.absolute().parents)
        folder = next((each for each in places[self.file_okay :] if each.exists()), path)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            self.fail(f"{path} can't be written: {folder} is no folder that you may write into", param, ctx)
        return path


ExistingFile = click.Path(exists=True, dir_okay=False, path_type=Path)
NewFile = _New(dir_okay=False, path_type=Path)
NewFolder = _New(file_okay=False, path_type=Path)
CRITERIA = (
    "fsrp", "fsrp-reconstruction",
    "random", "l1", "l2", "fpgm", "batch-norm-scale", "lamp", "taylor", "hessian", "activation",
)  # fmt: skip
COUNT, NUMBER, POSITIVE = click.IntRange(1), click.IntRange(0), click.FloatRange(0, min_open=True)


def speaks() -> bool:
    """Whether this process tells the user what it does: of those of torchrun, the first one."""
    return os.environ.get("RANK", "0") == "0"


def stack(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Callback of an option that no command takes as an argument: `remembered` tells its value."""
    context.meta[f"{__name__}.{parameter.name}"] = value


def remembered(name: str) -> Any:
    """The value of such an option in the running command; None outside of commands."""
    context = click.get_current_context(silent=True)
    return context and context.meta.get(f"{__name__}.{name}")


def _remembered(*names: str, **more: Any) -> Callable[[Command], Command]:
    return click.option(*names, expose_value=False, callback=remember, **more)


def from_text(read: Callable[[str], Value]) -> Callable[[object], Value]:
    """A type of option: what `read` makes of a text, whose ValueError says in one line what is wrong with it."""

    def text(value: object) -> Value:  # the name is what the help calls the type
        try:
            return read(str(value))  # a configuration file may give a number
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return text


@from_text
def _floats(text: str) -> tuple[float, ...]:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406")
    return values


@from_text
def source(text: str) -> str:
    """What to call a data set by: not nothing, as of a variable that was not set, since that would mean the default."""
    if not text.strip():
        raise ValueError("it is empty; name a data set, or leave it out")
    return text


@from_text
def _eps(text: str) -> float:
    over, _, under = text.partition("/")
    try:
        eps = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a number or a fraction such as 8/255") from None
    if not 0 <= eps <= 1 and not (1 < eps < math.inf and click.get_current_context().params.get("norm") == "L2"):
        raise ValueError(f"{eps:g} is outside 0 to 1 (pixels are in [0, 1]); 8/255 is usual")
    return eps


@from_text
def _layer_ratio(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        ratio = float(number)
    except ValueError:
        ratio = math.nan
    if not pattern or not 0 <= ratio < 1:
        raise ValueError(f"{text!r} is not PATTERN=RATIO with a ratio from 0 to below 1: layer4.*=0.7")
    return pattern, ratio


normalization_options = stack(
    click.option("--mean", type=_floats, metavar="NUMBERS", help="Mean of each channel, for pixels in [0, 1]."),
    click.option("--std", type=_floats, metavar="NUMBERS", help="Standard deviation of each channel."),
)
checkpoint_options = stack(
    click.argument("checkpoint", type=ExistingFile),
    click.option(
        "--arch",
        "architecture",
        metavar="NAME",
        help="Architecture, where the file does not tell: a torchvision name, cifar:NAME, timm:NAME, "
        "package.module:factory or file.py:factory.",
    ),
    click.option("--input-size", type=COUNT, help="Height and width of the input in pixels."),
    normalization_options,
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Unpickle a whole saved module. This RUNS CODE from the file: only for files you made yourself.",
    ),
)
"""How to read a checkpoint; passed on as keyword arguments of `models.checkpoint.load_classifier`."""

data_option = click.option(
    "--data",
    type=source,
    metavar="SOURCE",
    help="A folder with train/ and val/ or of class folders, a CIFAR-10/100 folder, an .npz file, `digits` or "
    "`photographs`. Default: what the checkpoint names, else photographs, labelled by the network itself.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Of all random draws; what is held out for evaluation does not depend on it.",
)
target_option = click.option(
    "--target",
    required=True,
    metavar="NAME|FILE",
    help="Device profile: a name of `fsrp-edge targets list`, or a YAML file.",
)
format_options = stack(
    click.option(
        "--format",
        "formats",
        multiple=True,
        type=click.Choice(["onnx", "tflite", "saved_model", "ncnn"]),
        help="Repeatable. `fsrp-edge targets show NAME` has the table of formats and precisions, with reasons.",
    ),
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=click.Choice(["fp32", "fp16", "int8", "int8-dynamic"]),
        help="Repeatable. int8-dynamic has int8 weights and needs no calibration.",
    ),
    click.option(
        "--calibration-images",
        type=COUNT,
        default=256,
        help="Training images that the ranges of int8 activations come from.",
    ),
    click.option(
        "--calibration-method",
        type=click.Choice(["min-max", "entropy", "percentile", "mse"]),
        default="min-max",
        help="How a range is chosen.",
    ),
    click.option(
        "--int8-max-drop",
        type=click.FloatRange(0, 100),
        metavar="POINTS",
        help="Keep the most sensitive layers in float until int8 loses no more accuracy than this; fail if it can't.",
    ),
    click.option("--uint8-input", is_flag=True, help="Files take images as bytes, not as float pixels."),
    click.option("--dynamic-batch", is_flag=True, help="ONNX files take any number of images at once."),
)
"""Which files; the last five are those of `exporting.options.ExportOptions`."""
eps_option = click.option(
    "--eps", type=_eps, metavar="RADIUS", default="8/255", help="Radius of attacks, in L-infinity."
)
ball_eps_option = click.option(
    "--eps",
    type=_eps,
    metavar="RADIUS",
    help="Radius of attacks in the norm; in L2 it has to be given, such as 0.5.  [default: 8/255 in L-infinity]",
)


def _refusing_to_overwrite(command: Command) -> Command:
    """The command, stopped before its work where a file that it would write is one that it reads."""

    @wraps(command)
    def apart(**given: Any) -> object:
        parameters = click.get_current_context().command.params
        outputs = {str(each.name): each.opts[0] for each in parameters if isinstance(each.type, _New)}
        values = [value for name, value in given.items() if name not in outputs]
        texts = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
        # Path's own would raise where a text is too long for a name.
        read = [each for each in texts if isinstance(each, str | Path) and os.path.isfile(each)]  # noqa: PTH113
        for name, option in outputs.items():
            path = given.get(name) or remembered(name)
            if path and path.is_file() and any(path.samefile(each) for each in read):
                raise click.UsageError(f"{option} {path} is what this command reads; name another file")
        return command(**given)

    return cast(Command, apart)


output_options = stack(
    _remembered("--json", is_flag=True, help="Write the result to stdout as JSON instead of a table."),
    _remembered("--quiet", is_flag=True, help="No progress on stderr."),
    _remembered(
        "-v",
        "--verbose",
        is_flag=True,
        help="Every step with its time, and what the libraries print. A run keeps both in its run.log in any case.",
    ),
    traceback_option,
    _refusing_to_overwrite,
)
"""Of every command that works; `console` does what they say, and no input is overwritten."""
criterion_options = stack(
    click.option(
        "--criterion",
        type=click.Choice(CRITERIA),
        default="fsrp",
        help="What a filter is scored by. fsrp is as published; fsrp-reconstruction keeps the filters that explain "
        "most of the others' low frequencies, then the largest, and keeps more than fsrp where a tenth of the "
        "parameters stays; the others are there to compare with. The options below are those of the two.",
    ),
    click.option(
        "--score-images",
        type=COUNT,
        help="Training images to score on.  [default: 512, or 128 for large inputs]",
    ),
    click.option(
        "--radius",
        type=click.FloatRange(0, 1, min_open=True),
        help="Of the low-frequency region, as a fraction of the band.  [default: 0.125, or 0.5 for "
        "fsrp-reconstruction]",
    ),
    click.option("--region", type=click.Choice(["disk", "square"]), default="disk", help="Of fsrp: its shape."),
    click.option(
        "--read-at",
        type=click.Choice(["convolution", "batch-norm", "activation"]),
        default="convolution",
        help="Of fsrp: where a filter's feature map is read.",
    ),
    click.option(
        "--score-steps",
        type=COUNT,
        default=10,
        help="PGD steps of the examples.",
    ),
    click.option(
        "--score-early-stop",
        is_flag=True,
        help="Leave an image as it is once it is fooled: sooner done, with weaker examples.",
    ),
)
plan_options = stack(
    click.option(
        "--ratio",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        help="Share to remove. Of channels, it removes more of parameters and MACs: about 1 - (1 - ratio)^2.",
    ),
    click.option(
        "--ratio-of",
        type=click.Choice(["channels", "parameters", "macs"]),
        default="channels",
        help="Share of each layer's channels, or of the whole network's parameters or MACs.",
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="PATTERN",
        help="Layers whose outputs stay: layer1.*.conv2. Repeatable.",
    ),
    click.option("--keep-inputs", multiple=True, metavar="PATTERN", help="Layers whose inputs stay. Repeatable."),
    click.option(
        "--allocation",
        type=click.Choice(["uniform", "global", "knapsack"]),
        help="Remove the same share of every layer, what ranks lowest over all layers together, or what moves the "
        "outputs least for what it saves.  [default: uniform; under budgets knapsack]",
    ),
    click.option(
        "--latency",
        metavar="LIMIT",
        help="Budget in place of --ratio: at most so long on the target, such as 20ms or 50% of the dense network. "
        "Budgets may be combined; each holds for every file made, and missing one is exit code 1.",
    ),
    click.option("--macs", metavar="LIMIT", help="Budget: at most this share of MACs, such as 0.3, or 10M."),
    click.option("--params", "parameters", metavar="LIMIT", help="Budget: at most this share of parameters, or 100k."),
    click.option("--size", metavar="LIMIT", help="Budget: of the largest file, such as 500KB."),
    click.option("--memory", metavar="LIMIT", help="Budget: weights and activations at their peak: 8MB."),
    click.option("--keep-first", is_flag=True, help="The first convolution's outputs stay."),
    click.option(
        "--layer-ratio",
        "layer_ratios",
        multiple=True,
        type=_layer_ratio,
        metavar="PATTERN=RATIO",
        help="Share of channels to remove from these layers instead; 0 keeps all. Repeatable.",
    ),
)
"""Keyword arguments of `pruning.options.PlanOptions`, all but the channel multiple and the strategy, and of its
budgets."""
strategy_options = stack(
    click.option(
        "--strategy",
        type=click.Choice(["one-shot", "sequential", "gradual"]),
        default="one-shot",
        help="Score once; again before each layer, on the network that the earlier ones left; or again in rounds.",
    ),
    click.option("--rounds", type=COUNT, default=3, help="Of the gradual strategy."),
)
compensate_option = click.option(
    "--compensate/--no-compensate",
    default=True,
    help="Fit what stays to the dense network, layer by layer, by least squares on images. Not with --round-epochs.",
)
flip_option = click.option(
    "--flip/--no-flip",
    default=True,
    help="Mirror training images left to right at random, but those of `digits`. Wrong for letters and traffic signs.",
)
recipe_option = click.option(
    "--recipe",
    type=ExistingFile,
    help="YAML file with more of the recipe, such as `method: trades`, `ema_decay: 0.999`, `cutmix: true`, `schedule: "
    "one-cycle`, `label_smoothing: 0.1`, `patience: 5`; its keys win over the options.",
)
recovery_options = stack(
    click.option(
        "--recover-epochs",
        type=NUMBER,
        default=5,
        help="0 recalibrates batch norm only; with --int8-epochs, keeps an already recovered network.",
    ),
    click.option(
        "--recover-method",
        type=click.Choice(["auto", "n-fgsm", "pgd", "trades", "rslad", "natural"]),
        default="auto",
        help="What is trained on: fast (n-fgsm) or multi-step (pgd, trades, rslad) adversarial examples, or clean "
        "images; rslad learns the dense network's predictions in place of labels. "
        "auto: n-fgsm, but clean images where compress finds that the dense network has no robustness to keep.",
    ),
    click.option(
        "--recover-learning-rate",
        type=POSITIVE,
        default=0.05,
        help="Peak of one cycle; lowered with the batches where images are few.",
    ),
    click.option(
        "--int8-epochs",
        type=NUMBER,
        default=0,
        help="Then so many epochs more with weights and activations rounded as in int8 files, where calibration "
        "alone loses too much.",
    ),
    click.option("--batch-size", type=click.IntRange(2), default=128, help="Of the recovery."),
    flip_option,
    recipe_option,
)


gate_options = stack(
    click.option(
        "--require",
        "gates",
        multiple=True,
        metavar="GATE",
        help="Exit with code 1 unless this holds, such as robust_accuracy>=40%, clean_drop<=1.0, latency_p50<=20ms, "
        "speed_up>=2, size[tflite int8]<=500kB; judged on the unfavourable end of the 95 % interval, and latency as it "
        "is measured: on this machine, unless --bench-on names another. Repeatable.",
    ),
    click.option(
        "--baseline",
        type=click.Path(exists=True, path_type=Path),
        help="An earlier run, or its report.json, to judge --max-regression by.",
    ),
    click.option(
        "--max-regression",
        multiple=True,
        metavar="METRIC=AMOUNT",
        help="Exit with code 1 where a figure is worse than the baseline's by more than this: robust_accuracy=1 "
        "(points, beyond chance), latency_p50=5% (beyond the noise within each measurement; measure one file twice to "
        "see what differs anyway). Repeatable.",
    ),
)


def refuse_beside(given: str, overruled: set[str]) -> None:
    """Stop where the user gave a parameter that the option `given`, such as `--criterion l1`, silently overrules.

    The command line wins over a file of options, and a file may repeat defaults, as those of --save-config do.
    """
    context, sources = click.get_current_context(), click.core.ParameterSource
    parameters = {str(each.name): each for each in context.command.params}
    found = {name: context.get_parameter_source(name) for name in parameters}
    first, *_ = given.split()
    in_file = any(first in parameters[name].opts and source is sources.DEFAULT_MAP for name, source in found.items())
    for name in sorted(overruled & parameters.keys()):
        parameter, source = parameters[name], found[name]
        beside = in_file and source is sources.DEFAULT_MAP and context.params[name] != parameter.default
        if source is sources.COMMANDLINE or beside:
            raise click.UsageError(
                f"{parameter.opts[0]} does not go with {given}, beside which it does nothing; leave one of them out, "
                "or change it"
            )


def checked(model: Any, **values: Any) -> Any:
    """An options model of these values; what pydantic has against them becomes wrong use of the command line."""
    from pydantic import ValidationError

    from fsrp_edge.errors import first_problem

    try:
        return model(**values)
    except ValidationError as error:
        field = str(next(iter(error.errors()[0]["loc"]), ""))
        parameters = {each.name: each for each in click.get_current_context().command.params}
        if field not in parameters:
            raise click.UsageError(first_problem(error)) from None
        raise click.BadParameter(first_problem(error, place=False), param=parameters[field]) from None


def budgets_from(given: dict[str, Any]) -> Any:
    """The budgets that the command line names, which are taken out of `given`."""
    from fsrp_edge.pruning.budgets import Budgets

    asked = {name: given.pop(name) for name in Budgets.model_fields}
    for name, limit in asked.items():
        if limit is not None:
            refuse_beside(f"--{'params' if name == 'parameters' else name}", {"ratio", "ratio_of"})
    return checked(Budgets, **asked)


def criterion_from(given: dict[str, Any]) -> Any:
    """The criterion that the command line names, with its options, which are taken out of `given`."""
    from fsrp_edge.attacks import PGD
    from fsrp_edge.scoring.fsrp import FSRP
    from fsrp_edge.scoring.reconstruction import Reconstruction
    from fsrp_edge.scoring.rivals import Rival

    name, steps, early = (given.pop(key) for key in ("criterion", "score_steps", "score_early_stop"))
    radius, fsrp = given.pop("radius"), {key: given.pop(key) for key in ("region", "read_at")}
    if name != "fsrp":
        of_others = set() if name == "fsrp-reconstruction" else {"radius", "score_steps", "score_early_stop"}
        refuse_beside(f"--criterion {name}", {"region", "read_at"} | of_others)
    common = {"attack": PGD(eps=given["eps"], steps=steps, early_stop=early)}
    if radius is not None:
        common["radius"] = radius
    if name == "fsrp":
        return checked(FSRP, **fsrp, **common)
    return checked(Reconstruction, **common) if name == "fsrp-reconstruction" else Rival.model_validate({"name": name})


def recipe_from(given: dict[str, Any], recipe: dict[str, Any]) -> Any:
    """The recovery that the command line names, taken out of `given`; None where nothing is trained.

    Args:
        given: options by name.
        recipe: what the file of --recipe says, above them.
    """
    method = given.pop("recover_method")
    values = {name: given.pop(name) for name in ("int8_epochs", "batch_size", "flip")}
    values |= {name: given.pop(f"recover_{name}") for name in ("epochs", "learning_rate")}
    values |= {"method": "n-fgsm" if method == "auto" else method, "eps": given["eps"]} | recipe
    if values["epochs"] == values["int8_epochs"] == 0:
        refuse_beside("--recover-epochs 0", {"recover_method", "recover_learning_rate", "recipe"})
        return None
    return checked_recipe(**{"crop_padding": 4} | values)


def checked_recipe(**values: Any) -> Any:
    """A recipe of these values."""
    from fsrp_edge.training.recipe import Recipe

    return checked(Recipe, **values)


def read_recipe(file: Path | None) -> dict[str, Any]:
    """What the YAML file of --recipe says; its keys win over the options."""
    if file is None:
        return {}
    from fsrp_edge.training.recipe import Recipe

    content = read_yaml(file, "ema_decay: 0.999")
    if unknown := [key for key in content if key not in Recipe.model_fields]:
        raise BadInputError(f"{file}: unknown key {unknown[0]!r}; {nearest(str(unknown[0]), Recipe.model_fields)}")
    if isinstance(content.get("eps"), str):  # 4/255, as the option takes it
        content["eps"] = _eps(content["eps"])
    return content


def read_yaml(file: Path, example: str) -> dict[Any, Any]:
    """Keys and values of a YAML file, which should look like `example`."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        content, tree = yaml.safe_load(text), yaml.compose(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML lets them through
        raise BadInputError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(tree, yaml.MappingNode):
        raise BadInputError(f"{file} holds no keys and values; it should look like `{example}`")
    for node in (tree, *(value for _, value in tree.value)):  # the parser keeps the last of two
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise BadInputError(f"{file}: {twice[0]!r} stands twice; give it once, with a list where there are several")
    return content
