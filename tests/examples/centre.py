"""Keep the visual tokens nearest to the image's centre. The README's worked example of a method."""

from dataclasses import dataclass

from harness.method import Ranking, Traits


@dataclass(frozen=True)
class Centre(Ranking):
    """Keeps `keep` visual tokens from decoder layer `boundary` on."""

    name = "centre"
    traits = Traits(query_aware=False, image_only=True)  # the question has no say, so questions about an image can share work

    def score(self, run, stream):
        place, view = run.places, run.prompts[0].images[0].views[0]  # (b, v) each: where every visual token stands in its image
        return -((place.row - (view.rows - 1) / 2) ** 2 + (place.col - (view.cols - 1) / 2) ** 2)
