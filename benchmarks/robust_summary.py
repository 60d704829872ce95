"""The short tables of docs/robustness.md, from the cells of `benchmarks.robust_pruning` that are on disk."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from benchmarks.common import RESULTS, markdown_table
from benchmarks.robust_cells import BARE, BY, COMPENSATED, CONTROLS, FSRP_FORMS, KNAPSACK, MAIN, OURS, RECOVERIES
from benchmarks.robust_tables import (
    AUTOATTACK,
    AUTOATTACK_ON_ALL,
    CLEAN,
    MARGIN,
    PGD,
    Group,
    Groups,
    Judged,
    Setting,
    accuracies,
    lead_of,
    leads_by_seed,
    mean_accuracy,
    mean_and_deviation,
    seeds_of_both,
)
from fsrp_edge.files import write_text

PAGE = RESULTS.parents[1] / "docs" / "robustness.md"
TENTH: Setting = ("vgg16-w0.25", 0.9, "parameters", 5)
WIDE: Setting = ("vgg16", 0.9, "channels", 10)
TENTHS: dict[str, Setting] = {
    "VGG16": ("vgg16", 0.9, "parameters", 5),
    "VGG16, quarter width": TENTH,
    "ResNet-20": ("resnet20", 0.9, "parameters", 5),
}
FEWEST: dict[str, Setting] = {
    "VGG16": ("vgg16", 0.9, "channels", 5),
    "VGG16, quarter width": ("vgg16-w0.25", 0.9, "channels", 5),
    "ResNet-20": ("resnet20", 0.9, "channels", 5),
}
MILDER: dict[str, Setting] = {
    f"{name}, {ratio:.0%} removed": (network, ratio, "parameters", 5)
    for name, network in (("VGG16, quarter width", "vgg16-w0.25"), ("ResNet-20", "resnet20")) for ratio in (0.5, 0.75)
}  # fmt: skip
LENGTHS = (0, 5, 30)
CLEAN_BINS = (25, 40, 50, 55, 65)
"""Limits of clean accuracy, percent."""
ROWS = (OURS, BARE, *MAIN[1:])


def write_summary(found: Groups) -> None:
    """Replace the tables of the page; each stands between two comments of its name."""
    recoveries = {"n-fgsm": OURS, **{name: f"{OURS}{BY}{name}" for name in RECOVERIES}}
    tables = {
        "criteria": _criteria(found),
        "seeds": _by_seed(found),
        "all images": _on_all_images(found),
        "channels": _channels(found),
        "leads under AutoAttack": _under_autoattack(found),
        "margin and AutoAttack": _margin_and_autoattack(found),
        "compensation": _compensation(found),
        "budgets": _grid(found, MILDER, (CLEAN, MARGIN, AUTOATTACK)),
        "leads on budgets": _on_milder(found),
        "lengths": _ablation(found, {
            f"{criterion}, {length} epochs": ((*TENTH[:3], length), criterion)
            for length in LENGTHS for criterion in ("fsrp", "l1", "random")
        }),
        "forms": _ablation(found, {name: (TENTH, name) for name in (*FSRP_FORMS, OURS)}),
        "ratios": _ablation(found, {name: (TENTH, name) for name in (OURS, "l1, compensated", *KNAPSACK)}),
        "recoveries": _ablation(found, {name: (TENTH, criterion) for name, criterion in recoveries.items()}),
    }  # fmt: skip
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = _filled(text, name, table)
    write_text(PAGE, text)


def _filled(text: str, name: str, lines: Sequence[str]) -> str:
    before, opening, rest = text.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->\n")
    assert opening and closing, f"{PAGE} has no place for {name}"
    return "".join((before, opening, "\n", *(f"{line}\n" for line in lines), "\n", closing, after))


def _criteria(found: Groups) -> list[str]:
    """Criteria against networks, each as clean / margin attack / AutoAttack."""
    return _grid(found, TENTHS, (CLEAN, MARGIN, AUTOATTACK))


def _channels(found: Groups) -> list[str]:
    """The same where 90 % of the channels go, with how far ours is ahead on the margin."""
    rows = _beside_ours(
        found,
        tuple(FEWEST.values()),
        lambda group, ours: [
            _known(group, (CLEAN, MARGIN, AUTOATTACK)),
            lead_of(ours, group, MARGIN),
        ],
    )
    titles = (title for name in FEWEST for title in (name, "our lead"))
    return markdown_table(("criterion", *titles), rows)


def _by_seed(found: Groups) -> list[str]:
    """How far ours is ahead on the margin: over seeds, paired by image, and of each seed."""
    rows = _beside_ours(
        found,
        tuple(TENTHS.values()),
        lambda group, ours: [lead_of(ours, group, MARGIN), leads_by_seed(ours, group, MARGIN)],
    )
    titles = (title for name in TENTHS for title in (name, "seed by seed"))
    return markdown_table(("criterion", *titles), rows)


def _under_autoattack(found: Groups) -> list[str]:
    """How far ours is ahead under AutoAttack, and over how many seeds, where 90 % of the parameters or channels go."""
    settings = {
        f"{name}, {share}": setting
        for share, by_name in (("90 % of parameters", TENTHS), ("90 % of channels", FEWEST))
        for name, setting in by_name.items()
    }  # fmt: skip

    def cells(group: Group, ours: Group) -> list[str]:
        seeds = seeds_of_both(ours, group, AUTOATTACK)
        return [f"{lead_of(ours, group, AUTOATTACK)}, {seeds} seed{'s' * (seeds != 1)}" if seeds else "–"]

    rows = _beside_ours(found, tuple(settings.values()), cells)
    return markdown_table(("criterion", *settings), rows)


def _margin_and_autoattack(found: Groups) -> list[str]:
    """By how many points AutoAttack leaves less than the margin attack, by clean accuracy, on the same images."""
    images = AUTOATTACK[1]
    seen = [
        [share for attack, _ in (CLEAN, MARGIN, AUTOATTACK) for share in accuracies({seed: result}, (attack, images))]
        for by_seed in found.values()
        for seed, result in by_seed.items()
    ]
    of_all = [shares for shares in seen if len(shares) == 3]  # the others did not meet all three
    rows = []
    for low, high in pairwise(CLEAN_BINS):
        further = [margin - autoattack for clean, margin, autoattack in of_all if low <= clean < high]
        rows.append([f"{low} to {high}", str(len(further)), mean_and_deviation(further)])
    return markdown_table(("clean %", "networks", "margin less AutoAttack, points"), rows)


def _on_milder(found: Groups) -> list[str]:
    """How far ours is ahead where less goes, on the margin over all seeds, and under AutoAttack."""
    rows = _beside_ours(
        found, tuple(MILDER.values()), lambda group, ours: [lead_of(ours, group, each) for each in (MARGIN, AUTOATTACK)]
    )
    titles = (title for name in MILDER for title in (f"{name}: margin", "AutoAttack"))
    return markdown_table(("criterion", *titles), rows)


def _compensation(found: Groups) -> list[str]:
    """By how much a criterion's network is ahead of its own without compensation, clean and on the margin."""

    def cells(criterion: str, key: Setting) -> list[str]:
        fitted, plain = (found.get((key, f"{criterion}{end}"), {}) for end in (COMPENSATED, ""))
        return [lead_of(fitted, plain, judged) for judged in (CLEAN, MARGIN)]

    criteria = [name.removesuffix(COMPENSATED) for name in (OURS, *CONTROLS)]
    rows = [[name, *(cell for key in TENTHS.values() for cell in cells(name, key))] for name in criteria]
    titles = (title for name in TENTHS for title in (f"{name}: clean", "margin"))
    return markdown_table(("criterion", *titles), rows)


