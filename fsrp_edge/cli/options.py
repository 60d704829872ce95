"""Options that several commands share. Imports nothing heavy: `--help` goes through here."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])
ExistingFile = click.Path(exists=True, dir_okay=False, path_type=Path)
NewFile = click.Path(dir_okay=False, path_type=Path)
NewFolder = click.Path(file_okay=False, path_type=Path)
VERBOSE = "fsrp_edge.verbose"
"""Key of the context's `meta`."""


def stack(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _floats(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.485,0.456,0.406")
    return values


def _eps(context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        over, _, under = text.partition("/")
        eps = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"{text!r} is not a number or a fraction such as 8/255") from None
    if not 0 <= eps <= 1 and not (eps > 1 and context.params.get("norm") == "L2"):
        raise click.BadParameter(f"{eps:g} is outside 0 to 1 (pixels are in [0, 1]); 8/255 is usual")
    return eps


def _layer_ratios(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, float], ...]:
    ratios = []
    for text in texts:
        pattern, _, number = text.rpartition("=")
        try:
            ratio = float(number)
        except ValueError:
            ratio = math.nan
        if not pattern or not 0 <= ratio < 1:
            raise click.BadParameter(
                f"{text!r} is not PATTERN=RATIO with a ratio from 0 to below 1: layer4.*=0.7"
            )
        ratios.append((pattern, ratio))
    return tuple(ratios)


def _ask_for_details(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    context.meta[VERBOSE] = wanted


normalization_options = stack(
    click.option("--mean", callback=_floats, help="Mean of each channel, for pixels in [0, 1]."),
    click.option("--std", callback=_floats, help="Standard deviation of each channel."),
)
checkpoint_options = stack(
    click.argument("checkpoint", type=ExistingFile),
    click.option(
        "--arch",
        "architecture",
        metavar="NAME",
        help="Architecture, where the file does not tell: a torchvision or timm name, cifar:NAME, "
        "package.module:factory or file.py:factory.",
    ),
    click.option("--input-size", type=click.IntRange(1), help="Height and width of the input in pixels."),
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
    metavar="SOURCE",
    help="A folder with train/ and val/ or of class folders, a CIFAR-10/100 folder, an .npz file, `digits` or "
    "`photographs`. Default: what the checkpoint names, else photographs, labelled by the network itself.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every random draw."
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
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Training images that the ranges of int8 activations come from.",
    ),
    click.option(
        "--calibration-method",
        type=click.Choice(["min-max", "entropy", "percentile", "mse"]),
        default="min-max",
        show_default=True,
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
    "--eps", callback=_eps, default="8/255", show_default=True, help="L-infinity radius of attacks."
)
output_options = stack(
    click.option(
        "--json", "as_json", is_flag=True, help="Write the result to stdout as JSON instead of a table."
    ),
    click.option("--quiet", is_flag=True, help="No progress on stderr."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_ask_for_details,
        help="Every step with its time, and what the libraries print. A run keeps both in its run.log in any case.",
    ),
)
criterion_options = stack(
    click.option(
        "--criterion",
        type=click.Choice(
            [
                "fsrp",
                "random",
                "l1",
                "l2",
                "fpgm",
                "batch-norm-scale",
                "lamp",
                "taylor",
                "hessian",
                "activation",
            ]
        ),
        default="fsrp",
        show_default=True,
        help="What a filter is scored by; the others are there to compare with. The options below are fsrp's.",
    ),
    click.option(
        "--score-images",
        type=click.IntRange(1),
        help="Training images to score on.  [default: 512, or 128 for large inputs]",
    ),
    click.option(
        "--radius",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.125,
        show_default=True,
        help="Of the low-frequency region, as a fraction of the band.",
    ),
    click.option("--region", type=click.Choice(["disk", "square"]), default="disk", show_default=True),
    click.option(
        "--read-at",
        type=click.Choice(["convolution", "batch-norm", "activation"]),
        default="convolution",
        show_default=True,
        help="Where a filter's feature map is read.",
    ),
    click.option(
        "--score-steps",
        type=click.IntRange(1),
        default=10,
        show_default=True,
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
        show_default=True,
        help="Share to remove. Of channels, it removes more of parameters and MACs: about 1 - (1 - ratio)^2.",
    ),
    click.option(
        "--ratio-of",
        type=click.Choice(["channels", "parameters", "macs"]),
        default="channels",
        show_default=True,
        help="Share of each layer's channels, or of the whole network's parameters or MACs.",
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="PATTERN",
        help="Layers whose outputs stay: layer1.*.conv2. Repeatable.",
    ),
    click.option(
        "--keep-inputs", multiple=True, metavar="PATTERN", help="Layers whose inputs stay. Repeatable."
    ),
    click.option(
        "--allocation",
        type=click.Choice(["uniform", "global", "knapsack"]),
        help="Remove the same share of every layer, what ranks lowest over all layers together, or what loses least "
        "for what it saves.  [default: knapsack under budgets, else uniform]",
    ),
    click.option(
        "--latency",
        metavar="LIMIT",
        help="Budget in place of --ratio: at most so long on the target, such as 20ms or 50% of the dense network. "
        "Budgets may be combined; each holds for every file made, and missing one is exit code 1.",
    ),
    click.option("--macs", metavar="LIMIT", help="Budget: at most this share of MACs, such as 0.3, or 10M."),
    click.option(
        "--params", "parameters", metavar="LIMIT", help="Budget: at most this share of parameters, or 100k."
    ),
    click.option("--size", metavar="LIMIT", help="Budget: of the largest file, such as 500KB."),
    click.option("--memory", metavar="LIMIT", help="Budget: weights and activations at their peak: 8MB."),
    click.option("--keep-first", is_flag=True, help="The first convolution's outputs stay."),
    click.option(
        "--layer-ratio",
        "layer_ratios",
        multiple=True,
        metavar="PATTERN=RATIO",
        callback=_layer_ratios,
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
        show_default=True,
        help="Score once; again before each layer, on the network that the earlier ones left; or again in rounds.",
    ),
    click.option(
        "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of the gradual strategy."
    ),
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
        type=click.IntRange(0),
        default=5,
        show_default=True,
        help="0 recalibrates batch norm only; with --int8-epochs, keeps an already recovered network.",
    ),
    click.option(
        "--recover-method",
        type=click.Choice(["auto", "n-fgsm", "pgd", "trades", "natural"]),
        default="auto",
        show_default=True,
        help="What is trained on: fast (n-fgsm) or multi-step (pgd, trades) adversarial examples, or clean images. "
        "auto: n-fgsm, but clean images where compress finds that the dense network has no robustness to keep.",
    ),
    click.option(
        "--recover-learning-rate",
        type=click.FloatRange(0, min_open=True),
        default=0.1,
        show_default=True,
        help="Peak of one cycle; lowered with the batches where images are few.",
    ),
    click.option(
        "--int8-epochs",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Then so many epochs more with weights and activations rounded as in int8 files, where calibration "
        "alone loses too much.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(2), default=128, show_default=True, help="Of the recovery."
    ),
    recipe_option,
)


gate_options = stack(
    click.option(
        "--require",
        "gates",
        multiple=True,
        metavar="GATE",
        help="Exit with code 1 unless this holds, such as robust_accuracy>=40%, clean_drop<=1.0, latency_p50<=20ms, "
        "speed_up>=2, size[tflite int8]<=500kB; judged on the unfavourable end of the 95 % interval. Repeatable.",
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
        help="Exit with code 1 where a figure is worse than the baseline's by more than this, beyond chance: "
        "robust_accuracy=1 (points), latency_p50=5%. Repeatable.",
    ),
)


def optional(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What a repeatable option gave; None where it was not used."""
    return values or None


def refuse_beside(given: str, overruled: set[str]) -> None:
    """Stop where the user gave a parameter that the option `given` would silently overrule."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in overruled and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} does not go with {given}, which decides that itself")


def checked(model: Any, **values: Any) -> Any:
    """An options model of these values; what pydantic has against them becomes wrong use of the command line."""
    from pydantic import ValidationError

    from fsrp_edge.errors import first_problem

    try:
        return model(**values)
    except ValidationError as error:
        raise click.UsageError(first_problem(error)) from None


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
    from fsrp_edge.scoring.rivals import Rival

    name, steps, early = (given.pop(key) for key in ("criterion", "score_steps", "score_early_stop"))
    fsrp = {key: given.pop(key) for key in ("radius", "region", "read_at")}
    if name != "fsrp":
        return Rival.model_validate({"name": name})
    return FSRP(**fsrp, attack=PGD(eps=given["eps"], steps=steps, early_stop=early))


def recipe_from(
    epochs: int,
    method: str,
    learning_rate: float,
    int8_epochs: int,
    batch_size: int,
    eps: float,
    recipe: Path | None,
) -> Any:
    """The recovery recipe that the command line names; None where nothing is trained."""
    if epochs + int8_epochs == 0:
        return None
    return checked_recipe(
        recipe,
        epochs=epochs,
        method="n-fgsm" if method == "auto" else method,
        learning_rate=learning_rate,
        int8_epochs=int8_epochs,
        batch_size=batch_size,
        eps=eps,
        flip=True,
        crop_padding=4,
    )


def checked_recipe(file: Path | None, **values: Any) -> Any:
    """A recipe of these values and, above them, those of a YAML file."""
    import yaml

    from fsrp_edge.training.recipe import Recipe

    try:
        more = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--recipe {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(more, dict):
        raise click.UsageError(f"--recipe {file}: give keys and values, such as `ema_decay: 0.999`")
    return checked(Recipe, **{**values, **more})
