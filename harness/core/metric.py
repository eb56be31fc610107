"""What a headline metric is: how samples' scores make it, its unit, and which way is better. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from harness.core.errors import PrunebenchError

Kind = Literal["mean", "mme", "corpus"]


@dataclass(frozen=True)
class Metric:
    """A task's headline metric. Raises PrunebenchError for an unknown kind, a scale that is not positive, and a scale
    or a direction that MME's sums do not have.

    `kind`: "mean", `scale` times the mean of the samples' scores, each 0 to 1; "mme", MME's sums over categories;
    "corpus", computed from all answers at once (CIDEr, F1 over all), so that samples' scores say nothing of it.
    """

    name: str
    kind: Kind = "mean"
    scale: float = 1.0
    """What a mean of 1 is worth: 1 or 100."""
    higher_is_better: bool = True
    maximum: float | None = None
    """What a corpus metric can reach; None where unknown, and for other kinds, whose samples say it."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise PrunebenchError(
                f"metric {self.name}: expected a kind of {', '.join(get_args(Kind))}, found {self.kind!r}"
            )
        if not 0 < self.scale < float("inf"):
            raise PrunebenchError(f"metric {self.name}: expected a scale above 0, found {self.scale}")
        if (self.kind != "mean" and self.scale != 1) or (self.kind == "mme" and not self.higher_is_better):
            raise PrunebenchError(
                f"metric {self.name}: expected a scale of 1 and higher to be better, as its kind {self.kind!r} has them"
            )
        if self.kind != "corpus" and self.maximum is not None:
            raise PrunebenchError(f"metric {self.name}: expected no maximum of a metric whose samples say it")

    @property
    def tested(self) -> bool:
        """Do samples' scores say how sure it is? Else there is no interval, no test and no verdict."""
        return self.kind != "corpus"

    @property
    def ahead(self) -> float:
        """1 where a higher value is better, else -1."""
        return 1.0 if self.higher_is_better else -1.0

    def how_well(self, score: Any) -> Any:
        """How well a sample of this score is answered, 0..1, of a number or of a column: its score, or 1 less it where
        lower is better; NaN where there is none."""
        return score if self.higher_is_better else 1.0 - score

    def stated(self) -> dict[str, Any]:
        """What its name alone does not say, as JSON values; `metric_from` reads it."""
        usual = asdict(metric_of(self.name))
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def metric_from(name: str, stated: Mapping[str, Any]) -> Metric:
    """The metric of this name that `Metric.stated` wrote. Raises PrunebenchError for anything else."""
    usual = asdict(metric_of(name))
    kinds = {"kind": str, "scale": int | float, "higher_is_better": bool, "maximum": int | float | None}
    strange = [key for key, value in stated.items() if key not in kinds or not isinstance(value, kinds[key])]
    if strange:
        raise PrunebenchError(f"metric {name}: expected {', '.join(kinds)}, found {strange[0]}={stated[strange[0]]!r}")
    return Metric(**{**usual, **stated})


def as_metric(metric: Metric | str) -> Metric:
    """A metric, or what its name alone stands for."""
    return metric_of(metric) if isinstance(metric, str) else metric


def metric_of(name: str) -> Metric:
    """The metric that a name alone stands for: sums of MME where it begins with "mme_", else a mean of scores."""
    return Metric(name, "mme" if name.startswith("mme_") else "mean")
