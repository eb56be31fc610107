"""Keep the visual tokens nearest to the image's centre. The README's worked example of a method."""

from dataclasses import dataclass

from prunebench import Ranking, Traits


@dataclass(frozen=True)
class Centre(Ranking):
    """Keeps `keep` visual tokens from decoder layer `boundary` on."""

    name = "centre"
    # the question has no say: questions about an image share work
    traits = Traits(query_aware=False, image_only=True)

    def score(self, run, stream):
        at = run.places  # (b, v) each: row and column of every visual token, and how many its view has
        return -((at.row - (at.rows - 1) / 2) ** 2 + (at.col - (at.cols - 1) / 2) ** 2)