def _on_all_images(found: Groups) -> list[str]:
    """Criteria whose networks met AutoAttack on all images, and how far ours is ahead of each."""
    rows = _beside_ours(
        found,
        (WIDE, TENTH),
        lambda group, ours: [
            mean_accuracy(group, AUTOATTACK_ON_ALL),
            lead_of(ours, group, AUTOATTACK_ON_ALL),
        ],
    )
    columns = zip(("criterion", "VGG16", "our lead", "quarter width", "our lead"), *rows, strict=True)
    told = [column for column in columns if {*column[1:]} != {"–"}]  # of a quarter of the width, ours met no attack
    header, *rows = map(list, zip(*told, strict=True))
    return markdown_table(header, rows)


def _beside_ours(
    found: Groups, settings: Sequence[Setting], cells: Callable[[Group, Group], list[str]]
) -> list[list[str]]:
    """A row a criterion of which anything is known: at every setting, the cells of its group and ours."""
    rows = [
        [
            criterion,
            *(cell for key in settings for cell in cells(found.get((key, criterion), {}), found.get((key, OURS), {}))),
        ]
        for criterion in ROWS
    ]
    return [row for row in rows if set(row[1:]) != {"–"}]


def _grid(found: Groups, columns: dict[str, Setting], judged: Sequence[Judged]) -> list[str]:
    """Criteria against settings, each cell what is known of the group."""
    rows = _beside_ours(found, tuple(columns.values()), lambda group, _: [_known(group, judged)])
    return markdown_table(("criterion", *columns), rows)


def _ablation(found: Groups, keys: dict[str, tuple[Setting, str]]) -> list[str]:
    """One row each, over the seeds that all rows have: a seed moves accuracies by as much as some rows differ by."""
    there = {name: found[key] for name, key in keys.items() if key in found}
    seeds = set.intersection(*map(set, there.values()))
    rows = []
    for name, group in there.items():
        alike = {seed: result for seed, result in group.items() if seed in seeds}
        size = next(iter(alike.values()))["size"]
        rows.append([
            name, *(mean_accuracy(alike, judged) for judged in (CLEAN, PGD, MARGIN, AUTOATTACK)),
            f"{size['macs'] / 1e6:.1f}", f"{size['parameters'] / 1e3:.0f}",
        ])  # fmt: skip
    return markdown_table(
        ("", "clean %", "PGD-20 %", "margin %", "AutoAttack % (1,000)", "M MACs", "k parameters"), rows
    )


def _known(group: Group, judged: Iterable[Judged]) -> str:
    """Accuracies as far as the attacks were run."""
    return " / ".join(accuracy for each in judged if (accuracy := mean_accuracy(group, each)) != "–") or "–"
